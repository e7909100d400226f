"""Fractional Brownian motion: the exact kernel, the weights of the bank, and how close it comes."""

import math

import mpmath as mp
import pytest
import torch

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import (
    FractionalBrownianKernel,
    FractionalOUKernel,
    MarkovFractionalBrownianKernel,
    as_state_space,
)
from gpvi.kernels._fractional_weights import (
    _normal_matrix,
    _right_side,
    bank_rates,
    fractional_weights,
    moving_average_variance,
)

HURST = [0.1, 0.3, 0.5, 0.7, 0.9]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["I", "II"])
@pytest.mark.parametrize("hurst", HURST)
def test_normal_equations_are_exact(kind, hurst):
    rates = bank_rates(10, 1e3)
    b, A = _right_side(double(hurst + 0.5), rates, kind), _normal_matrix(rates, kind)
    with mp.workdps(50):
        a, gammas = mp.mpf(hurst + 0.5), [mp.mpf(rate) for rate in rates.tolist()]
        for i, g in enumerate(gammas):
            if kind == "I":
                upper = mp.gammainc(a, g, mp.inf, regularized=True) * mp.exp(g)
                exact = 2 / g**a - 1 / (g * mp.gamma(a + 1)) + (mp.exp(-g) - upper) / g ** (a + 1)
            else:
                lower = [mp.gammainc(c, 0, g, regularized=True) for c in (a, a + 1)]
                exact = g**-a * (lower[0] - a / g * lower[1])
            assert abs(b[i].item() / exact - 1) < 1e-12
            s = g + gammas[0]
            if kind == "I":
                first = gammas[0]
                exact = (2 + mp.expm1(-g) / g + mp.expm1(-first) / first) / s
            else:
                exact = 1 / s + mp.expm1(-s) / s**2
            assert abs(A[i, 0].item() / exact - 1) < 1e-14


def test_right_sides_are_integrals():
    """Of the covariance of the bank and the process, by their definition."""
    rate, a = mp.mpf(2), mp.mpf("0.8")
    pieces = [0, 1e-4, 1e-2, 0.1, 0.5, 1]
    two = mp.quad(lambda u: (1 - u) * u ** (a - 1) * mp.exp(-rate * u), pieces) / mp.gamma(a)
    found = _right_side(double(0.8), double(2.0), "II").item()
    assert abs(found / two - 1) < 1e-5

    def before(t: mp.mpf) -> mp.mpf:
        pieces = [0, 1e-4, 1e-2, 0.1, 1, 30]
        change = lambda v: mp.exp(-rate * v) * ((t + v) ** (a - 1) - v ** (a - 1))  # noqa: E731
        return mp.expm1(-rate * t) * mp.quad(change, pieces, maxdegree=4) / mp.gamma(a)

    with mp.workdps(8):
        one = two + mp.quad(before, [0, 0.3, 1], maxdegree=3)
    assert abs(_right_side(double(0.8), double(2.0), "I").item() / one - 1) < 1e-4


@pytest.mark.parametrize("kind", ["I", "II"])
def test_weights_are_differentiable_in_the_index(kind):
    hurst = double(0.3, 0.5, 0.8).requires_grad_()
    rates = bank_rates(4, 5.0)
    assert torch.autograd.gradcheck(lambda h: fractional_weights(h, rates, kind), hurst)
    assert torch.allclose(moving_average_variance(double(0.5), kind), double(1.0))


@pytest.mark.parametrize(
    "kind, num_processes, limits",
    [
        ("II", 5, [2.5e-1, 8e-3, 1e-10, 1.5e-4, 6e-5]),
        ("II", 10, [1.2e-1, 9e-4, 1e-13, 8e-7, 2e-7]),
        ("I", 10, [1.5e-1, 2e-3, 3e-4, 1e-2, 2.5e-1]),
    ],
)
def test_documented_distances(kind, num_processes, limits):
    hurst = double(*HURST)
    rates = bank_rates(num_processes, 20.0 * 50.0 ** ((num_processes - 5) / 5))
    w = fractional_weights(hurst, rates, kind)
    variance = moving_average_variance(hurst, kind)
    A = _normal_matrix(rates, kind)
    b = _right_side(hurst.unsqueeze(-1) + 0.5, rates, kind) / variance.sqrt().unsqueeze(-1)
    whole = 1.0 / (2.0 * hurst + 1.0)
    cost = (whole - 2.0 * (b * w).sum(-1) + ((w @ A) * w).sum(-1)) / whole
    assert (cost < double(*limits)).all() and (cost > -1e-12).all()


