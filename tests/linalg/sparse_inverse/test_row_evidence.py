"""Vecchia log evidence of stationary kernels against dense conditional densities, both engines."""

import importlib
import math
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
from gpvi.linalg import stationary_log_evidence
from gpvi.linalg.sparse_inverse.row_evidence import row_log_evidence
from gpvi.linalg.sparse_inverse.stationary_columns import stationary_inverse_columns
from gpvi.linalg.stationary import STATIONARY_KERNELS, stationary_value

module = importlib.import_module("gpvi.linalg.sparse_inverse.row_evidence")

PARAMETERS = ("targets", "lengthscale", "outputscale", "noise")
names = pytest.mark.parametrize("name", STATIONARY_KERNELS)
noises = pytest.mark.parametrize("per_point", [False, True], ids=["one", "per point"])


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
        "targets": points.sum(-1).sin() + 0.3 * uniform(T),
        "neighbors": nearest(points, m),
        "own": torch.arange(T, dtype=torch.int32),
        "lengthscale": D**0.5 * (0.5 + 0.5 * uniform(1 if shared else D)),
        "outputscale": torch.tensor(1.3, dtype=torch.float64),
        "noise": 0.05 + 0.2 * uniform(T) if per_point else torch.tensor(0.1).double(),
    }


def with_gradients(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone().requires_grad_(k in PARAMETERS) for k, v in p.items()}


def conditionals(name: str, p: dict[str, Tensor]) -> Tensor:
    """Log density of every own target given those of the neighbours."""
    difference = (p["points"][:, None] - p["points"]) / p["lengthscale"]
    K = p["outputscale"] * stationary_value(name, difference.square().sum(-1))
    K, y = K + p["noise"].expand(len(K)).diag(), p["targets"]
    densities = []
    for r, own in enumerate(p["own"].tolist()):
        others = p["neighbors"][r][p["neighbors"][r] >= 0].long()
        weights = torch.linalg.solve(K[others][:, others], K[others, own])
        variance = K[own, own] - weights @ K[others, own]
        normal = torch.distributions.Normal(weights @ y[others], variance.sqrt())
        densities.append(normal.log_prob(y[own]))
    return torch.stack(densities)


def run(name: str, p: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """Value and gradient."""
    leaves = with_gradients(p)
    value = row_log_evidence(name, **leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, [leaves[key] for key in PARAMETERS])]


def close(mine: Any, theirs: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)


# --- values ---------------------------------------------------------------------------------------


@names
@noises
@pytest.mark.parametrize("shared", [False, True], ids=["ARD", "one lengthscale"])
@pytest.mark.parametrize("D", [1, 2, 5, 18])
def test_equals_dense_conditionals(
    name: str, D: int, shared: bool, per_point: bool, engine: str
) -> None:
    p = problem(D=D, shared=shared, per_point=per_point)
    close(row_log_evidence(name, **p), conditionals(name, p).sum())


@pytest.mark.parametrize(("T", "m"), [(1, 3), (2, 1), (3, 8), (9, 8), (5, 0), (30, 13)])
def test_sizes(T: int, m: int, engine: str) -> None:
    p = problem(T, 2, m)
    close(row_log_evidence("matern32", **p), conditionals("matern32", p).sum())
    assert all(torch.isfinite(part).all() for part in run("matern32", p))


@noises
def test_all_earlier_points_give_the_exact_evidence(per_point: bool, engine: str) -> None:
    p = problem(30, 2, 29, per_point=per_point)
    leaves = with_gradients(p)
    dense = {"x" if key == "points" else key: value for key, value in leaves.items()}
    exact = stationary_log_evidence(
        "matern52", **{k: v for k, v in dense.items() if k not in ("neighbors", "own")}
    )
    gradient = torch.autograd.grad(exact, [leaves[key] for key in PARAMETERS])
    for mine, theirs in zip(run("matern52", p), [exact, *gradient], strict=True):
        close(mine, theirs, 1e-9)


@names
def test_is_what_the_columns_say(name: str) -> None:
    p = problem(per_point=True)
    mine, leaves = run(name, p), with_gradients(p)
    given = {key: value for key, value in leaves.items() if key not in ("targets", "noise")}
    columns = stationary_inverse_columns(name, **given, nugget=leaves["noise"])
    slots = torch.cat([p["neighbors"], p["own"][:, None]], -1)
    z = (columns * leaves["targets"][slots.clamp_min(0)]).sum(-1)
    terms = columns[:, -1].log() - 0.5 * z.square() - 0.5 * math.log(2.0 * math.pi)
    gradient = torch.autograd.grad(terms.sum(), [leaves[key] for key in PARAMETERS])
    for one, other in zip(mine, [terms.sum(), *gradient], strict=True):
        close(one, other)


