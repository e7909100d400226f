"""Posterior paths of the state as compiled loops; the formulas are those of the tensor engine.

This module imports Numba; import it inside functions only.
"""

from math import sqrt

import numpy as np
from numba import njit

from gpvi.linalg.markov._packed_cpu import (
    _project,
    _transpose,
    _transposed_rows_times,
    _vector_times,
)

__all__ = ["draw", "messages"]

_FLAGS = {"contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _root(
    C: np.ndarray, J: np.ndarray, B: np.ndarray, root: np.ndarray
) -> bool:  # pragma: no cover - compiled
    """``root = L^-1 C'`` with ``L L' = I + C'J C``; False if that is not positive definite."""
    d = C.shape[0]
    for i in range(d):  # root holds C'J for a while
        for c in range(d):
            value = 0.0
            for k in range(i, d):
                value += C[k, i] * J[k, c]
            root[i, c] = value
    for i in range(d):
        for c in range(i + 1):
            value = 1.0 if i == c else 0.0
            for k in range(c, d):
                value += root[i, k] * C[k, c]
            B[i, c] = value
    for i in range(d):
        for c in range(i + 1):
            value = B[i, c]
            for k in range(c):
                value -= B[i, k] * B[c, k]
            if i == c:
                if not value > 0.0:
                    return False
                B[i, i] = sqrt(value)
            else:
                B[i, c] = value / B[c, c]
    for c in range(d):
        for i in range(d):
            value = C[c, i]
            for k in range(i):
                value -= B[i, k] * root[k, c]
            root[i, c] = value / B[i, i]
    return True


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def messages(
    unit: np.ndarray,
    starts: np.ndarray,
    size: np.ndarray,
    A: np.ndarray,
    factor: np.ndarray,
    start: np.ndarray,
    readout: np.ndarray,
    which: np.ndarray,
    j: np.ndarray,
    w: np.ndarray,
    eta: np.ndarray,
    J: np.ndarray,
    root: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """What the sites from each row on say about its state, and roots of the conditional covariances;
    returns -1, or the row where the posterior is improper.

    `factor` holds the Cholesky factor of the noise of every distinct step, `start` that of the initial
    covariance of every series (or of all).
    """
    d = start.shape[-1]
    now, shift, work = np.zeros((d, d)), np.zeros(d), np.empty(d)
    B, U, V = np.empty((d, d)), np.empty((d, d)), np.empty((d, d))
    for g in range(starts.shape[0] - 1):
        now[:] = 0.0
        shift[:] = 0.0
        for k in range(starts[g + 1] - 1, starts[g] - 1, -1):
            h = readout[which[k]]
            for i in range(d):
                shift[i] += j[k] * h[i]
                for c in range(d):
                    now[i, c] += w[k] * h[i] * h[c]
            eta[k] = shift
            J[k] = now
            if k == starts[g]:
                C = start[min(g, start.shape[0] - 1)]
                if not _root(C, now, B, root[k]):
                    return k
            elif unit[k] < 0:
                root[k] = 0.0
            else:
                if not _root(factor[unit[k]], now, B, root[k]):
                    return k
                _remove(root[k], now, shift, U, work)
                _transposed_rows_times(A[unit[k]], size, now, U)
                _transpose(U, V)
                _transposed_rows_times(A[unit[k]], size, V, now)
                _vector_times(A[unit[k]], size, shift, work, True)
                shift[:] = work
    return -1


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _remove(
    root: np.ndarray, J: np.ndarray, eta: np.ndarray, T: np.ndarray, work: np.ndarray
) -> None:  # pragma: no cover - compiled
    """``eta <- (I - J R) eta`` and ``J <- J - J R J`` with ``R = root' root``."""
    d = J.shape[0]
    for i in range(d):
        value = 0.0
        for k in range(d):
            value += root[i, k] * eta[k]
        work[i] = value
        for c in range(d):
            value = 0.0
            for k in range(d):
                value += root[i, k] * J[k, c]
            T[i, c] = value
    for i in range(d):
        for k in range(d):
            eta[i] -= T[k, i] * work[k]
        for c in range(d):
            for k in range(d):
                J[i, c] -= T[k, i] * T[k, c]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def draw(
    unit: np.ndarray,
    starts: np.ndarray,
    size: np.ndarray,
    A: np.ndarray,
    eta: np.ndarray,
    J: np.ndarray,
    root: np.ndarray,
    normals: np.ndarray,
    states: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """One path into `states` [T, d] for standard normals [T, d]."""
    d = eta.shape[1]
    x, y, gap, v = np.zeros(d), np.zeros(d), np.empty(d), np.empty(d)
    for g in range(starts.shape[0] - 1):
        for k in range(starts[g], starts[g + 1]):
            if k == starts[g]:
                y[:] = 0.0
            elif unit[k] < 0:
                y[:] = x
            else:
                _vector_times(A[unit[k]], size, x, y, False)
            _project(y, eta[k], J[k], gap)
            for i in range(d):
                gap[i] = eta[k, i] - gap[i]
            for i in range(d):
                value = normals[k, i]
                for c in range(d):
                    value += root[k, i, c] * gap[c]
                v[i] = value
            for i in range(d):
                value = y[i]
                for c in range(d):
                    value += root[k, c, i] * v[c]
                x[i] = value
                states[k, i] = value
