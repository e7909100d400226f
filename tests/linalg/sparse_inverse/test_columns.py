"""Columns of sparse inverse Cholesky factors of any kernel against dense conditionals, on both engines."""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    ConstantKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    ScaleKernel,
)
from torch import Tensor

from gpvi.exceptions import (
    EngineWarning,
    InputError,
    NotPositiveDefiniteError,
    NumericalError,
    UnsupportedError,
)
from gpvi.linalg.sparse_inverse._pair_columns_tensor import TensorEngine
from gpvi.linalg.sparse_inverse.columns import inverse_columns, row_log_densities

module = importlib.import_module("gpvi.linalg.sparse_inverse.columns")

DOUBLE = torch.float64


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on either engine."""
    if request.param == "tensor":
        monkeypatch.setattr(module, "_engine", lambda like: TensorEngine())
    return str(request.param)


KERNELS: dict[str, Callable[[], Kernel]] = {
    "rbf": lambda: RBFKernel(ard_num_dims=2),
    "matern": lambda: ScaleKernel(MaternKernel(1.5)),
    "periodic": lambda: PeriodicKernel() * RBFKernel(),
    "linear and constant": lambda: LinearKernel() + ConstantKernel() + MaternKernel(0.5),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def numbers(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def everyone(T: int) -> Tensor:
    return torch.arange(T, dtype=torch.int32)


def by_kernel(kernel: Kernel, x: Tensor) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """Covariances of pairs and variances; a batched kernel is told its batch dim."""
    wide = x.expand(*kernel.batch_shape, *x.shape)

    def covariance(i: Tensor, j: Tensor) -> Tensor:
        assert i.dtype == j.dtype == torch.int64
        assert (i != j).all()
        return kernel(wide[..., i, :], wide[..., j, :], diag=True)

    return covariance, kernel(wide, wide, diag=True)


def full(kernel: Kernel, x: Tensor) -> Tensor:
    """Covariance matrix; GPyTorch's own loses half of the digits of small distances."""
    covariance, variance = by_kernel(kernel, x)
    i, j = torch.tril_indices(len(x), len(x), -1)
    lower = torch.zeros(*variance.shape, len(x), dtype=x.dtype)
    lower[..., i, j] = covariance(i, j)
    return lower + lower.mT + torch.diag_embed(variance)


def reference(K: Tensor, neighbors: Tensor, own: Tensor, nugget: Tensor) -> Tensor:
    """Columns from a dense matrix [*b, T, T], row after row."""
    total = K + torch.diag_embed(nugget.expand(K.shape[:-1]))
    rows = []
    for found, point in zip(neighbors.tolist(), own.tolist(), strict=True):
        used = [p for p in found if p >= 0]
        s = torch.tensor([*used, point])
        L = torch.linalg.cholesky(total[..., s[:, None], s])
        u = torch.linalg.inv(L)[..., -1, :]
        gap = u.new_zeros(*u.shape[:-1], len(found) - len(used))
        rows.append(torch.cat([u[..., :-1], gap, u[..., -1:]], -1))
    return torch.stack(rows, -2)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- values and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_columns_are_those_of_dense_conditionals(
    name: str, ragged: bool, engine: str, dense: Any
) -> None:
    x, kernel = random(33, 2).requires_grad_(), KERNELS[name]().double()
    pattern = dense.random_pattern(33, 5, ragged=ragged)
    nugget = (0.1 + random(33, seed=2).abs()).requires_grad_()
    leaves = [*kernel.parameters(), x, nugget]
    covariance, variance = by_kernel(kernel, x)
    args = pattern.neighbors, everyone(33), nugget
    found = inverse_columns(covariance, variance, *args, schedule=pattern.schedule)
    expected = reference(full(kernel, x), *args)
    close(found, expected)
    weights = random(*found.shape, seed=3)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        close(ours, theirs, 1e-8)


