"""Compiled engine of the exact log evidence of a stationary kernel: the CPU.

One N x N buffer in all, of which only the lower triangle is touched: compiled loops write the
covariance into it, LAPACK replaces that by its factor and the factor by the inverse, and a last loop
over the rows reduces the inverse to the slopes by the lengthscales. Evaluating distances and
exponentials a second time there costs a few percent of the factorisation and saves a matrix. This
module imports Numba; import it inside functions only.
"""

import numpy as np
import torch
from numba import njit
from scipy.linalg import blas, lapack

from gpvi.linalg._collapsed_cpu import row_splitter
from gpvi.linalg._evidence_stationary import Needs, Parts, Problem, refuse
from gpvi.linalg._stationary_cpu import multiply_slopes, squared_distances, values
from gpvi.linalg._vexp import FLAGS
from gpvi.linalg.stationary import STATIONARY_KERNELS
from gpvi.linalg.threads import blas_threads_for

__all__ = ["CompiledEngine"]

# For loops without the vectorised exponential, which these flags would break: sums in any order.
_SUM_FLAGS = FLAGS | {"reassoc"}


class CompiledEngine:
    """Numba and SciPy's LAPACK in place; compiled loops are shared among torch's threads."""

    def parts(self, problem: Problem, needs: Needs) -> Parts:
        """Factorise ``C`` and reduce it and its inverse to vectors."""
        N, D = problem.scaled_x.shape
        code, s = STATIONARY_KERNELS.index(problem.name), float(problem.outputscale)
        points, targets = problem.scaled_x.contiguous().numpy(), problem.targets.numpy()
        columns, noise = np.ascontiguousarray(points.T), problem.noise.contiguous().numpy()
        lower = np.empty((N, N))  # in huge pages, which torch does not ask for
        stretch = None
        with blas_threads_for(N**3), row_splitter(N * N // 2) as split:
            pairs = (N + 1) // 2
            split(pairs, lambda i, j: _fill(i, j, code, s, points, columns, noise, lower))
            quadratic, log_det, alpha = _factorise(problem, lower, targets)
            if needs.inverse or needs.lengthscale:
                _invert(lower)
            diagonal = lower.diagonal().copy() if needs.inverse else None
            if needs.lengthscale:
                rows = np.empty((N, D))
                split(
                    pairs, lambda i, j: _stretch(i, j, code, s, points, columns, alpha, lower, rows)
                )
                stretch = rows.sum(0)
        return Parts(
            torch.tensor(quadratic, dtype=torch.float64),
            torch.tensor(log_det, dtype=torch.float64),
            torch.from_numpy(alpha),
            None if diagonal is None else torch.from_numpy(diagonal),
            None if stretch is None else torch.from_numpy(stretch),
        )


# To SciPy, which wants Fortran order, the transpose of a row-major lower triangle is an upper one
# that needs no copy.


def _factorise(
    problem: Problem, lower: np.ndarray, targets: np.ndarray
) -> tuple[float, float, np.ndarray]:
    """``C <- L`` in the lower triangle; ``y' C^-1 y``, ``log|C|`` and ``C^-1 y``."""
    upper, info = lapack.dpotrf(lower.T, lower=0, clean=0, overwrite_a=1)
    if info > 0:
        refuse(problem, info - 1)
    half = blas.dtrsv(upper, targets, lower=0, trans=1)
    alpha = blas.dtrsv(upper, half, lower=0, trans=0)
    return float(half @ half), 2.0 * float(np.log(lower.diagonal()).sum()), alpha


def _invert(lower: np.ndarray) -> None:
    """``L <- C^-1``, lower triangle."""
    lapack.dpotri(lower.T, lower=0, overwrite_c=1)


# Row i has i + 1 entries: a loop over the pairs of rows (p, N - 1 - p) can be cut anywhere.


@njit(cache=True, nogil=True, fastmath=FLAGS)
def _fill(
    start: int,
    stop: int,
    code: int,
    scale: float,
    points: np.ndarray,
    columns: np.ndarray,
    noise: np.ndarray,
    lower: np.ndarray,
) -> None:  # pragma: no cover - compiled
    last = points.shape[0] - 1
    for pair in range(start, stop):
        for n in (pair, last - pair):
            row = lower[n, :n]
            squared_distances(points[n], columns, row)
            values(code, scale, row)
            lower[n, n] = scale + noise[n]


@njit(cache=True, nogil=True, fastmath=FLAGS)
def _stretch(
    start: int,
    stop: int,
    code: int,
    scale: float,
    points: np.ndarray,
    columns: np.ndarray,
    alpha: np.ndarray,
    lower: np.ndarray,
    out: np.ndarray,
) -> None:  # pragma: no cover - compiled
    last = points.shape[0] - 1
    r2 = np.empty(last + 1)
    weights = np.empty(last + 1)
    for pair in range(start, stop):
        for n in (pair, last - pair):
            # Twice G, since the entry above the diagonal counts too.
            for m in range(n):
                weights[m] = alpha[n] * alpha[m] - lower[n, m]
            squared_distances(points[n], columns, r2[:n])
            multiply_slopes(code, scale, r2[:n], weights[:n])
            _weighted_squares(points[n], columns, weights[:n], out[n])


@njit(cache=True, nogil=True, fastmath=_SUM_FLAGS)
def _weighted_squares(
    point: np.ndarray, others: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    """``out_d <- sum_m weights_m (point_d - others_dm)^2``."""
    for d in range(point.shape[0]):
        coordinate, total = point[d], 0.0
        for m in range(weights.shape[0]):
            difference = coordinate - others[d, m]
            total += weights[m] * difference * difference
        out[d] = total
