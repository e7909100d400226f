"""Sites by moment matching: a textbook version, limits, stationarity, and safety."""

import gpytorch
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from gpvi.approximations import (
    Approximation,
    Exact,
    GaussianProcess,
    InducingPoints,
    Sites,
    SparseInverseCholesky,
    StateSpace,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import FitProblem, cvi, elbo, ep_energy, expectation_propagation, fit
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    HeteroscedasticGaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

ROWS = 12


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = (3.0 * torch.rand(ROWS, 1, dtype=torch.float64, generator=generator())).sort(0).values
Y = (torch.randn(ROWS, dtype=torch.float64, generator=generator(2)) > 0).double()


def process(outputscale: float = 4.0) -> GaussianProcess:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
    kernel.base_kernel.lengthscale = 0.6
    kernel.outputscale = outputscale
    return GaussianProcess(kernel)


APPROXIMATIONS = {
    "exact": Exact(),
    "state-space": StateSpace(),
    "sparse-inverse": SparseInverseCholesky(ROWS, nugget=1e-10),
    "inducing": InducingPoints(inducing_points=X[::3].clone()),
}


def textbook_sites(covariance: Tensor, signs: Tensor) -> Sites:
    """Sequential probit EP with dense inverses and the closed moments of Rasmussen & Williams (3.58)."""
    lam1, lam2 = torch.zeros(ROWS).double(), torch.zeros(ROWS).double()
    prior_precision = torch.linalg.inv(covariance)
    for n in list(range(ROWS)) * 60:
        S = torch.linalg.inv(prior_precision + torch.diag(lam2))
        m = S @ lam1
        precision = float(1.0 / S[n, n] - lam2[n])
        mean, v = float((m[n] / S[n, n] - lam1[n]) / precision), 1.0 / precision
        z = float(signs[n]) * mean / (1.0 + v) ** 0.5
        ratio = stats.norm.pdf(z) / stats.norm.cdf(z)
        centre = mean + float(signs[n]) * v * ratio / (1.0 + v) ** 0.5
        variance = v - v**2 * ratio / (1.0 + v) * (z + ratio)
        lam2[n] = 1.0 / variance - precision
        lam1[n] = centre / variance - mean * precision
    return Sites(lam1, lam2)


def test_probit_sites_are_those_of_the_textbook() -> None:
    gp = process()
    with torch.no_grad():
        result = expectation_propagation(Exact().prior(gp, X), BernoulliLikelihood(), Y)
        theirs = textbook_sites(gp.covariance(X, X), 2.0 * Y - 1.0)
    assert result.converged
    torch.testing.assert_close(result.sites.lam1, theirs.lam1, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.sites.lam2, theirs.lam2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_the_energy_is_stationary_in_the_sites(name: str, power: float) -> None:
    prior = APPROXIMATIONS[name].prior(process(), X).detach()
    result = expectation_propagation(prior, BernoulliLikelihood(), Y, power=power, tolerance=1e-9)
    assert result.converged
    lam1, lam2 = (part.clone().requires_grad_() for part in (result.sites.lam1, result.sites.lam2))
    energy = ep_energy(prior.condition(Sites(lam1, lam2)), BernoulliLikelihood(), Y, power=power)
    assert result.objective == pytest.approx(float(energy.detach()), abs=1e-9)
    for slope in torch.autograd.grad(energy, (lam1, lam2)):
        assert float(slope.abs().max()) < 2e-5


def test_moments_lie_between_the_bound_and_the_evidence() -> None:
    """Self-normalised importance sampling from q, twenty thousand draws, is the referee."""
    gp = process(16.0)
    with torch.no_grad():
        prior = Exact().prior(gp, X)
        result = expectation_propagation(prior, BernoulliLikelihood(), Y)
        best = cvi(prior, BernoulliLikelihood(), Y).posterior
        bound = float(elbo(best, BernoulliLikelihood(), Y))
        draw = result.posterior.rsample((20_000,), generator=generator(5))
        log_weights = BernoulliLikelihood().log_prob(draw.values, Y).sum(-1)
        log_weights = log_weights + result.posterior.log_ratio(draw)
        truth = float(log_weights.logsumexp(0)) - np.log(20_000)
        spread = float((log_weights - truth).exp().std()) / 20_000**0.5
    assert bound < result.objective < truth + 4.0 * spread


def test_a_small_power_is_variational_inference() -> None:
    prior = Exact().prior(process(), X).detach()
    result = expectation_propagation(prior, BernoulliLikelihood(), Y, power=1e-3)
    best = cvi(prior, BernoulliLikelihood(), Y, tolerance=1e-12)
    torch.testing.assert_close(result.sites.lam1, best.sites.lam1, rtol=2e-3, atol=2e-3)
    assert result.objective == pytest.approx(best.objective, abs=1e-3)


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_gaussian_likelihoods_are_exact_in_one_step(name: str) -> None:
    likelihood, y = GaussianLikelihood(noise=0.3).double(), X[:, 0].sin()
    prior = APPROXIMATIONS[name].prior(process(), X).detach()
    result = expectation_propagation(prior, likelihood, y)
    assert result.steps == 1
    assert torch.equal(result.sites.lam2, cvi(prior, likelihood, y).sites.lam2)


def test_integer_weights_are_repeated_rows_and_missing_targets_say_nothing() -> None:
    weights = torch.tensor([2.0, 3.0] + [1.0] * (ROWS - 2)).double()
    again = torch.repeat_interleave(torch.arange(ROWS), weights.long())
    gp, likelihood = process(), BernoulliLikelihood()
    ours = expectation_propagation(Exact().prior(gp, X).detach(), likelihood, Y, weights=weights)
    theirs = expectation_propagation(Exact().prior(gp, X[again]).detach(), likelihood, Y[again])
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-6)
    gaps = torch.where(torch.arange(ROWS) == 4, torch.nan, Y)
    kept = torch.arange(ROWS) != 4
    ours = expectation_propagation(Exact().prior(gp, X).detach(), likelihood, gaps)
    theirs = expectation_propagation(Exact().prior(gp, X[kept]).detach(), likelihood, Y[kept])
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-6)
    assert float(ours.sites.lam2[4]) == 0.0


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_outliers_under_heavy_tails_leave_everything_finite(name: str) -> None:
    y = X[:, 0].sin()
    y[3], y[7] = 25.0, -40.0
    likelihood = StudentTLikelihood().double()
    result = expectation_propagation(
        APPROXIMATIONS[name].prior(process(), X).detach(), likelihood, y
    )
    assert np.isfinite(result.objective)
    assert bool((result.sites.lam2 >= 0).all())
    assert bool((result.posterior.marginals().variance > 0).all())


