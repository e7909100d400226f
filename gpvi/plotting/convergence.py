"""How a fit went: objective against evaluations or seconds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpvi._pipelines import final_step, require
from gpvi.exceptions import InputError
from gpvi.plotting._axes import axes_for, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["ConvergenceDisplay", "FitTrace"]


@dataclass(frozen=True, eq=False)
class FitTrace:
    """One stage of one restart.

    Attributes
    ----------
    stage : str
        "warm start", "full batch" (then "full batch, refresh 1" and on) or "minibatch".
    restart : int
        Number of the restart, from 0.
    evaluation : ndarray, shape [E]
        Number of the evaluation within the restart, all stages, from 1.
    seconds : ndarray, shape [E]
        Seconds since the fit began.
    objective : ndarray, shape [E]
        Objective, total nats; NaN where an evaluation failed.
    best : ndarray, shape [E]
        Best of the stage so far (of minibatches, a running mean).
    """

    stage: str
    restart: int
    evaluation: np.ndarray
    seconds: np.ndarray
    objective: np.ndarray
    best: np.ndarray


@dataclass(eq=False)
class ConvergenceDisplay:
    """Objective of a fit, one line for each stage of each restart.

    The values are those of `history_`: total nats, in the units of the fit. A warm start on some of
    the rows and a minibatch estimate have other scales than the full objective; each stage has its
    own colour.

    Parameters
    ----------
    traces : tuple of FitTrace
        Stages of the restarts, in order.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the last `plot`.
    figure_ : matplotlib Figure
        Their figure.
    lines_ : list of matplotlib Line2D
        One for each trace.
    failures_ : list of matplotlib Line2D
        Marks of failed evaluations, one for each trace that has some.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.plotting import ConvergenceDisplay, FitTrace
    >>> steps, value = np.arange(1, 4), np.array([-9.0, -5.0, -4.0])
    >>> trace = FitTrace("full batch", 0, steps, 0.1 * steps, value, value)
    >>> display = ConvergenceDisplay((trace,))  # display.plot() draws
    """

    traces: tuple[FitTrace, ...]

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        against: Literal["evaluation", "seconds"] = "evaluation",
        gap: bool = False,
        ax: "Axes | None" = None,
    ) -> Self:
        """Read the history of a fitted estimator and draw.

        Parameters
        ----------
        estimator : estimator
            A fitted estimator of gpvi, or a Pipeline that ends with one.
        against : {"evaluation", "seconds"}
            Horizontal axis.
        gap : bool
            Draw the distance to the stage's best value, on a logarithmic axis.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        ConvergenceDisplay
            Drawn.

        Raises
        ------
        InputError
            If the history is empty, or an option is unknown.
        MissingDependencyError
            Without matplotlib.
        """
        require_matplotlib(cls.__name__)
        estimator, _ = final_step(estimator)
        require(estimator, "fit", cls.__name__)
        check_is_fitted(estimator)
        require(estimator, "history_", cls.__name__)
        history = list(estimator.history_)
        if not history:
            raise InputError("history_ is empty: the fit evaluated its objective not once.")
        return cls(_traces(history)).plot(ax=ax, against=against, gap=gap)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        against: Literal["evaluation", "seconds"] = "evaluation",
        gap: bool = False,
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.
        against : {"evaluation", "seconds"}
            Horizontal axis.
        gap : bool
            Draw the distance to the best value of the same stage in any restart, on a logarithmic
            axis, where that best value itself has no place.

        Returns
        -------
        ConvergenceDisplay
            Itself.

        Raises
        ------
        InputError
            If the horizontal axis is unknown.
        """
        if against not in ("evaluation", "seconds"):
            raise InputError(f"against is {against!r}; pass 'evaluation' or 'seconds'.")
        ax = axes_for(ax, type(self).__name__)
        stages = list(dict.fromkeys(trace.stage for trace in self.traces))
        self.lines_: list[Line2D] = []
        self.failures_: list[Line2D] = []
        for trace in self.traces:
            x = trace.evaluation if against == "evaluation" else trace.seconds
            y = self._gap(trace) if gap else trace.objective
            color = f"C{stages.index(trace.stage) % 10}"
            first = trace.stage not in {line.get_label() for line in self.lines_}
            self.lines_ += ax.plot(
                x,
                y,
                color=color,
                linewidth=1.2,
                alpha=1.0 if trace.restart == 0 else 0.5,
                label=trace.stage if first else f"_{trace.stage}, restart {trace.restart}",
            )
            failed = ~np.isfinite(trace.objective)
            if failed.any() and not gap:
                self.failures_ += ax.plot(
                    x[failed],
                    np.where(np.isfinite(trace.best), trace.best, np.nan)[failed],
                    linestyle="none",
                    marker="x",
                    color="tab:red",
                    label="_failed",
                )
        if gap:
            ax.set_yscale("log")
        ax.set(
            xlabel="evaluations" if against == "evaluation" else "seconds",
            ylabel="distance to the best objective, nats" if gap else "objective, nats",
        )
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _gap(self, trace: FitTrace) -> np.ndarray:
        same = [other.objective for other in self.traces if other.stage == trace.stage]
        values = np.concatenate(same)
        finite = values[np.isfinite(values)]
        if not finite.size:
            return np.full(trace.objective.shape, np.nan)
        distance = finite.max() - trace.objective
        return np.where(distance > 0, distance, np.nan)


def _traces(history: list[Any]) -> tuple[FitTrace, ...]:
    """Group the records by restart and stage, in the order of their first appearance."""
    groups: dict[tuple[int, str], list[Any]] = {}
    counts: dict[int, int] = {}
    numbers: dict[tuple[int, str], list[int]] = {}
    for record in history:
        key = (record.restart, record.stage)
        counts[record.restart] = counts.get(record.restart, 0) + 1
        groups.setdefault(key, []).append(record)
        numbers.setdefault(key, []).append(counts[record.restart])
    return tuple(
        FitTrace(
            stage=stage,
            restart=restart,
            evaluation=np.array(numbers[restart, stage]),
            seconds=np.array([record.seconds for record in records]),
            objective=np.array([np.nan if r.failed else r.objective for r in records]),
            best=np.array([record.best for record in records]),
        )
        for (restart, stage), records in groups.items()
    )
