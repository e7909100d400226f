"""Likelihoods that estimators know by name: fits, row extras, predictions, saving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpvi.estimators import GPCountRegressor
from gpvi.exceptions import InputError
from gpvi.likelihoods import NegativeBinomialLikelihood, ZeroInflatedLikelihood

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

GENERATOR = np.random.default_rng(0)
SIZE = 80
X = np.sort(GENERATOR.uniform(0, 10, size=(SIZE, 1)), axis=0)
WAVE = np.sin(X[:, 0])
RATE = np.exp(1 + WAVE)
SPREAD = GENERATOR.poisson(RATE * GENERATOR.gamma(2.0, 0.5, SIZE))
EXTRA_ZERO = GENERATOR.uniform(size=SIZE) < 0.3
TRIALS = GENERATOR.integers(1, 30, SIZE)
CHANCE = 1 / (1 + np.exp(-2 * WAVE))
COUNTS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "negative_binomial": (SPREAD, {}),
    "zero_inflated_poisson": (np.where(EXTRA_ZERO, 0, GENERATOR.poisson(RATE)), {}),
    "zero_inflated_negative_binomial": (np.where(EXTRA_ZERO, 0, SPREAD), {"exposure": 1.5}),
    "binomial": (GENERATOR.binomial(TRIALS, CHANCE), {"trials": TRIALS}),
}


def counter(likelihood: Any, **options: Any) -> GPCountRegressor:
    return GPCountRegressor(likelihood=likelihood, random_state=0, max_iter=15, **options)


@pytest.mark.parametrize("name", COUNTS)
class TestCounts:
    def test_predictions_agree_with_each_other(self, name: str, tmp_path: Path) -> None:
        y, extras = COUNTS[name]
        model = counter(name).fit(X, y, **extras)
        mean, std = model.predict(X, return_std=True, **extras)
        lower, upper = model.predict_interval(X, 0.9, **extras)
        assert np.mean((lower <= y) & (y <= upper)) > 0.85
        assert np.array_equal(lower, np.floor(lower)) and (std > 0).all()
        samples = model.sample_y(
            X[::20],
            20_000,
            random_state=1,
            **{key: np.broadcast_to(values, SIZE)[::20] for key, values in extras.items()},
        )
        assert np.allclose(samples.mean(1), mean[::20], rtol=0.06, atol=0.02)
        assert np.allclose(samples.std(1), std[::20], rtol=0.12)
        grid = np.arange(31.0)
        one = {key: np.broadcast_to(values, SIZE)[0] for key, values in extras.items()}
        support = grid[: int(one.get("trials", 30)) + 1]
        mass = np.exp(
            model.log_predictive_density(np.repeat(X[:1], len(support), 0), support, **one)
        )
        assert 0.95 < mass.sum() < 1.0 + 1e-6
        loo = model.leave_one_out()
        assert np.isfinite(loo.log_density).all() and np.isfinite(loo.mean).all()
        model.save(tmp_path / "model.gpvi")
        loaded = GPCountRegressor.load(tmp_path / "model.gpvi")
        assert np.array_equal(loaded.predict(X, **extras), mean)

    @pytest.mark.parametrize("approximation", ["inducing", "sic", "state_space"])
    def test_approximations(self, name: str, approximation: str) -> None:
        y, extras = COUNTS[name]
        exact = counter(name).fit(X, y, **extras)
        model = counter(name, approximation=approximation, num_inducing=None).fit(X, y, **extras)
        assert model.elbo_ == pytest.approx(exact.elbo_, abs=0.5)

    def test_beats_poisson_where_it_is_true(self, name: str) -> None:
        if name == "binomial":
            pytest.skip("other extras")
        y, extras = COUNTS[name]
        plain, own = (counter(kind).fit(X, y, **extras) for kind in ("poisson", name))
        assert own.elbo_ > plain.elbo_ + 3
        assert own.leave_one_out().log_density.mean() > plain.leave_one_out().log_density.mean()


def test_learned_parameters_are_reported() -> None:
    model = counter("zero_inflated_negative_binomial").fit(X, COUNTS["zero_inflated_poisson"][0])
    assert isinstance(model.likelihood_, ZeroInflatedLikelihood)
    assert isinstance(model.likelihood_.base, NegativeBinomialLikelihood)
    text = str(model.summary())
    assert "likelihood.probability" in text and "likelihood.base.dispersion" in text


def test_missing_targets_and_weights() -> None:
    y, _ = COUNTS["negative_binomial"]
    gaps = y.astype(float)
    gaps[::9] = np.nan
    model = counter("negative_binomial", allow_missing_targets=True).fit(X, gaps)
    rest = ~np.isnan(gaps)
    alone = counter("negative_binomial").fit(X[rest], y[rest])
    assert model.elbo_ == pytest.approx(alone.elbo_, abs=1e-6)
    weights = np.random.default_rng(2).integers(0, 3, SIZE)
    weighted = counter("negative_binomial").fit(X, y, weights)
    repeated = counter("negative_binomial").fit(np.repeat(X, weights, 0), np.repeat(y, weights))
    assert weighted.elbo_ == pytest.approx(repeated.elbo_, rel=1e-5)


def test_trials() -> None:
    y, extras = COUNTS["binomial"]
    model = counter("binomial").fit(X, y, **extras)
    chance = model.predict(X)
    assert np.abs(chance - CHANCE).mean() < 0.06 and ((chance > 0) & (chance < 1)).all()
    assert np.allclose(model.predict(X, trials=7), 7 * chance)
    assert model.predict_quantiles(X, [0.999], trials=4).max() <= 4
    assert 0.5 < model.score(X, y, trials=TRIALS) <= 1
    with pytest.raises(InputError, match=r"successes out of 1 trial"):
        counter("binomial").fit(X, y)
    with pytest.raises(InputError, match=r"whole numbers, got 1\.5"):
        counter("binomial").fit(X, 0 * y, trials=1.5)
    with pytest.raises(InputError, match="trials of GPCountRegressor must be finite and positive"):
        counter("binomial").fit(X, y, trials=0)
    with pytest.raises(InputError, match="trials"):
        counter("poisson").fit(X, y, trials=TRIALS)
    with pytest.raises(InputError, match="exposure"):
        counter("binomial").fit(X, y, exposure=TRIALS)
    with pytest.raises(InputError, match="latent=True and trials"):
        model.predict(X, latent=True, trials=3)
