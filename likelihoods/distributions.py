"""Conditional distributions p(y | f) that torch does not have."""

import math
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.types import _size

__all__ = ["AsymmetricLaplace", "OrderedCategorical", "ZeroInflated", "inflated_log_prob"]


class AsymmetricLaplace(td.Distribution):
    r"""Two exponential tails of different length.

    .. math:: p(y) = \frac{\tau (1 - \tau)}{s} \exp(-\max(\tau u, (\tau - 1) u)), \qquad
              u = (y - m) / s

    Parameters
    ----------
    loc : Tensor
        Location m, which is the quantile at the level.
    scale : Tensor
        Positive s.
    level : float
        :math:`\tau`, the probability below the location.
    """

    arg_constraints: dict[str, Any] = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.real

    def __init__(self, loc: Tensor, scale: Tensor, level: float) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.level = level
        super().__init__(self.loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean; the location if the level is one half."""
        return self.loc + self.scale * (1 - 2 * self.level) / (self.level * (1 - self.level))

    @property
    def variance(self) -> Tensor:
        """Variance."""
        squares = self.level**2 + (1 - self.level) ** 2
        return self.scale.square() * squares / (self.level * (1 - self.level)) ** 2

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density.

        Parameters
        ----------
        value : Tensor
            Real numbers that broadcast to the batch shape.

        Returns
        -------
        Tensor
            Broadcast shape.
        """
        u = (value - self.loc) / self.scale
        loss = torch.maximum(self.level * u, (self.level - 1) * u)
        return math.log(self.level * (1 - self.level)) - self.scale.log() - loss

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function.

        Parameters
        ----------
        value : Tensor
            Real numbers that broadcast to the batch shape.

        Returns
        -------
        Tensor
            Probabilities.
        """
        u = (value - self.loc) / self.scale
        below = self.level * ((1 - self.level) * u.clamp_max(0)).exp()
        above = 1 - (1 - self.level) * (-self.level * u.clamp_min(0)).exp()
        return torch.where(u < 0, below, above)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw from torch's global generator.

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
            shape = torch.Size(sample_shape) + self.loc.shape
            # The difference of two exponential variables with the rates of the tails.
            up, down = (torch.empty(shape).to(self.loc).exponential_() for _ in range(2))
            return self.loc + self.scale * (up / self.level - down / (1 - self.level))


class OrderedCategorical(td.Categorical):
    """Classes 0, ..., C - 1 in an order, so that their numbers have moments.

    Parameters are those of `torch.distributions.Categorical`.
    """

    @property
    def _levels(self) -> Tensor:
        return torch.arange(self.probs.shape[-1]).to(self.probs)

    @property
    def mean(self) -> Tensor:
        """Mean number of the class."""
        return (self.probs * self._levels).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of the number of the class."""
        return (self.probs * (self._levels - self.mean.unsqueeze(-1)).square()).sum(-1)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function.

        Parameters
        ----------
        value : Tensor
            Any numbers that broadcast to the batch shape.

        Returns
        -------
        Tensor
            Probabilities.
        """
        reached = self._levels <= value.unsqueeze(-1)
        return (self.probs * reached).sum(-1).clamp(0, 1)


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
    """Log probability of counts after zero inflation, from the one before it.

    Parameters
    ----------
    log_prob : Tensor
        Log probability of y before it.
    y : Tensor
        Counts.
    logits : Tensor
        Log odds of a further zero.

    Returns
    -------
    Tensor
        Broadcast shape.
    """
    zero = torch.logaddexp(logits, log_prob)
    return torch.where(y == 0, zero, log_prob) + torch.nn.functional.logsigmoid(-logits)
