"""Products over the rows of a tall matrix by BLAS in place, chunk by chunk in the cache.

One float64 problem on the CPU, off the graph; rows ``a_n`` are contiguous. A symmetric rank-k update and
an in-place product with a triangular matrix cost half of what torch's products do.
"""

import torch
from torch import Tensor

from gpvi.linalg import _blas
from gpvi.linalg.threads import blas_threads_for

__all__ = ["identity_plus_gram", "lower_squares", "multiply_lower"]

# Bytes of one chunk: it is touched several times and should stay in the second-level cache.
_CHUNK_BYTES = 1 << 18


def identity_plus_gram(rows: Tensor, weights: Tensor) -> Tensor:
    """``I + sum_n w_n a_n a_n'`` for weights that are not negative, [M, M]."""
    M = rows.shape[1]
    lower, roots = rows.new_zeros(M, M), weights.sqrt().unsqueeze(-1)
    with blas_threads_for(0.5 * rows.numel() * M):
        for chunk, root in zip(_chunks(rows), _chunks(roots, M), strict=True):
            _blas.add_gram(chunk * root, lower)
    full = lower.tril(-1)
    full = full + full.mT
    full.diagonal().copy_(1.0 + lower.diagonal())
    return full


def lower_squares(factor: Tensor, rows: Tensor) -> Tensor:
    """``|L a_n|^2`` for every row, [N]."""
    M, factor = rows.shape[1], factor.contiguous()
    out = rows.new_empty(len(rows))
    with blas_threads_for(0.5 * rows.numel() * M):
        for chunk, part in zip(_chunks(rows), _chunks(out, M), strict=True):
            product = chunk.clone()
            _blas.scale_rows(factor, product)
            torch.linalg.vecdot(product, product, out=part)
    return out


def multiply_lower(factor: Tensor, rows: Tensor, transposed: bool) -> Tensor:
    """``L a_n`` (or ``L' a_n``) for every row, [N, M]."""
    out, factor = rows.clone(), factor.contiguous()
    multiply = _blas.scale_rows_transposed if transposed else _blas.scale_rows
    with blas_threads_for(0.5 * rows.numel() * rows.shape[1]):
        multiply(factor, out)
    return out


def _chunks(values: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
    width = values.shape[1] if width is None else width
    return values.split(max(64, _CHUNK_BYTES // (8 * width)))
