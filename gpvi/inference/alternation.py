"""Turns of q and hyperparameters, for an objective whose gradient is only known at held sites.

A few steps on the energy of expectation propagation at held sites, then sites of conjugate-computation
variational inference at the new hyperparameters. Held sites promise more than the energy keeps once they
follow, so a turn counts only if the energy at the new sites has grown; else it is shortened, and at last
taken back.

References
----------
Li, R., John, S. T. & Solin, A. (2023). Improving hyperparameter learning under approximate inference in
Gaussian process models. ICML.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpvi.exceptions import NumericalError
from gpvi.inference.ascent import ascend_once
from gpvi.inference.checkpoint import EvaluationLog
from gpvi.inference.coordinates import Curvature
from gpvi.inference.evaluator import Ascent
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord

__all__ = ["ascend_in_turns"]

_STAGE = "full batch"

# Iterations at held sites before q follows: of L-BFGS, and of the much shorter steps of Adam.
_TURN, _ADAM_TURN = 5, 20

# A turn that loses is halved so often before it is taken back.
_MAX_HALVINGS = 6

# So many turns in a row without a gain to speak of end the ascent.
_PATIENCE = 2


def ascend_in_turns(
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
    """Maximise an energy over the hyperparameters, with q at its optimum after every turn.

    Parameters
    ----------
    problem : FitProblem
        Trained in place.
    max_iter : int
        The most iterations of all turns together, at least 1.
    tolerance : float
        Nats per row of weight one that a turn must gain.
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
        From an earlier ascent; every turn hands its own to the next.

    Returns
    -------
    Ascent
        The energy never falls from one turn to the next while the plan is held.
    """
    turn = _TURN if learning_rate is None else _ADAM_TURN
    taken, number, idle = 0, 0, 0
    message, converged, stopped = "the iterations are used up", False, False
    while taken < max_iter:
        # With other neighbours the energy is another function.
        if problem.refresh() or number == 0:
            best = _settle(problem)
        start, sites = _parameters(problem), problem.sites
        ascent = ascend_once(
            problem,
            stage=_STAGE,
            max_iter=min(turn, max_iter - taken),
            tolerance=tolerance,
            learning_rate=learning_rate,
            history=history,
            callbacks=callbacks,
            log=log(f".turn-{number}"),
            started=started,
            curvature=curvature,
        )
        curvature = ascent.curvature
        taken, number = taken + max(1, ascent.num_iterations), number + 1
        stopped = ascent.stopped
        end = _parameters(problem)
        for halving in range(_MAX_HALVINGS + 1):
            _move(problem, start, end, 0.5**halving)
            problem.sites = sites
            value = _try_to_settle(problem)
            if value > best:
                break
        else:
            _move(problem, start, end, 0.0)
            problem.sites, value = sites, best
        idle = idle + 1 if value - best < tolerance * problem.total_weight else 0
        gained, best = value > best, value
        if stopped:
            message = ascent.message
            break
        if not gained or idle >= _PATIENCE:
            message, converged = "no turn of q and hyperparameters gains anything more", True
            break
    return Ascent(best, min(taken, max_iter), converged, message, stopped, curvature)


def _settle(problem: FitProblem) -> float:
    """Bring the sites to today's optimum and evaluate."""
    problem.settle()
    with torch.no_grad():
        return float(problem.value())


def _try_to_settle(problem: FitProblem) -> float:
    try:
        value = _settle(problem)
    except NumericalError:
        return -math.inf
    return value if math.isfinite(value) else -math.inf


def _parameters(problem: FitProblem) -> list[Tensor]:
    return [
        parameter.detach().clone()
        for module in problem.modules.values()
        for parameter in module.parameters()
    ]


@torch.no_grad()
def _move(problem: FitProblem, start: list[Tensor], end: list[Tensor], fraction: float) -> None:
    """Write parameters on the way from one point to another."""
    live = (p for module in problem.modules.values() for p in module.parameters())
    for parameter, first, last in zip(live, start, end, strict=True):
        parameter.copy_(torch.lerp(first, last, fraction))