def test_a_batched_kernel(engine: str, dense: Any) -> None:
    kernel = ScaleKernel(
        MaternKernel(2.5, batch_shape=torch.Size([2]), ard_num_dims=2), batch_shape=torch.Size([2])
    ).double()
    kernel.base_kernel.lengthscale = torch.tensor([[[0.5, 1.0]], [[2.0, 0.7]]], dtype=DOUBLE)
    kernel.outputscale = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    x, pattern = random(21, 2), dense.random_pattern(21, 4)
    covariance, variance = by_kernel(kernel, x)
    assert variance.shape == (2, 21)
    for nugget in (
        torch.tensor(0.1),
        random(21).abs(),
        random(2, 21).abs(),
        random(3, 1, 21).abs(),
    ):
        args = pattern.neighbors, everyone(21), nugget.double()
        if nugget.dim() == 3:
            K = full(kernel, x).expand(3, 2, 21, 21)
            wide = lambda i, j: covariance(i, j).expand(3, 2, -1)  # noqa: E731
            found = inverse_columns(wide, variance, *args)
            args = (*args[:2], args[2].expand(3, 2, 21))
        else:
            K = full(kernel, x)
            found = inverse_columns(covariance, variance, *args, schedule=pattern.schedule)
        expected = reference(K, *args)
        close(found, expected)
        weights = random(*found.shape)
        parameters = list(kernel.parameters())
        ours = torch.autograd.grad((found * weights).sum(), parameters, retain_graph=True)
        theirs = torch.autograd.grad((expected * weights).sum(), parameters)
        for one, other in zip(ours, theirs, strict=True):
            close(one, other, 1e-8)


def test_shared_covariances_with_a_batch_of_nuggets(engine: str, dense: Any) -> None:
    kernel, x, pattern = RBFKernel().double(), random(12, 1), dense.random_pattern(12, 3)
    covariance, variance = by_kernel(kernel, x)
    nugget = (0.1 + random(2, 12).abs()).requires_grad_()
    args = pattern.neighbors, everyone(12), nugget
    found = inverse_columns(covariance, variance, *args)
    expected = reference(full(kernel, x).expand(2, 12, 12), *args)
    close(found, expected)
    leaves = [nugget, *kernel.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        close(ours, theirs, 1e-8)


def test_gradcheck(engine: str, dense: Any) -> None:
    x, pattern = random(9, 2), dense.random_pattern(9, 3, ragged=True)
    ell, scale = torch.tensor([0.8, 1.3], dtype=DOUBLE), torch.tensor(1.5, dtype=DOUBLE)

    def columns(x: Tensor, ell: Tensor, scale: Tensor, nugget: Tensor) -> Tensor:
        def covariance(i: Tensor, j: Tensor) -> Tensor:
            # Not stationary: the scale grows with the first coordinate.
            grown = (0.1 * (x[i, 0] + x[j, 0])).exp()
            return scale * grown * (-0.5 * ((x[i] - x[j]) / ell).square().sum(-1)).exp()

        variance = scale * (0.2 * x[:, 0]).exp()
        return inverse_columns(
            covariance, variance, pattern.neighbors, everyone(9), nugget, schedule=pattern.schedule
        )

    for nugget in (torch.tensor(0.2, dtype=DOUBLE), 0.1 + random(9).abs()):
        inputs = tuple(t.clone().requires_grad_() for t in (x, ell, scale, nugget))
        assert torch.autograd.gradcheck(columns, inputs)


def test_engines_agree(monkeypatch: pytest.MonkeyPatch, dense: Any) -> None:
    x, kernel = random(70, 3), MaternKernel(1.5).double()
    pattern = dense.random_pattern(70, 9, ragged=True)
    found = []
    for route in (None, TensorEngine()):
        if route is not None:
            monkeypatch.setattr(module, "_engine", lambda like, route=route: route)
        inputs, nugget = (
            x.clone().requires_grad_(),
            torch.tensor(0.01, dtype=DOUBLE).requires_grad_(),
        )
        covariance, variance = by_kernel(kernel, inputs)
        columns = inverse_columns(
            covariance, variance, pattern.neighbors, everyone(70), nugget, schedule=pattern.schedule
        )
        leaves = [inputs, nugget, *kernel.parameters()]
        found.append(
            [columns, *torch.autograd.grad((columns * random(*columns.shape)).sum(), leaves)]
        )
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs)


# --- chunks ---------------------------------------------------------------------------------------


