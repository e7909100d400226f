"""The linear readout: closed forms, matrix duals, missing entries, densities, and ordinary use."""

import copy
import math
import pickle
from pathlib import Path

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import cvi
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    Likelihood,
    LinearReadoutLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    sample_observations,
)
from gpvi.likelihoods.slopes import expectation_slopes
from gpvi.persistence import load_object, save_object

N, P, K = 6, 4, 2
BASES = {
    "poisson": PoissonLikelihood,
    "softplus": lambda: PoissonLikelihood(link="softplus"),
    "gaussian": lambda: GaussianLikelihood(noise=0.3),
    "noise per output": lambda: GaussianLikelihood(
        noise=torch.linspace(0.2, 0.8, P).double().unsqueeze(-1), batch_shape=torch.Size([P])
    ),
    "bernoulli": lambda: BernoulliLikelihood(link="logit"),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def readout(base: Likelihood, num_latents: int = K) -> LinearReadoutLikelihood:
    return LinearReadoutLikelihood(base, normal(P, num_latents, seed=1), normal(P, seed=2))


def counts() -> Tensor:
    return normal(N, P, seed=3).abs().round().clamp_max(1.0)


def covariances(*batch: int) -> Tensor:
    root = normal(*batch, N, K, K, seed=4)
    return root @ root.mT + 0.1 * torch.eye(K).double()


@pytest.mark.parametrize("name", BASES)
def test_expectations_are_those_of_the_projections(name: str) -> None:
    likelihood, y = readout(BASES[name]()), counts()
    mean, variance = normal(K, N), normal(K, N, seed=5).square()
    C, d = likelihood.loadings, likelihood.offset
    for p in range(P):
        alone = y.clone()
        alone[:, [q for q in range(P) if q != p]] = torch.nan
        value = likelihood.variational_expectations(alone, mean, variance)
        single = copy.deepcopy(likelihood.base)
        if name == "noise per output":
            single = GaussianLikelihood(noise=single.noise.detach()[p])
        moments = C[p] @ mean + d[p], C[p].square() @ variance
        torch.testing.assert_close(value, single.variational_expectations(y[:, p], *moments))


def test_poisson_and_gaussian_are_closed_forms() -> None:
    y, mean, variance = counts(), normal(K, N), normal(K, N, seed=5).square()
    C, d = normal(P, K, seed=1), normal(P, seed=2)
    eta, v = (C @ mean).mT + d, (C.square() @ variance).mT
    poisson = (y * eta - (eta + 0.5 * v).exp() - torch.lgamma(y + 1)).sum(-1)
    gaussian = -0.5 * (((y - eta).square() + v) / 0.3 + math.log(2 * math.pi * 0.3)).sum(-1)
    for base, expected in ((PoissonLikelihood(), poisson), (BASES["gaussian"](), gaussian)):
        value = readout(base).variational_expectations(y, mean, variance)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_matrix_duals_are_derivatives(name: str, batch: tuple[int, ...]) -> None:
    """By automatic differentiation in mean and full covariance, with gaps and weights."""
    likelihood, y = readout(BASES[name]()), counts()
    y[1], y[2, 0] = torch.nan, torch.nan
    y, weights = y.expand(*batch, N, P), torch.linspace(0.5, 2.0, N).double()
    mean = normal(*batch, N, K).requires_grad_()
    covariance = covariances(*batch).requires_grad_()
    C = likelihood.loadings.detach()
    moments = mean @ C.mT + likelihood.offset.detach(), ((covariance @ C.mT) * C.mT).sum(-2)
    value = likelihood.base.variational_expectations(
        y.mT, moments[0].mT, moments[1].mT, weights=weights
    ).sum(-2)
    by_mean, by_covariance = torch.autograd.grad(value.sum(), (mean, covariance))
    found, j, J = likelihood.matrix_duals(y, mean, covariance, weights=weights)
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(J, -2.0 * by_covariance)
    torch.testing.assert_close(j, by_mean + (J @ mean.detach().unsqueeze(-1)).squeeze(-1))
    assert not bool(J[..., 1, :, :].any()) and not bool(j[..., 1, :].any())
    assert not j.requires_grad and bool((torch.linalg.eigvalsh(J) > -1e-12).all())


def test_negative_curvature_counts_as_zero() -> None:
    likelihood = readout(StudentTLikelihood(scale=0.1))
    y = 20.0 + counts()
    _, _, J = likelihood.matrix_duals(y, normal(N, K), 1e-3 * covariances())
    assert bool((J == 0).all())


def test_diagonal_covariances_agree_with_the_ordinary_moments() -> None:
    likelihood, y = readout(PoissonLikelihood()), counts()
    mean, variance = normal(K, N), normal(K, N, seed=5).square()
    expected = expectation_slopes(likelihood, y, mean, variance)
    value, _, J = likelihood.matrix_duals(y, mean.mT, torch.diag_embed(variance.mT))
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(J.diagonal(dim1=-1, dim2=-2).mT, -2.0 * expected[2])


def test_missing_entries_contribute_nothing() -> None:
    likelihood, y = readout(PoissonLikelihood()), counts()
    mean, variance = normal(K, N).requires_grad_(), normal(K, N, seed=5).square()
    fewer = LinearReadoutLikelihood(
        PoissonLikelihood(), likelihood.loadings[1:], likelihood.offset[1:]
    )
    y[:, 0] = torch.nan
    expected = fewer.variational_expectations(y[:, 1:], mean, variance)
    value = likelihood.variational_expectations(y, mean, variance)
    torch.testing.assert_close(value, expected)
    slope = torch.autograd.grad(value.sum(), likelihood.loadings)[0]
    assert bool((slope[0] == 0).all()) and bool(slope.isfinite().all())
    score = likelihood.predict_log_density(y, mean, variance)
    torch.testing.assert_close(score, fewer.predict_log_density(y[:, 1:], mean, variance))
    y[2] = torch.nan
    assert likelihood.missing(y).tolist() == [False, False, True, False, False, False]
    assert likelihood.predict_log_density(y, mean, variance).isnan().sum() == 1


@pytest.mark.parametrize("num_latents", [1, 2, 3, 7, 12])
def test_density_of_a_gaussian_base_is_exact(num_latents: int) -> None:
    likelihood = readout(GaussianLikelihood(noise=0.3), num_latents)
    y, mean = normal(N, P, seed=3), normal(num_latents, N)
    variance = normal(num_latents, N, seed=5).square()
    if num_latents == 1:
        mean, variance = mean[0], variance[0]
    density = likelihood.predict_log_density(y, mean, variance)
    C = likelihood.loadings
    for n in range(N):
        m, v = (t[None, n] if num_latents == 1 else t[:, n] for t in (mean, variance))
        covariance = (C * v) @ C.mT + 0.3 * torch.eye(P).double()
        exact = torch.distributions.MultivariateNormal(C @ m + likelihood.offset, covariance)
        torch.testing.assert_close(density[n], exact.log_prob(y[n]))


def test_density_of_counts_matches_simulation() -> None:
    likelihood, y = readout(PoissonLikelihood()), counts()
    mean, variance = normal(K, N), 0.5 * normal(K, N, seed=5).square()
    z = mean.mT + variance.sqrt().mT * normal(400_000, N, K, seed=6)
    simulated = likelihood.log_prob(z, y).logsumexp(0) - math.log(len(z))
    density = likelihood.predict_log_density(y, mean, variance)
    torch.testing.assert_close(density, simulated, rtol=0, atol=0.02)


def test_density_far_from_the_prior() -> None:
    """Two hundred neurons pin the latent down far from where q expected it."""
    C = 0.5 * normal(200, 1, seed=1)
    likelihood = LinearReadoutLikelihood(PoissonLikelihood(), C)
    y = (3.0 * C.mT).exp().round()
    grid = torch.linspace(-8, 8, 20_001).double()
    weight = torch.distributions.Normal(0.0, 1.0).log_prob(grid) + math.log(16 / 20_000)
    exact = (likelihood.log_prob(grid.unsqueeze(-1), y)[:, 0] + weight).logsumexp(0)
    zero = torch.zeros(1).double()
    density = likelihood.predict_log_density(y, zero, zero + 1.0)
    torch.testing.assert_close(density[0], exact, rtol=0, atol=1e-6)


def test_moments_and_draws_agree() -> None:
    likelihood = readout(PoissonLikelihood())
    mean, variance = 0.3 * normal(K, N), 0.1 * torch.ones(K, N).double()
    generator = torch.Generator().manual_seed(0)
    z = mean.mT + variance.sqrt().mT * normal(50_000, N, K, seed=6)
    y = sample_observations(likelihood, z, generator)
    assert y.shape == (50_000, N, P)
    centre, spread = likelihood.predict_mean_var(mean, variance)
    assert centre.shape == spread.shape == (N, P)
    torch.testing.assert_close(y.mean(0), centre, rtol=0.05, atol=0.02)
    torch.testing.assert_close(y.var(0), spread, rtol=0.15, atol=0.05)
    exposed = likelihood.predict_mean_var(mean, variance, exposure=torch.full((N,), 2.0))[0]
    torch.testing.assert_close(exposed, 2.0 * centre)


@pytest.mark.parametrize("name", BASES)
def test_conditional_distribution_has_outputs_last(name: str) -> None:
    likelihood = readout(BASES[name]())
    conditional = likelihood(normal(3, N, K))
    assert conditional.batch_shape == (3, N) and conditional.event_shape == (P,)
    torch.testing.assert_close(
        conditional.log_prob(counts()), likelihood.log_prob(normal(3, N, K), counts())
    )


@pytest.mark.parametrize("num_latents", [1, 2])
@pytest.mark.parametrize("name", ["poisson", "gaussian", "bernoulli"])
def test_ordinary_inference_takes_it(name: str, num_latents: int) -> None:
    likelihood, y = readout(BASES[name](), num_latents), counts()
    y[1], y[2, 0] = torch.nan, torch.nan
    x = torch.linspace(0, 1, N, dtype=torch.float64).unsqueeze(-1)
    batch = torch.Size([] if num_latents == 1 else [num_latents])
    kernel = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=batch).double()
    mean = gpytorch.means.ZeroMean(batch_shape=batch)
    result = cvi(Exact().prior(GaussianProcess(kernel, mean), x), likelihood, y)
    assert result.converged and bool((torch.tensor(result.history).diff() >= -1e-8).all())
    assert bool((result.sites.lam2[..., 1] == 0).all())


