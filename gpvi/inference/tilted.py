r"""Rows of expectation propagation: cavities, and the likelihood integrated over them.

Taking the fraction a of a row's site out of its marginal :math:`N(m, v)` leaves the cavity
:math:`N(m_-, v_-)`; putting :math:`p(y \mid f)^a` in its place makes the tilted distribution, with the
normaliser :math:`\tilde Z = \int p(y \mid f)^a N(f \mid m_-, v_-) df`.

References
----------
Minka, T. (2004). Power EP. Technical report, Microsoft Research.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.approximations import Posterior
from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.inference.objectives import row_copies
from gpvi.likelihoods import Likelihood
from gpvi.linalg.quadrature import log_expectation_exp

__all__ = ["Cavity", "Fractions", "check_one_latent", "log_tilted"]

# Where marginals are crude or rounded, a site may look stronger than its own posterior: 1 - lam2 v is kept
# above this.
_SMALLEST_GAP = 1e-5

_NUM_NODES = 40
_NUM_RECENTRINGS = 12


def check_one_latent(model: Likelihood) -> None:
    """Refuse likelihoods whose rows have several latent values.

    Parameters
    ----------
    model : Likelihood
        Any.

    Raises
    ------
    UnsupportedError
        If it couples latent functions.
    """
    if model.num_latents > 1:
        raise UnsupportedError(
            f"{type(model).__name__} couples {model.num_latents} latent functions, and cavities are of one "
            "function each; use elbo and cvi."
        )


@dataclass(frozen=True, eq=False)
class Fractions:
    """What leaves a row with its cavity, and what comes in its place.

    Parameters
    ----------
    power : float
        In (0, 1].
    fraction : Tensor, shape [*b, N]
        Of the row's site; a row that stands for several has a part for each.
    exponent : Tensor, shape [*b, N], or None
        Of the row's likelihood, where it is not ``power``.
    """

    power: float
    fraction: Tensor
    exponent: Tensor | None

    @classmethod
    def of(
        cls, model: Likelihood, y: Tensor, power: float, weights: Tensor | None, like: Tensor
    ) -> "Fractions":
        """Fractions of weighted rows.

        Parameters
        ----------
        model : Likelihood
            Of the rows.
        y : Tensor, shape [N] or [*b, N]
            Targets.
        power : float
            How much of a site is taken out.
        weights : Tensor, shape [N], optional
            Row weights.
        like : Tensor, shape [*b, N]
            In whose dtype.

        Returns
        -------
        Fractions
            Of every row.

        Raises
        ------
        InputError
            For a power outside (0, 1].
        """
        if not 0.0 < power <= 1.0:
            raise InputError(f"power is {power}; it must lie in (0, 1].")
        copies = row_copies(model, y, weights).to(like).clamp_min(1.0)
        fraction = power / copies
        return cls(power, fraction, None if weights is None else fraction * weights)


@dataclass(frozen=True, eq=False)
class Cavity:
    """Moments of every row without a fraction of its own site.

    Parameters
    ----------
    mean : Tensor, shape [*b, N]
        Of the projection, and of f.
    explained : Tensor, shape [*b, N]
        Variance of the projection.
    residual : Tensor, shape [*b, N], or None
        What the basis leaves of the variance of f.
    gap : Tensor, shape [*b, N]
        ``v / v_-`` of the projection.
    """

    mean: Tensor
    explained: Tensor
    residual: Tensor | None
    gap: Tensor

    @property
    def variance(self) -> Tensor:
        """Of f, shape [*b, N]."""
        return self.explained if self.residual is None else self.explained + self.residual

    @classmethod
    def of(cls, posterior: Posterior, fraction: Tensor) -> "Cavity":
        """Cavities of a posterior on data sites.

        Parameters
        ----------
        posterior : Posterior
            q.
        fraction : Tensor, shape [*b, N]
            How much of its site leaves every row.

        Returns
        -------
        Cavity
            On the graph of the posterior.
        """
        moments, sites = posterior.marginals(), posterior.sites
        try:
            without = posterior.leave_one_out()
            mean, variance = without.mean, without.explained
        except NumericalError:
            gap = (1.0 - sites.lam2 * moments.explained).clamp_min(_SMALLEST_GAP)
            variance = moments.explained / gap
            mean = moments.mean - variance * (sites.lam1 - sites.lam2 * moments.mean)
        # Part of the site goes back in: 1/v_k = 1/v_- + (1 - k) lam2.
        strength = sites.lam2 * variance
        kept = 1.0 + (1.0 - fraction) * strength
        return cls(
            moments.mean + (mean - moments.mean) * fraction / kept,
            variance / kept,
            moments.residual,
            kept / (1.0 + strength),
        )


def log_tilted(
    model: Likelihood, y: Tensor, cavity: Cavity, parts: Fractions, rows: dict[str, Tensor]
) -> Tensor:
    r"""Log normaliser :math:`\log \tilde Z` of every row.

    Parameters
    ----------
    model : Likelihood
        Of one latent.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed and gives zero.
    cavity : Cavity, shape [*b, N]
        What is integrated over.
    parts : Fractions
        Powers of the likelihood.
    rows : dict of str to Tensor
        Per-row extras of the likelihood.

    Returns
    -------
    Tensor, shape [*b, N]
        Nats.
    """
    missing = model.missing(y)
    mean, variance = cavity.mean, cavity.variance
    if (parts.exponent is None and parts.power == 1.0) or (
        parts.exponent is not None and bool((parts.exponent == 1.0).all())
    ):
        value = model.predict_log_density(y, mean, variance, **rows)
        return torch.where(missing, torch.zeros_like(value), value)
    a = torch.full_like(mean, parts.power) if parts.exponent is None else parts.exponent
    a = a.expand_as(mean)
    noise = model.gaussian_noise(y, **rows)
    if noise is not None:
        return _log_tilted_gaussian(y, noise, cavity, torch.where(missing, 0.0, a))
    return log_expectation_exp(
        lambda f: a * model.log_prob(f, y, **rows), mean, variance, _NUM_NODES, _NUM_RECENTRINGS
    )


def _log_tilted_gaussian(y: Tensor, noise: Tensor, cavity: Cavity, a: Tensor) -> Tensor:
    """In closed form: ``N(y; f, s)^a`` is ``N(y; f, s / a)`` up to a factor."""
    used = a > 0
    a, noise = torch.where(used, a, 1.0), torch.where(used, noise, 1.0)
    distance = torch.where(used, y, cavity.mean.detach()) - cavity.mean
    total = cavity.variance + noise / a
    value = -0.5 * ((total / noise * a).log() + distance.square() / total)
    return torch.where(used, value - 0.5 * a * (2.0 * math.pi * noise).log(), 0.0)
