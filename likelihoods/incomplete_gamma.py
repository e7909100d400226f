"""Logarithms of the regularised incomplete gamma functions, with both derivatives.

torch knows the functions themselves, without a derivative by the shape and only as far as they do
not underflow. Tails use Legendre's continued fraction and the power series (Abramowitz and Stegun,
1964, 6.5.29 and 6.5.31).
"""

from typing import Any

import torch
from torch import Tensor

from gpvi.exceptions import UnsupportedError

__all__ = ["log_incomplete_gamma"]

# Below, a probability is computed in the tail's own way.
_TAIL = 1e-200
_MAX_TERMS, _SMALL = 500, 1e-16
# Relative step of the differences by the shape, whose error is of fourth order.
_STEP = 1e-3


def log_incomplete_gamma(shape: Tensor, x: Tensor, upper: bool) -> Tensor:
    r"""Logarithm of :math:`Q(k, x) = \Gamma(k, x)/\Gamma(k)` or of :math:`P = 1 - Q`.

    Differentiable twice by x, once by the shape (differences of fourth order, relative error about
    1e-10).

    Parameters
    ----------
    shape : Tensor
        Positive k.
    x : Tensor
        Positive, broadcasts against the shape.
    upper : bool
        Q if True (a survival function), P if False (a distribution function).

    Returns
    -------
    Tensor
        Broadcast shape, finite.

    Examples
    --------
    >>> x = torch.tensor([1.0, 2000.0])
    >>> log_incomplete_gamma(torch.ones(1), x, upper=True)  # log exp(-x)
    tensor([-1.0000e+00, -2.0000e+03])
    """
    return _LogIncompleteGamma.apply(*torch.broadcast_tensors(shape, x), upper)


class _LogIncompleteGamma(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: Tensor, x: Tensor, upper: bool) -> Tensor:
        value = _value(shape.double(), x.double(), upper).to(x)
        ctx.save_for_backward(shape, x, value)
        ctx.upper = upper
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        shape, x, value = ctx.saved_tensors
        by_shape = by_x = None
        if ctx.needs_input_grad[1]:
            log_density = (shape - 1) * x.log() - x - torch.lgamma(shape)
            ratio = (log_density - value).exp()
            by_x = gradient * (-ratio if ctx.upper else ratio)
        if ctx.needs_input_grad[0]:
            by_shape = gradient * _SlopeByShape.apply(shape, x, ctx.upper)
        return by_shape, by_x, None


class _SlopeByShape(torch.autograd.Function):
    """Differences; as a constant they would make second derivatives wrong without a word."""

    @staticmethod
    def forward(ctx: Any, shape: Tensor, x: Tensor, upper: bool) -> Tensor:
        k, at = shape.double(), x.double()
        h = _STEP * k
        near = _value(k + h, at, upper) - _value(k - h, at, upper)
        far = _value(k + 2 * h, at, upper) - _value(k - 2 * h, at, upper)
        return ((8 * near - far) / (12 * h)).to(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        raise UnsupportedError(
            "Incomplete gamma functions are differentiable once by the shape; hold it "
            "(learn_shape=False) for second derivatives."
        )


def _value(shape: Tensor, x: Tensor, upper: bool) -> Tensor:
    lower_part, upper_part = torch.special.gammainc(shape, x), torch.special.gammaincc(shape, x)
    wanted, other = (upper_part, lower_part) if upper else (lower_part, upper_part)
    value = torch.where(other < 0.5, (-other).log1p(), wanted.log())
    tail = wanted < _TAIL
    if bool(tail.any()):
        k, at = shape[tail], x[tail]
        start = k * at.log() - at - torch.lgamma(k)
        series = _fraction(k, at) if upper else _power_series(k, at)
        value = value.masked_scatter(tail, start + series.log())
    return value


def _power_series(k: Tensor, x: Tensor) -> Tensor:
    """Sum over n of ``x^n / (k (k + 1) ... (k + n))``."""
    term = k.reciprocal()
    total = term
    for n in range(1, _MAX_TERMS):
        term = term * x / (k + n)
        total = total + term
        if bool((term < _SMALL * total).all()):
            break
    return total


def _fraction(k: Tensor, x: Tensor) -> Tensor:
    """Legendre's continued fraction by the method of Lentz, for x beyond k."""
    b = x + 1 - k
    c = torch.full_like(x, 1e300)
    d = b.reciprocal()
    total = d
    for n in range(1, _MAX_TERMS):
        a = n * (k - n)
        b = b + 2
        d = (a * d + b).reciprocal()
        c = b + a / c
        change = c * d
        total = total * change
        if bool(((change - 1).abs() < _SMALL * 10).all()):
            break
    return total
