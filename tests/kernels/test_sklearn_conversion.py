"""Kernels of scikit-learn against their conversions."""

import inspect
import pickle

import numpy as np
import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.kernels import AdditiveKernel, ScaleKernel
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as sk

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import PowerKernel, WhiteKernel, from_sklearn, stationary_form

D = 3
UNSUPPORTED_CLASSES = {sk.CompoundKernel, sk.PairwiseKernel}

KERNELS = [
    sk.ConstantKernel(2.5),
    sk.WhiteKernel(0.3),
    sk.RBF(0.7),
    sk.RBF([0.5, 1.0, 2.0]),
    sk.RBF(np.array([0.7])),
    *(sk.Matern(0.8, nu=nu) for nu in (0.5, 1.5, 2.5, np.inf)),
    *(sk.Matern([0.5, 1.0, 2.0], nu=nu) for nu in (0.5, 1.5, 2.5, np.inf)),
    sk.RationalQuadratic(0.8, 1.7),
    sk.DotProduct(0.6),
    sk.DotProduct(0.0, "fixed"),
    sk.RBF(0.7) + sk.WhiteKernel(0.1),
    sk.RBF(0.7) + sk.DotProduct(0.6) + sk.ConstantKernel(0.2),
    2.0 * sk.RBF(0.7),
    sk.RBF(0.7) * 2.0,
    2.0 * sk.RBF(0.7) * 3.0,
    sk.ConstantKernel(2.0) * sk.ConstantKernel(3.0),
    2.0 * sk.RBF(0.7) * sk.DotProduct(0.4),
    2.0 * (sk.RBF(0.7) + 3.0 * sk.Matern(1.2)),
    sk.RBF(0.7) * sk.WhiteKernel(0.4),
    sk.RBF(0.7) ** 3,
    sk.DotProduct(0.5) ** 2,
    sk.Matern(1.2) ** 1,
    (1.5 * sk.RBF(0.7) + sk.WhiteKernel(0.1)) ** 2.0,
    sk.ConstantKernel(0.0, "fixed") * sk.RBF(1.0),
    sk.RBF(1.0, (1e-3, np.inf)),
    sk.RBF(1.0, (0.0, np.inf)),
    sk.RBF(1.0, (0.0, 10.0)),
    sk.RBF([1.0, 2.0, 3.0], [(0.1, 10.0), (0.2, 20.0), (0.3, 30.0)]),
    sk.RBF([1.0, 2.0, 3.0], [(0.1, np.inf), (0.2, np.inf), (0.3, np.inf)]),
]


def data(columns: int = D) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    return generator.normal(size=(15, columns)), generator.normal(size=(6, columns))


def matrices(kernel, x1: np.ndarray, x2: np.ndarray) -> list[np.ndarray]:
    left, right = torch.from_numpy(x1), torch.from_numpy(x2)
    with torch.no_grad():
        values = (
            kernel(left).to_dense(),
            kernel(left, right).to_dense(),
            kernel(left, diag=True),
        )
    return [value.numpy() for value in values]


def assert_equal_covariances(source, kernel, columns: int = D, rtol: float = 1e-10) -> None:
    x1, x2 = data(columns)
    expected = [source(x1), source(x1, x2), source.diag(x1)]
    for actual, wanted in zip(matrices(kernel, x1, x2), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=1e-13)


@pytest.mark.parametrize("source", KERNELS, ids=repr)
def test_covariances_are_equal(source):
    assert_equal_covariances(source, from_sklearn(source, D))


@pytest.mark.parametrize(
    "source",
    [
        sk.ExpSineSquared(0.7, 1.3),
        2.0 * sk.ExpSineSquared(1.5, 0.4) * sk.RBF(2.0) + sk.WhiteKernel(0.1),
        sk.ExpSineSquared(0.7, 1.3) ** 2,
    ],
    ids=repr,
)
def test_covariances_of_periodic_kernels_are_equal(source):
    assert_equal_covariances(source, from_sklearn(source, 1), columns=1)


def test_every_class_of_scikit_learn_is_converted_or_refused():
    def leaves(kernel):
        yield type(kernel)
        for name in ("k1", "k2", "kernel"):
            if hasattr(kernel, name):
                yield from leaves(getattr(kernel, name))

    abstract = {sk.Kernel, sk.KernelOperator}
    public = {
        value
        for _, value in inspect.getmembers(sk, inspect.isclass)
        if issubclass(value, sk.Kernel) and value not in abstract
    }
    converted = {cls for source in KERNELS for cls in leaves(source)} | {sk.ExpSineSquared}
    assert converted | UNSUPPORTED_CLASSES == public
    assert not converted & UNSUPPORTED_CLASSES


