"""Products with sparse rows, and their products with themselves on a pattern, as compiled loops.

The entries of R R' on a pattern take, for every pair of entries of a row, the slot of the earlier point
in the column of the later one. That does not change while values do, so it is looked up once; the table
takes H (H - 1) / 2 bytes per row, and where that is too much pieces of it are made as they are needed.

This module imports Numba; import it inside functions only.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gpvi.linalg.sparse_inverse.pattern import NeighborPattern
from gpvi.linalg.sparse_inverse.rectangular import SparseRows

__all__ = ["gram", "gram_gradients", "outer", "product", "transpose_product"]

_FLAGS = {"contract", "nsz", "arcp"}
_BLOCK = 8
# Fewer vectors than this are faster one by one than in a block that they do not fill.
_FEW = 4
# Slots of pairs that are kept, and those in a piece that is not.
_LARGEST_TABLE = 2**28
_PIECE = 2**20


def product(rows: SparseRows, values: Tensor, vectors: Tensor) -> Tensor:
    """``R v`` for values [F, N, H] and vectors [F, N, R]."""
    return _each(rows, values, vectors, rows.num_basis, (_product, _product_block))


def transpose_product(rows: SparseRows, values: Tensor, vectors: Tensor) -> Tensor:
    """``R' u`` for values [F, N, H] and vectors [F, M, R]."""
    loops = _transpose_product, _transpose_product_block
    return _each(rows, values, vectors, rows.num_rows, loops)


def outer(rows: SparseRows, left: Tensor, right: Tensor) -> Tensor:
    """Entries of ``sum_r l_r r_r'`` in the slots of R, for vectors [F, M, R] and [F, N, R]."""
    entries = right.new_zeros(len(right), *rows.index.shape)
    for a, b, out in zip(left.numpy(), right.numpy(), entries.numpy(), strict=True):
        _outer(*_numbers(rows), np.ascontiguousarray(a), np.ascontiguousarray(b), out)
    return entries


def gram(rows: SparseRows, on: NeighborPattern, values: Tensor) -> Tensor:
    """Entries [F, M, k + 1] of R R' on a pattern, for values [F, N, H]."""
    # What falls off the pattern goes into a slot behind the diagonal.
    sums = values.new_zeros(len(values), on.num_rows, on.num_neighbors + 2)
    arrays = np.ascontiguousarray(values.numpy())
    for part, table in _tables(rows, on):
        index, counts = (array[part] for array in _numbers(rows))
        for R, out in zip(arrays, sums.numpy(), strict=True):
            _gram(index, counts, table, R[part], out)
    return sums[..., :-1]


def gram_gradients(
    rows: SparseRows, on: NeighborPattern, values: Tensor, by_sums: Tensor
) -> Tensor:
    """Gradients by values, for all or one of them for all, from those by the entries [F, M, k + 1]."""
    result = values.new_zeros(len(by_sums), *rows.index.shape)
    padded = torch.nn.functional.pad(by_sums, (0, 1))
    arrays = np.ascontiguousarray(values.expand(len(by_sums), -1, -1).numpy())
    for part, table in _tables(rows, on):
        index, counts = (array[part] for array in _numbers(rows))
        for R, by_sum, out in zip(arrays, padded.numpy(), result.numpy(), strict=True):
            _gram_gradients(index, counts, table, R[part], by_sum, out[part])
    return result


def _numbers(rows: SparseRows | NeighborPattern) -> tuple[np.ndarray, np.ndarray]:
    index = rows.index if isinstance(rows, SparseRows) else rows.neighbors
    return np.ascontiguousarray(index.numpy()), rows.counts.numpy()


def _each(
    rows: SparseRows,
    values: Tensor,
    vectors: Tensor,
    size: int,
    loops: tuple[Callable[..., None], Callable[..., None]],
) -> Tensor:
    """Every factor's vectors, in blocks."""
    loop, block_loop = loops
    numbers, count = _numbers(rows), vectors.shape[-1]
    result = vectors.new_zeros(len(vectors), size, count)
    for R, source, x in zip(values.numpy(), vectors.numpy(), result.numpy(), strict=True):
        R, start = np.ascontiguousarray(R), 0
        while start < count:
            if count - start < _FEW:
                one = np.zeros(size)
                loop(*numbers, R, np.ascontiguousarray(source[:, start]), one)
                x[:, start] = one
                start += 1
            else:
                stop = min(start + _BLOCK, count)
                block, out = np.zeros((len(source), _BLOCK)), np.zeros((size, _BLOCK))
                block[:, : stop - start] = source[:, start:stop]
                block_loop(*numbers, R, block, out)
                x[:, start:stop] = out[:, : stop - start]
                start = stop
    return result


