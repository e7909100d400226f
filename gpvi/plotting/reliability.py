"""Are the predicted probabilities right? Reliability diagrams of regressors and classifiers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from gpvi._pipelines import final_step
from gpvi.exceptions import InputError
from gpvi.metrics import (
    ReliabilityCurve,
    calibration_error,
    pit_from_samples,
    reliability_curve,
    top_label,
)
from gpvi.plotting._axes import axes_for, require_matplotlib
from gpvi.plotting._response import check_distribution, class_index

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ReliabilityDisplay"]

_NUM_QUANTILES = 199


@dataclass(eq=False)
class ReliabilityDisplay:
    """Predicted against observed probability; on the diagonal if the predictions are calibrated.

    Of a regressor: the share of observations below each predicted quantile, or inside each central
    interval. Of a classifier: the frequency of the event in bins of its predicted probability, with
    the share of rows in each bin as bars.

    Parameters
    ----------
    nominal : ndarray, shape [K]
        Predicted probabilities.
    observed : ndarray, shape [K]
        Observed shares.
    error : float
        Calibration error: mean distance of the two, over levels or weighted by the bins' rows.
    bins : ReliabilityCurve, optional
        The bins, of a classifier.
    pit : ndarray, shape [N], optional
        Probability integral transform of the observations, of a regressor.
    nominal_name, observed_name : str
        Labels of the axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the last `plot`.
    figure_ : matplotlib Figure
        Their figure.
    line_ : matplotlib Line2D
        Observed shares.
    diagonal_ : matplotlib Line2D
        Perfect calibration.
    bars_ : matplotlib BarContainer or None
        Share of rows in each bin, or the histogram of `plot_pit`.

    References
    ----------
    Gneiting, T., Balabdaoui, F. and Raftery, A. (2007). Probabilistic forecasts, calibration and
    sharpness. JRSS B 69. Naeini, M., Cooper, G. and Hauskrecht, M. (2015). Obtaining well
    calibrated probabilities using Bayesian binning. AAAI.

    Examples
    --------
    >>> from gpvi.plotting import ReliabilityDisplay
    >>> display = ReliabilityDisplay.from_probabilities([0, 1, 1, 1], [0.2, 0.2, 0.9, 0.8])
    >>> display.observed
    array([0.5, 1. , 1. ])
    """

    nominal: np.ndarray
    observed: np.ndarray
    error: float
    bins: ReliabilityCurve | None = None
    pit: np.ndarray | None = None
    nominal_name: str = "nominal probability"
    observed_name: str = "observed share"

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        kind: Literal["quantile", "interval"] = "quantile",
        target_class: Any = None,
        num_bins: int = 10,
        strategy: Literal["uniform", "quantile"] = "uniform",
        sample_weight: ArrayLike | None = None,
        noise_variance: ArrayLike | None = None,
        exposure: ArrayLike | None = None,
        random_state: int | np.random.Generator = 0,
        label: str | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Predict held-out rows with a fitted estimator and draw.

        Parameters
        ----------
        estimator : estimator
            A fitted estimator of gpvi, or a Pipeline that ends with one.
        X : array-like or data frame, shape [N, D]
            Held-out inputs.
        y : array-like, shape [N]
            Held-out targets.
        kind : {"quantile", "interval"}
            Of a regressor: quantiles show bias as well, central intervals only the width of error
            bars.
        target_class : label, optional
            Of a classifier: the event is this class. By default the second of two classes; of more,
            that the most probable class is right.
        num_bins : int
            Bins of a classifier's probabilities.
        strategy : {"uniform", "quantile"}
            Bins of equal width, or of about equally many rows.
        sample_weight : array-like, shape [N], optional
            Non-negative weights.
        noise_variance, exposure : array-like, shape [N], optional
            Of a regressor's observations, as for its `predict_quantiles`.
        random_state : int or numpy Generator
            Breaks ties of counts, see `gpvi.metrics.pit_from_samples`.
        label : str, optional
            Of the line, in a legend.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        ReliabilityDisplay
            Drawn.

        Raises
        ------
        InputError
            If shapes do not fit, or an option is unknown.
        MissingDependencyError
            Without matplotlib.
        """
        require_matplotlib(cls.__name__)
        estimator, X = final_step(estimator, X)
        check_distribution(estimator, cls.__name__, "predict_quantiles")
        check_is_fitted(estimator)
        if not is_classifier(estimator):
            levels = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
            extras = {"noise_variance": noise_variance, "exposure": exposure}
            given = {name: values for name, values in extras.items() if values is not None}
            quantiles = estimator.predict_quantiles(X, levels, **given)
            pit = pit_from_samples(y, quantiles, random_state=random_state)
            display = cls.from_pit(pit, kind=kind, sample_weight=sample_weight)
            return display.plot(ax=ax, label=label)
        table = np.asarray(estimator.predict_proba(X))
        if target_class is None and len(estimator.classes_) > 2:
            event, probability = top_label(y, table, classes=estimator.classes_)
            name = "the most probable class"
        else:
            index = class_index(estimator, target_class)
            event = np.asarray(y) == estimator.classes_[index]
            probability, name = table[:, index], f"{estimator.classes_[index]}"
        display = cls.from_probabilities(
            event, probability, num_bins=num_bins, strategy=strategy, sample_weight=sample_weight
        )
        display.nominal_name = f"predicted probability of {name}"
        return display.plot(ax=ax, label=label)

    @classmethod
    def from_pit(
        cls,
        pit: ArrayLike,
        *,
        kind: Literal["quantile", "interval"] = "quantile",
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Make from PIT values, without drawing.

        Parameters
        ----------
        pit : array-like, shape [N]
            From `gpvi.metrics.gaussian_pit` or `pit_from_samples`.
        kind : {"quantile", "interval"}
            Shares below quantiles, or inside central intervals.
        sample_weight : array-like, shape [N], optional
            Non-negative weights.

        Returns
        -------
        ReliabilityDisplay
            Not drawn yet.

        Raises
        ------
        InputError
            If a value lies outside [0, 1], or the kind is unknown.
        """
        if kind not in ("quantile", "interval"):
            raise InputError(f"kind is {kind!r}; pass 'quantile' or 'interval'.")
        pit = np.asarray(pit, dtype=np.float64)
        # A central interval of probability p holds y exactly if |2 pit - 1| is at most p.
        values = pit if kind == "quantile" else np.abs(2 * pit - 1)
        error = calibration_error(values, sample_weight=sample_weight)
        nominal = np.linspace(0.0, 1.0, 101)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        observed = np.average(values[:, None] <= nominal, axis=0, weights=weights)
        name = "nominal probability" if kind == "quantile" else "nominal coverage"
        share = "share below the quantile" if kind == "quantile" else "share inside the interval"
        return cls(nominal, observed, error, pit=pit, nominal_name=name, observed_name=share)

    @classmethod
    def from_probabilities(
        cls,
        event: ArrayLike,
        probability: ArrayLike,
        *,
        num_bins: int = 10,
        strategy: Literal["uniform", "quantile"] = "uniform",
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Make from probabilities of an event, without drawing.

        Parameters
        ----------
        event : array-like of bool or 0/1, shape [N]
            Whether it took place.
        probability : array-like, shape [N]
            Its predicted probability.
        num_bins : int
            Number of bins.
        strategy : {"uniform", "quantile"}
            Bins of equal width, or of about equally many rows.
        sample_weight : array-like, shape [N], optional
            Non-negative weights.

        Returns
        -------
        ReliabilityDisplay
            Not drawn yet.

        Raises
        ------
        InputError
            If shapes differ or a value is out of range.
        """
        curve = reliability_curve(
            event, probability, num_bins=num_bins, strategy=strategy, sample_weight=sample_weight
        )
        return cls(
            curve.probability,
            curve.frequency,
            curve.error,
            bins=curve,
            nominal_name="predicted probability",
            observed_name="frequency",
        )

    def plot(
        self, ax: "Axes | None" = None, *, label: str | None = None, color: str | None = None
    ) -> Self:
        """Draw the diagram.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default. Several displays may share one.
        label : str, optional
            Of the line, in a legend; the calibration error is added.
        color : str, optional
            Of line and bars.

        Returns
        -------
        ReliabilityDisplay
            Itself.
        """
        ax = axes_for(ax, type(self).__name__)
        (self.diagonal_,) = ax.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="_diagonal")
        text = f"error {self.error:.3f}" if label is None else f"{label} (error {self.error:.3f})"
        (self.line_,) = ax.plot(
            self.nominal,
            self.observed,
            color=color,
            marker="o" if self.bins is not None else None,
            markersize=4,
            label=text,
        )
        self.bars_ = None
        if self.bins is not None:
            self.bars_ = ax.bar(
                self.bins.lower,
                self.bins.weight / self.bins.weight.sum(),
                width=self.bins.upper - self.bins.lower,
                align="edge",
                color=self.line_.get_color(),
                alpha=0.2,
                label="_share of rows",
            )
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel=self.nominal_name, ylabel=self.observed_name)
        ax.legend(loc="upper left")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def plot_pit(
        self, ax: "Axes | None" = None, *, num_bins: int = 10, color: str | None = None
    ) -> Self:
        """Draw the histogram of the PIT, which is flat if the predictions are calibrated.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.
        num_bins : int
            Number of bins.
        color : str, optional
            Of the bars.

        Returns
        -------
        ReliabilityDisplay
            Itself; rows count alike, whatever their weights.

        Raises
        ------
        InputError
            If there are no PIT values, as for a classifier.
        """
        if self.pit is None:
            raise InputError("there are no PIT values: those of a regressor have a histogram.")
        ax = axes_for(ax, type(self).__name__)
        heights, edges = np.histogram(self.pit, bins=num_bins, range=(0.0, 1.0), density=True)
        self.bars_ = ax.bar(edges[:-1], heights, np.diff(edges), align="edge", color=color)
        (self.diagonal_,) = ax.plot([0, 1], [1, 1], color="0.3", linewidth=1, label="_uniform")
        ax.set(xlim=(0, 1), xlabel="probability integral transform", ylabel="density")
        self.ax_, self.figure_ = ax, ax.figure
        return self
