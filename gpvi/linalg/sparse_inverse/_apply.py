"""Products and solves with a factor as differentiable operations, whichever engine runs them."""

from typing import Any

import torch
from torch import Tensor

from gpvi.linalg.sparse_inverse._engine import (
    arrange,
    check_vector,
    engine_for,
    working_dtype,
)
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["apply_factor", "apply_flat", "outer_flat"]

# Operation whose result is the gradient by the vector.
_ADJOINT = {
    "product": "transpose_product",
    "transpose_product": "product",
    "solve": "transpose_solve",
    "transpose_solve": "solve",
}


def apply_factor(
    operation: str, pattern: NeighborPattern, columns: Tensor, vector: Tensor
) -> Tensor:
    """A product or solve by name, for tensors with batch dims."""
    pattern.check(columns)
    check_vector(pattern, "vector", vector, columns)
    dtype, inside = working_dtype(columns, vector)
    flat, vectors, restore = arrange(columns.to(inside), vector.to(inside))
    return restore(apply_flat(operation, pattern, flat, vectors)).to(dtype)


def apply_flat(
    operation: str, pattern: NeighborPattern, columns: Tensor, vectors: Tensor
) -> Tensor:
    """The same for columns [F, M, m + 1], or [1, M, m + 1] for all, and vectors [F, M, R]."""
    F, M, R = vectors.shape
    if len(columns) == F:
        return _Apply.apply(operation, pattern, columns, vectors)
    folded = vectors.movedim(0, 1).reshape(1, M, F * R)
    x: Tensor = _Apply.apply(operation, pattern, columns, folded)
    return x.reshape(M, F, R).movedim(0, 1)


def outer_flat(pattern: NeighborPattern, left: Tensor, right: Tensor) -> Tensor:
    """Entries [F, M, m + 1] of ``sum_r l_r r_r'`` on the pattern, for vectors [F, M, R]."""
    entries: Tensor = _Outer.apply(pattern, left, right)
    return entries


class _Apply(torch.autograd.Function):
    """``A v`` with A one of U, U', U^-1, U^-T."""

    @staticmethod
    def forward(
        ctx: Any, operation: str, pattern: NeighborPattern, columns: Tensor, vectors: Tensor
    ) -> Tensor:
        run = getattr(engine_for("factor", columns), operation)
        x: Tensor = run(pattern, columns.detach(), vectors.detach())
        ctx.operation, ctx.pattern = operation, pattern
        ctx.save_for_backward(columns, vectors, x)
        return x

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        columns, vectors, x = ctx.saved_tensors
        operation, pattern = ctx.operation, ctx.pattern
        adjoint = _ADJOINT[operation]
        by_columns = by_vectors = None
        if operation.endswith("solve"):
            # x solves U x = b, so that dU counts as -dU x.
            by_vectors = _Apply.apply(adjoint, pattern, columns, upstream)
            ahead, behind = by_vectors, -x
        else:
            if ctx.needs_input_grad[3]:
                by_vectors = _Apply.apply(adjoint, pattern, columns, upstream)
            ahead, behind = upstream, vectors
        if ctx.needs_input_grad[2]:
            left, right = (behind, ahead) if "transpose" in operation else (ahead, behind)
            by_columns = outer_flat(pattern, left, right)
        return None, None, by_columns, by_vectors


class _Outer(torch.autograd.Function):
    """Bilinear, so that its derivatives are products with the incoming gradient as a factor."""

    @staticmethod
    def forward(ctx: Any, pattern: NeighborPattern, left: Tensor, right: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(left, right)
        entries: Tensor = engine_for("factor", left).outer(pattern, left.detach(), right.detach())
        return entries

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        left, right = ctx.saved_tensors
        by_left = by_right = None
        if ctx.needs_input_grad[1]:
            by_left = _Apply.apply("product", ctx.pattern, upstream, right)
        if ctx.needs_input_grad[2]:
            by_right = _Apply.apply("transpose_product", ctx.pattern, upstream, left)
        return None, by_left, by_right
