"""Time series: forecasts, decompositions, streaming, and everything that can be wrong with dates."""

import pickle
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_regressor
from sklearn.exceptions import NotFittedError

from gpvi import TimeSeriesGP
from gpvi.approximations import StateSpacePosterior
from gpvi.estimators import Fixed, Forecast, GPRegressor
from gpvi.exceptions import DataWarning, ExtrapolationWarning, InputError, UnsupportedError
from gpvi.kernels import IntegratedWienerKernel, as_state_space
from gpvi.likelihoods import PoissonLikelihood

pytestmark = pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")

KERNEL = "trend + season(12) + matern32"


def series(size: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    t = np.arange(float(size))
    return t, 0.1 * t + 2 * np.sin(2 * np.pi * t / 12) + 0.2 * generator.standard_normal(size)


def monthly(size: int = 60) -> pd.Series:
    index = pd.date_range("2001-01-01", periods=size, freq="MS", name="month")
    return pd.Series(series(size)[1], index)


def fitted(kernel: Any = KERNEL, size: int = 60, **options: Any) -> TimeSeriesGP:
    return TimeSeriesGP(kernel, **({"max_iter": 20, "random_state": 0} | options)).fit(
        *series(size)
    )


def refitted(model: TimeSeriesGP, t: Any, y: Any, **rows: Any) -> TimeSeriesGP:
    """Another model at the same hyperparameters: those of the standardised first fit."""
    other = clone(model).set_params(optimizer=None)
    # One scale of time and targets for both, so that hyperparameters mean the same.
    x_map, y_map = model._model.x_map, model._model.y_map
    other._maps = lambda data: (x_map, y_map)
    other.kernel, other.likelihood = model.kernel_, model.likelihood_
    other.mean = model.posterior_.prior.gp.mean_module
    for module in (other.kernel, other.likelihood, other.mean):
        module.requires_grad_(False)
    return other.fit(t, y, **rows)


class TestFit:
    def test_predictions_are_those_of_a_regressor(self) -> None:
        t, y = series()
        options = {"max_iter": 10, "random_state": 0}
        model = TimeSeriesGP("matern32 + linear", **options).fit(t, y)
        other = GPRegressor("matern32 + linear", approximation="exact", **options).fit(
            t[:, None], y
        )
        new = np.array([-3.0, 2.5, 61.0])
        for latent in (False, True):
            found = model.predict(new, return_std=True, latent=latent)
            wanted = other.predict(new[:, None], return_std=True, latent=latent)
            np.testing.assert_allclose(found, wanted, atol=1e-7)
        np.testing.assert_allclose(
            model.predict_interval(new), other.predict_interval(new[:, None]), atol=1e-7
        )
        assert model.score(t, y) == pytest.approx(other.score(t[:, None], y), abs=1e-9)

    def test_a_series_brings_its_stamps(self) -> None:
        data = monthly()
        alone = TimeSeriesGP(KERNEL, max_iter=5, random_state=0).fit(data)
        apart = TimeSeriesGP(KERNEL, max_iter=5, random_state=0).fit(data.index, data.to_numpy())
        frame = TimeSeriesGP(KERNEL, max_iter=5, random_state=0).fit(data.to_frame("y"))
        assert alone.elbo_ == apart.elbo_ == frame.elbo_

    def test_order_and_time_unit_do_not_matter(self) -> None:
        data = monthly()
        shuffled = data.sample(frac=1.0, random_state=1)
        days = TimeSeriesGP("trend + season(365.25)", max_iter=10, random_state=0).fit(data)
        years = TimeSeriesGP("trend + season(1)", time_unit="Y", max_iter=10, random_state=0).fit(
            shuffled
        )
        assert years.elbo_ == pytest.approx(days.elbo_, abs=1e-5)
        np.testing.assert_allclose(
            days.predict(data.index[::7]), years.predict(data.index[::7]), atol=1e-5
        )

    def test_missing_targets_are_rows_that_are_not_there(self) -> None:
        t, y = series()
        gaps = y.copy()
        gaps[[3, 7, 8, 50]] = np.nan
        kept = ~np.isnan(gaps)
        a = TimeSeriesGP(KERNEL, max_iter=5, random_state=0).fit(t, gaps)
        b = TimeSeriesGP(KERNEL, max_iter=5, random_state=0).fit(t[kept], y[kept])
        np.testing.assert_allclose(a.predict(t), b.predict(t), rtol=1e-10)
        assert np.isnan(a.leave_one_out().mean[[3, 7, 8, 50]]).all()
        assert len(a.history()[1]) == 56

    def test_repeated_stamps(self) -> None:
        t, y = series(30)
        twice = TimeSeriesGP("matern32", max_iter=5, random_state=0).fit(
            np.concatenate([t, t]), np.concatenate([y, y])
        )
        weighted = TimeSeriesGP("matern32", max_iter=5, random_state=0).fit(t, y, np.full(30, 2.0))
        np.testing.assert_allclose(twice.predict(t), weighted.predict(t), atol=1e-6)
        assert len(twice.decompose().prior_mean) == 30

    def test_periods_are_exact_and_fixed(self) -> None:
        model = TimeSeriesGP("trend + season(365.25)", max_iter=5).fit(monthly())
        rows = {row.name: row for row in model.summary().hyperparameters}
        period = rows["kernel.kernels.1.base_kernel.period_length"]
        assert period.value == pytest.approx(365.25, rel=1e-12)
        assert (period.status, period.unit, period.column) == ("fixed", "X", "time [D]")
        assert rows["kernel.kernels.0.variance"].unit == "y^2/X^3"

    def test_a_period_can_be_learned(self) -> None:
        t, y = series(120)
        model = TimeSeriesGP("trend + season(11.5, learn=True)", random_state=0).fit(t, y)
        scale = model._model.x_map.scale[0]
        found = model.kernel_.kernels[1].base_kernel.period_length.item() * scale
        assert found == pytest.approx(12.0, abs=0.1)

    def test_kernel_objects_are_in_units_of_time(self) -> None:
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
        kernel.base_kernel.lengthscale = 4.0
        kernel.base_kernel.raw_lengthscale.requires_grad_(False)
        model = TimeSeriesGP(kernel, max_iter=5, random_state=0).fit(*series())
        assert model.kernel_.base_kernel.lengthscale.item() == pytest.approx(4.0)
        name = TimeSeriesGP(
            "matern32", hyperparameters={"lengthscale": Fixed(4.0)}, max_iter=5, random_state=0
        ).fit(*series())
        np.testing.assert_allclose(model.predict([3.3]), name.predict([3.3]), atol=1e-3)

    def test_hyperparameters_in_units_of_time(self) -> None:
        model = fitted("matern32", hyperparameters={"lengthscale": Fixed(7.0)})
        assert [r.value for r in model.summary().hyperparameters if r.unit == "X"] == pytest.approx(
            [7]
        )

    @pytest.mark.parametrize("likelihood", ["student_t", "gaussian", PoissonLikelihood()])
    def test_likelihoods(self, likelihood: Any) -> None:
        t, y = series()
        y = np.round(np.abs(y)) if isinstance(likelihood, PoissonLikelihood) else y
        model = TimeSeriesGP("trend + season(12)", likelihood=likelihood, max_iter=3).fit(t, y)
        assert np.isfinite(model.forecast(3).mean).all()

    def test_counts(self) -> None:
        generator = np.random.default_rng(0)
        t = np.arange(150.0)
        rate = np.exp(1 + np.sin(2 * np.pi * t / 24))
        exposure = generator.uniform(0.5, 2.0, 150)
        y = generator.poisson(rate * exposure).astype(float)
        model = TimeSeriesGP("constant + season(24)", likelihood="poisson", max_iter=20)
        model.fit(t, y, exposure=exposure)
        assert np.corrcoef(model.predict(t), rate)[0, 1] > 0.95
        assert model.elbo_ < 0 and "f^2" in {r.unit for r in model.summary().hyperparameters}
        assert np.issubdtype(model.sample_y(t[:5], 3, 0).dtype, np.floating)

    def test_trends_at_the_scale_of_the_targets(self) -> None:
        t, y = series()
        small, large = (
            TimeSeriesGP("trend", standardize=False, random_state=0).fit(t, y * scale)
            for scale in (1.0, 1e4)
        )
        np.testing.assert_allclose(large.forecast(3).mean, 1e4 * small.forecast(3).mean, rtol=1e-3)

    def test_same_kernel_dense(self) -> None:
        """The kernel of the state-space form, conditioned densely."""
        t, y = series(40)
        model = TimeSeriesGP(KERNEL, max_iter=3, num_restarts=0, random_state=0, mean="zero").fit(
            t, y
        )
        dense = GPRegressor(
            KERNEL, approximation="exact", mean="zero", max_iter=3, random_state=0
        ).fit(t[:, None], y)
        # Harmonics of a millionth of the variance are left out.
        assert model.elbo_ == pytest.approx(dense.elbo_, abs=1e-2)
        np.testing.assert_allclose(
            model.predict(t + 0.4), dense.predict(t[:, None] + 0.4), atol=1e-3
        )


class TestForecast:
    def test_equals_predict(self) -> None:
        model = fitted()
        found = model.forecast(5)
        np.testing.assert_allclose(found.times, np.arange(60.0, 65.0))
        mean, std = model.predict(found.times, return_std=True)
        np.testing.assert_array_equal(found.mean, mean)
        np.testing.assert_array_equal(found.std, std)
        np.testing.assert_allclose(found.upper - found.mean, 1.959964 * std, rtol=1e-5)
        assert len(found) == 5 and isinstance(found, Forecast)

    def test_is_good(self) -> None:
        t, y = series(84)
        model = TimeSeriesGP("trend + season(12)", random_state=0).fit(t[:60], y[:60])
        found = model.forecast(24)
        assert np.sqrt(np.mean((found.mean - y[60:]) ** 2)) < 0.8
        assert np.mean((found.lower < y[60:]) & (y[60:] < found.upper)) > 0.85

    def test_uncertainty_grows(self) -> None:
        std = fitted().forecast(40).std
        assert std[-1] > 1.2 * std[0]

    def test_pandas(self) -> None:
        model = TimeSeriesGP("trend + season(365.25)", max_iter=5).fit(monthly())
        frame = model.forecast(3, coverage=0.5).to_frame()
        assert list(frame.columns) == ["mean", "std", "lower", "upper"]
        assert [str(date.date()) for date in frame.index] == [
            "2006-01-01",
            "2006-02-01",
            "2006-03-01",
        ]
        assert len(model.forecast(pd.Timedelta(days=95))) == 3

    def test_starts_behind_the_last_stamp_observed_or_not(self) -> None:
        data = monthly()
        data.iloc[-3:] = np.nan
        model = TimeSeriesGP("trend + matern32", max_iter=3).fit(data)
        assert str(model.forecast(1).times[0].date()) == "2006-01-01"
        assert len(model.history()[1]) == 57
        with pytest.raises(InputError, match="before the last stamp 2005-12-01"):
            model.update(data.index[-2:-1], [1.0])
        model.update(data.index[-1:], [3.0])
        assert len(model.history()[1]) == 58

    def test_stamps_without_a_target_are_of_the_series(self) -> None:
        t = np.array([-50.0, 0.0, 1.0, 2.0])
        model = TimeSeriesGP("trend", max_iter=2).fit(t, [np.nan, 1.0, 2.0, 3.0])
        assert np.isfinite(model.predict(t)).all()

    def test_far_stamps_are_announced(self) -> None:
        model = TimeSeriesGP("trend", max_iter=2).fit(monthly())
        with pytest.warns(ExtrapolationWarning, match="2300-01-01.*2001-01-01.*to 2005-12-01"):
            model.forecast(pd.DatetimeIndex(["2300-01-01"]))

    def test_descending_series(self) -> None:
        data = monthly()
        forwards, backwards = (
            TimeSeriesGP("trend", max_iter=2, random_state=0).fit(rows)
            for rows in (data, data[::-1])
        )
        found = backwards.forecast(3)
        assert found.times.equals(forwards.forecast(3).times)
        np.testing.assert_allclose(found.mean, forwards.forecast(3).mean, rtol=1e-6)

    @pytest.mark.parametrize("horizon", [None, "3", -np.inf, 1e300, 10**9, [3.0], [59.0]])
    def test_refused_horizons(self, horizon: Any) -> None:
        with pytest.raises(InputError, match="after the last one"):
            fitted("matern32", max_iter=1, num_restarts=0).forecast(horizon)

    def test_stamps_that_are_merged(self) -> None:
        t = np.datetime64("2020-01-01T00:00:00", "ns") + np.array([0, 400, 2000, 5000])
        with pytest.warns(DataWarning, match="taken as equal"):
            TimeSeriesGP("matern32", time_unit="us", max_iter=1).fit(t, [1.0, 2.0, 1.0, 3.0])


class TestDecompose:
    def test_terms_add_up(self) -> None:
        model = fitted("trend + season(12) * constant + (matern32 + matern32)")
        t = np.linspace(-5, 70, 31)
        parts = model.decompose(t)
        assert list(parts.components) == [
            "trend",
            "season(12) * constant",
            "matern32",
            "matern32 (2)",
        ]
        total = parts.prior_mean + sum(part.mean for part in parts.components.values())
        np.testing.assert_allclose(total, model.predict(t), atol=1e-7)

    def test_finds_the_parts(self) -> None:
        t, y = series(120)
        parts = TimeSeriesGP("trend + season(12)", random_state=0).fit(t, y).decompose()
        truth = 2 * np.sin(2 * np.pi * t / 12)
        error = parts["season(12)"].mean - truth
        assert np.abs(error).max() < 0.3
        assert np.mean(np.abs(error) < 2.5 * parts["season(12)"].std) > 0.9
        slope = np.polyfit(t, parts["trend"].mean, 1)[0]
        assert slope == pytest.approx(0.1, abs=0.01)

    def test_one_term_is_the_whole(self) -> None:
        model = fitted("matern32")
        part = model.decompose([3.0, 70.0])["matern32"]
        mean, std = model.predict([3.0, 70.0], return_std=True, latent=True)
        np.testing.assert_allclose(part.std, std, rtol=1e-6)
        np.testing.assert_allclose(part.mean + model.decompose([3.0, 70.0]).prior_mean, mean)

    def test_frame(self) -> None:
        model = TimeSeriesGP("trend + season(365.25)", max_iter=3).fit(monthly())
        frame = model.decompose().to_frame()
        assert frame.index.equals(monthly().index.as_unit("us").rename("time"))
        assert list(frame.columns) == [
            "prior mean", "trend", "trend std", "season(365.25)", "season(365.25) std",
        ]  # fmt: skip

    def test_kernel_objects(self) -> None:
        kernel = gpytorch.kernels.MaternKernel(nu=0.5) + gpytorch.kernels.ConstantKernel()
        parts = TimeSeriesGP(kernel, max_iter=2).fit(*series()).decompose()
        assert tuple(parts.components) == as_state_space(kernel).labels


class TestUpdate:
    @pytest.mark.parametrize("kernel", [KERNEL, "matern52", "season(12) * matern12 + linear"])
    def test_equals_refitting_at_the_same_hyperparameters(self, kernel: str) -> None:
        t, y = series(80)
        model = TimeSeriesGP(kernel, max_iter=5, random_state=0).fit(t[:60], y[:60])
        whole = refitted(model, t, y)
        for n in range(60, 80):
            model.update(t[n : n + 1], y[n : n + 1])
        for new in (t[-1:] + 3.0, np.array([79.0, 90.0]), t[::5] + 0.3):
            np.testing.assert_allclose(
                model.predict(new, return_std=True), whole.predict(new, return_std=True), atol=1e-7
            )
        np.testing.assert_allclose(
            model.leave_one_out().log_density, whole.leave_one_out().log_density, atol=1e-6
        )
        assert len(model.history()[1]) == 80
        assert isinstance(model.posterior_, StateSpacePosterior)
        assert model.posterior_.prior.x.shape == (80, 1)

    def test_forecasts_do_not_touch_the_past(self) -> None:
        t, y = series(70)
        model = TimeSeriesGP(KERNEL, max_iter=3).fit(t[:60], y[:60])
        posterior = model.posterior_
        assert model.update(t[60:65], y[60:65]) is model
        np.testing.assert_allclose(model.forecast(2).times, [65, 66])
        assert model.posterior_ is posterior
        model.update(t[65:], y[65:])
        ahead = model.predict([69.0, 75.0], return_std=True)
        model.predict([3.0])
        assert model.posterior_ is not posterior
        np.testing.assert_allclose(model.predict([69.0, 75.0], return_std=True), ahead, atol=1e-8)
        # And on it goes.
        model.update([70.0], [5.0])
        assert model.forecast(1).times == pytest.approx([71.0])
        assert model.decompose().times[-1] == 70.0

    def test_missing_targets_and_unsorted_rows(self) -> None:
        t, y = series(66)
        model = TimeSeriesGP("matern32", max_iter=3).fit(t[:60], y[:60])
        whole = refitted(model, np.delete(t, 62), np.delete(y, 62))
        y[62] = np.nan
        order = [3, 1, 5, 0, 2, 4]
        model.update(t[60:][order], y[60:][order])
        for new in ([66.0], [10.0, 62.0]):
            np.testing.assert_allclose(model.predict(new), whole.predict(new), atol=1e-8)
        assert len(model.leave_one_out().mean) == 66

    @pytest.mark.parametrize("missing", [np.array([np.nan]), [None], pd.array([pd.NA], "Float64")])
    def test_a_missing_target_alone(self, missing: Any) -> None:
        t, y = series(62)
        model = TimeSeriesGP(KERNEL, max_iter=3, random_state=0).fit(t[:60], y[:60])
        whole = refitted(model, t[[*range(60), 61]], y[[*range(60), 61]])
        before = model.predict([61.0, 63.0], return_std=True)
        model.update([60.0], missing)
        np.testing.assert_allclose(model.predict([61.0, 63.0], return_std=True), before, rtol=1e-9)
        np.testing.assert_array_equal(model.forecast(2).times, [61.0, 62.0])
        with pytest.raises(InputError, match="before the last stamp 60"):
            model.update([59.5], [1.0])
        assert len(model.history()[1]) == 60
        assert np.isnan(model.leave_one_out().mean[60:]).all()
        model.update(t[61:], y[61:])
        for new in ([61.0, 64.0], [10.0, 60.0]):
            np.testing.assert_allclose(
                model.predict(new, return_std=True), whole.predict(new, return_std=True), atol=1e-7
            )

    def test_missing_targets_alone_of_dates_and_counts(self) -> None:
        data = monthly(50)
        model = TimeSeriesGP("trend", likelihood="poisson", max_iter=2).fit(
            data.index, np.arange(50.0), exposure=np.ones(50)
        )
        ahead = pd.date_range(data.index[-1], periods=4, freq="MS")[1:]
        model.update(pd.Series(np.nan, ahead), exposure=np.ones(3))
        assert str(model.forecast(1).times[0].date()) == "2005-06-01"
        assert len(model.decompose().times) == 50
        assert str(model.forecast(1).times[0].date()) == "2005-06-01"

    def test_the_last_stamp_again(self) -> None:
        t, y = series(61)
        model = TimeSeriesGP("matern32", max_iter=3).fit(t[:60], y[:60])
        whole = refitted(model, np.append(t[:60], 59.0), y)
        model.update([59.0], y[60:])
        np.testing.assert_allclose(
            model.predict([59.0, 61.0]), whole.predict([59.0, 61.0]), atol=1e-8
        )

    def test_noise_variance(self) -> None:
        t, y = series(62)
        noise = np.linspace(0.1, 1.0, 62)
        model = TimeSeriesGP("matern32", max_iter=3).fit(t[:60], y[:60], noise_variance=noise[:60])
        whole = refitted(model, t, y, noise_variance=noise)
        model.update(t[60:], y[60:], noise_variance=noise[60:])
        for new in ([63.0], [3.0]):
            np.testing.assert_allclose(model.predict(new), whole.predict(new), atol=1e-8)
        model.update([62.0], [1.0])
        assert np.isfinite(model.leave_one_out().mean).all()

    def test_counts_are_close_to_refitting(self) -> None:
        generator = np.random.default_rng(0)
        t = np.arange(90.0)
        y = generator.poisson(np.exp(1 + np.sin(t / 5))).astype(float)
        model = TimeSeriesGP("matern32", likelihood="poisson", max_iter=10).fit(t[:80], y[:80])
        whole = refitted(model, t, y)
        model.update(t[80:], y[80:])
        for new in ([91.0], [20.0, 85.0]):
            np.testing.assert_allclose(model.predict(new), whole.predict(new), rtol=0.15)

    def test_dates(self) -> None:
        data = monthly()
        model = TimeSeriesGP("trend", max_iter=3).fit(data[:50]).update(data[50:])
        assert str(model.forecast(1).times[0].date()) == "2006-01-01"
        assert model.history()[0].equals(data.index.as_unit("us").rename(None))

    def test_earlier_times_are_refused(self) -> None:
        model = TimeSeriesGP("trend", max_iter=3).fit(monthly())
        before = model.predict(monthly().index)
        with pytest.raises(InputError, match=r"got 2005-11-30.*before the last stamp 2005-12-01"):
            model.update(pd.DatetimeIndex(["2005-11-30"]), [1.0])
        model.update(pd.DatetimeIndex(["2006-03-01"]), [1.0])
        with pytest.raises(InputError, match="before the last stamp 2006-03-01"):
            model.update(pd.DatetimeIndex(["2006-02-01"]), [1.0])
        assert model.predict(monthly().index).shape == before.shape

    @pytest.mark.parametrize(
        ("t", "y", "message"),
        [
            ([61.0], [np.inf], "infinite"),
            ([np.nan], [1.0], "NaN"),
            ([61.0], [1.0, 2.0], "2 values for 1 rows"),
            ([61.0], [np.nan, np.nan], "2 values for 1 rows"),
            ([61.0], ["nan"], "not numeric"),
            ([61.0], [[1.0], [1.0, 2.0]], "y of TimeSeriesGP"),
            ([61.0], None, "got no y"),
            (["later"], [1.0], "neither dates nor numbers"),
        ],
    )
    def test_refused_rows_change_nothing(self, t: Any, y: Any, message: str) -> None:
        model = fitted("matern32")
        before = model.forecast(3)
        with pytest.raises(InputError, match=message):
            model.update(t, y)
        after = model.forecast(3)
        np.testing.assert_array_equal(before.mean, after.mean)
        np.testing.assert_array_equal(before.times, after.times)

    def test_negative_counts_change_nothing(self) -> None:
        model = TimeSeriesGP("matern32", likelihood="poisson", max_iter=2)
        model.fit(np.arange(9.0), np.arange(9.0))
        with pytest.raises(InputError):
            model.update([9.0], [-1.0])
        assert model.forecast(1).times == pytest.approx([9.0])

    def test_exposures_as_in_the_fit(self) -> None:
        t, y = np.arange(9.0), np.arange(9.0)
        plain = TimeSeriesGP("matern32", likelihood="poisson", max_iter=2).fit(t, y)
        with pytest.raises(InputError, match="had no exposure and this update has some"):
            plain.update([9.0], [1.0], exposure=[2.0])
        exposed = clone(plain).fit(t, y, exposure=np.ones(9))
        with pytest.raises(InputError, match="had an exposure and this update has none"):
            exposed.update([9.0], [1.0])
        exposed.update([9.0], [1.0], exposure=[2.0])
        assert len(exposed.leave_one_out().mean) == 10

    def test_a_new_fit_forgets_updates(self) -> None:
        model = fitted("matern32").update([60.0], [50.0])
        model.fit(*series())
        assert model.forecast(1).times == pytest.approx([60.0])
        assert len(model.history()[1]) == 60


class TestSklearn:
    def test_before_the_fit(self) -> None:
        model = TimeSeriesGP()
        for call in (
            lambda: model.forecast(3),
            lambda: model.predict([1.0]),
            lambda: model.decompose(),
            lambda: model.update([1.0], [1.0]),
            lambda: model.history(),
            lambda: model.summary(),
            lambda: model.save("nowhere"),
            lambda: model.sample_y([1.0]),
        ):
            with pytest.raises(NotFittedError):
                call()

    def test_parameters(self) -> None:
        model = TimeSeriesGP("trend", max_iter=7)
        assert clone(model).get_params() == model.get_params()
        assert model.set_params(kernel="matern12").kernel == "matern12"
        assert is_regressor(model)
        assert "approximation" not in model.get_params()
        assert "max_iter=7" in repr(model)

    def test_a_failed_fit_changes_nothing(self) -> None:
        model = fitted("matern32").update([60.0], [1.0])
        before = model.predict([61.0])
        with pytest.raises(InputError):
            model.fit([0.0, np.nan], [1.0, 2.0])
        np.testing.assert_array_equal(model.predict([61.0]), before)

    @pytest.mark.parametrize("updated", [False, True])
    def test_saving(self, tmp_path: Path, updated: bool) -> None:
        model = TimeSeriesGP("trend + quasi_season(365.25)", max_iter=3).fit(monthly(50))
        if updated:
            model.update(monthly()[50:])
        model.save(tmp_path / "model.gpvi")
        loaded = TimeSeriesGP.load(tmp_path / "model.gpvi")
        np.testing.assert_allclose(loaded.forecast(4).mean, model.forecast(4).mean, rtol=1e-12)
        assert loaded.forecast(4).times.equals(model.forecast(4).times)
        assert str(loaded.summary()) == str(model.summary())
        assert loaded.update(model.forecast(1).times, [1.0]).history()[1][-1] == pytest.approx(1.0)

    def test_pickle(self) -> None:
        model = fitted("matern32").update([60.0], [1.0])
        copy = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(copy.forecast(2).mean, model.forecast(2).mean)

    def test_samples(self) -> None:
        model = fitted(KERNEL)
        t = np.array([3.0, 3.0, 70.0])
        samples = model.sample_y(t, 4_000, random_state=0)
        mean, covariance = model.predict(t, return_cov=True)
        np.testing.assert_allclose(samples.mean(1), mean, atol=0.1)
        np.testing.assert_allclose(np.cov(samples), covariance, atol=0.15 * covariance.max())
        functions = fitted("matern32").sample_functions(3, random_state=0)
        assert functions([1.0, 2.0]).shape == (2, 3)
        functions = TimeSeriesGP("matern32", max_iter=2).fit(monthly()).sample_functions(2)
        assert functions(monthly().index).shape == (60, 2)

    def test_densities(self) -> None:
        t, y = series(62)
        model = TimeSeriesGP("trend + season(12)", random_state=0).fit(t[:60], y[:60])
        assert (model.log_predictive_density(t[60:], y[60:]) > -4).all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("t", "y", "message"),
        [
            ([0.0, 1.0], [np.nan, np.nan], "no target at all"),
            ([0.0, 1.0], [np.nan, 1.0], "at least 2 samples"),
            ([0.0], [1.0], "at least 2 samples"),
            ([0.0, 1.0, 2.0], [1.0, 2.0], "2 values for 3 rows"),
            ([0.0, 1.0], None, "got no y"),
            (["a", "b"], [1.0, 2.0], "convert text"),
        ],
    )
    def test_data(self, t: Any, y: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            TimeSeriesGP("matern32").fit(t, y)

    @pytest.mark.filterwarnings("ignore::gpvi.exceptions.DataWarning")
    def test_one_stamp_again_and_again(self) -> None:
        model = TimeSeriesGP("trend + matern32", max_iter=3).fit([5.0, 5.0, 5.0], [1.0, 2.0, 1.5])
        assert np.isfinite(model.predict([5.0, 6.0])).all()
        with pytest.raises(InputError, match="one stamp only, which has no spacing"):
            model.forecast(3)
        assert np.isfinite(model.forecast([5.5]).mean).all()

    @pytest.mark.filterwarnings("ignore::gpvi.exceptions.ExtrapolationWarning")
    def test_two_rows(self) -> None:
        model = TimeSeriesGP("trend + season(3) + matern32", max_iter=5).fit([0.0, 1.0], [1.0, 2.0])
        assert np.isfinite(model.forecast(3).std).all()

    @pytest.mark.parametrize("kernel", ["rational_quadratic", "trend + white", "hamming"])
    def test_kernels_without_a_form(self, kernel: str) -> None:
        with pytest.raises(UnsupportedError, match="has no state-space form"):
            TimeSeriesGP(kernel).fit(*series())

    def test_misspelled_kernels(self) -> None:
        with pytest.raises(InputError, match="did you mean 'season'"):
            TimeSeriesGP("trend + saeson(3)").fit(*series())

    def test_before_the_trend_begins(self) -> None:
        model = TimeSeriesGP("trend", max_iter=2).fit(monthly())
        assert np.isfinite(model.predict(pd.DatetimeIndex(["1997-01-01"]))).all()
        with (
            pytest.warns(ExtrapolationWarning),
            pytest.raises(InputError, match=r"got 1990-01-01.*its trend begins 1996-02"),
        ):
            model.predict(pd.DatetimeIndex(["1990-01-01"]))
        kernel = IntegratedWienerKernel(origin=-1.0)
        model = TimeSeriesGP(kernel, max_iter=2).fit(*series())
        with pytest.raises(InputError, match="its trend begins -1"):
            model.predict([-2.0])

    def test_functions_of_a_trend(self) -> None:
        with pytest.raises(UnsupportedError, match="IntegratedWienerKernel"):
            fitted("trend").sample_functions()

    def test_likelihoods_of_several_latents(self) -> None:
        with pytest.raises(InputError, match="likelihood is 'binomial'"):
            TimeSeriesGP("trend", likelihood="binomial").fit(*series())


TERMS = (
    "trend", "trend(0)", "season(7)", "quasi_season(7)", "quasi_season(5, 20)", "matern12", "matern32",
    "matern52", "matern72", "linear", "constant", "cosine(9)", "hida(1)", "hida(0, 6)", "rbf",
    "periodic", "season(7) * matern32", "linear * season(4)", "(trend + constant) * cosine(6)",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.filterwarnings("ignore::gpvi.exceptions.GPVIWarning")
def test_random_kernels_and_stamps(seed: int) -> None:
    """Whatever the kernel and the stamps: no crash, no NaN, variances positive."""
    generator = np.random.default_rng(seed)
    kernel = " + ".join(generator.choice(TERMS, generator.integers(1, 4), replace=False))
    size = int(generator.integers(2, 40))
    t = np.round(
        generator.normal(0, 10 ** generator.uniform(-3, 4), size), int(generator.integers(4))
    )
    y = generator.normal(10 ** generator.uniform(-3, 3), 10 ** generator.uniform(-3, 3), size)
    y[generator.random(size) < 0.2] = np.nan
    y[:2] = 1.0, 2.0
    likelihood = str(generator.choice(["gaussian", "student_t", "poisson"]))
    if likelihood == "poisson":
        y = np.round(np.clip(np.abs(y), 0, 100))
    model = TimeSeriesGP(kernel, likelihood=likelihood, max_iter=3, random_state=seed).fit(t, y)
    new = np.concatenate([t, [t.max() + 0.1 * np.ptp(t)]])
    mean, std = model.predict(new, return_std=True, latent=True)
    assert np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()
    for part in model.decompose(new).components.values():
        assert np.isfinite(part.mean).all() and np.isfinite(part.std).all()
    model.update([t.max(), t.max() + 1.0], [1.0, np.nan])
    mean, std = model.predict(new, return_std=True, latent=True)
    assert np.isfinite(mean).all() and np.isfinite(std).all()
