"""Levels of a pattern, and points renumbered by them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpvi.linalg import (
    NeighborPattern,
    maximin_order,
    neighbor_pattern,
    order_by_level,
    stationary_inverse_columns,
)
from gpvi.linalg.sparse_inverse import levels
from gpvi.linalg.sparse_inverse.levels import backward_levels, forward_levels
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern as Pattern


def maximin_pattern(M: int, m: int, seed: int = 0) -> tuple[torch.Tensor, Pattern]:
    x = torch.rand(M, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x[maximin_order(x).long()]
    return x, neighbor_pattern(x, m)


def test_levels_wait_for_each_other() -> None:
    _, pattern = maximin_pattern(300, 6)
    for schedule, forward in ((forward_levels(pattern), True), (backward_levels(pattern), False)):
        assert torch.equal(torch.cat(schedule).sort().values, torch.arange(300))
        level = torch.empty(300, dtype=torch.int64)
        for number, rows in enumerate(schedule):
            level[rows] = number
        used = pattern.neighbors >= 0
        own = level.unsqueeze(-1).expand(used.shape)[used]
        other = level[pattern.neighbors[used].long()]
        assert bool((own > other).all() if forward else (own < other).all())


@given(st.integers(1, 80), st.integers(1, 9), st.integers(0, 5))
def test_renumbering_keeps_neighbours_and_schedule(M: int, m: int, seed: int) -> None:
    _, pattern = maximin_pattern(M, m, seed)
    order, renumbered = order_by_level(pattern)
    assert torch.equal(order.sort().values, torch.arange(M))
    assert torch.equal(order[renumbered.order.long()], pattern.order.long())
    for new, row in enumerate(renumbered.neighbors):
        old = pattern.neighbors[order[new]]
        assert set(order[row[row >= 0].long()].tolist()) == set(old[old >= 0].tolist())
    assert torch.equal(torch.cat(forward_levels(renumbered)), torch.arange(M))


def test_renumbered_factor_is_the_same() -> None:
    x, pattern = maximin_pattern(200, 8)
    order, renumbered = order_by_level(pattern)
    number = torch.ones((), dtype=torch.float64)

    def columns(points: torch.Tensor, pattern: NeighborPattern) -> torch.Tensor:
        own = torch.arange(200, dtype=torch.int32)
        return stationary_inverse_columns(
            "matern32", points, pattern.neighbors, own, 0.3 * number[None], number, 1e-6 * number
        )

    torch.testing.assert_close(
        columns(x[order], renumbered)[:, -1], columns(x, pattern)[order, -1], rtol=1e-10, atol=0
    )


def test_engines_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    _, pattern = maximin_pattern(150, 5)
    order, compiled = order_by_level(pattern)
    monkeypatch.setattr(levels, "_engine", levels.NumPyEngine)
    again, plain = order_by_level(pattern)
    assert torch.equal(order, again)
    assert np.array_equal(compiled.neighbors, plain.neighbors)
    assert torch.equal(compiled.order, plain.order)


def test_first_points_stay_first() -> None:
    """With m neighbours the first m + 1 points condition on all before them, level by level."""
    _, pattern = maximin_pattern(100, 6)
    order, _ = order_by_level(pattern)
    assert order[:7].tolist() == list(range(7))
