"""The matrices of a Gauss-Markov model on given steps, with the sites, in one batch shape."""

from typing import NamedTuple

import torch
from torch import Tensor

from gpvi.linalg.markov._site_update import canonical_sites
from gpvi.linalg.markov.model import MarkovModel, Steps

__all__ = ["Chain", "build_chain", "transition_and_noise"]


class Chain(NamedTuple):
    """States ``x_k = A_k x_{k-1} + N(0, Q_k)`` with sites on ``H_k x_k``.

    A series begins where A is zero and Q is the covariance of the first state, so that any number
    of series behind each other is one chain.

    Parameters
    ----------
    transition : Tensor, shape [*b, T, d, d]
        ``A``.
    noise : Tensor, shape [*b, T, d, d]
        ``Q``.
    readout : Tensor, shape [*b, T, K, d]
        ``H``.
    lam1 : Tensor, shape [*b, T, K, 1]
        Linear terms of the sites.
    lam2 : Tensor, shape [*b, T, K, K]
        Precisions of the sites.
    """

    transition: Tensor
    noise: Tensor
    readout: Tensor
    lam1: Tensor
    lam2: Tensor


def transition_and_noise(model: MarkovModel, steps: Steps) -> tuple[Tensor, Tensor]:
    """Transition matrices and noise of a chain, each with batch dims of its own.

    Parameters
    ----------
    model : MarkovModel
        Blocks.
    steps : Steps
        Stamps.

    Returns
    -------
    tuple of Tensor, shape [*b, T, d, d]
        ``A``, zero where a series begins, and ``Q``, the initial covariance there.
    """
    A = model.transition(steps.dt).index_fill(-3, steps.starts, 0.0)
    Q, start = model.process_noise(steps.dt), model.initial(steps.first)
    shape = torch.broadcast_shapes(Q.shape[:-3], start.shape[:-3])
    Q = Q.expand(*shape, *Q.shape[-3:])
    return A, Q.index_copy(-3, steps.starts, start.expand(*shape, *start.shape[-3:]))


def build_chain(model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor) -> Chain:
    """Chain of a model on steps with sites.

    Parameters
    ----------
    model : MarkovModel
        Blocks and readout.
    steps : Steps
        Stamps.
    lam1 : Tensor, shape [*b, T] or [*b, T, K]
        Linear terms.
    lam2 : Tensor, shape [*b, T] or [*b, T, K, K]
        Precisions.

    Returns
    -------
    Chain
        Every tensor expanded to the common batch shape.
    """
    parts = (
        *transition_and_noise(model, steps),
        *canonical_sites(model, steps.num_rows, lam1, lam2),
    )
    shape = torch.broadcast_shapes(*(part.shape[:-3] for part in parts))
    return Chain(*(part.expand(*shape, steps.num_rows, *part.shape[-2:]) for part in parts))
