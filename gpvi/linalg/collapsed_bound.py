r"""Collapsed lower bounds of the log evidence with inducing points, and their analytic adjoint.

With ``y_n ~ f_n + noise``, inducing values u integrated out in closed form and
``Q = Kxz Kzz^-1 Kzx``, the bound of Titsias (2009) is

.. math:: \log N(y \mid 0, Q + \mathrm{diag}(\sigma_n^2)) - \tfrac12 \sum_n d_n / \sigma_n^2,
    \qquad d_n = k_{nn} - Q_{nn},

and letting q(f | u) have a smaller variance than the prior conditional replaces ``d_n / noise_n``
by ``log(1 + d_n / noise_n)``, which is never worse (Titsias, 2025). The adjoint below needs no
backward pass through a Cholesky factorisation or a triangular solve: with ``A = L^-1 Kzx``, ``W``
the inverse noise, ``B = I + A W A'``, ``beta = B^-1 A W y``, ``alpha = W (y - A' beta)`` and
``omega`` the slope of the residual penalty by ``d``, the derivative by A is
``A diag(omega) - B^-1 A W + beta alpha'``.

References
----------
M. K. Titsias, "Variational learning of inducing variables in sparse Gaussian processes",
AISTATS 2009.
M. K. Titsias, "New bounds for sparse variational Gaussian processes", ICML 2025.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpvi.exceptions import InputError
from gpvi.linalg._collapsed_stationary import (
    Arguments,
    Engine,
    Needs,
    TensorEngine,
    evaluate,
    factorise,
    residual_penalty,
    residual_weights,
)
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

__all__ = ["collapsed_bound", "stationary_collapsed_bound"]


def collapsed_bound(
    Kzz: Tensor,  # shape: [*b, M, M]
    Kzx: Tensor,  # shape: [*b, M, N]
    k_diag: Tensor,  # shape: [*b, N]
    targets: Tensor,  # shape: [*b, N]
    noise: Tensor,  # shape: [] or [*b, N] or [*b, 1]
    *,
    tighter: bool = False,
    copies: Tensor | None = None,  # shape: [*b, N]
) -> Tensor:
    r"""Collapsed inducing-point bound of the log evidence from covariance matrices of any kernel.

    .. math:: \log N(y \mid 0, Q + \mathrm{diag}(\sigma_n^2)) - \tfrac12 \sum_n g(d_n / \sigma_n^2),
        \quad Q = K_{xz} K_{zz}^{-1} K_{zx}, \quad d_n = k_{nn} - Q_{nn},

    with ``g(t) = t``, or ``g(t) = log(1 + t)`` (for ``c`` copies ``c log(1 + t / c)``) for the
    tightened bound. Cost ``O(N M^2)`` per batch
    element of Kzz and Kzx; outputs that share these share the cost. Differentiable once.

    Parameters
    ----------
    Kzz : Tensor, shape [*b, M, M]
        Covariance of the inducing values, jitter included. Only the lower triangle is read; the
        gradient is symmetric.
    Kzx : Tensor, shape [*b, M, N]
        Covariance between inducing values and data.
    k_diag : Tensor, shape [*b, N]
        Prior variances of the data.
    targets : Tensor, shape [*b, N]
        Observations less the prior mean.
    noise : Tensor, shape [], [*b, 1] or [*b, N]
        Noise variance: one number, one per batch element, or one per row.
    tighter : bool
        Use the tightened bound of Titsias (2025).
    copies : Tensor, shape [*b, N], optional
        For the tightened bound: how many rows with independent residuals each row stands for; a row
        that merges c rows of noise s has noise s / c. One if left out.

    Returns
    -------
    Tensor, shape [*b]
        Bound in nats, summed over the rows; batch dimensions broadcast.

    Raises
    ------
    InputError
        If shapes, dtypes or devices do not fit, or a noise variance is not positive.
    NotPositiveDefiniteError
        If Kzz has no Cholesky factor. No jitter is added here: a jitter that came and went would
        make the objective jump.

    References
    ----------
    M. K. Titsias, AISTATS 2009; M. K. Titsias, ICML 2025.

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(0.0, 3.0, 6, dtype=torch.float64)
    >>> kernel = lambda a, b: torch.exp(-0.5 * (a[:, None] - b) ** 2)
    >>> z = x[::2]
    >>> Kzz, Kzx = kernel(z, z), kernel(z, x)
    >>> noise = torch.tensor(0.1, dtype=torch.float64)
    >>> loose = collapsed_bound(Kzz, Kzx, torch.ones_like(x), x.sin(), noise)
    >>> bool(loose < collapsed_bound(Kzz, Kzx, torch.ones_like(x), x.sin(), noise, tighter=True))
    True
    """
    tensors = {"Kzz": Kzz, "Kzx": Kzx, "k_diag": k_diag, "targets": targets, "noise": noise}
    check_kinds(tensors, Kzz)
    if Kzz.dim() < 2 or Kzx.dim() < 2 or k_diag.dim() < 1 or targets.dim() < 1:
        raise InputError(
            "Kzz and Kzx need at least two dimensions, k_diag and targets at least one; got "
            + describe_shapes(tensors)
        )
    M, N = Kzx.shape[-2:]
    row_sizes = {k_diag.shape[-1], targets.shape[-1]}
    noise_row = noise if noise.dim() else noise.unsqueeze(-1)
    if Kzz.shape[-2:] != (M, M) or row_sizes != {N} or noise_row.shape[-1] not in (1, N):
        raise InputError(
            "expected Kzz [*b, M, M], Kzx [*b, M, N], k_diag and targets [*b, N], and noise [], "
            f"[*b, 1] or [*b, N]; got {describe_shapes(tensors)}"
        )
    check_positive("noise", noise)
    copies = _checked_copies(copies, targets)
    return _CollapsedBound.apply(Kzz, Kzx, k_diag, targets, noise_row, tighter, copies)


def stationary_collapsed_bound(
    name: str,
    x: Tensor,  # shape: [N, D]
    z: Tensor,  # shape: [M, D]
    targets: Tensor,  # shape: [N]
    lengthscale: Tensor,  # shape: [D] or [1]
    outputscale: Tensor,  # shape: []
    noise: Tensor,  # shape: [] or [N]
    *,
    jitter: float,
    tighter: bool = False,
    copies: Tensor | None = None,  # shape: [N]
) -> Tensor:
    r"""Collapsed inducing-point bound of the log evidence for a stationary kernel.

    The same number as :func:`collapsed_bound` with
    ``k(x, z) = outputscale * k(sum_d (x_d - z_d)^2 / lengthscale_d^2)`` and
    ``Kzz + jitter * outputscale * I``. When a gradient is wanted it is computed together with the
    value, in two passes over chunks of rows; memory is one ``[N, M]`` matrix. On a CPU in float64
    compiled loops serve, else plain tensor operations. Differentiable once.

    Parameters
    ----------
    name : str
        Kernel, one of ``"rbf"``, ``"matern12"``, ``"matern32"``, ``"matern52"``.
    x : Tensor, shape [N, D]
        Inputs; not differentiable.
    z : Tensor, shape [M, D]
        Inducing inputs.
    targets : Tensor, shape [N]
        Observations less the prior mean.
    lengthscale : Tensor, shape [D] or [1]
        Lengthscales, one per input dimension or one for all.
    outputscale : Tensor, shape []
        Prior variance.
    noise : Tensor, shape [] or [N]
        Noise variance, one or one per row.
    jitter : float
        Added to the diagonal of Kzz, relative to the outputscale.
    tighter : bool
        Use the tightened bound of Titsias (2025).
    copies : Tensor, shape [N], optional
        For the tightened bound: how many rows with independent residuals each row stands for; a row
        that merges c rows of noise s has noise s / c. One if left out.

    Returns
    -------
    Tensor, shape []
        Bound in nats, summed over the rows.

    Raises
    ------
    InputError
        If shapes, dtypes or devices do not fit, a variance or lengthscale is not positive, data are
        not finite, the kernel is unknown, or x requires a gradient.
    NumericalError
        If inducing inputs or hyperparameters are not finite, or inputs are more than 1e100
        lengthscales away.
    NotPositiveDefiniteError
        If Kzz with this jitter has no Cholesky factor.

    References
    ----------
    M. K. Titsias, AISTATS 2009; M. K. Titsias, ICML 2025.

    Examples
    --------
    >>> import torch
    >>> x = torch.linspace(0.0, 3.0, 6, dtype=torch.float64)[:, None]
    >>> one = torch.ones((), dtype=torch.float64)
    >>> ell = one.reshape(1).clone().requires_grad_()
    >>> y, z = x[:, 0].sin(), x[::2]
    >>> bound = stationary_collapsed_bound("rbf", x, z, y, ell, one, 0.1 * one, jitter=1e-8)
    >>> bound.backward()
    >>> ell.grad.shape
    torch.Size([1])
    """
    _check_stationary(name, x, z, targets, lengthscale, outputscale, noise, jitter)
    copies = _checked_copies(copies, targets)
    options = _Options(name, jitter, tighter, copies, _engine(x), torch.is_grad_enabled())
    return _StationaryBound.apply(z, targets, lengthscale, outputscale, noise, x, options)


class _CollapsedBound(torch.autograd.Function):
    """The gradient is computed in the backward pass: sums over broadcast batch dimensions are
    possible only once the incoming gradient of every batch element is known."""

    @staticmethod
    def forward(
        ctx: Any,
        Kzz: Tensor,
        Kzx: Tensor,
        k_diag: Tensor,
        targets: Tensor,
        noise: Tensor,
        tighter: bool,
        copies: Tensor,
    ) -> Tensor:
        N, dtype = Kzx.shape[-1], Kzx.dtype
        L = factorise(Kzz, "Kzz", 0.0).to(dtype)
        A = torch.linalg.solve_triangular(L, Kzx, upper=False)
        w = 1.0 / noise
        residual = k_diag - A.square().sum(-2)
        B = ((A * w.unsqueeze(-2)) @ A.mT).double()
        B.diagonal(dim1=-2, dim2=-1).add_(1.0)
        LB = factorise(B, "I + A W A'", 0.0)
        projected = A @ (w * targets).unsqueeze(-1)
        beta = torch.cholesky_solve(projected.double(), LB).to(dtype).squeeze(-1)
        error = targets - (A.mT @ beta.unsqueeze(-1)).squeeze(-1)
        # y'(Q + noise)^-1 y as a sum of squares; beta minimises it, so its rounding is harmless.
        quadratic = (w * error.square()).sum(-1) + beta.square().sum(-1)
        log_det_B = 2.0 * LB.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_det = log_det_B.to(dtype) - w.log().expand(*w.shape[:-1], N).sum(-1)
        penalty = residual_penalty(residual * w, tighter, copies).sum(-1)
        ctx.save_for_backward(noise, L, A, LB, beta, w * error, residual)
        ctx.shapes = [t.shape for t in (Kzz, Kzx, k_diag, targets, noise)]
        ctx.tighter, ctx.copies = tighter, copies
        return -0.5 * (N * math.log(2.0 * math.pi) + log_det + quadratic + penalty)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        noise, L, A, LB, beta, alpha, residual = ctx.saved_tensors
        need = ctx.needs_input_grad
        w = 1.0 / noise
        g = gradient.unsqueeze(-1)
        omega = residual_weights(residual, w, ctx.tighter, ctx.copies)
        d_targets = _reduce(-g * alpha, ctx.shapes[3]) if need[3] else None
        d_k_diag = _reduce(-0.5 * g * omega, ctx.shapes[2]) if need[2] else None
        d_Kzz = d_Kzx = d_noise = None
        if need[0] or need[1] or need[4]:
            solved = torch.cholesky_inverse(LB).to(A.dtype) @ A  # B^-1 A
        if need[4]:
            leverage = (A * solved).sum(-2)
            rows = alpha.square() - w + w.square() * leverage + omega * residual * w
            d_noise = _reduce(0.5 * g * rows, ctx.shapes[4])
        if need[0] or need[1]:
            rest = omega.unsqueeze(-2) * A - w.unsqueeze(-2) * solved
            # Only the rank-one part differs between outputs that share a kernel and a noise.
            shared = gradient.sum_to_size(_align(rest.shape[:-2], gradient.dim()))
            adjoint = (shared[..., None, None] * rest).sum_to_size(
                _align(A.shape, gradient.dim() + 2)
            )
            adjoint = adjoint + _outer_sum(g * beta, alpha, adjoint.shape[:-2])
            K_bar = torch.linalg.solve_triangular(L.mT, adjoint, upper=True)
            d_Kzx = _reduce(K_bar, ctx.shapes[1])
        if need[0]:
            half = -0.5 * K_bar @ A.mT
            full = torch.linalg.solve_triangular(L, half, upper=False, left=False)
            d_Kzz = _reduce(0.5 * (full + full.mT), ctx.shapes[0])
        return d_Kzz, d_Kzx, d_k_diag, d_targets, d_noise, None, None


class _Options(NamedTuple):
    name: str
    jitter: float
    tighter: bool
    copies: Tensor
    engine: Engine
    gradient: bool  # inside forward, gradients are always disabled: ask before


class _StationaryBound(torch.autograd.Function):
    """Value and gradient in one go; the backward pass scales."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        targets: Tensor,
        lengthscale: Tensor,
        outputscale: Tensor,
        noise: Tensor,
        x: Tensor,
        options: _Options,
    ) -> Tensor:
        by = [options.gradient and need for need in ctx.needs_input_grad]
        needs = Needs(any(by), by[0] or by[2], by[4] and noise.dim() == 1)
        arguments = Arguments(
            options.name,
            x,
            z.detach(),
            targets.detach(),
            lengthscale.detach(),
            outputscale.detach(),
            noise.detach(),
            options.jitter,
            options.tighter,
            options.copies,
        )
        value, gradient = evaluate(options.engine, arguments, needs)
        if gradient is not None:
            ctx.save_for_backward(*gradient)
        return value.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return scaled_gradients(ctx, gradient) + (None, None)


