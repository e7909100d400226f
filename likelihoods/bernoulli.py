"""Binary labels with a probit or a logit link."""

from typing import Literal

import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Bernoulli

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.links import probit_logits
from gpvi.likelihoods.moments import latent_moments
from gpvi.linalg.normal import expected_log_ndtr
from gpvi.linalg.quadrature import expectation

__all__ = ["BernoulliLikelihood"]


class BernoulliLikelihood(Likelihood):
    r"""Binary labels, P(y = 1 | f) = link(f).

    .. math:: P(y = 1 \mid f) = \Phi(f) \;\text{(probit)}, \qquad (1 + e^{-f})^{-1} \;\text{(logit)}

    The label of a row is 1 where y > 0 and 0 otherwise, element by element, so both codings {0, 1}
    and {-1, 1} work and a minibatch cannot change the meaning of its labels; `check_targets`
    refuses other values and mixtures of the two codings. With the probit link predictions are in
    closed form, :math:`P(y = 1) = \Phi(m / \sqrt{1 + v})`; the rest is quadrature of functions
    that stay finite far out in both tails.

    Parameters
    ----------
    link : {"probit", "logit"}
        Which link.
    num_nodes : int
        Number of Gauss-Hermite nodes.

    References
    ----------
    Nickisch, H. and Rasmussen, C. E. (2008). Approximations for binary Gaussian process
    classification. JMLR.

    Examples
    --------
    >>> likelihood = BernoulliLikelihood()
    >>> mean, variance = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])
    >>> likelihood.predict_mean_var(mean, variance)[0]
    tensor([0.5000, 0.8413])
    """

    has_analytic_marginal = True
    is_log_concave = True

    def __init__(self, link: Literal["probit", "logit"] = "probit", num_nodes: int = 20) -> None:
        super().__init__(num_nodes)
        if link not in ("probit", "logit"):
            raise InputError(f'link must be "probit" or "logit", got {link!r}.')
        self.link = link

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Bernoulli:
        """Return the Bernoulli distribution of the label given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Bernoulli
            Batch shape `[..., N]`.
        """
        self._extras(rows, function_samples, function_samples.shape[-1])
        probit = self.link == "probit"
        return Bernoulli(logits=probit_logits(function_samples) if probit else function_samples)

    def marginal(self, q_f: MultivariateNormal, **rows: Tensor) -> Bernoulli:
        """Return the predictive Bernoulli distribution of the labels.

        Parameters
        ----------
        q_f : MultivariateNormal
            Distribution of f, `[*b, N]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        torch.distributions.Bernoulli
            Batch shape `[*b, N]`.
        """
        mean, variance = latent_moments(q_f, self.num_latents)
        self._extras(rows, mean, mean.shape[-1])
        if self.link == "probit":
            return Bernoulli(logits=probit_logits(mean / (1 + variance).sqrt()))
        return Bernoulli(probs=self._probability(mean, variance))

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        return self._log_link(_signs(y) * function_samples)

    def _log_link(self, latent: Tensor) -> Tensor:
        if self.link == "probit":
            return torch.special.log_ndtr(latent)
        return torch.nn.functional.logsigmoid(latent)

    def _expectation_slopes(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        if self.link != "probit":
            return None
        signs = _signs(y)
        value, by_mean, by_variance = expected_log_ndtr(signs * mean, variance, self._rule)
        return value, signs * by_mean, by_variance

    def _probability(self, mean: Tensor, variance: Tensor) -> Tensor:
        if self.link == "probit":
            return torch.special.ndtr(mean / (1 + variance).sqrt())
        # Rounding of the weights must not leave the unit interval.
        return expectation(torch.sigmoid, mean, variance, self._rule).clamp(0, 1)

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        probability = self._probability(mean, variance)
        return probability, probability * (1 - probability)

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        if self.link == "probit":
            return torch.special.log_ndtr(_signs(y) * mean / (1 + variance).sqrt())
        return super()._predict_log_density(y, mean, variance, **rows)

    def _predict_quantiles(
        self, levels: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        with torch.no_grad():
            probability = self._probability(mean, variance)
            levels = levels.reshape(-1, *[1] * probability.dim())
            return (levels > 1 - probability).to(mean)

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor:
        # Halfway between the label and a coin toss.
        probability = 0.5 + 0.25 * _signs(y)
        return torch.special.ndtri(probability) if self.link == "probit" else probability.logit()

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        labels = y[observed]
        bad = labels[~((labels == 0) | (labels.abs() == 1))]
        if len(bad):
            raise InputError(
                f"{type(self).__name__} needs labels in {{0, 1}} or {{-1, 1}}, got "
                f"{bad[0].item()}. Encode the classes first."
            )
        if bool((labels == -1).any()) and bool((labels == 0).any()):
            raise InputError(
                f"{type(self).__name__} got labels -1 and 0 together, so one of them is a third "
                "class. Use {0, 1} or {-1, 1}."
            )


def _signs(y: Tensor) -> Tensor:
    """+1 for label 1 (y > 0), -1 for label 0, in both codings."""
    return torch.where(y > 0, torch.ones_like(y), -torch.ones_like(y))