@settings(max_examples=20, deadline=None)
@given(parts=st.integers(1, 7), seed=st.integers(0, 100))
def test_a_partition_of_the_rows_adds_up(parts: int, seed: int) -> None:
    p = problem(23, per_point=True, seed=seed)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(seed))
    pieces = [
        run("matern32", p | {"own": p["own"][some], "neighbors": p["neighbors"][some]})
        for some in order.chunk(parts)
    ]
    for whole, *some in zip(run("matern32", p), *pieces, strict=True):
        close(torch.stack(some).sum(0), whole, 1e-11)


def test_rows_behind_the_others(engine: str) -> None:
    p = problem(50, 2, 3)
    behind = torch.tensor([[3, 20, 39], [1, -1, -1], [-1, -1, -1]], dtype=torch.int32)
    p |= {"own": torch.tensor([49, 40, 45], dtype=torch.int32), "neighbors": behind}
    value, by_targets, *_ = run("rbf", p)
    close(value, conditionals("rbf", p).sum())
    assert by_targets.nonzero().ravel().tolist() == [1, 3, 20, 39, 40, 45, 49]


def test_the_order_of_visits_does_not_show(engine: str) -> None:
    p = problem(50, 2, 5, per_point=True)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(5)).int()
    for mine, theirs in zip(run("rbf", p, schedule=order), run("rbf", p), strict=True):
        close(mine, theirs, 1e-12)


def test_no_rows(engine: str) -> None:
    p = problem(5)
    value, *gradient = run("rbf", p | {"own": p["own"][:0], "neighbors": p["neighbors"][:0]})
    assert value == 0.0
    assert all(bool((part == 0.0).all()) for part in gradient)


# --- gradients ------------------------------------------------------------------------------------


@names
@noises
@pytest.mark.parametrize("shared", [False, True], ids=["ARD", "one lengthscale"])
@pytest.mark.parametrize("D", [1, 3])
def test_adjoint(name: str, D: int, shared: bool, per_point: bool, engine: str) -> None:
    p = problem(10, D, 4, shared=shared, per_point=per_point)
    p |= {"own": p["own"][1:], "neighbors": p["neighbors"][1:]}

    def value(*parameters: Tensor) -> Tensor:
        return row_log_evidence(name, **p | dict(zip(PARAMETERS, parameters, strict=True)))

    leaves = with_gradients(p)
    assert torch.autograd.gradcheck(value, tuple(leaves[key] for key in PARAMETERS))


@names
def test_gradient_against_finite_differences(name: str, engine: str) -> None:
    p, step = problem(120, 2, 12), 1e-5
    _, _, by_ell, by_s, by_noise = run(name, p)
    along = {"lengthscale": by_ell.sum(), "outputscale": by_s, "noise": by_noise}
    for key, derivative in along.items():
        ends = [row_log_evidence(name, **p | {key: p[key] + d}) for d in (step, -step)]
        close((ends[0] - ends[1]) / (2.0 * step), derivative, 1e-5)


@pytest.mark.parametrize("wanted", PARAMETERS)
@noises
def test_only_what_is_asked_for(wanted: str, per_point: bool, engine: str) -> None:
    p = problem(20, per_point=per_point)
    everything = dict(zip(PARAMETERS, run("rbf", p)[1:], strict=True))
    leaves = {key: value.clone().requires_grad_(key == wanted) for key, value in p.items()}
    (3.0 * row_log_evidence("rbf", **leaves)).backward()
    close(leaves[wanted].grad, 3.0 * everything[wanted], 1e-13)
    assert all(leaves[key].grad is None for key in PARAMETERS if key != wanted)


