"""Compiled engine of the row passes: four rows at once, every row's block in the cache.

A pass over a range of rows recomputes everything it needs, so that nothing of size rows x neighbours
squared exists. Ranges are independent and hold no lock: many rows are cut into parts, each with sums of
its own, which are added in a fixed order. The cut does not depend on the number of threads, and so
neither do the results. This module imports Numba; import it inside functions only.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gpvi.linalg.sparse_inverse._rows_blocks_cpu import (
    add_pairs,
    add_squares,
    back_substitute,
    back_substitute_both,
    clear_unused,
    factorise,
    first_failure,
    gather,
    squared_distances,
    values_and_slopes,
    weigh,
)
from gpvi.linalg.sparse_inverse._rows_lanes_cpu import LANES
from gpvi.linalg.sparse_inverse._rows_tensor import Needs, RowProblem, Rows, RowSums, refuse
from gpvi.linalg.stationary import STATIONARY_KERNELS

__all__ = ["CompiledEngine"]

# Rows from which a pass is cut into parts, and how many: every part has a vector over the points.
_MIN_CUT_ROWS = 20_000
_PARTS = 8

# A compiled pass over the rows i, ..., j - 1 of the schedule for a part; returns a failed row or -1.
_Pass = Callable[[int, int, int], int]


class CompiledEngine:
    """Numba on ranges of rows, shared among torch's threads if there are many rows."""

    def misfit(self, rows: Rows, num_points: int) -> int:
        """The first row whose neighbours are not other points, ascending, -1 behind them; or -1."""
        neighbors, own = rows.neighbors.contiguous().numpy(), rows.own.contiguous().numpy()
        return _misfit(neighbors, own, num_points)

    def columns(self, problem: RowProblem) -> Tensor:
        """``L^-T e_last`` of every row."""
        arrays, R = _Arrays(problem), len(problem.own)
        out = np.empty((R, problem.neighbors.shape[1] + 1))
        arguments = (*arrays.all, out)
        _run(problem, R, lambda _, i, j: _columns(i, j, *arguments))
        return torch.from_numpy(out)

    def columns_adjoint(self, problem: RowProblem, upstream: Tensor, needs: Needs) -> RowSums:
        """Sums over the rows for a cotangent of the columns."""
        sums = _Sums(problem, needs)
        self._sum(problem, upstream.contiguous().numpy(), sums, by_columns=True)
        return sums.collected()

    def evidence(self, problem: RowProblem, targets: Tensor, needs: Needs) -> RowSums:
        """Sums over the rows for the log evidence."""
        sums = _Sums(problem, needs)
        self._sum(problem, targets.contiguous().numpy()[:, None], sums, by_columns=False)
        return sums.collected()

    def _sum(
        self, problem: RowProblem, values: np.ndarray, sums: "_Sums", by_columns: bool
    ) -> None:
        arguments = (*_Arrays(problem).all, float(problem.shared), by_columns, values)

        def sweep(part: int, start: int, stop: int) -> int:
            given = (*arguments, *sums.of(part))
            return _sweep(start, stop, *given)

        _run(problem, len(problem.own), sweep)


class _Arrays:
    """The problem as compiled loops want it."""

    def __init__(self, problem: RowProblem) -> None:
        T, D = problem.scaled.shape
        points = np.zeros((T, D + D % 2))  # two coordinates at a time
        points[:, :D] = problem.scaled.numpy()
        R = len(problem.own)
        order = problem.schedule
        self.all: tuple[Any, ...] = (
            np.arange(R, dtype=np.int32) if order is None else order.contiguous().numpy(),
            STATIONARY_KERNELS.index(problem.name),
            points,
            problem.neighbors.contiguous().numpy(),
            problem.own.contiguous().numpy(),
            float(problem.outputscale),
            problem.nugget.reshape(-1).contiguous().numpy(),
        )


