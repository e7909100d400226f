"""Neighbours against inducing points where there are many columns: 3,000 rows of the elevators data.

    python tests/benchmarks/sparse_columns.py --data DIR

The first 2,000 rows of a random permutation are fitted, the next 1,000 are predicted; y is standardised.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from gpvi import GPRegressor
from gpvi.approximations import Exact, InducingPoints, SparseInverseCholesky
from gpvi.exceptions import AccuracyWarning

APPROXIMATIONS = {
    "20 neighbours": lambda: SparseInverseCholesky(20),
    "50 neighbours": lambda: SparseInverseCholesky(50),
    "100 inducing points": lambda: InducingPoints(100),
    "200 inducing points": lambda: InducingPoints(200),
    "exact": Exact,
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # The warning is what this script measures.
    warnings.simplefilter("ignore", AccuracyWarning)
    arrays = np.load(options.data / "elevators.npz")
    X, y = arrays["X"].astype(float), arrays["y"].astype(float).ravel()
    chosen = np.random.default_rng(0).permutation(len(y))[:3_000]
    X, y = X[chosen], (y[chosen] - y[chosen].mean()) / y[chosen].std()
    print("| kernel | approximation | RMSE | NLPD | CPU s |\n|---|---|--:|--:|--:|")
    for kernel in ("matern52", "rbf"):
        for name, build in APPROXIMATIONS.items():
            started = time.process_time()
            model = GPRegressor(kernel, approximation=build(), random_state=0)
            model.fit(X[:2_000], y[:2_000])
            seconds = time.process_time() - started
            mean = model.predict(X[2_000:])
            error = float(np.sqrt(np.mean((mean - y[2_000:]) ** 2)))
            density = -float(np.mean(model.log_predictive_density(X[2_000:], y[2_000:])))
            print(
                f"| {kernel} | {name} | {error:.3f} | {density:.3f} | {seconds:.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
