r"""Exact Gaussian log evidence of a stationary kernel, with its gradient computed alongside.

What :func:`gpvi.linalg.gaussian_log_evidence` computes from a covariance matrix of any kernel, for
the kernels whose matrix and slopes can be recomputed at will. No matrix lives on the graph: one
N x N buffer holds first the covariance, then its factor, then its inverse, and the gradient is
reduced to vectors on the way (Rasmussen and Williams, 2006, section 5.4.1).
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpvi.exceptions import InputError
from gpvi.linalg._evidence_stationary import Arguments, Engine, Needs, TensorEngine, evaluate
from gpvi.linalg._fused import (
    check_constant_inputs,
    check_finite,
    check_kernel_name,
    check_kinds,
    check_positive,
    check_range,
    describe_shapes,
    load_engine,
    scaled_gradients,
)

__all__ = ["stationary_log_evidence"]


def stationary_log_evidence(
    name: str,
    x: Tensor,  # shape: [N, D]
    targets: Tensor,  # shape: [N]
    lengthscale: Tensor,  # shape: [D] or [1]
    outputscale: Tensor,  # shape: []
    noise: Tensor,  # shape: [] or [N]
) -> Tensor:
    r"""Log density of targets under a zero-mean process with a stationary kernel, plus noise.

    .. math:: \log N(y \mid 0, K + \mathrm{diag}(\sigma_n^2)), \quad
        K_{nm} = s\, k\bigl(\sum_d (x_{nd} - x_{md})^2 / \ell_d^2\bigr)

    The same number as :func:`gaussian_log_evidence`. When a gradient is wanted it is computed
    together with the value, at three times the cost of the value; memory is one ``[N, N]`` matrix on
    a CPU, a few elsewhere. The computation is in float64 for any dtype. Differentiable once.

    Parameters
    ----------
    name : str
        Kernel, one of ``"rbf"``, ``"matern12"``, ``"matern32"``, ``"matern52"``.
    x : Tensor, shape [N, D]
        Inputs; not differentiable.
    targets : Tensor, shape [N]
        Observations less the prior mean.
    lengthscale : Tensor, shape [D] or [1]
        Lengthscales, one per input dimension or one for all.
    outputscale : Tensor, shape []
        Prior variance.
    noise : Tensor, shape [] or [N]
        Noise variance, one or one per row; zero is allowed.

    Returns
    -------
    Tensor, shape []
        Nats.

    Raises
    ------
    InputError
        If shapes, dtypes or devices do not fit, a lengthscale or the outputscale is not positive, a
        noise variance is negative, data are not finite, the kernel is unknown, or x requires a
        gradient.
    NumericalError
        If hyperparameters are not finite, or inputs are more than 1e100 lengthscales away.
    NotPositiveDefiniteError
        If the matrix has no Cholesky factor. The noise is all the jitter there is.

    References
    ----------
    C. E. Rasmussen and C. K. I. Williams, *Gaussian Processes for Machine Learning*, 2006.

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(0.0, 3.0, 6, dtype=torch.float64)[:, None]
    >>> one = torch.ones((), dtype=torch.float64)
    >>> ell = one.reshape(1).clone().requires_grad_()
    >>> value = stationary_log_evidence("rbf", x, x[:, 0].sin(), ell, one, 0.1 * one)
    >>> value.backward()
    >>> round(value.item(), 4), ell.grad.shape
    (-4.0349, torch.Size([1]))
    """
    arguments = Arguments(name, x, targets, lengthscale, outputscale, noise)
    _check(arguments)
    options = _Options(name, _engine(x), torch.is_grad_enabled())
    return _StationaryEvidence.apply(targets, lengthscale, outputscale, noise, x, options)


class _Options(NamedTuple):
    name: str
    engine: Engine
    gradient: bool  # inside forward, gradients are always disabled: ask before


class _StationaryEvidence(torch.autograd.Function):
    """Value and gradient in one go; the backward pass scales."""

    @staticmethod
    def forward(
        ctx: Any,
        targets: Tensor,
        lengthscale: Tensor,
        outputscale: Tensor,
        noise: Tensor,
        x: Tensor,
        options: _Options,
    ) -> Tensor:
        by = [options.gradient and need for need in ctx.needs_input_grad]
        parameters = (t.detach() for t in (targets, lengthscale, outputscale, noise))
        value, gradient = evaluate(
            options.engine,
            Arguments(options.name, x, *parameters),
            Needs(any(by), by[2] or by[3], by[1]),
        )
        if gradient is not None:
            ctx.save_for_backward(*gradient)
        return value.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return scaled_gradients(ctx, gradient) + (None, None)


@cache
def _compiled_engine() -> Engine | None:
    return load_engine("gpvi.linalg._evidence_cpu", "exact log evidence")


def _engine(x: Tensor) -> Engine:
    compiled = _compiled_engine() if x.device.type == "cpu" else None
    return TensorEngine() if compiled is None else compiled


def _check(arguments: Arguments) -> None:
    name, x, targets, lengthscale, outputscale, noise = arguments
    check_kernel_name(name, "gaussian_log_evidence")
    parameters = {"lengthscale": lengthscale, "outputscale": outputscale, "noise": noise}
    tensors = {"x": x, "targets": targets, **parameters}
    check_kinds(tensors, x)
    N, D = x.shape if x.dim() == 2 else (0, 0)
    fits = min(N, D) > 0 and targets.shape == (N,) and noise.shape in ((), (N,))
    if not (fits and outputscale.dim() == 0 and lengthscale.shape in ((D,), (1,))):
        raise InputError(
            "expected x [N, D], targets [N], lengthscale [D] or [1], outputscale [] and noise [] or "
            f"[N], none of them empty; got {describe_shapes(tensors)}"
        )
    check_constant_inputs(x, "gaussian_log_evidence with a covariance matrix")
    check_finite({"x": x, "targets": targets}, parameters)
    check_positive("lengthscale", lengthscale)
    check_positive("outputscale", outputscale)
    if bool((noise < 0).any()):
        raise InputError(
            f"noise must not be negative, but its smallest entry is {float(noise.detach().min()):.3g}."
        )
    check_range(lengthscale, x)
