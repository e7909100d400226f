"""Full-batch fitting: sites at their fixed point inside, L-BFGS over everything else outside.

The optimiser is SciPy's L-BFGS-B on a flat vector (see :mod:`gpvi.inference.parameters`). An evaluation
that breaks down numerically is answered with a wall: the last good value, raised by the predicted
decrease, with the slope reversed, so that the line search comes back instead of stopping.

L-BFGS starts out ignorant of scales, and its first steps pay for that. A fit on all rows therefore works in
coordinates whitened by the curvature that the warm start's own L-BFGS learned on the subset.

References
----------
Byrd, R. H., Lu, P., Nocedal, J. & Zhu, C. (1995). A limited memory algorithm for bound constrained
optimization. SIAM Journal on Scientific Computing.
"""

import time
from collections.abc import Sequence

import numpy as np
from scipy.optimize import OptimizeResult, minimize

from gpvi.inference.checkpoint import EvaluationLog
from gpvi.inference.coordinates import Curvature
from gpvi.inference.evaluator import Ascent, Evaluation, Evaluator, Stopped, start_only
from gpvi.inference.parameters import unchanged_on_error
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord
from gpvi.linalg import serial_blas

__all__ = ["Ascent", "maximize"]

_MEMORY = 20

# With a box on every variable L-BFGS-B tries the full first step instead of one of unit length; this box
# is never reached. A full step that moves a parameter further than this is not to be trusted.
_FAR = 1e8
_LONGEST = 4.0

# Points of a line search nearer than this, relatively, should have equal values but for rounding.
_NEAR = 1e-9

# Exit states of SciPy's L-BFGS-B.
_GRADIENT_VANISHED, _LINE_SEARCH_FAILED = 0, 2


class _Loss:
    """What SciPy minimises: the negative objective per unit of row weight, with a wall."""

    def __init__(self, evaluator: Evaluator, start: np.ndarray) -> None:
        self._evaluator = evaluator
        self._last_good: tuple[np.ndarray, Evaluation] | None = None
        # The optimiser asks for the start first; it is evaluated before, to see how steep it is.
        self._start: Evaluation | None = evaluator.evaluate(start)
        # Points, values and slopes since the last iteration.
        self._recent: list[tuple[np.ndarray, float, np.ndarray]] = []

    @property
    def first_step(self) -> np.ndarray:
        """The full step from the start."""
        assert self._start is not None
        return self._start.gradient / self._evaluator.total_weight

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        if self._start is not None:
            assert not point.any()
            result, self._start = self._start, None
        else:
            result = self._evaluator.evaluate(point)
        if result.failed:
            result = self._wall(point)
        else:
            self._last_good = point.copy(), result
        weight = self._evaluator.total_weight
        value, slope = -result.value / weight, -result.gradient / weight
        self._recent.append((point.copy(), value, slope))
        return value, slope

    def forget(self, point: np.ndarray) -> None:
        """Keep only what is known of the point that an iteration ended at."""
        self._recent = [known for known in self._recent if np.array_equal(known[0], point)][-1:]

    def rounding(self) -> float:
        """By how much values differ so near to where the line search began that they should not."""
        if not self._recent:
            return 0.0
        origin, value, slope = self._recent[0]
        moves = ((point - origin, other) for point, other, _ in self._recent[1:])
        return max(
            (
                abs(other - value - float(slope @ move))
                for move, other in moves
                if np.linalg.norm(move) < _NEAR * (1.0 + np.linalg.norm(origin))
            ),
            default=0.0,
        )

    def _wall(self, point: np.ndarray) -> Evaluation:
        """A finite answer for a failed point that sends the line search back."""
        assert self._last_good is not None  # a failure of the first evaluation raises
        origin, good = self._last_good
        predicted = abs(float(good.gradient @ (point - origin))) + 1e-6 * (1.0 + abs(good.value))
        return Evaluation(good.value - predicted, -good.gradient)


