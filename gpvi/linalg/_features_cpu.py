"""Compiled engine of whitened features: float64 on the CPU, chunk by chunk of rows.

This module imports Numba; import it inside functions only.
"""

import torch
from torch import Tensor

from gpvi.linalg import _blas
from gpvi.linalg._collapsed_cpu import KernelLoops, row_splitter
from gpvi.linalg._collapsed_stationary import chunks
from gpvi.linalg.threads import blas_threads_for

__all__ = ["CompiledEngine"]


class CompiledEngine:
    """Numba for kernel entries, SciPy's BLAS in place for the rest."""

    def covariance(self, name: str, v: Tensor, outputscale: Tensor) -> Tensor:
        """``K`` among scaled inputs."""
        out = v.new_empty(len(v), len(v))
        with row_splitter(out.numel()) as split:
            split(len(v), KernelLoops(name, v, v, outputscale).cross(0, len(v), out))
        return out

    def multiply_slopes(self, name: str, v: Tensor, outputscale: Tensor, weights: Tensor) -> Tensor:
        """Weights times ``s h`` among scaled inputs."""
        out = weights.clone(memory_format=torch.contiguous_format)
        with row_splitter(out.numel()) as split:
            split(len(v), KernelLoops(name, v, v, outputscale).slopes(0, len(v), out))
        return out

    def features(
        self, name: str, u: Tensor, v: Tensor, outputscale: Tensor, factor: Tensor
    ) -> Tensor:
        """``K L^-T``, given scaled inputs."""
        N, M = len(u), len(v)
        rows, factor = factor.new_empty(N, M), factor.contiguous()
        kernel = KernelLoops(name, u, v, outputscale)
        with blas_threads_for(0.5 * N * M * M), row_splitter(N * M) as split:
            for i, j in chunks(N, M, 8):
                split(j - i, kernel.cross(i, j, rows[i:j]))
                _blas.solve_rows(factor, rows[i:j])
        return rows

    def adjoint(
        self,
        name: str,
        u: Tensor,
        v: Tensor,
        outputscale: Tensor,
        factor: Tensor,
        rows: Tensor,
        adjoint: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """``Kbar' A`` and the moments of ``Kbar s h``, given the adjoint of the features."""
        (N, M), factor = rows.shape, factor.contiguous()
        inner = factor.new_zeros(M, M)
        moments = factor.new_zeros(2 * u.shape[1] + 1, M)
        kernel = KernelLoops(name, u, v, outputscale)
        with blas_threads_for(N * M * M), row_splitter(N * M) as split:
            for i, j in chunks(N, M, 8):
                weights = adjoint[i:j].clone(memory_format=torch.contiguous_format)
                _blas.solve_rows_transposed(factor, weights)
                _blas.add_product(weights, rows[i:j], inner)
                split(j - i, kernel.slopes(i, j, weights))
                _blas.add_product(kernel.moment_features(i, j), weights, moments)
        return inner, moments.mT
