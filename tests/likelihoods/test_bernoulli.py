"""Binary labels: codings, tails and closed forms."""

import math

import gpytorch
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gpvi.exceptions import InputError
from gpvi.likelihoods import BernoulliLikelihood

ZERO_ONE = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
MEAN = torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.5, 3.0, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("link", ["probit", "logit"])
def test_both_codings_mean_the_same(link):
    likelihood = BernoulliLikelihood(link=link)
    signed = 2 * ZERO_ONE - 1
    for method in (likelihood.variational_expectations, likelihood.predict_log_density):
        assert torch.equal(method(ZERO_ONE, MEAN, VARIANCE), method(signed, MEAN, VARIANCE))
    likelihood.check_targets(signed)
    # A minibatch without -1 reads its labels as the full batch does.
    part = likelihood.variational_expectations(signed[1:], MEAN[1:], VARIANCE[1:])
    whole = likelihood.variational_expectations(signed, MEAN, VARIANCE)
    torch.testing.assert_close(part, whole[1:])


@pytest.mark.parametrize("labels, message", [([0.0, 2.0], "2.0"), ([-1.0, 0.0], "together")])
def test_other_codings_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        BernoulliLikelihood().check_targets(torch.tensor(labels))


def test_unknown_link_is_refused():
    with pytest.raises(InputError, match="cauchit"):
        BernoulliLikelihood(link="cauchit")


@given(mean=st.floats(-5, 5), variance=st.floats(0, 10))
def test_probit_prediction_is_exact(mean, variance):
    likelihood = BernoulliLikelihood()
    moments = [torch.tensor([value], dtype=torch.float64) for value in (mean, variance)]
    probability = likelihood.predict_mean_var(*moments)[0].item()
    assert probability == pytest.approx(stats.norm.cdf(mean / math.sqrt(1 + variance)), rel=1e-10)
    one = torch.ones(1, dtype=torch.float64)
    densities = [likelihood.predict_log_density(y, *moments) for y in (one, 0 * one)]
    assert torch.logaddexp(*densities).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("link, slope", [("probit", 80_000.0), ("logit", 400.0)])
def test_far_tails_stay_finite_with_their_gradients(link, slope):
    likelihood = BernoulliLikelihood(link=link)
    f = torch.tensor([-400.0, 400.0], dtype=torch.float64, requires_grad=True)
    wrong, right = likelihood.log_prob(f, torch.ones(2, dtype=torch.float64))
    assert -1.01 * slope < wrong.item() < -0.99 * slope and right.item() > -1e-100
    gradient = torch.autograd.grad(wrong + right, f)[0]
    assert bool(gradient.isfinite().all())
    assert bool(likelihood(f.detach().clamp(-30, 30)).logits.isfinite().all())


@pytest.mark.parametrize("link", ["probit", "logit"])
def test_marginal_is_bernoulli_with_the_predictive_probability(link):
    likelihood = BernoulliLikelihood(link=link)
    q_f = gpytorch.distributions.MultivariateNormal(MEAN, torch.diag(VARIANCE))
    marginal = likelihood(q_f)
    assert isinstance(marginal, torch.distributions.Bernoulli)
    probability = likelihood.predict_mean_var(MEAN, VARIANCE)[0]
    torch.testing.assert_close(marginal.probs, probability)


def test_logit_prediction_matches_dense_integration():
    grid = np.linspace(-10, 10, 2000)
    weights = stats.norm.pdf(grid) * (grid[1] - grid[0])
    for mean, variance in zip(MEAN.tolist(), VARIANCE.tolist(), strict=True):
        dense = (weights / (1 + np.exp(-(mean + math.sqrt(variance) * grid)))).sum()
        moments = [torch.tensor([value], dtype=torch.float64) for value in (mean, variance)]
        ours = BernoulliLikelihood(link="logit").predict_mean_var(*moments)[0].item()
        assert ours == pytest.approx(dense, abs=2e-5)


def test_quantiles_switch_at_the_probability():
    likelihood = BernoulliLikelihood()
    quantiles = likelihood.predict_quantiles([0.05, 0.49, 0.51, 0.95], MEAN * 0, VARIANCE)
    assert quantiles[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
