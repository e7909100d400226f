"""What a display shows of an estimator: predictions of y, of the function behind, or of a class."""

from typing import Any, Literal

import numpy as np
from sklearn.base import is_classifier

from gpvi._pipelines import require
from gpvi.exceptions import InputError, UnsupportedError

__all__ = ["Response", "check_distribution", "check_response", "class_index", "moments"]

Response = Literal["observation", "latent"]


def check_distribution(estimator: Any, purpose: str, method: str) -> None:
    """Raise unless a regressor has the method, or a classifier gives probabilities."""
    require(estimator, "fit", purpose)
    require(estimator, "predict_proba" if is_classifier(estimator) else method, purpose)


def check_response(estimator: Any, response: str) -> None:
    """Raise unless the response exists and the estimator offers it."""
    if response not in ("observation", "latent"):
        raise InputError(f"response is {response!r}; pass 'observation' or 'latent'.")
    if response == "latent" and is_classifier(estimator):
        raise UnsupportedError(
            f"response='latent' and {type(estimator).__name__}: for a classifier the probability of a "
            "class is drawn; pass response='observation'."
        )


def class_index(estimator: Any, target_class: Any) -> int:
    """Column of `predict_proba` to draw: the second of two classes, unless one is named."""
    classes = np.asarray(estimator.classes_).tolist()
    if target_class is None:
        if len(classes) != 2:
            raise InputError(
                f"there are {len(classes)} classes; pass target_class, one of {classes}."
            )
        return 1
    if target_class not in classes:
        raise InputError(f"target_class is {target_class!r}; the classes are {classes}.")
    return classes.index(target_class)


def moments(estimator: Any, rows: Any, response: Response) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a new observation, or of the latent function."""
    mean, std = estimator.predict(rows, return_std=True, latent=response == "latent")
    return np.asarray(mean), np.asarray(std)
