"""Pairs within sets of points: each there, each where the index says, none twice."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpvi.linalg.sparse_inverse._pair_columns_tensor import Pairs, TensorEngine

LANES = 4


def compiled_finder(num_points: int, block_points: int = 1024) -> Any:
    from gpvi.linalg.sparse_inverse._pairs_cpu import PairFinder

    return PairFinder(num_points, block_points)


def place(pairs: Pairs, row: int, slot: int) -> int:
    """Where the index of either engine has a pair of a row."""
    if pairs.places.dim() == 3:
        return int(pairs.places[row // LANES, slot, row % LANES])
    return int(pairs.places[row, slot])


def check(pairs: Pairs, sets: Tensor, repeats: bool = False) -> None:
    """The index leads to the two points of every pair of slots, and there is no pair too many."""
    found = [frozenset(p) for p in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)]
    needed = set()
    for row, members in enumerate(sets.tolist()):
        for j in range(len(members)):
            for k in range(j):
                where = place(pairs, row, j * (j - 1) // 2 + k)
                if members[j] < 0 or members[k] < 0:
                    assert where == 0
                    continue
                needed.add(frozenset((members[j], members[k])))
                assert found[where] == frozenset((members[j], members[k]))
    assert needed == set(found)
    if not repeats:
        assert len(found) == len(needed)


@st.composite
def sets_of_points(draw: st.DrawFn) -> tuple[int, Tensor]:
    """Some rows of different points, with unused slots before the last."""
    num_points = draw(st.integers(1, 30))
    m = draw(st.integers(0, min(6, num_points - 1)))
    rows = draw(st.integers(1, 9))
    sets = torch.full((rows, m + 1), -1, dtype=torch.int32)
    for row in range(rows):
        count = draw(st.integers(0, m))
        members = draw(st.permutations(range(num_points)))[: count + 1]
        sets[row, :count] = torch.tensor(sorted(members[:count]), dtype=torch.int32)
        sets[row, -1] = members[count]
    return num_points, sets


@settings(deadline=None, max_examples=60)
@given(sets_of_points())
def test_every_pair_is_there_once(case: tuple[int, Tensor]) -> None:
    num_points, sets = case
    check(TensorEngine().finder(num_points)(sets), sets)
    check(compiled_finder(num_points)(sets), sets)


@settings(deadline=None, max_examples=60)
@given(sets_of_points(), st.integers(1, 12))
def test_blocks_of_few_points_only_repeat_pairs(
    case: tuple[int, Tensor], block_points: int
) -> None:
    num_points, sets = case
    check(compiled_finder(num_points, block_points)(sets), sets, repeats=True)


def test_a_finder_forgets_from_chunk_to_chunk() -> None:
    generator = torch.Generator().manual_seed(0)
    find = compiled_finder(200, 40)
    for rows, n in ((50, 6), (3, 2), (80, 30), (1, 1), (50, 6)):
        numbers = [torch.randperm(200, generator=generator)[:n] for _ in range(rows)]
        sets = torch.stack(numbers).to(torch.int32)
        check(find(sets), sets, repeats=True)


def test_neighbouring_rows_share_pairs() -> None:
    sets = torch.arange(400, dtype=torch.int32).unfold(0, 11, 1)
    for find in (compiled_finder(400), TensorEngine().finder(400)):
        pairs = find(sets)
        # 10 pairs per row with the rows before, and the 55 of the first one.
        assert len(pairs.first) == 55 + 10 * (len(sets) - 1)
        assert len(pairs.second) == len(pairs.first)


def test_a_row_alone_has_no_pairs() -> None:
    sets = torch.tensor([[-1, -1, 2]], dtype=torch.int32)
    for find in (compiled_finder(3), TensorEngine().finder(3)):
        pairs = find(sets)
        assert pairs.first.shape == pairs.second.shape == (0,)
        assert pairs.first.dtype == torch.int64


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 9])
def test_numbers_of_rows_that_do_not_fill_the_lanes(rows: int) -> None:
    sets = torch.arange(rows + 3, dtype=torch.int32).unfold(0, 4, 1)
    pairs = compiled_finder(rows + 3)(sets)
    check(pairs, sets)
    assert pairs.places.shape == (-(-rows // LANES), 6, LANES)
    assert int(pairs.places.max()) == len(pairs.first) - 1
