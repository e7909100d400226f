"""Route from a Gaussian process to the collapsed bound operation of the linear-algebra core."""

import torch
from torch import Tensor

from gpvi.approximations.gaussian_process import GaussianProcess, GaussianProcessLike
from gpvi.kernels import stationary_form
from gpvi.linalg import collapsed_bound, stationary_collapsed_bound

__all__ = ["collapsed_objective"]


def collapsed_objective(
    gp: GaussianProcessLike,
    x: Tensor,  # shape: [*g, N, D]
    z: Tensor,  # shape: [*b, M, D]
    y: Tensor,  # shape: [*b, N]
    noise: Tensor,  # scalar or shape: [*b, N]
    *,
    jitter: float,
    tighter: bool,
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

    Returns
    -------
    Tensor, shape [*b]
        The bound.
    """
    targets = y - gp.mean(x)
    form = stationary_form(gp.kernel) if isinstance(gp, GaussianProcess) else None
    flat = x.dim() == 2 and z.dim() == 2 and targets.dim() == 1 and not x.requires_grad
    if form is not None and flat:
        scale = form.outputscale
        if scale is None:
            scale = torch.ones((), dtype=x.dtype, device=x.device)
        return stationary_collapsed_bound(
            form.name, x, z, targets, form.lengthscale, scale, noise, jitter=jitter, tighter=tighter
        )
    Kzz = gp.covariance(z)
    mean_diagonal = Kzz.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    Kzz = Kzz + torch.diag_embed(jitter * mean_diagonal.expand(Kzz.shape[:-1]))
    return collapsed_bound(
        Kzz, gp.covariance(z, x), gp.variance(x), targets, noise, tighter=tighter
    )
