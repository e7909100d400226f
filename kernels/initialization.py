"""Starting values of kernel parameters.

Optimisers of the marginal likelihood rarely recover from lengthscales that are orders of magnitude
off, so initialisers set them from the data before the first step.
"""

import math

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel, PeriodicKernel
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels._parameters import assign_parameter, keeps_start
from gpvi.kernels.hamming import HammingKernel
from gpvi.kernels.hida_matern import HidaMaternKernel
from gpvi.kernels.integrated_wiener import IntegratedWienerKernel
from gpvi.kernels.structure import input_dimensions

__all__ = ["set_lengthscales", "set_trends"]

# Relative distance to keep from a bound, where the gradient of a constraint's transform vanishes.
_MARGIN = 1e-3


def set_lengthscales(kernel: Kernel, lengthscales: Tensor) -> None:
    r"""Start every lengthscale of a kernel at given values per input dimension.

    Walks through sums, products and scales, and honours `active_dims`. A kernel with one
    lengthscale for several dimensions gets their quadratic mean: distances are those of the widest
    dimensions. Parameters that do not require a gradient keep their values; values outside a
    constraint are moved just inside.

    The lengthscale :math:`\lambda` of a `PeriodicKernel` is relative to the period `p` and set to
    one; the period is set to :math:`p = 2 \pi \ell`, which gives the kernel the same curvature
    at zero distance as an RBF kernel of lengthscale :math:`\ell`. If :math:`\lambda` is held fixed,
    :math:`p = 2 \pi \ell / \sqrt{\lambda}` does that. The lengthscales of a `HammingKernel` count
    columns instead of measuring distances and stay as they are.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel, changed in place.
    lengthscales : Tensor, shape (D,) or (*batch, D)
        Positive value of each input dimension; leading dimensions broadcast to the kernel's
        `batch_shape`.

    Raises
    ------
    InputError
        If a value is not positive and finite, or the shapes do not fit.

    Examples
    --------
    >>> import torch
    >>> from gpytorch.kernels import RBFKernel
    >>> from gpvi.kernels import set_lengthscales
    >>> kernel = RBFKernel(ard_num_dims=2)
    >>> set_lengthscales(kernel, torch.tensor([0.5, 2.0]))
    >>> kernel.lengthscale.detach()
    tensor([[0.5000, 2.0000]])
    """
    lengthscales = torch.as_tensor(lengthscales).detach().to(torch.float64)
    if lengthscales.ndim == 0 or lengthscales.shape[-1] == 0:
        raise InputError(
            f"lengthscales must have shape (D,), got {tuple(lengthscales.shape)}; pass one value "
            "for each input dimension."
        )
    if not bool((torch.isfinite(lengthscales) & (lengthscales > 0)).all()):
        raise InputError(
            f"lengthscales must be positive and finite, got {lengthscales.tolist()}; a constant "
            "input column has no scale of its own, give it 1."
        )
    for part, dims in input_dimensions(kernel, lengthscales.shape[-1]):
        if isinstance(part, PeriodicKernel):
            _set_period(part, lengthscales[..., dims])
        elif part.has_lengthscale and not isinstance(part, HammingKernel):
            _set_scale(part, "lengthscale", lengthscales[..., dims])
        if isinstance(part, HidaMaternKernel):
            _set_frequency(part, lengthscales[..., dims])


def set_trends(kernel: Kernel, first: float, last: float, scale: float) -> None:
    """Start every integrated Wiener process of a kernel so that it suits times and targets.

    The origin lies one length of the interval before it, where predictions end. Level and slope there
    are as uncertain as the targets vary, and the process bends about half as much again.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel, changed in place.
    first, last : float
        The interval of the data, in the kernel's inputs.
    scale : float
        Standard deviation of the targets.

    Examples
    --------
    >>> from gpvi.kernels import IntegratedWienerKernel
    >>> from gpvi.kernels.initialization import set_trends
    >>> kernel = IntegratedWienerKernel(order=1)
    >>> set_trends(kernel, 10.0, 14.0, scale=2.0)
    >>> kernel.origin, kernel.initial_variances
    (6.0, (4.0, 0.25))
    """
    width = last - first if last > first else 1.0
    for part in kernel.modules():
        if not isinstance(part, IntegratedWienerKernel):
            continue
        part.origin = first - width
        part.initial_variances = tuple(
            (scale / width**i * math.factorial(i)) ** 2 for i in range(part.order + 1)
        )
        if part.raw_variance.requires_grad:
            size = width ** (2 * part.order + 1)
            assign_parameter(part, "variance", scale**2 / size)


def _set_period(kernel: PeriodicKernel, values: Tensor) -> None:
    if kernel.raw_lengthscale.requires_grad:
        _set_scale(kernel, "lengthscale", torch.ones_like(values))
    roughness = kernel.lengthscale.detach().squeeze(-2)
    periods = 2 * math.pi * values.to(roughness) / roughness.sqrt()
    _set_scale(kernel, "period_length", periods)


def _set_frequency(kernel: HidaMaternKernel, values: Tensor) -> None:
    """One period in a lengthscale."""
    if kernel.raw_frequency.requires_grad and not keeps_start(kernel, "frequency"):
        assign_parameter(kernel, "frequency", 2.0 * math.pi / values[..., 0])


def _set_scale(kernel: Kernel, name: str, values: Tensor) -> None:
    """Set a parameter of shape (*batch, 1, D or 1) from values of shape (*batch, D)."""
    raw = getattr(kernel, f"raw_{name}")
    if not raw.requires_grad or keeps_start(kernel, name):
        return
    if raw.shape[-1] == 1:
        widest = values.amax(dim=-1, keepdim=True)
        values = widest * (values / widest).square().mean(dim=-1, keepdim=True).sqrt()
    target = values.to(raw).unsqueeze(-2)
    try:
        target = target.expand_as(raw)
    except RuntimeError:
        raise InputError(
            f"Values of shape {tuple(values.shape)} do not fit the {name} of "
            f"{type(kernel).__name__}, of shape {tuple(raw.shape)}; give one value for each input "
            "dimension that the kernel sees."
        ) from None
    assign_parameter(kernel, name, _clamp(target, getattr(kernel, f"raw_{name}_constraint")))


def _clamp(values: Tensor, constraint: Interval) -> Tensor:
    """Values moved inside a constraint, a small margin away from its bounds."""
    lower, upper = constraint.lower_bound, constraint.upper_bound
    width = upper - lower
    smallest = lower + torch.minimum(_MARGIN * lower.abs(), width / 4)
    largest = upper - torch.minimum(_MARGIN * upper.abs(), width / 4)
    # An infinite bound gives inf - inf above.
    smallest = torch.where(torch.isfinite(lower), smallest, lower)
    largest = torch.where(torch.isfinite(upper), largest, upper)
    tiny = torch.finfo(values.dtype).tiny
    return values.clamp_min(tiny).maximum(smallest.to(values)).minimum(largest.to(values))
