"""The two passes over any block-diagonal model, as compiled loops.

Transition and noise come in as packed blocks, one set per distinct step, and so do their
derivatives; matrices of the state are small and dense. This is what serves models that have no
straight-line code: large sums, dense blocks, a readout per row.

This module imports Numba; import it inside functions only.
"""

import numpy as np
from numba import njit

__all__ = ["backward", "forward"]

_FLAGS = {"contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _rows_times(
    blocks: np.ndarray,
    size: np.ndarray,
    matrix: np.ndarray,
    out: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """``out <- A matrix`` for packed blocks of A; the two must not overlap."""
    place = offset = 0
    d = matrix.shape[1]
    for n in size:
        for i in range(n):
            first = blocks[place + i * n]
            for c in range(d):
                out[offset + i, c] = first * matrix[offset, c]
            for k in range(1, n):
                entry = blocks[place + i * n + k]
                if entry != 0.0:
                    for c in range(d):
                        out[offset + i, c] += entry * matrix[offset + k, c]
        place += n * n
        offset += n


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _transposed_rows_times(
    blocks: np.ndarray,
    size: np.ndarray,
    matrix: np.ndarray,
    out: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """``out <- A' matrix``."""
    place = offset = 0
    d = matrix.shape[1]
    for n in size:
        for i in range(n):
            first = blocks[place + i]
            for c in range(d):
                out[offset + i, c] = first * matrix[offset, c]
            for k in range(1, n):
                entry = blocks[place + k * n + i]
                if entry != 0.0:
                    for c in range(d):
                        out[offset + i, c] += entry * matrix[offset + k, c]
        place += n * n
        offset += n


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _vector_times(
    blocks: np.ndarray, size: np.ndarray, vector: np.ndarray, out: np.ndarray, transposed: bool
) -> None:  # pragma: no cover - compiled
    """``out <- A vector`` or ``A' vector``."""
    place = offset = 0
    for n in size:
        for i in range(n):
            value = 0.0 * vector[0]
            for k in range(n):
                entry = blocks[place + k * n + i] if transposed else blocks[place + i * n + k]
                value += entry * vector[offset + k]
            out[offset + i] = value
        place += n * n
        offset += n


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _add_blocks(
    blocks: np.ndarray, size: np.ndarray, matrix: np.ndarray
) -> None:  # pragma: no cover - compiled
    place = offset = 0
    for n in size:
        for i in range(n):
            for k in range(n):
                matrix[offset + i, offset + k] += blocks[place + i * n + k]
        place += n * n
        offset += n


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _transpose(matrix: np.ndarray, out: np.ndarray) -> None:  # pragma: no cover - compiled
    for i in range(matrix.shape[0]):
        for k in range(matrix.shape[1]):
            out[k, i] = matrix[i, k]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _write(
    vector: np.ndarray, matrix: np.ndarray, row: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Vector and upper triangle into one row."""
    d = vector.shape[0]
    place = d
    for i in range(d):
        row[i] = vector[i]
        for k in range(i, d):
            row[place] = matrix[i, k]
            place += 1


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _read(
    row: np.ndarray, vector: np.ndarray, matrix: np.ndarray
) -> None:  # pragma: no cover - compiled
    d = vector.shape[0]
    place = d
    for i in range(d):
        vector[i] = row[i]
        for k in range(i, d):
            matrix[i, k] = row[place]
            matrix[k, i] = row[place]
            place += 1


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _project(
    h: np.ndarray, m: np.ndarray, P: np.ndarray, u: np.ndarray
) -> tuple:  # pragma: no cover - compiled
    """``u = P h`` in place, and ``h'm``, ``h'P h``."""
    d = m.shape[0]
    a = 0.0 * m[0]
    s = 0.0 * m[0]
    for i in range(d):
        u[i] = 0.0
    for k in range(d):
        weight = h[k]
        if weight != 0.0:
            for i in range(d):
                u[i] += weight * P[k, i]
            a += weight * m[k]
    for k in range(d):
        s += h[k] * u[k]
    return a, s


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def forward(
    unit: np.ndarray,
    starts: np.ndarray,
    size: np.ndarray,
    A: np.ndarray,
    Q: np.ndarray,
    start: np.ndarray,
    readout: np.ndarray,
    which: np.ndarray,
    j: np.ndarray,
    w: np.ndarray,
    store: np.ndarray,
    out: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """Predicted moments into `store` (if it has rows), log partition of every series into `out`.

    `unit` names the step of every row (negative: none), `which` its readout. Returns -1, or the row
    whose site is too negative.
    """
    d = start.shape[-1]
    zero = 0.0 * j[0]
    m, t, u = np.empty(d, j.dtype), np.empty(d, j.dtype), np.empty(d, j.dtype)
    P, U, V = np.empty((d, d), j.dtype), np.empty((d, d), j.dtype), np.empty((d, d), j.dtype)
    for g in range(starts.shape[0] - 1):
        first = min(g, start.shape[0] - 1)
        total = zero
        product = zero + 1.0
        m[:] = zero
        P[:] = start[first]
        for k in range(starts[g], starts[g + 1]):
            if k > starts[g] and unit[k] >= 0:
                step = unit[k]
                _vector_times(A[step], size, m, t, False)
                m[:] = t
                _rows_times(A[step], size, P, U)
                _transpose(U, V)
                _rows_times(A[step], size, V, P)
                _add_blocks(Q[step], size, P)
            if store.shape[0] > 0:
                _write(m, P, store[k])
            a, s = _project(readout[which[k]], m, P, u)
            D = 1.0 + w[k] * s
            if D.real <= 0.0:
                return k
            inverse = 1.0 / D
            gain = (j[k] - w[k] * a) * inverse
            shrink = w[k] * inverse
            total += (j[k] * a + 0.5 * (j[k] * j[k] * s - w[k] * a * a)) * inverse
            product *= D
            if product.real > 1e150 or product.real < 1e-150:
                total -= 0.5 * np.log(product)
                product = zero + 1.0
            for i in range(d):
                m[i] += gain * u[i]
                less = shrink * u[i]
                for c in range(d):
                    P[i, c] -= less * u[c]
        out[g] = total - 0.5 * np.log(product)
    return -1


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def backward(
    unit: np.ndarray,
    starts: np.ndarray,
    size: np.ndarray,
    A: np.ndarray,
    readout: np.ndarray,
    which: np.ndarray,
    j: np.ndarray,
    w: np.ndarray,
    store: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    by_A: np.ndarray,
    by_Q: np.ndarray,
    by_start: np.ndarray,
    by_readout: np.ndarray,
    adjoint: np.ndarray,
    divergence: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """Posterior moments of the rows, derivatives of the weighted sum of log partitions (added up),
    from the moments that `forward` stored.

    Arrays of derivatives without entries are left out; adjoints go into `adjoint` if it has rows,
    KL divergences from the prior into `divergence`.
    """
    d = by_start.shape[-1]
    zero = 0.0 * j[0]
    m, r, u, v, t = (
        np.empty(d, j.dtype),
        np.empty(d, j.dtype),
        np.empty(d, j.dtype),
        np.empty(d, j.dtype),
        np.empty(d, j.dtype),
    )
    P, N, U, V = (
        np.empty((d, d), j.dtype),
        np.empty((d, d), j.dtype),
        np.empty((d, d), j.dtype),
        np.empty((d, d), j.dtype),
    )
    for g in range(starts.shape[0] - 1):
        total = zero
        product = zero + 1.0
        r[:] = zero
        N[:] = zero
        for k in range(starts[g + 1] - 1, starts[g] - 1, -1):
            h = readout[which[k]]
            _read(store[k], m, P)
            a, s = _project(h, m, P, u)
            D = 1.0 + w[k] * s
            inverse = 1.0 / D
            e = j[k] - w[k] * a
            shrink = w[k] * inverse
            ur = zero
            uv = zero
            for i in range(d):
                v[i] = zero
            for c in range(d):
                for i in range(d):
                    v[i] += N[c, i] * u[c]
            for i in range(d):
                ur += u[i] * r[i]
                uv += u[i] * v[i]
            centre = (a + s * j[k] + ur) * inverse
            spread = (s - uv * inverse) * inverse
            mean[k] = centre
            variance[k] = spread
            shift = centre - a
            total += shift * e - 0.5 * w[k] * (shift * shift + spread) - 0.5 * e * e * s * inverse
            product *= D
            if product.real > 1e150 or product.real < 1e-150:
                total += 0.5 * np.log(product)
                product = zero + 1.0
            pull = e * inverse - shrink * ur
            push = shrink * shrink * uv + shrink
            for i in range(d):
                r[i] += pull * h[i]
                for c in range(d):
                    N[i, c] += push * h[i] * h[c] - shrink * (h[i] * v[c] + v[i] * h[c])
            if adjoint.shape[0] > 0:
                _write(r, N, adjoint[k])
            if by_readout.shape[0] > 0:
                _slope_by_readout(m, P, r, N, u, h, j[k], w[k], weight[g], by_readout[which[k]], t)
            if k == starts[g]:
                row = by_start[min(g, by_start.shape[0] - 1)]
                for i in range(d):
                    for c in range(d):
                        row[i, c] += 0.5 * weight[g] * (r[i] * r[c] - N[i, c])
            elif unit[k] >= 0:
                step = unit[k]
                if by_A.shape[0] > 0:
                    _filtered(store[k - 1], readout[which[k - 1]], j[k - 1], w[k - 1], m, P, u)
                    _rows_times(A[step], size, P, U)
                    _slope_by_motion(size, m, r, N, U, weight[g], by_A[step], by_Q[step])
                _vector_times(A[step], size, r, t, True)
                r[:] = t
                _transposed_rows_times(A[step], size, N, U)
                _transpose(U, V)
                _transposed_rows_times(A[step], size, V, N)
        divergence[g] = total + 0.5 * np.log(product)
    return -1


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _filtered(
    row: np.ndarray,
    h: np.ndarray,
    j: complex,
    w: complex,
    m: np.ndarray,
    P: np.ndarray,
    u: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Moments after a row's own site, into m and P."""
    _read(row, m, P)
    a, s = _project(h, m, P, u)
    inverse = 1.0 / (1.0 + w * s)
    gain = (j - w * a) * inverse
    shrink = w * inverse
    for i in range(m.shape[0]):
        m[i] += gain * u[i]
        less = shrink * u[i]
        for c in range(m.shape[0]):
            P[i, c] -= less * u[c]


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _slope_by_motion(
    size: np.ndarray,
    m: np.ndarray,
    r: np.ndarray,
    N: np.ndarray,
    moved: np.ndarray,
    weight: float,
    by_A: np.ndarray,
    by_Q: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """``dA += r m' + G A P`` and ``dQ += G / 2`` at filtered m and `moved` = A P, G = r r' - N."""
    place = offset = 0
    d = m.shape[0]
    for n in size:
        for i in range(n):
            row = offset + i
            for c in range(n):
                column = offset + c
                value = r[row] * m[column]
                for k in range(d):
                    value += (r[row] * r[k] - N[row, k]) * moved[k, column]
                by_A[place + i * n + c] += weight * value
                by_Q[place + i * n + c] += 0.5 * weight * (r[row] * r[column] - N[row, column])
        place += n * n
        offset += n


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def _slope_by_readout(
    m: np.ndarray,
    P: np.ndarray,
    r: np.ndarray,
    N: np.ndarray,
    u: np.ndarray,
    h: np.ndarray,
    j: complex,
    w: complex,
    weight: float,
    out: np.ndarray,
    t: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """``E[(j - w f) z]`` under the posterior of the state z; r and N hold the row's own site."""
    d = m.shape[0]
    f = 0.0 * r[0]
    for i in range(d):
        value = u[i] * 0.0
        for k in range(d):
            value += N[i, k] * u[k]
        t[i] = value
    for i in range(d):
        f += h[i] * m[i] + u[i] * r[i]
    for i in range(d):
        state = m[i]
        covariance = u[i]
        for k in range(d):
            state += P[i, k] * r[k]
            covariance -= P[i, k] * t[k]
        out[i] += weight * (j * state - w * (covariance + state * f))
