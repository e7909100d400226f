"""Structured Gaussian priors: what is conditioned on Gaussian sites."""

from gpvi.approximations._coreset_posterior import CoresetPosterior, PrunedCoreset
from gpvi.approximations._coreset_summary import CoresetSummary
from gpvi.approximations._residual import ResidualDraw
from gpvi.approximations.base import Approximation, Prior
from gpvi.approximations.coreset import Coreset
from gpvi.approximations.coreset_prior import CoresetPrior
from gpvi.approximations.exact import Exact, ExactPrior
from gpvi.approximations.exact_posterior import ExactPosterior
from gpvi.approximations.feature_posterior import FeaturePosterior
from gpvi.approximations.feature_prior import FeaturePrior
from gpvi.approximations.gaussian_process import GaussianProcess, GaussianProcessLike
from gpvi.approximations.grouped import GroupedPosterior, GroupedPrior
from gpvi.approximations.inducing import InducingPoints
from gpvi.approximations.inducing_prior import InducingPosterior, InducingPrior
from gpvi.approximations.inter_domain import InterDomain
from gpvi.approximations.inter_domain_features import InterDomainFeatures
from gpvi.approximations.moments import Draw, Marginals
from gpvi.approximations.neighbor_inducing import NeighborInducing
from gpvi.approximations.neighbor_inducing_batch import FreeForm, NeighborInducingBatch
from gpvi.approximations.neighbor_inducing_plan import NeighborInducingPlan
from gpvi.approximations.neighbor_inducing_posterior import NeighborInducingPosterior
from gpvi.approximations.neighbor_inducing_prior import NeighborInducingPrior
from gpvi.approximations.orthogonal import Orthogonal
from gpvi.approximations.pathwise import Paths, sample_paths
from gpvi.approximations.plan import GroupIndex, Plan
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.selection import SELECTION_METHODS, select_inducing_points
from gpvi.approximations.sites import Sites, SiteSpace
from gpvi.approximations.sparse_inverse import SparseInverseCholesky, SparseInversePlan
from gpvi.approximations.sparse_inverse_posterior import SparseInversePosterior
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.approximations.sparse_inverse_rows import SparseInverseRows
from gpvi.approximations.spherical_features import SphericalActivationFeatures
from gpvi.approximations.spherical_harmonics import SphericalHarmonicFeatures
from gpvi.approximations.state_space import StateSpace, StateSpacePlan
from gpvi.approximations.state_space_posterior import StateSpacePosterior
from gpvi.approximations.state_space_prior import StateSpacePrior
from gpvi.approximations.white import White, WhitePosterior, WhitePrior

__all__ = [
    "SELECTION_METHODS",
    "Approximation",
    "Coreset",
    "CoresetPosterior",
    "CoresetPrior",
    "CoresetSummary",
    "Draw",
    "Exact",
    "ExactPosterior",
    "ExactPrior",
    "FeaturePosterior",
    "FeaturePrior",
    "FreeForm",
    "GaussianProcess",
    "GaussianProcessLike",
    "GroupIndex",
    "GroupedPosterior",
    "GroupedPrior",
    "InducingPoints",
    "InducingPosterior",
    "InducingPrior",
    "InterDomain",
    "InterDomainFeatures",
    "Marginals",
    "NeighborInducing",
    "NeighborInducingBatch",
    "NeighborInducingPlan",
    "NeighborInducingPosterior",
    "NeighborInducingPrior",
    "Orthogonal",
    "Paths",
    "Plan",
    "Posterior",
    "Prior",
    "PrunedCoreset",
    "ResidualDraw",
    "SiteSpace",
    "Sites",
    "SparseInverseCholesky",
    "SparseInversePlan",
    "SparseInversePosterior",
    "SparseInversePrior",
    "SparseInverseRows",
    "SphericalActivationFeatures",
    "SphericalHarmonicFeatures",
    "StateSpace",
    "StateSpacePlan",
    "StateSpacePosterior",
    "StateSpacePrior",
    "White",
    "WhitePosterior",
    "WhitePrior",
    "sample_paths",
    "select_inducing_points",
]
