r"""Matrices with few entries in every column, one column for each row of the data.

Data seen through few basis variables each, :math:`y_n = b_n^\top u + \text{noise}` with H entries in
:math:`b_n`, add :math:`RR^\top` to the precision of u, where column n of R is :math:`b_n` over the standard
deviation of the noise (Quiñonero-Candela & Rasmussen, 2005, on conditionals of this kind). R has the
shape [M, N]; products with it and with its transpose cost one pass over the N H entries. As

.. math:: \partial (a^\top R v) / \partial R = a v^\top \quad \text{where R has entries},

all derivatives, also those of higher order, are products of the same kind.

References
----------
Quiñonero-Candela, J. & Rasmussen, C. E. (2005). A unifying view of sparse approximate Gaussian process
regression. Journal of Machine Learning Research.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.sparse_inverse._engine import (
    broadcast_batch,
    engine_for,
    shared,
    working_dtype,
)
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["SparseRows", "rows_product", "rows_transpose_product"]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Which basis variables every row of the data depends on.

    Loops over rows are fastest where rows that share basis variables follow one another, as in a spatial
    order.

    Parameters
    ----------
    index : Tensor of int32, shape [N, H]
        Numbers of basis variables, ascending in every row, and -1 behind them where there are fewer.
    num_basis : int
        How many basis variables M there are.

    Raises
    ------
    InputError
        If the numbers are not below M or not in ascending order.

    Examples
    --------
    >>> import torch
    >>> rows = SparseRows(torch.tensor([[0, 2], [1, -1]], dtype=torch.int32), 3)
    >>> rows.counts.tolist()
    [2, 1]
    """

    index: Tensor
    num_basis: int

    def __post_init__(self) -> None:
        index = self.index
        if index.dim() != 2 or index.dtype != torch.int32:
            raise InputError(
                f"index has shape {tuple(index.shape)} and dtype {index.dtype}; pass int32 numbers of "
                "shape [N, H]."
            )
        if self.num_basis < 0:
            raise InputError(
                f"num_basis is {self.num_basis}; pass how many basis variables there are."
            )
        later, before = index[:, 1:], index[:, :-1]
        ordered = (later < 0) | ((before >= 0) & (later > before))
        good = ((index >= -1) & (index < self.num_basis)).all(-1) & ordered.all(-1)
        if not bool(good.all()):
            row = int((~good).nonzero()[0])
            raise InputError(
                f"index of row {row} is {index[row].tolist()}; it must hold numbers below "
                f"{self.num_basis}, ascending, with -1 behind them."
            )

    @property
    def num_rows(self) -> int:
        """Number N of rows of the data."""
        return self.index.shape[0]

    @cached_property
    def counts(self) -> Tensor:
        """How many basis variables every row depends on, int32 [N]."""
        return (self.index >= 0).sum(-1, dtype=torch.int32)

    def to(self, device: torch.device | str) -> "SparseRows":
        """The rows on another device.

        Parameters
        ----------
        device : torch.device or str
            Where.

        Returns
        -------
        SparseRows
            Itself if it is there already.
        """
        if self.index.device == torch.device(device):
            return self
        return SparseRows(self.index.to(device), self.num_basis)

    def check(self, values: Tensor) -> None:
        """Refuse values that do not lie in these rows.

        Parameters
        ----------
        values : Tensor
            Should have shape [*b, N, H].
        """
        if values.shape[-2:] != self.index.shape:
            N, H = self.index.shape
            raise InputError(
                f"values have shape {tuple(values.shape)}; there are {N} rows of up to {H} entries: pass "
                f"shape [*b, {N}, {H}]."
            )
        if values.device != self.index.device:
            raise InputError(
                f"values are on {values.device} and the rows are on {self.index.device}; move them to one "
                "device."
            )


def rows_product(rows: SparseRows, values: Tensor, vector: Tensor) -> Tensor:
    """``R v``: one number for every row of the data, summed up for the basis variables.

    Parameters
    ----------
    rows : SparseRows
        Where R has entries.
    values : Tensor, shape [*b, N, H]
        R: entry k of row n is that of basis variable ``index[n, k]``; what unused slots hold is ignored.
    vector : Tensor, shape [*b, N]
        v; batch dims broadcast.

    Returns
    -------
    Tensor, shape [*b, M]
        Differentiable any number of times.

    Raises
    ------
    InputError
        If shapes do not fit the rows, or devices differ.

    Examples
    --------
    >>> import torch
    >>> rows = SparseRows(torch.tensor([[0, 2], [1, -1]], dtype=torch.int32), 3)
    >>> values = torch.tensor([[1.0, 2.0], [3.0, 0.0]])  # [[1, 0], [0, 3], [2, 0]]
    >>> rows_product(rows, values, torch.tensor([1.0, 2.0]))
    tensor([1., 6., 2.])
    """
    return _apply("product", rows, values, vector, rows.num_rows)


