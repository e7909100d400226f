"""GPBoost: Vecchia approximation with a Matern kernel of one lengthscale per input."""

from __future__ import annotations

from typing import Any

import gpboost
import numpy as np
from scoring import poisson_log_density
from splits import Array, Split

__all__ = ["Vecchia"]

LIKELIHOODS = {"regression": "gaussian", "binary": "bernoulli_probit", "counts": "poisson"}


class Vecchia:
    """Its defaults, but for the number of neighbours and, on large tasks, the iterations.

    Labels and counts are handled by its Laplace approximation.
    """

    def __init__(self, seed: int, max_iter: int, num_neighbors: int, matern_shape: float) -> None:
        self.settings: dict[str, Any] = {
            "max_iter": max_iter,
            "num_neighbors": num_neighbors,
            "matern_shape": matern_shape,
            "dtype": "float64",
        }
        self._seed = seed

    def _train(self, split: Split, max_iter: int) -> None:
        self._model = gpboost.GPModel(
            gp_coords=split.train_inputs,
            cov_function="matern_ard",
            cov_fct_shape=self.settings["matern_shape"],
            likelihood=LIKELIHOODS[split.kind],
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

    def _predicted(self, inputs: Array, response: bool, variance: bool) -> dict[str, Any]:
        prediction: dict[str, Any] = self._model.predict(
            gp_coords_pred=inputs,
            X_pred=np.ones((len(inputs), 1)),
            predict_var=variance,
            predict_response=response,
        )
        return prediction

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        prediction = self._predicted(inputs, response=True, variance=True)
        return np.asarray(prediction["mu"]), np.asarray(prediction["var"])

    def predict_proba(self, inputs: Array) -> Array:
        return np.asarray(self._predicted(inputs, response=True, variance=False)["mu"])

    def predict_counts(self, inputs: Array, counts: Array) -> tuple[Array, Array]:
        # It predicts no probabilities of counts, but the moments of the log rate that they follow from.
        latent = self._predicted(inputs, response=False, variance=True)
        mean, variance = np.asarray(latent["mu"]), np.asarray(latent["var"])
        return np.exp(mean + variance / 2), poisson_log_density(mean, variance, counts)

    def objective(self, split: Split) -> float | None:
        return -float(self._model.get_current_neg_log_likelihood())
