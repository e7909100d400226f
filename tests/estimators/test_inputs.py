"""Inputs of every kind: arrays, lists, pandas and polars frames, categorical columns, far rows."""

import warnings
from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import polars as pl
import pytest

from gpvi.estimators import Fixed, GPClassifier, GPCountRegressor, GPRegressor
from gpvi.exceptions import ExtrapolationWarning, InputError
from gpvi.kernels import HammingKernel

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

GENERATOR = np.random.default_rng(0)
SIZE = 60
NUMBERS = GENERATOR.uniform(-2, 2, size=(SIZE, 2))
CITIES = np.array(["Bern", "Chur", "Genf", "Lugano"])
CODES = GENERATOR.integers(0, 4, size=SIZE)
# The order of the levels says nothing about the effect.
EFFECT = np.array([3.0, -2.0, 2.0, -3.0])
Y = np.sin(2 * NUMBERS[:, 0]) + EFFECT[CODES] + 0.05 * GENERATOR.normal(size=SIZE)


def regressor(**options: Any) -> GPRegressor:
    return GPRegressor(**{"random_state": 0, "max_iter": 30, **options})


def pandas_frame(rows: slice = slice(None)) -> pd.DataFrame:
    frame = pd.DataFrame({"width": NUMBERS[rows, 0], "height": NUMBERS[rows, 1]})
    frame["city"] = pd.Categorical(CITIES[CODES[rows]], categories=CITIES)
    return frame


def polars_frame(rows: slice = slice(None)) -> pl.DataFrame:
    columns = {"width": NUMBERS[rows, 0], "height": NUMBERS[rows, 1]}
    return pl.DataFrame(columns | {"city": pl.Series(CITIES[CODES[rows]], dtype=pl.Categorical)})


def coded_array(rows: slice = slice(None)) -> np.ndarray:
    return np.column_stack([NUMBERS[rows], CODES[rows]])


@pytest.fixture(scope="module")
def fitted() -> GPRegressor:
    return regressor().fit(pandas_frame(), Y)


class TestArrays:
    @pytest.mark.parametrize(
        "convert",
        [
            lambda values: values.tolist(),
            np.asfortranarray,
            lambda values: np.repeat(values, 2, axis=0)[::2],
            lambda values: values.astype(np.longdouble),
            lambda values: pd.DataFrame(values, columns=["a", "b"]),
            lambda values: pl.DataFrame(values, schema=["a", "b"]),
            lambda values: values.astype(object),
        ],
        ids=["list", "fortran", "strided", "longdouble", "pandas", "polars", "object"],
    )
    def test_representation_does_not_matter(self, convert: Callable[[np.ndarray], Any]) -> None:
        plain = regressor(max_iter=5).fit(NUMBERS, Y)
        same = regressor(max_iter=5).fit(convert(NUMBERS), Y)
        assert same.elbo_ == plain.elbo_
        assert np.array_equal(same.predict(convert(NUMBERS)), plain.predict(NUMBERS))

    @pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.bool_, np.float16])
    def test_dtypes(self, dtype: type) -> None:
        X = (np.abs(NUMBERS) * 2).astype(dtype)
        plain = regressor(max_iter=3).fit(X.astype(np.float64), Y)
        same = regressor(max_iter=3).fit(X, Y)
        assert same.elbo_ == plain.elbo_
        assert same.predict(X).dtype == np.float64

    def test_float32_data(self) -> None:
        X, y = NUMBERS.astype(np.float32), Y.astype(np.float32)
        model = regressor(max_iter=3).fit(X, y)
        assert model.predict(X).dtype == np.float64
        assert model.elbo_ == regressor(max_iter=3).fit(X.astype(float), y.astype(float)).elbo_

    def test_targets_of_any_container(self) -> None:
        plain = regressor(max_iter=3).fit(NUMBERS, Y)
        for y in (Y.tolist(), pd.Series(Y), pl.Series(Y), Y.astype(object)):
            assert regressor(max_iter=3).fit(NUMBERS, y).elbo_ == plain.elbo_

    def test_nothing_is_written_to_and_nothing_is_kept(self) -> None:
        X, y, weights = NUMBERS.copy(), Y.copy(), np.ones(SIZE)
        for values in (X, y, weights):
            values.flags.writeable = False
        model = regressor(max_iter=3).fit(X, y, weights)
        before = model.predict(X, return_std=True)
        for values in (X, y, weights):
            values.flags.writeable = True
        kept = X.copy()
        X[:], y[:], weights[:] = 7.0, 7.0, 7.0
        assert np.array_equal(model.predict(kept, return_std=True), before)
        leave_one_out = model.leave_one_out()
        assert np.abs(leave_one_out.mean - Y).mean() < 3.0

    def test_column_vector_targets_are_taken_with_a_warning(self) -> None:
        plain = regressor(max_iter=3).fit(NUMBERS, Y)
        with pytest.warns(UserWarning, match="column-vector y"):
            same = regressor(max_iter=3).fit(NUMBERS, Y[:, None])
        assert same.elbo_ == plain.elbo_


