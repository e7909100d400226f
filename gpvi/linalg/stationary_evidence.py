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

from gpvi._warnings import warn
from gpvi.exceptions import EngineWarning, InputError, NumericalError
from gpvi.linalg._evidence_stationary import Arguments, Engine, Needs, TensorEngine, evaluate
from gpvi.linalg.collapsed_bound import _check_common, _check_positive, _shapes
from gpvi.linalg.stationary import STATIONARY_KERNELS

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
        scaled = tuple(
            gradient * part if needed and part is not None else None
            for needed, part in zip(ctx.needs_input_grad, ctx.saved_tensors, strict=False)
        )
        return scaled + (None, None)


@cache
def _compiled_engine() -> Engine | None:
    """The compiled engine, or None with one warning where Numba does not work."""
    try:
        from gpvi.linalg._evidence_cpu import CompiledEngine
    except ImportError as error:
        warn(
            f"the compiled engine of the exact log evidence is not available ({error}); tensor "
            "operations serve instead, at about twice the cost. Reinstall numba.",
            EngineWarning,
        )
        return None
    return CompiledEngine()


def _engine(x: Tensor) -> Engine:
    compiled = _compiled_engine() if x.device.type == "cpu" else None
    return TensorEngine() if compiled is None else compiled


def _check(arguments: Arguments) -> None:
    name, x, targets, lengthscale, outputscale, noise = arguments
    if name not in STATIONARY_KERNELS:
        raise InputError(
            f"unknown stationary kernel {name!r}; choose one of {', '.join(STATIONARY_KERNELS)}, "
            "or evaluate the kernel and call gaussian_log_evidence."
        )
    parameters = {"lengthscale": lengthscale, "outputscale": outputscale, "noise": noise}
    tensors = {"x": x, "targets": targets, **parameters}
    _check_common(tensors, x)
    N, D = x.shape if x.dim() == 2 else (0, 0)
    fits = min(N, D) > 0 and targets.shape == (N,) and noise.shape in ((), (N,))
    if not (fits and outputscale.dim() == 0 and lengthscale.shape in ((D,), (1,))):
        raise InputError(
            "expected x [N, D], targets [N], lengthscale [D] or [1], outputscale [] and noise [] or "
            f"[N], none of them empty; got {_shapes(tensors)}"
        )
    if x.requires_grad:
        raise InputError(
            "x requires a gradient, which this function does not compute; detach x, or use "
            "gaussian_log_evidence with a covariance matrix."
        )
    for key in ("x", "targets"):
        if not bool(torch.isfinite(tensors[key]).all()):
            raise InputError(f"{key} holds NaN or infinite entries; drop these rows first.")
    for key, value in parameters.items():
        if not bool(torch.isfinite(value).all()):
            raise NumericalError(f"{key} holds NaN or infinite entries; take a smaller step.")
    _check_positive("lengthscale", lengthscale)
    _check_positive("outputscale", outputscale)
    if bool((noise < 0).any()):
        raise InputError(
            f"noise must not be negative, but its smallest entry is {float(noise.detach().min()):.3g}."
        )
    smallest, largest = float(lengthscale.detach().min()), float(x.abs().max())
    if largest > 1e100 * smallest:  # squares would overflow
        raise NumericalError(
            f"inputs up to {largest:.3g} are more than 1e100 times the smallest lengthscale "
            f"{smallest:.3g}; rescale the inputs or bound the lengthscale."
        )