def test_gaussian_base_gives_the_mean_field_bound_of_the_evidence() -> None:
    """With orthogonal loadings the latents do not couple, and the bound is the evidence."""
    C = torch.linalg.qr(normal(P, K, seed=1))[0]
    likelihood = LinearReadoutLikelihood(GaussianLikelihood(noise=0.3), C)
    x = torch.linspace(0, 1, N, dtype=torch.float64).unsqueeze(-1)
    kernel = parse_kernel("matern32", 1, batch_shape=torch.Size([K]))
    zero = gpytorch.means.ZeroMean(batch_shape=torch.Size([K]))
    y = normal(N, P, seed=3)
    result = cvi(Exact().prior(GaussianProcess(kernel, zero), x), likelihood, y, tolerance=1e-10)
    Kff = kernel(x).to_dense()[0].detach()
    covariance = torch.kron(Kff, C @ C.mT) + 0.3 * torch.eye(N * P).double()
    zeros = torch.zeros(N * P).double()
    exact = torch.distributions.MultivariateNormal(zeros, covariance).log_prob(y.flatten())
    assert result.objective == pytest.approx(float(exact), abs=1e-5)


def test_gpytorch_base_and_training_by_gradient() -> None:
    likelihood = LinearReadoutLikelihood(
        gpytorch.likelihoods.GaussianLikelihood().double(), normal(P, K, seed=1)
    )
    names = {name for name, parameter in likelihood.named_parameters()}
    assert {"loadings", "offset"} < names and len(names) == 3
    value = likelihood.variational_expectations(counts(), normal(K, N), torch.ones(K, N).double())
    value.sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in likelihood.parameters())


