"""Matern kernels of any half-integer smoothness.

GPyTorch stops at 5/2. Every half-integer order has a closed form, and on the line a process with
that many states; see Rasmussen and Williams, *Gaussian Processes for Machine Learning*, 2006,
section 4.2.1.
"""

import math
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import UnsupportedError
from gpvi.kernels._batched import BatchedKernel, check_order
from gpvi.kernels._block_algebra import matern_block
from gpvi.kernels.state_space import StateSpaceForm

__all__ = ["HalfIntegerMaternKernel", "matern_correlation"]


def matern_correlation(order: int, x: Tensor) -> Tensor:
    r"""Correlation of a Matern process of smoothness ``order + 1/2``.

    .. math:: e^{-x} \frac{p!}{(2p)!} \sum_{i=0}^p \frac{(p + i)!}{i! \, (p - i)!} (2x)^{p - i}

    Parameters
    ----------
    order : int
        ``p``.
    x : Tensor
        Distances times ``sqrt(2p + 1) / lengthscale``.

    Returns
    -------
    Tensor
        Of the shape of `x`, one at zero.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels.matern import matern_correlation
    >>> matern_correlation(0, torch.tensor([0.0, 1.0]))
    tensor([1.0000, 0.3679])
    """
    leading = math.factorial(order) / math.factorial(2 * order)
    value = torch.zeros_like(x)
    for i in range(order + 1):
        weight = math.factorial(order + i) / math.factorial(i) / math.factorial(order - i)
        value = value + leading * weight * (2.0 * x) ** (order - i)
    return value * torch.exp(-x)


class HalfIntegerMaternKernel(BatchedKernel):
    r"""Matern kernel of smoothness :math:`\nu = p + 1/2`, for any order :math:`p`.

    .. math:: k(x, x') = e^{-r} \frac{p!}{(2p)!} \sum_{i=0}^p \frac{(p + i)!}{i! \, (p - i)!}
              (2r)^{p - i}, \qquad r = \sqrt{2p + 1} \, \Big\|\frac{x - x'}{\ell}\Big\|

    Orders 0, 1, 2 are GPyTorch's `MaternKernel` with `nu` 0.5, 1.5, 2.5; order 3 is Matern-7/2.

    Parameters
    ----------
    order : int
        ``p``, 0 to 8: how often the functions are differentiable.
    ard_num_dims : int, optional
        Number of columns, for one lengthscale each. A state-space form needs one column.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    active_dims : tuple of int, optional
        The columns that the kernel sees.
    lengthscale_prior : gpytorch.priors.Prior, optional
        Prior over the lengthscale.
    lengthscale_constraint : gpytorch.constraints.Interval, optional
        Range of the lengthscale; positive unless given.

    Attributes
    ----------
    lengthscale : Tensor, shape (*batch_shape, 1, D or 1)
        Lengthscale.

    Raises
    ------
    InputError
        If the order is out of range.

    References
    ----------
    Rasmussen and Williams, *Gaussian Processes for Machine Learning*, 2006, section 4.2.1.

    Hartikainen, J. & Särkkä, S. (2010). Kalman filtering and smoothing solutions to temporal
    Gaussian process regression models. MLSP.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import HalfIntegerMaternKernel
    >>> kernel = HalfIntegerMaternKernel(order=3)
    >>> kernel.lengthscale = 1.0
    >>> kernel(torch.tensor([[0.0], [1.0]])).to_dense().detach()
    tensor([[1.0000, 0.5449],
            [0.5449, 1.0000]])
    """

    has_lengthscale = True

    def __init__(
        self,
        order: int,
        ard_num_dims: int | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
    ) -> None:
        super().__init__(
            ard_num_dims=ard_num_dims,
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint,
        )
        self.order = check_order(order)

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Evaluate the kernel.

        Parameters
        ----------
        x1 : Tensor, shape (*batch, N, D)
            Left inputs.
        x2 : Tensor, shape (*batch, M, D)
            Right inputs.
        diag : bool, default False
            Pair row n of `x1` with row n of `x2` only.
        last_dim_is_batch : bool, default False
            Give one matrix for each coordinate.
        **params
            What GPyTorch hands to every kernel of a composition; this one has no use for it.

        Returns
        -------
        Tensor, shape (*batch, N, M), or (*batch, N) with diag=True
            Correlations.
        """
        # Centring keeps the digits of stamps that lie far from zero.
        center = x1.mean(dim=-2, keepdim=True)
        x1, x2 = (x1 - center) / self.lengthscale, (x2 - center) / self.lengthscale
        if x1.shape[-1] == 1 and not last_dim_is_batch:
            # Plain differences: squaring and taking the root would lose half their digits.
            t1, t2 = x1.squeeze(-1), x2.squeeze(-1)
            distance = (t1 - t2 if diag else t1.unsqueeze(-1) - t2.unsqueeze(-2)).abs()
        else:
            distance = self.covar_dist(x1, x2, diag=diag, last_dim_is_batch=last_dim_is_batch)
        return matern_correlation(self.order, math.sqrt(2 * self.order + 1) * distance)

    def state_space(self) -> StateSpaceForm:
        """One cascade of ``p + 1`` states.

        Returns
        -------
        StateSpaceForm
            On the graph of the lengthscale.

        Raises
        ------
        UnsupportedError
            If there is a lengthscale for each of several columns.
        """
        if self.lengthscale.shape[-1] > 1:
            raise UnsupportedError(
                f"HalfIntegerMaternKernel with ard_num_dims={self.lengthscale.shape[-1]} has no "
                "state-space form: state space needs one column."
            )
        lengthscale = self.lengthscale[..., 0, 0]
        block = matern_block(self.order, lengthscale, torch.ones_like(lengthscale))
        column = 0 if self.active_dims is None else int(self.active_dims[0])
        return StateSpaceForm((block,), (0,), (f"matern{2 * self.order + 1}2",), column)
