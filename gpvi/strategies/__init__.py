"""The approximations of this package behind GPyTorch's own interfaces.

A GPyTorch user keeps model, likelihood, optimiser and training loop, and swaps one thing:
:class:`SiteStrategy` for the variational strategy, :class:`TighterVariationalELBO` for the objective.
"""

from gpvi.strategies.model_process import ModelGaussianProcess
from gpvi.strategies.site_strategy import SiteStrategy
from gpvi.strategies.tighter_elbo import TighterVariationalELBO

__all__ = ["ModelGaussianProcess", "SiteStrategy", "TighterVariationalELBO"]
