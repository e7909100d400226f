"""Exact evidence of a stationary kernel against the dense density, its engines and its route."""

import importlib
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gpytorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess
from gpvi.exceptions import EngineWarning, InputError, NotPositiveDefiniteError, NumericalError
from gpvi.inference import FitProblem
from gpvi.likelihoods import GaussianLikelihood
from gpvi.linalg import gaussian_log_evidence, stationary_log_evidence
from gpvi.linalg._evidence_stationary import Arguments, Needs, TensorEngine, evaluate
from gpvi.linalg.stationary import STATIONARY_KERNELS, stationary_value

module = importlib.import_module("gpvi.linalg.stationary_evidence")

names = pytest.mark.parametrize("name", STATIONARY_KERNELS)
noises = pytest.mark.parametrize("per_row", [False, True], ids=["one noise", "noise per row"])
PARAMETERS = ("targets", "lengthscale", "outputscale", "noise")
ALL = Needs(True, True, True)


def problem(N: int = 30, D: int = 2, *, per_row: bool = False, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return {
        "x": x,
        "targets": x.sum(-1).sin() + 0.3 * uniform(N),
        "lengthscale": 0.8 + 0.5 * uniform(D),
        "outputscale": torch.tensor(1.3, dtype=torch.float64),
        "noise": 0.1 + 0.3 * uniform(N) if per_row else torch.tensor(0.2, dtype=torch.float64),
    }


def covariance(name: str, p: dict[str, Tensor]) -> Tensor:
    difference = (p["x"][:, None] - p["x"]) / p["lengthscale"]
    return p["outputscale"] * stationary_value(name, difference.square().sum(-1))


def dense(name: str, p: dict[str, Tensor]) -> Tensor:
    total = covariance(name, p) + p["noise"].expand(len(p["x"])).diag()
    return torch.distributions.MultivariateNormal(torch.zeros_like(p["targets"]), total).log_prob(
        p["targets"]
    )


def with_gradients(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone().requires_grad_(k != "x") for k, v in p.items()}


def compiled_engine() -> Any:
    from gpvi.linalg._evidence_cpu import CompiledEngine

    return CompiledEngine()


def run(engine: Any, name: str, p: dict[str, Tensor], needs: Needs = ALL) -> Any:
    return evaluate(engine, Arguments(name, **p), needs)


# --- values ---------------------------------------------------------------------------------------


@names
@noises
@pytest.mark.parametrize("N", [1, 2, 3, 150])
def test_value_is_the_dense_density(name: str, per_row: bool, N: int) -> None:
    p = problem(N, 3, per_row=per_row)
    value = stationary_log_evidence(name, **p)
    assert value.shape == ()
    torch.testing.assert_close(value, dense(name, p), rtol=1e-11, atol=1e-11)


@given(
    name=st.sampled_from(STATIONARY_KERNELS),
    seed=st.integers(0, 10_000),
    shift=st.floats(-100.0, 100.0),
    factor=st.floats(0.01, 100.0),
)
@settings(max_examples=40, deadline=None)
def test_order_shift_and_units_do_not_matter(
    name: str, seed: int, shift: float, factor: float
) -> None:
    p = problem(12, 2, seed=seed, per_row=True)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    q = p | {k: p[k][order] for k in ("x", "targets", "noise")}
    q["x"] = factor * (q["x"] + shift)
    q["lengthscale"] = factor * p["lengthscale"]
    torch.testing.assert_close(
        stationary_log_evidence(name, **q),
        stationary_log_evidence(name, **p),
        rtol=1e-9,
        atol=1e-9,
    )


@names
def test_duplicate_rows(name: str) -> None:
    p = problem(20)
    p["x"][7] = p["x"][3]
    p["x"][11] = p["x"][3]
    p = with_gradients(p | {"noise": torch.tensor(1e-6, dtype=torch.float64)})
    value = stationary_log_evidence(name, **p)
    torch.testing.assert_close(value, dense(name, p), rtol=1e-7, atol=1e-7)
    value.backward()
    assert all(bool(torch.isfinite(p[key].grad).all()) for key in PARAMETERS)


# --- gradients ------------------------------------------------------------------------------------


@names
@noises
@pytest.mark.parametrize("engine", ["compiled", "tensor"])
def test_adjoint(name: str, per_row: bool, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "tensor":
        monkeypatch.setattr(module, "_compiled_engine", lambda: None)
    p = with_gradients(problem(9, 2, per_row=per_row))
    assert torch.autograd.gradcheck(
        lambda *values: stationary_log_evidence(name, p["x"], *values),
        [p[key] for key in PARAMETERS],
        rtol=1e-6,
        atol=1e-7,
    )


def test_adjoint_of_one_lengthscale_for_all_dimensions() -> None:
    p = problem(9, 3)
    ell = torch.tensor([1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda value: stationary_log_evidence("rbf", **(p | {"lengthscale": value})), [ell]
    )


@noises
def test_gradient_is_that_of_the_dense_operation(per_row: bool) -> None:
    p, q = (with_gradients(problem(120, 3, per_row=per_row)) for _ in range(2))
    stationary_log_evidence("rbf", **p).backward()
    gaussian_log_evidence(covariance("rbf", q), q["targets"], q["noise"]).backward()
    for key in PARAMETERS:
        torch.testing.assert_close(p[key].grad, q[key].grad, rtol=1e-9, atol=1e-9)


@noises
@pytest.mark.parametrize("wanted", PARAMETERS)
def test_one_gradient_at_a_time(wanted: str, per_row: bool) -> None:
    full, p = with_gradients(problem(per_row=per_row)), problem(per_row=per_row)
    stationary_log_evidence("matern52", **full).backward()
    p[wanted].requires_grad_()
    (2.0 * stationary_log_evidence("matern52", **p)).backward()
    torch.testing.assert_close(p[wanted].grad, 2.0 * full[wanted].grad, atol=1e-11, rtol=1e-11)


def test_no_gradient_is_computed_unless_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("inverse")

    monkeypatch.setattr(importlib.import_module("gpvi.linalg._evidence_cpu"), "_invert", fail)
    value = stationary_log_evidence("rbf", **problem())
    assert not value.requires_grad
    with torch.no_grad():
        assert torch.equal(stationary_log_evidence("rbf", **with_gradients(problem())), value)
    with pytest.raises(AssertionError, match="inverse"):
        stationary_log_evidence("rbf", **with_gradients(problem()))
    p = problem()
    p["targets"].requires_grad_()
    stationary_log_evidence("rbf", **p).backward()  # needs no inverse either


def test_second_derivatives_are_refused() -> None:
    p = with_gradients(problem())
    value = stationary_log_evidence("rbf", **p).square()
    (first,) = torch.autograd.grad(value, p["noise"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.backward()


# --- engines --------------------------------------------------------------------------------------


@names
@noises
@pytest.mark.parametrize("N", [1, 64, 101])
def test_engines_agree(name: str, per_row: bool, N: int) -> None:
    p = problem(N, 3, per_row=per_row)
    p["x"][-1] = p["x"][N // 3]  # a pair at distance zero
    value, gradient = run(TensorEngine(), name, p)
    other_value, other_gradient = run(compiled_engine(), name, p)
    torch.testing.assert_close(other_value, value, atol=1e-10, rtol=0)
    for mine, theirs in zip(gradient, other_gradient, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("N", [50, 51])
def test_threads_do_not_show(workers: int, N: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(N, per_row=True)
    alone = run(compiled_engine(), "matern52", p)
    shared_loops = importlib.import_module("gpvi.linalg._collapsed_cpu")
    monkeypatch.setattr(shared_loops, "_MIN_SHARED_ENTRIES", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)
    shared = run(compiled_engine(), "matern52", p)
    assert torch.equal(alone[0], shared[0])
    for mine, theirs in zip(alone[1], shared[1], strict=True):
        assert torch.equal(mine, theirs)


def test_callable_from_several_threads() -> None:
    problems = [problem(120, seed=seed) for seed in range(6)]

    def gradient(p: dict[str, Tensor]) -> Tensor:
        leaves = with_gradients(p)
        stationary_log_evidence("matern52", **leaves).backward()
        return leaves["lengthscale"].grad

    expected = [gradient(p) for p in problems]
    with ThreadPoolExecutor(3) as pool:
        for mine, theirs in zip(expected, pool.map(gradient, problems), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "gpvi.linalg._evidence_cpu", None)
    module._compiled_engine.cache_clear()
    yield
    module._compiled_engine.cache_clear()


def test_without_numba_the_tensor_engine_serves(without_numba: None) -> None:
    p = problem()
    with pytest.warns(EngineWarning, match="tensor operations serve instead"):
        value = stationary_log_evidence("rbf", **p)
    assert torch.equal(stationary_log_evidence("rbf", **p), value)  # warns once
    assert torch.equal(value, run(TensorEngine(), "rbf", p)[0])


@names
def test_float32(name: str) -> None:
    p = problem(80, 2)
    single, double = with_gradients({k: v.float() for k, v in p.items()}), with_gradients(p)
    low, high = (stationary_log_evidence(name, **leaves) for leaves in (single, double))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), high, rtol=1e-5, atol=1e-4)
    low.backward()
    high.backward()
    for key in PARAMETERS:
        assert single[key].grad.dtype == torch.float32
        torch.testing.assert_close(
            single[key].grad.double(), double[key].grad, rtol=1e-3, atol=1e-3
        )


# --- the route from a process ---------------------------------------------------------------------


def fit_problem(kernel: gpytorch.kernels.Kernel, y: Tensor, **options: Any) -> FitProblem:
    mean = gpytorch.means.ConstantMean().double()
    mean.initialize(constant=0.2)
    approximation, x = Exact(), problem(25)["x"]
    likelihood = GaussianLikelihood(noise=0.1)
    plan = approximation.plan(x)
    return FitProblem(
        GaussianProcess(kernel.double(), mean), approximation, likelihood, x, y, plan, **options
    )


KERNELS = {
    "scaled": lambda: gpytorch.kernels.ScaleKernel(
        gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=2)
    ),
    "bare": lambda: gpytorch.kernels.RBFKernel(),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_fused_route_equals_the_general_one(kernel: str, gaps: bool, weighted: bool) -> None:
    y = problem(25)["targets"]
    y[[2, 9]] = torch.nan if gaps else 0.0
    options = {"weights": torch.linspace(0.5, 2.0, 25).double()} if weighted else {}
    task = fit_problem(KERNELS[kernel](), y, **options)
    parameters = [p for m in task.modules.values() for p in m.parameters() if p.requires_grad]
    fused = task.gaussian_value()
    assert "StationaryEvidence" in _graph(fused)
    gradients = torch.autograd.grad(fused, parameters)
    general = task._general_gaussian()
    torch.testing.assert_close(fused, general, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(gradients, torch.autograd.grad(general, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def _graph(value: Tensor) -> str:
    """Names of all operations behind a value."""
    seen, todo = set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return " ".join(node.name() for node in seen)


def test_other_kernels_and_input_gradients_take_the_matrix() -> None:
    p = problem(12)
    rbf, linear = gpytorch.kernels.RBFKernel().double(), gpytorch.kernels.LinearKernel().double()
    moving = p["x"].clone().requires_grad_()
    for kernel, x in ((linear, p["x"]), (rbf, moving)):
        value = Exact().collapsed_objective(
            GaussianProcess(kernel), x, p["targets"], p["noise"], tighter=False
        )
        assert "StationaryEvidence" not in _graph(value)
    assert bool(torch.autograd.grad(value, moving)[0].abs().max() > 0)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [TensorEngine, compiled_engine])
def test_an_indefinite_matrix_is_refused(engine: Any) -> None:
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    p = problem(20) | {"noise": zero, "outputscale": one}
    p["x"][1] = p["x"][0]  # the second pivot is exactly zero
    with pytest.raises(
        NotPositiveDefiniteError, match=r"failed at row 1,.*noise variance 0\..*row 0, 0 length"
    ):
        run(engine(), "rbf", p)


def test_no_noise_is_allowed_where_the_kernel_bears_it() -> None:
    p = problem(20) | {"noise": torch.zeros((), dtype=torch.float64)}
    torch.testing.assert_close(stationary_log_evidence("matern12", **p), dense("matern12", p))


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("x", torch.zeros(30).double(), InputError, r"x \(30,\)"),
        ("x", torch.zeros(0, 2).double(), InputError, r"x \(0, 2\)"),
        ("x", torch.full((30, 2), math.inf).double(), InputError, "x holds NaN"),
        ("x", torch.zeros(30, 2).double().requires_grad_(), InputError, "x requires a gradient"),
        ("targets", torch.full((30,), math.nan).double(), InputError, "targets holds NaN"),
        ("targets", torch.zeros(30, 1).double(), InputError, r"targets \(30, 1\)"),
        ("lengthscale", torch.ones(3).double(), InputError, r"lengthscale \(3,\)"),
        ("lengthscale", torch.tensor([1.0, -1.0]).double(), InputError, "lengthscale must be"),
        (
            "lengthscale",
            torch.tensor([1.0, 1e-150], dtype=torch.float64),
            NumericalError,
            "rescale",
        ),
        ("outputscale", torch.ones(1).double(), InputError, r"outputscale \(1,\)"),
        ("outputscale", torch.tensor(0.0).double(), InputError, "outputscale must be positive"),
        ("outputscale", torch.tensor(math.nan).double(), NumericalError, "outputscale holds"),
        ("noise", torch.tensor(-0.1).double(), InputError, "noise must not be negative"),
        ("noise", torch.ones(29).double(), InputError, r"noise \(29,\)"),
        ("noise", torch.tensor(1.0), InputError, "one floating-point dtype"),
    ],
)
def test_unfit_arguments(key: str, value: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stationary_log_evidence("rbf", **(problem() | {key: value}))


def test_unknown_kernel() -> None:
    with pytest.raises(InputError, match="'periodic'"):
        stationary_log_evidence("periodic", **problem())


# --- CUDA -----------------------------------------------------------------------------------------


@pytest.mark.gpu
@names
def test_cuda(name: str) -> None:
    p = problem(300, 3, per_row=True)
    host, device = with_gradients(p), with_gradients({k: v.cuda() for k, v in p.items()})
    here, there = (stationary_log_evidence(name, **leaves) for leaves in (host, device))
    here.backward()
    there.backward()
    torch.testing.assert_close(there.cpu(), here, atol=1e-9, rtol=0)
    for key in PARAMETERS:
        torch.testing.assert_close(device[key].grad.cpu(), host[key].grad, atol=1e-9, rtol=1e-9)
