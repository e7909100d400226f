r"""Products with sparse inverse Cholesky factors.

A factor U on a pattern is upper triangular; its products with vectors cost one pass over its entries. The
adjoint of each product is the other one, and

.. math:: \partial (a^\top U v) / \partial U = a v^\top \quad \text{on the pattern},

so that all derivatives, also those of higher order, are products of the same kind.
"""

from torch import Tensor

from gpvi.linalg.sparse_inverse._apply import apply_factor
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["factor_product", "factor_transpose_product"]


def factor_product(pattern: NeighborPattern, columns: Tensor, vector: Tensor) -> Tensor:
    """``U v``.

    Parameters
    ----------
    pattern : NeighborPattern
        Where U has entries.
    columns : Tensor, shape [*b, M, m + 1]
        U.
    vector : Tensor, shape [*b, M]
        v; batch dims broadcast, and a factor that many vectors share is not copied.

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
    >>> factor_product(pattern, columns, torch.ones(2))
    tensor([5., 4.])
    """
    return apply_factor("product", pattern, columns, vector)


def factor_transpose_product(pattern: NeighborPattern, columns: Tensor, vector: Tensor) -> Tensor:
    """``U' v``.

    Parameters
    ----------
    pattern : NeighborPattern
        Where U has entries.
    columns : Tensor, shape [*b, M, m + 1]
        U.
    vector : Tensor, shape [*b, M]
        v; batch dims broadcast, and a factor that many vectors share is not copied.

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
    >>> factor_transpose_product(pattern, columns, torch.ones(2))
    tensor([2., 7.])
    """
    return apply_factor("transpose_product", pattern, columns, vector)
