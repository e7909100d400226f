"""Reversible standardisation of inputs and targets, stored with the fitted estimator."""

from dataclasses import dataclass
from typing import Self

import numpy as np

__all__ = ["Standardizer", "log_unit"]


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Affine map ``(values - offset) / scale``.

    Parameters
    ----------
    offset : ndarray, shape [D] or scalar
        Subtracted.
    scale : ndarray, shape [D] or scalar
        Divided by; positive.

    Examples
    --------
    >>> import numpy as np
    >>> map = Standardizer.fit(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> map(np.array([[3.0, 5.0]]))
    array([[1., 0.]])
    """

    offset: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(
        cls,
        values: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        common_scale: bool = False,
        skip: np.ndarray | None = None,
    ) -> Self:
        """Mean and standard deviation of every column.

        Parameters
        ----------
        values : ndarray, shape [N] or [N, D]
            Finite numbers.
        weights : ndarray, shape [N], optional
            Positive row weights.
        common_scale : bool
            Use one scale for all columns, which keeps distances isotropic.
        skip : ndarray of bool, shape [D], optional
            Columns to leave as they are (codes of categories).

        Returns
        -------
        Standardizer
            A constant column keeps scale 1.
        """
        # Dividing by the largest magnitude first keeps the squares of huge values finite.
        size = np.maximum(np.abs(values).max(0), np.finfo(np.float64).tiny)
        offset = np.average(values / size, axis=0, weights=weights)
        scale = np.sqrt(np.average((values / size - offset) ** 2, axis=0, weights=weights))
        offset, scale = offset * size, scale * size
        # The mean of a constant column is rounded, so its deviation says nothing.
        low, high = values.min(0), values.max(0)
        constant = high - low <= 4.0 * np.spacing(np.maximum(np.abs(low), np.abs(high)))
        fixed = constant if skip is None else constant | skip
        if common_scale:
            spread = np.where(fixed, 0.0, scale)
            largest = float(spread.max())
            total = largest * float(np.sqrt(np.mean((spread / largest) ** 2))) if largest else 1.0
            scale = np.full_like(offset, total)
        else:
            scale = np.where(fixed, 1.0, scale)
        if skip is not None:
            offset, scale = np.where(skip, 0.0, offset), np.where(skip, 1.0, scale)
        return cls(offset, scale)

    @classmethod
    def identity(cls, num_columns: int | None = None) -> Self:
        """The map that changes nothing.

        Parameters
        ----------
        num_columns : int, optional
            D, for values of shape [N, D].

        Returns
        -------
        Standardizer
            With offset 0 and scale 1.
        """
        shape = () if num_columns is None else (num_columns,)
        return cls(np.zeros(shape), np.ones(shape))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Standardise values of shape [N] or [N, D]."""
        return (values - self.offset) / self.scale

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Bring standardised values back to the units of the data.

        Parameters
        ----------
        values : ndarray, shape [..., N] or [..., N, D]
            Standardised.

        Returns
        -------
        ndarray, of the same shape
            ``values * scale + offset``.
        """
        return values * self.scale + self.offset


def log_unit(y_map: Standardizer, censored: np.ndarray | None) -> float | np.ndarray:
    """What changes a log density of standardised targets into one over the units of y.

    Parameters
    ----------
    y_map : Standardizer
        Of the targets.
    censored : ndarray, shape [N], or None
        Not 0 where y is a bound, whose probability has no unit.

    Returns
    -------
    float or ndarray, shape [N]
        To be subtracted.
    """
    log_scale = float(np.log(y_map.scale))
    return log_scale if censored is None else np.where(censored == 0, log_scale, 0.0)
