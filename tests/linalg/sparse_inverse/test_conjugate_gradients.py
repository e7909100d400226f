"""Solves with posterior precisions, against dense matrices, on both engines."""

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError
from gpvi.linalg.sparse_inverse import _engine
from gpvi.linalg.sparse_inverse import conjugate_gradients as module
from gpvi.linalg.sparse_inverse.conjugate_gradients import precision_solve
from gpvi.linalg.sparse_inverse.incomplete import incomplete_cholesky
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

SHAPES = [(11, 4), (7, 6), (5, 0), (1, 0), (1, 2)]


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def dense_solve(dense: ModuleType, pattern: NeighborPattern, *tensors: Tensor) -> Tensor:
    columns, w, b = tensors
    U = dense.dense_factor(pattern, columns)
    return torch.linalg.solve(U @ U.mT + torch.diag_embed(w), b.unsqueeze(-1)).squeeze(-1)


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_engine, "_numba_works", lambda: request.param == "compiled")
    return request.param


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("M", "m"), SHAPES)
def test_solves_are_dense_ones(
    M: int, m: int, diagonal: bool, engine: str, dense: ModuleType
) -> None:
    pattern = dense.random_pattern(M, m, ragged=M > 7)
    on = dense.random_pattern(M, 0) if diagonal else None
    columns, w = dense.random_columns(pattern), torch.linspace(0.0, 2.0, M).double()
    V = incomplete_cholesky(pattern, columns, w, on=on)
    b = dense.random_vector(3, M)
    b[1] = 0.0
    x = precision_solve(pattern, columns, w, V, b, factor_pattern=on)
    close(x, dense_solve(dense, pattern, columns, w, b))
    assert bool((x[1] == 0.0).all())


@pytest.mark.parametrize(
    ("columns_batch", "w_batch", "b_batch"),
    [
        ((2,), (), ()),
        ((), (3,), ()),
        ((), (), (5,)),
        ((2, 1), (3,), (4, 1, 3)),
        ((1,), (3,), (2, 1)),
    ],
)
def test_batch_dims_broadcast(
    columns_batch: tuple[int, ...],
    w_batch: tuple[int, ...],
    b_batch: tuple[int, ...],
    engine: str,
    dense: ModuleType,
) -> None:
    pattern = dense.random_pattern(9, 3)
    columns = dense.random_columns(pattern, columns_batch)
    w, b = dense.random_vector(*w_batch, 9).exp(), dense.random_vector(*b_batch, 9, seed=1)
    V = incomplete_cholesky(pattern, columns, w)
    x = precision_solve(pattern, columns, w, V, b)
    assert x.shape == (*torch.broadcast_shapes(columns_batch, w_batch, b_batch), 9)
    close(x, dense_solve(dense, pattern, columns, w, b))


