"""Compiled maximin ordering: farthest-point selection in a k-d tree.

Every node knows the largest distance to the selection among its points, so the next point stands in the
root. A new point can lower the distance of another only if it is nearer than that, so a node is visited
only if its box is nearer than its largest distance; the nodes on the way are then renewed from the leaves
up. Unlike a grid, the tree neither needs to know a scale nor loses to clusters.

No fast-math flags: distances are the same in every engine. This module imports Numba; import it inside
functions only.
"""

import numpy as np
from numba import njit

from gpvi.linalg.sparse_inverse._neighbors_cpu import (
    box_distance,
    build_tree,
    squared_distances,
)

__all__ = ["CompiledEngine"]

_LEAF_SIZE = 16


class CompiledEngine:
    """Numba, on one thread: every choice depends on the one before."""

    def maximin(self, x: np.ndarray, first: int, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """Selected rows in order, up to the budget of distances, and what the rest is away from them."""
        return _maximin(x, first, budget, _LEAF_SIZE)


@njit(cache=True, nogil=True)
def _maximin(
    x: np.ndarray, first: int, budget: int, leaf_size: int
) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    M = len(x)
    lower, upper, earliest, start, coordinates, rank = build_tree(x, leaf_size)
    leaves = start.shape[0] - 1
    # Squared distances to the selection by position, and the largest of every node with its row;
    # selected points have -1. Of equal distances the lowest row counts.
    distance = np.full(M, np.inf)
    largest, farthest = np.full(2 * leaves - 1, np.inf), earliest.copy()
    order = np.empty(M, dtype=np.int64)
    path, stack = np.empty(2 * leaves, dtype=np.int64), np.empty(64, dtype=np.int64)
    buffer = np.empty(np.max(start[1:] - start[:-1]))
    chosen, work = first, 0
    for step in range(M):
        order[step] = chosen
        point = x[chosen]
        length, depth = 0, 1
        stack[0] = 0
        while depth > 0:
            depth -= 1
            node = stack[depth]
            if node < leaves - 1:
                path[length] = node
                length += 1
                for child in range(2 * node + 1, 2 * node + 3):
                    if box_distance(point, lower, upper, child) < largest[child]:
                        stack[depth] = child
                        depth += 1
                work += 2
                continue
            leaf = node - (leaves - 1)
            top, row = -2.0, 0
            squared_distances(point, coordinates, start[leaf], start[leaf + 1], buffer)
            for p in range(start[leaf], start[leaf + 1]):
                new = buffer[p - start[leaf]]
                if rank[p] == chosen:
                    distance[p] = -1.0
                elif new < distance[p]:
                    distance[p] = new
                if distance[p] > top:
                    top, row = distance[p], rank[p]
            largest[node], farthest[node] = top, row
            work += start[leaf + 1] - start[leaf]
        for k in range(length - 1, -1, -1):
            node = path[k]
            left, right = 2 * node + 1, 2 * node + 2
            if largest[right] > largest[left] or (
                largest[right] == largest[left] and farthest[right] < farthest[left]
            ):
                left = right
            largest[node], farthest[node] = largest[left], farthest[left]
        chosen = farthest[0]
        if largest[0] <= 0.0 or work > budget:
            break
    left_over = np.empty(M)
    left_over[rank] = distance
    return order[: step + 1], left_over
