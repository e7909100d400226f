"""Distribution functions and quantiles of a new observation.

The predictive distribution of y mixes p(y | f) over a Gaussian f. Its distribution function is a
mixture of conditional ones; quantiles invert it by bracketed secant steps, exactly for counts.
"""

from collections.abc import Callable

import scipy.special
import torch
from torch import Tensor
from torch import distributions as td

from gpvi.exceptions import NumericalError, UnsupportedError
from gpvi.likelihoods.distributions import OrderedCategorical, ZeroInflated
from gpvi.likelihoods.moments import in_support, mean_and_variance
from gpvi.linalg.quadrature import QuadratureRule, expectation, floored_variance, uniform_rule

__all__ = ["invert_cdf", "mixture_cdf", "mixture_moments"]

# Most numbers held at once while a mixture is evaluated.
_BLOCK = 2_000_000
# The inversion of a distribution function: what counts as found, in the score and in widths.
_MAX_STEPS = 400
_SCORE_TOLERANCE = 1e-12
_WIDTH_TOLERANCE = 1e-12
# Largest score, for probabilities that are 0 or 1 to rounding, and what steps outwards add.
_FAR, _OVERSHOOT = 8.0, 0.1
_HALVING_PERIOD = 3
# Least width in rounding units of the centre, and largest logarithm of a count.
_MIN_WIDTH, _MAX_LOG_COUNT = 64.0, 700.0


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
        result = _poisson_cdf(count, distribution.rate)
    elif isinstance(distribution, td.Bernoulli):
        result = torch.where(value >= 1, torch.ones_like(value), 1 - distribution.probs)
    elif isinstance(distribution, td.NegativeBinomial):
        result = _by_scipy(
            scipy.special.betainc, distribution.total_count, count, 1 - distribution.probs
        )
    elif isinstance(distribution, td.Binomial):
        failures = distribution.total_count - count + 1
        inside = _by_scipy(
            scipy.special.betainc, failures.clamp_min(1), count, 1 - distribution.probs
        )
        result = torch.where(failures >= 1, inside, torch.ones_like(inside))
    elif isinstance(distribution, ZeroInflated):
        kept = 1 - distribution.inflation
        result = distribution.inflation + kept * _conditional_cdf(distribution.base, value)
    elif isinstance(distribution, OrderedCategorical):
        result = distribution.cdf(value)
    elif isinstance(distribution, td.StudentT):
        standard = (value - distribution.loc) / distribution.scale
        return _by_scipy(scipy.special.stdtr, distribution.df, standard)
    elif isinstance(distribution, td.Beta):
        shapes = (distribution.concentration1, distribution.concentration0)
        return _by_scipy(scipy.special.betainc, *shapes, value.clamp(0, 1))
    else:
        # Distributions of positive numbers, say, refuse to be asked about negative ones.
        inside = in_support(distribution, value) & value.isfinite()
        try:
            result = distribution.cdf(torch.where(inside, value, distribution.mean))
            return torch.where(inside, result, (value > distribution.mean).to(result))
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


