"""A time series: observations, what the model says about them, and the forecast."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from gpvi.exceptions import InputError
from gpvi.plotting._axes import axes_for, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["TimeSeriesDisplay"]


@dataclass(eq=False)
class TimeSeriesDisplay:
    """History, prediction and forecast along time, with the band of new observations.

    Make it with `from_estimator`.

    Parameters
    ----------
    times : array-like, shape [G]
        Stamps, in order.
    mean, lower, upper : ndarray, shape [G]
        Prediction there, and the ends of its band.
    coverage : float
        Probability of the band.
    data : tuple of two arrays, shape [N], optional
        Stamps and targets.
    last : stamp, optional
        Where the history ends.
    target_name : str
        Label of the vertical axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the last `plot`.
    figure_ : matplotlib Figure
        Their figure.
    line_ : matplotlib Line2D
        Mean.
    band_ : matplotlib FillBetweenPolyCollection
        Band.
    points_ : matplotlib PathCollection or None
        Data.
    boundary_ : matplotlib Line2D or None
        End of the history.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.plotting import TimeSeriesDisplay
    >>> times = np.arange(5.0)
    >>> display = TimeSeriesDisplay(times, times, times - 1, times + 1, 0.95)  # display.plot() draws
    """

    times: Any
    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    coverage: float
    data: tuple[ArrayLike, np.ndarray] | None = None
    last: Any = None
    target_name: str = "y"

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        horizon: Any = None,
        *,
        coverage: float = 0.95,
        num_history: int | None = None,
        num_points: int = 1_000,
        target_name: str = "y",
        ax: "Axes | None" = None,
    ) -> Self:
        """Compute from a fitted estimator and draw.

        Parameters
        ----------
        estimator : TimeSeriesGP
            Fitted.
        horizon : int, length of time, or stamps, optional
            As for its `forecast`; no forecast if left out.
        coverage : float
            Probability of the band.
        num_history : int, optional
            So many of the last observations are shown; all of them if left out.
        num_points : int
            At so many stamps of the history the prediction is computed, evenly spread over them.
        target_name : str
            Label of the vertical axis.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        TimeSeriesDisplay
            Drawn.

        Raises
        ------
        InputError
            For numbers of stamps that are not positive.
        MissingDependencyError
            If matplotlib is not installed.
        """
        require_matplotlib(cls.__name__)
        for name, size in (("num_history", num_history), ("num_points", num_points)):
            wrong = isinstance(size, bool) or not isinstance(size, int | np.integer)
            if size is not None and (wrong or size < 1):
                raise InputError(f"{name} is {size!r}; it must be an integer of at least 1.")
        times, targets = estimator.history()
        first = 0 if num_history is None else max(0, len(targets) - num_history)
        times, targets = times[first:], targets[first:]
        chosen = np.unique(np.linspace(0, len(targets) - 1, num_points).round().astype(int))
        grid = times[chosen]
        mean = estimator.predict(grid)
        lower, upper = estimator.predict_interval(grid, coverage)
        parts = [(np.asarray(grid), mean, lower, upper)]
        if horizon is not None:
            ahead = estimator.forecast(horizon, coverage=coverage)
            parts.append((np.asarray(ahead.times), ahead.mean, ahead.lower, ahead.upper))
        stamps, means, lows, highs = (np.concatenate(column) for column in zip(*parts, strict=True))
        display = cls(
            stamps,
            means,
            lows,
            highs,
            coverage=coverage,
            data=(np.asarray(times), targets),
            last=None if horizon is None else np.asarray(times)[-1],
            target_name=target_name,
        )
        return display.plot(ax)

    def plot(
        self, ax: "Axes | None" = None, *, color: str = "C0", label: str = "prediction"
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.
        color : str
            Of mean and band.
        label : str
            Of the mean in a legend.

        Returns
        -------
        TimeSeriesDisplay
            Itself.
        """
        ax = axes_for(ax, type(self).__name__)
        self.band_ = ax.fill_between(
            self.times,
            self.lower,
            self.upper,
            color=color,
            alpha=0.2,
            linewidth=0.0,
            label=f"{self.coverage:.0%} band",
        )
        (self.line_,) = ax.plot(self.times, self.mean, color=color, label=label)
        self.points_ = self.boundary_ = None
        if self.data is not None:
            self.points_ = ax.scatter(*self.data, color="k", s=4, zorder=3, label="data")
        if self.last is not None:
            self.boundary_ = ax.axvline(self.last, color="0.5", linewidth=0.8, linestyle="--")
        ax.set(xlabel="time", ylabel=self.target_name)
        self.ax_, self.figure_ = ax, ax.figure
        return self
