"""Bring GPyTorch's likelihoods to the interface of this package."""

import gpytorch
from gpytorch.likelihoods.gaussian_likelihood import _GaussianLikelihoodBase
from gpytorch.likelihoods.likelihood import _OneDimensionalLikelihood
from gpytorch.likelihoods.multitask_gaussian_likelihood import _MultitaskGaussianLikelihoodBase
from gpytorch.likelihoods.noise_models import HeteroskedasticNoise

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.wrapped_multi import WrappedMultiLatent, WrappedMultitaskGaussian
from gpvi.likelihoods.wrapped_single import (
    WrappedBernoulli,
    WrappedGaussian,
    WrappedGeneric,
    WrappedOneDimensional,
    WrappedStudentT,
)

__all__ = ["as_likelihood"]


def as_likelihood(likelihood: gpytorch.likelihoods.Likelihood) -> Likelihood:
    """Bring any likelihood to the interface of this package.

    Likelihoods of this package are returned as they are. GPyTorch's Gaussian ones get closed forms
    with their own, live noise; Bernoulli and Student-t what their counterparts here do; Laplace,
    Beta, Poisson, negative binomial and other one-dimensional ones Gauss-Hermite quadrature of
    their `forward`; the multitask Gaussian a closed form and softmax a fixed cubature rule (both
    take moments `[*b, L, N]`); all others their own `expected_log_prob`, with random numbers fixed
    and the global generator untouched.

    Parameters
    ----------
    likelihood : gpytorch.likelihoods.Likelihood
        The likelihood; the result holds this very module as `wrapped`.

    Returns
    -------
    Likelihood
        Accepts `weights` and, if the wrapped `forward` names further keyword arguments, those.

    Raises
    ------
    InputError
        If the argument is not a GPyTorch likelihood.
    UnsupportedError
        For likelihoods whose noise depends on inputs or tasks, and for lists of likelihoods.

    Examples
    --------
    >>> theirs = gpytorch.likelihoods.GaussianLikelihood()
    >>> ours = as_likelihood(theirs)
    >>> ours.wrapped is theirs, as_likelihood(ours) is ours
    (True, True)
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, gpytorch.likelihoods.Likelihood):
        raise InputError(
            f"as_likelihood needs a gpytorch likelihood, got {type(likelihood).__name__}. Pass an "
            "instance, for example gpvi.likelihoods.GaussianLikelihood()."
        )
    _refuse_unsupported(likelihood)
    if isinstance(likelihood, _MultitaskGaussianLikelihoodBase):
        return WrappedMultitaskGaussian(likelihood)
    if isinstance(likelihood, _GaussianLikelihoodBase):
        return WrappedGaussian(likelihood)
    if type(likelihood) is gpytorch.likelihoods.BernoulliLikelihood:
        return WrappedBernoulli(likelihood)
    if type(likelihood) is gpytorch.likelihoods.StudentTLikelihood:
        return WrappedStudentT(likelihood)
    if isinstance(likelihood, _OneDimensionalLikelihood):
        return WrappedOneDimensional(likelihood)
    if getattr(likelihood, "num_features", 1) > 1 or getattr(likelihood, "num_tasks", 1) > 1:
        return WrappedMultiLatent(likelihood)
    return WrappedGeneric(likelihood)


def _refuse_unsupported(likelihood: gpytorch.likelihoods.Likelihood) -> None:
    name = type(likelihood).__name__
    if isinstance(likelihood, gpytorch.likelihoods.LikelihoodList):
        raise UnsupportedError(f"{name} holds several likelihoods. Wrap each of them on its own.")
    heteroskedastic = isinstance(getattr(likelihood, "noise_covar", None), HeteroskedasticNoise)
    if heteroskedastic or isinstance(likelihood, gpytorch.likelihoods.HadamardGaussianLikelihood):
        raise UnsupportedError(
            f"The noise of {name} depends on inputs that a row-wise likelihood does not see. Use "
            "gpvi.likelihoods.GaussianLikelihood with the row argument `noise` instead."
        )
