"""Targets that NumPy would convert without a word, missing ones, and scores over what is left."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, d2_tweedie_score, r2_score

from gpvi.estimators import GPClassifier, GPCountRegressor, GPRegressor
from gpvi.estimators.targets import class_labels, own_type, scored_weights, target_values
from gpvi.exceptions import GPVIError, InputError

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

X = np.linspace(-2, 2, 24)[:, None]
POSITIVE = X[:, 0] > 0.3
WEIGHTS = np.linspace(0.0, 2.0, 24)
DAYS = np.datetime64("2024-01-01") + np.arange(24)


def with_missing(y: np.ndarray, missing: Any = np.nan) -> np.ndarray:
    values = y.astype(object if missing is not np.nan else float)
    values[[2, 20]] = missing
    return values


def classifier(**options: Any) -> GPClassifier:
    return GPClassifier(**{"random_state": 0, "max_iter": 3, **options})


class TestLabels:
    @pytest.mark.parametrize(
        "y",
        [
            np.array([1, "x"] * 12, dtype=object),
            [1, "x"] * 12,
            [True, 2] * 12,
            np.array([True, 2] * 12, dtype=object),
            ["True", True] * 12,
        ],
    )
    def test_mixed_types_are_refused(self, y: Any) -> None:
        with pytest.raises(InputError, match=r"y of GPClassifier holds labels of several types"):
            classifier().fit(X, y)

    @pytest.mark.parametrize(
        ("y", "classes"),
        [
            (POSITIVE, [False, True]),
            (POSITIVE.tolist(), [False, True]),
            (POSITIVE.astype(object), [False, True]),
            (POSITIVE.astype(int), [0, 1]),
            (POSITIVE.astype(int).astype(object), [0, 1]),
            (np.where(POSITIVE, "b", "a"), ["a", "b"]),
            (np.where(POSITIVE, "b", "a").astype(object), ["a", "b"]),
            (POSITIVE.astype(float), [0.0, 1.0]),
            (np.where(POSITIVE, 1.0, 0).astype(object), [0.0, 1.0]),
        ],
    )
    def test_labels_keep_their_type(self, y: Any, classes: list) -> None:
        model = classifier(optimizer=None).fit(X, y)
        assert model.classes_.tolist() == classes
        assert {type(c) for c in model.classes_.tolist()} == {type(c) for c in classes}
        assert model.predict(X).dtype == model.classes_.dtype
        assert np.isfinite(model.log_predictive_density(X, y)).all()

    def test_truth_values_are_saved(self, tmp_path: Path) -> None:
        model = classifier(optimizer=None).fit(X, POSITIVE)
        model.save(tmp_path / "model")
        loaded = GPClassifier.load(tmp_path / "model")
        assert loaded.classes_.dtype == bool and (loaded.predict(X) == model.predict(X)).all()

    def test_lists_of_text_with_nan(self) -> None:
        y = ["a", np.nan, "b", None]
        labels, missing = class_labels(y, 4, "A")
        assert missing.tolist() == [False, True, False, True]
        assert own_type(labels[~missing]).tolist() == ["a", "b"]

    @pytest.mark.parametrize(
        "y",
        [
            DAYS,
            DAYS - DAYS[0],
            [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)] * 12,
            DAYS.astype(object),
        ],
    )
    def test_dates_are_refused(self, y: Any) -> None:
        with pytest.raises(InputError, match=r"dates or times|of type date|of type timedelta"):
            classifier().fit(X, y)

    def test_nothing_known(self) -> None:
        with pytest.raises(InputError, match="no label at all: all 24 are missing"):
            classifier(allow_missing_targets=True).fit(X, [None] * 24)

    @pytest.mark.parametrize(
        ("dtype", "values"), [("string", ["b", "a"]), ("boolean", [True, False]), ("Int64", [1, 0])]
    )
    def test_columns_of_pandas(self, dtype: str, values: list) -> None:
        pd = pytest.importorskip("pandas")
        y = pd.Series([values[0] if positive else values[1] for positive in POSITIVE], dtype=dtype)
        assert classifier(optimizer=None).fit(X, y).classes_.tolist() == sorted(values)
        y[3] = pd.NA
        with pytest.raises(InputError, match=r"holds 1 missing label.*row 3"):
            classifier().fit(X, y)
        options = {"allow_missing_targets": True, "optimizer": None}
        for targets in (y, y.astype(object)):
            model = classifier(**options).fit(X, targets)
            assert model.classes_.tolist() == sorted(values)
            assert type(model.classes_.tolist()[0]) is type(values[0])
            assert np.isnan(model.log_predictive_density(X, targets)).tolist() == [
                row == 3 for row in range(24)
            ]
            assert model.score(X, targets) > 0.8

    def test_columns_of_polars(self) -> None:
        pl = pytest.importorskip("polars")
        y = [bool(value) for value in POSITIVE]
        assert classifier(optimizer=None).fit(X, pl.Series(y)).classes_.tolist() == [False, True]
        for missing in ([None, *y[1:]], [None, *("ab"[value] for value in y[1:])]):
            model = classifier(optimizer=None, allow_missing_targets=True)
            assert len(model.fit(X, pl.Series(missing)).classes_) == 2
        with pytest.raises(InputError, match=r"dates or times|of type date"):
            classifier().fit(X, pl.Series([datetime.date(2024, 1, 1 + row) for row in range(24)]))


class TestNumbers:
    @pytest.mark.parametrize("model", [GPRegressor, GPCountRegressor])
    @pytest.mark.parametrize("y", [DAYS, DAYS - DAYS[0], (DAYS - DAYS[0]).astype("m8[ns]")])
    def test_dates_are_refused(self, model: Any, y: np.ndarray) -> None:
        with pytest.raises(InputError, match="holds dates or times"):
            model().fit(X, y)

    @pytest.mark.parametrize(
        "y", [["1", "2"], np.array(["1", "2"]), np.array([1, "2"], dtype=object), [b"1", b"2"]]
    )
    def test_text_is_refused(self, y: Any) -> None:
        with pytest.raises(InputError, match=r"not numeric: it holds text such as b?'[12]' in row"):
            target_values(y, 2, "A", False)

    @pytest.mark.parametrize("dtype", ["Float64", "Int64", "object"])
    def test_missing_of_pandas(self, dtype: str) -> None:
        pd = pytest.importorskip("pandas")
        y = pd.Series([1, pd.NA, 3], dtype=dtype)
        with pytest.raises(InputError, match=r"1 NaN value\(s\), the first in row 1"):
            target_values(y, 3, "A", False)
        assert np.isnan(target_values(y, 3, "A", True)).tolist() == [False, True, False]


class TestScores:
    def test_weights(self) -> None:
        known = np.array([True, False, True])
        assert scored_weights(None, known, "A") is None
        found = scored_weights([1.0, 2.0, 0.0], known, "A")
        assert found is not None and found.tolist() == [1.0, 0.0]
        with pytest.raises(InputError, match="zero in all 2 rows with a target"):
            scored_weights([0.0, 2.0, 0.0], known, "A")
        with pytest.raises(InputError, match="sample_weight of A must be finite and non-negative"):
            scored_weights([-1.0, 2.0, 0.0], known, "A")

    def test_regression(self) -> None:
        y = np.sin(X[:, 0]) + 0.3 * np.cos(9 * X[:, 0])
        model = GPRegressor(max_iter=3, random_state=0).fit(X, y)
        assert model.score(X, y) == r2_score(y, model.predict(X))
        with pytest.raises(InputError, match=r"y of GPRegressor holds 2 NaN value.*drop"):
            model.score(X, with_missing(y))
        model.set_params(allow_missing_targets=True)
        known = ~np.isnan(with_missing(y))
        for weights in (None, WEIGHTS):
            expected = r2_score(
                y[known],
                model.predict(X[known]),
                sample_weight=None if weights is None else weights[known],
            )
            assert model.score(X, with_missing(y), weights) == pytest.approx(expected)

    def test_counts(self) -> None:
        y = np.round(np.exp(1 + X[:, 0]))
        exposure = np.linspace(1, 3, 24)
        model = GPCountRegressor(max_iter=3, random_state=0).fit(X, y, exposure=exposure)
        with pytest.raises(InputError, match=r"y of GPCountRegressor holds 2 NaN value"):
            model.score(X, with_missing(y))
        model.set_params(allow_missing_targets=True)
        known = ~np.isnan(with_missing(y))
        expected = d2_tweedie_score(
            y[known] / exposure[known],
            model.predict(X[known]),
            sample_weight=(exposure * WEIGHTS)[known],
            power=1,
        )
        found = model.score(X, with_missing(y), WEIGHTS, exposure=exposure)
        assert found == pytest.approx(expected)

    @pytest.mark.parametrize("missing", [np.nan, None])
    def test_classes(self, missing: Any) -> None:
        y = POSITIVE.astype(int)
        model = classifier().fit(X, y)
        flipped = np.where(np.arange(24) % 5 == 0, 1 - y, y)
        assert model.score(X, flipped) == accuracy_score(flipped, model.predict(X))
        lost = with_missing(flipped, missing)
        with pytest.raises(InputError, match=r"holds 2 missing label\(s\)"):
            model.score(X, lost)
        model.set_params(allow_missing_targets=True)
        known = np.setdiff1d(np.arange(24), [2, 20])
        expected = accuracy_score(
            flipped[known], model.predict(X)[known], sample_weight=WEIGHTS[known]
        )
        assert model.score(X, lost, WEIGHTS) == pytest.approx(expected)

    @pytest.mark.parametrize("y", [3, None, np.ones((24, 2)), np.ones(5)])
    def test_other_shapes_are_refused(self, y: Any) -> None:
        model = GPRegressor(optimizer=None).fit(X, X[:, 0])
        counts = GPCountRegressor(optimizer=None).fit(X, np.round(np.exp(X[:, 0])))
        classes = classifier(optimizer=None).fit(X, POSITIVE)
        for score in (
            lambda: model.score(X, y),
            lambda: counts.score(X, y),
            lambda: classes.score(X, y),
        ):
            with pytest.raises(GPVIError, match="y of GP"):
                score()


def test_messages_name_the_argument() -> None:
    model = GPRegressor(optimizer=None).fit(X, X[:, 0])
    with pytest.raises(InputError, match="latent=True and noise_variance and exposure: f has"):
        model.predict(X, latent=True, noise_variance=1.0, exposure=1.0)
    counts = GPCountRegressor(optimizer=None).fit(X, np.round(np.exp(X[:, 0])))
    with pytest.raises(InputError, match="PoissonLikelihood has no use for noise_variance;"):
        counts.predict(X, noise_variance=1.0)
