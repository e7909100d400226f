"""The batched linear-algebra core: the only place that knows how a factorisation is done."""

from gpvi.linalg.cholesky import DEFAULT_JITTER, CholeskyResult, default_jitter, safe_cholesky
from gpvi.linalg.collapsed_bound import collapsed_bound, stationary_collapsed_bound
from gpvi.linalg.evidence import gaussian_log_evidence
from gpvi.linalg.normal import expected_log_ndtr
from gpvi.linalg.pivoted_cholesky import greedy_conditional_variance
from gpvi.linalg.quadrature import (
    QuadratureRule,
    expectation,
    gauss_hermite,
    log_expectation_exp,
    uniform_rule,
)
from gpvi.linalg.stationary import STATIONARY_KERNELS, stationary_slope, stationary_value
from gpvi.linalg.stationary_evidence import stationary_log_evidence
from gpvi.linalg.stationary_features import stationary_covariance, stationary_features
from gpvi.linalg.threads import blas_threads_for, serial_blas
from gpvi.linalg.triangular import (
    identity_plus_congruence,
    identity_plus_low_rank,
    log_det_from_cholesky,
    lower_sum_of_squares,
    mat_vec,
    multiply_lower,
    solve_lower,
    solve_lower_transposed,
    solve_lower_transposed_vec,
    solve_lower_vec,
    sum_of_squares,
)
from gpvi.linalg.weighted_median import weighted_median

__all__ = [
    "DEFAULT_JITTER",
    "STATIONARY_KERNELS",
    "CholeskyResult",
    "QuadratureRule",
    "blas_threads_for",
    "collapsed_bound",
    "default_jitter",
    "expectation",
    "expected_log_ndtr",
    "gauss_hermite",
    "gaussian_log_evidence",
    "greedy_conditional_variance",
    "identity_plus_congruence",
    "identity_plus_low_rank",
    "log_det_from_cholesky",
    "log_expectation_exp",
    "lower_sum_of_squares",
    "mat_vec",
    "multiply_lower",
    "safe_cholesky",
    "serial_blas",
    "solve_lower",
    "solve_lower_transposed",
    "solve_lower_transposed_vec",
    "solve_lower_vec",
    "stationary_collapsed_bound",
    "stationary_covariance",
    "stationary_features",
    "stationary_log_evidence",
    "stationary_slope",
    "stationary_value",
    "sum_of_squares",
    "uniform_rule",
    "weighted_median",
]
