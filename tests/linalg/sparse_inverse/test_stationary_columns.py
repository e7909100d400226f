"""Columns of stationary kernels against dense conditionals, both engines, and the two-pass gradient."""

import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import EngineWarning, InputError, NotPositiveDefiniteError, NumericalError
from gpvi.linalg.sparse_inverse.stationary_columns import stationary_inverse_columns
from gpvi.linalg.stationary import STATIONARY_KERNELS, stationary_value

module = importlib.import_module("gpvi.linalg.sparse_inverse.stationary_columns")

PARAMETERS = ("lengthscale", "outputscale", "nugget")
names = pytest.mark.parametrize("name", STATIONARY_KERNELS)
nuggets = pytest.mark.parametrize("per_point", [False, True], ids=["one", "per point"])


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with either engine."""
    if request.param == "tensor":
        monkeypatch.setattr(module, "_compiled_engine", lambda: None)
    return request.param


def nearest(x: Tensor, m: int) -> Tensor:
    rows = torch.full((len(x), m), -1, dtype=torch.int32)
    for i in range(len(x)):
        count = min(i, m)
        near = torch.cdist(x[i : i + 1], x[:i])[0].topk(count, largest=False).indices
        rows[i, :count] = near.sort().values.int()
    return rows


def problem(
    T: int = 41,
    D: int = 2,
    m: int = 6,
    *,
    shared: bool = False,
    per_point: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    points = torch.randn(T, D, generator=generator, dtype=torch.float64)
    return {
        "points": points,
        "neighbors": nearest(points, m),
        "own": torch.arange(T, dtype=torch.int32),
        "lengthscale": D**0.5 * (0.5 + 0.5 * uniform(1 if shared else D)),
        "outputscale": torch.tensor(1.3, dtype=torch.float64),
        "nugget": 0.01 + 0.1 * uniform(T) if per_point else torch.tensor(0.05).double(),
    }


def with_gradients(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone().requires_grad_(k in PARAMETERS) for k, v in p.items()}


def covariance(name: str, p: dict[str, Tensor]) -> Tensor:
    difference = (p["points"][:, None] - p["points"]) / p["lengthscale"]
    kernel = p["outputscale"] * stationary_value(name, difference.square().sum(-1))
    return kernel + p["nugget"].expand(len(kernel)).diag()


def dense(name: str, p: dict[str, Tensor]) -> Tensor:
    """Columns from conditional moments: 1 / sd on the own place, -weights / sd on the others."""
    K = covariance(name, p)
    out = torch.zeros(len(p["own"]), p["neighbors"].shape[1] + 1, dtype=torch.float64)
    for r, own in enumerate(p["own"].tolist()):
        others = p["neighbors"][r][p["neighbors"][r] >= 0].long()
        weights = torch.linalg.solve(K[others][:, others], K[others, own])
        deviation = (K[own, own] - weights @ K[others, own]).sqrt()
        out[r, : len(others)], out[r, -1] = -weights / deviation, 1.0 / deviation
    return out


def gradient(name: str, p: dict[str, Tensor], seed: int = 1, **options: Any) -> list[Tensor]:
    leaves = with_gradients(p)
    columns = stationary_inverse_columns(name, **leaves, **options)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(columns.shape, generator=generator, dtype=torch.float64)
    total = (weights.to(columns.device) * columns).sum()
    return list(torch.autograd.grad(total, [leaves[key] for key in PARAMETERS]))


def close(mine: Any, theirs: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)


# --- values ---------------------------------------------------------------------------------------


@names
@nuggets
@pytest.mark.parametrize("shared", [False, True], ids=["ARD", "one lengthscale"])
@pytest.mark.parametrize("D", [1, 2, 5, 18])
def test_equals_dense_conditionals(
    name: str, D: int, shared: bool, per_point: bool, engine: str
) -> None:
    p = problem(D=D, shared=shared, per_point=per_point)
    close(stationary_inverse_columns(name, **p), dense(name, p))


@pytest.mark.parametrize(("T", "m"), [(1, 3), (2, 1), (3, 8), (9, 8), (5, 0), (30, 13)])
def test_sizes(T: int, m: int, engine: str) -> None:
    p = problem(T, 2, m)
    columns = stationary_inverse_columns("matern32", **p)
    assert columns.shape == (T, m + 1)
    assert bool((columns[:, :-1][p["neighbors"] < 0] == 0.0).all())
    close(columns, dense("matern32", p))
    assert all(torch.isfinite(part).all() for part in gradient("matern32", p))


def test_all_earlier_points_give_the_inverse_factor(engine: str) -> None:
    T = 12
    p = problem(T, 2, T - 1)
    columns = stationary_inverse_columns("matern52", **p)
    U = torch.zeros(T, T, dtype=torch.float64)
    for i in range(T):
        U[:i, i], U[i, i] = columns[i, :i], columns[i, -1]
    close(U @ U.mT, torch.linalg.inv(covariance("matern52", p)), 1e-8)


def test_some_rows_and_rows_behind_the_others(engine: str) -> None:
    p = problem(50, 2, 5, per_point=True)
    some = torch.randperm(50, generator=torch.Generator().manual_seed(3))[:17]
    part = p | {"own": p["own"][some], "neighbors": p["neighbors"][some]}
    whole = stationary_inverse_columns("rbf", **p)
    close(stationary_inverse_columns("rbf", **part), whole[some], 1e-13)
    # New points condition on the first 40 only, whatever lies between them and those.
    behind = torch.tensor([[3, 20, 39], [1, -1, -1], [-1, -1, -1]], dtype=torch.int32)
    new = p | {"own": torch.tensor([49, 40, 45], dtype=torch.int32), "neighbors": behind}
    close(stationary_inverse_columns("rbf", **new), dense("rbf", new))


def test_the_order_of_visits_does_not_show(engine: str) -> None:
    p = problem(50, 2, 5)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(5)).int()
    scheduled = stationary_inverse_columns("matern12", **p, schedule=order)
    close(scheduled, stationary_inverse_columns("matern12", **p), 1e-14)
    for mine, theirs in zip(
        gradient("matern12", p, schedule=order), gradient("matern12", p), strict=True
    ):
        close(mine, theirs, 1e-12)


def test_no_rows(engine: str) -> None:
    p = problem(5)
    p |= {"own": p["own"][:0], "neighbors": p["neighbors"][:0]}
    assert stationary_inverse_columns("rbf", **p).shape == (0, 7)
    assert all(bool((part == 0.0).all()) for part in gradient("rbf", p))


def test_tensors_need_not_be_contiguous(engine: str) -> None:
    p = problem(20, 3, 4)
    strided = p | {
        "points": p["points"].mT.contiguous().mT,
        "neighbors": p["neighbors"].mT.contiguous().mT,
        "own": torch.stack([p["own"], p["own"]], -1)[:, 0],
        "lengthscale": p["lengthscale"].mean().expand(3),
        "nugget": p["nugget"].expand(20),
    }
    plain = {key: value.contiguous() for key, value in strided.items()}
    columns = stationary_inverse_columns("rbf", **strided)
    close(columns, stationary_inverse_columns("rbf", **plain), 1e-13)
    leaves = with_gradients(plain)
    stationary_inverse_columns("rbf", **leaves).sum().backward()  # a cotangent with strides zero
    assert bool(leaves["lengthscale"].grad.abs().max() > 0)


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-50.0, 50.0), scale=st.floats(0.1, 10.0), seed=st.integers(0, 100))
def test_invariances(shift: float, scale: float, seed: int) -> None:
    p = problem(15, 2, 4, seed=seed)
    columns = stationary_inverse_columns("matern32", **p)
    moved = p | {"points": scale * (p["points"] + shift), "lengthscale": scale * p["lengthscale"]}
    close(stationary_inverse_columns("matern32", **moved), columns, 1e-9)
    louder = p | {key: scale * p[key] for key in ("outputscale", "nugget")}
    close(stationary_inverse_columns("matern32", **louder), columns / scale**0.5, 1e-9)


# --- gradients ------------------------------------------------------------------------------------


@names
@nuggets
@pytest.mark.parametrize("shared", [False, True], ids=["ARD", "one lengthscale"])
@pytest.mark.parametrize("D", [1, 3])
def test_adjoint(name: str, D: int, shared: bool, per_point: bool, engine: str) -> None:
    p = problem(9, D, 4, shared=shared, per_point=per_point)
    p |= {"own": p["own"][1:], "neighbors": p["neighbors"][1:]}

    def columns(*parameters: Tensor) -> Tensor:
        return stationary_inverse_columns(
            name, **p | dict(zip(PARAMETERS, parameters, strict=True))
        )

    leaves = with_gradients(p)
    assert torch.autograd.gradcheck(columns, tuple(leaves[key] for key in PARAMETERS))


def test_adjoint_in_many_coordinates(engine: str) -> None:
    p = problem(9, 7, 4)

    def columns(lengthscale: Tensor) -> Tensor:
        return stationary_inverse_columns("matern52", **p | {"lengthscale": lengthscale})

    assert torch.autograd.gradcheck(columns, (p["lengthscale"].requires_grad_(),))


@pytest.mark.parametrize("wanted", PARAMETERS)
@nuggets
def test_only_what_is_asked_for(wanted: str, per_point: bool, engine: str) -> None:
    p = problem(20, per_point=per_point)
    everything = dict(zip(PARAMETERS, gradient("rbf", p), strict=True))
    leaves = {key: value.clone().requires_grad_(key == wanted) for key, value in p.items()}
    columns = stationary_inverse_columns("rbf", **leaves)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(columns.shape, generator=generator, dtype=torch.float64)
    (columns * weights).sum().backward()
    close(leaves[wanted].grad, everything[wanted], 1e-13)
    assert all(leaves[key].grad is None for key in PARAMETERS if key != wanted)


def test_second_derivatives_are_refused(engine: str) -> None:
    leaves = with_gradients(problem(8))
    columns = stationary_inverse_columns("rbf", **leaves)
    (first,) = torch.autograd.grad(columns.square().sum(), leaves["outputscale"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.backward()


def test_two_backward_passes(engine: str) -> None:
    leaves = with_gradients(problem(20))
    columns = stationary_inverse_columns("rbf", **leaves)
    first, second = (
        torch.autograd.grad(columns.sum(), leaves["lengthscale"], retain_graph=True)[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)


# --- engines --------------------------------------------------------------------------------------


@names
@nuggets
@pytest.mark.parametrize(("T", "D", "m"), [(83, 2, 20), (64, 18, 9), (40, 50, 7)])
def test_engines_agree(
    name: str, per_point: bool, T: int, D: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(T, D, m, per_point=per_point)
    mine = [stationary_inverse_columns(name, **p), *gradient(name, p)]
    monkeypatch.setattr(module, "_compiled_engine", lambda: None)
    tensor_rows = importlib.import_module("gpvi.linalg.sparse_inverse._rows_tensor")
    monkeypatch.setattr(tensor_rows, "_CHUNK_ENTRIES", 7 * (m + 1) ** 2)  # several chunks
    theirs = [stationary_inverse_columns(name, **p), *gradient(name, p)]
    for left, right in zip(mine, theirs, strict=True):
        close(left, right)


@pytest.mark.parametrize("workers", [2, 3])
@nuggets
def test_threads_do_not_show(
    workers: int, per_point: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(101, per_point=per_point)
    uncut = [stationary_inverse_columns("matern52", **p), *gradient("matern52", p)]
    compiled = importlib.import_module("gpvi.linalg.sparse_inverse._rows_cpu")
    monkeypatch.setattr(compiled, "_MIN_CUT_ROWS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = [stationary_inverse_columns("matern52", **p), *gradient("matern52", p)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)
    together = [stationary_inverse_columns("matern52", **p), *gradient("matern52", p)]
    for one, mine, theirs in zip(uncut, alone, together, strict=True):
        assert torch.equal(mine, theirs)
        close(mine, one, 1e-12)


def test_callable_from_several_threads() -> None:
    problems = [problem(60, seed=seed) for seed in range(6)]
    expected = [gradient("matern52", p) for p in problems]
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(lambda p: gradient("matern52", p), problems)
        for mine, theirs in zip(expected, results, strict=True):
            assert all(map(torch.equal, mine, theirs))


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "gpvi.linalg.sparse_inverse._rows_cpu", None)
    module._compiled_engine.cache_clear()
    yield
    module._compiled_engine.cache_clear()


def test_without_numba_the_tensor_engine_serves(without_numba: None) -> None:
    p = problem()
    with pytest.warns(EngineWarning, match="tensor operations serve instead"):
        columns = stationary_inverse_columns("rbf", **p)
    assert torch.equal(stationary_inverse_columns("rbf", **p), columns)  # warns once
    close(columns, dense("rbf", p))


@names
def test_float32(name: str, engine: str) -> None:
    p = problem(per_point=True)
    low = {key: v.float() if v.is_floating_point() else v for key, v in p.items()}
    leaves = with_gradients(low)
    columns = stationary_inverse_columns(name, **leaves)
    assert columns.dtype == torch.float32
    close(columns.double(), stationary_inverse_columns(name, **p), 2e-4)
    columns.sum().backward()
    double = with_gradients(p)
    stationary_inverse_columns(name, **double).sum().backward()
    for key in PARAMETERS:
        assert leaves[key].grad.dtype == torch.float32
        close(leaves[key].grad.double(), double[key].grad, 5e-3)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    p = problem(60, per_point=True)
    there = {key: value.cuda() for key, value in p.items()}
    close(stationary_inverse_columns("matern32", **there).cpu(), dense("matern32", p))
    for mine, theirs in zip(gradient("matern32", there), gradient("matern32", p), strict=True):
        close(mine.cpu(), theirs)


# --- refusals -------------------------------------------------------------------------------------


def test_coincident_points_need_a_nugget(engine: str) -> None:
    p = problem(12, 2, 4)
    p["points"][7] = p["points"][3]
    p["neighbors"][7] = torch.tensor([0, 2, 3, 4])
    close(stationary_inverse_columns("rbf", **p), dense("rbf", p))
    assert all(torch.isfinite(part).all() for part in gradient("matern12", p))
    p["nugget"] = torch.zeros((), dtype=torch.float64)
    with pytest.raises(
        NotPositiveDefiniteError,
        match=r"row 7 \(point 7 and 4 neighbours.*nearest neighbour of point 7 is 0 lengthscales away"
        r".* are 3 and 7, 0 lengthscales apart\. Raise the nugget .* or merge",
    ):
        stationary_inverse_columns("rbf", **p)


def test_no_nugget_is_allowed_where_the_kernel_bears_it(engine: str) -> None:
    p = problem(20) | {"nugget": torch.zeros((), dtype=torch.float64)}
    close(stationary_inverse_columns("matern12", **p), dense("matern12", p))
    lonely = problem(3, 2, 0) | {"nugget": torch.zeros(()).double()}
    lonely["outputscale"] = torch.tensor(1e-300, dtype=torch.float64)
    close(
        stationary_inverse_columns("rbf", **lonely)[:, 0],
        torch.full((3,), 1e150, dtype=torch.float64),
    )


def changed(**changes: Tensor) -> dict[str, Tensor]:
    return problem(10, 2, 3) | changes


def numbers(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


ONE = torch.ones((), dtype=torch.float64)
PAIR = {"own": numbers(4, 5)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed(points=problem(10)["points"].requires_grad_()), "requires a gradient"),
        (changed(points=torch.zeros(10).double()), r"expected points \[T, D\]"),
        (changed(points=torch.full((10, 2), torch.nan).double()), "points holds NaN"),
        (changed(points=torch.zeros(10, 2, dtype=torch.int64)), "one floating-point dtype"),
        (changed(lengthscale=torch.ones(3).double()), r"lengthscale \(3,\)"),
        (changed(lengthscale=-ONE.reshape(1)), "lengthscale must be positive"),
        (changed(outputscale=0.0 * ONE), "outputscale must be positive"),
        (changed(outputscale=ONE.float()), "one floating-point dtype"),
        (changed(nugget=-ONE), "nugget must not be negative"),
        (changed(nugget=torch.ones(4).double()), r"nugget \(4,\)"),
        (changed(own=torch.arange(10)), "expected int32 numbers"),
        (changed(own=numbers(4, 5)), r"own \(2,\)"),
        (changed(neighbors=numbers([3], [10]), **PAIR), r"row 1 \(point 5\) are \[10\]"),
        (changed(neighbors=numbers([3], [-2]), **PAIR), r"row 1 \(point 5\) are \[-2\]"),
        (changed(neighbors=numbers([4], [2]), **PAIR), r"row 0 \(point 4\) are \[4\]"),
        (changed(neighbors=numbers([1, 2], [2, 2]), **PAIR), r"are \[2, 2\]"),
        (changed(neighbors=numbers([1, 2], [-1, 2]), **PAIR), r"are \[-1, 2\]"),
        (changed(neighbors=numbers([1, -1], [3, 2]), **PAIR), r"are \[3, 2\]; .* ascending"),
        (changed(neighbors=numbers([1], [2]), own=numbers(4, 10)), "numbers from 4 to 10"),
        (changed(neighbors=numbers([1], [2]), own=numbers(-1, 4)), "numbers from -1 to 4"),
        (changed(schedule=numbers(0, 1)), r"schedule \(2,\)"),
        (changed(schedule=numbers(*range(9), 8)), "not a permutation"),
        (changed(schedule=numbers(*range(9), 10)), "not a permutation"),
    ],
)
def test_bad_input(arguments: dict[str, Tensor], message: str, engine: str) -> None:
    with pytest.raises(InputError, match=message):
        stationary_inverse_columns("rbf", **arguments)


def test_bad_parameters(engine: str) -> None:
    with pytest.raises(InputError, match="unknown stationary kernel 'linear'"):
        stationary_inverse_columns("linear", **problem())
    with pytest.raises(NumericalError, match="outputscale holds NaN"):
        stationary_inverse_columns("rbf", **changed(outputscale=torch.nan * ONE))
    with pytest.raises(NumericalError, match="1e100 times the smallest lengthscale"):
        stationary_inverse_columns("rbf", **changed(lengthscale=1e-150 * ONE.reshape(1)))
