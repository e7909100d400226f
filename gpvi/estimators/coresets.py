"""The coreset of a fit in the units of the data."""

from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator
from torch import Tensor

from gpvi.approximations import CoresetPosterior
from gpvi.estimators.model import FittedModel

__all__ = ["DataCoreset", "keep_coreset"]


@dataclass(frozen=True, eq=False)
class DataCoreset:
    """What a fit with ``approximation="coreset"`` made of the data: few weighted pseudo-observations.

    A Gaussian process that sees these targets at these inputs, with noise variances one over the weights,
    has the mean and the variances of the fit.

    Parameters
    ----------
    inputs : ndarray, shape [M, D] or [L, M, D]
        Where the points lie, in the units of X; levels of categorical columns are their numbers. With
        several latent functions (classes, parameters of a distribution) each has its own.
    targets : ndarray, shape [M] or [L, M]
        Pseudo-observations of the latent function: in the units of y where the estimator standardises y,
        else on the scale of the latent function (log rates of counts, log odds of classes).
    weights : ndarray, shape [M] or [L, M]
        Their precisions, one over the square of the unit of the targets.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi import GPRegressor
    >>> X = np.linspace(0, 6, 60)[:, None]
    >>> model = GPRegressor(approximation="coreset", num_inducing=8, random_state=0)
    >>> points = model.fit(X, np.sin(X[:, 0])).coreset_
    >>> points.inputs.shape, points.targets.shape, bool((points.weights >= 0).all())
    ((8, 1), (8,), True)
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def keep_coreset(estimator: BaseEstimator, model: FittedModel) -> None:
    """Set ``coreset_`` where the posterior is one.

    Parameters
    ----------
    estimator : BaseEstimator
        Gets the attribute.
    model : FittedModel
        What was fitted.
    """
    posterior = model.posterior
    if not isinstance(posterior, CoresetPosterior):
        return
    points = posterior.coreset
    inputs, targets, weights = map(_array, (points.inputs, points.targets, points.weights))
    estimator.coreset_ = DataCoreset(
        model.x_map.inverse(inputs),
        model.y_map.inverse(targets),
        weights / model.y_map.scale**2,
    )


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
