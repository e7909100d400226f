"""Learning with the energy of expectation propagation on Banana, step by step as published.

Twenty sweeps of conjugate-computation variational inference with step 0.1, then twenty steps of Adam
(0.01) on the energy at held sites, on 300 of 400 rows of a file with ``X`` and labels ``y`` of 0 and
1 (the file is not part of the package). Compare with the notebook of Li, R., John, S. T. & Solin, A. (2023).
Improving hyperparameter learning under approximate inference in Gaussian process models. ICML.

    python tests/benchmarks/ep_energy_trace.py banana400.npz
"""

import argparse
import functools

import gpytorch
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, Sites
from gpvi.inference import data_term, dual, elbo, ep_energy
from gpvi.likelihoods import BernoulliLikelihood

SWEEPS, STEPS, FIRST_PRECISION = 20, 20, 1e-6


def main() -> None:
    """Print bound and energy after every fifth round, and the scores of the held-out rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    with np.load(options.path) as stored:
        split = train_test_split(stored["X"], stored["y"], test_size=0.25, random_state=42)
    x, x_new, y, y_new = (torch.from_numpy(part) for part in split)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5)).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = 1.0, 1.0
    gp, model = GaussianProcess(kernel), BernoulliLikelihood()
    optimizer = torch.optim.Adam(kernel.parameters(), lr=0.01)
    zeros = torch.zeros_like(y)
    sites = Sites(zeros, zeros + FIRST_PRECISION)
    print("round       elbo     energy")
    for number in range(options.rounds + 1):
        if number % 5 == 0:
            posterior = Exact().prior(gp, x).condition(sites)
            bound, energy = (score(posterior, model, y).item() for score in (elbo, ep_energy))
            print(f"{number:5d} {bound:10.3f} {energy:10.3f}")
        if number < options.rounds:
            sites = swept(gp, model, x, y, sites)
            for _ in range(STEPS):
                optimizer.zero_grad()
                posterior = Exact().prior(gp, x).condition(sites)
                loss = -ep_energy(posterior, model, y)
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        new = Exact().prior(gp, x).condition(sites).predict(x_new)
        density = model.predict_log_density(y_new, new.mean, new.variance)
    right = ((new.mean > 0) == (y_new > 0)).double().mean()
    print(f"held-out log density {density.mean():.4f}, accuracy {right:.3f}")


def swept(
    gp: GaussianProcess, model: BernoulliLikelihood, x: Tensor, y: Tensor, sites: Sites
) -> Sites:
    """Sites after some steps of fixed length."""
    with torch.no_grad():
        prior = Exact().prior(gp, x)
        for _ in range(SWEEPS):
            moments = prior.condition(sites).marginals()
            sites = sites.lerp(dual(functools.partial(data_term, model, y), moments), 0.1).detach()
    return sites


if __name__ == "__main__":
    main()
