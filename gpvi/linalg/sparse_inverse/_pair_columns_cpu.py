"""Columns of the factor from covariances of pairs: the compiled engine.

Four rows are factorised at once, in the first-level cache. The backward pass gathers and factorises again
rather than keep what the forward pass had: a factor has m^2 / 2 entries, and reading them back costs as
much as computing them. The weight of a covariance, ``u_a v_b + v_a u_b`` with the v of
``_pair_columns_tensor``, is then added to its pair. This module imports Numba; import it inside functions
only.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gpvi.linalg.sparse_inverse._pair_columns_tensor import Block
from gpvi.linalg.sparse_inverse._pairs_cpu import PairFinder
from gpvi.linalg.sparse_inverse._rows_blocks_cpu import (
    back_substitute,
    back_substitute_both,
    clear_unused,
    factorise,
    first_failure,
)
from gpvi.linalg.sparse_inverse._rows_lanes_cpu import LANES, add_product, load, product, store

__all__ = ["CompiledEngine"]


class CompiledEngine:
    """Compiled loops for tensors on a CPU, in double precision for any dtype."""

    def finder(self, num_points: int) -> PairFinder:
        """Finds pairs of points with numbers below `num_points`."""
        return PairFinder(num_points)

    def columns(self, block: Block) -> tuple[Tensor, tuple[int, int] | None]:
        """Columns [B, R, m + 1], and batch element and row of a matrix without a factor."""
        values, diagonal, index, sets = _arrays(block)
        out = np.zeros_like(diagonal)
        for b in range(len(out)):
            failed = _columns(values[b], diagonal[b], index, sets, out[b])
            if failed >= 0:
                return torch.from_numpy(out), (b, failed)
        return torch.from_numpy(out), None

    def gradients(self, upstream: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Gradients by the covariances [B, P] and the diagonals [B, R, m + 1]."""
        values, diagonal, index, sets = _arrays(block)
        g = np.ascontiguousarray(upstream.double().numpy())
        by_values, by_diagonal = np.zeros_like(values), np.zeros_like(diagonal)
        for b in range(len(g)):
            _gradients(g[b], values[b], diagonal[b], index, sets, by_values[b], by_diagonal[b])
        pairs = block.values.shape[1]
        return torch.from_numpy(by_values[:, :pairs]), torch.from_numpy(by_diagonal)


def _arrays(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Contiguous arrays; a covariance where there is none, since unused slots read the first."""
    values, diagonal = block.values.double(), block.diagonal.double()
    if values.shape[1] == 0:
        values = values.new_zeros(len(values), 1)
    return (
        np.ascontiguousarray(values.numpy()),
        np.ascontiguousarray(diagonal.numpy()),
        block.places.numpy(),
        np.ascontiguousarray(block.sets.numpy()),
    )


@njit(cache=True, nogil=True)
def _columns(
    values: np.ndarray, diagonal: np.ndarray, index: np.ndarray, sets: np.ndarray, out: np.ndarray
) -> int:  # pragma: no cover - compiled
    """Writes the columns of all rows; returns a row whose matrix has no factor, or -1."""
    rows, n = diagonal.shape
    lower, members = np.empty(LANES * index.shape[1]), np.empty(LANES * n, np.int64)
    pivots, inverse, u = np.empty(LANES * n), np.empty(LANES * n), np.empty(LANES * n)
    for group in range(index.shape[0]):
        first = group * LANES
        _gather(values, diagonal, index[group], sets, first, members, lower, pivots)
        factorise(lower, pivots, inverse, n, n)
        failed = first_failure(inverse, pivots)
        if failed >= 0:
            return first + failed
        u[:] = 0.0
        u[LANES * (n - 1) :] = 1.0
        back_substitute(lower, inverse, n, u)
        for lane in range(min(LANES, rows - first)):
            for a in range(n):
                if members[LANES * a + lane] >= 0:
                    out[first + lane, a] = u[LANES * a + lane]
    return -1


@njit(cache=True, nogil=True)
def _gradients(
    upstream: np.ndarray,
    values: np.ndarray,
    diagonal: np.ndarray,
    index: np.ndarray,
    sets: np.ndarray,
    by_values: np.ndarray,
    by_diagonal: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Adds the weights of all rows' matrices to their pairs and diagonals."""
    n = diagonal.shape[1]
    size, end = LANES * index.shape[1], LANES * (n - 1)
    lower, members = np.empty(size + LANES * n), np.empty(LANES * n, np.int64)
    pivots, inverse = np.empty(LANES * n), np.empty(LANES * n)
    u, v = np.empty(LANES * n), np.empty(LANES * n)
    for group in range(index.shape[0]):
        first = group * LANES
        _gather(values, diagonal, index[group], sets, first, members, lower, pivots)
        for slot in range(LANES * n):
            # A further row of the triangle, which the factorisation turns into L^-1 g.
            row = first + slot % LANES
            lower[size + slot] = upstream[row, slot // LANES] if members[slot] >= 0 else 0.0
        factorise(lower, pivots, inverse, n, n + 1)
        u[:end] = 0.0
        u[end:] = 1.0
        for slot in range(end):
            v[slot] = -lower[size + slot]
        for slot in range(end, LANES * n):
            v[slot] = -0.5 * lower[size + slot]
        back_substitute_both(lower, inverse, n, u, v)
        for slot in range(LANES * n):
            if members[slot] >= 0:
                by_diagonal[first + slot % LANES, slot // LANES] = u[slot] * v[slot]
        _scatter(n, u, v, index[group], lower, by_values)


@njit(cache=True, nogil=True)
def _gather(
    values: np.ndarray,
    diagonal: np.ndarray,
    places: np.ndarray,
    sets: np.ndarray,
    first: int,
    members: np.ndarray,
    lower: np.ndarray,
    pivots: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Matrices of a group of rows. Unused slots, and rows behind the last, are rows of the identity."""
    rows, n = diagonal.shape
    for pair in range(places.shape[0]):
        for lane in range(LANES):
            lower[LANES * pair + lane] = values[places[pair, lane]]
    unused = False
    for lane in range(LANES):
        row = first + lane
        for a in range(n):
            point = sets[row, a] if row < rows else -1
            members[LANES * a + lane] = point
            pivots[LANES * a + lane] = diagonal[row, a] if point >= 0 else 1.0
            unused |= point < 0
    if unused:
        clear_unused(members, n, lower)


@njit(cache=True, nogil=True)
def _scatter(
    n: int,
    u: np.ndarray,
    v: np.ndarray,
    places: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """``out += u_a v_b + v_a u_b`` at the pairs, with `weights` as a buffer; unused slots have
    weight zero."""
    slot = 0
    for a in range(1, n):
        ua, va = load(u, LANES * a), load(v, LANES * a)
        for k in range(0, LANES * a, LANES):
            store(weights, slot, add_product(product(ua, load(v, k)), va, load(u, k)))
            slot += LANES
    for lane in range(LANES):
        for pair in range(places.shape[0]):
            out[places[pair, lane]] += weights[LANES * pair + lane]
