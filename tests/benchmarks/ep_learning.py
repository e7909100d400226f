"""Held-out scores of four ways to infer and learn, on two sets of labels.

    python tests/benchmarks/ep_learning.py --data DIR [--folds 5]

Breast cancer (scikit-learn) and ionosphere, probit, RBF with one lengthscale over columns that are
standardised on the training rows. Mean test log density and accuracy over folds that are the same for all;
CPU seconds of one fit.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold

from gpvi import GPClassifier

WAYS = {
    "ELBO": {"objective": "elbo"},
    "energy at ELBO's sites": {"objective": "ep"},
    "EP": {"inference": "ep"},
    "Laplace": {"inference": "laplace"},
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    ionosphere = np.load(options.data / "ionosphere.npz")
    sets = {
        "breast cancer": load_breast_cancer(return_X_y=True),
        "ionosphere": (ionosphere["X"].astype(float), (ionosphere["y"].ravel() > 0).astype(int)),
    }
    print("| data | learning | log density | accuracy | fit s |\n|---|---|--:|--:|--:|")
    for name, (X, y) in sets.items():
        X = X[:, X.std(0) > 0]
        folds = list(StratifiedKFold(options.folds, shuffle=True, random_state=0).split(X, y))
        for way, settings in WAYS.items():
            scores = np.array([score(X, y, train, test, settings) for train, test in folds])
            density, accuracy, seconds = scores.mean(0)
            print(
                f"| {name} | {way} | {density:.4f} | {accuracy:.3f} | {seconds:.1f} |", flush=True
            )


def score(
    X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, settings: dict[str, str]
) -> tuple[float, float, float]:
    """Mean log density, accuracy and CPU seconds of one fit."""
    model = GPClassifier("rbf", ard=False, approximation="exact", random_state=0, **settings)
    X = (X - X[train].mean(0)) / X[train].std(0).clip(1e-12)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X[train], y[train])
    seconds = time.process_time() - start
    probability = model.predict_proba(X[test])[np.arange(len(test)), y[test]]
    return float(np.log(probability).mean()), float(model.score(X[test], y[test])), seconds


if __name__ == "__main__":
    main()
