"""Incomplete Cholesky factors and their derivatives as tensor operations, level by level.

The counterpart of the compiled loops for other devices. What all columns of U leave on the pattern of V
is summed up first, since it waits for nothing; then the levels of V's pattern follow one another.
"""

import torch
from torch import Tensor

from gpvi.linalg.sparse_inverse.levels import backward_levels
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["Shares", "factorize", "gradients"]

# Numbers in the largest intermediate result.
_LARGEST = 2**24


def factorize(
    pattern: NeighborPattern,
    on: NeighborPattern,
    columns: Tensor,
    precision: Tensor,
    gathered: Tensor | None,
) -> tuple[Tensor, int, int]:
    """V [F, M, k + 1] for columns [F, M, m + 1], precision [F, M] and what else adds to the product on the
    pattern [F, M, k + 1], one of them for all where F is 1, and the number of the factor and row of the
    first pivot that is not positive (-1 without any)."""
    F = max(len(part) for part in (columns, precision, gathered) if part is not None)
    M, k = on.num_rows, on.num_neighbors
    sums = columns.new_zeros(len(columns), M + 1, k + 1)
    of_columns, of_factor = _of_pattern(pattern, on), _of_pattern(on, on)
    of_columns.add(sums, columns, None, 1.0)
    sums = sums.repeat(F // len(sums), 1, 1)
    sums[:, :M, k] += precision
    if gathered is not None:
        sums[:, :M] += gathered
    V = torch.zeros_like(sums[:, :M])
    for rows in backward_levels(on):
        pivot = sums[:, rows, k:]
        bad = ~(pivot > 0.0).squeeze(-1)
        if bool(bad.any()):
            number, place = bad.nonzero()[0].tolist()
            return V, number, int(rows[place])
        root = pivot.sqrt()
        V[:, rows] = torch.cat([sums[:, rows, :k] / root, root], -1)
        of_factor.add(sums, V, rows, -1.0)
    return V * _with_diagonal(on)[1], -1, -1


def gradients(
    pattern: NeighborPattern,
    on: NeighborPattern,
    columns: Tensor,
    factor: Tensor,
    upstream: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients by columns, and by what has been gathered on the pattern [F, M, k + 1], from those by the
    factor; both for every factor."""
    F, M, k = factor.shape[0], on.num_rows, on.num_neighbors
    of_columns, of_factor = _of_pattern(pattern, on), _of_pattern(on, on)
    by_sums = factor.new_zeros(F, M + 1, k + 1)
    used = _with_diagonal(on)[1]
    upstream = upstream * used
    for rows in reversed(backward_levels(on)):
        by_factor = upstream[:, rows] + of_factor.adjoint(by_sums, factor, rows, -1.0)
        values, root = factor[:, rows, :k], factor[:, rows, k:]
        by_entries = by_factor[..., :k] / root * used[rows, :k]
        by_root = by_factor[..., k:] - (by_entries * values).sum(-1, keepdim=True)
        by_sums[:, rows] = torch.cat([by_entries, 0.5 * by_root / root], -1)
    by_columns = of_columns.adjoint(by_sums, columns, None, 1.0) * _with_diagonal(pattern)[1]
    return by_columns, by_sums[:, :M]


class Shares:
    """What columns X leave of X X' on a pattern: at row a and column b, the sum over c of ``X_ac X_bc``.

    Parameters
    ----------
    source : Tensor, shape [C, w]
        Where X has entries: rows of every column, M in unused slots.
    target : NeighborPattern
        Which entries of X X' are wanted.
    """

    def __init__(self, source: Tensor, target: NeighborPattern) -> None:
        M, self._M, self._source = target.num_rows, target.num_rows, source
        # Behind the last row stands one for unused slots, which nothing matches.
        self._target = torch.nn.functional.pad(_with_diagonal(target)[0], (0, 0, 0, 1), value=M)
        self._sorted, self._slots = self._source.sort(-1)

    def add(self, sums: Tensor, X: Tensor, rows: Tensor | None, sign: float) -> None:
        """Into the sums [F, M + 1, k + 1]. Without rows all columns count, with their last entries; with
        rows only those, without the last entry, which must be their diagonal."""
        flat = sums.view(len(sums), -1)
        for chunk in self._chunks(rows, len(X)):
            b, slot, match, place = self._matches(chunk, rows is None)
            own = X[:, chunk]
            met = own.gather(-1, slot.flatten(1).expand(len(X), -1, -1)).unflatten(
                -1, slot.shape[1:]
            )
            shares = sign * met * match * own[..., : b.shape[-1], None]
            flat.index_add_(1, place.flatten(), shares.flatten(1))

    def adjoint(self, by_sums: Tensor, X: Tensor, rows: Tensor | None, sign: float) -> Tensor:
        """Gradient by the columns of X [F, n, m + 1] from that by the sums."""
        F = len(by_sums)
        parts = []
        for chunk in self._chunks(rows, F):
            b, slot, match, _ = self._matches(chunk, rows is None)
            own = X[:, chunk].expand(F, -1, -1)
            index = slot.flatten(1).expand(F, -1, -1)
            g = sign * by_sums[:, b] * match
            met = own.gather(-1, index).unflatten(-1, slot.shape[1:])
            part = torch.zeros_like(own)
            part[..., : b.shape[-1]] = (g * met).sum(-1)
            shares = (g * own[..., : b.shape[-1], None]).flatten(2)
            parts.append(part.scatter_add(-1, index, shares))
        return torch.cat(parts, 1)

    def _chunks(self, rows: Tensor | None, F: int) -> tuple[Tensor, ...]:
        if rows is None:
            rows = torch.arange(len(self._source), device=self._source.device)
        size = F * self._source.shape[-1] * self._target.shape[-1]
        return rows.split(max(1, _LARGEST // max(1, size)))

    def _matches(self, chunk: Tensor, diagonal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For columns c [n], their rows b [n, q] and the rows a [n, q, k + 1] of column b: b, the slot of a
        in column c, whether it has one, and where (a, b) stands in the sums."""
        b = self._source[chunk] if diagonal else self._source[chunk, :-1]
        a = self._target[b]
        values = self._sorted[chunk]
        found = torch.searchsorted(values, a.flatten(1)).clamp_max(values.shape[-1] - 1)
        match = (values.gather(-1, found).view(a.shape) == a) & (a < self._M)
        slot = self._slots[chunk].gather(-1, found).view(a.shape)
        place = b.unsqueeze(-1) * a.shape[-1] + torch.arange(a.shape[-1], device=a.device)
        return b, slot, match, place


def _of_pattern(source: NeighborPattern, target: NeighborPattern) -> Shares:
    """Shares of columns on a pattern, their diagonals last."""
    return Shares(_with_diagonal(source)[0], target)


def _with_diagonal(pattern: NeighborPattern) -> tuple[Tensor, Tensor]:
    """Rows of every column [M, m + 1], M in unused slots, and which slots are used."""
    M = pattern.num_rows
    own = torch.arange(M, device=pattern.neighbors.device).unsqueeze(-1)
    rows = torch.cat([pattern.neighbors.long(), own], -1)
    used = rows >= 0
    return torch.where(used, rows, M), used
