"""Noise whose size is a second latent function."""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, StudentT

from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.moments import aligned, drop_leading_ones
from gpvi.likelihoods.parameters import BoundedParameter
from gpvi.likelihoods.predictive import invert_cdf
from gpvi.likelihoods.student_t import (
    expected_log_student_t,
    scale_mixture,
    student_t_log_density,
)
from gpvi.linalg.quadrature import (
    expectation,
    floored_variance,
    log_expectation_exp,
    uniform_rule,
)

__all__ = [
    "HeteroscedasticGaussianLikelihood",
    "HeteroscedasticStudentTLikelihood",
]

_LOG_2PI = math.log(2 * math.pi)
_NUM_RECENTRINGS = 12


class TwoLatentNoise(Likelihood):
    """Base class: y is spread about the first latent f on the scale exp(g) of the second.

    Parameters
    ----------
    num_nodes : int
        Number of Gauss-Hermite nodes over g.
    """

    num_latents = 2

    def __init__(self, num_nodes: int = 20) -> None:
        super().__init__(num_nodes)
        self._cdf_rule = uniform_rule()

    @abstractmethod
    def _noise_factor(self, like: Tensor) -> Tensor:
        """Variance of the noise of unit scale."""

    @abstractmethod
    def _log_density_given(self, y: Tensor, mean: Tensor, variance: Tensor, g: Tensor) -> Tensor:
        """log E[p(y | f, g)] over f ~ N(mean, variance)."""

    @abstractmethod
    def _cdf_given(self, value: Tensor, mean: Tensor, variance: Tensor, g: Tensor) -> Tensor:
        """P(Y <= value | g), over f ~ N(mean, variance)."""

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        (f, g), (f_variance, g_variance) = _latents(mean), _latents(variance)
        total = f_variance + self._noise_factor(mean) * (2 * (g + g_variance)).exp()
        return f.expand(total.shape), total

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        (f, g), (f_variance, g_variance) = _latents(mean), _latents(variance)
        g, g_variance, dims = aligned(g, g_variance, [y, f, f_variance], self.parameters())
        value = log_expectation_exp(
            lambda at: self._log_density_given(y, f, f_variance, at),
            g,
            g_variance,
            self._rule,
            _NUM_RECENTRINGS,
        )
        return drop_leading_ones(value, dims)

    @torch.no_grad()
    def _predict_quantiles(
        self, levels: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        wide = mean.double(), variance.double()
        (f, g), (f_variance, g_variance) = (_latents(moment) for moment in wide)
        centre, spread = self._predict_mean_var(*wide)
        deviation = floored_variance(g, g_variance).sqrt()
        rule = self._cdf_rule.like(f)
        weights = rule.log_weights.exp()

        def cdf(value: Tensor) -> Tensor:
            total = torch.zeros_like(value)
            for node, weight in zip(rule.nodes, weights, strict=True):
                at = g + deviation * node
                total = total + weight * self._cdf_given(value, f, f_variance, at)
            return total

        targets = levels.double().reshape(-1, *[1] * centre.dim())
        # Heavy tails of g may put the moments out of proportion: the median scale is a better guide.
        typical = f_variance + self._noise_factor(f) * (2 * g).exp()
        guide = torch.minimum(spread, 100 * typical)
        return invert_cdf(cdf, targets, centre, guide, discrete=False).to(mean.dtype)


class HeteroscedasticGaussianLikelihood(TwoLatentNoise):
    r"""Gaussian noise whose standard deviation is a latent function too.

    .. math:: y_n \mid f_n, g_n \sim N(f_n, e^{2 g_n})

    Moments are those of two latents `[*b, 2, N]`: f first, then g, the logarithm of the noise standard
    deviation. With m, v the moments of f and of g,

    .. math:: \mathrm{E}[\log p(y \mid f, g)] = -\tfrac12 \log 2\pi - m_g
              - \tfrac12 \left((y - m_f)^2 + v_f\right) e^{-2 m_g + 2 v_g}

    is in closed form, and so are its derivatives: by both variances they are negative, so that sites of
    both latents are proper everywhere, although the likelihood is not jointly log-concave. Predictive
    moments are in closed form; densities and quantiles are quadrature over g.

    Parameters
    ----------
    num_nodes : int
        Number of Gauss-Hermite nodes over g of predictive log densities.

    References
    ----------
    Goldberg, P., Williams, C. and Bishop, C. (1997). Regression with input-dependent noise: a Gaussian
    process treatment. NeurIPS.
    Lázaro-Gredilla, M. and Titsias, M. (2011). Variational heteroscedastic Gaussian process regression.
    ICML.

    Examples
    --------
    >>> likelihood = HeteroscedasticGaussianLikelihood()
    >>> mean, variance = torch.zeros(2, 1), torch.tensor([[0.5], [0.0]])
    >>> likelihood.predict_mean_var(mean, variance)[1]
    tensor([1.5000])
    """

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        """Return the normal distribution of y given f and g.

        Parameters
        ----------
        function_samples : Tensor
            Values of f and g, `[..., N, 2]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Normal
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-2])
        return Normal(function_samples[..., 0], function_samples[..., 1].exp())

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        f, g = function_samples.unbind(-1)
        return -0.5 * (_LOG_2PI + ((y - f) * (-g).exp()).square()) - g

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        (f, g), (f_variance, g_variance) = _latents(mean), _latents(variance)
        squares = (y - f).square() + f_variance
        return -0.5 * (_LOG_2PI + squares * (2 * (g_variance - g)).exp()) - g

    def _noise_factor(self, like: Tensor) -> Tensor:
        return torch.ones(1, dtype=like.dtype, device=like.device)

    def _log_density_given(self, y: Tensor, mean: Tensor, variance: Tensor, g: Tensor) -> Tensor:
        total = variance + (2 * g).exp()
        return -0.5 * (_LOG_2PI + total.log() + (y - mean).square() / total)

    def _cdf_given(self, value: Tensor, mean: Tensor, variance: Tensor, g: Tensor) -> Tensor:
        return torch.special.ndtr((value - mean) / (variance + (2 * g).exp()).sqrt())


class HeteroscedasticStudentTLikelihood(TwoLatentNoise):
    r"""Student-t noise whose scale is a latent function too.

    .. math:: y_n = f_n + e^{g_n} t_n, \qquad t_n \sim \text{Student-t}(\nu)

    Moments are those of two latents `[*b, 2, N]`: f first, then g, the logarithm of the scale. The
    expectation over f is that of `StudentTLikelihood`, by a uniform rule in log space that is exact at
    every ratio of widths, and the one over g is Gauss-Hermite quadrature. Not log-concave: negative
    precisions of f are held at zero in natural-gradient steps. Predictive densities and quantiles
    integrate over g and over the scale mixture of the Student-t distribution.

    Parameters
    ----------
    degrees_of_freedom : float
        Starting value of :math:`\nu`, above 2, so that y has a variance.
    learn_degrees_of_freedom : bool
        Whether it is a trained parameter.
    num_nodes : int
        Number of Gauss-Hermite nodes over g.

    Attributes
    ----------
    degrees_of_freedom : Tensor
        `[1]`. Assign a number to set it.

    References
    ----------
    Lázaro-Gredilla, M. and Titsias, M. (2011). Variational heteroscedastic Gaussian process regression.
    ICML.

    Examples
    --------
    >>> likelihood = HeteroscedasticStudentTLikelihood(degrees_of_freedom=4.0)
    >>> mean, variance = torch.zeros(2, 1), torch.tensor([[0.5], [0.0]])
    >>> likelihood.predict_mean_var(mean, variance)[1].detach()
    tensor([2.5000])
    """

    degrees_of_freedom = BoundedParameter(2.0)

    def __init__(
        self,
        degrees_of_freedom: float = 4.0,
        learn_degrees_of_freedom: bool = True,
        num_nodes: int = 20,
    ) -> None:
        super().__init__(num_nodes)
        type(self).degrees_of_freedom.register(self, degrees_of_freedom, learn_degrees_of_freedom)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        """Return the Student-t distribution of y given f and g.

        Parameters
        ----------
        function_samples : Tensor
            Values of f and g, `[..., N, 2]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.StudentT
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-2])
        f, g = function_samples.unbind(-1)
        return StudentT(self.degrees_of_freedom.to(f), f, g.exp())

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        f, g = function_samples.unbind(-1)
        return student_t_log_density(y - f, self.degrees_of_freedom.to(f), g.exp())

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        (f, g), (f_variance, g_variance) = _latents(mean), _latents(variance)
        nu = self.degrees_of_freedom.to(f)
        g, g_variance, dims = aligned(g, g_variance, [y, f, f_variance], self.parameters())
        value = expectation(
            lambda at: expected_log_student_t(y - f, f_variance, nu, at.exp()),
            g,
            g_variance,
            self._rule,
        )
        return drop_leading_ones(value, dims)

    def _noise_factor(self, like: Tensor) -> Tensor:
        nu = self.degrees_of_freedom.to(like)
        return nu / (nu - 2)

    def _log_density_given(self, y: Tensor, mean: Tensor, variance: Tensor, g: Tensor) -> Tensor:
        nu = self.degrees_of_freedom.to(g)
        log_tau, log_weights = scale_mixture(nu, g.dim())
        total = variance + (2 * g - log_tau).exp()
        density = -0.5 * (_LOG_2PI + total.log() + (y - mean).square() / total)
        return (log_weights + density).logsumexp(0)

    def _cdf_given(self, value: Tensor, mean: Tensor, variance: Tensor, g: Tensor) -> Tensor:
        log_tau, log_weights = scale_mixture(self.degrees_of_freedom.to(g), value.dim())
        deviation = (variance + (2 * g - log_tau).exp()).sqrt()
        return (log_weights.exp() * torch.special.ndtr((value - mean) / deviation)).sum(0)


def _latents(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Those of f and of g, each `[*b, N]`."""
    return moment[..., 0, :], moment[..., 1, :]
