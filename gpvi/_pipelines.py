"""Scorers and pictures of an estimator that stands at the end of a scikit-learn Pipeline."""

from typing import Any

from sklearn.pipeline import Pipeline

from gpvi.exceptions import InputError

__all__ = ["final_step", "require"]


def final_step(estimator: Any, X: Any = None) -> tuple[Any, Any]:
    """The last step of a fitted Pipeline, and its inputs; anything else as it is.

    A Pipeline forwards no methods but those of scikit-learn.
    """
    while isinstance(estimator, Pipeline):
        if X is not None and len(estimator) > 1:
            X = estimator[:-1].transform(X)
        estimator = estimator[-1]
    return estimator, X


def require(estimator: Any, name: str, purpose: str) -> None:
    """Refuse an estimator that lacks a method or a fitted attribute, and a class in place of an estimator."""
    if isinstance(estimator, type):
        raise InputError(
            f"{purpose} got the class {estimator.__name__}; pass a fitted estimator of it."
        )
    if not hasattr(estimator, name):
        raise InputError(
            f"{purpose} needs an estimator with {name}; {type(estimator).__name__} has none. Pass an "
            "estimator of gpvi, or a Pipeline that ends with one."
        )
