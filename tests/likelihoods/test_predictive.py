"""Inversion of distribution functions: exact for counts, few evaluations, odd distributions."""

import math

import gpytorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import distributions as td

from gpvi.exceptions import NumericalError
from gpvi.likelihoods import Likelihood, PoissonLikelihood, StudentTLikelihood, as_likelihood
from gpvi.likelihoods.predictive import _poisson_cdf, invert_cdf, mixture_cdf

LEVELS = [1e-6, 0.025, 0.5, 0.975, 1 - 1e-6]


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def column(levels: list[float]) -> torch.Tensor:
    return row(*levels).unsqueeze(-1)


class Counted:
    """A distribution function that counts how often, and for how many values, it is asked."""

    def __init__(self, cdf):
        self.cdf, self.values = cdf, []

    def __call__(self, value):
        self.values.append(int(value.isfinite().sum()))
        return self.cdf(value)


def made_from(forward) -> Likelihood:
    class Theirs(gpytorch.likelihoods.likelihood._OneDimensionalLikelihood):
        def forward(self, function_samples, *args, **kwargs):
            return forward(function_samples)

    return as_likelihood(Theirs())


@given(mean=st.floats(-30, 14), variance=st.floats(0, 9), level=st.floats(1e-7, 1 - 1e-7))
@settings(max_examples=60, deadline=None)
def test_counts_are_the_smallest_that_reach_the_level(mean, variance, level):
    likelihood = PoissonLikelihood()
    count = likelihood.predict_quantiles([level], row(mean), row(variance))

    def cdf(k):
        return mixture_cdf(likelihood.forward, k, row(mean), row(variance)).item()

    assert count.item() == math.floor(count.item()) >= 0
    assert math.copysign(1, count.item()) == 1
    assert cdf(count) >= level > cdf(count - 1)


def test_counts_beyond_the_whole_numbers_of_float64():
    quantile = PoissonLikelihood().predict_quantiles([0.5], row(50.0, 100.0), row(0.1, 2.0))
    assert quantile.log().tolist()[0] == pytest.approx([50.0, 100.0], rel=1e-6)


def test_few_evaluations_of_a_mixture_of_counts():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(300, generator=generator, dtype=torch.float64)
    variance = 0.5 * torch.rand(300, generator=generator, dtype=torch.float64)
    likelihood = PoissonLikelihood()
    levels, moments = column([0.025, 0.5, 0.975]), likelihood.predict_mean_var(mean, variance)
    cdf = Counted(lambda k: mixture_cdf(likelihood.forward, k, mean, variance))
    invert_cdf(cdf, levels, *moments, discrete=True)
    assert sum(cdf.values) < 2.5 * 900


def test_few_evaluations_of_a_continuous_mixture():
    likelihood = StudentTLikelihood()
    mean, variance = torch.linspace(-2, 2, 50).double(), torch.linspace(0, 3, 50).double()
    moments = [moment.detach() for moment in likelihood.predict_mean_var(mean, variance)]
    cdf = Counted(lambda y: likelihood._predictive_cdf(y, mean, variance).detach())
    levels = column([0.025, 0.5, 0.975])
    quantiles = invert_cdf(cdf, levels, *moments, discrete=False)
    assert len(cdf.values) <= 10
    assert (cdf.cdf(quantiles) - levels).abs().max() < 1e-12


@pytest.mark.parametrize(
    "distribution",
    [stats.norm(1e6, 1e-3), stats.t(2.1), stats.cauchy(3.0, 2.0), stats.uniform(-1, 3)],
    ids=["norm", "t", "cauchy", "uniform"],
)
def test_continuous_inversion_against_scipy(distribution):
    mean, variance = (torch.as_tensor(v).double().reshape(1) for v in distribution.stats("mv"))
    quantiles = invert_cdf(
        lambda y: torch.as_tensor(distribution.cdf(y.numpy())),
        column(LEVELS),
        mean,
        variance,
        discrete=False,
    )
    expected = row(*distribution.ppf(LEVELS)).unsqueeze(-1)
    width = distribution.ppf(0.75) - distribution.ppf(0.25)
    torch.testing.assert_close(quantiles, expected, rtol=1e-9, atol=1e-9 * width)


def test_separated_bumps():
    def cdf(y):
        return 0.3 * torch.special.ndtr(y + 1e4) + 0.7 * torch.special.ndtr((y - 1e4) / 0.01)

    variance = row(0.3 * 0.7 * 4e8)
    levels = column([0.001, 0.1, 0.29, 0.31, 0.6, 0.999])
    quantiles = invert_cdf(cdf, levels, row(4e3), variance, discrete=False)
    torch.testing.assert_close(cdf(quantiles), levels, rtol=0, atol=1e-6)
    assert quantiles[:3].max() < -9e3 and quantiles[3:].min() > 9e3


@pytest.mark.parametrize(
    "forward, inverse",
    [
        (lambda f: td.LogNormal(f, 0.5), lambda p, f: stats.lognorm.ppf(p, 0.5, 0, math.exp(f))),
        (lambda f: td.Exponential((-f).exp()), lambda p, f: stats.expon.ppf(p, 0, math.exp(f))),
        (lambda f: td.Gamma(2.0, (-f).exp()), lambda p, f: stats.gamma.ppf(p, 2, 0, math.exp(f))),
        (lambda f: td.Uniform(f - 1, f + 1), lambda p, f: stats.uniform.ppf(p, f - 1, 2)),
    ],
    ids=["lognormal", "exponential", "gamma", "uniform"],
)
def test_distributions_on_part_of_the_line(forward, inverse):
    mean = row(-1.0, 0.5, 2.0)
    likelihood = made_from(forward)
    for level, quantile in zip(
        LEVELS, likelihood.predict_quantiles(LEVELS, mean, 0 * mean), strict=True
    ):
        expected = [inverse(level, f) for f in mean.tolist()]
        assert quantile.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert bool(likelihood.predict_quantiles(LEVELS, mean, mean.abs()).isfinite().all())


def test_shortcut_of_the_poisson_distribution_function():
    count = row(1, 2, 5, 20, 100, 1e4, float("inf")).unsqueeze(-1)
    rate = torch.logspace(-8, 6, 4001, dtype=torch.float64)
    exact = torch.special.gammaincc(*torch.broadcast_tensors(count, rate))
    torch.testing.assert_close(_poisson_cdf(count, rate), exact, rtol=0, atol=1e-12)
    scipys = torch.as_tensor(stats.poisson.cdf(count.numpy() - 1, rate.numpy()))
    torch.testing.assert_close(_poisson_cdf(count, rate), scipys, rtol=0, atol=1e-9)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("value", [0.2, float("nan")])
def test_a_level_that_is_never_reached_is_an_error(discrete, value):
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"0\.5"):
        invert_cdf(lambda y: torch.full_like(y, value), column([0.5]), one, one, discrete)
