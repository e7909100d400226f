"""Bounds of `Coreset` against optimal inducing points at the same inputs and hyperparameters.

    python tests/benchmarks/coreset_bounds.py --data DIR [--fits]

X and y standardised (columns that do not vary are left out), Matern-5/2 with variance 1 and noise
variance 0.1. Airfoil has lengthscale 1.5; the first 3,000 rows of elevators have no agreed one, so that there
are three. Points are rows chosen by k-means++, or centres of k-means. Both bounds are exact maxima over q, so
that their difference is what a diagonal precision costs. "Equal weights" is the loss of q with the same mean
and all weights at N/M in units of rows; "seconds" is what conditioning takes once features are there.

With ``--fits`` hyperparameters (a lengthscale per column) and points are those that `Coreset` learns, and the
comparison is made there.
"""

import argparse
import itertools
import time
from pathlib import Path

import gpytorch
import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from gpvi.approximations import (
    Coreset,
    CoresetPosterior,
    CoresetPrior,
    GaussianProcess,
    InducingPoints,
    Sites,
    select_inducing_points,
)
from gpvi.inference import cvi, elbo, fit, initialize_hyperparameters, tighter_elbo
from gpvi.likelihoods import GaussianLikelihood

NOISE = 0.1
CASES = (
    ("airfoil", None, (1.5,), (20, 100, 300)),
    ("elevators", 3_000, (2.0, 4.0, 6.0), (20, 100, 300)),
)


def choose_points(gp: GaussianProcess, x: Tensor, size: int, method: str, seed: int) -> Tensor:
    """Inputs of the coreset."""
    if method == "k-means":
        centres = KMeans(size, n_init=1, random_state=seed).fit(x.numpy()).cluster_centers_
        return torch.tensor(centres)
    return select_inducing_points(gp, x, size, method, torch.Generator().manual_seed(seed))


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
    parser.add_argument("--fits", action="store_true")
    options = parser.parse_args()
    if options.fits:
        compare_fits(options.data, options.seeds)
        return
    print(
        "| data | lengthscale | points | M | seed | inducing | coreset | loss | equal weights | tightened "
        "loss | seconds |\n|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for name, limit, lengthscales, sizes in CASES:
        x, y = load(options.data, name, limit)
        cases = itertools.product(
            lengthscales, sizes, ("kmeans++", "k-means"), range(options.seeds)
        )
        for lengthscale, size, method, seed in cases:
            figures = compare(x, y, lengthscale, size, method, seed)
            print(
                f"| {name} | {lengthscale:g} | {method} | {size} | {seed} | {figures} |", flush=True
            )


def load(folder: Path, name: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Standardised inputs and targets of the first rows."""
    arrays = np.load(folder / f"{name}.npz")
    x, y = (torch.tensor(arrays[part].astype(float))[:limit] for part in ("X", "y"))
    x = x[:, x.std(0) > 0]
    x, y = ((part - part.mean(0)) / part.std(0, correction=0) for part in (x, y))
    return x, y


def compare_fits(folder: Path, seeds: int) -> None:
    """Print a table of losses at learned hyperparameters and points."""
    print("| data | M | seed | noise variance | inducing | coreset | loss | fit s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for (name, limit, _, sizes), seed in itertools.product(CASES, range(seeds)):
        x, y = load(folder, name, limit)
        for size in sizes:
            kernel = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=x.shape[-1])
            gp = GaussianProcess(gpytorch.kernels.ScaleKernel(kernel).double())
            likelihood, approximation = GaussianLikelihood().double(), Coreset(size)
            generator = torch.Generator().manual_seed(seed)
            initialize_hyperparameters(gp, likelihood, x, y, generator)
            start = time.process_time()
            fit(gp, approximation, likelihood, x, y, generator=generator)
            took = time.process_time() - start
            with torch.no_grad():
                free, ours = (
                    float(elbo(cvi(q.prior(gp, x), likelihood, y).posterior, likelihood, y))
                    for q in (InducingPoints(inducing_points=approximation.points), approximation)
                )
                figures = f"{free:.2f} | {ours:.2f} | {free - ours:.2f} | {took:.1f}"
                noise = float(likelihood.noise)
            print(f"| {name} | {size} | {seed} | {noise:.3g} | {figures} |", flush=True)


def compare(x: Tensor, y: Tensor, lengthscale: float, size: int, method: str, seed: int) -> str:
    """The last columns of a row."""
    likelihood = GaussianLikelihood(noise=NOISE).double()
    kernel = gpytorch.kernels.MaternKernel(nu=2.5).double()
    kernel.lengthscale = torch.tensor(lengthscale, dtype=torch.float64)
    gp, sites = GaussianProcess(kernel), Sites(y / NOISE, torch.full_like(y, 1 / NOISE))
    with torch.no_grad():
        z = choose_points(gp, x, size, method, seed)
        free = InducingPoints(inducing_points=z).prior(gp, x).condition(sites)
        prior = Coreset(points=z).prior(gp, x)
        assert isinstance(prior, CoresetPrior)
        prior.inducing.condition(
            sites
        )  # features, which both need, are made before the clock starts
        start = time.perf_counter()
        ours = prior.condition(sites)
        took = time.perf_counter() - start
        assert isinstance(ours, CoresetPosterior)
        best, found = (float(elbo(q, likelihood, y)) for q in (free, ours))
        tight, tightened = (float(tighter_elbo(q, likelihood, y)) for q in (free, ours))
        equal = best - found + equal_weights_loss(prior, ours, len(y) / (size * NOISE))
    figures = (best, found, best - found, equal, tight - tightened)
    return " | ".join([*(f"{figure:.2f}" for figure in figures), f"{took:.3f}"])


if __name__ == "__main__":
    main()
