r"""Columns of the factor from covariances of pairs: rows, what an engine does, the tensor engine.

Row r has the points ``s = (neighbours, own)``, the matrix ``K = LL'`` and the column ``u = L^-T e_last``.
A cotangent g of u makes the derivative by the matrix one of rank two,

.. math:: \bar K = \operatorname{sym}(u v^\top), \quad v = \tfrac12 (g^\top u)\, u - K^{-1} g,

so that a pair of different points, which stands in K twice, gets ``u_a v_b + v_a u_b`` and the diagonal
``u_a v_a``. Everything is float64 inside.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["Block", "MemberRows", "PairEngine", "Pairs", "TensorEngine"]

# A pivot this much smaller than its diagonal entry is rounding error.
_SMALLEST_RATIO = 1e-15


class MemberRows(NamedTuple):
    """Which points a row has, and the order in which rows are visited."""

    neighbors: Tensor  # int32 [R, m], -1 behind the real ones
    own: Tensor  # int32 [R]
    schedule: Tensor | None = None  # int32 [R], a permutation

    def check(self, num_points: int, device: torch.device) -> None:
        """Refuse numbers that are not those of points, or on another device."""
        neighbors, own, schedule = self
        given = {"neighbors": neighbors, "own": own, "schedule": schedule}
        kinds = {name: tensor for name, tensor in given.items() if tensor is not None}
        R = (len(own),) if own.dim() == 1 else (-1,)
        fits = neighbors.dim() == 2 and all(t.shape[:1] == R for t in kinds.values())
        if not fits or any(t.dtype != torch.int32 or t.device != device for t in kinds.values()):
            found = ", ".join(
                f"{name} {t.dtype} {tuple(t.shape)} on {t.device}" for name, t in kinds.items()
            )
            raise InputError(
                f"expected int32 neighbors [R, m], own [R] and schedule [R] or None, all on {device}; "
                f"got {found}."
            )
        outside = (own < 0) | (own >= num_points)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise InputError(
                f"own of row {row} is {int(own[row])}; there are {num_points} points, 0 to "
                f"{num_points - 1}."
            )
        fine = ((neighbors >= -1) & (neighbors < num_points) & (neighbors != own[:, None])).all(-1)
        before, later = neighbors[:, :-1], neighbors[:, 1:]
        fine &= ((later < 0) | ((before >= 0) & (before < later))).all(-1)
        if not bool(fine.all()):
            row = int((~fine).nonzero()[0])
            raise InputError(
                f"neighbors of row {row} (point {int(own[row])}) are {neighbors[row].tolist()}; they must "
                f"be other points from 0 to {num_points - 1}, ascending, with -1 behind them."
            )
        if schedule is not None:
            numbers = torch.arange(len(own), dtype=torch.int32, device=device)
            if schedule.shape != own.shape or not torch.equal(schedule.sort().values, numbers):
                raise InputError(f"schedule is not a permutation of the {len(own)} row numbers.")

    def sets(self) -> Tensor:
        """Neighbours and own point of every row in the order of the schedule, int32 [R, m + 1]."""
        sets = torch.cat([self.neighbors, self.own.unsqueeze(-1)], -1)
        return sets if self.schedule is None else sets.index_select(0, self.schedule)


class Pairs(NamedTuple):
    """Pairs of points of some rows."""

    first: Tensor  # int64 [P], numbers of points
    second: Tensor  # int64 [P]
    places: Tensor  # int32, which pair stands where; its layout is the engine's own


class Block(NamedTuple):
    """Some rows and what their matrices consist of, detached."""

    values: Tensor  # [B, P], covariances of the pairs
    diagonal: Tensor  # [B, R, m + 1]
    places: Tensor  # int32
    sets: Tensor  # int32 [R, m + 1], -1 in unused slots


class PairEngine(Protocol):
    """Everything that touches a matrix of a row."""

    def finder(self, num_points: int) -> Callable[[Tensor], Pairs]:
        """Finds the pairs within sets [R, m + 1] of points with numbers below `num_points`."""

    def columns(self, block: Block) -> tuple[Tensor, tuple[int, int] | None]:
        """Columns [B, R, m + 1], and batch element and row of a matrix without a factor."""

    def gradients(self, upstream: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Gradients by the covariances [B, P] and the diagonals [B, R, m + 1]."""


