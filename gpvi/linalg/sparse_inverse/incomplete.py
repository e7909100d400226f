r"""Incomplete Cholesky factors of posterior precisions.

A prior with precision :math:`UU^\top` and independent Gaussian sites of precision w have the posterior
precision :math:`P = UU^\top + \mathrm{diag}(w)`, to which data that see a few points each add
:math:`RR^\top`. Its exact factor fills up; the incomplete one, V, is kept to a pattern and agrees with P
there,

.. math:: (VV^\top)_{ab} = P_{ab} \quad \text{for all } (a, b) \text{ on the pattern of } V,

which makes it a good approximation and a better preconditioner (Meijerink & van der Vorst, 1977; Schäfer,
Katzfuss & Owhadi, 2021). Columns are computed from the last point of the order to the first.

References
----------
Meijerink, J. A. & van der Vorst, H. A. (1977). An iterative solution method for linear systems of which
the coefficient matrix is a symmetric M-matrix. Mathematics of Computation.
Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
minimization. SIAM Journal on Scientific Computing.
"""

from typing import Any

import torch
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.linalg.sparse_inverse._engine import (
    broadcast_batch,
    check_vector,
    engine_for,
    shared,
    working_dtype,
)
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern
from gpvi.linalg.sparse_inverse.rectangular import SparseRows, check_rows

__all__ = ["incomplete_cholesky"]


def incomplete_cholesky(
    pattern: NeighborPattern,
    columns: Tensor,
    precision: Tensor,
    *,
    on: NeighborPattern | None = None,
    rows: SparseRows | None = None,
    values: Tensor | None = None,
) -> Tensor:
    r"""Upper triangular V on a pattern with :math:`VV^\top = UU^\top + \mathrm{diag}(w) + RR^\top` there.

    Exact where the pattern holds all earlier points. Costs O(M m^2 + N H^2), and twice that for the
    gradient; for new rows or a new pattern O(N H (m + H)) once.

    Parameters
    ----------
    pattern : NeighborPattern
        Where U has entries.
    columns : Tensor, shape [*b, M, m + 1]
        U.
    precision : Tensor, shape [*b, M]
        w; batch dims broadcast. Negative entries are fine as long as all pivots stay positive.
    on : NeighborPattern, optional
        Where V has entries, k per column; as U without. No neighbours at all give the diagonal.
    rows : SparseRows, optional
        Where R has entries; without, there is no R.
    values : Tensor, shape [*b, N, H], optional
        R, with rows; batch dims broadcast.

    Returns
    -------
    Tensor, shape [*b, M, k + 1]
        V, differentiable once.

    Raises
    ------
    InputError
        If shapes do not fit the pattern or the rows, devices differ, or rows come without values.
    NumericalError
        If a pivot is not positive.

    References
    ----------
    Meijerink, J. A. & van der Vorst, H. A. (1977). An iterative solution method for linear systems of
    which the coefficient matrix is a symmetric M-matrix. Mathematics of Computation.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0]], dtype=torch.int32))
    >>> columns = torch.tensor([[0.0, 2.0], [3.0, 4.0]]).double()  # U U' = [[13, 12], [12, 16]]
    >>> V = incomplete_cholesky(pattern, columns, torch.tensor([3.0, 20.0]).double())
    >>> V[1].tolist()  # 2 * 6 = 12 and 6 * 6 = 16 + 20
    [2.0, 6.0]
    """
    pattern.check(columns)
    check_vector(pattern, "precision", precision, columns)
    target = pattern if on is None else on
    if target.num_rows != pattern.num_rows:
        raise InputError(
            f"the pattern of V has {target.num_rows} rows and that of U {pattern.num_rows}; both are of "
            "the same points."
        )
    check_rows(pattern, rows, values)
    given = (columns, precision) if values is None else (columns, precision, values)
    dtype, inside = working_dtype(*given)
    shapes = {"columns": columns.shape[:-2], "precision": precision.shape[:-1]}
    if values is not None:
        shapes["values"] = values.shape[:-2]
    batch = broadcast_batch(**shapes)
    U, w = shared(columns.to(inside), batch, 2), shared(precision.to(inside), batch, 1)
    R = None if values is None else shared(values.to(inside), batch, 2)
    V: Tensor = _Incomplete.apply((pattern, target, rows), batch, U, w, R)
    return V.reshape(*batch, *V.shape[1:]).to(dtype)


class _Incomplete(torch.autograd.Function):
    """The sweep from the last column to the first, and in reverse for gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        places: tuple[NeighborPattern, NeighborPattern, SparseRows | None],
        batch: torch.Size,
        columns: Tensor,
        precision: Tensor,
        values: Tensor | None,
    ) -> Tensor:
        engine = engine_for("incomplete", columns)
        pattern, on, rows = places
        U, w, gathered = columns.detach(), precision.detach(), None
        if values is not None:
            gathered = engine_for("rectangular", columns).gram(rows, on, values.detach())
        V, number, row = engine.factorize(pattern, on, U, w, gathered)
        if row >= 0:
            parts = (_of(part, number) for part in (U, w, values) if part is not None)
            raise NumericalError(_breakdown(*parts, number=number, row=row, batch=batch))
        ctx.places = places
        ctx.save_for_backward(columns, precision, values, V)
        return V

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise UnsupportedError(
                "An incomplete Cholesky factor is differentiable once, and create_graph=True asks for "
                "more; detach it, or differentiate a function of the exact precision."
            )
        columns, precision, values, V = ctx.saved_tensors
        pattern, on, rows = ctx.places
        engine = engine_for("incomplete", columns)
        parts = (part.detach() for part in (columns, V, upstream))
        by_columns, by_sums = engine.gradients(pattern, on, *parts)
        by_precision = by_sums[..., -1].sum_to_size(precision.shape).contiguous()
        by_values = None
        if ctx.needs_input_grad[4]:
            run = engine_for("rectangular", columns).gram_gradients
            by_values = run(rows, on, values.detach(), by_sums).sum_to_size(values.shape)
        return None, None, by_columns.sum_to_size(columns.shape), by_precision, by_values


def _of(tensor: Tensor, number: int) -> Tensor:
    """One of several tensors, or the one for all."""
    return tensor[number if len(tensor) > 1 else 0]


def _breakdown(*tensors: Tensor, number: int, row: int, batch: torch.Size) -> str:
    """What to say about a pivot that is not positive, for columns, precision and values if there are."""
    place = "" if not batch else f" of batch element {number} of {batch.numel()}"
    w = tensors[1]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        names = "Columns or precision" if len(tensors) == 2 else "Columns, precision or values"
        return (
            f"{names}{place} hold NaN or infinite entries; the factorisation met them at row {row}. Take "
            "a smaller step, or check the data."
        )
    negative = int((w < 0.0).sum())
    cause = (
        f"{negative} of {w.numel()} precisions are negative, that of this row is {float(w[row]):.3g}: bound "
        "them from below"
        if negative
        else "the pattern leaves out too much of the precision: give it more neighbours, order the points "
        "by maximin, or raise the precision or the nugget"
    )
    return (
        f"The pivot of row {row}{place} of the incomplete Cholesky factor is not positive; {cause}."
    )
