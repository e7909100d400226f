"""Inference: where sites come from, objectives, and fitting loops."""

from gpvi.inference.adam import maximize_by_adam
from gpvi.inference.checkpoint import EvaluationLog, fingerprint, load_state, save_state
from gpvi.inference.cvi import CVIResult, cvi
from gpvi.inference.data_term import data_term, dual
from gpvi.inference.ep_energy import ep_energy
from gpvi.inference.evaluator import Ascent
from gpvi.inference.expectation_propagation import expectation_propagation
from gpvi.inference.fb_gvi import GaussianFit, fb_gvi
from gpvi.inference.fit import OPTIMIZERS, WarmStart, fit
from gpvi.inference.full_batch import maximize
from gpvi.inference.initialization import initialize_hyperparameters, median_lengthscales
from gpvi.inference.laplace import laplace, laplace_evidence
from gpvi.inference.minibatch import Minibatcher
from gpvi.inference.objectives import elbo, optimal_log_v, tighter_data_term, tighter_elbo
from gpvi.inference.parameters import ParameterVector, log_prior
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord, FitResult, ProgressBar
from gpvi.inference.site_rules import INFERENCES, OBJECTIVES
from gpvi.inference.streaming import OnlineFilter
from gpvi.inference.whittle import debiased_whittle, whittle_initialize

__all__ = [
    "INFERENCES",
    "OBJECTIVES",
    "OPTIMIZERS",
    "Ascent",
    "CVIResult",
    "Callback",
    "EvaluationLog",
    "FitProblem",
    "FitRecord",
    "FitResult",
    "GaussianFit",
    "Minibatcher",
    "OnlineFilter",
    "ParameterVector",
    "ProgressBar",
    "WarmStart",
    "cvi",
    "data_term",
    "debiased_whittle",
    "dual",
    "elbo",
    "ep_energy",
    "expectation_propagation",
    "fb_gvi",
    "fingerprint",
    "fit",
    "initialize_hyperparameters",
    "laplace",
    "laplace_evidence",
    "load_state",
    "log_prior",
    "maximize",
    "maximize_by_adam",
    "median_lengthscales",
    "optimal_log_v",
    "save_state",
    "tighter_data_term",
    "tighter_elbo",
    "whittle_initialize",
]
