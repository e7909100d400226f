"""Passes over the sum of blocks m0, written by
``gpvi.linalg.markov._generator``; do not edit."""

import numpy as np
from numba import njit

from gpvi.linalg._vexp import vexp

__all__ = ["backward", "forward"]

_FLAGS = {"contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def forward(
    dt: np.ndarray,
    starts: np.ndarray,
    rate: np.ndarray,
    frequency: np.ndarray,
    noise: np.ndarray,
    start: np.ndarray,
    j: np.ndarray,
    w: np.ndarray,
    store: np.ndarray,
    out: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """Predicted moments into `store` (if it has rows), log partition of every series into
    `out`; returns -1, or the row whose site is too negative."""
    zero = 0.0 * j[0]
    a0_0 = q0_0 = 0.0
    last = 0.0
    for g in range(starts.shape[0] - 1):
        first = min(g, start.shape[0] - 1)
        total = zero
        product = zero + 1.0
        m0 = zero
        P0_0 = start[first, 0] + zero
        for k in range(starts[g], starts[g + 1]):
            step = dt[k]
            if step != 0.0:
                if step != last:
                    last = step
                    x = rate[0] * step
                    a0_0 = vexp(-x)
                    z = 2.0 * x
                    decay = a0_0 * a0_0
                    power1 = x
                    if z < 0.125:
                        q0_0 = power1 * decay * ((((((((((2.7557319223985894e-07) * z + 2.7557319223985893e-06) * z + 2.48015873015873e-05) * z + 0.0001984126984126984) * z + 0.001388888888888889) * z + 0.008333333333333333) * z + 0.041666666666666664) * z + 0.16666666666666666) * z + 0.5) * z + 1.0)
                    elif z < 2.0:
                        q0_0 = power1 * decay * (((((((((((((((((((((1.9572941063391263e-20) * z + 4.1103176233121653e-19) * z + 8.220635246624331e-18) * z + 1.5619206968586228e-16) * z + 2.811457254345521e-15) * z + 4.779477332387386e-14) * z + 7.647163731819817e-13) * z + 1.1470745597729726e-11) * z + 1.6059043836821616e-10) * z + 2.08767569878681e-09) * z + 2.505210838544172e-08) * z + 2.7557319223985894e-07) * z + 2.7557319223985893e-06) * z + 2.48015873015873e-05) * z + 0.0001984126984126984) * z + 0.001388888888888889) * z + 0.008333333333333333) * z + 0.041666666666666664) * z + 0.16666666666666666) * z + 0.5) * z + 1.0)
                    else:
                        q0_0 = 0.5 * (1.0 - decay * (1.0) if z < 700.0 else 1.0)
                t0 = a0_0 * m0
                m0 = t0
                U0_0 = a0_0 * P0_0
                w00 = a0_0 * U0_0
                P0_0 = w00
                P0_0 += noise[0] * q0_0
            if store.shape[0] > 0:
                store[k, 0] = m0
                store[k, 1] = P0_0
            u0 = P0_0
            a = m0
            s = u0
            D = 1.0 + w[k] * s
            if D.real <= 0.0:
                return k
            e = j[k] - w[k] * a
            inverse = 1.0 / D
            gain = e * inverse
            shrink = w[k] * inverse
            total += (j[k] * a + 0.5 * (j[k] * j[k] * s - w[k] * a * a)) * inverse
            product *= D
            if product.real > 1e150 or product.real < 1e-150:
                total -= 0.5 * np.log(product)
                product = zero + 1.0
            m0 += u0 * gain
            P0_0 -= shrink * u0 * u0
        out[g] = total - 0.5 * np.log(product)
    return -1


@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")
def backward(
    dt: np.ndarray,
    starts: np.ndarray,
    rate: np.ndarray,
    frequency: np.ndarray,
    noise: np.ndarray,
    j: np.ndarray,
    w: np.ndarray,
    store: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    by_rate: np.ndarray,
    by_frequency: np.ndarray,
    by_noise: np.ndarray,
    by_start: np.ndarray,
    by_dt: np.ndarray,
    adjoint: np.ndarray,
    divergence: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """Posterior moments of the rows, derivatives of the weighted sum of log partitions (added
    up), from the moments that `forward` stored; adjoints into `adjoint` (if it has rows), KL
    divergences from the prior into `divergence`."""
    zero = 0.0 * j[0]
    a0_0 = q0_0 = 0.0
    last = 0.0
    for g in range(starts.shape[0] - 1):
        first = min(g, by_start.shape[0] - 1)
        total = zero
        product = zero + 1.0
        dr0 = dn0 = zero
        r0 = zero
        N0_0 = zero
        for k in range(starts[g + 1] - 1, starts[g] - 1, -1):
            m0 = store[k, 0]
            P0_0 = store[k, 1]
            u0 = P0_0
            a = m0
            s = u0
            D = 1.0 + w[k] * s
            inverse = 1.0 / D
            e = j[k] - w[k] * a
            shrink = w[k] * inverse
            ur = u0 * r0
            v0 = N0_0 * u0
            uv = u0 * v0
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
            r0 += pull
            N0_0 -= shrink * (v0 + v0) - push
            if adjoint.shape[0] > 0:
                adjoint[k, 0] = r0
                adjoint[k, 1] = N0_0
            if k == starts[g]:
                G0_0 = r0 * r0 - N0_0
                by_start[first, 0] += 0.5 * weight[g] * G0_0
                if by_dt.shape[0] > 0:
                    by_dt[k] = zero
            elif dt[k] == 0.0:
                G0_0 = r0 * r0 - N0_0
                slope = zero
                along = 0.5 * noise[0] * (G0_0)
                along -= m0 * r0 + P0_0 * G0_0
                slope += rate[0] * along
                if by_dt.shape[0] > 0:
                    by_dt[k] = weight[g] * slope
            else:
                step = dt[k]
                if step != last:
                    last = step
                    x = rate[0] * step
                    a0_0 = vexp(-x)
                    z = 2.0 * x
                    decay = a0_0 * a0_0
                    power1 = x
                    if z < 0.125:
                        q0_0 = power1 * decay * ((((((((((2.7557319223985894e-07) * z + 2.7557319223985893e-06) * z + 2.48015873015873e-05) * z + 0.0001984126984126984) * z + 0.001388888888888889) * z + 0.008333333333333333) * z + 0.041666666666666664) * z + 0.16666666666666666) * z + 0.5) * z + 1.0)
                    elif z < 2.0:
                        q0_0 = power1 * decay * (((((((((((((((((((((1.9572941063391263e-20) * z + 4.1103176233121653e-19) * z + 8.220635246624331e-18) * z + 1.5619206968586228e-16) * z + 2.811457254345521e-15) * z + 4.779477332387386e-14) * z + 7.647163731819817e-13) * z + 1.1470745597729726e-11) * z + 1.6059043836821616e-10) * z + 2.08767569878681e-09) * z + 2.505210838544172e-08) * z + 2.7557319223985894e-07) * z + 2.7557319223985893e-06) * z + 2.48015873015873e-05) * z + 0.0001984126984126984) * z + 0.001388888888888889) * z + 0.008333333333333333) * z + 0.041666666666666664) * z + 0.16666666666666666) * z + 0.5) * z + 1.0)
                    else:
                        q0_0 = 0.5 * (1.0 - decay * (1.0) if z < 700.0 else 1.0)
                G0_0 = r0 * r0 - N0_0
                slope = zero
                along = 0.5 * noise[0] * (G0_0)
                along -= m0 * r0 + P0_0 * G0_0
                slope += rate[0] * along
                dr0 += step * along
                dn0 += 0.5 * q0_0 * (G0_0)
                if by_dt.shape[0] > 0:
                    by_dt[k] = weight[g] * slope
                t0 = a0_0 * r0
                r0 = t0
                U0_0 = a0_0 * N0_0
                w00 = a0_0 * U0_0
                N0_0 = w00
        divergence[g] = total + 0.5 * np.log(product)
        by_rate[0] += weight[g] * dr0
        by_noise[0] += weight[g] * dn0
    return -1
