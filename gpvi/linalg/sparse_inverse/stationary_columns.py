r"""Columns of a sparse inverse Cholesky factor of a stationary kernel, row by row.

Every row conditions its own point on a few others; its column is the last row of the inverse factor of
their covariance (Schäfer, Katzfuss and Owhadi, 2021). The blocks overlap so much that storing them, or
what automatic differentiation keeps of them, costs more than computing them twice: here a block lives
in the cache, and the backward pass recomputes it and adds the derivatives up.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpvi.linalg._fused import load_engine
from gpvi.linalg.sparse_inverse._rows_tensor import (
    Hyperparameters,
    Needs,
    RowEngine,
    Rows,
    TensorEngine,
    check_rows,
    gradients,
    row_problem,
)

__all__ = ["stationary_inverse_columns"]


def stationary_inverse_columns(
    name: str,
    points: Tensor,  # shape: [T, D]
    neighbors: Tensor,  # shape: [R, m]
    own: Tensor,  # shape: [R]
    lengthscale: Tensor,  # shape: [D] or [1]
    outputscale: Tensor,  # shape: []
    nugget: Tensor,  # shape: [] or [T]
    *,
    schedule: Tensor | None = None,  # shape: [R]
) -> Tensor:
    r"""Columns of the sparse inverse Cholesky factor of a stationary kernel.

    .. math:: u_r = L_r^{-\top} e_{\text{last}}, \quad L_r L_r^\top = K_{s_r s_r}, \quad
        K_{ab} = s\, k\bigl(\sum_d (x_{ad} - x_{bd})^2 / \ell_d^2\bigr) + \nu_a \delta_{ab},

    where :math:`s_r` holds the neighbours of a row and, last, its own point. Given values f at the
    neighbours, the own one has variance ``1 / u_last^2`` and mean ``-sum_a u_a f_a / u_last``.

    The gradient comes from a second pass over the rows; nothing of size R m^2 is kept. The computation
    is in float64 for any dtype. Differentiable once.

    Parameters
    ----------
    name : str
        Kernel, one of ``"rbf"``, ``"matern12"``, ``"matern32"``, ``"matern52"``.
    points : Tensor, shape [T, D]
        Locations; not differentiable.
    neighbors : Tensor of int32, shape [R, m]
        Numbers of the points that a row conditions on, ascending, and -1 behind them where there are
        fewer.
    own : Tensor of int32, shape [R]
        Number of the own point of every row.
    lengthscale : Tensor, shape [D] or [1]
        Lengthscales, one per coordinate or one for all.
    outputscale : Tensor, shape []
        Prior variance.
    nugget : Tensor, shape [] or [T]
        Added to the diagonal, one number or one per point; zero is allowed.
    schedule : Tensor of int32, shape [R], optional
        Order in which the rows are visited. Near rows in turn find their points in the cache; the
        result is the same.

    Returns
    -------
    Tensor, shape [R, m + 1]
        Entries of the columns in the slots of `neighbors`, the own point's last; zero in unused slots.

    Raises
    ------
    InputError
        If shapes, dtypes, devices or numbers of points do not fit, a lengthscale or the outputscale is
        not positive, a nugget is negative, points are not finite, the kernel is unknown, or points
        require a gradient.
    NumericalError
        If hyperparameters are not finite, or points are more than 1e100 lengthscales away.
    NotPositiveDefiniteError
        If the covariance of a row has no Cholesky factor. The nugget is all the jitter there is.

    References
    ----------
    F. Schäfer, M. Katzfuss and H. Owhadi, "Sparse Cholesky factorization by Kullback-Leibler
    minimization", *SIAM Journal on Scientific Computing*, 2021.

    Examples
    --------
    >>> import torch
    >>> points = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    >>> neighbors = torch.tensor([[-1], [0], [1]], dtype=torch.int32)
    >>> own = torch.arange(3, dtype=torch.int32)
    >>> one = torch.ones((), dtype=torch.float64)
    >>> ell = one.reshape(1).clone().requires_grad_()
    >>> columns = stationary_inverse_columns("matern12", points, neighbors, own, ell, one, 0.0 * one)
    >>> [[round(entry, 3) for entry in row] for row in columns.tolist()]
    [[0.0, 1.0], [-0.396, 1.075], [-0.137, 1.009]]
    """
    rows, hyper = Rows(neighbors, own, schedule), Hyperparameters(lengthscale, outputscale, nugget)
    engine = _engine(points)
    check_rows(engine, name, points, rows, hyper, "nugget")
    return _Columns.apply(*hyper, points, _Options(name, rows, engine))


class _Options(NamedTuple):
    name: str
    rows: Rows
    engine: RowEngine


class _Columns(torch.autograd.Function):
    """One pass for the columns, and one for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        lengthscale: Tensor,
        outputscale: Tensor,
        nugget: Tensor,
        points: Tensor,
        options: _Options,
    ) -> Tensor:
        hyper = Hyperparameters(lengthscale, outputscale, nugget)
        ctx.save_for_backward(*hyper, points)
        ctx.options = options
        problem = row_problem(options.name, points, options.rows, hyper)
        return options.engine.columns(problem).to(points.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        *parameters, points = ctx.saved_tensors
        hyper, options = Hyperparameters(*parameters), ctx.options
        problem = row_problem(options.name, points, options.rows, hyper)
        by = ctx.needs_input_grad
        needs = Needs(any(by[:3]), by[0], by[1] or by[2], False)
        sums = options.engine.columns_adjoint(problem, upstream.double(), needs)
        parts = zip(gradients(problem, hyper, sums), by[:3], strict=True)
        return *(part if need else None for part, need in parts), None, None


@cache
def _compiled_engine() -> RowEngine | None:
    return load_engine("gpvi.linalg.sparse_inverse._rows_cpu", "sparse inverse Cholesky columns")


def _engine(points: Tensor) -> RowEngine:
    compiled = _compiled_engine() if points.device.type == "cpu" else None
    return TensorEngine() if compiled is None else compiled
