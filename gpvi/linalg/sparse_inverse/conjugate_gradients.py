r"""Solves with posterior precisions by conjugate gradients.

The mean of a posterior with precision :math:`P = UU^\top + \mathrm{diag}(w) + RR^\top`, R of data that see
a few points each, needs :math:`P^{-1} b` exactly, while an incomplete factor V only gives
:math:`(VV^\top)^{-1} b`. With V as preconditioner a few iterations close the gap.

Errors are measured in the norm of P: the estimate :math:`r^\top (VV^\top)^{-1} r` of the squared error for
residual r, against :math:`x^\top b` for the squared size of the solution. Unlike the length of r, this does
not depend on how large the entries of P are, which nearly equal points make huge. Residuals that the
iteration carries along are checked against :math:`b - P x` at the end; where rounding keeps that from
falling further, it is compared with what rounding alone explains (Higham, 2002, section 3.5).

References
----------
Higham, N. J. (2002). Accuracy and Stability of Numerical Algorithms. SIAM.
Golub, G. H. & Van Loan, C. F. (2013). Matrix Computations, section 11.5. Johns Hopkins.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError
from gpvi.linalg.sparse_inverse._apply import apply_flat, outer_flat
from gpvi.linalg.sparse_inverse._engine import (
    broadcast_batch,
    check_vector,
    engine_for,
    runs_compiled,
    shared,
    working_dtype,
)
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern
from gpvi.linalg.sparse_inverse.rectangular import (
    SparseRows,
    apply_rows,
    check_rows,
    outer_rows,
    split_batch,
)

__all__ = ["precision_solve"]

# How many units of rounding a residual may be away from zero, entry for entry of U U' x.
_ROUNDING = 16.0


def precision_solve(
    pattern: NeighborPattern,
    columns: Tensor,
    precision: Tensor,
    factor: Tensor,
    vector: Tensor,
    *,
    factor_pattern: NeighborPattern | None = None,
    rows: SparseRows | None = None,
    values: Tensor | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 200,
) -> Tensor:
    r""":math:`(UU^\top + \mathrm{diag}(w) + RR^\top)^{-1} b` by preconditioned conjugate gradients.

    Every vector stops for itself, at the tolerance or where rounding ends progress.

    Parameters
    ----------
    pattern : NeighborPattern
        Where U has entries.
    columns : Tensor, shape [*b, M, m + 1]
        U.
    precision : Tensor, shape [*b, M]
        w; with entries that leave the sum positive definite.
    factor : Tensor, shape [*b, M, k + 1]
        V of :func:`incomplete_cholesky`; how good it is decides on the number of iterations, not on the
        result, and it gets no gradient.
    vector : Tensor, shape [*b, M]
        b. All batch dims broadcast; a system that many vectors share is not copied.
    factor_pattern : NeighborPattern, optional
        Where V has entries; as U without.
    rows : SparseRows, optional
        Where R has entries; without, there is no R.
    values : Tensor, shape [*b, N, H], optional
        R, with rows.
    tolerance : float
        Error relative to the solution, both in the norm of the matrix.
    max_iterations : int
        Iterations after which to give up.

    Returns
    -------
    Tensor, shape [*b, M]
        Differentiable any number of times, by one more solve.

    Raises
    ------
    InputError
        If shapes do not fit the patterns or the rows, devices differ, rows come without values, or a
        limit is not positive.
    NumericalError
        If the iteration does not converge, or the matrix is not positive definite.

    References
    ----------
    Golub, G. H. & Van Loan, C. F. (2013). Matrix Computations, section 11.5. Johns Hopkins.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0]], dtype=torch.int32))
    >>> columns = torch.tensor([[0.0, 2.0], [3.0, 4.0]]).double()  # U U' = [[13, 12], [12, 16]]
    >>> V = torch.tensor([[0.0, 4.0], [0.0, 6.0]]).double()
    >>> w, b = torch.tensor([3.0, 20.0]).double(), torch.tensor([28.0, 48.0]).double()
    >>> [round(entry, 8) for entry in precision_solve(pattern, columns, w, V, b).tolist()]
    [1.0, 1.0]
    """
    other = pattern if factor_pattern is None else factor_pattern
    pattern.check(columns)
    other.check(factor)
    for name, part in (("precision", precision), ("vector", vector)):
        check_vector(pattern, name, part, columns)
    if not (tolerance > 0.0 and max_iterations > 0):
        raise InputError(
            f"tolerance is {tolerance} and max_iterations {max_iterations}; both must be positive."
        )
    check_rows(pattern, rows, values)
    given = (columns, precision, factor, vector) + (() if values is None else (values,))
    dtype, inside = working_dtype(*given)
    # Problems differ in U, w, V or R; the other batch dims of b are right-hand sides of one problem.
    shapes = {
        "columns": columns.shape[:-2],
        "precision": precision.shape[:-1],
        "factor": factor.shape[:-2],
    }
    if values is not None:
        shapes["values"] = values.shape[:-2]
    samples, problems = split_batch(broadcast_batch(**shapes), vector.shape[:-1])
    M = pattern.num_rows
    b = vector.to(inside).expand(*samples, *problems, M)
    b = b.reshape(samples.numel(), problems.numel(), M).movedim(0, -1)
    U, V = (shared(part.to(inside), problems, 2) for part in (columns, factor))
    w = shared(precision.to(inside), problems, 1)
    R = None if values is None else shared(values.to(inside), problems, 2)
    limits = _Limits(pattern, other, rows, tolerance, max_iterations)
    x: Tensor = _PrecisionSolve.apply(limits, U, w, V.detach(), R, b)
    return x.movedim(-1, 0).reshape(*samples, *problems, M).to(dtype)


class _Limits(NamedTuple):
    """What stays the same in the backward pass."""

    pattern: NeighborPattern
    factor_pattern: NeighborPattern
    rows: SparseRows | None
    tolerance: float
    max_iterations: int


class _PrecisionSolve(torch.autograd.Function):
    """For U and V [1 or F, M, .], w [1 or F, M], R [1 or F, N, H] if there is one and b [F, M, .]."""

    @staticmethod
    def forward(
        ctx: Any,
        limits: _Limits,
        columns: Tensor,
        precision: Tensor,
        factor: Tensor,
        values: Tensor | None,
        b: Tensor,
    ) -> Tensor:
        tensors = [columns.detach(), precision.detach().unsqueeze(-1), factor]
        if values is not None:
            tensors.append(values.detach())
        if runs_compiled(b):
            # One at a time, for as long as each of them takes.
            parts = [
                _System(limits, *(_of(tensor, number) for tensor in tensors)).solve(right)
                for number, right in enumerate(b.detach().split(1))
            ]
            x = torch.cat(parts)
        else:
            x = _System(limits, *tensors).solve(b.detach())
        ctx.limits = limits
        ctx.save_for_backward(columns, precision, factor, values, x)
        return x

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        columns, precision, factor, values, x = ctx.saved_tensors
        pattern, rows = ctx.limits.pattern, ctx.limits.rows
        a = _PrecisionSolve.apply(ctx.limits, columns, precision, factor, values, upstream)
        by_columns = by_precision = by_values = None
        if ctx.needs_input_grad[1]:
            Ux, Ua = (apply_flat("transpose_product", pattern, columns, part) for part in (x, a))
            by_columns = -outer_flat(pattern, *_pairs(len(columns), (a, x), (Ux, Ua)))
        if ctx.needs_input_grad[2]:
            by_precision = -(a * x).sum(-1).sum_to_size(precision.shape)
        if ctx.needs_input_grad[4]:
            Rx, Ra = (apply_rows("transpose_product", rows, values, part) for part in (x, a))
            by_values = -outer_rows(rows, *_pairs(len(values), (a, x), (Rx, Ra)))
        return None, by_columns, by_precision, None, by_values, a


def _pairs(
    count: int, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Vectors of outer products side by side, those of all problems if one matrix serves them."""
    sides = torch.cat(left, -1), torch.cat(right, -1)
    if count > 1:
        return sides
    one, two = (part.movedim(0, 1).flatten(1).unsqueeze(0) for part in sides)
    return one, two


