"""Draws of new observations: moments, reproducibility, and the global generator left alone."""

import gpytorch
import pytest
import torch
from scipy import stats

from gpvi.exceptions import InputError, NumericalError
from gpvi.likelihoods import (
    BernoulliLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    as_likelihood,
    sample_observations,
)
from gpvi.likelihoods.moments import mean_and_variance

NUM_ROWS = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def function_samples(case, *batch: int) -> torch.Tensor:
    mean = case.moments(*batch)[0]
    return mean if case.build().num_latents == 1 else mean.mT


def test_shapes_dtypes_and_gradients(case):
    likelihood = case.build()
    f = function_samples(case, 7, 2).requires_grad_()
    y = sample_observations(likelihood, f, seeded(), **case.rows)
    assert y.shape == (7, 2, *case.y.shape)
    assert y.dtype == torch.float64 and not y.requires_grad
    likelihood.check_targets(y, **case.rows)
    rows = {name: value.float() for name, value in case.rows.items()}
    single = sample_observations(case.build().float(), f.detach().float(), seeded(), **rows)
    assert single.dtype == torch.float32 and single.shape == y.shape


def test_moments_are_those_of_the_conditional_distribution(single):
    likelihood = single.build()
    f = function_samples(single)
    y = sample_observations(likelihood, f.expand(100_000, -1), seeded(1), **single.rows)
    mean, variance = mean_and_variance(likelihood.forward(f, **single.rows))
    torch.testing.assert_close(y.mean(0), mean, rtol=0.03, atol=0.03)
    torch.testing.assert_close(y.var(0), variance, rtol=0.15, atol=0.02)


def test_same_generator_state_same_draw(case):
    likelihood, f = case.build(), function_samples(case)
    first = sample_observations(likelihood, f, seeded(3), **case.rows)
    torch.rand(4)
    assert torch.equal(sample_observations(likelihood, f, seeded(3), **case.rows), first)
    many = f.expand(20, *f.shape)
    generator = seeded(3)
    one = sample_observations(likelihood, many, generator, **case.rows)
    assert not torch.equal(sample_observations(likelihood, many, generator, **case.rows), one)


def test_global_generator_is_untouched(case):
    likelihood, f = case.build(), function_samples(case)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    sample_observations(likelihood, f, seeded(), **case.rows)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_global_generator_is_restored_after_a_failure(monkeypatch):
    likelihood = as_likelihood(gpytorch.likelihoods.LaplaceLikelihood())

    def fail(self, sample_shape=()):
        torch.rand(3)
        raise RuntimeError("no sample")

    monkeypatch.setattr(torch.distributions.Laplace, "sample", fail)
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="no sample"):
        sample_observations(likelihood, torch.zeros(3), seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("nu", [2.2, 5.0, 80.0])
def test_student_t_has_the_right_distribution(nu):
    likelihood = StudentTLikelihood(degrees_of_freedom=nu, scale=0.7)
    f = torch.full((20_000,), 1.5, dtype=torch.float64)
    y = sample_observations(likelihood, f, seeded(2))
    assert stats.kstest(y.numpy(), stats.t(nu, 1.5, 0.7).cdf).pvalue > 0.01


def test_row_extras_reach_the_draw_and_weights_do_not_matter():
    f, exposure = torch.zeros(50_000, 2), torch.tensor([0.5, 20.0])
    likelihood = PoissonLikelihood()
    y = sample_observations(likelihood, f, seeded(), exposure=exposure)
    torch.testing.assert_close(y.mean(0), exposure, rtol=0.03, atol=0)
    weighted = sample_observations(
        likelihood, f, seeded(), exposure=exposure, weights=torch.tensor([3.0, 0.0])
    )
    assert torch.equal(y, weighted)
    with pytest.raises(InputError, match="exposures"):
        sample_observations(likelihood, f, seeded(), exposures=exposure)


def test_correlated_noise_across_outputs_is_kept():
    theirs = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=3, rank=2).double()
    theirs.task_noise_covar_factor.data = torch.tensor(
        [[1.0, 0.0], [0.8, 0.3], [-0.5, 0.9]], dtype=torch.float64
    )
    likelihood = as_likelihood(theirs)
    y = sample_observations(likelihood, torch.zeros(100_000, 1, 3).double(), seeded())
    expected = likelihood._noise_covariance(y)
    torch.testing.assert_close(y[:, 0].mT.cov(), expected.detach(), rtol=0.03, atol=0.03)


def test_subclasses_of_known_distributions_sample_themselves():
    class Shifted(torch.distributions.Normal):
        def sample(self, sample_shape=()):
            return super().sample(torch.Size(sample_shape)) + 100

    class Theirs(gpytorch.likelihoods.likelihood._OneDimensionalLikelihood):
        def forward(self, function_samples, *args, **kwargs):
            return Shifted(function_samples, 1.0)

    y = sample_observations(as_likelihood(Theirs()), torch.zeros(50), seeded())
    assert y.min() > 90


def test_huge_counts_do_not_overflow():
    f = torch.tensor([3.0, 30.0, 45.0, 300.0], dtype=torch.float64).expand(2000, -1)
    y = sample_observations(PoissonLikelihood(), f, seeded())
    assert bool((y >= 0).all()) and torch.equal(y, y.round())
    relative = (y / f.exp() - 1)[:, 1:]
    assert bool((relative.abs() < 6 * (-0.5 * f[:, 1:]).exp() + 1e-15).all())
    with pytest.raises(NumericalError, match="float32"):
        sample_observations(PoissonLikelihood(), torch.full((3,), 100.0), seeded())


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match=r"torch\.Generator"):
        sample_observations(BernoulliLikelihood(), torch.zeros(3), 0)
    with pytest.raises(InputError, match="as_likelihood"):
        sample_observations(gpytorch.likelihoods.GaussianLikelihood(), torch.zeros(3), seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_generator_and_samples_on_different_devices(case, device):
    f = function_samples(case).to("cuda")
    generator = torch.Generator(device).manual_seed(0)
    before = torch.random.get_rng_state(), torch.cuda.get_rng_state()
    rows = {name: value.to("cuda") for name, value in case.rows.items()}
    y = sample_observations(case.build().to("cuda"), f, generator, **rows)
    assert y.is_cuda
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(), before[1])