def maximize(
    problem: FitProblem,
    *,
    stage: str,
    max_iter: int,
    max_evaluations: int | None,
    tolerance: float,
    history: list[FitRecord],
    callbacks: Sequence[Callback] = (),
    log: EvaluationLog | None = None,
    started: float | None = None,
    curvature: Curvature | None = None,
) -> Ascent:
    """Maximise the objective of a problem over all its parameters by L-BFGS, in place.

    Parameters
    ----------
    problem : FitProblem
        Its modules' parameters are left at the best point found.
    stage : str
        Name for the records.
    max_iter : int
        The most L-BFGS iterations.
    max_evaluations : int, optional
        The most objective evaluations.
    tolerance : float
        Stop once three iterations in a row gain less than this many nats per row of weight one each.
    history : list of FitRecord
        Appended to.
    callbacks : sequence of callable
        Called with every record.
    log : EvaluationLog, optional
        Where evaluations are stored, and played back from.
    started : float, optional
        ``time.perf_counter()`` at the beginning of the fit.
    curvature : Curvature, optional
        From an earlier ascent over some of the same parameters.

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
        evaluator = Evaluator(problem, stage, history, callbacks, log, started, curvature)
        evaluator.tolerance = tolerance
        if not evaluator.vector.size:
            return start_only(evaluator)
        return _ascend(evaluator, max_iter, max_evaluations, tolerance)


def _ascend(
    evaluator: Evaluator, max_iter: int, max_evaluations: int | None, tolerance: float
) -> Ascent:
    progress = _Progress(tolerance)
    start = np.zeros(evaluator.vector.size)
    try:
        # The optimiser's own algebra is small; the objective takes the threads that it needs.
        with serial_blas():
            loss = _Loss(evaluator, start)
            progress.watch(loss)
            trusted = evaluator.coordinates.largest_move(loss.first_step) <= _LONGEST
            result = minimize(
                loss,
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=[(-_FAR, _FAR)] * len(start) if trusted else None,
                callback=progress,
                options={
                    "maxcor": _MEMORY,
                    "maxiter": max_iter,
                    "maxfun": 10 * (max_iter + 10) if max_evaluations is None else max_evaluations,
                    "ftol": 0.0,
                    "gtol": 1e-9,
                },
            )
        message, converged = progress.judge(result)
        stuck = evaluator.stuck()
        if stuck is not None:
            message, converged = stuck, False
        if evaluator.failures:
            message, converged = evaluator.complaint(), False
        ascent = Ascent(
            evaluator.best,
            progress.iterations,
            converged,
            message,
            curvature=evaluator.learned(result.hess_inv),
        )
    except Stopped as stop:
        ascent = Ascent(evaluator.best, progress.iterations, stop.converged, str(stop), stop.asked)
    evaluator.move_to(evaluator.best_point)
    return ascent


class _Progress:
    """Stopping rule: three iterations in a row with less than the tolerance, or than rounding lets see."""

    def __init__(self, tolerance: float) -> None:
        self.iterations = 0
        self.converged = False
        self._tolerance = tolerance
        self._loss: _Loss | None = None
        self._last = self._gain = float("inf")
        self._slow = 0

    def watch(self, loss: _Loss) -> None:
        """Tell a loss where iterations end, and ask it how exact its values are."""
        self._loss = loss

    def __call__(self, intermediate_result: OptimizeResult) -> None:
        value = float(intermediate_result.fun)
        self.iterations += 1
        self._gain = self._last - value
        self._slow = self._slow + 1 if self._gain < self._tolerance else 0
        self._last = value
        if self._loss is not None:
            self._loss.forget(intermediate_result.x)
        if self._slow >= 3:
            self.converged = True
            raise StopIteration

    def judge(self, result: OptimizeResult) -> tuple[str, bool]:
        """Why the optimiser ended, and whether that counts as convergence."""
        if self.converged:
            return f"three iterations gained less than {self._tolerance:g} nats per row each", True
        if result.status == _LINE_SEARCH_FAILED and self._slow:
            return "the last iteration gained next to nothing and no better point was found", True
        rounding = 0.0 if self._loss is None else self._loss.rounding()
        if result.status == _LINE_SEARCH_FAILED and self._gain < rounding:
            return "what a step still gains is lost in the rounding errors of the objective", True
        return str(result.message), result.status == _GRADIENT_VANISHED
