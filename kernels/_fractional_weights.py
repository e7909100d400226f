r"""Weights with which a bank of Ornstein-Uhlenbeck processes imitates fractional Brownian motion.

With :math:`dY_k = -\gamma_k Y_k dt + dW` and fractional Brownian motion B driven by the same Wiener
process, the weights minimise :math:`\int_0^1 E (\sum_k w_k Y_k(t) - B(t))^2 dt`, that is, they solve
:math:`A w = b`. With :math:`a = H + \tfrac12` and B as the integral of
:math:`(t - u)^{a - 1} / \Gamma(a)`:

- type II (everything starts at zero): :math:`A_{ij} = s^{-1} + (e^{-s} - 1) s^{-2}` with
  :math:`s = \gamma_i + \gamma_j`, and :math:`\gamma^{a+1} b = \gamma P(a, \gamma)
  - a P(a + 1, \gamma)`;
- type I (increments of stationary processes): :math:`A_{ij} = [2 + (e^{-\gamma_i} - 1) / \gamma_i
  + (e^{-\gamma_j} - 1) / \gamma_j] / s`, and :math:`\gamma^{a+1} b = 2 \gamma
  - \gamma^a / \Gamma(a + 1) + e^{-\gamma} - e^\gamma Q(a, \gamma)`.

P and Q are the regularised incomplete gamma functions, which torch does not differentiate in a. So
both right-hand sides come from a power series without cancellation for small :math:`\gamma`, and
from :math:`e^x Q(a, x) = \Gamma(a)^{-1} \int_0^\infty (x + s)^{a-1} e^{-s} ds` by Gauss-Legendre
quadrature for large; both are plain tensor operations.

References
----------
Daems, R., Opper, M., Crevecoeur, G. & Birdal, T. (2024). Variational inference for SDEs driven by
fractional noise. ICLR.
"""

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["FractionalType", "bank_rates", "fractional_weights", "moving_average_variance"]

FractionalType = Literal["I", "II"]

_SERIES_LIMIT = 4.0
_SERIES_TERMS = 40
# The integrand has decayed by e^-44 at the end of the last panel.
_PANELS = (0.0, 2.0, 6.0, 14.0, 26.0, 44.0)
_NODES = 24
# Relative ridge of the normal equations, whose condition number passes 1e12: what it costs shows in
# the last digit of the approximation error, and it keeps weights small that would cancel each other.
_RIDGE = 1e-12


def bank_rates(num_processes: int, largest: float) -> Tensor:
    """Rates in geometric progression around one.

    Parameters
    ----------
    num_processes : int
        ``K``.
    largest : float
        The largest rate; the smallest is its inverse.

    Returns
    -------
    Tensor of float64, shape [K]
        Ascending, for a horizon of one.
    """
    if num_processes == 1:
        return torch.ones(1, dtype=torch.float64)
    exponents = torch.linspace(-1.0, 1.0, num_processes, dtype=torch.float64)
    return torch.tensor(largest, dtype=torch.float64) ** exponents


def fractional_weights(hurst: Tensor, rates: Tensor, kind: FractionalType) -> Tensor:
    """Weights of the bank for standard fractional Brownian motion on the unit interval.

    Parameters
    ----------
    hurst : Tensor of float64, shape [*b]
        ``H``, in (0, 1).
    rates : Tensor of float64, shape [*b, K] or [K]
        ``gamma``.
    kind : {"I", "II"}
        Type of the process.

    Returns
    -------
    Tensor of float64, shape [*b, K]
        Such that the variance of what they imitate is ``t^2H``.
    """
    a = hurst.unsqueeze(-1) + 0.5
    A, b = _normal_matrix(rates, kind), _right_side(a, rates, kind)
    # Unit diagonal: the entries of A span as many orders of magnitude as the rates.
    deviation = A.diagonal(dim1=-2, dim2=-1).sqrt()
    A = A / deviation.unsqueeze(-1) / deviation.unsqueeze(-2)
    A = A + _RIDGE * A.shape[-1] * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    w = torch.linalg.solve(A, (b / deviation).unsqueeze(-1)).squeeze(-1) / deviation
    return w / moving_average_variance(hurst, kind).sqrt().unsqueeze(-1)


