"""Compiled nearest-neighbour search in a k-d tree whose nodes know their earliest point.

The tree is balanced and implicit: node n has the children 2n + 1 and 2n + 2, and every node covers a run
of positions. Points are copied in the order of the leaves, ascending by rank (row number) within each,
so that a query for earlier points stops at the first later one, and skips every node whose earliest point
is later. Ties of distance go to the lower rank everywhere, so results do not depend on the tree.

No fast-math flags: sums of squares are the same in every engine. This module imports Numba; import it
inside functions only.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

__all__ = ["CompiledEngine", "PointTree", "box_distance", "build_tree", "squared_distances"]

# Points of a leaf, at most: fewer make more nodes to visit, more make more distances.
_LEAF_SIZE = 16

# Rows from which threads pay: a few milliseconds of search.
_MIN_SHARED_ROWS = 1 << 12


class PointTree(NamedTuple):
    """A k-d tree over M points in D columns with B leaves.

    `lower` and `upper` [2B - 1, D] are the bounding boxes of the nodes, `earliest` [2B - 1] their lowest
    ranks; leaf b (node B - 1 + b) covers the positions start[b], ..., start[b + 1] - 1 of `coordinates`
    [D, M] and `rank` [M].
    """

    lower: np.ndarray
    upper: np.ndarray
    earliest: np.ndarray
    start: np.ndarray
    coordinates: np.ndarray
    rank: np.ndarray


class CompiledEngine:
    """Numba; queries are shared among torch's threads."""

    def tree(self, x: np.ndarray) -> PointTree:
        """The tree over the rows of `x`."""
        return build_tree(x, _LEAF_SIZE)

    def earlier(self, tree: PointTree, x: np.ndarray, num_neighbors: int, first: int) -> np.ndarray:
        """Nearest earlier rows of every row of `x` from `first` on."""
        # In the order of the leaves: queries that follow each other visit the same nodes.
        rows = tree.rank[tree.rank >= first]
        out = np.empty((len(rows), num_neighbors), dtype=np.int32)

        def search(i: int, j: int) -> None:
            _search(tree, x, rows[i:j], rows[i:j], rows[i:j] - first, out)

        _split(len(rows), search)
        return out

    def nearest(
        self, tree: PointTree, queries: np.ndarray, num_neighbors: int, schedule: np.ndarray
    ) -> np.ndarray:
        """Nearest rows of a tree for every query, which are visited by schedule."""
        limits = np.full(len(queries), len(tree.rank), dtype=np.int32)
        out = np.empty((len(queries), num_neighbors), dtype=np.int32)

        def search(i: int, j: int) -> None:
            _search(tree, queries, schedule[i:j], limits[i:j], schedule[i:j], out)

        _split(len(queries), search)
        return out


