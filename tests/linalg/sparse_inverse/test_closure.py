"""Exact covariances over all ancestors: both engines against dense inverses, adjoints, refusals."""

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.linalg.sparse_inverse import _ancestors_tensor, _engine, closure
from gpvi.linalg.sparse_inverse.ancestors import posterior_norms
from gpvi.linalg.sparse_inverse.closure import inverse_diagonal, inverse_gram
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tensor":
        monkeypatch.setattr(_engine, "runs_compiled", lambda like: False)
    return request.param


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few points make many chunks and blocks."""
    monkeypatch.setattr(closure, "_CHUNK_BYTES", 8)
    monkeypatch.setattr(closure, "_POINTS", 5)
    monkeypatch.setattr(_ancestors_tensor, "_BLOCK", 7)


def sides(
    M: int, R: int, k: int, batch: tuple[int, ...] = (), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Indices, the last of them unused in every other row, and values."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(M, generator=generator)[:k] for _ in range(R)]).int()
    index[::2, k - 1 :] = -1
    values = torch.randn(*batch, R, k, generator=generator, dtype=torch.float64)
    return index, values * (index >= 0)


def dense_sides(index: Tensor, values: Tensor, M: int) -> Tensor:
    """[*b, R, M]."""
    wide = values.new_zeros(*values.shape[:-1], M + 1)
    place = torch.where(index < 0, M, index.long()).expand(values.shape)
    return wide.scatter_add(-1, place, values)[..., :M]


def dense_gram(dense: ModuleType, pattern: NeighborPattern, V: Tensor, *parts: Tensor) -> Tensor:
    full = dense.dense_factor(pattern, V)
    left, right = parts[0], parts[-1]
    return left @ torch.linalg.inv(full @ full.mT) @ right.mT


@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
def test_gram_is_the_dense_product(
    dense: ModuleType, engine: str, small_chunks: None, batch: tuple[int, ...]
) -> None:
    M = 50
    pattern = dense.random_pattern(M, 3, ragged=True)
    V = dense.random_columns(pattern, batch)
    index, values = sides(M, 21, 4)
    gram = inverse_gram(pattern, V, index, values)
    expected = dense_gram(dense, pattern, V, dense_sides(index, values, M))
    assert gram.shape == (*batch, 21, 21)
    torch.testing.assert_close(gram, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(gram, gram.mT)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_two_sets_of_right_hand_sides(
    dense: ModuleType, engine: str, small_chunks: None, batch: tuple[int, ...]
) -> None:
    M = 50
    pattern = dense.random_pattern(M, 3)
    V = dense.random_columns(pattern)
    one, two = sides(M, 9, 4, batch), sides(M, 19, 2, seed=1)
    gram = inverse_gram(pattern, V, *one, other=two)
    expected = dense_gram(dense, pattern, V, dense_sides(*one, M), dense_sides(*two, M))
    assert gram.shape == (*batch, 9, 19)
    torch.testing.assert_close(gram, expected, rtol=1e-10, atol=1e-10)
    back = inverse_gram(pattern, V, *two, other=one)
    torch.testing.assert_close(gram, back.mT, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_adjoint_of_gram(
    dense: ModuleType, engine: str, wanted: tuple[bool, bool], batch: tuple[int, ...]
) -> None:
    pattern = dense.random_pattern(12, 3, ragged=True)
    used = torch.nn.functional.pad(pattern.neighbors, (0, 1)) >= 0
    V = dense.random_columns(pattern, batch).requires_grad_(wanted[0])
    index, values = sides(12, 10, 3)
    values.requires_grad_(wanted[1])

    def gram(V: Tensor, values: Tensor) -> Tensor:
        # Weights that are not symmetric.
        weights = torch.arange(100.0).view(10, 10).double().sin()
        return weights * inverse_gram(pattern, V * used, index, values * (index >= 0))

    assert torch.autograd.gradcheck(gram, (V, values))


@pytest.mark.parametrize("number", [0, 1, 2, None])
def test_adjoint_with_two_sets(
    dense: ModuleType, engine: str, small_chunks: None, number: int | None
) -> None:
    pattern = dense.random_pattern(12, 2)
    used = torch.nn.functional.pad(pattern.neighbors, (0, 1)) >= 0
    (one, left), (two, right) = sides(12, 4, 3), sides(12, 9, 2, seed=1)
    arguments = (dense.random_columns(pattern), left, right)
    for n, argument in enumerate(arguments):
        argument.requires_grad_(number is None or n == number)

    def gram(V: Tensor, left: Tensor, right: Tensor) -> Tensor:
        other = (two, right * (two >= 0))
        return inverse_gram(pattern, V * used, one, left * (one >= 0), other=other)

    assert torch.autograd.gradcheck(gram, arguments)


def test_engines_agree(dense: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, results = dense.random_pattern(700, 5), []
    index, values = sides(700, 150, 6)
    weights = dense.random_vector(150, 150)
    for compiled in (True, False):
        monkeypatch.setattr(_engine, "runs_compiled", lambda like, works=compiled: works)
        V = dense.random_columns(pattern).requires_grad_()
        b = values.clone().requires_grad_()
        gram = inverse_gram(pattern, V, index, b)
        (gram * weights).sum().backward()
        results.append((gram, V.grad, b.grad, inverse_diagonal(pattern, V)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_only_ancestors_are_gone_through(dense: ModuleType, engine: str) -> None:
    """Columns outside the closure may hold anything."""
    pattern = NeighborPattern(
        torch.tensor([[-1, -1], [0, -1], [-1, -1], [1, -1], [2, 3]], dtype=torch.int32)
    )
    V = dense.random_columns(pattern)
    index, values = torch.tensor([[3], [1]], dtype=torch.int32), torch.ones(2, 1).double()
    expected = inverse_gram(pattern, V, index, values)
    V[[2, 4]] = float("nan")
    assert torch.equal(inverse_gram(pattern, V, index, values), expected)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("M", "m"), [(1, 0), (6, 0), (40, 3)])
def test_diagonal_is_that_of_the_inverse(
    dense: ModuleType, engine: str, small_chunks: None, batch: tuple[int, ...], M: int, m: int
) -> None:
    pattern = dense.random_pattern(M, m, ragged=True)
    V = dense.random_columns(pattern, batch)
    full = dense.dense_factor(pattern, V)
    expected = torch.linalg.inv(full @ full.mT).diagonal(dim1=-2, dim2=-1)
    variance = inverse_diagonal(pattern, V.requires_grad_())
    torch.testing.assert_close(variance, expected, rtol=1e-10, atol=1e-10)
    assert not variance.requires_grad


def test_nothing_to_do(dense: ModuleType, engine: str) -> None:
    pattern = dense.random_pattern(6, 2)
    V = dense.random_columns(pattern).requires_grad_()
    for rows, width in ((0, 2), (3, 0), (3, 2)):
        index = torch.full((rows, width), -1, dtype=torch.int32)
        values = torch.zeros(rows, width, dtype=torch.float64, requires_grad=True)
        gram = inverse_gram(pattern, V, index, values)
        assert gram.shape == (rows, rows) and not gram.any()
        gram.sum().backward()
        assert not V.grad.any() and values.grad.shape == (rows, width)


def test_single_precision_is_computed_in_double(dense: ModuleType, engine: str) -> None:
    pattern = dense.random_pattern(30, 4)
    V = dense.random_columns(pattern, dtype=torch.float32)
    index, values = sides(30, 9, 3)
    exact = inverse_gram(pattern, V.double(), index, values.float().double())
    gram = inverse_gram(pattern, V, index, values.float())
    assert gram.dtype == torch.float32
    assert torch.equal(gram, exact.float())
    assert inverse_diagonal(pattern, V).dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(M=st.integers(1, 40), m=st.integers(0, 5), R=st.integers(1, 12), seed=st.integers(0, 1000))
def test_gram_is_positive_semidefinite(
    dense: ModuleType, M: int, m: int, R: int, seed: int
) -> None:
    pattern = dense.random_pattern(M, m, seed, ragged=True)
    V = dense.random_columns(pattern, seed=seed)
    gram = inverse_gram(pattern, V, *sides(M, R, min(M, 3), seed=seed))
    values = torch.linalg.eigvalsh(gram)
    assert float(values.min()) >= -1e-12 * max(1.0, float(values.max()))


@settings(max_examples=20, deadline=None)
@given(M=st.integers(1, 30), seed=st.integers(0, 1000))
def test_truncated_variances_are_exact_on_all_earlier_points(
    dense: ModuleType, M: int, seed: int
) -> None:
    pattern = dense.full_pattern(M)
    V = dense.random_columns(pattern, seed=seed)
    variance, _ = posterior_norms(pattern, V, pattern, V)
    torch.testing.assert_close(variance, inverse_diagonal(pattern, V), rtol=1e-10, atol=1e-10)


def test_second_derivatives_are_refused(dense: ModuleType, engine: str) -> None:
    pattern = dense.random_pattern(6, 2)
    V = dense.random_columns(pattern).requires_grad_()
    loss = inverse_gram(pattern, V, *sides(6, 3, 2)).sum()
    with pytest.raises(UnsupportedError, match="differentiable once"):
        torch.autograd.grad(loss, V, create_graph=True)


def test_bad_input_is_refused(dense: ModuleType) -> None:
    pattern = dense.random_pattern(6, 2)
    V = dense.random_columns(pattern)
    index, values = sides(6, 3, 2)
    with pytest.raises(InputError, match=r"columns have shape \(5, 3\)"):
        inverse_gram(pattern, V[1:], index, values)
    with pytest.raises(InputError, match="other index reaches from 6 to 6"):
        wrong = torch.full((2, 1), 6, dtype=torch.int32)
        inverse_gram(pattern, V, index, values, other=(wrong, torch.ones(2, 1).double()))
    with pytest.raises(InputError, match="index has shape"):
        inverse_gram(pattern, V, index.float(), values)
    with pytest.raises(InputError, match="pattern has 6 rows"):
        inverse_diagonal(pattern, V[1:])
