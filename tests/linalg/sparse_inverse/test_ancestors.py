"""Selected inverse on ancestors: both engines against dense algebra, adjoints, threads, refusals."""

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.linalg.sparse_inverse import _ancestors_cpu, _engine
from gpvi.linalg.sparse_inverse.ancestors import inverse_norms, posterior_norms
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tensor":
        monkeypatch.setattr(_engine, "runs_compiled", lambda like: False)
    return request.param


def neighbors_of(pattern: NeighborPattern, i: int) -> set[int]:
    return {int(a) for a in pattern.neighbors[i] if a >= 0}


def truncated(pattern: NeighborPattern, V: Tensor, seeds: set[int], b: Tensor) -> Tensor:
    """``|V_AA^-1 b_A|^2`` for the seeds, their neighbours and the neighbours of these."""
    for _ in range(2):
        seeds = seeds.union(*[neighbors_of(pattern, c) for c in seeds])
    A = sorted(seeds)
    x = torch.linalg.solve_triangular(V[..., A, :][..., A], b[..., A].unsqueeze(-1), upper=True)
    return x.square().sum((-2, -1))


def posterior_reference(
    pattern: NeighborPattern,
    V: Tensor,
    prior_pattern: NeighborPattern,
    U: Tensor,
    rows: list[int],
) -> tuple[Tensor, Tensor]:
    variance, trace = [], []
    for i in rows:
        seeds = {i} | neighbors_of(pattern, i) | neighbors_of(prior_pattern, i)
        unit = torch.eye(V.shape[-1], dtype=V.dtype)[i]
        variance.append(truncated(pattern, V, seeds, unit))
        trace.append(truncated(pattern, V, seeds, U[..., i]))
    return torch.stack(variance, -1), torch.stack(trace, -1)


