"""The points of a coreset over the data that they stand for."""

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from gpvi.exceptions import InputError
from gpvi.plotting._axes import axes_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CoresetDisplay", "plot_coreset"]


class CoresetDisplay:
    """Pseudo-observations with areas in proportion to their weights.

    With one input they lie over the data at their targets; with two or more they are a map of two columns,
    coloured by target.

    Parameters
    ----------
    inputs : array-like, shape [M, D]
        Where the points lie.
    targets, weights : array-like, shape [M]
        Pseudo-observations, and how much they weigh.
    data : tuple of two array-like, shapes [N, D] and [N], optional
        Inputs and targets that the coreset stands for.
    curve : tuple of two array-like, shape [G], optional
        Inputs and mean of the posterior, where there is one input.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the last `plot`.
    figure_ : matplotlib Figure
        Their figure.
    points_ : matplotlib PathCollection
        The coreset.
    data_ : matplotlib PathCollection or None
        The data.
    curve_ : matplotlib Line2D or None
        The mean.
    colorbar_ : matplotlib Colorbar or None
        Scale of the targets on a map.

    Raises
    ------
    InputError
        For shapes that do not fit, values that are not finite, negative weights, or none above zero.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.plotting.coreset import CoresetDisplay
    >>> display = CoresetDisplay(np.zeros((2, 1)), np.ones(2), np.array([1.0, 3.0]))
    >>> display.areas(largest=60.0)
    array([20., 60.])
    """

    def __init__(
        self,
        inputs: ArrayLike,
        targets: ArrayLike,
        weights: ArrayLike,
        *,
        data: tuple[ArrayLike, ArrayLike] | None = None,
        curve: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> None:
        self.inputs = np.asarray(inputs, dtype=np.float64)
        if self.inputs.ndim != 2 or 0 in self.inputs.shape:
            raise InputError(
                f"inputs has shape {self.inputs.shape}; it must be [M, D] with at least one point."
            )
        size, width = self.inputs.shape
        self.targets = _checked("targets", targets, (size,))
        self.weights = _checked("weights", weights, (size,))
        if not np.isfinite(self.inputs).all():
            raise InputError(
                f"inputs holds {int((~np.isfinite(self.inputs)).sum())} values that are not finite."
            )
        if self.weights.min() < 0 or self.weights.max() == 0:
            raise InputError(
                f"weights lie between {self.weights.min():g} and {self.weights.max():g}; none may be "
                "negative, and one must be positive."
            )
        self.data = None if data is None else _data(data, width)
        self.curve: tuple[np.ndarray, np.ndarray] | None = None
        if curve is not None:
            if width != 1:
                raise InputError(f"curve is for one input, and the points have {width}.")
            along = np.asarray(curve[0], dtype=np.float64).ravel()
            self.curve = along, _checked("curve", curve[1], along.shape)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        latent: int = 0,
        ax: "Axes | None" = None,
        **options: Any,
    ) -> Self:
        """Draw the coreset of a fitted estimator, over data where they are given.

        Parameters
        ----------
        estimator : estimator of gpvi
            Fitted with ``approximation="coreset"``.
        X : array-like, shape [N, D], optional
            Inputs in numbers.
        y : array-like, shape [N], optional
            Targets in the units of the coreset's, with X.
        latent : int
            Which latent function, where there are several.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.
        **options
            Of :meth:`plot`; unknown names raise.

        Returns
        -------
        CoresetDisplay
            Drawn.

        Raises
        ------
        InputError
            If the estimator has no coreset, only one of X and y is given, or there is no such latent.
        """
        points = getattr(estimator, "coreset_", None)
        if points is None:
            raise InputError(
                f"{type(estimator).__name__} has no coreset_; fit it with approximation='coreset'."
            )
        if (X is None) != (y is None):
            raise InputError("Pass X and y, or neither.")
        targets, weights = (np.atleast_2d(part) for part in (points.targets, points.weights))
        if not 0 <= latent < len(targets):
            raise InputError(f"latent is {latent}; there are {len(targets)}, numbered from 0.")
        inputs = points.inputs if points.inputs.ndim == 2 else points.inputs[latent]
        data = None if X is None or y is None else (X, y)
        return cls(inputs, targets[latent], weights[latent], data=data).plot(ax, **options)

    def areas(self, largest: float) -> np.ndarray:
        """Areas of the markers.

        Parameters
        ----------
        largest : float
            Of the heaviest point, in square points.

        Returns
        -------
        ndarray, shape [M]
            In proportion to the weights.
        """
        return largest * self.weights / self.weights.max()

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        features: tuple[int, int] = (0, 1),
        names: tuple[str, ...] | None = None,
        largest: float = 120.0,
        cmap: str | None = None,
        colorbar: bool = True,
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.
        features : tuple of two int
            Columns of a map, where there are two or more.
        names : tuple of str, optional
            Names of the axes; "x" and "y", or "x0" and so on, by default.
        largest : float
            Area of the heaviest point, in square points.
        cmap : str, optional
            Colour map of the targets on a map.
        colorbar : bool
            Whether a map gets the scale of its targets.

        Returns
        -------
        CoresetDisplay
            Itself.

        Raises
        ------
        InputError
            For columns that are not there, or an area that is not positive.
        MissingDependencyError
            Without matplotlib.
        """
        if not largest > 0:
            raise InputError(f"largest is {largest}; it must be positive.")
        if names is not None and len(names) != 2:
            raise InputError(f"names is {names!r}; pass one for each of the two axes.")
        kind: Literal["curve", "map"] = "curve" if self.inputs.shape[1] == 1 else "map"
        columns = (0, 0) if kind == "curve" else _columns(features, self.inputs.shape[1])
        ax = axes_for(ax, type(self).__name__)
        self.curve_: Any = None
        self.colorbar_: Any = None
        self.ax_, self.figure_ = ax, ax.figure
        if kind == "curve":
            self._along(ax, self.areas(largest))
        else:
            self._over(ax, columns, self.areas(largest), cmap, colorbar)
        default = ("x", "y") if kind == "curve" else tuple(f"x{column}" for column in columns)
        across, up = names or default
        ax.set(xlabel=across, ylabel=up)
        return self

    def _along(self, ax: "Axes", areas: np.ndarray) -> None:
        """Targets over one input."""
        self.data_: Any = None
        if self.data is not None:
            x, y = self.data
            self.data_ = ax.scatter(x[:, 0], y, s=6, color="0.6", zorder=1, label="data")
        if self.curve is not None:
            (self.curve_,) = ax.plot(*self.curve, color="C0", zorder=2, label="mean")
        self.points_: Any = ax.scatter(
            self.inputs[:, 0],
            self.targets,
            s=areas,
            color="C1",
            alpha=0.8,
            edgecolor="k",
            linewidth=0.5,
            zorder=3,
            label="coreset",
        )

    def _over(
        self,
        ax: "Axes",
        columns: tuple[int, int],
        areas: np.ndarray,
        cmap: str | None,
        colorbar: bool,
    ) -> None:
        """A map of two columns."""
        across, up = columns
        self.data_ = None
        if self.data is not None:
            x = self.data[0]
            self.data_ = ax.scatter(
                x[:, across], x[:, up], s=4, color="0.75", zorder=1, label="data"
            )
        self.points_ = ax.scatter(
            self.inputs[:, across],
            self.inputs[:, up],
            s=areas,
            c=self.targets,
            cmap=cmap or "viridis",
            edgecolor="k",
            linewidth=0.5,
            zorder=3,
            label="coreset",
        )
        if colorbar:
            self.colorbar_ = self.figure_.colorbar(self.points_, ax=ax, label="target")


def plot_coreset(
    inputs: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike,
    *,
    data: tuple[ArrayLike, ArrayLike] | None = None,
    curve: tuple[ArrayLike, ArrayLike] | None = None,
    ax: "Axes | None" = None,
    **options: Any,
) -> CoresetDisplay:
    """Draw the points of a coreset.

    Parameters
    ----------
    inputs : array-like, shape [M, D]
        Where the points lie.
    targets, weights : array-like, shape [M]
        Pseudo-observations, and how much they weigh.
    data : tuple of two array-like, shapes [N, D] and [N], optional
        Inputs and targets that the coreset stands for.
    curve : tuple of two array-like, shape [G], optional
        Inputs and mean of the posterior, where there is one input.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    **options
        Of :meth:`CoresetDisplay.plot`; unknown names raise.

    Returns
    -------
    CoresetDisplay
        Drawn.

    Raises
    ------
    InputError
        For arrays that do not fit each other, and impossible options.
    MissingDependencyError
        Without matplotlib.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.plotting.coreset import plot_coreset
    >>> display = plot_coreset(np.zeros((1, 1)), [0.5], [20.0])  # doctest: +SKIP
    """
    return CoresetDisplay(inputs, targets, weights, data=data, curve=curve).plot(ax, **options)


def _checked(name: str, values: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise InputError(f"{name} has shape {array.shape}; it must be {shape}.")
    if not np.isfinite(array).all():
        raise InputError(
            f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite."
        )
    return array


def _data(data: tuple[ArrayLike, ArrayLike], width: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(part, dtype=np.float64) for part in data)
    if x.ndim != 2 or x.shape[1] != width or y.shape != x.shape[:1]:
        raise InputError(
            f"data has shapes {x.shape} and {y.shape}; they must be [N, {width}] and [N]."
        )
    return x, y


def _columns(features: tuple[int, int], width: int) -> tuple[int, int]:
    if len(features) != 2 or features[0] == features[1]:
        raise InputError(f"features is {features!r}; pass two different columns.")
    for column in features:
        if not 0 <= column < width:
            raise InputError(f"there is no column {column}; the points have {width} columns.")
    return features
