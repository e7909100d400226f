"""What a basis leaves open: the residual ``f - E[f | basis]``, its variance and draws of it."""

from typing import Literal, get_args

import torch
from torch import Tensor

from gpvi.approximations._random import standard_normal
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.exceptions import InputError
from gpvi.linalg import default_jitter, mat_vec, safe_cholesky, sum_of_squares

#: How :meth:`Posterior.rsample` draws what the basis leaves unexplained.
ResidualDraw = Literal["joint", "independent", "none"]


def check_residual(kind: str) -> None:
    """Refuse unknown names, also where nothing is left to draw."""
    if kind not in get_args(ResidualDraw):
        raise InputError(f"residual is {kind!r}; use 'joint', 'independent' or 'none'.")


def residual_variance(gp: GaussianProcessLike, x: Tensor, features: Tensor) -> Tensor:
    """``k_nn - sum_m F_mn^2``, shape [*b, N]; only rounding could make it negative."""
    return (gp.variance(x) - sum_of_squares(features)).clamp_min(0.0)


def sample_residual(
    gp: GaussianProcessLike,
    x: Tensor,  # shape: [*g, N, D]
    features: Tensor,  # shape: [*b, M, N]
    values: Tensor,  # shape: [*S, *b, N]
    kind: ResidualDraw,
    generator: torch.Generator | None,
) -> Tensor:
    """Add a draw of the residual to samples of the projections.

    A joint draw costs ``O(N^3)``. Its jitter is relative to the prior variance: where the basis
    explains everything, the residual covariance itself is nothing but rounding.
    """
    check_residual(kind)
    if kind == "none":
        return values
    noise = standard_normal(tuple(values.shape), values, generator)
    if kind == "independent":
        return values + zero_safe_sqrt(residual_variance(gp, x, features)) * noise
    scale = gp.variance(x).mean(-1)
    # Twice the precision, so that the difference of two single-precision matrices stays definite.
    wide = features.double()
    covariance = gp.covariance(x).double() - wide.mT @ wide
    jitter = default_jitter(values.dtype)
    root = safe_cholesky(covariance, jitter=jitter, scale=scale, name="residual covariance").factor
    return values + mat_vec(root.to(values.dtype), noise)


def zero_safe_sqrt(values: Tensor) -> Tensor:
    """Square root with slope 0 (rather than infinity) at 0."""
    positive = values > 0
    return torch.where(positive, values, torch.ones_like(values)).sqrt() * positive
