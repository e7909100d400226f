"""Fixed values, starting values, bounds and priors by name, in the units of the data."""

import warnings
from copy import deepcopy
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior

from gpvi.estimators import Fixed, Free, GPClassifier, GPCountRegressor, GPRegressor
from gpvi.exceptions import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

GENERATOR = np.random.default_rng(0)
SCALES = np.array([0.01, 50.0])
X = GENERATOR.uniform(-2, 2, size=(50, 2)) * SCALES + [3.0, -400.0]
F = np.sin(2 * (X[:, 0] - 3.0) / 0.01) + 0.5 * (X[:, 1] + 400) / 50
Y = 1e4 + 300 * (F + 0.1 * GENERATOR.normal(size=50))


def regressor(**options: Any) -> GPRegressor:
    return GPRegressor(**{"random_state": 0, "max_iter": 60, **options})


def values(model: Any) -> dict[str, Any]:
    """Table of a summary: last part of the name to its value, or values per column."""
    found: dict[str, list[float]] = {}
    for row in model.summary().hyperparameters:
        found.setdefault(row.name.split(".")[-1], []).append(row.value)
    return {name: value[0] if len(value) == 1 else np.array(value) for name, value in found.items()}


def status(model: Any, name: str) -> set[str]:
    rows = model.summary().hyperparameters
    return {row.status for row in rows if row.name.split(".")[-1].split("[")[0] == name}


@pytest.fixture(scope="module")
def plain() -> GPRegressor:
    return regressor().fit(X, Y)


class TestFixed:
    def test_stays_fixed_in_data_units(self, plain: GPRegressor) -> None:
        model = regressor(
            hyperparameters={"noise": Fixed(2500.0), "lengthscale": Fixed([0.02, 80])}
        )
        model.fit(X, Y)
        table = values(model)
        assert table["noise"] == pytest.approx(2500.0, rel=1e-12)
        assert np.allclose(table["lengthscale"], [0.02, 80.0], rtol=1e-12)
        assert status(model, "noise") == status(model, "lengthscale") == {"fixed"}
        assert status(model, "outputscale") == {"learned"}
        assert model.elbo_ < plain.elbo_

    def test_bit_for_bit_from_start_to_end(self) -> None:
        options = {"hyperparameters": {"noise": Fixed(1234.5), "mean.constant": Fixed(9e3)}}
        start = regressor(optimizer=None, **options).fit(X, Y)
        end = regressor(num_restarts=1, max_iter=10, **options).fit(X, Y)
        for name in ("noise", "constant"):
            assert values(start)[name] == values(end)[name]
        assert torch.equal(start.likelihood_.noise, end.likelihood_.noise)

    def test_one_number_for_all_columns(self) -> None:
        model = regressor(hyperparameters={"lengthscale": Fixed(3.0)}, max_iter=2).fit(X, Y)
        assert np.allclose(values(model)["lengthscale"], [3.0, 3.0], rtol=1e-12)

    @pytest.mark.parametrize(
        "name", ["lengthscale", "kernel.base_kernel.lengthscale", "matern.lengthscale"]
    )
    def test_names(self, name: str) -> None:
        model = regressor(hyperparameters={name: Fixed([0.5, 7.0])}, optimizer=None).fit(X, Y)
        assert np.allclose(values(model)["lengthscale"], [0.5, 7.0])

    def test_one_name_for_several_parts(self) -> None:
        specs = {"lengthscale": Fixed(1.0), "rbf.lengthscale": Fixed(2.0)}
        model = regressor(kernel="rbf + matern12", hyperparameters=specs, optimizer=None)
        rows = model.fit(X, Y).summary().hyperparameters
        found = {row.name: row.value for row in rows if row.name.endswith("lengthscale")}
        assert sorted(found.values()) == pytest.approx([1.0, 2.0])

    def test_fixing_everything(self) -> None:
        names = ("noise", "outputscale", "lengthscale", "constant")
        specs = {name: Fixed(values(regressor(optimizer=None).fit(X, Y))[name]) for name in names}
        model = regressor(hyperparameters=specs).fit(X, Y)
        start = regressor(hyperparameters=specs, optimizer=None).fit(X, Y)
        assert model.elbo_ == pytest.approx(start.elbo_, rel=1e-12)
        assert {row.status for row in model.summary().hyperparameters} == {"fixed"}

    def test_with_the_other_estimators(self) -> None:
        specs = {"lengthscale": Fixed([0.03, 60.0]), "outputscale": Fixed(2.0)}
        for cls, y in ((GPClassifier, F > 0), (GPCountRegressor, np.round(np.exp(F)))):
            model = cls(hyperparameters=specs, max_iter=3, random_state=0).fit(X, y)
            assert np.allclose(values(model)["lengthscale"], [0.03, 60.0], rtol=1e-12)
            assert values(model)["outputscale"] == pytest.approx(2.0, rel=1e-12)

    def test_float32(self) -> None:
        model = regressor(hyperparameters={"noise": Fixed(2500.0)}, dtype="float32", max_iter=5)
        assert values(model.fit(X, Y))["noise"] == pytest.approx(2500.0, rel=1e-5)


