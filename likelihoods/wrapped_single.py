"""GPyTorch likelihoods with one latent function behind the interface of this package.

A wrapped likelihood keeps the user's module, so parameters, constraints and priors stay shared, and
adds missing targets, weights, exact float64 nodes, unclamped variances and log-space predictions.
"""

import inspect

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods.gaussian_likelihood import _GaussianLikelihoodBase
from gpytorch.likelihoods.noise_models import FixedGaussianNoise
from linear_operator.operators import DiagLinearOperator
from torch import Tensor
from torch.distributions import Distribution

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.bernoulli import BernoulliLikelihood
from gpvi.likelihoods.gaussian import ClosedFormGaussian
from gpvi.likelihoods.moments import in_support
from gpvi.likelihoods.student_t import ClosedFormStudentT
from gpvi.linalg.quadrature import floored_variance

__all__ = [
    "WrappedBernoulli",
    "WrappedGaussian",
    "WrappedGeneric",
    "WrappedOneDimensional",
    "WrappedStudentT",
]

_LOG_CONCAVE = (gpytorch.likelihoods.LaplaceLikelihood, gpytorch.likelihoods.PoissonLikelihood)
# Monte Carlo size and seed for likelihoods that bring only their own sampled expectation.
_NUM_SAMPLES = 64
_SEED = 0


def _forward_arguments(likelihood: gpytorch.likelihoods.Likelihood) -> frozenset[str]:
    """Named keyword arguments of `forward` besides the function samples: its row extras."""
    parameters = list(inspect.signature(likelihood.forward).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    # `data` belongs to GPyTorch's Pyro interface.
    return frozenset(p.name for p in parameters if p.kind in named and p.name != "data")


class WrappedGaussian(ClosedFormGaussian):
    """GPyTorch's Gaussian likelihoods: closed forms with the wrapped module's noise.

    The row extra `noise` replaces the noise of `GaussianLikelihood` and the fixed noise of
    `FixedNoiseGaussianLikelihood`, as in GPyTorch; additional learnt noise stays on top.

    Parameters
    ----------
    wrapped : gpytorch.likelihoods._GaussianLikelihoodBase
        The likelihood to wrap.
    """

    def __init__(self, wrapped: _GaussianLikelihoodBase) -> None:
        super().__init__()
        self.wrapped = wrapped

    def _noise(self, shape: torch.Size, like: Tensor, **rows: Tensor) -> Tensor:
        known = rows.get("noise")
        if known is not None:
            additional = getattr(self.wrapped, "second_noise_covar", None)
            return known if additional is None else known + additional.noise.to(like)
        fixed = getattr(self.wrapped, "noise_covar", None)
        if isinstance(fixed, FixedGaussianNoise) and fixed.noise.shape[-1] != shape[-1]:
            raise InputError(
                f"{type(self.wrapped).__name__} holds fixed noise for {fixed.noise.shape[-1]} "
                f"rows, but there are {shape[-1]}. Pass the row argument `noise`, one entry "
                "per row."
            )
        return self.wrapped._shaped_noise_covar(shape).diagonal(dim1=-1, dim2=-2).to(like)


class WrappedBernoulli(BernoulliLikelihood):
    """GPyTorch's Bernoulli likelihood, which is the probit one and has no parameters.

    Parameters
    ----------
    wrapped : gpytorch.likelihoods.BernoulliLikelihood
        The likelihood to wrap.
    """

    def __init__(self, wrapped: gpytorch.likelihoods.BernoulliLikelihood) -> None:
        super().__init__(link="probit")
        self.wrapped = wrapped


class WrappedStudentT(ClosedFormStudentT):
    """GPyTorch's Student-t likelihood, with expectations that hold for narrow noise as well.

    Parameters
    ----------
    wrapped : gpytorch.likelihoods.StudentTLikelihood
        The likelihood to wrap; its `noise` is the squared scale.
    """

    def __init__(self, wrapped: gpytorch.likelihoods.StudentTLikelihood) -> None:
        super().__init__()
        self.wrapped = wrapped

    def _parameters_like(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.wrapped.deg_free.to(like), self.wrapped.noise.sqrt().to(like)


class WrappedOneDimensional(Likelihood):
    """A likelihood with one latent whose `forward` gives p(y | f), element by element.

    Parameters
    ----------
    wrapped : gpytorch.likelihoods.Likelihood
        The likelihood to wrap. Keyword arguments that its `forward` names become row extras.
    """

    def __init__(self, wrapped: gpytorch.likelihoods.Likelihood) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.row_arguments = _forward_arguments(wrapped) | {"weights"}
        self.is_log_concave = isinstance(wrapped, _LOG_CONCAVE)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        extras = self._extras(rows, function_samples, function_samples.shape[-1])
        return self.wrapped.forward(function_samples, **_named(self.wrapped, extras))

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        return self.wrapped.forward(function_samples, **rows).log_prob(y)

    def _fill(self, y: Tensor, missing: Tensor) -> Tensor:
        if not bool(missing.any()):
            return y
        # Only an observed target is sure to lie in the support of an unknown distribution.
        observed = y[~missing]
        filler = observed[0] if len(observed) else self._sample_like(y)
        return torch.where(missing, filler, y)

    def _sample_like(self, y: Tensor) -> Tensor:
        """Some possible target, for batches without any observed one."""
        conditional = self.wrapped.forward(torch.zeros(1, dtype=y.dtype, device=y.device))
        candidates = y.new_tensor([0.5, 1.0])
        return candidates[in_support(conditional, candidates).int().argmax()]

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        conditional = self.wrapped.forward(torch.zeros_like(y))
        bad = y[observed & ~in_support(conditional, y)]
        if len(bad):
            raise InputError(
                f"{type(self.wrapped).__name__} cannot explain the target {bad[0].item()}: it is "
                "outside the support. Transform the targets or use another likelihood."
            )


class WrappedGeneric(WrappedOneDimensional):
    """A likelihood of unknown kind: its own `expected_log_prob`, with fixed random numbers."""

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        shape = torch.broadcast_shapes(y.shape, mean.shape, variance.shape)
        mean = mean.expand(shape)
        q_f = _IndependentNormal(mean, floored_variance(mean, variance))
        with (
            torch.random.fork_rng([mean.device] if mean.is_cuda else []),
            gpytorch.settings.num_likelihood_samples(_NUM_SAMPLES),
        ):
            torch.manual_seed(_SEED)
            return self.wrapped.expected_log_prob(y, q_f, **rows)


class _IndependentNormal(MultivariateNormal):
    """Independent normals whose `variance` is what was passed, not clamped at 1e-6."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__(mean, DiagLinearOperator(variance.expand(mean.shape)))

    @property
    def variance(self) -> Tensor:
        return self.lazy_covariance_matrix.diagonal(dim1=-1, dim2=-2)


def _named(
    likelihood: gpytorch.likelihoods.Likelihood, extras: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The extras that the wrapped `forward` itself names."""
    names = _forward_arguments(likelihood)
    return {name: extra for name, extra in extras.items() if name in names}
