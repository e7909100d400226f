"""Routes from a Gaussian process to the one-operation bounds of the linear-algebra core."""

import torch
from torch import Tensor

from gpvi.approximations.gaussian_process import GaussianProcess, GaussianProcessLike
from gpvi.kernels import StationaryForm, stationary_form
from gpvi.linalg import (
    collapsed_bound,
    gaussian_log_evidence,
    stationary_collapsed_bound,
    stationary_log_evidence,
)

__all__ = ["collapsed_objective", "exact_objective"]


def collapsed_objective(
    gp: GaussianProcessLike,
    x: Tensor,  # shape: [*g, N, D]
    z: Tensor,  # shape: [*b, M, D]
    y: Tensor,  # shape: [*b, N]
    noise: Tensor,  # scalar or shape: [*b, N]
    *,
    jitter: float,
    tighter: bool,
    copies: Tensor | None = None,  # shape: [N]
) -> Tensor:
    """Collapsed inducing-point bound of a Gaussian process, total nats.

    Kernels whose form the core knows (RBF and Matern, scaled, ARD) are evaluated by the core
    itself; any other kernel is evaluated by GPyTorch and its matrices handed over.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process, live: gradients reach its parameters.
    x, z : Tensor, shape [*g, N, D], [*b, M, D]
        Data and inducing inputs.
    y : Tensor, shape [*b, N]
        Targets, all observed.
    noise : Tensor, scalar or shape [*b, N]
        Noise variances.
    jitter : float
        Relative jitter of Kzz.
    tighter : bool
        Whether to use the tightened bound.
    copies : Tensor, shape [N], optional
        How many rows with independent residuals each row stands for in the tightened bound.

    Returns
    -------
    Tensor, shape [*b]
        The bound.
    """
    targets = y - gp.mean(x)
    form = _closed_form(gp, x, targets)
    if form is not None and z.dim() == 2:
        return stationary_collapsed_bound(
            form.name,
            x,
            z,
            targets,
            form.lengthscale,
            _scale(form, x),
            noise,
            jitter=jitter,
            tighter=tighter,
            copies=copies,
        )
    Kzz = gp.covariance(z)
    mean_diagonal = Kzz.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    Kzz = Kzz + torch.diag_embed(jitter * mean_diagonal.expand(Kzz.shape[:-1]))
    return collapsed_bound(
        Kzz,
        gp.covariance(z, x),
        gp.variance(x),
        targets,
        noise,
        tighter=tighter,
        copies=copies,
    )


def exact_objective(
    gp: GaussianProcessLike,
    x: Tensor,  # shape: [*g, N, D]
    y: Tensor,  # shape: [*b, N]
    noise: Tensor,  # scalar or shape: [*b, N]
) -> Tensor:
    """Exact log evidence of a Gaussian process, total nats.

    Kernels whose form the core knows never become a matrix on the graph; any other kernel is
    evaluated by GPyTorch and its matrix handed over.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process, live: gradients reach its parameters.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    y : Tensor, shape [*b, N]
        Targets, all observed.
    noise : Tensor, scalar or shape [*b, N]
        Noise variances.

    Returns
    -------
    Tensor, shape [*b]
        The evidence.
    """
    targets = y - gp.mean(x)
    form = _closed_form(gp, x, targets)
    if form is not None and noise.dim() < 2:
        return stationary_log_evidence(
            form.name, x, targets, form.lengthscale, _scale(form, x), noise
        )
    return gaussian_log_evidence(gp.covariance(x), targets, noise)


def _closed_form(gp: GaussianProcessLike, x: Tensor, targets: Tensor) -> StationaryForm | None:
    """The form of the kernel, where the core can use it: one data set without input gradients."""
    if x.dim() != 2 or targets.dim() != 1 or x.requires_grad:
        return None
    return stationary_form(gp.kernel) if isinstance(gp, GaussianProcess) else None


def _scale(form: StationaryForm, x: Tensor) -> Tensor:
    return x.new_ones(()) if form.outputscale is None else form.outputscale
