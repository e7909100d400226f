"""Every display with every estimator of gpvi, on small data."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpvi import GPClassifier, GPCountRegressor, GPRegressor
from gpvi.datasets import make_banana, make_counts, make_gap_regression
from gpvi.exceptions import InputError
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


def test_pipelines_show_their_last_step(banana: tuple[Any, Any]) -> None:
    X = np.random.default_rng(0).uniform(0, 1e3, size=(30, 2))
    y = np.sin(X[:, 0] / 200)
    model = make_pipeline(StandardScaler(), GPRegressor(max_iter=5, random_state=0)).fit(X, y)
    inner, Z = model[-1], model[:-1].transform(X)
    found = PosteriorDisplay.from_estimator(model, X, y, feature=0)
    assert np.array_equal(found.mean, PosteriorDisplay.from_estimator(inner, Z, y, feature=0).mean)
    assert found.data is not None and np.array_equal(found.data[0], Z[:, 0])
    chart = PosteriorMapDisplay.from_estimator(model, X, num_points=5)
    assert np.array_equal(
        chart.mean, PosteriorMapDisplay.from_estimator(inner, Z, num_points=5).mean
    )
    error = ReliabilityDisplay.from_estimator(inner, Z, y).error
    assert ReliabilityDisplay.from_estimator(model, X, y).error == error
    assert len(ConvergenceDisplay.from_estimator(model).traces)
    assert np.array_equal(ard_relevance(model), ard_relevance(inner))
    names = RelevanceDisplay.from_estimator(model).feature_names
    assert names == RelevanceDisplay.from_estimator(inner).feature_names
    classes = make_pipeline(StandardScaler(), banana[0])
    problem = banana[1]
    classes.fit(problem.data, problem.target)
    ReliabilityDisplay.from_estimator(classes, problem.data, problem.target)


@pytest.mark.parametrize("wrap", [False, True])
def test_other_estimators_are_refused(wrap: bool) -> None:
    X = np.arange(12.0).reshape(6, 2)
    model = LinearRegression()
    model = (make_pipeline(StandardScaler(), model) if wrap else model).fit(X, X[:, 0])
    calls = {
        "PosteriorDisplay": lambda m: PosteriorDisplay.from_estimator(m, X, feature=0),
        "PosteriorMapDisplay": lambda m: PosteriorMapDisplay.from_estimator(m, X),
        "ReliabilityDisplay": lambda m: ReliabilityDisplay.from_estimator(m, X, X[:, 0]),
        "ConvergenceDisplay": ConvergenceDisplay.from_estimator,
        "ard_relevance": RelevanceDisplay.from_estimator,
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=rf"{name} needs .*; LinearRegression has none"):
            call(model)
        with pytest.raises(InputError, match=rf"{name} needs .*; NoneType has none"):
            call(None)
        with pytest.raises(InputError, match=rf"{name} got the class GPRegressor"):
            call(GPRegressor)
