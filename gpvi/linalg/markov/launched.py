"""Cascades without noise, and cascades that are launched at an origin.

Both are :class:`~gpvi.linalg.markov.blocks.CascadeBlock` objects and take every path that those
take. Constants and cosines are known by their class to be free of noise, which products of kernels
need to know; polynomials and integrated Wiener processes have a covariance that depends on how far
from the origin a series begins.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov.blocks import CascadeBlock

__all__ = ["LaunchedBlock", "SteadyBlock"]


@dataclass(frozen=True, eq=False)
class SteadyBlock(CascadeBlock):
    """A cascade of order zero without noise: a constant or, with a frequency, a cosine.

    Made by :meth:`make`.

    Parameters
    ----------
    order, rate, noise, start, frequency, damped
        As in :class:`~gpvi.linalg.markov.blocks.CascadeBlock`; order, rate and noise are zero, and
        it is not damped.

    Examples
    --------
    >>> import torch
    >>> block = SteadyBlock.make(torch.tensor(2.0), torch.tensor(3.0))
    >>> block.dimension, block.process_noise(torch.ones(1)).abs().max().item()
    (2, 0.0)
    """

    @classmethod
    def make(cls, variance: Tensor, frequency: Tensor | None = None) -> "SteadyBlock":
        """A constant or cosine of given variance.

        Parameters
        ----------
        variance : Tensor, shape [*b]
            Variance.
        frequency : Tensor, shape [*b], optional
            Angular frequency; a constant without it.

        Returns
        -------
        SteadyBlock
            With one or two states.
        """
        zero = torch.zeros_like(variance)
        size = 1 if frequency is None else 2
        unit = torch.eye(size, dtype=variance.dtype, device=variance.device)
        return cls(0, zero, zero, variance[..., None, None] * unit, frequency, damped=False)


@dataclass(frozen=True, eq=False)
class LaunchedBlock(CascadeBlock):
    r"""An undamped cascade whose covariance is known at an origin, not at the first stamp.

    .. math:: P(t) = A(t - o) P_o A(t - o)^\top + Q(t - o)

    Without noise its sample paths are polynomials about the origin, on both sides of it; with
    noise it is an integrated Wiener process, which begins there.

    Parameters
    ----------
    order, rate, noise, start, frequency, damped
        As in :class:`~gpvi.linalg.markov.blocks.CascadeBlock`; ``start`` is the covariance at the
        origin.
    origin : Tensor, shape [*b] or ()
        ``o``.
    noiseless : bool
        Whether ``noise`` is zero, so that stamps before the origin make sense.

    Examples
    --------
    >>> import torch
    >>> one, zero = torch.ones(()), torch.zeros(())
    >>> slope = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    >>> line = LaunchedBlock(1, one, zero, slope, damped=False, origin=zero, noiseless=True)
    >>> line.initial(torch.tensor([3.0]))
    tensor([[[9., 3.],
             [3., 1.]]])
    """

    origin: Tensor = field(kw_only=True)
    noiseless: bool = field(kw_only=True)

    stationary = False

    def initial(self, time: Tensor) -> Tensor:
        """Covariance of the state at the first stamp of a series.

        Parameters
        ----------
        time : Tensor, shape [*g, G]
            First stamps.

        Returns
        -------
        Tensor, shape [*b, G, d, d]
            ``P(t)``.

        Raises
        ------
        InputError
            If a process with noise is asked for a time before its origin.
        """
        elapsed = time - self.origin.unsqueeze(-1)
        if not self.noiseless and bool((elapsed < 0).any()):
            raise InputError(
                f"An integrated Wiener process begins at its origin, but a series begins at "
                f"{(elapsed.min() + self.origin.max()).item():.6g}, before the origin "
                f"{self.origin.max().item():.6g}; move the origin to the first stamp or earlier."
            )
        A = self.transition(elapsed)
        P = A @ self.start.unsqueeze(-3) @ A.mT
        return P if self.noiseless else P + self.process_noise(elapsed)
