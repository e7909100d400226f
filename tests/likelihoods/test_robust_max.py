"""Classes by the largest latent: probabilities, wrong labels, refusals, fits on priors."""

import math

import gpytorch
import pytest
import torch

from gpvi.approximations import (
    Coreset,
    Exact,
    GaussianProcess,
    InducingPoints,
    SparseInverseCholesky,
    StateSpace,
)
from gpvi.exceptions import InputError
from gpvi.inference import cvi
from gpvi.likelihoods import RobustMaxLikelihood


def moments(seed: int = 0, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(3, size, generator=generator, dtype=torch.float64)
    return mean, torch.rand(3, size, generator=generator, dtype=torch.float64) + 0.1


def test_probabilities_match_simulations():
    mean, variance = moments()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(400_000, 6, 3, generator=generator, dtype=torch.float64)
    winner = (mean.mT + variance.mT.sqrt() * noise).argmax(-1)
    likelihood = RobustMaxLikelihood(3, 0.1)
    probabilities, _ = likelihood.predict_mean_var(mean, variance)
    for c in range(3):
        share = (winner == c).double().mean(0)
        label = torch.full((6,), float(c), dtype=torch.float64)
        density = likelihood.predict_log_density(label, mean, variance).exp()
        expected = 0.9 * share + 0.05 * (1 - share)
        torch.testing.assert_close(density.detach(), expected, rtol=0, atol=3e-3)
        torch.testing.assert_close(probabilities[:, c], density, rtol=1e-6, atol=1e-6)
        value = likelihood.variational_expectations(label, mean, variance)
        expected = share * math.log(0.9) + (1 - share) * math.log(0.05)
        torch.testing.assert_close(value.detach(), expected, rtol=0, atol=0.01)
    assert probabilities.sum(-1).tolist() == pytest.approx([1.0] * 6)


def test_two_classes_are_a_normal_probability():
    mean, variance = (moment[:2] for moment in moments())
    likelihood, label = RobustMaxLikelihood(2, 0.2), torch.ones(6).double()
    chance = torch.special.ndtr((mean[1] - mean[0]) / variance.sum(0).sqrt())
    density = likelihood.predict_log_density(label, mean, variance).exp()
    torch.testing.assert_close(density, 0.2 + 0.6 * chance, rtol=1e-6, atol=1e-6)


def test_gradients():
    mean, variance = (moment.requires_grad_() for moment in moments())
    y = torch.tensor([0.0, 1, 2, 0, 1, 2], dtype=torch.float64)
    likelihood = RobustMaxLikelihood(3, 0.1)
    parameters = list(likelihood.parameters())

    def expected(mean, variance, *_):
        return likelihood.variational_expectations(y, mean, variance)

    assert torch.autograd.gradcheck(expected, (mean, variance, *parameters))


def test_a_wrong_label_costs_no_more_than_its_probability():
    likelihood = RobustMaxLikelihood(3, 0.01)
    mean = torch.tensor([[1000.0], [0.0], [0.0]]).double().requires_grad_()
    value = likelihood.variational_expectations(torch.ones(1), mean, torch.ones(3, 1).double())
    assert value.item() == pytest.approx(math.log(0.005))
    assert not bool(torch.autograd.grad(value.sum(), mean)[0].any())


def test_refusals():
    for size in (1, 2.5):
        with pytest.raises(InputError, match="num_classes"):
            RobustMaxLikelihood(size)
    for noise in (0.0, 0.5, 0.7):
        with pytest.raises(InputError, match="label_noise"):
            RobustMaxLikelihood(3, noise)
    likelihood = RobustMaxLikelihood(3, learn_label_noise=False)
    assert not likelihood.raw_label_noise.requires_grad
    for bad in (-1.0, 3.0, 0.5):
        with pytest.raises(InputError, match=f"0, 1, ..., 2, got {bad}"):
            likelihood.check_targets(torch.tensor([0.0, bad]))
    with pytest.raises(InputError, match="3 latents"):
        likelihood.variational_expectations(torch.zeros(4), torch.zeros(2, 4), torch.ones(2, 4))


NUM_ROWS = 60
X = torch.linspace(0, 1, NUM_ROWS, dtype=torch.float64)[:, None]
BASIS = torch.linspace(0, 1, 25, dtype=torch.float64)[:, None]
APPROXIMATIONS = {
    "exact": Exact,
    "inducing": lambda: InducingPoints(inducing_points=BASIS),
    "sparse_inverse": lambda: SparseInverseCholesky(num_neighbors=8),
    "coreset": lambda: Coreset(points=BASIS),
    "state_space": StateSpace,
}


def process() -> GaussianProcess:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
    kernel.base_kernel.lengthscale = 0.4
    return GaussianProcess(
        kernel, gpytorch.means.ConstantMean(batch_shape=torch.Size([3])).double()
    )


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_every_prior_finds_classes_behind_wrong_labels(approximation):
    truth = (3 * X[:, 0]).floor().clamp_max(2)
    y = truth.clone()
    y[[4, 25, 50]] = torch.tensor([2.0, 0.0, 1.0]).double()
    y[10] = math.nan
    likelihood = RobustMaxLikelihood(3, 0.05)
    result = cvi(APPROXIMATIONS[approximation]().prior(process(), X), likelihood, y, max_steps=200)
    gains = torch.tensor(result.history).diff()
    assert bool((gains >= -1e-8 * abs(result.objective)).all())
    assert bool((result.sites.lam2 >= 0).all())
    found = result.posterior.marginals()
    probabilities, _ = likelihood.predict_mean_var(found.mean, found.variance)
    assert (probabilities.argmax(-1) == truth).double().mean() > 0.93


@pytest.mark.parametrize("seed", range(3))
def test_labels_at_random_are_safe(seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (NUM_ROWS,), generator=generator).double()
    result = cvi(Exact().prior(process(), X), RobustMaxLikelihood(3, 1e-6), y, max_steps=200)
    assert math.isfinite(result.objective)
    found = result.posterior.marginals()
    assert bool(found.mean.isfinite().all()) and bool((found.variance > 0).all())
