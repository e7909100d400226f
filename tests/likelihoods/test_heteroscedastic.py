"""Noise with a latent size: integrals over both latents, gradients, quantiles, and fits on priors."""

import math

import gpytorch
import numpy as np
import pytest
import torch
from scipy import stats

from gpvi.approximations import (
    Coreset,
    Exact,
    GaussianProcess,
    InducingPoints,
    SparseInverseCholesky,
    StateSpace,
)
from gpvi.exceptions import InputError
from gpvi.inference import cvi, fit
from gpvi.likelihoods import (
    GaussianLikelihood,
    HeteroscedasticGaussianLikelihood,
    HeteroscedasticStudentTLikelihood,
    StudentTLikelihood,
    sample_observations,
)

LIKELIHOODS = {
    "gaussian": HeteroscedasticGaussianLikelihood,
    "student_t": lambda: HeteroscedasticStudentTLikelihood(5.0),
}


def moments(*pairs: tuple[float, float]) -> torch.Tensor:
    """[2, N] from N pairs."""
    return torch.tensor(pairs, dtype=torch.float64).mT.contiguous()


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("y", [-3.0, 0.2, 8.0])
def test_matches_dense_integration(name, y):
    likelihood = LIKELIHOODS[name]()
    mean, variance = moments((0.3, -0.6)), moments((0.8, 0.3))
    grid = np.linspace(-8, 8, 801)
    weights = stats.norm.pdf(grid) / stats.norm.pdf(grid).sum()
    f = 0.3 + math.sqrt(0.8) * grid[:, None]
    g = -0.6 + math.sqrt(0.3) * grid
    both = torch.as_tensor(np.stack(np.broadcast_arrays(f, g), -1))
    values = likelihood.log_prob(both.reshape(-1, 1, 2), row(y)).detach().numpy().reshape(801, 801)
    joint = weights[:, None] * weights
    ours = likelihood.variational_expectations(row(y), mean, variance).item()
    assert ours == pytest.approx(float((joint * values).sum()), rel=1e-6)
    ours = likelihood.predict_log_density(row(y), mean, variance).item()
    assert ours == pytest.approx(math.log((joint * np.exp(values)).sum()), abs=1e-3)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_quantiles_and_moments_match_simulations(name):
    likelihood = LIKELIHOODS[name]()
    mean, variance = moments((0.3, -0.6), (5.0, 1.0)), moments((0.8, 0.3), (0.01, 0.2))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400_000, 2, 2, generator=generator, dtype=torch.float64)
    latents = mean.mT + variance.mT.sqrt() * noise
    y = sample_observations(likelihood, latents, generator)
    centre, spread = likelihood.predict_mean_var(mean, variance)
    torch.testing.assert_close(y.mean(0), centre.detach(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(y.var(0), spread.detach(), rtol=0.1, atol=0.02)
    levels = [0.001, 0.05, 0.5, 0.95]
    quantiles = likelihood.predict_quantiles(levels, mean, variance)
    assert quantiles.shape == (4, 2)
    for level, quantile in zip(levels, quantiles, strict=True):
        assert (y <= quantile).double().mean(0).tolist() == pytest.approx([level] * 2, abs=3e-3)


def test_known_scale_is_the_likelihood_of_one_latent():
    y, mean, variance = row(0.3, -2), moments((0.1, -1), (0.4, 0.5)), moments((0.3, 0), (1, 0))
    scales = mean[1].exp()
    for two, one in (
        (HeteroscedasticGaussianLikelihood(), lambda s: GaussianLikelihood(s**2)),
        (HeteroscedasticStudentTLikelihood(4.0), lambda s: StudentTLikelihood(4.0, s)),
    ):
        for method in ("variational_expectations", "predict_log_density"):
            found = getattr(two, method)(y, mean, variance)
            expected = [
                getattr(one(scales[k].item()), method)(
                    y[k : k + 1], mean[0, k : k + 1], variance[0, k : k + 1]
                )
                for k in range(2)
            ]
            torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients(name):
    likelihood = LIKELIHOODS[name]()
    y = row(0.3, -2)
    mean = moments((0.1, -1), (0.4, 0.5)).requires_grad_()
    variance = moments((0.3, 0.2), (1, 0.1)).requires_grad_()
    parameters = list(likelihood.parameters())

    def expected(mean, variance, *_):
        return likelihood.variational_expectations(y, mean, variance)

    assert torch.autograd.gradcheck(expected, (mean, variance, *parameters))


def test_degrees_of_freedom_are_checked():
    likelihood = HeteroscedasticStudentTLikelihood(learn_degrees_of_freedom=False)
    assert not likelihood.raw_degrees_of_freedom.requires_grad
    likelihood.degrees_of_freedom = 7.0
    assert likelihood.degrees_of_freedom.item() == pytest.approx(7.0)
    with pytest.raises(InputError, match="degrees_of_freedom"):
        likelihood.degrees_of_freedom = 2.0


NUM_ROWS = 60
X = torch.linspace(0, 1, NUM_ROWS, dtype=torch.float64)[:, None]
BASIS = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
SCALE = (-2.5 + 2.0 * X[:, 0]).exp()
APPROXIMATIONS = {
    "exact": Exact,
    "inducing": lambda: InducingPoints(inducing_points=BASIS),
    "sparse_inverse": lambda: SparseInverseCholesky(num_neighbors=8),
    "coreset": lambda: Coreset(points=BASIS),
    "state_space": StateSpace,
}


def process() -> GaussianProcess:
    """f and g with a kernel and a mean of their own."""
    shape = torch.Size([2])
    base = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=shape)
    kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=shape).double()
    base.lengthscale = torch.tensor([0.3, 0.8]).reshape(2, 1, 1).double()
    kernel.outputscale = torch.tensor([1.0, 1.0]).double()
    mean = gpytorch.means.ConstantMean(batch_shape=shape).double()
    mean.constant.data.copy_(torch.tensor([0.0, -1.5]))
    return GaussianProcess(kernel, mean)


