"""scikit-learn: exact regression and Laplace classification by L-BFGS, no restarts (its default)."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel
from splits import Array, Split

__all__ = ["Exact", "Laplace"]


def _kernel(num_inputs: int, lengthscale: float) -> Kernel:
    return ConstantKernel(1.0) * Matern(np.full(num_inputs, lengthscale), nu=2.5)


class Exact:
    """Amplitude x Matern-5/2 with one lengthscale per input, plus noise."""

    def __init__(self, seed: int) -> None:
        self.settings: dict[str, Any] = {"restarts": 0, "dtype": "float64"}
        self._seed = seed

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self.fit(split)
        self.predict(split.test_inputs)

    def fit(self, split: Split) -> None:
        kernel = _kernel(split.train_inputs.shape[1], 1.0) + WhiteKernel(0.1)
        self._model = GaussianProcessRegressor(kernel, random_state=self._seed)
        self._model.fit(split.train_inputs, split.train_targets)

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        mean, deviation = self._model.predict(inputs, return_std=True)
        return mean, deviation**2

    def objective(self, split: Split) -> float | None:
        return float(self._model.log_marginal_likelihood_value_)


class Laplace:
    """Logistic link, Laplace approximation, the same kernel; no mean, as it has none."""

    def __init__(self, seed: int, lengthscale: float) -> None:
        self.settings: dict[str, Any] = {"restarts": 0, "dtype": "float64"}
        self.settings["lengthscale"] = lengthscale
        self._seed = seed

    def _train(self, split: Split, optimizer: str | None) -> None:
        kernel = _kernel(split.train_inputs.shape[1], self.settings["lengthscale"])
        self._model = GaussianProcessClassifier(
            kernel, optimizer=optimizer, random_state=self._seed
        )
        self._model.fit(split.train_inputs, split.train_targets)

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self._train(split, optimizer=None)
        self.predict_proba(split.test_inputs)

    def fit(self, split: Split) -> None:
        self._train(split, optimizer="fmin_l_bfgs_b")

    def predict_proba(self, inputs: Array) -> Array:
        return np.asarray(self._model.predict_proba(inputs)[:, 1])

    def objective(self, split: Split) -> float | None:
        return float(self._model.log_marginal_likelihood_value_)
