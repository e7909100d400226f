"""A vectorised exponential for compiled loops.

Without Intel's SVML, Numba calls the C library's `exp` one entry at a time. :func:`vexp` is written
so that LLVM turns a loop over it into vector instructions: ``x = k log 2 + r`` with ``|r|`` at most
half of ``log 2`` (Cody and Waite, 1980), a polynomial for ``exp(r)``, and ``2^k`` put straight into
the exponent bits. The nearest integer ``k`` is found by adding ``1.5 * 2^52``: the low bits of the
sum are ``k``.

That trick does not survive re-association: ``(x + c) - c`` must not become ``x``. An inlined
function takes over the flags of its caller, so loops that call :func:`vexp` compile with
:data:`FLAGS`, and reductions that want ``reassoc`` live in functions of their own. ``nnan`` lets
the compiler assume that no NaN occurs: check the inputs first.

This module imports Numba; import it inside functions only.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["FLAGS", "vexp"]

#: Flags of every loop that calls :func:`vexp`; never add ``reassoc``.
FLAGS = {"contract", "nnan", "ninf", "nsz"}

# Below this, exp is zero for every purpose here, and 2^k would leave the range of normal numbers.
_LOWEST = -700.0
_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.6931471803691238  # the leading bits of log 2: k * _LN2_HIGH is exact
_LN2_LOW = 1.9082149292705877e-10  # the rest
_ROUND = 6755399441055744.0  # 1.5 * 2^52


@intrinsic
def _bits_of(typing_context: Any, value: Any) -> Any:  # pragma: no cover - runs in the compiler
    """The 64 bits of a double, as an integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic
def _double_of(typing_context: Any, value: Any) -> Any:  # pragma: no cover - runs in the compiler
    """The double with these 64 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@njit(cache=True, nogil=True, inline="always", fastmath=FLAGS)
def vexp(x: float) -> float:  # pragma: no cover - compiled
    """``exp(x)`` for ``x`` up to 700, to two units in the last place; ``exp(-700)`` below -700."""
    x = max(x, _LOWEST)
    shifted = x * _LOG2_E + _ROUND
    k = shifted - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    # Taylor coefficients 1/12!, ..., 1/2!: on |r| <= log(2)/2 the next term is below 2e-16.
    p = 2.08767569878681e-09
    p = p * r + 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 1.984126984126984e-04
    p = p * r + 1.388888888888889e-03
    p = p * r + 8.333333333333333e-03
    p = p * r + 4.1666666666666664e-02
    p = p * r + 1.6666666666666666e-01
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return _double_of(_bits_of(p) + (_bits_of(shifted) << 52))  # type: ignore[call-arg]