def rows_transpose_product(rows: SparseRows, values: Tensor, vector: Tensor) -> Tensor:
    """``R' u``: for every row of the data, the sum over its basis variables.

    Parameters
    ----------
    rows : SparseRows
        Where R has entries.
    values : Tensor, shape [*b, N, H]
        R: entry k of row n is that of basis variable ``index[n, k]``; what unused slots hold is ignored.
    vector : Tensor, shape [*b, M]
        u; batch dims broadcast.

    Returns
    -------
    Tensor, shape [*b, N]
        Differentiable any number of times.

    Raises
    ------
    InputError
        If shapes do not fit the rows, or devices differ.

    Examples
    --------
    >>> import torch
    >>> rows = SparseRows(torch.tensor([[0, 2], [1, -1]], dtype=torch.int32), 3)
    >>> values = torch.tensor([[1.0, 2.0], [3.0, 0.0]])  # [[1, 0], [0, 3], [2, 0]]
    >>> rows_transpose_product(rows, values, torch.tensor([1.0, 10.0, 100.0]))
    tensor([201.,  30.])
    """
    return _apply("transpose_product", rows, values, vector, rows.num_basis)


def check_rows(pattern: NeighborPattern, rows: SparseRows | None, values: Tensor | None) -> None:
    """Refuse rows without values, and those that are not of the points of a pattern."""
    if rows is None or values is None:
        if rows is not values:
            given, missing = ("rows", "values") if values is None else ("values", "rows")
            raise InputError(f"there are {given} without {missing}; pass both of them or none.")
        return
    rows.check(values)
    if rows.num_basis != pattern.num_rows:
        raise InputError(
            f"the rows are of {rows.num_basis} basis variables and the pattern is of {pattern.num_rows} "
            "points; they must be the same."
        )
    if values.device != pattern.neighbors.device:
        raise InputError(
            f"values are on {values.device} and the pattern is on {pattern.neighbors.device}; move them "
            "to one device."
        )


def split_batch(matrices: torch.Size, vector: torch.Size) -> tuple[torch.Size, torch.Size]:
    """Batch dims of a result: those that number vectors of the same matrix, and behind them those that
    number matrices."""
    batch = broadcast_batch(matrices=matrices, vector=vector)
    lead = len(batch) if matrices.numel() == 1 else len(batch) - len(matrices)
    return batch[:lead], batch[lead:]


def apply_rows(operation: str, rows: SparseRows, values: Tensor, vectors: Tensor) -> Tensor:
    """A product by name, for values [F, N, H], or [1, N, H] for all, and vectors [F, ., R]."""
    F, size, R = vectors.shape
    if len(values) == F:
        return _Apply.apply(operation, rows, values, vectors)
    folded = vectors.movedim(0, 1).reshape(1, size, F * R)
    x: Tensor = _Apply.apply(operation, rows, values, folded)
    return x.reshape(-1, F, R).movedim(0, 1)


def outer_rows(rows: SparseRows, left: Tensor, right: Tensor) -> Tensor:
    """Entries [F, N, H] of ``sum_r l_r r_r'`` in the slots of R, for vectors [F, M, R] and [F, N, R]."""
    entries: Tensor = _Outer.apply(rows, left, right)
    return entries


def _apply(operation: str, rows: SparseRows, values: Tensor, vector: Tensor, size: int) -> Tensor:
    rows.check(values)
    if vector.dim() == 0 or vector.shape[-1] != size:
        what = "rows" if operation == "product" else "basis variables"
        raise InputError(
            f"vector has shape {tuple(vector.shape)} and there are {size} {what}; pass shape [*b, {size}]."
        )
    if vector.device != values.device:
        raise InputError(
            f"vector is on {vector.device} and values are on {values.device}; move them to one device."
        )
    dtype, inside = working_dtype(values, vector)
    samples, matrices = split_batch(values.shape[:-2], vector.shape[:-1])
    R = shared(values.to(inside), matrices, 2)
    v = vector.to(inside).expand(*samples, *matrices, size)
    v = v.reshape(samples.numel(), matrices.numel(), size).movedim(0, -1)
    x = apply_rows(operation, rows, R, v)
    return x.movedim(-1, 0).reshape(*samples, *matrices, x.shape[1]).to(dtype)


class _Apply(torch.autograd.Function):
    """``R v`` or ``R' u``; each is the adjoint of the other."""

    @staticmethod
    def forward(
        ctx: Any, operation: str, rows: SparseRows, values: Tensor, vectors: Tensor
    ) -> Tensor:
        run = getattr(engine_for("rectangular", values), operation)
        ctx.operation, ctx.rows = operation, rows
        ctx.save_for_backward(values, vectors)
        x: Tensor = run(rows, values.detach(), vectors.detach())
        return x

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        values, vectors = ctx.saved_tensors
        plain = ctx.operation == "product"
        by_values = by_vectors = None
        if ctx.needs_input_grad[2]:
            left, right = (upstream, vectors) if plain else (vectors, upstream)
            by_values = outer_rows(ctx.rows, left, right)
        if ctx.needs_input_grad[3]:
            adjoint = "transpose_product" if plain else "product"
            by_vectors = _Apply.apply(adjoint, ctx.rows, values, upstream)
        return None, None, by_values, by_vectors


class _Outer(torch.autograd.Function):
    """Bilinear, so that its derivatives are products with the incoming gradient as R."""

    @staticmethod
    def forward(ctx: Any, rows: SparseRows, left: Tensor, right: Tensor) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(left, right)
        entries: Tensor = engine_for("rectangular", left).outer(rows, left.detach(), right.detach())
        return entries

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        left, right = ctx.saved_tensors
        by_left = by_right = None
        if ctx.needs_input_grad[1]:
            by_left = _Apply.apply("product", ctx.rows, upstream, right)
        if ctx.needs_input_grad[2]:
            by_right = _Apply.apply("transpose_product", ctx.rows, upstream, left)
        return None, by_left, by_right
