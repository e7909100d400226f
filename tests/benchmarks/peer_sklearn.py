"""scikit-learn: the exact Gaussian process with L-BFGS, no restarts (its default)."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel
from splits import Array, Split

__all__ = ["Exact"]


class Exact:
    """Amplitude x Matern-5/2 with one lengthscale per input, plus noise."""

    def __init__(self, seed: int) -> None:
        self.settings: dict[str, Any] = {"restarts": 0}
        self._seed = seed

    def _train(self, split: Split) -> None:
        kernel: Kernel = ConstantKernel(1.0) * Matern(
            np.ones(split.train_inputs.shape[1]), nu=2.5
        ) + WhiteKernel(0.1)
        self._model = GaussianProcessRegressor(kernel, random_state=self._seed)
        self._model.fit(split.train_inputs, split.train_targets)

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self._train(split)
        self.predict(split.test_inputs)

    def fit(self, split: Split) -> None:
        self._train(split)

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        mean, deviation = self._model.predict(inputs, return_std=True)
        return mean, deviation**2

    def objective(self, split: Split) -> float | None:
        return float(self._model.log_marginal_likelihood_value_)
