"""Gegenbauer polynomials against scipy, their series against autograd, and Funk-Hecke by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import eval_gegenbauer, eval_legendre

from gpvi.exceptions import InputError
from gpvi.kernels._gegenbauer import (
    angle_rule,
    funk_hecke,
    gegenbauer,
    gegenbauer_moments,
    gegenbauer_series,
    multiplicities,
)


def cosines(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.rand(*shape, dtype=torch.float64, generator=generator) - 1.0


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dimension", [3, 4, 7, 20])
def test_equal_scipys_up_to_their_value_at_one(dimension):
    t, alpha = cosines(50), 0.5 * dimension - 1.0
    found = gegenbauer(t, 20, dimension)
    for level in range(20):
        expected = eval_gegenbauer(level, alpha, t.numpy()) / eval_gegenbauer(level, alpha, 1.0)
        np.testing.assert_allclose(found[:, level].numpy(), expected, rtol=1e-10, atol=1e-12)


def test_chebyshev_in_two_dimensions_and_legendre_in_three():
    t = cosines(40)
    level = torch.arange(64, dtype=torch.float64)
    torch.testing.assert_close(gegenbauer(t, 64, 2), (level * t.acos().unsqueeze(-1)).cos())
    expected = torch.tensor(eval_legendre(level.numpy(), t.numpy()[:, None]))
    torch.testing.assert_close(gegenbauer(t, 64, 3), expected)


@given(st.integers(2, 50), st.integers(1, 64), st.floats(-1.0, 1.0))
def test_bounded_by_one_up_to_many_levels_and_dimensions(dimension, num_levels, t):
    values = gegenbauer(torch.tensor([t, 1.0, -1.0], dtype=torch.float64), num_levels, dimension)
    assert bool((values.abs() <= 1.0 + 1e-10).all())
    torch.testing.assert_close(values[1], torch.ones(num_levels, dtype=torch.float64))
    signs = (-1.0) ** torch.arange(num_levels, dtype=torch.float64)
    torch.testing.assert_close(values[2], signs)


@pytest.mark.parametrize("dimension", [2, 3, 5, 50])
def test_numbers_of_harmonics(dimension):
    counts = multiplicities(12, dimension).tolist()
    # Homogeneous polynomials of degree l are harmonic ones of degrees l, l - 2, ...
    homogeneous = [math.comb(level + dimension - 1, level) for level in range(12)]
    assert counts == [
        float(h - (homogeneous[i - 2] if i > 1 else 0)) for i, h in enumerate(homogeneous)
    ]


@pytest.mark.parametrize("dimension", [2, 3, 9])
def test_polynomials_are_orthogonal(dimension):
    angles, weights = angle_rule(dimension, torch.zeros(()))
    G = gegenbauer(angles.cos(), 40, dimension)
    expected = (1.0 / multiplicities(40, dimension)).diag()
    torch.testing.assert_close(G.mT @ (weights.unsqueeze(-1) * G), expected, atol=1e-13, rtol=1e-9)


@pytest.mark.parametrize("dimension", [2, 3, 6, 31])
@pytest.mark.parametrize("shape", [(6,), (4, 1, 6), (4, 5, 6), (2, 1, 1, 6)], ids=str)
def test_series_and_their_derivatives(dimension, shape):
    c, t = normal(*shape).requires_grad_(), cosines(4, 5).requires_grad_()
    found = gegenbauer_series(c, t, dimension)
    expected = (c * gegenbauer(t, 6, dimension)).sum(-1)
    torch.testing.assert_close(found, expected)
    weights = normal(*found.shape, seed=3)
    pairs = [torch.autograd.grad((weights * v).sum(), (c, t)) for v in (found, expected)]
    for left, right in zip(*pairs, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("num_levels", [1, 2, 5])
def test_second_derivatives(num_levels):
    c, t = normal(2, 1, num_levels).requires_grad_(), cosines(2, 3).requires_grad_()

    def function(c, t):
        return gegenbauer_series(c, t, 4)

    assert torch.autograd.gradcheck(function, (c, t))
    assert torch.autograd.gradgradcheck(function, (c, t))


def test_moments_are_the_adjoint_of_series():
    c, t, v = normal(3, 1, 7), cosines(3, 4), normal(3, 4, seed=5)
    moments = gegenbauer_moments(v, t, 7, 5, torch.Size([3, 1]))
    torch.testing.assert_close((moments * c).sum(), (v * gegenbauer_series(c, t, 5)).sum())


def test_single_precision_is_stable():
    c, t = normal(64), cosines(200)
    exact = gegenbauer_series(c, t, 8)
    single = gegenbauer_series(c.float(), t.float(), 8)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("dimension", [2, 3, 6])
def test_coefficients_of_a_ramp_need_the_kink(dimension):
    """Levels 0 and 1 in closed form; the rule is split where the ramp starts."""
    like = torch.zeros(())
    rule = angle_rule(dimension, like, kink=0.5 * math.pi)
    found = funk_hecke(rule[0].cos().clamp_min(0.0), rule, 8, dimension)
    half = math.gamma(dimension / 2) / math.gamma((dimension - 1) / 2) / math.sqrt(math.pi)
    assert found[0].item() == pytest.approx(half / (dimension - 1), rel=1e-12)
    assert found[1].item() == pytest.approx(0.5 / dimension, rel=1e-12)
    assert found[3::2].abs().max() < 1e-14


def test_arguments():
    with pytest.raises(InputError, match="at least one level"):
        gegenbauer(cosines(2), 0, 3)
    with pytest.raises(InputError, match="dimension is 1"):
        multiplicities(2, 1)
