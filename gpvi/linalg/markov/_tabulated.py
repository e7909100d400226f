"""A Markov model whose matrices are tables, one row after the other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.linalg.markov.blocks import MarkovBlock
from gpvi.linalg.markov.model import MarkovModel, Steps

__all__ = ["TabulatedBlock", "tabulated_model"]


@dataclass(frozen=True, eq=False)
class TabulatedBlock(MarkovBlock):
    """A block that hands out given matrices, whatever the steps.

    Parameters
    ----------
    matrices : Tensor, shape [*b, N, n, n]
        Transitions, one per row.
    noises : Tensor, shape [*b, N, n, n]
        Process noise, the first state's covariance in the first row.
    """

    matrices: Tensor
    noises: Tensor

    @property
    def dimension(self) -> int:
        """Number n of states."""
        return self.matrices.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dims of the tables."""
        return self.matrices.shape[:-3]

    @property
    def readout(self) -> Tensor:
        """The first unit vector, shape [*b, n]; rows have readouts of their own."""
        first = torch.zeros(self.dimension, dtype=self.matrices.dtype, device=self.matrices.device)
        first[0] = 1.0
        return first.expand(*self.batch_shape, self.dimension)

    def transition(self, dt: Tensor) -> Tensor:
        """The table of transitions, for all rows at once.

        Parameters
        ----------
        dt : Tensor, shape [N]
            Not looked at.

        Returns
        -------
        Tensor, shape [*b, N, n, n]
            ``A``.
        """
        return self.matrices

    def process_noise(self, dt: Tensor) -> Tensor:
        """The table of noises, for all rows at once.

        Parameters
        ----------
        dt : Tensor, shape [N]
            Not looked at.

        Returns
        -------
        Tensor, shape [*b, N, n, n]
            ``Q``.
        """
        return self.noises

    def initial(self, time: Tensor) -> Tensor:
        """Covariance of the first state.

        Parameters
        ----------
        time : Tensor, shape [1]
            Not looked at.

        Returns
        -------
        Tensor, shape [*b, 1, n, n]
            First row of the noises.
        """
        return self.noises[..., :1, :, :]


def tabulated_model(
    transition: Tensor, noise: Tensor, readout: Tensor, sizes: tuple[int, ...]
) -> tuple[MarkovModel, Steps]:
    """Model and steps of a chain ``z_k = A_k z_{k-1} + N(0, Q_k)``.

    Parameters
    ----------
    transition, noise : Tensor, shape [*b, N, d, d]
        ``A`` and ``Q``; a series begins where A is zero.
    readout : Tensor, shape [*b, N, d]
        One per row.
    sizes : tuple of int
        Sizes of the blocks along the diagonal of A and Q.

    Returns
    -------
    model : MarkovModel
        With one block per size.
    steps : Steps
        One series whose steps ascend in length, so that every row is a step of its own.
    """
    blocks, offset = [], 0
    for size in sizes:
        own = slice(offset, offset + size)
        blocks.append(TabulatedBlock(transition[..., own, own], noise[..., own, own]))
        offset += size
    rows = torch.arange(transition.shape[-3], dtype=torch.float64, device=transition.device)
    return MarkovModel(tuple(blocks), rows=readout), Steps.single(rows.cumsum(0))
