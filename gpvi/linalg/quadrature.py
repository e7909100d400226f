"""Expectations under one-dimensional Gaussians by fixed rules, in ordinary and in log space.

A likelihood needs E[g(f)] and log E[exp g(f)] for f ~ N(mean, variance), many rows at once. Both
are sums over the nodes of a rule for N(0, 1), shifted and scaled to each row (Golub and Welsch,
1969, "Calculation of Gauss quadrature rules"). Nodes and *log* weights are computed in float64 and
only cast where they meet the data, so that a detour through float32 leaves no rounding behind.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.special import roots_hermitenorm
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = [
    "QuadratureRule",
    "expectation",
    "floored_variance",
    "gauss_hermite",
    "log_expectation_exp",
    "uniform_rule",
]

# A recentred rule may shrink by this factor a round. Less and a rule that sees its target through a
# single node would collapse onto that node; the width kept lets the next round look around it.
_MAX_SHRINKAGE = 0.25
# A target this far out, relative to the outermost node, may lie beyond: the rule widens instead.
_EDGE, _GROWTH = 0.7, 2.0
# Recentring stops when no row moves or rescales by more than this fraction of its width.
_STILL = 1e-3


class QuadratureRule(NamedTuple):
    """Nodes and normalised log weights of a quadrature rule for N(0, 1), both of shape `[K]`."""

    nodes: Tensor
    log_weights: Tensor

    def like(self, reference: Tensor) -> "QuadratureRule":
        """Return the rule in the dtype and on the device of `reference`."""
        return QuadratureRule(self.nodes.to(reference), self.log_weights.to(reference))


def gauss_hermite(
    num_nodes: int,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> QuadratureRule:
    r"""Gauss-Hermite rule for the standard normal distribution.

    .. math:: \mathrm{E}_{N(0,1)}[g(x)] \approx \sum_{k=1}^K w_k\, g(x_k),

    exact for polynomials up to degree 2K - 1.

    Parameters
    ----------
    num_nodes : int
        Number of nodes K, at least 1.
    dtype : torch.dtype
        The rule is computed in float64 and cast to this type last.
    device : torch.device or str, optional
        Where the tensors go.

    Returns
    -------
    QuadratureRule
        `nodes` and `log_weights`, both `[K]`; the weights sum to one.

    Raises
    ------
    InputError
        If `num_nodes` is not a positive integer.

    Examples
    --------
    >>> nodes, log_weights = gauss_hermite(5)
    >>> round(float((log_weights.exp() * nodes**4).sum()), 10)
    3.0
    """
    if num_nodes != int(num_nodes) or num_nodes < 1:
        raise InputError(f"num_nodes must be an integer of at least 1, got {num_nodes!r}.")
    nodes, weights = roots_hermitenorm(int(num_nodes))
    rule_nodes = torch.as_tensor(nodes, dtype=torch.float64)
    log_weights = torch.as_tensor(weights, dtype=torch.float64).log()
    log_weights = log_weights - log_weights.logsumexp(0)
    return QuadratureRule(rule_nodes.to(device, dtype), log_weights.to(device, dtype))


def uniform_rule(step: float = 0.125, half_width: float = 6.5) -> QuadratureRule:
    r"""Uniformly spaced rule (trapezoid) for the standard normal distribution, in float64.

    Its error falls like :math:`\exp(-2\pi^2 \delta^2 / h^2)` for integrands that are a Gaussian
    smoothing of width :math:`\delta`, so it resolves steps (distribution functions) that are narrow
    against the Gaussian, where Gauss-Hermite nodes lie too far apart.

    Parameters
    ----------
    step : float
        Distance h between nodes.
    half_width : float
        Where the rule stops on both sides.

    Returns
    -------
    QuadratureRule
        Nodes and log weights, both `[K]`.

    References
    ----------
    Trefethen, L. N. and Weideman, J. A. C. (2014). The exponentially convergent trapezoidal rule.
    SIAM Review.

    Examples
    --------
    >>> rule = uniform_rule()
    >>> round(float((rule.log_weights.exp() * rule.nodes**2).sum()), 8)
    1.0
    """
    side = math.ceil(half_width / step)
    nodes = step * torch.arange(-side, side + 1, dtype=torch.float64)
    log_weights = -0.5 * nodes.square()
    return QuadratureRule(nodes, log_weights - log_weights.logsumexp(0))


def floored_variance(mean: Tensor, variance: Tensor) -> Tensor:
    r"""Lift variances to a positive floor, with derivative one everywhere.

    A rule moves its nodes by :math:`\sqrt{v}`, whose derivative is infinite at v = 0. The floor is
    :math:`\epsilon (1 + m^2)` with the rounding unit :math:`\epsilon` of the dtype: a spread that
    small changes a value by no more than its rounding does, and leaves the nodes far enough apart
    for the derivative, one half of E[g''], to keep a relative accuracy of about
    :math:`\sqrt{\epsilon}` (1e-8 in float64). The floor is added as a constant, so the gradient
    passes through, as it does for variances that rounding made slightly negative. Second
    derivatives with respect to the variance are not usable at the floor.

    Parameters
    ----------
    mean, variance : Tensor
        Shapes `[*b]` that broadcast against each other.

    Returns
    -------
    Tensor
        Positive variances, broadcast shape `[*b]`.

    Examples
    --------
    >>> variance = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    >>> floored_variance(torch.zeros(1, dtype=torch.float64), variance).sum().backward()
    >>> variance.grad
    tensor([1.], dtype=torch.float64)
    """
    floor = torch.finfo(variance.dtype).eps * (1 + mean.detach().square())
    return variance + (floor - variance.detach()).clamp_min(0)


def expectation(
    function: Callable[[Tensor], Tensor],
    mean: Tensor,
    variance: Tensor,
    rule: QuadratureRule | int = 20,
) -> Tensor:
    r"""Expectation of a function under independent Gaussians.

    .. math:: \mathrm{E}_{N(f \mid m, v)}[g(f)] \approx \sum_k w_k\, g(m + \sqrt{v}\, x_k)

    Differentiable in `mean` and `variance`, at zero variance too (see `floored_variance`).

    Parameters
    ----------
    function : callable
        Maps `[K, *b]` to `[K, *c]`, element by element; `*c` may be larger by broadcasting, but has
        no more dimensions than `*b`: give `mean` leading ones where the function brings batches.
    mean, variance : Tensor
        Shapes `[*b]` that broadcast against each other.
    rule : QuadratureRule or int
        The rule, or the number of Gauss-Hermite nodes.

    Returns
    -------
    Tensor
        `[*c]`.

    Examples
    --------
    >>> mean = torch.tensor([0.0, 1.0], dtype=torch.float64)
    >>> expectation(torch.exp, mean, torch.full_like(mean, 2.0))  # exp(mean + 1)
    tensor([2.7183, 7.3891], dtype=torch.float64)
    """
    nodes, log_weights = _as_rule(rule).like(mean)
    values = function(_spread(mean, variance, _lead(nodes, mean, variance)))
    return torch.tensordot(log_weights.exp().to(values), values, dims=1)


def log_expectation_exp(
    log_function: Callable[[Tensor], Tensor],
    mean: Tensor,
    variance: Tensor,
    rule: QuadratureRule | int = 20,
    num_recentrings: int = 0,
) -> Tensor:
    r"""Logarithm of the expectation of an exponential, never leaving log space.

    .. math:: \log \mathrm{E}_{N(f \mid m, v)}[e^{g(f)}]
              \approx \mathrm{logsumexp}_k \{\log w_k + g(m + \sqrt{v}\, x_k)\}

    Where :math:`e^g` is narrow or far from the mean, the plain rule sees it through few nodes.
    Each recentring moves and scales the rule, row by row, to the mean and variance of the product
    of :math:`e^g` and the Gaussian as the rule sees it so far (Liu and Pierce, 1994, "A note on
    Gauss-Hermite quadrature"). The moved rule enters the gradient as a constant.

    Parameters
    ----------
    log_function : callable
        The function g. Maps `[K, *b]` to `[K, *b]`, element by element; minus infinity is allowed.
    mean, variance : Tensor
        Shapes `[*b]` that broadcast against each other and against everything in `log_function`.
    rule : QuadratureRule or int
        The rule, or the number of Gauss-Hermite nodes.
    num_recentrings : int
        How often to recentre at most; each costs one more evaluation of the rule, and three or four
        settle most rows.

    Returns
    -------
    Tensor
        `[*b]`.

    Examples
    --------
    >>> mean = torch.tensor([0.0, 3000.0], dtype=torch.float64)
    >>> log_expectation_exp(lambda f: f, mean, torch.ones_like(mean))  # mean + 1/2
    tensor([5.0000e-01, 3.0005e+03], dtype=torch.float64)
    """
    nodes, log_weights = _as_rule(rule).like(mean)
    nodes, log_weights = _lead(nodes, mean, variance), _lead(log_weights, mean, variance)
    moved, moved_log_weights = nodes, log_weights
    with torch.no_grad():
        centre, scale = torch.zeros_like(nodes[:1]), torch.ones_like(nodes[:1])
        for _ in range(num_recentrings):
            log_terms = moved_log_weights + log_function(_spread(mean, variance, moved))
            new_centre, new_scale = _recentred(log_terms, moved, centre, scale, nodes.max())
            motion = torch.maximum((new_centre - centre).abs(), (new_scale - scale).abs())
            still = bool((motion <= _STILL * new_scale).all())
            centre, scale = new_centre, new_scale
            moved = centre + scale * nodes
            moved_log_weights = log_weights + 0.5 * (nodes.square() - moved.square()) + scale.log()
            if still:
                break
    return (moved_log_weights + log_function(_spread(mean, variance, moved))).logsumexp(0)


def _recentred(
    log_terms: Tensor, moved: Tensor, centre: Tensor, scale: Tensor, reach: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what the rule sees, guarded against seeing too little."""
    responsibility = torch.softmax(log_terms, dim=0)
    seen_centre = (responsibility * moved).sum(0, keepdim=True)
    seen_scale = (responsibility * (moved - seen_centre).square()).sum(0, keepdim=True).sqrt()
    at_edge = (seen_centre - centre).abs() > _EDGE * reach * scale
    narrowed = torch.maximum(seen_scale, _MAX_SHRINKAGE * scale)
    new_scale = torch.where(at_edge, _GROWTH * scale, narrowed)
    # Rows where every node has probability zero start over with the plain rule.
    usable = seen_centre.isfinite() & new_scale.isfinite()
    return torch.where(usable, seen_centre, 0.0), torch.where(usable, new_scale, 1.0)


def _as_rule(rule: QuadratureRule | int) -> QuadratureRule:
    return rule if isinstance(rule, QuadratureRule) else gauss_hermite(rule)


def _lead(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Reshape `[K]` to `[K, 1, ..., 1]`, so that the nodes lead the batch dimensions."""
    return values.reshape(-1, *[1] * max(mean.dim(), variance.dim()))


def _spread(mean: Tensor, variance: Tensor, nodes: Tensor) -> Tensor:
    return mean + floored_variance(mean, variance).sqrt() * nodes
