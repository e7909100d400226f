"""Expected log normal distribution function: both engines against quadrature by SciPy and autograd."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from gpvi.linalg import expected_log_ndtr, gauss_hermite, normal

RULE = gauss_hermite(20)
MEAN = torch.tensor([-300.0, -40.0, -6.0, -1.0, 0.0, 0.3, 2.0, 9.0, 45.0]).double()
VARIANCE = torch.tensor([0.0, 1e-3, 0.1, 1.0, 4.0]).double()


@pytest.fixture(params=["compiled", "tensors"])
def engine(request, monkeypatch):
    if request.param == "tensors":
        monkeypatch.setattr(normal, "_compiled_loop", lambda: None)
    return request.param


def test_is_the_quadrature_sum_and_its_derivative(engine):
    mean = MEAN.unsqueeze(-1).expand(-1, 4).clone().requires_grad_()
    variance = VARIANCE[1:].expand(9, -1).clone().requires_grad_()
    nodes, log_weights = (t.reshape(-1, 1, 1) for t in RULE)
    values = torch.special.log_ndtr(mean + variance.sqrt() * nodes)
    total = (log_weights.exp() * values).sum(0)
    expected = total.detach(), *torch.autograd.grad(total.sum(), (mean, variance))
    actual = expected_log_ndtr(mean, variance, RULE)
    # The derivative by a tiny variance is a difference of nearly equal terms.
    torch.testing.assert_close(actual[:2], expected[:2], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(actual[2], expected[2], atol=1e-7, rtol=1e-8)


def test_against_integration(engine):
    rule = gauss_hermite(60)
    for m, v in ((-2.0, 0.5), (0.4, 1.5)):
        value, slope, spread = (
            t.item()
            for t in expected_log_ndtr(torch.tensor(m).double(), torch.tensor(v).double(), rule)
        )

        def integral(function, m=m, v=v):
            def integrand(f):
                weight = math.exp(-0.5 * (f - m) ** 2 / v) / math.sqrt(2 * math.pi * v)
                return weight * function(f)

            return integrate.quad(integrand, m - 12 * v**0.5, m + 12 * v**0.5, epsabs=1e-13)[0]

        def ratio(f):
            return math.exp(-0.5 * f * f - special.log_ndtr(f)) / math.sqrt(2 * math.pi)

        assert value == pytest.approx(integral(special.log_ndtr), abs=1e-7)
        assert slope == pytest.approx(integral(ratio), abs=1e-6)
        curvature = integral(lambda f: -ratio(f) * (f + ratio(f)))
        assert spread == pytest.approx(0.5 * curvature, abs=1e-5)


def test_zero_variance_shapes_and_dtypes(engine):
    value, slope, spread = expected_log_ndtr(MEAN, VARIANCE[:1], RULE)
    assert value.shape == slope.shape == spread.shape == MEAN.shape
    torch.testing.assert_close(value, torch.special.log_ndtr(MEAN), atol=1e-12, rtol=1e-10)
    assert bool((spread < 1e-12).all() and (spread >= -0.5 - 1e-6).all())
    single = expected_log_ndtr(MEAN.float(), VARIANCE.float()[3], RULE)
    double = expected_log_ndtr(MEAN, VARIANCE[3], RULE)
    for mine, reference in zip(single, double, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), reference, atol=1e-5, rtol=1e-4)
    batch = expected_log_ndtr(MEAN.reshape(3, 3), VARIANCE[3], RULE)
    torch.testing.assert_close(batch[0].reshape(-1), double[0])


def test_far_out_nothing_overflows(engine):
    mean = torch.tensor([-1e12, 1e12]).double()
    terms = expected_log_ndtr(mean, torch.ones(2).double(), RULE)
    assert all(bool(t.isfinite().all()) for t in terms)


def test_compiled_log_and_error_function():
    """One node without spread: the building blocks against SciPy over the whole range."""
    z = torch.as_tensor(np.concatenate([np.linspace(-38, 38, 20_001), -np.logspace(0, 8, 500)]))
    value, slope, _ = expected_log_ndtr(z, torch.zeros_like(z), gauss_hermite(1))
    expected = torch.as_tensor(special.log_ndtr(z.numpy()))
    torch.testing.assert_close(value, expected, atol=1e-15, rtol=1e-12)
    ratio = math.sqrt(2 / math.pi) / special.erfcx(-z.numpy() / math.sqrt(2.0))
    torch.testing.assert_close(slope, torch.as_tensor(ratio), atol=1e-15, rtol=1e-12)
