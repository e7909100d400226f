r"""Selected entries of the inverse of a sparse factored precision, from three generations of ancestors.

With a precision :math:`VV^\top` and V upper triangular on a pattern of earlier neighbours, column i of
:math:`V^{-1}` lives on the ancestors of i: its neighbours, theirs, and so on. For right-hand sides with a
few entries, :math:`b^\top (VV^\top)^{-1} b = |V^{-1}b|^2` is therefore a sum over ancestors, most of it
over the nearest. Here the ancestors A are the indices of b, the neighbours of each and the neighbours of
these, and the block :math:`V_{AA}` is solved exactly; with the neighbours of a point among its indices this
goes three generations back. (Two are not enough where data are weak.)
A row's cost does not depend on how many rows there are. What lies further away is left out: if no entry
beside the diagonal is positive and right-hand sides have one sign, the results are lower bounds. With
``complete`` the ancestors are all there are, and the results exact.

The derivative needs no more than the solutions. With :math:`x = V_{AA}^{-1} b` and
:math:`y = V_{AA}^{-\top} x`,

.. math:: \mathrm{d}|x|^2 = 2\, y^\top \mathrm{d}b - 2\, y^\top \mathrm{d}V_{AA}\, x .

References
----------
Vecchia, A. V. (1988). Estimation and model identification for continuous spatial processes. JRSS B.
Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
minimization. SIAM Journal on Scientific Computing.
"""

from typing import Any

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov._adjoint import refuse_graph
from gpvi.linalg.sparse_inverse._ancestors_tensor import AncestorSets
from gpvi.linalg.sparse_inverse._engine import engine_for
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["inverse_norms", "posterior_norms"]


def inverse_norms(
    pattern: NeighborPattern,
    factor: Tensor,  # shape: [*b, M, m + 1]
    index: Tensor,  # shape: [R, k]
    values: Tensor,  # shape: [*b, R, k]
    *,
    complete: bool = False,
) -> Tensor:
    """Squared norms ``|V^-1 b_r|^2`` of sparse right-hand sides, each on its nearest ancestors.

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
    complete : bool
        Whether to go through all ancestors, however many, in place of the nearest.

    Returns
    -------
    Tensor, shape [*b, R]
        ``|V_AA^-1 b_r|^2``, where A holds the ancestors of the indices of row r. Differentiable once
        in the factor and the values; computed in double precision.

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
    >>> inverse_norms(pattern, factor, index, torch.ones(2, 1))
    tensor([0.2500, 1.2500])
    """
    pattern.check(factor)
    check_devices(pattern, factor)
    check_right_hand_sides(pattern, index, values, "index", "values")
    last = index.amax(-1) if index.shape[1] else index.new_full((len(index),), -1)
    sets = AncestorSets(
        pattern=pattern,
        index=index,
        rows=torch.arange(len(index), dtype=torch.int32, device=index.device),
        visit=_in_order(pattern, last),
        own=False,
        union=False,
        unit=False,
        complete=complete,
    )
    return _norms(sets, factor, values)[..., 0]


def posterior_norms(
    pattern: NeighborPattern,
    factor: Tensor,  # shape: [*b, M, m + 1]
    prior_pattern: NeighborPattern,
    columns: Tensor,  # shape: [*b, M, k + 1]
    rows: Tensor | None = None,  # shape: [R]
    *,
    complete: bool = False,
) -> tuple[Tensor, Tensor]:
    """Marginal variances ``|V^-1 e_i|^2`` and terms ``|V^-1 U_i|^2`` of the trace, in one pass.

    The ancestors of point i are its neighbours in both patterns and itself, and the neighbours of all
    these in the factor's pattern. The trace terms sum to ``tr((U U') (V V')^-1)``.

    Parameters
    ----------
    pattern : NeighborPattern
        Where the factor has entries.
    factor : Tensor, shape [*b, M, m + 1]
        Columns of the posterior's ``V``.
    prior_pattern : NeighborPattern
        Where the prior's factor has entries; pass the same object if it is the same pattern.
    columns : Tensor, shape [*b, M, k + 1]
        Columns of the prior's ``U``.
    rows : Tensor of int32, shape [R], optional
        Points, all of them if left out.
    complete : bool
        Whether to go through all ancestors, however many, in place of the nearest.

    Returns
    -------
    variance : Tensor, shape [*b, R]
        ``|V_AA^-1 e_i|^2``.
    trace : Tensor, shape [*b, R]
        ``|V_AA^-1 U_i|^2``. Both are differentiable once in the factor, and the second in the columns;
        both are computed in double precision.

    Raises
    ------
    InputError
        If shapes do not fit, or a row is no row of the pattern.

    References
    ----------
    Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
    minimization. SIAM Journal on Scientific Computing.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0]], dtype=torch.int32))
    >>> factor = torch.tensor([[0.0, 2.0], [-1.0, 1.0]])
    >>> posterior_norms(pattern, factor, pattern, 0.5 * factor)
    (tensor([0.2500, 1.2500]), tensor([0.2500, 0.2500]))
    """
    pattern.check(factor)
    prior_pattern.check(columns)
    check_devices(pattern, factor, columns, prior_pattern.neighbors)
    M = pattern.num_rows
    if prior_pattern.num_rows != M:
        raise InputError(
            f"the factor's pattern has {M} rows and the prior's {prior_pattern.num_rows}; both must be on "
            "the same points."
        )
    if rows is None:
        rows = torch.arange(M, dtype=torch.int32, device=pattern.neighbors.device)
        visit = pattern.order.long()
    else:
        check_devices(pattern, rows)
        _check_rows(rows, M)
        visit = _in_order(pattern, rows)
    sets = AncestorSets(
        pattern=pattern,
        index=prior_pattern.neighbors,
        rows=rows,
        visit=visit,
        own=True,
        union=prior_pattern is not pattern,
        unit=True,
        complete=complete,
    )
    norms = _norms(sets, factor, columns)
    return norms[..., 1], norms[..., 0]


