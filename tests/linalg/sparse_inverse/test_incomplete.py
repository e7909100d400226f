"""Incomplete Cholesky factors, against dense matrices, on both engines."""

import copy
import pickle
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.linalg.sparse_inverse import _engine, _incomplete_cpu, _incomplete_tensor
from gpvi.linalg.sparse_inverse.incomplete import incomplete_cholesky
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

SHAPES = [(11, 4), (7, 6), (5, 0), (1, 0), (1, 2)]


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def target(kind: str, pattern: NeighborPattern, dense: ModuleType) -> NeighborPattern | None:
    """Patterns of V for a pattern of U."""
    M = pattern.num_rows
    makers = {
        "same": lambda: None,
        "copy": lambda: NeighborPattern(pattern.neighbors.clone()),
        "diagonal": lambda: dense.random_pattern(M, 0),
        "first": lambda: dense.first_points(M, min(M, 3)),
        "other": lambda: dense.random_pattern(M, min(M, 3), seed=4, ragged=True),
        "full": lambda: dense.full_pattern(M),
    }
    return makers[kind]()


KINDS = ["same", "copy", "diagonal", "first", "other", "full"]


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_engine, "_numba_works", lambda: request.param == "compiled")
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "m"), SHAPES)
def test_agrees_with_the_precision_on_the_pattern(
    M: int, m: int, kind: str, engine: str, dense: ModuleType
) -> None:
    pattern = dense.random_pattern(M, m, ragged=M > 7)
    on = target(kind, pattern, dense)
    columns, w = dense.random_columns(pattern), torch.linspace(0.1, 2.0, M).double()
    V = incomplete_cholesky(pattern, columns, w, on=on)
    on = pattern if on is None else on
    assert bool((V[:, :-1][on.neighbors < 0] == 0.0).all()) and bool((V[:, -1] > 0.0).all())
    U, factor = dense.dense_factor(pattern, columns), dense.dense_factor(on, V)
    difference = factor @ factor.mT - U @ U.mT - torch.diag(w)
    assert dense.on_pattern(on, difference).abs().max() < 1e-13
    if kind == "full" or (m >= M - 1 and kind in ("same", "copy")):
        assert difference.abs().max() < 1e-13


