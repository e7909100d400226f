"""The vectorised exponential against NumPy's."""

import numpy as np
import pytest
from numba import njit

from gpvi.linalg._vexp import FLAGS, vexp


@njit(fastmath=FLAGS)
def _loop(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.shape[0]):
        out[i] = vexp(x[i])


def exponential(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    _loop(x, out)
    return out


@pytest.mark.parametrize("bounds", [(-700.0, 700.0), (-40.0, 0.0), (-1.0, 1.0), (-1e-9, 1e-9)])
def test_agrees_with_numpy_to_rounding(bounds: tuple[float, float]) -> None:
    x = np.concatenate(
        [np.linspace(*bounds, 40_001), np.random.default_rng(0).uniform(*bounds, 40_000)]
    )
    assert np.abs(exponential(x) / np.exp(x) - 1.0).max() < 5e-16


def test_halfway_points_of_the_rounding() -> None:
    """Where the nearest multiple of log 2 changes, both neighbours must serve."""
    halves = (np.arange(-1000, 1000) + 0.5) * np.log(2.0)
    x = np.concatenate([np.nextafter(halves, -np.inf), halves, np.nextafter(halves, np.inf)])
    assert np.abs(exponential(x) / np.exp(x) - 1.0).max() < 5e-16


def test_exact_at_zero_and_negligible_far_out() -> None:
    far = exponential(np.array([0.0, -0.0, -700.0, -701.0, -1e6, -1e300]))
    assert far[0] == far[1] == 1.0
    assert np.all(far[2:] == far[2])
    assert 0.0 < far[2] < 1e-303


def test_length_need_not_fill_a_vector() -> None:
    for n in range(1, 20):
        x = -np.arange(n, dtype=float)
        np.testing.assert_allclose(exponential(x), np.exp(x), rtol=5e-16)
