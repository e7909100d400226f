"""Full-batch ascents in rounds, for plans that depend on hyperparameters.

Neighbours that are nearest in lengthscales change while lengthscales are learned. Within a round the plan
is held, so that the objective is one smooth function; between rounds it is made anew where it would
differ. Every round has a stage of its own in the records: "full batch", "full batch, refresh 1", and on.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from gpvi.inference.ascent import ascend_once
from gpvi.inference.checkpoint import EvaluationLog
from gpvi.inference.coordinates import Curvature
from gpvi.inference.evaluator import Ascent
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord

__all__ = ["ascend_in_rounds"]

_STAGE = "full batch"

# Sets of few neighbours may take turns for ever, each the best in the eyes of the other's lengthscales.
_MAX_REFRESHES = 8


def ascend_in_rounds(
    problem: FitProblem,
    *,
    max_iter: int,
    tolerance: float,
    learning_rate: float | None,
    history: list[FitRecord],
    callbacks: Sequence[Callback],
    log: Callable[[str], EvaluationLog | None],
    started: float,
    curvature: Curvature | None,
) -> Ascent:
    """Maximise an objective by L-BFGS, or by Adam, and bring the plan up to date on the way.

    Parameters
    ----------
    problem : FitProblem
        Trained in place.
    max_iter : int
        The most iterations of all rounds together, at least 1.
    tolerance : float
        Stopping rule of a round, in nats per row of weight one.
    learning_rate : float or None
        Of Adam; None for L-BFGS.
    history : list of FitRecord
        Appended to.
    callbacks : sequence of callable
        Called with every record.
    log : callable
        Evaluation log for a suffix of the checkpoint's name.
    started : float
        ``time.perf_counter()`` at the beginning of the fit.
    curvature : Curvature or None
        From an earlier ascent; every round of L-BFGS hands its own to the next.

    Returns
    -------
    Ascent
        Of the last round, with the iterations of all.
    """
    taken, number = 0, 0
    # The first neighbours are those of the start, also where stored evaluations are played back.
    problem.refresh()
    while True:
        period = problem.approximation.refresh_period(problem.gp, problem.x)
        period = None if number >= _MAX_REFRESHES else period
        budget = max_iter - taken if period is None else min(period, max_iter - taken)
        stage = _STAGE if number == 0 else f"{_STAGE}, refresh {number}"
        suffix = "" if number == 0 else f".refresh-{number}"
        ascent = ascend_once(
            problem,
            stage=stage,
            max_iter=budget,
            tolerance=tolerance,
            learning_rate=learning_rate,
            history=history,
            callbacks=callbacks,
            log=log(suffix),
            started=started,
            curvature=curvature,
        )
        curvature = ascent.curvature
        taken += ascent.num_iterations
        if period is None or ascent.stopped or taken >= max_iter:
            break
        changed = problem.refresh()
        if not changed and (ascent.converged or ascent.num_iterations < budget):
            break
        number += 1
    return replace(ascent, num_iterations=taken, curvature=curvature)
