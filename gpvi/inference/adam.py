r"""Full-batch Adam: for objectives on which a quasi-Newton method gets stuck.

It works on the same flat vector as L-BFGS, where positive parameters are on the log scale, so that the
learning rate is the length of a first step in relative units. Without minibatch noise the objective
itself tells when a rate is too large: where it stalls, the rate is halved and the ascent goes on from
the best point; it has converged when that has happened several times in a row without a gain.

References
----------
Kingma, D. P. & Ba, J. (2015). Adam: a method for stochastic optimization. ICLR.
"""

import time
from collections.abc import Sequence

import numpy as np

from gpvi.inference.checkpoint import EvaluationLog
from gpvi.inference.evaluator import Ascent, Evaluation, Evaluator, Stopped, start_only
from gpvi.inference.parameters import unchanged_on_error
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord
from gpvi.linalg import serial_blas

__all__ = ["maximize_by_adam"]

_FIRST_DECAY, _SECOND_DECAY, _EPSILON = 0.9, 0.999, 1e-8

# Steps without a gain after which the rate is halved, and halvings in a row that end the ascent.
_PATIENCE = 10
_MAX_HALVINGS = 4


def maximize_by_adam(
    problem: FitProblem,
    *,
    stage: str,
    max_iter: int,
    tolerance: float,
    learning_rate: float,
    history: list[FitRecord],
    callbacks: Sequence[Callback] = (),
    log: EvaluationLog | None = None,
    started: float | None = None,
) -> Ascent:
    """Maximise the objective of a problem over all its parameters by Adam, in place.

    Parameters
    ----------
    problem : FitProblem
        Its modules' parameters are left at the best point found.
    stage : str
        Name for the records.
    max_iter : int
        The most steps (each one objective evaluation).
    tolerance : float
        Steps that gain less than this many nats per row of weight one over the best so far count as
        stalled.
    learning_rate : float
        Step size at the beginning.
    history : list of FitRecord
        Appended to.
    callbacks : sequence of callable
        Called with every record.
    log : EvaluationLog, optional
        Where evaluations are stored, and played back from.
    started : float, optional
        ``time.perf_counter()`` at the beginning of the fit.

    Returns
    -------
    Ascent
        Best objective and why it stopped.

    Raises
    ------
    NumericalError
        If already the starting values fail; the parameters are then as they were.
    """
    started = time.perf_counter() if started is None else started
    with unchanged_on_error(problem.modules.values()):
        evaluator = Evaluator(problem, stage, history, callbacks, log, started)
        evaluator.tolerance = tolerance
        if not evaluator.vector.size:
            return start_only(evaluator)
        adam = _Adam(evaluator, learning_rate, tolerance)
        try:
            with serial_blas():
                converged, message = adam.run(max_iter)
            stuck = evaluator.stuck()
            if stuck is not None:
                converged, message = False, stuck
            stopped = False
        except Stopped as stop:
            converged, message, stopped = stop.converged, str(stop), stop.asked
        evaluator.move_to(evaluator.best_point)
        return Ascent(evaluator.best, adam.steps, converged, message, stopped)


class _Adam:
    """Running means of the gradient, and the point that they belong to."""

    def __init__(self, evaluator: Evaluator, rate: float, tolerance: float) -> None:
        size = evaluator.vector.size
        self.steps = 0
        self._evaluator, self._rate, self._tolerance = evaluator, rate, tolerance
        self._point = np.zeros(size)
        self._first, self._second = np.zeros(size), np.zeros(size)
        self._updates = 0
        self._mark = -np.inf  # objective that the next gain is measured from
        self._stalled = self._halvings = 0

    def run(self, max_iter: int) -> tuple[bool, str]:
        """Take steps until nothing is gained any more; whether it converged, and why it ended."""
        result = self._evaluator.evaluate(self._point)
        while self.steps < max_iter:
            self._move(result.gradient)
            result = self._evaluator.evaluate(self._point)
            self.steps += 1
            if result.failed:
                result = self._retreat()
            elif self._stall(result.value):
                if self._halvings >= _MAX_HALVINGS:
                    return True, (
                        f"{_PATIENCE} steps gained less than {self._tolerance:g} nats per row, also "
                        f"after {_MAX_HALVINGS} halvings of the rate"
                    )
                result = self._retreat()
        return False, f"{self.steps} steps taken"

    def _move(self, gradient: np.ndarray) -> None:
        slope = gradient / self._evaluator.total_weight
        self._updates += 1
        self._first += (1.0 - _FIRST_DECAY) * (slope - self._first)
        self._second += (1.0 - _SECOND_DECAY) * (slope**2 - self._second)
        mean = self._first / (1.0 - _FIRST_DECAY**self._updates)
        square = self._second / (1.0 - _SECOND_DECAY**self._updates)
        self._point = self._point + self._rate * mean / (np.sqrt(square) + _EPSILON)

    def _stall(self, value: float) -> bool:
        """Whether so many steps in a row have gained nothing that the rate must be halved."""
        if value - self._mark > self._tolerance * self._evaluator.total_weight:
            self._mark, self._stalled, self._halvings = value, 0, 0
            return False
        self._stalled += 1
        if self._stalled < _PATIENCE:
            return False
        self._stalled = 0
        self._halvings += 1
        return True

    def _retreat(self) -> Evaluation:
        """Back to the best point, with half the rate and no memory of where the gradient led."""
        self._rate *= 0.5
        self._point = self._evaluator.best_point.copy()
        self._first[:] = 0.0
        self._second[:] = 0.0
        self._updates = 0
        return self._evaluator.best_evaluation
