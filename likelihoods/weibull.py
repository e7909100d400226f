"""Waiting times: Weibull and exponential distributions, censored or not."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, Exponential, Weibull

from gpvi.likelihoods.censored import PositiveLikelihood, bounded_exp
from gpvi.likelihoods.parameters import BoundedParameter

__all__ = ["ExponentialLikelihood", "WeibullLikelihood"]

# Below, log(1 - exp(-z)) is log z.
_SMALL_HAZARD = -30.0


class ClosedFormWeibull(PositiveLikelihood):
    """Closed forms that need only the shape of a Weibull distribution.

    Parameters
    ----------
    num_nodes : int
        Number of Gauss-Hermite nodes of predictive log densities.
    """

    @abstractmethod
    def _shape_like(self, like: Tensor) -> Tensor:
        """Shape k, in dtype and on device of `like`."""

    def _log_density(self, f: Tensor, y: Tensor) -> Tensor:
        k = self._shape_like(f)
        log_hazard = k * (y.log() - f)
        return k.log() - y.log() + log_hazard - bounded_exp(log_hazard)

    def _expected_log_density(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        k = self._shape_like(mean)
        log_hazard = k * (y.log() - mean)
        expected = bounded_exp(log_hazard + 0.5 * k.square() * variance)
        return k.log() - y.log() + log_hazard - expected

    def _log_survival(self, f: Tensor, y: Tensor) -> Tensor:
        return -bounded_exp(self._shape_like(f) * (y.log() - f))

    def _expected_log_survival(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        k = self._shape_like(mean)
        return -bounded_exp(k * (y.log() - mean) + 0.5 * k.square() * variance)

    def _log_cdf(self, f: Tensor, y: Tensor) -> Tensor:
        log_hazard = self._shape_like(f) * (y.log() - f)
        small = log_hazard < _SMALL_HAZARD
        # Of large hazards the survival is 0 long before the exponential overflows.
        safe = torch.where(small, torch.zeros_like(log_hazard), log_hazard).clamp_max(30.0)
        inside = (-torch.expm1(-safe.exp())).log()
        return torch.where(small, log_hazard, inside)

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        k = self._shape_like(mean)
        first, second = torch.lgamma(1 + 1 / k), torch.lgamma(1 + 2 / k)
        centre = (mean + 0.5 * variance + first).exp()
        total = centre.square() * torch.expm1(variance + second - 2 * first)
        return centre, total


class WeibullLikelihood(ClosedFormWeibull):
    r"""Times with scale exp(f) and a learnt shape: Weibull distributed given f, censored or not.

    .. math:: P(y_n > t \mid f_n) = \exp\left(-(t e^{-f_n})^k\right), \qquad
              \mathrm{E}[y \mid f] = e^f\, \Gamma(1 + 1/k)

    which is an accelerated failure time model: f stretches time; the hazard rises with time for
    :math:`k > 1` and falls for :math:`k < 1`. The row extra `censored` is 1 where the event had not
    happened by y, -1 where it had happened before, and 0 where it happened at y. Log-concave.
    Expectations are in closed form, :math:`\mathrm{E}[e^{-kf}] = e^{-km + k^2 v/2}`, save for -1.

    Parameters
    ----------
    shape : float
        Starting value of k.
    learn_shape : bool
        Whether it is a trained parameter.
    batch_shape : torch.Size
        Shape of a batch of independent shapes, `[*batch_shape, 1]`.
    num_nodes : int
        Number of Gauss-Hermite nodes of predictive log densities.

    Attributes
    ----------
    shape : Tensor
        `[*batch_shape, 1]`, above 1e-3. Assign a number to set it.

    References
    ----------
    Kalbfleisch, J. D. and Prentice, R. L. (2002). The Statistical Analysis of Failure Time Data. Wiley.

    Examples
    --------
    >>> likelihood = WeibullLikelihood(shape=2.0)
    >>> y, zero = torch.ones(2), torch.zeros(2)
    >>> censored = torch.tensor([0.0, 1.0])
    >>> likelihood.variational_expectations(y, zero, zero, censored=censored).detach()
    tensor([-0.3069, -1.0000])
    """

    shape = BoundedParameter(1e-3)

    def __init__(
        self,
        shape: float | Tensor = 1.0,
        learn_shape: bool = True,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        num_nodes: int = 32,
    ) -> None:
        super().__init__(num_nodes)
        type(self).shape.register(self, shape, learn_shape, batch_shape)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Weibull:
        """Return the Weibull distribution of the time given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Weibull
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        return Weibull(bounded_exp(function_samples), self._shape_like(function_samples))

    def _shape_like(self, like: Tensor) -> Tensor:
        return self.shape.to(like)


class ExponentialLikelihood(ClosedFormWeibull):
    r"""Times with mean exp(f): exponentially distributed given f, censored or not.

    .. math:: P(y_n > t \mid f_n) = \exp(-t e^{-f_n})

    The Weibull distribution with shape 1: a constant hazard :math:`e^{-f}`. The row extra `censored` is
    1 where the event had not happened by y, -1 where it had happened before, and 0 where it happened at
    y. Log-concave; expectations are in closed form, save for -1.

    Parameters
    ----------
    num_nodes : int
        Number of Gauss-Hermite nodes of predictive log densities.

    References
    ----------
    Kalbfleisch, J. D. and Prentice, R. L. (2002). The Statistical Analysis of Failure Time Data. Wiley.

    Examples
    --------
    >>> likelihood = ExponentialLikelihood()
    >>> likelihood.predict_mean_var(torch.zeros(1), torch.zeros(1))
    (tensor([1.]), tensor([1.]))
    """

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        """Return the exponential distribution of the time given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Exponential
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        return Exponential(bounded_exp(-function_samples))

    def _shape_like(self, like: Tensor) -> Tensor:
        return torch.ones(1, dtype=like.dtype, device=like.device)
