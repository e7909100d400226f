"""Absolute and tilted absolute deviations: Laplace noise and quantile regression."""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.distributions import AsymmetricLaplace
from gpvi.likelihoods.parameters import BoundedParameter
from gpvi.likelihoods.student_t import clipped_to_median
from gpvi.linalg.quadrature import floored_variance

__all__ = ["ClosedFormLaplace", "LaplaceLikelihood", "QuantileLikelihood"]

_LOG_2PI = math.log(2 * math.pi)


class ClosedFormLaplace(Likelihood):
    r"""Closed forms of the asymmetric Laplace distribution about f.

    .. math:: p(y \mid f) = \frac{\tau (1 - \tau)}{s} \exp(-\rho_\tau((y - f) / s)), \qquad
              \rho_\tau(u) = \max(\tau u, (\tau - 1) u)
    """

    is_log_concave = True

    @abstractmethod
    def _level(self) -> float:
        """The probability below f."""

    @abstractmethod
    def _tilted_scale(self, like: Tensor) -> Tensor:
        """Scale s, in dtype and on device of `like`."""

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        scale = self._tilted_scale(function_samples)
        return AsymmetricLaplace(function_samples, scale, self._level()).log_prob(y)

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        scale, level = self._tilted_scale(mean), self._level()
        residual = y - mean
        deviation = floored_variance(mean, variance).sqrt()
        z = residual / deviation
        # E max(f - y, 0), so that E rho = level * residual + this.
        excess = deviation * _normal_density(z) - residual * torch.special.ndtr(-z)
        loss = (level * residual + excess) / scale
        return math.log(level * (1 - level)) - scale.log() - loss

    def _expectation_slopes(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        scale, level = self._tilted_scale(mean), self._level()
        deviation = floored_variance(mean, variance).sqrt()
        z = (y - mean) / deviation
        value = self._variational_expectations(y, mean, variance)
        by_mean = (level - torch.special.ndtr(-z)) / scale
        return value, by_mean, -0.5 * _normal_density(z) / (deviation * scale)

    def _sides(self, residual: Tensor, variance: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of E[exp(-rate |u|)] over u above and below zero, u ~ N(residual, variance)."""
        level, sides = self._level(), []
        deviation = floored_variance(residual, variance).sqrt()
        for rate, towards in ((level / scale, residual), ((1 - level) / scale, -residual)):
            exponent = rate * (0.5 * rate * deviation.square() - towards)
            sides.append(exponent + torch.special.log_ndtr(towards / deviation - rate * deviation))
        return sides[0], sides[1]

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        scale, level = self._tilted_scale(mean), self._level()
        above, below = self._sides(y - mean, variance, scale)
        return math.log(level * (1 - level)) - scale.log() + torch.logaddexp(above, below)

    def _predictive_cdf(
        self, value: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        level, gap = self._level(), value - mean
        above, below = self._sides(gap, variance, self._tilted_scale(mean))
        deviation = floored_variance(mean, variance).sqrt()
        inside = torch.special.ndtr(gap / deviation)
        return (level * below.exp() + inside - (1 - level) * above.exp()).clamp(0, 1)

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        noise = AsymmetricLaplace(mean, self._tilted_scale(mean), self._level())
        total = variance + noise.variance
        return noise.mean.expand(total.shape), total

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor:
        return clipped_to_median(y, observed, rows.get("weights"))


class LaplaceLikelihood(ClosedFormLaplace):
    r"""Laplace noise about f: absolute in place of squared deviations.

    .. math:: p(y \mid f) = \frac{1}{2 b} \exp(-|y - f| / b)

    Heavier tails than Gaussian noise and, other than with Student-t noise, log-concave. Expectations,
    predictive densities, distribution functions and moments are in closed form, exact at the kink, where
    quadrature is not.

    Parameters
    ----------
    scale : float
        Starting value of b, positive; the standard deviation is :math:`\sqrt{2} b`.
    learn_scale : bool
        Whether it is a trained parameter.
    batch_shape : torch.Size
        Shape of a batch of independent scales, `[*batch_shape, 1]`.
    min_scale : float
        Lower bound of b; the default suits standardised targets.

    Attributes
    ----------
    scale : Tensor
        `[*batch_shape, 1]`. Assign a number to set it.

    References
    ----------
    Kotz, S., Kozubowski, T. J. and Podgórski, K. (2001). The Laplace Distribution and Generalizations.
    Birkhäuser.

    Examples
    --------
    >>> likelihood = LaplaceLikelihood(scale=0.5)
    >>> mean, variance = likelihood.predict_mean_var(torch.zeros(1), torch.ones(1))
    >>> variance.detach()  # 1 + 2 * 0.5**2
    tensor([1.5000])
    """

    scale = BoundedParameter(1e-6)

    def __init__(
        self,
        scale: float | Tensor = 0.3,
        learn_scale: bool = True,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        min_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        type(self).scale.register(self, scale, learn_scale, batch_shape, min_scale)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Laplace:
        """Return the Laplace distribution of y about f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Laplace
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        return Laplace(function_samples, self.scale.to(function_samples))

    def _level(self) -> float:
        return 0.5

    def _tilted_scale(self, like: Tensor) -> Tensor:
        return 0.5 * self.scale.to(like)


class QuantileLikelihood(ClosedFormLaplace):
    r"""Quantile regression: f is the quantile of y at a given level.

    .. math:: p(y \mid f) = \frac{\tau (1 - \tau)}{s} \exp(-\rho_\tau((y - f) / s)), \qquad
              \rho_\tau(u) = \max(\tau u, (\tau - 1) u)

    The asymmetric Laplace distribution, whose log density is the check loss of quantile regression and
    whose level-:math:`\tau` quantile is f. It is a working likelihood: read the latent function, which
    estimates the quantile; moments and intervals of y are those of the asymmetric Laplace distribution.
    Log-concave, with closed forms throughout.

    Parameters
    ----------
    level : float
        :math:`\tau`, strictly between 0 and 1.
    scale : float
        Starting value of s, positive.
    learn_scale : bool
        Whether it is a trained parameter.
    batch_shape : torch.Size
        Shape of a batch of independent scales, `[*batch_shape, 1]`.
    min_scale : float
        Lower bound of s; the default suits standardised targets.

    Attributes
    ----------
    scale : Tensor
        `[*batch_shape, 1]`. Assign a number to set it.

    Raises
    ------
    InputError
        For a level outside (0, 1).

    References
    ----------
    Koenker, R. and Bassett, G. (1978). Regression quantiles. Econometrica.
    Boukouvalas, A., Barillec, R. and Cornford, D. (2012). Gaussian process quantile regression using
    expectation propagation. ICML.

    Examples
    --------
    >>> likelihood = QuantileLikelihood(0.9, scale=0.1)
    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> likelihood.predict_quantiles([0.9], zero, zero)[:, 0].abs() < 1e-6
    tensor([True])
    """

    scale = BoundedParameter(1e-6)

    def __init__(
        self,
        level: float = 0.5,
        scale: float | Tensor = 0.1,
        learn_scale: bool = True,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        min_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        if not 0.0 < level < 1.0:
            raise InputError(f"level must lie strictly between 0 and 1, got {level!r}.")
        self.level = float(level)
        type(self).scale.register(self, scale, learn_scale, batch_shape, min_scale)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        """Return the asymmetric Laplace distribution of y about f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        AsymmetricLaplace
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        return AsymmetricLaplace(function_samples, self.scale.to(function_samples), self.level)

    def _level(self) -> float:
        return self.level

    def _tilted_scale(self, like: Tensor) -> Tensor:
        return self.scale.to(like)


def _normal_density(z: Tensor) -> Tensor:
    return (-0.5 * (z.square() + _LOG_2PI)).exp()
