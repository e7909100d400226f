"""Nearest earlier points and nearest points, against brute force."""

import copy
import importlib
import pickle
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import EngineWarning, InputError
from gpvi.linalg.sparse_inverse import _points, neighbors
from gpvi.linalg.sparse_inverse.neighbors import (
    NeighborSearch,
    earlier_neighbors,
    nearest_points,
    neighbor_pattern,
)
from gpvi.linalg.sparse_inverse.ordering import maximin_order, spatial_order

compiled = importlib.import_module("gpvi.linalg.sparse_inverse._neighbors_cpu")

sizes = st.integers(1, 120)
dimensions = st.integers(1, 6)
counts = st.integers(1, 12)
seeds = st.integers(0, 10**6)


def uniform(M: int, D: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((M, D))


def clustered(M: int, D: int) -> np.ndarray:
    x = 1e-9 * uniform(M, D)
    x[:: M // 20] = 100.0 * uniform(len(x[:: M // 20]), D, 1)
    return x


def brute_force(x: np.ndarray, queries: np.ndarray, limits: np.ndarray, m: int) -> np.ndarray:
    """Nearest rows below the limits, ties to the lower one; sums run over the columns in turn."""
    out = np.full((len(queries), m), -1, dtype=np.int32)
    for q, (z, limit) in enumerate(zip(queries, limits, strict=True)):
        distance = sum(np.square(x[:limit, d] - z[d]) for d in range(x.shape[1]))
        found = np.sort(np.argsort(distance, kind="stable")[:m])
        out[q, : len(found)] = found
    return out


def check_distances(
    x: np.ndarray, queries: np.ndarray, limits: np.ndarray, found: np.ndarray
) -> None:
    """The same distances as brute force, whatever the choice among ties; ascending, -1 behind."""
    expected = brute_force(x, queries, limits, found.shape[1])
    assert np.array_equal(found < 0, expected < 0)
    assert (found < limits[:, None]).all()
    real = found[:, 1:] >= 0
    assert (np.diff(found, axis=1)[real] > 0).all()

    def distances(index: np.ndarray) -> np.ndarray:
        value = np.square(x[index] - queries[:, None]).sum(-1)
        return np.sort(np.where(index < 0, np.inf, value), axis=1)

    np.testing.assert_allclose(distances(found), distances(expected), rtol=1e-12)


def scipy_earlier(x: np.ndarray, m: int, first: int) -> np.ndarray:
    engine = neighbors.SciPyEngine()
    return engine.earlier(engine.tree(x), x, m, first)


def scipy_nearest(x: np.ndarray, queries: np.ndarray, m: int) -> np.ndarray:
    engine = neighbors.SciPyEngine()
    return engine.nearest(engine.tree(x), queries, m, np.arange(len(queries)))


# --- exactness --------------------------------------------------------------------------------------


@given(sizes, dimensions, counts, seeds, st.floats(0, 1), st.booleans())
def test_earlier_neighbors(M: int, D: int, m: int, seed: int, share: float, ties: bool) -> None:
    x = uniform(M, D, seed)
    x = np.round(4 * x) if ties else x
    first = int(share * M)
    rows = np.arange(first, M)
    found = earlier_neighbors(torch.from_numpy(x), m, first)
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), brute_force(x, x[first:], rows, m))
    check_distances(x, x[first:], rows, scipy_earlier(x, m, first))


@given(sizes, st.integers(1, 60), dimensions, counts, seeds, st.booleans())
def test_nearest_points(M: int, Q: int, D: int, m: int, seed: int, ties: bool) -> None:
    x, z = uniform(M, D, seed), 1.5 * uniform(Q, D, seed + 1)
    x, z = (np.round(4 * x), np.round(4 * z)) if ties else (x, z)
    limits = np.full(Q, M)
    found = nearest_points(torch.from_numpy(x), torch.from_numpy(z), m)
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), brute_force(x, z, limits, m))
    check_distances(x, z, limits, scipy_nearest(x, z, m))


@pytest.mark.parametrize("D", [1, 2, 18, 50])
@pytest.mark.parametrize("order", ["given", "maximin", "sorted"])
def test_larger_sets(D: int, order: str) -> None:
    x = torch.from_numpy(uniform(1500, D))
    if order != "given":
        x = x[maximin_order(x) if order == "maximin" else x[:, 0].argsort()]
    found, values = earlier_neighbors(x, 20).numpy(), x.numpy()
    assert np.array_equal(found, brute_force(values, values, np.arange(1500), 20))
    check_distances(values, values, np.arange(1500), scipy_earlier(values, 20, 0))


