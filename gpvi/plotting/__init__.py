"""Pictures of fitted estimators, in the style of scikit-learn's Display objects (needs matplotlib).

Each class holds the arrays that it draws; `from_estimator` computes and draws, `plot` draws again, into given
axes if you like. Nothing is shown, closed or configured: that is left to the caller.
"""

from gpvi.plotting.convergence import ConvergenceDisplay, FitTrace
from gpvi.plotting.coreset import CoresetDisplay, plot_coreset
from gpvi.plotting.posterior import Band, PosteriorDisplay
from gpvi.plotting.posterior_map import PosteriorMapDisplay
from gpvi.plotting.relevance import RelevanceDisplay, ard_relevance
from gpvi.plotting.reliability import ReliabilityDisplay
from gpvi.plotting.time_series import TimeSeriesDisplay

__all__ = [
    "Band",
    "ConvergenceDisplay",
    "CoresetDisplay",
    "FitTrace",
    "PosteriorDisplay",
    "PosteriorMapDisplay",
    "RelevanceDisplay",
    "ReliabilityDisplay",
    "TimeSeriesDisplay",
    "ard_relevance",
    "plot_coreset",
]
