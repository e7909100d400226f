"""Distinct locations, the maximin order and the space-filling curve."""

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import EngineWarning, InputError
from gpvi.linalg.sparse_inverse import _points, ordering
from gpvi.linalg.sparse_inverse.ordering import maximin_order, merge_duplicates, spatial_order

compiled = importlib.import_module("gpvi.linalg.sparse_inverse._ordering_cpu")

ENGINES = {"compiled": compiled.CompiledEngine, "scipy": ordering.SciPyEngine}
UNLIMITED = 10**15

engines = pytest.mark.parametrize("engine", ENGINES)


def uniform(M: int, D: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((M, D))


def gridded(M: int, D: int) -> np.ndarray:
    return np.round(4.0 * uniform(M, D))


def clustered(M: int, D: int) -> np.ndarray:
    """One cluster of spacing about 1e-9 and a few points far away."""
    x = 1e-9 * uniform(M, D) * M ** (1 / D)
    x[:: M // 20] = 100.0 * uniform(len(x[:: M // 20]), D, 1)
    return x


SHAPES: dict[str, Callable[[int, int], np.ndarray]] = {
    "uniform": uniform,
    "gridded": gridded,
    "clustered": clustered,
}


def violations(x: np.ndarray, order: np.ndarray) -> int:
    """How many points were not the farthest from those before them."""
    distance, count = np.square(x - x[order[0]]).sum(-1), 0
    for row in order[1:]:
        count += int(distance[row] < distance.max() * (1 - 1e-9) - 1e-300)
        distance = np.minimum(distance, np.square(x - x[row]).sum(-1))
    return count


# --- distinct locations -----------------------------------------------------------------------------


def check_merged(x: Tensor) -> None:
    first, location = merge_duplicates(x)
    assert first.dtype == location.dtype == torch.int64
    assert torch.equal(x[first][location], x)
    seen: dict[tuple[float, ...], int] = {}
    numbers = [seen.setdefault(tuple(0.0 + v for v in row), len(seen)) for row in x.tolist()]
    assert location.tolist() == numbers
    assert first.tolist() == [numbers.index(k) for k in range(len(seen))]


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 5), st.sampled_from([32, 64]))
def test_merging_against_a_dictionary(M: int, D: int, values: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(M + D)
    x = torch.randint(0, values + 1, (M, D), generator=generator).double() / 3
    check_merged(x if bits == 64 else x.float())


def test_zero_has_no_sign() -> None:
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0], [-0.0, -1.0]])
    check_merged(x)
    assert merge_duplicates(x)[1].tolist() == [0, 0, 1, 1]


def test_nothing_is_merged_but_equals() -> None:
    x = torch.tensor([[1.0], [1.0 + 2**-52]], dtype=torch.float64)
    assert merge_duplicates(x)[0].tolist() == [0, 1]
    assert len(merge_duplicates(torch.zeros(5000, 3))[0]) == 1


# --- maximin ----------------------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("D", [1, 2, 3, 5, 18])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_point_is_the_farthest(shape: str, D: int, engine: str) -> None:
    x = SHAPES[shape](300, D)
    order, distance = ENGINES[engine]().maximin(x, 7, UNLIMITED)
    assert order[0] == 7
    assert len(np.unique(x, axis=0)) == len(np.unique(order)) == len(order)
    assert violations(x, order) == 0
    assert (distance[order] < 0.0).all()
    assert (np.delete(distance, order) == 0.0).all()


@given(st.integers(1, 80), st.integers(1, 4), st.integers(0, 10**6), st.booleans())
def test_engines_agree(M: int, D: int, seed: int, rounded: bool) -> None:
    x = uniform(M, D, seed)
    x = np.round(x * 6) if rounded else x
    results = [engine().maximin(x, seed % M, UNLIMITED) for engine in ENGINES.values()]
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)  # ties included


@pytest.mark.parametrize("D", [1, 2, 18])
def test_order_starts_at_the_centroid_and_ends_with_duplicates(D: int) -> None:
    x = torch.from_numpy(uniform(200, D))
    x[[3, 150, 77]] = x[[20, 3, 20]]
    order = maximin_order(x)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(200))
    assert int(order[0]) == int((x - x.mean(0)).square().sum(-1).argmin())
    assert violations(x.numpy(), order.numpy()) == 0
    # Of 3, 20 and 77 (150 has the old place of 3) the lowest is taken, the others come last.
    assert order[-2:].tolist() == [20, 77] and int(order[-3]) != 3


def test_coincident_points_stay_in_order() -> None:
    assert maximin_order(torch.zeros(20_000, 2)).tolist() == list(range(20_000))
    assert maximin_order(torch.ones(1, 3)).tolist() == [0]
    x = torch.zeros(20_000, 2)
    x[12_345] = 1.0
    assert maximin_order(x).tolist()[:3] == [0, 12_345, 1]


@pytest.mark.parametrize("shape", ["uniform", "clustered"])
@pytest.mark.parametrize("D", [1, 2, 3])
def test_work_grows_hardly_faster_than_the_points(shape: str, D: int) -> None:
    x = SHAPES[shape](20_000, D)
    order, _ = compiled.CompiledEngine().maximin(x, 0, 150 * len(x))  # all pairs: 10,000 a point
    assert len(order) == len(x)


