"""Starting lengthscales of composed kernels."""

import math
from copy import deepcopy

import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, LessThan, Positive
from gpytorch.kernels import (
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PiecewisePolynomialKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from hypothesis import given
from hypothesis import strategies as st

from gpvi.exceptions import InputError
from gpvi.kernels import KERNELS, PowerKernel, parse_kernel, set_lengthscales
from gpvi.kernels.initialization import set_trends

VALUES = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
SHARED = torch.tensor((0.25 + 4.0 + 64.0) / 3.0, dtype=torch.float64).sqrt()


def close(actual: torch.Tensor, expected) -> bool:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    return torch.allclose(actual, expected, rtol=1e-5 if actual.dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(
    "kind", [RBFKernel, MaternKernel, RQKernel, PiecewisePolynomialKernel], ids=lambda k: k.__name__
)
def test_per_dimension_and_shared_lengthscales(kind):
    separate, shared = kind(ard_num_dims=3).double(), kind().double()
    set_lengthscales(separate, VALUES)
    set_lengthscales(shared, VALUES)
    assert close(separate.lengthscale, VALUES.view(1, 3))
    assert close(shared.lengthscale, SHARED.view(1, 1))


def test_active_dims_inside_a_composition():
    kernel = (
        ScaleKernel(RBFKernel(ard_num_dims=2, active_dims=(2, 0)))
        + PowerKernel(MaternKernel(active_dims=(0, 1)), 2)
        + LinearKernel()
    ).double()
    before = kernel.kernels[0].outputscale.clone(), kernel.kernels[2].variance.clone()
    set_lengthscales(kernel, VALUES)
    assert close(kernel.kernels[0].base_kernel.lengthscale, [[8.0, 0.5]])
    assert close(kernel.kernels[1].base_kernel.lengthscale, [[math.sqrt(4.25 / 2.0)]])
    assert torch.equal(kernel.kernels[0].outputscale, before[0])
    assert torch.equal(kernel.kernels[2].variance, before[1])


def test_fixed_lengthscales_stay():
    kernel = RBFKernel(ard_num_dims=3).double()
    kernel.raw_lengthscale.requires_grad_(False)
    before = kernel.lengthscale.clone()
    set_lengthscales(kernel, VALUES)
    assert torch.equal(kernel.lengthscale, before)


@pytest.mark.parametrize("ard", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_periodic_kernel_starts_with_the_curvature_of_an_rbf(ard, fixed):
    periodic = PeriodicKernel(ard_num_dims=3) if ard else PeriodicKernel()
    periodic = periodic.double()
    if fixed:
        periodic.lengthscale = 0.25
        periodic.raw_lengthscale.requires_grad_(False)
    rbf = RBFKernel(ard_num_dims=3 if ard else None).double()
    set_lengthscales(periodic, VALUES)
    set_lengthscales(rbf, VALUES)
    roughness = 0.25 if fixed else 1.0
    assert close(periodic.lengthscale, torch.full_like(periodic.lengthscale, roughness))
    expected = 2 * math.pi * (VALUES if ard else SHARED) / math.sqrt(roughness)
    assert close(periodic.period_length, expected.expand_as(periodic.period_length))
    x = 1e-2 * torch.tensor([[0.0, 0.0, 0.0], [0.3, -1.0, 1.0]], dtype=torch.float64)
    drop = [1 - kernel(x).to_dense()[0, 1] for kernel in (periodic, rbf)]
    assert torch.allclose(drop[0], drop[1], rtol=1e-3)


@pytest.mark.parametrize(
    "constraint",
    [
        Positive(),
        GreaterThan(1.0),
        LessThan(1.0),
        Interval(1e-5, 1e5),
        Interval(0.0, 1.0),
        Interval(1.0, 1.0001),
        Interval(3.0, 4.0, transform=None),
    ],
    ids=repr,
)
@given(value=st.floats(1e-6, 1e6), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_any_value_ends_inside_the_constraint(constraint, value, dtype):
    kernel = RBFKernel(lengthscale_constraint=deepcopy(constraint)).to(dtype)
    set_lengthscales(kernel, torch.tensor([value], dtype=torch.float64))
    result = kernel.lengthscale
    assert torch.isfinite(kernel.raw_lengthscale).all()
    assert constraint.lower_bound <= result <= constraint.upper_bound
    if constraint.lower_bound * 1.01 < value < constraint.upper_bound * 0.99:
        assert math.isclose(result.item(), value, rel_tol=1e-4, abs_tol=1e-6)


def test_value_beyond_a_bound_keeps_a_gradient():
    kernel = RBFKernel(lengthscale_constraint=Interval(0.1, 10.0)).double()
    set_lengthscales(kernel, torch.tensor([1e6]))
    kernel.lengthscale.sum().backward()
    assert 9.9 < kernel.lengthscale < 10.0
    assert kernel.raw_lengthscale.grad > 1e-3


def test_batches_of_kernels():
    shape = torch.Size([2])
    kernel = RBFKernel(ard_num_dims=3, batch_shape=shape).double()
    set_lengthscales(kernel, VALUES)
    assert close(kernel.lengthscale, VALUES.expand(2, 1, 3))
    separate = torch.stack([VALUES, 2 * VALUES])
    set_lengthscales(kernel, separate)
    assert close(kernel.lengthscale, separate.unsqueeze(1))
    periodic = PeriodicKernel(batch_shape=shape).double()
    set_lengthscales(periodic, separate)
    assert close(
        periodic.period_length,
        2 * math.pi * torch.stack([SHARED, 2 * SHARED]).view(2, 1, 1),
    )


@pytest.mark.parametrize("name", [name for name, e in KERNELS.items() if not e.one_column])
def test_every_short_name_can_be_initialised(name):
    kernel = parse_kernel(name, 3)
    set_lengthscales(kernel, VALUES)
    covariance = kernel(torch.eye(3).double()).to_dense()
    assert torch.isfinite(covariance).all()


@pytest.mark.parametrize(
    "name", ["trend", "season(3)", "quasi_season(3, learn=True)", "cosine(3)", "hida(1)"]
)
def test_kernels_of_time_can_be_initialised(name):
    kernel = parse_kernel(name, 1)
    set_lengthscales(kernel, VALUES[:1])
    covariance = kernel(torch.arange(3.0).double().unsqueeze(-1)).to_dense()
    assert torch.isfinite(covariance).all()


def test_frequency_starts_at_one_period_in_a_lengthscale():
    kernel = parse_kernel("hida(1)", 1)
    set_lengthscales(kernel, torch.tensor([5.0]))
    assert close(kernel.base_kernel.frequency, 2 * math.pi / 5.0)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_trends_fit_the_interval_and_the_targets(order):
    """Level, slope and bend alike vary over the interval as the targets do."""
    kernel = parse_kernel(f"linear + trend({order})", 1)
    set_trends(kernel, 100.0, 140.0, scale=3.0)
    trend = kernel.kernels[1]
    assert trend.origin == 60.0
    assert trend.initial_variances[0] == 9.0
    for i, variance in enumerate(trend.initial_variances):
        assert variance * 40.0 ** (2 * i) / math.factorial(i) ** 2 == pytest.approx(9.0)
    assert trend.variance.item() * 40.0 ** (2 * order + 1) == pytest.approx(9.0)
    trend.raw_variance.requires_grad_(False)
    set_trends(kernel, 0.0, 0.0, scale=1.0)
    assert trend.variance.item() * 40.0 ** (2 * order + 1) == pytest.approx(9.0)
    assert trend.origin == -1.0


def test_writing_bumps_the_parameter_version():
    kernel = RBFKernel()
    before = kernel.raw_lengthscale._version
    set_lengthscales(kernel, torch.tensor([2.0]))
    assert kernel.raw_lengthscale._version > before
    assert close(kernel.lengthscale, [[2.0]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor(1.0), r"shape \(D,\), got \(\)"),
        (torch.tensor([1.0, 0.0, 1.0]), "positive and finite"),
        (torch.tensor([1.0, float("nan"), 1.0]), "positive and finite"),
        (torch.tensor([1.0, float("inf"), 1.0]), "positive and finite"),
        (torch.ones(2), "do not fit the lengthscale of RBFKernel"),
        (torch.ones(2, 3), "do not fit the lengthscale of RBFKernel"),
    ],
)
def test_invalid_values(values, message):
    with pytest.raises(InputError, match=message):
        set_lengthscales(RBFKernel(ard_num_dims=3), values)
