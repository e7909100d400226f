"""Every objective that is called a bound stays below the evidence, whatever q is.

Fifty random problems for every approximation: kernel, hyperparameters, noise, inputs and targets are drawn.
The bounds are taken at the best q and at random ones, and as a fit computes them. Most approximations bound
the evidence of the process itself; sparse inverse Cholesky factors and inducing points given neighbours that
of their own model, which is written down here by dense algebra.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import gpvi_neighbor_cases as neighbors
import gpytorch
import pytest
import torch
from torch import Tensor

import gpvi.approximations
from gpvi.approximations import (
    Approximation,
    Coreset,
    Exact,
    FullScale,
    GaussianProcess,
    InducingPoints,
    InterDomain,
    NeighborInducing,
    Orthogonal,
    Prior,
    Sites,
    SparseInverseCholesky,
    SphericalActivationFeatures,
    SphericalHarmonicFeatures,
    StateSpace,
    White,
)
from gpvi.inference import FitProblem, elbo, tighter_elbo
from gpvi.kernels import WhiteKernel, parse_kernel
from gpvi.likelihoods import GaussianLikelihood

SEEDS, ROWS, POINTS = 50, 24, 7

# Rounding of the largest terms: residuals over noise, and quadratic forms of random q.
SLACK = 1e-8

ON_PLANE = (
    "rbf",
    "matern12",
    "matern32",
    "matern52",
    "rational_quadratic",
    "rbf + matern12",
    "matern32 * rational_quadratic",
)
IN_TIME = ("matern12", "matern32", "matern52", "matern32 + matern12")
ON_SPHERE = ("zonal_matern12", "zonal_matern32", "zonal_matern52", "zonal_rbf", "arc_cosine")


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def some_rows(x: Tensor, generator: torch.Generator) -> Tensor:
    """Inputs near the data, a few of them data rows."""
    z = x[torch.randperm(ROWS, generator=generator)[:POINTS]].clone()
    z[POINTS // 2 :] += uniform(generator, -0.3, 0.3, POINTS - POINTS // 2, x.shape[-1])
    return z


def points(x: Tensor, generator: torch.Generator) -> InducingPoints:
    return InducingPoints(inducing_points=some_rows(x, generator))


def blocks(q: str) -> Callable[[Tensor, torch.Generator], Orthogonal]:
    return lambda x, generator: Orthogonal(points(x, generator), points(x, generator), q=q)


def units(activation: str) -> Callable[[Tensor, torch.Generator], SphericalActivationFeatures]:
    return lambda x, generator: SphericalActivationFeatures(POINTS, activation, num_levels=6)


def exact_evidence(prior: Prior, gp: GaussianProcess, y: Tensor, noise: float) -> Tensor:
    """Of the process itself."""
    return log_normal(y, prior.mean, gp.covariance(prior.x, prior.x), noise)


def joint_evidence(prior: Prior, gp: GaussianProcess, y: Tensor, noise: float) -> Tensor:
    """Of the model that the factor stands for: its joint distribution of function values at the rows."""
    zero = prior.condition(Sites.zeros(prior.mean.shape, dtype=torch.float64))
    return log_normal(y, prior.mean, zero.predict(prior.x, joint=True).covariance_matrix, noise)


def neighbor_evidence(prior: Prior, gp: GaussianProcess, y: Tensor, noise: float) -> Tensor:
    """Of rows that are independent given the inducing values."""
    return neighbors.own_evidence(prior, y, noise)


def log_normal(y: Tensor, mean: Tensor, covariance: Tensor, noise: float) -> Tensor:
    covariance = covariance + noise * torch.eye(len(y), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(y)


@dataclass(frozen=True)
class Case:
    """An approximation, the kernels it takes, and whose evidence it bounds."""

    build: Callable[[Tensor, torch.Generator], Approximation]
    kernels: tuple[str, ...] = ON_PLANE
    evidence: Callable[[Prior, GaussianProcess, Tensor, float], Tensor] = exact_evidence
    slack: float = SLACK
    columns: tuple[int, ...] = (1, 2)
    # Shape of random precisions of q over the basis; None where q is not given there.
    basis_sites: str | None = None


# A nugget of 1e-8 moves the evidence of a model with noise 0.01 by less than this.
_NUGGET_SLACK = 1e-4

CASES = {
    "exact": Case(lambda x, generator: Exact()),
    "white": Case(lambda x, generator: White(), ("white",)),
    "state-space": Case(lambda x, generator: StateSpace(), IN_TIME, columns=(1,)),
    "inducing": Case(points, basis_sites="full"),
    "coreset": Case(
        lambda x, generator: Coreset(points=some_rows(x, generator)), basis_sites="diagonal"
    ),
    "inter-domain": Case(
        lambda x, generator: InterDomain(points(x, generator)), basis_sites="full"
    ),
    "spherical-units": Case(
        lambda x, generator: InterDomain(units("exponential")(x, generator)),
        ON_SPHERE,
        basis_sites="full",
    ),
    "spherical-relu": Case(
        lambda x, generator: InterDomain(units("relu")(x, generator)), ON_SPHERE
    ),
    "spherical-learnable": Case(
        lambda x, generator: InterDomain(units("learnable")(x, generator)), ON_SPHERE
    ),
    "harmonics": Case(
        lambda x, generator: InterDomain(SphericalHarmonicFeatures(num_levels=3)),
        ON_SPHERE,
        basis_sites="full",
    ),
    "orthogonal": Case(blocks("joint")),
    "orthogonal-block": Case(blocks("block")),
    "orthogonal-delta": Case(blocks("delta")),
    "orthogonal-spherical": Case(
        lambda x, generator: Orthogonal(units("exponential")(x, generator), points(x, generator)),
        ON_SPHERE,
    ),
    "sparse-inverse": Case(
        lambda x, generator: SparseInverseCholesky(4, evidence="function"),
        evidence=joint_evidence,
        slack=_NUGGET_SLACK,
    ),
    "full-scale": Case(
        lambda x, generator: FullScale(
            points(x, generator), SparseInverseCholesky(4, evidence="function")
        ),
        evidence=joint_evidence,
        slack=_NUGGET_SLACK,
    ),
    "neighbor-inducing": Case(
        lambda x, generator: NeighborInducing(
            num_neighbors=3, inducing_points=some_rows(x, generator), ancestors="all"
        ),
        evidence=neighbor_evidence,
        slack=_NUGGET_SLACK,
    ),
}


@dataclass(frozen=True)
class Problem:
    """One random problem of a case."""

    case: Case
    gp: GaussianProcess
    approximation: Approximation
    x: Tensor
    y: Tensor
    noise: float
    generator: torch.Generator

    @classmethod
    def draw(cls, case: Case, seed: int) -> "Problem":
        generator = torch.Generator().manual_seed(seed)
        columns = case.columns[seed % len(case.columns)]
        x = uniform(generator, -1.0, 1.0, ROWS, columns)
        gp = GaussianProcess(_kernel(case.kernels[seed % len(case.kernels)], columns, generator))
        noise = float(10 ** uniform(generator, -2.0, 0.5))
        wave = (uniform(generator, 0.5, 8.0) * x[:, 0]).sin()
        own = torch.randn(ROWS, dtype=torch.float64, generator=generator)
        y = wave + float(uniform(generator, 0.1, 2.0)) * own
        approximation = case.build(x, generator)
        approximation.initialize(gp, x, generator)
        return cls(case, gp, approximation, x, y, noise, generator)

    @property
    def prior(self) -> Prior:
        return self.approximation.prior(self.gp, self.x)

    @property
    def likelihood(self) -> GaussianLikelihood:
        return GaussianLikelihood(noise=self.noise).double()

    @property
    def best(self) -> Sites:
        return Sites(self.y / self.noise, torch.full_like(self.y, 1.0 / self.noise))

    def bounds_of_fits(self) -> dict[str, float]:
        """What a fit maximises: collapsed objectives have code of their own."""
        plan = self.approximation.plan(self.x)
        return {
            objective: float(
                FitProblem(
                    self.gp, self.approximation, self.likelihood, self.x, self.y, plan, objective
                ).value()
            )
            for objective in ("elbo", "tighter_elbo")
        }

    def bounds_of_sites(self, prior: Prior) -> dict[str, float]:
        """At the best q and others."""
        bounds, likelihood, y = {}, self.likelihood, self.y
        for number, sites in enumerate(self.some_sites(prior)):
            posterior = prior.condition(sites)
            log_v = uniform(self.generator, -2.0, 1.0)
            bounds |= {
                f"elbo {number}": float(elbo(posterior, likelihood, y)),
                f"tighter_elbo {number}": float(tighter_elbo(posterior, likelihood, y)),
                f"log_v {number}": float(tighter_elbo(posterior, likelihood, y, log_v=log_v)),
            }
        return bounds

    def some_sites(self, prior: Prior) -> list[Sites]:
        """The best data sites, others, and sites on the basis."""
        size, generator = prior.mean.shape[-1], self.generator
        others = 10 ** uniform(generator, -3.0, 2.0, size)
        sites = [self.best, Sites(others * uniform(generator, -2.0, 2.0, size), others)]
        if self.case.basis_sites is None:
            return sites
        M = prior.whiten(prior.condition(self.best).rsample(torch.Size([1])).basis).shape[-1]
        lam1 = 3.0 * torch.randn(M, dtype=torch.float64, generator=generator)
        lam2 = 10 ** uniform(generator, -2.0, 1.0, M)
        if self.case.basis_sites == "full":
            turn = torch.randn(M, M, dtype=torch.float64, generator=generator)
            lam2 = torch.diag(lam2) + turn @ turn.mT
        return [*sites, Sites(lam1, lam2, on="basis")]


def _kernel(name: str, columns: int, generator: torch.Generator) -> gpytorch.kernels.Kernel:
    """With random hyperparameters."""
    if name == "white":
        kernel: gpytorch.kernels.Kernel = WhiteKernel().double()
    else:
        kernel = parse_kernel(name, columns).double()
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.8 * torch.randn(
                parameter.shape, dtype=torch.float64, generator=generator
            )
    return kernel


def test_every_approximation_has_a_case() -> None:
    built = set()
    for case in CASES.values():
        x = uniform(torch.Generator().manual_seed(0), 0.0, 1.0, ROWS, case.columns[0])
        built.add(type(case.build(x, torch.Generator().manual_seed(0))))
    exported = {
        value
        for name in gpvi.approximations.__all__
        if isinstance(value := getattr(gpvi.approximations, name), type)
        and issubclass(value, Approximation)
    }
    assert built == exported - {Approximation}


@pytest.mark.filterwarnings("ignore::gpvi.exceptions.AccuracyWarning")
@pytest.mark.parametrize("name", CASES)
def test_bounds_are_below_the_evidence(name: str) -> None:
    excess = {}
    for seed in range(SEEDS):
        problem = Problem.draw(CASES[name], seed)
        with torch.no_grad():
            prior = problem.prior
            evidence = float(problem.case.evidence(prior, problem.gp, problem.y, problem.noise))
            bounds = problem.bounds_of_fits() | problem.bounds_of_sites(prior)
        slack = problem.case.slack * (1.0 + abs(evidence))
        excess |= {
            (seed, key): value - evidence
            for key, value in bounds.items()
            if not -math.inf < value <= evidence + slack
        }
    assert not excess


def test_narrower_families_have_lower_bounds() -> None:
    """Weighted points, inducing points, their tightened bound, the evidence, at the same inputs."""
    for seed in range(SEEDS):
        problem = Problem.draw(CASES["coreset"], seed)
        z, gp, y = problem.approximation.points, problem.gp, problem.y
        free = InducingPoints(inducing_points=z)
        with torch.no_grad():
            coreset, inducing = (
                approximation.prior(gp, problem.x).condition(problem.best)
                for approximation in (problem.approximation, free)
            )
            values = [
                float(elbo(coreset, problem.likelihood, y)),
                float(elbo(inducing, problem.likelihood, y)),
                float(tighter_elbo(inducing, problem.likelihood, y)),
                float(exact_evidence(inducing.prior, gp, y, problem.noise)),
            ]
        slack = SLACK * (1.0 + abs(values[-1]))
        assert all(low <= high + slack for low, high in itertools.pairwise(values)), (seed, values)


def test_independent_blocks_are_below_the_joint_posterior() -> None:
    for seed in range(SEEDS):
        problem = Problem.draw(CASES["orthogonal"], seed)
        base, second = problem.approximation.base, problem.approximation.orthogonal
        with torch.no_grad():
            values = [
                float(
                    elbo(
                        Orthogonal(base, second, q=q)
                        .prior(problem.gp, problem.x)
                        .condition(problem.best),
                        problem.likelihood,
                        problem.y,
                    )
                )
                for q in ("delta", "block", "joint")
            ]
        slack = SLACK * (1.0 + abs(values[-1]))
        assert all(low <= high + slack for low, high in itertools.pairwise(values)), (seed, values)
