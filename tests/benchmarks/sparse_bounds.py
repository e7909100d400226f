"""Bounds, own evidences and families of `SparseInverseCholesky` on the airfoil data.

    python tests/benchmarks/sparse_bounds.py --data DIR

X and y standardised, Matern-5/2 with lengthscale 1.5, variance 1 and noise variance 0.1. The own evidence
is that of the prior N(0, (UU')^-1) with noise, by dense algebra.
"""

import argparse
import math
from pathlib import Path

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    Sites,
    SparseInverseCholesky,
    SparseInversePrior,
)
from gpvi.linalg import factor_product

NOISE = 0.1


def dense_factor(prior: SparseInversePrior) -> Tensor:
    """U as a dense matrix, in the order of the locations."""
    eye = torch.eye(prior.num_basis, dtype=torch.float64)
    return factor_product(prior.pattern(()), prior.columns, eye).mT


def own_evidence(prior: SparseInversePrior, sites: Sites) -> Tensor:
    """Exact log partition of the sites under this prior."""
    U = dense_factor(prior)
    rows, places = prior.geometry.place[0], torch.zeros(prior.num_basis, dtype=torch.float64)
    w, b = (places.index_add(0, rows, part) for part in (sites.lam2, sites.lam1))
    P = U @ U.mT + torch.diag(w)
    return (
        0.5 * (b @ torch.linalg.solve(P, b) - torch.linalg.slogdet(P).logabsdet)
        + U.diagonal().log().sum()
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--neighbors", type=int, default=20)
    options = parser.parse_args()
    arrays = np.load(options.data / "airfoil.npz")
    x, y = (torch.tensor(arrays[name].astype(float)) for name in ("X", "y"))
    x, y = ((part - part.mean(0)) / part.std(0, correction=0) for part in (x, y))
    kernel = gpytorch.kernels.MaternKernel(nu=2.5).double()
    kernel.lengthscale = torch.tensor(1.5, dtype=torch.float64)
    gp, sites = GaussianProcess(kernel), Sites(y / NOISE, torch.full_like(y, 1 / NOISE))
    constant = -0.5 * len(y) * math.log(2 * math.pi * NOISE) - 0.5 * float(y @ y) / NOISE
    with torch.no_grad():
        exact = Exact().prior(gp, x).condition(sites).log_partition
        print(f"exact log evidence {float(exact) + constant:.2f}\n")
        print("| order | nugget | family | bound | own evidence |\n|---|---|---|--:|--:|")
        for seed, nugget, family in (
            *((seed, 1e-8, "sic") for seed in (0, 1, 2)),
            *((0, 1e-6, family) for family in ("sic", "diagonal", "first_points")),
        ):
            approximation = SparseInverseCholesky(
                options.neighbors, nugget=nugget, family=family, seed=seed
            )
            prior = approximation.prior(gp, x)
            bound = float(prior.condition(sites).log_partition) + constant
            own = float(own_evidence(prior, sites)) + constant
            print(f"| maximin, seed {seed} | {nugget:g} | {family} | {bound:.2f} | {own:.2f} |")


if __name__ == "__main__":
    main()