@pytest.mark.parametrize("columns_batch", [(), (2,)])
@pytest.mark.parametrize("w_batch", [(), (2,)])
def test_derivatives(
    columns_batch: tuple[int, ...], w_batch: tuple[int, ...], engine: str, dense: ModuleType
) -> None:
    pattern = dense.random_pattern(6, 3, ragged=True)
    used = torch.cat([pattern.neighbors >= 0, torch.ones(6, 1, dtype=torch.bool)], -1)
    columns = dense.random_columns(pattern, columns_batch).requires_grad_()
    w = dense.random_vector(*w_batch, 6).exp().requires_grad_()
    b = dense.random_vector(3, 1, 6).requires_grad_()
    V = incomplete_cholesky(pattern, columns, w)

    def value(columns: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return precision_solve(pattern, columns * used, w, V, b, tolerance=1e-13)

    assert torch.autograd.gradcheck(value, (columns, w, b))
    assert torch.autograd.gradgradcheck(value, (columns, w, b), fast_mode=True)
    assert V.grad_fn is not None
    assert torch.autograd.grad(value(columns, w, b).sum(), V, allow_unused=True) == (None,)


@pytest.mark.parametrize("nugget", [1e-4, 1e-7])
@pytest.mark.parametrize("precision", [1e-3, 1.0, 100.0])
def test_nearly_singular_priors(
    nugget: float, precision: float, engine: str, dense: ModuleType
) -> None:
    pattern, columns = dense.smooth_factor(64, 14, nugget)
    w = torch.full((64,), precision, dtype=torch.float64)
    V = incomplete_cholesky(pattern, columns, w)
    b = w * torch.sin(torch.linspace(0.0, 6.0, 64).double())
    x = precision_solve(pattern, columns, w, V, b, tolerance=1e-15)
    # Of so large a matrix only the error in its own norm can be small; a QR decomposition of its root
    # knows the solution to more digits than the matrix itself.
    root = torch.cat([dense.dense_factor(pattern, columns).mT, torch.diag(w.sqrt())])
    R = torch.linalg.qr(root).R
    size = torch.linalg.solve_triangular(R.mT, b.unsqueeze(-1), upper=False)
    exact = torch.linalg.solve_triangular(R, size, upper=True).squeeze(-1)
    assert (R @ (x - exact)).norm() < 1e-7 * size.norm()


def test_an_exact_factor_takes_one_step(
    engine: str, dense: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = dense.full_pattern(12)
    columns, w = dense.random_columns(pattern), torch.ones(12).double()
    V = incomplete_cholesky(pattern, columns, w)
    b = dense.random_vector(12)
    x = precision_solve(pattern, columns, w, V, b, max_iterations=1)
    close(x, dense_solve(dense, pattern, columns, w, b), 1e-11)


def test_finished_vectors_drop_out(
    engine: str, dense: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = dense.random_pattern(40, 4)
    columns, w = dense.random_columns(pattern), torch.ones(40).double()
    V = incomplete_cholesky(pattern, columns, w)
    b = dense.random_vector(3, 40)
    U = dense.dense_factor(pattern, columns)
    # An eigenvector of the preconditioned matrix, which takes one step.
    factor = dense.dense_factor(pattern, V)
    inner = torch.linalg.solve(factor, U @ U.mT + torch.diag(w))
    inner = torch.linalg.solve(factor, inner.mT).mT
    b[1] = factor @ torch.linalg.eigh(0.5 * (inner + inner.mT)).eigenvectors[:, 0]
    widths = []
    step = module._Iteration._step

    def counted(self: module._Iteration, done: Tensor) -> None:
        widths.append(done.shape[-1])
        step(self, done)

    monkeypatch.setattr(module._Iteration, "_step", counted)
    x = precision_solve(pattern, columns, w, V, b)
    assert widths[0] == 3 and widths[2] == 2
    close(x, dense_solve(dense, pattern, columns, w, b))


def test_problems_of_a_batch_stop_for_themselves(
    dense: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = dense.random_pattern(40, 4)
    columns = dense.random_columns(pattern)
    w = torch.stack([torch.full((40,), 1e6), torch.full((40,), 0.1)]).double()
    V = incomplete_cholesky(pattern, columns, w)
    b = dense.random_vector(2, 40)
    used = []
    run = module._Iteration.run

    def counted(self: module._Iteration, tolerance: float, most: int) -> int:
        used.append(run(self, tolerance, most))
        return used[-1]

    monkeypatch.setattr(module._Iteration, "run", counted)
    x = precision_solve(pattern, columns, w, V, b)
    assert len(used) == 2 and used[0] < used[1]
    close(x, dense_solve(dense, pattern, columns, w, b))


def test_single_precision(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(40, 4)
    columns, w = dense.random_columns(pattern).float(), torch.ones(40)
    V = incomplete_cholesky(pattern, columns, w)
    b = dense.random_vector(40)
    x = precision_solve(pattern, columns, w, V, b.float())
    assert x.dtype == torch.float32
    close(x.double(), dense_solve(dense, pattern, columns.double(), w.double(), b), 1e-5)


@given(st.integers(1, 30), st.integers(0, 6), st.integers(0, 50), st.floats(1e-3, 1e3))
def test_solves_undo_products(M: int, m: int, seed: int, w: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.full((M, m), -1, dtype=torch.int32)
    for i in range(M):
        chosen = torch.randperm(i, generator=generator)[:m].sort().values
        index[i, : len(chosen)] = chosen.to(torch.int32)
    pattern = NeighborPattern(index)
    columns = 0.2 * torch.randn(M, m + 1, generator=generator, dtype=torch.float64)
    columns[:, -1] = 0.5 + columns[:, -1].abs()
    precision = torch.full((M,), w, dtype=torch.float64)
    x = torch.randn(M, generator=generator, dtype=torch.float64)
    V = incomplete_cholesky(pattern, columns, precision)
    U = torch.zeros(M, M + 1).double()
    place = torch.cat([torch.where(index < 0, M, index).long(), torch.arange(M)[:, None]], -1)
    U = U.scatter(-1, place, columns)[:, :M].mT
    b = U @ (U.mT @ x) + precision * x
    close(precision_solve(pattern, columns, precision, V, b), x, 1e-7)


def test_failures_are_announced(engine: str, dense: ModuleType) -> None:
    pattern = dense.random_pattern(40, 4)
    columns, w = dense.random_columns(pattern), torch.ones(40).double()
    V = incomplete_cholesky(pattern, columns, w)
    b = dense.random_vector(40)
    with pytest.raises(
        NumericalError, match=r"relative error of .* after 2 iterations, not 1\.0e-10"
    ):
        precision_solve(pattern, columns, w, V, b, max_iterations=2)
    with pytest.raises(NumericalError, match="not positive definite"):
        precision_solve(pattern, columns, w - 50.0, V, b)
    b[3] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        precision_solve(pattern, columns, w, V, b)


def test_wrong_calls_are_refused(dense: ModuleType) -> None:
    pattern = dense.random_pattern(6, 2)
    columns, w = dense.random_columns(pattern), torch.ones(6).double()
    V = incomplete_cholesky(pattern, columns, w)
    for number in range(4):
        arguments = [columns, w, V, w]
        arguments[number] = arguments[number][..., 1:]
        with pytest.raises(InputError, match=r"\(6, 2\)|\(5,\)"):
            precision_solve(pattern, *arguments)
    with pytest.raises(InputError, match="rows of up to 0"):
        precision_solve(pattern, columns, w, V, w, factor_pattern=dense.random_pattern(6, 0))
    with pytest.raises(InputError, match="tolerance is 0"):
        precision_solve(pattern, columns, w, V, w, tolerance=0.0)
    with pytest.raises(InputError, match=r"matrices \(2,\), vector \(3,\)"):
        precision_solve(pattern, columns, w.expand(2, 6), V, w.expand(3, 6))


@pytest.mark.gpu
def test_on_a_device(dense: ModuleType) -> None:
    pattern = dense.random_pattern(50, 8)
    columns, w = dense.random_columns(pattern, (2,)), torch.ones(50).double()
    V, b = incomplete_cholesky(pattern, columns, w), dense.random_vector(3, 1, 50)
    moved = (part.cuda() for part in (columns, w, V, b))
    x = precision_solve(pattern.to("cuda"), *moved)
    close(x.cpu(), precision_solve(pattern, columns, w, V, b))