def test_scipy_asks_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_MAX_ENTRIES", 500)
    x = uniform(400, 2)
    assert np.array_equal(scipy_earlier(x, 9, 3), earlier_neighbors(torch.from_numpy(x), 9, 3))
    expected = nearest_points(torch.from_numpy(x), torch.from_numpy(x + 0.1), 9)
    assert np.array_equal(scipy_nearest(x, x + 0.1, 9), expected)


def test_appended_points() -> None:
    old, new = torch.from_numpy(uniform(300, 2)), torch.from_numpy(uniform(80, 2, 1))
    together = torch.cat((old, new))
    assert torch.equal(earlier_neighbors(together, 7, 300), earlier_neighbors(together, 7)[300:])
    assert earlier_neighbors(together, 7, 380).shape == (0, 7)


def test_fewer_points_than_neighbours() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0]])
    assert earlier_neighbors(x, 4).tolist() == [[-1] * 4, [0, -1, -1, -1], [0, 1, -1, -1]]
    assert nearest_points(x, x[:1], 4).tolist() == [[0, 1, 2, -1]]
    assert earlier_neighbors(torch.ones(1, 2), 1).tolist() == [[-1]]


# --- hard sets --------------------------------------------------------------------------------------


def looked_at(x: np.ndarray, m: int) -> float:
    """Points that the search looks at for a row."""
    tree, rows = compiled.build_tree(x, 16), np.arange(len(x), dtype=np.int32)
    out = np.empty((len(x), m), dtype=np.int32)
    return compiled._search(tree, x, rows, rows, rows, out) / len(x)


@pytest.mark.parametrize("D", [1, 2, 3])
def test_work_hardly_depends_on_the_arrangement(D: int) -> None:
    M = 20_000
    for x in (uniform(M, D), clustered(M, D), np.zeros((M, D)), np.sort(uniform(M, D), axis=0)):
        assert looked_at(x, 10) < {1: 100, 2: 100, 3: 200}[D]


def test_coincident_points() -> None:
    found = earlier_neighbors(torch.zeros(20_000, 2), 3)
    assert (found[3:] == torch.tensor([0, 1, 2])).all()
    assert nearest_points(torch.zeros(20_000, 2), torch.ones(2, 2), 2).tolist() == [[0, 1]] * 2