class TestNames:
    def test_names_are_kept_and_compared(self, fitted: GPRegressor) -> None:
        assert fitted.feature_names_in_.tolist() == ["width", "height", "city"]
        frame = pandas_frame()
        with pytest.raises(InputError, match="feature names"):
            fitted.predict(frame[["height", "width", "city"]])
        with pytest.raises(InputError, match="feature names"):
            fitted.predict(frame.rename(columns={"width": "length"}))
        with pytest.raises(InputError, match="feature names"):
            fitted.predict(frame.drop(columns="width"))

    def test_arrays_for_a_model_of_frames(self) -> None:
        frame = pandas_frame()[["width", "height"]]
        model = regressor(max_iter=3).fit(frame, Y)
        with pytest.warns(UserWarning, match="valid feature names"):
            values = model.predict(NUMBERS)
        assert np.array_equal(values, model.predict(frame))

    def test_frames_for_a_model_of_arrays(self) -> None:
        model = regressor(max_iter=3).fit(NUMBERS, Y)
        assert not hasattr(model, "feature_names_in_")
        with pytest.warns(UserWarning, match="fitted without feature names"):
            values = model.predict(pandas_frame()[["width", "height"]])
        assert np.array_equal(values, model.predict(NUMBERS))

    def test_repeated_names(self, fitted: GPRegressor) -> None:
        frame = pandas_frame()
        frame.columns = ["size", "size", "city"]
        with pytest.raises(
            InputError, match=r"'size' is the name of 2 columns of X.*rename"
        ) as caught:
            regressor().fit(frame, Y)
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="'size' is the name of 2 columns"):
            fitted.predict(frame)

    def test_names_that_are_numbers_are_no_names(self) -> None:
        frame = pd.DataFrame(NUMBERS)
        model = regressor(max_iter=3).fit(frame, Y)
        assert not hasattr(model, "feature_names_in_")
        assert np.array_equal(model.predict(frame), model.predict(NUMBERS))

    def test_messages_name_the_column(self) -> None:
        frame = pandas_frame()
        frame.loc[7, "height"] = np.nan
        with pytest.raises(InputError, match=r"first \(NaN\) in row 7, column 'height'"):
            regressor().fit(frame, Y)

    def test_a_refit_forgets_the_names(self) -> None:
        model = regressor(max_iter=2).fit(pandas_frame(), Y)
        model.fit(NUMBERS, Y)
        assert not hasattr(model, "feature_names_in_") and model.n_features_in_ == 2


