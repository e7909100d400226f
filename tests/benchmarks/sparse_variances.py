"""How many neighbours posterior variances need: the error of incomplete factors on weak and strong sites.

    python tests/benchmarks/sparse_variances.py

For points spread uniformly over a square, the variances of some locations by `SparseInverseCholesky` are
compared with the exact ones of the same prior (columns of the inverse of its posterior precision, by
conjugate gradients).
"""

import argparse

import gpytorch
import torch

from gpvi.approximations import GaussianProcess, Sites, SparseInverseCholesky
from gpvi.linalg import precision_solve

NEIGHBORS = (10, 20, 30, 45, 60)
PRECISIONS = (0.01, 1.0, 100.0)


def errors(nu: float, rows: int, probes: int, lengthscale: float) -> list[str]:
    """Lines of a table: mean and largest relative error for every number of neighbours."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(rows, 2, dtype=torch.float64, generator=generator)
    kernel = gpytorch.kernels.MaternKernel(nu=nu).double()
    kernel.lengthscale = lengthscale
    gp = GaussianProcess(kernel)
    chosen = torch.randperm(rows, generator=generator)[:probes]
    lines = []
    for number in NEIGHBORS:
        cells = []
        for precision in PRECISIONS:
            with torch.no_grad():
                prior = SparseInverseCholesky(number).prior(gp, x)
                w = torch.full((rows,), precision, dtype=torch.float64)
                posterior = prior.condition(Sites(w * 0.0, w))
                found = posterior.marginals().explained[chosen]
                pattern, places = prior.geometry.patterns[0], prior.geometry.place[0][chosen]
                units = torch.zeros(probes, rows, dtype=torch.float64)
                units[torch.arange(probes), places] = 1.0
                exact = precision_solve(pattern, prior.columns, w, posterior.factor, units)
                exact = exact[torch.arange(probes), places]
                error = (found / exact - 1.0).abs()
            cells.append(f"{float(error.mean()):.3f} / {float(error.max()):.3f}")
        lines.append(f"| Matern nu={nu} | {number} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--probes", type=int, default=40)
    parser.add_argument("--lengthscale", type=float, default=0.1)
    options = parser.parse_args()
    heads = " | ".join(f"precision {value:g}" for value in PRECISIONS)
    print(f"| kernel | m | {heads} |\n|---|---|" + "---|" * len(PRECISIONS))
    for nu in (0.5, 1.5, 2.5):
        for line in errors(nu, options.rows, options.probes, options.lengthscale):
            print(line, flush=True)


if __name__ == "__main__":
    main()
