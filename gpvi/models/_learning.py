"""Learning the parameters of a readout and of latent kernels, with q or its sites held.

Loadings and offset of every output are raised by Newton's method on the expected log likelihood, with
the curvature at fixed spread; outputs are independent of each other and take one batch. Parameters of
the base likelihood and of kernels go through L-BFGS on the log scale.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from gpvi.exceptions import NumericalError
from gpvi.inference import ParameterVector
from gpvi.likelihoods import LinearReadoutLikelihood, expectation_slopes

__all__ = ["ascend", "fit_readout"]

# Newton steps are damped by this fraction of the curvature, for outputs that never vary.
_DAMPING = 1e-8
_SMALLEST_STEP = 1e-4


def fit_readout(
    readout: LinearReadoutLikelihood,
    y: Tensor,
    mean: Tensor,
    covariance: Tensor,
    *,
    max_steps: int = 20,
    tolerance: float = 1e-4,
) -> None:
    """Raise the expected log likelihood over loadings, offset and the base, in place.

    Parameters
    ----------
    readout : LinearReadoutLikelihood
        Its parameters are changed.
    y : Tensor, shape [T, P]
        Targets.
    mean : Tensor, shape [T, K]
        Latent means.
    covariance : Tensor, shape [T, K, K]
        Latent covariances.
    max_steps : int
        The most steps.
    tolerance : float
        An output stops once a step gains less than this many nats.
    """
    _fit_loadings(readout, y, mean, covariance, max_steps, tolerance)
    if not any(parameter.requires_grad for parameter in readout.base.parameters()):
        return
    with torch.no_grad():
        moments = _projections(readout.loadings, readout.offset, mean, covariance)
    base = readout.base

    def objective() -> Tensor:
        return base.variational_expectations(y.mT, *moments).sum()

    ascend({"base": base}, objective, max_iter=max_steps)


@torch.no_grad()
def _fit_loadings(
    readout: LinearReadoutLikelihood,
    y: Tensor,
    mean: Tensor,
    covariance: Tensor,
    max_steps: int,
    tolerance: float,
) -> None:
    C, d = readout.loadings.detach().clone(), readout.offset.detach().clone()
    targets, flat = y.mT.contiguous(), covariance.flatten(-2)
    K = mean.shape[-1]
    x = torch.cat([mean, torch.ones_like(mean[:, :1])], -1)
    squares = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)

    def local(C: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value of every output, gradient and negative curvature in (c, d)."""
        moments = _projections(C, d, mean, covariance)
        value, slope, curvature = expectation_slopes(readout.base, targets, *moments)
        w = (-2.0 * curvature).clamp_min(0.0)
        spread = (w @ flat).unflatten(-1, (K, K))
        gradient = slope @ x
        signed = (-2.0 * curvature @ flat).unflatten(-1, (K, K))
        gradient[:, :K] -= (signed @ C.unsqueeze(-1)).squeeze(-1)
        H = (w @ squares).unflatten(-1, (K + 1, K + 1))
        H[:, :K, :K] += spread
        size = H.diagonal(dim1=-1, dim2=-2)
        size += _DAMPING * size.amax(-1, keepdim=True) + torch.finfo(H.dtype).tiny
        return value.sum(-1), gradient, H

    value, gradient, H = local(C, d)
    length = torch.ones_like(d)
    active = torch.ones_like(d, dtype=torch.bool)
    for _ in range(max_steps):
        step = length.unsqueeze(-1) * torch.linalg.solve(H, gradient)
        step = torch.where(active.unsqueeze(-1) & step.isfinite(), step, 0.0)
        new = local(C + step[:, :K], d + step[:, K])
        better = active & (new[0] >= value)
        C = torch.where(better.unsqueeze(-1), C + step[:, :K], C)
        d = torch.where(better, d + step[:, K], d)
        gained = torch.where(better, new[0] - value, torch.inf)
        value = torch.where(better, new[0], value)
        gradient = torch.where(better.unsqueeze(-1), new[1], gradient)
        H = torch.where(better[:, None, None], new[2], H)
        length = torch.where(better, (2.0 * length).clamp_max(1.0), 0.5 * length)
        active = active & (gained > tolerance) & (length > _SMALLEST_STEP)
        if not bool(active.any()):
            break
    readout.loadings.copy_(C)
    readout.offset.copy_(d)


def _projections(C: Tensor, d: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of ``C z + d``, both ``[P, T]``."""
    variance = (C @ covariance * C).sum(-1).mT  # [T, P, K] summed over K
    return C @ mean.mT + d.unsqueeze(-1), variance


def ascend(
    modules: dict[str, torch.nn.Module], objective: Callable[[], Tensor], *, max_iter: int
) -> None:
    """Raise a differentiable objective over the parameters of modules by L-BFGS, in place.

    Parameters
    ----------
    modules : dict of str to torch.nn.Module
        Their parameters are left at the best point found.
    objective : callable
        Scalar with a graph.
    max_iter : int
        The most iterations.
    """
    vector = ParameterVector(modules)
    if not vector.size:
        return
    start = vector.values()
    best, best_loss = start, np.inf

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, best_loss
        vector.assign(point)
        try:
            with torch.enable_grad():
                value = objective()
                slope = vector.gradient(value)
        except NumericalError:
            return _wall(best_loss), np.zeros_like(point)
        result = -float(value.detach())
        if not (np.isfinite(result) and np.isfinite(slope).all()):
            return _wall(best_loss), np.zeros_like(point)
        if result < best_loss:
            best, best_loss = point.copy(), result
        return result, -slope

    low, high = vector.box()
    minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low, high, strict=True)),
        options={"maxiter": max_iter},
    )
    vector.assign(best)


def _wall(best_loss: float) -> float:
    """A finite loss far above the best, from which a line search comes back."""
    return best_loss + 1e3 * (1.0 + abs(best_loss)) if np.isfinite(best_loss) else 1e300
