"""Four rows side by side: a vector of four doubles as a type of compiled loops.

Small factorisations do not fill vector registers one at a time, but four of equal size do, entry by
entry: every number of an algorithm written for one matrix becomes a vector of four. LLVM does not find
that by itself (Numba runs it without its pass that would look for it), so the vector is a type here,
with the few operations that a factorisation needs. LLVM turns it into whatever registers the processor
has.

Vectors live in flat arrays of doubles, entry k of four matrices at 4 k, ..., 4 k + 3, and an array
subscript is the number k times :data:`LANES`. There is no bounds check. This module imports Numba;
import it inside functions only.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = [
    "LANES",
    "add",
    "add_product",
    "difference",
    "inverse_root",
    "load",
    "product",
    "store",
    "subtract_product",
    "zeros",
]

#: Rows that are worked on together. Twice as many would need more than the first-level cache.
LANES = 4

_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
# Lets a product and a sum become one instruction; NaN keeps its meaning, so that a failed
# factorisation can be seen.
_FUSE = ("contract", "nsz")


class LanesType(types.Type):
    """The vector as Numba sees it."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes{LANES}")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    """The vector as LLVM sees it."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


_lanes = LanesType()

# To a type checker an intrinsic takes what the function below it takes, the compiler's context among it.
_operation: Any = intrinsic


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # pragma: no cover
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), _VECTOR.as_pointer())


@_operation
def load(typing_context: Any, array: Any, start: Any) -> Any:  # pragma: no cover
    """The vector at a subscript of a contiguous array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_address(context, builder, signature, arguments))
        value.align = 8
        return value

    return _lanes(array, types.int64), generate


@_operation
def store(typing_context: Any, array: Any, start: Any, value: Any) -> Any:  # pragma: no cover
    """Write a vector at a subscript of a contiguous array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature, arguments)).align = 8
        return context.get_dummy_value()

    return types.void(array, types.int64, _lanes), generate


@_operation
def zeros(typing_context: Any) -> Any:  # pragma: no cover
    """A vector of zeros."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_VECTOR, [0.0] * LANES)

    return _lanes(), generate


@_operation
def product(typing_context: Any, x: Any, y: Any) -> Any:  # pragma: no cover
    """``x y``"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments, flags=_FUSE)

    return _lanes(_lanes, _lanes), generate


@_operation
def add(typing_context: Any, x: Any, y: Any) -> Any:  # pragma: no cover
    """``x + y``"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=_FUSE)

    return _lanes(_lanes, _lanes), generate


@_operation
def difference(typing_context: Any, x: Any, y: Any) -> Any:  # pragma: no cover
    """``x - y``"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fsub(*arguments, flags=_FUSE)

    return _lanes(_lanes, _lanes), generate


@_operation
def add_product(typing_context: Any, total: Any, x: Any, y: Any) -> Any:  # pragma: no cover
    """``total + x y``"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, x, y = arguments
        return builder.fadd(total, builder.fmul(x, y, flags=_FUSE), flags=_FUSE)

    return _lanes(_lanes, _lanes, _lanes), generate


@_operation
def subtract_product(typing_context: Any, total: Any, x: Any, y: Any) -> Any:  # pragma: no cover
    """``total - x y``"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, x, y = arguments
        return builder.fsub(total, builder.fmul(x, y, flags=_FUSE), flags=_FUSE)

    return _lanes(_lanes, _lanes, _lanes), generate


@_operation
def inverse_root(typing_context: Any, x: Any) -> Any:  # pragma: no cover
    """``1 / sqrt(x)``; NaN for negative x and infinite for zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        root = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.sqrt.v{LANES}f64"
        )
        return builder.fdiv(ir.Constant(_VECTOR, [1.0] * LANES), builder.call(root, arguments))

    return _lanes(_lanes), generate
