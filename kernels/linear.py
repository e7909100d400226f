"""The linear kernel, evaluated densely.

GPyTorch's own returns a low-rank operator. In a sum such as ``rbf + linear`` linear_operator then
updates root decompositions: two Cholesky factorisations of the other, often numerically singular
term, with jitter and a warning, before any covariance is asked for. Inference code here factorises
the whole matrix once, so a plain matrix serves it better. See Rasmussen and Williams, *Gaussian
Processes for Machine Learning*, 2006, section 4.2.2.
"""

from typing import Any

import gpytorch
from torch import Tensor

__all__ = ["LinearKernel"]


class LinearKernel(gpytorch.kernels.LinearKernel):
    r"""Covariance of linear functions through the origin.

    .. math:: k(x, x') = \sum_d v_d x_d x'_d

    It has the parameters, arguments and state dict of `gpytorch.kernels.LinearKernel` and differs
    in that it returns plain tensors. Add a constant kernel for functions with an intercept.

    References
    ----------
    Rasmussen and Williams, *Gaussian Processes for Machine Learning*, 2006, section 4.2.2.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import LinearKernel
    >>> kernel = LinearKernel()
    >>> kernel.variance = 2.0
    >>> kernel(torch.tensor([[1.0, 0.0], [1.0, 3.0]])).to_dense().detach()
    tensor([[ 2.,  2.],
            [ 2., 20.]])
    """

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
            Weighted inner products.
        """
        x1 = x1 * self.variance
        if last_dim_is_batch:
            x1, x2 = x1.mT.unsqueeze(-1), x2.mT.unsqueeze(-1)
        return (x1 * x2).sum(dim=-1) if diag else x1 @ x2.mT

    def prediction_strategy(
        self, train_inputs: Any, train_prior_dist: Any, train_labels: Any, likelihood: Any
    ) -> Any:
        """GPyTorch's general strategy; its special one for linear kernels needs their operator."""
        return gpytorch.kernels.Kernel.prediction_strategy(
            self, train_inputs, train_prior_dist, train_labels, likelihood
        )