def test_chunks_and_recomputed_chunks_agree(
    engine: str, monkeypatch: pytest.MonkeyPatch, dense: Any
) -> None:
    x, pattern = random(60, 2), dense.random_pattern(60, 4, ragged=True)
    kernel = (ScaleKernel(MaternKernel(1.5)) + LinearKernel()).double()
    calls = []

    def evaluate() -> list[Tensor]:
        inputs = x.clone().requires_grad_()
        nugget = torch.tensor(0.3, dtype=DOUBLE).requires_grad_()
        covariance, variance = by_kernel(kernel, inputs)

        def counted(i: Tensor, j: Tensor) -> Tensor:
            calls.append(len(i))
            return covariance(i, j)

        columns = inverse_columns(
            counted, variance, pattern.neighbors, everyone(60), nugget, schedule=pattern.schedule
        )
        leaves = [inputs, nugget, *kernel.parameters()]
        total = (columns * random(*columns.shape)).sum()
        first = torch.autograd.grad(total, leaves, retain_graph=True)
        again = torch.autograd.grad(total, leaves)
        for one, other in zip(first, again, strict=True):
            close(one, other)
        return [columns, *first]

    whole = evaluate()
    assert len(calls) == 1
    monkeypatch.setattr(module, "_MIN_CHUNK_ROWS", 1)
    monkeypatch.setattr(module, "_CHUNK_ENTRIES", 70)  # seven rows of ten entries
    calls.clear()
    chunked = evaluate()
    assert len(calls) == 9
    monkeypatch.setattr(module, "_KEPT_ENTRIES", 200)  # two chunks; the other seven twice again
    calls.clear()
    recomputed = evaluate()
    assert len(calls) == 9 + 2 * 7
    for one, two, three in zip(whole, chunked, recomputed, strict=True):
        close(one, two)
        close(one, three)
    calls.clear()
    with torch.no_grad():
        covariance, variance = by_kernel(kernel, x)
        args = pattern.neighbors, everyone(60), torch.tensor(0.3, dtype=DOUBLE)
        close(inverse_columns(covariance, variance, *args), whole[0])


def test_what_is_recomputed_holds_no_graph(monkeypatch: pytest.MonkeyPatch, dense: Any) -> None:
    pattern = dense.random_pattern(40, 4)
    monkeypatch.setattr(module, "_MIN_CHUNK_ROWS", 1)
    monkeypatch.setattr(module, "_CHUNK_ENTRIES", 100)
    ell = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    x = random(40)

    def run(kept: int) -> tuple[Tensor, int]:
        monkeypatch.setattr(module, "_KEPT_ENTRIES", kept)
        held: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            columns = inverse_columns(
                lambda i, j: (-((x[i] - x[j]) / ell).square()).exp(),
                torch.ones(40, dtype=DOUBLE),
                pattern.neighbors,
                everyone(40),
                torch.tensor(0.1, dtype=DOUBLE),
            )
        return torch.autograd.grad(columns.sum(), ell)[0], sum(held)

    (plain, much), (recomputed, little) = run(10**9), run(0)
    close(plain, recomputed)
    # Columns have 200 entries; the matrices' 400 pairs, index and covariances are not kept.
    assert little < 500 < 1200 < much


# --- rows -----------------------------------------------------------------------------------------


def test_no_neighbours_and_no_rows(engine: str) -> None:
    variance = torch.tensor([1.0, 4.0], dtype=DOUBLE, requires_grad=True)

    def never(i: Tensor, j: Tensor) -> Tensor:
        raise AssertionError("there are no pairs")

    own, nugget = everyone(2), torch.tensor(0.0, dtype=DOUBLE)
    found = inverse_columns(never, variance, torch.empty(2, 0, dtype=torch.int32), own, nugget)
    close(found, variance.detach().rsqrt().unsqueeze(-1))
    close(torch.autograd.grad(found.sum(), variance)[0], -0.5 * variance.detach() ** -1.5)
    padded = inverse_columns(never, variance, numbers([[-1, -1], [-1, -1]]), own, nugget)
    close(padded, torch.cat([torch.zeros(2, 2, dtype=DOUBLE), found.detach()], -1))
    close(torch.autograd.grad(padded.sum(), variance)[0], -0.5 * variance.detach() ** -1.5)
    empty = inverse_columns(never, variance, torch.empty(0, 3, dtype=torch.int32), own[:0], nugget)
    assert empty.shape == (0, 4)


def test_some_rows_and_rows_behind(engine: str, dense: Any) -> None:
    kernel, x = RBFKernel().double(), random(25, 2)
    covariance, variance = by_kernel(kernel, x)
    nugget = torch.tensor(0.05, dtype=DOUBLE)
    pattern = dense.random_pattern(20, 4)
    whole = inverse_columns(covariance, variance, pattern.neighbors, everyone(20), nugget)
    chosen = torch.tensor([17, 3, 11])
    part = inverse_columns(
        covariance,
        variance,
        pattern.neighbors[chosen],
        chosen.to(torch.int32),
        nugget,
        schedule=numbers([2, 0, 1]),
    )
    close(part, whole[chosen])
    # New points behind, on any others, several times the same.
    neighbors, own = (
        numbers([[0, 5, 24], [2, 3, 23], [2, 3, 23], [4, -1, -1]]),
        numbers([22, 21, 21, 24]),
    )
    found = inverse_columns(covariance, variance, neighbors, own, nugget)
    close(found, reference(full(kernel, x), neighbors, own, nugget))


