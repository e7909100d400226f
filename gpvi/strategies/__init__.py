"""The approximations of this package behind GPyTorch's own interfaces.

A GPyTorch user keeps model, likelihood, optimiser and training loop, and swaps one thing:
:class:`SiteStrategy` (or, for minibatches of many rows, :class:`SparseInverseStrategy`) for the variational
strategy, :class:`TighterVariationalELBO` for the objective.
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
from gpvi.strategies.sparse_inverse_strategy import SparseInverseStrategy
from gpvi.strategies.tighter_elbo import TighterVariationalELBO

__all__ = [
    "ModelGaussianProcess",
    "NaturalSites",
    "PseudoTargets",
    "SiteParameters",
    "SiteStrategy",
    "SparseInverseStrategy",
    "TighterVariationalELBO",
    "WhitenedMoments",
    "mixed_marginals",
]
