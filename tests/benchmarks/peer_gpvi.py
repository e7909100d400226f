"""Our own entries: the estimators of ``gpvi`` with a kernel, an approximation, its number of points
where it has one and, on the ladder, a number of iterations; the float32 entries also name the
precision. Nothing else is set, so that what is measured is what a user gets."""

from __future__ import annotations

from typing import Any

import numpy as np
from splits import Array, Split

import gpvi

__all__ = [
    "Coreset",
    "Exact",
    "FullScale",
    "Inducing",
    "NeighborInducing",
    "Orthogonal",
    "SparseInverse",
    "Spherical",
    "SphericalOrthogonal",
]

ZONAL = "zonal_matern52"
"""Features on the sphere need a kernel of the sphere; this is its Matern-5/2."""

ESTIMATORS = {
    "regression": gpvi.GPRegressor,
    "binary": gpvi.GPClassifier,
    "counts": gpvi.GPCountRegressor,
}


class _Estimator:
    def __init__(self, seed: int, dtype: str | None, max_iter: int | None, **settings: Any) -> None:
        self._named: dict[str, Any] = {"kernel": "matern52", **settings}
        if dtype is not None:
            self._named["dtype"] = dtype
        if max_iter is not None:
            self._named["max_iter"] = max_iter
        self.settings: dict[str, Any] = {"dtype": "float64"} | self._named
        self._seed = seed

    def _fitted(self, split: Split, **changes: Any) -> Any:
        model = ESTIMATORS[split.kind](**self._named | changes, random_state=self._seed)
        return model.fit(split.train_inputs, split.train_targets)

    def warm_up(self, split: Split, num_inducing: int) -> None:
        changes = {"num_inducing": num_inducing} if "num_inducing" in self._named else {}
        self._model = self._fitted(split, max_iter=2, **changes)
        if split.kind == "regression":
            self.predict(split.test_inputs)
        elif split.kind == "binary":
            self.predict_proba(split.test_inputs)
        else:
            self.predict_counts(split.test_inputs, split.test_targets)

    def fit(self, split: Split) -> None:
        self._model = self._fitted(split)

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        mean, deviation = self._model.predict(inputs, return_std=True)
        return np.asarray(mean), np.asarray(deviation) ** 2

    def predict_proba(self, inputs: Array) -> Array:
        return np.asarray(self._model.predict_proba(inputs)[:, 1])

    def predict_counts(self, inputs: Array, counts: Array) -> tuple[Array, Array]:
        rate = self._model.predict(inputs)
        return np.asarray(rate), np.asarray(self._model.log_predictive_density(inputs, counts))

    def objective(self, split: Split) -> float | None:
        return float(self._model.elbo_)


class Inducing(_Estimator):
    """Inducing points; ``max_iter`` is left to the estimator unless given."""

    def __init__(
        self, seed: int, num_inducing: int, dtype: str | None = None, max_iter: int | None = None
    ) -> None:
        super().__init__(seed, dtype, max_iter, approximation="inducing", num_inducing=num_inducing)


class Exact(_Estimator):
    """No inducing points, for small data sets."""

    def __init__(
        self,
        seed: int,
        dtype: str | None = None,
        max_iter: int | None = None,
        kernel: str = "matern52",
    ) -> None:
        super().__init__(seed, dtype, max_iter, approximation="exact", kernel=kernel)


class SparseInverse(_Estimator):
    """A sparse inverse Cholesky factor: every row given its neighbours, as many as is the default."""

    def __init__(self, seed: int, max_iter: int | None = None, kernel: str = "matern52") -> None:
        super().__init__(seed, None, max_iter, approximation="sic", kernel=kernel)


class NeighborInducing(_Estimator):
    """Inducing points given their neighbours, as many of both as is the default: points are cheap."""

    def __init__(self, seed: int, max_iter: int | None = None) -> None:
        super().__init__(seed, None, max_iter, approximation="neighbor_inducing")


class _WithPoints(_Estimator):
    approximation: str
    kernel = "matern52"

    def __init__(self, seed: int, num_inducing: int, max_iter: int | None = None) -> None:
        settings = {"approximation": self.approximation, "kernel": self.kernel}
        super().__init__(seed, None, max_iter, num_inducing=num_inducing, **settings)


class Coreset(_WithPoints):
    """Weighted pseudo-points, as many as the others have inducing points."""

    approximation = "coreset"


class Orthogonal(_WithPoints):
    """Two blocks of inducing points, as many together as the others have."""

    approximation = "orthogonal"


class Spherical(_WithPoints):
    """Units of both parities on the sphere, as many as the others have inducing points."""

    approximation = "spherical"
    kernel = ZONAL


class SphericalOrthogonal(_WithPoints):
    """Units on the sphere and, orthogonal to them, inducing points: half of each."""

    approximation = "orthogonal"
    kernel = ZONAL


class FullScale(_Estimator):
    """Inducing points and neighbours for what they leave, as many of both as is the default."""

    def __init__(self, seed: int, max_iter: int | None = None) -> None:
        super().__init__(seed, None, max_iter, approximation="full_scale")
