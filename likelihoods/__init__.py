"""Likelihoods p(y | f) behind one interface, usable in plain GPyTorch loops as well."""

from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.bernoulli import BernoulliLikelihood
from gpvi.likelihoods.conversion import as_likelihood
from gpvi.likelihoods.gaussian import GaussianLikelihood
from gpvi.likelihoods.joint import observation_covariance
from gpvi.likelihoods.linear_readout import LinearReadoutLikelihood
from gpvi.likelihoods.poisson import PoissonLikelihood
from gpvi.likelihoods.sampling import sample_observations
from gpvi.likelihoods.slopes import expectation_slopes
from gpvi.likelihoods.student_t import StudentTLikelihood

__all__ = [
    "BernoulliLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "LinearReadoutLikelihood",
    "PoissonLikelihood",
    "StudentTLikelihood",
    "as_likelihood",
    "expectation_slopes",
    "observation_covariance",
    "sample_observations",
]
