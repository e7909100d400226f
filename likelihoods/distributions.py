"""Conditional distributions p(y | f) that torch does not have."""

from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.types import _size

__all__ = ["ZeroInflated"]


class ZeroInflated(td.Distribution):
    r"""Counts that are zero for another reason with some probability.

    .. math:: P(Y = 0) = \pi + (1 - \pi) P_{\text{base}}(0), \qquad
              P(Y = y) = (1 - \pi) P_{\text{base}}(y)

    Parameters
    ----------
    base : torch.distributions.Distribution
        Of counts, batch shape `[*b]`.
    logits : Tensor
        Log odds of :math:`\pi`, broadcasting to `[*b]`.
    """

    arg_constraints: dict[str, Any] = {"logits": constraints.real}  # noqa: RUF012

    def __init__(self, base: td.Distribution, logits: Tensor) -> None:
        self.base, self.logits = base, logits
        super().__init__(
            torch.broadcast_shapes(base.batch_shape, logits.shape), validate_args=False
        )

    @property
    def support(self) -> constraints.Constraint | None:
        """That of the base."""
        return self.base.support

    @property
    def inflation(self) -> Tensor:
        r"""Probability :math:`\pi` of a zero that the base did not make."""
        return torch.sigmoid(self.logits)

    @property
    def mean(self) -> Tensor:
        """Mean count."""
        return torch.sigmoid(-self.logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        """Variance of the count."""
        mean, kept = self.base.mean, torch.sigmoid(-self.logits)
        return kept * (self.base.variance + self.inflation * mean.square())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of counts.

        Parameters
        ----------
        value : Tensor
            Counts that broadcast to the batch shape.

        Returns
        -------
        Tensor
            Broadcast shape.
        """
        return inflated_log_prob(self.base.log_prob(value), value, self.logits)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw counts from torch's global generator.

        Parameters
        ----------
        sample_shape : torch.Size
            Shape in front of the batch shape.

        Returns
        -------
        Tensor
            Without gradient.
        """
        with torch.no_grad():
            counts = self.base.sample(sample_shape)
            return counts * torch.bernoulli(torch.sigmoid(-self.logits).expand(counts.shape))


def inflated_log_prob(log_prob: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    """Log probability of counts after zero inflation, from the one before it."""
    zero = torch.logaddexp(logits, log_prob)
    return torch.where(y == 0, zero, log_prob) + torch.nn.functional.logsigmoid(-logits)
