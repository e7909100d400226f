"""Laplace's approximation: scikit-learn's, gradients, weights, refusals; and how rules meet objectives."""

import gpytorch
import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    InducingPoints,
    SparseInverseCholesky,
    StateSpace,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import FitProblem, cvi, fit, laplace, laplace_evidence
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    HeteroscedasticGaussianLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

ROWS = 30


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = (3.0 * torch.rand(ROWS, 1, dtype=torch.float64, generator=generator())).sort(0).values
COUNTS = torch.poisson((2.0 * X[:, 0]).sin().exp(), generator=generator(1))
LABELS = ((2.0 * X[:, 0]).sin() > 0).double()


def process(nu: float = 1.5) -> GaussianProcess:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=nu)).double()
    kernel.base_kernel.lengthscale = 0.7
    kernel.outputscale = 2.0
    return GaussianProcess(kernel)


def test_evidence_and_its_gradient_are_those_of_scikit_learn() -> None:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = 0.7, 2.0
    flipped = LABELS.clone()
    flipped[::7] = 1.0 - flipped[::7]
    theirs = GaussianProcessClassifier(ConstantKernel(2.0) * RBF(0.7), optimizer=None)
    theirs.fit(X.numpy(), flipped.numpy())
    value, slopes = theirs.log_marginal_likelihood(theirs.kernel_.theta, eval_gradient=True)
    prior, likelihood = Exact().prior(GaussianProcess(kernel), X), BernoulliLikelihood("logit")
    result = laplace(prior, likelihood, flipped)
    assert result.converged
    assert result.objective == pytest.approx(value, abs=1e-6)
    evidence = laplace_evidence(prior, likelihood, flipped, result.sites)
    raw = (kernel.raw_outputscale, kernel.base_kernel.raw_lengthscale)
    ours = torch.autograd.grad(evidence, raw)
    # From softplus to logarithms.
    for slope, size, wanted in zip(ours, (2.0, 0.7), slopes, strict=True):
        assert float(slope.sum()) * size / (1.0 - np.exp(-size)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("likelihood", [PoissonLikelihood(), NegativeBinomialLikelihood()])
def test_gradients_follow_the_mode(likelihood: torch.nn.Module) -> None:
    gp, likelihood = process(), likelihood.double()
    problem = FitProblem(
        gp, Exact(), likelihood, X, COUNTS, Exact().plan(X), "auto", inference="laplace"
    )
    parameters = [gp.kernel.raw_outputscale, *likelihood.parameters()]
    slopes = torch.autograd.grad(problem.value(), parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        values = []
        for shift in (1e-4, -2e-4, 1e-4):
            with torch.no_grad():
                parameter += shift
                values.append(float(problem.value()))
        assert float(slope.sum()) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


@pytest.mark.parametrize("approximation", [SparseInverseCholesky(ROWS), StateSpace()])
def test_other_priors_have_the_same_mode(approximation: torch.nn.Module) -> None:
    ours = laplace(approximation.prior(process(), X), PoissonLikelihood(), COUNTS)
    theirs = laplace(Exact().prior(process(), X), PoissonLikelihood(), COUNTS)
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-4)


def test_gaussian_likelihoods_are_exact() -> None:
    likelihood, y = GaussianLikelihood(noise=0.2).double(), X[:, 0].sin()
    prior = Exact().prior(process(), X)
    assert laplace(prior, likelihood, y).objective == pytest.approx(
        cvi(prior, likelihood, y).objective, abs=1e-8
    )


def test_integer_weights_are_repeated_rows_and_missing_targets_say_nothing() -> None:
    weights = torch.ones(ROWS).double()
    weights[:2] = torch.tensor([2.0, 3.0]).double()
    again = torch.repeat_interleave(torch.arange(ROWS), weights.long())
    ours = laplace(Exact().prior(process(), X), PoissonLikelihood(), COUNTS, weights=weights)
    theirs = laplace(Exact().prior(process(), X[again]), PoissonLikelihood(), COUNTS[again])
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-6)
    kept = torch.arange(ROWS) != 4
    gaps = torch.where(kept, COUNTS, torch.nan)
    ours = laplace(Exact().prior(process(), X), PoissonLikelihood(), gaps)
    theirs = laplace(Exact().prior(process(), X[kept]), PoissonLikelihood(), COUNTS[kept])
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-6)


def test_outliers_under_heavy_tails_have_a_mode() -> None:
    y = X[:, 0].sin()
    y[3], y[7] = 25.0, -40.0
    result = laplace(Exact().prior(process(), X), StudentTLikelihood().double(), y)
    assert result.converged
    assert result.history == sorted(result.history)
    assert bool((result.posterior.marginals().variance > 0).all())


def test_fits_maximise_the_evidence() -> None:
    gp = process()
    first = laplace(Exact().prior(gp, X), PoissonLikelihood(), COUNTS).objective
    result = fit(
        gp, Exact(), PoissonLikelihood(), X, COUNTS, inference="laplace", generator=generator()
    )
    assert result.converged
    assert result.objective > first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inference": "laplace", "objective": "elbo"}, "do not go together"),
        ({"inference": "ep", "objective": "tighter_elbo"}, "do not go together"),
        ({"inference": "cvi", "objective": "laplace"}, "needs inference 'laplace'"),
        ({"inference": "newton"}, "inference is 'newton'"),
        ({"objective": "evidence"}, "objective is 'evidence'"),
    ],
)
def test_rules_and_objectives_have_to_go_together(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(process(), Exact(), PoissonLikelihood(), X, COUNTS, **options)


def test_refusals() -> None:
    points = InducingPoints(inducing_points=X[:5])
    with pytest.raises(UnsupportedError, match="leaves part of f open"):
        laplace(points.prior(process(), X), PoissonLikelihood(), COUNTS)
    with pytest.raises(UnsupportedError, match="leaves part of f open"):
        fit(process(), points, PoissonLikelihood(), X, COUNTS, inference="laplace")
    with pytest.raises(UnsupportedError, match="batch_size=5"):
        fit(process(), points, PoissonLikelihood(), X, COUNTS, inference="ep", batch_size=5)
    kernel = gpytorch.kernels.RBFKernel(batch_shape=torch.Size([2])).double()
    two = GaussianProcess(kernel)
    with pytest.raises(UnsupportedError, match="couples 2 latent functions"):
        fit(two, Exact(), HeteroscedasticGaussianLikelihood(), X, COUNTS, inference="laplace")
    with pytest.raises(InputError, match="max_steps is 0"):
        laplace(Exact().prior(process(), X), PoissonLikelihood(), COUNTS, max_steps=0)
