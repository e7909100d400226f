"""The posterior over two inputs: mean, standard deviation or probability as a map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import is_classifier

from gpvi._pipelines import final_step
from gpvi.exceptions import InputError
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

__all__ = ["PosteriorMapDisplay"]


@dataclass(eq=False)
class PosteriorMapDisplay:
    """Posterior over two inputs, as filled contours or a heat map, with the data.

    With further inputs it is a cut: the others are held. Make it with `from_estimator`; a second
    `plot(quantity="std")` draws the standard deviation without computing again.

    Parameters
    ----------
    first, second : ndarray, shape [G]
        Grid of the horizontal and of the vertical input.
    mean : ndarray, shape [G, G]
        Mean, or probability of a class; rows belong to `second`.
    std : ndarray, shape [G, G], optional
        Standard deviation; a class has none.
    data : tuple of three ndarray, shape [N], optional
        Both inputs and the target.
    feature_names : tuple of two str
        Labels of the axes.
    target_name : str
        Label of the colours.
    target_class : label, optional
        Class whose probability is drawn; None unless the target is a class.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the last `plot`.
    figure_ : matplotlib Figure
        Their figure.
    surface_ : matplotlib QuadContourSet or QuadMesh
        The map.
    boundary_ : matplotlib QuadContourSet or None
        Where the probability of a class is one half.
    colorbar_ : matplotlib Colorbar or None
        Its scale.
    points_ : list of matplotlib PathCollection
        Data; one entry for numbers, one per class for labels.

    See Also
    --------
    PosteriorDisplay : Along one input.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.plotting import PosteriorMapDisplay
    >>> axis = np.linspace(0, 1, 3)
    >>> display = PosteriorMapDisplay(axis, axis, mean=np.add.outer(axis, axis))
    """

    first: np.ndarray
    second: np.ndarray
    mean: np.ndarray
    std: np.ndarray | None = None
    data: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    feature_names: tuple[str, str] = ("x0", "x1")
    target_name: str = "y"
    target_class: Any = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        features: Sequence[Feature] = (0, 1),
        response: Response = "observation",
        quantity: Literal["mean", "std"] = "mean",
        target_class: Any = None,
        num_points: int = 60,
        limits: Sequence[tuple[float, float] | None] = (None, None),
        held: Mapping[Feature, Any] | None = None,
        target_name: str = "y",
        style: Literal["contour", "heatmap"] = "contour",
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
            Targets, drawn as points.
        features : sequence of two int or str
            Columns along the horizontal and the vertical axis.
        response : {"observation", "latent"}
            A new observation, or the function behind it.
        quantity : {"mean", "std"}
            What to draw first.
        target_class : label, optional
            Class of a classifier with more than two; of two, the second is drawn.
        num_points : int
            Number G of grid points in each direction.
        limits : sequence of two tuples or None
            Ends of the two grids; by default 5 % beyond the data.
        held : mapping of int or str, optional
            Values of other columns, by index or name; medians by default.
        target_name : str
            Name of the target.
        style : {"contour", "heatmap"}
            Filled contours, or one cell for each point of the grid.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        PosteriorMapDisplay
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
        across, up = _two_columns(inputs, features)
        if len(limits) != 2:
            raise InputError(f"limits has {len(limits)} entries; it needs one for each axis.")
        first = inputs.grid(across, limits[0], num_points)
        second = inputs.grid(up, limits[1], num_points)
        mesh = np.meshgrid(first, second)
        rows = inputs.vary({across: mesh[0].ravel(), up: mesh[1].ravel()}, held)
        shape, std, label = mesh[0].shape, None, None
        if is_classifier(estimator):
            index = class_index(estimator, target_class)
            mean = np.asarray(estimator.predict_proba(rows))[:, index]
            label = estimator.classes_[index]
            target_name = f"probability of {label}"
        else:
            mean, std = moments(estimator, rows, response)
            std = std.reshape(shape)
            target_name = target_name if response == "observation" else "latent function"
        display = cls(first, second, mean.reshape(shape), std, target_class=label)
        display.feature_names = (inputs.names[across], inputs.names[up])
        display.target_name = target_name
        if y is not None:
            targets = np.asarray(y)
            if targets.shape != (inputs.table.shape[0],):
                raise InputError(
                    f"y has shape {targets.shape}; X has {inputs.table.shape[0]} rows."
                )
            display.data = (inputs.column(across), inputs.column(up), targets)
        return display.plot(ax=ax, quantity=quantity, style=style)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        quantity: Literal["mean", "std"] = "mean",
        style: Literal["contour", "heatmap"] = "contour",
        cmap: str | None = None,
        colorbar: bool = True,
        point_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.
        quantity : {"mean", "std"}
            Mean (or probability), or standard deviation.
        style : {"contour", "heatmap"}
            Filled contours, or one cell for each point of the grid.
        cmap : str, optional
            Colour map.
        colorbar : bool
            Whether to add the scale, which takes room from the axes.
        point_options : mapping, optional
            Further options of the data's `Axes.scatter`.

        Returns
        -------
        PosteriorMapDisplay
            Itself.

        Raises
        ------
        InputError
            If an option is unknown, or the standard deviation of a class is asked for.
        """
        values = self._values(quantity)
        if style not in ("contour", "heatmap"):
            raise InputError(f"style is {style!r}; pass 'contour' or 'heatmap'.")
        is_probability = self.target_class is not None
        if cmap is None:
            cmap = "RdBu_r" if is_probability else "viridis"
        ax = axes_for(ax, type(self).__name__)
        options: dict[str, Any] = {"cmap": cmap}
        if is_probability:
            options |= {"vmin": 0.0, "vmax": 1.0}
        if style == "contour":
            levels = np.linspace(0, 1, 11) if is_probability else 12
            self.surface_: Any = ax.contourf(
                self.first, self.second, values, levels=levels, **options
            )
        else:
            self.surface_ = ax.pcolormesh(
                self.first, self.second, values, shading="nearest", **options
            )
        self.boundary_ = None
        if is_probability and values.min() < 0.5 < values.max():
            self.boundary_ = ax.contour(
                self.first, self.second, values, levels=[0.5], colors="k", linewidths=1.0
            )
        self.points_ = self._scatter(ax, quantity, dict(point_options or {}))
        ax.set(xlabel=self.feature_names[0], ylabel=self.feature_names[1])
        self.ax_, self.figure_ = ax, ax.figure
        self.colorbar_ = None
        if colorbar:
            name = self.target_name if quantity == "mean" else f"std of {self.target_name}"
            self.colorbar_ = self.figure_.colorbar(self.surface_, ax=ax, label=name)
        return self

    def _values(self, quantity: str) -> np.ndarray:
        if quantity == "mean":
            return self.mean
        if quantity != "std":
            raise InputError(f"quantity is {quantity!r}; pass 'mean' or 'std'.")
        if self.std is None:
            raise InputError("quantity is 'std', but there is none of a class; pass 'mean'.")
        return self.std

    def _scatter(self, ax: "Axes", quantity: str, options: dict[str, Any]) -> list[Any]:
        if self.data is None:
            return []
        x, y, target = self.data
        if self.target_class is None:
            style: dict[str, Any] = {"color": "k", "s": 8, "zorder": 3, "label": "data"}
            return [ax.scatter(x, y, **style | options)]
        points = []
        # The drawn class last; pale colours with a dark edge stand out from both ends of the map.
        for chosen, color in ((False, "#9ecae1"), (True, "#fc9272")):
            for label in np.unique(target[(target == self.target_class) == chosen]):
                rows = target == label
                style = {"color": color, "edgecolor": "k", "linewidth": 0.5, "s": 16, "zorder": 3}
                points.append(ax.scatter(x[rows], y[rows], label=str(label), **style | options))
        return points


def _two_columns(inputs: Inputs, features: Sequence[Feature]) -> tuple[int, int]:
    if isinstance(features, str) or len(features) != 2:
        raise InputError(f"features is {features!r}; pass two columns.")
    if len(inputs.names) < 2:
        raise InputError("X has one column; PosteriorDisplay draws along one input.")
    across, up = (inputs.position(feature) for feature in features)
    if across == up:
        raise InputError(f"features is {features!r}, twice the same column; pass two.")
    return across, up
