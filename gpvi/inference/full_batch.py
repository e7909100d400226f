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

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import LbfgsInvHessProduct, OptimizeResult, minimize

from gpvi.approximations import Sites
from gpvi.exceptions import NumericalError
from gpvi.inference.checkpoint import EvaluationLog
from gpvi.inference.coordinates import Coordinates, Curvature
from gpvi.inference.parameters import ParameterVector, unchanged_on_error
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord
from gpvi.linalg import serial_blas

__all__ = ["Ascent", "maximize"]

_MEMORY = 20
_MAX_FAILURES = 15
_MAX_DENSE = 2_000

# With a box on every variable L-BFGS-B tries the full first step instead of one of unit length; this box
# is never reached.
_FAR = 1e8

# Exit states of SciPy's L-BFGS-B.
_GRADIENT_VANISHED, _LINE_SEARCH_FAILED = 0, 2


@dataclass(frozen=True, eq=False)
class Ascent:
    """Outcome of :func:`maximize`.

    Parameters
    ----------
    objective : float
        Best objective found; the parameters are left there.
    num_iterations : int
        L-BFGS iterations.
    converged : bool
        Whether the stopping rule was met.
    message : str
        Why it stopped.
    stopped : bool
        Whether a callback asked to stop.
    curvature : Curvature or None
        What L-BFGS learned, for a later ascent.
    """

    objective: float
    num_iterations: int
    converged: bool
    message: str
    stopped: bool = False
    curvature: Curvature | None = None


class _Stop(Exception):
    """Raised inside the optimiser to leave it."""

    def __init__(self, message: str, asked: bool = False) -> None:
        super().__init__(message)
        self.asked = asked


