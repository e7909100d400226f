"""Distribution functions and quantiles of a new observation.

The predictive distribution of y mixes p(y | f) over a Gaussian f. Its distribution function is a
mixture of conditional ones; quantiles invert it by bisection, over the integers for counts.
"""

from collections.abc import Callable

import scipy.special
import torch
from torch import Tensor
from torch import distributions as td

from gpvi.exceptions import NumericalError, UnsupportedError
from gpvi.likelihoods.moments import mean_and_variance
from gpvi.linalg.quadrature import QuadratureRule, expectation, floored_variance, uniform_rule

__all__ = ["invert_cdf", "mixture_cdf", "mixture_moments"]

# Most numbers held at once while a mixture is evaluated.
_BLOCK = 2_000_000
_MAX_DOUBLINGS = 200
# Bisections after which a bracket is 3e-12 of its first width.
_NUM_BISECTIONS = 38


def _conditional_cdf(distribution: td.Distribution, value: Tensor) -> Tensor:
    r"""Distribution function P(Y <= value), also for families where torch has none.

    Parameters
    ----------
    distribution : torch.distributions.Distribution
        Batch shape broadcasts against `value`.
    value : Tensor
        Any real numbers, inside the support or not.

    Returns
    -------
    Tensor
        Probabilities, broadcast shape. Not differentiable for families computed by SciPy.

    Raises
    ------
    UnsupportedError
        If neither torch nor this function knows the distribution function.

    Examples
    --------
    >>> _conditional_cdf(td.Poisson(torch.tensor(1.0)), torch.tensor([-1.0, 0.0, 1.5]))
    tensor([0.0000, 0.3679, 0.7358])
    """
    count = value.floor().clamp_min(0) + 1
    if isinstance(distribution, td.Poisson):
        result = torch.special.gammaincc(*torch.broadcast_tensors(count, distribution.rate))
    elif isinstance(distribution, td.Bernoulli):
        result = torch.where(value >= 1, torch.ones_like(value), 1 - distribution.probs)
    elif isinstance(distribution, td.NegativeBinomial):
        result = _by_scipy(
            scipy.special.betainc, distribution.total_count, count, 1 - distribution.probs
        )
    elif isinstance(distribution, td.StudentT):
        standard = (value - distribution.loc) / distribution.scale
        return _by_scipy(scipy.special.stdtr, distribution.df, standard)
    elif isinstance(distribution, td.Beta):
        shapes = (distribution.concentration1, distribution.concentration0)
        return _by_scipy(scipy.special.betainc, *shapes, value.clamp(0, 1))
    else:
        try:
            return distribution.cdf(value)
        except NotImplementedError as error:
            raise UnsupportedError(
                f"Quantiles need the distribution function of {type(distribution).__name__}, which "
                "torch does not implement. Use predict_mean_var or predict_log_density instead."
            ) from error
    return torch.where(value < 0, torch.zeros_like(result), result)


