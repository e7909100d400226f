"""Gaussian-process-focused variational inference on PyTorch and GPyTorch.

One idea: every approximation is a structured Gaussian prior that is conditioned on Gaussian sites.
"""

from importlib.metadata import version

from gpvi.estimators import (
    Fixed,
    Free,
    GPClassifier,
    GPCountRegressor,
    GPRegressor,
    TimeSeriesGP,
)

__all__ = [
    "Fixed",
    "Free",
    "GPClassifier",
    "GPCountRegressor",
    "GPRegressor",
    "TimeSeriesGP",
    "__version__",
]

__version__ = version("gpvi")
