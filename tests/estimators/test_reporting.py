"""What a fitted estimator tells: the summary, its warnings, the history."""

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest

from gpvi.approximations import InducingPoints
from gpvi.estimators import FitSummary, Fixed, GPClassifier, GPCountRegressor, GPRegressor
from gpvi.exceptions import ConvergenceWarning, JitterWarning, NumericalError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.uniform(-2, 2, size=(40, 2))
Y = 30 * np.sin(2 * X[:, 0]) + X[:, 1] + 3 * GENERATOR.normal(size=40)


def regressor(**options: Any) -> GPRegressor:
    return GPRegressor(**{"random_state": 0, "max_iter": 100, **options})


class TestSummary:
    def test_fields(self) -> None:
        model = regressor().fit(X, Y)
        summary = model.summary()
        assert isinstance(summary, FitSummary) and summary is model.summary()
        assert summary.estimator == "GPRegressor"
        assert (summary.num_rows, summary.num_features) == (40, 2)
        assert summary.elbo == model.elbo_
        assert summary.elbo_per_row == pytest.approx(model.elbo_ / 40)
        assert summary.evaluations == len(model.history_)
        assert summary.seconds == model.history_[-1].seconds > 0
        assert summary.converged and summary.warnings == () and summary.standardized
        assert summary.likelihood == "GaussianLikelihood"
        assert summary.approximation == "Exact with 40 basis values"
        with pytest.raises(dataclasses.FrozenInstanceError):
            summary.elbo = 0.0  # type: ignore[misc]

    def test_text(self) -> None:
        text = str(regressor(hyperparameters={"noise": Fixed(9.0)}).fit(X, Y).summary())
        lines = text.splitlines()
        assert lines[0] == "GPRegressor on 40 rows x 2 columns"
        (noise,) = [line for line in lines if line.startswith("likelihood.noise")]
        assert noise.split() == ["likelihood.noise", "9", "y^2", "fixed"]
        for word in ("approximation", "elbo", "converged", "jitter", "lengthscale"):
            assert word in text

    @pytest.mark.parametrize(
        ("options", "approximation", "reason"),
        [
            ({}, "Exact with 40", "auto: 40 rows are at most 2000"),
            ({"approximation": "exact"}, "Exact with 40", "asked for"),
            (
                {"approximation": "inducing", "num_inducing": 9},
                "Inducing with 9 basis values",
                "asked for",
            ),
            ({"approximation": InducingPoints(8)}, "Inducing with 8", "given"),
            (
                {"batch_size": 10, "num_inducing": 7},
                "Inducing with 7",
                "auto: minibatches need a finite basis",
            ),
        ],
    )
    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_what_auto_chose_and_why(
        self, options: dict[str, Any], approximation: str, reason: str
    ) -> None:
        summary = regressor(**options, max_iter=2).fit(X, Y).summary()
        assert summary.approximation.startswith(approximation)
        assert summary.reason == reason and reason in str(summary)

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_limits_of_auto(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpvi.estimators.choosing._MAX_EXACT_ROWS", 50)
        cases = (
            (GPRegressor, Y, 50, "exact"),
            (GPClassifier, Y > 0, 29, "inducing"),
            (GPCountRegressor, np.abs(np.round(Y)), 29, "inducing"),
            (GPClassifier, np.digitize(Y, [-10, 10]), 20, "inducing"),
        )
        for cls, y, limit, chosen in cases:
            summary = cls(max_iter=1, num_inducing=10, random_state=0).fit(X, y).summary()
            side = "at most" if chosen == "exact" else "more than"
            assert summary.reason.startswith(f"auto: 40 rows are {side} {limit}")
            assert ("num_inducing=10 is not used" in summary.reason) == (chosen == "exact")
            assert summary.approximation.lower().startswith(chosen)

    def test_warnings_are_kept_and_issued_once(self) -> None:
        with pytest.warns(ConvergenceWarning) as caught:
            model = regressor(max_iter=2).fit(X, Y)
        assert len(caught) == 1 and caught[0].filename == __file__
        (text,) = model.summary().warnings
        assert text == f"ConvergenceWarning: {caught[0].message}"
        assert f"warning: {text}" in str(model.summary()) and not model.summary().converged

    def test_jitter(self) -> None:
        x = np.linspace(0, 1, 60)[:, None]
        specs = {"lengthscale": Fixed(5.0)}
        options = {"kernel": "rbf", "hyperparameters": specs, "dtype": "float32", "optimizer": None}
        model = regressor(approximation="inducing", num_inducing=60, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", JitterWarning)
            model.fit(x, x[:, 0])
        assert model.summary().jitter > 0 and "of the mean diagonal" in str(model.summary())

    def test_columns_by_name(self) -> None:
        pd = pytest.importorskip("pandas")
        model = regressor().fit(pd.DataFrame(X, columns=["width", "height"]), Y)
        columns = [r.column for r in model.summary().hyperparameters if "lengthscale" in r.name]
        assert columns == ["width", "height"] and "height" in str(model.summary())

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_weights_are_not_rows(self) -> None:
        weights = np.where(np.arange(40) < 10, 0.0, 2.0)
        assert regressor().fit(X, Y, weights).summary().num_rows == 30


class TestHistory:
    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_one_record_for_every_evaluation(self) -> None:
        seen: list[Any] = []
        model = regressor(max_iter=5, callbacks=[seen.append]).fit(X, Y)
        assert seen == model.history_ and len(seen) >= model.n_iter_ >= 5
        assert [record.evaluation for record in seen] == list(range(1, len(seen) + 1))
        best = [record.best for record in seen]
        assert best == sorted(best) and {record.restart for record in seen} == {0}
        shift = 40 * np.log(Y.std())
        assert model.elbo_ == pytest.approx(max(r.objective for r in seen) - shift, abs=1e-6)

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_restarts_are_numbered_and_never_worse(self) -> None:
        for options in ({}, {"approximation": "inducing", "num_inducing": 10}):
            seen: list[Any] = []
            once = regressor(max_iter=8, **options).fit(X, Y)
            more = regressor(max_iter=8, num_restarts=3, callbacks=[seen.append], **options)
            more.fit(X, Y)
            assert more.elbo_ >= once.elbo_
            assert seen == more.history_
            assert sorted({record.restart for record in seen}) == [0, 1, 2, 3]
            first = [r.objective for r in seen if r.restart == 0]
            assert first == [r.objective for r in once.history_]

    def test_restarts_find_what_one_start_misses(self) -> None:
        x = np.linspace(0, 1, 60)[:, None]
        y = np.sin(60 * x[:, 0])
        bad = {"lengthscale": Fixed(0.1)}
        stuck = regressor(kernel="periodic", hyperparameters=bad, num_restarts=0)
        tried = regressor(kernel="periodic", hyperparameters=bad, num_restarts=8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert tried.fit(x, y).elbo_ >= stuck.fit(x, y).elbo_

    def test_stopping_from_a_callback(self) -> None:
        model = regressor(callbacks=[lambda record: record.evaluation == 3]).fit(X, Y)
        assert len(model.history_) == 3 and not model.summary().converged
        assert np.isfinite(model.predict(X)).all()

    @pytest.mark.parametrize("optimizer", ["auto", "lbfgs", "adam"])
    def test_optimizers_reach_the_same_optimum(self, optimizer: str) -> None:
        options = {"max_iter": 600, "learning_rate": 0.1}
        reference = regressor().fit(X, Y)
        model = regressor(optimizer=optimizer, **options).fit(X, Y)
        assert model.elbo_ == pytest.approx(reference.elbo_, abs=0.5)

    def test_no_optimizer_takes_no_step(self) -> None:
        model = regressor(optimizer=None).fit(X, Y)
        assert len(model.history_) <= 1 and model.n_iter_ == 1
        assert np.isfinite(model.elbo_) and model.elbo_ < regressor().fit(X, Y).elbo_
        zero = regressor(max_iter=0).fit(X, Y)
        assert zero.elbo_ == pytest.approx(model.elbo_)

    def test_a_start_that_breaks_down_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import gpvi.estimators.fitting as fitting

        whole = fitting.fit
        calls = []

        def fails_first(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) % 2:
                raise NumericalError("broken.")
            return whole(*args, **kwargs)

        monkeypatch.setattr(fitting, "fit", fails_first)
        model = regressor(num_restarts=1).fit(X, Y)
        assert len(calls) == 2 and {record.restart for record in model.history_} == {1}
        with pytest.raises(NumericalError, match="broken"):
            regressor().fit(X, Y)
