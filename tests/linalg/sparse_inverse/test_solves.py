"""Triangular solves with factors and the levels they go by, against dense matrices, on both engines."""

import copy
import pickle
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.linalg.sparse_inverse import _engine
from gpvi.linalg.sparse_inverse.levels import backward_levels, forward_levels
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern
from gpvi.linalg.sparse_inverse.products import factor_product, factor_transpose_product
from gpvi.linalg.sparse_inverse.solves import factor_solve, factor_transpose_solve

SHAPES = [(11, 4), (7, 6), (5, 0), (1, 0), (1, 2)]


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_engine, "_numba_works", lambda: request.param == "compiled")
    return request.param


@pytest.mark.parametrize("samples", [(), (2,), (13,)])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize(("M", "m"), SHAPES)
def test_solves_are_dense_ones(
    M: int,
    m: int,
    batch: tuple[int, ...],
    samples: tuple[int, ...],
    engine: str,
    dense: ModuleType,
) -> None:
    pattern = dense.random_pattern(M, m, ragged=M > 7)
    columns = dense.random_columns(pattern, batch)
    b = dense.random_vector(*samples, *batch, M)
    U = dense.dense_factor(pattern, columns)
    close(factor_solve(pattern, columns, b), torch.linalg.solve(U, b.unsqueeze(-1)).squeeze(-1))
    transposed = torch.linalg.solve(U.mT, b.unsqueeze(-1)).squeeze(-1)
    close(factor_transpose_solve(pattern, columns, b), transposed)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_derivatives(batch: tuple[int, ...], engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(6, 3, ragged=True)
    own = torch.ones(6, 1, dtype=torch.bool)
    used = torch.cat([pattern.neighbors >= 0, own], -1)
    columns = dense.random_columns(pattern, batch).requires_grad_()
    b = dense.random_vector(5, *batch, 6).requires_grad_()
    for function in (factor_solve, factor_transpose_solve):

        def value(columns: Tensor, b: Tensor) -> Tensor:
            return function(pattern, columns * used, b)  # noqa: B023

        assert torch.autograd.gradcheck(value, (columns, b))
        assert torch.autograd.gradgradcheck(value, (columns, b), fast_mode=True)


def test_gradient_of_columns_alone(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(6, 3)
    columns, b = dense.random_columns(pattern), dense.random_vector(6)
    expected = columns.clone().requires_grad_()
    U = dense.dense_factor(pattern, expected)
    torch.linalg.solve(U.mT, b).square().sum().backward()
    columns.requires_grad_()
    factor_transpose_solve(pattern, columns, b).square().sum().backward()
    close(columns.grad, expected.grad)


def test_single_precision_is_double_inside(dense: ModuleType) -> None:
    pattern = dense.random_pattern(200, 10)
    columns = dense.random_columns(pattern).float()
    b = dense.random_vector(200).float()
    value = factor_solve(pattern, columns, b)
    assert value.dtype == torch.float32
    exact = factor_solve(pattern, columns.double(), b.double())
    assert torch.equal(value, exact.float())


def test_draws_have_the_covariance(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(5, 3)
    columns = dense.random_columns(pattern)
    U = dense.dense_factor(pattern, columns)
    draws = factor_transpose_solve(pattern, columns, dense.random_vector(40_000, 5))
    error = draws.T @ draws / 40_000 - (U @ U.mT).inverse()
    assert error.abs().max() < 0.05


@given(st.integers(1, 30), st.integers(0, 8), st.integers(0, 50), st.floats(0.01, 100.0))
def test_solves_undo_products(M: int, m: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.full((M, m), -1, dtype=torch.int32)
    for i in range(M):
        chosen = torch.randperm(i, generator=generator)[:m].sort().values
        index[i, : len(chosen)] = chosen.to(torch.int32)
    pattern = NeighborPattern(index)
    columns = 0.2 * torch.randn(M, m + 1, generator=generator, dtype=torch.float64)
    columns[:, -1] = 0.5 + columns[:, -1].abs()
    columns = columns * scale
    v = torch.randn(2, M, generator=generator, dtype=torch.float64)
    close(factor_solve(pattern, columns, factor_product(pattern, columns, v)), v, 1e-7)
    there = factor_transpose_product(pattern, columns, v)
    close(factor_transpose_solve(pattern, columns, there), v, 1e-7)


@pytest.mark.parametrize(("M", "m"), [*SHAPES, (60, 3)])
def test_levels_respect_all_neighbours(M: int, m: int, dense: ModuleType) -> None:
    pattern = dense.random_pattern(M, m, ragged=True)
    for levels, later in ((forward_levels(pattern), 1), (backward_levels(pattern), -1)):
        assert torch.cat(levels).sort().values.tolist() == list(range(M))
        depth = torch.empty(M, dtype=torch.int64)
        for number, rows in enumerate(levels):
            depth[rows] = number
        behind = torch.zeros(M, dtype=torch.int64)
        for i in range(M):
            for j in pattern.neighbors[i, : int(pattern.counts[i])].tolist():
                assert later * (depth[i] - depth[j]) > 0
                first, second = (j, i) if later > 0 else (i, j)
                behind[second] = max(behind[second], depth[first] + 1)
        # No row waits longer than it must.
        assert torch.equal(behind, depth)


def test_levels_of_extreme_patterns(dense: ModuleType) -> None:
    assert len(forward_levels(dense.full_pattern(9))) == 9
    assert len(backward_levels(dense.random_pattern(9, 0))) == 1
    pattern = dense.first_points(9, 2)
    assert [len(level) for level in forward_levels(pattern)] == [1, 1, 7]


def test_levels_are_computed_once_and_travel_with_the_pattern(dense: ModuleType) -> None:
    pattern = dense.random_pattern(9, 3)
    levels = forward_levels(pattern)
    assert forward_levels(pattern) is levels
    for other in (pickle.loads(pickle.dumps(pattern)), copy.deepcopy(pattern)):
        for one, two in zip(forward_levels(other), levels, strict=True):
            assert torch.equal(one, two)
