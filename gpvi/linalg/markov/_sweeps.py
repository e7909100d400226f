"""Linear recursions along time and their transposes: what makes covariances of Markov processes fast."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpvi.linalg.markov.scan import affine, associative_scan
from gpvi.linalg.markov.smoothing import runs_compiled

__all__ = ["sweep"]


def sweep(transition: Tensor, shift: Tensor, reverse: bool = False) -> Tensor:
    r"""States of a linear recursion, or of its transpose.

    .. math:: s_k = A_k s_{k-1} + b_k, \qquad \text{in reverse} \quad
              g_k = b_k + A_{k+1}^\top g_{k+1}.

    Parameters
    ----------
    transition : Tensor, shape [*b, N, d, d]
        ``A``; the first is not used, and zero begins anew.
    shift : Tensor, shape [*b, N, d, C]
        ``b``; batch dims broadcast.
    reverse : bool
        Whether to run the transpose, from the last row to the first.

    Returns
    -------
    Tensor, shape [*b, N, d, C]
        Differentiable any number of times: each map is the adjoint of the other.

    Examples
    --------
    >>> import torch
    >>> half, ones = torch.full((3, 1, 1), 0.5), torch.ones(3, 1, 1)
    >>> sweep(half, ones).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    >>> sweep(half, ones, reverse=True).flatten()
    tensor([1.7500, 1.5000, 1.0000])
    """
    states: Tensor = _Sweep.apply(transition, shift, reverse)
    return states


class _Sweep(torch.autograd.Function):
    """A recursion; the adjoint of its states is the recursion the other way."""

    @staticmethod
    def forward(ctx: Any, transition: Tensor, shift: Tensor, reverse: bool) -> Tensor:
        run = _run_compiled if runs_compiled("auto", shift) else _run_scan
        states = run(transition, shift, reverse)
        ctx.reverse, ctx.shape = reverse, shift.shape
        ctx.save_for_backward(transition, states)
        return states

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        transition, states = ctx.saved_tensors
        adjoint = sweep(transition, upstream, not ctx.reverse)
        by_transition = None
        if ctx.needs_input_grad[0]:
            forward, backward = (adjoint, states) if ctx.reverse else (states, adjoint)
            slope = backward[..., 1:, :, :] @ forward[..., :-1, :, :].mT
            slope = torch.nn.functional.pad(slope, (0, 0, 0, 0, 1, 0))
            by_transition = slope.sum_to_size(transition.shape)
        return by_transition, adjoint.sum_to_size(ctx.shape), None


def _run_compiled(transition: Tensor, shift: Tensor, reverse: bool) -> Tensor:
    from gpvi.linalg.markov import _sweeps_cpu

    batch = torch.broadcast_shapes(transition.shape[:-3], shift.shape[:-3])
    A = transition.detach().double().expand(*batch, *transition.shape[-3:])
    x = shift.detach().double().expand(*batch, *shift.shape[-3:]).numpy().copy(order="C")
    for place in np.ndindex(*batch):
        _sweeps_cpu.sweep(np.ascontiguousarray(A[place].numpy()), x[place], reverse)
    return torch.from_numpy(x).to(shift.dtype)


def _run_scan(transition: Tensor, shift: Tensor, reverse: bool) -> Tensor:
    batch = torch.broadcast_shapes(transition.shape[:-3], shift.shape[:-3])
    A = transition.expand(*batch, *transition.shape[-3:])
    x = shift.expand(*batch, *shift.shape[-3:])
    if not reverse:
        return associative_scan(affine, (A, x))[1]
    # The last row has no successor; its matrix is not used.
    later = torch.roll(A, -1, -3).mT
    return associative_scan(affine, (later.flip(-3), x.flip(-3)))[1].flip(-3)
