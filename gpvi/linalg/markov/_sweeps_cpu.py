"""Linear recursions over rows as compiled loops.

This module imports Numba; import it inside functions only.
"""

import numpy as np
from numba import njit

__all__ = ["sweep"]

_FLAGS = {"contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def sweep(A: np.ndarray, x: np.ndarray, reverse: bool) -> None:  # pragma: no cover - compiled
    """``x_k += A_k x_{k-1}`` from the first row to the last or, in reverse,
    ``x_k += A_{k+1}' x_{k+1}``, in place; A is [N, d, d] and x is [N, d, C]."""
    N, d, C = x.shape
    for n in range(1, N):
        k = N - n if reverse else n
        source = k if reverse else k - 1
        target = k - 1 if reverse else k
        for i in range(d):
            for c in range(d):
                entry = A[k, c, i] if reverse else A[k, i, c]
                if entry != 0.0:
                    for column in range(C):
                        x[target, i, column] += entry * x[source, c, column]
