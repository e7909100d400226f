"""Our own entries: ``gpvi.GPRegressor`` with a kernel, an approximation and, on the ladder, a
number of iterations. Nothing else is set, so that what is measured is what a user gets."""

from __future__ import annotations

from typing import Any

import numpy as np
from splits import Array, Split

import gpvi

__all__ = ["Exact", "Inducing"]


class _Estimator:
    def __init__(self, seed: int, **settings: Any) -> None:
        self.settings: dict[str, Any] = {"kernel": "matern52", **settings}
        self._seed = seed

    def warm_up(self, split: Split, num_inducing: int) -> None:
        settings = self.settings | {"max_iter": 2}
        if "num_inducing" in settings:
            settings["num_inducing"] = num_inducing
        model = gpvi.GPRegressor(**settings, random_state=self._seed)
        model.fit(split.train_inputs, split.train_targets)
        model.predict(split.test_inputs, return_std=True)

    def fit(self, split: Split) -> None:
        self._model = gpvi.GPRegressor(**self.settings, random_state=self._seed)
        self._model.fit(split.train_inputs, split.train_targets)

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        mean, deviation = self._model.predict(inputs, return_std=True)
        return np.asarray(mean), np.asarray(deviation) ** 2

    def objective(self, split: Split) -> float | None:
        return float(self._model.elbo_)


class Inducing(_Estimator):
    """Inducing points; ``max_iter`` is left to the estimator unless given."""

    def __init__(self, seed: int, num_inducing: int, max_iter: int | None = None) -> None:
        rung = {} if max_iter is None else {"max_iter": max_iter}
        super().__init__(seed, approximation="inducing", num_inducing=num_inducing, **rung)


class Exact(_Estimator):
    """The exact posterior, for small data sets."""

    def __init__(self, seed: int, max_iter: int | None = None) -> None:
        rung = {} if max_iter is None else {"max_iter": max_iter}
        super().__init__(seed, approximation="exact", **rung)