class TestFree:
    def test_starting_values(self) -> None:
        specs = {"noise": Free(initial=400.0), "lengthscale": Free(initial=[0.004, 99.0])}
        model = regressor(hyperparameters=specs, optimizer=None).fit(X, Y)
        assert values(model)["noise"] == pytest.approx(400.0, rel=1e-9)
        assert np.allclose(values(model)["lengthscale"], [0.004, 99.0])
        assert status(model, "noise") == {"learned"}

    def test_bounds_hold_at_the_optimum(self, plain: GPRegressor) -> None:
        learned = values(plain)
        for name, bounds in (
            ("noise", (4 * learned["noise"], None)),
            ("noise", (None, 0.25 * learned["noise"])),
            ("noise", (1e3, 2e3)),
            ("lengthscale", (None, 0.3 * float(learned["lengthscale"].min()))),
            ("constant", (None, float(learned["constant"]) - 100.0)),
        ):
            model = regressor(hyperparameters={name: Free(bounds=bounds)}, max_iter=200).fit(X, Y)
            found = np.atleast_1d(values(model)[name])
            low = -np.inf if bounds[0] is None else bounds[0]
            high = np.inf if bounds[1] is None else bounds[1]
            assert ((low <= found) & (found <= high)).all()
            assert model.elbo_ <= plain.elbo_ + 1e-3

    def test_an_optimum_inside_the_bounds_is_found(self, plain: GPRegressor) -> None:
        learned = values(plain)
        bounds = (0.1 * learned["noise"], 10 * learned["noise"])
        model = regressor(hyperparameters={"noise": Free(bounds=bounds)}, max_iter=200).fit(X, Y)
        assert model.elbo_ == pytest.approx(plain.elbo_, abs=0.02)
        assert values(model)["noise"] == pytest.approx(learned["noise"], rel=0.1)

    def test_start_and_bounds_together(self) -> None:
        spec = Free(initial=1500.0, bounds=(1e3, 2e3))
        model = regressor(hyperparameters={"noise": spec}, optimizer=None).fit(X, Y)
        assert values(model)["noise"] == pytest.approx(1500.0, rel=1e-6)
        with pytest.raises(InputError, match=r"3000.*\(1000, 2000\) in the units of the data"):
            spec = Free(initial=3000.0, bounds=(1e3, 2e3))
            regressor(hyperparameters={"noise": spec}).fit(X, Y)

    def test_restarts_stay_inside_bounds(self) -> None:
        spec = Free(bounds=(1e3, 2e3))
        model = regressor(hyperparameters={"noise": spec}, num_restarts=3, max_iter=5).fit(X, Y)
        assert 1e3 <= values(model)["noise"] <= 2e3


