"""The scores of predictions, computed by the same functions for every peer.

Regression: root mean squared error and mean negative log predictive density (NLPD) in the original
units of the target, from a Gaussian predictive mean and variance of the standardised target.
Labels: error rate and NLPD from the predictive probability of label 1. Counts: root mean squared
error of the predicted rate, and NLPD from the log predictive probability of each held-out count.
A prediction that is no number, or no probability, is refused rather than repaired: its run is
reported as failed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from registry import Kind
from splits import Array, Split

__all__ = ["poisson_log_density", "scores"]

SMALLEST_PROBABILITY = 1e-12
"""Libraries round the probability of a sure label to one; its complement is taken as this much."""

QUADRATURE_NODES = 64


def scores(split: Split, *prediction: Array) -> dict[str, float]:
    """Scores of what a peer predicted: (mean, variance), (probability,) or (rate, log density).

    Raises
    ------
    ValueError
        If a shape is wrong or a value is impossible.
    """
    arrays = [np.asarray(values, np.float64) for values in prediction]
    for values in arrays:
        if values.shape != split.test_targets.shape:
            raise ValueError(
                f"predictions of shape {values.shape} for {split.test_targets.shape} test targets"
            )
        if not np.isfinite(values).all():
            raise ValueError("a prediction is not finite")
    return SCORES[split.kind](split, *arrays)


def _gaussian(split: Split, mean: Array, variance: Array) -> dict[str, float]:
    if not (variance > 0).all():
        raise ValueError("a predictive variance is not positive")
    variance = variance * split.target_scale**2
    residual = split.test_targets - (mean * split.target_scale + split.target_mean)
    return {
        "rmse": _root_mean_square(residual),
        "nlpd": float(np.mean(0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance))),
    }


def _binary(split: Split, probability: Array) -> dict[str, float]:
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("a predictive probability is not between 0 and 1")
    positive = split.test_targets == 1
    of_label = np.where(positive, probability, 1 - probability)
    return {
        "error_rate": float(np.mean((probability > 0.5) != positive)),
        "nlpd": float(-np.log(np.maximum(of_label, SMALLEST_PROBABILITY)).mean()),
    }


def _counts(split: Split, rate: Array, log_density: Array) -> dict[str, float]:
    if not (rate > 0).all() or not (log_density <= 1e-6).all():
        raise ValueError("a predictive rate is not positive or a probability above one")
    return {
        "rmse": _root_mean_square(split.test_targets - rate),
        "nlpd": float(-log_density.mean()),
    }


SCORES: dict[Kind, Callable[..., dict[str, float]]] = {
    "regression": _gaussian,
    "binary": _binary,
    "counts": _counts,
}


def _root_mean_square(residual: Array) -> float:
    return float(np.sqrt(np.mean(residual**2)))


def poisson_log_density(mean: Array, variance: Array, counts: Array) -> Array:
    """Log of the expectation of ``Poisson(counts; exp(f))`` over Gaussian f, by quadrature.

    For libraries that predict the moments of the log rate f but no probability of a count.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_NODES)
    latent = mean[:, None] + np.sqrt(variance)[:, None] * nodes
    factorials = np.cumsum(np.log(np.maximum(np.arange(int(counts.max()) + 1), 1)))
    terms = counts[:, None] * latent - np.exp(latent) + np.log(weights / weights.sum())
    return np.asarray(np.logaddexp.reduce(terms, axis=1) - factorials[counts.astype(int)])