def _of(tensor: Tensor, number: int) -> Tensor:
    """One of several tensors, or the one for all, with a batch dim of size one."""
    number = number if len(tensor) > 1 else 0
    return tensor[number : number + 1]


class _System:
    """``P x = b`` with its preconditioner, for many b at once."""

    def __init__(
        self,
        limits: _Limits,
        columns: Tensor,
        precision: Tensor,
        factor: Tensor,
        values: Tensor | None = None,
    ) -> None:
        self._limits, self._U, self._w, self._V = limits, columns, precision, factor
        self._R = values

    def solve(self, b: Tensor) -> Tensor:
        """x for right-hand sides [F, M, R]."""
        engine, limits = engine_for("factor", b), self._limits
        x, residual, used = torch.zeros_like(b), b, 0
        known, last = torch.zeros_like(b[:, :1]), None
        while True:
            step = _Iteration(self, engine, residual, known)
            used += step.run(limits.tolerance, limits.max_iterations - used)
            x = x + step.x
            residual = b - self.multiply(engine, x)
            known = (x * b).sum(1, keepdim=True)
            squared = (residual * self.precondition(engine, residual)).sum(1, keepdim=True)
            # Products of the check round as those of the iteration did: leave it a little room.
            done = squared <= 4.0 * limits.tolerance**2 * known
            if bool(done.all()):
                return x
            explained = residual.norm(dim=1, keepdim=True) <= self._rounding(engine, x, b)
            if bool((done | explained).all()):
                return x
            error = (squared / known).sqrt()
            worst = float(error[~(done | explained)].max())
            stuck = last is not None and bool((error > 0.5 * last)[~(done | explained)].all())
            if used >= limits.max_iterations or stuck or not worst < float("inf"):
                raise NumericalError(
                    f"Conjugate gradients reached a relative error of {worst:.1e} after {used} "
                    f"iterations, not {limits.tolerance:.1e}. Give the incomplete factor more neighbours, "
                    "raise the nugget, or allow a larger tolerance."
                )
            last = error

    def multiply(self, engine: ModuleType, x: Tensor) -> Tensor:
        """``P x``."""
        return self._square(engine, self._U, self._R, x) + self._w * x

    def precondition(self, engine: ModuleType, r: Tensor) -> Tensor:
        """``(V V')^-1 r``."""
        pattern, V = self._limits.factor_pattern, self._V
        return engine.transpose_solve(pattern, V, engine.solve(pattern, V, r))

    def _square(self, engine: ModuleType, U: Tensor, R: Tensor | None, x: Tensor) -> Tensor:
        """``(U U' + R R') x``."""
        pattern, rows = self._limits.pattern, self._limits.rows
        result = engine.product(pattern, U, engine.transpose_product(pattern, U, x))
        if R is None:
            return result
        seen = engine_for("rectangular", x)
        return result + seen.product(rows, R, seen.transpose_product(rows, R, x))

    def _rounding(self, engine: ModuleType, x: Tensor, b: Tensor) -> Tensor:
        """Length of the residual that rounding alone explains."""
        R = None if self._R is None else self._R.abs()
        size = self._square(engine, self._U.abs(), R, x.abs())
        size = size + self._w.abs() * x.abs() + b.abs()
        return _ROUNDING * torch.finfo(b.dtype).eps * size.norm(dim=1, keepdim=True)


