"""Inputs as a matrix of numbers: arrays, pandas and polars frames, categorical columns.

A categorical column becomes one column of codes 0, 1, ..., which a Hamming kernel compares for equality
only. Levels that the fit did not see get codes of their own, so that they differ from every known level.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from gpvi._warnings import warn
from gpvi.estimators.validation import check_finite_inputs, own_errors
from gpvi.exceptions import ExtrapolationWarning, InputError

__all__ = ["InputColumns", "learn_columns"]

# Values beyond the range of the fit by more than this multiple of its width are far away.
_FAR = 1.0


@dataclass(frozen=True, eq=False)
class InputColumns:
    """What a fit learned about the columns of X.

    Parameters
    ----------
    names : ndarray of str, shape [D], or None
        Column names, where X had them.
    levels : dict of str to tuple
        Levels of every categorical column, by the column's position (as text).
    low, high : ndarray, shape [D]
        Range of the fit, in X's units.
    """

    names: np.ndarray | None
    levels: dict[str, tuple]
    low: np.ndarray
    high: np.ndarray

    @property
    def num_features(self) -> int:
        """Number of columns D."""
        return len(self.low)

    @property
    def categorical(self) -> np.ndarray:
        """Which columns are categorical, shape [D], bool."""
        mask = np.zeros(self.num_features, dtype=bool)
        mask[[int(column) for column in self.levels]] = True
        return mask

    def label(self, column: int) -> str:
        """Name of a column for messages and tables.

        Parameters
        ----------
        column : int
            Its position.

        Returns
        -------
        str
            The name, or the position.
        """
        return str(column) if self.names is None else str(self.names[column])

    def within(self, X: np.ndarray) -> "InputColumns":
        """The same columns with the range of some rows.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Encoded rows.

        Returns
        -------
        InputColumns
            With their range.
        """
        return replace(self, low=X.min(0), high=X.max(0))

    def encode(self, estimator: BaseEstimator, X: Any) -> np.ndarray:
        """Numbers for new inputs.

        Parameters
        ----------
        estimator : BaseEstimator
            Fitted; gives names and number of columns to compare with.
        X : array-like, shape [N, D]
            New inputs.

        Returns
        -------
        ndarray of float64, shape [N, D]
            With codes in categorical columns.

        Raises
        ------
        InputError
            For inputs that do not fit those of the fit.
        """
        name = type(estimator).__name__
        _check_kind(X, name)
        with own_errors(f"X of {name}"):
            if not self.levels:
                array = validate_data(
                    estimator, X, dtype=np.float64, reset=False, ensure_all_finite=False
                )
            else:
                X = validate_data(estimator, X, reset=False, skip_check_array=True)
                array = _numbers(X, self.levels, name)
        check_finite_inputs(array, name, self.names)
        return array

    def warn_if_far(self, X: np.ndarray) -> None:
        """Warn where new inputs lie far outside the range of the fit.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            From :meth:`encode`.
        """
        numeric = ~self.categorical
        width = self.high - self.low
        # A column that was constant has no width: any other value is news.
        slack = np.where(
            width > 0, _FAR * width, 1e-6 * np.maximum(np.abs(self.low), np.abs(self.high))
        )
        far = ((X < self.low - slack) | (X > self.high + slack)) & numeric
        if far.any():
            row, column = np.argwhere(far)[0]
            warn(
                f"{int(far.any(1).sum())} of {len(X)} rows lie far outside the inputs of the fit, such as "
                f"row {row} with {X[row, column]:g} in column {self.label(int(column))!r}, whose range was "
                f"[{self.low[column]:g}, {self.high[column]:g}]; predictions there rest on the prior.",
                ExtrapolationWarning,
            )
        unseen = (X > self.high) & ~numeric
        if unseen.any():
            row, column = np.argwhere(unseen)[0]
            warn(
                f"{int(unseen.any(1).sum())} of {len(X)} rows hold a category that the fit did not see, "
                f"such as row {row} in column {self.label(int(column))!r}; it is taken to differ from all "
                "known ones.",
                ExtrapolationWarning,
            )


def learn_columns(
    estimator: BaseEstimator, X: Any, y: Any, categorical_features: Any
) -> tuple[InputColumns, np.ndarray]:
    """Look at the inputs of a fit.

    Parameters
    ----------
    estimator : BaseEstimator
        Gets ``n_features_in_`` and ``feature_names_in_``.
    X : array-like, shape [N, D]
        Inputs.
    y : array-like or None
        Targets, only to refuse None.
    categorical_features : "from_dtype", sequence of names or positions, or None
        Which columns are categorical.

    Returns
    -------
    columns : InputColumns
        What was learned.
    array : ndarray of float64, shape [N, D]
        Encoded inputs.

    Raises
    ------
    InputError
        For inputs that cannot be used.
    """
    name = type(estimator).__name__
    _check_kind(X, name)
    with own_errors(f"X of {name}"):
        X = validate_data(estimator, X, y, skip_check_array=True)[0]
        positions = _categorical_positions(X, categorical_features, name)
        if positions:
            levels = {str(p): _levels(_column(X, p), X, p, name) for p in positions}
            array = _numbers(X, levels, name)
        else:
            levels = {}
            # Sets the number of columns, too: lists have none until they are an array.
            array = validate_data(estimator, X, dtype=np.float64, ensure_all_finite=False)
    if len(array) < 2:
        raise InputError(f"X of {name} holds 1 sample only; a fit needs at least 2 samples (rows).")
    names = getattr(estimator, "feature_names_in_", None)
    check_finite_inputs(array, name, names)
    return InputColumns(names, levels, array.min(0), array.max(0)), array.copy()


def _numbers(X: Any, levels: dict[str, tuple], name: str) -> np.ndarray:
    """Matrix of numbers, with codes in categorical columns."""
    X = X if _is_frame(X) else np.asarray(X)
    if len(X.shape) != 2:
        raise InputError(f"X of {name} has shape {X.shape}; pass 2D inputs [N, D].")
    if not len(X):
        raise InputError(f"X of {name} holds no rows; pass at least 1 sample.")
    columns = []
    for position in range(X.shape[1]):
        values = _column(X, position)
        if str(position) in levels:
            columns.append(_codes(values, levels[str(position)], X, position, name))
            continue
        try:
            columns.append(np.asarray(values, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"Column {_label(X, position)!r} of X is not numeric ({error}); convert it, or list it in "
                "categorical_features."
            ) from error
    return np.stack(columns, axis=1)


def _levels(values: np.ndarray, X: Any, position: int, name: str) -> tuple:
    found = {_level(value) for value in values.tolist()}
    _refuse_missing(found, X, position, name)
    # Levels of several types cannot be compared with each other, but their names can.
    return tuple(sorted(found, key=lambda level: (type(level).__name__, level)))


def _codes(values: np.ndarray, levels: tuple, X: Any, position: int, name: str) -> np.ndarray:
    table = {level: code for code, level in enumerate(levels)}
    found = [_level(value) for value in values.tolist()]
    _refuse_missing(set(found), X, position, name)
    for level in found:
        table.setdefault(level, len(table))
    return np.array([table[level] for level in found], dtype=np.float64)


def _level(value: object) -> object:
    # 1.0 and 1 are one level, whether a frame or an array brought them; True is another one.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _refuse_missing(found: set, X: Any, position: int, name: str) -> None:
    if any(value is None or value != value for value in found):
        raise InputError(
            f"Categorical column {_label(X, position)!r} of {name} holds missing values (NaN); drop these "
            "rows or give missing a level of its own."
        )
    for value in found:
        if not isinstance(value, str | int | float | bool):
            raise InputError(
                f"Categorical column {_label(X, position)!r} of {name} holds {value!r} of type "
                f"{type(value).__name__}; convert its levels to text or numbers."
            )


def _categorical_positions(X: Any, wanted: Any, name: str) -> list[int]:
    if wanted is None:
        return []
    if isinstance(wanted, str):
        if wanted != "from_dtype":
            raise InputError(
                f"categorical_features is {wanted!r}; pass 'from_dtype', None, or a list of column names "
                "or positions."
            )
        return [p for p in range(X.shape[1]) if _is_categorical(X, p)] if _is_frame(X) else []
    if not isinstance(wanted, Sequence | np.ndarray):
        raise InputError(
            f"categorical_features of {name} is {wanted!r}; pass 'from_dtype', None, or a list of column "
            "names or positions."
        )
    names = [str(column) for column in X.columns] if _is_frame(X) else []
    width = X.shape[1] if hasattr(X, "shape") and len(X.shape) == 2 else np.asarray(X).shape[-1]
    return sorted({_position(column, names, width, name) for column in wanted})


def _position(column: object, names: list[str], width: int, name: str) -> int:
    if isinstance(column, str):
        if column in names:
            return names.index(column)
        known = f"its columns are {', '.join(names)}" if names else "X has no column names"
        raise InputError(f"categorical_features of {name} names {column!r}, but {known}.")
    if isinstance(column, bool) or not isinstance(column, int | np.integer):
        raise InputError(
            f"categorical_features of {name} holds {column!r}; pass names or positions."
        )
    if not 0 <= column < width:
        raise InputError(
            f"categorical_features of {name} holds column {column}, but X has {width} columns."
        )
    return int(column)


def _check_kind(X: Any, name: str) -> None:
    """Refuse in few words what scikit-learn would refuse by printing it, or would not."""
    with own_errors(f"X of {name}"):
        shape = tuple(X.shape if hasattr(X, "shape") else np.asarray(X).shape)
    if len(shape) != 2:
        raise InputError(
            f"X of {name} has shape {shape}, which is not [N, D]. Reshape your data with "
            "X.reshape(-1, 1) if it is one column, or X.reshape(1, -1) if it is one row."
        )
    dtypes = list(X.dtypes) if _is_frame(X) else [getattr(X, "dtype", None)]
    for dtype in dtypes:
        kind = getattr(dtype, "kind", "")
        if kind == "c":
            raise InputError(f"Complex data not supported: X of {name} is of type {dtype}.")
        # As plain numbers their unit would depend on the container, and "not a time" be a date.
        if kind in ("m", "M") or getattr(dtype, "is_temporal", bool)():
            raise InputError(
                f"X of {name} holds dates or times ({dtype}); turn them into numbers, such as days since "
                "the first."
            )
    for column, count in Counter(X.columns if _is_frame(X) else ()).items():
        if count > 1:
            raise InputError(
                f"{column!r} is the name of {count} columns of X; rename them, or pass an array."
            )


def _is_frame(X: Any) -> bool:
    return hasattr(X, "columns") and hasattr(X, "__getitem__") and hasattr(X, "shape")


def _is_categorical(X: Any, position: int) -> bool:
    dtypes = X.dtypes
    dtype = dtypes.iloc[position] if hasattr(dtypes, "iloc") else dtypes[position]
    kind = type(dtype).__name__
    # polars hands out classes of its parameter-free types.
    return (
        kind in {"CategoricalDtype", "Categorical", "Enum"}
        or getattr(dtype, "name", "") == "category"
    )


def _column(X: Any, position: int) -> np.ndarray:
    if not _is_frame(X):
        return np.asarray(X)[:, position]
    column = X.iloc[:, position] if hasattr(X, "iloc") else X[:, position]
    return np.asarray(column.to_numpy() if hasattr(column, "to_numpy") else column)


def _label(X: Any, position: int) -> str:
    return str(list(X.columns)[position]) if _is_frame(X) else str(position)