def data(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(NUM_ROWS, generator=generator, dtype=torch.float64)
    y = torch.sin(6 * X[:, 0]) + SCALE * noise
    y[5] = math.nan
    return y


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_every_prior_takes_two_latents(name, approximation):
    prior = APPROXIMATIONS[approximation]().prior(process(), X)
    result = cvi(prior, LIKELIHOODS[name](), data(), max_steps=300)
    assert result.converged
    found = result.posterior.marginals()
    reference = cvi(Exact().prior(process(), X), LIKELIHOODS[name](), data(), max_steps=300)
    expected = reference.posterior.marginals()
    assert bool((found.variance > 0).all())
    tolerance = 0.5 * float(expected.variance.sqrt().max())
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=tolerance)
    correlation = torch.stack([found.mean[1], SCALE.log()]).corrcoef()[0, 1]
    assert correlation > 0.8


@pytest.mark.filterwarnings("ignore:The fit is not converged")
def test_changing_noise_is_learned_and_pays():
    y = data()
    two = fit(process(), Exact(), HeteroscedasticGaussianLikelihood(), X, y, max_iter=20)
    base = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
    one = fit(GaussianProcess(base), Exact(), GaussianLikelihood(0.1), X, y, max_iter=40)
    assert two.objective > one.objective + 3


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("seed", range(3))
def test_adversarial_targets_are_safe(name, seed):
    """Rare huge outliers and exact repeats, which no single scale of noise explains."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(NUM_ROWS, generator=generator, dtype=torch.float64)
    rare = torch.rand(NUM_ROWS, generator=generator, dtype=torch.float64) < 0.2
    y = torch.where(rare, 1e4 * (size - 0.5), 0.0)
    result = cvi(Exact().prior(process(), X), LIKELIHOODS[name](), y, max_steps=300)
    assert math.isfinite(result.objective) and bool((result.sites.lam2 >= 0).all())
    gains = torch.tensor(result.history).diff()
    assert bool((gains >= -1e-9 * abs(result.objective)).all())
    found = result.posterior.marginals()
    assert bool(found.mean.isfinite().all()) and bool((found.variance > 0).all())