def _split(num_rows: int, loop: Callable[[int, int], object]) -> None:
    """Run a loop over rows on torch's number of threads, if there are enough rows."""
    workers = torch.get_num_threads() if num_rows >= _MIN_SHARED_ROWS else 1
    if workers == 1:
        loop(0, num_rows)
        return
    cuts = [num_rows * k // workers for k in range(workers + 1)]
    with ThreadPoolExecutor(
        workers
    ) as pool:  # kept no longer than this: it would not survive a fork
        list(pool.map(loop, cuts[:-1], cuts[1:]))


@njit(cache=True, nogil=True)
def build_tree(x: np.ndarray, leaf_size: int) -> PointTree:  # pragma: no cover - compiled
    """The tree over the rows of `x`, split at the median of the widest column."""
    M, D = x.shape
    height = 0
    while M > leaf_size << height:
        height += 1
    leaves = 1 << height
    start = np.empty(leaves + 1, dtype=np.int64)
    for b in range(leaves + 1):
        start[b] = b * M // leaves
    rank = np.arange(M).astype(np.int32)
    key = np.empty(M)
    low, high = np.empty(D), np.empty(D)
    # Depth first: a subtree that fits the cache is finished while it is there.
    stack = np.empty((height + 2, 3), dtype=np.int64)
    stack[0, 0], stack[0, 1], stack[0, 2] = 0, 0, leaves
    depth = 1
    while depth > 0:
        depth -= 1
        node, b, e = stack[depth, 0], stack[depth, 1], stack[depth, 2]
        if e - b == 1:
            rank[start[b] : start[e]].sort()
            continue
        i, j, half = start[b], start[e], (b + e) // 2
        low[:] = x[rank[i]]
        high[:] = low
        for p in range(i + 1, j):
            for d in range(D):
                value = x[rank[p], d]
                if value < low[d]:
                    low[d] = value
                elif value > high[d]:
                    high[d] = value
        widest = 0
        for d in range(1, D):
            if high[d] - low[d] > high[widest] - low[widest]:
                widest = d
        for p in range(i, j):
            key[p] = x[rank[p], widest]
        _select(key, rank, i, j, start[half])
        stack[depth, 0], stack[depth, 1], stack[depth, 2] = 2 * node + 2, half, e
        stack[depth + 1, 0], stack[depth + 1, 1], stack[depth + 1, 2] = 2 * node + 1, b, half
        depth += 2
    coordinates = np.empty((D, M))
    for p in range(M):
        for d in range(D):
            coordinates[d, p] = x[rank[p], d]
    lower, upper = np.empty((2 * leaves - 1, D)), np.empty((2 * leaves - 1, D))
    earliest = np.empty(2 * leaves - 1, dtype=np.int32)
    for b in range(leaves):
        node = leaves - 1 + b
        earliest[node] = rank[start[b]]
        for d in range(D):
            run = coordinates[d, start[b] : start[b + 1]]
            lower[node, d], upper[node, d] = run.min(), run.max()
    for node in range(leaves - 2, -1, -1):
        left, right = 2 * node + 1, 2 * node + 2
        earliest[node] = min(earliest[left], earliest[right])
        for d in range(D):
            lower[node, d] = min(lower[left, d], lower[right, d])
            upper[node, d] = max(upper[left, d], upper[right, d])
    return PointTree(lower, upper, earliest, start, coordinates, rank)


@njit(cache=True, nogil=True, inline="always")
def _before(a: float, i: int, b: float, j: int) -> bool:  # pragma: no cover - compiled
    """Order of (value, rank): no two are equal, so that copies of one value split evenly."""
    return a < b or (a == b and i < j)


@njit(cache=True, nogil=True)
def _select(
    key: np.ndarray, rank: np.ndarray, begin: int, end: int, middle: int
) -> None:  # pragma: no cover - compiled
    """Rearrange positions begin, ..., end - 1 so that those before `middle` are the smaller ones."""
    i, j = begin, end - 1
    state = np.uint64(end - begin)
    while i < j:
        # A pivot from anywhere: no arrangement of the rows makes this quadratic.
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        p = i + np.int64((state >> np.uint64(33)) % np.uint64(j - i + 1))
        pivot, pivot_rank = key[p], rank[p]
        left, right = i, j
        while left <= right:
            while _before(key[left], rank[left], pivot, pivot_rank):
                left += 1
            while _before(pivot, pivot_rank, key[right], rank[right]):
                right -= 1
            if left <= right:
                key[left], key[right] = key[right], key[left]
                rank[left], rank[right] = rank[right], rank[left]
                left += 1
                right -= 1
        if middle <= right:
            j = right
        elif middle >= left:
            i = left
        else:
            return


@njit(cache=True, nogil=True, inline="always")
def box_distance(
    point: np.ndarray, lower: np.ndarray, upper: np.ndarray, node: int
) -> float:  # pragma: no cover - compiled
    """Squared distance of a point to the box of a node, never above that to a point in it."""
    total = 0.0
    for d in range(point.shape[0]):
        value = point[d]
        below, above = lower[node, d] - value, value - upper[node, d]
        # Selections, no branches: which side a point lies on cannot be predicted.
        gap = below if below > above else above
        gap = gap if gap > 0.0 else 0.0
        total += gap * gap
    return total


@njit(cache=True, nogil=True)
def squared_distances(
    point: np.ndarray, coordinates: np.ndarray, begin: int, end: int, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Squared distances of a point to the positions begin, ..., end - 1 of a tree."""
    value = point[0]
    for k in range(end - begin):
        difference = coordinates[0, begin + k] - value
        out[k] = difference * difference
    for d in range(1, point.shape[0]):
        value = point[d]
        for k in range(end - begin):
            difference = coordinates[d, begin + k] - value
            out[k] += difference * difference


@njit(cache=True, nogil=True)
def _search(
    tree: PointTree,
    queries: np.ndarray,
    rows: np.ndarray,
    limits: np.ndarray,
    slots: np.ndarray,
    out: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """For the queries of these rows, the nearest points of ranks below the limits, ascending in
    the slots of `out`. Returns how many points were looked at."""
    lower, upper, earliest, start, coordinates, rank = tree
    m = out.shape[1]
    first_leaf = start.shape[0] - 2
    best, best_rank = np.empty(m + 1), np.empty(m + 1, dtype=np.int32)
    nodes, gaps = np.empty(64, dtype=np.int64), np.empty(64)
    buffer = np.empty(np.max(start[1:] - start[:-1]))
    looked = 0
    for q in range(rows.shape[0]):
        point, limit = queries[rows[q]], limits[q]
        count, depth = 0, 0
        if earliest[0] < limit:
            nodes[0], gaps[0] = 0, 0.0
            depth = 1
        while depth > 0:
            depth -= 1
            node = nodes[depth]
            if count == m and not _before(
                gaps[depth], earliest[node], best[m - 1], best_rank[m - 1]
            ):
                continue
            while node < first_leaf:
                near, far = 2 * node + 1, 2 * node + 2
                near_gap = far_gap = np.inf
                if earliest[near] < limit:
                    near_gap = box_distance(point, lower, upper, near)
                if earliest[far] < limit:
                    far_gap = box_distance(point, lower, upper, far)
                if _before(far_gap, earliest[far], near_gap, earliest[near]):
                    near, far = far, near
                    near_gap, far_gap = far_gap, near_gap
                if far_gap < np.inf:
                    nodes[depth], gaps[depth] = far, far_gap
                    depth += 1
                node = near
                if count == m and not _before(
                    near_gap, earliest[node], best[m - 1], best_rank[m - 1]
                ):
                    node = -1
                    break
            if node < 0:
                continue
            leaf = node - first_leaf
            begin, end = start[leaf], start[leaf + 1]
            while rank[end - 1] >= limit:
                end -= 1
            squared_distances(point, coordinates, begin, end, buffer)
            looked += end - begin
            for p in range(begin, end):
                i, distance = rank[p], buffer[p - begin]
                if count == m:
                    if not _before(distance, i, best[m - 1], best_rank[m - 1]):
                        continue
                else:
                    count += 1
                k = count - 1
                while k > 0 and _before(distance, i, best[k - 1], best_rank[k - 1]):
                    best[k], best_rank[k] = best[k - 1], best_rank[k - 1]
                    k -= 1
                best[k], best_rank[k] = distance, i
        found = out[slots[q]]
        for p in range(count):  # sorted by insertion: faster than a call for so few
            i, k = best_rank[p], p
            while k > 0 and found[k - 1] > i:
                found[k] = found[k - 1]
                k -= 1
            found[k] = i
        found[count:] = -1
    return looked
