"""Quadrature rules and expectations against moments, dense integrals and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from gpvi.exceptions import InputError
from gpvi.linalg.quadrature import (
    expectation,
    floored_variance,
    gauss_hermite,
    log_expectation_exp,
    uniform_rule,
)


def double_factorial(number: int) -> int:
    return math.prod(range(number, 0, -2))


@pytest.mark.parametrize("num_nodes", [1, 2, 20, 64])
def test_gauss_hermite_is_exact_for_polynomials(num_nodes):
    nodes, log_weights = gauss_hermite(num_nodes)
    assert nodes.dtype == log_weights.dtype == torch.float64
    weights = log_weights.exp()
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-15)
    for power in range(min(2 * num_nodes, 12)):
        exact = 0 if power % 2 else double_factorial(power - 1)
        moment = (weights * nodes**power).sum().item()
        assert moment == pytest.approx(exact, rel=1e-12, abs=1e-12)


def test_gauss_hermite_casts_last():
    nodes, _ = gauss_hermite(20)
    assert torch.equal(gauss_hermite(20, dtype=torch.float32).nodes, nodes.float())


@pytest.mark.parametrize("num_nodes", [0, -3, 2.5])
def test_gauss_hermite_refuses_bad_numbers(num_nodes):
    with pytest.raises(InputError, match="num_nodes"):
        gauss_hermite(num_nodes)


def test_many_nodes_stay_usable():
    nodes, log_weights = gauss_hermite(300)
    assert bool(nodes.isfinite().all()) and not bool(log_weights.isnan().any())
    assert expectation(
        torch.exp, torch.zeros(()).double(), torch.ones(()).double(), 300
    ).item() == (pytest.approx(math.exp(0.5), rel=1e-12))


def test_uniform_rule_resolves_steps_that_gauss_hermite_misses():
    mean = torch.zeros(1, dtype=torch.float64)

    def step(f):
        return torch.special.ndtr((0.3 - f) / 0.1)

    exact = stats.norm.cdf(0.3 / math.sqrt(1.01))
    fine = expectation(step, mean, mean + 1, uniform_rule()).item()
    coarse = expectation(step, mean, mean + 1, 20).item()
    assert abs(fine - exact) < 1e-4 < abs(coarse - exact)


@settings(max_examples=30, deadline=None)
@given(
    mean=st.floats(-50, 50),
    variance=st.floats(0, 4),
    slope=st.floats(-1, 1),
)
def test_log_expectation_of_exponential_line(mean, variance, slope):
    moments = torch.tensor([mean, variance], dtype=torch.float64)
    value = log_expectation_exp(lambda f: slope * f, moments[0], moments[1], 40)
    exact = slope * mean + 0.5 * slope**2 * variance
    assert value.item() == pytest.approx(exact, rel=1e-8, abs=1e-7)


@pytest.mark.parametrize(
    "centre, width", [(0.0, 1.0), (3.0, 0.01), (-5.0, 0.3), (1.0, 100.0), (80.0, 0.1)]
)
def test_recentring_finds_narrow_and_remote_peaks(centre, width):
    mean = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    variance = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)

    def log_peak(f):
        return torch.distributions.Normal(f, width).log_prob(torch.tensor(centre))

    value = log_expectation_exp(log_peak, mean, variance, 20, num_recentrings=12)
    exact = torch.distributions.Normal(mean, (variance + width**2).sqrt()).log_prob(
        torch.tensor(centre)
    )
    torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad(value.sum(), [mean, variance])
    theirs = torch.autograd.grad(exact.sum(), [mean, variance])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_impossible_rows_give_minus_infinity_not_nan():
    mean = torch.zeros(2, dtype=torch.float64)
    value = log_expectation_exp(
        lambda f: torch.where(torch.tensor([True, False]), f, -math.inf), mean, mean + 1, 20, 3
    )
    assert value[0].item() == pytest.approx(0.5)
    assert value[1].item() == -math.inf


def test_matches_dense_integration_of_a_nonpolynomial():
    mean, variance = 0.7, 2.0
    grid = np.linspace(mean - 14, mean + 14, 2000)
    dense = integrate.trapezoid(
        np.logaddexp(0, grid) * stats.norm.pdf(grid, mean, math.sqrt(variance)), grid
    )
    value = expectation(
        torch.nn.functional.softplus,
        torch.tensor(mean, dtype=torch.float64),
        torch.tensor(variance, dtype=torch.float64),
        40,
    )
    assert value.item() == pytest.approx(dense, abs=1e-8)


def test_gradcheck():
    mean = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    variance = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, v: expectation(torch.sin, m, v), (mean, variance))
    assert torch.autograd.gradgradcheck(lambda m, v: expectation(torch.sin, m, v), (mean, variance))
    assert torch.autograd.gradcheck(
        lambda m, v: log_expectation_exp(torch.sin, m, v), (mean, variance)
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 2e-3)])
@pytest.mark.parametrize("mean", [0.0, 0.7, -30.0])
def test_derivatives_at_zero_variance(dtype, tolerance, mean):
    location = torch.tensor(mean, dtype=dtype, requires_grad=True)
    variance = torch.tensor(0.0, dtype=dtype, requires_grad=True)
    value = expectation(torch.sin, location, variance)
    value.backward()
    assert value.item() == pytest.approx(math.sin(mean), abs=tolerance * max(1, abs(mean)))
    assert location.grad.item() == pytest.approx(math.cos(mean), abs=tolerance * max(1, abs(mean)))
    # d/dv E[sin f] = E[sin''] / 2
    assert variance.grad.item() == pytest.approx(-0.5 * math.sin(mean), abs=3 * tolerance)


def test_negative_rounding_of_the_variance_is_harmless():
    mean = torch.tensor([1.0], dtype=torch.float64)
    variance = torch.tensor([-1e-18], dtype=torch.float64, requires_grad=True)
    value = expectation(torch.exp, mean, variance)
    value.sum().backward()
    assert value.item() == pytest.approx(math.e, rel=1e-14)
    assert variance.grad.item() == pytest.approx(0.5 * math.e, rel=1e-6)


def test_floor_is_invisible_above_it():
    variance = torch.tensor([1e-12, 1.0], dtype=torch.float64)
    assert torch.equal(floored_variance(torch.ones(2).double(), variance), variance)


def test_batches_broadcast_and_dtypes_follow_the_input():
    mean = torch.zeros(3, 1, 4)
    variance = torch.ones(2, 4)
    offset = torch.ones(5, 1, 1, 1)
    value = expectation(lambda f: f.square() + offset, mean[None], variance)
    assert value.shape == (5, 3, 2, 4) and value.dtype == torch.float32
    torch.testing.assert_close(value, torch.full_like(value, 2.0))
    assert log_expectation_exp(lambda f: f, mean, variance, 20, 2).shape == (3, 2, 4)
