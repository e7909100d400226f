"""Compiled levels of a pattern and renumbering of its neighbours.

This module imports Numba; import it inside functions only.
"""

import numpy as np
from numba import njit

__all__ = ["CompiledEngine"]


class CompiledEngine:
    """Numba, one pass over the rows for each."""

    def level_numbers(self, neighbors: np.ndarray) -> np.ndarray:
        """Level of every row, int64 [M]."""
        return _level_numbers(neighbors)

    def renumbered(
        self, neighbors: np.ndarray, order: np.ndarray, number: np.ndarray
    ) -> np.ndarray:
        """Neighbours of the rows of an order by their new numbers, ascending."""
        return _renumbered(neighbors, order, number)


@njit(cache=True, nogil=True)
def _level_numbers(neighbors: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    M, m = neighbors.shape
    level = np.zeros(M, dtype=np.int64)
    for i in range(M):
        for k in range(m):
            j = neighbors[i, k]
            if j < 0:
                break
            level[i] = max(level[i], level[j] + 1)
    return level


@njit(cache=True, nogil=True)
def _renumbered(
    neighbors: np.ndarray, order: np.ndarray, number: np.ndarray
) -> np.ndarray:  # pragma: no cover - compiled
    M, m = neighbors.shape
    out = np.full((M, m), -1, dtype=np.int32)
    for i in range(M):
        row, new = neighbors[order[i]], out[i]
        for k in range(m):
            if row[k] < 0:
                break
            j, p = number[row[k]], k
            while p > 0 and new[p - 1] > j:
                new[p] = new[p - 1]
                p -= 1
            new[p] = j
    return out
