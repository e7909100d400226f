"""Tensor engine of the selected inverse, on any device: dense blocks of the factor, batched.

The ancestors of every row of a chunk are listed and padded to the longest list, the factor's entries
among them gathered into dense triangles, and those solved. Solves over a whole region go through its
members in blocks, dense within a block and scattered between blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["AncestorSets", "Engine", "Region"]

# Numbers that a chunk of rows may hold at once, and members of one dense block of a region.
_CHUNK = 1 << 23
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class AncestorSets:
    """Rows and the indices that their right-hand sides live on.

    Row ``rows[r]`` of ``index`` belongs to output r. ``own`` adds the number of the row itself, ``union``
    also its neighbours in the pattern. The ancestors are all these, their neighbours and the neighbours'
    neighbours; if ``complete``, also those of these, and so on. Besides the right-hand side of values,
    ``unit`` asks for that of the row's own unit vector.
    """

    pattern: NeighborPattern
    index: Tensor  # int32, shape: [Q, k]
    rows: Tensor  # int32, shape: [R]
    visit: Tensor  # int64, shape: [R]; outputs in an order that keeps near rows together
    own: bool
    union: bool
    unit: bool
    complete: bool = False

    @property
    def outputs(self) -> tuple[int, int]:
        """Shape of the norms: rows and right-hand sides."""
        return len(self.rows), 2 if self.unit else 1

    @cached_property
    def index_counts(self) -> Tensor:
        """How many indices every row has."""
        return (self.index >= 0).sum(-1, dtype=torch.int32)


@dataclass(frozen=True, eq=False)
class Region:
    """A set of indices that holds all ancestors of its members."""

    pattern: NeighborPattern
    members: Tensor  # int32, shape: [C], ascending
    position: Tensor  # int32, shape: [M]; place among the members, or -1


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Dense blocks of the factor for a chunk of rows; the last place of a flat block is for waste."""

    ancestors: Tensor  # shape: [C, n], M where there is none
    place: Tensor  # shape: [C, n, m]: where column c's entries are among the ancestors
    hit: Tensor  # shape: [C, n, m], whether they are
    seeds: Tensor  # shape: [C, k]: where the right-hand side's indices are
    own: Tensor  # shape: [C]: where the row itself is
    rows: Tensor  # shape: [C]: outputs


