"""The table of stationary kernels as compiled loops (see ``gpvi.linalg.stationary``).

Scalar functions give correlation and slope from one exponential and are inlined wherever a compiled
loop calls them; the row functions pick the kernel outside the loop, so that each loop is a straight
run of vector instructions. This module imports Numba; import it inside functions only.
"""

from math import sqrt

import numpy as np
from numba import njit

from gpvi.linalg._vexp import FLAGS, vexp
from gpvi.linalg.stationary import COINCIDENT, STATIONARY_KERNELS

__all__ = [
    "matern12",
    "matern32",
    "matern52",
    "multiply_slopes",
    "rbf",
    "squared_distances",
    "values",
]

_SQRT3 = sqrt(3.0)
_SQRT5 = sqrt(5.0)
_RBF = STATIONARY_KERNELS.index("rbf")
_MATERN12 = STATIONARY_KERNELS.index("matern12")
_MATERN32 = STATIONARY_KERNELS.index("matern32")


@njit(cache=True, nogil=True, inline="always", fastmath=FLAGS)
def rbf(r2: float) -> tuple[float, float]:  # pragma: no cover - compiled
    """Correlation and slope of the squared-exponential kernel."""
    e = vexp(-0.5 * r2)
    return e, -0.5 * e


@njit(cache=True, nogil=True, inline="always", fastmath=FLAGS)
def matern12(r2: float) -> tuple[float, float]:  # pragma: no cover - compiled
    """Correlation and slope of the exponential kernel; slope zero for coincident inputs."""
    r = sqrt(r2)
    e = vexp(-r)
    slope = -0.5 * e / max(r, 1e-10)
    return e, slope if r2 > COINCIDENT else 0.0


@njit(cache=True, nogil=True, inline="always", fastmath=FLAGS)
def matern32(r2: float) -> tuple[float, float]:  # pragma: no cover - compiled
    """Correlation and slope of the Matern-3/2 kernel."""
    t = _SQRT3 * sqrt(r2)
    e = vexp(-t)
    return (1.0 + t) * e, -1.5 * e


@njit(cache=True, nogil=True, inline="always", fastmath=FLAGS)
def matern52(r2: float) -> tuple[float, float]:  # pragma: no cover - compiled
    """Correlation and slope of the Matern-5/2 kernel."""
    t = _SQRT5 * sqrt(r2)
    e = vexp(-t)
    return (1.0 + t + t * t * (1.0 / 3.0)) * e, (-5.0 / 6.0) * (1.0 + t) * e


@njit(cache=True, nogil=True, fastmath=FLAGS)
def squared_distances(
    point: np.ndarray, others: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Squared distances of one point [D] to the columns of `others` [D, M], as sums of squared
    differences: expanding the square would lose half of the digits of close pairs."""
    first = point[0]
    for j in range(out.shape[0]):
        difference = first - others[0, j]
        out[j] = difference * difference
    for d in range(1, point.shape[0]):
        coordinate = point[d]
        for j in range(out.shape[0]):
            difference = coordinate - others[d, j]
            out[j] += difference * difference


@njit(cache=True, nogil=True, fastmath=FLAGS)
def values(code: int, scale: float, row: np.ndarray) -> None:  # pragma: no cover - compiled
    """``row <- scale * k(row)``, where `row` comes in as squared distances. In place, because a
    loop over two arrays is not vectorised when they are the same."""
    if code == _RBF:
        for j in range(row.shape[0]):
            row[j] = scale * rbf(row[j])[0]
    elif code == _MATERN12:
        for j in range(row.shape[0]):
            row[j] = scale * matern12(row[j])[0]
    elif code == _MATERN32:
        for j in range(row.shape[0]):
            row[j] = scale * matern32(row[j])[0]
    else:
        for j in range(row.shape[0]):
            row[j] = scale * matern52(row[j])[0]


@njit(cache=True, nogil=True, fastmath=FLAGS)
def multiply_slopes(
    code: int, scale: float, r2: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    """``out <- out * scale * h(r2)`` for one row; the two must not overlap."""
    if code == _RBF:
        for j in range(r2.shape[0]):
            out[j] *= scale * rbf(r2[j])[1]
    elif code == _MATERN12:
        for j in range(r2.shape[0]):
            out[j] *= scale * matern12(r2[j])[1]
    elif code == _MATERN32:
        for j in range(r2.shape[0]):
            out[j] *= scale * matern32(r2[j])[1]
    else:
        for j in range(r2.shape[0]):
            out[j] *= scale * matern52(r2[j])[1]
