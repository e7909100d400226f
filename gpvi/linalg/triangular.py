"""Helpers on lower-triangular factors and on identity-plus-low-rank matrices, with batch dims.

Products and solves with vectors take any number of leading sample dims: samples become columns of
one right-hand side, because broadcasting would copy the matrix once per sample.

The two forms that every finite-feature approximation needs are ``W = I + F diag(w) F'`` (data
sites) and ``W = I + L' Lam L`` (basis sites); their eigenvalues are at least one where the site
precisions are non-negative, so no jitter is needed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.linalg import _rows

__all__ = [
    "identity_plus_congruence",
    "identity_plus_low_rank",
    "log_det_from_cholesky",
    "lower_sum_of_squares",
    "mat_vec",
    "multiply_lower",
    "solve_lower",
    "solve_lower_transposed",
    "solve_lower_transposed_vec",
    "solve_lower_vec",
    "sum_of_squares",
]


def solve_lower(factor: Tensor, rhs: Tensor) -> Tensor:
    """``L^-1 B`` by forward substitution.

    Parameters
    ----------
    factor : Tensor, shape [*b, n, n]
        Lower triangular ``L``.
    rhs : Tensor, shape [*b, n, k]
        Right-hand sides ``B``; batch dims broadcast.

    Returns
    -------
    Tensor, shape [*b, n, k]
        The solution.

    Examples
    --------
    >>> import torch
    >>> L = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    >>> solve_lower(L, torch.tensor([[2.0], [3.0]])).flatten()
    tensor([1., 2.])
    """
    return torch.linalg.solve_triangular(factor, rhs, upper=False)


def solve_lower_transposed(factor: Tensor, rhs: Tensor) -> Tensor:
    """``L^-T B`` by back substitution.

    Parameters
    ----------
    factor : Tensor, shape [*b, n, n]
        Lower triangular ``L``.
    rhs : Tensor, shape [*b, n, k]
        Right-hand sides ``B``; batch dims broadcast.

    Returns
    -------
    Tensor, shape [*b, n, k]
        The solution.

    Examples
    --------
    >>> import torch
    >>> L = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    >>> solve_lower_transposed(L, torch.tensor([[3.0], [1.0]])).flatten()
    tensor([1., 1.])
    """
    return torch.linalg.solve_triangular(factor.mT, rhs, upper=True)


def solve_lower_vec(factor: Tensor, vectors: Tensor) -> Tensor:
    """``L^-1 v`` for vectors with leading sample dims.

    Parameters
    ----------
    factor : Tensor, shape [*b, n, n]
        Lower triangular ``L``.
    vectors : Tensor, shape [*S, *b, n]
        Right-hand sides; batch dims broadcast.

    Returns
    -------
    Tensor, shape [*S, *b, n]
        The solutions.

    Examples
    --------
    >>> import torch
    >>> L = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    >>> solve_lower_vec(L, torch.tensor([2.0, 3.0]))
    tensor([1., 2.])
    """
    return _on_columns(solve_lower, factor, vectors)


def solve_lower_transposed_vec(factor: Tensor, vectors: Tensor) -> Tensor:
    """``L^-T v`` for vectors with leading sample dims.

    Parameters
    ----------
    factor : Tensor, shape [*b, n, n]
        Lower triangular ``L``.
    vectors : Tensor, shape [*S, *b, n]
        Right-hand sides; batch dims broadcast.

    Returns
    -------
    Tensor, shape [*S, *b, n]
        The solutions.

    Examples
    --------
    >>> import torch
    >>> L = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    >>> solve_lower_transposed_vec(L, torch.tensor([3.0, 1.0]))
    tensor([1., 1.])
    """
    return _on_columns(solve_lower_transposed, factor, vectors)


def mat_vec(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Matrix-vector product for vectors with leading sample dims.

    Parameters
    ----------
    matrix : Tensor, shape [*b, n, k]
        The matrix.
    vectors : Tensor, shape [*S, *b, k]
        The vectors; batch dims broadcast.

    Returns
    -------
    Tensor, shape [*S, *b, n]
        The products.

    Examples
    --------
    >>> import torch
    >>> mat_vec(torch.eye(2), torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    return _on_columns(torch.matmul, matrix, vectors)


def _on_columns(
    operation: Callable[[Tensor, Tensor], Tensor], matrix: Tensor, vectors: Tensor
) -> Tensor:
    samples = max(vectors.dim() + 1 - matrix.dim(), 0)
    if not samples:
        return operation(matrix, vectors.unsqueeze(-1)).squeeze(-1)
    columns = vectors.flatten(0, samples - 1).movedim(0, -1)
    return operation(matrix, columns).movedim(-1, 0).unflatten(0, vectors.shape[:samples])


def log_det_from_cholesky(factor: Tensor) -> Tensor:
    """``log |L L'| = 2 sum_i log L_ii``.

    Parameters
    ----------
    factor : Tensor, shape [*b, n, n]
        Lower Cholesky factor.

    Returns
    -------
    Tensor, shape [*b]
        Log-determinants.

    Examples
    --------
    >>> import torch
    >>> round(log_det_from_cholesky(2.0 * torch.eye(3)).item(), 4)
    4.1589
    """
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def sum_of_squares(matrix: Tensor) -> Tensor:
    """Column-wise sums of squares: a variance that cannot be negative.

    Parameters
    ----------
    matrix : Tensor, shape [*b, n, k]
        For instance ``L^-1 K``.

    Returns
    -------
    Tensor, shape [*b, k]
        ``diag(matrix' matrix)``.

    Examples
    --------
    >>> import torch
    >>> sum_of_squares(torch.tensor([[3.0], [4.0]]))
    tensor([25.])
    """
    return matrix.square().sum(-2)


def lower_sum_of_squares(factor: Tensor, matrix: Tensor) -> Tensor:
    """Column-wise sums of squares of ``L B``, for instance variances from an inverse factor.

    Parameters
    ----------
    factor : Tensor, shape [*b, n, n]
        Lower triangular ``L``.
    matrix : Tensor, shape [*b, n, k]
        ``B``; batch dims broadcast.

    Returns
    -------
    Tensor, shape [*b, k]
        Not negative.

    Examples
    --------
    >>> import torch
    >>> lower_sum_of_squares(2.0 * torch.eye(2), torch.tensor([[3.0], [4.0]]))
    tensor([100.])
    """
    if _in_place(matrix, factor):
        return _rows.lower_squares(factor, matrix.mT)
    return sum_of_squares(factor @ matrix)


def multiply_lower(factor: Tensor, matrix: Tensor, *, transposed: bool = False) -> Tensor:
    """``L B``, or ``L' B``.

    Parameters
    ----------
    factor : Tensor, shape [*b, n, n]
        Lower triangular ``L``.
    matrix : Tensor, shape [*b, n, k]
        ``B``; batch dims broadcast.
    transposed : bool
        Whether to use ``L'``.

    Returns
    -------
    Tensor, shape [*b, n, k]
        The product.

    Examples
    --------
    >>> import torch
    >>> multiply_lower(torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.ones(2, 1)).flatten()
    tensor([1., 3.])
    """
    if _in_place(matrix, factor):
        return _rows.multiply_lower(factor, matrix.mT, transposed).mT
    return (factor.mT if transposed else factor) @ matrix


def _in_place(columns: Tensor, other: Tensor) -> bool:
    """Whether BLAS in place may serve: one float64 problem on the CPU, off the graph, in rows."""
    tensors = (columns, other)
    return (
        not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and all(t.dtype == torch.float64 and t.device.type == "cpu" for t in tensors)
        and columns.dim() == 2
        and other.dim() <= 2
        and columns.numel() > 0
        and columns.mT.is_contiguous()
    )


def identity_plus_low_rank(features: Tensor, weights: Tensor) -> Tensor:
    """``I + F diag(w) F'``.

    Parameters
    ----------
    features : Tensor, shape [*b, M, N]
        ``F``.
    weights : Tensor, shape [*b, N]
        ``w``, of any sign.

    Returns
    -------
    Tensor, shape [*b, M, M]
        The matrix.

    Examples
    --------
    >>> import torch
    >>> identity_plus_low_rank(torch.ones(1, 2), torch.tensor([1.0, 2.0]))
    tensor([[4.]])
    """
    if weights.dim() == 1 and _in_place(features, weights) and bool((weights >= 0).all()):
        return _rows.identity_plus_gram(features.mT, weights)
    product = (features * weights.unsqueeze(-2)) @ features.mT
    return product + torch.eye(features.shape[-2], dtype=features.dtype, device=features.device)


def identity_plus_congruence(factor: Tensor, precision: Tensor, *, diagonal: bool) -> Tensor:
    """``I + L' Lam L`` with ``Lam`` a full matrix or a diagonal.

    Parameters
    ----------
    factor : Tensor, shape [*b, M, M]
        ``L``.
    precision : Tensor, shape [*b, M] if ``diagonal`` else [*b, M, M]
        ``Lam``.
    diagonal : bool
        Whether ``precision`` holds diagonals.

    Returns
    -------
    Tensor, shape [*b, M, M]
        The matrix.

    Examples
    --------
    >>> import torch
    >>> identity_plus_congruence(2.0 * torch.eye(1), torch.tensor([3.0]), diagonal=True)
    tensor([[13.]])
    """
    scaled = precision.unsqueeze(-1) * factor if diagonal else precision @ factor
    product = factor.mT @ scaled
    return product + torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
