"""Counts with more zeros than their distribution explains."""

import gpytorch
import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.conversion import as_likelihood
from gpvi.likelihoods.distributions import ZeroInflated, inflated_log_prob
from gpvi.likelihoods.moments import is_discrete
from gpvi.likelihoods.parameters import BoundedParameter
from gpvi.linalg.quadrature import expectation, uniform_rule

__all__ = ["ZeroInflatedLikelihood"]

# Log probabilities below are those of zero.
_UNDERFLOW = -800.0


class ZeroInflatedLikelihood(Likelihood):
    r"""Zero inflation of a likelihood of counts, such as Poisson or negative binomial.

    .. math:: P(y = 0 \mid f) = \pi + (1 - \pi) P_{\text{base}}(0 \mid f), \qquad
              P(y \mid f) = (1 - \pi) P_{\text{base}}(y \mid f), \; y > 0

    The probability :math:`\pi` of an extra zero is one learnt number and does not depend on f; link and
    row extras (exposure, trials) are those of the base. The mean is :math:`(1 - \pi)` times its mean.

    Not log-concave: given a zero, the base's rate may be anything. Expectations of zeros are quadrature
    (by a uniform rule) of :math:`\log(\pi + (1 - \pi) P_{\text{base}}(0 \mid f))`, which never
    overflows; those of positive counts, and predictive densities, quantiles and moments, are the base's,
    in closed form wherever it has one.

    Parameters
    ----------
    base : gpytorch or gpvi likelihood
        Of counts, with one latent.
    probability : float
        Starting value of :math:`\pi`, strictly between 0 and 1.
    learn_probability : bool
        Whether it is a trained parameter.

    Attributes
    ----------
    probability : Tensor
        `[1]`. Assign a number to set it.
    base : Likelihood
        Of the counts before inflation.

    Raises
    ------
    InputError
        If the base is no likelihood of counts, or the probability is out of range.

    References
    ----------
    Lambert, D. (1992). Zero-inflated Poisson regression, with an application to defects in
    manufacturing. Technometrics.

    Examples
    --------
    >>> from gpvi.likelihoods import PoissonLikelihood
    >>> likelihood = ZeroInflatedLikelihood(PoissonLikelihood(), probability=0.25)
    >>> mean, variance = likelihood.predict_mean_var(torch.zeros(1), torch.zeros(1))
    >>> mean.detach(), variance.detach()
    (tensor([0.7500]), tensor([0.9375]))
    """

    probability = BoundedParameter(0.0, 1.0)

    def __init__(
        self,
        base: gpytorch.likelihoods.Likelihood,
        probability: float | Tensor = 0.1,
        learn_probability: bool = True,
    ) -> None:
        super().__init__()
        self.base = as_likelihood(base)
        zeros = torch.zeros(2, dtype=torch.float64)
        if self.base.num_latents != 1 or not is_discrete(self.base.forward(zeros)):
            raise InputError(
                f"The base of a zero-inflated likelihood describes counts by one latent, and "
                f"{type(base).__name__} does not. Pass a PoissonLikelihood, for example."
            )
        # Narrow steps between rates at which a zero is likely and not: Gauss-Hermite nodes miss them.
        self._zeros_rule = uniform_rule(0.2, 7.0)
        type(self).probability.register(self, probability, learn_probability)
        self.row_arguments = self.base.row_arguments
        self.has_exponential_mean = self.base.has_exponential_mean

    def forward(self, function_samples: Tensor, **rows: Tensor) -> ZeroInflated:
        """Return the distribution of the count given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras of the base.

        Returns
        -------
        ZeroInflated
            Batch shape `[..., N]`.
        """
        conditional = self.base.forward(function_samples, **rows)
        return ZeroInflated(conditional, self._logits(function_samples))

    def check_targets(self, y: Tensor, **rows: Tensor) -> None:
        """Raise for impossible targets and row extras, as the base does.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`; NaN is allowed.
        **rows : Tensor
            Row extras of the base.

        Raises
        ------
        InputError
            Names the first offending value.
        """
        super().check_targets(y, **rows)
        self.base.check_targets(y, **rows)

    def _logits(self, like: Tensor) -> Tensor:
        probability = self.probability.to(like)
        return probability.log() - torch.log1p(-probability)

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        log_prob = self.base._log_prob(function_samples, y, **rows)
        return inflated_log_prob(log_prob, y, self._logits(function_samples))

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        zero = y == 0
        logits = self._logits(mean)
        mean, variance = torch.broadcast_tensors(mean, variance)
        # What zeros are not asked may overflow, and would poison their gradients.
        elsewhere = (torch.where(zero, torch.zeros_like(m), m) for m in (mean, variance))
        positive = self.base._variational_expectations(y, *elsewhere, **rows)

        def inflated(f: Tensor) -> Tensor:
            return torch.logaddexp(logits, self._log_zero(f, y, **rows))

        dims = max(mean.dim(), y.dim(), *(extra.dim() for extra in rows.values()), 0)
        mean = mean.reshape(*[1] * (dims - mean.dim()), *mean.shape)
        value = torch.where(zero, expectation(inflated, mean, variance, self._zeros_rule), positive)
        return value + torch.nn.functional.logsigmoid(-logits)

    def _log_zero(self, f: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        """Log probability of zero under the base, with finite slopes where it underflows."""
        nothing = torch.zeros_like(y)
        with torch.no_grad():
            hopeless = self.base._log_prob(f, nothing, **rows) < _UNDERFLOW
        safe = torch.where(hopeless, torch.zeros_like(f), f)
        return self.base._log_prob(safe, nothing, **rows).masked_fill(hopeless, _UNDERFLOW)

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        density = self.base._predict_log_density(y, mean, variance, **rows)
        return inflated_log_prob(density, y, self._logits(mean))

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        centre, spread = self.base._predict_mean_var(mean, variance, **rows)
        inflation = self.probability.to(mean)
        kept = 1 - inflation
        return kept * centre, kept * (spread + inflation * centre.square())

    def _predictive_cdf(
        self, value: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        inflation = self.probability.to(mean)
        below = self.base._predictive_cdf(value, mean, variance, **rows)
        return torch.where(value >= 0, inflation + (1 - inflation) * below, below)

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor | None:
        return self.base._initial_latent(y, observed, **rows)
