"""Rows of inputs in which a few columns vary and the others are held, as arrays or data frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpvi.exceptions import InputError

__all__ = ["Feature", "Inputs", "feature_names"]

_NUMBERS = "iuf"

#: A column by index or name.
Feature = int | str


def feature_names(estimator: Any, num_features: int) -> tuple[str, ...]:
    """Names of the columns of the fit, or x0, x1, ..."""
    known = getattr(estimator, "feature_names_in_", None)
    if known is not None:
        return tuple(str(name) for name in known)
    return tuple(f"x{index}" for index in range(num_features))


@dataclass(frozen=True, eq=False)
class Inputs:
    """A table of inputs, [N, D]: an array, or a pandas or polars frame."""

    table: Any
    names: tuple[str, ...]

    @classmethod
    def of(cls, estimator: Any, X: Any) -> Self:
        """Check that the estimator is fitted and X has its columns."""
        check_is_fitted(estimator)
        table: Any = X if hasattr(X, "columns") else np.asarray(X)
        if len(table.shape) != 2 or table.shape[0] == 0:
            raise InputError(f"X has shape {tuple(table.shape)}; it must be [N, D] with N >= 1.")
        expected = getattr(estimator, "n_features_in_", table.shape[1])
        if table.shape[1] != expected:
            raise InputError(
                f"X has {table.shape[1]} columns; {type(estimator).__name__} was fitted with {expected}."
            )
        if hasattr(X, "columns"):
            return cls(table, tuple(str(name) for name in table.columns))
        return cls(table, feature_names(estimator, expected))

    def position(self, feature: Feature) -> int:
        """Index of a column."""
        if isinstance(feature, str):
            if feature not in self.names:
                raise InputError(
                    f"there is no column {feature!r}; there are {', '.join(self.names)}."
                )
            return self.names.index(feature)
        size = len(self.names)
        if isinstance(feature, bool) or not isinstance(feature, int | np.integer):
            raise InputError(f"a column is named by {feature!r}; pass its index or its name.")
        if not -size <= feature < size:
            raise InputError(f"there is no column {feature}; X has {size} columns.")
        return int(feature) % size

    def column(self, position: int) -> np.ndarray:
        """Values of a column of numbers."""
        values = self._values(position)
        if values.dtype.kind not in _NUMBERS:
            raise InputError(
                f"the column {self.names[position]!r} does not hold numbers; it can be held, not varied."
            )
        return values.astype(np.float64)

    def grid(
        self, position: int, limits: tuple[float, float] | None, num_points: int
    ) -> np.ndarray:
        """Evenly spaced values of a column, by default over the range of the data and 5 % more."""
        if isinstance(num_points, bool) or not isinstance(num_points, int) or num_points < 2:
            raise InputError(f"num_points is {num_points!r}; it must be an integer of at least 2.")
        if limits is None:
            values = self.column(position)
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            margin = 0.05 * (high - low) if high > low else 0.5
            limits = (low - margin, high + margin)
        if not limits[0] < limits[1]:
            raise InputError(f"limits are {limits}; the first must be below the second.")
        return np.linspace(limits[0], limits[1], num_points)

    def vary(self, values: Mapping[int, np.ndarray], held: Mapping[Feature, Any] | None) -> Any:
        """Rows in which some columns take given values of equal length and the others stand still.

        Columns that are not in `held` stand at their median, or at their most frequent value where
        they do not hold numbers.
        """
        fixed = {self.position(feature): value for feature, value in (held or {}).items()}
        both = sorted(self.names[index] for index in fixed.keys() & values.keys())
        if both:
            raise InputError(f"{', '.join(both)}: a column is either varied or held, not both.")
        size = len(next(iter(values.values())))
        columns = {}
        for index, name in enumerate(self.names):
            if index in values:
                columns[name] = values[index]
            elif index in fixed:
                columns[name] = self._constant(index, fixed[index], size)
            else:
                columns[name] = self._typical(index, size)
        if isinstance(self.table, np.ndarray):
            return np.column_stack(list(columns.values()))
        # The constructors of pandas and polars frames both take a mapping of columns.
        return type(self.table)(columns)

    def _typical(self, index: int, size: int) -> Any:
        values = self._values(index)
        if values.dtype.kind in _NUMBERS:
            # The lower median is a value of the data, also of a column that holds codes.
            middle = np.nanpercentile(values.astype(np.float64), 50, method="lower")
            return np.full(size, middle)
        _, first, counts = np.unique(values.astype(str), return_index=True, return_counts=True)
        return self._repeat(index, int(first[counts.argmax()]), size)

    def _constant(self, index: int, value: Any, size: int) -> Any:
        values = self._values(index)
        if values.dtype.kind in _NUMBERS:
            return np.full(size, float(value))
        rows = np.flatnonzero(values.astype(str) == str(value))
        if not rows.size:
            raise InputError(
                f"{self.names[index]!r} is held at {value!r}, a value that X does not hold."
            )
        return self._repeat(index, int(rows[0]), size)

    def _repeat(self, index: int, row: int, size: int) -> Any:
        """One cell of a frame's column over and over, of the column's own type."""
        if isinstance(self.table, np.ndarray):
            return np.full(size, self.table[row, index], dtype=self.table.dtype)
        column = self.table[self.table.columns[index]]
        if hasattr(column, "iloc"):
            return column.iloc[[row] * size].reset_index(drop=True)
        return column.gather([row] * size)

    def _values(self, index: int) -> np.ndarray:
        if isinstance(self.table, np.ndarray):
            return self.table[:, index]
        return np.asarray(self.table[self.table.columns[index]])
