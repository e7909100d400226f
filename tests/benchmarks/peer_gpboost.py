"""GPBoost: Vecchia approximation with a Matern kernel of one lengthscale per input."""

from __future__ import annotations

from typing import Any

import gpboost
import numpy as np
from splits import Array, Split

__all__ = ["Vecchia"]


class Vecchia:
    """Its defaults, but for the number of neighbours and, on large tasks, the iterations."""

    def __init__(self, seed: int, max_iter: int, num_neighbors: int, matern_shape: float) -> None:
        self.settings: dict[str, Any] = {
            "max_iter": max_iter,
            "num_neighbors": num_neighbors,
            "matern_shape": matern_shape,
        }
        self._seed = seed

    def _train(self, split: Split, max_iter: int) -> None:
        self._model = gpboost.GPModel(
            gp_coords=split.train_inputs,
            cov_function="matern_ard",
            cov_fct_shape=self.settings["matern_shape"],
            likelihood="gaussian",
            gp_approx="vecchia",
            num_neighbors=self.settings["num_neighbors"],
            seed=self._seed,
            num_parallel_threads=1,
        )
        self._model.fit(
            y=split.train_targets,
            X=np.ones((len(split.train_targets), 1)),
            params={"maxit": max_iter},
        )

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self._train(split, max_iter=2)
        self.predict(split.test_inputs)

    def fit(self, split: Split) -> None:
        self._train(split, self.settings["max_iter"])

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        prediction = self._model.predict(
            gp_coords_pred=inputs,
            X_pred=np.ones((len(inputs), 1)),
            predict_var=True,
            predict_response=True,
        )
        return np.asarray(prediction["mu"]), np.asarray(prediction["var"])

    def objective(self, split: Split) -> float | None:
        return -float(self._model.get_current_neg_log_likelihood())
