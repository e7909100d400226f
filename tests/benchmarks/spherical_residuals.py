"""How much of a process on the sphere its features leave open, and what repairs it.

    python tests/benchmarks/spherical_residuals.py

Residual variances k(x, x) - k(x, u) K(u, u)^-1 k(u, x) over prior variances, averaged over directions
drawn uniformly from the whole sphere in D dimensions, and over seeds. Units, inducing points and
orthogonal points lie in random directions too: nothing is learned and nothing chosen.
"""

import argparse
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.approximations import (
    Approximation,
    GaussianProcess,
    InducingPoints,
    InterDomain,
    Orthogonal,
    SphericalActivationFeatures,
    SphericalHarmonicFeatures,
)
from gpvi.exceptions import AccuracyWarning
from gpvi.kernels import ArcCosineKernel, ZonalKernel
from gpvi.kernels._gegenbauer import multiplicities

DIMENSIONS = (3, 5, 9)
UNITS, POINTS, LEVELS = 64, 32, 16
Make = Callable[[Tensor], Approximation]


class WholeArcCosine(ArcCosineKernel):
    """The kernel of directions: inputs with a bias reach one half of the sphere only."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and lengths of inputs without a bias."""
        lengths = torch.linalg.vector_norm(x, dim=-1)
        return x / lengths.unsqueeze(-1), lengths


class WholeZonal(ZonalKernel):
    """The kernel of directions: inputs with a bias reach one half of the sphere only."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and lengths of inputs without a bias."""
        lengths = torch.linalg.vector_norm(x, dim=-1)
        return x / lengths.unsqueeze(-1), lengths


def directions(rows: int, dimension: int, generator: torch.Generator) -> Tensor:
    """Uniform draws from the sphere."""
    draws = torch.randn(rows, dimension, dtype=torch.float64, generator=generator)
    return draws / torch.linalg.vector_norm(draws, dim=-1, keepdim=True)


def units(activation: str, num_levels: int | None) -> Make:
    """Units in the first directions, cut off at a number of levels or at the best one."""

    def make(places: Tensor) -> Approximation:
        chosen = places[:UNITS]
        return InterDomain(
            SphericalActivationFeatures(
                activation=activation, directions=chosen, num_levels=num_levels
            )
        )

    return make


def points(count: int) -> Make:
    """Inducing points in the first directions."""
    return lambda places: InducingPoints(inducing_points=places[:count])


def with_points(activation: str) -> Make:
    """Units, and orthogonal inducing points in further directions."""

    def make(places: Tensor) -> Approximation:
        base = SphericalActivationFeatures(
            activation=activation, directions=places[:UNITS], num_levels=LEVELS
        )
        return Orthogonal(base, InducingPoints(inducing_points=places[UNITS : UNITS + POINTS]))

    return make


def harmonics(places: Tensor) -> Approximation:
    """Complete levels of no more harmonics than there are units."""
    return InterDomain(SphericalHarmonicFeatures(num_features=UNITS))


def residual(
    kernel: ArcCosineKernel | ZonalKernel, dimension: int, make: Make, seeds: int
) -> float:
    """Mean relative residual variance."""
    gp = GaussianProcess(kernel.double())
    found = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        x = directions(2_000, dimension, generator)
        approximation = make(directions(UNITS + POINTS, dimension, generator))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", AccuracyWarning)
            approximation.initialize(gp, x, generator)
            found.append(float((approximation.prior(gp, x).residual / gp.variance(x)).mean()))
    return sum(found) / seeds


def squared_norm(dimension: int, num_levels: int) -> float:
    """Of a ReLU unit in the space of the arc-cosine kernel: a diagonal entry of K(u, u)."""
    unit = torch.eye(dimension, dtype=torch.float64)[:1]
    features = SphericalActivationFeatures(
        activation="relu", directions=unit, num_levels=num_levels
    )
    return float(features.Kuu(WholeArcCosine().double()).detach())


def out_of_reach(dimension: int) -> float:
    """Share of the prior variance of Matern-5/2 in odd levels above one."""
    kernel = WholeZonal("matern52").double()
    kernel.sphere_lengthscale = 1.0
    shares = kernel.eigenvalues(60, dimension).detach() * multiplicities(60, dimension)
    return float(shares[3::2].sum())


def print_table(title: str, rows: dict[str, list[str]]) -> None:
    """In Markdown."""
    heads = " | ".join(f"D = {dimension}" for dimension in DIMENSIONS)
    print(f"\n| {title} | {heads} |\n|---|" + "--:|" * len(DIMENSIONS))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def arc_cosine_rows(seeds: int) -> dict[str, list[str]]:
    """ReLU units of more and more levels, and what there is instead."""
    rows = {}
    for L in (8, 16, 32):
        rows[f"squared norm of a ReLU unit, {L} levels"] = [
            f"{squared_norm(D, L):.3g}" for D in DIMENSIONS
        ]
    cases: dict[str, Make] = {f"ReLU, {L} levels": units("relu", L) for L in (8, 16, 32)}
    cases["ReLU, levels chosen"] = units("relu", None)
    cases["softplus, levels chosen"] = units("softplus", None)
    cases["harmonics"] = harmonics
    cases[f"{UNITS} inducing points"] = points(UNITS)
    for name, make in cases.items():
        rows[name] = [f"{residual(WholeArcCosine(), D, make, seeds):.4f}" for D in DIMENSIONS]
    return rows


def matern_rows(seeds: int) -> dict[str, list[str]]:
    """The floor of units without odd levels, and what lies below it."""
    rows = {"out of reach of softplus": [f"{out_of_reach(D):.4f}" for D in DIMENSIONS]}
    cases: dict[str, Make] = {
        "softplus": units("softplus", LEVELS),
        f"softplus and {POINTS} orthogonal points": with_points("softplus"),
        "shifted softplus": units("shifted_softplus", LEVELS),
        "exponential": units("exponential", LEVELS),
        "exponential, levels chosen": units("exponential", None),
        f"exponential and {POINTS} orthogonal points": with_points("exponential"),
        "harmonics": harmonics,
        f"{UNITS} inducing points": points(UNITS),
        f"{UNITS + POINTS} inducing points": points(UNITS + POINTS),
    }
    for name, make in cases.items():
        cells = []
        for D in DIMENSIONS:
            kernel = WholeZonal("matern52").double()
            kernel.sphere_lengthscale = 1.0
            cells.append(f"{residual(kernel, D, make, seeds):.4f}")
        rows[name] = cells
    return rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print_table("arc-cosine of order 1", arc_cosine_rows(options.seeds))
    print_table("Matern-5/2, lengthscale 1 on the sphere", matern_rows(options.seeds))


if __name__ == "__main__":
    main()
