"""Products and triangular solves with sparse inverse Cholesky factors, as compiled loops.

Every function takes flat float64 tensors: columns [F, M, m + 1] of F factors and vectors [F, M, R], R
for each factor. The loops work in place, on one vector or on eight next to each other, which are one
line of the cache for every entry of a factor.

This module imports Numba; import it inside functions only.
"""

from collections.abc import Callable

import numpy as np
from numba import njit
from torch import Tensor

from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["outer", "product", "solve", "transpose_product", "transpose_solve"]

_FLAGS = {"contract", "nsz", "arcp"}
_BLOCK = 8
# Fewer vectors than this are faster one by one than in a block that they do not fill.
_FEW = 4


def product(pattern: NeighborPattern, columns: Tensor, vectors: Tensor) -> Tensor:
    """``U v``."""
    return _each(pattern, columns, vectors, _product, _product_block)


def transpose_product(pattern: NeighborPattern, columns: Tensor, vectors: Tensor) -> Tensor:
    """``U' v``."""
    return _each(pattern, columns, vectors, _transpose_product, _transpose_product_block)


def solve(pattern: NeighborPattern, columns: Tensor, vectors: Tensor) -> Tensor:
    """``U^-1 b``."""
    return _each(pattern, columns, vectors, _solve, _solve_block)


def transpose_solve(pattern: NeighborPattern, columns: Tensor, vectors: Tensor) -> Tensor:
    """``U^-T b``."""
    return _each(pattern, columns, vectors, _transpose_solve, _transpose_solve_block)


def outer(pattern: NeighborPattern, left: Tensor, right: Tensor) -> Tensor:
    """Entries of ``sum_r l_r r_r'`` on the pattern, [F, M, m + 1]."""
    neighbors, counts = pattern.neighbors.numpy(), pattern.counts.numpy()
    F, M = left.shape[:2]
    entries = left.new_zeros(F, M, pattern.num_neighbors + 1)
    for a, b, out in zip(left.numpy(), right.numpy(), entries.numpy(), strict=True):
        _outer(neighbors, counts, np.ascontiguousarray(a), np.ascontiguousarray(b), out)
    return entries


def _each(
    pattern: NeighborPattern,
    columns: Tensor,
    vectors: Tensor,
    loop: Callable[..., None],
    block_loop: Callable[..., None],
) -> Tensor:
    """Every factor's vectors, in blocks."""
    neighbors, counts = pattern.neighbors.numpy(), pattern.counts.numpy()
    _, M, R = vectors.shape
    result = vectors.new_empty(vectors.shape)
    for U, source, x in zip(columns.numpy(), vectors.numpy(), result.numpy(), strict=True):
        U, start = np.ascontiguousarray(U), 0
        while start < R:
            if R - start < _FEW:
                one = source[:, start].copy()
                loop(neighbors, counts, U, one)
                x[:, start] = one
                start += 1
            else:
                stop = min(start + _BLOCK, R)
                block = np.zeros((M, _BLOCK))
                block[:, : stop - start] = source[:, start:stop]
                block_loop(neighbors, counts, U, block)
                x[:, start:stop] = block[:, : stop - start]
                start = stop
    return result


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _product(
    neighbors: np.ndarray, counts: np.ndarray, U: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    M, m = neighbors.shape
    for i in range(M):
        value = x[i]
        for k in range(counts[i]):
            # Unsigned numbers need no test for a negative index.
            x[np.uint32(neighbors[i, k])] += U[i, k] * value
        x[i] = U[i, m] * value


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _product_block(
    neighbors: np.ndarray, counts: np.ndarray, U: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    M, m = neighbors.shape
    value = np.empty(_BLOCK)
    for i in range(M):
        diagonal = U[i, m]
        for r in range(_BLOCK):
            value[r] = x[i, r]
            x[i, r] = diagonal * value[r]
        for k in range(counts[i]):
            j, entry = np.uint32(neighbors[i, k]), U[i, k]
            for r in range(_BLOCK):
                x[j, r] += entry * value[r]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _transpose_product(
    neighbors: np.ndarray, counts: np.ndarray, U: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    M, m = neighbors.shape
    v = x.copy()
    for i in range(M):
        value = U[i, m] * v[i]
        for k in range(counts[i]):
            value += U[i, k] * v[np.uint32(neighbors[i, k])]
        x[i] = value


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _transpose_product_block(
    neighbors: np.ndarray, counts: np.ndarray, U: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    M, m = neighbors.shape
    v, value = x.copy(), np.empty(_BLOCK)
    for i in range(M):
        diagonal = U[i, m]
        for r in range(_BLOCK):
            value[r] = diagonal * v[i, r]
        for k in range(counts[i]):
            j, entry = np.uint32(neighbors[i, k]), U[i, k]
            for r in range(_BLOCK):
                value[r] += entry * v[j, r]
        for r in range(_BLOCK):
            x[i, r] = value[r]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _solve(
    neighbors: np.ndarray, counts: np.ndarray, U: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    M, m = neighbors.shape
    for i in range(M - 1, -1, -1):
        value = x[i] / U[i, m]
        x[i] = value
        # Slots backwards as well: the cache fetches ahead in one direction.
        for k in range(counts[i] - 1, -1, -1):
            x[np.uint32(neighbors[i, k])] -= U[i, k] * value


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _solve_block(
    neighbors: np.ndarray, counts: np.ndarray, U: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    M, m = neighbors.shape
    value = np.empty(_BLOCK)
    for i in range(M - 1, -1, -1):
        inverse = 1.0 / U[i, m]
        for r in range(_BLOCK):
            value[r] = inverse * x[i, r]
            x[i, r] = value[r]
        for k in range(counts[i] - 1, -1, -1):
            j, entry = np.uint32(neighbors[i, k]), U[i, k]
            for r in range(_BLOCK):
                x[j, r] -= entry * value[r]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _transpose_solve(
    neighbors: np.ndarray, counts: np.ndarray, U: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    M, m = neighbors.shape
    for i in range(M):
        value = x[i]
        for k in range(counts[i]):
            value -= U[i, k] * x[np.uint32(neighbors[i, k])]
        x[i] = value / U[i, m]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _transpose_solve_block(
    neighbors: np.ndarray, counts: np.ndarray, U: np.ndarray, x: np.ndarray
) -> None:  # pragma: no cover - compiled
    M, m = neighbors.shape
    value = np.empty(_BLOCK)
    for i in range(M):
        for r in range(_BLOCK):
            value[r] = x[i, r]
        for k in range(counts[i]):
            j, entry = np.uint32(neighbors[i, k]), U[i, k]
            for r in range(_BLOCK):
                value[r] -= entry * x[j, r]
        inverse = 1.0 / U[i, m]
        for r in range(_BLOCK):
            x[i, r] = inverse * value[r]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _outer(
    neighbors: np.ndarray, counts: np.ndarray, left: np.ndarray, right: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    M, R = left.shape
    m = neighbors.shape[1]
    for i in range(M):
        for k in range(counts[i] + 1):
            j = neighbors[i, k] if k < counts[i] else i
            value = 0.0
            for r in range(R):
                value += left[j, r] * right[i, r]
            out[i, k if k < counts[i] else m] = value
