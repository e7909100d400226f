"""Hyperparameters in the units of the data: the same model, whatever the units of X and y."""

from typing import Any

import gpytorch
import numpy as np
import pytest

from gpvi.approximations import GaussianProcess
from gpvi.estimators import Fixed, GPRegressor, Standardizer
from gpvi.estimators.units import Hyperparameter, list_hyperparameters
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import GaussianLikelihood, StudentTLikelihood

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

GENERATOR = np.random.default_rng(0)
X = GENERATOR.uniform(-2, 2, size=(50, 2))
Y = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] + 0.1 * GENERATOR.normal(size=50)
X_UNITS, Y_UNIT = np.array([1e-3, 40.0]), 250.0
KERNELS = [
    "matern52",
    "rbf + linear",
    "periodic * rbf",
    "rational_quadratic + constant",
    "linear * linear",
    "matern12 + white",
    "(rbf + linear) * matern32",
]

#: Power of the units of X (per column) and of y that a unit stands for.
POWERS = {"X": (1, 0), "1/X^2": (-2, 0), "y": (0, 1), "y^2": (0, 2), "y^2/X^2": (-2, 2), "": (0, 0)}


def parameters(kernel: Any, x_scale: np.ndarray, **options: Any) -> dict[str, Hyperparameter]:
    gp = GaussianProcess(parse_kernel(kernel, 2), gpytorch.means.ConstantMean())
    likelihood = options.pop("likelihood", GaussianLikelihood(noise=0.1))
    x_map = Standardizer(np.zeros(2), x_scale)
    y_map = Standardizer(np.asarray(7.0), np.asarray(3.0))
    return {p.path: p for p in list_hyperparameters(gp, likelihood, x_map, y_map, **options)}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_fit_in_other_units_has_the_same_parameters_in_those_units(kernel: str) -> None:
    """With standardisation the inner problem is the same, so values differ by units alone."""
    options = {"kernel": kernel, "max_iter": 3, "random_state": 0}
    plain = GPRegressor(**options).fit(X, Y).summary().hyperparameters
    other = GPRegressor(**options).fit(X * X_UNITS, Y * Y_UNIT).summary().hyperparameters
    assert len(plain) == len(other)
    for before, after in zip(plain, other, strict=True):
        assert (before.name, before.column, before.unit) == (after.name, after.column, after.unit)
        x_power, y_power = POWERS[before.unit]
        factor = Y_UNIT**y_power * (X_UNITS[int(before.column)] ** x_power if x_power else 1.0)
        assert after.value == pytest.approx(factor * before.value, rel=1e-3)


@pytest.mark.parametrize(
    ("kernel", "ard"),
    # One variance of a linear kernel for columns of different scales has no value in data units.
    [
        (kernel, ard)
        for kernel in KERNELS
        for ard in (True, False)
        if not (ard and "linear" in kernel)
    ],
)
def test_table_values_are_those_of_a_model_without_standardisation(kernel: str, ard: bool) -> None:
    """Read the table of a standardised fit, fix its values in a raw one: the same posterior."""
    x = X * (X_UNITS if ard else 30.0)
    y = Y * Y_UNIT
    options = {"kernel": kernel, "ard": ard, "random_state": 0}
    learned = GPRegressor(max_iter=3, **options).fit(x, y)
    table: dict[str, list[float]] = {}
    for row in learned.summary().hyperparameters:
        table.setdefault(row.name, []).append(row.value)
    specs = {name: Fixed(found[0] if len(found) == 1 else found) for name, found in table.items()}
    raw = GPRegressor(standardize=False, hyperparameters=specs, optimizer=None, **options).fit(x, y)
    if "linear" in kernel:
        # A linear kernel goes through the origin, which standardisation moves to the mean of X.
        x = x - x.mean(0)
        raw.fit(x, y)
        learned = GPRegressor(hyperparameters=specs, optimizer=None, **options).fit(x, y)
    assert raw.elbo_ == pytest.approx(learned.elbo_, abs=2e-3)
    expected = learned.predict(x, return_std=True)
    assert np.allclose(raw.predict(x, return_std=True), expected, rtol=1e-3, atol=1e-3 * y.std())


def test_units_of_a_product_of_sums() -> None:
    found = parameters("(rbf + linear) * matern32", np.array([2.0, 2.0]))
    amplitudes = [p for p in found.values() if p.unit.startswith("y^2") and "kernel" in p.path]
    assert len(amplitudes) == 2, "one amplitude for each term of the expanded sum"


def test_shared_parameters_have_no_unit_where_scales_differ() -> None:
    kernel = gpytorch.kernels.RBFKernel()
    apart = parameters(kernel, np.array([2.0, 5.0]))["kernel.lengthscale"]
    assert apart.unit == "" and apart.factor == 1.0
    alike = parameters(kernel, np.array([2.0, 2.0]))["kernel.lengthscale"]
    assert alike.unit == "X" and alike.factor == 2.0


def test_active_columns() -> None:
    kernel = gpytorch.kernels.RBFKernel(ard_num_dims=1, active_dims=(1,))
    found = parameters(kernel, np.array([2.0, 5.0]))["kernel.lengthscale"]
    assert found.columns == (1,) and found.factor == 5.0 and not found.is_per_column


def test_likelihoods_and_means() -> None:
    found = parameters("rbf", np.ones(2), likelihood=StudentTLikelihood(scale=0.5))
    assert found["likelihood.scale"].value == pytest.approx(1.5)
    assert found["likelihood.degrees_of_freedom"].unit == ""
    assert found["mean.constant"].value == pytest.approx(7.0)
    noise = parameters("rbf", np.ones(2))["likelihood.noise"]
    assert noise.value == pytest.approx(0.9) and noise.unit == "y^2"
    latent = parameters("rbf", np.ones(2), target="f")
    assert latent["mean.constant"].unit == "f" and latent["kernel.outputscale"].unit == "f^2"


@pytest.mark.parametrize("kernel", KERNELS)
def test_there_and_back(kernel: str) -> None:
    for parameter in parameters(kernel, np.array([2.0, 5.0])).values():
        module_value = getattr(parameter.module, parameter.name).detach().numpy()
        assert np.allclose(parameter.internal(parameter.value), module_value, rtol=1e-12)
        assert parameter.raw is not None
        assert parameter.path.endswith(parameter.name) and parameter.kind.endswith(parameter.name)
