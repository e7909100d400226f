"""GPyTorch's likelihoods through as_likelihood: shared parameters, parity, and what is refused."""

import copy
import pickle

import gpytorch
import pytest
import torch
from gpytorch import likelihoods as theirs
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods import GaussianLikelihood, as_likelihood

REAL = torch.tensor([0.3, -1.2, 0.0, 2.5], dtype=torch.float64)
LABELS = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
COUNTS = torch.tensor([0.0, 3.0, 1.0, 7.0], dtype=torch.float64)
UNIT = torch.tensor([0.1, 0.5, 0.9, 0.3], dtype=torch.float64)
MEAN = torch.tensor([0.1, 0.4, -0.3, 1.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.5, 0.1, 1.0, 0.3], dtype=torch.float64)
Q_F = MultivariateNormal(MEAN, torch.diag(VARIANCE))

WITH_PARITY = {
    "gaussian": (theirs.GaussianLikelihood, REAL),
    "fixed_noise": (
        lambda: theirs.FixedNoiseGaussianLikelihood(VARIANCE + 0.1, learn_additional_noise=True),
        REAL,
    ),
    "bernoulli": (theirs.BernoulliLikelihood, LABELS),
    "laplace": (theirs.LaplaceLikelihood, REAL),
    "student_t": (theirs.StudentTLikelihood, REAL),
    "beta": (theirs.BetaLikelihood, UNIT),
    "poisson": (theirs.PoissonLikelihood, COUNTS),
    "negative_binomial": (theirs.NegativeBinomialLikelihood, COUNTS),
}


