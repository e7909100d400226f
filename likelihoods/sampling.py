"""Draws of new observations that consume an explicit random generator only.

`torch.distributions` draw from the global generator. Here the common families are drawn in closed
form from the caller's; for the others the global state is put aside, seeded from the caller's
generator and put back.
"""

import math

import torch
from torch import Generator, Tensor
from torch import distributions as td

from gpvi.exceptions import InputError, NumericalError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.distributions import ZeroInflated
from gpvi.likelihoods.wrapped_multi import WrappedMultitaskGaussian

__all__ = ["sample_observations"]

_MAX_SEED = 2**63 - 1
# Above, torch's counts overflow, and a Gaussian draw differs by less than rounding does.
_LARGE_RATE = 1e15


@torch.no_grad()
def sample_observations(
    likelihood: Likelihood, function_samples: Tensor, generator: Generator, **rows: Tensor
) -> Tensor:
    r"""Draw one observation for each sample of the latent function.

    .. math:: y_{sn} \sim p(y_n \mid f_{sn})

    With draws of f from their joint distribution, the result is a joint draw of y.

    Parameters
    ----------
    likelihood : Likelihood
        Its `forward` is sampled; correlated noise across outputs is kept.
    function_samples : Tensor
        Samples of f, `[S, *b, N]` (`[S, *b, N, L]` with several latents).
    generator : torch.Generator
        Source of randomness, on any device; torch's global state is left as it is. The draw takes
        place on the generator's device where a closed form is known.
    **rows : Tensor
        Row extras of the rows.

    Returns
    -------
    Tensor
        `[S, *b, N]` (`[S, *b, N, P]` for vectors of P outputs), in the dtype and on the device of
        `function_samples`, without gradient.

    Raises
    ------
    InputError
        If `generator` is not a torch.Generator, or a row extra is unknown.
    NumericalError
        If the rate of a count overflows.

    References
    ----------
    Bailey, R. W. (1994). Polar generation of random variates with the t-distribution. Mathematics
    of Computation.

    Examples
    --------
    >>> from gpvi.likelihoods import PoissonLikelihood
    >>> f, generator = torch.zeros(10_000, 2), torch.Generator().manual_seed(0)
    >>> exposure = torch.tensor([1.0, 5.0])
    >>> y = sample_observations(PoissonLikelihood(), f, generator, exposure=exposure)
    >>> y.mean(0).round(decimals=1)
    tensor([1., 5.])
    """
    if not isinstance(likelihood, Likelihood):
        raise InputError(
            f"sample_observations needs a likelihood of gpvi, got {type(likelihood).__name__}. "
            "Convert it by gpvi.likelihoods.as_likelihood."
        )
    if not isinstance(generator, Generator):
        raise InputError(
            f"generator must be a torch.Generator, got {type(generator).__name__}. Pass "
            "torch.Generator().manual_seed(0), for example."
        )
    conditional = likelihood.forward(function_samples, **rows)
    if isinstance(likelihood, WrappedMultitaskGaussian):
        factor = torch.linalg.cholesky(likelihood._noise_covariance(function_samples))
        noise = _normal(function_samples.shape, function_samples, generator)
        return function_samples + noise @ factor.mT
    while type(conditional) is td.Independent:
        conditional = conditional.base_dist
    return _draw(conditional, function_samples, generator).to(function_samples)


def _draw(distribution: td.Distribution, like: Tensor, generator: Generator) -> Tensor:
    """One draw of the batch shape; by exact type, as a subclass may sample differently."""
    shape = distribution.batch_shape
    if type(distribution) is td.Normal:
        return distribution.loc + distribution.scale * _normal(shape, like, generator)
    if type(distribution) is td.Poisson:
        return _poisson(distribution.rate.to(generator.device), generator)
    if type(distribution) is td.NegativeBinomial:
        sizes = distribution.total_count.expand(shape)
        rate = _by_fork(td.Gamma(sizes, 1.0), like.device, generator) * distribution.logits.exp()
        return _poisson(rate.to(generator.device), generator)
    if type(distribution) is ZeroInflated:
        counts = _draw(distribution.base, like, generator)
        kept = _uniform(shape, like, generator) >= distribution.inflation
        return torch.where(kept.to(counts.device), counts, 0.0)
    if type(distribution) is td.Bernoulli:
        return torch.bernoulli(distribution.probs.to(generator.device), generator=generator)
    if type(distribution) is td.StudentT:
        angle = 2 * math.pi * _uniform(shape, like, generator)
        # 1 - u is never zero.
        log_u = torch.log1p(-_uniform(shape, like, generator))
        radius = (distribution.df * torch.expm1(-2 * log_u / distribution.df)).sqrt()
        return distribution.loc + distribution.scale * radius * angle.cos()
    return _by_fork(distribution, like.device, generator)


def _poisson(rate: Tensor, generator: Generator) -> Tensor:
    if not bool(rate.isfinite().all()):
        raise NumericalError(
            "A Poisson rate is not finite, because the sampled latent values are too large for "
            f"{rate.dtype}. Check the samples of f, or draw in float64."
        )
    large = rate > _LARGE_RATE
    count = torch.poisson(rate.clamp_max(_LARGE_RATE), generator=generator)
    if not bool(large.any()):
        return count
    gaussian = rate + rate.sqrt() * _normal(rate.shape, rate, generator)
    return torch.where(large, gaussian.round(), count)


def _by_fork(distribution: td.Distribution, device: torch.device, generator: Generator) -> Tensor:
    seed = int(torch.randint(_MAX_SEED, (), generator=generator, device=generator.device))
    if device.type == "cpu":
        with torch.random.fork_rng([]):
            # torch.manual_seed would reseed accelerators as well.
            torch.default_generator.manual_seed(seed)
            return distribution.sample()
    module = torch.get_device_module(device)
    with torch.random.fork_rng([device], device_type=device.type), module.device(device):
        torch.default_generator.manual_seed(seed)
        module.manual_seed(seed)
        return distribution.sample()


def _normal(shape: torch.Size, like: Tensor, generator: Generator) -> Tensor:
    draw = torch.randn(shape, dtype=like.dtype, device=generator.device, generator=generator)
    return draw.to(like.device)


def _uniform(shape: torch.Size, like: Tensor, generator: Generator) -> Tensor:
    draw = torch.rand(shape, dtype=like.dtype, device=generator.device, generator=generator)
    return draw.to(like.device)
