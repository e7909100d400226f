"""Covariance blocks of four rows at once: kernel, factor, back substitution, slopes.

A block of n points keeps its strict lower triangle packed row by row, entry (a, b) at
a (a - 1) / 2 + b, and its diagonal apart; every entry is a vector over four rows (see
``_rows_lanes_cpu``). Sixteen kilobytes for 31 points: the whole work stays in the first-level cache.
A slot that a row does not use is a row of the identity. This module imports Numba; import it inside
functions only.
"""

import numpy as np
from numba import njit

from gpvi.linalg._stationary_cpu import matern12, matern32, matern52, rbf
from gpvi.linalg._vexp import FLAGS
from gpvi.linalg.sparse_inverse._rows_lanes_cpu import (
    LANES,
    add,
    add_product,
    difference,
    inverse_root,
    load,
    product,
    store,
    subtract_product,
    zeros,
)
from gpvi.linalg.stationary import STATIONARY_KERNELS

__all__ = [
    "add_pairs",
    "add_squares",
    "back_substitute",
    "back_substitute_both",
    "clear_unused",
    "factorise",
    "first_failure",
    "gather",
    "squared_distances",
    "values_and_slopes",
    "weigh",
]

_RBF = STATIONARY_KERNELS.index("rbf")
_MATERN12 = STATIONARY_KERNELS.index("matern12")
_MATERN32 = STATIONARY_KERNELS.index("matern32")

# A pivot this much smaller than its diagonal entry is rounding error.
_LARGEST_RATIO = 1e15


@njit(cache=True, nogil=True)
def gather(
    rows: np.ndarray,
    neighbors: np.ndarray,
    own: np.ndarray,
    points: np.ndarray,
    scale: float,
    nugget: np.ndarray,
    members: np.ndarray,
    x: np.ndarray,
    diagonal: np.ndarray,
) -> bool:  # pragma: no cover - compiled
    """Points and diagonal of four blocks; says whether some slots are unused.

    `members` [n * 4] receives the numbers of the points (-1 in unused slots), `x` [D, n * 4] their
    coordinates; `nugget` has one entry or one per point.
    """
    m = neighbors.shape[1]
    stride = 1 if nugget.shape[0] > 1 else 0
    unused = False
    for lane in range(LANES):
        row = rows[lane]
        for a in range(m + 1):
            point = own[row] if a == m else neighbors[row, a]
            slot = LANES * a + lane
            members[slot] = point
            if point < 0:
                unused = True
                diagonal[slot] = 1.0
                point = own[row]
            else:
                diagonal[slot] = scale + nugget[stride * point]
            for d in range(points.shape[1]):
                x[d, slot] = points[point, d]
    return unused


@njit(cache=True, nogil=True)
def squared_distances(x: np.ndarray, n: int, out: np.ndarray) -> None:  # pragma: no cover
    """Squared distances of the pairs of a block, two coordinates at a time (an even number)."""
    for d in range(0, x.shape[0], 2):
        first, second = x[d], x[d + 1]
        slot = 0
        for a in range(1, n):
            first_a, second_a = load(first, LANES * a), load(second, LANES * a)
            for b in range(a):
                e = difference(first_a, load(first, LANES * b))
                f = difference(second_a, load(second, LANES * b))
                total = product(e, e) if d == 0 else add_product(load(out, slot), e, e)
                store(out, slot, add_product(total, f, f))
                slot += LANES


@njit(cache=True, nogil=True, fastmath=FLAGS)
def values_and_slopes(
    code: int, scale: float, shared: float, size: int, lower: np.ndarray, slopes: np.ndarray
) -> None:  # pragma: no cover - compiled
    """``lower <- s k`` and ``slopes <- h``, where `slopes` comes in as squared distances.

    With one lengthscale for all coordinates (`shared` is 1, else 0) ``h r^2`` instead of ``h``,
    which is all that its derivative needs.
    """
    rest = 1.0 - shared
    if code == _RBF:
        for p in range(size):
            r2 = slopes[p]
            k, h = rbf(r2)
            lower[p] = scale * k
            slopes[p] = h * (shared * r2 + rest)
    elif code == _MATERN12:
        for p in range(size):
            r2 = slopes[p]
            k, h = matern12(r2)
            lower[p] = scale * k
            slopes[p] = h * (shared * r2 + rest)
    elif code == _MATERN32:
        for p in range(size):
            r2 = slopes[p]
            k, h = matern32(r2)
            lower[p] = scale * k
            slopes[p] = h * (shared * r2 + rest)
    else:
        for p in range(size):
            r2 = slopes[p]
            k, h = matern52(r2)
            lower[p] = scale * k
            slopes[p] = h * (shared * r2 + rest)


