"""Eight right-hand sides at once: rows of eight lanes as operations that compiled loops can call.

Numba turns no loop over scattered rows into vector instructions, so these few lines are written as LLVM
instructions. They are vectors on every processor, split into as many registers as it takes. ``X`` is a
contiguous array of shape [n, 8]; indices are not checked.

This module imports Numba; import it inside functions only.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "LANES",
    "collect_lanes",
    "divide_lanes",
    "dot_lanes",
    "lowest_bit",
    "subtract_lanes",
]

#: Right-hand sides in a row of lanes.
LANES = 8

_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_FUSED = ("contract",)

# To a type checker, calls would lack the compiler's context.
_operation: Any = intrinsic


def _lanes_at(context: Any, builder: Any, kind: Any, array: Any, row: Any) -> Any:
    """Address of a row of eight lanes."""
    data = context.make_array(kind)(context, builder, array).data
    offset = builder.mul(row, ir.Constant(ir.IntType(64), LANES))
    return builder.bitcast(builder.gep(data, [offset]), _VECTOR.as_pointer())


def _load(builder: Any, address: Any) -> Any:
    value = builder.load(address)
    value.align = 8
    return value


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, address).align = 8


def _all_lanes(builder: Any, value: Any) -> Any:
    """A scalar in every lane."""
    vector = ir.VectorType(value.type, LANES)
    blank = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(blank, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, blank, zeros)


def _switched(builder: Any, value: Any, mask: Any) -> Any:
    """Zero where the lane's bit in the mask is not set."""
    bits = ir.Constant(ir.VectorType(ir.IntType(8), LANES), [1 << k for k in range(LANES)])
    zeros = ir.Constant(ir.VectorType(ir.IntType(8), LANES), [0] * LANES)
    on = builder.icmp_unsigned("!=", builder.and_(_all_lanes(builder, mask), bits), zeros)
    return builder.select(on, value, ir.Constant(_VECTOR, [0.0] * LANES))


def _minus_product(builder: Any, total: Any, left: Any, right: Any) -> Any:
    return builder.fsub(total, builder.fmul(left, right, flags=_FUSED), flags=_FUSED)


@_operation
def lowest_bit(typing_context: Any, word: Any) -> Any:  # pragma: no cover - runs in the compiler
    """Number of the lowest bit that is set in a word that is not zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@_operation
def divide_lanes(
    typing_context: Any, lanes: Any, row: Any, inverse: Any, mask: Any, norms: Any, block: Any
) -> Any:  # pragma: no cover - runs in the compiler
    """``X[row] *= inverse`` where the mask says so, else zero; adds the squares to ``norms[block]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, row, inverse, mask, norms, block = arguments
        here = _lanes_at(context, builder, signature.args[0], lanes, row)
        scaled = builder.fmul(_load(builder, here), _all_lanes(builder, inverse))
        x = _switched(builder, scaled, mask)
        _store(builder, x, here)
        place = _lanes_at(context, builder, signature.args[4], norms, block)
        squares = builder.fmul(x, x, flags=_FUSED)
        _store(builder, builder.fadd(_load(builder, place), squares, flags=_FUSED), place)
        return context.get_dummy_value()

    kinds = (lanes, types.uint64, types.float64, types.uint8, norms, types.uint64)
    return types.none(*kinds), generate


@_operation
def subtract_lanes(
    typing_context: Any, lanes: Any, row: Any, scale: Any, other: Any
) -> Any:  # pragma: no cover - runs in the compiler
    """``X[row] -= scale X[other]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, row, scale, other = arguments
        here = _lanes_at(context, builder, signature.args[0], lanes, row)
        x = _load(builder, _lanes_at(context, builder, signature.args[0], lanes, other))
        result = _minus_product(builder, _load(builder, here), _all_lanes(builder, scale), x)
        _store(builder, result, here)
        return context.get_dummy_value()

    return types.none(lanes, types.uint64, types.float64, types.uint64), generate


@_operation
def collect_lanes(
    typing_context: Any,
    source: Any,
    lanes: Any,
    row: Any,
    weights: Any,
    block: Any,
    hits: Any,
    entries: Any,
    count: Any,
    blocks: Any,
    inverse: Any,
    mask: Any,
) -> Any:  # pragma: no cover - runs in the compiler
    """``Y[row] = (weights X[row] - sum_j entries_j Y[blocks hits_j + block]) inverse`` under the mask."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        source, lanes, row, weights, block, hits, entries, count, blocks, inverse, mask = arguments
        x = _load(builder, _lanes_at(context, builder, kinds[0], source, row))
        weight = _load(builder, _lanes_at(context, builder, kinds[3], weights, block))
        total = cgutils.alloca_once_value(builder, builder.fmul(x, weight))
        hit_data = context.make_array(kinds[5])(context, builder, hits).data
        entry_data = context.make_array(kinds[6])(context, builder, entries).data
        with cgutils.for_range(builder, count) as loop:
            hit = builder.load(builder.gep(hit_data, [loop.index]))
            other = builder.add(builder.mul(hit, blocks), block)
            y = _load(builder, _lanes_at(context, builder, kinds[1], lanes, other))
            entry = _all_lanes(builder, builder.load(builder.gep(entry_data, [loop.index])))
            builder.store(_minus_product(builder, builder.load(total), entry, y), total)
        scaled = builder.fmul(builder.load(total), _all_lanes(builder, inverse))
        here = _lanes_at(context, builder, kinds[1], lanes, row)
        _store(builder, _switched(builder, scaled, mask), here)
        return context.get_dummy_value()

    word = types.uint64
    sums = (hits, entries, types.int64, word, types.float64, types.uint8)
    return types.none(source, lanes, word, weights, word, *sums), generate


@_operation
def dot_lanes(
    typing_context: Any, left: Any, row: Any, right: Any, other: Any
) -> Any:  # pragma: no cover - runs in the compiler
    """``Y[row]'X[other]``, summed as a tree."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, row, right, other = arguments
        y = _load(builder, _lanes_at(context, builder, signature.args[0], left, row))
        x = _load(builder, _lanes_at(context, builder, signature.args[2], right, other))
        part, size = builder.fmul(y, x), LANES
        while size > 1:
            size //= 2
            kind = ir.VectorType(ir.IntType(32), size)
            halves = [ir.Constant(kind, [k + n for k in range(size)]) for n in (0, size)]
            low, high = (builder.shuffle_vector(part, part, half) for half in halves)
            part = builder.fadd(low, high)
        return builder.extract_element(part, ir.Constant(ir.IntType(32), 0))

    return types.float64(left, types.uint64, right, types.uint64), generate