def test_hyperparameter_gradients_at_held_sites_are_total() -> None:
    gp, likelihood = process(2.0), PoissonLikelihood()
    y = torch.poisson((X[:, 0].sin() + 1.0).exp(), generator=generator(3))
    problem = FitProblem(gp, Exact(), likelihood, X, y, Exact().plan(X), "auto", inference="ep")
    raw = gp.kernel.raw_outputscale
    (slope,) = torch.autograd.grad(problem.value(), raw)
    values = []
    for shift in (1e-4, -2e-4):
        with torch.no_grad():
            raw += shift
            values.append(float(problem.value()))
    assert float(slope) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


@pytest.mark.parametrize("name", ["exact", "sparse-inverse", "inducing"])
def test_fits_raise_the_energy(name: str) -> None:
    gp, approximation = process(1.0), APPROXIMATIONS[name]
    counts = torch.poisson((2.0 * X[:, 0].sin() + 1.0).exp(), generator=generator(3))
    likelihood = PoissonLikelihood()
    first = expectation_propagation(approximation.prior(gp, X).detach(), likelihood, counts)
    result = fit(gp, approximation, likelihood, X, counts, inference="ep", generator=generator())
    assert result.objective > first.objective
    again = expectation_propagation(approximation.prior(gp, X).detach(), likelihood, counts)
    assert result.objective == pytest.approx(again.objective, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0.0}, "power is 0.0"),
        ({"step_size": 2.0}, "step_size is 2.0"),
        ({"max_steps": 0}, "max_steps is 0"),
    ],
)
def test_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expectation_propagation(Exact().prior(process(), X), BernoulliLikelihood(), Y, **options)


def test_several_latents_are_refused() -> None:
    kernel = gpytorch.kernels.RBFKernel(batch_shape=torch.Size([2])).double()
    prior = Exact().prior(GaussianProcess(kernel), X)
    with pytest.raises(UnsupportedError, match="couples 2 latent functions"):
        expectation_propagation(prior, HeteroscedasticGaussianLikelihood(), Y)


def test_single_precision() -> None:
    approximation: Approximation = Exact()
    gp = process().to(torch.float32)
    prior = approximation.prior(gp, X.float()).detach()
    result = expectation_propagation(prior, BernoulliLikelihood(), Y.float(), tolerance=1e-3)
    double = expectation_propagation(Exact().prior(process(), X).detach(), BernoulliLikelihood(), Y)
    assert result.sites.lam1.dtype == torch.float32
    assert result.objective == pytest.approx(double.objective, abs=1e-3)