def sparse_sides(
    M: int, R: int, k: int, batch: tuple[int, ...] = (), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Indices with fewer and fewer entries, and values."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.full((R, k), -1, dtype=torch.int32)
    for r in range(R):
        count = min(M, max(0, k - r % (k + 1)))
        index[r, :count] = torch.randperm(M, generator=generator)[:count].to(torch.int32)
    values = torch.randn(*batch, R, k, generator=generator, dtype=torch.float64)
    return index, values * (index >= 0)


def dense_sides(index: Tensor, values: Tensor, M: int) -> Tensor:
    """[*b, R, M]."""
    wide = values.new_zeros(*values.shape[:-1], M + 1)
    place = torch.where(index < 0, M, index.long()).expand(values.shape)
    return wide.scatter_add(-1, place, values)[..., :M]


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize(("M", "m"), [(1, 0), (1, 2), (7, 0), (30, 1), (41, 4)])
def test_posterior_norms_solve_the_block_of_ancestors(
    dense: ModuleType, engine: str, M: int, m: int, batch: tuple[int, ...]
) -> None:
    pattern = dense.random_pattern(M, m, ragged=True)
    V, U = dense.random_columns(pattern, batch), dense.random_columns(pattern, seed=1)
    norms = posterior_norms(pattern, V, pattern, U)
    full_V, full_U = dense.dense_factor(pattern, V), dense.dense_factor(pattern, U)
    expected = posterior_reference(pattern, full_V, pattern, full_U, list(range(M)))
    for ours, theirs in zip(norms, expected, strict=True):
        assert ours.shape == (*batch, M)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("which", ["denser", "diagonal", "first points"])
@pytest.mark.parametrize("prior", ["denser", "diagonal", "first points"])
def test_the_two_patterns_may_differ(
    dense: ModuleType, engine: str, which: str, prior: str
) -> None:
    M = 33
    patterns = {
        "denser": dense.random_pattern(M, 5, seed=3),
        "diagonal": dense.random_pattern(M, 0),
        "first points": dense.first_points(M, 3),
    }
    pattern, prior_pattern = patterns[which], patterns[prior]
    V, U = dense.random_columns(pattern), dense.random_columns(prior_pattern, seed=1)
    norms = posterior_norms(pattern, V, prior_pattern, U)
    full_V, full_U = dense.dense_factor(pattern, V), dense.dense_factor(prior_pattern, U)
    expected = posterior_reference(pattern, full_V, prior_pattern, full_U, list(range(M)))
    for ours, theirs in zip(norms, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_an_equal_pattern_is_the_same_pattern(dense: ModuleType, engine: str) -> None:
    pattern, equal = dense.random_pattern(20, 3), dense.random_pattern(20, 3)
    V, U = dense.random_columns(pattern), dense.random_columns(pattern, seed=1)
    same, other = posterior_norms(pattern, V, pattern, U), posterior_norms(pattern, V, equal, U)
    for ours, theirs in zip(same, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_all_earlier_points_give_the_exact_inverse(dense: ModuleType, engine: str) -> None:
    pattern = dense.full_pattern(19)
    V, U = dense.random_columns(pattern), dense.random_columns(pattern, seed=1)
    variance, trace = posterior_norms(pattern, V, pattern, U)
    full = dense.dense_factor(pattern, V)
    inverse = torch.linalg.inv(full @ full.mT)
    torch.testing.assert_close(variance, inverse.diagonal(), rtol=1e-9, atol=1e-10)
    full_U = dense.dense_factor(pattern, U)
    expected = (full_U * (inverse @ full_U)).sum(0)
    torch.testing.assert_close(trace, expected, rtol=1e-9, atol=1e-10)


def test_a_factor_equal_to_the_prior_has_traces_of_one(dense: ModuleType, engine: str) -> None:
    pattern = dense.random_pattern(40, 4)
    V = dense.random_columns(pattern)
    _, trace = posterior_norms(pattern, V, pattern, V)
    torch.testing.assert_close(trace, torch.ones_like(trace), rtol=1e-12, atol=1e-12)


def test_rows_in_any_order_and_twice(dense: ModuleType, engine: str) -> None:
    pattern = dense.random_pattern(40, 4)
    V, U = dense.random_columns(pattern, (2,)), dense.random_columns(pattern, seed=1)
    whole = posterior_norms(pattern, V, pattern, U)
    rows = torch.tensor([39, 0, 17, 17, 5, 39, 1, 2, 3, 8], dtype=torch.int32)
    some = posterior_norms(pattern, V, pattern, U, rows)
    for part, all_of_them in zip(some, whole, strict=True):
        # Lanes share work, not sums.
        torch.testing.assert_close(part, all_of_them[:, rows.long()], rtol=1e-13, atol=1e-13)
    empty = posterior_norms(pattern, V, pattern, U, rows[:0])
    assert empty[0].shape == empty[1].shape == (2, 0)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("k", [1, 5])
def test_inverse_norms_solve_the_block_of_ancestors(
    dense: ModuleType, engine: str, batch: tuple[int, ...], k: int
) -> None:
    M, R = 37, 23
    pattern = dense.random_pattern(M, 3, ragged=True)
    V = dense.random_columns(pattern, batch)
    index, values = sparse_sides(M, R, k)
    norms = inverse_norms(pattern, V, index, values)
    full, sides = dense.dense_factor(pattern, V), dense_sides(index, values, M)
    expected = [
        truncated(pattern, full, {int(a) for a in index[r] if a >= 0}, sides[r].expand(*batch, M))
        for r in range(R)
    ]
    assert norms.shape == (*batch, R)
    torch.testing.assert_close(norms, torch.stack(expected, -1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_complete_norms_go_through_all_ancestors(
    dense: ModuleType, engine: str, batch: tuple[int, ...]
) -> None:
    """Chains and random patterns, values and gradients, against dense algebra."""
    for pattern in (dense.random_pattern(150, 2, ragged=True), dense.random_pattern(150, 1)):
        V = dense.random_columns(pattern, batch).requires_grad_()
        U = dense.random_columns(pattern, seed=1).requires_grad_()
        index, values = sparse_sides(150, 20, 4, batch)
        values.requires_grad_()
        variance, trace = posterior_norms(pattern, V, pattern, U, complete=True)
        sides = inverse_norms(pattern, V, index, values, complete=True)
        full_V, full_U = dense.dense_factor(pattern, V), dense.dense_factor(pattern, U)
        inverse = torch.linalg.inv(full_V)
        expected = (
            inverse.square().sum(-2),
            (inverse @ full_U).square().sum(-2),
            (dense_sides(index, values, 150) @ inverse.mT).square().sum(-1),
        )
        weights = torch.linspace(0.5, 1.5, 150, dtype=torch.float64)
        slopes = []
        for parts in ((variance, trace, sides), expected):
            total = sum((part * weights[: part.shape[-1]]).sum() for part in parts)
            slopes.append(torch.autograd.grad(total, (V, U, values)))
        for ours, theirs in zip((variance, trace, sides), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        used = torch.cat([pattern.neighbors >= 0, torch.ones(150, 1, dtype=torch.bool)], -1)
        (ours, *others), (theirs, *more) = slopes
        torch.testing.assert_close(ours * used, theirs * used, rtol=1e-8, atol=1e-8)
        for one, two in zip(others, more, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


def test_right_hand_sides_without_entries(dense: ModuleType, engine: str) -> None:
    pattern = dense.random_pattern(5, 2)
    V = dense.random_columns(pattern).requires_grad_()
    for width in (0, 2):
        index = torch.full((3, width), -1, dtype=torch.int32)
        values = torch.zeros(3, width, dtype=torch.float64, requires_grad=True)
        norms = inverse_norms(pattern, V, index, values)
        assert norms.tolist() == [0.0, 0.0, 0.0]
        norms.sum().backward()
        assert not V.grad.any() and values.grad.shape == (3, width)
    none = torch.zeros(0, 2, dtype=torch.int32)
    assert inverse_norms(pattern, V, none, torch.zeros(0, 2).double()).shape == (0,)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("same", [True, False])
def test_adjoint_of_posterior_norms(
    dense: ModuleType, engine: str, wanted: tuple[bool, bool], batch: tuple[int, ...], same: bool
) -> None:
    pattern = dense.random_pattern(11, 3, ragged=True)
    prior = pattern if same else dense.first_points(11, 2)
    used = [
        torch.nn.functional.pad(p.neighbors, (0, 1)) >= 0 for p in (pattern, prior)
    ]  # unused slots are zeros that no derivative reaches
    V, U = dense.random_columns(pattern, batch), dense.random_columns(prior, seed=1)
    V.requires_grad_(wanted[0])
    U.requires_grad_(wanted[1])
    rows = torch.tensor([10, 3, 3, 7, 0], dtype=torch.int32)

    def both(V: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
        return posterior_norms(pattern, V * used[0], prior, U * used[1])

    def some(V: Tensor, U: Tensor) -> Tensor:
        variance, trace = posterior_norms(pattern, V * used[0], prior, U * used[1], rows)
        return variance.log() + trace.square()

    assert torch.autograd.gradcheck(some, (V, U))
    if wanted[0]:
        assert torch.autograd.gradcheck(both, (V, U))
    else:
        assert torch.autograd.gradcheck(lambda V, U: both(V, U)[1], (V, U))


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_adjoint_of_inverse_norms(
    dense: ModuleType, engine: str, wanted: tuple[bool, bool]
) -> None:
    pattern = dense.random_pattern(9, 2)
    used = torch.nn.functional.pad(pattern.neighbors, (0, 1)) >= 0
    index, values = sparse_sides(9, 10, 3, (2,))
    V = dense.random_columns(pattern).requires_grad_(wanted[0])
    values.requires_grad_(wanted[1])
    assert torch.autograd.gradcheck(
        lambda V, b: inverse_norms(pattern, V * used, index, b * (index >= 0)), (V, values)
    )


def test_engines_agree(dense: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, prior = dense.random_pattern(300, 6), dense.random_pattern(300, 4, seed=5)
    results = []
    for compiled in (True, False):
        V = dense.random_columns(pattern, (2,)).requires_grad_()
        U = dense.random_columns(prior, seed=1).requires_grad_()
        monkeypatch.setattr(_engine, "runs_compiled", lambda like, works=compiled: works)
        variance, trace = posterior_norms(pattern, V, prior, U)
        (variance.log().sum() + trace.square().sum()).backward()
        results.append((variance, trace, V.grad, U.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_schedule_changes_nothing_but_the_order_of_sums(dense: ModuleType) -> None:
    pattern = dense.random_pattern(100, 5)
    plain = NeighborPattern(pattern.neighbors)
    V, U = dense.random_columns(pattern), dense.random_columns(pattern, seed=1)
    for ours, theirs in zip(
        posterior_norms(pattern, V, pattern, U), posterior_norms(plain, V, plain, U), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shared_bytes", [1 << 28, 0])
def test_threads(dense: ModuleType, monkeypatch: pytest.MonkeyPatch, shared_bytes: int) -> None:
    """Norms do not depend on their number; gradients do not depend on chance."""
    pattern = dense.random_pattern(203, 4)
    monkeypatch.setattr(_ancestors_cpu, "_MAX_SHARED_BYTES", shared_bytes)
    threads, results = torch.get_num_threads(), []
    try:
        for workers, rows in ((1, 5_000), (3, 100), (3, 100)):
            torch.set_num_threads(workers)
            monkeypatch.setattr(_ancestors_cpu, "_MIN_SHARED_ROWS", rows)
            V = dense.random_columns(pattern).requires_grad_()
            U = dense.random_columns(pattern, seed=1).requires_grad_()
            norms = torch.stack(posterior_norms(pattern, V, pattern, U))
            norms.square().sum().backward()
            results.append((norms.detach(), V.grad, U.grad))
    finally:
        torch.set_num_threads(threads)
    serial, first, second = results
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for ours, theirs in zip(serial, first, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_single_precision_is_computed_in_double(dense: ModuleType, engine: str) -> None:
    pattern = dense.random_pattern(30, 4)
    V, U = dense.random_columns(pattern).float(), dense.random_columns(pattern, seed=1).float()
    exact = posterior_norms(pattern, V.double(), pattern, U.double())
    V.requires_grad_()
    U.requires_grad_()
    norms = posterior_norms(pattern, V, pattern, U)
    for ours, theirs in zip(norms, exact, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.float())
    sum(part.sum() for part in norms).backward()
    assert V.grad.dtype == U.grad.dtype == torch.float32


def test_every_backward_pass_gives_the_same(dense: ModuleType, engine: str) -> None:
    pattern = dense.random_pattern(20, 3)
    V = dense.random_columns(pattern)
    U = dense.random_columns(pattern, seed=1).requires_grad_()
    loss = posterior_norms(pattern, V, pattern, U)[1].sum()
    (first,) = torch.autograd.grad(loss, U, retain_graph=True)
    (second,) = torch.autograd.grad(loss, U)
    assert torch.equal(first, second)


def test_second_derivatives_are_refused(dense: ModuleType, engine: str) -> None:
    pattern = dense.random_pattern(6, 2)
    V = dense.random_columns(pattern).requires_grad_()
    loss = posterior_norms(pattern, V, pattern, V.detach())[0].sum()
    with pytest.raises(UnsupportedError, match="differentiable once"):
        torch.autograd.grad(loss, V, create_graph=True)


@settings(max_examples=40, deadline=None)
@given(
    M=st.integers(1, 40),
    m=st.integers(0, 6),
    seed=st.integers(0, 1000),
    ragged=st.booleans(),
)
def test_truncation_only_leaves_out(
    dense: ModuleType, M: int, m: int, seed: int, ragged: bool
) -> None:
    """With non-positive entries beside the diagonal, V^-1 has none below zero, and parts of sums grow."""
    pattern = dense.random_pattern(M, m, seed, ragged)
    V = dense.random_columns(pattern, seed=seed)
    V = torch.cat([-V[..., :-1].abs(), V[..., -1:]], -1)
    variance, _ = posterior_norms(pattern, V, pattern, V)
    inverse = torch.linalg.inv(dense.dense_factor(pattern, V))
    assert bool((variance <= inverse.square().sum(0) * (1.0 + 1e-12)).all())
    assert bool((variance >= V[:, -1] ** -2 * (1.0 - 1e-12)).all())


def test_bad_input_is_refused(dense: ModuleType) -> None:
    pattern = dense.random_pattern(6, 2)
    V = dense.random_columns(pattern)
    index, values = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2).double()
    with pytest.raises(InputError, match=r"columns have shape \(6, 2\)"):
        inverse_norms(pattern, V[:, 1:], index, values)
    with pytest.raises(InputError, match="int64"):
        inverse_norms(pattern, V, index.long(), values)
    with pytest.raises(InputError, match=r"values shape \(3, 1\)"):
        inverse_norms(pattern, V, index, values[:, 1:])
    with pytest.raises(InputError, match="from 0 to 6"):
        inverse_norms(pattern, V, index + torch.tensor([0, 6], dtype=torch.int32), values)
    with pytest.raises(InputError, match=r"row 0 is \[-1, 0\]"):
        inverse_norms(pattern, V, index - torch.tensor([1, 0], dtype=torch.int32), values)
    other = dense.random_pattern(5, 2)
    with pytest.raises(InputError, match="6 rows and the prior's 5"):
        posterior_norms(pattern, V, other, dense.random_columns(other))
    with pytest.raises(InputError, match="from -1 to 2"):
        posterior_norms(pattern, V, pattern, V, torch.tensor([-1, 2], dtype=torch.int32))
    with pytest.raises(InputError, match="int64"):
        posterior_norms(pattern, V, pattern, V, torch.tensor([1]))
    with pytest.raises(InputError, match="pattern is on cpu, other arguments on meta"):
        inverse_norms(pattern, V.to("meta"), index, values)
