"""Checks and the weighted mean that every metric shares."""

import numpy as np
from numpy.typing import ArrayLike

from gpvi.exceptions import InputError

__all__ = ["fraction", "matrix", "rows", "weighted_mean", "weights_of"]


def rows(name: str, values: ArrayLike, num_rows: int | None = None) -> np.ndarray:
    """Values of shape [N], N >= 1, as finite float64; of a given length if one is given."""
    array = _numbers(name, values)
    if array.ndim != 1 or array.size == 0:
        raise InputError(
            f"{name} has shape {array.shape}; it must have shape [N] with at least one row."
        )
    if num_rows is not None and len(array) != num_rows:
        raise InputError(f"{name} has {len(array)} rows where {num_rows} are expected.")
    return _finite(name, array)


def matrix(name: str, values: ArrayLike, num_rows: int, columns: str) -> np.ndarray:
    """Values of shape [N, columns] as finite float64."""
    array = _numbers(name, values)
    if array.ndim != 2 or array.shape[0] != num_rows or array.shape[1] == 0:
        raise InputError(f"{name} has shape {array.shape}; it must be [{num_rows}, {columns}].")
    return _finite(name, array)


def fraction(name: str, value: float) -> float:
    """A number strictly between 0 and 1."""
    if not isinstance(value, int | float | np.floating) or not 0 < value < 1:
        raise InputError(f"{name} is {value!r}; it must be a number strictly between 0 and 1.")
    return float(value)


def weights_of(sample_weight: ArrayLike | None, num_rows: int) -> np.ndarray:
    """Weights of the rows, ones if there are none; at least one is positive."""
    if sample_weight is None:
        return np.ones(num_rows)
    weights = rows("sample_weight", sample_weight, num_rows)
    if (weights < 0).any():
        raise InputError(f"sample_weight holds {weights.min():g}; weights must not be negative.")
    if not weights.any():
        raise InputError("sample_weight is zero in every row; at least one must be positive.")
    return weights


def weighted_mean(values: np.ndarray, sample_weight: ArrayLike | None) -> float:
    """Weighted mean over the rows."""
    return float(np.average(values, weights=weights_of(sample_weight, len(values))))


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must hold numbers ({error}).") from error


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    bad = ~np.isfinite(array)
    if bad.any():
        raise InputError(
            f"{name} holds {array[bad][0]} and {bad.sum() - 1} more values that are not finite; "
            "leave out the rows that were not observed or predicted."
        )
    return array