def test_units_and_precision_do_not_matter() -> None:
    x = torch.from_numpy(uniform(500, 3)).float()
    expected = earlier_neighbors(x.double(), 6)
    assert torch.equal(earlier_neighbors(x, 6), expected)
    assert torch.equal(earlier_neighbors(x.double() * 2.0**900, 6), expected)
    scaled = nearest_points(x.double() * 2.0**-900, x.double() * 2.0**-899, 6)
    assert torch.equal(scaled, nearest_points(x, 2 * x, 6))


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_do_not_show(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(np.round(20 * uniform(700, 2)))
    expected = earlier_neighbors(x, 8, 5), nearest_points(x, x + 0.3, 8)
    monkeypatch.setattr(compiled, "_MIN_SHARED_ROWS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)
    assert torch.equal(earlier_neighbors(x, 8, 5), expected[0])
    assert torch.equal(nearest_points(x, x + 0.3, 8), expected[1])


# --- pattern, engines, devices, bad input -----------------------------------------------------------


def test_pattern() -> None:
    x = torch.from_numpy(uniform(200, 2))
    pattern = neighbor_pattern(x, 5)
    assert torch.equal(pattern.neighbors, earlier_neighbors(x, 5))
    assert torch.equal(pattern.order, spatial_order(x))


def test_inputs_are_left_alone() -> None:
    x = torch.from_numpy(uniform(60, 2)).requires_grad_()
    before = x.detach().clone()
    assert torch.equal(earlier_neighbors(x, 3), earlier_neighbors(x.mT.contiguous().mT, 3))
    assert torch.equal(nearest_points(x, x, 1).squeeze(-1), torch.arange(60, dtype=torch.int32))
    assert torch.equal(x, before)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "gpvi.linalg.sparse_inverse._neighbors_cpu", None)
    _points.compiled_engine.cache_clear()
    yield
    _points.compiled_engine.cache_clear()


def test_without_numba_scipy_serves(without_numba: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(uniform(300, 2))
    with pytest.warns(EngineWarning, match="neighbour search.*Reinstall numba"):
        earlier = earlier_neighbors(x, 5)
    nearest = nearest_points(x, x + 0.1, 5)  # warns once
    monkeypatch.undo()
    _points.compiled_engine.cache_clear()
    assert torch.equal(earlier_neighbors(x, 5), earlier)
    assert torch.equal(nearest_points(x, x + 0.1, 5), nearest)


@pytest.mark.gpu
def test_results_go_back_to_the_device() -> None:
    x = torch.from_numpy(uniform(100, 2))
    for device, host in (
        (earlier_neighbors(x.cuda(), 5), earlier_neighbors(x, 5)),
        (nearest_points(x.cuda(), x.cuda(), 5), nearest_points(x, x, 5)),
        (neighbor_pattern(x.cuda(), 5).order, neighbor_pattern(x, 5).order),
    ):
        assert device.device.type == "cuda"
        assert torch.equal(device.cpu(), host)


def check_bad_points(x: Tensor, match: str) -> None:
    for call in (lambda: earlier_neighbors(x, 2), lambda: neighbor_pattern(x, 2)):
        with pytest.raises(InputError, match=match):
            call()
    with pytest.raises(InputError, match=match):
        nearest_points(torch.ones(3, 2), x, 2)


def test_bad_input() -> None:
    x = torch.zeros(5, 2)
    x[2] = torch.nan
    check_bad_points(x, "2 NaN or infinite coordinates in 1 of 5 rows")
    check_bad_points(torch.zeros(5, 2, dtype=torch.int32), r"int32.*double\(\)")
    for shape in ((5,), (0, 2), (5, 0), (2, 5, 2)):
        check_bad_points(torch.zeros(shape), r"shape \[M, D\]")
    with pytest.raises(InputError, match=r"points \(5, 2\), queries \(5, 3\)"):
        nearest_points(torch.zeros(5, 2), torch.zeros(5, 3), 2)
    for number in (0, -1):
        with pytest.raises(InputError, match="at least 1"):
            earlier_neighbors(torch.zeros(5, 2), number)
        with pytest.raises(InputError, match="at least 1"):
            nearest_points(torch.zeros(5, 2), torch.zeros(5, 2), number)
    for first in (-1, 6):
        with pytest.raises(InputError, match=f"first is {first}.*0 to 5"):
            earlier_neighbors(torch.zeros(5, 2), 2, first)


# --- a search that is kept --------------------------------------------------------------------------


def test_one_search_for_many_questions() -> None:
    x, z = torch.from_numpy(uniform(300, 3)), torch.from_numpy(uniform(50, 3, 1))
    search = NeighborSearch(x)
    assert len(search) == 300
    assert torch.equal(search.earlier(7), earlier_neighbors(x, 7))
    assert torch.equal(search.earlier(7, first=250), earlier_neighbors(x, 7, first=250))
    assert torch.equal(search.nearest(z, 7), nearest_points(x, z, 7))
    for copied in (copy.deepcopy(search), pickle.loads(pickle.dumps(search))):
        assert torch.equal(copied.nearest(z, 4), nearest_points(x, z, 4))


def test_renumbered_search() -> None:
    x, z = torch.from_numpy(uniform(200, 2)), torch.from_numpy(uniform(40, 2, 1))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    search = NeighborSearch(x).renumbered(torch.argsort(order))
    assert torch.equal(search.nearest(z, 6), nearest_points(x[order], z, 6))
    few = NeighborSearch(x[:3]).renumbered(torch.tensor([2, 0, 1]))
    assert few.nearest(z[:1], 5).tolist() == [[0, 1, 2, -1, -1]]
    with pytest.raises(InputError, match=r"one for each of the 200 points"):
        search.renumbered(order[:10])


@pytest.mark.parametrize("first", [0.0, 0.25])
def test_search_far_beyond_its_points(first: float) -> None:
    x = torch.from_numpy(uniform(60, 2))
    x[0, 0] = first
    z = torch.tensor([[1e200, 0.3], [0.2, -1e200]], dtype=torch.float64)
    search = NeighborSearch(x)
    # Seen from there, all points are at the same distance in floating point.
    assert search.nearest(z, 3).tolist() == [[0, 1, 2]] * 2
    near = x[:5] + 0.01
    check_distances(x.numpy(), near.numpy(), np.full(5, 60), search.nearest(near, 3).numpy())
