"""Moments and supports of the distributions that meet in a likelihood: q(f) and p(y | f)."""

from collections.abc import Iterable

from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch import Tensor
from torch import distributions as td

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods.distributions import OrderedCategorical

__all__ = [
    "aligned",
    "drop_leading_ones",
    "in_support",
    "is_discrete",
    "latent_moments",
    "mean_and_variance",
]


def latent_moments(q_f: MultivariateNormal, num_latents: int) -> tuple[Tensor, Tensor]:
    """Mean and unclamped marginal variance of q(f).

    `q_f.variance` clamps at 1e-6, which moves small variances and cuts their gradient; here the
    diagonal of the covariance is returned as it is.

    Parameters
    ----------
    q_f : MultivariateNormal
        `[*b, N]`, or a multitask distribution over `[*b, N, L]`.
    num_latents : int
        Number of latents L that the likelihood expects.

    Returns
    -------
    mean, variance : Tensor
        `[*b, N]`, or `[*b, L, N]` with several latents.

    Raises
    ------
    InputError
        If `q_f` is not of the kind that `num_latents` asks for.

    Examples
    --------
    >>> import torch
    >>> q_f = MultivariateNormal(torch.zeros(2), 1e-9 * torch.eye(2))
    >>> latent_moments(q_f, 1)[1]
    tensor([1.0000e-09, 1.0000e-09])
    """
    if not isinstance(q_f, MultivariateNormal):
        raise InputError(
            f"q(f) must be a gpytorch MultivariateNormal, got {type(q_f).__name__}. Pass the "
            "output of the model."
        )
    variance = q_f.lazy_covariance_matrix.diagonal(dim1=-1, dim2=-2)
    mean = q_f.mean
    if isinstance(q_f, MultitaskMultivariateNormal):
        if num_latents == 1:
            raise InputError(
                f"The likelihood has one latent, but q(f) is multitask with {mean.shape[-1]} "
                "tasks. Pass one MultivariateNormal per output."
            )
        mean = mean.mT
        if q_f._interleaved:
            variance = variance.reshape(*variance.shape[:-1], *mean.mT.shape[-2:]).mT
        else:
            variance = variance.reshape(*variance.shape[:-1], *mean.shape[-2:])
    if num_latents > 1 and (mean.dim() < 2 or mean.shape[-2] != num_latents):
        raise InputError(
            f"The likelihood has {num_latents} latents, but q(f) has mean of shape "
            f"{tuple(q_f.mean.shape)}. Pass a MultitaskMultivariateNormal over [*b, N, L], or a "
            "batch of MultivariateNormal [*b, L, N]."
        )
    return mean, variance.expand(mean.shape)


def aligned(
    mean: Tensor, variance: Tensor, others: Iterable[Tensor], parameters: Iterable[Tensor]
) -> tuple[Tensor, Tensor, int]:
    """Give moments the dimensions of all that meets them, so that quadrature nodes can lead.

    Without this, nodes `[K, N]` would meet targets `[b, N]` or batched parameters `[b, 1]` in the
    wrong dimension.

    Parameters
    ----------
    mean, variance : Tensor
        Shapes `[*b, N]`.
    others : iterable of Tensor
        Targets and row extras.
    parameters : iterable of Tensor
        Parameters of the likelihood, which may be batched.

    Returns
    -------
    mean, variance : Tensor
        The same numbers, the mean with leading ones.
    dims : int
        Number of dimensions of the result if no parameter is batched; see `drop_leading_ones`.

    Examples
    --------
    >>> import torch
    >>> mean, _, dims = aligned(torch.zeros(4), torch.ones(4), [], [torch.zeros(3, 1)])
    >>> mean.shape, dims
    (torch.Size([1, 4]), 1)
    """
    natural = max(tensor.dim() for tensor in (mean, variance, *others))
    dims = max([natural, *(parameter.dim() for parameter in parameters)])
    return mean.reshape(*[1] * (dims - mean.dim()), *mean.shape), variance, natural


def drop_leading_ones(value: Tensor, dims: int) -> Tensor:
    """Undo the leading ones of `aligned` that no batched parameter filled.

    Parameters
    ----------
    value : Tensor
        Any shape.
    dims : int
        Number of dimensions to come down to.

    Returns
    -------
    Tensor
        The same numbers.

    Examples
    --------
    >>> import torch
    >>> drop_leading_ones(torch.zeros(1, 4), 1).shape, drop_leading_ones(torch.zeros(3, 4), 1).shape
    (torch.Size([4]), torch.Size([3, 4]))
    """
    while value.dim() > dims and value.shape[0] == 1:
        value = value.squeeze(0)
    return value


def mean_and_variance(distribution: td.Distribution) -> tuple[Tensor, Tensor]:
    """Mean and variance of a conditional distribution p(y | f).

    Parameters
    ----------
    distribution : torch.distributions.Distribution
        Batch shape `[*b]`.

    Returns
    -------
    mean, variance : Tensor
        `[*b]`. For a categorical distribution without order `[*b, C]`, the moments of the one-hot
        coded label.

    Examples
    --------
    >>> import torch
    >>> mean_and_variance(td.Bernoulli(probs=torch.tensor(0.5)))
    (tensor(0.5000), tensor(0.2500))
    """
    ordered = isinstance(distribution, OrderedCategorical)
    if isinstance(distribution, td.Categorical) and not ordered:
        return distribution.probs, distribution.probs * (1 - distribution.probs)
    return distribution.mean, distribution.variance


def is_discrete(distribution: td.Distribution) -> bool:
    """Whether a distribution lives on whole numbers.

    Parameters
    ----------
    distribution : torch.distributions.Distribution
        Any distribution that states its support.

    Returns
    -------
    bool
        True for counts and labels.

    Raises
    ------
    UnsupportedError
        If the distribution does not state its support.

    Examples
    --------
    >>> is_discrete(td.Poisson(3.0)), is_discrete(td.Laplace(0.0, 1.0))
    (True, False)
    """
    return bool(_support(distribution).is_discrete)


def in_support(distribution: td.Distribution, y: Tensor) -> Tensor:
    """Mark targets that a distribution can produce; NaN is marked too, as not observed.

    Parameters
    ----------
    distribution : torch.distributions.Distribution
        Any distribution that states its support.
    y : Tensor
        Targets that broadcast against the batch shape.

    Returns
    -------
    Tensor
        Boolean.

    Raises
    ------
    UnsupportedError
        If the distribution does not state its support.

    Examples
    --------
    >>> import torch
    >>> in_support(td.Poisson(torch.ones(3)), torch.tensor([2.0, -1.0, 0.5]))
    tensor([ True, False, False])
    """
    return _support(distribution).check(y) | y.isnan()


def _support(distribution: td.Distribution) -> td.constraints.Constraint:
    support = distribution.support
    if support is None:
        raise UnsupportedError(
            f"{type(distribution).__name__} does not state its support, which tells counts "
            "from real numbers. Give the distribution a `support`."
        )
    return support
