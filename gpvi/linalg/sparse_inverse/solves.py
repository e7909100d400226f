r"""Triangular solves with sparse inverse Cholesky factors.

With :math:`(UU^\top)^{-1}` the covariance of a Gaussian vector, :math:`U^{-\top} \epsilon` draws it from
white noise, from the first point of the order to the last, and :math:`U^{-\top} U^{-1} b` is the
covariance times a vector. A solve costs one pass over the entries of U. With
:math:`a = U^{-\top} \bar x` for the incoming gradient of :math:`x = U^{-1} b`, the gradients are a by b
and :math:`-a x^\top` on the pattern by U.
"""

from torch import Tensor

from gpvi.linalg.sparse_inverse._apply import apply_factor
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["factor_solve", "factor_transpose_solve"]


def factor_solve(pattern: NeighborPattern, columns: Tensor, vector: Tensor) -> Tensor:
    """``U^-1 b``, from the last point of the order to the first.

    Parameters
    ----------
    pattern : NeighborPattern
        Where U has entries.
    columns : Tensor, shape [*b, M, m + 1]
        U, with a diagonal without zeros.
    vector : Tensor, shape [*b, M]
        b; batch dims broadcast, and a factor that many vectors share is not copied.

    Returns
    -------
    Tensor, shape [*b, M]
        Differentiable any number of times.

    Raises
    ------
    InputError
        If shapes do not fit the pattern, or devices differ.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0]], dtype=torch.int32))
    >>> columns = torch.tensor([[0.0, 2.0], [3.0, 4.0]])  # [[2, 3], [0, 4]]
    >>> factor_solve(pattern, columns, torch.tensor([5.0, 4.0]))
    tensor([1., 1.])
    """
    return apply_factor("solve", pattern, columns, vector)


def factor_transpose_solve(pattern: NeighborPattern, columns: Tensor, vector: Tensor) -> Tensor:
    """``U^-T b``, from the first point of the order to the last.

    Parameters
    ----------
    pattern : NeighborPattern
        Where U has entries.
    columns : Tensor, shape [*b, M, m + 1]
        U, with a diagonal without zeros.
    vector : Tensor, shape [*b, M]
        b; batch dims broadcast, and a factor that many vectors share is not copied.

    Returns
    -------
    Tensor, shape [*b, M]
        Differentiable any number of times.

    Raises
    ------
    InputError
        If shapes do not fit the pattern, or devices differ.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0]], dtype=torch.int32))
    >>> columns = torch.tensor([[0.0, 2.0], [3.0, 4.0]])  # [[2, 3], [0, 4]]
    >>> factor_transpose_solve(pattern, columns, torch.tensor([2.0, 7.0]))
    tensor([1., 1.])
    """
    return apply_factor("transpose_solve", pattern, columns, vector)
