r"""Exact covariances between sparse combinations of points, over all their ancestors.

With a precision :math:`VV^\top`, :math:`S = (VV^\top)^{-1}`, and sparse right-hand sides as the columns of
B, the solution :math:`V^{-1}B` lives on the closure of B's indices under taking earlier neighbours, and
what is needed of :math:`Y = SB = V^{-\top}V^{-1}B` lies there too. Hence :math:`B^\top S B = B^\top Y`
takes two solves on the closure with a chunk of right-hand sides at a time, and no product of two tall
matrices. The derivative takes one solve more:

.. math:: \mathrm{d}(B^\top S B) = \mathrm{d}B^\top Y + Y^\top \mathrm{d}B
    - Y^\top \mathrm{d}V\, X - X^\top \mathrm{d}V^\top\, Y, \qquad X = V^{-1}B .

References
----------
Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
minimization. SIAM Journal on Scientific Computing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpvi.linalg.markov._adjoint import refuse_graph
from gpvi.linalg.sparse_inverse._ancestors_tensor import Region
from gpvi.linalg.sparse_inverse._engine import engine_for
from gpvi.linalg.sparse_inverse.ancestors import (
    check_devices,
    check_right_hand_sides,
    flat_batch,
)
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["inverse_diagonal", "inverse_gram"]

# Bytes that right-hand sides on a region take at once: they are gone through out of order.
_CHUNK_BYTES = 1 << 24
# The most right-hand sides at once, and points whose variances are found together.
_MAX_WIDTH = 128
_POINTS = 64


def inverse_gram(
    pattern: NeighborPattern,
    factor: Tensor,  # shape: [*b, M, m + 1]
    index: Tensor,  # shape: [R, k]
    values: Tensor,  # shape: [*b, R, k]
    *,
    other: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Products ``b_r' (V V')^-1 b_q`` of sparse right-hand sides, over all their ancestors.

    Exact, also for points far from each other. The cost is that of a few solves with ``V`` on the
    ancestors for every right-hand side; memory is that of the result and of a chunk of solutions.

    Parameters
    ----------
    pattern : NeighborPattern
        Where the factor has entries.
    factor : Tensor, shape [*b, M, m + 1]
        Columns of ``V``.
    index : Tensor of int32, shape [R, k]
        Rows in which every right-hand side has entries; -1, at the end, where it has fewer.
    values : Tensor, shape [*b, R, k]
        Those entries.
    other : tuple of Tensor, optional
        Indices [Q, j] and values [*b, Q, j] of the right-hand sides ``b_q``; the same ones if left out.

    Returns
    -------
    Tensor, shape [*b, R, R] or [*b, R, Q]
        Symmetric, and positive semidefinite up to rounding, if ``other`` is left out. Differentiable once
        in the factor and all values; computed in double precision.

    Raises
    ------
    InputError
        If shapes do not fit, or an index is no row of the pattern.

    References
    ----------
    Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
    minimization. SIAM Journal on Scientific Computing.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0]], dtype=torch.int32))
    >>> factor = torch.tensor([[0.0, 2.0], [-1.0, 1.0]])
    >>> index = torch.tensor([[0], [1]], dtype=torch.int32)
    >>> inverse_gram(pattern, factor, index, torch.ones(2, 1))
    tensor([[0.2500, 0.2500],
            [0.2500, 1.2500]])
    """
    pattern.check(factor)
    check_devices(pattern, factor)
    check_right_hand_sides(pattern, index, values, "index", "values")
    if other is None:
        shape, (flat_factor, flat_values) = flat_batch(factor, values)
        gram = _Gram.apply(pattern, index, None, flat_factor, flat_values, None)
        dtype = torch.promote_types(factor.dtype, values.dtype)
        return gram.view(*shape, len(index), len(index)).to(dtype)
    check_right_hand_sides(pattern, *other, "the other index", "the other values")
    shape, (flat_factor, flat_values, flat_others) = flat_batch(factor, values, other[1])
    gram = _Gram.apply(pattern, index, other[0], flat_factor, flat_values, flat_others)
    dtype = torch.promote_types(factor.dtype, torch.promote_types(values.dtype, other[1].dtype))
    return gram.view(*shape, len(index), len(other[0])).to(dtype)