class TestPriors:
    def test_a_strong_prior_moves_the_optimum(self, plain: GPRegressor) -> None:
        target = 9.0 * values(plain)["noise"]
        prior = LogNormalPrior(np.log(target), 0.01)
        model = regressor(hyperparameters={"noise": prior}, max_iter=200).fit(X, Y)
        assert values(model)["noise"] == pytest.approx(target, rel=0.1)
        assert status(model, "noise") == {"learned, with a prior"}
        weak = LogNormalPrior(np.log(target), 30.0)
        model = regressor(hyperparameters={"noise": Free(prior=weak)}, max_iter=200).fit(X, Y)
        assert values(model)["noise"] == pytest.approx(values(plain)["noise"], rel=0.2)

    def test_priors_on_a_mean_are_about_data_units(self, plain: GPRegressor) -> None:
        prior = NormalPrior(8_000.0, 1.0)
        model = regressor(hyperparameters={"constant": prior}, max_iter=200).fit(X, Y)
        assert values(model)["constant"] == pytest.approx(8_000.0, abs=5.0)

    def test_units_do_not_matter(self) -> None:
        """The same data in other units, with the prior in those units, give the same optimum."""
        first = regressor(hyperparameters={"noise": LogNormalPrior(np.log(2e3), 0.3)}).fit(X, Y)
        prior = LogNormalPrior(np.log(2e3 / 100**2), 0.3)
        second = regressor(hyperparameters={"noise": prior}).fit(X * 1e6, Y / 100)
        assert values(second)["noise"] * 1e4 == pytest.approx(values(first)["noise"], rel=1e-3)

    def test_elbo_does_not_count_the_prior(self, plain: GPRegressor) -> None:
        prior = GammaPrior(1.0, 1e-9)
        model = regressor(hyperparameters={"outputscale": prior}).fit(X, Y)
        assert model.elbo_ == pytest.approx(plain.elbo_, abs=0.05)

    def test_dimension_scaled(self) -> None:
        model = regressor(hyperparameters={"lengthscale": "dimension_scaled"}, optimizer=None)
        ranges = np.ptp(X, axis=0)
        mode = np.exp(np.sqrt(2) + 0.5 * np.log(2) - 3.0)
        assert np.allclose(values(model.fit(X, Y))["lengthscale"], mode * ranges, rtol=1e-9)
        assert status(model, "lengthscale") == {"learned, with a prior"}
        same = regressor(hyperparameters={"lengthscale": Free(prior="dimension_scaled")})
        assert np.isfinite(same.fit(X, Y).elbo_) and same.score(X, Y) > 0.9

    def test_dimension_scaled_tames_many_columns(self) -> None:
        wide = np.column_stack([X, np.random.default_rng(1).normal(size=(50, 20))])
        spec = {"lengthscale": "dimension_scaled"}
        model = regressor(hyperparameters=spec, max_iter=15).fit(wide, Y)
        ratio = values(model)["lengthscale"] / np.ptp(wide, axis=0)
        assert (ratio > 0.05).all() and (ratio < 1e4).all()

    def test_dimension_scaled_with_a_constant_column(self) -> None:
        wide = np.column_stack([X, np.full(50, 5.0)])
        spec = {"lengthscale": "dimension_scaled"}
        model = regressor(hyperparameters=spec, max_iter=3).fit(wide, Y)
        assert np.isfinite(values(model)["lengthscale"]).all()

    def test_priors_of_a_kernel_object_stay(self) -> None:
        kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=LogNormalPrior(np.log(0.5), 0.02))
        model = regressor(kernel=kernel, standardize=False, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit((X - X.mean(0)) / X.std(0), (Y - Y.mean()) / Y.std())
        assert values(model)["lengthscale"] == pytest.approx(0.5, abs=0.05)

    def test_given_priors_are_not_touched(self) -> None:
        prior = GammaPrior(2.0, 0.01)
        before = deepcopy(prior.state_dict())
        regressor(hyperparameters={"noise": prior}, max_iter=2).fit(X, Y)
        assert all(torch.equal(value, before[key]) for key, value in prior.state_dict().items())


class TestRefusals:
    @pytest.mark.parametrize(
        ("specs", "match"),
        [
            ({"lengthscales": Fixed(1.0)}, r"names 'lengthscales'.*lengthscale, noise"),
            ({"noise": 0.1}, r"hyperparameters\['noise'\] is 0\.1; pass Fixed\(value\)"),
            ({"noise": Fixed(-1.0)}, r"-1\.0 for hyperparameters\['noise'\] lies outside"),
            ({"noise": Fixed(0.0)}, r"0\.0 for hyperparameters\['noise'\] lies outside"),
            ({"noise": Fixed(float("nan"))}, r"nan for hyperparameters\['noise'\] is not finite"),
            ({"noise": Fixed("small")}, r"'small' for hyperparameters\['noise'\] does not fit"),
            ({"noise": Fixed(None)}, r"None for hyperparameters\['noise'\]"),
            ({"lengthscale": Fixed([1.0, 2.0, 3.0])}, r"does not fit .*lengthscale of shape"),
            ({"noise": Free(initial=-2.0)}, r"-2\.0 for hyperparameters\['noise'\]"),
            ({"noise": Free(bounds=(2.0, 1.0))}, r"bounds of .*'noise'.* the lower one"),
            ({"noise": Free(bounds=(-2.0, -1.0))}, r"leave nothing of the range"),
            ({"noise": Free(bounds=(1.0,))}, r"pass \(low, high\)"),
            ({"noise": Free(bounds=1.0)}, r"pass \(low, high\)"),
            ({"noise": Free(bounds=("a", "b"))}, r"pass \(low, high\)"),
            ({"noise": Free(prior="normal")}, r"'normal'; the only one with a name"),
            ({"noise": Free(prior=3.0)}, r"is 3\.0; pass a gpytorch prior"),
            ({"noise": "dimension_scaled"}, r"is a prior of lengthscales"),
            ({3: Fixed(1.0)}, r"has the key 3"),
            ("noise", r"hyperparameters is 'noise'; pass a dict"),
        ],
    )
    def test_sentences(self, specs: Any, match: str) -> None:
        model = regressor(hyperparameters=specs)
        with pytest.raises(InputError, match=match) as caught:
            model.fit(X, Y)
        assert "\n" not in str(caught.value)
        assert set(vars(model)) == set(model.get_params())

    def test_unknown_names_list_the_known_ones(self) -> None:
        with pytest.raises(InputError) as caught:
            GPClassifier(hyperparameters={"noise": Fixed(1.0)}).fit(X, F > 0)
        text = str(caught.value)
        for name in ("outputscale", "kernel.base_kernel.lengthscale", "mean.constant"):
            assert name in text

    def test_an_empty_dict_and_none_are_the_same(self, plain: GPRegressor) -> None:
        assert regressor(hyperparameters={}).fit(X, Y).elbo_ == plain.elbo_
