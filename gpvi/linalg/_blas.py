"""Level-3 BLAS on rows of torch tensors, in place, through SciPy.

Torch has no symmetric rank-k update (a full product costs twice as much) and no in-place
triangular solve. SciPy offers both for Fortran-ordered arrays, and a row-major matrix of rows
``a_n`` *is* the Fortran-ordered matrix with columns ``a_n``; so nothing is copied. All tensors here
are 2-D, float64, contiguous and on the CPU. Every function writes into its last argument.
"""

import numpy as np
import torch
from scipy.linalg import blas
from torch import Tensor

__all__ = [
    "add_gram",
    "add_product",
    "add_weighted_sum",
    "multiply_rows",
    "scale_rows",
    "scale_rows_transposed",
    "solve_rows",
    "solve_rows_transposed",
]


def solve_rows(factor: Tensor, rows: Tensor) -> None:
    """``a_n <- L^-1 a_n`` for every row of ``rows [n, M]``."""
    blas.dtrsm(1.0, _columns(factor), _columns(rows), lower=0, trans_a=1, overwrite_b=1)


def solve_rows_transposed(factor: Tensor, rows: Tensor) -> None:
    """``a_n <- L^-T a_n`` for every row of ``rows [n, M]``."""
    blas.dtrsm(1.0, _columns(factor), _columns(rows), lower=0, trans_a=0, overwrite_b=1)


def scale_rows(factor: Tensor, rows: Tensor) -> None:
    """``a_n <- L a_n`` for every row of ``rows [n, M]``."""
    blas.dtrmm(1.0, _columns(factor), _columns(rows), lower=0, trans_a=1, overwrite_b=1)


def scale_rows_transposed(factor: Tensor, rows: Tensor) -> None:
    """``a_n <- L' a_n`` for every row of ``rows [n, M]``."""
    blas.dtrmm(1.0, _columns(factor), _columns(rows), lower=0, trans_a=0, overwrite_b=1)


def add_gram(rows: Tensor, out: Tensor) -> None:
    """``out += sum_n a_n a_n'``, lower triangle only."""
    blas.dsyrk(1.0, _columns(rows), beta=1.0, c=_columns(out), lower=0, overwrite_c=1)


def add_weighted_sum(rows: Tensor, weights: Tensor, out: Tensor) -> None:
    """``out += sum_n weights_n a_n``."""
    blas.dgemv(1.0, _columns(rows), weights.numpy(), beta=1.0, y=out.numpy(), overwrite_y=1)


def multiply_rows(rows: Tensor, matrix: Tensor, out: Tensor) -> None:
    """``out <- rows @ matrix``."""
    blas.dgemm(1.0, _columns(matrix), _columns(rows), beta=0.0, c=_columns(out), overwrite_c=1)


def add_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """``out += left' @ right``, both with the rows n in front."""
    blas.dgemm(
        1.0, _columns(right), _columns(left), beta=1.0, c=_columns(out), trans_b=1, overwrite_c=1
    )


def _columns(matrix: Tensor) -> np.ndarray:
    """The Fortran-ordered view of a row-major matrix; SciPy would silently copy anything else, and
    an in-place result would be lost."""
    if matrix.dtype != torch.float64 or not matrix.is_contiguous() or matrix.dim() != 2:
        raise ValueError(
            f"expected a contiguous float64 matrix, got {matrix.dtype} {tuple(matrix.shape)} "
            f"with strides {matrix.stride()}"
        )
    return matrix.numpy().T
