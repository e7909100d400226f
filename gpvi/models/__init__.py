"""Compositions of Gaussian processes: models made of several of them."""

from gpvi.models.factor_analysis import GPFactorAnalysis

__all__ = ["GPFactorAnalysis"]