class _Sums:
    """Accumulators, one set for every part of the rows."""

    def __init__(self, problem: RowProblem, needs: Needs) -> None:
        T, D = problem.scaled.shape
        parts = _number_of_parts(len(problem.own))
        self._needs, self._D, self._shared = needs, D, problem.shared
        stretches = 1 if problem.shared else D + D % 2
        self._value, self._scale = np.zeros(parts), np.zeros(parts)
        self._stretch = np.zeros((parts, stretches * LANES if needs.lengthscale else 0))
        self._diagonal = np.zeros((parts, problem.nugget.numel() if needs.diagonal else 0))
        self._targets = np.zeros((parts, T if needs.targets else 0))
        self._one_nugget = problem.nugget.dim() == 0

    def of(self, part: int) -> tuple[Any, ...]:
        """What a compiled pass adds to."""
        ends = slice(part, part + 1)
        return (
            self._needs.any,
            self._value[ends],
            self._scale[ends],
            self._stretch[part],
            self._diagonal[part],
            self._targets[part],
        )

    def collected(self) -> RowSums:
        """Sums over the parts, None where nothing was asked for."""
        needs, stretch, diagonal = self._needs, None, None
        if needs.lengthscale:
            lanes = self._stretch.sum(0).reshape(-1, LANES).sum(1)
            stretch = torch.from_numpy(lanes[: 1 if self._shared else self._D])
        if needs.diagonal:
            diagonal = torch.from_numpy(self._diagonal.sum(0))
            diagonal = diagonal.reshape(()) if self._one_nugget else diagonal
        return RowSums(
            torch.tensor(self._value.sum(), dtype=torch.float64),
            torch.tensor(self._scale.sum(), dtype=torch.float64),
            stretch,
            diagonal,
            torch.from_numpy(self._targets.sum(0)) if needs.targets else None,
        )


def _number_of_parts(rows: int) -> int:
    return _PARTS if rows >= _MIN_CUT_ROWS else 1


