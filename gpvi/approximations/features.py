r"""Kinds of a basis, with whitened features :math:`F = L^{-1} K_{uf}` by the fastest route there is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, cast

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpvi.approximations._residual import residual_variance
from gpvi.approximations.gaussian_process import (
    GaussianProcess,
    GaussianProcessLike,
    copy_module,
)
from gpvi.approximations.inter_domain_features import InterDomainFeatures
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import StationaryForm, stationary_form
from gpvi.linalg import (
    CholeskyResult,
    safe_cholesky,
    solve_lower,
    stationary_covariance,
    stationary_features,
)

__all__ = [
    "Basis",
    "FunctionalBasis",
    "PointBasis",
    "prior_covariance",
]


class Basis(Protocol):
    """What a finite basis has to offer; immutable, like the prior that holds it."""

    @property
    def points(self) -> Tensor | None:
        """Inputs [*b, M, D] whose function values the basis are; None if it is anything else."""

    def factorise(self, gp: GaussianProcessLike, jitter: float) -> CholeskyResult:
        """Cholesky factor of its covariance, with a jitter relative to the mean diagonal."""

    def mean(self, gp: GaussianProcessLike, factor: Tensor) -> Tensor:
        """Prior mean of the basis, shape [*b, M], given its Cholesky factor."""

    def whitened(self, gp: GaussianProcessLike, factor: Tensor, x: Tensor) -> Tensor:
        """Features ``F = L^-1 Kuf`` of rows, shape [*b, M, N]."""


@dataclass(frozen=True, eq=False)
class PointBasis:
    """Values of the function, its mean included.

    Parameters
    ----------
    points : Tensor, shape [*b, M, D]
        Inputs, which nobody changes any more.
    """

    points: Tensor

    def factorise(self, gp: GaussianProcessLike, jitter: float) -> CholeskyResult:
        """See :func:`factorise_inducing`."""
        return factorise_inducing(gp, self.points, jitter)

    def mean(self, gp: GaussianProcessLike, factor: Tensor) -> Tensor:
        """Prior mean at the points, shape [*b, M]."""
        return gp.mean(self.points)

    def whitened(self, gp: GaussianProcessLike, factor: Tensor, x: Tensor) -> Tensor:
        """See :func:`inducing_features`."""
        return _point_features(gp, self.points, factor, x)


@dataclass(frozen=True, eq=False)
class FunctionalBasis:
    """Linear functionals of the process without its mean.

    Parameters
    ----------
    module : InterDomainFeatures
        A module that nobody changes any more.
    """

    module: InterDomainFeatures

    @property
    def points(self) -> None:
        """None: functionals are no function values."""
        return None

    def snapshot(self) -> Self:
        """The same features with today's parameter values, on the graph."""
        return type(self)(_copy(self.module, torch.clone))

    def detach(self) -> Self:
        """The same features off the graph."""
        return type(self)(_copy(self.module, lambda value: value.detach().clone()))

    def mean(self, gp: GaussianProcessLike, factor: Tensor) -> Tensor:
        """Zeros, shape [*b, M]."""
        return torch.zeros_like(factor[..., 0])

    def covariance(self, gp: GaussianProcessLike) -> Tensor:
        """``Kuu``, shape [*b, M, M]."""
        return self.module.Kuu(kernel_of(gp))

    def cross_covariance(self, gp: GaussianProcessLike, x: Tensor) -> Tensor:
        """``Kuf``, shape [*b, M, N]."""
        return self.module.Kuf(kernel_of(gp), x)

    def factorise(self, gp: GaussianProcessLike, jitter: float) -> CholeskyResult:
        """Cholesky factor of Kuu."""
        return safe_cholesky(self.covariance(gp), jitter=jitter, name="Kuu of the features")

    def whitened(self, gp: GaussianProcessLike, factor: Tensor, x: Tensor) -> Tensor:
        """``L^-1 Kuf``."""
        return solve_lower(factor, self.cross_covariance(gp, x))


def check_jitter(jitter: float | None) -> None:
    """Refuse an impossible relative jitter; None stands for the default."""
    if jitter is not None and not 0.0 <= jitter < 1.0:
        raise InputError(f"jitter is {jitter}; it must lie in [0, 1).")


def kernel_of(gp: GaussianProcessLike) -> Kernel:
    """The kernel that features are asked with.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process.

    Returns
    -------
    gpytorch.kernels.Kernel
        Its kernel.

    Raises
    ------
    UnsupportedError
        If the process has none, or is more than its kernel.
    """
    kernel = getattr(gp, "kernel", None)
    if not isinstance(kernel, Kernel):
        raise UnsupportedError(
            f"Inter-domain features need a kernel, and {type(gp).__name__} has none; use InducingPoints, "
            "which only need covariances."
        )
    return kernel


def _copy(
    features: InterDomainFeatures, transform: Callable[[Tensor], Tensor]
) -> InterDomainFeatures:
    return cast(InterDomainFeatures, copy_module(cast(torch.nn.Module, features), transform))


def prior_covariance(gp: GaussianProcessLike, x: Tensor) -> Tensor:
    """Dense covariance among some inputs; kernels that the core knows get its analytic adjoint.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process.
    x : Tensor, shape [*g, N, D]
        Inputs.

    Returns
    -------
    Tensor, shape [*b, N, N]
        On the graph.
    """
    form = _form(gp, x)
    if form is None or not len(x):
        return gp.covariance(x)
    return stationary_covariance(form.name, x, form.lengthscale, _scale(form, x))


def factorise_inducing(gp: GaussianProcessLike, z: Tensor, jitter: float) -> CholeskyResult:
    """Cholesky factor of the covariance of inducing values.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process.
    z : Tensor, shape [*b, M, D]
        Inducing inputs.
    jitter : float
        Relative to the mean diagonal.

    Returns
    -------
    CholeskyResult
        Factor, shape [*b, M, M], and the jitter that it has.
    """
    return safe_cholesky(prior_covariance(gp, z), jitter=jitter, name="Kzz", inputs=z)


def inducing_features(
    gp: GaussianProcessLike, z: Tensor, z_factor: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Features of rows, and what they leave of the prior variance.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process.
    z : Tensor, shape [*b, M, D]
        Inducing inputs.
    z_factor : Tensor, shape [*b, M, M]
        From :func:`factorise_inducing`.
    x : Tensor, shape [*g, N, D]
        Rows.

    Returns
    -------
    features : Tensor, shape [*b, M, N]
        ``F``.
    residual : Tensor, shape [*b, N]
        ``k_nn - sum_m F_mn^2``.
    """
    features = _point_features(gp, z, z_factor, x)
    return features, residual_variance(gp, x, features)


def _point_features(gp: GaussianProcessLike, z: Tensor, z_factor: Tensor, x: Tensor) -> Tensor:
    form = None if x.requires_grad or x.dim() != 2 else _form(gp, z)
    if form is None:
        return solve_lower(z_factor, gp.covariance(z, x))
    scale = _scale(form, z)
    return stationary_features(form.name, x, z, form.lengthscale, scale, z_factor).mT


def _form(gp: GaussianProcessLike, z: Tensor) -> StationaryForm | None:
    """The closed form of the kernel, where the core can use it."""
    if z.dim() != 2 or not isinstance(gp, GaussianProcess):
        return None
    return stationary_form(gp.kernel)


def _scale(form: StationaryForm, z: Tensor) -> Tensor:
    return z.new_ones(()) if form.outputscale is None else form.outputscale
