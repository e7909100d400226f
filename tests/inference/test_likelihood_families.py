"""Every likelihood of one latent on every prior, and on data that are meant to break it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from gpvi.approximations import (
    Approximation,
    Coreset,
    Exact,
    GaussianProcess,
    InducingPoints,
    SparseInverseCholesky,
    StateSpace,
)
from gpvi.inference import cvi, fit
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import (
    BetaLikelihood,
    BinomialLikelihood,
    CensoredGaussianLikelihood,
    ExponentialLikelihood,
    GammaLikelihood,
    LaplaceLikelihood,
    Likelihood,
    LogNormalLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    QuantileLikelihood,
    WeibullLikelihood,
    ZeroInflatedLikelihood,
    sample_observations,
)

NUM_ROWS = 40
X = torch.linspace(0, 1, NUM_ROWS, dtype=torch.float64)[:, None]
CYCLE = torch.arange(NUM_ROWS).remainder(4).double()
CENSORED = (CYCLE == 1).double() - (CYCLE == 3).double()
BASIS = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]

APPROXIMATIONS: dict[str, Callable[[], Approximation]] = {
    "exact": Exact,
    "inducing": lambda: InducingPoints(inducing_points=BASIS),
    "sparse_inverse": lambda: SparseInverseCholesky(num_neighbors=8),
    "coreset": lambda: Coreset(points=BASIS),
    "state_space": StateSpace,
}


@dataclass(frozen=True)
class Family:
    """A likelihood, row extras it takes, and targets that are hard for it."""

    build: Callable[[], Likelihood]
    rows: dict[str, Tensor] = field(default_factory=dict)
    hard: str = "counts"


def zero_inflated(base: Likelihood) -> Likelihood:
    return ZeroInflatedLikelihood(base, 0.3)


FAMILIES = {
    "negative_binomial": Family(NegativeBinomialLikelihood, {"exposure": CYCLE + 1}),
    "binomial": Family(BinomialLikelihood, {"trials": 20 + CYCLE}),
    "zero_inflated_poisson": Family(
        lambda: zero_inflated(PoissonLikelihood()), {"exposure": CYCLE + 1}
    ),
    "zero_inflated_negative_binomial": Family(
        lambda: zero_inflated(NegativeBinomialLikelihood()), {"exposure": CYCLE + 1}
    ),
    "log_normal": Family(LogNormalLikelihood, {"censored": CENSORED}, "times"),
    "gamma": Family(GammaLikelihood, {"censored": CENSORED}, "times"),
    "exponential": Family(ExponentialLikelihood, {"censored": CENSORED}, "times"),
    "weibull": Family(WeibullLikelihood, {"censored": CENSORED}, "times"),
    "censored_gaussian": Family(CensoredGaussianLikelihood, {"censored": CENSORED}, "reals"),
    "laplace": Family(LaplaceLikelihood, hard="reals"),
    "quantile": Family(lambda: QuantileLikelihood(0.8), hard="reals"),
    "beta": Family(BetaLikelihood, hard="proportions"),
    "ordinal": Family(lambda: OrdinalLikelihood(4, [0.0, 1.0, 1.5]), hard="classes"),
}


def process(amplitude: float = 1.0) -> GaussianProcess:
    gp = GaussianProcess(parse_kernel("matern32", 1))
    gp.kernel.base_kernel.lengthscale = 0.3
    gp.kernel.outputscale = amplitude
    return gp


def generated(family: Family) -> Tensor:
    """Targets from the model itself, two of them missing."""
    f = 1 + torch.sin(6 * X[:, 0])
    generator = torch.Generator().manual_seed(0)
    y = sample_observations(family.build(), f, generator, **family.rows)
    y[[3, 17]] = math.nan
    return y


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_every_prior_takes_every_family(name: str, approximation: str) -> None:
    family = FAMILIES[name]
    y, likelihood = generated(family), family.build()
    prior = APPROXIMATIONS[approximation]().prior(process(), X)
    result = cvi(prior, likelihood, y, **family.rows)
    assert result.converged
    marginals = result.posterior.marginals()
    exact = cvi(Exact().prior(process(), X), likelihood, y, **family.rows)
    assert bool((marginals.variance > 0).all())
    reference = exact.posterior.marginals()
    tolerance = 0.5 * float(reference.variance.sqrt().max())
    torch.testing.assert_close(marginals.mean, reference.mean, rtol=0, atol=tolerance)
    assert result.objective <= exact.objective + 1.0


@pytest.mark.filterwarnings("ignore:The fit is not converged")
@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_learned(name: str) -> None:
    family = FAMILIES[name]
    if not list(family.build().parameters()):
        pytest.skip("has none")
    y, likelihood = generated(family), family.build()
    before = [parameter.detach().clone() for parameter in likelihood.parameters()]
    start = cvi(Exact().prior(process(), X), likelihood, y, **family.rows).objective
    result = fit(process(), Exact(), likelihood, X, y, max_iter=10, **family.rows)
    assert result.objective > start
    for old, new in zip(before, likelihood.parameters(), strict=True):
        assert bool(new.isfinite().all()) and not torch.equal(old, new)


def hard_targets(kind: str, seed: int) -> Tensor:
    """Rare large values among tiny ones, without any smooth function behind them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(NUM_ROWS, generator=generator, dtype=torch.float64)
    rare = torch.rand(NUM_ROWS, generator=generator, dtype=torch.float64) < 0.2
    if kind == "times":
        return (30 * (size - 0.5)).exp()
    if kind == "classes":
        return 3.0 * rare
    if kind == "reals":
        return torch.where(rare, 1e4 * (size - 0.5), size)
    if kind == "proportions":
        return torch.where(rare, 1e-12 * size, 1 - 1e-12 * size)
    return torch.where(rare, 1000 * size, 0.0).round()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_adversarial_targets_are_safe(name: str, seed: int) -> None:
    """Proper sites, finite moments, and an objective that never falls."""
    family = FAMILIES[name]
    y = hard_targets(family.hard, seed)
    if "trials" in family.rows:
        y = torch.minimum(y, family.rows["trials"])
    result = cvi(Exact().prior(process(25.0), X), family.build(), y, **family.rows)
    assert math.isfinite(result.objective) and bool((result.sites.lam2 >= 0).all())
    gains = torch.tensor(result.history).diff()
    assert bool((gains >= -1e-9 * abs(result.objective)).all())
    marginals = result.posterior.marginals()
    assert bool(marginals.mean.isfinite().all()) and bool((marginals.variance > 0).all())
