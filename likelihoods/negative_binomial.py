"""Counts that vary more than a Poisson distribution allows."""

from typing import Literal

import torch
from torch import Tensor
from torch.distributions import NegativeBinomial

from gpvi.likelihoods.counts import CountLikelihood
from gpvi.likelihoods.parameters import BoundedParameter

__all__ = ["NegativeBinomialLikelihood"]

# From here on Stirling's series with five terms has an error below 1e-14.
_STIRLING_FROM = 16.0
_STIRLING_TERMS = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)


class NegativeBinomialLikelihood(CountLikelihood):
    r"""Counts with mean and dispersion: negative binomial given f, with exposure.

    .. math:: \mathrm{E}[y_n \mid f_n] = \mu_n = e_n\, \lambda(f_n), \qquad
              \mathrm{Var}[y_n \mid f_n] = \mu_n + \alpha \mu_n^2

    with :math:`\lambda(f) = e^f` (log link) or :math:`\log(1 + e^f)` (softplus) and the exposure
    :math:`e_n > 0` as a row extra (1 by default). The dispersion :math:`\alpha > 0` is learnt; towards
    0 the distribution becomes Poisson. Elsewhere it is known by its size :math:`r = 1/\alpha` and the
    probability :math:`\mu / (\mu + r)`, as in `torch.distributions.NegativeBinomial`, or as "NB2":

    .. math:: \log p(y \mid f) = \log \frac{\Gamma(y + r)}{\Gamma(r)\, y!\, r^y} + y \log \mu
              - (y + r) \log(1 + \mu / r)

    Log-concave with the log link. Expectations are Gauss-Hermite quadrature; mean and variance of a
    new count are in closed form with the log link. Fractional counts are accepted.

    Parameters
    ----------
    dispersion : float
        Starting value of :math:`\alpha`.
    link : {"log", "softplus"}
        Which inverse link maps f to the rate.
    learn_dispersion : bool
        Whether it is a trained parameter.
    batch_shape : torch.Size
        Shape of a batch of independent dispersions, `[*batch_shape, 1]`.
    num_nodes : int
        Number of Gauss-Hermite nodes.

    Attributes
    ----------
    dispersion : Tensor
        `[*batch_shape, 1]`, above 1e-6. Assign a number to set it.

    References
    ----------
    Hilbe, J. M. (2011). Negative Binomial Regression. Cambridge University Press.

    Examples
    --------
    >>> likelihood = NegativeBinomialLikelihood(dispersion=0.5)
    >>> mean, variance = likelihood.predict_mean_var(torch.zeros(1), torch.zeros(1))
    >>> variance.detach()  # 1 + 0.5
    tensor([1.5000])
    """

    dispersion = BoundedParameter(1e-6)

    def __init__(
        self,
        dispersion: float | Tensor = 0.5,
        link: Literal["log", "softplus"] = "log",
        learn_dispersion: bool = True,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        num_nodes: int = 20,
    ) -> None:
        super().__init__(link, num_nodes)
        type(self).dispersion.register(self, dispersion, learn_dispersion, batch_shape)
        self.is_log_concave = link == "log"

    def forward(self, function_samples: Tensor, **rows: Tensor) -> NegativeBinomial:
        """Return the negative binomial distribution of the count given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            `exposure`: positive, `[N]`.

        Returns
        -------
        torch.distributions.NegativeBinomial
            Batch shape `[..., N]`.
        """
        extras = self._extras(rows, function_samples, function_samples.shape[-1])
        log_rate = self._log_rate(function_samples, extras.get("exposure"))
        dispersion = self.dispersion.to(log_rate)
        return NegativeBinomial(dispersion.reciprocal(), logits=log_rate + dispersion.log())

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        log_rate = self._log_rate(function_samples, rows.get("exposure"))
        size = self.dispersion.to(log_rate).reciprocal()
        # log(1 + rate / size), finite for every latent value.
        spread = torch.nn.functional.softplus(log_rate - size.log())
        constant = _log_rising_factorial(y, size) - torch.lgamma(y + 1)
        return constant + y * log_rate - (y + size) * spread

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.link != "log":
            return super()._predict_mean_var(mean, variance, **rows)
        rate = (self._log_rate(mean, rows.get("exposure")) + 0.5 * variance).exp()
        inside = self.dispersion.to(rate) * variance.exp() + torch.expm1(variance)
        total = rate + rate.square() * inside
        return rate.expand(total.shape), total


def _log_rising_factorial(y: Tensor, size: Tensor) -> Tensor:
    r"""Logarithm of :math:`\Gamma(y + r) / (\Gamma(r)\, r^y)`, accurate for large sizes r.

    The difference of two log gamma functions loses digits where r is large against y; there
    Stirling's series gives it directly.

    Parameters
    ----------
    y : Tensor
        Counts, at least 0, any shape.
    size : Tensor
        Positive r, broadcasts against y.

    Returns
    -------
    Tensor
        Broadcast shape; near 0 where r is large.
    """
    large = size > _STIRLING_FROM
    safe = torch.where(large, size, torch.full_like(size, _STIRLING_FROM))
    by_series = (y + safe - 0.5) * (y / safe).log1p() - y + _tail(y + safe) - _tail(safe)
    small = torch.where(large, torch.ones_like(size), size)
    direct = torch.lgamma(y + small) - torch.lgamma(small) - y * small.log()
    return torch.where(large, by_series, direct)


def _tail(z: Tensor) -> Tensor:
    """What Stirling's formula leaves of log Gamma(z)."""
    square = z.square().reciprocal()
    total = torch.zeros_like(z)
    for term in reversed(_STIRLING_TERMS):
        total = total * square + term
    return total / z
