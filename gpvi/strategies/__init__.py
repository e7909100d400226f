"""The approximations of this package behind GPyTorch's own interfaces.

A GPyTorch user keeps model, likelihood, optimiser and training loop, and swaps one thing:
:class:`SiteStrategy` for the variational strategy, :class:`TighterVariationalELBO` for the objective.
"""

from gpvi.strategies.model_process import ModelGaussianProcess
from gpvi.strategies.natural import mixed_marginals
from gpvi.strategies.site_parameters import (
    NaturalSites,
    PseudoTargets,
    SiteParameters,
    WhitenedMoments,
)
from gpvi.strategies.site_strategy import SiteStrategy
from gpvi.strategies.tighter_elbo import TighterVariationalELBO

__all__ = [
    "ModelGaussianProcess",
    "NaturalSites",
    "PseudoTargets",
    "SiteParameters",
    "SiteStrategy",
    "TighterVariationalELBO",
    "WhitenedMoments",
    "mixed_marginals",
]
