r"""Rows given their nearest inducing points.

Row n is :math:`f_n \mid u \sim N(\mu_n + w_n^\top (u - m)_{I_n}, d_n)` with :math:`I_n` its nearest
inducing points, :math:`w_n = K_{I_nI_n}^{-1} k_{I_nn}` and :math:`d_n` the conditional variance. A row at an
inducing input is that inducing value itself.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from gpvi.approximations._gather import take_last, take_rows
from gpvi.approximations._new_locations import _most_correlated
from gpvi.approximations._per_pattern import Position, flat, per_pattern, position_in
from gpvi.approximations._sparse_columns import columns_at
from gpvi.approximations.plan import IndexStructure
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.linalg import NeighborPattern, inverse_norms, spatial_order


@dataclass(frozen=True, eq=False)
class NeighborRows(IndexStructure):
    """Which inducing points rows are given.

    Parameters
    ----------
    index : Tensor of int32, shape [*g, N, H]
        Places of the nearest inducing points in their order, ascending, -1 behind them.
    exact : Tensor of bool, shape [*g, N]
        Rows that are an inducing value, that of their only neighbour.
    order : Tensor of int32, shape [*g, N]
        Rows in an order that keeps near ones together.
    """

    index: Tensor
    exact: Tensor
    order: Tensor

    @classmethod
    def build(
        cls, inner: SparseInversePrior, x: Tensor, number: int, merge: bool
    ) -> "NeighborRows":
        """Find the nearest inducing points of rows.

        Parameters
        ----------
        inner : SparseInversePrior
            Prior of the inducing values.
        x : Tensor, shape [*g, N, D]
            Inputs.
        number : int
            The most neighbours H of a row.
        merge : bool
            Whether rows at an inducing input are that inducing value.

        Returns
        -------
        NeighborRows
            Off the graph.
        """
        x = x.detach()
        lead = torch.broadcast_shapes(inner.lead, x.shape[:-2])
        width = min(number, inner.num_basis)
        parts = [
            _one_set(inner, position, x[position_in(x.shape[:-2], position)], width, merge)
            for position in product(*(range(size) for size in lead))
        ]
        index, exact, order = (torch.stack(part) for part in zip(*parts, strict=True))
        return cls(
            index.reshape(*lead, *index.shape[1:]),
            exact.reshape(*lead, -1),
            order.reshape(*lead, -1),
        )

    @classmethod
    def everywhere(
        cls, size: int, lead: torch.Size, device: torch.device, number: int
    ) -> "NeighborRows":
        """Rows that depend on every inducing value.

        Parameters
        ----------
        size : int
            Inducing values M.
        lead : torch.Size
            Leading dims.
        device : torch.device
            Where.
        number : int
            How many rows.

        Returns
        -------
        NeighborRows
            With all numbers in all rows.
        """
        every = torch.arange(size, dtype=torch.int32, device=device)
        order = torch.arange(number, dtype=torch.int32, device=device)
        return cls(
            every.expand(*lead, number, size),
            torch.zeros(*lead, number, dtype=torch.bool, device=device),
            order.expand(*lead, number),
        )

    @property
    def lead(self) -> torch.Size:
        """Leading dims of the data sets."""
        return self.index.shape[:-2]

    def at(self, position: Position) -> Tensor:
        """Neighbours of the rows of one data set, int32 [N, H]."""
        return self.index[position_in(self.lead, position)]

    def gather(self, values: Tensor) -> Tensor:
        """Values by place [*s, M] at the neighbours of rows, [*s, N, H]; anything where there is none."""
        places = self.index.long().clamp_min(0)
        return take_last(values, places.flatten(-2)).unflatten(-1, places.shape[-2:])

    def scatter(self, values: Tensor, size: int) -> Tensor:
        """Sums by place, [*s, M], of values [*s, N, H] at the neighbours of every row."""
        places = torch.where(self.index >= 0, self.index, size).long().flatten(-2)
        lead = torch.broadcast_shapes(values.shape[:-2], self.lead)
        total = torch.zeros(*lead, size + 1, dtype=values.dtype, device=values.device)
        flat_values = values.expand(*lead, *self.index.shape[-2:]).flatten(-2)
        return total.scatter_add(-1, places.expand(flat_values.shape), flat_values)[..., :size]

    def scatter_columns(self, values: Tensor, size: int) -> Tensor:
        """The matrix [*s, M, N] with values [*s, N, H] at the neighbours of every row."""
        places = torch.where(self.index >= 0, self.index, size).long()
        lead = torch.broadcast_shapes(values.shape[:-2], self.lead)
        shape = (*lead, *self.index.shape[-2:])
        dense = torch.zeros(*lead, len(self), size + 1, dtype=values.dtype, device=values.device)
        return dense.scatter_add(-1, places.expand(shape), values.expand(shape))[..., :size].mT

    def __len__(self) -> int:
        return self.index.shape[-2]


def row_moments(inner: SparseInversePrior, x: Tensor, rows: NeighborRows) -> Tensor:
    """Weights of the neighbours and, last, conditional variances.

    Parameters
    ----------
    inner : SparseInversePrior
        Prior of the inducing values.
    x : Tensor, shape [*g, N, D]
        Inputs.
    rows : NeighborRows
        Their neighbours.

    Returns
    -------
    Tensor, shape [*b, N, H + 1]
        In double precision.
    """
    first = inner.at_lead(inner.geometry.first)

    def moments(position: Position) -> Tensor:
        place, lead = position_in(rows.lead, position), position_in(inner.lead, position)
        here = x[position_in(x.shape[:-2], position)]
        index, exact, order = rows.index[place], rows.exact[place], rows.order[place]
        at = first[lead]
        if 0 < index.numel() < inner.num_basis:
            used, index = _used(index)
            at = at[used]
        known = take_rows(inner.x[lead], at)
        own = len(known) + torch.arange(len(here), dtype=torch.int32, device=x.device)
        columns = columns_at(inner.gp, torch.cat([known, here]), index, own, inner.nugget, order)
        scale = columns[..., -1:]
        values = torch.cat([-columns[..., :-1] / scale, scale.square().reciprocal()], -1)
        itself = torch.zeros(values.shape[-1], dtype=values.dtype, device=values.device)
        itself[0] = 1.0
        return torch.where(exact.unsqueeze(-1), itself, values)

    return per_pattern(rows.lead, moments, trailing=2)


def row_norms(
    pattern: NeighborPattern,
    factor: Tensor,
    index: Tensor,
    values: Tensor,
    exact: Tensor,
    complete: bool,
) -> Tensor:
    """``|V^-1 r_n|^2`` of sparse columns r_n.

    Parameters
    ----------
    pattern : NeighborPattern
        Of the factor.
    factor : Tensor, shape [*b, M, k + 1]
        V.
    index : Tensor of int32, shape [N, H]
        Where columns have entries.
    values : Tensor, shape [*b, N, H]
        These entries.
    exact : Tensor of bool, shape [N]
        Unit columns, whose nearest ancestors count from their neighbours, as in the divergence.
    complete : bool
        Whether to go through all ancestors, and not the nearest.

    Returns
    -------
    Tensor, shape [*b, N]
        Variances.
    """
    if complete or not bool(exact.any()):
        return inverse_norms(pattern, factor, index, values, complete=complete)
    place = index[:, 0].clamp_min(0)
    unit, slot = behind_neighbors(pattern.neighbors[place.long()], place)
    width = max(unit.shape[-1], index.shape[-1])
    own = torch.nn.functional.one_hot(slot, width).to(values)
    index, unit = (
        torch.nn.functional.pad(part, (0, width - part.shape[-1]), value=-1)
        for part in (index, unit)
    )
    values = torch.nn.functional.pad(values, (0, width - values.shape[-1]))
    chosen = exact.unsqueeze(-1)
    return inverse_norms(
        pattern, factor, torch.where(chosen, unit, index), torch.where(chosen, own, values)
    )


def _used(index: Tensor) -> tuple[Tensor, Tensor]:
    """Places that occur, ascending, and the index in numbers of these."""
    used = index[index >= 0].unique()
    number = torch.searchsorted(used, index)
    return used.long(), torch.where(index >= 0, number, -1).to(torch.int32)


def behind_neighbors(neighbors: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours [R, k] with the own number [R] behind the last one, [R, k + 1], and its slot [R]."""
    slot = (neighbors >= 0).sum(-1)
    index = torch.nn.functional.pad(neighbors, (0, 1), value=-1)
    return index.scatter(-1, slot.unsqueeze(-1), own.to(index).unsqueeze(-1)), slot


