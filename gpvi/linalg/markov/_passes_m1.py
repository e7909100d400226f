"""Passes over the sum of blocks m1, written by
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
    a0_0 = a0_1 = q0_0 = q0_1 = q0_2 = 0.0
    last = 0.0
    for g in range(starts.shape[0] - 1):
        first = min(g, start.shape[0] - 1)
        total = zero
        product = zero + 1.0
        m0 = zero
        m1 = zero
        P0_0 = start[first, 0] + zero
        P0_1 = start[first, 1] + zero
        P1_1 = start[first, 2] + zero
        for k in range(starts[g], starts[g + 1]):
            step = dt[k]
            if step != 0.0:
                if step != last:
                    last = step
                    x = rate[0] * step
                    a0_0 = vexp(-x)
                    a0_1 = a0_0 * x
                    z = 2.0 * x
                    decay = a0_0 * a0_0
                    power1 = x
                    power2 = power1 * x
                    power3 = power2 * x
                    if z < 0.125:
                        q0_2 = power3 * decay * ((((((((((4.17535139757362e-09) * z + 5.010421677088344e-08) * z + 5.511463844797179e-07) * z + 5.5114638447971785e-06) * z + 4.96031746031746e-05) * z + 0.0003968253968253968) * z + 0.002777777777777778) * z + 0.016666666666666666) * z + 0.08333333333333333) * z + 0.3333333333333333)
                    elif z < 2.0:
                        q0_2 = power3 * decay * (((((((((((((((((((((7.736340341261368e-23) * z + 1.779358278490115e-21) * z + 3.9145882126782525e-20) * z + 8.220635246624331e-19) * z + 1.6441270493248662e-17) * z + 3.1238413937172455e-16) * z + 5.622914508691042e-15) * z + 9.558954664774772e-14) * z + 1.5294327463639635e-12) * z + 2.2941491195459452e-11) * z + 3.211808767364323e-10) * z + 4.17535139757362e-09) * z + 5.010421677088344e-08) * z + 5.511463844797179e-07) * z + 5.5114638447971785e-06) * z + 4.96031746031746e-05) * z + 0.0003968253968253968) * z + 0.002777777777777778) * z + 0.016666666666666666) * z + 0.08333333333333333) * z + 0.3333333333333333)
                    else:
                        q0_2 = 0.25 * (1.0 - decay * (((0.5) * z + 1.0) * z + 1.0) if z < 700.0 else 1.0)
                    q0_1 = (2.0 * q0_2 + (power2 * decay if z < 700.0 else 0.0)) * 0.5
                    q0_0 = (2.0 * q0_1 + (power1 * decay if z < 700.0 else 0.0)) * 1.0
                t0 = a0_0 * m0 + a0_1 * m1
                t1 = a0_0 * m1
                m0 = t0
                m1 = t1
                U0_0 = a0_0 * P0_0 + a0_1 * P0_1
                U0_1 = a0_0 * P0_1 + a0_1 * P1_1
                U1_1 = a0_0 * P1_1
                w00 = a0_0 * U0_0 + a0_1 * U0_1
                P0_0 = w00
                w00 = a0_0 * U0_1
                P0_1 = w00
                w00 = a0_0 * U1_1
                P1_1 = w00
                P0_0 += noise[0] * q0_2
                P0_1 += noise[0] * q0_1
                P1_1 += noise[0] * q0_0
            if store.shape[0] > 0:
                store[k, 0] = m0
                store[k, 1] = m1
                store[k, 2] = P0_0
                store[k, 3] = P0_1
                store[k, 4] = P1_1
            u0 = P0_0
            u1 = P0_1
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
            m1 += u1 * gain
            P0_0 -= shrink * u0 * u0
            P0_1 -= shrink * u0 * u1
            P1_1 -= shrink * u1 * u1
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
    a0_0 = a0_1 = q0_0 = q0_1 = q0_2 = 0.0
    last = 0.0
    for g in range(starts.shape[0] - 1):
        first = min(g, by_start.shape[0] - 1)
        total = zero
        product = zero + 1.0
        dr0 = dn0 = zero
        r0 = zero
        r1 = zero
        N0_0 = zero
        N0_1 = zero
        N1_1 = zero
        for k in range(starts[g + 1] - 1, starts[g] - 1, -1):
            m0 = store[k, 0]
            m1 = store[k, 1]
            P0_0 = store[k, 2]
            P0_1 = store[k, 3]
            P1_1 = store[k, 4]
            u0 = P0_0
            u1 = P0_1
            a = m0
            s = u0
            D = 1.0 + w[k] * s
            inverse = 1.0 / D
            e = j[k] - w[k] * a
            shrink = w[k] * inverse
            ur = u0 * r0 + u1 * r1
            v0 = N0_0 * u0 + N0_1 * u1
            v1 = N0_1 * u0 + N1_1 * u1
            uv = u0 * v0 + u1 * v1
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
            N0_1 -= shrink * (v1)
            if adjoint.shape[0] > 0:
                adjoint[k, 0] = r0
                adjoint[k, 1] = r1
                adjoint[k, 2] = N0_0
                adjoint[k, 3] = N0_1
                adjoint[k, 4] = N1_1
            if k == starts[g]:
                G0_0 = r0 * r0 - N0_0
                G0_1 = r0 * r1 - N0_1
                G1_1 = r1 * r1 - N1_1
                by_start[first, 0] += 0.5 * weight[g] * G0_0
                by_start[first, 1] += 0.5 * weight[g] * G0_1
                by_start[first, 2] += 0.5 * weight[g] * G1_1
                if by_dt.shape[0] > 0:
                    by_dt[k] = zero
            elif dt[k] == 0.0:
                G0_0 = r0 * r0 - N0_0
                G0_1 = r0 * r1 - N0_1
                G1_1 = r1 * r1 - N1_1
                slope = zero
                along = 0.5 * noise[0] * (G1_1)
                along += m1 * r0 + P0_1 * G0_0 + P1_1 * G0_1
                along -= m0 * r0 + m1 * r1 + P0_0 * G0_0 + P0_1 * G0_1 + P0_1 * G0_1 + P1_1 * G1_1
                slope += rate[0] * along
                if by_dt.shape[0] > 0:
                    by_dt[k] = weight[g] * slope
            else:
                step = dt[k]
                if step != last:
                    last = step
                    x = rate[0] * step
                    a0_0 = vexp(-x)
                    a0_1 = a0_0 * x
                    z = 2.0 * x
                    decay = a0_0 * a0_0
                    power1 = x
                    power2 = power1 * x
                    power3 = power2 * x
                    if z < 0.125:
                        q0_2 = power3 * decay * ((((((((((4.17535139757362e-09) * z + 5.010421677088344e-08) * z + 5.511463844797179e-07) * z + 5.5114638447971785e-06) * z + 4.96031746031746e-05) * z + 0.0003968253968253968) * z + 0.002777777777777778) * z + 0.016666666666666666) * z + 0.08333333333333333) * z + 0.3333333333333333)
                    elif z < 2.0:
                        q0_2 = power3 * decay * (((((((((((((((((((((7.736340341261368e-23) * z + 1.779358278490115e-21) * z + 3.9145882126782525e-20) * z + 8.220635246624331e-19) * z + 1.6441270493248662e-17) * z + 3.1238413937172455e-16) * z + 5.622914508691042e-15) * z + 9.558954664774772e-14) * z + 1.5294327463639635e-12) * z + 2.2941491195459452e-11) * z + 3.211808767364323e-10) * z + 4.17535139757362e-09) * z + 5.010421677088344e-08) * z + 5.511463844797179e-07) * z + 5.5114638447971785e-06) * z + 4.96031746031746e-05) * z + 0.0003968253968253968) * z + 0.002777777777777778) * z + 0.016666666666666666) * z + 0.08333333333333333) * z + 0.3333333333333333)
                    else:
                        q0_2 = 0.25 * (1.0 - decay * (((0.5) * z + 1.0) * z + 1.0) if z < 700.0 else 1.0)
                    q0_1 = (2.0 * q0_2 + (power2 * decay if z < 700.0 else 0.0)) * 0.5
                    q0_0 = (2.0 * q0_1 + (power1 * decay if z < 700.0 else 0.0)) * 1.0
                G0_0 = r0 * r0 - N0_0
                G0_1 = r0 * r1 - N0_1
                G1_1 = r1 * r1 - N1_1
                slope = zero
                along = 0.5 * noise[0] * (G1_1)
                along += m1 * r0 + P0_1 * G0_0 + P1_1 * G0_1
                along -= m0 * r0 + m1 * r1 + P0_0 * G0_0 + P0_1 * G0_1 + P0_1 * G0_1 + P1_1 * G1_1
                slope += rate[0] * along
                dr0 += step * along
                dn0 += 0.5 * q0_2 * (G0_0) + 1.0 * q0_1 * (G0_1) + 0.5 * q0_0 * (G1_1)
                if by_dt.shape[0] > 0:
                    by_dt[k] = weight[g] * slope
                t1 = a0_0 * r1 + a0_1 * r0
                t0 = a0_0 * r0
                r1 = t1
                r0 = t0
                U1_1 = a0_0 * N1_1 + a0_1 * N0_1
                U1_0 = a0_0 * N0_1 + a0_1 * N0_0
                U0_0 = a0_0 * N0_0
                w00 = a0_0 * U1_1 + a0_1 * U1_0
                N1_1 = w00
                w00 = a0_0 * U1_0
                N0_1 = w00
                w00 = a0_0 * U0_0
                N0_0 = w00
        divergence[g] = total + 0.5 * np.log(product)
        by_rate[0] += weight[g] * dr0
        by_noise[0] += weight[g] * dn0
    return -1
