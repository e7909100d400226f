"""Positive numbers and censoring: distributions of SciPy, bounds, tails, closed forms, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods import (
    CensoredGaussianLikelihood,
    ExponentialLikelihood,
    GammaLikelihood,
    GaussianLikelihood,
    LogNormalLikelihood,
    WeibullLikelihood,
    sample_observations,
)
from gpvi.likelihoods.incomplete_gamma import log_incomplete_gamma


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def family(name: str, parameter: float):
    """A likelihood with its parameter, and the distribution of SciPy given f."""
    if name == "gamma":
        return GammaLikelihood(parameter), lambda f: stats.gamma(
            parameter, scale=np.exp(f) / parameter
        )
    if name == "exponential":
        return ExponentialLikelihood(), lambda f: stats.expon(scale=np.exp(f))
    if name == "weibull":
        return WeibullLikelihood(parameter), lambda f: stats.weibull_min(parameter, scale=np.exp(f))
    if name == "log_normal":
        return LogNormalLikelihood(parameter), lambda f: stats.lognorm(parameter, scale=np.exp(f))
    return CensoredGaussianLikelihood(parameter), lambda f: stats.norm(f, math.sqrt(parameter))


POSITIVE = ["gamma", "exponential", "weibull", "log_normal"]
ALL = [*POSITIVE, "censored_gaussian"]


@pytest.mark.parametrize("name", ALL)
@given(
    parameter=st.floats(0.1, 5),
    y=st.floats(0.01, 20),
    f=st.floats(-2, 2),
    censored=st.sampled_from([0, 1, -1]),
)
@settings(deadline=None)
def test_rows_and_bounds_are_those_of_scipy(name, parameter, y, f, censored):
    likelihood, conditional = family(name, parameter)
    ours = likelihood.log_prob(row(f), row(y), censored=row(censored)).item()
    theirs = conditional(f)
    expected = {0: theirs.logpdf, 1: theirs.logsf, -1: theirs.logcdf}[censored](y)
    if expected > -500:
        assert ours == pytest.approx(expected, rel=1e-8, abs=1e-9)
    else:
        assert ours < -400 and math.isfinite(ours)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("censored", [0, 1, -1])
@pytest.mark.parametrize("variance", [0.05, 1.0, 6.0])
def test_expectations_match_dense_integration(name, censored, variance):
    likelihood, _ = family(name, 0.7)
    grid = np.linspace(-9, 9, 20_001)
    for y, mean in ((0.3, 0.4), (3.0, -0.5)):
        f = mean + math.sqrt(variance) * grid
        # By our own log_prob, checked above, as SciPy's rounds to minus infinity.
        extras = {"censored": row(censored)}
        values = likelihood.log_prob(torch.as_tensor(f)[:, None], row(y), **extras)[:, 0]
        values = values.detach().numpy()
        dense = integrate.trapezoid(values * stats.norm.pdf(grid), grid)
        ours = likelihood.variational_expectations(row(y), row(mean), row(variance), **extras)
        assert ours.item() == pytest.approx(dense, rel=1e-5, abs=1e-5)
        density = likelihood.predict_log_density(row(y), row(mean), row(variance), **extras)
        dense = math.log(integrate.trapezoid(np.exp(values) * stats.norm.pdf(grid), grid))
        assert density.item() == pytest.approx(dense, rel=3e-4, abs=3e-4)


@pytest.mark.parametrize("name", ALL)
def test_moments_and_quantiles_do_not_depend_on_censoring(name):
    likelihood, conditional = family(name, 0.7)
    mean, none, some = row(0.3, -1.0), row(0, 0), row(1, -1)
    centre, spread = likelihood.predict_mean_var(mean, none, censored=some)
    theirs = conditional(mean.numpy())
    assert centre.detach().numpy() == pytest.approx(theirs.mean(), rel=1e-9)
    assert spread.detach().numpy() == pytest.approx(theirs.var(), rel=1e-8)
    levels = [0.01, 0.5, 0.99]
    quantiles = likelihood.predict_quantiles(levels, mean, none, censored=some)
    for level, quantile in zip(levels, quantiles, strict=True):
        assert quantile.detach().numpy() == pytest.approx(theirs.ppf(level), rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_gradients_with_bounds(name):
    likelihood, _ = family(name, 0.7)
    y, censored = row(0.3, 1.0, 2.0, 0.2), row(0, 1, -1, 1)
    mean = row(0.2, -0.5, 0.1, 1.5).requires_grad_()
    variance = row(0.3, 1.0, 0.5, 0.1).requires_grad_()
    parameters = list(likelihood.parameters())

    def expected(mean, variance, *_):
        return likelihood.variational_expectations(y, mean, variance, censored=censored)

    assert torch.autograd.gradcheck(expected, (mean, variance, *parameters), atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("censored", [0, 1, -1])
@pytest.mark.parametrize("mean", [-400.0, -40.0, 40.0, 400.0])
def test_far_tails_stay_finite(name, censored, mean):
    likelihood, _ = family(name, 0.9)
    moments = [row(mean).requires_grad_(), row(1.0).requires_grad_()]
    value = likelihood.variational_expectations(row(2.0), *moments, censored=row(censored))
    gradients = torch.autograd.grad(value.sum(), [*moments, *likelihood.parameters()])
    assert bool(value.isfinite().all())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("name", POSITIVE)
def test_times_must_be_positive(name):
    likelihood, _ = family(name, 1.0)
    likelihood.check_targets(row(1, 2, math.nan), censored=row(0, -1, math.nan))
    for bad in (0.0, -2.0):
        with pytest.raises(InputError, match=f"positive targets, got {bad}"):
            likelihood.check_targets(row(1, bad))


@pytest.mark.parametrize("name", ALL)
def test_codes_of_censoring_are_checked(name):
    likelihood, _ = family(name, 1.0)
    with pytest.raises(InputError, match=r"0, 1 or -1, got 2\.0"):
        likelihood.check_targets(row(1, 2), censored=row(0, 2))
    with pytest.raises(InputError, match=r"0, 1 or -1, got 0\.5"):
        likelihood.check_targets(row(1, 2), censored=row(0.5, 1))


@pytest.mark.parametrize("name", ["gamma", "weibull", "log_normal", "censored_gaussian"])
def test_parameters_are_assigned_fixed_and_batched(name):
    likelihood, _ = family(name, 0.7)
    (parameter,) = (n.removeprefix("raw_") for n, _ in likelihood.named_parameters())
    setattr(likelihood, parameter, 1.5)
    assert getattr(likelihood, parameter).item() == pytest.approx(1.5)
    with pytest.raises(InputError, match=parameter):
        setattr(likelihood, parameter, -1.0)
    fixed = type(likelihood)(**{f"learn_{parameter}": False})
    assert not next(fixed.parameters()).requires_grad
    both = type(likelihood)(**{parameter: row(0.5, 2.0)[:, None]}, batch_shape=(2,))
    y, censored, mean, variance = (
        row(0.4, 1, 3),
        row(0, 1, -1),
        row(0.1, 0.2, 0.3),
        row(1, 0.5, 0.1),
    )
    for method in ("variational_expectations", "predict_log_density"):
        values = getattr(both, method)(y, mean, variance, censored=censored)
        assert values.shape == (2, 3)
        for number, value in zip((0.5, 2.0), values, strict=True):
            alone = type(likelihood)(**{parameter: number})
            expected = getattr(alone, method)(y, mean, variance, censored=censored)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert both.predict_quantiles([0.1, 0.9], mean, variance).shape == (2, 2, 3)


def test_relations_between_the_families():
    y, censored = row(0.3, 1, 4), row(0, 1, -1)
    moments = row(0.1, -0.4, 1.0), row(0.5, 1.0, 0.1)
    plain = ExponentialLikelihood().variational_expectations(y, *moments, censored=censored)
    for other in (WeibullLikelihood(1.0), GammaLikelihood(1.0)):
        found = other.variational_expectations(y, *moments, censored=censored)
        torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)
    ours = LogNormalLikelihood(0.5).variational_expectations(y, *moments)
    theirs = GaussianLikelihood(0.25).variational_expectations(y.log(), *moments) - y.log()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    ours = CensoredGaussianLikelihood(0.25).predict_log_density(y, *moments)
    theirs = GaussianLikelihood(0.25).predict_log_density(y, *moments)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@given(shape=st.floats(0.01, 300), x=st.floats(1e-12, 1e5), upper=st.booleans())
@settings(deadline=None)
def test_incomplete_gamma(shape, x, upper):
    ours = log_incomplete_gamma(row(shape), row(x), upper).item()
    probability = (special.gammaincc if upper else special.gammainc)(shape, x)
    assert math.isfinite(ours) and ours <= 1e-12
    if probability > 1e-280:
        assert ours == pytest.approx(math.log(probability), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("shape, x, upper", [
    (0.5, 900.0, True), (3.0, 2000.0, True), (80.0, 1500.0, True), (250.0, 5.0, False),
    (40.0, 1e-6, False),
])  # fmt: skip
def test_incomplete_gamma_in_the_tails(shape, x, upper):
    mpmath = pytest.importorskip("mpmath")
    ends = (x, mpmath.inf) if upper else (0, x)
    expected = float(mpmath.log(mpmath.gammainc(shape, *ends, regularized=True)))
    assert log_incomplete_gamma(row(shape), row(x), upper).item() == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("upper", [True, False])
def test_gradients_of_the_incomplete_gamma(upper):
    shape = row(0.4, 3.0, 33.0, 2.0).requires_grad_()
    x = row(0.1, 5.0, 30.0, 900.0 if upper else 0.01).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda k, z: log_incomplete_gamma(k, z, upper), (shape, x), rtol=1e-5
    )
    assert torch.autograd.gradgradcheck(
        lambda z: log_incomplete_gamma(shape.detach(), z, upper), (x,), rtol=1e-4
    )


def test_censoring_recovers_what_was_hidden():
    """Maximum likelihood at a constant f, against the complete data."""
    generator = torch.Generator().manual_seed(0)
    f = torch.full((20_000,), 0.7, dtype=torch.float64)
    likelihood = WeibullLikelihood(1.6)
    times = sample_observations(likelihood, f, generator)
    limit = 2.0
    censored = (times > limit).double()
    assert 0.2 < censored.mean() < 0.8
    level = f[:1].clone().requires_grad_()
    slopes = torch.autograd.grad(
        likelihood.log_prob(level.expand_as(f), times.clamp_max(limit), censored=censored).mean(),
        [level, *likelihood.parameters()],
    )
    assert max(abs(slope.item()) for slope in slopes) < 0.02
    naive = torch.autograd.grad(
        likelihood.log_prob(level.expand_as(f), times.clamp_max(limit)).mean(), level
    )
    assert abs(naive[0].item()) > 0.1


def test_second_derivatives_by_the_gamma_shape_are_refused():
    shape = torch.full((1,), 2.0, dtype=torch.float64, requires_grad=True)
    x = torch.full((1,), 1.5, dtype=torch.float64, requires_grad=True)
    value = log_incomplete_gamma(shape, x, True).sum()
    by_shape, by_x = torch.autograd.grad(value, (shape, x), create_graph=True)
    # The slope by x is a closed form, which the shape goes through again.
    assert torch.autograd.grad(by_x.sum(), shape, retain_graph=True)[0].isfinite().all()
    with pytest.raises(UnsupportedError, match="once by the shape"):
        torch.autograd.grad(by_shape.sum(), shape)