def check_right_hand_sides(
    pattern: NeighborPattern, index: Tensor, values: Tensor, index_name: str, values_name: str
) -> None:
    """Refuse right-hand sides that are no numbers of rows with values."""
    if index.dim() != 2 or index.dtype != torch.int32 or values.shape[-2:] != index.shape:
        raise InputError(
            f"{index_name} has shape {tuple(index.shape)} and dtype {index.dtype}, {values_name} shape "
            f"{tuple(values.shape)}; pass int32 numbers of shape [R, k] and values of shape [*b, R, k]."
        )
    check_devices(pattern, index, values)
    used = index >= 0
    _check_range(index, -1, pattern.num_rows, index_name)
    if bool((used[:, 1:] & ~used[:, :-1]).any()):
        row = int((used[:, 1:] & ~used[:, :-1]).any(-1).nonzero()[0])
        raise InputError(
            f"{index_name} of row {row} is {index[row].tolist()}; put -1 behind the numbers in use."
        )


def check_devices(pattern: NeighborPattern, *tensors: Tensor) -> None:
    """Refuse tensors on other devices than the pattern."""
    device = pattern.neighbors.device
    if any(tensor.device != device for tensor in tensors):
        others = ", ".join(str(tensor.device) for tensor in tensors)
        raise InputError(
            f"the pattern is on {device}, other arguments on {others}; move them to one device."
        )


def flat_batch(*tensors: Tensor) -> tuple[torch.Size, list[Tensor]]:
    """The common batch shape, and tensors of shape [B, ...] in double precision."""
    shape = torch.broadcast_shapes(*[tensor.shape[:-2] for tensor in tensors])
    flat = [
        tensor.double()
        .expand(*shape, *tensor.shape[-2:])
        .reshape(shape.numel(), *tensor.shape[-2:])
        for tensor in tensors
    ]
    return shape, flat


def _check_rows(rows: Tensor, size: int) -> None:
    if rows.dim() != 1 or rows.dtype != torch.int32:
        raise InputError(
            f"rows have shape {tuple(rows.shape)} and dtype {rows.dtype}; pass int32 numbers of shape [R]."
        )
    _check_range(rows, 0, size, "rows")


def _check_range(index: Tensor, low: int, size: int, name: str) -> None:
    if index.numel() and not (int(index.min()) >= low and int(index.max()) < size):
        raise InputError(
            f"{name} reaches from {int(index.min())} to {int(index.max())}; the pattern has rows 0 to "
            f"{size - 1}" + (", and -1 stands for none." if low < 0 else ".")
        )


def _in_order(pattern: NeighborPattern, anchors: Tensor) -> Tensor:
    """Rows sorted by the place of a point of theirs in the pattern's order."""
    rank = torch.empty_like(pattern.order)
    rank[pattern.order.long()] = torch.arange(
        pattern.num_rows, dtype=rank.dtype, device=rank.device
    )
    return torch.argsort(torch.where(anchors >= 0, rank[anchors.clamp(min=0)], -1), stable=True)


def _norms(sets: AncestorSets, factor: Tensor, values: Tensor) -> Tensor:
    """[*b, R, 1 or 2]: right-hand sides of values, then unit vectors."""
    shape, (flat_factor, flat_values) = flat_batch(factor, values)
    norms = _Norms.apply(sets, flat_factor, flat_values)
    dtype = torch.promote_types(factor.dtype, values.dtype)
    return norms.view(*shape, *sets.outputs).to(dtype)


class _Norms(torch.autograd.Function):
    """Norms; with them, where only values need a gradient, the slopes that make up the gradient."""

    @staticmethod
    def forward(ctx: Any, sets: AncestorSets, factor: Tensor, values: Tensor) -> Tensor:
        ctx.engine, ctx.sets = engine_for("ancestors", factor).Engine(), sets
        _, by_factor, by_values = ctx.needs_input_grad
        norms, slopes = ctx.engine.norms(sets, factor, values, by_values and not by_factor)
        ctx.shape = values.shape
        # Nothing of the size of the ancestor sets is kept: the factor's gradient lists them again.
        ctx.save_for_backward(*((factor, values) if by_factor else (slopes,)))
        return norms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph()
        _, by_factor, by_values = ctx.needs_input_grad
        if by_factor:
            factor, values = ctx.saved_tensors
            along, total = ctx.engine.adjoint(ctx.sets, factor, values, 2.0 * upstream)
        else:
            (slopes,) = ctx.saved_tensors
            along, total = 2.0 * upstream[..., :1] * slopes, None
        if not by_values:
            return None, total, None
        by_row = along.new_zeros(ctx.shape)
        return None, total, by_row.index_add_(1, ctx.sets.rows, along)