@njit(cache=True, nogil=True)
def clear_unused(members: np.ndarray, n: int, lower: np.ndarray) -> None:  # pragma: no cover
    """Zero in the rows and columns of unused slots."""
    for a in range(n):
        for lane in range(LANES):
            if members[LANES * a + lane] >= 0:
                continue
            for b in range(a):
                lower[LANES * (a * (a - 1) // 2 + b) + lane] = 0.0
            for c in range(a + 1, n):
                lower[LANES * (c * (c - 1) // 2 + a) + lane] = 0.0


@njit(cache=True, nogil=True)
def factorise(
    lower: np.ndarray, diagonal: np.ndarray, inverse: np.ndarray, n: int, rows: int
) -> None:  # pragma: no cover - compiled
    """Cholesky factor in place, and the inverse of its diagonal.

    Rows n, ..., `rows` - 1 of the triangle may hold right-hand sides y: they become L^-1 y.
    """
    j = 0
    while j + 1 < n:
        # Two columns at a time: the diagonal block of 2 x 2, then the rows below it.
        row = LANES * (j * (j - 1) // 2)
        below = row + LANES * j
        pivot, corner = load(diagonal, LANES * j), load(lower, below + LANES * j)
        last = load(diagonal, LANES * (j + 1))
        for k in range(0, LANES * j, LANES):
            x, y = load(lower, row + k), load(lower, below + k)
            pivot = subtract_product(pivot, x, x)
            corner = subtract_product(corner, x, y)
            last = subtract_product(last, y, y)
        first = inverse_root(pivot)
        corner = product(corner, first)
        second = inverse_root(subtract_product(last, corner, corner))
        store(lower, below + LANES * j, corner)
        store(inverse, LANES * j, first)
        store(inverse, LANES * (j + 1), second)
        _two_columns(lower, j, first, corner, second, rows)
        j += 2
    if j < n:
        row = LANES * (j * (j - 1) // 2)
        pivot = load(diagonal, LANES * j)
        for k in range(0, LANES * j, LANES):
            x = load(lower, row + k)
            pivot = subtract_product(pivot, x, x)
        first = inverse_root(pivot)
        store(inverse, LANES * j, first)
        for i in range(j + 1, rows):
            start = LANES * (i * (i - 1) // 2)
            total = load(lower, start + LANES * j)
            for k in range(0, LANES * j, LANES):
                total = subtract_product(total, load(lower, start + k), load(lower, row + k))
            store(lower, start + LANES * j, product(total, first))


@njit(cache=True, nogil=True)
def _two_columns(
    lower: np.ndarray, j: int, first: float, corner: float, second: float, rows: int
) -> None:  # pragma: no cover - compiled
    """Columns j and j + 1 below their diagonal block, two rows at a time: four independent sums."""
    width = LANES * j
    p, q = LANES * (j * (j - 1) // 2), LANES * ((j + 1) * j // 2)
    i = j + 2
    while i + 1 < rows:
        r = LANES * (i * (i - 1) // 2)
        s = r + LANES * i
        rp, rq = load(lower, r + width), load(lower, r + width + LANES)
        sp, sq = load(lower, s + width), load(lower, s + width + LANES)
        for k in range(0, width, LANES):
            at_p, at_q = load(lower, p + k), load(lower, q + k)
            at_r, at_s = load(lower, r + k), load(lower, s + k)
            rp = subtract_product(rp, at_r, at_p)
            rq = subtract_product(rq, at_r, at_q)
            sp = subtract_product(sp, at_s, at_p)
            sq = subtract_product(sq, at_s, at_q)
        rp, sp = product(rp, first), product(sp, first)
        store(lower, r + width, rp)
        store(lower, s + width, sp)
        store(lower, r + width + LANES, product(subtract_product(rq, rp, corner), second))
        store(lower, s + width + LANES, product(subtract_product(sq, sp, corner), second))
        i += 2
    if i < rows:
        r = LANES * (i * (i - 1) // 2)
        rp, rq = load(lower, r + width), load(lower, r + width + LANES)
        for k in range(0, width, LANES):
            at_r = load(lower, r + k)
            rp = subtract_product(rp, at_r, load(lower, p + k))
            rq = subtract_product(rq, at_r, load(lower, q + k))
        rp = product(rp, first)
        store(lower, r + width, rp)
        store(lower, r + width + LANES, product(subtract_product(rq, rp, corner), second))


@njit(cache=True, nogil=True)
def first_failure(inverse: np.ndarray, diagonal: np.ndarray) -> int:  # pragma: no cover - compiled
    """The first of four blocks with a pivot that is not positive, or -1.

    Compiled without the flag that lets the compiler assume that there is no NaN.
    """
    fine = True
    for slot in range(inverse.shape[0]):
        fine &= inverse[slot] * (inverse[slot] * diagonal[slot]) < _LARGEST_RATIO
    if fine:
        return -1
    failed = LANES
    for slot in range(inverse.shape[0]):
        if not inverse[slot] * (inverse[slot] * diagonal[slot]) < _LARGEST_RATIO:
            failed = min(failed, slot % LANES)
    return failed


@njit(cache=True, nogil=True)
def back_substitute(
    lower: np.ndarray, inverse: np.ndarray, n: int, u: np.ndarray
) -> None:  # pragma: no cover - compiled
    """``u <- L^-T u``"""
    for i in range(n - 1, -1, -1):
        row = LANES * (i * (i - 1) // 2)
        ui = product(load(u, LANES * i), load(inverse, LANES * i))
        store(u, LANES * i, ui)
        for k in range(0, LANES * i, LANES):
            store(u, k, subtract_product(load(u, k), load(lower, row + k), ui))


@njit(cache=True, nogil=True)
def back_substitute_both(
    lower: np.ndarray, inverse: np.ndarray, n: int, u: np.ndarray, v: np.ndarray
) -> None:  # pragma: no cover - compiled
    """``u <- L^-T u`` and ``v <- L^-T v``"""
    for i in range(n - 1, -1, -1):
        row = LANES * (i * (i - 1) // 2)
        here = load(inverse, LANES * i)
        ui, vi = product(load(u, LANES * i), here), product(load(v, LANES * i), here)
        store(u, LANES * i, ui)
        store(v, LANES * i, vi)
        for k in range(0, LANES * i, LANES):
            entry = load(lower, row + k)
            store(u, k, subtract_product(load(u, k), entry, ui))
            store(v, k, subtract_product(load(v, k), entry, vi))


@njit(cache=True, nogil=True)
def weigh(
    u: np.ndarray, v: np.ndarray, n: int, slopes: np.ndarray
) -> None:  # pragma: no cover - compiled
    """``h_ab <- (u_a v_b + v_a u_b) h_ab``, both halves of the symmetric weight."""
    slot = 0
    for a in range(1, n):
        ua, va = load(u, LANES * a), load(v, LANES * a)
        for k in range(0, LANES * a, LANES):
            weight = add_product(product(ua, load(v, k)), va, load(u, k))
            store(slopes, slot, product(weight, load(slopes, slot)))
            slot += LANES


@njit(cache=True, nogil=True)
def add_pairs(n: int, weights: np.ndarray, out: np.ndarray) -> None:  # pragma: no cover - compiled
    """``out += sum over pairs of w_ab``"""
    total, other = load(out, 0), zeros()
    size = LANES * (n * (n - 1) // 2)
    for slot in range(0, size - LANES, 2 * LANES):
        total = add(total, load(weights, slot))
        other = add(other, load(weights, slot + LANES))
    if (n * (n - 1) // 2) % 2 == 1:
        total = add(total, load(weights, size - LANES))
    store(out, 0, add(total, other))


@njit(cache=True, nogil=True)
def add_squares(
    x: np.ndarray, n: int, weights: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    """``out_d += sum over pairs of w_ab (x_ad - x_bd)^2``, two coordinates at a time."""
    for d in range(0, x.shape[0], 2):
        first, second = x[d], x[d + 1]
        total, other = load(out, LANES * d), load(out, LANES * (d + 1))
        slot = 0
        for a in range(1, n):
            first_a, second_a = load(first, LANES * a), load(second, LANES * a)
            for k in range(0, LANES * a, LANES):
                weight = load(weights, slot)
                e, f = difference(first_a, load(first, k)), difference(second_a, load(second, k))
                total = add_product(total, product(weight, e), e)
                other = add_product(other, product(weight, f), f)
                slot += LANES
        store(out, LANES * d, total)
        store(out, LANES * (d + 1), other)
