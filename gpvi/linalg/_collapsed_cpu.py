"""Compiled engine of the collapsed bound: float64 on the CPU.

Per chunk of rows, one compiled loop evaluates distances and kernel (in the second pass distances
and slopes: a second exponential per entry costs less than keeping another N x M matrix), and
level-3 BLAS in place does the rest. This module imports Numba; import it inside functions only.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gpvi.linalg import _blas
from gpvi.linalg._collapsed_stationary import (
    Features,
    Needs,
    Problem,
    chunks,
    residual_weights,
)
from gpvi.linalg._stationary_cpu import multiply_slopes, squared_distances, values
from gpvi.linalg._vexp import FLAGS
from gpvi.linalg.stationary import STATIONARY_KERNELS
from gpvi.linalg.threads import blas_threads_for

__all__ = ["CompiledEngine", "KernelLoops", "row_splitter"]

# For loops without the vectorised exponential, which these flags would break: sums in any order.
_SUM_FLAGS = FLAGS | {"reassoc"}

# Kernel entries from which threads pay: about a millisecond of compiled loops.
_MIN_SHARED_ENTRIES = 1 << 19

# A compiled loop over the rows i, ..., j - 1 of a chunk.
RowLoop = Callable[[int, int], None]


class CompiledEngine:
    """Numba and SciPy's BLAS on chunks of rows; compiled loops are shared among torch's threads."""

    def features(self, problem: Problem, factor: Tensor, needs: Needs) -> Features:
        """First pass."""
        N, M = problem.scaled_x.shape[0], problem.scaled_z.shape[0]
        rows, bounds = factor.new_empty(N, M), chunks(N, M, 8)
        buffer = factor.new_empty(bounds[0][1], M)
        residual, omega = factor.new_empty(N), factor.new_empty(N)
        gram, projected = factor.new_zeros(M, M), factor.new_zeros(M)
        two_grams = problem.tighter and needs.any
        omega_gram = factor.new_zeros(M, M) if two_grams else None
        kernel, w = _kernel(problem), problem.weights.expand(N).contiguous()
        copies = problem.copies.expand(N)
        one_noise = problem.weights.dim() == 0
        with blas_threads_for(N * M * M), row_splitter(N * M) as split:
            for i, j in bounds:
                a, copy = rows[i:j], buffer[: j - i]
                split(j - i, kernel.cross(i, j, a))
                _blas.solve_rows(factor, a)
                split(j - i, _residuals(float(problem.outputscale), a, residual[i:j]))
                omega[i:j] = residual_weights(residual[i:j], w[i:j], problem.tighter, copies[i:j])
                _blas.add_weighted_sum(a, w[i:j] * problem.targets[i:j], projected)
                if one_noise:
                    _blas.add_gram(a, gram)
                else:
                    split(j - i, _scale(w[i:j].sqrt(), a, copy))
                    _blas.add_gram(copy, gram)
                if omega_gram is not None:
                    split(j - i, _scale(omega[i:j].sqrt(), a, copy))
                    _blas.add_gram(copy, omega_gram)
        if one_noise:
            gram *= problem.weights
        full = None if omega_gram is None else _symmetric(omega_gram)
        return Features(rows, residual, omega, _symmetric(gram), full, projected)

    def adjoint(
        self,
        problem: Problem,
        factor: Tensor,
        features: Features,
        beta: Tensor,
        inverse: Tensor,
        alpha: Tensor,
        needs: Needs,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Second pass."""
        if not (needs.inputs or needs.row_noise):
            return None, None
        (N, M), D = features.rows.shape, problem.scaled_x.shape[1]
        bounds, kernel = chunks(N, M, 8), _kernel(problem)
        w = problem.weights.expand(N).contiguous()
        buffer = factor.new_empty(bounds[0][1], M)
        # Moments first: this way round the product with few columns is nearly twice as fast.
        moments = factor.new_zeros(2 * D + 1, M) if needs.inputs else None
        leverage = factor.new_empty(N) if needs.row_noise else None
        # Where omega = w, the adjoint of k_z(x_n) is w_n T' a_n + alpha_n L^-T beta with one M x M
        # matrix T' = L^-T (I - B^-1), and the triangular solve per row is saved.
        short = not problem.tighter and not needs.row_noise
        matrix = inverse
        if short:
            gap = torch.eye(M, dtype=factor.dtype) - inverse
            matrix = torch.linalg.solve_triangular(factor, gap, upper=False, left=False)
            beta = torch.linalg.solve_triangular(factor.mT, beta[:, None], upper=True)[:, 0]
            own, others = w.new_zeros(N), -w
        else:
            own, others = features.omega, w
        matrix = matrix.contiguous()  # torch's factorisations return column-major matrices
        with blas_threads_for(N * M * M), row_splitter(N * M) as split:
            for i, j in bounds:
                a, out = features.rows[i:j], buffer[: j - i]
                _blas.multiply_rows(a, matrix, out)
                if leverage is not None:
                    split(j - i, _row_dots(a, out, leverage[i:j]))
                if moments is None:
                    continue
                split(j - i, _combine(own[i:j], a, others[i:j], alpha[i:j], beta, out))
                if not short:
                    _blas.solve_rows_transposed(factor, out)
                split(j - i, kernel.slopes(i, j, out))
                _blas.add_product(kernel.moment_features(i, j), out, moments)
        return None if moments is None else moments.mT, leverage


