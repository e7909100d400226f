"""Products with factors, against dense matrices, on both engines."""

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.sparse_inverse import _engine, _factor_tensor
from gpvi.linalg.sparse_inverse._apply import outer_flat
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern
from gpvi.linalg.sparse_inverse.products import factor_product, factor_transpose_product
from gpvi.linalg.sparse_inverse.solves import factor_solve, factor_transpose_solve

SHAPES = [(11, 4), (7, 6), (5, 0), (1, 0), (1, 2), (2, 5)]


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def used_slots(pattern: NeighborPattern) -> Tensor:
    own = torch.ones(pattern.num_rows, 1, dtype=torch.bool)
    return torch.cat([pattern.neighbors >= 0, own], -1)


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_engine, "_numba_works", lambda: request.param == "compiled")
    return request.param


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("M", "m"), SHAPES)
def test_products_are_dense_ones(
    M: int, m: int, ragged: bool, engine: str, dense: ModuleType
) -> None:
    pattern = dense.random_pattern(M, m, ragged=ragged)
    columns, v = dense.random_columns(pattern), dense.random_vector(M)
    U = dense.dense_factor(pattern, columns)
    assert torch.equal(U, U.triu())
    close(factor_product(pattern, columns, v), U @ v)
    close(factor_transpose_product(pattern, columns, v), U.mT @ v)


@pytest.mark.parametrize(
    ("columns_batch", "vector_batch"),
    [((2,), ()), ((), (3,)), ((), (13,)), ((2, 1), (4, 1, 3)), ((2, 3), (9, 2, 1)), ((3,), (1,))],
)
def test_batch_dims_broadcast(
    columns_batch: tuple[int, ...],
    vector_batch: tuple[int, ...],
    engine: str,
    dense: ModuleType,
) -> None:
    pattern = dense.random_pattern(9, 3)
    columns = dense.random_columns(pattern, columns_batch)
    v = dense.random_vector(*vector_batch, 9)
    U = dense.dense_factor(pattern, columns)
    # Expanded columns are one factor in memory; results have the expanded batch dims all the same.
    shape = (5, *(1,) * (len(vector_batch) - len(columns_batch)), *columns_batch)
    wide = columns.view(shape[1:] + (9, 4)).expand(*shape, 9, 4)
    for copies in (columns, wide):
        matrix = dense.dense_factor(pattern, copies)
        close(factor_product(pattern, copies, v), times(matrix, v))
        close(factor_transpose_product(pattern, copies, v), times(matrix.mT, v))
    close(factor_product(pattern, columns, v), times(U, v))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_derivatives(batch: tuple[int, ...], engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(6, 3, ragged=True)
    used = used_slots(pattern)
    columns = dense.random_columns(pattern, batch).requires_grad_()
    v = dense.random_vector(5, *batch, 6).requires_grad_()
    for function in (factor_product, factor_transpose_product):

        def value(columns: Tensor, v: Tensor) -> Tensor:
            return function(pattern, columns * used, v)  # noqa: B023

        assert torch.autograd.gradcheck(value, (columns, v))
        assert torch.autograd.gradgradcheck(value, (columns, v), fast_mode=True)


def test_unused_slots_do_not_matter_and_get_no_gradient(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(8, 3, ragged=True)
    used = used_slots(pattern)
    columns = dense.random_columns(pattern)
    dirty = torch.where(used, columns, torch.nan).requires_grad_()
    v = dense.random_vector(4, 8)
    for function in (
        factor_product,
        factor_transpose_product,
        factor_solve,
        factor_transpose_solve,
    ):
        value = function(pattern, dirty, v)
        close(value, function(pattern, columns, v))
        (gradient,) = torch.autograd.grad(value.sum(), dirty)
        assert bool((gradient[~used] == 0.0).all()) and bool(gradient.isfinite().all())


def test_outer_products_on_the_pattern(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(8, 3, ragged=True)
    left, right = dense.random_vector(2, 8, 5), dense.random_vector(2, 8, 5, seed=1)
    close(outer_flat(pattern, left, right), dense.on_pattern(pattern, left @ right.mT))


def test_single_precision(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(30, 5)
    columns, v = dense.random_columns(pattern), dense.random_vector(3, 30)
    value = factor_product(pattern, columns.float(), v.float())
    assert value.dtype == torch.float32
    close(value.double(), factor_product(pattern, columns, v), 1e-5)
    assert factor_product(pattern, columns.float(), v).dtype == torch.float64


def test_many_vectors_in_pieces(dense: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "_numba_works", lambda: False)
    monkeypatch.setattr(_factor_tensor, "_LARGEST", 100)
    pattern = dense.random_pattern(9, 4)
    columns, v = dense.random_columns(pattern), dense.random_vector(7, 9)
    U = dense.dense_factor(pattern, columns)
    close(factor_product(pattern, columns, v), v @ U.mT)
    close(factor_transpose_product(pattern, columns, v), v @ U)
    entries = outer_flat(pattern, v.T.unsqueeze(0), v.T.unsqueeze(0)).squeeze(0)
    close(entries, dense.on_pattern(pattern, v.T @ v))


def test_no_vectors_at_all(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(4, 2)
    columns = dense.random_columns(pattern)
    for function in (factor_product, factor_transpose_product, factor_solve):
        assert function(pattern, columns, torch.empty(0, 4).double()).shape == (0, 4)
    none = columns.new_empty(0, 4, 3)
    assert factor_product(pattern, none, torch.ones(4).double()).shape == (0, 4)


@given(st.integers(1, 20), st.integers(0, 8), st.integers(0, 100), st.booleans())
def test_products_are_adjoint_to_each_other(M: int, m: int, seed: int, ragged: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.full((M, m), -1, dtype=torch.int32)
    for i in range(M):
        count = min(i, m) if not ragged else min(i, m, seed % (i + 1))
        chosen = torch.randperm(i, generator=generator)[:count].sort().values
        index[i, :count] = chosen.to(torch.int32)
    pattern = NeighborPattern(index)
    columns = torch.randn(M, m + 1, generator=generator, dtype=torch.float64)
    a, b = torch.randn(2, M, generator=generator, dtype=torch.float64)
    left = a @ factor_product(pattern, columns, b)
    close(left, factor_transpose_product(pattern, columns, a) @ b, 1e-10)


def test_wrong_calls_are_refused(dense: ModuleType) -> None:
    pattern = dense.random_pattern(6, 2)
    columns, v = dense.random_columns(pattern), dense.random_vector(6)
    with pytest.raises(InputError, match=r"\(6, 2\)"):
        factor_product(pattern, columns[:, 1:], v)
    with pytest.raises(InputError, match=r"\(5,\).*6 rows"):
        factor_product(pattern, columns, v[1:])
    with pytest.raises(InputError, match=r"\(\).*6 rows"):
        factor_product(pattern, columns, v[0])
    with pytest.raises(InputError, match=r"columns \(2,\), vector \(3,\)"):
        factor_product(pattern, columns.expand(2, 6, 3), v.expand(3, 6))
    with pytest.raises(InputError, match="meta"):
        factor_product(pattern, columns, v.to("meta"))


@pytest.mark.gpu
def test_on_a_device(dense: ModuleType) -> None:
    pattern = dense.random_pattern(50, 8)
    columns, v = dense.random_columns(pattern, (2,)), dense.random_vector(3, 1, 50)
    moved = pattern.to("cuda")
    for function in (
        factor_product,
        factor_transpose_product,
        factor_solve,
        factor_transpose_solve,
    ):
        close(function(moved, columns.cuda(), v.cuda()).cpu(), function(pattern, columns, v), 1e-10)