def _tables(rows: SparseRows, on: NeighborPattern) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows and their slots: all of them at once, kept with the rows for one pattern, or in pieces."""
    N, H = rows.index.shape
    pairs = max(1, H * (H - 1) // 2)
    if N * pairs > _LARGEST_TABLE:
        size = max(1, _PIECE // pairs)
        for start in range(0, N, size):
            part = slice(start, start + size)
            yield part, _table(rows, on, part)
        return
    known, table = rows.__dict__.get("_slots", (None, None))
    if known is not on:
        table = torch.from_numpy(_table(rows, on, slice(0, N)))
        rows.__dict__["_slots"] = on, table
    yield slice(0, N), table.numpy()


def _table(rows: SparseRows, on: NeighborPattern, part: slice) -> np.ndarray:
    index, counts = (array[part] for array in _numbers(rows))
    N, H = index.shape
    # Bytes, as long as they hold all slots and a number besides.
    kind = np.uint8 if max(H, on.num_neighbors + 1) < 255 else np.int32
    table = np.empty((N, H * (H - 1) // 2), kind)
    _fill_slots(index, counts, *_numbers(on), np.full(on.num_rows, H, kind), table)
    return table


@njit(cache=True, nogil=True)
def _fill_slots(
    index: np.ndarray,
    counts: np.ndarray,
    neighbors: np.ndarray,
    neighbor_counts: np.ndarray,
    place: np.ndarray,
    table: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """For row n and its points a < b, at p < q: the slot of a in column b at q (q - 1) / 2 + p, or a slot
    behind the diagonal if b lacks it. `place` holds H before and after."""
    N, H = index.shape
    k = neighbors.shape[1]
    slots = np.empty(H + 1, table.dtype)
    for n in range(N):
        for p in range(counts[n]):
            place[np.uint32(index[n, p])] = p
        start = 0
        for q in range(counts[n]):
            b = np.uint32(index[n, q])
            slots[:q] = k + 1
            # All earlier points of column b are written somewhere, so that nothing has to be decided.
            for t in range(neighbor_counts[b]):
                slots[np.uint32(place[np.uint32(neighbors[b, t])])] = t
            for p in range(q):
                table[n, start + p] = slots[p]
            start += q
        for p in range(counts[n]):
            place[np.uint32(index[n, p])] = H


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _gram(
    index: np.ndarray, counts: np.ndarray, table: np.ndarray, R: np.ndarray, sums: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Adds to the sums [M, k + 2], the last slot for what falls off the pattern."""
    diagonal = sums.shape[1] - 2
    for n in range(len(index)):
        start = 0
        for q in range(counts[n]):
            b, r = np.uint32(index[n, q]), R[n, q]
            sums[b, diagonal] += r * r
            for p in range(q):
                sums[b, np.uint32(table[n, start + p])] += R[n, p] * r
            start += q


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _gram_gradients(
    index: np.ndarray,
    counts: np.ndarray,
    table: np.ndarray,
    R: np.ndarray,
    by_sum: np.ndarray,
    by_R: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Into zeros, from gradients [M, k + 2] whose last slot holds zero."""
    diagonal = by_sum.shape[1] - 2
    for n in range(len(index)):
        start = 0
        for q in range(counts[n]):
            b, r = np.uint32(index[n, q]), R[n, q]
            value = 2.0 * by_sum[b, diagonal] * r
            for p in range(q):
                g = by_sum[b, np.uint32(table[n, start + p])]
                value += g * R[n, p]
                by_R[n, p] += g * r
            by_R[n, q] += value
            start += q


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _product(
    index: np.ndarray, counts: np.ndarray, R: np.ndarray, v: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    for n in range(len(index)):
        value = v[n]
        for k in range(counts[n]):
            # Unsigned numbers need no test for a negative index.
            x[np.uint32(index[n, k])] += R[n, k] * value


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _product_block(
    index: np.ndarray, counts: np.ndarray, R: np.ndarray, v: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    for n in range(len(index)):
        for k in range(counts[n]):
            j, entry = np.uint32(index[n, k]), R[n, k]
            for r in range(_BLOCK):
                x[j, r] += entry * v[n, r]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _transpose_product(
    index: np.ndarray, counts: np.ndarray, R: np.ndarray, u: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    for n in range(len(index)):
        value = 0.0
        for k in range(counts[n]):
            value += R[n, k] * u[np.uint32(index[n, k])]
        x[n] = value


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _transpose_product_block(
    index: np.ndarray, counts: np.ndarray, R: np.ndarray, u: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    value = np.empty(_BLOCK)
    for n in range(len(index)):
        value[:] = 0.0
        for k in range(counts[n]):
            j, entry = np.uint32(index[n, k]), R[n, k]
            for r in range(_BLOCK):
                value[r] += entry * u[j, r]
        for r in range(_BLOCK):
            x[n, r] = value[r]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _outer(
    index: np.ndarray, counts: np.ndarray, left: np.ndarray, right: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    for n in range(len(index)):
        for k in range(counts[n]):
            j, value = np.uint32(index[n, k]), 0.0
            for r in range(right.shape[1]):
                value += left[j, r] * right[n, r]
            out[n, k] = value
