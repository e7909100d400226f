"""Warnings about a finished fit: what a user should not have to find out alone."""

import torch

from gpvi._warnings import warn
from gpvi.exceptions import (
    AccuracyWarning,
    ConvergenceWarning,
    NumericalError,
    PriorCollapseWarning,
)
from gpvi.inference.records import FitResult

__all__ = ["warn_about"]

# KL(q || prior) below this many nats: q has learned nothing.
_COLLAPSED = 1e-3

# A KL may be below zero by this much of the objective.
_ROUNDING = 1e-3


def warn_about(result: FitResult, max_iter: int) -> None:
    """Warn if the fit ran out of iterations, if moments are crude, or if q is still the prior.

    Parameters
    ----------
    result : FitResult
        Of the fit.
    max_iter : int
        The iterations that were allowed; with none, nothing was meant to converge.

    Raises
    ------
    NumericalError
        If q is no proper posterior any more.
    """
    if max_iter and not (result.converged or result.stopped):
        advice = f"; raise max_iter (now {max_iter})" if result.num_iterations >= max_iter else ""
        warn(
            f"The fit is not converged after {result.num_iterations} iterations ({result.message}){advice}.",
            ConvergenceWarning,
        )
    with torch.no_grad():
        for remark in result.posterior.accuracy_remarks():
            warn(remark, AccuracyWarning)
    kl = float(result.posterior.kl().sum())
    if kl < -_ROUNDING * (1.0 + abs(result.objective)):
        raise NumericalError(
            f"KL(q || prior) is {kl:.3g} nats and cannot be negative: rounding errors have taken over. Use "
            "float64, standardise the data, or bound the noise from below."
        )
    if abs(kl) < _COLLAPSED:
        warn(
            f"q(f) is practically the prior (KL {kl:.1e} nats): the data explain nothing under this "
            "kernel. Check the lengthscales against the scale of X, and the noise.",
            PriorCollapseWarning,
        )