class KernelLoops:
    """Compiled loops over a chunk of rows against all inducing inputs."""

    def __init__(self, name: str, scaled_x: Tensor, scaled_z: Tensor, outputscale: Tensor) -> None:
        self._code = STATIONARY_KERNELS.index(name)
        self._outputscale = float(outputscale)
        self._x = scaled_x.contiguous().numpy()
        self._z = scaled_z.mT.contiguous().numpy()

    def cross(self, start: int, stop: int, out: Tensor) -> RowLoop:
        """``out <- k(x_n, z_m)``."""
        x, k = self._x[start:stop], out.numpy()
        return lambda i, j: _cross(self._code, self._outputscale, x[i:j], self._z, k[i:j])

    def moment_features(self, start: int, stop: int) -> Tensor:
        """``[u, u^2, 1]`` of some rows. In NumPy: after a parallel torch operation the OpenMP threads
        spin for milliseconds and take the cores from the BLAS calls around this one."""
        x = self._x[start:stop]
        return torch.from_numpy(np.concatenate([x, x * x, np.ones((len(x), 1))], axis=1))

    def slopes(self, start: int, stop: int, out: Tensor) -> RowLoop:
        """``out <- out * dk/d(r^2)(x_n, z_m)``."""
        x, k = self._x[start:stop], out.numpy()
        return lambda i, j: _slopes(self._code, self._outputscale, x[i:j], self._z, k[i:j])


def _kernel(problem: Problem) -> KernelLoops:
    return KernelLoops(problem.name, problem.scaled_x, problem.scaled_z, problem.outputscale)


def _symmetric(lower: Tensor) -> Tensor:
    """The symmetric matrix whose lower triangle is given, with zeros above it."""
    full = lower + lower.mT
    full.diagonal().mul_(0.5)
    return full


@contextmanager
def row_splitter(num_entries: int) -> Iterator[Callable[[int, RowLoop], None]]:
    """A function that runs a row loop on torch's number of threads, if the problem is big enough.
    The threads live for one pass: a pool kept longer would not survive a fork."""
    workers = torch.get_num_threads() if num_entries >= _MIN_SHARED_ENTRIES else 1
    if workers == 1:
        yield lambda n, loop: loop(0, n)
        return
    with ThreadPoolExecutor(workers) as pool:

        def split(n: int, loop: RowLoop) -> None:
            cuts = [n * k // workers for k in range(workers + 1)]
            list(pool.map(loop, cuts[:-1], cuts[1:]))

        yield split


def _residuals(outputscale: float, rows: Tensor, out: Tensor) -> RowLoop:
    a, d = rows.numpy(), out.numpy()
    return lambda i, j: _residual_loop(outputscale, a[i:j], d[i:j])


def _scale(factors: Tensor, rows: Tensor, out: Tensor) -> RowLoop:
    c, a, b = factors.numpy(), rows.numpy(), out.numpy()
    return lambda i, j: _scale_loop(c[i:j], a[i:j], b[i:j])


def _row_dots(left: Tensor, right: Tensor, out: Tensor) -> RowLoop:
    a, b, c = left.numpy(), right.numpy(), out.numpy()
    return lambda i, j: _dot_loop(a[i:j], b[i:j], c[i:j])


def _combine(
    own: Tensor, rows: Tensor, others: Tensor, alpha: Tensor, beta: Tensor, out: Tensor
) -> RowLoop:
    """``out_n <- own_n a_n - others_n out_n + alpha_n beta``."""
    p, a, q, c = own.numpy(), rows.numpy(), others.numpy(), alpha.numpy()
    b, o = beta.contiguous().numpy(), out.numpy()
    return lambda i, j: _combine_loop(p[i:j], a[i:j], q[i:j], c[i:j], b, o[i:j])


@njit(cache=True, nogil=True, fastmath=FLAGS)
def _cross(
    code: int, scale: float, x: np.ndarray, z: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    for n in range(x.shape[0]):
        squared_distances(x[n], z, out[n])
        values(code, scale, out[n])


@njit(cache=True, nogil=True, fastmath=FLAGS)
def _slopes(
    code: int, scale: float, x: np.ndarray, z: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    r2 = np.empty(out.shape[1])
    for n in range(x.shape[0]):
        squared_distances(x[n], z, r2)
        multiply_slopes(code, scale, r2, out[n])


@njit(cache=True, nogil=True, fastmath=_SUM_FLAGS)
def _residual_loop(
    scale: float, rows: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    for n in range(rows.shape[0]):
        total = 0.0
        for m in range(rows.shape[1]):
            total += rows[n, m] * rows[n, m]
        out[n] = scale - total


@njit(cache=True, nogil=True, fastmath=_SUM_FLAGS)
def _dot_loop(
    left: np.ndarray, right: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    for n in range(left.shape[0]):
        total = 0.0
        for m in range(left.shape[1]):
            total += left[n, m] * right[n, m]
        out[n] = total


@njit(cache=True, nogil=True, fastmath=FLAGS)
def _scale_loop(
    factors: np.ndarray, rows: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    for n in range(rows.shape[0]):
        for m in range(rows.shape[1]):
            out[n, m] = factors[n] * rows[n, m]


@njit(cache=True, nogil=True, fastmath=FLAGS)
def _combine_loop(
    own: np.ndarray,
    rows: np.ndarray,
    others: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    out: np.ndarray,
) -> None:  # pragma: no cover - compiled
    for n in range(rows.shape[0]):
        for m in range(rows.shape[1]):
            out[n, m] = own[n] * rows[n, m] - others[n] * out[n, m] + alpha[n] * beta[m]
