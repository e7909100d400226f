"""How far a kernel reaches in every input column."""

import math

import torch
from gpytorch.kernels import Kernel, PeriodicKernel
from torch import Tensor

from gpvi.kernels.hamming import HammingKernel
from gpvi.kernels.structure import input_dimensions

__all__ = ["column_lengthscales"]


def column_lengthscales(kernel: Kernel, num_features: int) -> Tensor:
    r"""Shortest lengthscale of a kernel in every input column, off the graph.

    Sums and products of kernels take the shortest of their parts, batches of kernels the geometric mean.
    A periodic kernel of period p and lengthscale :math:`\lambda` counts with
    :math:`p \sqrt{\lambda} / 2\pi`, how far it reaches within one period.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        Any.
    num_features : int
        Number D of input columns.

    Returns
    -------
    Tensor, shape [D]
        In double precision; infinite for a column that no part with a lengthscale sees.

    Examples
    --------
    >>> from gpytorch.kernels import RBFKernel
    >>> column_lengthscales(RBFKernel(active_dims=(1,)), 2)
    tensor([   inf, 0.6931], dtype=torch.float64)
    """
    shortest = torch.full((num_features,), math.inf, dtype=torch.float64, device="cpu")
    for part, dims in input_dimensions(kernel, num_features):
        if not part.has_lengthscale or isinstance(part, HammingKernel):
            continue
        scale = part.lengthscale.detach().double().cpu()
        if isinstance(part, PeriodicKernel):
            period = part.period_length.detach().double().cpu()
            scale = period * scale.sqrt() / (2.0 * math.pi)
        typical = scale.reshape(-1, scale.shape[-1]).log().mean(0).exp().expand(len(dims))
        shortest[dims] = torch.minimum(shortest[dims], typical)
    return shortest
