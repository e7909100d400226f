"""How near to the log evidence bounds and energies come, for labels of growing certainty.

    python tests/benchmarks/evidence_accuracy.py [--seeds 5]

Sixty probit labels on a line, Matern-5/2 with lengthscale 0.5 and signal variance 1, 16 and 100. The evidence
is estimated by importance sampling with the posterior of expectation propagation as proposal (its standard
error in nats is printed). Gaps are medians over the seeds: objective minus evidence.
"""

import argparse
import statistics

import torch
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess
from gpvi.inference import cvi, ep_energy, expectation_propagation, laplace
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import BernoulliLikelihood

ROWS, DRAWS = 60, 400_000


def problem(seed: int, variance: float) -> tuple[GaussianProcess, Tensor, Tensor]:
    """Process, inputs and labels drawn from it."""
    generator = torch.Generator().manual_seed(seed)
    x = 4.0 * torch.rand(ROWS, 1, dtype=torch.float64, generator=generator)
    kernel = parse_kernel("matern52", 1).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = 0.5, variance
    gp = GaussianProcess(kernel)
    factor = torch.linalg.cholesky(gp.covariance(x, x) + 1e-8 * torch.eye(ROWS).double())
    f = factor @ torch.randn(ROWS, dtype=torch.float64, generator=generator)
    noise = torch.randn(ROWS, dtype=torch.float64, generator=generator)
    return gp, x, (f + noise > 0).double()


def gaps(seed: int, variance: float) -> list[float]:
    """Objectives minus the evidence, and the standard error of the latter."""
    gp, x, y = problem(seed, variance)
    prior, likelihood = Exact().prior(gp, x).detach(), BernoulliLikelihood()
    best = cvi(prior, likelihood, y, tolerance=1e-10)
    matched = expectation_propagation(prior, likelihood, y)
    half = expectation_propagation(prior, likelihood, y, power=0.5)
    draw = matched.posterior.rsample((DRAWS,), generator=torch.Generator().manual_seed(seed))
    log_weights = likelihood.log_prob(draw.values, y).sum(-1) + matched.posterior.log_ratio(draw)
    evidence = float(log_weights.logsumexp(0)) - float(torch.tensor(DRAWS).log())
    error = float((log_weights - evidence).exp().std()) / DRAWS**0.5
    values = [
        best.objective,
        laplace(prior, likelihood, y).objective,
        float(ep_energy(best.posterior, likelihood, y)),
        half.objective,
        matched.objective,
    ]
    return [value - evidence for value in values] + [error]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    print(
        "| signal variance | ELBO | Laplace | energy at ELBO's sites | EP, power 1/2 | EP | error |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    with torch.no_grad():
        for variance in (1.0, 16.0, 100.0):
            rows = [gaps(seed, variance) for seed in range(options.seeds)]
            medians = [statistics.median(column) for column in zip(*rows, strict=True)]
            print(f"| {variance:g} | " + " | ".join(f"{gap:.3f}" for gap in medians) + " |")


if __name__ == "__main__":
    main()