class _Objective:
    """Negative objective per row and its gradient, with records, checkpoint and wall."""

    def __init__(
        self,
        problem: FitProblem,
        stage: str,
        history: list[FitRecord],
        callbacks: Sequence[Callback],
        log: EvaluationLog | None,
        started: float,
        curvature: Curvature | None,
    ) -> None:
        self.problem = problem
        self.vector = ParameterVector(problem.modules)
        self.coordinates = Coordinates(self.vector, curvature)
        self.num_rows = problem.num_rows
        self.best = -math.inf
        self.best_point = np.zeros(self.vector.size)
        self.last_good: tuple[np.ndarray, float, np.ndarray] | None = None
        self.failures = 0
        self.count = 0
        self._reason = ""
        self._stage, self._history, self._callbacks = stage, history, callbacks
        self._log, self._started = log, started

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        stored = None if self._log is None else self._log.replay()
        if stored is None:
            value, gradient = self._evaluate(point)
            if self._log is not None:
                self._log.append(self._pack(value, gradient))
        else:
            value, gradient = self._unpack(stored)
        self.count += 1
        failed = not math.isfinite(value)
        if not failed:
            self.failures = 0
            if value > self.best:
                self.best, self.best_point = value, point.copy()
            self.last_good = (point.copy(), value, gradient)
        self._report(value, gradient, failed)
        if failed:
            value, gradient = self._wall(point)
        return -value / self.num_rows, -gradient / self.num_rows

    def move_to(self, point: np.ndarray) -> None:
        """Write the parameter values of a point into the modules."""
        self.vector.assign(self.coordinates.values(point))

    def _evaluate(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        self.move_to(point)
        try:
            value = self.problem.value()
            gradient = self.coordinates.pull_back(point, self.vector.gradient(value))
        except NumericalError as error:
            if self.last_good is None:
                raise
            self._reason = str(error)
            return math.nan, np.zeros_like(point)
        total = float(value.detach())
        if not (math.isfinite(total) and np.isfinite(gradient).all()):
            if self.last_good is None:
                raise NumericalError(
                    f"The objective is {total} or its gradient is not finite at the starting values; "
                    "check the scale of the data and the initial hyperparameters."
                )
            self._reason = f"objective {total}"
            return math.nan, np.zeros_like(point)
        return total, gradient

    def complaint(self) -> str:
        """What to say of the last evaluations if they failed."""
        return f"the last {self.failures} evaluations failed ({self._reason})"

    def learned(self, inverse: LbfgsInvHessProduct) -> Curvature | None:
        """L-BFGS's inverse curvature, dense; None for long vectors, where it would be too large."""
        if self.vector.size > _MAX_DENSE:
            return None
        return Curvature(self.vector.slices(), inverse.todense())

    def _wall(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """A finite answer for a failed point that sends the line search back."""
        self.failures += 1
        if self.failures >= _MAX_FAILURES or self.last_good is None:
            raise _Stop(self.complaint())
        origin, value, gradient = self.last_good
        predicted = abs(float(gradient @ (point - origin))) + 1e-6 * (1.0 + abs(value))
        return value - predicted, -gradient

    def _report(self, value: float, gradient: np.ndarray, failed: bool) -> None:
        largest = float(np.abs(gradient).max(initial=0.0)) / self.num_rows
        seconds = time.perf_counter() - self._started
        record = FitRecord(self._stage, self.count, value, self.best, largest, seconds, failed)
        self._history.append(record)
        # A callback may ask to stop; all of them see the record first.
        if any([callback(record) for callback in self._callbacks]):
            raise _Stop("a callback asked to stop", asked=True)

    def _pack(self, value: float, gradient: np.ndarray) -> np.ndarray:
        """One flat record: value, gradient, and the sites (with their shape) if CVI made some."""
        sites = self.problem.sites
        if sites is None:
            return np.concatenate([[value], gradient])
        shape = sites.lam1.shape
        stored = torch.stack([sites.lam1, sites.lam2]).cpu().double().numpy().reshape(-1)
        return np.concatenate([[value], gradient, [len(shape), *shape], stored])

    def _unpack(self, record: np.ndarray) -> tuple[float, np.ndarray]:
        stop = 1 + self.vector.size
        rest = record[stop:]
        if len(rest):
            dims = int(rest[0])
            shape = (2, *(int(size) for size in rest[1 : 1 + dims]))
            lam1, lam2 = torch.as_tensor(rest[1 + dims :]).reshape(shape).to(self.problem.x)
            self.problem.sites = Sites(lam1, lam2)
        return float(record[0]), record[1:stop]


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
        Stop once three iterations in a row gain less than this many nats per row each.
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
        objective = _Objective(problem, stage, history, callbacks, log, started, curvature)
        start = np.zeros(objective.vector.size)
        if not len(start):
            return _nothing_to_train(objective)
        return _ascend(objective, start, max_iter, max_evaluations, tolerance)


def _nothing_to_train(objective: _Objective) -> Ascent:
    try:
        objective(objective.best_point)
    except _Stop as stop:
        return Ascent(objective.best, 0, False, str(stop), stop.asked)
    return Ascent(objective.best, 0, True, "there are no parameters to train")


def _ascend(
    objective: _Objective,
    start: np.ndarray,
    max_iter: int,
    max_evaluations: int | None,
    tolerance: float,
) -> Ascent:
    progress = _Progress(tolerance)
    stopped, learned = False, None
    try:
        # The optimiser's own algebra is small; the objective takes the threads that it needs.
        with serial_blas():
            result = minimize(
                objective,
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=[(-_FAR, _FAR)] * len(start),
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
        if objective.failures:
            message, converged = objective.complaint(), False
        learned = objective.learned(result.hess_inv)
    except _Stop as stop:
        message, stopped, converged = str(stop), stop.asked, False
    objective.move_to(objective.best_point)
    return Ascent(objective.best, progress.iterations, converged, message, stopped, learned)


class _Progress:
    """Stopping rule: three iterations in a row with less than the tolerance."""

    def __init__(self, tolerance: float) -> None:
        self.iterations = 0
        self.converged = False
        self._tolerance = tolerance
        self._last = math.inf
        self._slow = 0

    def __call__(self, intermediate_result: OptimizeResult) -> None:
        value = float(intermediate_result.fun)
        self.iterations += 1
        self._slow = self._slow + 1 if self._last - value < self._tolerance else 0
        self._last = value
        if self._slow >= 3:
            self.converged = True
            raise StopIteration

    def judge(self, result: OptimizeResult) -> tuple[str, bool]:
        """Why the optimiser ended, and whether that counts as convergence."""
        if self.converged:
            return f"three iterations gained less than {self._tolerance:g} nats per row each", True
        if result.status == _LINE_SEARCH_FAILED and self._slow:
            return "the last iteration gained next to nothing and no better point was found", True
        return str(result.message), result.status == _GRADIENT_VANISHED
