r"""The mean of a posterior whose precision W is only factorised block by block.

Conjugate gradients, with the diagonal blocks of W as preconditioner, solve :math:`W \mu = h`. The
preconditioned matrix has pairs of eigenvalues :math:`1 \pm \sigma` with the canonical correlations of the
blocks a posteriori: few iterations unless the blocks know nearly the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpvi.exceptions import UnsupportedError
from gpvi.linalg import (
    identity_plus_low_rank,
    mat_vec,
    safe_cholesky,
    solve_lower_transposed_vec,
    solve_lower_vec,
)

# After so many iterations a factorisation of the whole costs less and gives more.
_MAX_ITERATIONS = 100
# Residual that counts as none, in units of rounding.
_TOLERANCE = 100.0


class Precision(Protocol):
    """A matrix W that is multiplied with vectors, and whose diagonal blocks are wanted."""

    def apply(self, vectors: Tensor) -> Tensor:
        """``W v``, shape [*b, n]."""

    def block(self, part: slice) -> Tensor:
        """A diagonal block."""

    def dense(self) -> Tensor:
        """All of W."""

    def detach(self) -> "Precision":
        """The same matrix off the graph."""


@dataclass(frozen=True)
class LowRankPrecision:
    """``W = I + F diag(w) F'``.

    Parameters
    ----------
    features : Tensor, shape [*b, n, N]
        ``F``.
    weights : Tensor, shape [*b, N]
        ``w``.
    """

    features: Tensor
    weights: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        """``v + F (w * F'v)``."""
        return vectors + mat_vec(self.features, self.weights * mat_vec(self.features.mT, vectors))

    def block(self, part: slice) -> Tensor:
        """A diagonal block."""
        return identity_plus_low_rank(self.features[..., part, :], self.weights)

    def dense(self) -> Tensor:
        """All of W."""
        return identity_plus_low_rank(self.features, self.weights)

    def detach(self) -> "LowRankPrecision":
        """The same matrix off the graph."""
        return LowRankPrecision(self.features.detach(), self.weights.detach())


@dataclass(frozen=True)
class DensePrecision:
    """W itself.

    Parameters
    ----------
    matrix : Tensor, shape [*b, n, n]
        ``W``.
    """

    matrix: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        """``W v``."""
        return mat_vec(self.matrix, vectors)

    def block(self, part: slice) -> Tensor:
        """A diagonal block."""
        return self.matrix[..., part, part]

    def dense(self) -> Tensor:
        """All of W."""
        return self.matrix

    def detach(self) -> "DensePrecision":
        """The same matrix off the graph."""
        return DensePrecision(self.matrix.detach())


def solve_by_blocks(precision: Precision, factors: tuple[Tensor, Tensor], shift: Tensor) -> Tensor:
    """``W^-1 h``, with an adjoint that is one more solve.

    Parameters
    ----------
    precision : Precision
        ``W``.
    factors : tuple of Tensor, shape [*b, n_k, n_k]
        Cholesky factors of its diagonal blocks.
    shift : Tensor, shape [*b, n]
        ``h``.

    Returns
    -------
    Tensor, shape [*b, n]
        On the graph of W and h.
    """
    fixed = precision.detach()
    held = (factors[0].detach(), factors[1].detach())

    def solve(rhs: Tensor) -> Tensor:
        return _conjugate_gradients(fixed, held, rhs)

    with torch.no_grad():
        start = solve(shift.detach())
    if not torch.is_grad_enabled():
        return start
    return _Solution.apply(shift - precision.apply(start), start, solve)


class _Solution(torch.autograd.Function):
    """The solution as a function of what it leaves of the equation: nothing in value, all in slope."""

    @staticmethod
    def forward(ctx: Any, gap: Tensor, start: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return start.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _refuse_graph()
        return ctx.solve(grad), None, None


def value_at_maximum(precision: Precision, shift: Tensor, solution: Tensor) -> Tensor:
    """``max_m h'm - m'W m / 2``, with the slopes of a maximum: those with m held.

    Parameters
    ----------
    precision : Precision
        ``W``.
    shift : Tensor, shape [*b, n]
        ``h``.
    solution : Tensor, shape [*b, n]
        ``W^-1 h``.

    Returns
    -------
    Tensor, shape [*b]
        On the graph of W and h, differentiable once.
    """
    held = solution.detach()
    image, shift = torch.broadcast_tensors(precision.apply(held), shift)
    return _Maximum.apply(shift, image, held)


class _Maximum(torch.autograd.Function):
    """With m a plain constant, second derivatives would be wrong without a word; here they raise."""

    @staticmethod
    def forward(ctx: Any, shift: Tensor, image: Tensor, held: Tensor) -> Tensor:
        ctx.save_for_backward(held)
        return (held * (shift - 0.5 * image)).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        _refuse_graph()
        (held,) = ctx.saved_tensors
        slope = grad.unsqueeze(-1) * held
        return slope, -0.5 * slope, None


def _refuse_graph() -> None:
    if torch.is_grad_enabled():
        raise UnsupportedError(
            "Independent blocks are differentiable once, and create_graph=True asks for more; q='joint' has "
            "second derivatives."
        )


def _conjugate_gradients(
    precision: Precision, factors: tuple[Tensor, Tensor], rhs: Tensor
) -> Tensor:
    split = factors[0].shape[-1]

    def precondition(vector: Tensor) -> Tensor:
        parts = (vector[..., :split], vector[..., split:])
        solved = [
            solve_lower_transposed_vec(factor, solve_lower_vec(factor, part))
            for factor, part in zip(factors, parts, strict=True)
        ]
        return torch.cat(solved, -1)

    limit = _TOLERANCE * torch.finfo(rhs.dtype).eps
    rest, direction = rhs, precondition(rhs)
    solution = torch.zeros_like(rhs)
    size = (rest * direction).sum(-1, keepdim=True)
    goal = limit**2 * size
    for _ in range(_MAX_ITERATIONS):
        if bool((size <= goal).all()):
            return solution
        image = precision.apply(direction)
        curvature = (direction * image).sum(-1, keepdim=True)
        if bool(((curvature <= 0.0) & (size > goal)).any()):
            # W is indefinite although its blocks are not: the factorisation says so.
            break
        # Batch entries that are done have nothing left to move by.
        length = torch.where(size > goal, size / curvature, 0.0)
        solution = solution + length * direction
        rest = rest - length * image
        ahead = precondition(rest)
        new = (rest * ahead).sum(-1, keepdim=True)
        direction = ahead + torch.where(size > goal, new / size, 0.0) * direction
        size = new
    factor = safe_cholesky(precision.dense(), name="posterior precision of both blocks").factor
    return solve_lower_transposed_vec(factor, solve_lower_vec(factor, rhs))
