"""Laplace noise, quantile regression and proportions: exact kinks, tails, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from gpvi.exceptions import InputError
from gpvi.likelihoods import (
    BetaLikelihood,
    LaplaceLikelihood,
    QuantileLikelihood,
    sample_observations,
)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def check_loss(u, level):
    return np.maximum(level * u, (level - 1) * u)


@given(
    y=st.floats(-20, 20),
    variance=st.floats(1e-4, 100),
    scale=st.floats(0.02, 5),
    level=st.floats(0.02, 0.98),
)
@settings(deadline=None)
def test_closed_forms_match_dense_integration(y, variance, scale, level):
    likelihood = QuantileLikelihood(level, scale)
    deviation = math.sqrt(variance)
    near = y + np.concatenate([[0.0], scale * np.sinh(np.linspace(-12, 12, 4001))])
    f = np.union1d(near, np.linspace(-12 * deviation, 12 * deviation, 20_001))
    density = stats.norm.logpdf(f, 0, deviation)
    log_prob = math.log(level * (1 - level) / scale) - check_loss((y - f) / scale, level)
    dense = integrate.trapezoid(log_prob * np.exp(density), x=f)
    ours = likelihood.variational_expectations(row(y), row(0.0), row(variance)).item()
    assert ours == pytest.approx(dense, rel=1e-4, abs=1e-4)
    both = log_prob + density
    dense = both.max() + math.log(integrate.trapezoid(np.exp(both - both.max()), x=f))
    ours = likelihood.predict_log_density(row(y), row(0.0), row(variance)).item()
    assert ours == pytest.approx(dense, rel=1e-3, abs=1e-3)


def test_laplace_is_the_median_with_half_the_scale():
    y, mean, variance = row(-1, 0.2, 30), row(0, 0.2, 0.3), row(1, 0.1, 2)
    laplace, median = LaplaceLikelihood(0.8), QuantileLikelihood(0.5, 0.4)
    for method in ("variational_expectations", "predict_log_density"):
        ours, theirs = (getattr(one, method)(y, mean, variance) for one in (laplace, median))
        torch.testing.assert_close(ours, theirs)
    expected = stats.laplace.logpdf(y.numpy(), mean.numpy(), 0.8)
    assert laplace.log_prob(mean, y).detach().numpy() == pytest.approx(expected)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.9])
def test_f_is_the_quantile(level):
    likelihood, f = QuantileLikelihood(level, 0.3), row(1.0, -2.0)
    quantiles = likelihood.predict_quantiles([level], f, 0 * f)[0]
    assert quantiles.tolist() == pytest.approx(f.tolist(), abs=1e-6)
    draws = sample_observations(likelihood, f.expand(50_000, -1), torch.Generator().manual_seed(0))
    assert (draws <= f).double().mean(0).tolist() == pytest.approx([level] * 2, abs=0.01)
    conditional = likelihood(f)
    for value in (-3.0, 0.9, 1.1):
        inside = conditional.cdf(row(value, value))
        assert (draws <= value).double().mean(0).tolist() == pytest.approx(
            inside.tolist(), abs=0.01
        )


@pytest.mark.parametrize("residual", [1e3, 1e6, -1e6])
@pytest.mark.parametrize("variance", [0.0, 1.0, 1e6])
def test_outliers_and_wide_latents_stay_finite(residual, variance):
    likelihood = QuantileLikelihood(0.9, 0.01)
    moments = [row(0.0).requires_grad_(), row(variance).requires_grad_()]
    value = likelihood.variational_expectations(row(residual), *moments)
    density = likelihood.predict_log_density(row(residual), *moments)
    gradients = torch.autograd.grad((value + density).sum(), moments)
    assert all(bool(t.isfinite().all()) for t in (value, density, *gradients))


def test_at_the_kink():
    """A residual of zero with no variance: the slope is one between those of the two sides."""
    likelihood = LaplaceLikelihood(0.5)
    moments = [row(0.0).requires_grad_(), row(0.0).requires_grad_()]
    value = likelihood.variational_expectations(row(0.0), *moments)
    slopes = torch.autograd.grad(value.sum(), moments)
    assert value.item() == pytest.approx(0.0, abs=1e-6) and abs(slopes[0].item()) <= 2.0
    assert math.isfinite(slopes[1].item()) and slopes[1].item() < 0


def test_levels_and_scales_are_checked():
    for level in (0.0, 1.0, -1, math.nan):
        with pytest.raises(InputError, match="level"):
            QuantileLikelihood(level)
    with pytest.raises(InputError, match="scale"):
        LaplaceLikelihood(scale=0.0)
    fixed = LaplaceLikelihood(learn_scale=False)
    assert not fixed.raw_scale.requires_grad
    both = LaplaceLikelihood(row(0.5, 2.0)[:, None], batch_shape=(2,))
    y, mean, variance = row(0, 1, 2), row(0.1, 0.2, 0.3), row(1, 0.5, 0.1)
    assert both.variational_expectations(y, mean, variance).shape == (2, 3)
    assert both.predict_quantiles([0.1, 0.9], mean, variance).shape == (2, 2, 3)


class TestBeta:
    @given(y=st.floats(1e-6, 1 - 1e-6), f=st.floats(-12, 12), precision=st.floats(0.01, 500))
    def test_is_that_of_scipy(self, y, f, precision):
        ours = BetaLikelihood(precision).log_prob(row(f), row(y)).item()
        share = 1 / (1 + math.exp(-f)), 1 / (1 + math.exp(f))
        expected = stats.beta.logpdf(y, share[0] * precision, share[1] * precision)
        assert ours == pytest.approx(expected, rel=1e-7, abs=1e-7)

    def test_mean_and_precision(self):
        conditional = BetaLikelihood(4.0)(row(0.7))
        share = 1 / (1 + math.exp(-0.7))
        assert conditional.mean.item() == pytest.approx(share)
        assert conditional.variance.item() == pytest.approx(share * (1 - share) / 5)

    @pytest.mark.parametrize("mean", [-900.0, 900.0])
    @pytest.mark.parametrize("y", [1e-12, 0.5, 1 - 1e-12])
    def test_extremes_stay_finite(self, mean, y):
        moments = [row(mean).requires_grad_(), row(4.0).requires_grad_()]
        value = BetaLikelihood().variational_expectations(row(y), *moments)
        gradients = torch.autograd.grad(value.sum(), moments)
        assert all(bool(t.isfinite().all()) for t in (value, *gradients))

    @pytest.mark.parametrize("bad", [0.0, 1.0, -0.5, 1.5])
    def test_ends_are_refused(self, bad):
        with pytest.raises(InputError, match=f"strictly between 0 and 1, got {bad}"):
            BetaLikelihood().check_targets(row(0.5, bad))

    def test_precision_is_checked(self):
        likelihood = BetaLikelihood(learn_precision=False)
        likelihood.precision = 3.0
        assert likelihood.precision.item() == pytest.approx(3.0)
        with pytest.raises(InputError, match="precision"):
            likelihood.precision = 0.0
