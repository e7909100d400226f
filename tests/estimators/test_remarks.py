"""What estimators say of data and options that do not do what one may expect."""

import warnings

import gpytorch
import numpy as np
import pandas as pd
import pytest

from gpvi.approximations import InducingPoints
from gpvi.estimators import Fixed, Free, GPClassifier, GPCountRegressor, GPRegressor
from gpvi.exceptions import (
    ConvergenceWarning,
    DataWarning,
    InputError,
    JitterWarning,
    PriorCollapseWarning,
    UnsupportedError,
)
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
)

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, size=(40, 2))
Y = X[:, 0] + np.sin(2 * X[:, 1]) + 0.1 * RNG.normal(size=40)
LABELS = Y > 0


def softmax(classes):
    return gpytorch.likelihoods.SoftmaxLikelihood(
        num_features=classes, num_classes=classes, mixing_weights=False
    )


class TestScaleWithoutStandardising:
    @pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
    @pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e4, 1e12])
    def test_the_unit_of_y_changes_nothing(self, likelihood, scale):
        options = {"standardize": False, "likelihood": likelihood, "random_state": 0}
        plain = GPRegressor(**options).fit(X, Y)
        scaled = GPRegressor(**options).fit(X, scale * Y)
        assert scaled.elbo_ + 40 * np.log(scale) == pytest.approx(plain.elbo_, abs=1e-4)
        assert np.allclose(scaled.predict(X) / scale, plain.predict(X), atol=1e-3)

    def test_absurd_scales_are_refused(self):
        with pytest.raises(InputError, match=r"standard deviation of .*standardise"):
            GPRegressor(standardize=False).fit(X, 1e150 * Y)


class TestRemarks:
    def test_constant_targets(self):
        with pytest.warns((DataWarning, PriorCollapseWarning)) as caught:
            model = GPRegressor(random_state=0).fit(X, np.full(40, 3.0))
        assert any("y is constant (3)" in str(w.message) for w in caught)
        assert not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        assert np.allclose(model.predict(X), 3.0)

    def test_smooth_data_without_noise_are_no_failure(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            GPRegressor(random_state=0).fit(X, np.sin(X[:, 0]) + X[:, 1])

    def test_codes_taken_for_numbers(self):
        frame = pd.DataFrame({"a": X[:, 0], "c": pd.Categorical(np.where(LABELS, "u", "v"))})
        kernel = gpytorch.kernels.RBFKernel(ard_num_dims=2)
        with pytest.warns(DataWarning, match="categorical column 'c' for numbers"):
            GPRegressor(kernel, random_state=0).fit(frame, Y)

    def test_num_inducing_without_inducing_points(self):
        model = GPRegressor(num_inducing=5, random_state=0, max_iter=0).fit(X, Y)
        assert "num_inducing=5 is not used" in model.summary().reason

    def test_an_object_with_too_many_points(self):
        with pytest.warns(DataWarning, match="40 distinct rows"):
            GPRegressor(approximation=InducingPoints(100), random_state=0, max_iter=0).fit(X, Y)

    def test_summary_knows_the_jitter(self):
        x = np.linspace(0, 1, 200)[:, None]
        with pytest.warns(JitterWarning):
            model = GPRegressor("rbf", dtype="float32", random_state=0).fit(x, np.sin(x[:, 0]))
        assert model.summary().jitter > 0
        assert "jitter         none" not in str(model.summary())


class TestLikelihoodsOfAnotherKind:
    @pytest.mark.parametrize(
        ("estimator", "targets"),
        [
            (GPClassifier(likelihood=GaussianLikelihood()), LABELS),
            (GPClassifier(likelihood=PoissonLikelihood()), LABELS),
            (GPClassifier(likelihood=softmax(5)), LABELS),
            (GPClassifier(likelihood=BernoulliLikelihood()), np.digitize(Y, [-0.5, 0.5])),
            (GPCountRegressor(likelihood=GaussianLikelihood()), LABELS.astype(int)),
            (GPCountRegressor(likelihood=BernoulliLikelihood()), LABELS.astype(int)),
            (GPRegressor(likelihood=BernoulliLikelihood(), standardize=False), LABELS * 1.0),
            (GPRegressor(likelihood=softmax(2), standardize=False), LABELS * 1.0),
        ],
    )
    def test_refused_by_name(self, estimator, targets):
        name = type(estimator.likelihood).__name__
        with pytest.raises(UnsupportedError, match=name):
            estimator.fit(X, targets)


class TestOptionsThatDisagree:
    def test_restarts_of_fixed_starting_values(self):
        with pytest.raises(UnsupportedError, match="optimizer=None and num_restarts=2"):
            GPRegressor(optimizer=None, num_restarts=2).fit(X, Y)

    def test_a_parameter_named_twice(self):
        both = {"matern.lengthscale": Fixed(1.0), "base_kernel.lengthscale": Free(initial=3.0)}
        with pytest.raises(InputError, match="twice"):
            GPRegressor(hyperparameters=both).fit(X, Y)

    def test_the_longer_name_speaks(self):
        for order in (1, -1):
            entries = [("lengthscale", Free(initial=3.0)), ("matern.lengthscale", Fixed(1.0))]
            model = GPRegressor(hyperparameters=dict(entries[::order]), random_state=0).fit(X, Y)
            rows = [r for r in model.summary().hyperparameters if r.name.endswith("lengthscale")]
            assert all(r.status == "fixed" and r.value == pytest.approx(1.0) for r in rows)

    def test_bounds_per_column(self):
        bounds = ([0.5, 3.0], [0.6, 4.0])
        model = GPRegressor(random_state=0, hyperparameters={"lengthscale": Free(bounds=bounds)})
        rows = model.fit(X, Y).summary().hyperparameters
        values = [row.value for row in rows if row.name.endswith("lengthscale")]
        assert 0.5 <= values[0] <= 0.6 and 3.0 <= values[1] <= 4.0

    def test_bounds_open_for_some_columns(self):
        wrong = {"lengthscale": Free(bounds=([0.5, 0.5], [np.inf, 9.0]))}
        with pytest.raises(InputError, match="open for some columns"):
            GPRegressor(hyperparameters=wrong).fit(X, Y)

    def test_bounds_of_another_length(self):
        wrong = {"lengthscale": Free(bounds=([0.5, 3.0, 1.0], 9.0))}
        with pytest.raises(InputError, match="one per column"):
            GPRegressor(hyperparameters=wrong).fit(X, Y)

    def test_a_callback_stops_all_starts(self):
        seen = []

        def stop(record):
            seen.append(record.restart)
            return len(seen) >= 3

        GPRegressor(num_restarts=3, callbacks=[stop], random_state=0).fit(X, Y)
        assert set(seen) == {0}
