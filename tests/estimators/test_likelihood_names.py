"""Likelihoods that estimators know by name: fits, row extras, predictions, saving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpvi.estimators import Fixed, GPClassifier, GPCountRegressor, GPRegressor
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods import (
    GammaLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    QuantileLikelihood,
    ZeroInflatedLikelihood,
)

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


LIMIT = GENERATOR.exponential(8.0, SIZE)
TIMES = {
    "gamma": GENERATOR.gamma(3.0, RATE / 3),
    "exponential": GENERATOR.exponential(RATE),
    "weibull": RATE * GENERATOR.weibull(2.0, SIZE),
    "log_normal": RATE * np.exp(0.3 * GENERATOR.normal(size=SIZE)),
}
SHARE = np.clip(GENERATOR.beta(8 * CHANCE, 8 * (1 - CHANCE)), 1e-6, 1 - 1e-6)
NUMBERS: dict[str, np.ndarray] = {
    **TIMES,
    "beta": SHARE,
    "laplace": 100 + 10 * WAVE + 2 * GENERATOR.laplace(size=SIZE),
    "censored_gaussian": 100 + 10 * WAVE + 2 * GENERATOR.normal(size=SIZE),
}


def regressor(likelihood: Any, **options: Any) -> GPRegressor:
    return GPRegressor(likelihood=likelihood, random_state=0, max_iter=15, **options)


@pytest.mark.parametrize("name", NUMBERS)
class TestNumbers:
    def test_predictions_agree_with_each_other(self, name: str, tmp_path: Path) -> None:
        y = NUMBERS[name]
        model = regressor(name).fit(X, y)
        mean, std = model.predict(X, return_std=True)
        lower, upper = model.predict_interval(X, 0.9)
        assert 0.8 < np.mean((lower <= y) & (y <= upper)) <= 1
        samples = model.sample_y(X[::20], 40_000, random_state=1)
        assert np.allclose(samples.mean(1), mean[::20], rtol=0.05)
        assert np.allclose(samples.std(1), std[::20], rtol=0.1)
        grid = np.linspace(lower[0] - 8 * std[0], upper[0] + 8 * std[0], 4001)
        if name not in ("laplace", "censored_gaussian"):
            grid = np.linspace(0, min(1, 40 * mean[0]) if name == "beta" else 60 * mean[0], 8001)[
                1:-1
            ]
        density = np.exp(model.log_predictive_density(np.repeat(X[:1], len(grid), 0), grid))
        assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=0.02)
        loo = model.leave_one_out()
        assert np.isfinite(loo.log_density).all() and (loo.std > 0).all()
        model.save(tmp_path / "model.gpvi")
        loaded = GPRegressor.load(tmp_path / "model.gpvi")
        assert np.array_equal(loaded.predict(X), mean)

    @pytest.mark.parametrize("approximation", ["inducing", "sic", "state_space"])
    def test_approximations(self, name: str, approximation: str) -> None:
        exact = regressor(name).fit(X, NUMBERS[name])
        model = regressor(name, approximation=approximation).fit(X, NUMBERS[name])
        assert model.elbo_ == pytest.approx(exact.elbo_, abs=0.5)

    def test_units_of_y_do_not_matter(self, name: str) -> None:
        if name == "beta":
            pytest.skip("has no unit")
        y = NUMBERS[name]
        one, other = regressor(name).fit(X, y), regressor(name).fit(X, 50 * y)
        assert np.allclose(50 * one.predict(X), other.predict(X), rtol=0.02)
        assert other.elbo_ == pytest.approx(one.elbo_ - SIZE * np.log(50), abs=1.0)


@pytest.mark.parametrize("name", TIMES)
def test_censored_times(name: str) -> None:
    times = TIMES[name]
    hidden = times > LIMIT
    assert 0.1 < hidden.mean() < 0.6
    seen = np.minimum(times, LIMIT)
    model = regressor(name).fit(X, seen, censored=hidden)
    naive = regressor(name).fit(X, seen)
    truth = np.log(regressor(name).fit(X, times).predict(X))
    error, naive_error = (np.abs(np.log(m.predict(X)) - truth).mean() for m in (model, naive))
    assert error < naive_error
    scores = model.log_predictive_density(X, seen, censored=hidden)
    survival = scores[hidden]
    assert (survival <= 0).all(), "probabilities"
    fraction = (model.sample_y(X[hidden], 20_000, random_state=0) > seen[hidden][:, None]).mean(1)
    assert np.allclose(np.exp(survival), fraction, atol=0.02)


def test_bounds_of_real_numbers_have_no_unit() -> None:
    y = NUMBERS["censored_gaussian"]
    hidden = y > 106
    seen = np.minimum(y, 106)
    model = regressor("censored_gaussian").fit(X, seen, censored=hidden)
    large = regressor("censored_gaussian").fit(X, 1000 * seen, censored=hidden)
    exact = (~hidden).sum()
    assert large.elbo_ == pytest.approx(model.elbo_ - exact * np.log(1000), abs=1e-3)
    logs, large_logs = (
        m.log_predictive_density(X, scale * seen, censored=hidden)
        for m, scale in ((model, 1), (large, 1000))
    )
    assert np.allclose(logs - large_logs, np.where(hidden, 0.0, np.log(1000)), atol=1e-4)
    loo, large_loo = (m.leave_one_out().log_density for m in (model, large))
    assert np.allclose(loo - large_loo, np.where(hidden, 0.0, np.log(1000)), atol=1e-4)
    naive = regressor("gaussian").fit(X, seen)
    truth = 100 + 10 * WAVE[hidden]
    assert (
        np.abs(model.predict(X)[hidden] - truth).mean()
        < np.abs(naive.predict(X)[hidden] - truth).mean()
    )
    plain = regressor("gaussian").fit(X, y)
    assert regressor("censored_gaussian").fit(X, y).elbo_ == pytest.approx(plain.elbo_, abs=1e-3)


def test_refusals_of_extras() -> None:
    y = TIMES["gamma"]
    with pytest.raises(InputError, match=r"0, 1 or -1, got 2\.0"):
        regressor("gamma").fit(X, y, censored=2.0)
    with pytest.raises(InputError, match="censored"):
        regressor("gaussian").fit(X, y, censored=0)
    with pytest.raises(InputError, match="positive targets, got"):
        regressor("weibull").fit(X, y - 100)
    with pytest.raises(InputError, match="strictly between 0 and 1"):
        regressor("beta").fit(X, y)


def test_scores_refuse_extras_of_another_likelihood() -> None:
    x = np.linspace(0.0, 1.0, 20)[:, None]
    y = np.arange(20) % 4
    model = GPCountRegressor(max_iter=5).fit(x, y, exposure=np.full(20, 2.0))
    assert np.isfinite(model.score(x, y, exposure=np.full(20, 2.0)))
    with pytest.raises(InputError, match="no use for trials"):
        model.score(x, y, trials=np.full(20, 5.0))


def test_objects_of_other_scales_are_not_standardised() -> None:
    y = TIMES["gamma"]
    by_object = regressor(GammaLikelihood()).fit(X, y)
    assert by_object.elbo_ == regressor("gamma").fit(X, y).elbo_
    assert np.abs(by_object.predict(X, latent=True) - np.log(RATE)).mean() < 0.5


def test_quantile_regression() -> None:
    y = NUMBERS["laplace"]
    below, above = (
        regressor(QuantileLikelihood(level)).fit(X, y).predict(X, latent=True)
        for level in (0.2, 0.8)
    )
    assert np.mean(y <= below) == pytest.approx(0.2, abs=0.1)
    assert np.mean(y <= above) == pytest.approx(0.8, abs=0.1)
    assert np.mean(below < above) > 0.9


class TestOrdinal:
    GRADES = np.digitize(2 * WAVE + GENERATOR.normal(size=SIZE), [-1.5, 0.0, 1.5])

    def test_fits_and_predicts(self, tmp_path: Path) -> None:
        model = GPClassifier(likelihood="ordinal", random_state=0, max_iter=20).fit(X, self.GRADES)
        assert isinstance(model.likelihood_, OrdinalLikelihood)
        cuts = model.likelihood_.cut_points
        assert len(cuts) == 3 and bool((cuts.diff() > 0).all())
        probabilities = model.predict_proba(X)
        assert probabilities.shape == (SIZE, 4) and np.allclose(probabilities.sum(1), 1)
        assert model.score(X, self.GRADES) > 0.5
        assert model.predict(X, latent=True).shape == (SIZE,)
        softmax = GPClassifier(random_state=0, max_iter=20).fit(X, self.GRADES)
        assert model.elbo_ > softmax.elbo_, "one function in place of four"
        loo = model.leave_one_out()
        assert np.isfinite(loo.log_density).all()
        assert set(np.unique(model.sample_y(X, 5, random_state=0))) <= {0, 1, 2, 3}
        model.save(tmp_path / "model.gpvi")
        loaded = GPClassifier.load(tmp_path / "model.gpvi")
        assert np.array_equal(loaded.predict_proba(X), probabilities)

    @pytest.mark.parametrize("approximation", ["inducing", "sic", "state_space"])
    def test_approximations(self, approximation: str) -> None:
        options = {"likelihood": "ordinal", "random_state": 0, "max_iter": 20}
        exact = GPClassifier(**options).fit(X, self.GRADES)
        model = GPClassifier(approximation=approximation, **options).fit(X, self.GRADES)
        assert model.elbo_ == pytest.approx(exact.elbo_, abs=0.5)

    def test_cut_points_can_be_held(self) -> None:
        held = {"first_cut": Fixed(-1.0), "gaps": Fixed(1.0)}
        model = GPClassifier(likelihood="ordinal", hyperparameters=held, max_iter=5).fit(
            X, self.GRADES
        )
        assert model.likelihood_.cut_points.tolist() == pytest.approx([-1.0, 0.0, 1.0])
        text = str(model.summary())
        assert "likelihood.first_cut" in text and "likelihood.gaps" in text

    def test_labels_that_are_text_follow_their_order(self) -> None:
        names = np.array(["1 poor", "2 fair", "3 good", "4 best"])[self.GRADES]
        model = GPClassifier(likelihood="ordinal", random_state=0, max_iter=5).fit(X, names)
        assert set(model.predict(X)) <= set(names)

    def test_refusals(self) -> None:
        with pytest.raises(InputError, match="ordinal"):
            GPClassifier(likelihood="ordinal").fit(X, self.GRADES > 1)
        with pytest.raises(UnsupportedError, match="5 classes"):
            GPClassifier(likelihood=OrdinalLikelihood(5)).fit(X, self.GRADES)


def test_robust_max_sees_through_wrong_labels(tmp_path: Path) -> None:
    truth = np.digitize(WAVE, [-0.5, 0.5])
    labels = truth.copy()
    labels[::10] = (labels[::10] + 1) % 3
    options: dict[str, Any] = {"random_state": 0, "max_iter": 30}
    robust = GPClassifier(likelihood="robust_max", **options).fit(X, labels)
    assert np.mean(robust.predict(X) == truth) > 0.9
    assert 0.03 < robust.likelihood_.label_noise.item() < 0.25
    assert np.allclose(robust.predict_proba(X).sum(1), 1)
    assert np.isfinite(robust.leave_one_out().log_density).all()
    robust.save(tmp_path / "model.gpvi")
    loaded = GPClassifier.load(tmp_path / "model.gpvi")
    assert np.array_equal(loaded.predict_proba(X), robust.predict_proba(X))
