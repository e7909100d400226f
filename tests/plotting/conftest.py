"""A backend without windows, figures that do not leak, and estimators with known predictions."""

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest
from scipy.special import ndtri
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import validate_data

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _clean_figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test drew; fail if it changed settings, or something was shown or closed."""
    import matplotlib.pyplot as plt

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a display must not show or close figures")

    settings = dict(matplotlib.rcParams)
    close = plt.close
    monkeypatch.setattr(plt, "show", forbidden)
    monkeypatch.setattr(plt, "close", forbidden)
    yield
    close("all")
    assert dict(matplotlib.rcParams) == settings


class KnownRegressor(RegressorMixin, BaseEstimator):
    """f(x) = x0 + 10 x1 + ... with standard deviation 1 (of f) and 2 (of y); no learning."""

    def __init__(self, link: str = "identity") -> None:
        self.link = link

    def fit(self, X: Any, y: Any) -> "KnownRegressor":
        validate_data(self, X, y)
        self.fitted_ = True
        return self

    def _function(self, X: Any) -> np.ndarray:
        array = validate_data(self, X, reset=False, dtype=np.float64)
        return array @ 10.0 ** np.arange(array.shape[1])

    def predict(
        self, X: Any, return_std: bool = False, return_cov: bool = False, *, latent: bool = False
    ) -> Any:
        mean = self._function(X)
        if not latent and self.link == "log":
            mean = np.exp(mean)
        if return_std:
            return mean, np.full(len(mean), 1.0 if latent else 2.0)
        if return_cov:
            return mean, np.ones((len(mean), len(mean)))
        return mean

    def predict_quantiles(
        self, X: Any, levels: Any, *, exposure: Any = None, noise_variance: Any = None
    ) -> np.ndarray:
        mean = self.predict(X) if exposure is None else self.predict(X) * np.asarray(exposure)
        variance = 4.0 if noise_variance is None else 4.0 + np.asarray(noise_variance)
        std = np.broadcast_to(np.sqrt(variance), mean.shape)
        return mean[:, None] + std[:, None] * ndtri(levels)

    def predict_interval(self, X: Any, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        ends = self.predict_quantiles(X, [0.5 - coverage / 2, 0.5 + coverage / 2])
        return ends[:, 0], ends[:, 1]


class KnownClassifier(ClassifierMixin, BaseEstimator):
    """P(second class) = logistic(x0); a third class, if there is one, takes a fifth of everything."""

    def fit(self, X: Any, y: Any) -> "KnownClassifier":
        validate_data(self, X)
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        first = validate_data(self, X, reset=False, dtype=np.float64)[:, 0]
        second = 1 / (1 + np.exp(-first))
        pair = np.stack([1 - second, second], axis=1)
        if len(self.classes_) == 2:
            return pair
        return np.hstack([0.8 * pair, np.full((len(first), 1), 0.2)])

    def predict(self, X: Any) -> np.ndarray:
        return self.classes_[self.predict_proba(X).argmax(1)]


@pytest.fixture
def regressor() -> type[KnownRegressor]:
    return KnownRegressor


@pytest.fixture
def classifier() -> type[KnownClassifier]:
    return KnownClassifier
