"""Objective evaluations of a full-batch fit: records, checkpoint, and what to do when one fails.

Both optimisers work on a flat vector (see :mod:`gpvi.inference.parameters`) and ask :class:`Evaluator`
for value and gradient; it keeps the best point and writes the history, and on resume it plays stored
evaluations back.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import LbfgsInvHessProduct

from gpvi.approximations import Sites
from gpvi.exceptions import NumericalError
from gpvi.inference.checkpoint import EvaluationLog
from gpvi.inference.coordinates import Coordinates, Curvature
from gpvi.inference.parameters import ParameterVector
from gpvi.inference.problem import CVI_TOLERANCE, FitProblem
from gpvi.inference.records import Callback, FitRecord

__all__ = ["Ascent", "Evaluation", "Evaluator", "Stopped", "start_only"]

_MAX_FAILURES = 15

# Where gradients are only nearly those of the objective, so many evaluations without a gain end the ascent:
# line searches would go on for the last digits.
_MAX_IDLE = 5

# CVI stops at this fraction of what the last better point gained, at most at so many nats per row.
_INNER_GAIN = 0.1
_LOOSEST = 5e-5
_MAX_DENSE = 2_000

# Nats per row and unit of log scale: a parameter that still gains so much is not at an optimum. Directions
# in which a kernel degenerates (amplitude and lengthscales that grow together) gain far less.
_HELD = 0.1


@dataclass(frozen=True, eq=False)
class Ascent:
    """Outcome of an ascent.

    Parameters
    ----------
    objective : float
        Best objective found; the parameters are left there.
    num_iterations : int
        Iterations of the optimiser.
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


class Stopped(Exception):
    """Raised inside an optimiser to leave it.

    Parameters
    ----------
    message : str
        Why.
    asked : bool
        Whether a callback asked to stop.
    converged : bool
        Whether there is nothing more to gain.
    """

    def __init__(self, message: str, asked: bool = False, converged: bool = False) -> None:
        super().__init__(message)
        self.asked, self.converged = asked, converged


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Objective and gradient at a point.

    Parameters
    ----------
    value : float
        Total nats; NaN if the evaluation failed.
    gradient : ndarray, shape [P]
        In the coordinates of the point; zero if the evaluation failed.
    blocked : float
        Largest gradient entry of a parameter that is kept at the edge of its range.
    """

    value: float
    gradient: np.ndarray
    blocked: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether the evaluation broke down numerically."""
        return not math.isfinite(self.value)


