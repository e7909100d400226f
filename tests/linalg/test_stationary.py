"""The table of stationary kernels against GPyTorch, automatic slopes and compiled loops."""

from collections.abc import Callable

import gpytorch
import numpy as np
import pytest
import torch

from gpvi.exceptions import InputError
from gpvi.linalg.stationary import STATIONARY_KERNELS, stationary_slope, stationary_value

names = pytest.mark.parametrize("name", STATIONARY_KERNELS)


def distances(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.logspace(-8, 3, 400, dtype=dtype)


def gpytorch_kernel(name: str) -> gpytorch.kernels.Kernel:
    if name == "rbf":
        kernel = gpytorch.kernels.RBFKernel()
    else:
        kernel = gpytorch.kernels.MaternKernel(nu=int(name[-2:-1]) / 2)
    kernel.lengthscale = 1.0
    return kernel.double()


@names
def test_value_is_gpytorchs(name: str) -> None:
    r = torch.linspace(0.0, 6.0, 50, dtype=torch.float64)
    expected = gpytorch_kernel(name)(r[:, None], r.new_zeros(1, 1)).to_dense()[:, 0].detach()
    torch.testing.assert_close(stationary_value(name, r.square()), expected, atol=1e-7, rtol=1e-7)


@names
def test_slope_is_the_derivative(name: str) -> None:
    r2 = distances().requires_grad_()
    (derivative,) = torch.autograd.grad(stationary_value(name, r2).sum(), r2)
    torch.testing.assert_close(
        stationary_slope(name, r2.detach()), derivative, atol=1e-12, rtol=1e-7
    )


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_zero_distance(name: str, dtype: torch.dtype) -> None:
    zero = torch.zeros(2, 3, dtype=dtype)
    value, slope = stationary_value(name, zero), stationary_slope(name, zero)
    assert value.dtype == slope.dtype == dtype
    assert torch.equal(value, torch.ones_like(zero))
    limit = {"rbf": -1 / 2, "matern12": 0.0, "matern32": -3 / 2, "matern52": -5 / 6}[name]
    torch.testing.assert_close(slope, torch.full_like(zero, limit))


def test_matern12_slope_is_finite_for_nearly_coincident_inputs() -> None:
    slope = stationary_slope("matern12", torch.tensor([1e-300, 1e-25, 1e-19], dtype=torch.float64))
    assert torch.equal(slope[:2], torch.zeros(2, dtype=torch.float64))
    assert slope[2] < -1e8


@names
def test_compiled_rows_follow_the_table(name: str) -> None:
    from gpvi.linalg import _stationary_cpu as compiled

    r2 = torch.cat([torch.zeros(1, dtype=torch.float64), distances()])
    code = STATIONARY_KERNELS.index(name)
    row = r2.numpy().copy()
    compiled.values(code, 1.7, row)
    np.testing.assert_allclose(
        row, 1.7 * stationary_value(name, r2).numpy(), rtol=3e-14, atol=1e-290
    )
    slopes = np.full(r2.shape, 2.0)
    compiled.multiply_slopes(code, 1.7, r2.numpy(), slopes)
    np.testing.assert_allclose(
        slopes, 3.4 * stationary_slope(name, r2).numpy(), rtol=3e-14, atol=1e-290
    )


def test_compiled_table_is_complete() -> None:
    from gpvi.linalg import _stationary_cpu as compiled

    assert set(STATIONARY_KERNELS) <= set(compiled.__all__)


def test_compiled_distances_keep_the_digits_of_close_pairs() -> None:
    from gpvi.linalg._stationary_cpu import squared_distances

    generator = np.random.default_rng(0)
    others = 1e3 + generator.normal(size=(3, 17))
    point = others[:, 4] + 1e-7
    out = np.empty(17)
    squared_distances(point, others, out)
    np.testing.assert_allclose(out, ((others - point[:, None]) ** 2).sum(0), rtol=1e-14)


@pytest.mark.parametrize("function", [stationary_value, stationary_slope])
def test_unknown_name_lists_the_known_ones(
    function: Callable[[str, torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(InputError, match=r"'matern72'.*rbf, matern12"):
        function("matern72", torch.zeros(1))
