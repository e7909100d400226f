"""Compiled engine of the selected inverse: float64 on the CPU, eight right-hand sides at a time.

Rows near each other share most of their ancestors. Eight rows of the schedule are therefore solved
together over the union of their ancestor sets, one row in each lane of a vector; lanes are switched off
at indices that are no ancestors of their own row, so every row sees its own block of the factor only.
Indices are looked up, and ancestors sorted (through a bitmap), once for eight rows.

This module imports Numba; import it inside functions only.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gpvi.linalg.sparse_inverse._ancestors_tensor import AncestorSets, Region
from gpvi.linalg.sparse_inverse._lanes_cpu import (
    LANES,
    collect_lanes,
    divide_lanes,
    dot_lanes,
    lowest_bit,
    subtract_lanes,
)
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["Engine"]

_FLAGS = {"contract", "nsz", "arcp"}

# Rows from which threads pay, and the most bytes that their sums of gradients may take.
_MIN_SHARED_ROWS = 5_000
_MAX_SHARED_BYTES = 1 << 28


class Engine:
    """Numba on groups of rows, shared among torch's threads."""

    #: Columns of right-hand sides come in multiples of this.
    lanes = LANES

    def norms(
        self, sets: AncestorSets, factor: Tensor, values: Tensor, slopes: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``|V^-1 b|^2`` of every right-hand side and, if asked for, ``S b`` on the first one's index."""
        weights = np.ones((len(factor) if slopes else 0, len(sets.rows), 1))
        norms, along, _ = _run(sets, factor, values, weights, collect=False)
        return torch.from_numpy(norms), torch.from_numpy(along) if slopes else None

    def adjoint(
        self, sets: AncestorSets, factor: Tensor, values: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted ``S b`` on the index, and the weighted sum of ``-S b (V^-1 b)'`` on the pattern."""
        _, along, total = _run(sets, factor, values, weights.contiguous().numpy(), collect=True)
        return torch.from_numpy(along), torch.from_numpy(total)

    def closure(self, pattern: NeighborPattern, indices: list[Tensor]) -> Region:
        """All ancestors of some indices."""
        marked = np.zeros(pattern.num_rows, np.bool_)
        for index in indices:
            marked[index[index >= 0].numpy()] = True
        neighbors, counts = _arrays(pattern)
        members = _close(neighbors, counts, marked)
        position = np.full(pattern.num_rows, -1, np.int32)
        position[members] = np.arange(len(members), dtype=np.int32)
        return Region(pattern, torch.from_numpy(members), torch.from_numpy(position))

    def descend(self, region: Region, factor: Tensor, rhs: Tensor) -> None:
        """``rhs <- V^-1 rhs`` for right-hand sides on a region."""
        lanes, masks, _ = self._lanes(region, rhs)
        arrays = (*_arrays(region.pattern), factor.contiguous().numpy())
        norms = np.zeros((rhs.shape[1] // LANES, LANES))
        place = (region.members.numpy(), masks, region.position.numpy())
        _descend(*arrays, *place, len(masks), lanes, norms, *_hits(region.pattern))

    def ascend(
        self,
        region: Region,
        factor: Tensor,
        rhs: Tensor,
        right: Tensor | None = None,
        total: Tensor | None = None,
    ) -> None:
        """``rhs <- V^-T rhs``; with ``right``, ``total`` falls by ``rhs right'`` on the pattern."""
        lanes, masks, ones = self._lanes(region, rhs)
        arrays = (*_arrays(region.pattern), factor.contiguous().numpy())
        other, sums = lanes, arrays[2]
        collect = right is not None and total is not None
        if right is not None and total is not None:
            other, sums = right.numpy().reshape(-1, LANES), total.numpy()
        place = (region.members.numpy(), masks, region.position.numpy())
        solve = (lanes, lanes, len(ones), ones, other, sums, collect)
        _ascend(*arrays, *place, len(masks), *solve, *_hits(region.pattern))

    @staticmethod
    def _lanes(region: Region, rhs: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right-hand sides lane by lane, all lanes switched on, with weight one."""
        blocks = rhs.shape[1] // LANES
        masks = np.full(len(region.members), 255, np.uint8)
        return rhs.numpy().reshape(-1, LANES), masks, np.ones((blocks, LANES))


def _arrays(pattern: NeighborPattern) -> tuple[np.ndarray, np.ndarray]:
    return pattern.neighbors.contiguous().numpy(), pattern.counts.numpy()


def _hits(pattern: NeighborPattern) -> tuple[np.ndarray, np.ndarray]:
    """Room for one column: which members its entries are in, and the entries."""
    size = max(1, pattern.num_neighbors)
    return np.empty(size, np.uint64), np.empty(size)


def _run(
    sets: AncestorSets, factor: Tensor, values: Tensor, weights: np.ndarray, collect: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Norms, slopes along the index (if there are weights) and sums on the pattern (if collected)."""
    V, b = factor.contiguous().numpy(), values.contiguous().numpy()
    R, B = len(sets.rows), len(V)
    norms = np.empty((B, *sets.outputs))
    along = np.empty((B, R, b.shape[-1]) if len(weights) else (0, 0, 0))
    workers = torch.get_num_threads() if R >= _MIN_SHARED_ROWS else 1
    if collect and workers * V.nbytes > _MAX_SHARED_BYTES:
        workers = 1
    totals = np.zeros((workers, *V.shape) if collect else (workers, 0, 0, 0))
    index, counts = sets.index.contiguous().numpy(), sets.index_counts.numpy()
    rows, visit = sets.rows.contiguous().numpy(), sets.visit.contiguous().numpy()
    arrays = (*_arrays(sets.pattern), V, index, counts, b, rows, visit)
    seeds = index.shape[1] + 1 + (sets.pattern.num_neighbors if sets.union else 0)
    room = min(sets.pattern.num_rows, LANES * seeds * (sets.pattern.num_neighbors + 1) ** 2)
    if sets.complete:
        room = sets.pattern.num_rows

    def part(worker: int) -> None:
        start, stop = (-(-R // LANES) * n // workers * LANES for n in (worker, worker + 1))
        flags = (sets.own, sets.union, sets.unit, sets.complete, collect)
        outputs = (weights, norms, along, totals[worker])
        _sweep(*arrays, *flags, *outputs, start, min(stop, R), room)

    _share(part, workers)
    total = totals[0]
    for other in totals[1:]:
        total += other
    return norms, along, total


def _share(part: Callable[[int], None], workers: int) -> None:
    """Run the parts; the threads live for one pass, because a pool kept longer would not survive a fork."""
    if workers == 1:
        part(0)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(part, range(workers)))


@njit(cache=True, nogil=True)
def _close(neighbors, counts, marked):  # type: ignore[no-untyped-def] # pragma: no cover
    """Mark all ancestors of what is marked; neighbours are earlier, so one pass back is enough."""
    for c in range(len(marked) - 1, -1, -1):
        if marked[c]:
            for k in range(counts[c]):
                marked[neighbors[c, k]] = True
    return np.nonzero(marked)[0].astype(np.int32)


@njit(cache=True, nogil=True, fastmath=_FLAGS)
def _find(neighbors, counts, V, c, position, hits, entries):  # type: ignore[no-untyped-def] # pragma: no cover
    """Entries of column c in rows that are members; without branches, which nothing could predict."""
    found, column = 0, np.uint64(c)
    for k in range(counts[column]):
        place = position[np.uint64(neighbors[column, k])]
        hits[found], entries[found] = place, V[column, k]
        found += place >= 0
    return found


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _descend(neighbors, counts, V, members, masks, position, size, X, norms, hits, entries):  # type: ignore[no-untyped-def] # pragma: no cover
    """Back substitution column by column, last member first; X has some blocks of lanes a member."""
    blocks, one, two = np.uint64(len(norms)), np.uint64(1), np.uint64(2)
    for t in range(size - 1, -1, -1):
        c, row = members[t], np.uint64(t) * blocks
        inverse = 1.0 / V[c, V.shape[1] - 1]
        found = _find(neighbors, counts, V, c, position, hits, entries)
        for h in range(blocks):
            divide_lanes(X, row + h, inverse, masks[t], norms, h)
        # One or two blocks are the rule; their loops must not have loops inside.
        if blocks == 1:
            for j in range(found):
                subtract_lanes(X, hits[j], entries[j], row)
        elif blocks == 2:
            for j in range(found):
                other = two * hits[j]
                subtract_lanes(X, other, entries[j], row)
                subtract_lanes(X, other + one, entries[j], row + one)
        else:
            for j in range(found):
                for h in range(blocks):
                    subtract_lanes(X, hits[j] * blocks + h, entries[j], row + h)


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _ascend(  # type: ignore[no-untyped-def] # pragma: no cover
    neighbors, counts, V, members, masks, position, size, X, Y, blocks, weights, right, total,
    collect, hits, entries,
):  # fmt: skip
    """Solve with the transpose, first member first; ``total -= Y right'`` on the pattern.

    Blocks of lanes behind the last weights are left out.
    """
    blocks, used, last = np.uint64(blocks), np.uint64(len(weights)), V.shape[1] - 1
    for t in range(size):
        c, row = members[t], np.uint64(t) * blocks
        inverse = 1.0 / V[c, last]
        found = _find(neighbors, counts, V, c, position, hits, entries)
        for h in range(used):
            collect_lanes(
                X, Y, row + h, weights, h, hits, entries, found, blocks, inverse, masks[t]
            )
        if not collect:
            continue
        for h in range(used):
            total[c, last] -= dot_lanes(Y, row + h, right, row + h)
        for k in range(counts[c]):
            place = position[neighbors[c, k]]
            if place >= 0:
                other = np.uint64(place) * blocks
                for h in range(used):
                    total[c, k] -= dot_lanes(Y, other + h, right, row + h)


@njit(cache=True, nogil=True)
def _add(a, bit, reach, reached, size):  # type: ignore[no-untyped-def] # pragma: no cover
    """Put an index into the set of a lane, and on the list if it is new."""
    a = np.uint64(a)
    if reach[a] == 0:
        reached[size] = a
        size += 1
    reach[a] |= bit
    return size


@njit(cache=True, nogil=True)
def _note(a, words, summary):  # type: ignore[no-untyped-def] # pragma: no cover
    """Set an index's bit in the two-level bitmap."""
    one, low = np.uint64(1), np.uint64(63)
    word = a >> np.uint64(6)
    words[word] |= one << (a & low)
    summary[word >> np.uint64(6)] |= one << (word & low)


@njit(cache=True, nogil=True)
def _gather(  # type: ignore[no-untyped-def] # pragma: no cover
    neighbors, counts, index, index_counts, sources, own, union, complete, reach, words, summary,
    reached, bits, members, masks, position,
):  # fmt: skip
    """Ancestors of the rows of a group, ascending, and the lanes that each belongs to.

    ``reach``, the bitmap and its summary are zero before and after.
    """
    size = 0
    for lane in range(len(sources)):
        q, bit = sources[lane], np.uint8(1 << lane)
        for k in range(index_counts[q]):
            size = _add(index[q, k], bit, reach, reached, size)
        if own:
            size = _add(q, bit, reach, reached, size)
        if union:
            for k in range(counts[q]):
                size = _add(neighbors[q, k], bit, reach, reached, size)
    for t in range(size):
        _note(np.uint64(reached[t]), words, summary)
    if complete:
        _note_all(neighbors, counts, reach, words, summary)
    for _ in range(0 if complete else 2):
        found = size
        # Lanes as they were before this generation: a step at a time.
        for t in range(found):
            bits[t] = reach[reached[t]]
        for t in range(found):
            c = np.uint64(reached[t])
            for k in range(counts[c]):
                a = np.uint64(neighbors[c, k])
                if reach[a] == 0:
                    _note(a, words, summary)
                    reached[size] = a
                    size += 1
                reach[a] |= bits[t]
    return _list(words, summary, reach, members, masks, position)


@njit(cache=True, nogil=True)
def _note_all(neighbors, counts, reach, words, summary):  # type: ignore[no-untyped-def] # pragma: no cover
    """All ancestors of what is noted, last first: neighbours are earlier, so one pass is enough."""
    one = np.uint64(1)
    for j in range(len(words) - 1, -1, -1):
        if words[j] == 0:
            continue
        # A word may gain bits below the one in hand while it is gone through.
        for low in range(63, -1, -1):
            if words[j] & (one << np.uint64(low)) == 0:
                continue
            c = np.uint64(64 * j + low)
            bits = reach[c]
            for k in range(counts[c]):
                a = np.uint64(neighbors[c, k])
                if reach[a] == 0:
                    _note(a, words, summary)
                reach[a] |= bits


@njit(cache=True, nogil=True)
def _list(words, summary, reach, members, masks, position):  # type: ignore[no-untyped-def] # pragma: no cover
    """Read the bitmap in order, leaving zeros behind."""
    size, one, wide = 0, np.uint64(1), np.uint64(64)
    for s in range(len(summary)):
        upper, summary[s] = summary[s], 0
        while upper != 0:
            j = np.uint64(s) * wide + lowest_bit(upper)
            upper &= upper - one
            word, words[j] = words[j], 0
            while word != 0:
                a = j * wide + lowest_bit(word)
                word &= word - one
                members[size], masks[size], position[a] = a, reach[a], size
                reach[a] = 0
                size += 1
    return size


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _sweep(  # type: ignore[no-untyped-def] # pragma: no cover
    neighbors, counts, V, index, index_counts, values, rows, visit, own, union, unit, complete, collect,
    weights, norms, along, total, start, stop, room,
):  # fmt: skip
    """Rows ``visit[start:stop]`` in groups of eight; without weights, only norms are asked for."""
    M, blocks, slope, k_last = len(neighbors), norms.shape[2], len(weights) > 0, values.shape[2] - 1
    reach, position = np.zeros(M, np.uint8), np.full(M, -1, np.int32)
    words, summary = np.zeros(M // 64 + 1, np.uint64), np.zeros(M // 4096 + 1, np.uint64)
    reached, bits = np.empty(room, np.int32), np.empty(room, np.uint8)
    members, masks = np.empty(room, np.int32), np.empty(room, np.uint8)
    # Lanes start on a cache line: a row of them is one.
    X = np.empty((room + 1) * blocks * LANES)
    X = X[(-X.ctypes.data % 64) // 8 :][: room * blocks * LANES].reshape(-1, LANES)
    Y = np.empty((room + 1) * blocks * LANES if slope else LANES)
    Y = Y[(-Y.ctypes.data % 64) // 8 :][: room * blocks * LANES if slope else 0].reshape(-1, LANES)
    squares, scales = np.empty((blocks, LANES)), np.zeros((weights.shape[2], LANES))
    width = max(1, neighbors.shape[1])
    hits, entries = np.empty(width, np.uint64), np.empty(width)
    for g in range(start, stop, LANES):
        group = visit[g : min(g + LANES, stop)]
        sources = rows[group]
        size = _gather(
            neighbors, counts, index, index_counts, sources, own, union, complete, reach, words,
            summary, reached, bits, members, masks, position,
        )  # fmt: skip
        for b in range(len(V)):
            X[: size * blocks] = 0.0
            squares[:] = 0.0
            for lane in range(len(group)):
                q = sources[lane]
                for k in range(index_counts[q]):
                    X[position[index[q, k]] * blocks, lane] += values[b, q, k]
                if own:
                    X[position[q] * blocks, lane] += values[b, q, k_last]
                if unit:
                    X[position[q] * blocks + 1, lane] = 1.0
            _descend(
                neighbors, counts, V[b], members, masks, position, size, X, squares,
                hits, entries,
            )  # fmt: skip
            for lane in range(len(group)):
                norms[b, group[lane]] = squares[:, lane]
            if not slope:
                continue
            for lane in range(len(group)):
                scales[:, lane] = weights[b, group[lane]]
            _ascend(
                neighbors, counts, V[b], members, masks, position, size, X, Y, blocks, scales, X,
                total[b] if collect else V[b], collect, hits, entries,
            )  # fmt: skip
            for lane in range(len(group)):
                q, row = sources[lane], group[lane]
                along[b, row] = 0.0
                for k in range(index_counts[q]):
                    along[b, row, k] = Y[position[index[q, k]] * blocks, lane]
                if own:
                    along[b, row, k_last] = Y[position[q] * blocks, lane]
        for t in range(size):
            position[members[t]] = -1
