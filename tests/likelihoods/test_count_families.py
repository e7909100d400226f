"""Overdispersed, zero-inflated and bounded counts: limits, tails, refusals, parameters."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from gpvi.exceptions import InputError
from gpvi.likelihoods import (
    BernoulliLikelihood,
    BinomialLikelihood,
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    ZeroInflatedLikelihood,
    sample_observations,
)
from gpvi.likelihoods.negative_binomial import _log_rising_factorial


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def dense(log_prob, mean: float, variance: float, log: bool) -> float:
    """E[log p] or log E[p] by brute force."""
    f = mean + math.sqrt(variance) * np.linspace(-12, 12, 40_001)
    values = log_prob(f)
    density = stats.norm.logpdf(f, mean, math.sqrt(variance))
    if not log:
        return float(integrate.trapezoid(values * np.exp(density), f))
    top = (values + density).max()
    return float(top + np.log(integrate.trapezoid(np.exp(values + density - top), f)))


class TestNegativeBinomial:
    @given(
        y=st.integers(0, 500),
        f=st.floats(-8, 8),
        dispersion=st.floats(1e-4, 50),
        exposure=st.floats(0.1, 50),
    )
    def test_is_that_of_scipy(self, y, f, dispersion, exposure):
        likelihood = NegativeBinomialLikelihood(dispersion)
        ours = likelihood.log_prob(row(f), row(y), exposure=row(exposure)).item()
        rate, size = exposure * math.exp(f), 1 / dispersion
        expected = stats.nbinom.logpmf(y, size, size / (size + rate))
        assert ours == pytest.approx(expected, rel=1e-7, abs=1e-7)

    def test_mean_and_dispersion(self):
        likelihood = NegativeBinomialLikelihood(0.7)
        conditional = likelihood(row(1.2), exposure=row(3))
        rate = 3 * math.exp(1.2)
        assert conditional.mean.item() == pytest.approx(rate)
        assert conditional.variance.item() == pytest.approx(rate + 0.7 * rate**2)

    @pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-4), (torch.float32, 1e-3)])
    def test_small_dispersions_are_poisson(self, dtype, tolerance):
        y, mean = torch.tensor([0.0, 3, 40], dtype=dtype), torch.tensor([0.5, 1, 3.5], dtype=dtype)
        ours = NegativeBinomialLikelihood(1.01e-6).to(dtype)
        for method in ("variational_expectations", "predict_log_density"):
            theirs = getattr(PoissonLikelihood(), method)(y, mean, 0.1 * mean)
            found = getattr(ours, method)(y, mean, 0.1 * mean)
            assert found.dtype == dtype
            torch.testing.assert_close(found, theirs, rtol=tolerance, atol=tolerance)

    @given(y=st.floats(0, 1e6), size=st.floats(1e-3, 1e8))
    @settings(deadline=None)
    def test_rising_factorial(self, y, size):
        ours = _log_rising_factorial(row(y), row(size)).item()
        exact = special.poch(size, y) if y < 20 and size < 1e6 else math.nan
        expected = special.gammaln(size + y) - special.gammaln(size) - y * math.log(size)
        rounding = 1e-14 * (abs(special.gammaln(size + y)) + abs(y * math.log(size)) + 1)
        assert ours == pytest.approx(expected, rel=1e-9, abs=10 * rounding)
        if math.isfinite(exact) and exact > 0:
            assert ours == pytest.approx(math.log(exact) - y * math.log(size), rel=1e-6, abs=1e-8)

    def test_gradient_of_the_dispersion(self):
        raw = row(0.3).requires_grad_()

        def rising(size):
            return _log_rising_factorial(row(0, 1, 7, 300), size.exp())

        for offset in (-2.0, 0.0, 2.7, 4.0, 10.0):  # both formulae
            assert torch.autograd.gradcheck(lambda r, o=offset: rising(r + o), raw, atol=1e-6)

    @pytest.mark.parametrize("mean, variance", [(700.0, 4.0), (-700.0, 4.0), (0.0, 400.0)])
    @pytest.mark.parametrize("y", [0, 1, 10_000])
    def test_extremes_stay_finite(self, y, mean, variance):
        likelihood = NegativeBinomialLikelihood()
        moments = [row(mean).requires_grad_(), row(variance).requires_grad_()]
        value = likelihood.variational_expectations(row(y), *moments)
        density = likelihood.predict_log_density(row(y), *moments)
        gradients = torch.autograd.grad(value.sum() + density.sum(), moments)
        assert all(bool(t.isfinite().all()) for t in (value, density, *gradients))

    def test_quantiles_without_latent_variance_are_those_of_scipy(self):
        likelihood, mean = NegativeBinomialLikelihood(0.4), row(-2.0, 0.0, 3.0, 7.0)
        levels = [0.001, 0.1, 0.5, 0.9, 0.999]
        ours = likelihood.predict_quantiles(levels, mean, 0 * mean)
        for level, quantile in zip(levels, ours, strict=True):
            expected = stats.nbinom.ppf(level, 2.5, 2.5 / (2.5 + mean.exp().numpy()))
            assert quantile.tolist() == expected.tolist()

    def test_dispersion_is_checked_fixed_and_batched(self):
        fixed = NegativeBinomialLikelihood(learn_dispersion=False)
        assert not fixed.raw_dispersion.requires_grad
        fixed.dispersion = 2.0
        assert fixed.dispersion.item() == pytest.approx(2.0)
        for bad in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(InputError, match="dispersion"):
                fixed.dispersion = bad
        with pytest.raises(InputError, match="identity"):
            NegativeBinomialLikelihood(link="identity")
        both = NegativeBinomialLikelihood(torch.tensor([[0.1], [2.0]]), batch_shape=(2,))
        y, mean, variance = row(0, 5, 2), row(0.1, 1, 0.3), row(1, 0.5, 0.1)
        for method in ("variational_expectations", "predict_log_density"):
            values = getattr(both, method)(y, mean, variance)
            for dispersion, value in zip((0.1, 2.0), values, strict=True):
                alone = getattr(NegativeBinomialLikelihood(dispersion), method)(y, mean, variance)
                torch.testing.assert_close(value, alone, rtol=1e-6, atol=1e-6)


class TestBinomial:
    @pytest.mark.parametrize("link", ["logit", "probit"])
    @given(data=st.data(), trials=st.integers(1, 200), mean=st.floats(-2, 2))
    def test_is_that_of_scipy_and_integrates(self, link, data, trials, mean):
        y = data.draw(st.integers(0, trials))
        likelihood = BinomialLikelihood(link=link)

        def log_prob(f):
            return stats.binom.logpmf(y, trials, special.expit(f) if link == "logit" else ndtr(f))

        extras = {"trials": row(trials)}
        assert likelihood.log_prob(row(mean), row(y), **extras).item() == pytest.approx(
            log_prob(mean), rel=1e-9, abs=1e-9
        )
        ours = likelihood.variational_expectations(row(y), row(mean), row(0.3), **extras).item()
        # By log link functions, which unlike SciPy's probabilities do not round to one.
        expected = dense(exact_binomial(y, trials, link), mean, 0.3, log=False)
        assert ours == pytest.approx(expected, rel=1e-7, abs=1e-6)
        ours = likelihood.predict_log_density(row(y), row(mean), row(0.3), **extras).item()
        expected = dense(exact_binomial(y, trials, link), mean, 0.3, log=True)
        assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6)

    @pytest.mark.parametrize("link", ["logit", "probit"])
    def test_one_trial_is_a_coin(self, link):
        y, mean, variance = row(0, 1, 1), row(0.3, -1, 2), row(0.1, 1, 4)
        coin = BernoulliLikelihood(link=link)
        for method in ("variational_expectations", "predict_log_density"):
            torch.testing.assert_close(
                getattr(BinomialLikelihood(link=link), method)(y, mean, variance),
                getattr(coin, method)(y, mean, variance),
                rtol=1e-4,
                atol=1e-4,
            )

    def test_quantiles_are_those_of_scipy(self):
        mean, trials = row(-5, 0, 3, 0.2), row(4, 1, 1000, 50)
        levels = [0.001, 0.1, 0.5, 0.9, 0.999]
        ours = BinomialLikelihood().predict_quantiles(levels, mean, 0 * mean, trials=trials)
        for level, quantile in zip(levels, ours, strict=True):
            expected = stats.binom.ppf(level, trials.numpy(), torch.sigmoid(mean).numpy())
            assert quantile.tolist() == expected.tolist()

    def test_impossible_trials_are_refused(self):
        likelihood = BinomialLikelihood()
        likelihood.check_targets(row(0, 3, math.nan), trials=row(1, 3, math.nan))
        with pytest.raises(InputError, match=r"5\.0 successes out of 4"):
            likelihood.check_targets(row(1, 5), trials=row(4, 4))
        with pytest.raises(InputError, match=r"2\.0 successes out of 1 trial"):
            likelihood.check_targets(row(1, 2))
        with pytest.raises(InputError, match=r"whole numbers, got 2\.5"):
            likelihood.check_targets(row(1, 2), trials=row(2, 2.5))
        with pytest.raises(InputError, match="at least 1, got 0"):
            likelihood.check_targets(row(1, 0), trials=row(2, 0))
        with pytest.raises(InputError, match="cloglog"):
            BinomialLikelihood(link="cloglog")


def ndtr(f):
    return special.ndtr(f)


def exact_binomial(y, trials, link):
    log_link = special.log_expit if link == "logit" else special.log_ndtr
    constant = (
        special.gammaln(trials + 1) - special.gammaln(y + 1) - special.gammaln(trials - y + 1)
    )
    return lambda f: constant + y * log_link(f) + (trials - y) * log_link(-f)


class TestZeroInflated:
    @given(
        y=st.sampled_from([0, 0, 1, 6]),
        mean=st.floats(-4, 6),
        variance=st.floats(0.01, 2),
        probability=st.floats(0.001, 0.99),
    )
    @settings(deadline=None)
    def test_matches_dense_integration(self, y, mean, variance, probability):
        likelihood = ZeroInflatedLikelihood(PoissonLikelihood(), probability)

        def log_prob(f):
            plain = y * f - np.exp(np.minimum(f, 600)) - special.gammaln(y + 1)
            kept = math.log1p(-probability) + plain
            return np.logaddexp(math.log(probability), kept) if y == 0 else kept

        ours = likelihood.variational_expectations(row(y), row(mean), row(variance)).item()
        assert ours == pytest.approx(dense(log_prob, mean, variance, False), rel=1e-3, abs=1e-3)
        ours = likelihood.predict_log_density(row(y), row(mean), row(variance)).item()
        assert ours == pytest.approx(dense(log_prob, mean, variance, True), rel=1e-3, abs=1e-3)

    def test_probabilities_sum_to_one_and_quantiles_invert_them(self):
        likelihood = ZeroInflatedLikelihood(NegativeBinomialLikelihood(0.3), 0.4)
        counts, one = torch.arange(400.0, dtype=torch.float64), torch.ones(400).double()
        logs = likelihood.predict_log_density(counts, one, 0.2 * one).detach()
        cumulative = logs.exp().cumsum(0)
        assert cumulative[-1].item() == pytest.approx(1.0, abs=1e-5)
        levels = [0.1, 0.41, 0.6, 0.95]
        quantiles = likelihood.predict_quantiles(levels, one[:1], 0.2 * one[:1])[:, 0]
        assert quantiles.tolist() == torch.searchsorted(cumulative, row(*levels)).tolist()

    def test_overflowing_rates_of_zeros_keep_gradients(self):
        likelihood = ZeroInflatedLikelihood(PoissonLikelihood(), 0.2)
        moments = [row(900, 900).requires_grad_(), row(4, 0).requires_grad_()]
        value = likelihood.variational_expectations(row(0, 0), *moments)
        gradients = torch.autograd.grad(value.sum(), [*moments, *likelihood.parameters()])
        assert value.tolist() == pytest.approx([math.log(0.2)] * 2)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)

    def test_parameters_and_refusals(self):
        likelihood = ZeroInflatedLikelihood(PoissonLikelihood(), learn_probability=False)
        assert not likelihood.raw_probability.requires_grad
        likelihood.probability = 0.7
        assert likelihood.probability.item() == pytest.approx(0.7)
        for bad in (0.0, 1.0, -0.1, math.nan):
            with pytest.raises(InputError, match="probability"):
                likelihood.probability = bad
        with pytest.raises(InputError, match="GaussianLikelihood does not"):
            ZeroInflatedLikelihood(GaussianLikelihood())
        with pytest.raises(InputError, match="out of 1 trial"):
            ZeroInflatedLikelihood(BinomialLikelihood()).check_targets(row(0, 2))

    def test_learned_share(self):
        generator = torch.Generator().manual_seed(1)
        likelihood = ZeroInflatedLikelihood(PoissonLikelihood(), 0.35)
        f = torch.full((50_000,), 1.5, dtype=torch.float64)
        y = sample_observations(likelihood, f, generator)
        share = 0.35 + 0.65 * math.exp(-math.exp(1.5))
        assert (y == 0).double().mean().item() == pytest.approx(share, abs=0.01)
        gradient = torch.autograd.grad(likelihood.log_prob(f, y).mean(), likelihood.raw_probability)
        assert abs(gradient[0].item()) < 0.01
