"""Bounds of coresets, orthogonal blocks and neighbour-given inducing points at fixed hyperparameters.

    python tests/benchmarks/sparse_family_bounds.py --data DIR

X and y standardised, Matern-5/2 with lengthscale 1.5, variance 1 and noise variance 0.1, on airfoil and on
3,000 rows of elevators. Coresets and blocks stand beside inducing points at the same inputs. The own
evidence of neighbour-given inducing points is that of their model, rows independent given the inducing
values, by dense algebra.
"""

import argparse
import time
from pathlib import Path

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpvi.approximations import (
    Approximation,
    Coreset,
    GaussianProcess,
    InducingPoints,
    NeighborInducing,
    NeighborInducingPrior,
    Orthogonal,
    Sites,
    select_inducing_points,
)
from gpvi.inference import elbo, tighter_elbo
from gpvi.likelihoods import GaussianLikelihood

NOISE = 0.1
ELEVATORS_ROWS = 3_000


def load(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Standardised inputs and targets."""
    arrays = np.load(folder / f"{name}.npz")
    x, y = (torch.tensor(arrays[key].astype(float)) for key in ("X", "y"))
    if name == "elevators":
        x, y = x[:ELEVATORS_ROWS], y[:ELEVATORS_ROWS]
    x = x[:, x.std(0) > 0]
    return tuple((part - part.mean(0)) / part.std(0, correction=0) for part in (x, y))


def own_evidence(prior: NeighborInducingPrior, y: Tensor) -> float:
    """Log evidence of rows that are independent given the inducing values."""
    M = prior.num_basis
    basis = prior.inner.to_places(prior.unwhiten(torch.eye(M, dtype=torch.float64)))
    weights = torch.zeros(len(y), M + 1, dtype=torch.float64)
    index = torch.where(prior.rows.index >= 0, prior.rows.index, M).long()
    weights.scatter_(-1, index, prior.weights)
    low_rank = weights[:, :M] @ basis.mT
    covariance = low_rank @ low_rank.mT + torch.diag(prior.residual + NOISE)
    return float(
        torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    kernel = gpytorch.kernels.MaternKernel(nu=2.5).double()
    kernel.lengthscale = torch.tensor(1.5, dtype=torch.float64)
    gp, likelihood = GaussianProcess(kernel), GaussianLikelihood(noise=NOISE)

    def bounds(approximation: Approximation, x: Tensor, y: Tensor) -> tuple[float, float, float]:
        start = time.process_time()
        prior = approximation.prior(gp, x)
        posterior = prior.condition(Sites(y / NOISE, torch.full_like(y, 1 / NOISE)))
        values = [float(bound(posterior, likelihood, y)) for bound in (elbo, tighter_elbo)]
        return values[0], values[1], time.process_time() - start

    with torch.no_grad():
        print("| data | M | approximation | bound | tightened | s |\n|---|--:|---|--:|--:|--:|")
        for name, number in (("airfoil", 20), ("airfoil", 100), ("elevators", 100)):
            x, y = load(options.data, name)
            generator = torch.Generator().manual_seed(0)
            z = select_inducing_points(gp, x, number, "kmeans++", generator)
            halves = [InducingPoints(inducing_points=part) for part in (z[::2], z[1::2])]
            for label, approximation in (
                ("inducing points", InducingPoints(inducing_points=z)),
                ("coreset", Coreset(points=z)),
                ("orthogonal, block", Orthogonal(*halves, q="block")),
            ):
                low, high, seconds = bounds(approximation, x, y)
                print(f"| {name} | {number} | {label} | {low:.2f} | {high:.2f} | {seconds:.2f} |")
        x, y = load(options.data, "airfoil")
        print("\n| M | H | bound | tightened | own evidence | s |\n|--:|--:|--:|--:|--:|--:|")
        for number in (400, 1_000, len(y)):
            approximation = NeighborInducing(number, 20)
            approximation.initialize(gp, x)
            low, high, seconds = bounds(approximation, x, y)
            own = own_evidence(approximation.prior(gp, x), y)
            print(f"| {number} | 20 | {low:.2f} | {high:.2f} | {own:.2f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