def _checked_copies(copies: Tensor | None, targets: Tensor) -> Tensor:
    """Numbers of copies, one number where none are given."""
    if copies is None:
        return targets.new_ones(())
    if copies.shape[-1:] != targets.shape[-1:]:
        raise InputError(
            f"copies has shape {tuple(copies.shape)} for {targets.shape[-1]} rows; give one per row."
        )
    check_kinds({"copies": copies, "targets": targets}, targets)
    check_positive("copies", copies)
    return copies.detach()


def _align(shape: torch.Size, dims: int) -> tuple[int, ...]:
    """The shape with ones in front, so that it has this many dimensions."""
    return (1,) * (dims - len(shape)) + tuple(shape)


def _reduce(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Sum over the dimensions along which a tensor of this shape was broadcast."""
    return gradient.sum_to_size(_align(shape, gradient.dim())).reshape(shape)


def _outer_sum(left: Tensor, right: Tensor, batch: torch.Size) -> Tensor:
    """``sum left right'`` over the dimensions that have size one in `batch`, as one product."""
    full = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1], batch)
    left, right = left.expand(*full, -1), right.expand(*full, -1)
    dims = range(left.dim() - 1)
    kept = [i for i in dims if batch[i] == left.shape[i]]
    summed = [i for i in dims if i not in kept]
    sizes = [left.shape[i] for i in kept]
    columns = left.permute(*kept, -1, *summed).reshape(*sizes, left.shape[-1], -1)
    rows = right.permute(*kept, *summed, -1).reshape(*sizes, -1, right.shape[-1])
    return (columns @ rows).reshape(*batch, left.shape[-1], right.shape[-1])


