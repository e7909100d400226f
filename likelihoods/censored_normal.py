"""Censored normal noise, on the scale of the data (Tobit) or of their logarithm (log-normal)."""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal

from gpvi.likelihoods.censored import CensoredLikelihood, PositiveLikelihood
from gpvi.likelihoods.parameters import BoundedParameter

__all__ = ["CensoredGaussianLikelihood", "LogNormalLikelihood"]

_LOG_2PI = math.log(2 * math.pi)


class ClosedFormCensoredNormal(CensoredLikelihood):
    """A function of y is normal about f; its bounds are censored."""

    is_log_concave = True

    @abstractmethod
    def _deviation(self, like: Tensor) -> Tensor:
        """Standard deviation of the noise, in dtype and on device of `like`."""

    @abstractmethod
    def _line(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The function of y that is normal, and the logarithm of its slope."""

    @abstractmethod
    def _from_line(self, value: Tensor) -> Tensor:
        """Undo the function."""

    def _log_density(self, f: Tensor, y: Tensor) -> Tensor:
        return self._expected_log_density(y, f, torch.zeros_like(f))

    def _expected_log_density(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        line, log_slope = self._line(y)
        noise = self._deviation(mean).square()
        squares = (line - mean).square() + variance
        return log_slope - 0.5 * (squares / noise + noise.log() + _LOG_2PI)

    def _log_survival(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.special.log_ndtr((f - self._line(y)[0]) / self._deviation(f))

    def _log_cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.special.log_ndtr((self._line(y)[0] - f) / self._deviation(f))

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        line, log_slope = self._line(y)
        total = self._deviation(mean).square() + variance
        z = (line - mean) / total.sqrt()
        density = log_slope - 0.5 * (z.square() + total.log() + _LOG_2PI)
        censored = rows.get("censored")
        if censored is None:
            return density
        bound = torch.special.log_ndtr(-censored * z)
        return torch.where(censored == 0, density, bound)

    def _predict_quantiles(
        self, levels: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        deviation = (self._deviation(mean).square() + variance).sqrt()
        levels = levels.reshape(-1, *[1] * max(mean.dim(), deviation.dim()))
        return self._from_line(mean + deviation * torch.special.ndtri(levels))


class CensoredGaussianLikelihood(ClosedFormCensoredNormal):
    r"""Gaussian noise about f, with rows of which only a bound is known (Tobit regression).

    .. math:: y^*_n \mid f_n \sim N(f_n, \sigma^2)

    The row extra `censored` is 0 where :math:`y_n = y^*_n`, 1 where :math:`y^*_n` is above :math:`y_n`
    (such as the end of a scale) and -1 where it is below (such as a detection limit); the limit may
    differ from row to row. Predictions are about :math:`y^*`. Log-concave. Predictive densities and
    quantiles are in closed form, the expectation of a bound's :math:`\log\Phi` is quadrature
    by a uniform rule.

    Parameters
    ----------
    noise : float
        Starting value of the noise variance :math:`\sigma^2`.
    learn_noise : bool
        Whether it is a trained parameter.
    batch_shape : torch.Size
        Shape of a batch of independent noises, `[*batch_shape, 1]`.
    min_noise : float
        Lower bound of the noise; the default suits standardised targets.

    Attributes
    ----------
    noise : Tensor
        `[*batch_shape, 1]`. Assign a number to set it.

    References
    ----------
    Tobin, J. (1958). Estimation of relationships for limited dependent variables. Econometrica.
    Groot, P. and Lucas, P. (2012). Gaussian process regression with censored data using expectation
    propagation. PGM.

    Examples
    --------
    >>> likelihood = CensoredGaussianLikelihood(noise=1.0)
    >>> y, f = torch.zeros(2), torch.zeros(2)
    >>> likelihood.log_prob(f, y, censored=torch.tensor([0.0, 1.0])).detach()
    tensor([-0.9189, -0.6931])
    """

    noise = BoundedParameter(1e-6)

    def __init__(
        self,
        noise: float | Tensor = 0.1,
        learn_noise: bool = True,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        min_noise: float = 1e-6,
    ) -> None:
        super().__init__()
        type(self).noise.register(self, noise, learn_noise, batch_shape, min_noise)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Normal:
        """Return the normal distribution of the true value about f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Normal
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        deviation = self._deviation(function_samples)
        return Normal(*torch.broadcast_tensors(function_samples, deviation))

    def _deviation(self, like: Tensor) -> Tensor:
        return self.noise.to(like).sqrt()

    def _line(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, torch.zeros_like(y)

    def _from_line(self, value: Tensor) -> Tensor:
        return value

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = variance + self.noise.to(mean)
        return mean.expand(total.shape), total

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor:
        return y


class LogNormalLikelihood(ClosedFormCensoredNormal, PositiveLikelihood):
    r"""Positive numbers whose logarithm is normal about f, censored or not.

    .. math:: \log y_n \mid f_n \sim N(f_n, s^2), \qquad \mathrm{median}(y \mid f) = e^f, \quad
              \mathrm{E}[y \mid f] = e^{f + s^2/2}

    The row extra `censored` is 1 where the true value is above y, -1 where it is below, else 0.
    Log-concave. Everything is in closed form save for the expectation of a bound, which is
    quadrature by a uniform rule. Without bounds it equals a Gaussian likelihood of log y.

    Parameters
    ----------
    scale : float
        Starting value of s, the standard deviation of log y.
    learn_scale : bool
        Whether it is a trained parameter.
    batch_shape : torch.Size
        Shape of a batch of independent scales, `[*batch_shape, 1]`.

    Attributes
    ----------
    scale : Tensor
        `[*batch_shape, 1]`, above 1e-3. Assign a number to set it.

    References
    ----------
    Kalbfleisch, J. D. and Prentice, R. L. (2002). The Statistical Analysis of Failure Time Data. Wiley.

    Examples
    --------
    >>> likelihood = LogNormalLikelihood(scale=1.0)
    >>> zero = torch.zeros(1)
    >>> likelihood.predict_quantiles([0.5, 0.975], zero, zero)[:, 0].detach()
    tensor([1.0000, 7.0991])
    """

    scale = BoundedParameter(1e-3)

    def __init__(
        self,
        scale: float | Tensor = 0.5,
        learn_scale: bool = True,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        super().__init__()
        type(self).scale.register(self, scale, learn_scale, batch_shape)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        """Return the log-normal distribution of the true value given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.LogNormal
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        deviation = self._deviation(function_samples)
        return LogNormal(*torch.broadcast_tensors(function_samples, deviation))

    def _deviation(self, like: Tensor) -> Tensor:
        return self.scale.to(like)

    def _line(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_y = y.log()
        return log_y, -log_y

    def _from_line(self, value: Tensor) -> Tensor:
        return value.exp()

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = variance + self._deviation(mean).square()
        centre = (mean + 0.5 * total).exp()
        return centre, centre.square() * torch.expm1(total)