class _Iteration:
    """Conjugate gradients from zero, in which finished right-hand sides drop out."""

    def __init__(self, system: _System, engine: ModuleType, b: Tensor, known: Tensor) -> None:
        self.x = torch.zeros_like(b)
        self._system, self._engine = system, engine
        self._index = torch.arange(b.shape[-1], device=b.device)
        # Squared length of the solution in the norm of P, which grows by every step.
        self._x, self._residual, self._length = self.x.clone(), b, known
        self._direction = system.precondition(engine, b)
        self._squared = (b * self._direction).sum(1, keepdim=True)

    def run(self, tolerance: float, most: int) -> int:
        """Iterate; returns the number of iterations."""
        count = 0
        for count in range(most + 1):
            if not bool(torch.isfinite(self._squared).all()):
                raise NumericalError(
                    "Conjugate gradients met NaN or infinite numbers: the matrix, its incomplete factor or "
                    "the right-hand side holds some. Check the data, or take a smaller step."
                )
            done = self._squared <= tolerance**2 * self._length
            if bool(done.all()) or count == most:
                break
            self._step(self._drop(done))
        self.x[..., self._index] = self._x
        return count

    def _step(self, done: Tensor) -> None:
        product = self._system.multiply(self._engine, self._direction)
        curvature = (self._direction * product).sum(1, keepdim=True)
        if bool(((curvature <= 0.0) & ~done).any()):
            raise NumericalError(
                "The matrix of a solve by conjugate gradients is not positive definite; bound site "
                "precisions from below."
            )
        alpha = torch.where(done, 0.0, self._squared / curvature)
        self._x = self._x + alpha * self._direction
        self._residual = self._residual - alpha * product
        self._length = self._length + alpha * self._squared
        z = self._system.precondition(self._engine, self._residual)
        squared = (self._residual * z).sum(1, keepdim=True)
        self._direction = z + torch.where(done, 0.0, squared / self._squared) * self._direction
        self._squared = torch.where(done, self._squared, squared)

    def _drop(self, done: Tensor) -> Tensor:
        """Put right-hand sides aside that are done in all systems."""
        keep = ~done.all(0).flatten()
        if bool(keep.all()):
            return done
        self.x[..., self._index] = self._x
        self._index = self._index[keep]
        self._x, self._residual, self._direction, self._length, self._squared = (
            part[..., keep] for part in self._state()
        )
        return done[..., keep]

    def _state(self) -> Iterator[Tensor]:
        yield from (self._x, self._residual, self._direction, self._length, self._squared)
