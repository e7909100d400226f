"""The Gaussian likelihood: parameters, known noise, and GPyTorch's marginal."""

import gpytorch
import pytest
import torch
from scipy import stats

from gpvi.exceptions import InputError
from gpvi.likelihoods import GaussianLikelihood

MEAN = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
Y = torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64)
KNOWN = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)


def test_noise_is_a_constrained_parameter_that_can_be_assigned():
    likelihood = GaussianLikelihood(noise=0.3, min_noise=1e-3)
    assert likelihood.noise.item() == pytest.approx(0.3, rel=1e-12)
    likelihood.noise = 0.1
    assert likelihood.noise.item() == pytest.approx(0.1, rel=1e-12)
    assert [name for name, _ in likelihood.named_parameters()] == ["raw_noise"]
    likelihood.raw_noise.data.fill_(-100.0)
    assert likelihood.noise.item() == pytest.approx(1e-3, rel=1e-6)
    assert likelihood.initialize(noise=0.7).noise.item() == pytest.approx(0.7, rel=1e-12)


@pytest.mark.parametrize("noise", [0.0, -1.0, 1e-7, float("nan")])
def test_noise_below_its_bound_is_refused(noise):
    with pytest.raises(InputError, match="lower bound"):
        GaussianLikelihood(noise=noise)


def test_noise_above_an_upper_bound_is_refused():
    with pytest.raises(InputError, match=r"upper bound 1.0, got 2.0"):
        GaussianLikelihood(noise=2.0, noise_constraint=gpytorch.constraints.Interval(0.01, 1.0))


def test_default_bound_allows_small_noise():
    assert GaussianLikelihood(noise=2e-6).noise.item() == pytest.approx(2e-6, rel=1e-6)


def test_known_noise_is_added_to_the_learnt_one():
    likelihood = GaussianLikelihood(noise=0.5)
    torch.testing.assert_close(likelihood.gaussian_noise(Y, noise=KNOWN), 0.5 + KNOWN)
    exact = torch.distributions.Normal(MEAN, (VARIANCE + 0.5 + KNOWN).sqrt()).log_prob(Y)
    torch.testing.assert_close(
        likelihood.predict_log_density(Y, MEAN, VARIANCE, noise=KNOWN), exact
    )


def test_known_noise_replaces_a_constant_that_is_not_learnt():
    likelihood = GaussianLikelihood(noise=0.5, learn_noise=False)
    assert not likelihood.raw_noise.requires_grad
    torch.testing.assert_close(likelihood.gaussian_noise(Y, noise=KNOWN), KNOWN)
    torch.testing.assert_close(likelihood.gaussian_noise(Y).expand(3), torch.full_like(Y, 0.5))


def test_quantiles_are_exact_and_differentiable():
    likelihood = GaussianLikelihood(noise=0.5)
    mean = MEAN.clone().requires_grad_()
    levels = [0.01, 0.5, 0.9]
    ours = likelihood.predict_quantiles(levels, mean, VARIANCE)
    deviation = (VARIANCE + 0.5).sqrt().numpy()
    for level, quantile in zip(levels, ours.detach().numpy(), strict=True):
        assert quantile == pytest.approx(stats.norm.ppf(level, MEAN, deviation), rel=1e-12)
    assert torch.autograd.grad(ours.sum(), mean)[0].tolist() == [3.0, 3.0, 3.0]


def test_batched_noise_meets_batches_and_single_rows():
    likelihood = GaussianLikelihood(noise=torch.tensor([[0.1], [0.4]]), batch_shape=(2,))
    assert likelihood.noise.shape == (2, 1)
    terms = likelihood.variational_expectations(Y, MEAN, VARIANCE)
    assert terms.shape == (2, 3)
    for row, noise in zip(terms, (0.1, 0.4), strict=True):
        alone = GaussianLikelihood(noise=noise).variational_expectations(Y, MEAN, VARIANCE)
        torch.testing.assert_close(row, alone, rtol=1e-6, atol=1e-6)
    assert likelihood.predict_quantiles([0.1, 0.2, 0.3], MEAN, VARIANCE).shape == (3, 2, 3)


def test_marginal_keeps_the_covariance_and_adds_noise():
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q_f = gpytorch.distributions.MultivariateNormal(MEAN, root @ root.mT)
    likelihood = GaussianLikelihood(noise=0.25)
    marginal = likelihood(q_f, noise=KNOWN)
    assert isinstance(marginal, gpytorch.distributions.MultivariateNormal)
    expected = root @ root.mT + torch.diag(0.25 + KNOWN)
    torch.testing.assert_close(marginal.covariance_matrix, expected)
    torch.testing.assert_close(marginal.mean, MEAN)
    batched = GaussianLikelihood(noise=0.25, batch_shape=(2,))(q_f)
    assert batched.batch_shape == (2,) and batched.covariance_matrix.shape == (2, 3, 3)


def test_multitask_distributions_are_refused():
    q_f = gpytorch.distributions.MultitaskMultivariateNormal(
        torch.zeros(3, 2), torch.eye(6, dtype=torch.float32)
    )
    likelihood = GaussianLikelihood()
    with pytest.raises(InputError, match="multitask"):
        likelihood(q_f)
    with pytest.raises(InputError, match="multitask"):
        likelihood.expected_log_prob(torch.zeros(3), q_f)


def test_agrees_with_gpytorch():
    ours = GaussianLikelihood(noise=0.3)
    theirs = gpytorch.likelihoods.GaussianLikelihood().double()
    theirs.noise = torch.tensor(0.3, dtype=torch.float64)
    covariance = torch.diag(VARIANCE + 0.1)
    q_f = gpytorch.distributions.MultivariateNormal(MEAN, covariance)
    for method in ("expected_log_prob", "log_marginal"):
        torch.testing.assert_close(
            getattr(ours, method)(Y, q_f), getattr(theirs, method)(Y, q_f), rtol=1e-7, atol=1e-7
        )


def test_noise_prior_by_name_counts_in_objectives_and_pickles():
    likelihood = GaussianLikelihood(noise=0.3)
    likelihood.register_prior("noise_prior", gpytorch.priors.GammaPrior(2.0, 1.0), "noise")
    names = [name for name, *_ in likelihood.named_priors()]
    assert names == ["noise_prior"]