class TestCategories:
    def test_the_effect_of_every_level_is_learned(self, fitted: GPRegressor) -> None:
        frame = pandas_frame()
        assert fitted.score(frame, Y) > 0.99
        means = []
        for city in CITIES:
            frame["city"] = pd.Categorical([city] * SIZE, categories=CITIES)
            means.append(fitted.predict(frame).mean())
        assert np.abs(np.array(means) - np.mean(means) - EFFECT).max() < 0.6
        parts = [type(part) for part in fitted.kernel_.modules()]
        assert HammingKernel in parts

    def test_categories_beat_numbers(self) -> None:
        """Held out rows: as numbers, the codes lie on a line, which the effects do not follow."""
        train, test = slice(0, 40), slice(40, SIZE)
        by_category = regressor().fit(pandas_frame(train), Y[train])
        by_code = regressor(ard=False).fit(coded_array(train), Y[train])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)
            good = by_category.score(pandas_frame(test), Y[test])
            bad = by_code.score(coded_array(test), Y[test])
        assert good > 0.95 and good > bad

    @pytest.mark.parametrize(
        ("make", "options"),
        [
            (polars_frame, {}),
            (pandas_frame, {"categorical_features": ["city"]}),
            (polars_frame, {"categorical_features": ["city"]}),
            (pandas_frame, {"categorical_features": [2]}),
            (coded_array, {"categorical_features": [2]}),
            (coded_array, {"categorical_features": np.array([2])}),
            (lambda: coded_array().tolist(), {"categorical_features": (2,)}),
            (lambda: pandas_frame().astype({"city": str}), {"categorical_features": ["city"]}),
            (lambda: pandas_frame().astype(object), {"categorical_features": ["city"]}),
        ],
    )
    def test_ways_to_say_so_agree(
        self, fitted: GPRegressor, make: Callable[[], Any], options: dict[str, Any]
    ) -> None:
        model = regressor(**options).fit(make(), Y)
        assert model.elbo_ == pytest.approx(fitted.elbo_, rel=1e-9)
        assert np.allclose(model.predict(make()), fitted.predict(pandas_frame()), atol=1e-8)

    def test_polars_enumerations(self, fitted: GPRegressor) -> None:
        frame = polars_frame().with_columns(pl.col("city").cast(pl.Enum(CITIES.tolist())))
        assert regressor().fit(frame, Y).elbo_ == pytest.approx(fitted.elbo_, rel=1e-9)

    def test_none_means_numbers(self) -> None:
        frame = pandas_frame()
        frame["city"] = pd.Categorical(CODES)
        model = regressor(categorical_features=None, max_iter=5).fit(frame, Y)
        plain = regressor(max_iter=5).fit(coded_array(), Y)
        assert model.elbo_ == pytest.approx(plain.elbo_, rel=1e-12)

    def test_boolean_columns_are_numbers_unless_listed(self) -> None:
        frame = pandas_frame()[["width"]].assign(south=CODES > 1)
        assert HammingKernel not in {type(p) for p in self.fit(frame).kernel_.modules()}
        listed = self.fit(frame, categorical_features=["south"])
        assert HammingKernel in {type(p) for p in listed.kernel_.modules()}

    @staticmethod
    def fit(frame: Any, **options: Any) -> GPRegressor:
        return regressor(max_iter=3, **options).fit(frame, Y)

    def test_order_of_rows_and_levels_does_not_matter(self, fitted: GPRegressor) -> None:
        frame = pandas_frame()
        frame["city"] = frame["city"].cat.reorder_categories(CITIES[::-1].tolist())
        assert np.allclose(fitted.predict(frame), fitted.predict(pandas_frame()))
        few = pandas_frame(slice(10, 13))
        few["city"] = few["city"].cat.remove_unused_categories()
        assert np.allclose(fitted.predict(few), fitted.predict(pandas_frame())[10:13])

    def test_unseen_levels_differ_from_all_known_ones(self, fitted: GPRegressor) -> None:
        frame = pandas_frame().astype({"city": str})
        frame.loc[3, "city"], frame.loc[4, "city"] = "Zug", "Uri"
        with pytest.warns(ExtrapolationWarning, match=r"2 of 60 rows.* row 3 in column 'city'"):
            mean, std = fitted.predict(frame, return_std=True)
        known_mean, known_std = fitted.predict(pandas_frame(), return_std=True)
        assert (std[3:5] > 3 * known_std[3:5]).all()
        assert np.array_equal(np.delete(mean, [3, 4]), np.delete(known_mean, [3, 4]))
        frame.loc[4] = frame.loc[3]
        with pytest.warns(ExtrapolationWarning):
            covariance = fitted.predict(frame, return_cov=True, latent=True)[1]
        assert covariance[3, 4] == pytest.approx(covariance[3, 3], rel=1e-6)

    def test_missing_levels_are_refused(self, fitted: GPRegressor) -> None:
        frame = pandas_frame()
        frame.loc[5, "city"] = None
        with pytest.raises(InputError, match=r"'city' of GPRegressor holds missing values"):
            regressor().fit(frame, Y)
        with pytest.raises(InputError, match=r"'city' of GPRegressor holds missing values"):
            fitted.predict(frame)
        text = polars_frame().with_columns(pl.lit(None, dtype=pl.Categorical).alias("city"))
        with pytest.raises(InputError, match="missing values"):
            regressor().fit(text, Y)
        coded = coded_array()
        coded[0, 2] = np.nan
        with pytest.raises(InputError, match=r"column '2'.*missing values"):
            regressor(categorical_features=[2]).fit(coded, Y)

    def test_levels_that_are_no_text_or_number(self) -> None:
        frame = pandas_frame()
        frame["city"] = [(1, 2)] * SIZE
        with pytest.raises(InputError, match=r"'city'.* holds \(1, 2\) of type tuple"):
            regressor(categorical_features=["city"]).fit(frame, Y)

    def test_text_without_a_word_about_it(self) -> None:
        frame = pandas_frame().astype({"city": str})
        with pytest.raises(InputError, match="could not convert string to float"):
            regressor().fit(frame, Y)
        two = frame.assign(kind=pd.Categorical(["a"] * SIZE))
        with pytest.raises(InputError, match=r"'city' of X is not numeric.*categorical_features"):
            regressor().fit(two, Y)

    @pytest.mark.parametrize(
        ("wanted", "match"),
        [
            (["town"], r"names 'town', but its columns are width, height, city"),
            ([3], "holds column 3, but X has 3 columns"),
            ([-1], "holds column -1"),
            ([1.5], r"holds 1\.5"),
            ([True], "holds True"),
            ("city", "categorical_features is 'city'"),
            (2, "is 2; pass 'from_dtype'"),
        ],
    )
    def test_wrong_lists(self, wanted: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            regressor(categorical_features=wanted).fit(pandas_frame(), Y)

    def test_names_need_a_frame(self) -> None:
        with pytest.raises(InputError, match="'city', but X has no column names"):
            regressor(categorical_features=["city"]).fit(coded_array(), Y)

    def test_only_categories(self) -> None:
        frame = pandas_frame()[["city"]]
        model = regressor().fit(frame, EFFECT[CODES] + 0.01 * Y)
        found = [model.predict(frame[CODES == code]).mean() for code in range(4)]
        assert np.abs(np.array(found) - EFFECT).max() < 0.1

    def test_the_table_names_the_columns(self, fitted: GPRegressor) -> None:
        rows = fitted.summary().hyperparameters
        by_column = {(row.column, row.unit) for row in rows if "lengthscale" in row.name}
        assert {("width", "X"), ("height", "X")} <= by_column

    def test_kernel_objects_see_codes(self) -> None:
        kernel = gpytorch.kernels.ProductKernel(
            gpytorch.kernels.RBFKernel(active_dims=(0, 1)), HammingKernel(active_dims=(2,))
        )
        model = regressor(kernel=kernel, categorical_features=[2]).fit(coded_array(), Y)
        assert model.score(coded_array(), Y) > 0.95
        assert model._model.x_map.scale[2] == 1.0 and model._model.x_map.offset[2] == 0.0

    @pytest.mark.parametrize("approximation", ["exact", "inducing"])
    def test_with_the_other_estimators(self, approximation: str) -> None:
        options = {"approximation": approximation, "num_inducing": 20, "random_state": 0}
        labels = np.where(Y > 0, "warm", "cold")
        classifier = GPClassifier(max_iter=10, **options).fit(pandas_frame(), labels)
        assert classifier.score(pandas_frame(), labels) > 0.95
        counts = np.round(np.exp(Y / 2 + 1))
        counter = GPCountRegressor(max_iter=10, **options).fit(polars_frame(), counts)
        assert counter.score(polars_frame(), counts) > 0.8


class TestFarRows:
    def test_what_counts_as_far(self) -> None:
        X = np.linspace(10.0, 20.0, 30)[:, None]
        model = regressor(max_iter=5).fit(X, np.sin(X[:, 0]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict(np.array([[0.5], [29.5]]))
        with pytest.warns(ExtrapolationWarning) as caught:
            model.predict(np.array([[15.0], [31.0], [-3.0]]))
        (warning,) = caught
        text = str(warning.message)
        assert "2 of 3 rows" in text and "row 1 with 31 in column '0'" in text
        assert "[10, 20]" in text and warning.filename == __file__

    @pytest.mark.parametrize("value", [0.0, 0.1, -7e11])
    def test_constant_columns(self, value: float) -> None:
        X = np.column_stack([NUMBERS, np.full(SIZE, value)])
        model = regressor(max_iter=3).fit(X, Y)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict(X)
        X[4, 2] = value + 1e-3 + abs(value)
        with pytest.warns(ExtrapolationWarning, match="1 of 60 rows.* row 4"):
            model.predict(X)

    def test_the_range_is_that_of_the_rows_that_were_fitted(self) -> None:
        X = np.vstack([NUMBERS, [[50.0, 0.0]]])
        weights = np.append(np.ones(SIZE), 0.0)
        model = regressor(max_iter=3).fit(X, np.append(Y, 0.0), weights)
        with pytest.warns(ExtrapolationWarning, match="row 60"):
            model.predict(X)

    def test_fixed_far_from_the_data_changes_nothing_about_the_warning(self) -> None:
        model = regressor(hyperparameters={"lengthscale": Fixed(1e6)}, max_iter=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(NUMBERS, Y)
        with pytest.warns(ExtrapolationWarning):
            model.predict(NUMBERS * 10)