def _run(problem: RowProblem, rows: int, sweep: _Pass) -> None:
    """Run a pass part by part; the threads live for one pass: a pool kept longer would not survive
    a fork."""
    parts = _number_of_parts(rows)
    cuts = [rows * k // parts for k in range(parts + 1)]
    workers = min(parts, torch.get_num_threads())
    if workers == 1:
        failed = [sweep(k, cuts[k], cuts[k + 1]) for k in range(parts)]
    else:
        with ThreadPoolExecutor(workers) as pool:
            failed = list(pool.map(sweep, range(parts), cuts[:-1], cuts[1:]))
    for row in failed:
        if row >= 0:
            refuse(problem, row)


@njit(cache=True, nogil=True)
def _misfit(
    neighbors: np.ndarray, own: np.ndarray, num_points: int
) -> int:  # pragma: no cover - compiled
    for row in range(neighbors.shape[0]):
        fine, before, ended = True, -1, False
        for a in range(neighbors.shape[1]):
            point = neighbors[row, a]
            ended |= point < 0
            # Unused slots are exactly -1, and only such ones follow them.
            inside = point > before and point < num_points and point != own[row]
            fine &= point == -1 if ended else inside
            before = point
        if not fine:
            return row
    return -1


@njit(cache=True, nogil=True)
def _four_rows(
    start: int, stop: int, order: np.ndarray, rows: np.ndarray
) -> int:  # pragma: no cover - compiled
    """Four rows of the schedule, the last repeated where there are fewer; how many there are."""
    for lane in range(LANES):
        rows[lane] = order[min(start + lane, stop - 1)]
    return min(LANES, stop - start)


@njit(cache=True, nogil=True)
def _columns(
    start: int,
    stop: int,
    order: np.ndarray,
    code: int,
    points: np.ndarray,
    neighbors: np.ndarray,
    own: np.ndarray,
    scale: float,
    nugget: np.ndarray,
    out: np.ndarray,
) -> int:  # pragma: no cover - compiled
    n = neighbors.shape[1] + 1
    size = LANES * (n * (n - 1) // 2)
    lower, r2 = np.empty(size), np.empty(size)
    rows, members = np.empty(LANES, np.int64), np.empty(LANES * n, np.int64)
    x = np.empty((points.shape[1], LANES * n))
    diagonal, inverse, u = np.empty(LANES * n), np.empty(LANES * n), np.empty(LANES * n)
    for first in range(start, stop, LANES):
        alive = _four_rows(first, stop, order, rows)
        unused = gather(rows, neighbors, own, points, scale, nugget, members, x, diagonal)
        squared_distances(x, n, r2)
        values_and_slopes(code, scale, 0.0, size, lower, r2)
        if unused:
            clear_unused(members, n, lower)
        factorise(lower, diagonal, inverse, n, n)
        failed = first_failure(inverse, diagonal)
        if failed >= 0:
            return rows[failed]
        u[:] = 0.0
        u[LANES * (n - 1) :] = 1.0
        back_substitute(lower, inverse, n, u)
        for lane in range(alive):
            row = rows[lane]
            for a in range(n):
                slot = LANES * a + lane
                out[row, a] = u[slot] if members[slot] >= 0 else 0.0
    return -1


@njit(cache=True, nogil=True)
def _sweep(
    start: int,
    stop: int,
    order: np.ndarray,
    code: int,
    points: np.ndarray,
    neighbors: np.ndarray,
    own: np.ndarray,
    scale: float,
    nugget: np.ndarray,
    shared: float,
    by_columns: bool,
    values: np.ndarray,
    gradient: bool,
    value_sum: np.ndarray,
    scale_sum: np.ndarray,
    stretch: np.ndarray,
    diagonal_sum: np.ndarray,
    targets_sum: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """Sums over rows of the value and of the weights ``sym(u v')`` of their covariance blocks.

    With t = L^-1 y, all of ``v = L^-T r`` has r = f t but for its last entry: of the evidence with
    y the targets, f = z and ``-(1 - z^2) / 2``; of the columns with y the cotangent, f = -1 and
    ``-t_last / 2``. The last entry is also ``u' K v``.
    """
    n = neighbors.shape[1] + 1
    size = LANES * (n * (n - 1) // 2)
    lower, slopes = np.empty(size + LANES * n), np.empty(size)
    rows, members = np.empty(LANES, np.int64), np.empty(LANES * n, np.int64)
    x = np.empty((points.shape[1], LANES * n))
    diagonal, inverse = np.empty(LANES * n), np.empty(LANES * n)
    u, v = np.empty(LANES * n), np.empty(LANES * n)
    factor, last = np.empty(LANES), np.empty(LANES)
    for first in range(start, stop, LANES):
        alive = _four_rows(first, stop, order, rows)
        unused = gather(rows, neighbors, own, points, scale, nugget, members, x, diagonal)
        squared_distances(x, n, slopes)
        values_and_slopes(code, scale, shared, size, lower, slopes)
        if unused:
            clear_unused(members, n, lower)
        for a in range(n):
            for lane in range(LANES):
                point = members[LANES * a + lane]
                y = 0.0
                if point >= 0:
                    y = values[rows[lane], a] if by_columns else values[point, 0]
                lower[size + LANES * a + lane] = y
        factorise(lower, diagonal, inverse, n, n + 1)
        failed = first_failure(inverse, diagonal)
        if failed >= 0:
            return rows[failed]
        end = LANES * (n - 1)
        for lane in range(LANES):
            z = lower[size + end + lane]
            factor[lane] = -1.0 if by_columns else z
            last[lane] = -0.5 * z if by_columns else -0.5 * (1.0 - z * z)
            if lane >= alive:
                factor[lane] = last[lane] = 0.0
            elif not by_columns:
                value_sum[0] += np.log(inverse[end + lane]) - 0.5 * z * z
            scale_sum[0] += last[lane]
        if not gradient:
            continue
        u[:end] = 0.0
        for a in range(n - 1):
            for lane in range(LANES):
                slot = LANES * a + lane
                v[slot] = factor[lane] * lower[size + slot]
        for lane in range(LANES):
            u[end + lane] = 1.0
            v[end + lane] = last[lane]
        back_substitute_both(lower, inverse, n, u, v)
        _scatter(members, alive, factor, u, v, diagonal_sum, targets_sum)
        if stretch.shape[0] > 0:
            weigh(u, v, n, slopes)
            if shared > 0.0:
                add_pairs(n, slopes, stretch)
            else:
                add_squares(x, n, slopes, stretch)
    return -1


@njit(cache=True, nogil=True)
def _scatter(
    members: np.ndarray,
    alive: int,
    z: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    diagonal_sum: np.ndarray,
    targets_sum: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """The diagonal of the weights, and ``-z u``, to the points they belong to."""
    if diagonal_sum.shape[0] == 1:
        total = 0.0
        for slot in range(u.shape[0]):
            total += u[slot] * v[slot]
        diagonal_sum[0] += total
    elif diagonal_sum.shape[0] > 1:
        for slot in range(u.shape[0]):
            if members[slot] >= 0:
                diagonal_sum[members[slot]] += u[slot] * v[slot]
    if targets_sum.shape[0] > 0:
        for slot in range(u.shape[0]):
            if members[slot] >= 0 and slot % LANES < alive:
                targets_sum[members[slot]] -= z[slot % LANES] * u[slot]
