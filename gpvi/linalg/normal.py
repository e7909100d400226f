r"""Expected log normal distribution function, with derivatives, many Gaussians at once.

.. math:: \mathrm{E}_{N(f \mid m, v)}[\log \Phi(f)] \approx \sum_k w_k \log \Phi(m + \sqrt v\, x_k)

is what probit models spend their time on. Value and both derivatives share one pass over the nodes;
the derivatives are those of the quadrature sum itself.
"""

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.exceptions import EngineWarning
from gpvi.linalg.quadrature import QuadratureRule, floored_variance

__all__ = ["expected_log_ndtr"]


def expected_log_ndtr(
    mean: Tensor, variance: Tensor, rule: QuadratureRule
) -> tuple[Tensor, Tensor, Tensor]:
    """Expectation of ``log Phi(f)`` and its derivatives by mean and variance, off the graph.

    Parameters
    ----------
    mean, variance : Tensor, shape [*b]
        Of f; they broadcast.
    rule : QuadratureRule
        For the standard normal distribution.

    Returns
    -------
    value, by_mean, by_variance : Tensor, shape [*b]
        In the dtype of ``mean``; computed in float64 on a CPU.

    Examples
    --------
    >>> import torch
    >>> from gpvi.linalg import gauss_hermite
    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> [round(x.item(), 4) for x in expected_log_ndtr(zero, zero + 1.0, gauss_hermite(20))]
    [-1.0, 0.9032, -0.2978]
    """
    with torch.no_grad():
        mean, variance = torch.broadcast_tensors(mean, floored_variance(mean, variance))
        loop = _compiled_loop() if mean.device.type == "cpu" else None
        if loop is None:
            return _by_tensors(mean, variance, rule.like(mean))
        out = torch.empty(3, mean.numel(), dtype=torch.float64)
        flat = [t.double().reshape(-1).contiguous().numpy() for t in (mean, variance)]
        nodes, log_weights = rule.like(out)
        loop(*flat, nodes.numpy(), log_weights.exp().numpy(), out.numpy())
        value, by_mean, by_variance = out.to(mean.dtype).reshape(3, *mean.shape)
        return value, by_mean, by_variance


def _by_tensors(
    mean: Tensor, variance: Tensor, rule: QuadratureRule
) -> tuple[Tensor, Tensor, Tensor]:
    nodes = rule.nodes.reshape(-1, *[1] * mean.dim())
    weights = rule.log_weights.exp().reshape(nodes.shape)
    deviation = variance.sqrt()
    z = mean + deviation * nodes
    slopes = weights * (2.0 / torch.pi) ** 0.5 / torch.special.erfcx(-z * 0.5**0.5)
    value = (weights * torch.special.log_ndtr(z)).sum(0)
    return value, slopes.sum(0), 0.5 * (nodes * slopes).sum(0) / deviation


@cache
def _compiled_loop() -> Any:
    try:
        return import_module("gpvi.linalg._normal_cpu").expected_log_ndtr_loop
    except ImportError as error:
        warn(
            f"the compiled expectations of probit models are not available ({error}); tensor "
            "operations serve instead, at several times the cost. Reinstall numba.",
            EngineWarning,
        )
        return None
