"""Incomplete Cholesky factors and their derivatives as compiled loops.

Columns are finished from the last to the first; a finished column leaves its share of the product in
the earlier columns at once, so that no product is ever formed. Where the share of column c falls on
column b, the rows of b are looked up in column c spread out over all rows: no search, and nothing to
prepare. For a factor on the pattern of its own, that pattern can say once and for all in which slots
shares fall, which halves the time; such a table takes m (m - 1) / 2 bytes per row.

This module imports Numba; import it inside functions only.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["factorize", "gradients"]

_FLAGS = {"contract", "nsz", "arcp"}
# Slots are bytes, and one number is left for the entries that a pattern lacks.
_MOST_SLOTS = 254
_LARGEST_TABLE = 2**28


def factorize(
    pattern: NeighborPattern,
    on: NeighborPattern,
    columns: Tensor,
    precision: Tensor,
    gathered: Tensor | None,
) -> tuple[Tensor, int, int]:
    """V [F, M, k + 1] for columns [F, M, m + 1], precision [F, M] and what else adds to the product on the
    pattern [F, M, k + 1], one of them for all where F is 1, and the number of the factor and row of the
    first pivot that is not positive (-1 without any)."""
    F = max(len(part) for part in (columns, precision, gathered) if part is not None)
    table = _slots(pattern) if on is pattern else None
    width = on.num_neighbors + (1 if table is None else 2)
    V = columns.new_zeros(F, on.num_rows, width)
    if gathered is not None:
        V[..., : on.num_neighbors + 1] = gathered
    for number, out in enumerate(V.numpy()):
        U, w = _of(columns, number), _of(precision, number)
        if table is None:
            row = _factorize(*_numbers(pattern), U, *_numbers(on), w, out)
        else:
            row = _factorize_by_table(*_numbers(pattern), table, U, w, out)
        if row >= 0:
            return V, number, row
    return V[..., : on.num_neighbors + 1].contiguous(), -1, -1


def gradients(
    pattern: NeighborPattern,
    on: NeighborPattern,
    columns: Tensor,
    factor: Tensor,
    upstream: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients by columns, and by what has been gathered on the pattern [F, M, k + 1], from those by the
    factor; both for every factor. Slots that the pattern does not use hold anything."""
    F = len(factor)
    by_columns = factor.new_zeros(F, *columns.shape[1:])
    by_sums = factor.new_empty(factor.shape)
    for number in range(F):
        parts = (_of(part, number) for part in (columns, factor, upstream))
        U, V, up = parts
        out = by_columns[number].numpy(), by_sums[number].numpy()
        _gradients(*_numbers(pattern), U, *_numbers(on), V, up, *out)
    return by_columns, by_sums


def _of(tensor: Tensor, number: int) -> np.ndarray:
    """One of several arrays, or the one for all."""
    return np.ascontiguousarray(tensor[number if len(tensor) > 1 else 0].numpy())


def _numbers(pattern: NeighborPattern) -> tuple[np.ndarray, np.ndarray]:
    return pattern.neighbors.numpy(), pattern.counts.numpy()


def _slots(pattern: NeighborPattern) -> np.ndarray | None:
    """The table of slots, kept with the pattern; None where it would be too large."""
    M, m = pattern.neighbors.shape
    if m > _MOST_SLOTS or M * m * (m - 1) // 2 > _LARGEST_TABLE:
        return None
    kept = pattern.__dict__.get("_incomplete_slots")
    if kept is None:
        kept = torch.from_numpy(_fill_slots(*_numbers(pattern)))
        pattern.__dict__["_incomplete_slots"] = kept
    return kept.numpy()


