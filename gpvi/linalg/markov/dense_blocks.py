r"""Products of Gauss-Markov processes.

The product of two independent processes has the state :math:`z_1 \otimes z_2` in the sense of
covariances, with :math:`A = A_1 \otimes A_2`, :math:`P = P_1 \otimes P_2` and

.. math:: Q = P_1 \otimes Q_2 + Q_1 \otimes A_2 P_2 A_2^\top,

a sum of positive terms, so that it is as accurate as :math:`Q_1` and :math:`Q_2`; the difference
:math:`P - A P A^\top` is not, for steps that are short. See Solin, A. & Särkkä, S. (2014). Explicit
link between periodic covariance functions and state space models. AISTATS.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov.blocks import MarkovBlock

__all__ = ["KroneckerBlock", "ScaledBlock"]


@dataclass(frozen=True, eq=False)
class ScaledBlock(MarkovBlock):
    """A block whose covariances are multiplied by a factor.

    Parameters
    ----------
    block : MarkovBlock
        The block.
    scale : Tensor, shape [*b]
        Factor, positive.
    """

    block: MarkovBlock
    scale: Tensor

    @property
    def stationary(self) -> bool:  # type: ignore[override]
        """Whether the block is."""
        return self.block.stationary

    @property
    def dimension(self) -> int:
        """Number d of states."""
        return self.block.dimension

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dims of the block and the factor."""
        return torch.broadcast_shapes(self.block.batch_shape, self.scale.shape)

    @property
    def readout(self) -> Tensor:
        """That of the block, shape [*b, d]."""
        return self.block.readout.expand(*self.batch_shape, self.dimension)

    def transition(self, dt: Tensor) -> Tensor:
        """Transition matrices of the block.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``A``.
        """
        return self.block.transition(dt)

    def process_noise(self, dt: Tensor) -> Tensor:
        """Scaled process noise of the block.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``Q``.
        """
        return self.scale[..., None, None, None] * self.block.process_noise(dt)

    def initial(self, time: Tensor) -> Tensor:
        """Scaled covariance of the block at first stamps.

        Parameters
        ----------
        time : Tensor, shape [*g, G]
            First stamps.

        Returns
        -------
        Tensor, shape [*b, G, d, d]
            ``P``.
        """
        return self.scale[..., None, None, None] * self.block.initial(time)


@dataclass(frozen=True, eq=False)
class KroneckerBlock(MarkovBlock):
    """The product of two blocks, each stationary.

    Parameters
    ----------
    left, right : MarkovBlock
        The factors.

    Raises
    ------
    InputError
        If one of them is not stationary: the noise of the product then depends on the time, and
        not on the step alone.

    Examples
    --------
    >>> import torch
    >>> from gpvi.linalg.markov.launched import SteadyBlock
    >>> cosine = SteadyBlock.make(torch.tensor(1.0), torch.tensor(2.0))
    >>> KroneckerBlock(cosine, cosine).dimension
    4
    """

    left: MarkovBlock
    right: MarkovBlock

    def __post_init__(self) -> None:
        for block in (self.left, self.right):
            if not block.stationary:
                raise InputError(
                    f"KroneckerBlock needs stationary factors; {type(block).__name__} is not one."
                )

    @property
    def dimension(self) -> int:
        """Number d of states."""
        return self.left.dimension * self.right.dimension

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dims of both factors."""
        return torch.broadcast_shapes(self.left.batch_shape, self.right.batch_shape)

    @property
    def readout(self) -> Tensor:
        """Kronecker product of the readouts, shape [*b, d]."""
        product = self.left.readout.unsqueeze(-1) * self.right.readout.unsqueeze(-2)
        return product.flatten(-2)

    def transition(self, dt: Tensor) -> Tensor:
        """Kronecker products of the transition matrices.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``A``.
        """
        return _kronecker(self.left.transition(dt), self.right.transition(dt))

    def process_noise(self, dt: Tensor) -> Tensor:
        """Process noise in positive terms.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``Q``.
        """
        P1, P2 = self.left.initial(dt[..., :1]), self.right.initial(dt[..., :1])
        A2 = self.right.transition(dt)
        kept = _kronecker(self.left.process_noise(dt), A2 @ P2 @ A2.mT)
        return kept + _kronecker(P1, self.right.process_noise(dt))

    def initial(self, time: Tensor) -> Tensor:
        """Kronecker products of the stationary covariances.

        Parameters
        ----------
        time : Tensor, shape [*g, G]
            First stamps.

        Returns
        -------
        Tensor, shape [*b, G, d, d]
            ``P``.
        """
        return _kronecker(self.left.initial(time), self.right.initial(time))


def _kronecker(left: Tensor, right: Tensor) -> Tensor:
    """Kronecker products of the last two dims, batch dims broadcast."""
    product = left[..., :, None, :, None] * right[..., None, :, None, :]
    rows, columns = left.shape[-2] * right.shape[-2], left.shape[-1] * right.shape[-1]
    return product.reshape(*product.shape[:-4], rows, columns)
