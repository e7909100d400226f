r"""Units for the parameters of a sparse Gaussian :math:`N(\nu, (VV^\top)^{-1})`.

Entries of mean and factor are of very different sizes, and so is the curvature of a bound in them. In these
units it is about one, so that one learning rate does for all: a mean in its standard deviation given all
others, :math:`(VV^\top)_{ii}^{-1/2}`; an entry :math:`V_{ij}` in one over the marginal deviation
:math:`s_i`; the logarithm of a diagonal in :math:`(1 + V_{jj}^2 s_j^2)^{-1/2}`.
"""

import torch
from torch import Tensor

__all__ = ["factor_units", "shift_units"]


def shift_units(index: Tensor, factor: Tensor) -> Tensor:
    """Deviations of every value given all others.

    Parameters
    ----------
    index : Tensor of int32, shape [M, k]
        Rows of the entries of every column; -1 for slots that are not used.
    factor : Tensor, shape [*b, M, k + 1]
        V.

    Returns
    -------
    Tensor, shape [*b, M]
        Positive.
    """
    square = factor[..., :-1].square().flatten(-2)
    rows = index.long().clamp_min(0).flatten()  # slots that are not used hold zero
    return factor[..., -1].square().index_add(-1, rows, square).rsqrt()


def factor_units(index: Tensor, factor: Tensor, deviation: Tensor) -> Tensor:
    """Units of the entries of V and, last, of the logarithms of its diagonal.

    Parameters
    ----------
    index : Tensor of int32, shape [M, k]
        Rows of the entries of every column; -1 for slots that are not used.
    factor : Tensor, shape [*b, M, k + 1]
        V.
    deviation : Tensor, shape [*b, M]
        Marginal deviations of the values.

    Returns
    -------
    Tensor, shape [*b, M, k + 1]
        Zero for slots that are not used.
    """
    rows = index.long().clamp_min(0)
    off = torch.where(index >= 0, deviation[..., rows].reciprocal(), 0.0)
    diagonal = (1.0 + (factor[..., -1] * deviation).square()).rsqrt()
    return torch.cat([off, diagonal.unsqueeze(-1)], -1)
