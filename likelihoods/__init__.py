"""Likelihoods p(y | f) behind one interface, usable in plain GPyTorch loops as well."""

from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.bernoulli import BernoulliLikelihood
from gpvi.likelihoods.binomial import BinomialLikelihood
from gpvi.likelihoods.conversion import as_likelihood
from gpvi.likelihoods.gaussian import GaussianLikelihood
from gpvi.likelihoods.joint import observation_covariance
from gpvi.likelihoods.linear_readout import LinearReadoutLikelihood
from gpvi.likelihoods.negative_binomial import NegativeBinomialLikelihood
from gpvi.likelihoods.poisson import PoissonLikelihood
from gpvi.likelihoods.sampling import sample_observations
from gpvi.likelihoods.slopes import expectation_slopes
from gpvi.likelihoods.student_t import StudentTLikelihood
from gpvi.likelihoods.zero_inflated import ZeroInflatedLikelihood

__all__ = [
    "BernoulliLikelihood",
    "BinomialLikelihood",
    "GaussianLikelihood",
    "Likelihood",
    "LinearReadoutLikelihood",
    "NegativeBinomialLikelihood",
    "PoissonLikelihood",
    "StudentTLikelihood",
    "ZeroInflatedLikelihood",
    "as_likelihood",
    "expectation_slopes",
    "observation_covariance",
    "sample_observations",
]
