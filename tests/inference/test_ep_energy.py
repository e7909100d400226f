"""The energy of expectation propagation: formulas computed another way, order, gradients, refusals."""

import functools
from collections.abc import Callable

import gpytorch
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from gpvi.approximations import (
    Approximation,
    Coreset,
    Exact,
    GaussianProcess,
    InducingPoints,
    Posterior,
    Sites,
    SparseInverseCholesky,
    StateSpace,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import cvi, elbo, ep_energy
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from gpvi.strategies import SiteStrategy

KNOWN_NOISE = GaussianLikelihood(noise=0.3, learn_noise=False)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def inputs(rows: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = 3.0 * torch.rand(rows, 1, dtype=torch.float64, generator=generator)
    return points.sort(0).values


def process(lengthscale: float = 0.6, outputscale: float = 1.3) -> GaussianProcess:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
    kernel.base_kernel.lengthscale = lengthscale
    kernel.outputscale = outputscale
    return GaussianProcess(kernel)


def labels(rows: int, seed: int = 2) -> Tensor:
    return (normal(rows, seed=seed) > 0).double()


def inducing() -> InducingPoints:
    points = torch.linspace(0.0, 3.0, 4, dtype=torch.float64).unsqueeze(-1)
    return InducingPoints(inducing_points=points, learn=False)


def probit_posterior(approximation: Approximation, rows: int = 12, **options: float) -> Posterior:
    prior = approximation.prior(process(**options), inputs(rows))
    return cvi(prior, BernoulliLikelihood(), labels(rows), tolerance=1e-10).posterior


def textbook_energy(
    covariance: Tensor, sites: Sites, log_tilted: Callable[[int, float, float], float], power: float
) -> float:
    """Dense matrices, one inverse per row, one numerical integral each."""
    precision = torch.linalg.inv(covariance) + torch.diag(sites.lam2)
    S = torch.linalg.inv(precision)
    m = S @ sites.lam1
    energy = 0.5 * (S.logdet() - covariance.logdet() + m @ precision @ m)
    for n in range(len(m)):
        tau, nu = 1.0 / S[n, n] - power * sites.lam2[n], m[n] / S[n, n] - power * sites.lam1[n]
        ours = 0.5 * (S[n, n] * tau).log() + 0.5 * (m[n].square() / S[n, n] - nu.square() / tau)
        energy += (log_tilted(n, float(nu / tau), float(1.0 / tau)) - ours) / power
    return float(energy)


def integrated(log_prob: Callable[[float], float], mean: float, variance: float) -> float:
    scale = np.sqrt(variance)
    value, _ = integrate.quad(
        lambda f: np.exp(log_prob(f)) * stats.norm.pdf(f, mean, scale),
        mean - 12.0 * scale,
        mean + 12.0 * scale,
        epsabs=1e-13,
        epsrel=1e-11,
        limit=200,
    )
    return float(np.log(value))


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("count", [False, True])
def test_dense_energy_is_the_textbook_one(power, count):
    x = inputs(8)
    y = torch.tensor([0, 1, 3, 2, 0, 0, 5, 1]).double() if count else labels(8)
    model = PoissonLikelihood() if count else BernoulliLikelihood()
    gp = process().requires_grad_(False)
    posterior = cvi(Exact().prior(gp, x), model, y).posterior

    def log_prob(n: int, f: float) -> float:
        if count:
            return stats.poisson.logpmf(float(y[n]), np.exp(f))
        return stats.norm.logcdf(f if y[n] else -f)

    def log_tilted(n: int, mean: float, variance: float) -> float:
        return integrated(lambda f: power * log_prob(n, f), mean, variance)

    expected = textbook_energy(gp.covariance(x), posterior.sites, log_tilted, power)
    assert ep_energy(posterior, model, y, power=power).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("power", [1.0, 0.4])
def test_sparse_energy_takes_sites_out_of_the_inducing_values(power):
    """Cavities of u as in sparse expectation propagation, with the residual added back."""
    x, y, gp, model = inputs(9), labels(9), process().requires_grad_(False), BernoulliLikelihood()
    approximation = inducing()
    prior = approximation.prior(gp, x)
    posterior = cvi(prior, model, y).posterior
    z = approximation.inducing_points
    Kzz = gp.covariance(z)
    W = torch.linalg.solve(Kzz, gp.covariance(z, x)).mT
    sites, residual = posterior.sites, gp.variance(x) - ((W @ Kzz) * W).sum(-1)

    def potential(m: Tensor, precision: Tensor) -> Tensor:
        return -0.5 * precision.logdet() + 0.5 * m @ precision @ m

    precision = torch.linalg.inv(Kzz) + W.mT @ torch.diag(sites.lam2) @ W
    m = torch.linalg.solve(precision, W.mT @ sites.lam1)
    energy = potential(m, precision) - potential(torch.zeros_like(m), torch.linalg.inv(Kzz))
    for n in range(9):
        w = W[n]
        less = precision - power * sites.lam2[n] * torch.outer(w, w)
        cavity = torch.linalg.solve(less, precision @ m - power * sites.lam1[n] * w)
        variance = residual[n] + w @ torch.linalg.solve(less, w)
        sign = 2.0 * float(y[n]) - 1.0
        log_tilted = integrated(
            lambda f, s=sign: power * stats.norm.logcdf(s * f), float(w @ cavity), float(variance)
        )
        energy += (log_tilted + potential(cavity, less) - potential(m, precision)) / power
    value = ep_energy(posterior, model, y, power=power)
    assert value.item() == pytest.approx(energy.item(), abs=1e-6)  # jitter of Kzz


@pytest.mark.parametrize("power", [1.0, 0.3])
@pytest.mark.parametrize(
    ("approximation", "tolerance"),
    [
        (Exact(), 1e-9),
        (StateSpace(), 1e-9),
        (SparseInverseCholesky(num_neighbors=11), 1e-6),
    ],
    ids=["dense", "state space", "sparse inverse"],
)
def test_priors_without_residual_agree(approximation, tolerance, power):
    y, model = labels(12), BernoulliLikelihood()
    dense = ep_energy(probit_posterior(Exact()), model, y, power=power)
    other = ep_energy(probit_posterior(approximation), model, y, power=power)
    assert other.item() == pytest.approx(dense.item(), abs=tolerance)


@pytest.mark.parametrize("noise", [0.3, 1e-8])
@pytest.mark.parametrize("power", [1.0, 0.3])
@pytest.mark.parametrize(
    "approximation",
    [Exact(), StateSpace(), SparseInverseCholesky(num_neighbors=11)],
    ids=["dense", "state space", "sparse inverse"],
)
def test_gaussian_likelihood_gives_the_evidence(approximation, power, noise):
    x, y, gp = inputs(10), normal(10, seed=3), process().requires_grad_(False)
    y[4] = float("nan")
    model = GaussianLikelihood(noise=noise, min_noise=1e-10, learn_noise=False)
    seen = ~y.isnan()
    covariance = gp.covariance(x[seen]) + noise * torch.eye(9, dtype=torch.float64)
    exact = MultivariateNormal(torch.zeros(9).double(), covariance).log_prob(y[seen])
    posterior = cvi(approximation.prior(gp, x), model, y).posterior
    value = ep_energy(posterior, model, y, power=power)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5 if noise < 1e-3 else 1e-6)


def test_gaussian_likelihood_with_inducing_points_gives_power_ep_evidence():
    """N(0, Q + noise), with the likelihood's variance raised by power times the residual. The sites
    of the power's own fixed point are needed, not those of the ELBO."""
    x, y, gp = inputs(10), normal(10, seed=3), process().requires_grad_(False)
    prior = inducing().prior(gp, x)
    power = 0.6
    total = 0.3 + power * prior.residual
    posterior = prior.condition(Sites(y / total, 1.0 / total))
    z = inducing().inducing_points
    Q = gp.covariance(x, z) @ torch.linalg.solve(gp.covariance(z), gp.covariance(z, x))
    evidence = MultivariateNormal(torch.zeros(10).double(), Q + torch.diag(total)).log_prob(y)
    spare = (1.0 - power) / (2.0 * power) * (total / 0.3).log().sum()
    value = ep_energy(posterior, KNOWN_NOISE, y, power=power)
    assert value.item() == pytest.approx((evidence - spare).item(), abs=1e-5)


def test_small_powers_lead_to_the_elbo():
    posterior, y, model = probit_posterior(inducing()), labels(12), BernoulliLikelihood()
    bound = elbo(posterior, model, y).item()
    energies = [ep_energy(posterior, model, y, power=power).item() for power in (1.0, 0.1, 1e-3)]
    gaps = [energy - bound for energy in energies]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 2e-3 * gaps[0] / 1.0 + 1e-4


def importance_evidence(gp: GaussianProcess, x: Tensor, y: Tensor, posterior: Posterior) -> Tensor:
    """Log evidence by importance sampling from a Student-t about q, 40,000 draws."""
    K = gp.covariance(x)
    mean, rows, degrees = posterior.marginals().mean, len(y), 8.0
    covariance = torch.linalg.inv(torch.linalg.inv(K) + torch.diag(posterior.sites.lam2))
    factor = torch.linalg.cholesky(0.5 * (covariance + covariance.mT))
    e = normal(40_000, rows, seed=5)
    generator = np.random.default_rng(6)
    scale = torch.from_numpy(np.sqrt(degrees / generator.chisquare(degrees, 40_000)))
    z = scale.unsqueeze(-1) * e
    f = mean + z @ factor.mT
    half = 0.5 * (degrees + rows)
    constant = torch.lgamma(torch.tensor([half, 0.5 * degrees]).double())
    log_q = constant[0] - constant[1] - 0.5 * rows * np.log(degrees * np.pi)
    log_q = log_q - factor.diagonal().log().sum() - half * (z.square().sum(-1) / degrees).log1p()
    log_p = MultivariateNormal(torch.zeros(rows).double(), K).log_prob(f)
    log_y = torch.special.log_ndtr((2.0 * y - 1.0) * f).sum(-1)
    weights = log_p + log_y - log_q
    return weights.logsumexp(0) - np.log(40_000)


@pytest.mark.slow
def test_energy_lies_between_the_elbo_and_the_evidence():
    """Fifty random probit problems; the evidence is known to a few thousandths."""
    generator = np.random.default_rng(0)
    gains = []
    for seed in range(50):
        x = inputs(30, seed=seed)
        gp = process(float(generator.uniform(0.2, 1.0)), float(generator.choice([1.0, 4.0, 16.0])))
        gp.requires_grad_(False)
        f = torch.linalg.cholesky(gp.covariance(x) + 1e-9 * torch.eye(30)) @ normal(30, seed=seed)
        y = (f + normal(30, seed=seed + 1000) > 0).double()
        model = BernoulliLikelihood()
        posterior = cvi(Exact().prior(gp, x), model, y, tolerance=1e-9).posterior
        truth = importance_evidence(gp, x, y, posterior)
        lower, energy = elbo(posterior, model, y), ep_energy(posterior, model, y)
        assert lower < energy < truth + 0.01
        gains.append(float((energy - lower) / (truth - lower)))
    assert min(gains) > 0.0


# --- weights, missing rows, batches ---------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_integer_weights_equal_repeated_rows(power):
    x, y, gp, model = inputs(5), labels(5), process().requires_grad_(False), BernoulliLikelihood()
    weights = torch.tensor([1.0, 3, 1, 2, 0]).double()
    index = weights.long().clamp_min(0)
    repeated = torch.arange(5).repeat_interleave(index)
    q = cvi(Exact().prior(gp, x), model, y, weights=weights, tolerance=1e-12).posterior
    many = cvi(Exact().prior(gp, x[repeated]), model, y[repeated], tolerance=1e-12).posterior
    value = ep_energy(q, model, y, weights=weights, power=power)
    expected = ep_energy(many, model, y[repeated], power=power)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("approximation", [Exact(), StateSpace()], ids=["dense", "state space"])
def test_missing_rows_do_not_count(approximation):
    x, y, gp = inputs(12), labels(12), process().requires_grad_(False)
    model = BernoulliLikelihood()
    y[[2, 7]] = float("nan")
    seen = ~y.isnan()
    all_rows = cvi(approximation.prior(gp, x), model, y, tolerance=1e-10).posterior
    some = cvi(approximation.prior(gp, x[seen]), model, y[seen], tolerance=1e-10).posterior
    expected = ep_energy(some, model, y[seen])
    assert ep_energy(all_rows, model, y).item() == pytest.approx(expected.item(), abs=1e-7)


def test_single_precision_and_batches():
    x, model = inputs(6), PoissonLikelihood()
    y = torch.tensor([[0.0, 1, 2, 0, 1, 3], [1.0, 1, 0, 0, 4, 0]]).double()
    shape = torch.Size([2])
    base = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=shape)
    gp = GaussianProcess(gpytorch.kernels.ScaleKernel(base, batch_shape=shape).double())
    both = ep_energy(cvi(Exact().prior(gp, x), model, y).posterior, model, y)
    assert both.shape == (2,)
    for value, targets in zip(both, y, strict=True):
        alone = GaussianProcess(
            gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
        )
        q = cvi(Exact().prior(alone, x), model, targets).posterior
        assert value.item() == pytest.approx(ep_energy(q, model, targets).item(), abs=1e-4)
    single = cvi(Exact().prior(gp.float(), x.float()), model, y.float()).posterior
    value = ep_energy(single, model, y.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), both, atol=1e-3, rtol=1e-3)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("model", [BernoulliLikelihood(), StudentTLikelihood()], ids=["y", "t"])