@pytest.mark.parametrize("hurst", [0.05, 0.3, 0.5, 0.9])
def test_moving_average_kernel_against_its_integral(hurst):
    kernel = FractionalBrownianKernel("II").double()
    kernel.hurst = hurst
    alpha = mp.mpf(kernel.hurst.item()) - mp.mpf(1) / 2
    for s, t in [(1.0, 1.0), (1.0, 1.001), (0.7, 1.3), (0.01, 4.0)]:
        exact = mp.mpf(s) ** (alpha + 1) * mp.mpf(t) ** alpha / (alpha + 1)
        with mp.workdps(30):
            exact *= (2 * alpha + 1) * mp.hyp2f1(-alpha, 1, alpha + 2, mp.mpf(s) / mp.mpf(t))
        value = kernel(double(s).unsqueeze(-1), double(t).unsqueeze(-1)).to_dense().item()
        assert abs(value / exact - 1) < 1e-12


@pytest.mark.parametrize("kind", ["I", "II"])
def test_exact_kernels(kind):
    kernel = FractionalBrownianKernel(kind, origin=1.0, batch_shape=torch.Size([2])).double()
    kernel.hurst = double(0.5, 0.8)
    x = double(1.0, 1.5, 2.0, 2.0, 4.0).unsqueeze(-1)
    dense = kernel(x).to_dense()
    u = x[:, 0] - 1.0
    assert torch.allclose(dense[0], torch.minimum(u[:, None], u), atol=1e-12)
    assert torch.allclose(dense[1].diagonal(), u**1.6, atol=1e-12)
    assert torch.linalg.eigvalsh(dense).min() > -1e-12
    (gradient,) = torch.autograd.grad(dense.sum(), kernel.raw_hurst)
    assert gradient.isfinite().all() and gradient.abs().min() > 0
    assert not kernel.is_stationary
    with pytest.raises(InputError, match=r"begins at its origin 1, but there is a time 0.5"):
        kernel(x - 0.5).to_dense()
    with pytest.raises(UnsupportedError, match="MarkovFractionalBrownianKernel"):
        as_state_space(kernel)


@pytest.mark.parametrize("hurst, limit", [(0.3, 2e-3), (0.5, 1e-6), (0.7, 1e-4), (0.9, 2e-4)])
@pytest.mark.parametrize("horizon", [1.0, 20.0])
def test_the_bank_comes_close_on_its_horizon(hurst, limit, horizon):
    x = torch.linspace(0.05, 1, 20, dtype=torch.float64).unsqueeze(-1) * horizon + 3.0
    markov = MarkovFractionalBrownianKernel(10, horizon=horizon, origin=3.0).double()
    exact = FractionalBrownianKernel("II", origin=3.0).double()
    markov.hurst = exact.hurst = hurst
    dense = exact(x).to_dense()
    assert (markov(x).to_dense() - dense).abs().max() < limit * dense.abs().max()


@pytest.mark.parametrize("kind", ["I", "II"])
def test_ornstein_uhlenbeck_is_the_case_of_one_half(kind):
    kernel = FractionalOUKernel(10, kind, horizon=3.0).double()
    kernel.reversion = 1.7
    x = torch.linspace(0.1, 3, 9, dtype=torch.float64)
    apart, total = (x[:, None] - x).abs(), x[:, None] + x
    exact = torch.exp(-1.7 * apart) / 3.4
    if kind == "II":
        exact = exact - torch.exp(-1.7 * total) / 3.4
    limit = 5e-3 if kind == "I" else 1e-6
    assert torch.allclose(kernel(x.unsqueeze(-1)).to_dense(), exact, atol=limit)
    assert kernel.is_stationary == (kind == "I")


def test_stationary_variance_of_the_fractional_process():
    kernel = FractionalOUKernel(10, "I", horizon=5.0).double()
    kernel.hurst, kernel.reversion = 0.4, 2.0
    variance = kernel(torch.zeros(1, 1).double(), diag=True).item()
    assert math.isclose(variance, math.gamma(1.8) / 2.0 / 2.0**0.8, rel_tol=1e-2)


@pytest.mark.parametrize("shift", [0.0, 1e-12, 5e-4, -5e-4])
def test_mean_reversion_equal_to_a_rate_of_the_bank(shift, state_space_covariance):
    kernel = FractionalOUKernel(5, horizon=1.0).double()
    kernel.hurst = 0.7
    kernel.reversion = bank_rates(5, 20.0)[3].item() * (1.0 + shift)
    near = FractionalOUKernel(5, horizon=1.0).double()
    near.hurst, near.reversion = 0.7, kernel.reversion.item() * 1.01
    x = torch.linspace(0.1, 1, 6, dtype=torch.float64).unsqueeze(-1)
    dense = kernel(x).to_dense()
    assert torch.allclose(state_space_covariance(kernel.state_space(), x), dense, rtol=1e-8)
    assert torch.allclose(near(x).to_dense(), dense, rtol=3e-2)
    gradients = torch.autograd.grad(dense.sum(), list(kernel.parameters()))
    assert all(gradient.isfinite() for gradient in gradients)
