"""Matrices with few entries in every column, and factors and solves with them, on both engines."""

import copy
import pickle
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.linalg.sparse_inverse import _engine, _incomplete_tensor
from gpvi.linalg.sparse_inverse.conjugate_gradients import precision_solve
from gpvi.linalg.sparse_inverse.incomplete import incomplete_cholesky
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern
from gpvi.linalg.sparse_inverse.rectangular import (
    SparseRows,
    rows_product,
    rows_transpose_product,
)

# Basis variables, rows of the data, and entries in each.
SHAPES = [(11, 30, 4), (7, 5, 7), (5, 0, 2), (4, 6, 0), (1, 3, 1), (3, 4, 5)]


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def random_rows(M: int, N: int, H: int, seed: int = 0) -> SparseRows:
    """Up to H basis variables for every row, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.full((N, H), -1, dtype=torch.int32)
    for n in range(N):
        count = int(torch.randint(0, min(M, H) + 1, (), generator=generator))
        chosen = torch.randperm(M, generator=generator)[:count].sort().values
        index[n, :count] = chosen.to(torch.int32)
    return SparseRows(index, M)


def random_values(rows: SparseRows, *batch: int, seed: int = 0) -> Tensor:
    """Standard normals, also where slots are unused."""
    generator = torch.Generator().manual_seed(seed + 7)
    return torch.randn(*batch, *rows.index.shape, generator=generator, dtype=torch.float64)


def dense_rows(rows: SparseRows, values: Tensor) -> Tensor:
    """R [*b, M, N], differentiable in the values."""
    M = rows.num_basis
    place = torch.where(rows.index < 0, M, rows.index).long().expand(values.shape)
    wide = values.new_zeros(*values.shape[:-1], M + 1)
    return wide.scatter(-1, place, values)[..., :M].mT


def used(rows: SparseRows, values: Tensor) -> Tensor:
    """Values, none of them in unused slots."""
    return torch.where(rows.index >= 0, values, 0.0)


def dense_precision(
    dense: ModuleType,
    pattern: NeighborPattern,
    columns: Tensor,
    w: Tensor,
    rows: SparseRows,
    values: Tensor,
) -> Tensor:
    U, R = dense.dense_factor(pattern, columns), dense_rows(rows, values)
    return U @ U.mT + torch.diag_embed(w) + R @ R.mT


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_engine, "_numba_works", lambda: request.param == "compiled")
    return request.param


@pytest.mark.parametrize(("M", "N", "H"), SHAPES)
@pytest.mark.parametrize(
    ("batch", "vector_batch"),
    [((), ()), ((2,), ()), ((), (5,)), ((2, 1), (3, 1, 3)), ((1,), (9, 1)), ((2,), (11, 1))],
)
def test_products_are_dense_ones(
    M: int,
    N: int,
    H: int,
    batch: tuple[int, ...],
    vector_batch: tuple[int, ...],
    engine: str,
    dense: ModuleType,
) -> None:
    rows = random_rows(M, N, H)
    values = random_values(rows, *batch)
    values[..., rows.index < 0] = torch.nan
    R = dense_rows(rows, used(rows, values))
    v, u = dense.random_vector(*vector_batch, N), dense.random_vector(*vector_batch, M)
    close(rows_product(rows, values, v), (R @ v.unsqueeze(-1)).squeeze(-1))
    close(rows_transpose_product(rows, values, u), (R.mT @ u.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize(("batch", "vector_batch"), [((), (2,)), ((2,), ()), ((2,), (3, 1))])
def test_derivatives_of_products(
    batch: tuple[int, ...], vector_batch: tuple[int, ...], engine: str, dense: ModuleType
) -> None:
    rows = random_rows(5, 6, 3)
    values = random_values(rows, *batch).requires_grad_()
    for product, size in ((rows_product, 6), (rows_transpose_product, 5)):
        vector = dense.random_vector(*vector_batch, size).requires_grad_()

        def value(values: Tensor, vector: Tensor, product=product) -> Tensor:
            return product(rows, values, vector)

        assert torch.autograd.gradcheck(value, (values, vector))
        assert torch.autograd.gradgradcheck(value, (values, vector), fast_mode=True)


@given(st.integers(1, 20), st.integers(0, 30), st.integers(0, 6), st.integers(0, 50))
def test_products_are_adjoint(M: int, N: int, H: int, seed: int) -> None:
    rows = random_rows(M, N, H, seed)
    values = random_values(rows, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(N, generator=generator, dtype=torch.float64)
    u = torch.randn(M, generator=generator, dtype=torch.float64)
    close(rows_product(rows, values, v) @ u, rows_transpose_product(rows, values, u) @ v, 1e-11)


KINDS = ["same", "diagonal", "other", "full"]


def target(kind: str, pattern: NeighborPattern, dense: ModuleType) -> NeighborPattern | None:
    """Patterns of V for a pattern of U."""
    M = pattern.num_rows
    makers = {
        "same": lambda: None,
        "diagonal": lambda: dense.random_pattern(M, 0),
        "other": lambda: dense.random_pattern(M, min(M, 3), seed=4, ragged=True),
        "full": lambda: dense.full_pattern(M),
    }
    return makers[kind]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "N", "H"), SHAPES)
def test_factors_agree_with_the_precision_on_the_pattern(
    M: int, N: int, H: int, kind: str, engine: str, dense: ModuleType
) -> None:
    pattern, rows = dense.random_pattern(M, 4, ragged=M > 7), random_rows(M, N, H)
    on = target(kind, pattern, dense)
    # Entries off the pattern do not add to its pivots, so that those of R must be small.
    columns, values = dense.random_columns(pattern), 0.3 * random_values(rows)
    w = torch.linspace(0.5, 2.0, M).double()
    V = incomplete_cholesky(pattern, columns, w, on=on, rows=rows, values=values)
    on = pattern if on is None else on
    assert bool((V[:, :-1][on.neighbors < 0] == 0.0).all()) and bool((V[:, -1] > 0.0).all())
    factor = dense.dense_factor(on, V)
    P = dense_precision(dense, pattern, columns, w, rows, values)
    assert dense.on_pattern(on, factor @ factor.mT - P).abs().max() < 1e-13
    if kind == "full":
        close(factor @ factor.mT, P)


@pytest.mark.parametrize(
    ("columns_batch", "w_batch", "values_batch"),
    [((2,), (), ()), ((), (), (3,)), ((2, 1), (3,), (4, 1, 3)), ((), (3,), (1,)), ((1,), (1,), ())],
)
def test_batch_dims_broadcast(
    columns_batch: tuple[int, ...],
    w_batch: tuple[int, ...],
    values_batch: tuple[int, ...],
    engine: str,
    dense: ModuleType,
) -> None:
    pattern, rows = dense.random_pattern(9, 3), random_rows(9, 12, 3)
    columns, w = dense.random_columns(pattern, columns_batch), dense.random_vector(*w_batch, 9)
    w, values = w.exp(), 0.3 * random_values(rows, *values_batch)
    batch = torch.broadcast_shapes(columns_batch, w_batch, values_batch)
    V = incomplete_cholesky(pattern, columns, w, rows=rows, values=values)
    assert V.shape == (*batch, 9, 4)
    wide = (
        columns.expand(*batch, 9, 4).reshape(-1, 9, 4),
        w.expand(*batch, 9).reshape(-1, 9),
        values.expand(*batch, 12, 3).reshape(-1, 12, 3),
    )
    each = [
        incomplete_cholesky(pattern, U, one, rows=rows, values=R)
        for U, one, R in zip(*wide, strict=True)
    ]
    close(V, torch.stack(each).view(V.shape))
    b = dense.random_vector(5, *(1 for _ in batch), 9)
    x = precision_solve(pattern, columns, w, V, b, rows=rows, values=values)
    P = dense_precision(dense, pattern, columns, w, rows, values)
    close(x, torch.linalg.solve(P, b.unsqueeze(-1)).squeeze(-1), 1e-9)


def test_vectors_of_a_shared_trailing_dim(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(9, 3)
    columns, w = dense.random_columns(pattern, (2, 1)), torch.ones(9).double()
    V, b = incomplete_cholesky(pattern, columns, w), dense.random_vector(2, 5, 9)
    U = dense.dense_factor(pattern, columns)
    expected = torch.linalg.solve(U @ U.mT + torch.eye(9), b.unsqueeze(-1)).squeeze(-1)
    close(precision_solve(pattern, columns, w, V, b), expected, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "batches", [((), (), ()), ((), (), (2,)), ((2,), (), ()), ((), (2,), (2,))]
)
def test_derivatives_of_factors(
    batches: tuple[tuple[int, ...], ...], kind: str, engine: str, dense: ModuleType
) -> None:
    pattern, rows = dense.random_pattern(7, 3, ragged=True), random_rows(7, 5, 4)
    slots = torch.cat([pattern.neighbors >= 0, torch.ones(7, 1, dtype=torch.bool)], -1)
    on = target(kind, pattern, dense)
    columns = dense.random_columns(pattern, batches[0]).requires_grad_()
    w = dense.random_vector(*batches[1], 7).exp().requires_grad_()
    values = (0.4 * random_values(rows, *batches[2])).requires_grad_()

    def value(columns: Tensor, w: Tensor, values: Tensor) -> Tensor:
        return incomplete_cholesky(pattern, columns * slots, w, on=on, rows=rows, values=values)

    assert torch.autograd.gradcheck(value, (columns, w, values))
    with pytest.raises(UnsupportedError, match="create_graph"):
        torch.autograd.grad(value(columns, w, values).sum(), values, create_graph=True)


def test_exact_factors_have_the_gradients_of_cholesky(engine: str, dense: ModuleType) -> None:
    pattern, rows = dense.full_pattern(8), random_rows(8, 20, 5)
    columns, w = dense.random_columns(pattern), torch.ones(8).double()
    values = random_values(rows).requires_grad_()
    P = dense_precision(dense, pattern, columns, w, rows, values)
    # The upper factor is the lower one of the matrix read backwards.
    lower = torch.linalg.cholesky(P.flip(0, 1))
    expected = dense.on_pattern(pattern, lower.flip(0, 1))
    value = incomplete_cholesky(pattern, columns, w, rows=rows, values=values)
    close(value, expected)
    weights = dense.random_vector(*expected.shape)
    one, two = (
        torch.autograd.grad((part * weights).sum(), values, retain_graph=True)[0]
        for part in (value, expected)
    )
    close(one, two, 1e-10)


@pytest.mark.parametrize("values_batch", [(), (2,)])
@pytest.mark.parametrize("w_batch", [(), (2,)])
def test_derivatives_of_solves(
    values_batch: tuple[int, ...], w_batch: tuple[int, ...], engine: str, dense: ModuleType
) -> None:
    pattern, rows = dense.random_pattern(6, 3, ragged=True), random_rows(6, 5, 3)
    slots = torch.cat([pattern.neighbors >= 0, torch.ones(6, 1, dtype=torch.bool)], -1)
    columns = dense.random_columns(pattern).requires_grad_()
    w = dense.random_vector(*w_batch, 6).exp().requires_grad_()
    values = (0.4 * random_values(rows, *values_batch)).requires_grad_()
    b = dense.random_vector(3, 1, 6).requires_grad_()
    V = incomplete_cholesky(pattern, columns, w, rows=rows, values=values).detach()

    def value(columns: Tensor, w: Tensor, values: Tensor, b: Tensor) -> Tensor:
        return precision_solve(
            pattern, columns * slots, w, V, b, rows=rows, values=values, tolerance=1e-13
        )

    assert torch.autograd.gradcheck(value, (columns, w, values, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(value, (columns, w, values, b), fast_mode=True)


def test_both_engines_in_pieces(monkeypatch: pytest.MonkeyPatch, dense: ModuleType) -> None:
    from gpvi.linalg.sparse_inverse import _rectangular_cpu, _rectangular_tensor

    pattern, rows = dense.random_pattern(30, 6), random_rows(30, 50, 6)
    columns, w = dense.random_columns(pattern), torch.ones(30).double()
    values = (0.2 * random_values(rows, 2)).requires_grad_()
    u, v = dense.random_vector(3, 1, 30), dense.random_vector(3, 1, 50)

    def results() -> list[Tensor]:
        again = SparseRows(rows.index, 30)
        V = incomplete_cholesky(pattern, columns, w, rows=again, values=values)
        weights = dense.random_vector(*V.shape)
        products = rows_product(again, values, v), rows_transpose_product(again, values, u)
        total = (V * weights).sum() + sum(part.square().sum() for part in products)
        return [V, *products, *torch.autograd.grad(total, values)]

    expected = results()
    monkeypatch.setattr(_rectangular_cpu, "_LARGEST_TABLE", 100)
    monkeypatch.setattr(_rectangular_cpu, "_PIECE", 100)
    for one, two in zip(results(), expected, strict=True):
        close(one, two, 1e-11)
    monkeypatch.setattr(_engine, "_numba_works", lambda: False)
    monkeypatch.setattr(_rectangular_tensor, "_LARGEST", 100)
    monkeypatch.setattr(_incomplete_tensor, "_LARGEST", 400)
    for one, two in zip(results(), expected, strict=True):
        close(one, two, 1e-11)


def test_wide_patterns_and_rows(dense: ModuleType) -> None:
    pattern, rows = dense.full_pattern(270), random_rows(270, 10, 260)
    columns, w = dense.random_columns(pattern), torch.ones(270).double()
    values = random_values(rows)
    V = incomplete_cholesky(pattern, columns, w, rows=rows, values=values)
    factor = dense.dense_factor(pattern, V)
    P = dense_precision(dense, pattern, columns, w, rows, values)
    close(factor @ factor.mT, P, 1e-10)


def test_single_precision(engine: str, dense: ModuleType) -> None:
    pattern, rows = dense.random_pattern(30, 5), random_rows(30, 40, 4)
    columns, w = dense.random_columns(pattern), torch.ones(30).double()
    values, b = 0.3 * random_values(rows), dense.random_vector(30)

    def results(dtype: torch.dtype) -> list[Tensor]:
        U, one, R = columns.to(dtype), w.to(dtype), values.to(dtype).requires_grad_()
        V = incomplete_cholesky(pattern, U, one, rows=rows, values=R)
        x = precision_solve(pattern, U, one, V, b.to(dtype), rows=rows, values=R)
        y = rows_product(rows, R, rows_transpose_product(rows, R, x))
        return [V, x, y, *torch.autograd.grad(V.sum() + y.sum(), R)]

    for single, double in zip(results(torch.float32), results(torch.float64), strict=True):
        assert single.dtype == torch.float32
        close(single.double(), double, 1e-4)


def test_kept_tables_belong_to_one_pattern(dense: ModuleType) -> None:
    rows, w = random_rows(12, 30, 4), torch.full((12,), 3.0).double()
    values = 0.3 * random_values(rows)
    patterns = [dense.random_pattern(12, 4), dense.random_pattern(12, 5, seed=1)]
    columns = [dense.random_columns(pattern) for pattern in patterns]
    pairs = list(zip(patterns, columns, strict=True))
    first = [incomplete_cholesky(*pair, w, rows=rows, values=values) for pair in pairs]
    for other in (rows, pickle.loads(pickle.dumps(rows)), copy.deepcopy(rows), rows.to("cpu")):
        again = [incomplete_cholesky(*pair, w, rows=other, values=values) for pair in pairs]
        assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


def test_breakdowns_are_announced(engine: str, dense: ModuleType) -> None:
    pattern, rows = dense.random_pattern(9, 3), random_rows(9, 12, 3)
    columns, w = dense.random_columns(pattern), torch.zeros(9).double()
    values = random_values(rows)
    w[4] = -50.0
    with pytest.raises(NumericalError, match=r"row 4 of the .*1 of 9 precisions.*-50: bound"):
        incomplete_cholesky(pattern, columns, w, rows=rows, values=values)
    values = torch.stack([values, values * torch.inf])
    with pytest.raises(NumericalError, match=r"values of batch element 1 of 2 hold NaN"):
        incomplete_cholesky(pattern, columns, w.abs() + 50.0, rows=rows, values=values)


def test_wrong_rows_are_refused() -> None:
    for index in (torch.zeros(3, dtype=torch.int32), torch.zeros(3, 2)):
        with pytest.raises(InputError, match="pass int32 numbers"):
            SparseRows(index, 3)
    for row in ([1, 0], [0, 0], [-1, 0], [0, 3], [-2, -1]):
        index = torch.tensor([[0, 1], row], dtype=torch.int32)
        with pytest.raises(InputError, match=r"index of row 1 is .* below 3"):
            SparseRows(index, 3)
    with pytest.raises(InputError, match="num_basis is -1"):
        SparseRows(torch.zeros(0, 2, dtype=torch.int32), -1)


def test_wrong_calls_are_refused(dense: ModuleType) -> None:
    pattern, rows = dense.random_pattern(6, 2), random_rows(6, 4, 3)
    columns, w, values = dense.random_columns(pattern), torch.ones(6).double(), random_values(rows)
    with pytest.raises(InputError, match=r"values have shape \(4, 2\)"):
        rows_product(rows, values[:, 1:], w[:4])
    with pytest.raises(InputError, match=r"\(6,\) and there are 4 rows"):
        rows_product(rows, values, w)
    with pytest.raises(InputError, match=r"\(4,\) and there are 6 basis"):
        rows_transpose_product(rows, values, w[:4])
    with pytest.raises(InputError, match=r"matrices \(2,\), vector \(3,\)"):
        rows_product(rows, values.expand(2, 4, 3), w[:4].expand(3, 4))
    with pytest.raises(InputError, match="values are on meta"):
        rows_product(rows, values.to("meta"), w[:4])
    with pytest.raises(InputError, match="vector is on meta"):
        rows_product(rows, values, w[:4].to("meta"))
    V = incomplete_cholesky(pattern, columns, w, rows=rows, values=values)
    calls = [
        lambda **more: incomplete_cholesky(pattern, columns, w, **more),
        lambda **more: precision_solve(pattern, columns, w, V, w, **more),
    ]
    for call in calls:
        with pytest.raises(InputError, match="rows without values"):
            call(rows=rows)
        with pytest.raises(InputError, match="values without rows"):
            call(values=values)
        with pytest.raises(InputError, match=r"of 5 basis variables .* of 6"):
            call(rows=random_rows(5, 4, 3), values=values)
        with pytest.raises(InputError, match=r"values have shape \(3, 3\)"):
            call(rows=rows, values=values[1:])


@pytest.mark.gpu
def test_on_a_device(dense: ModuleType) -> None:
    pattern, rows = dense.random_pattern(50, 8), random_rows(50, 90, 5)
    columns, w = dense.random_columns(pattern, (2,)), torch.ones(50).double()
    values, b = 0.3 * random_values(rows), dense.random_vector(3, 1, 50)
    V = incomplete_cholesky(pattern, columns, w, rows=rows, values=values)
    x = precision_solve(pattern, columns, w, V, b, rows=rows, values=values)
    moved, there = pattern.to("cuda"), rows.to("cuda")
    U, one, R, right = (part.cuda() for part in (columns, w, values, b))
    factor = incomplete_cholesky(moved, U, one, rows=there, values=R)
    close(factor.cpu(), V, 1e-10)
    close(precision_solve(moved, U, one, factor, right, rows=there, values=R).cpu(), x, 1e-8)