def test_no_gradient_is_computed_for_nothing(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    original = module.Needs

    def spy(*flags: bool) -> Any:
        asked.append(any(flags))
        return original(*flags)

    monkeypatch.setattr(module, "Needs", spy)
    leaves = with_gradients(problem(10))
    with torch.no_grad():
        quiet = row_log_evidence("rbf", **leaves)
    loud = row_log_evidence("rbf", **leaves)
    assert asked == [False, True]
    assert torch.equal(quiet, loud.detach()) and not quiet.requires_grad


def test_second_derivatives_are_refused(engine: str) -> None:
    leaves = with_gradients(problem(8))
    value = row_log_evidence("rbf", **leaves)
    (first,) = torch.autograd.grad(value.square(), leaves["outputscale"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.backward()


# --- engines --------------------------------------------------------------------------------------


@names
@noises
@pytest.mark.parametrize(("T", "D", "m"), [(83, 2, 20), (64, 18, 9), (40, 50, 7)])
def test_engines_agree(
    name: str, per_point: bool, T: int, D: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(T, D, m, per_point=per_point)
    mine = run(name, p)
    monkeypatch.setattr(module, "_compiled_engine", lambda: None)
    tensor_rows = importlib.import_module("gpvi.linalg.sparse_inverse._rows_tensor")
    monkeypatch.setattr(tensor_rows, "_CHUNK_ENTRIES", 7 * (m + 1) ** 2)  # several chunks
    for left, right in zip(mine, run(name, p), strict=True):
        close(left, right)


@pytest.mark.parametrize("workers", [2, 3])
@noises
def test_threads_do_not_show(
    workers: int, per_point: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(101, per_point=per_point)
    uncut = run("matern52", p)
    compiled = importlib.import_module("gpvi.linalg.sparse_inverse._rows_cpu")
    monkeypatch.setattr(compiled, "_MIN_CUT_ROWS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = run("matern52", p)
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)
    for one, mine, theirs in zip(uncut, alone, run("matern52", p), strict=True):
        assert torch.equal(mine, theirs)
        close(mine, one, 1e-12)


def test_callable_from_several_threads() -> None:
    problems = [problem(60, seed=seed) for seed in range(6)]
    expected = [run("matern52", p) for p in problems]
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(lambda p: run("matern52", p), problems)
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
        value = row_log_evidence("rbf", **p)
    assert torch.equal(row_log_evidence("rbf", **p), value)  # warns once
    close(value, conditionals("rbf", p).sum())


@names
def test_float32(name: str, engine: str) -> None:
    p = problem(80, per_point=True)
    low = {key: v.float() if v.is_floating_point() else v for key, v in p.items()}
    for key, mine, theirs in zip(("value", *PARAMETERS), run(name, low), run(name, p), strict=True):
        assert mine.dtype == torch.float32, key
        close(mine.double(), theirs, 2e-3)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    p = problem(60, per_point=True)
    there = {key: value.cuda() for key, value in p.items()}
    for mine, theirs in zip(run("matern32", there), run("matern32", p), strict=True):
        close(mine.cpu(), theirs)


# --- refusals -------------------------------------------------------------------------------------


def test_coincident_points_need_noise(engine: str) -> None:
    p = problem(12, 2, 4)
    p["points"][7] = p["points"][3]
    p["neighbors"][7] = torch.tensor([0, 2, 3, 4])
    close(row_log_evidence("rbf", **p), conditionals("rbf", p).sum())
    assert all(torch.isfinite(part).all() for part in run("matern12", p))
    p["noise"] = torch.zeros((), dtype=torch.float64)
    with pytest.raises(
        NotPositiveDefiniteError,
        match=r"row 7 \(point 7 and 4 neighbours.*nearest neighbour of point 7 is 0 lengthscales away"
        r".* are 3 and 7, 0 lengthscales apart\. Raise the nugget .*noise.* or merge",
    ):
        row_log_evidence("rbf", **p)


def changed(**changes: Tensor) -> dict[str, Tensor]:
    return problem(10, 2, 3) | changes


ONE = torch.ones((), dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed(points=problem(10)["points"].requires_grad_()), "requires a gradient"),
        (changed(targets=torch.zeros(9).double()), r"expected .*targets \[T\].*targets \(9,\)"),
        (changed(targets=torch.full((10,), torch.nan).double()), "targets holds NaN"),
        (changed(targets=torch.zeros(10)), "one floating-point dtype"),
        (changed(lengthscale=-ONE.reshape(1)), "lengthscale must be positive"),
        (changed(noise=-ONE), "noise must not be negative"),
        (changed(noise=torch.ones(4).double()), r"noise \(4,\)"),
        (changed(neighbors=problem(10)["neighbors"].long()), "expected int32 numbers"),
        (changed(neighbors=problem(12, 2, 3)["neighbors"][2:]), r"row 0 \(point 0\) are"),
    ],
)
def test_bad_input(arguments: dict[str, Tensor], message: str, engine: str) -> None:
    with pytest.raises(InputError, match=message):
        row_log_evidence("rbf", **arguments)


def test_bad_parameters(engine: str) -> None:
    with pytest.raises(InputError, match="unknown stationary kernel 'linear'"):
        row_log_evidence("linear", **problem())
    with pytest.raises(NumericalError, match="noise holds NaN"):
        row_log_evidence("rbf", **changed(noise=torch.nan * ONE))
