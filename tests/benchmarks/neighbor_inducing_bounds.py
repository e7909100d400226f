"""Bounds of `NeighborInducing` on airfoil, and the price of a training step.

    python tests/benchmarks/neighbor_inducing_bounds.py --data DIR
    python tests/benchmarks/neighbor_inducing_bounds.py --random
    python tests/benchmarks/neighbor_inducing_bounds.py --steps

X and y standardised, Matern-5/2 with lengthscale 1.5, variance 1 and noise variance 0.1, 20 neighbours. The
own evidence is that of the targets under the same model, by dense algebra; "best q" is the bound with the
exact posterior of the inducing values. Random problems have 100 to 160 rows of one to three columns and noise
variances 0.05, 1 and 10; every other one has all rows as inducing points, and the others 60 of them. Steps
are those of a free-form q on 128 rows and 128 inducing points of two input columns, with sparse gradients;
batches are drawn one by one, or as a stretch of the spatial order with a random start, which is as unbiased
and shares ancestors. Steps are timed in seconds of the processor; run them with OMP_NUM_THREADS=1.
"""

import argparse
import math
import time
from pathlib import Path

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, NeighborInducing, Sites
from gpvi.inference import elbo, tighter_elbo
from gpvi.likelihoods import GaussianLikelihood
from gpvi.linalg import factor_product, spatial_order

NOISE = 0.1
BATCH = 128


def own_evidence(prior, y: Tensor, variance: float = NOISE) -> tuple[float, float]:
    """Exact log evidence of a prior's own model, and its bound for the best q."""
    inner, rows, M = prior.inner, prior.rows, prior.num_basis
    eye = torch.eye(M, dtype=y.dtype)
    U = factor_product(inner.pattern(()), inner.columns, eye).mT
    A = rows.scatter_columns(prior.weights, M)
    root = torch.linalg.solve_triangular(U, A, upper=True)  # A' (UU')^-1 A = |U^-1 A|^2
    projected = root.mT @ root
    noise, residual = variance * torch.ones_like(y), prior.residual
    normal = torch.distributions.MultivariateNormal
    evidence = normal(prior.mean, projected + torch.diag(noise + residual)).log_prob(y)
    best = (
        normal(prior.mean, projected + torch.diag(noise)).log_prob(y)
        - 0.5 * (residual / noise).sum()
    )
    return float(evidence), float(best)


def bounds(path: Path, num_neighbors: int) -> None:
    """Print bounds and evidences."""
    arrays = np.load(path / "airfoil.npz")
    x, y = (torch.tensor(arrays[name].astype(float)) for name in ("X", "y"))
    x, y = ((part - part.mean(0)) / part.std(0, correction=0) for part in (x, y))
    kernel = gpytorch.kernels.MaternKernel(nu=2.5).double()
    kernel.lengthscale = torch.tensor(1.5, dtype=torch.float64)
    gp, sites = GaussianProcess(kernel), Sites(y / NOISE, torch.full_like(y, 1 / NOISE))
    likelihood = GaussianLikelihood(noise=NOISE)
    constant = -0.5 * len(y) * math.log(2 * math.pi * NOISE) - 0.5 * float(y @ y) / NOISE
    with torch.no_grad():
        exact = Exact().prior(gp, x).condition(sites).log_partition
        print(f"exact log evidence of the process {float(exact) + constant:.2f}\n")
        print("| M | selection | family | bound | best q | tightened | own evidence | seconds |")
        print("|--:|---|---|--:|--:|--:|--:|--:|")
        for number in (400, 1000, len(y)):
            for selection, family in (
                ("maximin", "sic"),
                ("kmeans++", "sic"),
                ("maximin", "diagonal"),
            ):
                approximation = NeighborInducing(
                    number, num_neighbors, selection=selection, family=family
                )
                approximation.initialize(gp, x, torch.Generator().manual_seed(0))
                started = time.perf_counter()
                prior = approximation.prior(gp, x)
                posterior = prior.condition(sites)
                bound = float(elbo(posterior, likelihood, y))
                seconds = time.perf_counter() - started
                tight = float(tighter_elbo(posterior, likelihood, y))
                own, best = own_evidence(prior, y)
                print(
                    f"| {prior.num_basis} | {selection} | {family} | {bound:.2f} | {best:.2f} "
                    f"| {tight:.2f} | {own:.2f} | {seconds:.2f} |"
                )


