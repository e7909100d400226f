"""Censoring: rows of which only a bound is known."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.moments import aligned, drop_leading_ones
from gpvi.linalg.quadrature import expectation, uniform_rule

__all__ = ["CensoredLikelihood", "PositiveLikelihood", "bounded_exp"]

# Exponentials beyond overflow float64.
_LARGEST_EXPONENT = 700.0


class CensoredLikelihood(Likelihood):
    """Base class of likelihoods whose targets may be lower or upper bounds.

    The row extra `censored` is 1 where the true value lies above y (right-censored), -1 where it lies
    below, and 0 where it is y. What is censored is the record, not the observation: `forward`, moments,
    quantiles and samples describe the true value and do not depend on it, while all log likelihoods and
    log densities do; that of a bound is the logarithm of a probability.

    Parameters
    ----------
    num_nodes : int
        Number of Gauss-Hermite nodes of predictive log densities.
    """

    row_arguments = frozenset({"weights", "censored"})

    def __init__(self, num_nodes: int = 32) -> None:
        super().__init__(num_nodes)
        # Log probabilities of bounds bend where noise narrower than f begins to tell: Gauss-Hermite
        # nodes miss that.
        self._bounds_rule = uniform_rule(0.2, 7.0)

    @abstractmethod
    def _log_density(self, f: Tensor, y: Tensor) -> Tensor:
        """log p(y | f) of an exact row."""

    @abstractmethod
    def _log_survival(self, f: Tensor, y: Tensor) -> Tensor:
        """log P(Y > y | f)."""

    @abstractmethod
    def _log_cdf(self, f: Tensor, y: Tensor) -> Tensor:
        """log P(Y <= y | f)."""

    @abstractmethod
    def _expected_log_density(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Expectation of `_log_density`."""

    def _expected_log_survival(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return self._by_quadrature(self._log_survival, y, mean, variance)

    def _expected_log_cdf(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return self._by_quadrature(self._log_cdf, y, mean, variance)

    def _by_quadrature(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        y: Tensor,
        mean: Tensor,
        variance: Tensor,
    ) -> Tensor:
        mean, variance, dims = aligned(mean, variance, [y], self.parameters())
        value = expectation(lambda f: function(f, y), mean, variance, self._bounds_rule)
        return drop_leading_ones(value, dims)

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        parts = (self._log_density, self._log_survival, self._log_cdf)
        return _selected(parts, (function_samples, y), rows.get("censored"))

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        parts = (self._expected_log_density, self._expected_log_survival, self._expected_log_cdf)
        return _selected(parts, (y, mean, variance), rows.get("censored"))


class PositiveLikelihood(CensoredLikelihood):
    """Base class of likelihoods of positive numbers, such as times, whose mean grows as exp(f).

    Parameters
    ----------
    num_nodes : int
        Number of Gauss-Hermite nodes.
    """

    is_log_concave = True
    has_exponential_mean = True

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor:
        # Halfway between the logarithm of a row and their common level.
        weights = observed * rows.get("weights", torch.ones_like(y))
        log_y = y.clamp_min(torch.finfo(y.dtype).tiny).log()
        total = weights.sum(-1, keepdim=True)
        level = (weights * log_y).sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)
        return 0.5 * (log_y + level)

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        bad = y[observed & (y <= 0)]
        if len(bad):
            raise InputError(
                f"{type(self).__name__} needs positive targets, got {bad[0].item()}. Remove these rows "
                "or use a likelihood for real numbers."
            )


def bounded_exp(exponent: Tensor) -> Tensor:
    """Exponential that stays finite, with slope 0 where it is held.

    Parameters
    ----------
    exponent : Tensor
        Any shape.

    Returns
    -------
    Tensor
        At most the largest number of the dtype or exp(700).
    """
    largest = min(_LARGEST_EXPONENT, float(torch.tensor(torch.finfo(exponent.dtype).max).log()) - 1)
    return exponent.clamp_max(largest).exp()


def _selected(
    parts: tuple[Callable[..., Tensor], ...],
    arguments: tuple[Tensor, ...],
    censored: Tensor | None,
) -> Tensor:
    """Exact rows by the first part, right-censored ones by the second, left-censored by the third."""
    exact, survival, cdf = parts
    value = exact(*arguments)
    if censored is None:
        return value
    for chosen, part in ((censored > 0, survival), (censored < 0, cdf)):
        if bool(chosen.any()):
            value = torch.where(chosen, part(*arguments), value)
    return value
