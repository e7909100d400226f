r"""Exact log evidence of a stationary kernel: its algebra, and the tensor engine for the matrices.

Notation: ``u_n = x_n / l``, ``C = s k(|u_n - u_m|^2) + diag(noise)``, ``alpha = C^-1 y`` and
``G = dF/dC = (alpha alpha' - C^-1) / 2`` (Rasmussen and Williams, 2006, section 5.4.1). With
``h = dk/d(r^2)``, the derivative by a lengthscale is ``-2 / l_d`` times the stretch

.. math:: \sum_{nm} G_{nm} s h_{nm} (u_{nd} - u_{md})^2,

and ``sum(G o (C - diag(noise))) / s``, the derivative by the outputscale, needs no kernel matrix
because ``sum(G o C) = (y' alpha - N) / 2``. An engine returns the stretch and what else is of size N;
everything is float64 whatever the dtype of the arguments, as it is for every factorisation here.
"""

import math
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from gpvi.exceptions import NotPositiveDefiniteError
from gpvi.linalg.stationary import stationary_slope, stationary_value

__all__ = [
    "Arguments",
    "Engine",
    "Gradient",
    "Needs",
    "Parts",
    "Problem",
    "TensorEngine",
    "evaluate",
    "refuse",
]


class Arguments(NamedTuple):
    """Arguments of the public function, detached."""

    name: str
    x: Tensor  # [N, D]
    targets: Tensor  # [N]
    lengthscale: Tensor  # [D] or [1]
    outputscale: Tensor  # []
    noise: Tensor  # [] or [N]


class Problem(NamedTuple):
    """What an engine needs to know; float64, on one device."""

    name: str
    scaled_x: Tensor  # [N, D]
    targets: Tensor  # [N]
    outputscale: Tensor  # []
    noise: Tensor  # [N]


class Needs(NamedTuple):
    """Which parts of the gradient are wanted, from the cheapest to the dearest."""

    any: bool
    inverse: bool  # by outputscale or noise
    lengthscale: bool


class Parts(NamedTuple):
    """What an engine returns; None where not asked for."""

    quadratic: Tensor  # [], y' C^-1 y
    log_det: Tensor  # [], log|C|
    alpha: Tensor  # [N]
    inverse_diagonal: Tensor | None  # [N], diagonal of C^-1
    stretch: Tensor | None  # [D]


class Engine(Protocol):
    """Everything of size N x N."""

    def parts(self, problem: Problem, needs: Needs) -> Parts:
        """Factorise ``C`` and reduce it and its inverse to vectors."""


class Gradient(NamedTuple):
    """Derivatives of the evidence; None where not asked for."""

    targets: Tensor
    lengthscale: Tensor | None
    outputscale: Tensor | None
    noise: Tensor | None


def evaluate(engine: Engine, arguments: Arguments, needs: Needs) -> tuple[Tensor, Gradient | None]:
    """Log evidence in nats, float64, and, if needed, its gradient in the dtype of the arguments."""
    x, targets, ell, s, noise = (tensor.double() for tensor in arguments[1:])
    N = x.shape[0]
    # The kernel is blind to a shift; a common centre keeps differences and moments accurate.
    scaled = (x - x.mean(0)) / ell
    problem = Problem(arguments.name, scaled, targets, s, noise.expand(N))
    parts = engine.parts(problem, needs)
    value = -0.5 * (parts.quadratic + parts.log_det + N * math.log(2.0 * math.pi))
    if not needs.any:
        return value, None
    d_ell = d_s = d_noise = None
    if parts.inverse_diagonal is not None:
        rows = 0.5 * (parts.alpha.square() - parts.inverse_diagonal)  # diagonal of G
        d_noise = rows if noise.dim() else rows.sum()
        d_s = (0.5 * (parts.quadratic - N) - (rows * noise).sum()) / s
    if parts.stretch is not None:
        d_ell = -2.0 * parts.stretch / ell
        d_ell = d_ell if ell.numel() == d_ell.numel() else d_ell.sum(0, keepdim=True)
    dtype = arguments.x.dtype
    others = (None if part is None else part.to(dtype) for part in (d_ell, d_s, d_noise))
    return value, Gradient(-parts.alpha.to(dtype), *others)


def refuse(problem: Problem, row: int) -> NoReturn:
    """Raise the error of a factorisation that failed at a row. There is no jitter to try: the noise
    is that, and more of it for one evaluation would make the objective jump."""
    N, u = problem.scaled_x.shape[0], problem.scaled_x
    text = (
        f"Kxx + noise of size {N} (float64) is not positive definite: the factorisation failed at "
        f"row {row}, outputscale {float(problem.outputscale):.3g}, smallest noise variance "
        f"{float(problem.noise.min()):.3g}."
    )
    if row > 0:
        distance = (u[:row] - u[row]).square().sum(-1).sqrt()
        text += (
            f" The closest earlier input is row {int(distance.argmin())}, "
            f"{float(distance.min()):.3g} lengthscales away."
        )
    raise NotPositiveDefiniteError(
        text + " Raise the lower bound of the noise, or merge (nearly) equal inputs."
    )


class TensorEngine:
    """Plain tensor operations on any device."""

    def parts(self, problem: Problem, needs: Needs) -> Parts:
        """Factorise ``C`` and reduce it and its inverse to vectors."""
        name, u, targets, s, noise = problem
        # The other mode loses half of the digits of close pairs.
        r2 = torch.cdist(u, u, compute_mode="donot_use_mm_for_euclid_dist").square_()
        total = stationary_value(name, r2).mul_(s)
        total.diagonal().add_(noise)
        factor, info = torch.linalg.cholesky_ex(total)
        if int(info):
            refuse(problem, int(info) - 1)
        half = torch.linalg.solve_triangular(factor, targets[:, None], upper=False)
        alpha = torch.linalg.solve_triangular(factor.mT, half, upper=True)[:, 0]
        quadratic, log_det = half.square().sum(), 2.0 * factor.diagonal().log().sum()
        if not needs.inverse and not needs.lengthscale:
            return Parts(quadratic, log_det, alpha, None, None)
        inverse = torch.cholesky_inverse(factor)
        diagonal = inverse.diagonal().clone() if needs.inverse else None
        if not needs.lengthscale:
            return Parts(quadratic, log_det, alpha, diagonal, None)
        slopes = inverse.neg_().addr_(alpha, alpha).mul_(stationary_slope(name, r2).mul_(0.5 * s))
        # sum_nm S_nm (u_n - u_m)^2 for a symmetric S; its diagonal cancels.
        product = slopes @ torch.cat([u, torch.ones_like(u[:, :1])], -1)
        stretch = 2.0 * (u * (u * product[:, -1:] - product[:, :-1])).sum(0)
        return Parts(quadratic, log_det, alpha, diagonal, stretch)
