"""Solves with a linear operator as differentiable functions of its representation."""

from typing import Any

import torch
from linear_operator.operators import LinearOperator
from torch import Tensor

from gpvi.linalg.markov._adjoint import refuse_graph

__all__ = ["InverseQuadratic", "Solve"]


class Solve(torch.autograd.Function):
    """``K^-1 Y``, with derivatives from one more solve."""

    @staticmethod
    def forward(ctx: Any, tree: Any, rhs: Tensor, *representation: Tensor) -> Tensor:
        solution: Tensor = tree(*representation)._solve(rhs)
        ctx.tree = tree
        ctx.save_for_backward(solution, *representation)
        return solution

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph()
        solution, *representation = ctx.saved_tensors
        operator = _revived(ctx.tree, representation, ctx.needs_input_grad[2:])
        left = operator._solve(upstream)
        return None, left, *operator._bilinear_derivative(-left, solution)


class InverseQuadratic(torch.autograd.Function):
    """``y' K^-1 y`` of every column of Y, with derivatives from the solution that gave it."""

    @staticmethod
    def forward(ctx: Any, tree: Any, rhs: Tensor, *representation: Tensor) -> Tensor:
        solution = tree(*representation)._solve(rhs)
        ctx.tree = tree
        ctx.save_for_backward(solution, *representation)
        return (rhs * solution).sum(-2)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph()
        solution, *representation = ctx.saved_tensors
        operator = _revived(ctx.tree, representation, ctx.needs_input_grad[2:])
        left = solution * upstream.unsqueeze(-2)
        return None, 2.0 * left, *operator._bilinear_derivative(-left, solution)


def _revived(tree: Any, representation: list[Tensor], wanted: tuple[bool, ...]) -> LinearOperator:
    """The operator on leaves of its own, that ask for derivatives where some are wanted."""
    leaves = [
        tensor.detach().requires_grad_(want)
        for tensor, want in zip(representation, wanted, strict=True)
    ]
    return tree(*leaves)
