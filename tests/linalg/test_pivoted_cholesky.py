"""Greedy selection by conditional variance, against a direct search with dense algebra."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg import greedy_conditional_variance


def gram(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * (x.unsqueeze(-1) - x.unsqueeze(-2)).square())


def uniform(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 5.0 * torch.rand(size, dtype=torch.float64, generator=generator)


def conditional_variance(K: Tensor, pivots: list[int]) -> Tensor:
    if not pivots:
        return K.diagonal()
    cross = K[pivots]
    return (K - cross.mT @ torch.linalg.solve(K[pivots][:, pivots], cross)).diagonal()


@pytest.mark.parametrize("seed", range(3))
def test_every_pivot_has_the_largest_conditional_variance(seed):
    K = gram(uniform(15, seed)) * (1.0 + uniform(15, seed + 10)).sqrt().outer(
        (1.0 + uniform(15, seed + 10)).sqrt()
    )
    pivots, remaining = greedy_conditional_variance(K.diagonal(), lambda i: K[i], 5)
    assert pivots.dtype == torch.int64 and len(set(pivots.tolist())) == 5
    for step, pivot in enumerate(pivots.tolist()):
        variance = conditional_variance(K, pivots[:step].tolist())
        assert float(variance[pivot]) == pytest.approx(float(variance.max()), rel=1e-9)
    expected = conditional_variance(K, pivots.tolist())
    torch.testing.assert_close(remaining, expected, rtol=0, atol=1e-10)


def test_only_rows_of_pivots_are_evaluated():
    K = gram(uniform(30))
    asked = []

    def row(i: int) -> Tensor:
        asked.append(i)
        return K[i]

    pivots, _ = greedy_conditional_variance(K.diagonal(), row, 4)
    assert asked == pivots.tolist()


def test_duplicates_are_never_chosen():
    x = uniform(6).repeat_interleave(3)
    K = gram(x)
    pivots, remaining = greedy_conditional_variance(K.diagonal(), lambda i: K[i], 18)
    assert len(pivots) <= 6 and len(x[pivots].unique()) == len(pivots)
    assert float(remaining.max()) <= 1e-10


def test_more_pivots_than_rows():
    K = torch.eye(3, dtype=torch.float64)
    pivots, remaining = greedy_conditional_variance(K.diagonal(), lambda i: K[i], 10)
    assert sorted(pivots.tolist()) == [0, 1, 2] and bool((remaining == 0).all())


def test_tolerance_is_relative_to_the_largest_variance():
    K = torch.diag(torch.tensor([100.0, 1.0, 1e-3], dtype=torch.float64))
    pivots, _ = greedy_conditional_variance(K.diagonal(), lambda i: K[i], 3, tolerance=1e-4)
    assert pivots.tolist() == [0, 1]


def test_gradients_and_inputs_are_left_alone():
    K = gram(uniform(5)).requires_grad_()
    variance = K.diagonal()
    before = variance.detach().clone()
    _, remaining = greedy_conditional_variance(variance, lambda i: K[i], 2)
    assert not remaining.requires_grad
    assert torch.equal(variance.detach(), before)


def test_single_precision():
    K = gram(uniform(40)).float()
    pivots, remaining = greedy_conditional_variance(K.diagonal(), lambda i: K[i], 40)
    assert remaining.dtype == torch.float32 and bool((remaining >= 0).all())
    assert len(set(pivots.tolist())) == len(pivots)


def test_impossible_numbers():
    K = torch.eye(2, dtype=torch.float64)
    with pytest.raises(InputError, match="num_pivots is 0"):
        greedy_conditional_variance(K.diagonal(), lambda i: K[i], 0)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_conditional_variances_are_proper(seed, number):
    K = gram(uniform(12, seed))
    _, remaining = greedy_conditional_variance(K.diagonal(), lambda i: K[i], number)
    assert bool((remaining >= 0).all()) and bool((remaining <= K.diagonal() + 1e-12).all())
