"""Scores of predictions: accuracy, proper scoring rules, calibration, and scorers for model selection.

A score of the mean says nothing about the error bars; report a proper scoring rule (NLPD, CRPS) beside it,
and a calibration error to see where the fault lies. The Brier score, also of several classes, is
scikit-learn's `sklearn.metrics.brier_score_loss`.
"""

from gpvi.metrics.calibration import (
    calibration_error,
    gaussian_pit,
    interval_coverage,
    interval_width,
    pit_from_samples,
    quantile_calibration_error,
)
from gpvi.metrics.reliability import (
    ReliabilityCurve,
    expected_calibration_error,
    reliability_curve,
    top_label,
)
from gpvi.metrics.scorers import CoverageScorer, crps_scorer, nlpd_scorer
from gpvi.metrics.scores import (
    continuous_ranked_probability_score,
    crps_from_samples,
    gaussian_nlpd,
    negative_log_predictive_density,
    root_mean_squared_error,
)

__all__ = [
    "CoverageScorer",
    "ReliabilityCurve",
    "calibration_error",
    "continuous_ranked_probability_score",
    "crps_from_samples",
    "crps_scorer",
    "expected_calibration_error",
    "gaussian_nlpd",
    "gaussian_pit",
    "interval_coverage",
    "interval_width",
    "negative_log_predictive_density",
    "nlpd_scorer",
    "pit_from_samples",
    "quantile_calibration_error",
    "reliability_curve",
    "root_mean_squared_error",
    "top_label",
]
