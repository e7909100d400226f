"""One ascent of all rows by L-BFGS, or by Adam: what rounds and turns are made of."""

from collections.abc import Sequence
from dataclasses import replace

from gpvi.inference.adam import maximize_by_adam
from gpvi.inference.checkpoint import EvaluationLog
from gpvi.inference.coordinates import Curvature
from gpvi.inference.evaluator import Ascent
from gpvi.inference.full_batch import maximize
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord

__all__ = ["ascend_once"]


def ascend_once(
    problem: FitProblem,
    *,
    stage: str,
    max_iter: int,
    tolerance: float,
    learning_rate: float | None,
    history: list[FitRecord],
    callbacks: Sequence[Callback],
    log: EvaluationLog | None,
    started: float,
    curvature: Curvature | None,
) -> Ascent:
    """Maximise an objective with its plan, and what else it holds, as they are.

    Parameters
    ----------
    problem : FitProblem
        Trained in place.
    stage : str
        Of the records.
    max_iter : int
        The most iterations.
    tolerance : float
        Stopping rule, in nats per row of weight one.
    learning_rate : float or None
        Of Adam; None for L-BFGS.
    history : list of FitRecord
        Appended to.
    callbacks : sequence of callable
        Called with every record.
    log : EvaluationLog, optional
        For checkpoints.
    started : float
        ``time.perf_counter()`` at the beginning of the fit.
    curvature : Curvature or None
        From an earlier ascent.

    Returns
    -------
    Ascent
        With the curvature that the next one may start from.
    """
    if learning_rate is not None:
        ascent = maximize_by_adam(
            problem,
            stage=stage,
            max_iter=max_iter,
            tolerance=tolerance,
            learning_rate=learning_rate,
            history=history,
            callbacks=callbacks,
            log=log,
            started=started,
        )
    else:
        ascent = maximize(
            problem,
            stage=stage,
            max_iter=max_iter,
            max_evaluations=None,
            tolerance=tolerance,
            history=history,
            callbacks=callbacks,
            log=log,
            started=started,
            curvature=curvature,
        )
    return ascent if ascent.curvature is not None else replace(ascent, curvature=curvature)
