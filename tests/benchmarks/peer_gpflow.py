"""GPflow: SGPR on the collapsed bound with its Scipy (L-BFGS-B) optimiser, in float64."""

from __future__ import annotations

from typing import Any

import gpflow
import numpy as np
import tensorflow as tf
from sklearn.cluster import MiniBatchKMeans
from splits import Array, Split

__all__ = ["Collapsed"]

CHUNK = 4096


class Collapsed:
    """SGPR; graph tracing is repeated by every fit and therefore counted in it."""

    def __init__(self, seed: int, num_inducing: int, max_iter: int) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self.settings: dict[str, Any] = {"num_inducing": num_inducing, "max_iter": max_iter}
        self.settings["dtype"] = "float64"
        self._seed = seed

    def _train(self, split: Split, num_inducing: int, max_iter: int) -> None:
        tf.random.set_seed(self._seed)
        means = MiniBatchKMeans(num_inducing, random_state=self._seed, n_init=1, batch_size=CHUNK)
        self._model = gpflow.models.SGPR(
            (split.train_inputs, split.train_targets[:, None]),
            gpflow.kernels.Matern52(lengthscales=np.ones(split.train_inputs.shape[1])),
            means.fit(split.train_inputs).cluster_centers_,
            mean_function=gpflow.mean_functions.Constant(),
            noise_variance=0.1,
        )
        result = gpflow.optimizers.Scipy().minimize(
            self._model.training_loss,
            self._model.trainable_variables,
            options={"maxiter": max_iter},
        )
        self._last = -float(result.fun)
        self.settings["evaluations"] = int(result.nfev)

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self._train(split, num_inducing, max_iter=2)
        self.predict(split.test_inputs)

    def fit(self, split: Split) -> None:
        self._train(split, self.settings["num_inducing"], self.settings["max_iter"])

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        chunks = [
            self._model.predict_y(inputs[start : start + CHUNK])
            for start in range(0, len(inputs), CHUNK)
        ]
        mean, variance = (np.concatenate([chunk[i].numpy() for chunk in chunks]) for i in (0, 1))
        return mean[:, 0], variance[:, 0]

    def objective(self, split: Split) -> float | None:
        return self._last
