"""GPflow: SGPR and VGP with its Scipy (L-BFGS-B) optimiser, and SVGP by Adam on minibatches.

In float64, the library's default, unless told otherwise. Inducing points start at mini-batch k-means
centres. Graphs are traced anew by every fit, and therefore counted in it.
"""

from __future__ import annotations

from typing import Any

import gpflow
import numpy as np
import tensorflow as tf
from sklearn.cluster import MiniBatchKMeans
from splits import Array, Split

__all__ = ["Collapsed", "Full", "Variational"]

CHUNK = 4096
"""Rows predicted or scored at a time."""

FLOAT32_JITTER = 1e-4

STARTING_NOISE = 0.1


def _kernel(num_inputs: int, lengthscale: float) -> gpflow.kernels.Kernel:
    return gpflow.kernels.Matern52(lengthscales=np.full(num_inputs, lengthscale))


def _likelihood(kind: str) -> gpflow.likelihoods.Likelihood:
    if kind == "binary":
        return gpflow.likelihoods.Bernoulli()
    if kind == "counts":
        return gpflow.likelihoods.Poisson()
    return gpflow.likelihoods.Gaussian(variance=STARTING_NOISE)


def _centres(inputs: Array, num_inducing: int, seed: int) -> Array:
    means = MiniBatchKMeans(num_inducing, random_state=seed, n_init=1, batch_size=CHUNK)
    return np.asarray(means.fit(inputs).cluster_centers_)


class _GPflow:
    """What the three share: the precision, L-BFGS-B, and prediction in chunks."""

    settings: dict[str, Any]
    _model: gpflow.models.GPModel

    def __init__(self, seed: int, lengthscale: float, dtype: str) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        gpflow.config.set_default_float(getattr(np, dtype))
        self.settings = {"lengthscale": lengthscale, "dtype": dtype}
        if dtype == "float32":
            # With its default of 1e-6 Cholesky factors of float32 matrices become NaN.
            gpflow.config.set_default_jitter(FLOAT32_JITTER)
            self.settings["jitter"] = FLOAT32_JITTER
        self._seed = seed

    def _data(self, split: Split) -> tuple[Array, Array]:
        dtype = gpflow.config.default_float()
        return split.train_inputs.astype(dtype), split.train_targets[:, None].astype(dtype)

    def _minimise(self, max_iter: int) -> None:
        result = gpflow.optimizers.Scipy().minimize(
            self._model.training_loss,
            self._model.trainable_variables,
            options={"maxiter": max_iter},
        )
        self._last = -float(result.fun)
        self.settings["evaluations"] = int(result.nfev)

    def _collected(self, function: Any, *columns: Array) -> tuple[Array, ...]:
        dtype = gpflow.config.default_float()
        pieces = [
            function(*(column[start : start + CHUNK].astype(dtype) for column in columns))
            for start in range(0, len(columns[0]), CHUNK)
        ]
        joined = (
            np.concatenate([np.asarray(p) for p in part]) for part in zip(*pieces, strict=True)
        )
        return tuple(values.reshape(len(values)).astype(np.float64) for values in joined)

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        mean, variance = self._collected(self._model.predict_y, inputs)
        return mean, variance

    def predict_proba(self, inputs: Array) -> Array:
        return self.predict(inputs)[0]

    def predict_counts(self, inputs: Array, counts: Array) -> tuple[Array, Array]:
        def density(rows: Array, values: Array) -> tuple[Any]:
            return (self._model.predict_log_density((rows, values)),)

        (log_density,) = self._collected(density, inputs, counts[:, None])
        return self.predict(inputs)[0], log_density


