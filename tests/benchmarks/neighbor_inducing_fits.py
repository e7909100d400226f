"""Seconds of fits with neighbour-given inducing points, on all rows and on minibatches.

    OMP_NUM_THREADS=1 python tests/benchmarks/neighbor_inducing_fits.py

Inputs are uniform on a square of twenty units, the function is sin(x1) cos(x2): normal targets with
deviation 0.3, counts with its exponential as rate, classes with twice the function as log odds.
"""

import argparse
import time

import numpy as np

from gpvi import GPClassifier, GPCountRegressor, GPRegressor


def targets(kind: str, f: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Targets of a kind."""
    if kind == "normal":
        return f + 0.3 * rng.standard_normal(len(f))
    if kind == "counts":
        return rng.poisson(np.exp(f))
    return (rng.random(len(f)) < 1 / (1 + np.exp(-2 * f))).astype(int)


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    number = parser.parse_args().rows
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 20, (number, 2))
    f = np.sin(x[:, 0]) * np.cos(x[:, 1])
    models = {"normal": GPRegressor, "counts": GPCountRegressor, "classes": GPClassifier}
    print("| targets | M | rows a step | CPU s | objective |")
    print("|---|--:|--:|--:|--:|")
    for kind, inducing, batch_size in (
        ("normal", 5_000, None),
        ("normal", 20_000, None),
        ("counts", 5_000, None),
        ("classes", 5_000, None),
        ("counts", 5_000, 256),
    ):
        y = targets(kind, f, np.random.default_rng(1))
        options = {} if batch_size is None else {"batch_size": batch_size, "max_iter": 600}
        model = models[kind](
            "matern32",
            approximation="neighbor_inducing",
            num_inducing=inducing,
            random_state=0,
            **options,
        )
        started = time.process_time()
        model.fit(x, y)
        seconds = time.process_time() - started
        rows = "all" if batch_size is None else batch_size
        print(f"| {kind} | {inducing:,} | {rows} | {seconds:.0f} | {model.elbo_:.1f} |", flush=True)


if __name__ == "__main__":
    main()
