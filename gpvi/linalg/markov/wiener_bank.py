r"""A bank of Ornstein-Uhlenbeck processes that one Wiener process drives.

.. math:: dY_k = -\gamma_k Y_k \, dt + \sqrt{2 \gamma_k} \, dW, \qquad f(t) = \sum_k c_k Y_k(t).

With one noise for all states the process noise is nearly singular, and the sum can be much rougher
or smoother than each of its parts: with the right weights it is close to fractional Brownian
motion. See Daems, R., Opper, M., Crevecoeur, G. & Birdal, T. (2024). Variational inference for SDEs
driven by fractional noise. ICLR.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov.blocks import MarkovBlock

__all__ = ["WienerBankBlock"]


@dataclass(frozen=True, eq=False)
class WienerBankBlock(MarkovBlock):
    r"""Ornstein-Uhlenbeck processes with a common noise, each of stationary variance one.

    .. math:: A = \mathrm{diag}(e^{-\gamma \Delta}), \qquad Q_{ij} =
              2 \sqrt{\gamma_i \gamma_j} \, \frac{1 - e^{-(\gamma_i + \gamma_j) \Delta}}
              {\gamma_i + \gamma_j}.

    Parameters
    ----------
    rates : Tensor, shape [*b, K]
        ``gamma``.
    weights : Tensor, shape [*b, K]
        ``c``.
    begin : {"stationary", "zero", "increments"}
        Whether the processes have run for ever, start at zero at the origin, or have run for ever
        and f is their sum less its value at the origin. That value is a state then, the last one.
    origin : Tensor, shape ()
        Where f is zero, unless stationary.

    Examples
    --------
    >>> import torch
    >>> rates, weights = torch.tensor([1.0, 4.0]), torch.ones(2)
    >>> block = WienerBankBlock(rates, weights, "zero", torch.tensor(0.0))
    >>> block.initial(torch.tensor([0.0])).abs().max().item()
    0.0
    """

    rates: Tensor
    weights: Tensor
    begin: Literal["stationary", "zero", "increments"]
    origin: Tensor

    @property
    def stationary(self) -> bool:  # type: ignore[override]
        """Whether the processes have run for ever and f is their sum."""
        return self.begin == "stationary"

    @property
    def dimension(self) -> int:
        """Number d of states."""
        return self.rates.shape[-1] + (self.begin == "increments")

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dims of the parameters."""
        return torch.broadcast_shapes(self.rates.shape[:-1], self.weights.shape[:-1])

    @property
    def readout(self) -> Tensor:
        """The weights, and minus one for the value at the origin; shape [*b, d]."""
        weights = self.weights.expand(*self.batch_shape, self.weights.shape[-1])
        if self.begin == "increments":
            weights = torch.cat([weights, -torch.ones_like(weights[..., :1])], -1)
        return weights

    def transition(self, dt: Tensor) -> Tensor:
        """Diagonal transition matrices.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``A``.
        """
        decay = torch.exp(-self.rates.unsqueeze(-2) * dt.unsqueeze(-1))
        if self.begin == "increments":
            decay = torch.cat([decay, torch.ones_like(decay[..., :1])], -1)
        return torch.diag_embed(decay)

    def process_noise(self, dt: Tensor) -> Tensor:
        """Process noise, the same Wiener process in every state.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``Q``.
        """
        sums = (self.rates.unsqueeze(-1) + self.rates.unsqueeze(-2)).unsqueeze(-3)
        Q = self._stationary().unsqueeze(-3) * -torch.expm1(-sums * dt[..., None, None])
        return torch.nn.functional.pad(Q, (0, 1, 0, 1)) if self.begin == "increments" else Q

    def initial(self, time: Tensor) -> Tensor:
        """Covariance of the state at the first stamp of a series.

        Parameters
        ----------
        time : Tensor, shape [*g, G]
            First stamps.

        Returns
        -------
        Tensor, shape [*b, G, d, d]
            ``P``.

        Raises
        ------
        InputError
            If the process begins at an origin, and a stamp lies before it.
        """
        P = self._stationary().unsqueeze(-3)
        if self.begin == "stationary":
            shape = torch.broadcast_shapes(P.shape[:-3], time.shape[:-1])
            return P.expand(*shape, time.shape[-1], *P.shape[-2:])
        elapsed = time - self.origin
        if bool((elapsed < 0).any()):
            raise InputError(
                f"This fractional process begins at its origin {self.origin.item():.6g}, but a "
                f"series begins at {time.min().item():.6g}, before it; move the origin to the "
                "first stamp or earlier."
            )
        if self.begin == "zero":
            return self.process_noise(elapsed)
        at_origin = (P @ self.weights[..., None, :, None]).squeeze(-1)
        across = torch.exp(-self.rates.unsqueeze(-2) * elapsed.unsqueeze(-1)) * at_origin
        variance = (at_origin * self.weights.unsqueeze(-2)).sum(-1, keepdim=True)
        P = P.expand(*across.shape[:-1], *P.shape[-2:])
        last = torch.cat([across, variance.expand(*across.shape[:-1], 1)], -1)
        top = torch.cat([P, across.unsqueeze(-1)], -1)
        return torch.cat([top, last.unsqueeze(-2)], -2)

    def _stationary(self) -> Tensor:
        """``2 sqrt(gamma_i gamma_j) / (gamma_i + gamma_j)``, shape [*b, K, K]."""
        left, right = self.rates.unsqueeze(-1), self.rates.unsqueeze(-2)
        return 2.0 * (left * right).sqrt() / (left + right)