class Evaluator:
    """Objective and gradient as functions of a flat vector, with records and checkpoint.

    Parameters
    ----------
    problem : FitProblem
        What is evaluated.
    stage : str
        Name for the records.
    history : list of FitRecord
        Appended to.
    callbacks : sequence of callable
        Called with every record.
    log : EvaluationLog, optional
        Where evaluations are stored, and played back from.
    started : float
        ``time.perf_counter()`` at the beginning of the fit.
    curvature : Curvature, optional
        From an earlier ascent, for the coordinates.
    """

    def __init__(
        self,
        problem: FitProblem,
        stage: str,
        history: list[FitRecord],
        callbacks: Sequence[Callback],
        log: EvaluationLog | None,
        started: float,
        curvature: Curvature | None = None,
    ) -> None:
        self.problem = problem
        self.vector = ParameterVector(problem.modules, _function_scale(problem))
        self.coordinates = Coordinates(self.vector, curvature)
        self.total_weight = problem.total_weight
        self.best_point = np.zeros(self.vector.size)
        self.best_evaluation = Evaluation(-math.inf, np.zeros(self.vector.size))
        self.failures = 0
        self.count = 0
        #: Nats per row of weight one that count as a gain.
        self.tolerance = 0.0
        self._mark, self._idle = -math.inf, 0
        self._gain = math.inf
        self._reason = ""
        self._stage, self._history, self._callbacks = stage, history, callbacks
        self._log, self._started = log, started

    @property
    def best(self) -> float:
        """Best objective so far; minus infinity before the first evaluation."""
        return self.best_evaluation.value

    def evaluate(self, point: np.ndarray) -> Evaluation:
        """Evaluate at a point.

        Parameters
        ----------
        point : ndarray, shape [P]
            Coordinates.

        Returns
        -------
        Evaluation
            Failed if the objective broke down, and raised if it did so at the first point.

        Raises
        ------
        Stopped
            If a callback asks to stop, or after many failures in a row.
        """
        stored = None if self._log is None else self._log.replay()
        if stored is None:
            result = self._compute(point)
            if self._log is not None:
                self._log.append(self._pack(result))
        else:
            result = self._unpack(stored)
        self.count += 1
        self.failures = self.failures + 1 if result.failed else 0
        if result.value > self.best:
            self._gain = result.value - self.best
            self.best_evaluation, self.best_point = result, point.copy()
        self._report(result)
        if self.failures >= _MAX_FAILURES:
            raise Stopped(self.complaint())
        self._stop_if_idle(result)
        return result

    def _stop_if_idle(self, result: Evaluation) -> None:
        """End the ascent where only nearly exact gradients could lead on."""
        if self.problem.exact_gradient:
            return
        if result.value > self._mark + self.tolerance * self.total_weight:
            self._mark, self._idle = result.value, 0
            return
        self._idle += 1
        if self._idle >= _MAX_IDLE:
            raise Stopped(
                f"{_MAX_IDLE} evaluations gained less than {self.tolerance:g} nats per row, as far as "
                "gradients with q held can tell",
                converged=True,
            )

    def move_to(self, point: np.ndarray) -> None:
        """Write the parameter values of a point into the modules."""
        self.vector.assign(self.coordinates.values(point))

    def complaint(self) -> str:
        """What to say of the last evaluations if they failed."""
        return f"the last {self.failures} evaluations failed ({self._reason})"

    def stuck(self) -> str | None:
        """What to say if the best point has a parameter that would go beyond its range.

        Returns
        -------
        str or None
            None if the range holds nothing back.
        """
        if self.best_evaluation.blocked <= _HELD * self.total_weight:
            return None
        edge = self.coordinates.at_edge(self.best_point)
        names = [name for name, place in self.vector.slices().items() if edge[place].any()]
        return (
            f"{', '.join(names)} reached the edge of the range, a factor of a million from the start; check "
            "the scale of the data and the starting values"
        )

    def learned(self, inverse: LbfgsInvHessProduct) -> Curvature | None:
        """L-BFGS's inverse curvature, dense; None for long vectors, where it would be too large."""
        if self.vector.size > _MAX_DENSE:
            return None
        return Curvature(self.vector.slices(), inverse.todense())

    def _compute(self, point: np.ndarray) -> Evaluation:
        self.move_to(point)
        # While much is gained, q need not be at its optimum to the last digit.
        loose = min(_INNER_GAIN * self._gain, _LOOSEST * self.total_weight)
        self.problem.inner_tolerance = max(CVI_TOLERANCE, loose)
        failure = Evaluation(math.nan, np.zeros_like(point))
        try:
            value = self.problem.value()
            slopes = self.vector.gradient(value)
            gradient = self.coordinates.pull_back(point, slopes)
        except NumericalError as error:
            if self.best == -math.inf:
                raise
            self._reason = str(error)
            return failure
        total = float(value.detach())
        if not (math.isfinite(total) and np.isfinite(gradient).all()):
            if self.best == -math.inf:
                raise NumericalError(
                    f"The objective is {total} or its gradient is not finite at the starting values; "
                    "check the scale of the data and the initial hyperparameters."
                )
            self._reason = f"objective {total}"
            return failure
        return Evaluation(total, gradient, self.coordinates.blocked(point, slopes))

    def _report(self, result: Evaluation) -> None:
        largest = float(np.abs(result.gradient).max(initial=0.0)) / self.total_weight
        seconds = time.perf_counter() - self._started
        record = FitRecord(
            self._stage, self.count, result.value, self.best, largest, seconds, result.failed
        )
        self._history.append(record)
        # A callback may ask to stop; all of them see the record first.
        if any([callback(record) for callback in self._callbacks]):
            raise Stopped("a callback asked to stop", asked=True)

    def _pack(self, result: Evaluation) -> np.ndarray:
        """One flat record: value, gradient, and what CVI starts from next time, if it ran."""
        sites, log_v = self.problem.sites, self.problem.log_v
        head = [result.value, result.blocked]
        if sites is None:
            return np.concatenate([head, result.gradient])
        shape = sites.lam1.shape
        parts = [sites.lam1, sites.lam2] + ([] if log_v is None else [log_v])
        stored = torch.cat([part.reshape(-1).cpu().double() for part in parts]).numpy()
        return np.concatenate([head, result.gradient, [len(shape), *shape], stored])

    def _unpack(self, record: np.ndarray) -> Evaluation:
        stop = 2 + self.vector.size
        rest = record[stop:]
        if len(rest):
            dims = int(rest[0])
            shape = tuple(int(size) for size in rest[1 : 1 + dims])
            values = torch.as_tensor(rest[1 + dims :]).to(self.problem.x)
            lam1, lam2, log_v = values.tensor_split([math.prod(shape), 2 * math.prod(shape)])
            self.problem.sites = Sites(lam1.reshape(shape), lam2.reshape(shape))
            self.problem.log_v = log_v.reshape(shape[:-1]) if log_v.numel() else None
        return Evaluation(float(record[0]), record[2:stop], float(record[1]))


def _function_scale(problem: FitProblem) -> float:
    """Standard deviation of the process at its starting values, the unit of its mean."""
    with torch.no_grad():
        variance = float(problem.gp.variance(problem.x[..., :1, :]).double().mean())
    return math.sqrt(variance) if 0.0 < variance < math.inf else 1.0


def start_only(evaluator: Evaluator) -> Ascent:
    """The ascent of a problem without parameters: one evaluation.

    Parameters
    ----------
    evaluator : Evaluator
        With an empty vector.

    Returns
    -------
    Ascent
        Converged, unless a callback stopped it.
    """
    try:
        evaluator.evaluate(evaluator.best_point)
    except Stopped as stop:
        return Ascent(evaluator.best, 0, False, str(stop), stop.asked)
    return Ascent(evaluator.best, 0, True, "there are no parameters to train")
