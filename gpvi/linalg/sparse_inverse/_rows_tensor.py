r"""The row passes of a sparse inverse Cholesky factor: their algebra, and the tensor engine.

Row r has the points ``s = (neighbours, own)``, a block ``K = s k(r^2) + diag(nugget) = L L'`` and the
column ``u = L^-T e_last`` of the factor (Vecchia, 1988; Schäfer, Katzfuss and Owhadi, 2021). A
cotangent g of u makes the derivative by the block a matrix of rank two,

.. math:: \bar K = \operatorname{sym}(u v^\top), \quad v = \tfrac12 (g^\top u)\, u - K^{-1} g,

and so does the log density of the own target given those of the neighbours,
``log u_last - z^2 / 2 - log(2 pi) / 2`` with ``z = u'y``: there ``v = z L^-T (t, 0) - (1 - z^2) u / 2``
with ``(t, z) = L^-1 y``. Hence no adjoint of a Cholesky factorisation is needed, and ``sum(Kbar o K)``,
that is the outputscale's derivative, is a scalar known before v. Both are ``v = L^-T r``, with r a
multiple of ``L^-1`` times targets or cotangent but for its last entry. An engine returns sums over the
rows; everything is float64 whatever the dtype of the arguments.
"""

from collections.abc import Iterator
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from gpvi.exceptions import InputError, NotPositiveDefiniteError
from gpvi.linalg._fused import (
    check_constant_inputs,
    check_finite,
    check_kernel_name,
    check_kinds,
    check_positive,
    check_range,
    describe_shapes,
)
from gpvi.linalg.stationary import stationary_slope, stationary_value

__all__ = [
    "Hyperparameters",
    "Needs",
    "RowEngine",
    "RowProblem",
    "RowSums",
    "Rows",
    "TensorEngine",
    "check_rows",
    "gradients",
    "refuse",
    "row_problem",
]

# Entries of the blocks that the tensor engine works on at a time: 16 MB for a matrix.
_CHUNK_ENTRIES = 1 << 21

# A pivot this much smaller than its diagonal entry is rounding error.
_SMALLEST_RATIO = 1e-15


class Rows(NamedTuple):
    """Which points a row has."""

    neighbors: Tensor  # int32 [R, m], -1 behind the real ones
    own: Tensor  # int32 [R]
    schedule: Tensor | None  # int32 [R], a permutation


class Hyperparameters(NamedTuple):
    """What the covariance depends on."""

    lengthscale: Tensor  # [D] or [1]
    outputscale: Tensor  # []
    nugget: Tensor  # [] or [T]


class RowProblem(NamedTuple):
    """What an engine needs to know; float64, detached, on one device."""

    name: str
    scaled: Tensor  # [T, D]
    neighbors: Tensor  # [R, m]
    own: Tensor  # [R]
    schedule: Tensor | None  # [R]
    outputscale: Tensor  # []
    nugget: Tensor  # [] or [T]
    shared: bool  # one lengthscale for all coordinates


class Needs(NamedTuple):
    """Which sums are wanted."""

    any: bool
    lengthscale: bool
    diagonal: bool  # by outputscale or nugget
    targets: bool


class RowSums(NamedTuple):
    """What an engine returns, W = sym(u v') the derivative by a block; None where not asked for."""

    value: Tensor  # [], sum of log u_last - z^2 / 2
    scale: Tensor  # [], sum(W o K)
    stretch: Tensor | None  # [D] or [1], sum(W o h o (x_ad - x_bd)^2)
    diagonal: Tensor | None  # [] or [T], diagonal of W by points
    targets: Tensor | None  # [T]


class RowEngine(Protocol):
    """Everything that goes through the rows."""

    def misfit(self, rows: Rows, num_points: int) -> int:
        """The first row whose neighbours are not other points, ascending, -1 behind them; or -1."""

    def columns(self, problem: RowProblem) -> Tensor:
        """``L^-T e_last`` of every row."""

    def columns_adjoint(self, problem: RowProblem, upstream: Tensor, needs: Needs) -> RowSums:
        """Sums over the rows for a cotangent of the columns."""

    def evidence(self, problem: RowProblem, targets: Tensor, needs: Needs) -> RowSums:
        """Sums over the rows for the log evidence."""