@pytest.mark.parametrize("name", WITH_PARITY)
def test_values_and_parameter_gradients_agree_with_gpytorch(name):
    build, y = WITH_PARITY[name]
    likelihood = build().double()
    expected = likelihood.expected_log_prob(y, Q_F)
    wrapped = as_likelihood(likelihood)
    ours = wrapped.expected_log_prob(y, Q_F)
    # GPyTorch's nodes are rounded to float32, and its log_normal_cdf is off by up to 3e-4.
    tolerance = 4e-4 if name == "bernoulli" else 1e-6
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=tolerance)
    # Its log densities use the plain rule, which a kinked or narrow likelihood defeats.
    torch.testing.assert_close(
        wrapped.log_marginal(y, Q_F), likelihood.log_marginal(y, Q_F), rtol=0, atol=0.06
    )
    for parameter in likelihood.parameters():
        gradients = [
            torch.autograd.grad(v.sum(), parameter, retain_graph=True)[0] for v in (ours, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", WITH_PARITY)
def test_the_module_is_shared_not_copied(name):
    likelihood = WITH_PARITY[name][0]().double()
    wrapped = as_likelihood(likelihood)
    assert wrapped.wrapped is likelihood and as_likelihood(wrapped) is wrapped
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in likelihood.parameters()}
    conditional, original = wrapped(MEAN), likelihood(MEAN)
    assert type(conditional) is type(original)
    torch.testing.assert_close(conditional.mean, original.mean)


def test_noise_is_live():
    likelihood = theirs.GaussianLikelihood().double()
    wrapped = as_likelihood(likelihood)
    likelihood.noise = torch.tensor(0.25, dtype=torch.float64)
    assert wrapped.gaussian_noise(REAL).tolist() == pytest.approx([0.25] * 4)
    marginal = wrapped(Q_F)
    torch.testing.assert_close(marginal.covariance_matrix, torch.diag(VARIANCE + 0.25))


def test_priors_of_the_wrapped_module_are_seen_once():
    likelihood = theirs.GaussianLikelihood(noise_prior=gpytorch.priors.GammaPrior(1.1, 0.5))
    wrapped = as_likelihood(likelihood)
    assert len(list(wrapped.named_priors())) == 1
    assert pickle.loads(pickle.dumps(wrapped)).wrapped.noise.item() == likelihood.noise.item()


def test_fixed_noise_follows_gpytorch_and_known_noise_is_not_doubled():
    fixed = theirs.FixedNoiseGaussianLikelihood(VARIANCE, learn_additional_noise=True).double()
    wrapped = as_likelihood(fixed)
    second = fixed.second_noise.item()
    torch.testing.assert_close(wrapped.gaussian_noise(REAL), VARIANCE + second)
    known = torch.full((4,), 0.7, dtype=torch.float64)
    torch.testing.assert_close(wrapped.gaussian_noise(REAL, noise=known), known + second)
    torch.testing.assert_close(
        wrapped(Q_F, noise=known).covariance_matrix, torch.diag(VARIANCE + known + second)
    )


def test_fixed_noise_of_another_length_is_refused():
    wrapped = as_likelihood(theirs.FixedNoiseGaussianLikelihood(VARIANCE))
    with pytest.raises(InputError, match="4 rows, but there are 2"):
        wrapped.variational_expectations(REAL[:2], MEAN[:2], VARIANCE[:2])
    terms = wrapped.variational_expectations(REAL[:2], MEAN[:2], VARIANCE[:2], noise=VARIANCE[:2])
    assert terms.shape == (2,)


def test_dirichlet_classification_is_a_batch_of_gaussians():
    labels = torch.tensor([0, 2, 1, 0])
    likelihood = theirs.DirichletClassificationLikelihood(labels, dtype=torch.float64)
    wrapped = as_likelihood(likelihood)
    mean, variance = MEAN.expand(3, 4), VARIANCE.expand(3, 4)
    ours = wrapped.variational_expectations(likelihood.transformed_targets, mean, variance)
    q_f = MultivariateNormal(mean, torch.diag_embed(variance))
    expected = likelihood.expected_log_prob(likelihood.transformed_targets, q_f)
    torch.testing.assert_close(ours, expected)


def test_multitask_gaussian_agrees_with_gpytorch():
    likelihood = theirs.MultitaskGaussianLikelihood(num_tasks=2).double()
    wrapped = as_likelihood(likelihood)
    y = torch.stack([REAL, UNIT], -1)
    mean, variance = torch.stack([MEAN, -MEAN]), torch.stack([VARIANCE, 2 * VARIANCE])
    for interleaved in (True, False):
        diagonal = variance.mT.reshape(-1) if interleaved else variance.reshape(-1)
        q_f = MultitaskMultivariateNormal(mean.mT, torch.diag(diagonal), interleaved=interleaved)
        expected = wrapped.variational_expectations(y, mean, variance)
        torch.testing.assert_close(wrapped.expected_log_prob(y, q_f), expected)
        if interleaved:
            torch.testing.assert_close(likelihood.expected_log_prob(y, q_f), expected)
            density = wrapped.predict_log_density(y, mean, variance)
            torch.testing.assert_close(likelihood.log_marginal(y, q_f), density)
            torch.testing.assert_close(
                wrapped(q_f).covariance_matrix, likelihood(q_f).covariance_matrix
            )


def test_multitask_gaussian_with_correlated_noise_is_exact():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        likelihood = theirs.MultitaskGaussianLikelihood(num_tasks=2, rank=1).double()
    wrapped = as_likelihood(likelihood)
    y = torch.stack([REAL, UNIT], -1)
    mean, variance = torch.stack([MEAN, -MEAN]), torch.stack([VARIANCE, 2 * VARIANCE])
    noise = likelihood.task_noise_covar + likelihood.noise * torch.eye(2, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(mean.mT, noise)
    trace = (noise.inverse().diagonal() * variance.mT).sum(-1)
    exact = normal.log_prob(y) - 0.5 * trace
    torch.testing.assert_close(wrapped.variational_expectations(y, mean, variance), exact)
    total = torch.diag_embed(variance.mT) + noise
    exact = torch.distributions.MultivariateNormal(mean.mT, total).log_prob(y)
    torch.testing.assert_close(wrapped.predict_log_density(y, mean, variance), exact)
    exact = normal.log_prob(y)
    torch.testing.assert_close(wrapped.log_prob(mean.mT, y), exact)


def test_multitask_rows_are_observed_as_a_whole():
    wrapped = as_likelihood(theirs.MultitaskGaussianLikelihood(num_tasks=2).double())
    y = torch.stack([REAL, UNIT], -1)
    y[1, 0] = float("nan")
    with pytest.raises(InputError, match="all outputs or none"):
        wrapped.check_targets(y)
    terms = wrapped.variational_expectations(y, MEAN.expand(2, 4), VARIANCE.expand(2, 4))
    assert (terms == 0).tolist() == [False, True, False, False]


def softmax(mixing: bool) -> theirs.SoftmaxLikelihood:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return theirs.SoftmaxLikelihood(
            num_features=3, num_classes=4 if mixing else 3, mixing_weights=mixing
        ).double()


@pytest.mark.parametrize("mixing", [True, False])
@pytest.mark.parametrize("num_rows", [3, 4])  # three rows: as many as latents
def test_softmax_matches_monte_carlo(mixing, num_rows):
    likelihood = softmax(mixing)
    wrapped = as_likelihood(likelihood)
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, num_rows, generator=generator, dtype=torch.float64)
    variance = torch.rand(3, num_rows, generator=generator, dtype=torch.float64)
    y = torch.tensor([0.0, 2.0, 1.0, 2.0], dtype=torch.float64)[:num_rows]
    noise = torch.randn(100_000, num_rows, 3, generator=generator, dtype=torch.float64)
    f = mean.mT + variance.mT.sqrt() * noise
    logits = f if likelihood.mixing_weights is None else f @ likelihood.mixing_weights.mT
    log_prob = torch.distributions.Categorical(logits=logits).log_prob(y)
    ours = wrapped.variational_expectations(y, mean, variance)
    torch.testing.assert_close(ours, log_prob.mean(0), rtol=0, atol=0.02)
    ours = wrapped.predict_log_density(y, mean, variance)
    torch.testing.assert_close(ours, log_prob.exp().mean(0).log(), rtol=0, atol=0.02)
    probability, spread = wrapped.predict_mean_var(mean, variance)
    torch.testing.assert_close(probability, logits.softmax(-1).mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(spread, probability * (1 - probability), rtol=0, atol=1e-12)


def test_softmax_sees_the_same_objective_in_minibatches():
    wrapped = as_likelihood(softmax(True))
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    y = torch.tensor([0.0, 2.0, 1.0, 3.0, 0.0, 1.0], dtype=torch.float64)
    whole = wrapped.variational_expectations(y, mean, mean.square())
    part = wrapped.variational_expectations(y[3:], mean[:, 3:], mean[:, 3:].square())
    torch.testing.assert_close(whole[3:], part)
    q_f = MultitaskMultivariateNormal.from_batch_mvn(
        MultivariateNormal(mean, torch.diag_embed(mean.square()))
    )
    torch.testing.assert_close(wrapped.expected_log_prob(y, q_f), whole)
    assert (
        wrapped.train().expected_log_prob(y, q_f).sum()
        == wrapped.eval().expected_log_prob(y, q_f).sum()
    )


def test_wrong_number_of_latents_is_refused():
    wrapped = as_likelihood(softmax(True))
    with pytest.raises(InputError, match="3 latents"):
        wrapped.variational_expectations(COUNTS, MEAN, VARIANCE)
    with pytest.raises(InputError, match="3 latents"):
        wrapped.expected_log_prob(COUNTS, Q_F)


class OwnExpectation(theirs.Likelihood):
    """A user's likelihood with its own formula for the expectation."""

    def forward(self, function_samples, *args, **kwargs):
        return torch.distributions.Normal(function_samples, 1.0)

    def expected_log_prob(self, observations, function_dist, *args, **kwargs):
        residual = observations - function_dist.mean
        return -residual.square() - 3.0 * function_dist.variance


def test_own_expectations_are_used_with_raw_variances():
    wrapped = as_likelihood(OwnExpectation())
    tiny = torch.full_like(MEAN, 1e-10).requires_grad_()
    value = wrapped.variational_expectations(REAL, MEAN, tiny)
    torch.testing.assert_close(value, -(REAL - MEAN).square() - 3e-10)
    assert torch.autograd.grad(value.sum(), tiny)[0].tolist() == [-3.0] * 4


def test_quantiles_without_distribution_function_are_refused():
    class Triangle(torch.distributions.Uniform):
        def cdf(self, value):
            raise NotImplementedError

    class Odd(theirs.likelihood._OneDimensionalLikelihood):
        def forward(self, function_samples, *args, **kwargs):
            return Triangle(function_samples - 1, function_samples + 1)

    with pytest.raises(UnsupportedError, match="Triangle"):
        as_likelihood(Odd()).predict_quantiles([0.5], MEAN, VARIANCE)


@pytest.mark.parametrize("nonsense", [None, "gaussian", theirs.GaussianLikelihood, MEAN])
def test_other_objects_are_refused(nonsense):
    with pytest.raises(InputError, match="gpytorch likelihood"):
        as_likelihood(nonsense)


def test_input_dependent_noise_and_lists_are_refused():
    noise_model = gpytorch.likelihoods.noise_models.HeteroskedasticNoise(torch.nn.Identity())
    heteroskedastic = theirs.gaussian_likelihood._GaussianLikelihoodBase(noise_model)
    hadamard = theirs.HadamardGaussianLikelihood(num_tasks=2)
    for likelihood in (heteroskedastic, hadamard):
        with pytest.raises(UnsupportedError, match="row argument `noise`"):
            as_likelihood(likelihood)
    with pytest.raises(UnsupportedError, match="each of them"):
        as_likelihood(theirs.LikelihoodList(theirs.GaussianLikelihood()))


def test_copies_keep_their_own_module():
    wrapped = as_likelihood(theirs.StudentTLikelihood().double())
    clone = copy.deepcopy(wrapped)
    clone.wrapped.noise = 9.0
    assert wrapped.wrapped.noise.item() != clone.wrapped.noise.item()
    ours = GaussianLikelihood()
    assert as_likelihood(ours) is ours