class Collapsed(_GPflow):
    """SGPR on the collapsed bound."""

    def __init__(self, seed: int, num_inducing: int, max_iter: int) -> None:
        super().__init__(seed, 1.0, "float64")
        self.settings |= {"num_inducing": num_inducing, "max_iter": max_iter}

    def _train(self, split: Split, num_inducing: int, max_iter: int) -> None:
        tf.random.set_seed(self._seed)
        self._model = gpflow.models.SGPR(
            self._data(split),
            _kernel(split.train_inputs.shape[1], self.settings["lengthscale"]),
            _centres(split.train_inputs, num_inducing, self._seed),
            mean_function=gpflow.mean_functions.Constant(),
            noise_variance=STARTING_NOISE,
        )
        self._minimise(max_iter)

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self._train(split, num_inducing, max_iter=2)
        self.predict(split.test_inputs)

    def fit(self, split: Split) -> None:
        self._train(split, self.settings["num_inducing"], self.settings["max_iter"])

    def objective(self, split: Split) -> float | None:
        return self._last


class Full(_GPflow):
    """VGP: a Gaussian posterior over the latent function at every row, with a dense covariance."""

    def __init__(
        self, seed: int, max_iter: int, lengthscale: float, dtype: str = "float64"
    ) -> None:
        super().__init__(seed, lengthscale, dtype)
        self.settings["max_iter"] = max_iter

    def _train(self, split: Split, max_iter: int) -> None:
        self._model = gpflow.models.VGP(
            self._data(split),
            _kernel(split.train_inputs.shape[1], self.settings["lengthscale"]),
            _likelihood(split.kind),
            mean_function=gpflow.mean_functions.Constant(),
        )
        self._minimise(max_iter)

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self._train(split, max_iter=2)
        self.predict(split.test_inputs)

    def fit(self, split: Split) -> None:
        self._train(split, self.settings["max_iter"])

    def objective(self, split: Split) -> float | None:
        return self._last


class Variational(_GPflow):
    """SVGP: Adam on everything, learning rate cut tenfold at 75 % and at 90 % of the steps."""

    def __init__(
        self,
        seed: int,
        num_inducing: int,
        steps: int,
        batch_size: int,
        learning_rate: float,
        lengthscale: float = 1.0,
        dtype: str = "float64",
    ) -> None:
        super().__init__(seed, lengthscale, dtype)
        self.settings |= {
            "num_inducing": num_inducing,
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
        }

    def _train(self, split: Split, num_inducing: int, steps: int) -> None:
        tf.random.set_seed(self._seed)
        inputs, targets = self._data(split)
        self._model = gpflow.models.SVGP(
            _kernel(inputs.shape[1], self.settings["lengthscale"]),
            _likelihood(split.kind),
            _centres(split.train_inputs, num_inducing, self._seed),
            mean_function=gpflow.mean_functions.Constant(),
            num_data=len(targets),
        )
        rows = tf.data.Dataset.from_tensor_slices((inputs, targets))
        batches = rows.shuffle(len(targets), seed=self._seed).repeat()
        loss = self._model.training_loss_closure(
            iter(batches.batch(self.settings["batch_size"])), compile=False
        )
        rate = self.settings["learning_rate"]
        schedule = tf.keras.optimizers.schedules.PiecewiseConstantDecay(
            [int(0.75 * steps), int(0.9 * steps)], [rate, 0.1 * rate, 0.01 * rate]
        )
        adam = tf.keras.optimizers.legacy.Adam(schedule)

        @tf.function
        def step() -> None:
            adam.minimize(loss, self._model.trainable_variables)

        for _ in range(steps):
            step()

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self._train(split, num_inducing, steps=2)
        self.predict(split.test_inputs)

    def fit(self, split: Split) -> None:
        self._train(split, self.settings["num_inducing"], self.settings["steps"])

    def objective(self, split: Split) -> float | None:
        inputs, targets = self._data(split)
        total = -float(self._model.prior_kl())
        for start in range(0, len(targets), CHUNK):
            rows, values = inputs[start : start + CHUNK], targets[start : start + CHUNK]
            latent = self._model.predict_f(rows)
            expected = self._model.likelihood.variational_expectations(rows, *latent, values)
            total += float(np.asarray(expected, np.float64).sum())
        return total