@pytest.mark.parametrize(
    "make",
    [Exact, StateSpace, inducing, functools.partial(SparseInverseCholesky, num_neighbors=4)],
    ids=["dense", "state space", "inducing", "sparse inverse"],
)
def test_gradient_is_that_at_held_sites(make, model, power):
    x, y, gp = inputs(10), labels(10), process()
    approximation = make()
    sites = cvi(approximation.prior(gp, x), model, y).sites

    def value() -> Tensor:
        return ep_energy(approximation.prior(gp, x).condition(sites), model, y, power=power)

    for parameter in gp.parameters():
        (slope,) = torch.autograd.grad(value(), parameter)
        ends = []
        for shift in (1e-4, -1e-4):
            with torch.no_grad():
                parameter += shift
                ends.append(value())
                parameter -= shift
        assert slope.item() == pytest.approx(float(ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-6)


def test_crude_marginals_do_not_break_the_energy():
    """A site that looks stronger than its own posterior is met by the floor under the gap."""
    posterior = probit_posterior(StateSpace())
    moments = posterior.marginals()
    sites = Sites(posterior.sites.lam1, 1.0000001 / moments.explained)
    crude = posterior.detach()
    object.__setattr__(crude, "sites", sites)
    value = ep_energy(crude, BernoulliLikelihood(), labels(12))
    assert bool(torch.isfinite(value))


class Model(gpytorch.models.ApproximateGP):
    def __init__(self, x: Tensor) -> None:
        super().__init__(SiteStrategy(self, Exact(), site_parameters="natural", train_inputs=x))
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = process().kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def test_strategies_of_gpytorch_models_give_the_posterior():
    x, y, likelihood = inputs(12), labels(12), BernoulliLikelihood()
    model = Model(x).double()
    for _ in range(60):
        model.variational_strategy.natural_step(likelihood, x, y, step_size=0.7)
    loss = -ep_energy(model.variational_strategy.posterior(), likelihood, y)
    expected = ep_energy(probit_posterior(Exact()), likelihood, y)
    assert -loss.item() == pytest.approx(expected.item(), abs=1e-4)
    loss.backward()
    assert all(bool(p.grad.abs() > 0) for p in model.covar_module.parameters())


# --- refusals -------------------------------------------------------------------------------------


def test_refusals():
    posterior, y = probit_posterior(inducing()), labels(12)
    model = BernoulliLikelihood()
    for power in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="power is"):
            ep_energy(posterior, model, y, power=power)
    with pytest.raises(InputError, match="12 rows out of 40"):
        ep_energy(posterior, model, y, 40)
    assert ep_energy(posterior, model, y, 12).shape == ()
    with pytest.raises(UnsupportedError, match="belong to no single row"):
        ep_energy(posterior.compact(), model, y)
    x = inputs(12)
    tied = (
        Coreset(points=x[::3])
        .prior(process(), x)
        .condition(Sites(normal(4, seed=3), torch.ones(4).double(), on="basis"))
    )
    with pytest.raises(UnsupportedError, match="belong to no single row"):
        ep_energy(tied, model, y)
