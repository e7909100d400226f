"""Cholesky factors of small covariance matrices that may be singular, with finite gradients."""

import torch
from torch import Tensor

__all__ = ["semidefinite_cholesky"]


def semidefinite_cholesky(matrix: Tensor) -> Tensor:
    """Lower factor C of a positive semi-definite matrix, ``C C' = A``.

    A pivot that is zero up to rounding, relative to the diagonal entry of its own row (the rows of
    process noise differ by tens of orders of magnitude), gives a column of zeros, whose gradient is
    zero: no time has passed, or that state gets no noise.

    Parameters
    ----------
    matrix : Tensor, shape [*b, d, d]
        Only the lower triangle is read.

    Returns
    -------
    Tensor, shape [*b, d, d]
        Lower triangular.
    """
    size = matrix.shape[-1]
    tolerance = 4.0 * size * torch.finfo(matrix.dtype).eps
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    rest, columns = matrix, []
    for i in range(size):
        pivot = rest[..., 0, 0]
        is_positive = pivot > tolerance * diagonal[..., i]
        # The root of one stands in where there is no pivot, so that no gradient is infinite.
        root = torch.where(is_positive, pivot, torch.ones_like(pivot)).sqrt().unsqueeze(-1)
        column = torch.where(is_positive.unsqueeze(-1), rest[..., :, 0] / root, 0.0)
        columns.append(torch.nn.functional.pad(column, (i, 0)))
        below = column[..., 1:]
        rest = rest[..., 1:, 1:] - below.unsqueeze(-1) * below.unsqueeze(-2)
    return torch.stack(columns, -1)