@cache
def _compiled_engine() -> Engine | None:
    return load_engine("gpvi.linalg._collapsed_cpu", "collapsed bound")


def _engine(x: Tensor) -> Engine:
    compiled = None
    if x.device.type == "cpu" and x.dtype == torch.float64:
        compiled = _compiled_engine()
    return TensorEngine() if compiled is None else compiled


def _check_stationary(
    name: str,
    x: Tensor,
    z: Tensor,
    targets: Tensor,
    lengthscale: Tensor,
    outputscale: Tensor,
    noise: Tensor,
    jitter: float,
) -> None:
    check_kernel_name(name, "collapsed_bound")
    parameters = {"z": z, "lengthscale": lengthscale, "outputscale": outputscale, "noise": noise}
    tensors = {"x": x, "targets": targets, **parameters}
    check_kinds(tensors, x)
    N, D = x.shape if x.dim() == 2 else (-1, -1)
    fits = x.dim() == 2 and z.dim() == 2 and z.shape[1] == D and min(N, D, z.shape[0]) > 0
    fits = fits and targets.shape == (N,) and noise.shape in ((), (N,))
    if not (fits and outputscale.dim() == 0 and lengthscale.shape in ((D,), (1,))):
        raise InputError(
            "expected x [N, D], z [M, D], targets [N], lengthscale [D] or [1], outputscale [] and "
            f"noise [] or [N], none of them empty; got {describe_shapes(tensors)}"
        )
    check_constant_inputs(x, "collapsed_bound with kernel matrices")
    if not math.isfinite(jitter) or jitter < 0.0:
        raise InputError(f"jitter must be finite and not negative, got {jitter}.")
    check_finite({"x": x, "targets": targets}, parameters)
    for key in ("lengthscale", "outputscale", "noise"):
        check_positive(key, parameters[key])
    check_range(lengthscale, x, z)