def test_beyond_the_budget_the_rest_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(uniform(3000, 18))
    exact = maximin_order(x)
    monkeypatch.setattr(ordering, "_PAIRS", 1_000_000)
    monkeypatch.setattr(ordering, "_PAIRS_PER_POINT", 0)
    order = maximin_order(x)
    same = int((order != exact).nonzero()[0])
    assert 100 < same < 1500  # a million distances of 4.5 million
    assert sorted(order.tolist()) == list(range(3000))
    assert torch.equal(maximin_order(x), order)
    rest = order[same + 10 :].double()
    assert abs(float(torch.corrcoef(torch.stack((rest, torch.arange(len(rest)))))[0, 1])) < 0.1


def test_units_and_precision_do_not_matter() -> None:
    x = torch.from_numpy(uniform(500, 2)).float()
    order = maximin_order(x.double())
    assert torch.equal(maximin_order(x), order)
    for power in (-1000, -400, 400, 1000):
        assert torch.equal(maximin_order(x.double() * 2.0**power), order)


def test_inputs_are_left_alone() -> None:
    x = torch.from_numpy(uniform(50, 2)).requires_grad_()
    before = x.detach().clone()
    state = torch.get_rng_state()
    for result in (maximin_order(x), spatial_order(x), *merge_duplicates(x)):
        assert not result.requires_grad
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(maximin_order(x.detach().flip(1).flip(1)), maximin_order(x))


def test_memory_layout_does_not_matter() -> None:
    x = torch.from_numpy(uniform(100, 3))
    for other in (x.mT.contiguous().mT, x.repeat(1, 2)[:, :3]):
        assert torch.equal(maximin_order(other), maximin_order(x))
        assert torch.equal(spatial_order(other), spatial_order(x))


# --- the curve --------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [1, 2, 3, 8])
def test_curve_against_interleaved_bits(D: int) -> None:
    cells = np.random.default_rng(0).integers(0, 16, (400, D))
    cells[0], cells[1] = 0, 15
    bits = (cells[:, :, None] >> np.arange(3, -1, -1)) & 1  # [M, D, 4], highest first
    code = [int("".join(map(str, row.T.ravel())), 2) for row in bits]
    expected = np.argsort(code, kind="stable")
    order = spatial_order(torch.from_numpy(cells / 15.0 * 0.999 + 0.0005))
    assert order.dtype == torch.int32
    codes = np.array(code)
    assert np.array_equal(codes[order.numpy()], codes[expected])


@pytest.mark.parametrize("D", [2, 3, 5, 20])
def test_curve_keeps_neighbours_together(D: int) -> None:
    x = torch.from_numpy(uniform(2000, D))
    order = spatial_order(x)
    assert sorted(order.tolist()) == list(range(2000))
    steps = x[order.long()].diff(dim=0).norm(dim=-1).mean()
    assert steps < {2: 0.1, 3: 0.25, 5: 0.6, 20: 0.95}[D] * x.diff(dim=0).norm(dim=-1).mean()


def test_curve_of_degenerate_sets() -> None:
    assert spatial_order(torch.ones(4, 3)).tolist() == [0, 1, 2, 3]
    assert spatial_order(torch.tensor([[5.0, 1.0], [5.0, -3.0], [5.0, 0.0]])).tolist() == [1, 2, 0]


# --- engines, devices, bad input --------------------------------------------------------------------


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "gpvi.linalg.sparse_inverse._ordering_cpu", None)
    _points.compiled_engine.cache_clear()
    yield
    _points.compiled_engine.cache_clear()


def test_without_numba_scipy_serves(without_numba: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(gridded(300, 2))
    with pytest.warns(EngineWarning, match="maximin ordering.*Reinstall numba"):
        order = maximin_order(x)
    assert torch.equal(maximin_order(x), order)  # warns once
    monkeypatch.undo()
    _points.compiled_engine.cache_clear()
    assert torch.equal(maximin_order(x), order)


@pytest.mark.gpu
def test_results_go_back_to_the_device() -> None:
    x = torch.from_numpy(uniform(100, 2))
    for function in (maximin_order, spatial_order, lambda v: merge_duplicates(v)[1]):
        result = function(x.cuda())
        assert result.device.type == "cuda"
        assert torch.equal(result.cpu(), function(x))


@pytest.mark.parametrize("function", [maximin_order, merge_duplicates, spatial_order])
def test_bad_input(function: Callable[[Tensor], Any]) -> None:
    x = torch.zeros(5, 2)
    x[1, 0], x[1, 1], x[3, 0] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(InputError, match="3 NaN or infinite coordinates in 2 of 5 rows"):
        function(x)
    with pytest.raises(InputError, match=r"int64.*x\.double\(\)"):
        function(torch.zeros(5, 2, dtype=torch.int64))
    for shape in ((5,), (0, 2), (5, 0), (2, 5, 2)):
        with pytest.raises(InputError, match=r"shape \["):
            function(torch.zeros(shape))


def test_the_first_point_can_be_chosen():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    assert maximin_order(x, start=4).tolist()[:3] == [4, 0, 2]
    with pytest.raises(InputError, match="start is 5"):
        maximin_order(x, start=5)
