"""Inducing points, neighbours, and inducing points with neighbours for what they leave.

    python tests/benchmarks/vecchia_residual.py --data DIR

Two tables. "Evidence": at fixed hyperparameters (airfoil, standardised, variance 1,
lengthscale 1.5, noise variance 0.1), evidence of the responses less the exact one (for inducing points the
tightened bound), and seconds of a value with its gradient. "Fits": regressors with all hyperparameters
learned on the stored splits; test NLPD and CPU seconds of fit and prediction.
"""

import argparse
import math
import time
from pathlib import Path

import gpytorch
import numpy as np
import torch
from registry import TASKS
from splits import load_split
from torch import Tensor

from gpvi import GPRegressor
from gpvi.approximations import (
    Approximation,
    Exact,
    FullScale,
    GaussianProcess,
    InducingPoints,
    Sites,
    SparseInverseCholesky,
    select_inducing_points,
)

NOISE = 0.1
KERNELS = {
    "Matern-3/2": lambda: gpytorch.kernels.MaternKernel(nu=1.5),
    "Matern-5/2": lambda: gpytorch.kernels.MaternKernel(nu=2.5),
    "RBF": gpytorch.kernels.RBFKernel,
}


def both(points: Tensor | int, neighbors: int) -> FullScale:
    """Inducing points (or their number) with neighbours for the rest."""
    base = (
        InducingPoints(points)
        if isinstance(points, int)
        else InducingPoints(inducing_points=points)
    )
    return FullScale(base, SparseInverseCholesky(neighbors))


def evidences(folder: Path, size: int) -> None:
    """Print the first table."""
    print(
        f"| kernel | neighbours | inducing points alone ({size}) | neighbours alone | both | seconds alone | "
        "seconds both |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    arrays = np.load(folder / "airfoil.npz")
    x, y = (torch.tensor(arrays[part].astype(float)) for part in ("X", "y"))
    x, y = ((part - part.mean(0)) / part.std(0, correction=0) for part in (x, y))
    for name, build in KERNELS.items():
        kernel = build().double()
        kernel.lengthscale = torch.tensor(1.5, dtype=torch.float64)
        gp = GaussianProcess(kernel)
        points = select_inducing_points(gp, x, size, "greedy", torch.Generator().manual_seed(0))
        exact = exact_evidence(gp, x, y)
        inducing = timed(InducingPoints(inducing_points=points), gp, x, y)[0] - exact
        for neighbors in (5, 10, 20, 30):
            alone = timed(SparseInverseCholesky(neighbors), gp, x, y)
            ours = timed(both(points, neighbors), gp, x, y)
            print(
                f"| {name} | {neighbors} | {inducing:.2f} | {alone[0] - exact:.2f} | {ours[0] - exact:.2f} | "
                f"{alone[1]:.3f} | {ours[1]:.3f} |",
                flush=True,
            )


def exact_evidence(gp: GaussianProcess, x: Tensor, y: Tensor) -> float:
    """Of the process itself."""
    sites = Sites(y / NOISE, torch.full_like(y, 1 / NOISE))
    with torch.no_grad():
        partition = Exact().prior(gp, x).condition(sites).log_partition
    constant = -0.5 * y.square().sum() / NOISE - 0.5 * len(y) * math.log(2 * math.pi * NOISE)
    return float(partition + constant)


def timed(
    approximation: Approximation, gp: GaussianProcess, x: Tensor, y: Tensor
) -> tuple[float, float]:
    """Evidence, and the best of three times of a value with its gradient, neighbours known."""
    plan, noise = approximation.plan(x), torch.tensor(NOISE, dtype=x.dtype)
    seconds = []
    for _ in range(4):
        start = time.process_time()
        value = approximation.collapsed_objective(gp, x, y, noise, tighter=True, plan=plan)
        assert value is not None
        value.backward()
        seconds.append(time.process_time() - start)
    return value.detach().item(), min(seconds[1:])


def fits(folder: Path, tasks: list[str], seeds: int) -> None:
    """Print the second table."""
    print(
        "\n| data | kernel | approximation | split | NLPD | RMSE | seconds |\n|---|---|---|--:|--:|--:|--:|"
    )
    for name in tasks:
        for seed in range(seeds):
            split = load_split(TASKS[name], folder, seed)
            for kernel in ("matern32", "matern52"):
                for label, approximation in (
                    ("inducing, 200", InducingPoints(200)),
                    ("neighbours, 20", SparseInverseCholesky(20)),
                    ("both, 100 and 20", both(100, 20)),
                    ("both, 200 and 20", both(200, 20)),
                ):
                    start = time.process_time()
                    model = GPRegressor(kernel, approximation=approximation, random_state=0)
                    model.fit(split.train_inputs, split.train_targets)
                    mean, deviation = model.predict(split.test_inputs, return_std=True)
                    took = time.process_time() - start
                    nlpd, rmse = scores(split, mean, deviation)
                    print(
                        f"| {name} | {kernel} | {label} | {seed} | {nlpd:.4f} | {rmse:.4f} | {took:.1f} |",
                        flush=True,
                    )


def scores(split, mean: np.ndarray, deviation: np.ndarray) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Mean negative log density and root mean square error in the units of the data."""
    scale = split.target_scale
    gap = split.test_targets - (split.target_mean + scale * mean)
    variance = (scale * deviation) ** 2
    nlpd = 0.5 * np.mean(np.log(2 * np.pi * variance) + gap**2 / variance)
    return float(nlpd), float(np.sqrt(np.mean(gap**2)))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--fits", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    evidences(options.data, options.size)
    if options.fits:
        fits(options.data, options.fits, options.seeds)


if __name__ == "__main__":
    main()