def _one_set(
    inner: SparseInversePrior, position: Position, rows: Tensor, width: int, merge: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours [N, width], rows that are an inducing value, and the order of one data set."""
    own = position_in(inner.lead, position)
    entry = flat(inner.lead, own)
    z, first = inner.x[own].detach(), inner.geometry.first[entry]
    if len(inner.geometry.first) > 1:  # only several sets are padded
        first = first[inner.geometry.real[entry]]
    number = min(width, len(first))
    scaled = inner.geometry.scaled(rows)
    if not len(rows):
        empty = torch.zeros(0, dtype=torch.int32, device=rows.device)
        return empty.reshape(0, width), empty.bool(), empty
    with torch.no_grad():
        if inner.options.neighbors == "correlation":
            index = _most_correlated(inner, take_rows(z, first), rows, number, False)
        else:
            search = inner.geometry.search(entry, lambda: take_rows(z, first))
            index = search.nearest(scaled, number)
    index = index.to(device=rows.device, dtype=torch.int32)
    index = torch.nn.functional.pad(index, (0, width - index.shape[-1]), value=-1)
    exact = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    if merge:
        index, exact = _merge(index, z, first, rows)
    return index, exact, spatial_order(scaled).to(torch.int32)


def _merge(index: Tensor, z: Tensor, first: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Leave rows at an inducing input nothing but that."""
    same = torch.stack(
        [
            (z[first[column.long().clamp_min(0)]] == rows).all(-1) & (column >= 0)
            for column in index.unbind(-1)
        ],
        -1,
    )
    exact = same.any(-1)
    place = index.gather(-1, same.to(torch.int8).argmax(-1, keepdim=True))
    alone = torch.cat([place, torch.full_like(index[:, 1:], -1)], -1)
    return torch.where(exact.unsqueeze(-1), alone, index), exact
