"""Scorers inside scikit-learn's model selection, and what they say without the methods they need."""

import pickle
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from gpvi import GPRegressor
from gpvi.exceptions import InputError
from gpvi.metrics import (
    CoverageScorer,
    continuous_ranked_probability_score,
    crps_scorer,
    gaussian_nlpd,
    interval_coverage,
    nlpd_scorer,
)

X = np.random.default_rng(0).normal(size=(60, 1))
Y = np.random.default_rng(1).normal(size=60)


class Normal(RegressorMixin, BaseEstimator):
    """Predicts the mean of y with a standard deviation that is set."""

    def __init__(self, std: float = 1.0) -> None:
        self.std = std

    def fit(self, X: Any, y: Any) -> "Normal":
        self.mean_ = float(np.mean(y))
        return self

    def predict_quantiles(self, X: Any, levels: Any) -> np.ndarray:
        check_is_fitted(self)
        return np.tile(self.mean_ + self.std * ndtri(levels), (len(X), 1))

    def predict_interval(self, X: Any, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        ends = self.predict_quantiles(X, [0.5 - coverage / 2, 0.5 + coverage / 2])
        return ends[:, 0], ends[:, 1]

    def log_predictive_density(self, X: Any, y: Any) -> np.ndarray:
        z = (np.asarray(y) - self.mean_) / self.std
        return -0.5 * z**2 - np.log(self.std) - 0.5 * np.log(2 * np.pi)


SCORERS = {"nlpd": nlpd_scorer, "crps": crps_scorer, "coverage": CoverageScorer(0.9)}


def test_scorers_are_minus_the_metrics() -> None:
    model = Normal(0.8).fit(X, Y)
    mean, std = np.full(60, model.mean_), np.full(60, 0.8)
    weights = np.arange(60.0)
    exact = continuous_ranked_probability_score(Y, mean, std, sample_weight=weights)
    assert crps_scorer(model, X, Y, weights) == pytest.approx(-exact, rel=1e-4)
    nlpd = gaussian_nlpd(Y, mean, std, sample_weight=weights)
    assert nlpd_scorer(model, X, Y, weights) == pytest.approx(-nlpd)
    covered = interval_coverage(Y, *model.predict_interval(X, 0.5), sample_weight=weights)
    assert CoverageScorer(0.5)(model, X, Y, weights) == pytest.approx(-abs(covered - 0.5))


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_survive_pickle(name: str) -> None:
    model = Normal().fit(X, Y)
    scorer = SCORERS[name]
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy == scorer
    assert copy(model, X, Y) == scorer(model, X, Y)  # type: ignore[operator]


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_choose_the_right_spread(name: str) -> None:
    search = GridSearchCV(Normal(), {"std": [0.2, 1.0, 5.0]}, scoring=SCORERS[name], cv=3)
    assert search.fit(X, Y).best_params_ == {"std": 1.0}


@pytest.mark.slow
def test_cross_validation_in_processes() -> None:
    # Worker processes cannot import this file, so the estimator is one of the package's.
    model = GPRegressor(optimizer=None, random_state=0)
    here = cross_val_score(model, X, Y, scoring=crps_scorer, cv=2)
    there = cross_val_score(model, X, Y, scoring=crps_scorer, cv=2, n_jobs=2)
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("nlpd", "log_predictive_density"),
        ("crps", "predict_quantiles"),
        ("coverage", "predict_interval"),
    ],
)
def test_other_estimators_are_refused_by_name(name: str, method: str) -> None:
    with pytest.raises(InputError, match=f"{method}; BaseEstimator has none"):
        SCORERS[name](BaseEstimator(), X, Y)  # type: ignore[operator]


@pytest.mark.parametrize("coverage", [0.0, 1.0, "0.9", True])
def test_coverage_must_be_a_probability(coverage: Any) -> None:
    with pytest.raises(InputError, match="coverage is"):
        CoverageScorer(coverage)


class TestPipelines:
    @pytest.mark.parametrize("name", list(SCORERS))
    def test_the_last_step_is_asked(self, name: str) -> None:
        scorer, inner = SCORERS[name], Normal(0.8)
        pipeline = make_pipeline(StandardScaler(), make_pipeline(StandardScaler(), inner))
        pipeline.fit(X, Y)
        assert scorer(pipeline, X, Y) == scorer(inner, X, Y)
        assert scorer(make_pipeline(inner), X, Y) == scorer(inner, X, Y)

    def test_inputs_are_transformed(self) -> None:
        y = np.sin(X[:, 0])
        pipeline = make_pipeline(StandardScaler(), GPRegressor(optimizer=None)).fit(1e3 * X, y)
        inner = StandardScaler().fit_transform(1e3 * X)
        assert nlpd_scorer(pipeline, 1e3 * X, y) == pytest.approx(
            nlpd_scorer(pipeline[-1], inner, y)
        )
        scores = cross_val_score(pipeline, 1e3 * X, y, cv=2, scoring=crps_scorer)
        assert np.isfinite(scores).all() and scores.min() > -0.5

    def test_other_last_steps_are_named(self) -> None:
        pipeline = make_pipeline(StandardScaler(), LinearRegression()).fit(X, Y)
        with pytest.raises(InputError, match="log_predictive_density; LinearRegression has none"):
            nlpd_scorer(pipeline, X, Y)
        with pytest.raises(InputError, match="got the class GPRegressor"):
            crps_scorer(GPRegressor, X, Y)
