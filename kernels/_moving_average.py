r"""Covariance of fractional Brownian motion of type II, and of banks that imitate it.

Type II is the integral of :math:`(t - u)^\alpha / \Gamma(\alpha + 1)`, :math:`\alpha = H - \tfrac12`,
over the Wiener process since the origin. Its covariance has no elementary form; with
:math:`v = s e^{-z}` the integral

.. math:: \int_0^s v^\alpha (v + \delta)^\alpha dv = \int_0^\infty v^{\alpha + 1} (v + \delta)^\alpha dz

is smooth in z on a scale of one for every :math:`\delta \ge 0`, so that Gauss-Legendre panels of
length five resolve it to rounding.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["bank_covariance", "moving_average_covariance"]

_PANEL = 5.0
_NODES = 16
_DECAY = 37.0


def moving_average_covariance(hurst: Tensor, earlier: Tensor, apart: Tensor) -> Tensor:
    """Covariance of type II at times since the origin, of variance ``t^2H``.

    Parameters
    ----------
    hurst : Tensor
        ``H``; shapes of all three broadcast.
    earlier : Tensor
        The earlier of two times, not negative.
    apart : Tensor
        How far the later one lies behind it.

    Returns
    -------
    Tensor
        Covariances.
    """
    alpha = hurst - 0.5
    # The integrand decays like e^(-(alpha + 1) z), or e^(-2 H z) for equal times.
    slowest = 2.0 * hurst.detach().min().item()
    slowest = min(slowest, 0.5 * slowest + 0.5)
    panels = math.ceil(_DECAY / slowest / _PANEL)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    positive = earlier > 0
    start = torch.where(positive, earlier, torch.ones_like(earlier))
    total = torch.zeros(torch.broadcast_shapes(alpha.shape, earlier.shape, apart.shape)).to(start)
    for panel in range(panels):
        for node, weight in zip(nodes, weights, strict=True):
            v = start * math.exp(-_PANEL * (panel + 0.5 * (node + 1.0)))
            joint = (alpha + 1.0) * v.log() + alpha * (v + apart).log()
            total = total + 0.5 * _PANEL * weight * joint.exp()
    return torch.where(positive, 2.0 * hurst * total, torch.zeros_like(total))


def bank_covariance(
    rates: list[Tensor],
    weights: list[Tensor],
    begin: Literal["stationary", "zero", "increments"],
    earlier: Tensor,
    later: Tensor,
) -> Tensor:
    """Covariance of a weighted sum of Ornstein-Uhlenbeck processes with a common noise.

    Parameters
    ----------
    rates, weights : list of Tensor
        Of every process, driven by a noise of unit strength; their shapes broadcast with the times.
    begin : {"stationary", "zero", "increments"}
        As in :class:`~gpvi.linalg.markov.wiener_bank.WienerBankBlock`.
    earlier, later : Tensor
        Times since the origin.

    Returns
    -------
    Tensor
        Covariances.
    """
    apart = later - earlier
    total = torch.zeros_like(apart)
    for rate, weight in zip(rates, weights, strict=True):
        if begin == "zero":
            # What the process shares with the sum at the earlier time.
            shared = torch.zeros_like(apart)
            for other, factor in zip(rates, weights, strict=True):
                both = rate + other
                shared = shared - factor / both * torch.expm1(-both * earlier)
            total = total + weight * torch.exp(-rate * apart) * shared
            continue
        variance = sum(
            (factor / (rate + other) for other, factor in zip(rates, weights, strict=True)),
            torch.zeros_like(weight),
        )
        if begin == "stationary":
            total = total + weight * variance * torch.exp(-rate * apart)
        else:
            grown = [torch.expm1(-rate * t) for t in (earlier, later, apart)]
            total = total + weight * variance * (grown[2] - grown[0] - grown[1])
    return total