def test_gradients_of_unused_slots_are_ignored(engine: str) -> None:
    variance = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    neighbors = numbers([[-1, -1], [0, -1], [0, 1]])
    columns = inverse_columns(
        lambda i, j: torch.full(i.shape, 0.5, dtype=DOUBLE),
        variance,
        neighbors,
        everyone(3),
        torch.tensor(0.0, dtype=DOUBLE),
    )
    clean = torch.ones_like(columns)
    dirty = clean.clone()
    dirty[0, :2] = dirty[1, 1] = math.nan
    (expected,) = torch.autograd.grad(columns, variance, clean, retain_graph=True)
    close(torch.autograd.grad(columns, variance, dirty)[0], expected)


def test_float32_is_factorised_in_double(engine: str, dense: Any) -> None:
    x, pattern = random(30, 2), dense.random_pattern(30, 5)
    results = {}
    for dtype in (torch.float32, DOUBLE):
        kernel = RBFKernel().to(dtype)
        covariance, variance = by_kernel(kernel, x.float().to(dtype))
        nugget = torch.tensor(0.1, dtype=dtype, requires_grad=True)
        columns = inverse_columns(covariance, variance, pattern.neighbors, everyone(30), nugget)
        assert columns.dtype == dtype
        slopes = torch.autograd.grad(columns.square().sum(), [nugget, kernel.raw_lengthscale])
        assert all(slope.dtype == dtype for slope in slopes)
        results[dtype] = [columns.detach(), *slopes]
    for ours, theirs in zip(*results.values(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-5)


# --- densities ------------------------------------------------------------------------------------


def test_row_densities_are_conditional_densities(engine: str, dense: Any) -> None:
    T = 18
    kernel, x, pattern = MaternKernel(0.5).double(), random(T, 1), dense.full_pattern(T)
    noise = torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)
    covariance, variance = by_kernel(kernel, x)
    y = random(3, T, seed=5).requires_grad_()
    columns = inverse_columns(covariance, variance, pattern.neighbors, everyone(T), noise)
    rows = row_log_densities(columns, pattern.neighbors, everyone(T), y)
    assert rows.shape == (3, T)
    total = full(kernel, x) + noise * torch.eye(T, dtype=DOUBLE)
    exact = gpytorch.distributions.base_distributions.MultivariateNormal(
        torch.zeros(T, dtype=DOUBLE), total
    ).log_prob(y)
    close(rows.sum(-1), exact)
    leaves = [y, noise, *kernel.parameters()]
    ours = torch.autograd.grad(rows.sum(), leaves)
    for one, other in zip(ours, torch.autograd.grad(exact.sum(), leaves), strict=True):
        close(one, other, 1e-8)


def test_row_densities_of_some_rows_and_batches(dense: Any) -> None:
    pattern = dense.random_pattern(10, 3, ragged=True)
    columns = dense.random_columns(pattern, (2,))
    y = random(2, 10)
    rows = row_log_densities(columns, pattern.neighbors, everyone(10), y)
    residual = (dense.dense_factor(pattern, columns).mT @ y.unsqueeze(-1)).squeeze(-1)
    expected = columns[..., -1].log() - 0.5 * residual.square() - 0.5 * math.log(2 * math.pi)
    close(rows, expected)
    some = torch.tensor([7, 2])
    close(
        row_log_densities(columns[:, some], pattern.neighbors[some], some.to(torch.int32), y),
        expected[:, some],
    )
    with pytest.raises(InputError, match=r"columns have shape \(2, 10, 3\)"):
        row_log_densities(columns[..., 1:], pattern.neighbors, everyone(10), y)
    with pytest.raises(InputError, match="there are 5 points"):
        row_log_densities(columns, pattern.neighbors, everyone(10), y[:, :5])
    with pytest.raises(InputError, match="expected columns"):
        row_log_densities(columns, pattern.neighbors, everyone(10), y.sum())


# --- errors ---------------------------------------------------------------------------------------


