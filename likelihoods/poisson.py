"""Counts with a Poisson distribution and an optional exposure."""

import torch
from torch import Tensor
from torch.distributions import Poisson

from gpvi.likelihoods.counts import CountLikelihood

__all__ = ["PoissonLikelihood"]


class PoissonLikelihood(CountLikelihood):
    r"""Counts, Poisson distributed given f, with exposure.

    .. math:: y_n \mid f_n \sim \mathrm{Poisson}(e_n\, \lambda(f_n)), \qquad
              \lambda(f) = e^f \;\text{(log)} \;\text{or}\; \log(1 + e^f) \;\text{(softplus)}

    The row extra `exposure` :math:`e_n > 0` (time, area, population at risk; 1 by default) scales
    the rate. With the log link the expected log likelihood is in closed form,
    :math:`y (m + \log e) - e\, \exp(m + v/2) - \log\Gamma(y + 1)`, and so are mean and variance
    of a new count. Fractional counts are accepted as quasi-likelihood.

    Parameters
    ----------
    link : {"log", "softplus"}
        Which inverse link maps f to the rate.
    num_nodes : int
        Number of Gauss-Hermite nodes.

    References
    ----------
    Diggle, P. J., Tawn, J. A. and Moyeed, R. A. (1998). Model-based geostatistics. Applied
    Statistics.

    Examples
    --------
    >>> likelihood = PoissonLikelihood()
    >>> y, zero = torch.tensor([0.0, 2.0]), torch.zeros(2)
    >>> likelihood.variational_expectations(y, zero, zero, exposure=torch.tensor([1.0, 2.0]))
    tensor([-1.0000, -1.3069])
    """

    is_log_concave = True

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Poisson:
        """Return the Poisson distribution of the count given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            `exposure`: positive, `[N]`.

        Returns
        -------
        torch.distributions.Poisson
            Batch shape `[..., N]`.
        """
        extras = self._extras(rows, function_samples, function_samples.shape[-1])
        return Poisson(self._log_rate(function_samples, extras.get("exposure")).exp())

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        log_rate = self._log_rate(function_samples, rows.get("exposure"))
        return y * log_rate - log_rate.exp() - torch.lgamma(y + 1)

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        if self.link != "log":
            return super()._variational_expectations(y, mean, variance, **rows)
        log_rate = self._log_rate(mean, rows.get("exposure"))
        return y * log_rate - (log_rate + 0.5 * variance).exp() - torch.lgamma(y + 1)

    def _expectation_slopes(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        if self.link != "log":
            return None
        log_rate = self._log_rate(mean, rows.get("exposure"))
        rate = (log_rate + 0.5 * variance).exp()
        return y * log_rate - rate - torch.lgamma(y + 1), y - rate, -0.5 * rate

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.link != "log":
            return super()._predict_mean_var(mean, variance, **rows)
        rate = (self._log_rate(mean, rows.get("exposure")) + 0.5 * variance).exp()
        return rate, rate + rate.square() * torch.expm1(variance)