def moving_average_variance(hurst: Tensor, kind: FractionalType) -> Tensor:
    """Variance at time one of the process with kernel ``(t - u)^(H - 1/2) / Gamma(H + 1/2)``.

    Parameters
    ----------
    hurst : Tensor, shape [*b]
        ``H``.
    kind : {"I", "II"}
        Type of the process.

    Returns
    -------
    Tensor, shape [*b]
        One for ``H = 1/2``.
    """
    if kind == "I":
        return torch.exp(-torch.lgamma(2.0 * hurst + 1.0)) / torch.sin(torch.pi * hurst)
    return torch.exp(-2.0 * torch.lgamma(hurst + 0.5)) / (2.0 * hurst)


def _normal_matrix(rates: Tensor, kind: FractionalType) -> Tensor:
    left, right = rates.unsqueeze(-1), rates.unsqueeze(-2)
    s = left + right
    if kind == "II":
        return _second_remainder(s)
    # [2 + expm1(-x) / x + expm1(-y) / y] / s, each term as x times its second remainder.
    return (left * _second_remainder(left) + right * _second_remainder(right)) / s


def _second_remainder(x: Tensor) -> Tensor:
    """``(x + e^-x - 1) / x^2``, which is 1/2 at zero."""
    near = x.clamp_max(1.0)
    series = torch.ones_like(x)
    for k in range(20, 2, -1):
        series = 1.0 - near / k * series
    far = x.clamp_min(1.0)
    return torch.where(x < 1.0, 0.5 * series, (far + torch.expm1(-far)) / far.square())


def _right_side(a: Tensor, rates: Tensor, kind: FractionalType) -> Tensor:
    """``b``, shape [*b, K]."""
    near, far = rates.clamp_max(_SERIES_LIMIT), rates.clamp_min(_SERIES_LIMIT)
    small = _series_one(a, near) if kind == "I" else _series_two(a, near)
    Q = _scaled_upper_gamma(a, far)
    if kind == "I":
        power = torch.exp(a * far.log() - torch.lgamma(a + 1.0))
        large = 2.0 * far - power + torch.exp(-far) - Q
    else:
        Q1 = _scaled_upper_gamma(a + 1.0, far)
        large = far - a + torch.exp(-far) * (a * Q1 - far * Q)
    large = large * torch.exp(-(a + 1.0) * far.log())
    return torch.where(rates < _SERIES_LIMIT, small, large)


def _series_one(a: Tensor, x: Tensor) -> Tensor:
    """``sum_n x^(n-1) / Gamma(a+n+1) - 2 x^-(a+1) sum_k x^(2k+1) / (2k+1)!``, from one on."""
    fractional = torch.zeros_like(x + a)
    for n in range(_SERIES_TERMS, 0, -1):
        fractional = fractional + x ** (n - 1) * torch.exp(-torch.lgamma(a + n + 1.0))
    whole = torch.zeros_like(x)
    for k in range(_SERIES_TERMS // 2, 0, -1):
        whole = (1.0 + whole) * x.square() / ((2 * k + 1) * (2 * k))
    return fractional - 2.0 * whole * torch.exp(-a * x.log())


def _series_two(a: Tensor, x: Tensor) -> Tensor:
    """``e^-x sum_n (n + 1) x^n / Gamma(a + n + 2)``."""
    total = torch.zeros_like(x + a)
    for n in range(_SERIES_TERMS, -1, -1):
        total = total + (n + 1) * x**n * torch.exp(-torch.lgamma(a + n + 2.0))
    return torch.exp(-x) * total


def _scaled_upper_gamma(a: Tensor, x: Tensor) -> Tensor:
    """``e^x Q(a, x)`` for x of at least four."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    points, masses = [], []
    for low, high in pairwise(_PANELS):
        half = 0.5 * (high - low)
        points.append(low + half * (nodes + 1.0))
        masses.append(half * weights)
    s = torch.as_tensor(np.concatenate(points), dtype=x.dtype, device=x.device)
    mass = torch.as_tensor(np.concatenate(masses), dtype=x.dtype, device=x.device)
    logarithm = (a - 1.0).unsqueeze(-1) * (x.unsqueeze(-1) + s).log() - s
    return (logarithm.exp() * mass).sum(-1) * torch.exp(-torch.lgamma(a))
