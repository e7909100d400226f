"""Collapsed bounds against dense formulas, exact evidence, finite differences and each other."""

import importlib
import math
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gpytorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import EngineWarning, InputError, NotPositiveDefiniteError, NumericalError
from gpvi.linalg import _collapsed_stationary
from gpvi.linalg._collapsed_stationary import Arguments, Needs, TensorEngine, evaluate
from gpvi.linalg.collapsed_bound import collapsed_bound, stationary_collapsed_bound
from gpvi.linalg.stationary import STATIONARY_KERNELS, stationary_value

# The package exports a function of the same name.
module = importlib.import_module("gpvi.linalg.collapsed_bound")

names = pytest.mark.parametrize("name", STATIONARY_KERNELS)
tightness = pytest.mark.parametrize("tighter", [False, True])
noises = pytest.mark.parametrize("per_row", [False, True], ids=["one noise", "noise per row"])
ALL = Needs(True, True, True)


def problem(
    N: int = 30, M: int = 7, D: int = 2, *, per_row: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(N, D)
    return {
        "x": x,
        "z": x[:M] + 0.3 * normal(M, D),
        "targets": x.sum(-1).sin() + 0.3 * normal(N),
        "lengthscale": 0.8 + 0.5 * torch.rand(D, generator=generator, dtype=torch.float64),
        "outputscale": torch.tensor(1.3, dtype=torch.float64),
        "noise": 0.1 + 0.3 * torch.rand(N, generator=generator, dtype=torch.float64)
        if per_row
        else torch.tensor(0.2, dtype=torch.float64),
    }


def covariance(name: str, p: dict[str, Tensor], left: Tensor, right: Tensor) -> Tensor:
    difference = (left[:, None] - right) / p["lengthscale"]
    return p["outputscale"] * stationary_value(name, difference.square().sum(-1))


def matrices(name: str, p: dict[str, Tensor], jitter: float) -> tuple[Tensor, ...]:
    z, x = p["z"], p["x"]
    Kzz = covariance(name, p, z, z) + jitter * p["outputscale"] * torch.eye(len(z), dtype=z.dtype)
    return Kzz, covariance(name, p, z, x), p["outputscale"].expand(len(x))


def dense_bound(
    Kzz: Tensor, Kzx: Tensor, k_diag: Tensor, targets: Tensor, noise: Tensor, tighter: bool
) -> Tensor:
    Q = Kzx.T @ torch.linalg.solve(Kzz, Kzx)
    noise = noise.expand(targets.shape)
    ratio = (k_diag - Q.diagonal()) / noise
    return log_normal(targets, Q + noise.diag()) - 0.5 * (ratio.log1p() if tighter else ratio).sum(
        -1
    )


def log_normal(targets: Tensor, covariance: Tensor) -> Tensor:
    quadratic = targets @ torch.linalg.solve(covariance, targets)
    return -0.5 * (covariance.logdet() + quadratic + len(targets) * math.log(2.0 * math.pi))


def bound(name: str, p: dict[str, Tensor], tighter: bool, jitter: float = 1e-8) -> Tensor:
    return stationary_collapsed_bound(name, **p, jitter=jitter, tighter=tighter)


def with_gradients(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone().requires_grad_(k != "x") for k, v in p.items()}


def compiled_engine() -> Any:
    from gpvi.linalg._collapsed_cpu import CompiledEngine

    return CompiledEngine()


# --- values ---------------------------------------------------------------------------------------


@names
@tightness
@noises
def test_value_is_the_dense_formula(name: str, tighter: bool, per_row: bool) -> None:
    p = problem(200, 20, 3, per_row=per_row)
    Kzz, Kzx, k_diag = matrices(name, p, 1e-6)
    expected = dense_bound(Kzz, Kzx, k_diag, p["targets"], p["noise"], tighter)
    generic = collapsed_bound(Kzz, Kzx, k_diag, p["targets"], p["noise"], tighter=tighter)
    assert abs(generic - expected) < 1e-9
    assert abs(bound(name, p, tighter, 1e-6) - expected) < 1e-9


@names
@tightness
def test_inducing_inputs_on_the_data_give_the_exact_evidence(name: str, tighter: bool) -> None:
    p = problem(40)
    p["z"] = p["x"].clone()
    exact = log_normal(
        p["targets"], covariance(name, p, p["x"], p["x"]) + p["noise"] * torch.eye(40)
    )
    assert abs(bound(name, p, tighter, 1e-10) - exact) < 1e-6
    Kzz, Kzx, k_diag = matrices(name, p, 1e-10)
    generic = collapsed_bound(Kzz, Kzx, k_diag, p["targets"], p["noise"], tighter=tighter)
    assert abs(generic - exact) < 1e-6


@given(
    name=st.sampled_from(STATIONARY_KERNELS),
    seed=st.integers(0, 10_000),
    sizes=st.tuples(st.integers(1, 25), st.integers(1, 10), st.integers(1, 4)),
    per_row=st.booleans(),
    log_scale=st.floats(-2.0, 2.0),
    log_noise=st.floats(-6.0, 2.0),
)
@settings(max_examples=60)
def test_plain_below_tightened_below_exact(
    name: str,
    seed: int,
    sizes: tuple[int, int, int],
    per_row: bool,
    log_scale: float,
    log_noise: float,
) -> None:
    N, M, D = sizes
    p = problem(N, min(M, N), D, per_row=per_row, seed=seed)
    p["lengthscale"] = p["lengthscale"] * math.exp(log_scale)
    p["noise"] = p["noise"] * math.exp(log_noise)
    noise = p["noise"].expand(N).diag()
    exact = float(log_normal(p["targets"], covariance(name, p, p["x"], p["x"]) + noise))
    plain, tightened = float(bound(name, p, False)), float(bound(name, p, True))
    slack = 1e-7 * (1.0 + abs(plain))
    assert plain <= tightened + slack
    assert tightened <= exact + slack


# --- gradients ------------------------------------------------------------------------------------


@names
@tightness
@noises
def test_gradcheck_stationary(name: str, tighter: bool, per_row: bool) -> None:
    p = problem(9, 4, 2, per_row=per_row)
    p = with_gradients(p)
    keys = [k for k in p if k != "x"]

    def function(*values: Tensor) -> Tensor:
        return bound(name, {"x": p["x"], **dict(zip(keys, values, strict=True))}, tighter, 1e-4)

    assert torch.autograd.gradcheck(function, [p[k] for k in keys], rtol=1e-6, atol=1e-7)


@tightness
def test_gradcheck_one_lengthscale_for_all_dimensions(tighter: bool) -> None:
    p = problem(9, 4, 3)
    ell = torch.tensor([1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda value: bound("matern32", {**p, "lengthscale": value}, tighter), [ell]
    )


def joint_covariance(batch: tuple[int, ...], M: int, N: int, seed: int) -> tuple[Tensor, ...]:
    """Kzz, Kzx and k_diag of one joint covariance matrix, residual variances well above zero."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(*batch, M + N, M + N, generator=generator, dtype=torch.float64)
    joint = factor @ factor.mT / (M + N) + 0.5 * torch.eye(M + N, dtype=torch.float64)
    return (
        joint[..., :M, :M].contiguous(),
        joint[..., :M, M:].contiguous(),
        joint.diagonal(dim1=-2, dim2=-1)[..., M:].contiguous(),
    )


BATCHES = [
    # kernel, targets, noise
    ((), (5,), ()),
    ((), (5,), (5,)),
    ((), (3, 5), (1,)),  # outputs share a kernel and a noise
    ((), (3, 5), (3, 1)),
    ((2,), (2, 5), (5,)),
    ((2, 1), (3, 5), (2, 1, 1)),
    ((2,), (5,), (3, 1, 5)),
]


@pytest.mark.parametrize(("kernel", "target", "noise_shape"), BATCHES)
@tightness
def test_generic_batches(
    kernel: tuple[int, ...], target: tuple[int, ...], noise_shape: tuple[int, ...], tighter: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [
        *joint_covariance(kernel, 3, 5, 2),
        torch.randn(target, generator=generator, dtype=torch.float64),
        0.2 + torch.rand(noise_shape, generator=generator, dtype=torch.float64),
    ]
    for tensor in inputs:
        tensor.requires_grad_()

    def function(Kzz: Tensor, *others: Tensor) -> Tensor:
        return collapsed_bound(0.5 * (Kzz + Kzz.mT), *others, tighter=tighter)

    value = function(*inputs)
    noise_row = inputs[4] if inputs[4].dim() else inputs[4].unsqueeze(-1)
    shape = torch.broadcast_shapes(kernel, target[:-1], noise_row.shape[:-1])
    assert value.shape == shape
    Kzz, Kzx = (t.expand(*shape, *t.shape[-2:]).reshape(-1, *t.shape[-2:]) for t in inputs[:2])
    rows = [t.expand(*shape, 5).reshape(-1, 5) for t in (inputs[2], inputs[3], noise_row)]
    expected = [
        dense_bound(Kzz[i], Kzx[i], rows[0][i], rows[1][i], rows[2][i], tighter)
        for i in range(shape.numel())
    ]
    torch.testing.assert_close(value.reshape(-1), torch.stack(expected), atol=1e-10, rtol=0)
    assert torch.autograd.gradcheck(function, inputs, rtol=1e-6, atol=1e-7)


def test_kzz_of_one_batch_element_and_kzx_of_many() -> None:
    """Latents with different cross covariances over one inducing covariance."""
    Kzz, Kzx, k_diag = joint_covariance((), 3, 5, 2)
    weight = torch.tensor([1.0, 0.5], dtype=torch.float64).reshape(2, 1, 1)
    inputs = [Kzz, weight * Kzx, k_diag, k_diag.sin(), torch.tensor(0.3, dtype=torch.float64)]
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda Kzz, *others: collapsed_bound(0.5 * (Kzz + Kzz.mT), *others, tighter=True), inputs
    )


@noises
@tightness
def test_both_functions_have_the_same_gradient(per_row: bool, tighter: bool) -> None:
    p, q = (with_gradients(problem(60, 12, 3, per_row=per_row)) for _ in range(2))
    bound("rbf", p, tighter, 1e-6).backward()
    collapsed_bound(*matrices("rbf", q, 1e-6), q["targets"], q["noise"], tighter=tighter).backward()
    for key in ("z", "targets", "lengthscale", "outputscale", "noise"):
        torch.testing.assert_close(p[key].grad, q[key].grad, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("generic", [True, False])
@tightness
def test_a_row_of_several_copies_is_repeated_rows(generic: bool, tighter: bool) -> None:
    """c rows of equal input, target and noise s are one row of noise s / c, up to a constant."""
    times = 1 + torch.arange(30) % 3
    results = []
    for repeat in (True, False):
        p = problem(30, 6, 2, per_row=True)
        copies = None if repeat else times.to(p["x"])
        if repeat:
            p |= {k: p[k].repeat_interleave(times, 0) for k in ("x", "targets", "noise")}
        leaves = with_gradients(p)
        q = leaves if repeat else leaves | {"noise": leaves["noise"] / times}
        if generic:
            K = matrices("rbf", q, 1e-8)
            value = collapsed_bound(*K, q["targets"], q["noise"], tighter=tighter, copies=copies)
        else:
            value = stationary_collapsed_bound(
                "rbf", **q, jitter=1e-8, tighter=tighter, copies=copies
            )
        if not repeat:
            noise = leaves["noise"]
            spare = (times - 1) * (2.0 * math.pi * noise).log() + times.to(noise).log()
            value = value - 0.5 * spare.sum()
        value.backward()
        gradients = {k: leaves[k].grad for k in ("z", "lengthscale", "outputscale", "noise")}
        if repeat:
            folded = torch.zeros(30, dtype=torch.float64)
            owner = torch.arange(30).repeat_interleave(times)
            gradients["noise"] = folded.index_add_(0, owner, gradients["noise"])
        results.append((value.detach(), gradients))
    (expected, theirs), (actual, mine) = results
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=1e-8)


def test_copies_are_checked() -> None:
    p = problem(20, 4)
    for copies, message in (
        (torch.ones(3).double(), "one per row"),
        (p["targets"] * 0, "positive"),
    ):
        with pytest.raises(InputError, match=message):
            stationary_collapsed_bound("rbf", **p, jitter=1e-8, copies=copies)


@pytest.mark.parametrize("wanted", ["z", "targets", "lengthscale", "outputscale", "noise"])
@noises
def test_one_gradient_at_a_time(wanted: str, per_row: bool) -> None:
    full, p = with_gradients(problem(per_row=per_row)), problem(per_row=per_row)
    bound("matern52", full, True).backward()
    p[wanted].requires_grad_()
    (2.0 * bound("matern52", p, True)).backward()
    torch.testing.assert_close(p[wanted].grad, 2.0 * full[wanted].grad, atol=1e-10, rtol=1e-10)


def test_no_gradient_is_computed_unless_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("second pass")

    monkeypatch.setattr(type(compiled_engine()), "adjoint", fail)
    value = bound("rbf", problem(), True)
    assert not value.requires_grad
    with torch.no_grad():
        assert torch.equal(bound("rbf", with_gradients(problem()), True), value)
    with pytest.raises(AssertionError, match="second pass"):
        bound("rbf", with_gradients(problem()), True)


def test_generic_drives_a_gpytorch_kernel() -> None:
    p = problem(25, 6, 2)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(ard_num_dims=2)).double()
    kernel.outputscale, kernel.base_kernel.lengthscale = p["outputscale"], p["lengthscale"]
    x, z = p["x"], p["z"].clone().requires_grad_()
    Kzz = kernel(z).to_dense() + 1e-6 * kernel.outputscale * torch.eye(6, dtype=z.dtype)
    value = collapsed_bound(
        Kzz, kernel(z, x).to_dense(), kernel(x, diag=True), p["targets"], p["noise"], tighter=True
    )
    value.backward()
    q = with_gradients(p)
    own = bound("matern52", q, True, 1e-6)
    own.backward()
    torch.testing.assert_close(value, own, atol=1e-7, rtol=0)
    torch.testing.assert_close(z.grad, q["z"].grad, atol=1e-6, rtol=1e-6)


def test_second_derivatives_are_refused() -> None:
    p = with_gradients(problem())
    (first,) = torch.autograd.grad(bound("rbf", p, True).square(), p["noise"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.backward()


# --- engines --------------------------------------------------------------------------------------


def share_rows(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Split the rows of every problem, however small, among this number of threads."""
    compiled = importlib.import_module("gpvi.linalg._collapsed_cpu")
    monkeypatch.setattr(compiled, "_MIN_SHARED_ENTRIES", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)


def run(
    engine: Any,
    name: str,
    p: dict[str, Tensor],
    tighter: bool,
    needs: Needs = ALL,
    copies: Tensor | None = None,
) -> Any:
    copies = torch.ones_like(p["targets"][0]) if copies is None else copies
    return evaluate(engine, Arguments(name, *p.values(), 1e-8, tighter, copies), needs)


@names
@tightness
@noises
def test_engines_agree(
    name: str, tighter: bool, per_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_collapsed_stationary, "_CHUNK_BYTES", 0)  # the smallest chunks: 64 rows
    p = problem(150, 17, 3, per_row=per_row)
    p["z"][0] = p["x"][100]  # one pair at distance zero
    needs = Needs(True, True, per_row)
    copies = 1.0 + torch.arange(150).remainder(3).to(p["x"])
    value, gradient = run(TensorEngine(), name, p, tighter, needs, copies)
    other_value, other_gradient = run(compiled_engine(), name, p, tighter, needs, copies)
    torch.testing.assert_close(other_value, value, atol=1e-10, rtol=0)
    for mine, theirs in zip(gradient, other_gradient, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("make", [TensorEngine, compiled_engine])
@noises
def test_chunks_do_not_show(make: Any, per_row: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    p, needs = problem(150, 5, per_row=per_row), Needs(True, True, per_row)
    whole = run(make(), "matern32", p, True, needs)
    monkeypatch.setattr(_collapsed_stationary, "_CHUNK_BYTES", 0)
    assert len(_collapsed_stationary.chunks(150, 5, 8)) == 3
    pieces = run(make(), "matern32", p, True, needs)
    torch.testing.assert_close(whole[0], pieces[0], atol=1e-11, rtol=0)
    for mine, theirs in zip(whole[1], pieces[1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("workers", [2, 3])
def test_threads_do_not_show(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(100, 9, per_row=True)
    share_rows(monkeypatch, 1)
    alone = run(compiled_engine(), "matern52", p, True)
    share_rows(monkeypatch, workers)
    shared = run(compiled_engine(), "matern52", p, True)
    assert torch.equal(alone[0], shared[0])
    for mine, theirs in zip(alone[1], shared[1], strict=True):
        assert torch.equal(mine, theirs)


def test_callable_from_several_threads() -> None:
    problems = [problem(120, 8, seed=seed) for seed in range(6)]

    def gradient(p: dict[str, Tensor]) -> Tensor:
        leaves = with_gradients(p)
        bound("matern52", leaves, True).backward()
        return leaves["z"].grad

    expected = [gradient(p) for p in problems]
    with ThreadPoolExecutor(3) as pool:
        for mine, theirs in zip(expected, pool.map(gradient, problems), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


def _send_bound(connection: Any) -> None:
    torch.set_num_threads(1)  # torch's own operations hang after a fork otherwise
    p = with_gradients(problem())
    value = bound("matern52", p, True)
    value.backward()
    connection.send((value.item(), p["noise"].grad.item()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_works_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    share_rows(monkeypatch, 2)
    p = with_gradients(problem())
    value = bound("matern52", p, True)
    value.backward()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        # Newer Pythons warn of any fork in a process with threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = context.Process(target=_send_bound, args=(sender,))
        child.start()
    try:
        assert receiver.poll(60), "the forked process hangs"
        assert receiver.recv() == pytest.approx((value.item(), p["noise"].grad.item()))
    finally:
        child.kill()
        child.join()


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "gpvi.linalg._collapsed_cpu", None)
    module._compiled_engine.cache_clear()
    yield
    module._compiled_engine.cache_clear()


def test_without_numba_the_tensor_engine_serves(without_numba: None) -> None:
    p = problem()
    with pytest.warns(EngineWarning, match="tensor operations serve instead"):
        value = bound("rbf", p, True)
    assert torch.equal(bound("rbf", p, True), value)  # no second warning: it would be an error
    assert torch.equal(value, run(TensorEngine(), "rbf", p, True, Needs(False, False, False))[0])


# --- numerics -------------------------------------------------------------------------------------


@names
@tightness
def test_duplicated_inducing_inputs(name: str, tighter: bool) -> None:
    p = problem(80, 10)
    once = bound(name, p, tighter)
    p["z"] = torch.cat([p["z"], p["z"][:4]])
    leaves = with_gradients(p)
    twice = bound(name, leaves, tighter)
    twice.backward()
    assert abs(twice - once) < 1e-4
    for key in ("z", "lengthscale", "outputscale", "noise"):
        assert torch.isfinite(leaves[key].grad).all()


@names
def test_gradient_is_finite_with_inducing_inputs_on_the_data(name: str) -> None:
    p = problem(40)
    p["z"] = p["x"].clone()
    p = with_gradients(p)
    bound(name, p, True, 1e-6).backward()
    assert all(torch.isfinite(v.grad).all() for k, v in p.items() if k != "x")


@names
@tightness
@noises
def test_float32(name: str, tighter: bool, per_row: bool) -> None:
    p = problem(200, 15, 2, per_row=per_row)
    single = with_gradients({k: v.float() for k, v in p.items()})
    double = with_gradients(p)
    low, high = bound(name, single, tighter, 1e-5), bound(name, double, tighter, 1e-5)
    assert low.dtype == torch.float32
    assert abs(low - high) < 1e-3 * abs(high)
    low.backward()
    high.backward()
    for key in ("z", "targets", "lengthscale", "outputscale", "noise"):
        scale = float(double[key].grad.abs().max())
        assert single[key].grad.dtype == torch.float32
        assert (single[key].grad - double[key].grad).abs().max() < 2e-2 * scale
    Kzz, Kzx, k_diag = (t.float() for t in matrices(name, p, 1e-5))
    generic = collapsed_bound(
        Kzz, Kzx, k_diag, p["targets"].float(), p["noise"].float(), tighter=tighter
    )
    assert generic.dtype == torch.float32
    assert abs(generic - high) < 1e-3 * abs(high)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 3, 2), (3, 1, 1), (65, 2, 1)])
def test_smallest_sizes(sizes: tuple[int, int, int]) -> None:
    N, M, D = sizes
    p = problem(N, min(M, N), D)
    p["z"] = p["z"].repeat(M, 1)[:M] + torch.arange(M, dtype=torch.float64)[:, None]
    q = with_gradients(p)
    expected = dense_bound(*matrices("rbf", p, 1e-8), p["targets"], p["noise"], True)
    value = bound("rbf", q, True)
    value.backward()
    assert abs(value - expected) < 1e-9


def test_noncontiguous_inputs() -> None:
    p = problem(50, 8, 3, per_row=True)
    expected = bound("matern32", p, True)
    strided = {k: v.T.contiguous().T if v.dim() == 2 else v for k, v in p.items()}
    strided["targets"] = torch.stack([p["targets"], p["targets"]], -1)[:, 0]
    torch.testing.assert_close(bound("matern32", strided, True), expected, atol=1e-11, rtol=0)


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    bound("rbf", with_gradients(problem()), True).backward()
    assert torch.equal(torch.get_rng_state(), before)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_failed_factorisation_raises(dtype: torch.dtype) -> None:
    p = {k: v.to(dtype) for k, v in problem().items()}
    p["z"][1] = p["z"][0]
    p["outputscale"] = torch.ones_like(
        p["outputscale"]
    )  # the second pivot is zero without rounding
    with pytest.raises(NotPositiveDefiniteError, match=r"size 7 .*smallest diagonal.*jitter 0"):
        bound("rbf", p, False, 0.0)
    Kzz, Kzx, k_diag = matrices("rbf", p, 0.0)
    with pytest.raises(NotPositiveDefiniteError, match="Kzz of size 7"):
        collapsed_bound(Kzz - 2.0, Kzx, k_diag, p["targets"], p["noise"])


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("x", torch.zeros(30), InputError, "expected x"),
        ("x", torch.full((30, 2), torch.nan).double(), InputError, "x holds NaN"),
        ("x", torch.zeros(30, 2).double().requires_grad_(), InputError, "detach x"),
        ("z", torch.zeros(7, 3).double(), InputError, r"z \(7, 3\)"),
        ("z", torch.zeros(0, 2).double(), InputError, r"z \(0, 2\)"),
        ("z", torch.full((7, 2), torch.inf).double(), NumericalError, "z holds NaN"),
        ("targets", torch.full((30,), torch.nan).double(), InputError, "targets holds NaN"),
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
        ("outputscale", torch.tensor(torch.nan).double(), NumericalError, "outputscale holds"),
        ("noise", torch.tensor(0.0).double(), InputError, "noise must be positive"),
        ("noise", torch.ones(29).double(), InputError, r"noise \(29,\)"),
        ("noise", torch.tensor(1.0), InputError, "one floating-point dtype"),
    ],
)
def test_unfit_arguments(key: str, value: Tensor, error: type[Exception], message: str) -> None:
    p = problem()
    p[key] = value.double() if key == "x" else value
    with pytest.raises(error, match=message):
        bound("rbf", p, False)


def test_unfit_options() -> None:
    with pytest.raises(InputError, match="'periodic'"):
        bound("periodic", problem(), False)
    with pytest.raises(InputError, match="jitter"):
        bound("rbf", problem(), False, -1e-6)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.eye(4).double(), r"Kzz \(4, 4\)"),
        (1, torch.ones(5).double(), "two dimensions"),
        (2, torch.ones(4).double(), r"k_diag \(4,\)"),
        (3, torch.ones(5), "dtype"),
        (4, torch.ones(3).double(), r"noise \(3,\)"),
        (4, torch.tensor(-1.0).double(), "noise must be positive"),
    ],
)
def test_unfit_matrices(position: int, value: Tensor, message: str) -> None:
    inputs = [*joint_covariance((), 3, 5, 0), torch.ones(5).double(), torch.tensor(0.1).double()]
    inputs[position] = value
    with pytest.raises(InputError, match=message):
        collapsed_bound(*inputs)


# --- CUDA -----------------------------------------------------------------------------------------


@pytest.mark.gpu
@tightness
@noises
def test_cuda(tighter: bool, per_row: bool) -> None:
    p = problem(300, 20, 3, per_row=per_row)
    host, device = with_gradients(p), with_gradients({k: v.cuda() for k, v in p.items()})
    here, there = bound("matern52", host, tighter), bound("matern52", device, tighter)
    here.backward()
    there.backward()
    torch.testing.assert_close(there.cpu(), here, atol=1e-8, rtol=0)
    for key in ("z", "targets", "lengthscale", "outputscale", "noise"):
        torch.testing.assert_close(device[key].grad.cpu(), host[key].grad, atol=1e-8, rtol=1e-8)
    inputs = [*matrices("matern52", p, 1e-6), p["targets"], p["noise"]]
    torch.testing.assert_close(
        collapsed_bound(*(t.cuda() for t in inputs), tighter=tighter).cpu(),
        collapsed_bound(*inputs, tighter=tighter),
        atol=1e-8,
        rtol=0,
    )
