"""The pairs of points that a chunk of rows needs, nearly each of them once: compiled loops.

Rows that lie next to each other condition on nearly the same points. Of the m (m + 1) / 2 pairs of a row
only a few are new, and a covariance function of any kind need be evaluated on those alone. The rows are
taken in blocks that have few points between them; a square table of the block's points says which pairs
have a number already. Within a block every pair is there once; from block to block some come again, which
costs less than a hash table of all of them, whose every new entry is a cache miss. This module imports
Numba; import it inside functions only.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gpvi.linalg.sparse_inverse._pair_columns_tensor import Pairs
from gpvi.linalg.sparse_inverse._rows_lanes_cpu import LANES

__all__ = ["PairFinder"]

# Points of a block: more of them share more pairs, but their table must stay near the processor.
_BLOCK_POINTS = 1024


class PairFinder:
    """Finds the pairs of chunk after chunk of rows, in the same memory.

    Parameters
    ----------
    num_points : int
        Numbers of points are below this.
    block_points : int
        Points between which a pair has one number; more if one row needs them.
    """

    def __init__(self, num_points: int, block_points: int = _BLOCK_POINTS) -> None:
        self._number = np.full(num_points, -1, np.int32)
        self._block_points = block_points
        self._seen = np.empty((0, 0), np.int32)
        self._pairs = np.empty((2, 0), np.int32)

    def __call__(self, sets: Tensor) -> Pairs:
        """Pairs within the sets.

        Parameters
        ----------
        sets : Tensor of int32, shape [R, m + 1]
            Numbers of points, -1 for unused slots.

        Returns
        -------
        Pairs
            With an index of shape [ceil(R / LANES), m (m + 1) / 2, LANES]: the rows that are factorised
            at once lie last, pair (j, k < j) is at j (j - 1) / 2 + k, and pairs with an unused slot have
            number zero.
        """
        rows, n = sets.shape
        per_row = n * (n - 1) // 2
        if len(self._seen) < n:
            self._seen = np.full((max(self._block_points, n),) * 2, -1, np.int32)
        if self._pairs.shape[1] < rows * per_row:
            self._pairs = np.empty((2, rows * per_row), np.int32)  # most of it is never touched
        index = np.empty((-(-rows // LANES), per_row, LANES), np.int32)
        members = np.ascontiguousarray(sets.numpy())
        count = _find(members, self._number, self._seen, self._pairs, index)
        first, second = torch.from_numpy(self._pairs[:, :count].astype(np.int64))
        return Pairs(first, second, torch.from_numpy(index))


@njit(cache=True, nogil=True)
def _find(
    sets: np.ndarray, number: np.ndarray, seen: np.ndarray, pairs: np.ndarray, index: np.ndarray
) -> int:  # pragma: no cover - compiled
    """Writes pairs and index and returns how many pairs there are. `number` (of a point in the block)
    and `seen` (of a pair) hold -1 before and after."""
    rows, n = sets.shape
    index[-1:] = 0
    slots = np.empty(n, np.int64)
    own = np.empty(n, np.int64)
    missing = np.empty(n, np.int64)
    members = np.empty(len(seen), np.int64)
    num_members, count = 0, 0
    for r in range(rows):
        group, lane = r // LANES, r % LANES
        if num_members + n > len(seen):
            _forget(members[:num_members], number, seen)
            num_members = 0
        size = 0
        for slot in range(n):
            point = sets[r, slot]
            if point >= 0:
                if number[point] < 0:
                    members[num_members] = point
                    number[point] = num_members
                    num_members += 1
                slots[size], own[size] = slot, number[point]
                size += 1
        if size < n:
            index[group, :, lane] = 0
        for j in range(1, size):
            base = slots[j] * (slots[j] - 1) // 2
            known = seen[own[j]]
            num_missing = 0
            for k in range(j):
                position = known[own[k]]
                index[group, base + slots[k], lane] = position
                missing[num_missing] = k
                num_missing += position < 0
            for q in range(num_missing):
                k = missing[q]
                known[own[k]] = count
                seen[own[k], own[j]] = count
                index[group, base + slots[k], lane] = count
                pairs[0, count] = sets[r, slots[j]]
                pairs[1, count] = sets[r, slots[k]]
                count += 1
    _forget(members[:num_members], number, seen)
    return count


@njit(cache=True, nogil=True)
def _forget(
    members: np.ndarray, number: np.ndarray, seen: np.ndarray
) -> None:  # pragma: no cover - compiled
    for place in range(len(members)):
        number[members[place]] = -1
        seen[place, : len(members)] = -1
