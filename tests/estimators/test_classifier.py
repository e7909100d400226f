"""GPClassifier: labels of any type, probabilities, latent functions, leave-one-out."""

import warnings
from typing import Any

import gpytorch
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_iris

from gpvi.estimators import Fixed, GPClassifier, LeaveOneOutClasses
from gpvi.exceptions import ConvergenceWarning, InputError, UnsupportedError
from gpvi.likelihoods import BernoulliLikelihood

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

GENERATOR = np.random.default_rng(0)
X = GENERATOR.uniform(-2, 2, size=(60, 2))
F = 2 * np.sin(2 * X[:, 0]) + X[:, 1]
TWO = (F + 0.5 * GENERATOR.normal(size=60) > 0).astype(int)
THREE = np.digitize(F, [-0.7, 0.7])


def classifier(**options: Any) -> GPClassifier:
    return GPClassifier(**{"random_state": 0, "max_iter": 20, **options})


@pytest.fixture(scope="module")
def two() -> GPClassifier:
    return classifier().fit(X, TWO)


@pytest.fixture(scope="module")
def three() -> GPClassifier:
    return classifier(max_iter=10).fit(X, np.array(["low", "mid", "top"])[THREE])


class TestProbabilities:
    def test_rows_sum_to_one_and_agree(self, two: GPClassifier, three: GPClassifier) -> None:
        for model, size in ((two, 2), (three, 3)):
            probabilities = model.predict_proba(X)
            assert probabilities.shape == (60, size) and (probabilities > 0).all()
            assert np.allclose(probabilities.sum(1), 1.0, rtol=1e-12)
            logs = model.predict_log_proba(X)
            assert np.allclose(np.exp(logs), probabilities, rtol=1e-12)
            assert (model.predict(X) == model.classes_[probabilities.argmax(1)]).all()

    def test_decision_function(self, two: GPClassifier, three: GPClassifier) -> None:
        odds = two.decision_function(X)
        positive = two.predict_proba(X)[:, 1]
        assert odds.shape == (60,) and np.allclose(1 / (1 + np.exp(-odds)), positive, rtol=1e-5)
        assert (np.diff(odds[np.argsort(positive)]) >= -1e-9).all()
        assert ((odds > 0) == (two.predict(X) == two.classes_[1])).all()
        many = three.decision_function(X)
        assert many.shape == (60, 3)
        assert (three.classes_[many.argmax(1)] == three.predict(X)).all()

    def test_probit_in_closed_form(self, two: GPClassifier) -> None:
        mean, std = two.predict(X, latent=True, return_std=True)
        expected = scipy.stats.norm.cdf(mean / np.sqrt(1 + std**2))
        assert np.allclose(two.predict_proba(X)[:, 1], expected, rtol=1e-8)

    def test_logit_by_quadrature(self) -> None:
        model = classifier(likelihood="logit", max_iter=5).fit(X, TWO)
        mean, std = model.predict(X, latent=True, return_std=True)
        nodes, weights = np.polynomial.hermite_e.hermegauss(100)
        f = mean[:, None] + std[:, None] * nodes
        expected = ((1 / (1 + np.exp(-f))) * weights).sum(1) / weights.sum()
        assert np.allclose(model.predict_proba(X)[:, 1], expected, rtol=2e-4)

    def test_softmax_by_sampling(self, three: GPClassifier) -> None:
        mean, covariance = three.predict(X[:4], latent=True, return_cov=True)
        assert mean.shape == (4, 3) and covariance.shape == (3, 4, 4)
        std = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).T
        draws = mean + std * np.random.default_rng(0).normal(size=(100_000, 4, 3))
        draws = np.exp(draws - draws.max(-1, keepdims=True))
        expected = (draws / draws.sum(-1, keepdims=True)).mean(0)
        assert np.allclose(three.predict_proba(X[:4]), expected, atol=0.01)

    def test_small_probabilities_keep_their_digits(self) -> None:
        x = np.linspace(-3, 3, 80)[:, None]
        model = classifier(
            kernel="linear", likelihood="logit", optimizer=None,
            hyperparameters={"variance": Fixed(400.0)},
        ).fit(x, x[:, 0] > 0)  # fmt: skip
        logs = model.predict_log_proba(x)
        assert np.isfinite(logs).all() and logs[0, 1] < -4
        assert np.all(np.diff(logs[:, 1]) > 0)

    def test_calibration_on_new_rows(self, two: GPClassifier) -> None:
        new = np.random.default_rng(1).uniform(-2, 2, size=(2_000, 2))
        truth = scipy.stats.norm.cdf((2 * np.sin(2 * new[:, 0]) + new[:, 1]) / 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = two.predict_proba(new)[:, 1]
        assert np.abs(found - truth).mean() < 0.15

    def test_pieces_do_not_matter(self, two: GPClassifier, three: GPClassifier) -> None:
        for model in (two, three):
            for call in (model.predict_proba, model.predict_log_proba, model.decision_function):
                assert np.allclose(call(X, batch_size=7), call(X), rtol=1e-8)
            assert (model.predict(X, batch_size=7) == model.predict(X)).all()


class TestLabels:
    @pytest.mark.parametrize(
        "names",
        [
            np.array(["no", "yes"]),
            np.array([False, True]),
            np.array([-1, 1]),
            np.array([0.0, 7.0]),
            np.array([10**15, 10**15 + 1]),
            np.array(["a", "zz"], dtype=object),
        ],
        ids=str,
    )
    def test_of_any_type(self, two: GPClassifier, names: np.ndarray) -> None:
        model = classifier().fit(X, names[TWO])
        assert model.classes_.tolist() == names.tolist()
        assert (model.predict(X) == names[two.predict(X)]).all()
        assert np.array_equal(model.predict_proba(X), two.predict_proba(X))
        samples = model.sample_y(X, 4, random_state=0)
        assert samples.shape == (60, 4) and set(samples.ravel().tolist()) == set(names.tolist())

    def test_order_of_the_rows_does_not_matter(self, two: GPClassifier) -> None:
        order = np.random.default_rng(3).permutation(60)
        model = classifier().fit(X[order], TWO[order])
        assert np.allclose(model.predict_proba(X), two.predict_proba(X), atol=1e-3)

    def test_swapping_the_labels_mirrors_everything(self, two: GPClassifier) -> None:
        mirrored = classifier().fit(X, 1 - TWO)
        assert mirrored.elbo_ == pytest.approx(two.elbo_, abs=1e-3)
        assert np.allclose(mirrored.predict_proba(X)[:, 0], two.predict_proba(X)[:, 1], atol=1e-3)

    @pytest.mark.parametrize("classes", [4, 6])
    def test_many_classes(self, classes: int) -> None:
        centres = 4.0 * np.random.default_rng(0).normal(size=(classes, 2))
        labels = np.arange(72) % classes
        points = centres[labels] + 0.3 * np.random.default_rng(1).normal(size=(72, 2))
        model = classifier(max_iter=5).fit(points, labels)
        assert model.predict_proba(points).shape == (72, classes)
        assert model.score(points, labels) > 0.95
        assert model.decision_function(points).shape == (72, classes)

    def test_a_class_without_weight_is_no_class(self) -> None:
        weights = np.where(THREE == 2, 0.0, 1.0)
        model = classifier(max_iter=3).fit(X, THREE, weights)
        assert model.classes_.tolist() == [0, 1] and model.predict_proba(X).shape == (60, 2)

    def test_probabilities_of_labels(self, two: GPClassifier, three: GPClassifier) -> None:
        for model, codes in ((two, TWO), (three, THREE)):
            density = model.log_predictive_density(X, model.classes_[codes])
            logs = model.predict_log_proba(X)
            assert np.allclose(density, logs[np.arange(60), codes], atol=1e-3)
        gaps = TWO.astype(float)
        gaps[3] = np.nan
        density = two.log_predictive_density(X, gaps)
        assert np.flatnonzero(np.isnan(density)).tolist() == [3]

    def test_samples_follow_the_probabilities(self, two: GPClassifier, three: GPClassifier) -> None:
        for model in (two, three):
            samples = model.sample_y(X[:5], 20_000, random_state=0)
            frequency = (samples[..., None] == model.classes_).mean(1)
            assert np.allclose(frequency, model.predict_proba(X[:5]), atol=0.02)

    def test_iris(self) -> None:
        data, target = load_iris(return_X_y=True)
        model = classifier(max_iter=5).fit(data[::2], target[::2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert model.score(data[1::2], target[1::2]) > 0.93


class TestLikelihoods:
    def test_names(self) -> None:
        probit = classifier(max_iter=3).fit(X, TWO)
        assert isinstance(probit.likelihood_, BernoulliLikelihood)
        named = classifier(max_iter=3, likelihood="probit").fit(X, TWO)
        assert named.elbo_ == probit.elbo_
        given = classifier(max_iter=3, likelihood=BernoulliLikelihood()).fit(X, TWO)
        assert given.elbo_ == probit.elbo_
        foreign = classifier(max_iter=3, likelihood=gpytorch.likelihoods.BernoulliLikelihood())
        assert foreign.fit(X, TWO).elbo_ == pytest.approx(probit.elbo_, abs=1e-3)

    def test_softmax_of_two_classes(self, two: GPClassifier) -> None:
        model = classifier(likelihood="softmax", max_iter=10).fit(X, TWO)
        assert model.predict(X, latent=True).shape == (60, 2)
        assert np.abs(model.predict_proba(X) - two.predict_proba(X)).max() < 0.15

    def test_binary_likelihoods_need_two_classes(self) -> None:
        with pytest.raises(InputError, match=r"likelihood is 'probit'.*'softmax'"):
            classifier(likelihood="probit").fit(X, THREE)
        with pytest.raises(UnsupportedError, match="BernoulliLikelihood"):
            classifier(likelihood=BernoulliLikelihood()).fit(X, THREE)

    def test_latent_functions(self, two: GPClassifier, three: GPClassifier) -> None:
        for model in (two, three):
            mean, std = model.predict(X, latent=True, return_std=True)
            same, covariance = model.predict(X, latent=True, return_cov=True)
            assert np.array_equal(model.predict(X, latent=True), mean)
            assert np.allclose(same, mean, rtol=1e-6, atol=1e-9)
            diagonal = np.diagonal(covariance, axis1=-2, axis2=-1).T
            assert np.allclose(np.sqrt(diagonal), std, rtol=1e-4)
        assert two.predict(X, latent=True).shape == (60,)

    def test_latents_of_classes_share_hyperparameters(self, three: GPClassifier) -> None:
        names = [row.name for row in three.summary().hyperparameters]
        assert names.count("kernel.outputscale") == 1
        assert {f"mean.constant[{i}]" for i in range(3)} <= set(names)


class TestWeights:
    @pytest.mark.parametrize(
        "options",
        [{}, {"approximation": "inducing", "num_inducing": 15}, {"likelihood": "softmax"}],
        ids=["exact", "inducing", "softmax"],
    )
    def test_integer_weights_are_repeated_rows(self, options: dict[str, Any]) -> None:
        weights = np.random.default_rng(2).integers(0, 4, size=60)
        by_weight = classifier(max_iter=5, **options).fit(X, TWO, weights)
        repeated = classifier(max_iter=5, **options).fit(
            np.repeat(X, weights, axis=0), np.repeat(TWO, weights)
        )
        assert by_weight.elbo_ == pytest.approx(repeated.elbo_, rel=1e-6)
        probe = X[weights > 0]
        assert np.allclose(by_weight.predict_proba(probe), repeated.predict_proba(probe), atol=1e-5)


class TestLeaveOneOut:
    def test_against_refits(self) -> None:
        options = {
            "optimizer": None,
            "hyperparameters": {"lengthscale": Fixed(1.0), "outputscale": Fixed(2.0)},
            "mean": "zero",
        }
        model = classifier(**options).fit(X, TWO)
        found = model.leave_one_out()
        assert isinstance(found, LeaveOneOutClasses)
        assert np.allclose(found.probabilities.sum(1), 1.0)
        own = found.probabilities[np.arange(60), TWO]
        assert np.allclose(found.log_density, np.log(own))
        assert found.total_log_density == pytest.approx(found.log_density.sum())
        for row in range(0, 60, 6):
            rest = np.delete(np.arange(60), row)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                refit = classifier(**options).fit(X[rest], TWO[rest]).predict_proba(X[[row]])[0]
            assert np.allclose(found.probabilities[row], refit, atol=0.03)
        inside = model.predict_log_proba(X)[np.arange(60), TWO].sum()
        assert found.total_log_density < inside

    @pytest.mark.parametrize("approximation", ["exact", "inducing"])
    def test_many_classes(self, approximation: str) -> None:
        model = classifier(approximation=approximation, num_inducing=20, max_iter=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = model.fit(X, THREE).leave_one_out()
        assert found.probabilities.shape == (60, 3)
        assert np.mean(found.probabilities.argmax(1) == THREE) > 0.6


class TestInference:
    @pytest.mark.parametrize("inference", ["cvi", "ep", "laplace"])
    def test_rules_for_sites_fit_and_agree_roughly(self, inference: str, two: GPClassifier) -> None:
        model = classifier(inference=inference).fit(X, TWO)
        assert model.get_params()["inference"] == inference
        assert model.score(X, TWO) > 0.85
        difference = model.predict_proba(X)[:, 1] - two.predict_proba(X)[:, 1]
        assert np.abs(difference).max() < 0.25
        assert (inference == "cvi") == (np.abs(difference).max() < 1e-9)

    def test_what_does_not_go_together_is_refused(self) -> None:
        for options, error, message in (
            ({"inference": "mcmc"}, InputError, "inference is 'mcmc'"),
            ({"inference": "ep", "objective": "elbo"}, InputError, "do not go together"),
            (
                {"inference": "laplace", "approximation": "inducing"},
                UnsupportedError,
                "leaves part of f open",
            ),
            ({"inference": "ep", "batch_size": 10}, UnsupportedError, "batch_size=10"),
        ):
            with pytest.raises(error, match=message):
                classifier(**options).fit(X, TWO)
        with pytest.raises(UnsupportedError, match="couples 3 latent functions"):
            classifier(inference="ep").fit(X, THREE)
