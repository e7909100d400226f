r"""Kernels of infinitely wide neural networks with one hidden layer.

A network of that kind with ReLU units and normal weights is a Gaussian process with the arc-cosine kernel
of order one (Cho & Saul 2009). It grows with its inputs as the network does, and is smooth except at the
origin; functions that look piecewise linear are likely under it.
"""

import math
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels._sphere import SphereKernel

__all__ = ["ArcCosineKernel"]

_ORDERS = (0, 1, 2)


class ArcCosineKernel(SphereKernel):
    r"""Arc-cosine kernel of order 0, 1 or 2.

    .. math:: k(x, x') = (r r')^p \, \kappa_p(\xi^\top \xi'), \qquad
              \kappa_1(\cos\theta) = \frac{\sin\theta + (\pi - \theta) \cos\theta}{\pi}

    with the direction :math:`\xi` and the length r of :math:`(x / \ell, b)`. Order 0 belongs to units
    that step, :math:`\kappa_0 = 1 - \theta / \pi`, order 1 to ReLU units and order 2 to their squares,
    :math:`\kappa_2 = (3 \sin\theta \cos\theta + (\pi - \theta)(1 + 2 \cos^2\theta)) / 3\pi`.

    Parameters
    ----------
    order : {0, 1, 2}, default 1
        ``p``.
    ard_num_dims : int, optional
        Number of columns, for one lengthscale each; one lengthscale for all if left out.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    active_dims : tuple of int, optional
        The columns that the kernel sees.
    lengthscale_prior, bias_prior : gpytorch.priors.Prior, optional
        Priors over the parameters.
    lengthscale_constraint, bias_constraint : gpytorch.constraints.Interval, optional
        Ranges of the parameters; positive unless given.

    Attributes
    ----------
    lengthscale : Tensor, shape (*batch_shape, 1, D or 1)
        Divides the inputs: prior standard deviations of weights are its reciprocals.
    bias : Tensor, shape batch_shape
        Prior standard deviation of the units' biases; starts at one.

    Raises
    ------
    InputError
        If the order is not one of the three.

    Notes
    -----
    A `ScaleKernel` around it does what a common factor of lengthscales and bias does as well.

    References
    ----------
    Cho, Y. & Saul, L. K. (2009). Kernel methods for deep learning. NeurIPS.

    Examples
    --------
    >>> import torch
    >>> kernel = ArcCosineKernel()
    >>> kernel.lengthscale = 1.0
    >>> kernel(torch.tensor([[0.0], [1.0]])).to_dense().detach()
    tensor([[1.0000, 1.0683],
            [1.0683, 2.0000]])
    >>> 2 * kernel.eigenvalues(4, dimension=2)[1].detach()  # twice in the plane: of sine and cosine
    tensor(0.5000, dtype=torch.float64)
    """

    def __init__(
        self,
        order: int = 1,
        ard_num_dims: int | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
        bias_prior: Prior | None = None,
        bias_constraint: Interval | None = None,
    ) -> None:
        super().__init__(
            ard_num_dims=ard_num_dims,
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint,
            bias_prior=bias_prior,
            bias_constraint=bias_constraint,
        )
        if isinstance(order, bool) or order not in _ORDERS:
            raise InputError(f"order is {order!r}; it must be one of 0, 1 and 2.")
        self.order = self.degree = int(order)

    def profile(self, angles: Tensor) -> Tensor:
        r"""Correlation :math:`\kappa_p` at angles between directions.

        Parameters
        ----------
        angles : Tensor, shape [Q]
            From zero to pi.

        Returns
        -------
        Tensor, shape [Q]
            One at zero; the profile has no parameters.
        """
        return _profile(angles, self.order)

    def correlation(self, left: Tensor, right: Tensor, diag: bool) -> Tensor:
        r"""Correlation :math:`\kappa_p` of directions.

        Parameters
        ----------
        left : Tensor, shape [*b, N, D]
            Unit vectors.
        right : Tensor, shape [*b, M, D]
            Unit vectors.
        diag : bool
            Pair row n with row n only.

        Returns
        -------
        Tensor, shape [*b, N, M], or [*b, N] with diag=True
            Correlations.
        """
        cosine = (left * right).sum(-1) if diag else left @ right.mT
        return _Profile.apply(cosine, self.order)


class _Profile(torch.autograd.Function):
    """The profile of a cosine: automatic derivatives of the arc cosine are infinite at one."""

    @staticmethod
    def forward(ctx: Any, cosine: Tensor, order: int) -> Tensor:
        ctx.save_for_backward(cosine)
        ctx.order = order
        return _profile(cosine.clamp(-1.0, 1.0).acos(), order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (cosine,) = ctx.saved_tensors
        if ctx.order == 0:
            square = (1.0 - cosine.square()).clamp_min(0.0)
            # Functions jump under order 0, so that the slope at angle zero is infinite; but no
            # parameter moves a direction away from itself.
            apart = square > 16.0 * torch.finfo(cosine.dtype).eps
            slope = torch.where(apart, square, torch.ones_like(square)).rsqrt() / math.pi
            return grad * torch.where(apart, slope, torch.zeros_like(slope)), None
        factor = 1.0 if ctx.order == 1 else 4.0 / 3.0
        return grad * factor * _Profile.apply(cosine, ctx.order - 1), None


def _profile(angle: Tensor, order: int) -> Tensor:
    left = math.pi - angle
    if order == 0:
        return left / math.pi
    if order == 1:
        return (angle.sin() + left * angle.cos()) / math.pi
    cosine = angle.cos()
    return (3.0 * angle.sin() * cosine + left * (1.0 + 2.0 * cosine.square())) / (3.0 * math.pi)
