"""Counts: exposure, closed forms, extreme counts and integer quantiles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from gpvi.exceptions import InputError
from gpvi.likelihoods import PoissonLikelihood

LINKS = ["log", "softplus"]


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(
    y=st.integers(0, 40),
    mean=st.floats(-3, 3),
    variance=st.floats(0, 2),
    exposure=st.floats(0.1, 10),
)
def test_closed_form_matches_quadrature(y, mean, variance, exposure):
    closed = PoissonLikelihood().variational_expectations(
        row(y), row(mean), row(variance), exposure=row(exposure)
    )
    rate = exposure * math.exp(mean + 0.5 * variance)
    exact = y * (mean + math.log(exposure)) - rate - math.lgamma(y + 1)
    assert closed.item() == pytest.approx(exact, rel=1e-10, abs=1e-10)
    grid = np.linspace(-10, 10, 2000)
    f = mean + math.sqrt(variance) * grid
    dense = integrate.trapezoid(
        stats.poisson.logpmf(y, exposure * np.exp(f)) * stats.norm.pdf(grid), grid
    )
    assert closed.item() == pytest.approx(dense, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("link", LINKS)
def test_exposure_scales_the_rate(link):
    likelihood = PoissonLikelihood(link=link)
    mean, variance = row(0.3, 1.0), row(0.2, 0.5)
    plain_mean, plain_variance = likelihood.predict_mean_var(mean, variance)
    scaled_mean, scaled_variance = likelihood.predict_mean_var(mean, variance, exposure=row(3, 3))
    torch.testing.assert_close(scaled_mean, 3 * plain_mean)
    latent_part = plain_variance - plain_mean
    torch.testing.assert_close(scaled_variance, 3 * plain_mean + 9 * latent_part)
    rate = likelihood(mean).mean
    torch.testing.assert_close(likelihood(mean, exposure=row(2, 5)).mean, rate * row(2, 5))


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("y, mean, variance", [(500, 0.0, 1.0), (500, 0.0, 4.0), (0, 8.0, 1.0)])
def test_log_density_of_extreme_counts_is_finite_and_right(link, y, mean, variance):
    likelihood = PoissonLikelihood(link=link)
    ours = likelihood.predict_log_density(row(y), row(mean), row(variance)).item()
    # The joint density peaks far out, so the dense grid is wide and fine and stays in log space.
    f = np.linspace(mean - 20, mean + 550, 2_000_001)
    rate = np.exp(np.minimum(f, 600)) if link == "log" else np.logaddexp(0, f)
    with np.errstate(divide="ignore"):
        joint = stats.poisson.logpmf(y, rate) + stats.norm.logpdf(f, mean, math.sqrt(variance))
    top = joint.max()
    dense = top + math.log(integrate.trapezoid(np.exp(joint - top), f))
    assert math.isfinite(ours)
    assert ours == pytest.approx(dense, rel=1e-6)


@pytest.mark.parametrize("link", LINKS)
def test_quantiles_without_latent_variance_are_those_of_scipy(link):
    likelihood = PoissonLikelihood(link=link)
    mean = row(-2.0, 0.0, 3.0, 7.0)
    levels = [0.001, 0.1, 0.5, 0.9, 0.999]
    ours = likelihood.predict_quantiles(levels, mean, 0 * mean, exposure=row(1, 2, 1, 3))
    rate = likelihood(mean, exposure=row(1, 2, 1, 3)).mean.numpy()
    for level, quantile in zip(levels, ours, strict=True):
        assert quantile.tolist() == stats.poisson.ppf(level, rate).tolist()


def test_quantiles_with_latent_variance_mix():
    # A log-gamma latent would give a negative binomial; compare with brute force instead.
    mean, variance = row(1.0), row(0.8)
    grid = np.linspace(-9, 9, 4001)
    weights = stats.norm.pdf(grid) / stats.norm.pdf(grid).sum()
    counts = np.arange(400)
    rate = np.exp(1.0 + math.sqrt(0.8) * grid)
    cdf = (weights * stats.poisson.cdf(counts[:, None], rate)).sum(1)
    levels = [0.05, 0.25, 0.5, 0.75, 0.99]
    ours = PoissonLikelihood().predict_quantiles(levels, mean, variance)
    expected = [counts[np.argmax(cdf >= level)] for level in levels]
    assert ours[:, 0].tolist() == expected


def test_fractional_counts_are_a_quasi_likelihood():
    likelihood = PoissonLikelihood()
    likelihood.check_targets(row(0.5, 2.25))
    ours = likelihood.log_prob(row(0.3), row(2.25)).item()
    assert ours == pytest.approx(2.25 * 0.3 - math.exp(0.3) - math.lgamma(3.25), rel=1e-12)


@pytest.mark.parametrize("link", LINKS)
def test_initial_latent_survives_all_zeros_and_uses_exposure(link):
    likelihood = PoissonLikelihood(link=link)
    assert bool(likelihood.initial_latent(row(0, 0, 0)).isfinite().all())
    exposure = row(1, 10, 100)
    latent = likelihood.initial_latent(3 * exposure, exposure=exposure)
    rate = likelihood(latent).mean
    torch.testing.assert_close(rate, torch.full_like(rate, 3.0), rtol=0.01, atol=0)


def test_unknown_link_is_refused():
    with pytest.raises(InputError, match="identity"):
        PoissonLikelihood(link="identity")


def test_softplus_gradients_survive_very_negative_latents():
    f = row(-1000.0, -50.0, 0.0, 1000.0).requires_grad_()
    total = PoissonLikelihood(link="softplus").log_prob(f, row(1, 1, 1, 1)).sum()
    gradient = torch.autograd.grad(total, f)[0]
    assert bool(gradient.isfinite().all())
    assert gradient[:2].tolist() == pytest.approx([1.0, 1.0], rel=1e-9)