class OwnRBF(sk.RBF):
    """A user's kernel, which may compute anything."""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (sk.PairwiseKernel(), "PairwiseKernel.*convertible are ConstantKernel"),
        (sk.CompoundKernel([sk.RBF()]), "CompoundKernel"),
        (OwnRBF(), "OwnRBF"),
        (2.0 * OwnRBF() + sk.RBF(), "OwnRBF"),
        (sk.Matern(nu=2.0), "nu=2.0"),
        (sk.ExpSineSquared(), "not positive definite"),
        (sk.RBF() ** 0.5, "0.5"),
        (sk.RBF() ** -1, "-1"),
        (sk.RBF() ** 0, "positive integer"),
        (sk.RBF([1.0, 1.0, 1.0], [(0.1, 1e3), (0.1, np.inf), (0.1, 1e3)]), "partly infinite"),
    ],
    ids=repr,
)
def test_kernels_without_a_counterpart_are_refused(source, message):
    with pytest.raises(UnsupportedError, match=message):
        from_sklearn(source, D)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (sk.RBF([1.0, 2.0]), "has 2 length scales, but there are 3"),
        (sk.Matern([1.0, 2.0]), "has 2 length scales, but there are 3"),
        (sk.RBF(1.0, (2.0, 3.0)), "outside its bounds"),
        (sk.RBF([1.0, 1.0, 5.0], (0.5, 3.0)), "outside its bounds"),
        (sk.ConstantKernel(-1.0, "fixed"), "finite and not negative"),
        (sk.WhiteKernel(np.nan), "finite and not negative"),
        (sk.RBF(0.0, "fixed"), "must be positive"),
    ],
)
def test_values_that_do_not_fit(source, message):
    with pytest.raises(InputError, match=message):
        from_sklearn(source, D)


def test_constant_factor_becomes_a_scale():
    for source in (2.0 * sk.Matern(0.7, nu=1.5), sk.Matern(0.7, nu=1.5) * 2.0):
        kernel = from_sklearn(source, D)
        assert type(kernel) is ScaleKernel
        form = stationary_form(kernel)
        assert form.name == "matern32"
        assert torch.allclose(form.outputscale, torch.tensor(2.0).double(), rtol=1e-12)


def test_sums_are_flat_and_white_noise_is_ours():
    kernel = from_sklearn(sk.RBF() + sk.Matern() + sk.WhiteKernel(), D)
    assert type(kernel) is AdditiveKernel and len(kernel.kernels) == 3
    assert type(kernel.kernels[2]) is WhiteKernel


def test_powers_hold_their_parameters_once():
    kernel = from_sklearn(sk.RBF() ** 4, D)
    assert type(kernel) is PowerKernel and len(list(kernel.parameters())) == 1


def test_fixed_hyperparameters_do_not_train():
    source = sk.ConstantKernel(2.0, "fixed") * sk.RationalQuadratic(
        0.8, 1.7, length_scale_bounds="fixed"
    ) + sk.WhiteKernel(0.1, "fixed")
    kernel = from_sklearn(source, D)
    trainable = [name for name, p in kernel.named_parameters() if p.requires_grad]
    assert trainable == ["kernels.0.base_kernel.raw_alpha"]
    assert_equal_covariances(source, kernel)


def test_slope_of_a_dot_product_is_no_parameter():
    linear, constant = from_sklearn(sk.DotProduct(2.0, (0.5, 3.0)), D).kernels
    assert not linear.raw_variance.requires_grad
    assert constant.raw_constant.requires_grad
    bounds = constant.raw_constant_constraint
    assert (bounds.lower_bound.item(), bounds.upper_bound.item()) == (0.25, 9.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_become_constraints_in_full_precision(dtype):
    kernel = from_sklearn(sk.RBF(0.7, (1e-5, 0.9)), D, dtype)
    constraint = kernel.raw_lengthscale_constraint
    assert type(constraint) is Interval
    assert torch.equal(constraint.lower_bound, torch.tensor(1e-5, dtype=dtype))
    assert torch.equal(constraint.upper_bound, torch.tensor(0.9, dtype=dtype))
    period = from_sklearn(sk.ExpSineSquared(0.7, 1.3, (0.1, 2.0), (0.2, 3.0)), 1, dtype)
    assert period.raw_lengthscale_constraint.upper_bound == 4.0
    assert period.raw_period_length_constraint.upper_bound == 3.0


def test_bounds_of_each_dimension():
    kernel = from_sklearn(sk.RBF([1.0, 2.0, 3.0], [(0.1, 10.0), (0.2, 20.0), (0.3, 30.0)]), D)
    constraint = kernel.raw_lengthscale_constraint
    assert constraint.lower_bound.tolist() == [0.1, 0.2, 0.3]
    with torch.no_grad():
        kernel.raw_lengthscale.fill_(-60.0)
    assert torch.allclose(kernel.lengthscale, constraint.lower_bound)
    equal = from_sklearn(sk.RBF([1.0, 2.0, 3.0], (0.1, 10.0)), D)
    assert equal.raw_lengthscale_constraint.lower_bound.shape == ()


def test_infinite_bounds():
    above = from_sklearn(sk.RBF(1.0, (1e-3, np.inf)), D).raw_lengthscale_constraint
    assert type(above) is GreaterThan and above.lower_bound == 1e-3
    free = from_sklearn(sk.RBF(1.0, (0.0, np.inf)), D).raw_lengthscale_constraint
    assert type(free) is Positive


@given(
    length=st.floats(1e-4, 1e4),
    level=st.floats(1e-4, 1e4),
    nu=st.sampled_from([0.5, 1.5, 2.5, np.inf]),
)
def test_any_hyperparameters_convert(length, level, nu):
    source = sk.ConstantKernel(level) * sk.Matern(length, nu=nu)
    kernel = from_sklearn(source, D)
    assert abs(kernel.outputscale.item() / level - 1) < 1e-11
    assert abs(kernel.base_kernel.lengthscale.item() / length - 1) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [(1e-5, 1e5), (0.0, 10.0)])
