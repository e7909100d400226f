r"""Log evidence of a Vecchia approximation with a stationary kernel, value and gradient in one pass.

The density of every target given the targets at a few other points, with the process and the noise in
one covariance (Vecchia, 1988). The derivative of a term by its covariance block is a matrix of rank two
that the factor gives away, so the gradient costs about half of what the value costs and nothing is kept
for a backward pass.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpvi.linalg._fused import load_engine, scaled_gradients
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

__all__ = ["row_log_evidence"]


def row_log_evidence(
    name: str,
    points: Tensor,  # shape: [T, D]
    targets: Tensor,  # shape: [T]
    neighbors: Tensor,  # shape: [R, m]
    own: Tensor,  # shape: [R]
    lengthscale: Tensor,  # shape: [D] or [1]
    outputscale: Tensor,  # shape: []
    noise: Tensor,  # shape: [] or [T]
    *,
    schedule: Tensor | None = None,  # shape: [R]
) -> Tensor:
    r"""Sum over rows of the log density of the own target given those of the neighbours.

    .. math:: \sum_r \log p(y_{\text{own}_r} \mid y_{\text{neighbours}_r})
        = \sum_r \log u_r - \tfrac12 (u_r^\top y_{s_r})^2 - \tfrac12 \log 2\pi,

    where y is a zero-mean process with covariance
    :math:`s\, k(\sum_d (x_{ad} - x_{bd})^2 / \ell_d^2)` plus independent noise, and :math:`u_r` is the
    column of :func:`stationary_inverse_columns` with the noise as its nugget (:math:`\log u_r` that of
    its last entry). With every earlier point a neighbour it is the exact log evidence.

    Rows are independent: the value of some rows is their share of the whole. When a gradient is wanted
    it is computed together with the value. The computation is in float64 for any dtype. Differentiable
    once.

    Parameters
    ----------
    name : str
        Kernel, one of ``"rbf"``, ``"matern12"``, ``"matern32"``, ``"matern52"``.
    points : Tensor, shape [T, D]
        Inputs; not differentiable.
    targets : Tensor, shape [T]
        Observations less the prior mean.
    neighbors : Tensor of int32, shape [R, m]
        Numbers of the points that a row conditions on, ascending, and -1 behind them where there are
        fewer.
    own : Tensor of int32, shape [R]
        Number of the own point of every row.
    lengthscale : Tensor, shape [D] or [1]
        Lengthscales, one per input dimension or one for all.
    outputscale : Tensor, shape []
        Prior variance.
    noise : Tensor, shape [] or [T]
        Noise variance, one or one per point; zero is allowed.
    schedule : Tensor of int32, shape [R], optional
        Order in which the rows are visited. Near rows in turn find their points in the cache; the
        result is the same but for rounding.

    Returns
    -------
    Tensor, shape []
        Nats.

    Raises
    ------
    InputError
        If shapes, dtypes, devices or numbers of points do not fit, a lengthscale or the outputscale is
        not positive, a noise variance is negative, data are not finite, the kernel is unknown, or points
        require a gradient.
    NumericalError
        If hyperparameters are not finite, or points are more than 1e100 lengthscales away.
    NotPositiveDefiniteError
        If the covariance of a row has no Cholesky factor. The noise is all the jitter there is.

    References
    ----------
    A. V. Vecchia, "Estimation and model identification for continuous spatial processes", *Journal of
    the Royal Statistical Society B*, 1988.

    Examples
    --------
    >>> import torch
    >>> points = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    >>> neighbors = torch.tensor([[-1], [0], [1]], dtype=torch.int32)
    >>> own = torch.arange(3, dtype=torch.int32)
    >>> one = torch.ones((), dtype=torch.float64)
    >>> ell = one.reshape(1).clone().requires_grad_()
    >>> y = points[:, 0].sin()
    >>> value = row_log_evidence("matern32", points, y, neighbors, own, ell, one, 0.1 * one)
    >>> value.backward()
    >>> round(value.item(), 4), ell.grad.shape
    (-3.1838, torch.Size([1]))
    """
    rows, hyper = Rows(neighbors, own, schedule), Hyperparameters(lengthscale, outputscale, noise)
    engine = _engine(points)
    check_rows(engine, name, points, rows, hyper, "noise", targets)
    options = _Options(name, rows, engine, torch.is_grad_enabled())
    return _Evidence.apply(targets, *hyper, points, options)


class _Options(NamedTuple):
    name: str
    rows: Rows
    engine: RowEngine
    gradient: bool  # inside forward, gradients are always disabled: ask before


class _Evidence(torch.autograd.Function):
    """Value and gradient in one go; the backward pass scales."""

    @staticmethod
    def forward(
        ctx: Any,
        targets: Tensor,
        lengthscale: Tensor,
        outputscale: Tensor,
        noise: Tensor,
        points: Tensor,
        options: _Options,
    ) -> Tensor:
        by = [options.gradient and need for need in ctx.needs_input_grad]
        hyper = Hyperparameters(lengthscale, outputscale, noise)
        problem = row_problem(options.name, points, options.rows, hyper)
        needs = Needs(any(by), by[1], by[2] or by[3], by[0])
        sums = options.engine.evidence(problem, targets.detach().double(), needs)
        if needs.any:
            by_targets = None if sums.targets is None else sums.targets.to(targets.dtype)
            ctx.save_for_backward(by_targets, *gradients(problem, hyper, sums))
        value = sums.value - 0.5 * math.log(2.0 * math.pi) * len(problem.own)
        return value.to(points.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return scaled_gradients(ctx, gradient) + (None, None)


@cache
def _compiled_engine() -> RowEngine | None:
    return load_engine("gpvi.linalg.sparse_inverse._rows_cpu", "Vecchia log evidence")


def _engine(points: Tensor) -> RowEngine:
    compiled = _compiled_engine() if points.device.type == "cpu" else None
    return TensorEngine() if compiled is None else compiled