def test_single_precision_pickle_copy_and_state() -> None:
    likelihood, y = readout(PoissonLikelihood()), counts()
    mean, covariance = normal(N, K), covariances()
    exact = likelihood.matrix_duals(y, mean, covariance)
    for clone in (pickle.loads(pickle.dumps(likelihood)), copy.deepcopy(likelihood)):
        assert all(map(torch.equal, clone.matrix_duals(y, mean, covariance), exact))
    fresh = LinearReadoutLikelihood(PoissonLikelihood(), torch.zeros(P, K).double())
    fresh.load_state_dict(likelihood.state_dict())
    assert all(map(torch.equal, fresh.matrix_duals(y, mean, covariance), exact))
    rough = likelihood.float().matrix_duals(y.float(), mean.float(), covariance.float())
    for value, reference in zip(rough, exact, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), reference, rtol=1e-4, atol=1e-4)


def test_bad_arguments() -> None:
    base, C = PoissonLikelihood(), torch.ones(P, K)
    with pytest.raises(InputError, match="loadings has shape"):
        LinearReadoutLikelihood(base, torch.ones(P))
    with pytest.raises(InputError, match="offset has shape"):
        LinearReadoutLikelihood(base, C, torch.zeros(P + 1))
    with pytest.raises(InputError, match="finite"):
        LinearReadoutLikelihood(base, C / 0.0)
    with pytest.raises(InputError, match="latents"):
        LinearReadoutLikelihood(gpytorch.likelihoods.SoftmaxLikelihood(3, 3), C)
    with pytest.raises(InputError, match="target dims"):
        LinearReadoutLikelihood(readout(base, 1), C)
    likelihood = readout(base)
    with pytest.raises(InputError, match="outputs"):
        likelihood.variational_expectations(counts()[:, 1:], normal(K, N), normal(K, N).square())
    with pytest.raises(InputError, match=r"\[\*b, K, N\]"):
        likelihood.variational_expectations(counts(), normal(3, N), normal(3, N).square())
    with pytest.raises(InputError, match="Targets have shape"):
        likelihood.matrix_duals(counts()[1:], normal(N, K), covariances())
    with pytest.raises(InputError, match=r"-1\.0"):
        likelihood.check_targets(-torch.ones(N, P))
    with pytest.raises(UnsupportedError, match="several outputs"):
        readout(base, 1).predict_quantiles([0.5], normal(N), normal(N).square())


@pytest.mark.parametrize("name", BASES)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    likelihood, y = readout(BASES[name]()), counts()
    save_object(tmp_path / "readout.gpvi", likelihood, kind="object")
    loaded = load_object(tmp_path / "readout.gpvi", kind="object")
    exact = likelihood.matrix_duals(y, normal(N, K), covariances())
    assert all(map(torch.equal, loaded.matrix_duals(y, normal(N, K), covariances()), exact))
