r"""Covariances and whitened features :math:`F = L^{-1} K_{zx}` by the fastest route there is."""

from torch import Tensor

from gpvi.approximations._residual import residual_variance
from gpvi.approximations.gaussian_process import GaussianProcess, GaussianProcessLike
from gpvi.kernels import StationaryForm, stationary_form
from gpvi.linalg import (
    CholeskyResult,
    safe_cholesky,
    solve_lower,
    stationary_covariance,
    stationary_features,
)

__all__ = ["factorise_inducing", "inducing_features", "prior_covariance"]


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
    form = None if x.requires_grad or x.dim() != 2 else _form(gp, z)
    if form is None:
        features = solve_lower(z_factor, gp.covariance(z, x))
    else:
        scale = _scale(form, z)
        features = stationary_features(form.name, x, z, form.lengthscale, scale, z_factor).mT
    return features, residual_variance(gp, x, features)


def _form(gp: GaussianProcessLike, z: Tensor) -> StationaryForm | None:
    """The closed form of the kernel, where the core can use it."""
    if z.dim() != 2 or not isinstance(gp, GaussianProcess):
        return None
    return stationary_form(gp.kernel)


def _scale(form: StationaryForm, z: Tensor) -> Tensor:
    return z.new_ones(()) if form.outputscale is None else form.outputscale