def row_problem(name: str, points: Tensor, rows: Rows, hyper: Hyperparameters) -> RowProblem:
    """Arguments of a public function for the engines."""
    x, ell, s, nugget = (tensor.detach().double() for tensor in (points, *hyper))
    # The kernel is blind to a shift; a common centre keeps differences accurate.
    scaled = (x - x.mean(0)) / ell
    return RowProblem(name, scaled, *rows, s, nugget, ell.numel() == 1)


def gradients(
    problem: RowProblem, hyper: Hyperparameters, sums: RowSums
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Derivatives by lengthscale, outputscale and nugget, in the dtype of the arguments."""
    d_ell = d_s = None
    if sums.stretch is not None:
        ell = hyper.lengthscale.detach().double()
        d_ell = (-2.0 * problem.outputscale * sums.stretch / ell).to(hyper.lengthscale.dtype)
    if sums.diagonal is None:
        return d_ell, None, None
    d_s = (sums.scale - (sums.diagonal * problem.nugget).sum()) / problem.outputscale
    return d_ell, d_s.to(hyper.outputscale.dtype), sums.diagonal.to(hyper.nugget.dtype)


def refuse(problem: RowProblem, row: int) -> NoReturn:
    """Raise the error of a block that has no Cholesky factor."""
    own, found = int(problem.own[row]), problem.neighbors[row].long()
    members = torch.cat([found[found >= 0], problem.own[row : row + 1].long()])
    nugget = problem.nugget.expand(len(problem.scaled))[members]
    u = problem.scaled[members]
    distance = torch.cdist(u, u, compute_mode="donot_use_mm_for_euclid_dist")
    own_distance = float(distance[-1, :-1].min())
    a, b = torch.tril_indices(len(members), len(members), -1, device=u.device)
    nearest = int(distance[a, b].argmin())
    raise NotPositiveDefiniteError(
        f"The covariance of row {row} (point {own} and {len(members) - 1} neighbours, float64) is not "
        f"positive definite: outputscale {float(problem.outputscale):.3g}, smallest nugget or noise "
        f"variance {float(nugget.min()):.3g}. The nearest neighbour of point {own} is "
        f"{own_distance:.3g} lengthscales away, and the two nearest points among them all are "
        f"{int(members[b[nearest]])} and {int(members[a[nearest]])}, {float(distance[a, b].min()):.3g} "
        "lengthscales apart. Raise the nugget (the lower bound of the noise), or merge (nearly) equal "
        "points."
    )


def check_rows(
    engine: RowEngine,
    name: str,
    points: Tensor,
    rows: Rows,
    hyper: Hyperparameters,
    nugget_name: str,
    targets: Tensor | None = None,
) -> None:
    """Refuse arguments that do not fit together."""
    general = "the functions that take covariance entries"
    check_kernel_name(name, general)
    parameters = {
        "lengthscale": hyper.lengthscale,
        "outputscale": hyper.outputscale,
        nugget_name: hyper.nugget,
    }
    data = {"points": points} if targets is None else {"points": points, "targets": targets}
    check_kinds(data | parameters, points)
    T, D = points.shape if points.dim() == 2 else (0, 0)
    fits = min(T, D) > 0 and hyper.nugget.shape in ((), (T,))
    fits = fits and (targets is None or targets.shape == (T,))
    if not (fits and hyper.outputscale.dim() == 0 and hyper.lengthscale.shape in ((D,), (1,))):
        expected = "points [T, D], " + ("" if targets is None else "targets [T], ")
        raise InputError(
            f"expected {expected}lengthscale [D] or [1], outputscale [] and {nugget_name} [] or [T], "
            f"none of them empty; got {describe_shapes(data | parameters)}"
        )
    check_constant_inputs(points, general)
    check_finite(data, parameters)
    check_positive("lengthscale", hyper.lengthscale)
    check_positive("outputscale", hyper.outputscale)
    if bool((hyper.nugget < 0).any()):
        raise InputError(
            f"{nugget_name} must not be negative, but its smallest entry is "
            f"{float(hyper.nugget.detach().min()):.3g}."
        )
    check_range(hyper.lengthscale, points)
    _check_numbers(engine, points, rows)


def _check_numbers(engine: RowEngine, points: Tensor, rows: Rows) -> None:
    neighbors, own, schedule = rows
    kinds = {"neighbors": neighbors, "own": own}
    kinds |= {} if schedule is None else {"schedule": schedule}
    if any(t.dtype != torch.int32 or t.device != points.device for t in kinds.values()):
        found = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in kinds.items())
        raise InputError(f"expected int32 numbers on {points.device}; got {found}")
    R, T = own.shape[0] if own.dim() == 1 else -1, len(points)
    if neighbors.dim() != 2 or len(neighbors) != R or (schedule is not None and len(schedule) != R):
        raise InputError(
            f"expected neighbors [R, m], own [R] and schedule [R] or None; got {describe_shapes(kinds)}"
        )
    if R == 0:
        return
    if int(own.min()) < 0 or int(own.max()) >= T:
        raise InputError(
            f"own holds numbers from {int(own.min())} to {int(own.max())}; there are {T} points, "
            f"0 to {T - 1}."
        )
    row = engine.misfit(rows, T)
    if row >= 0:
        raise InputError(
            f"neighbors of row {row} (point {int(own[row])}) are {neighbors[row].tolist()}; they must "
            f"be other points from 0 to {T - 1}, ascending, with -1 behind them."
        )
    if schedule is not None:
        inside = (schedule >= 0) & (schedule < R)
        seen = torch.zeros(R, dtype=torch.bool, device=own.device)
        seen[schedule[inside].long()] = True
        if not bool(seen.all()):
            raise InputError(f"schedule is not a permutation of the {R} row numbers.")


class TensorEngine:
    """Batched tensor operations on any device, a chunk of rows at a time."""

    def misfit(self, rows: Rows, num_points: int) -> int:
        """The first row whose neighbours are not other points, ascending, -1 behind them; or -1."""
        neighbors, own, _ = rows
        fine = (neighbors >= -1) & (neighbors < num_points) & (neighbors != own[:, None])
        before, later = neighbors[:, :-1], neighbors[:, 1:]
        ordered = (later < 0) | ((before >= 0) & (before < later))
        bad = ~(fine.all(-1) & ordered.all(-1))
        return int(bad.nonzero()[0]) if bool(bad.any()) else -1

    def columns(self, problem: RowProblem) -> Tensor:
        """``L^-T e_last`` of every row."""
        R, m = problem.neighbors.shape
        out = problem.scaled.new_empty(R, m + 1)
        for block in _blocks(problem):
            block.of(out)[:] = block.column()
        return out

    def columns_adjoint(self, problem: RowProblem, upstream: Tensor, needs: Needs) -> RowSums:
        """Sums over the rows for a cotangent of the columns."""
        sums = _Accumulator(problem, needs)
        for block in _blocks(problem):
            half = block.half(block.of(upstream))
            sums.add(block, -half, -0.5 * half[:, -1])
        return sums.collected()

    def evidence(self, problem: RowProblem, targets: Tensor, needs: Needs) -> RowSums:
        """Sums over the rows for the log evidence."""
        sums = _Accumulator(problem, needs)
        for block in _blocks(problem):
            half = block.half(targets[block.members])
            z = half[:, -1]
            sums.value += -block.factor[:, -1, -1].log().sum() - 0.5 * z.square().sum()
            if needs.any:
                sums.add(block, z.unsqueeze(-1) * half, -0.5 * (1.0 - z.square()), z)
        return sums.collected()


class _Block:
    """Covariances of a chunk of rows, [C, n, n], and their factors."""

    def __init__(self, problem: RowProblem, start: int, stop: int) -> None:
        name, own = problem.name, problem.own[start:stop, None]
        numbers = torch.cat([problem.neighbors[start:stop], own], -1)
        self.start, self.stop, self.used = start, stop, numbers >= 0
        self.members = torch.where(self.used, numbers, own).long()
        x = problem.scaled[self.members]
        self.centred = x - x[:, -1:]
        # The other mode loses half of the digits of close pairs.
        self.r2 = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square_()
        pairs = self.used.unsqueeze(-1) & self.used.unsqueeze(-2)
        total = stationary_value(name, self.r2).mul_(problem.outputscale).mul_(pairs)
        nugget = problem.nugget.expand(len(problem.scaled))[self.members]
        diagonal = torch.where(self.used, problem.outputscale + nugget, 1.0)
        total.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
        self.factor, info = torch.linalg.cholesky_ex(total)
        pivots = self.factor.diagonal(dim1=-2, dim2=-1).square()
        fine = (info == 0) & (pivots > _SMALLEST_RATIO * diagonal).all(-1)
        if not bool(fine.all()):
            refuse(problem, start + int((~fine).nonzero()[0]))

    def of(self, rows: Tensor) -> Tensor:
        """The part of a tensor over all rows."""
        return rows[self.start : self.stop]

    def half(self, values: Tensor) -> Tensor:
        """``L^-1`` times values of the slots."""
        values = (values * self.used).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.factor, values, upper=False).squeeze(-1)

    def column(self) -> Tensor:
        """``L^-T e_last``."""
        last = torch.zeros_like(self.centred[..., :1])
        last[:, -1] = 1.0
        return torch.linalg.solve_triangular(self.factor.mT, last, upper=True).squeeze(-1)

    def transposed(self, values: Tensor) -> Tensor:
        """``L^-T`` times values of the slots."""
        solved = torch.linalg.solve_triangular(self.factor.mT, values.unsqueeze(-1), upper=True)
        return solved.squeeze(-1)


def _blocks(problem: RowProblem) -> Iterator[_Block]:
    R, m = problem.neighbors.shape
    chunk = max(1, _CHUNK_ENTRIES // (m + 1) ** 2)
    for start in range(0, R, chunk):
        yield _Block(problem, start, min(start + chunk, R))


class _Accumulator:
    """Sums over chunks of rows."""

    def __init__(self, problem: RowProblem, needs: Needs) -> None:
        T, D = problem.scaled.shape
        new = problem.scaled.new_zeros
        self._problem = problem
        self.value, self._scale = new(()), new(())
        self._stretch = new(1 if problem.shared else D) if needs.lengthscale else None
        self._diagonal = new(problem.nugget.shape) if needs.diagonal else None
        self._targets = new(T) if needs.targets else None

    def add(self, block: _Block, right: Tensor, last: Tensor, z: Tensor | None = None) -> None:
        """One chunk, given r of ``v = L^-T r`` but for its last entry, and that."""
        right[:, -1] = last
        u, v = block.column(), block.transposed(right)
        self._scale += last.sum()
        members = block.members[block.used]
        if self._diagonal is not None:
            rows = u * v
            if self._diagonal.dim():
                self._diagonal.index_add_(0, members, rows[block.used])
            else:
                self._diagonal += rows.sum()
        if self._targets is not None and z is not None:
            self._targets.index_add_(0, members, -(z.unsqueeze(-1) * u)[block.used])
        if self._stretch is None:
            return
        weights = u.unsqueeze(-1) * v.unsqueeze(-2)
        weights = (weights + weights.mT).mul_(stationary_slope(self._problem.name, block.r2))
        if self._problem.shared:
            self._stretch += 0.5 * (weights * block.r2).sum()
            return
        # Half of sum_ab W_ab (x_a - x_b)^2 for a symmetric W; its diagonal cancels.
        x = block.centred
        self._stretch += (x * (x * weights.sum(-1, keepdim=True) - weights @ x)).sum((0, 1))

    def collected(self) -> RowSums:
        """All of them."""
        return RowSums(self.value, self._scale, self._stretch, self._diagonal, self._targets)