def simple(**changes: Any) -> Tensor:
    """Three points in a row, with some arguments replaced."""
    x = torch.tensor([0.0, 1.0, 2.0], dtype=DOUBLE)
    arguments: dict[str, Any] = {
        "covariance": lambda i, j: (-(x[i] - x[j]).square()).exp(),
        "variance": torch.ones(3, dtype=DOUBLE),
        "neighbors": numbers([[-1, -1], [0, -1], [0, 1]]),
        "own": everyone(3),
        "nugget": torch.tensor(0.1, dtype=DOUBLE),
        **changes,
    }
    return inverse_columns(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"own": everyone(3).long()}, "int32"),
        ({"own": everyone(2)}, r"own torch.int32 \(2,\)"),
        ({"own": numbers([0, 1, 3])}, "own of row 2 is 3; there are 3 points"),
        ({"neighbors": numbers([[-1, -1], [0, -1], [1, 0]])}, r"row 2 \(point 2\) are \[1, 0\]"),
        ({"neighbors": numbers([[-1, -1], [-1, 0], [0, 1]])}, r"row 1 \(point 1\) are \[-1, 0\]"),
        ({"neighbors": numbers([[-1, -1], [1, -1], [0, 1]])}, "other points"),
        ({"neighbors": numbers([[-1, -1], [0, -1], [0, 7]])}, "from 0 to 2"),
        ({"neighbors": numbers([-1, 0, 1])}, r"\[R, m\]"),
        ({"schedule": numbers([0, 0, 1])}, "permutation"),
        ({"schedule": numbers([0, 1])}, r"schedule torch.int32 \(2,\)"),
        ({"nugget": torch.tensor(-0.1)}, "smallest entry is -0.1"),
        ({"nugget": torch.ones(2)}, r"nugget \(2,\)"),
        ({"nugget": torch.tensor(1)}, "torch.int64"),
        ({"variance": torch.tensor(1.0)}, r"variance \(\)"),
        ({"variance": torch.ones(2, 3), "nugget": torch.ones(3, 3)}, "do not broadcast"),
        ({"covariance": lambda i, j: torch.ones(len(i), len(i))}, r"shape \(3, 3\) for 3 pairs"),
        (
            {"covariance": lambda i, j: torch.ones(2, len(i))},
            r"must return a tensor of shape \(3,\)",
        ),
        ({"covariance": lambda i, j: [0.0] * len(i)}, "returned list"),
        ({"covariance": lambda i, j: i}, "torch.int64"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simple(**changes)


def test_a_block_without_a_factor_is_named(engine: str) -> None:
    x = torch.tensor([0.0, 1.0, 1.0], dtype=DOUBLE)
    message = (
        r"row 2 \(point 2 and 2 neighbours, size 3, float64\) is not positive definite.*largest "
        r"correlation 1 of points 1 and 2. Raise the nugget, or merge"
    )
    for schedule in (None, numbers([2, 0, 1])):
        with pytest.raises(NotPositiveDefiniteError, match=message):
            simple(
                covariance=lambda i, j: (-(x[i] - x[j]).square()).exp(),
                nugget=torch.tensor(0.0, dtype=DOUBLE),
                schedule=schedule,
            )
    with pytest.raises(NotPositiveDefiniteError, match="row 2 of batch element 1"):
        simple(
            covariance=lambda i, j: (-(x[i] - x[j]).square()).exp(),
            nugget=torch.tensor([[0.1], [0.0]], dtype=DOUBLE),
        )
    with pytest.raises(
        NotPositiveDefiniteError, match=r"row 1 .* smallest variance plus nugget -1"
    ):
        simple(
            variance=torch.tensor([1.0, -1.0, 1.0], dtype=DOUBLE),
            nugget=torch.tensor(0.0, dtype=DOUBLE),
        )


def test_nan_is_no_matter_of_the_nugget(engine: str) -> None:
    def broken(i: Tensor, j: Tensor) -> Tensor:
        return torch.where(i + j == 3, math.nan, 0.5).double()

    with pytest.raises(NumericalError, match=r"row 2 .* has NaN") as caught:
        simple(covariance=broken)
    assert not isinstance(caught.value, NotPositiveDefiniteError)
    with pytest.raises(NumericalError, match=r"row 0 .* has NaN"):
        simple(variance=torch.tensor([math.nan, 1.0, 1.0], dtype=DOUBLE))


def test_second_derivatives_are_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kept in (10**6, 0):
        monkeypatch.setattr(module, "_KEPT_ENTRIES", kept)
        nugget = torch.tensor(0.1, dtype=DOUBLE, requires_grad=True)
        with pytest.raises(UnsupportedError, match="differentiable once"):
            torch.autograd.grad(simple(nugget=nugget).sum(), nugget, create_graph=True)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "gpvi.linalg.sparse_inverse._pair_columns_cpu", None)
    module._compiled_engine.cache_clear()
    yield
    module._compiled_engine.cache_clear()


def test_without_numba_tensors_serve(without_numba: None) -> None:
    with pytest.warns(EngineWarning, match="sparse inverse Cholesky columns"):
        columns = simple()
    assert columns.shape == (3, 3)