def random_problem(seed: int, number: int, ancestors: str) -> tuple[float, float, float]:
    """Tightened bound, evidence of the same model and of the process."""
    generator = torch.Generator().manual_seed(seed)
    noise, columns = (0.05, 1.0, 10.0)[seed % 3], 1 + seed % 3
    x = torch.rand(100 + 20 * (seed % 4), columns, dtype=torch.float64, generator=generator)
    kernel = gpytorch.kernels.MaternKernel(nu=(0.5, 1.5)[(seed // 3) % 2]).double()
    kernel.lengthscale = torch.tensor(0.1 + 0.8 * ((7 * seed) % 10) / 10, dtype=torch.float64)
    error = torch.randn(len(x), dtype=torch.float64, generator=generator)
    gp, y = GaussianProcess(kernel), (5 * x[:, 0]).sin() + noise**0.5 * error
    given = {"inducing_points": x} if seed % 2 else {"num_inducing": 60}
    approximation = NeighborInducing(num_neighbors=number, ancestors=ancestors, **given)
    approximation.initialize(gp, x)
    prior = approximation.prior(gp, x)
    posterior = prior.condition(Sites(y / noise, torch.full_like(y, 1 / noise)))
    bound = tighter_elbo(posterior, GaussianLikelihood(noise=noise), y)
    covariance = gp.covariance(x) + noise * torch.eye(len(x), dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(gp.mean(x), covariance).log_prob(y)
    return float(bound), own_evidence(prior, y, noise)[0], float(exact)


def random_problems() -> None:
    """Print by how much bounds exceed evidences at most."""
    print("| neighbours | ancestors | over own evidence | over the process's | problems over it |")
    print("|--:|---|--:|--:|--:|")
    for number in (2, 3, 5, 10, 20):
        for ancestors in ("all", "near"):
            with torch.no_grad():
                found = [random_problem(seed, number, ancestors) for seed in range(50)]
            own = max(bound - evidence for bound, evidence, _ in found)
            process = [bound - exact for bound, _, exact in found]
            above = sum(gap > 1e-6 for gap in process)
            print(f"| {number} | {ancestors} | {own:.1e} | {max(process):.2g} | {above} of 50 |")


class FreeForm(torch.nn.Module):
    """Parameters of q in tables whose gradients are sparse; q starts as independent values."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.mean = torch.nn.Embedding(size, 1, sparse=True, dtype=torch.float64)
        self.factor = torch.nn.Embedding(size, width, sparse=True, dtype=torch.float64)
        torch.nn.init.zeros_(self.mean.weight)
        torch.nn.init.zeros_(self.factor.weight)

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and columns of the factor at places."""
        factor = self.factor(places)
        return self.mean(places).squeeze(-1), torch.cat([factor[:, :-1], factor[:, -1:].exp()], -1)


def steps(num_neighbors: int) -> None:
    """Print milliseconds a step."""
    print(
        "| M | ancestors | batches | values of q in a step | median of 30 steps, CPU ms "
        "| of these Adam, ms |"
    )
    print("|--:|---|---|--:|--:|--:|")
    for M, ancestors in (
        (1_000, "all"),
        (1_000, "near"),
        (10_000, "near"),
        (100_000, "near"),
    ):
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(2 * M, 2, dtype=torch.float64, generator=generator)
        x = x[spatial_order(x).long()]
        y = (20 * x[:, 0]).sin() + 0.3 * torch.randn(
            2 * M, dtype=torch.float64, generator=generator
        )
        kernel = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=2).double()
        kernel.lengthscale = torch.tensor([0.1, 0.1], dtype=torch.float64)
        gp = GaussianProcess(kernel)
        approximation = NeighborInducing(M, num_neighbors, selection="random", ancestors=ancestors)
        approximation.initialize(gp, x, generator)
        plan = approximation.plan(x)
        schedule = approximation.prior(gp, x[:1], plan=plan.at(x[:1])).inner.geometry.schedule[0]
        for name in ("scattered", "of near ones"):
            sizes, taken, updates = train(
                approximation, gp, x, y, plan, schedule.long(), name == "scattered", generator
            )
            print(
                f"| {M:,} | {ancestors} | {name} | {np.median(sizes):,.0f} | {1e3 * np.median(taken):.0f} "
                f"| {1e3 * np.median(updates):.1f} |"
            )


def train(approximation, gp, x, y, plan, schedule, scattered, generator) -> tuple:
    """Numbers of values of q, seconds a step, and of these for Adam."""
    M, likelihood = len(schedule), GaussianLikelihood(noise=0.1)
    q = FreeForm(M, approximation.options.num_neighbors + 1)
    dense = torch.optim.Adam(gp.parameters(), lr=0.01)
    sparse = torch.optim.SparseAdam(list(q.parameters()), lr=0.01)
    sizes, taken, updates = [], [], []
    block = torch.arange(BATCH)
    for _ in range(31):
        if scattered:
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            inducing = torch.randint(M, (BATCH,), generator=generator)
        else:
            first, second = torch.randint(2**40, (2, 1), generator=generator)
            rows, inducing = (first + block) % len(x), schedule[(second + block) % M]
        started = time.process_time()
        dense.zero_grad()
        sparse.zero_grad()
        prior = approximation.prior(gp, x[rows], plan=plan.at(x[rows]))
        view = prior.batch(q, inducing)
        loss = -elbo(view, likelihood, y[rows], len(x))
        loss.backward()
        middle = time.process_time()
        dense.step()
        sparse.step()
        taken.append(time.process_time() - started)
        updates.append(time.process_time() - middle)
        sizes.append(len(view.places))
    return sizes[1:], taken[1:], updates[1:]


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--neighbors", type=int, default=20)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--steps", action="store_true")
    options = parser.parse_args()
    if options.data is not None:
        bounds(options.data, options.neighbors)
    if options.random:
        random_problems()
    if options.steps:
        steps(options.neighbors)


if __name__ == "__main__":
    main()
