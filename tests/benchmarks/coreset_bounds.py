"""Bounds of `Coreset` against optimal inducing points at the same inputs and hyperparameters.

    python tests/benchmarks/coreset_bounds.py --data DIR

X and y standardised, Matern-5/2 with lengthscale 1.5 (airfoil) or 4 (the first 3,000 rows of elevators),
variance 1 and noise variance 0.1; points from k-means++. Both bounds are exact maxima over q, so that their
difference is what a diagonal precision costs; "equal weights" is q with the same mean and all weights at
their start, N/M in units of rows; "seconds" is what conditioning takes in all.
"""

import argparse
import time
from pathlib import Path

import gpytorch
import numpy as np
import torch

from gpvi.approximations import (
    Coreset,
    CoresetPosterior,
    CoresetPrior,
    Exact,
    GaussianProcess,
    InducingPoints,
    Sites,
    select_inducing_points,
)
from gpvi.inference import elbo, tighter_elbo
from gpvi.likelihoods import GaussianLikelihood

NOISE = 0.1
CASES = (
    ("airfoil", None, 1.5, (20, 100, 300)),
    ("elevators", 3_000, 4.0, (20, 100, 300)),
)


def equal_weights_loss(prior: CoresetPrior, posterior: CoresetPosterior, weight: float) -> float:
    """Nats that equal weights lose against the best ones."""
    pseudo = posterior.pseudo
    pull = pseudo.lam1 - pseudo.lam2 * posterior.predict(prior.z).mean
    lam2 = torch.full_like(pseudo.lam2, weight)
    equal = Sites(pull + lam2 * posterior.predict(prior.z).mean, lam2, on="basis")
    return float(posterior.log_partition - prior.hold(posterior.sites, equal).log_partition)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    likelihood = GaussianLikelihood(noise=NOISE).double()
    print(
        "| data | M | seed | inducing | coreset | loss | equal weights | tightened loss | seconds |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for name, limit, lengthscale, sizes in CASES:
        arrays = np.load(options.data / f"{name}.npz")
        x, y = (torch.tensor(arrays[part].astype(float))[:limit] for part in ("X", "y"))
        x = x[:, x.std(0) > 0]
        x, y = ((part - part.mean(0)) / part.std(0, correction=0) for part in (x, y))
        kernel = gpytorch.kernels.MaternKernel(nu=2.5).double()
        kernel.lengthscale = torch.tensor(lengthscale, dtype=torch.float64)
        gp, sites = GaussianProcess(kernel), Sites(y / NOISE, torch.full_like(y, 1 / NOISE))
        with torch.no_grad():
            exact = elbo(Exact().prior(gp, x).condition(sites), likelihood, y)
            print(f"| {name} | exact | | {float(exact):.2f} | | | | | |")
            for size in sizes:
                for seed in range(options.seeds):
                    generator = torch.Generator().manual_seed(seed)
                    z = select_inducing_points(gp, x, size, "kmeans++", generator)
                    free = InducingPoints(inducing_points=z).prior(gp, x).condition(sites)
                    prior = Coreset(points=z).prior(gp, x)
                    prior.inducing.condition(sites)  # what both have to do
                    start = time.perf_counter()
                    ours = prior.condition(sites)
                    took = time.perf_counter() - start
                    values = [
                        [float(bound(q, likelihood, y)) for q in (free, ours)]
                        for bound in (elbo, tighter_elbo)
                    ]
                    (best, found), (tight, tightened) = values
                    equal = equal_weights_loss(prior, ours, len(y) / (size * NOISE))
                    print(
                        f"| {name} | {size} | {seed} | {best:.2f} | {found:.2f} | {best - found:.2f} | "
                        f"{equal:.2f} | {tight - tightened:.2f} | {took:.3f} |"
                    )


if __name__ == "__main__":
    main()
