"""Which columns a kernel looks at: inverse lengthscales, automatic relevance determination."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpvi._pipelines import final_step, require
from gpvi.exceptions import InputError
from gpvi.kernels import input_dimensions
from gpvi.plotting._axes import axes_for, require_matplotlib
from gpvi.plotting._inputs import feature_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RelevanceDisplay", "ard_relevance"]


def ard_relevance(estimator: Any) -> np.ndarray:
    r"""Inverse lengthscale of every column.

    .. math:: r_d = \max_k 1 / \ell_{kd}

    over all parts k of the kernel that see the column d (and over the latents of a batch of
    kernels). The units are those of the fit: with ``standardize=True`` one over a standard
    deviation, which makes columns comparable. A large value means that the function changes fast
    along the column, not that the column predicts well.

    Parameters
    ----------
    estimator : estimator
        A fitted estimator of gpvi, or a Pipeline that ends with one.

    Returns
    -------
    ndarray, shape [D]
        NaN for a column that no part with a lengthscale sees.

    References
    ----------
    Neal, R. (1996). Bayesian Learning for Neural Networks. Rasmussen and Williams (2006), Gaussian
    Processes for Machine Learning, section 5.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi import GPRegressor
    >>> from gpvi.plotting import ard_relevance
    >>> X = np.random.default_rng(0).uniform(size=(40, 2))
    >>> relevance = ard_relevance(GPRegressor(random_state=0).fit(X, np.sin(6 * X[:, 1])))
    >>> bool(relevance[1] > 10 * relevance[0])
    True
    """
    estimator, _ = final_step(estimator)
    require(estimator, "fit", "ard_relevance")
    check_is_fitted(estimator)
    require(estimator, "kernel_", "ard_relevance")
    num_features = estimator.n_features_in_
    relevance = np.full(num_features, np.nan)
    for part, dimensions in input_dimensions(estimator.kernel_, num_features):
        if not part.has_lengthscale:
            continue
        inverse = 1.0 / part.lengthscale.detach().double().cpu().numpy()
        # One lengthscale for all columns stands for each of them.
        inverse = np.broadcast_to(inverse, inverse.shape[:-1] + (len(dimensions),))
        largest = inverse.reshape(-1, len(dimensions)).max(0)
        relevance[dimensions] = np.fmax(relevance[dimensions], largest)
    return relevance


@dataclass(eq=False)
class RelevanceDisplay:
    """Inverse lengthscales as bars, the largest on top.

    Parameters
    ----------
    relevance : ndarray, shape [D]
        Inverse lengthscales; columns with NaN are left out of the picture.
    feature_names : tuple of str
        Names of the columns.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the last `plot`.
    figure_ : matplotlib Figure
        Their figure.
    bars_ : matplotlib BarContainer
        From the largest to the smallest.
    order_ : ndarray of int
        Columns in the order of the bars.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.plotting import RelevanceDisplay
    >>> display = RelevanceDisplay(np.array([0.1, 2.0]), ("age", "dose"))  # display.plot() draws
    """

    relevance: np.ndarray
    feature_names: tuple[str, ...]

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, max_features: int | None = None, ax: "Axes | None" = None
    ) -> Self:
        """Read the kernel of a fitted estimator and draw.

        Parameters
        ----------
        estimator : estimator
            A fitted estimator of gpvi, or a Pipeline that ends with one.
        max_features : int, optional
            Draw only so many columns, the most relevant ones.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        RelevanceDisplay
            Drawn.

        Raises
        ------
        InputError
            If no part of the kernel has a lengthscale.
        MissingDependencyError
            Without matplotlib.
        """
        require_matplotlib(cls.__name__)
        estimator, _ = final_step(estimator)
        relevance = ard_relevance(estimator)
        display = cls(relevance, feature_names(estimator, len(relevance)))
        return display.plot(ax=ax, max_features=max_features)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        max_features: int | None = None,
        color: str | None = None,
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.
        max_features : int, optional
            Draw only so many columns, the most relevant ones.
        color : str, optional
            Of the bars.

        Returns
        -------
        RelevanceDisplay
            Itself.

        Raises
        ------
        InputError
            If no column has a lengthscale.
        """
        known = np.flatnonzero(~np.isnan(self.relevance))
        if not known.size:
            raise InputError("no part of the kernel has a lengthscale: there is nothing to draw.")
        if max_features is not None and max_features < 1:
            raise InputError(f"max_features is {max_features}; it must be at least 1.")
        order = known[np.argsort(-self.relevance[known], kind="stable")][:max_features]
        ax = axes_for(ax, type(self).__name__)
        places = np.arange(len(order))
        self.bars_ = ax.barh(places, self.relevance[order], color=color)
        ax.set_yticks(places, [self.feature_names[index] for index in order])
        # In place of invert_yaxis, which a second display in the same axes would undo.
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.set_xlabel("inverse lengthscale")
        self.order_, self.ax_, self.figure_ = order, ax, ax.figure
        return self
