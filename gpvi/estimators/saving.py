"""Estimators to files and back, without pickle; the format is that of :mod:`gpvi.persistence`."""

import os
from typing import TypeVar

import numpy as np
from sklearn.base import BaseEstimator

from gpvi.estimators.coresets import DataCoreset
from gpvi.estimators.hyperparameters import Fixed, Free, InDataUnits
from gpvi.estimators.inputs import InputColumns
from gpvi.estimators.model import FittedModel
from gpvi.estimators.reporting import FitSummary, HyperparameterRow
from gpvi.estimators.scaling import Standardizer
from gpvi.estimators.time_axis import TimeAxis, TimeColumns
from gpvi.estimators.validation import check_device
from gpvi.exceptions import ModelFileError
from gpvi.persistence import load_object, register_class, save_object

__all__ = ["fitted_names", "load_estimator", "save_estimator"]

EstimatorT = TypeVar("EstimatorT", bound=BaseEstimator)

_PRIVATE = {"_columns": InputColumns, "_model": FittedModel, "_summary": FitSummary}

for _part in (
    DataCoreset,
    Fixed,
    FitSummary,
    FittedModel,
    Free,
    HyperparameterRow,
    InDataUnits,
    InputColumns,
    Standardizer,
    TimeAxis,
    TimeColumns,
):
    register_class(_part, name=f"gpvi.estimators.{_part.__name__}")


def fitted_names(estimator: BaseEstimator) -> list[str]:
    """Attributes that a fit sets; scikit-learn keeps private ones of its own on estimators.

    Parameters
    ----------
    estimator : BaseEstimator
        Fitted or not.

    Returns
    -------
    list of str
        Names of attributes that exist.
    """
    public = [name for name in vars(estimator) if name.endswith("_") and name[0] != "_"]
    return public + [name for name in _PRIVATE if hasattr(estimator, name)]


def save_estimator(estimator: BaseEstimator, path: str | os.PathLike) -> None:
    """Write options and fitted attributes of an estimator.

    Parameters
    ----------
    estimator : BaseEstimator
        Fitted.
    path : path-like
        Of the file.
    """
    names = [*estimator.get_params(deep=False), *fitted_names(estimator)]
    state = {name: getattr(estimator, name) for name in names}
    state |= {"callbacks": (), "checkpoint": None, "device": str(estimator.device)}
    if not isinstance(estimator.random_state, int | np.integer):
        state["random_state"] = None
    save_object(path, state, kind=type(estimator).__name__)


def load_estimator(cls: type[EstimatorT], path: str | os.PathLike, device: object) -> EstimatorT:
    """Read what :func:`save_estimator` wrote.

    Parameters
    ----------
    cls : type
        Class of the estimator.
    path : path-like
        Of the file.
    device : str or torch.device
        Where to compute.

    Returns
    -------
    estimator
        Fitted.
    """
    place = check_device(device)
    state = load_object(path, kind=cls.__name__, device=place)
    estimator = cls()
    estimator.__dict__.update(_checked_state(state, estimator, path))
    estimator.device = str(place)
    return estimator


def _checked_state(
    state: object, blank: BaseEstimator, path: str | os.PathLike
) -> dict[str, object]:
    """Options and fitted attributes and nothing else: a file must not put values in place of methods."""
    name = type(blank).__name__
    if not isinstance(state, dict) or not all(
        isinstance(state.get(part), kind) for part, kind in _PRIVATE.items()
    ):
        raise ModelFileError(
            f"{os.fspath(path)} claims to hold a {name} and lacks the parts of one; save it again."
        )
    options = blank.get_params(deep=False)
    for key in state:
        fitted = key in _PRIVATE or (key.endswith("_") and not key.startswith("_"))
        if key not in options and not fitted:
            raise ModelFileError(
                f"{os.fspath(path)} holds {key!r}, which is no option or result of {name}; save it again."
            )
    return state