@pytest.mark.parametrize(
    ("columns_batch", "w_batch"), [((2,), ()), ((), (3,)), ((2, 1), (4, 1, 3)), ((1,), (3,))]
)
def test_batch_dims_broadcast(
    columns_batch: tuple[int, ...], w_batch: tuple[int, ...], engine: str, dense: ModuleType
) -> None:
    pattern = dense.random_pattern(9, 3)
    columns = dense.random_columns(pattern, columns_batch)
    w = dense.random_vector(*w_batch, 9).exp()
    for on in (None, dense.random_pattern(9, 0)):
        V = incomplete_cholesky(pattern, columns, w, on=on)
        batch = torch.broadcast_shapes(columns_batch, w_batch)
        wide = columns.expand(*batch, 9, 4).reshape(-1, 9, 4), w.expand(*batch, 9).reshape(-1, 9)
        each = [incomplete_cholesky(pattern, *pair, on=on) for pair in zip(*wide, strict=True)]
        close(V, torch.stack(each).view(*batch, 9, -1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batches", [((), ()), ((), (2,)), ((2,), ())])
def test_derivatives(
    batches: tuple[tuple[int, ...], tuple[int, ...]], kind: str, engine: str, dense: ModuleType
) -> None:
    pattern = dense.random_pattern(7, 3, ragged=True)
    used = torch.cat([pattern.neighbors >= 0, torch.ones(7, 1, dtype=torch.bool)], -1)
    on = target(kind, pattern, dense)
    columns = dense.random_columns(pattern, batches[0]).requires_grad_()
    w = dense.random_vector(*batches[1], 7).exp().requires_grad_()

    def value(columns: Tensor, w: Tensor) -> Tensor:
        return incomplete_cholesky(pattern, columns * used, w, on=on)

    assert torch.autograd.gradcheck(value, (columns, w))


def test_exact_factors_have_the_gradients_of_cholesky(engine: str, dense: ModuleType) -> None:
    pattern = dense.full_pattern(8)
    columns, w = dense.random_columns(pattern).requires_grad_(), torch.ones(8).double()
    U = dense.dense_factor(pattern, columns)
    # The upper factor is the lower one of the matrix read backwards.
    lower = torch.linalg.cholesky((U @ U.mT + torch.diag(w)).flip(0, 1))
    expected = dense.on_pattern(pattern, lower.flip(0, 1))
    weights = dense.random_vector(*expected.shape)
    value = incomplete_cholesky(pattern, columns, w)
    close(value, expected)
    gradients = [
        torch.autograd.grad((part * weights).sum(), columns, retain_graph=True)[0]
        for part in (value, expected)
    ]
    close(gradients[0], gradients[1] * (gradients[0] != 0.0), 1e-10)


def test_patterns_too_large_for_a_table(monkeypatch: pytest.MonkeyPatch, dense: ModuleType) -> None:
    pattern = dense.random_pattern(30, 6)
    columns, w = dense.random_columns(pattern), torch.ones(30).double()
    V = incomplete_cholesky(pattern, columns, w)
    monkeypatch.setattr(_incomplete_cpu, "_LARGEST_TABLE", 10)
    close(incomplete_cholesky(NeighborPattern(pattern.neighbors), columns, w), V)
    wide = dense.full_pattern(270)
    columns, w = dense.random_columns(wide), torch.ones(270).double()
    U = dense.dense_factor(wide, columns)
    factor = dense.dense_factor(wide, incomplete_cholesky(wide, columns, w))
    close(factor @ factor.mT, U @ U.mT + torch.diag(w))


def test_tensors_in_pieces(monkeypatch: pytest.MonkeyPatch, dense: ModuleType) -> None:
    pattern = dense.random_pattern(30, 6)
    w = dense.random_vector(3, 30).exp().requires_grad_()
    columns = dense.random_columns(pattern).requires_grad_()
    expected = incomplete_cholesky(pattern, columns, w)
    weights = dense.random_vector(*expected.shape)
    wanted = torch.autograd.grad((expected * weights).sum(), (columns, w))
    monkeypatch.setattr(_engine, "_numba_works", lambda: False)
    monkeypatch.setattr(_incomplete_tensor, "_LARGEST", 400)
    value = incomplete_cholesky(pattern, columns, w)
    close(value, expected)
    for one, two in zip(
        torch.autograd.grad((value * weights).sum(), (columns, w)), wanted, strict=True
    ):
        close(one, two, 1e-11)


def test_single_precision(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(30, 5)
    columns, w = dense.random_columns(pattern).requires_grad_(), torch.ones(30).double()
    single = columns.detach().float().requires_grad_()
    value = incomplete_cholesky(pattern, single, w.float())
    exact = incomplete_cholesky(pattern, columns, w)
    assert value.dtype == torch.float32
    close(value.double(), exact, 1e-5)
    value.sum().backward()
    exact.sum().backward()
    assert single.grad.dtype == torch.float32
    close(single.grad.double(), columns.grad, 1e-4)


@given(st.integers(1, 25), st.integers(0, 8), st.integers(0, 50), st.floats(0.0, 100.0))
def test_no_precision_gives_the_factor_back(M: int, m: int, seed: int, w: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.full((M, m), -1, dtype=torch.int32)
    for i in range(M):
        chosen = torch.randperm(i, generator=generator)[:m].sort().values
        index[i, : len(chosen)] = chosen.to(torch.int32)
    pattern = NeighborPattern(index)
    columns = 0.2 * torch.randn(M, m + 1, generator=generator, dtype=torch.float64)
    columns[:, -1] = 0.5 + columns[:, -1].abs()
    columns[:, :-1] *= index >= 0
    close(incomplete_cholesky(pattern, columns, torch.zeros(M).double()), columns, 1e-9)
    # Of the diagonal alone, the pivots are known.
    diagonal = NeighborPattern(index[:, :0])
    V = incomplete_cholesky(pattern, columns, torch.full((M,), w, dtype=torch.float64), on=diagonal)
    squares = torch.zeros(M + 1).double()
    place = torch.where(index < 0, M, index).long()
    squares.index_add_(0, place.flatten(), columns[:, :-1].square().flatten())
    close(V[:, 0].square(), squares[:M] + columns[:, -1].square() + w, 1e-10)


def test_negative_precisions(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(9, 3)
    columns, w = dense.random_columns(pattern), torch.zeros(9).double()
    w[4] = -0.1
    V = incomplete_cholesky(pattern, columns, w)
    U, factor = dense.dense_factor(pattern, columns), dense.dense_factor(pattern, V)
    difference = factor @ factor.mT - U @ U.mT - torch.diag(w)
    assert dense.on_pattern(pattern, difference).abs().max() < 1e-13
    w[4] = -50.0
    with pytest.raises(NumericalError, match=r"row 4 of the .*1 of 9 precisions.*-50: bound"):
        incomplete_cholesky(pattern, columns, w)
    with pytest.raises(NumericalError, match=r"row 4 of batch element 1 of 2"):
        incomplete_cholesky(pattern, columns, torch.stack([w.abs(), w]))


def test_breakdowns_say_what_to_do(engine: str, dense: ModuleType) -> None:
    pattern, columns = dense.smooth_factor(64, 8, 1e-10)
    with pytest.raises(NumericalError, match=r"row \d+ of the .*more neighbours"):
        incomplete_cholesky(pattern, columns, torch.ones(64).double())
    for bad in (torch.nan, torch.inf):
        with pytest.raises(NumericalError, match="NaN or infinite"):
            incomplete_cholesky(pattern, columns * bad, torch.ones(64).double())


def test_kept_tables_travel_with_the_pattern(dense: ModuleType) -> None:
    pattern = dense.random_pattern(12, 4)
    columns, w = dense.random_columns(pattern), torch.ones(12).double()
    V = incomplete_cholesky(pattern, columns, w)
    for other in (pickle.loads(pickle.dumps(pattern)), copy.deepcopy(pattern)):
        assert torch.equal(incomplete_cholesky(other, columns, w), V)


def test_wrong_calls_are_refused(dense: ModuleType) -> None:
    pattern = dense.random_pattern(6, 2)
    columns, w = dense.random_columns(pattern).requires_grad_(), torch.ones(6).double()
    with pytest.raises(InputError, match=r"\(6, 2\)"):
        incomplete_cholesky(pattern, columns[:, 1:], w)
    with pytest.raises(InputError, match=r"precision .*\(5,\)"):
        incomplete_cholesky(pattern, columns, w[1:])
    with pytest.raises(InputError, match="5 rows"):
        incomplete_cholesky(pattern, columns, w, on=dense.random_pattern(5, 0))
    with pytest.raises(InputError, match=r"precision \(3,\)"):
        incomplete_cholesky(pattern, columns.expand(2, 6, 3), w.expand(3, 6))
    value = incomplete_cholesky(pattern, columns, w).sum()
    with pytest.raises(UnsupportedError, match="create_graph"):
        torch.autograd.grad(value, columns, create_graph=True)


@pytest.mark.gpu
def test_on_a_device(dense: ModuleType) -> None:
    pattern = dense.random_pattern(50, 8)
    columns, w = dense.random_columns(pattern, (2,)), torch.ones(50).double()
    V = incomplete_cholesky(pattern.to("cuda"), columns.cuda(), w.cuda())
    close(V.cpu(), incomplete_cholesky(pattern, columns, w), 1e-10)