@njit(cache=True, nogil=True)
def _fill_slots(
    neighbors: np.ndarray, counts: np.ndarray
) -> np.ndarray:  # pragma: no cover - compiled
    """For column c and its rows a < b, in slots p < q: the slot of a in column b at q (q - 1) / 2 + p, or
    a slot behind the diagonal if b lacks it."""
    M, m = neighbors.shape
    table = np.full((M, m * (m - 1) // 2), m + 1, np.uint8)
    slot = np.full(M, 255, np.uint8)
    for c in range(M):
        for p in range(counts[c]):
            slot[np.uint32(neighbors[c, p])] = p
        for q in range(counts[c]):
            b, start = np.uint32(neighbors[c, q]), q * (q - 1) // 2
            for t in range(counts[b]):
                p = slot[np.uint32(neighbors[b, t])]
                if p != 255:
                    table[c, start + p] = t
        for p in range(counts[c]):
            slot[np.uint32(neighbors[c, p])] = 255
    return table


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _factorize_by_table(
    neighbors: np.ndarray,
    counts: np.ndarray,
    table: np.ndarray,
    U: np.ndarray,
    w: np.ndarray,
    V: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """V [M, m + 2] in place of what is there already, the last slot for what falls off the pattern;
    returns -1, or the row whose pivot is not positive."""
    M, m = neighbors.shape
    for c in range(M - 1, -1, -1):
        u_cc = U[c, m]
        pivot = V[c, m] + u_cc * u_cc + w[c]
        if not pivot > 0.0:
            return c
        V[c, m] = np.sqrt(pivot)
        inverse = 1.0 / V[c, m]
        for q in range(counts[c]):
            V[c, q] = (V[c, q] + U[c, q] * u_cc) * inverse
        start = 0
        for q in range(counts[c]):
            b, u, v = np.uint32(neighbors[c, q]), U[c, q], V[c, q]
            V[b, m] += u * u - v * v
            for p in range(q):
                V[b, np.uint32(table[c, start + p])] += U[c, p] * u - V[c, p] * v
            start += q
    return -1


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _factorize(
    neighbors: np.ndarray,
    counts: np.ndarray,
    U: np.ndarray,
    on: np.ndarray,
    on_counts: np.ndarray,
    w: np.ndarray,
    V: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """V [M, k + 1] in place of what is there already, for U and V on any patterns; returns -1, or the row
    whose pivot is not positive."""
    M, m = neighbors.shape
    k = on.shape[1]
    spread = np.zeros((M, 2))  # column c of U and of V
    for c in range(M - 1, -1, -1):
        u_cc = U[c, m]
        for q in range(counts[c]):
            spread[np.uint32(neighbors[c, q]), 0] = U[c, q]
        pivot = V[c, k] + u_cc * u_cc + w[c]
        if not pivot > 0.0:
            return c
        V[c, k] = np.sqrt(pivot)
        inverse = 1.0 / V[c, k]
        for t in range(on_counts[c]):
            a = np.uint32(on[c, t])
            value = (V[c, t] + spread[a, 0] * u_cc) * inverse
            V[c, t] = value
            spread[a, 1] = value
        for q in range(counts[c]):
            b, u = np.uint32(neighbors[c, q]), U[c, q]
            V[b, k] += u * u
            for t in range(on_counts[b]):
                V[b, t] += spread[np.uint32(on[b, t]), 0] * u
        for q in range(on_counts[c]):
            b, v = np.uint32(on[c, q]), V[c, q]
            V[b, k] -= v * v
            for t in range(on_counts[b]):
                V[b, t] -= spread[np.uint32(on[b, t]), 1] * v
        for q in range(counts[c]):
            spread[np.uint32(neighbors[c, q]), 0] = 0.0
        for q in range(on_counts[c]):
            spread[np.uint32(on[c, q]), 1] = 0.0
    return -1


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _gradients(
    neighbors: np.ndarray,
    counts: np.ndarray,
    U: np.ndarray,
    on: np.ndarray,
    on_counts: np.ndarray,
    V: np.ndarray,
    by_V: np.ndarray,
    by_U: np.ndarray,
    by_sum: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """The sweep in reverse: `by_sum` is the gradient by what column c had gathered when it was finished,
    and that of all earlier columns is known when c has its turn."""
    M, m = neighbors.shape
    k = on.shape[1]
    spread = np.zeros((M, 2))  # columns c of U and V, zero in all other rows
    by_spread = np.empty((M, 2))  # gradients by them; what stands in other rows is never read
    for c in range(M):
        u_cc, v_cc = U[c, m], V[c, k]
        for q in range(counts[c]):
            a = np.uint32(neighbors[c, q])
            spread[a, 0], by_spread[a, 0] = U[c, q], 0.0
        for q in range(on_counts[c]):
            a = np.uint32(on[c, q])
            spread[a, 1], by_spread[a, 1] = V[c, q], by_V[c, q]
        for q in range(on_counts[c]):
            b, v = np.uint32(on[c, q]), V[c, q]
            value = 2.0 * by_sum[b, k] * v
            for t in range(on_counts[b]):
                a, g = np.uint32(on[b, t]), by_sum[b, t]
                by_spread[a, 1] -= g * v
                value += g * spread[a, 1]
            by_spread[b, 1] -= value
        for q in range(counts[c]):
            b, u = np.uint32(neighbors[c, q]), U[c, q]
            value = 2.0 * by_sum[b, k] * u
            for t in range(on_counts[b]):
                a, g = np.uint32(on[b, t]), by_sum[b, t]
                by_spread[a, 0] += g * u
                value += g * spread[a, 0]
            by_spread[b, 0] += value
        total, by_u_cc = by_V[c, k], 0.0
        for t in range(on_counts[c]):
            a = np.uint32(on[c, t])
            g = by_spread[a, 1] / v_cc
            total -= g * V[c, t]
            by_sum[c, t] = g
            by_spread[a, 0] += g * u_cc
            by_u_cc += g * spread[a, 0]
        g = 0.5 * total / v_cc
        by_sum[c, k] = g
        by_U[c, m] = by_u_cc + 2.0 * g * u_cc
        for q in range(counts[c]):
            a = np.uint32(neighbors[c, q])
            by_U[c, q] = by_spread[a, 0]
            spread[a, 0] = 0.0
        for q in range(on_counts[c]):
            spread[np.uint32(on[c, q]), 1] = 0.0
