"""The posterior along one input: mean, bands, data and sampled functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri
from sklearn.base import is_classifier

from gpvi._pipelines import final_step
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.plotting._axes import axes_for, require_matplotlib
from gpvi.plotting._inputs import Feature, Inputs
from gpvi.plotting._response import (
    Response,
    check_distribution,
    check_response,
    class_index,
    moments,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Band", "PosteriorDisplay"]


@dataclass(frozen=True, eq=False)
class Band:
    """Central interval of one probability along the grid.

    Attributes
    ----------
    coverage : float
        Its probability.
    lower, upper : ndarray, shape [G]
        Ends.
    latent : bool
        Whether it is about the function, not about a new observation.
    """

    coverage: float
    lower: np.ndarray
    upper: np.ndarray
    latent: bool


@dataclass(eq=False)
class PosteriorDisplay:
    """Posterior along one input: mean, bands, and optionally data and sampled functions.

    With further inputs it is a cut: the others are held. Make it with `from_estimator`.

    Parameters
    ----------
    grid : ndarray, shape [G]
        Values of the input.
    mean : ndarray, shape [G]
        Predictive mean, mean of the latent function, or probability of a class.
    bands : tuple of Band
        Drawn over each other, so that narrow ones look darker.
    functions : ndarray, shape [S, G], optional
        Sampled functions.
    data : tuple of two ndarray, shape [N], optional
        Input and target of the data.
    feature_name, target_name : str
        Labels of the axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the last `plot`.
    figure_ : matplotlib Figure
        Their figure.
    line_ : matplotlib Line2D
        Mean.
    bands_ : list of matplotlib FillBetweenPolyCollection
        One for each band.
    function_lines_ : list of matplotlib Line2D
        One for each sampled function.
    points_ : matplotlib PathCollection or None
        Data.

    See Also
    --------
    PosteriorMapDisplay : Along two inputs.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.plotting import Band, PosteriorDisplay
    >>> grid = np.linspace(0, 1, 5)
    >>> band = Band(0.95, grid - 1, grid + 1, latent=False)
    >>> display = PosteriorDisplay(grid, mean=grid, bands=(band,))  # display.plot() draws
    """

    grid: np.ndarray
    mean: np.ndarray
    bands: tuple[Band, ...] = ()
    functions: np.ndarray | None = None
    data: tuple[np.ndarray, np.ndarray] | None = None
    feature_name: str = "x"
    target_name: str = "y"

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        feature: Feature | None = None,
        response: Response = "observation",
        coverage: float | Sequence[float] = (0.5, 0.95),
        latent_coverage: float | Sequence[float] = (),
        target_class: Any = None,
        num_functions: int = 0,
        num_points: int = 200,
        limits: tuple[float, float] | None = None,
        held: Mapping[Feature, Any] | None = None,
        random_state: int | np.random.Generator = 0,
        target_name: str | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Compute from a fitted estimator and draw.

        Parameters
        ----------
        estimator : estimator
            A fitted estimator of gpvi; of a classifier, the probability of one class is drawn. Of a
            Pipeline that ends with one, the last step is drawn over its own inputs.
        X : array-like or data frame, shape [N, D]
            Inputs; they give the range of the grid and the medians of the other columns.
        y : array-like, shape [N], optional
            Targets, drawn as points; of a classifier as 1 where y is the class and 0 elsewhere. Of
            counts with an exposure pass rates, y / exposure: predictions are for an exposure of 1.
        feature : int or str, optional
            Column along the horizontal axis; not needed if X has one.
        response : {"observation", "latent"}
            Whether mean and `coverage` are about a new observation or about the function behind
            it, in the function's own units; data are then left out unless the two agree.
        coverage : float or sequence of float
            Probabilities of the bands; empty for none.
        latent_coverage : float or sequence of float
            Probabilities of further bands, about the function, next to those of an observation.
            Needs a likelihood under which the function is the mean of y.
        target_class : label, optional
            Class of a classifier with more than two; of two, the second is drawn.
        num_functions : int
            Functions to sample; needs the same as `latent_coverage` unless response is "latent".
        num_points : int
            Number G of grid points.
        limits : tuple of two floats, optional
            Ends of the grid; by default 5 % beyond the data.
        held : mapping of int or str, optional
            Values of other columns, by index or name; medians by default.
        random_state : int or numpy Generator
            Source of the sampled functions.
        target_name : str, optional
            Label of the vertical axis.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        PosteriorDisplay
            Drawn.

        Raises
        ------
        InputError
            If X does not fit the estimator, or an option is out of range.
        UnsupportedError
            If the estimator cannot give what is asked for.
        MissingDependencyError
            Without matplotlib.
        """
        require_matplotlib(cls.__name__)
        estimator, X = final_step(estimator, X)
        check_distribution(estimator, cls.__name__, "predict_interval")
        check_response(estimator, response)
        inputs = Inputs.of(estimator, X)
        if feature is None:
            if len(inputs.names) > 1:
                raise InputError(
                    f"X has {len(inputs.names)} columns; pass feature=, or two of them to "
                    "PosteriorMapDisplay."
                )
            feature = 0
        position = inputs.position(feature)
        grid = inputs.grid(position, limits, num_points)
        rows = inputs.vary({position: grid}, held)
        display = cls(grid, grid, feature_name=inputs.names[position])
        if is_classifier(estimator):
            display._take_probability(estimator, rows, target_class, latent_coverage, num_functions)
        else:
            observed, hidden = _levels(coverage), _levels(latent_coverage)
            display._take_moments(estimator, rows, response, observed, hidden)
            if num_functions:
                if response == "observation":
                    _need_function_as_mean(estimator, rows, "num_functions")
                display.functions = _sample(estimator, rows, num_functions, random_state)
        if y is not None and (response == "observation" or _function_is_mean(estimator, rows)):
            display.data = (inputs.column(position), _targets(estimator, y, target_class, inputs))
        if target_name is not None:
            display.target_name = target_name
        return display.plot(ax=ax)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        color: str = "C0",
        label: str | None = "mean",
        line_options: Mapping[str, Any] | None = None,
        point_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.
        color : str
            Of mean, bands and functions.
        label : str, optional
            Of the mean in a legend.
        line_options : mapping, optional
            Further options of the mean's `Axes.plot`.
        point_options : mapping, optional
            Further options of the data's `Axes.scatter`.

        Returns
        -------
        PosteriorDisplay
            Itself.
        """
        ax = axes_for(ax, type(self).__name__)
        self.bands_ = [
            ax.fill_between(
                self.grid,
                band.lower,
                band.upper,
                color=color,
                # An outline tells the function's bands from those of an observation.
                facecolor="none" if band.latent else color,
                alpha=0.8 if band.latent else 0.2,
                linewidth=0.8 if band.latent else 0.0,
                linestyle="--" if band.latent else "-",
                label=f"{band.coverage:.0%} {'of the function' if band.latent else 'band'}",
            )
            for band in self.bands
        ]
        self.function_lines_ = [
            ax.plot(self.grid, values, color=color, linewidth=0.6, alpha=0.6)[0]
            for values in (() if self.functions is None else self.functions)
        ]
        options = {"color": color, "label": label} | dict(line_options or {})
        (self.line_,) = ax.plot(self.grid, self.mean, **options)
        self.points_ = None
        if self.data is not None:
            options = {"color": "k", "s": 10, "zorder": 3, "label": "data"}
            self.points_ = ax.scatter(*self.data, **options | dict(point_options or {}))
        ax.set(xlabel=self.feature_name, ylabel=self.target_name)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _take_probability(
        self,
        estimator: Any,
        rows: Any,
        target_class: Any,
        latent_coverage: float | Sequence[float],
        num_functions: int,
    ) -> None:
        if num_functions or _levels(latent_coverage):
            raise UnsupportedError(
                f"num_functions or latent_coverage and {type(estimator).__name__}: the functions of a "
                "classifier are not probabilities; leave both out."
            )
        index = class_index(estimator, target_class)
        self.mean = np.asarray(estimator.predict_proba(rows))[:, index]
        self.target_name = f"probability of {estimator.classes_[index]}"

    def _take_moments(
        self,
        estimator: Any,
        rows: Any,
        response: Response,
        coverage: list[float],
        latent_coverage: list[float],
    ) -> None:
        self.mean, std = moments(estimator, rows, response)
        if response == "latent":
            self.target_name = "latent function"
            levels = sorted({*coverage, *latent_coverage}, reverse=True)
            self.bands = tuple(_latent_band(self.mean, std, level) for level in levels)
            return
        observed = []
        for level in coverage:
            lower, upper = estimator.predict_interval(rows, level)
            observed.append(Band(level, np.asarray(lower), np.asarray(upper), latent=False))
        hidden = []
        if latent_coverage:
            _need_function_as_mean(estimator, rows, "latent_coverage")
            mean, std = moments(estimator, rows, "latent")
            hidden = [_latent_band(mean, std, level) for level in latent_coverage]
        self.bands = (*observed, *hidden)


def _latent_band(mean: np.ndarray, std: np.ndarray, coverage: float) -> Band:
    width = float(ndtri(0.5 + coverage / 2)) * std
    return Band(coverage, mean - width, mean + width, latent=True)


def _levels(coverage: float | Sequence[float]) -> list[float]:
    """Coverages from wide to narrow."""
    values = np.atleast_1d(np.asarray(coverage, dtype=np.float64))
    if values.size and not (values.min() > 0 and values.max() < 1):
        raise InputError(f"coverage is {coverage!r}; every one must lie strictly between 0 and 1.")
    return sorted(values.tolist(), reverse=True)


def _function_is_mean(estimator: Any, rows: Any) -> bool:
    """Whether the latent function and y share one axis: E[y | f] = f."""
    mean = np.asarray(estimator.predict(rows))
    function = np.asarray(estimator.predict(rows, latent=True))
    return bool(np.allclose(mean, function, rtol=1e-5, atol=1e-6 * np.abs(mean).max()))


def _need_function_as_mean(estimator: Any, rows: Any, option: str) -> None:
    if not _function_is_mean(estimator, rows):
        raise UnsupportedError(
            f"{option} and response='observation': the function of {type(estimator).__name__} is not the "
            "mean of y and has another scale; pass response='latent'."
        )


def _sample(
    estimator: Any, rows: Any, num_functions: int, random_state: int | np.random.Generator
) -> np.ndarray:
    if isinstance(num_functions, bool) or not isinstance(num_functions, int) or num_functions < 0:
        raise InputError(
            f"num_functions is {num_functions!r}; it must be an integer of at least 0."
        )
    mean, covariance = estimator.predict(rows, return_cov=True, latent=True)
    # The covariance of a smooth function on a fine grid is singular to rounding: no Cholesky.
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    rng = np.random.default_rng(random_state)
    return mean + rng.standard_normal((num_functions, len(values))) @ root.T


def _targets(estimator: Any, y: ArrayLike, target_class: Any, inputs: Inputs) -> np.ndarray:
    targets = np.asarray(y)
    if targets.shape != (inputs.table.shape[0],):
        raise InputError(f"y has shape {targets.shape}; X has {inputs.table.shape[0]} rows.")
    if is_classifier(estimator):
        label = estimator.classes_[class_index(estimator, target_class)]
        return (targets == label).astype(np.float64)
    return targets.astype(np.float64)
