"""Likelihoods p(y | f) behind one interface, usable in plain GPyTorch loops as well."""

from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.bernoulli import BernoulliLikelihood
from gpvi.likelihoods.beta import BetaLikelihood
from gpvi.likelihoods.binomial import BinomialLikelihood
from gpvi.likelihoods.censored_normal import CensoredGaussianLikelihood, LogNormalLikelihood
from gpvi.likelihoods.conversion import as_likelihood
from gpvi.likelihoods.gamma import GammaLikelihood
from gpvi.likelihoods.gaussian import GaussianLikelihood
from gpvi.likelihoods.heteroscedastic import (
    HeteroscedasticGaussianLikelihood,
    HeteroscedasticStudentTLikelihood,
)
from gpvi.likelihoods.joint import observation_covariance
from gpvi.likelihoods.laplace import LaplaceLikelihood, QuantileLikelihood
from gpvi.likelihoods.linear_readout import LinearReadoutLikelihood
from gpvi.likelihoods.negative_binomial import NegativeBinomialLikelihood
from gpvi.likelihoods.ordinal import OrdinalLikelihood
from gpvi.likelihoods.poisson import PoissonLikelihood
from gpvi.likelihoods.robust_max import RobustMaxLikelihood
from gpvi.likelihoods.sampling import sample_observations
from gpvi.likelihoods.slopes import expectation_slopes
from gpvi.likelihoods.student_t import StudentTLikelihood
from gpvi.likelihoods.weibull import ExponentialLikelihood, WeibullLikelihood
from gpvi.likelihoods.zero_inflated import ZeroInflatedLikelihood

__all__ = [
    "BernoulliLikelihood",
    "BetaLikelihood",
    "BinomialLikelihood",
    "CensoredGaussianLikelihood",
    "ExponentialLikelihood",
    "GammaLikelihood",
    "GaussianLikelihood",
    "HeteroscedasticGaussianLikelihood",
    "HeteroscedasticStudentTLikelihood",
    "LaplaceLikelihood",
    "Likelihood",
    "LinearReadoutLikelihood",
    "LogNormalLikelihood",
    "NegativeBinomialLikelihood",
    "OrdinalLikelihood",
    "PoissonLikelihood",
    "QuantileLikelihood",
    "RobustMaxLikelihood",
    "StudentTLikelihood",
    "WeibullLikelihood",
    "ZeroInflatedLikelihood",
    "as_likelihood",
    "expectation_slopes",
    "observation_covariance",
    "sample_observations",
]
