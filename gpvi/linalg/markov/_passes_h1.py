"""Passes over the sum of blocks h1, written by
``gpvi.linalg.markov._generator``; do not edit."""

from math import cos, sin

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
    a0_0 = a0_1 = q0_0 = q0_1 = q0_2 = c0 = s0 = 0.0
    last = 0.0
    for g in range(starts.shape[0] - 1):
        first = min(g, start.shape[0] - 1)
        total = zero
        product = zero + 1.0
        m0 = zero
        m1 = zero
        m2 = zero
        m3 = zero
        P0_0 = start[first, 0] + zero
        P0_1 = start[first, 1] + zero
        P0_2 = start[first, 2] + zero
        P0_3 = start[first, 3] + zero
        P1_1 = start[first, 4] + zero
        P1_2 = start[first, 5] + zero
        P1_3 = start[first, 6] + zero
        P2_2 = start[first, 7] + zero
        P2_3 = start[first, 8] + zero
        P3_3 = start[first, 9] + zero
        for k in range(starts[g], starts[g + 1]):
            step = dt[k]
            if step != 0.0:
                if step != last:
                    last = step
                    x = rate[0] * step
                    a0_0 = vexp(-x)
                    a0_1 = a0_0 * x
                    c0 = cos(frequency[0] * step)
                    s0 = sin(frequency[0] * step)
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
                t0 = a0_0 * m0 + a0_1 * m2
                t1 = a0_0 * m1 + a0_1 * m3
                t2 = a0_0 * m2
                t3 = a0_0 * m3
                m0 = c0 * t0 - s0 * t1
                m1 = c0 * t1 + s0 * t0
                m2 = c0 * t2 - s0 * t3
                m3 = c0 * t3 + s0 * t2
                U0_0 = a0_0 * P0_0 + a0_1 * P0_2
                U0_1 = a0_0 * P0_1 + a0_1 * P1_2
                U0_2 = a0_0 * P0_2 + a0_1 * P2_2
                U0_3 = a0_0 * P0_3 + a0_1 * P2_3
                U1_1 = a0_0 * P1_1 + a0_1 * P1_3
                U1_2 = a0_0 * P1_2 + a0_1 * P2_3
                U1_3 = a0_0 * P1_3 + a0_1 * P3_3
                U2_2 = a0_0 * P2_2
                U2_3 = a0_0 * P2_3
                U3_3 = a0_0 * P3_3
                w00 = a0_0 * U0_0 + a0_1 * U0_2
                w01 = a0_0 * U0_1 + a0_1 * U0_3
                w11 = a0_0 * U1_1 + a0_1 * U1_3
                y00 = c0 * w00 - s0 * w01
                y10 = c0 * w01 + s0 * w00
                y01 = c0 * w01 - s0 * w11
                y11 = c0 * w11 + s0 * w01
                z00 = c0 * y00 - s0 * y01
                z01 = c0 * y01 + s0 * y00
                z11 = c0 * y11 + s0 * y10
                P0_0 = z00
                P0_1 = z01
                P1_1 = z11
                w00 = a0_0 * U0_2
                w01 = a0_0 * U0_3
                w10 = a0_0 * U1_2
                w11 = a0_0 * U1_3
                y00 = c0 * w00 - s0 * w10
                y10 = c0 * w10 + s0 * w00
                y01 = c0 * w01 - s0 * w11
                y11 = c0 * w11 + s0 * w01
                z00 = c0 * y00 - s0 * y01
                z01 = c0 * y01 + s0 * y00
                z10 = c0 * y10 - s0 * y11
                z11 = c0 * y11 + s0 * y10
                P0_2 = z00
                P0_3 = z01
                P1_2 = z10
                P1_3 = z11
                w00 = a0_0 * U2_2
                w01 = a0_0 * U2_3
                w11 = a0_0 * U3_3
                y00 = c0 * w00 - s0 * w01
                y10 = c0 * w01 + s0 * w00
                y01 = c0 * w01 - s0 * w11
                y11 = c0 * w11 + s0 * w01
                z00 = c0 * y00 - s0 * y01
                z01 = c0 * y01 + s0 * y00
                z11 = c0 * y11 + s0 * y10
                P2_2 = z00
                P2_3 = z01
                P3_3 = z11
                P0_0 += noise[0] * q0_2
                P1_1 += noise[0] * q0_2
                P0_2 += noise[0] * q0_1
                P1_3 += noise[0] * q0_1
                P2_2 += noise[0] * q0_0
                P3_3 += noise[0] * q0_0
            if store.shape[0] > 0:
                store[k, 0] = m0
                store[k, 1] = m1
                store[k, 2] = m2
                store[k, 3] = m3
                store[k, 4] = P0_0
                store[k, 5] = P0_1
                store[k, 6] = P0_2
                store[k, 7] = P0_3
                store[k, 8] = P1_1
                store[k, 9] = P1_2
                store[k, 10] = P1_3
                store[k, 11] = P2_2
                store[k, 12] = P2_3
                store[k, 13] = P3_3
            u0 = P0_0
            u1 = P0_1
            u2 = P0_2
            u3 = P0_3
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
            m2 += u2 * gain
            m3 += u3 * gain
            P0_0 -= shrink * u0 * u0
            P0_1 -= shrink * u0 * u1
            P0_2 -= shrink * u0 * u2
            P0_3 -= shrink * u0 * u3
            P1_1 -= shrink * u1 * u1
            P1_2 -= shrink * u1 * u2
            P1_3 -= shrink * u1 * u3
            P2_2 -= shrink * u2 * u2
            P2_3 -= shrink * u2 * u3
            P3_3 -= shrink * u3 * u3
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
    a0_0 = a0_1 = q0_0 = q0_1 = q0_2 = c0 = s0 = 0.0
    last = 0.0
    for g in range(starts.shape[0] - 1):
        first = min(g, by_start.shape[0] - 1)
        total = zero
        product = zero + 1.0
        dr0 = dn0 = df0 = zero
        r0 = zero
        r1 = zero
        r2 = zero
        r3 = zero
        N0_0 = zero
        N0_1 = zero
        N0_2 = zero
        N0_3 = zero
        N1_1 = zero
        N1_2 = zero
        N1_3 = zero
        N2_2 = zero
        N2_3 = zero
        N3_3 = zero
        for k in range(starts[g + 1] - 1, starts[g] - 1, -1):
            m0 = store[k, 0]
            m1 = store[k, 1]
            m2 = store[k, 2]
            m3 = store[k, 3]
            P0_0 = store[k, 4]
            P0_1 = store[k, 5]
            P0_2 = store[k, 6]
            P0_3 = store[k, 7]
            P1_1 = store[k, 8]
            P1_2 = store[k, 9]
            P1_3 = store[k, 10]
            P2_2 = store[k, 11]
            P2_3 = store[k, 12]
            P3_3 = store[k, 13]
            u0 = P0_0
            u1 = P0_1
            u2 = P0_2
            u3 = P0_3
            a = m0
            s = u0
            D = 1.0 + w[k] * s
            inverse = 1.0 / D
            e = j[k] - w[k] * a
            shrink = w[k] * inverse
            ur = u0 * r0 + u1 * r1 + u2 * r2 + u3 * r3
            v0 = N0_0 * u0 + N0_1 * u1 + N0_2 * u2 + N0_3 * u3
            v1 = N0_1 * u0 + N1_1 * u1 + N1_2 * u2 + N1_3 * u3
            v2 = N0_2 * u0 + N1_2 * u1 + N2_2 * u2 + N2_3 * u3
            v3 = N0_3 * u0 + N1_3 * u1 + N2_3 * u2 + N3_3 * u3
            uv = u0 * v0 + u1 * v1 + u2 * v2 + u3 * v3
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
            N0_2 -= shrink * (v2)
            N0_3 -= shrink * (v3)
            if adjoint.shape[0] > 0:
                adjoint[k, 0] = r0
                adjoint[k, 1] = r1
                adjoint[k, 2] = r2
                adjoint[k, 3] = r3
                adjoint[k, 4] = N0_0
                adjoint[k, 5] = N0_1
                adjoint[k, 6] = N0_2
                adjoint[k, 7] = N0_3
                adjoint[k, 8] = N1_1
                adjoint[k, 9] = N1_2
                adjoint[k, 10] = N1_3
                adjoint[k, 11] = N2_2
                adjoint[k, 12] = N2_3
                adjoint[k, 13] = N3_3
            if k == starts[g]:
                G0_0 = r0 * r0 - N0_0
                G0_1 = r0 * r1 - N0_1
                G0_2 = r0 * r2 - N0_2
                G0_3 = r0 * r3 - N0_3
                G1_1 = r1 * r1 - N1_1
                G1_2 = r1 * r2 - N1_2
                G1_3 = r1 * r3 - N1_3
                G2_2 = r2 * r2 - N2_2
                G2_3 = r2 * r3 - N2_3
                G3_3 = r3 * r3 - N3_3
                by_start[first, 0] += 0.5 * weight[g] * G0_0
                by_start[first, 1] += 0.5 * weight[g] * G0_1
                by_start[first, 2] += 0.5 * weight[g] * G0_2
                by_start[first, 3] += 0.5 * weight[g] * G0_3
                by_start[first, 4] += 0.5 * weight[g] * G1_1
                by_start[first, 5] += 0.5 * weight[g] * G1_2
                by_start[first, 6] += 0.5 * weight[g] * G1_3
                by_start[first, 7] += 0.5 * weight[g] * G2_2
                by_start[first, 8] += 0.5 * weight[g] * G2_3
                by_start[first, 9] += 0.5 * weight[g] * G3_3
                if by_dt.shape[0] > 0:
                    by_dt[k] = zero
            elif dt[k] == 0.0:
                G0_0 = r0 * r0 - N0_0
                G0_1 = r0 * r1 - N0_1
                G0_2 = r0 * r2 - N0_2
                G0_3 = r0 * r3 - N0_3
                G1_1 = r1 * r1 - N1_1
                G1_2 = r1 * r2 - N1_2
                G1_3 = r1 * r3 - N1_3
                G2_2 = r2 * r2 - N2_2
                G2_3 = r2 * r3 - N2_3
                G3_3 = r3 * r3 - N3_3
                slope = zero
                along = 0.5 * noise[0] * (G2_2 + G3_3)
                along += m2 * r0 + P0_2 * G0_0 + P1_2 * G0_1 + P2_2 * G0_2 + P2_3 * G0_3
                along += m3 * r1 + P0_3 * G0_1 + P1_3 * G1_1 + P2_3 * G1_2 + P3_3 * G1_3
                along -= m0 * r0 + m1 * r1 + m2 * r2 + m3 * r3 + P0_0 * G0_0 + P0_1 * G0_1 + P0_2 * G0_2 + P0_3 * G0_3 + P0_1 * G0_1 + P1_1 * G1_1 + P1_2 * G1_2 + P1_3 * G1_3 + P0_2 * G0_2 + P1_2 * G1_2 + P2_2 * G2_2 + P2_3 * G2_3 + P0_3 * G0_3 + P1_3 * G1_3 + P2_3 * G2_3 + P3_3 * G3_3
                slope += rate[0] * along
                turn = zero
                turn += m0 * r1 + P0_0 * G0_1 + P0_1 * G1_1 + P0_2 * G1_2 + P0_3 * G1_3
                turn -= m1 * r0 + P0_1 * G0_0 + P1_1 * G0_1 + P1_2 * G0_2 + P1_3 * G0_3
                turn += m2 * r3 + P0_2 * G0_3 + P1_2 * G1_3 + P2_2 * G2_3 + P2_3 * G3_3
                turn -= m3 * r2 + P0_3 * G0_2 + P1_3 * G1_2 + P2_3 * G2_2 + P3_3 * G2_3
                slope += frequency[0] * turn
                if by_dt.shape[0] > 0:
                    by_dt[k] = weight[g] * slope
            else:
                step = dt[k]
                if step != last:
                    last = step
                    x = rate[0] * step
                    a0_0 = vexp(-x)
                    a0_1 = a0_0 * x
                    c0 = cos(frequency[0] * step)
                    s0 = sin(frequency[0] * step)
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
                G0_2 = r0 * r2 - N0_2
                G0_3 = r0 * r3 - N0_3
                G1_1 = r1 * r1 - N1_1
                G1_2 = r1 * r2 - N1_2
                G1_3 = r1 * r3 - N1_3
                G2_2 = r2 * r2 - N2_2
                G2_3 = r2 * r3 - N2_3
                G3_3 = r3 * r3 - N3_3
                slope = zero
                along = 0.5 * noise[0] * (G2_2 + G3_3)
                along += m2 * r0 + P0_2 * G0_0 + P1_2 * G0_1 + P2_2 * G0_2 + P2_3 * G0_3
                along += m3 * r1 + P0_3 * G0_1 + P1_3 * G1_1 + P2_3 * G1_2 + P3_3 * G1_3
                along -= m0 * r0 + m1 * r1 + m2 * r2 + m3 * r3 + P0_0 * G0_0 + P0_1 * G0_1 + P0_2 * G0_2 + P0_3 * G0_3 + P0_1 * G0_1 + P1_1 * G1_1 + P1_2 * G1_2 + P1_3 * G1_3 + P0_2 * G0_2 + P1_2 * G1_2 + P2_2 * G2_2 + P2_3 * G2_3 + P0_3 * G0_3 + P1_3 * G1_3 + P2_3 * G2_3 + P3_3 * G3_3
                slope += rate[0] * along
                dr0 += step * along
                dn0 += 0.5 * q0_2 * (G0_0 + G1_1) + 1.0 * q0_1 * (G0_2 + G1_3) + 0.5 * q0_0 * (G2_2 + G3_3)
                turn = zero
                turn += m0 * r1 + P0_0 * G0_1 + P0_1 * G1_1 + P0_2 * G1_2 + P0_3 * G1_3
                turn -= m1 * r0 + P0_1 * G0_0 + P1_1 * G0_1 + P1_2 * G0_2 + P1_3 * G0_3
                turn += m2 * r3 + P0_2 * G0_3 + P1_2 * G1_3 + P2_2 * G2_3 + P2_3 * G3_3
                turn -= m3 * r2 + P0_3 * G0_2 + P1_3 * G1_2 + P2_3 * G2_2 + P3_3 * G2_3
                slope += frequency[0] * turn
                df0 += step * turn
                if by_dt.shape[0] > 0:
                    by_dt[k] = weight[g] * slope
                t2 = a0_0 * r2 + a0_1 * r0
                t3 = a0_0 * r3 + a0_1 * r1
                t0 = a0_0 * r0
                t1 = a0_0 * r1
                r2 = c0 * t2 + s0 * t3
                r3 = c0 * t3 - s0 * t2
                r0 = c0 * t0 + s0 * t1
                r1 = c0 * t1 - s0 * t0
                U2_2 = a0_0 * N2_2 + a0_1 * N0_2
                U2_3 = a0_0 * N2_3 + a0_1 * N0_3
                U2_0 = a0_0 * N0_2 + a0_1 * N0_0
                U2_1 = a0_0 * N1_2 + a0_1 * N0_1
                U3_3 = a0_0 * N3_3 + a0_1 * N1_3
                U3_0 = a0_0 * N0_3 + a0_1 * N0_1
                U3_1 = a0_0 * N1_3 + a0_1 * N1_1
                U0_0 = a0_0 * N0_0
                U0_1 = a0_0 * N0_1
                U1_1 = a0_0 * N1_1
                w00 = a0_0 * U2_2 + a0_1 * U2_0
                w01 = a0_0 * U2_3 + a0_1 * U2_1
                w11 = a0_0 * U3_3 + a0_1 * U3_1
                y00 = c0 * w00 + s0 * w01
                y10 = c0 * w01 - s0 * w00
                y01 = c0 * w01 + s0 * w11
                y11 = c0 * w11 - s0 * w01
                z00 = c0 * y00 + s0 * y01
                z01 = c0 * y01 - s0 * y00
                z11 = c0 * y11 - s0 * y10
                N2_2 = z00
                N2_3 = z01
                N3_3 = z11
                w00 = a0_0 * U2_0
                w01 = a0_0 * U2_1
                w10 = a0_0 * U3_0
                w11 = a0_0 * U3_1
                y00 = c0 * w00 + s0 * w10
                y10 = c0 * w10 - s0 * w00
                y01 = c0 * w01 + s0 * w11
                y11 = c0 * w11 - s0 * w01
                z00 = c0 * y00 + s0 * y01
                z01 = c0 * y01 - s0 * y00
                z10 = c0 * y10 + s0 * y11
                z11 = c0 * y11 - s0 * y10
                N0_2 = z00
                N1_2 = z01
                N0_3 = z10
                N1_3 = z11
                w00 = a0_0 * U0_0
                w01 = a0_0 * U0_1
                w11 = a0_0 * U1_1
                y00 = c0 * w00 + s0 * w01
                y10 = c0 * w01 - s0 * w00
                y01 = c0 * w01 + s0 * w11
                y11 = c0 * w11 - s0 * w01
                z00 = c0 * y00 + s0 * y01
                z01 = c0 * y01 - s0 * y00
                z11 = c0 * y11 - s0 * y10
                N0_0 = z00
                N0_1 = z01
                N1_1 = z11
        divergence[g] = total + 0.5 * np.log(product)
        by_rate[0] += weight[g] * dr0
        by_noise[0] += weight[g] * dn0
        by_frequency[0] += weight[g] * df0
    return -1
