"""Relevance of the columns, read from kernels of every shape."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from gpytorch.kernels import Kernel, LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression

from gpvi.exceptions import InputError
from gpvi.plotting import RelevanceDisplay, ard_relevance


class Fitted(BaseEstimator):
    """An estimator of which only the kernel matters."""

    def __init__(self, kernel: Any = None, num_features: int = 3) -> None:
        self.kernel = kernel
        self.num_features = num_features
        self.kernel_ = kernel
        self.n_features_in_ = num_features

    def fit(self, X: Any, y: Any) -> "Fitted":
        return self


def rbf(lengthscale: Any, **options: Any) -> Kernel:
    values = torch.as_tensor(lengthscale)
    kernel = RBFKernel(ard_num_dims=values.shape[-1] if values.ndim else None, **options)
    kernel.lengthscale = values
    return kernel


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (ScaleKernel(rbf([0.5, 2.0, 10.0])), [2.0, 0.5, 0.1]),
        (rbf(0.5), [2.0, 2.0, 2.0]),
        (rbf([0.5, 4.0], active_dims=(2, 0)), [0.25, np.nan, 2.0]),
        (ScaleKernel(rbf([0.5, 4.0], active_dims=(2, 0))), [0.25, np.nan, 2.0]),
        (rbf([1.0, 2.0, 4.0]) + rbf([2.0, 1.0, 8.0]), [1.0, 1.0, 0.25]),
        (rbf([1.0], active_dims=(0,)) + LinearKernel(), [1.0, np.nan, np.nan]),
        (rbf([1.0], active_dims=(0,)) * rbf([0.25], active_dims=(1,)), [1.0, 4.0, np.nan]),
        (LinearKernel(), [np.nan] * 3),
    ],
)
def test_kernels(kernel: Kernel, expected: list[float]) -> None:
    np.testing.assert_allclose(ard_relevance(Fitted(kernel)), expected, rtol=1e-5)


def test_the_largest_of_a_batch_of_kernels() -> None:
    kernel = MaternKernel(ard_num_dims=3, batch_shape=torch.Size([2]))
    kernel.lengthscale = torch.tensor([[[1.0, 2.0, 4.0]], [[2.0, 1.0, 8.0]]])
    np.testing.assert_allclose(ard_relevance(Fitted(kernel)), [1.0, 1.0, 0.25], rtol=1e-5)


def test_bars_are_sorted_and_named() -> None:
    model = Fitted(rbf([0.5, 0.1, 10.0]))
    model.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    _, ax = plt.subplots()
    display = RelevanceDisplay.from_estimator(model, ax=ax)
    assert display.ax_ is ax
    np.testing.assert_array_equal(display.order_, [1, 0, 2])
    np.testing.assert_allclose([bar.get_width() for bar in display.bars_], [10, 2, 0.1], rtol=1e-5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a", "c"]
    bottom, top = ax.get_ylim()
    assert bottom > top, "the largest bar is on top"
    few = RelevanceDisplay.from_estimator(model, max_features=1)
    assert [label.get_text() for label in few.ax_.get_yticklabels()] == ["b"]


def test_columns_without_lengthscale_are_left_out() -> None:
    display = RelevanceDisplay.from_estimator(Fitted(rbf([1.0], active_dims=(1,))))
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["x1"]


def test_refusals() -> None:
    with pytest.raises(NotFittedError):
        ard_relevance(LinearRegression())
    with pytest.raises(InputError, match="no part of the kernel has a lengthscale"):
        RelevanceDisplay.from_estimator(Fitted(LinearKernel()))
    with pytest.raises(InputError, match="max_features is 0"):
        RelevanceDisplay.from_estimator(Fitted(rbf(1.0)), max_features=0)
    assert plt.get_fignums() == []
