r"""Gegenbauer polynomials and what they do on spheres.

On the unit sphere of :math:`\mathbb R^D` a function of the cosine :math:`t = \xi^\top \xi'` alone is a
sum over levels,

.. math:: \kappa(t) = \sum_\ell N_\ell \lambda_\ell G_\ell(t), \qquad
          \lambda_\ell = \omega_D \int_0^\pi \kappa(\cos\theta) G_\ell(\cos\theta) \sin^{D-2}\theta
          \, d\theta

(Funk and Hecke), with :math:`G_\ell` the Gegenbauer polynomial of degree :math:`\ell` and index
:math:`D/2 - 1`, divided by its value at one, which grows beyond all numbers; :math:`N_\ell` the number of
harmonics of the level; and :math:`\omega_D` such that the weight integrates to one. In two dimensions
these are the Chebyshev polynomials, in three those of Legendre.

References
----------
Dai, F. & Xu, Y. (2013). Approximation theory and harmonic analysis on spheres and balls. Springer.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = [
    "angle_rule",
    "funk_hecke",
    "gegenbauer",
    "gegenbauer_moments",
    "gegenbauer_series",
    "multiplicities",
]

#: Gauss-Legendre nodes of each piece of the angles.
_NUM_NODES = 192


def multiplicities(num_levels: int, dimension: int, like: Tensor | None = None) -> Tensor:
    r"""Number of linearly independent harmonics of every level.

    .. math:: N_0 = 1, \qquad N_\ell = \frac{2\ell + D - 2}{\ell} \binom{\ell + D - 3}{\ell - 1}

    Parameters
    ----------
    num_levels : int
        ``L``.
    dimension : int
        ``D``, of the space around the sphere, at least 2.
    like : Tensor, optional
        Gives the device.

    Returns
    -------
    Tensor, shape [L]
        In double precision.

    Examples
    --------
    >>> multiplicities(4, 3)
    tensor([1., 3., 5., 7.], dtype=torch.float64)
    """
    _check(num_levels, dimension)
    D = dimension
    counts = [1] + [
        (2 * level + D - 2) * math.comb(level + D - 3, level - 1) // level
        for level in range(1, num_levels)
    ]
    device = "cpu" if like is None else like.device
    return torch.tensor([float(count) for count in counts], dtype=torch.float64, device=device)


def gegenbauer(t: Tensor, num_levels: int, dimension: int) -> Tensor:
    r"""Normalised Gegenbauer polynomials of the lowest degrees.

    .. math:: (\ell + D - 2) G_{\ell + 1}(t) = (2\ell + D - 2) \, t \, G_\ell(t) - \ell \,
              G_{\ell - 1}(t)

    Parameters
    ----------
    t : Tensor, shape [...]
        Cosines.
    num_levels : int
        ``L``.
    dimension : int
        ``D``, at least 2.

    Returns
    -------
    Tensor, shape [..., L]
        All between -1 and 1, and one at ``t = 1``.

    Examples
    --------
    >>> gegenbauer(torch.tensor([0.5, 1.0]), 3, 3)
    tensor([[ 1.0000,  0.5000, -0.1250],
            [ 1.0000,  1.0000,  1.0000]])
    """
    _check(num_levels, dimension)
    levels = [torch.ones_like(t)]
    for level in range(1, num_levels):
        levels.append(_next(levels[-1], levels[-2] if level > 1 else None, t, level, dimension))
    return torch.stack(levels, -1)


def gegenbauer_series(coefficients: Tensor, t: Tensor, dimension: int) -> Tensor:
    r"""Sum of normalised Gegenbauer polynomials, :math:`\sum_\ell c_\ell G_\ell(t)`.

    No level is kept for the gradient, which is a series again, in two dimensions more:

    .. math:: G_\ell'(t; D) = \frac{\ell (\ell + D - 2)}{D - 1} \, G_{\ell - 1}(t; D + 2).

    Parameters
    ----------
    coefficients : Tensor, shape [*c, L]
        ``c``; the shape *c broadcasts with that of ``t``.
    t : Tensor, shape [*t]
        Cosines.
    dimension : int
        ``D``, at least 2.

    Returns
    -------
    Tensor, shape [*c] broadcast with [*t]
        Of the type of ``t``; differentiable as often as one likes.

    Examples
    --------
    >>> gegenbauer_series(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 1.0]), 3)
    tensor([0.7500, 3.0000])
    """
    _check(coefficients.shape[-1], dimension)
    return _Series.apply(coefficients.to(t), t, dimension)


def gegenbauer_moments(
    values: Tensor, t: Tensor, num_levels: int, dimension: int, shape: torch.Size
) -> Tensor:
    r"""Sums :math:`\sum v \, G_\ell(t)` for every level: the adjoint of :func:`gegenbauer_series`.

    Parameters
    ----------
    values : Tensor, shape [*v]
        ``v``.
    t : Tensor, shape [*t]
        Cosines; broadcasts to the shape of ``values``.
    num_levels : int
        ``L``.
    dimension : int
        ``D``, at least 2.
    shape : torch.Size
        What is left after the sum; broadcasts to the shape of ``values``.

    Returns
    -------
    Tensor, shape [*shape, L]
        The moments.

    Examples
    --------
    >>> t = torch.tensor([0.5, 1.0])
    >>> gegenbauer_moments(torch.ones(2), t, 3, 3, torch.Size())
    tensor([2.0000, 1.5000, 0.8750])
    """
    _check(num_levels, dimension)
    return _Moments.apply(values, t, num_levels, dimension, torch.Size(shape))


def angle_rule(dimension: int, like: Tensor, kink: float | None = None) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights of a rule for :math:`\omega_D \int_0^\pi \cdot \, \sin^{D-2}\theta \, d\theta`.

    Parameters
    ----------
    dimension : int
        ``D``, at least 2.
    like : Tensor
        Gives the device.
    kink : float, optional
        An angle at which the integrand is not smooth.

    Returns
    -------
    angles, weights : Tensor, shape [Q]
        In double precision, ascending; the weights sum to one.

    Examples
    --------
    >>> angles, weights = angle_rule(5, torch.zeros(()))
    >>> round(float((weights * angles.cos().square()).sum()), 12)
    0.2
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    ends = [0.0, math.pi] if kink is None else [0.0, kink, math.pi]
    angles = np.concatenate([a + (b - a) * 0.5 * (1.0 + nodes) for a, b in pairwise(ends)])
    pieces = np.concatenate([(b - a) * 0.5 * weights for a, b in pairwise(ends)])
    measure = pieces * np.sin(angles) ** (dimension - 2)
    measure /= measure.sum()
    return tuple(torch.as_tensor(v, device=like.device) for v in (angles, measure))  # type: ignore


def funk_hecke(values: Tensor, rule: tuple[Tensor, Tensor], num_levels: int, dim: int) -> Tensor:
    """Coefficients of a function of the angle, level by level.

    Parameters
    ----------
    values : Tensor, shape [*b, Q]
        The function at the angles of the rule.
    rule : tuple of Tensor
        From :func:`angle_rule`.
    num_levels : int
        ``L``.
    dim : int
        ``D``, that of the rule.

    Returns
    -------
    Tensor, shape [*b, L]
        On the graph of the values.

    Examples
    --------
    >>> rule = angle_rule(3, torch.zeros(()))
    >>> funk_hecke(rule[0].cos(), rule, 3, 3).abs() > 1e-12  # the cosine is all of level one
    tensor([False,  True, False])
    """
    angles, weights = rule
    return (values * weights) @ gegenbauer(angles.cos(), num_levels, dim).to(values)


class _Series(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, t: Tensor, dimension: int) -> Tensor:
        ctx.save_for_backward(coefficients, t)
        ctx.dimension = dimension
        num_levels = coefficients.shape[-1]
        total = coefficients[..., 0] + torch.zeros_like(t)
        before, current = None, torch.ones_like(t)
        for level in range(1, num_levels):
            before, current = current, _next(current, before, t, level, dimension)
            total = torch.addcmul(total, coefficients[..., level], current)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        c, t = ctx.saved_tensors
        wanted_c, wanted_t, _ = ctx.needs_input_grad
        for_c = for_t = None
        if wanted_c:
            for_c = gegenbauer_moments(grad, t, c.shape[-1], ctx.dimension, c.shape[:-1])
        if wanted_t:
            for_t = (grad * _slope(c, t, ctx.dimension)).sum_to_size(t.shape)
        return for_c, for_t, None


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, t: Tensor, num_levels: int, dimension: int, shape: torch.Size
    ) -> Tensor:
        ctx.save_for_backward(values, t)
        ctx.dimension = dimension
        before, current = None, torch.ones_like(t)
        moments = [values.sum_to_size(shape)]
        for level in range(1, num_levels):
            before, current = current, _next(current, before, t, level, dimension)
            moments.append((values * current).sum_to_size(shape))
        return torch.stack(moments, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        values, t = ctx.saved_tensors
        for_values = for_t = None
        if ctx.needs_input_grad[0]:
            for_values = gegenbauer_series(grad, t, ctx.dimension).expand_as(values)
        if ctx.needs_input_grad[1]:
            for_t = (values * _slope(grad, t, ctx.dimension)).sum_to_size(t.shape)
        return for_values, for_t, None, None, None


def _slope(c: Tensor, t: Tensor, dimension: int) -> Tensor:
    """Derivative of a series."""
    if c.shape[-1] == 1:
        return 0.0 * (c[..., 0] + t)
    level = torch.arange(1, c.shape[-1], dtype=c.dtype, device=c.device)
    factors = level * (level + dimension - 2.0) / (dimension - 1.0)
    return gegenbauer_series(c[..., 1:] * factors, t, dimension + 2)


def _next(current: Tensor, before: Tensor | None, t: Tensor, level: int, dimension: int) -> Tensor:
    """The polynomial of a level from those of the two levels below."""
    if before is None:
        return t
    scale = level + dimension - 3.0
    product = t * current
    return product.mul_((2.0 * level + dimension - 4.0) / scale).sub_(
        before, alpha=(level - 1.0) / scale
    )


def _check(num_levels: int, dimension: int) -> None:
    if num_levels < 1:
        raise InputError(f"num_levels is {num_levels}; there must be at least one level.")
    if dimension < 2:
        raise InputError(
            f"dimension is {dimension}; a sphere needs at least two: one input column and the bias."
        )
