"""How often the energy of expectation propagation lies between the ELBO and the log evidence.

Random probit problems of thirty rows at held hyperparameters; the evidence by importance sampling from a
Student-t about q, with its standard error.

    python tests/benchmarks/ep_energy_order.py
"""

import math

import gpytorch
import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from gpvi.approximations import Exact, GaussianProcess, Posterior
from gpvi.inference import cvi, elbo, ep_energy
from gpvi.likelihoods import BernoulliLikelihood

PROBLEMS, ROWS, DRAWS, DEGREES = 50, 30, 200_000, 8.0


def main() -> None:
    """Print the count and how much of the gap between bound and evidence the energy closes."""
    generator, model = np.random.default_rng(0), BernoulliLikelihood()
    above_bound, below_truth, clearly_above, closed, errors = 0, 0, 0, [], []
    for _ in range(PROBLEMS):
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
        kernel.base_kernel.lengthscale = float(generator.uniform(0.2, 1.0))
        kernel.outputscale = float(generator.choice([1.0, 4.0, 16.0]))
        gp = GaussianProcess(kernel).requires_grad_(False)
        x = torch.from_numpy(np.sort(generator.uniform(0.0, 3.0, (ROWS, 1)), 0))
        f = torch.linalg.cholesky(gp.covariance(x)) @ torch.from_numpy(generator.normal(size=ROWS))
        y = (f + torch.from_numpy(generator.normal(size=ROWS)) > 0).double()
        q = cvi(Exact().prior(gp, x), model, y, tolerance=1e-9).posterior
        lower, energy = elbo(q, model, y).item(), ep_energy(q, model, y).item()
        truth, error = evidence(gp.covariance(x), y, q, generator)
        above_bound += energy > lower
        below_truth += energy < truth
        clearly_above += energy > truth + 3.0 * error
        closed.append((energy - lower) / (truth - lower))
        errors.append(error)
    print(f"energy above the ELBO: {above_bound} of {PROBLEMS}")
    print(f"energy below the estimated evidence: {below_truth} of {PROBLEMS}")
    print(f"above it by more than three standard errors: {clearly_above} of {PROBLEMS}")
    print(
        f"part of the gap closed: {min(closed):.2f} to {max(closed):.2f}, median {np.median(closed):.2f}"
    )
    print(f"largest standard error of the evidence: {max(errors):.4f} nats")


def evidence(
    K: Tensor, y: Tensor, posterior: Posterior, generator: np.random.Generator
) -> tuple[float, float]:
    """Log evidence and its standard error."""
    mean, rows = posterior.marginals().mean, len(y)
    root = posterior.sites.lam2.sqrt()
    B = torch.eye(rows, dtype=K.dtype) + root[:, None] * K * root
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(B), root[:, None] * K, upper=False)
    factor = torch.linalg.cholesky(K - half.mT @ half)
    scale = torch.from_numpy(np.sqrt(DEGREES / generator.chisquare(DEGREES, (DRAWS, 1))))
    z = scale * torch.from_numpy(generator.normal(size=(DRAWS, rows)))
    f, total = mean + z @ factor.mT, 0.5 * (DEGREES + rows)
    log_q = (
        math.lgamma(total) - math.lgamma(0.5 * DEGREES) - 0.5 * rows * math.log(DEGREES * math.pi)
    )
    log_q = log_q - factor.diagonal().log().sum() - total * (z.square().sum(-1) / DEGREES).log1p()
    log_p = MultivariateNormal(torch.zeros_like(mean), K).log_prob(f)
    weights = log_p + torch.special.log_ndtr((2.0 * y - 1.0) * f).sum(-1) - log_q
    value = float(weights.logsumexp(0)) - math.log(DRAWS)
    relative = (weights - value).exp()
    return value, float(relative.std()) / math.sqrt(DRAWS)


if __name__ == "__main__":
    main()