def mixture_cdf(
    conditional: Callable[[Tensor], td.Distribution], value: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    r"""Distribution function of y, mixed over the latent Gaussian.

    .. math:: P(Y \le y) = \mathrm{E}_{N(f \mid m, v)}[P(Y \le y \mid f)]

    The integrand is a smoothed step in f, so a fine uniform rule is used: with a noise as narrow as
    a tenth of the latent standard deviation the error is below 1e-5.

    Parameters
    ----------
    conditional : callable
        Maps f, `[K, 1, *b, N]`, to the distribution p(y | f).
    value : Tensor
        `[Q, *b, N]`.
    mean, variance : Tensor
        `[*b, N]`, float64.

    Returns
    -------
    Tensor
        `[Q, *b, N]`.

    Examples
    --------
    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> mixture_cdf(lambda f: td.Normal(f, 1.0), zero[None], zero, zero + 1)
    tensor([[0.5000]], dtype=torch.float64)
    """
    rule = uniform_rule().like(mean)
    scale = floored_variance(mean, variance).sqrt()
    block = max(1, _BLOCK // max(1, value.numel()))
    blocks = zip(rule.nodes.split(block), rule.log_weights.exp().split(block), strict=True)
    total = torch.zeros_like(value)
    for nodes, weights in blocks:
        f = mean + scale * nodes.reshape(-1, *[1] * (1 + mean.dim()))
        inner = _conditional_cdf(conditional(f), value)
        total = total + torch.tensordot(weights, inner, dims=1)
    return total


def mixture_moments(
    conditional: Callable[[Tensor], td.Distribution],
    mean: Tensor,
    variance: Tensor,
    rule: QuadratureRule,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of y with f ~ N(mean, variance), by the laws of total expectation and variance.

    Parameters
    ----------
    conditional : callable
        p(y | f) for values of f.
    mean, variance : Tensor
        Moments of f, `[*b, N]`.
    rule : QuadratureRule
        For the expectation over f.

    Returns
    -------
    mean, variance : Tensor
        `[*b, N]`.
    """
    centre = expectation(lambda f: mean_and_variance(conditional(f))[0], mean, variance, rule)

    def spread(f: Tensor) -> Tensor:
        inner_mean, inner_variance = mean_and_variance(conditional(f))
        return inner_variance + (inner_mean - centre).square()

    return centre, expectation(spread, mean, variance, rule)


def _continuous_quantiles(
    cdf: Callable[[Tensor], Tensor], levels: Tensor, centre: Tensor, width: Tensor
) -> Tensor:
    """Invert continuous distribution functions by bisection, all rows and levels at once.

    Parameters
    ----------
    cdf : callable
        Maps `[Q, *b, N]` to `[Q, *b, N]`, non-decreasing.
    levels : Tensor
        `[Q, 1, ..., 1]`, each strictly between 0 and 1.
    centre, width : Tensor
        `[*b, N]`: a rough location and positive scale, from which the bracket grows.

    Returns
    -------
    Tensor
        `[Q, *b, N]`.

    Raises
    ------
    NumericalError
        If no bracket is found.

    Examples
    --------
    >>> levels = torch.tensor([[0.5], [0.975]], dtype=torch.float64)
    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> _continuous_quantiles(torch.special.ndtr, levels, zero, zero + 1).round(decimals=4) + 0.0
    tensor([[0.0000],
            [1.9600]], dtype=torch.float64)
    """
    lower, upper = _bracket(cdf, levels, centre, width)
    for _ in range(_NUM_BISECTIONS):
        middle = 0.5 * (lower + upper)
        reached = cdf(middle) >= levels
        lower, upper = torch.where(reached, lower, middle), torch.where(reached, middle, upper)
    return 0.5 * (lower + upper)


def _integer_quantiles(
    cdf: Callable[[Tensor], Tensor], levels: Tensor, centre: Tensor, width: Tensor
) -> Tensor:
    """Smallest non-negative integers whose distribution function reaches each level.

    Parameters
    ----------
    cdf : callable
        Maps `[Q, *b, N]` to `[Q, *b, N]`, non-decreasing, for whole numbers.
    levels : Tensor
        `[Q, 1, ..., 1]`, each strictly between 0 and 1.
    centre, width : Tensor
        `[*b, N]`: a rough location and positive scale, from which the bracket grows.

    Returns
    -------
    Tensor
        `[Q, *b, N]`, whole numbers in the dtype of `centre`.

    Raises
    ------
    NumericalError
        If no bracket is found.

    Examples
    --------
    >>> cdf = lambda k: _conditional_cdf(td.Poisson(torch.tensor(3.0)), k)
    >>> _integer_quantiles(cdf, torch.tensor([[0.5]]), torch.tensor([3.0]), torch.tensor([1.0]))
    tensor([[3.]])
    """
    lower, upper = _bracket(cdf, levels, centre, width)
    lower, upper = lower.floor().clamp_min(-1), upper.ceil().clamp_min(0)
    while bool(((upper - lower) > 1).any()):
        middle = (0.5 * (lower + upper)).floor()
        reached = cdf(middle) >= levels
        lower, upper = torch.where(reached, lower, middle), torch.where(reached, middle, upper)
    return upper


def invert_cdf(
    cdf: Callable[[Tensor], Tensor], levels: Tensor, mean: Tensor, variance: Tensor, discrete: bool
) -> Tensor:
    """Quantiles of predictive distributions whose moments are known, exact for counts.

    Parameters
    ----------
    cdf : callable
        Maps `[Q, *b, N]` to `[Q, *b, N]`, non-decreasing.
    levels : Tensor
        `[Q, 1, ..., 1]`, each strictly between 0 and 1.
    mean, variance : Tensor
        Predictive moments `[*b, N]`, the first guess; where they do not exist, 0 and 1 serve.
    discrete : bool
        Whether y is a whole number.

    Returns
    -------
    Tensor
        `[Q, *b, N]`.

    Examples
    --------
    >>> moments = torch.tensor([0.25]), torch.tensor([3 / 16])
    >>> cdf = lambda k: _conditional_cdf(td.Bernoulli(torch.tensor(0.25)), k)
    >>> invert_cdf(cdf, torch.tensor([[0.5], [0.9]]), *moments, discrete=True)
    tensor([[0.],
            [1.]])
    """
    usable = mean.isfinite() & variance.isfinite()
    centre = torch.where(usable, mean, 0.0)
    width = torch.where(usable, variance, 1.0).sqrt().clamp_min(torch.finfo(mean.dtype).tiny)
    return (_integer_quantiles if discrete else _continuous_quantiles)(cdf, levels, centre, width)


def _bracket(
    cdf: Callable[[Tensor], Tensor], levels: Tensor, centre: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """Grow `centre` plus and minus `width` until the levels lie in between."""
    shape = torch.broadcast_shapes(levels.shape, centre.shape)
    centre, width = centre.expand(shape), width.expand(shape)
    below, above = width.clone(), width.clone()
    for _ in range(_MAX_DOUBLINGS):
        too_high = cdf(centre - below) >= levels
        too_low = cdf(centre + above) < levels
        if not bool((too_high | too_low).any()):
            return centre - below, centre + above
        below, above = (
            torch.where(too_high, 2 * below, below),
            torch.where(too_low, 2 * above, above),
        )
    raise NumericalError(
        f"No interval around the predictive mean holds the quantiles at levels "
        f"{levels.flatten().tolist()}; the predictive distribution may be NaN or have no mass "
        "left. Check the mean and variance that were passed."
    )


def _by_scipy(function: Callable[..., object], *arguments: Tensor) -> Tensor:
    arrays = [argument.detach().cpu().numpy() for argument in arguments]
    return torch.as_tensor(function(*arrays)).to(arguments[-1])
