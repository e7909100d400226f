"""Expected log normal distribution function as a compiled loop.

``log Phi(z)`` and ``phi(z) / Phi(z)`` come from one exponential, one logarithm and the scaled
complementary error function ``erfcx(t) = exp(t^2) erfc(t)`` at ``t = |z| / sqrt 2``. On the whole
half-line ``(1 + 2t) erfcx(t)`` is a smooth function of ``u = (t - k) / (t + k)`` with ``k = 3.75``
(Shepherd & Laframboise, 1981), which a polynomial of degree 20 matches to rounding. The logarithm
takes its argument apart into exponent and mantissa, like :func:`gpvi.linalg._vexp.vexp` in reverse.

This module imports Numba; import it inside functions only.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.polynomial import chebyshev
from scipy.special import erfcx

from gpvi.linalg._vexp import FLAGS, vexp

__all__ = ["expected_log_ndtr_loop"]

# For loops without bit tricks: sums in any order.
_SUM_FLAGS = FLAGS | {"reassoc"}

_TURN, _DEGREE = 3.75, 20


def _scaled(u: np.ndarray) -> np.ndarray:
    t = _TURN * (1.0 + u) / (1.0 - u)
    return (1.0 + 2.0 * t) * erfcx(t)


# Highest power first. Compiled loops take its entries for constants.
_SERIES: Any = chebyshev.chebinterpolate(_scaled, _DEGREE)
_C = tuple(float(coefficient) for coefficient in chebyshev.cheb2poly(_SERIES)[::-1])
_ROOT_HALF = math.sqrt(0.5)
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)  # of the standard normal at zero
_LN2 = math.log(2.0)

# Farther out, squares would overflow.
_FARTHEST = 1e150

# The bits of sqrt(1/2), and those of 1.5 * 2^52, whose low bits are an integer.
_ROOT_HALF_BITS = int(np.float64(_ROOT_HALF).view(np.int64))
_ROUND = 6755399441055744.0
_ROUND_BITS = int(np.float64(_ROUND).view(np.int64))
_EXPONENT_OFFSET = (1023 << 52) - _ROOT_HALF_BITS


@intrinsic
def _split(typing_context: Any, value: Any) -> Any:  # pragma: no cover - runs in the compiler
    """``(e, m)`` with ``value = 2^e m`` and ``m`` between ``sqrt(1/2)`` and ``sqrt 2``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, double = ir.IntType(64), ir.DoubleType()
        bits = builder.bitcast(arguments[0], wide)
        biased = builder.lshr(
            builder.add(bits, ir.Constant(wide, _EXPONENT_OFFSET)), ir.Constant(wide, 52)
        )
        exponent = builder.sub(biased, ir.Constant(wide, 1023))
        mantissa = builder.sub(bits, builder.shl(exponent, ir.Constant(wide, 52)))
        shifted = builder.add(exponent, ir.Constant(wide, _ROUND_BITS))
        pair = [
            builder.fsub(builder.bitcast(shifted, double), ir.Constant(double, _ROUND)),
            builder.bitcast(mantissa, double),
        ]
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(types.float64, 2)(types.float64), generate


@njit(cache=True, nogil=True, inline="always", fastmath=FLAGS, error_model="numpy")
def _vlog(x: float) -> float:  # pragma: no cover - compiled
    """``log(x)`` for positive normal numbers."""
    exponent, mantissa = _split(x)  # type: ignore[call-arg, var-annotated]
    s = (mantissa - 1.0) / (mantissa + 1.0)
    s2 = s * s
    p = 2.0 / 19.0
    p = p * s2 + 2.0 / 17.0
    p = p * s2 + 2.0 / 15.0
    p = p * s2 + 2.0 / 13.0
    p = p * s2 + 2.0 / 11.0
    p = p * s2 + 2.0 / 9.0
    p = p * s2 + 2.0 / 7.0
    p = p * s2 + 2.0 / 5.0
    p = p * s2 + 2.0 / 3.0
    p = p * s2 + 2.0
    return exponent * _LN2 + p * s


@njit(cache=True, nogil=True, fastmath=FLAGS, error_model="numpy")
def _at_nodes(
    mean: float, deviation: float, nodes: np.ndarray, logs: np.ndarray, ratios: np.ndarray
) -> None:  # pragma: no cover - compiled
    """``log Phi`` and ``phi / Phi`` at the nodes of one row."""
    for k in range(nodes.shape[0]):
        z = min(max(mean + deviation * nodes[k], -_FARTHEST), _FARTHEST)
        t = abs(z) * _ROOT_HALF
        u = (t - _TURN) / (t + _TURN)
        p = _C[0]
        p = p * u + _C[1]
        p = p * u + _C[2]
        p = p * u + _C[3]
        p = p * u + _C[4]
        p = p * u + _C[5]
        p = p * u + _C[6]
        p = p * u + _C[7]
        p = p * u + _C[8]
        p = p * u + _C[9]
        p = p * u + _C[10]
        p = p * u + _C[11]
        p = p * u + _C[12]
        p = p * u + _C[13]
        p = p * u + _C[14]
        p = p * u + _C[15]
        p = p * u + _C[16]
        p = p * u + _C[17]
        p = p * u + _C[18]
        p = p * u + _C[19]
        p = p * u + _C[20]
        half = 0.5 * p / (1.0 + 2.0 * t)
        square = 0.5 * z * z
        density = vexp(-square)
        left = z < 0.0
        scaled = half if left else 1.0 - density * half
        logs[k] = _vlog(scaled) - (square if left else 0.0)
        ratios[k] = _DENSITY * (1.0 if left else density) / scaled


@njit(cache=True, nogil=True, fastmath=_SUM_FLAGS, error_model="numpy")
def _sums(
    weights: np.ndarray, nodes: np.ndarray, logs: np.ndarray, ratios: np.ndarray
) -> tuple[float, float, float]:  # pragma: no cover - compiled
    value = slope = spread = 0.0
    for k in range(nodes.shape[0]):
        value += weights[k] * logs[k]
        slope += weights[k] * ratios[k]
        spread += weights[k] * nodes[k] * ratios[k]
    return value, slope, spread


@njit(cache=True, nogil=True, fastmath=FLAGS, error_model="numpy")
def expected_log_ndtr_loop(
    mean: np.ndarray,
    variance: np.ndarray,
    nodes: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """``E log Phi(f)`` with its derivatives by mean and variance into the rows of ``out`` [3, N]."""
    logs, ratios = np.empty(nodes.shape[0]), np.empty(nodes.shape[0])
    for n in range(mean.shape[0]):
        deviation = math.sqrt(variance[n])
        _at_nodes(mean[n], deviation, nodes, logs, ratios)
        value, slope, spread = _sums(weights, nodes, logs, ratios)
        out[0, n], out[1, n], out[2, n] = value, slope, 0.5 * spread / deviation