class TensorEngine:
    """Plain tensor operations on any device that knows double precision."""

    def finder(self, num_points: int) -> Callable[[Tensor], Pairs]:
        """Finds the pairs within sets [R, m + 1] of points with numbers below `num_points`."""
        return lambda sets: _unique_pairs(sets.long(), num_points)

    def columns(self, block: Block) -> tuple[Tensor, tuple[int, int] | None]:
        """Columns [B, R, m + 1], and batch element and row of a matrix without a factor."""
        used = block.sets >= 0
        K = _matrices(block, used)
        L, info = torch.linalg.cholesky_ex(K)
        largest = K.diagonal(dim1=-2, dim2=-1)
        kept = L.diagonal(dim1=-2, dim2=-1).square() > _SMALLEST_RATIO * largest
        fine = (info == 0) & (kept & torch.isfinite(L).all(-1)).all(-1)
        u = torch.linalg.solve_triangular(L.mT, _last(block.diagonal.double()), upper=True)
        columns = torch.where(used, u.squeeze(-1), 0.0)
        if bool(fine.all()):
            return columns, None
        b, row = (~fine).nonzero()[0].tolist()
        return columns, (b, row)

    def gradients(self, upstream: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Gradients by the covariances [B, P] and the diagonals [B, R, m + 1]."""
        used = block.sets >= 0
        g = torch.where(used, upstream.double(), 0.0)
        L = torch.linalg.cholesky(_matrices(block, used))
        t = torch.linalg.solve_triangular(L, g.unsqueeze(-1), upper=False)
        t[..., -1, :] *= 0.5
        both = torch.cat([_last(g), -t], -1)
        u, v = torch.linalg.solve_triangular(L.mT, both, upper=True).unbind(-1)
        a, b = torch.tril_indices(g.shape[-1], g.shape[-1], -1, device=g.device)
        weights = u[..., a] * v[..., b] + v[..., a] * u[..., b]
        by_values = g.new_zeros(block.values.shape)
        if by_values.shape[-1] > 0:
            # Pairs with an unused slot have weight zero.
            by_values.index_add_(-1, block.places.flatten(), weights.flatten(1))
        return by_values, torch.where(used, u * v, 0.0)


def _unique_pairs(sets: Tensor, num_points: int) -> Pairs:
    """Every pair once, and an index [R, m (m + 1) / 2] that is zero where a slot is unused."""
    a, b = torch.tril_indices(sets.shape[1], sets.shape[1], -1, device=sets.device)
    first, second = sets[:, a], sets[:, b]
    used = (first >= 0) & (second >= 0)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    keys, places = torch.unique((low * num_points + high)[used], return_inverse=True)
    index = torch.zeros(used.shape, dtype=torch.int32, device=sets.device)
    index[used] = places.to(torch.int32)
    return Pairs(keys // num_points, keys % num_points, index)


def _matrices(block: Block, used: Tensor) -> Tensor:
    """Matrices [B, R, m + 1, m + 1] with a row of the identity for every unused slot."""
    diagonal = torch.where(used, block.diagonal.double(), 1.0)
    n = diagonal.shape[-1]
    a, b = torch.tril_indices(n, n, -1, device=used.device)
    lower = torch.diag_embed(diagonal)
    if block.values.shape[-1] > 0:
        covariances = block.values.double()[:, block.places.long()]
        lower[..., a, b] = torch.where(used[:, a] & used[:, b], covariances, 0.0)
    return lower


def _last(like: Tensor) -> Tensor:
    """The last unit vector [B, R, m + 1, 1]."""
    unit = torch.zeros_like(like)
    unit[..., -1] = 1.0
    return unit.unsqueeze(-1)