@torch.no_grad()
def inverse_diagonal(
    pattern: NeighborPattern,
    factor: Tensor,  # shape: [*b, M, m + 1]
) -> Tensor:
    """Exact variances ``|V^-1 e_i|^2`` of all points, each over all its ancestors.

    The cost grows with the number of points times the number of ancestors, which makes this a reference
    for small sets; :func:`posterior_norms` is the truncated version for large ones. Not differentiable.

    Parameters
    ----------
    pattern : NeighborPattern
        Where the factor has entries.
    factor : Tensor, shape [*b, M, m + 1]
        Columns of ``V``.

    Returns
    -------
    Tensor, shape [*b, M]
        Computed in double precision.

    Raises
    ------
    InputError
        If the factor does not lie on the pattern.

    References
    ----------
    Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
    minimization. SIAM Journal on Scientific Computing.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0]], dtype=torch.int32))
    >>> inverse_diagonal(pattern, torch.tensor([[0.0, 2.0], [-1.0, 1.0]]))
    tensor([0.2500, 1.2500])
    """
    pattern.check(factor)
    check_devices(pattern, factor)
    shape, (flat,) = flat_batch(factor)
    engine = engine_for("ancestors", factor).Engine()
    out = flat.new_empty(len(flat), pattern.num_rows)
    for points in pattern.order.split(_POINTS):
        region = engine.closure(pattern, [points])
        side = _Side(region, points.unsqueeze(-1), flat.new_ones(len(points), 1))
        for b, columns in enumerate(flat):
            rhs = side.dense(slice(0, len(points)), engine.lanes)
            engine.descend(region, columns, rhs)
            out[b, points.long()] = rhs[:, : len(points)].square().sum(0)
    return out.view(*shape, pattern.num_rows).to(factor.dtype)


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pattern: NeighborPattern,
        index: Tensor,
        other: Tensor | None,
        factor: Tensor,
        values: Tensor,
        other_values: Tensor | None,
    ) -> Tensor:
        ctx.engine = engine = engine_for("ancestors", factor).Engine()
        indices = [index] if other is None else [index, other]
        ctx.indices, ctx.region = indices, engine.closure(pattern, indices)
        ctx.save_for_backward(factor, values, other_values)
        gram = factor.new_empty(len(factor), len(index), len(indices[-1]))
        for b in range(len(factor)):
            left, right = _sides(ctx.region, indices, values, other_values, b)
            for cut in _chunks(ctx.region, right.size, engine.lanes):
                rhs = right.dense(cut, engine.lanes)
                engine.descend(ctx.region, factor[b], rhs)
                engine.ascend(ctx.region, factor[b], rhs)
                gram[b, :, cut] = left.products(rhs)[:, : cut.stop - cut.start]
        return gram if other is not None else 0.5 * (gram + gram.mT)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph()
        factor, values, other_values = ctx.saved_tensors
        *_, by_factor, by_values, by_others = ctx.needs_input_grad
        total = torch.zeros_like(factor)
        along = torch.zeros_like(values)
        along_others = None if other_values is None else torch.zeros_like(other_values)
        for b in range(len(factor)):
            left, right = _sides(ctx.region, ctx.indices, values, other_values, b)
            weights = upstream[b]
            pull = _Pull(ctx.engine, ctx.region, factor[b], total[b] if by_factor else None)
            if along_others is None:
                pull(left, left, weights + weights.mT, along[b])
                continue
            # The factor's gradient is a sum over both sides, each with its own weighted solution.
            if by_others or by_factor:
                pull(left, right, weights, along_others[b])
            if by_values or by_factor:
                pull(right, left, weights.mT, along[b])
        return None, None, None, total if by_factor else None, along, along_others


@dataclass(frozen=True, eq=False)
class _Pull:
    """Gradients by the right-hand sides of one side, and its part of the factor's."""

    engine: Any
    region: Region
    factor: Tensor
    total: Tensor | None

    def __call__(self, left: "_Side", right: "_Side", weights: Tensor, along: Tensor) -> None:
        engine, region = self.engine, self.region
        for cut in _chunks(region, right.size, engine.lanes):
            rhs, x = left.combined(weights[:, cut], engine.lanes), None
            engine.descend(region, self.factor, rhs)
            if self.total is not None:
                x = right.dense(cut, engine.lanes)
                engine.descend(region, self.factor, x)
            engine.ascend(region, self.factor, rhs, x, self.total)
            along[cut] = right.entries(rhs, cut)


class _Side:
    """Right-hand sides on a region."""

    def __init__(self, region: Region, index: Tensor, values: Tensor) -> None:
        self.size, used = len(index), index >= 0
        self._rows = len(region.members)
        self._place = torch.where(used, region.position[index.clamp(min=0)].long(), 0)
        self._used, self._values = used, values * used

    def dense(self, cut: slice, lanes: int) -> Tensor:
        """Some of them as columns, and columns of zeros up to a multiple of the lanes."""
        place, values = self._place[cut], self._values[cut]
        columns = torch.arange(len(place), device=place.device).unsqueeze(-1).expand_as(place)
        out = values.new_zeros(self._rows, -(-len(place) // lanes) * lanes)
        return out.index_put_((place, columns), values, accumulate=True) if out.numel() else out

    def combined(self, weights: Tensor, lanes: int) -> Tensor:
        """``B weights``, and columns of zeros up to a multiple of the lanes."""
        width = weights.shape[1]
        out = weights.new_zeros(self._rows, -(-width // lanes) * lanes)
        for place, value in zip(self._place.mT, self._values.mT, strict=True):
            out[:, :width].index_add_(0, place, value.unsqueeze(-1) * weights)
        return out

    def products(self, rhs: Tensor) -> Tensor:
        """``B' rhs``."""
        out = rhs.new_zeros(self.size, rhs.shape[1])
        for place, value in zip(self._place.mT, self._values.mT, strict=True):
            if len(rhs):
                out.addcmul_(value.unsqueeze(-1), rhs[place])
        return out

    def entries(self, rhs: Tensor, cut: slice) -> Tensor:
        """What each of some columns has in the rows of its right-hand side."""
        place = self._place[cut]
        columns = torch.arange(len(place), device=place.device).unsqueeze(-1)
        return (
            rhs[place, columns] * self._used[cut]
            if len(rhs)
            else torch.zeros_like(self._values[cut])
        )


def _sides(
    region: Region, indices: list[Tensor], values: Tensor, other: Tensor | None, b: int
) -> tuple[_Side, _Side]:
    left = _Side(region, indices[0], values[b])
    return (left, left) if other is None else (left, _Side(region, indices[1], other[b]))


def _chunks(region: Region, size: int, lanes: int) -> Iterator[slice]:
    """Runs of right-hand sides."""
    width = _CHUNK_BYTES // (8 * max(1, len(region.members)))
    width = max(8, min(width, _MAX_WIDTH) // 8 * 8)
    for start in range(0, size, width):
        yield slice(start, min(start + width, size))
