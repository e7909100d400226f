"""Positive numbers with a gamma distribution."""

import torch
from torch import Tensor
from torch.distributions import Gamma

from gpvi.likelihoods.censored import PositiveLikelihood, bounded_exp
from gpvi.likelihoods.incomplete_gamma import log_incomplete_gamma
from gpvi.likelihoods.parameters import BoundedParameter

__all__ = ["GammaLikelihood"]


class GammaLikelihood(PositiveLikelihood):
    r"""Positive numbers with mean exp(f) and a learnt shape: gamma distributed given f, censored or not.

    .. math:: y_n \mid f_n \sim \mathrm{Gamma}(\text{shape } k, \text{rate } k e^{-f_n}), \qquad
              \mathrm{E}[y \mid f] = e^f, \quad \mathrm{Var}[y \mid f] = e^{2f} / k

    so that the coefficient of variation is :math:`1/\sqrt{k}` everywhere. The row extra `censored` is 1
    where the true value is above y, -1 where it is below, else 0. Log-concave. The expected log density
    is in closed form, :math:`\mathrm{E}[e^{-f}] = e^{-m + v/2}`, that of bounds is quadrature
    of logarithms of incomplete gamma functions; moments are in closed form.

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
    McCullagh, P. and Nelder, J. A. (1989). Generalized Linear Models. Chapman & Hall.

    Examples
    --------
    >>> likelihood = GammaLikelihood(shape=4.0)
    >>> mean, variance = likelihood.predict_mean_var(torch.zeros(1), torch.zeros(1))
    >>> mean.detach(), variance.detach()
    (tensor([1.]), tensor([0.2500]))
    """

    shape = BoundedParameter(1e-3)

    def __init__(
        self,
        shape: float | Tensor = 2.0,
        learn_shape: bool = True,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        num_nodes: int = 32,
    ) -> None:
        super().__init__(num_nodes)
        type(self).shape.register(self, shape, learn_shape, batch_shape)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Gamma:
        """Return the gamma distribution of the true value given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Gamma
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        k = self.shape.to(function_samples)
        return Gamma(k, k * bounded_exp(-function_samples))

    def _log_density(self, f: Tensor, y: Tensor) -> Tensor:
        return self._density(y, f, bounded_exp(-f))

    def _expected_log_density(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return self._density(y, mean, bounded_exp(0.5 * variance - mean))

    def _density(self, y: Tensor, f: Tensor, inverse: Tensor) -> Tensor:
        k = self.shape.to(f)
        return k * (k.log() - f - y * inverse) - torch.lgamma(k) + (k - 1) * y.log()

    def _log_survival(self, f: Tensor, y: Tensor) -> Tensor:
        return self._log_incomplete(f, y, upper=True)

    def _log_cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return self._log_incomplete(f, y, upper=False)

    def _log_incomplete(self, f: Tensor, y: Tensor, upper: bool) -> Tensor:
        k = self.shape.to(f)
        x = k * y * bounded_exp(-f)
        limits = torch.finfo(x.dtype)
        return log_incomplete_gamma(k, x.clamp(limits.tiny, 1e-8 * limits.max), upper)

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        centre = (mean + 0.5 * variance).exp()
        total = centre.square() * (torch.expm1(variance) + variance.exp() / self.shape.to(mean))
        return centre.expand(total.shape), total
