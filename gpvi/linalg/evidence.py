r"""Exact Gaussian log evidence with an analytic adjoint.

.. math:: \log N(y \mid 0, C) = -\tfrac12 y^\top C^{-1} y - \tfrac12 \log|C| - \tfrac N2 \log 2\pi,
    \qquad C = K + \mathrm{diag}(\sigma^2),

with :math:`\partial/\partial K = \tfrac12(\alpha\alpha^\top - C^{-1})` and :math:`\alpha = C^{-1}y`
(Rasmussen & Williams, 2006, section 5.4.1). The explicit inverse costs twice the factorisation; a
backward pass through the factorisation costs several times that.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpvi.exceptions import InputError
from gpvi.linalg.cholesky import safe_cholesky
from gpvi.linalg.triangular import log_det_from_cholesky

__all__ = ["gaussian_log_evidence"]


def gaussian_log_evidence(
    covariance: Tensor,  # shape: [*b, N, N]
    targets: Tensor,  # shape: [*b, N]
    noise: Tensor,  # scalar or shape: [*b, N]
) -> Tensor:
    """Log density of targets under ``N(0, K + diag(noise))``.

    Parameters
    ----------
    covariance : Tensor, shape [*b, N, N]
        ``K``.
    targets : Tensor, shape [*b, N]
        Targets minus prior mean.
    noise : Tensor, scalar or shape [*b, N]
        Noise variances.

    Returns
    -------
    Tensor, shape [*b]
        Nats. Differentiable once in all three arguments.

    Raises
    ------
    InputError
        If shapes do not fit.
    NotPositiveDefiniteError
        If the matrix is not positive definite.

    References
    ----------
    C. E. Rasmussen and C. K. I. Williams, *Gaussian Processes for Machine Learning*, 2006.

    Examples
    --------
    >>> import torch
    >>> K, y = torch.ones(1, 1).double(), torch.zeros(1).double()
    >>> round(gaussian_log_evidence(K, y, torch.ones(()).double()).item(), 4)
    -1.2655
    """
    size = covariance.shape[-1]
    if covariance.shape[-2:] != (size, size) or targets.shape[-1:] != (size,):
        raise InputError(
            f"covariance has shape {tuple(covariance.shape)} and targets {tuple(targets.shape)}; they "
            "must be [*b, N, N] and [*b, N]."
        )
    batch = torch.broadcast_shapes(covariance.shape[:-2], targets.shape[:-1], noise.shape[:-1])
    # Broadcasting outside the operation leaves the sums of its gradients to autograd.
    return _LogEvidence.apply(
        covariance.expand(*batch, size, size),
        targets.expand(*batch, size),
        noise.expand(*batch, size),
    )


class _LogEvidence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, covariance: Tensor, targets: Tensor, noise: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        total = covariance + torch.diag_embed(noise)
        factor = safe_cholesky(total, name="Kxx + noise").factor
        alpha = torch.cholesky_solve(targets.unsqueeze(-1), factor).squeeze(-1)
        value = -0.5 * (
            (targets * alpha).sum(-1)
            + log_det_from_cholesky(factor)
            + targets.shape[-1] * math.log(2.0 * math.pi)
        )
        if any(ctx.needs_input_grad):
            slope = torch.cholesky_inverse(factor).neg_()
            slope.addcmul_(alpha.unsqueeze(-1), alpha.unsqueeze(-2)).mul_(0.5)
            ctx.save_for_backward(slope, alpha)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        slope, alpha = ctx.saved_tensors
        row = upstream.unsqueeze(-1)
        diagonal = slope.diagonal(dim1=-2, dim2=-1)
        return row.unsqueeze(-1) * slope, -row * alpha, row * diagonal