def invert_cdf(
    cdf: Callable[[Tensor], Tensor], levels: Tensor, mean: Tensor, variance: Tensor, discrete: bool
) -> Tensor:
    r"""Quantiles of predictive distributions whose moments are known, exact for counts.

    Solves :math:`\Phi^{-1}(P(Y \le y)) = \Phi^{-1}(q)`. The left side is close to a straight line in
    y, or in :math:`\log(y + 3/2)` for counts, so that a bracketing secant method needs few
    evaluations from a first guess by the moments.

    Parameters
    ----------
    cdf : callable
        Maps `[Q, *b, N]` to `[Q, *b, N]`, non-decreasing. Where a count is found already, it is
        evaluated at infinity, which distribution functions answer at once.
    levels : Tensor
        `[Q, 1, ..., 1]`, each strictly between 0 and 1.
    mean, variance : Tensor
        Predictive moments `[*b, N]`, the first guess; where they do not exist, 0 and 1 serve.
    discrete : bool
        Whether y is a whole number, of at least 0.

    Returns
    -------
    Tensor
        `[Q, *b, N]`.

    Raises
    ------
    NumericalError
        If the distribution function is NaN or never reaches a level.

    References
    ----------
    Anderson, N. and Björck, Å. (1973). A new high order method of regula falsi type for computing a
    root of an equation. BIT.

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
    width = torch.where(usable, variance, 1.0).clamp_min(0).sqrt()
    if discrete:
        # A log-normal variable with the moments of y + 1.
        shifted = centre.clamp_min(0) + 1
        width = (width / shifted).square().log1p().sqrt()
        centre = shifted.log() - 0.5 * width.square()
    # Steps of a fraction of the width must change the value.
    resolution = _MIN_WIDTH * torch.finfo(mean.dtype).eps * centre.abs()
    width = torch.maximum(width, resolution.clamp_min(torch.finfo(mean.dtype).tiny))
    shape = torch.broadcast_shapes(levels.shape, mean.shape)
    return _solve(cdf, levels, centre.expand(shape), width.expand(shape), discrete)


def _solve(
    cdf: Callable[[Tensor], Tensor], levels: Tensor, centre: Tensor, width: Tensor, discrete: bool
) -> Tensor:
    """Smallest values that reach each level; the score is about (t - centre) / width.

    The score is the normal quantile of the probability, t the value on the scale of `_line`.
    """
    target = torch.special.ndtri(levels)
    upper = torch.full_like(centre, float("inf"))
    lower, last_gap, last_side = -upper, upper, torch.zeros_like(upper)
    # Distance of the scores from their targets at both ends of the bracket.
    low_score, high_score = -upper, upper
    active = torch.ones_like(upper, dtype=torch.bool)
    value = _value(centre + width * target, lower, upper, discrete)
    for step in range(_MAX_STEPS):
        probability = cdf(torch.where(active, value, float("inf")) if discrete else value)
        if bool((probability.isnan() & active).any()):
            break
        score = (torch.special.ndtri(probability) - target).clamp(-_FAR, _FAR)
        reached = probability >= levels
        # An end that stays twice in a row counts for less, or secants would hardly move it.
        side = torch.where(reached, 1.0, -1.0)
        ratio = 1 - score / torch.where(reached, high_score, low_score)
        stale = torch.where(side == last_side, torch.where(ratio > 0, ratio, 0.5), 1.0)
        low_score = torch.where(reached, low_score * stale, score)
        high_score = torch.where(reached, score, high_score * stale)
        lower = torch.where(active & ~reached, value, lower)
        upper = torch.where(active & reached, value, upper)
        if not discrete:
            found = active & (score.abs() < _SCORE_TOLERANCE)
            lower, upper = torch.where(found, value, lower), torch.where(found, value, upper)
            active = active & (upper - lower > _WIDTH_TOLERANCE * width)
        low, high = _line(lower, discrete), _line(upper, discrete)
        middle, bounded = 0.5 * (low + high), lower.isfinite() & upper.isfinite()
        # Where one end is unknown: a Newton step that is meant to go too far.
        outwards = width * (score.abs() + _OVERSHOOT) * 2.0**step
        t = torch.where(reached, high - outwards, low + outwards)
        t = torch.where(bounded, low + low_score / (low_score - high_score) * (high - low), t)
        if step % _HALVING_PERIOD == 0:
            t = torch.where(bounded & (high - low > 0.5 * last_gap), middle, t)
            last_gap = high - low
        last_side, value = side, _value(t, lower, upper, discrete)
        value = torch.where(
            (value > lower) & (value < upper), value, _value(middle, lower, upper, discrete)
        )
        active = active & (value > lower) & (value < upper)
        if not bool(active.any()):
            result = upper if discrete else 0.5 * (lower + upper)
            if bool(result.isfinite().all()):
                return result
            break
        value = torch.where(active, value, upper)
    raise NumericalError(
        f"No interval around the predictive mean holds the quantiles at levels "
        f"{levels.flatten().tolist()}; the predictive distribution may be NaN or have no mass "
        "left. Check the mean and variance that were passed."
    )


def _line(value: Tensor, discrete: bool) -> Tensor:
    """The scale on which scores are close to a straight line."""
    return (value.clamp_min(-1) + 1.5).log() if discrete else value


def _value(t: Tensor, lower: Tensor, upper: Tensor, discrete: bool) -> Tensor:
    """Undo `_line`; counts are rounded up, to one strictly between the ends if there is any."""
    if not discrete:
        return t
    count = (t.clamp_max(_MAX_LOG_COUNT).exp() - 1.5).ceil()
    # Adding zero turns -0 into 0.
    return torch.maximum(torch.minimum(count, upper - 1), (lower + 1).clamp_min(0)) + 0.0


def _poisson_cdf(count: Tensor, rate: Tensor) -> Tensor:
    """P(Y < count), with 0 and 1 to within exp(-30) where a Chernoff bound says so.

    The bound is exp(-(count - rate)^2 / (2 max(count, rate))) on both sides. At rates of zero and
    infinity the incomplete gamma function, by far the most expensive part, returns at once.
    """
    count = count.clamp_max(torch.finfo(count.dtype).max / 100)
    spread = (60 * count).sqrt()
    rate = torch.where(rate < count - spread, 0.0, rate)
    rate = torch.where(rate > count + 30 + (spread.square() + 900).sqrt(), float("inf"), rate)
    return torch.special.gammaincc(*torch.broadcast_tensors(count, rate))


def _by_scipy(function: Callable[..., object], *arguments: Tensor) -> Tensor:
    arrays = [argument.detach().cpu().numpy() for argument in arguments]
    return torch.as_tensor(function(*arrays)).to(arguments[-1])
