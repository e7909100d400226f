r"""Incomplete Cholesky factors of posterior precisions.

A prior with precision :math:`UU^\top` and independent Gaussian sites of precision w have the posterior
precision :math:`P = UU^\top + \mathrm{diag}(w)`. Its exact factor fills up; the incomplete one, V, is kept
to a pattern and agrees with P there,

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

__all__ = ["incomplete_cholesky"]


def incomplete_cholesky(
    pattern: NeighborPattern,
    columns: Tensor,
    precision: Tensor,
    *,
    on: NeighborPattern | None = None,
) -> Tensor:
    r"""Upper triangular V on a pattern with :math:`VV^\top = UU^\top + \mathrm{diag}(w)` there.

    Exact where the pattern holds all earlier points. Costs O(M m^2), and twice that for the gradient.

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

    Returns
    -------
    Tensor, shape [*b, M, k + 1]
        V, differentiable once.

    Raises
    ------
    InputError
        If shapes do not fit the pattern, or devices differ.
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
    dtype, inside = working_dtype(columns, precision)
    batch = broadcast_batch(columns=columns.shape[:-2], precision=precision.shape[:-1])
    U, w = shared(columns.to(inside), batch, 2), shared(precision.to(inside), batch, 1)
    V: Tensor = _Incomplete.apply(pattern, target, batch, U, w)
    return V.reshape(*batch, *V.shape[1:]).to(dtype)


class _Incomplete(torch.autograd.Function):
    """The sweep from the last column to the first, and in reverse for gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        pattern: NeighborPattern,
        on: NeighborPattern,
        batch: torch.Size,
        columns: Tensor,
        precision: Tensor,
    ) -> Tensor:
        engine = engine_for("incomplete", columns)
        U, w = columns.detach(), precision.detach()
        V, number, row = engine.factorize(pattern, on, U, w)
        if row >= 0:
            raise NumericalError(_breakdown(U, w, number, row, batch))
        ctx.patterns = pattern, on
        ctx.save_for_backward(columns, precision, V)
        return V

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise UnsupportedError(
                "An incomplete Cholesky factor is differentiable once, and create_graph=True asks for "
                "more; detach it, or differentiate a function of the exact precision."
            )
        columns, precision, V = ctx.saved_tensors
        engine = engine_for("incomplete", columns)
        parts = (part.detach() for part in (columns, V, upstream))
        by_columns, by_precision = engine.gradients(*ctx.patterns, *parts)
        by_columns = by_columns.sum_to_size(columns.shape)
        return None, None, None, by_columns, by_precision.sum_to_size(precision.shape)


def _breakdown(columns: Tensor, w: Tensor, number: int, row: int, batch: torch.Size) -> str:
    """What to say about a pivot that is not positive."""
    U, w = columns[number if len(columns) > 1 else 0], w[number if len(w) > 1 else 0]
    place = "" if not batch else f" of batch element {number} of {batch.numel()}"
    if not bool(torch.isfinite(U).all() and torch.isfinite(w).all()):
        return (
            f"Columns or precision{place} hold NaN or infinite entries; the factorisation met them at row "
            f"{row}. Take a smaller step, or check the data."
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
