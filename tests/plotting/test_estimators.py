"""Every display with every estimator of gpvi, on small data."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpvi import GPClassifier, GPCountRegressor, GPRegressor
from gpvi.datasets import make_banana, make_counts, make_gap_regression
from gpvi.metrics import CoverageScorer, crps_from_samples, crps_scorer, nlpd_scorer
from gpvi.plotting import (
    ConvergenceDisplay,
    PosteriorDisplay,
    PosteriorMapDisplay,
    RelevanceDisplay,
    ReliabilityDisplay,
    ard_relevance,
)

# A few iterations are enough to draw.
pytestmark = pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def curve() -> tuple[Any, Any]:
    problem = make_gap_regression(40)
    return GPRegressor(random_state=0).fit(problem.data, problem.target), problem


@pytest.fixture(scope="module")
def counts() -> tuple[Any, Any]:
    problem = make_counts(80)
    model = GPCountRegressor(max_iter=20, random_state=0)
    return model.fit(problem.data, problem.target, exposure=problem.exposure), problem


@pytest.fixture(scope="module")
def banana() -> tuple[Any, Any]:
    problem = make_banana(100)
    return GPClassifier(max_iter=20, random_state=0).fit(problem.data, problem.target), problem


def test_regression(curve: tuple[Any, Any]) -> None:
    model, problem = curve
    display = PosteriorDisplay.from_estimator(
        model, problem.data, problem.target, latent_coverage=0.95, num_functions=3
    )
    outer, _, inner = display.bands
    assert (outer.upper - outer.lower > inner.upper - inner.lower).all()
    grid = display.grid
    gap = (grid > 2.6) & (grid < 3.8)
    near = (grid > 0.5) & (grid < 1.8)
    width = inner.upper - inner.lower
    assert width[gap].min() > 2 * width[near].mean(), "error bars open in the gap"
    assert display.functions is not None
    inside = (display.functions > outer.lower) & (display.functions < outer.upper)
    assert inside.mean() > 0.8


def test_convergence_and_reliability(curve: tuple[Any, Any]) -> None:
    model, _ = curve
    display = ConvergenceDisplay.from_estimator(model, gap=True)
    assert sum(len(trace.objective) for trace in display.traces) == len(model.history_)
    fresh = make_gap_regression(400, random_state=1)
    assert ReliabilityDisplay.from_estimator(model, fresh.data, fresh.target).error < 0.15


def test_counts(counts: tuple[Any, Any]) -> None:
    model, problem = counts
    rates = problem.target / problem.exposure
    display = PosteriorDisplay.from_estimator(model, problem.data, rates)
    assert (display.mean > 0).all() and (display.bands[0].lower >= 0).all()
    latent = PosteriorDisplay.from_estimator(model, problem.data, response="latent")
    truth = 0.5 + np.sin(latent.grid) - 0.1 * latent.grid
    inside = (latent.bands[0].lower < truth) & (truth < latent.bands[0].upper)
    assert inside.mean() > 0.7
    fresh = make_counts(400, random_state=1)
    reliable = ReliabilityDisplay.from_estimator(
        model, fresh.data, fresh.target, exposure=fresh.exposure
    )
    assert reliable.error < 0.08


def test_classes(banana: tuple[Any, Any]) -> None:
    model, problem = banana
    display = PosteriorMapDisplay.from_estimator(model, problem.data, problem.target, num_points=15)
    assert display.mean.min() < 0.1 and display.mean.max() > 0.9
    assert display.boundary_ is not None
    ReliabilityDisplay.from_estimator(model, problem.data, problem.target)
    ConvergenceDisplay.from_estimator(model)


def test_several_classes() -> None:
    problem = make_banana(90)
    labels = np.where(problem.data[:, 1] > 0.6, 2, problem.target)
    model = GPClassifier(max_iter=5, random_state=0).fit(problem.data, labels)
    PosteriorMapDisplay.from_estimator(model, problem.data, labels, target_class=2, num_points=10)
    ReliabilityDisplay.from_estimator(model, problem.data, labels)
    assert ard_relevance(model).shape == (2,)


def test_relevance_and_frames_with_categories() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "noise": rng.uniform(size=60),
            "signal": rng.uniform(size=60),
            "kind": pd.Categorical(rng.choice(["a", "b"], size=60)),
        }
    )
    y = np.sin(6 * frame["signal"]) + (frame["kind"] == "b")
    model = GPRegressor(random_state=0).fit(frame, y)
    display = RelevanceDisplay.from_estimator(model)
    assert display.ax_.get_yticklabels()[0].get_text() in {"signal", "kind"}
    relevance = dict(zip(frame.columns, display.relevance, strict=True))
    assert relevance["signal"] > 5 * relevance["noise"]
    with_a, with_b = (
        PosteriorDisplay.from_estimator(model, frame, feature="signal", held={"kind": kind}).mean
        for kind in ("a", "b")
    )
    assert (with_b - with_a).mean() == pytest.approx(1.0, abs=0.2)


def test_scorers(curve: tuple[Any, Any], counts: tuple[Any, Any], banana: tuple[Any, Any]) -> None:
    model, problem = curve
    mean, std = model.predict(problem.data, return_std=True)
    draws = mean[:, None] + std[:, None] * np.random.default_rng(0).normal(size=(40, 4000))
    expected = crps_from_samples(problem.target, draws)
    assert -crps_scorer(model, problem.data, problem.target) == pytest.approx(expected, rel=0.05)
    for fitted, data in (curve, counts, banana):
        assert np.isfinite(nlpd_scorer(fitted, data.data, data.target))
    for fitted, data in (curve, counts):
        assert -1 <= CoverageScorer(0.9)(fitted, data.data, data.target) <= 0
