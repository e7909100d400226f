"""Targets as vectors, from arrays, lists and columns of data frames: numbers, and class labels.

NumPy turns text and dates into numbers and labels of several types into text without a word, and data frames
have missing values of their own, which compare with nothing.
"""

from typing import Any

import numpy as np
from sklearn.utils.validation import column_or_1d

from gpvi.estimators.validation import check_length, own_errors, row_values
from gpvi.exceptions import InputError

__all__ = ["class_labels", "own_type", "scored_weights", "target_values"]


def target_values(y: object, num_rows: int, estimator: str, allow_missing: bool) -> np.ndarray:
    """Numeric targets as a float64 vector.

    Parameters
    ----------
    y : array-like, shape [N] or [N, 1]
        Targets.
    num_rows : int
        N.
    estimator : str
        Class name, for messages.
    allow_missing : bool
        Whether NaN stands for a target that was not observed.

    Returns
    -------
    ndarray, shape [N]
        A copy.

    Raises
    ------
    InputError
        For another shape, values that are not numbers (text and dates are none), and NaN or infinity.
    """
    with own_errors(f"y of {estimator}"):
        if np.iscomplexobj(np.asarray(y)):
            raise InputError(f"y of {estimator} holds complex numbers; pass real ones.")
        values = column_or_1d(y, warn=True)
        check_length(values, num_rows, estimator)
        _refuse_other_kinds(values, estimator)
        if values.dtype == object:
            values = np.where([_is_missing(value) for value in values], np.nan, values)
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"y of {estimator} is not numeric: {error}; pass numbers.") from error
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0])
        raise InputError(
            f"y of {estimator} holds {int(np.isinf(values).sum())} infinite (inf) value(s), the first in "
            f"row {row}; drop these rows."
        )
    missing = np.isnan(values)
    if missing.any() and not allow_missing:
        raise InputError(
            f"y of {estimator} holds {int(missing.sum())} NaN value(s), the first in row "
            f"{int(np.flatnonzero(missing)[0])}; drop these rows or set allow_missing_targets=True."
        )
    if missing.all():
        raise InputError(f"y of {estimator} holds no target at all: all {num_rows} values are NaN.")
    return values


def class_labels(y: Any, num_rows: int, owner: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels as a vector, and where they are missing.

    Parameters
    ----------
    y : array-like, shape [N] or [N, 1]
        Text, whole numbers or truth values; NaN, None and pandas' NA where a label is missing.
    num_rows : int
        N.
    owner : str
        Class name, for messages.

    Returns
    -------
    labels : ndarray, shape [N]
        Of dtype object where y holds Python objects; :func:`own_type` narrows what is not missing.
    missing : ndarray of bool, shape [N]
        Rows without a label.

    Raises
    ------
    InputError
        For another shape, dates, infinite labels, and labels of several types.
    """
    with own_errors(f"y of {owner}"):
        labels = column_or_1d(_array(y), warn=True)
        check_length(labels, num_rows, owner)
    if labels.dtype.kind in "mM":
        raise InputError(
            f"y of {owner} holds dates or times ({labels.dtype}), which are no class labels; convert them "
            "to text or whole numbers."
        )
    if labels.dtype == object:
        missing = np.array([_is_missing(label) for label in labels], dtype=bool)
        _check_types(labels[~missing].tolist(), owner)
    else:
        missing = np.isnan(labels) if labels.dtype.kind == "f" else np.zeros(num_rows, dtype=bool)
    known = own_type(labels[~missing])
    if known.dtype.kind == "f" and np.isinf(known).any():
        raise InputError(f"y of {owner} holds infinite (inf) values; drop these rows.")
    return labels, missing


def own_type(labels: np.ndarray) -> np.ndarray:
    """Labels that are not missing, of the type that they have in common.

    Parameters
    ----------
    labels : ndarray, shape [N]
        From :func:`class_labels`.

    Returns
    -------
    ndarray, shape [N]
        Of truth values, numbers or text.
    """
    return np.array(labels.tolist()) if labels.dtype == object else labels


def scored_weights(sample_weight: object, known: np.ndarray, estimator: str) -> np.ndarray | None:
    """Weights of the rows that a score is taken over.

    Parameters
    ----------
    sample_weight : array-like, shape [N], or None
        Non-negative.
    known : ndarray of bool, shape [N]
        Rows with a target.
    estimator : str
        Class name, for messages.

    Returns
    -------
    ndarray, shape [K], or None
        Of the K rows with a target.

    Raises
    ------
    InputError
        For weights that cannot be used, or that leave no row.
    """
    weights = row_values(sample_weight, len(known), "sample_weight", estimator, positive=False)
    if weights is None:
        return None
    if not weights[known].any():
        raise InputError(
            f"sample_weight of {estimator} is zero in all {int(known.sum())} rows with a target; give "
            "some a weight."
        )
    return weights[known]


def _array(y: Any) -> Any:
    """What scikit-learn would convert at the cost of the labels' type, as an array of objects."""
    if isinstance(y, list | tuple):
        plain = np.asarray(y)
        # Only flat lists: of nested ones the shape is what is wrong.
        return np.array(y, dtype=object) if plain.ndim == 1 else plain
    if hasattr(y, "columns") or not isinstance(getattr(y, "dtype", np.dtype(object)), np.dtype):
        return np.asarray(y, dtype=object)
    return y


def _check_types(labels: list, owner: str) -> None:
    kinds: dict[str, object] = {}
    for label in labels:
        kinds.setdefault(_kind(label, owner), label)
    if len(kinds) > 1:
        listed = ", ".join(f"{label!r} ({kind})" for kind, label in kinds.items())
        raise InputError(
            f"y of {owner} holds labels of several types, such as {listed}; convert them to one type."
        )


def _kind(label: object, owner: str) -> str:
    if isinstance(label, bool | np.bool_):
        return "truth value"
    if isinstance(label, int | float | np.integer | np.floating):
        return "number"
    if isinstance(label, str):
        return "text"
    raise InputError(
        f"y of {owner} holds {label!r} of type {type(label).__name__}, which is no class label; convert "
        "labels to text, whole numbers or truth values."
    )


def _refuse_other_kinds(values: np.ndarray, estimator: str) -> None:
    """Refuse what NumPy would convert to numbers although it is none."""
    if values.dtype.kind in "mM":
        raise InputError(
            f"y of {estimator} holds dates or times ({values.dtype}); turn them into numbers, such as days "
            "since the first."
        )
    candidates = values.tolist() if values.dtype.kind in "OSUT" else ()
    for row, value in enumerate(candidates):
        if isinstance(value, str | bytes):
            raise InputError(
                f"y of {estimator} is not numeric: it holds text such as {value!r} in row {row}; pass "
                "numbers."
            )


def _is_missing(value: object) -> bool:
    """Whether a single value stands for none, in the ways of Python, NumPy and pandas."""
    # The NA of pandas does not say whether it equals itself.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))
