"""Generators: shapes, seeds, and the properties that make the problems what they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC

from gpvi.datasets import Dataset, make_banana, make_counts, make_gap_regression
from gpvi.exceptions import InputError

GENERATORS: dict[str, Callable[..., Dataset]] = {
    "gap regression": make_gap_regression,
    "banana": make_banana,
    "counts": make_counts,
}


@pytest.mark.parametrize("name", GENERATORS)
def test_follows_its_seed(name: str) -> None:
    make = GENERATORS[name]
    first, again = make(30, random_state=3), make(30, random_state=np.random.default_rng(3))
    np.testing.assert_array_equal(first.data, again.data)
    np.testing.assert_array_equal(first.target, again.target)
    assert not np.array_equal(first.data, make(30, random_state=4).data)
    assert first.name == name
    assert first.data.shape == (30, len(first.feature_names)) and first.target.shape == (30,)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("num_rows", [0, 2.0, True])
def test_number_of_rows_must_fit(name: str, num_rows: Any) -> None:
    with pytest.raises(InputError, match="num_rows is"):
        GENERATORS[name](num_rows)


def test_gap_is_empty_and_noise_has_its_size() -> None:
    problem = make_gap_regression(5000, noise=0.3, gap=(1.0, 2.5))
    x = problem.data[:, 0]
    assert not ((x > 1.0) & (x < 2.5)).any()
    assert x.min() < 0.1 and x.max() > 5.9 and (np.diff(x) >= 0).all()
    assert problem.latent is not None
    assert np.std(problem.target - problem.latent) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("gap", [(4.0, 2.0), (-1.0, 2.0), (0.0, 6.0)])
def test_gap_must_leave_something(gap: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="gap is"):
        make_gap_regression(gap=gap)


@pytest.mark.parametrize("noise", [-1.0, np.inf, np.nan])
def test_noise_must_be_a_size(noise: float) -> None:
    with pytest.raises(InputError, match="noise is"):
        make_banana(noise=noise)


def test_banana_needs_a_curved_boundary() -> None:
    problem = make_banana(1000)
    assert problem.target.sum() == 500
    straight = SVC(kernel="linear").fit(problem.data, problem.target)
    curved = SVC(kernel="rbf").fit(problem.data, problem.target)
    assert straight.score(problem.data, problem.target) < 0.9
    assert curved.score(problem.data, problem.target) > 0.95


def test_counts_follow_their_rate() -> None:
    problem = make_counts(20_000)
    assert problem.exposure is not None and problem.latent is not None
    assert 0.5 <= problem.exposure.min() and problem.exposure.max() <= 4.0
    rate = problem.exposure * np.exp(problem.latent)
    # Pearson's statistic of Poisson counts is one per row.
    assert np.mean((problem.target - rate) ** 2 / rate) == pytest.approx(1.0, abs=0.05)
