"""A Gauss-Markov process as a direct sum of blocks, and the steps at which it is looked at."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov.blocks import CascadeBlock, MarkovBlock

__all__ = ["MarkovModel", "Steps"]


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """The sum of independent blocks: f is the sum of what they read out.

    Parameters
    ----------
    blocks : tuple of MarkovBlock
        At least one.
    rows : Tensor, shape [*b, T, d], optional
        A readout per row instead of the blocks' own, in the order of the rows of the steps.
    outputs : Tensor, shape [*b, K, d], optional
        K readouts at every row instead of one, for matrix sites.

    Raises
    ------
    InputError
        If there are no blocks, if ``rows`` or ``outputs`` has another state dimension, or if both
        are given.
    """

    blocks: tuple[MarkovBlock, ...]
    rows: Tensor | None = None
    outputs: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.blocks:
            raise InputError("A Markov model needs at least one block; got none.")
        if self.rows is not None and self.outputs is not None:
            raise InputError("A Markov model has a readout per row or K outputs, not both.")
        for name, value in (("rows", self.rows), ("outputs", self.outputs)):
            if value is not None and value.shape[-1] != self.dimension:
                raise InputError(
                    f"{name} has shape {tuple(value.shape)} for a state of dimension "
                    f"{self.dimension}; the two must agree in the last dim."
                )

    @property
    def dimension(self) -> int:
        """Number d of states."""
        return sum(block.dimension for block in self.blocks)

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dims of the parameters."""
        shapes = [block.batch_shape for block in self.blocks]
        shapes += [t.shape[:-2] for t in (self.rows, self.outputs) if t is not None]
        return torch.broadcast_shapes(*shapes)

    @property
    def is_cascade(self) -> bool:
        """Whether all blocks are cascades with their own readout."""
        own = self.rows is None and self.outputs is None
        return own and all(isinstance(block, CascadeBlock) for block in self.blocks)

    @cached_property
    def readout(self) -> Tensor:
        """``h`` of the blocks, shape [*b, d]."""
        shape = torch.broadcast_shapes(*(block.batch_shape for block in self.blocks))
        parts = [b.readout.expand(*shape, b.dimension) for b in self.blocks]
        return torch.cat(parts, -1)

    def transition(self, dt: Tensor) -> Tensor:
        """Block-diagonal transition matrices, shape [*b, T, d, d].

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``A``.
        """
        return block_diagonal([block.transition(dt) for block in self.blocks])

    def process_noise(self, dt: Tensor) -> Tensor:
        """Block-diagonal process noise.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``Q``.
        """
        return block_diagonal([block.process_noise(dt) for block in self.blocks])

    def initial(self, time: Tensor) -> Tensor:
        """Block-diagonal covariance at first stamps.

        Parameters
        ----------
        time : Tensor, shape [*g, G]
            First stamps.

        Returns
        -------
        Tensor, shape [*b, G, d, d]
            ``P_0``.
        """
        return block_diagonal([block.initial(time) for block in self.blocks])


@dataclass(frozen=True, eq=False)
class Steps:
    """Stamps of one or several series, one behind the other, each in ascending order.

    Rows of one series with equal stamps share the state: a step of length zero.

    Parameters
    ----------
    time : Tensor, shape [*g, T]
        Stamps.
    starts : Tensor of int64, shape [G]
        Where series begin; the first entry is 0.
    """

    time: Tensor
    starts: Tensor

    def __getstate__(self) -> dict[str, Tensor]:
        """What a copy or a pickle needs: lazy attributes come again."""
        return {"time": self.time, "starts": self.starts}

    @classmethod
    def single(cls, time: Tensor) -> "Steps":
        """One series.

        Parameters
        ----------
        time : Tensor, shape [*g, T]
            Ascending.

        Returns
        -------
        Steps
            With G = 1.
        """
        return cls(time, torch.zeros(1, dtype=torch.int64, device=time.device))

    @cached_property
    def spare(self) -> list[np.ndarray]:
        """Arrays that passes over these rows have done with: fresh memory would cost them time."""
        return []

    @property
    def num_rows(self) -> int:
        """Number T of rows."""
        return self.time.shape[-1]

    @property
    def num_series(self) -> int:
        """Number G of series."""
        return self.starts.shape[0]

    @cached_property
    def dt(self) -> Tensor:
        """Time since the row before, zero where a series begins, shape [*g, T]."""
        dt = torch.diff(self.time, dim=-1, prepend=self.time[..., :1])
        begins = torch.zeros(self.num_rows, dtype=torch.bool, device=dt.device)
        begins[self.starts] = True
        return torch.where(begins, torch.zeros_like(dt), dt)

    @cached_property
    def series(self) -> Tensor:
        """Number of every row's series, int64, shape [T]."""
        begins = torch.zeros(self.num_rows, dtype=torch.int64, device=self.time.device)
        begins[self.starts] = 1
        return begins.cumsum(0) - 1

    @cached_property
    def distinct(self) -> tuple[Tensor, Tensor]:
        """Step number of every row (-1 where the state does not move) and the distinct steps.

        Steps with batch dims, and those that a gradient is to reach, are all distinct.
        """
        dt = self.dt
        if dt.requires_grad or dt.dim() > 1:
            index = torch.arange(self.num_rows, device=dt.device)
            index[self.starts] = -1
            return index, dt
        values, index = torch.unique(dt, return_inverse=True)
        return torch.where(dt == 0, -1, index), values

    @property
    def first(self) -> Tensor:
        """First stamps, shape [*g, G]."""
        return self.time[..., self.starts]


def block_diagonal(parts: list[Tensor]) -> Tensor:
    """Matrices along the diagonal, batch dims broadcast; shape [*b, sum d, sum d]."""
    if len(parts) == 1:
        return parts[0]
    shape = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    size, rows, start = sum(part.shape[-1] for part in parts), [], 0
    for part in parts:
        d = part.shape[-1]
        wide = torch.nn.functional.pad(part, (start, size - start - d))
        rows.append(wide.expand(*shape, d, size))
        start += d
    return torch.cat(rows, -2)