class Engine:
    """Plain tensor operations."""

    #: Columns of right-hand sides come in any number.
    lanes = 1

    def norms(
        self, sets: AncestorSets, factor: Tensor, values: Tensor, slopes: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``|V^-1 b|^2`` of every right-hand side and, if asked for, ``S b`` on the first one's index."""
        B = len(factor)
        norms = factor.new_empty(B, *sets.outputs)
        along = factor.new_zeros(B, len(sets.rows), values.shape[-1]) if slopes else None
        for blocks in _chunks(sets, B):
            V = _dense(blocks, factor)
            x = _solve(V, _right_hand_sides(sets, blocks, values, V.shape[-1]))
            norms[:, blocks.rows] = x.square().sum(-2)
            if along is not None:
                y = _solve_transposed(V, x[..., :1])
                along[:, blocks.rows] = _along(sets, blocks, y)
        return norms, along

    def adjoint(
        self, sets: AncestorSets, factor: Tensor, values: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted ``S b`` on the index, and the weighted sum of ``-S b (V^-1 b)'`` on the pattern."""
        B, M, slots = factor.shape
        along = factor.new_zeros(B, len(sets.rows), values.shape[-1])
        # One place more for the ancestors that pad a list.
        total = factor.new_zeros(B, (M + 1) * slots)
        number = torch.arange(slots, device=factor.device)
        for blocks in _chunks(sets, B):
            V = _dense(blocks, factor)
            x = _solve(V, _right_hand_sides(sets, blocks, values, V.shape[-1]))
            y = _solve_transposed(V, x * weights[:, blocks.rows].unsqueeze(-2))
            along[:, blocks.rows] = _along(sets, blocks, y[..., :1])
            # One more product than neighbours: column c's own.
            inner = -(y * x).sum(-1, keepdim=True)
            outer = torch.zeros_like(inner).expand(*inner.shape[:-1], slots - 1).clone()
            for k in range(y.shape[-1]):
                flat = blocks.place.flatten(1).expand(B, -1, -1)
                left = y[..., k].gather(-1, flat).view_as(outer)
                outer.sub_(left * x[..., k].unsqueeze(-1))
            products = torch.cat([outer * blocks.hit, inner], -1)
            places = blocks.ancestors.unsqueeze(-1) * slots + number
            total.index_add_(-1, places.flatten(), products.flatten(1))
        return along, total.view(B, M + 1, slots)[:, :M].contiguous()

    def closure(self, pattern: NeighborPattern, indices: list[Tensor]) -> Region:
        """All ancestors of some indices."""
        marked = torch.zeros(pattern.num_rows, dtype=torch.bool, device=pattern.neighbors.device)
        edge = torch.cat([index[index >= 0].long() for index in indices]).unique()
        while len(edge):
            marked[edge] = True
            near = pattern.neighbors[edge]
            near = near[near >= 0].long()
            edge = near[~marked[near]].unique()
        members = marked.nonzero().squeeze(-1)
        position = torch.full((len(marked),), -1, dtype=torch.int32, device=marked.device)
        position[members] = torch.arange(len(members), dtype=torch.int32, device=marked.device)
        return Region(pattern, members.int(), position)

    def descend(self, region: Region, factor: Tensor, rhs: Tensor) -> None:
        """``rhs <- V^-1 rhs`` for right-hand sides on a region."""
        for block in reversed(_region_blocks(region, factor)):
            here, outside = rhs[block.start : block.stop], ~block.inside
            here.copy_(_solve(block.triangle(), here))
            products = (block.entries * outside).unsqueeze(-1) * here.unsqueeze(1)
            rhs.index_add_(0, block.place.flatten(), products.flatten(0, 1), alpha=-1.0)

    def ascend(
        self,
        region: Region,
        factor: Tensor,
        rhs: Tensor,
        right: Tensor | None = None,
        total: Tensor | None = None,
    ) -> None:
        """``rhs <- V^-T rhs``; with ``right``, ``total`` falls by ``rhs right'`` on the pattern."""
        for block in _region_blocks(region, factor):
            here, outside = rhs[block.start : block.stop], ~block.inside
            products = torch.einsum("ck,ckw->cw", block.entries * outside, rhs[block.place])
            here.copy_(_solve_transposed(block.triangle(), here - products))
            if right is not None and total is not None:
                x = right[block.start : block.stop]
                outer = torch.einsum("ckw,cw->ck", rhs[block.place], x) * block.used
                inner = (here * x).sum(-1, keepdim=True)
                total[block.members] -= torch.cat([outer, inner], -1)


@dataclass(frozen=True, eq=False)
class _RegionBlock:
    """Columns of a run of members."""

    start: int
    stop: int
    members: Tensor  # shape: [n]
    place: Tensor  # shape: [n, m]; 0 where unused
    used: Tensor  # shape: [n, m]
    inside: Tensor  # shape: [n, m], whether the row is in the run as well
    entries: Tensor  # shape: [n, m]; 0 where unused
    diagonal: Tensor  # shape: [n]

    def triangle(self) -> Tensor:
        """The run's own block of the factor."""
        n = self.stop - self.start
        flat = self.entries.new_zeros(n * n + 1)
        column = torch.arange(n, device=flat.device).unsqueeze(-1)
        slot = (self.place - self.start) * n + column
        flat[torch.where(self.inside, slot, n * n)] = self.entries
        triangle = flat[:-1].view(n, n)
        triangle.diagonal().copy_(self.diagonal)
        return triangle


def _region_blocks(region: Region, factor: Tensor) -> list[_RegionBlock]:
    blocks = []
    for start in range(0, len(region.members), _BLOCK):
        members = region.members[start : start + _BLOCK].long()
        neighbors = region.pattern.neighbors[members].long()
        used = neighbors >= 0
        place = region.position[neighbors.clamp(min=0)].long() * used
        entries = factor[members]
        ends = (start, start + len(members))
        inside = used & (place >= start)
        parts = (members, place, used, inside, entries[:, :-1] * used, entries[:, -1])
        blocks.append(_RegionBlock(*ends, *parts))
    return blocks


def _chunks(sets: AncestorSets, batch: int) -> Iterator[_Blocks]:
    """Ancestors of all rows, chunk by chunk so that neither lists nor dense blocks grow large."""
    neighbors = sets.pattern.neighbors.long()
    M, m = neighbors.shape
    width = sets.index.shape[1] + 1 + (m if sets.union else 0)
    for part in sets.visit.split(max(1, _CHUNK // (width * (m + 1) ** 2))):
        q = sets.rows[part].long()
        index = sets.index[q].long()
        parts = [index]
        if sets.own:
            parts.append(q.unsqueeze(-1))
        if sets.union:
            parts.append(neighbors[q])
        seeds = torch.cat(parts, -1)
        ancestors = _distinct(torch.where(seeds < 0, M, seeds), M)
        generation, known = 0, -1
        # Every row's list only grows, and the longest decides nothing: count all of them.
        while generation < 2 or (sets.complete and known < int((ancestors < M).sum())):
            known, generation = int((ancestors < M).sum()), generation + 1
            seeds = torch.where(ancestors < M, ancestors, -1)
            lists = torch.cat([seeds, _neighbors_of(neighbors, seeds).flatten(1)], -1)
            ancestors = _distinct(torch.where(lists < 0, M, lists), M)
        size = max(1, _CHUNK // (batch * max(1, ancestors.shape[1]) ** 2))
        for chunk in range(0, len(part), size):
            cut = slice(chunk, chunk + size)
            yield _blocks(neighbors, ancestors[cut], index[cut], q[cut], part[cut])


def _blocks(
    neighbors: Tensor, ancestors: Tensor, index: Tensor, own: Tensor, rows: Tensor
) -> _Blocks:
    M, m = neighbors.shape
    C, n = ancestors.shape
    near = _neighbors_of(neighbors, torch.where(ancestors < M, ancestors, -1))
    flat = near.reshape(C, n * m)
    place = torch.searchsorted(ancestors, flat).clamp(max=max(0, n - 1))
    hit = ((ancestors.gather(-1, place) == flat) & (flat >= 0)).view(C, n, m)
    seeds = torch.searchsorted(ancestors, index.contiguous())
    own_place = torch.searchsorted(ancestors, own.unsqueeze(-1)).squeeze(-1)
    return _Blocks(ancestors, place.view(C, n, m), hit, seeds, own_place, rows)


def _neighbors_of(neighbors: Tensor, index: Tensor) -> Tensor:
    """Neighbours of indices, -1 for those of -1."""
    return torch.where(index.unsqueeze(-1) >= 0, neighbors[index.clamp(min=0)], -1)


def _distinct(lists: Tensor, blank: int) -> Tensor:
    """Every row's different entries, ascending, with the blank behind them."""
    lists = lists.sort(-1).values
    lists[:, 1:][lists[:, 1:] == lists[:, :-1]] = blank
    lists = lists.sort(-1).values
    longest = int((lists < blank).sum(-1).max()) if lists.numel() else 0
    return lists[:, :longest].contiguous()


def _dense(blocks: _Blocks, factor: Tensor) -> Tensor:
    """``V`` among the ancestors of every row, [B, C, n, n]; ones on the diagonal behind them."""
    B, M = factor.shape[:2]
    (C, n), device = blocks.ancestors.shape, factor.device
    columns = factor[:, blocks.ancestors.clamp(max=M - 1)]
    column = torch.arange(n, device=device).unsqueeze(-1)
    slot = torch.where(blocks.hit, blocks.place * n + column, n * n).flatten(1)
    flat = factor.new_zeros(B, C, n * n + 1)
    flat.scatter_(-1, slot.expand(B, -1, -1), columns[..., :-1].flatten(2))
    dense = flat[..., :-1].view(B, C, n, n)
    diagonal = torch.where(blocks.ancestors < M, columns[..., -1], 1.0)
    dense.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
    return dense


def _right_hand_sides(sets: AncestorSets, blocks: _Blocks, values: Tensor, n: int) -> Tensor:
    """Values and unit vectors on the ancestors, [B, C, n, 1 or 2]."""
    B, C = len(values), len(blocks.rows)
    q = sets.rows[blocks.rows].long()
    used, k = sets.index[q] >= 0, sets.index.shape[1]
    parts = values[:, q]
    rhs = values.new_zeros(B, C, n, sets.outputs[1])
    seeds = torch.where(used, blocks.seeds, 0).expand(B, -1, -1)
    if n:
        rhs[..., 0].scatter_add_(-1, seeds, parts[..., :k] * used)
    at = torch.arange(C, device=values.device)
    if sets.own:
        rhs[:, at, blocks.own, 0] += parts[..., -1]
    if sets.unit:
        rhs[:, at, blocks.own, 1] = 1.0
    return rhs


def _along(sets: AncestorSets, blocks: _Blocks, y: Tensor) -> Tensor:
    """Entries of the first solution at the indices of the values."""
    y = y[..., 0]
    if not y.shape[-1]:
        return y.new_zeros(*y.shape[:2], sets.index.shape[1])
    used = sets.index[sets.rows[blocks.rows].long()] >= 0
    seeds = torch.where(used, blocks.seeds, 0).expand(len(y), -1, -1)
    found = y.gather(-1, seeds) * used
    if not sets.own:
        return found
    at = torch.arange(len(blocks.rows), device=y.device)
    return torch.cat([found, y[:, at, blocks.own].unsqueeze(-1)], -1)


def _solve(triangle: Tensor, rhs: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(triangle, rhs, upper=True)


def _solve_transposed(triangle: Tensor, rhs: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(triangle.mT, rhs, upper=False)