def test_hyperparameters_on_their_bounds_stay_trainable(bounds, dtype):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for value in bounds:
        kernel = from_sklearn(sk.ConstantKernel(value, bounds), D, dtype)
        assert torch.isfinite(kernel.raw_constant).all()
        assert abs(kernel.constant.item() - value) <= tolerance * (value or 1.0)
        assert bounds[0] <= kernel.constant.item() <= bounds[1]
        kernel.constant.sum().backward()
        assert kernel.raw_constant.grad > 0


@pytest.mark.filterwarnings("ignore:The optimal value found:sklearn.exceptions.ConvergenceWarning")
def test_kernel_fitted_by_scikit_learn():
    x, _ = data(1)
    y = np.sin(x[:, 0])
    source = 1.0 * sk.RBF(1.0, (0.1, 0.5)) + sk.WhiteKernel(1e-3)
    fitted = GaussianProcessRegressor(source, random_state=0).fit(x, y).kernel_
    assert_equal_covariances(fitted, from_sklearn(fitted, 1), columns=1, rtol=1e-8)


def test_the_source_is_left_alone():
    source = 2.0 * sk.RBF([0.5, 1.0, 2.0]) + sk.DotProduct(0.3)
    before = clone(source)
    from_sklearn(source, D).to(torch.float32)
    assert source == before


def test_white_noise_compares_rows_where_scikit_learn_compares_positions():
    x = np.zeros((2, D))
    source = sk.WhiteKernel(1.0)
    kernel = from_sklearn(source, D)
    assert np.array_equal(source(x), np.eye(2))
    np.testing.assert_allclose(matrices(kernel, x, x)[0], np.ones((2, 2)))


def test_batches_start_equal_and_train_apart():
    shape = torch.Size([2])
    source = 2.0 * sk.RBF([0.5, 1.0, 2.0]) + sk.DotProduct(0.3) + sk.WhiteKernel(0.1)
    kernel = from_sklearn(source, D, batch_shape=shape)
    assert kernel.batch_shape == shape
    assert all(p.shape[0] == 2 for p in kernel.parameters())
    for batch in range(2):
        assert_equal_covariances(source, kernel[batch])


def test_float32():
    source = 2.0 * sk.RBF([0.5, 1.0, 2.0]) + sk.DotProduct(0.3)
    kernel = from_sklearn(source, D, torch.float32)
    x, _ = data()
    covariance = kernel(torch.from_numpy(x).float()).to_dense()
    assert covariance.dtype == torch.float32
    np.testing.assert_allclose(covariance.detach().numpy(), source(x), rtol=1e-4, atol=1e-4)


def test_pickle_and_state_dict():
    source = 2.0 * sk.RBF([1.0, 2.0, 3.0], [(0.1, 10.0), (0.2, 20.0), (0.3, 30.0)])
    source = source + sk.DotProduct(0.3, "fixed") ** 2
    kernel = from_sklearn(source, D)
    loaded = from_sklearn(source.clone_with_theta(source.theta + 0.1), D)
    loaded.load_state_dict(kernel.state_dict())
    for copy in (pickle.loads(pickle.dumps(kernel)), loaded):
        assert_equal_covariances(source, copy)


def test_gradients_flow():
    kernel = from_sklearn(2.0 * sk.RBF(0.7) + sk.DotProduct(0.3) ** 2 + sk.WhiteKernel(0.1), D)
    kernel(torch.from_numpy(data()[0])).to_dense().sum().backward()
    for name, parameter in kernel.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
