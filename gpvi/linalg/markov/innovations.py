"""Prior paths as functions of independent innovations, and back."""

import torch
from torch import Tensor

from gpvi.linalg.markov._semidefinite import semidefinite_cholesky
from gpvi.linalg.markov._tensor_chain import transition_and_noise
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.scan import affine, associative_scan

__all__ = ["innovation_factors", "run_affine"]


def innovation_factors(model: MarkovModel, steps: Steps) -> tuple[Tensor, Tensor, Tensor]:
    """Transitions and factors of the process noise of a chain.

    Parameters
    ----------
    model : MarkovModel
        The process.
    steps : Steps
        Stamps.

    Returns
    -------
    transition : Tensor, shape [*b, T, d, d]
        ``A``, zero where a series begins.
    factor : Tensor, shape [*b, T, d, d]
        Lower triangular ``C`` with ``C C' = Q``, of the initial covariance where a series begins.
    exists : Tensor of bool, shape [*b, T, d]
        False where a state gets no noise of its own; the column of C is zero there.
    """
    A, Q = transition_and_noise(model, steps)
    C = semidefinite_cholesky(Q)
    return A, C, C.diagonal(dim1=-2, dim2=-1) > 0


def run_affine(transition: Tensor, shift: Tensor) -> Tensor:
    """States ``z_k = A_k z_{k-1} + b_k`` of all rows, by a scan.

    Parameters
    ----------
    transition : Tensor, shape [*b, T, d, d]
        ``A``; the first is not used.
    shift : Tensor, shape [*S, *b, T, d]
        ``b``.

    Returns
    -------
    Tensor, shape [*S, *b, T, d]
        Differentiable in both.
    """
    elements = transition, shift.unsqueeze(-1)
    return associative_scan(affine, elements)[1].squeeze(-1)


def segment_products(matrices: Tensor, ends: Tensor) -> Tensor:
    """Products of matrices along time, begun anew after every marked row.

    Parameters
    ----------
    matrices : Tensor, shape [*b, T, d, d]
        Later ones are multiplied from the left.
    ends : Tensor of bool, shape [T] or [*b, T]
        True on the last row of every segment.

    Returns
    -------
    Tensor, shape [*b, T, d, d]
        Product of every row with the earlier ones of its segment.
    """
    begins = torch.nn.functional.pad(ends[..., :-1], (1, 0), value=True)
    mark = begins[..., None, None].expand(*matrices.shape[:-2], 1, 1).to(matrices.dtype)

    def combine(earlier: tuple[Tensor, ...], later: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (first, begun), (second, begins_here) = earlier, later
        joined = torch.where(begins_here > 0, second, second @ first)
        return joined, torch.maximum(begun, begins_here)

    return associative_scan(combine, (matrices, mark))[0]
