"""Successes out of a known number of trials."""

from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Binomial

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.counts import refuse_negative
from gpvi.likelihoods.links import probit_logits

__all__ = ["BinomialLikelihood"]


class BinomialLikelihood(Likelihood):
    r"""Successes out of trials, binomial given f.

    .. math:: y_n \mid f_n \sim \mathrm{Binomial}(t_n, p(f_n)), \qquad
              p(f) = (1 + e^{-f})^{-1} \;\text{(logit)} \;\text{or}\; \Phi(f) \;\text{(probit)}

    The row extra `trials` holds the whole number :math:`t_n \ge 1`, 1 by default. Log-concave.
    Expectations are Gauss-Hermite quadrature of functions that stay finite in both tails. Fractional
    successes are accepted as quasi-likelihood.

    Parameters
    ----------
    link : {"logit", "probit"}
        Which link.
    num_nodes : int
        Number of Gauss-Hermite nodes.

    Raises
    ------
    InputError
        For another link.

    References
    ----------
    McCullagh, P. and Nelder, J. A. (1989). Generalized Linear Models. Chapman & Hall.

    Examples
    --------
    >>> likelihood = BinomialLikelihood()
    >>> mean, variance = likelihood.predict_mean_var(
    ...     torch.zeros(2), torch.zeros(2), trials=torch.tensor([1.0, 10.0])
    ... )
    >>> mean, variance
    (tensor([0.5000, 5.0000]), tensor([0.2500, 2.5000]))
    """

    is_log_concave = True
    row_arguments = frozenset({"weights", "trials"})

    def __init__(self, link: Literal["logit", "probit"] = "logit", num_nodes: int = 20) -> None:
        super().__init__(num_nodes)
        if link not in ("logit", "probit"):
            raise InputError(f'link must be "logit" or "probit", got {link!r}.')
        self.link = link

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Binomial:
        """Return the binomial distribution of the successes given f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            `trials`: whole and positive, `[N]`.

        Returns
        -------
        torch.distributions.Binomial
            Batch shape `[..., N]`.
        """
        extras = self._extras(rows, function_samples, function_samples.shape[-1])
        probit = self.link == "probit"
        logits = probit_logits(function_samples) if probit else function_samples
        return Binomial(extras.get("trials", torch.ones_like(function_samples)), logits=logits)

    def check_targets(self, y: Tensor, **rows: Tensor) -> None:
        """Raise for impossible targets and row extras, and for more successes than trials.

        Parameters
        ----------
        y : Tensor
            Targets `[*b, N]`; NaN is allowed.
        **rows : Tensor
            Row extras.

        Raises
        ------
        InputError
            Names the first offending value.
        """
        super().check_targets(y, **rows)
        successes = y.to(torch.float64)
        extras = self._extras(rows, successes, successes.shape[-1])
        trials = extras.get("trials", torch.ones_like(successes)).expand(successes.shape)
        observed = ~successes.isnan()
        fractional = trials[observed & (trials != trials.round())]
        if len(fractional):
            raise InputError(
                f"The row argument 'trials' of {type(self).__name__} must be whole numbers, got "
                f"{fractional[0].item()}. Round them, or use weights for fractions."
            )
        above = observed & (successes > trials)
        if bool(above.any()):
            first = successes[above][0].item(), trials[above][0].item()
            raise InputError(
                f"{type(self).__name__} got {first[0]} successes out of {first[1]:g} trial(s). Pass "
                "the number of trials of every row as the row argument `trials`."
            )

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        trials = rows.get("trials", torch.ones_like(y))
        log_link = torch.nn.functional.logsigmoid
        if self.link == "probit":
            log_link = torch.special.log_ndtr
        constant = torch.lgamma(trials + 1) - torch.lgamma(y + 1) - torch.lgamma(trials - y + 1)
        return (
            constant + y * log_link(function_samples) + (trials - y) * log_link(-function_samples)
        )

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor:
        trials = rows.get("trials", torch.ones_like(y))
        # Half a success and half a failure more keep the proportion inside.
        proportion = (y + 0.5) / (trials + 1)
        return torch.special.ndtri(proportion) if self.link == "probit" else proportion.logit()

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        refuse_negative(y, observed, type(self).__name__)

    def _fill(self, y: Tensor, missing: Tensor) -> Tensor:
        # Extras of missing rows are one, and so are their trials.
        return torch.where(missing, torch.ones_like(y), y)
