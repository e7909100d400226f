"""Reversible standardisation of inputs and targets, stored with the fitted estimator."""

from dataclasses import dataclass
from typing import Self

import numpy as np

__all__ = ["Standardizer"]


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
    def fit(cls, values: np.ndarray, *, common_scale: bool = False) -> Self:
        """Mean and standard deviation of every column.

        Parameters
        ----------
        values : ndarray, shape [N] or [N, D]
            Finite numbers.
        common_scale : bool
            Use one scale for all columns, which keeps distances isotropic.

        Returns
        -------
        Standardizer
            A constant column keeps scale 1.
        """
        offset, scale = values.mean(0), values.std(0)
        # The mean of a constant column is rounded, so its deviation says nothing.
        low, high = values.min(0), values.max(0)
        constant = high - low <= 4.0 * np.spacing(np.maximum(np.abs(low), np.abs(high)))
        if common_scale:
            total = float(np.sqrt(np.mean(np.where(constant, 0.0, scale) ** 2)))
            return cls(offset, np.full_like(offset, total if total > 0 else 1.0))
        return cls(offset, np.where(constant, 1.0, scale))

    @classmethod
    def identity(cls) -> Self:
        """The map that changes nothing.

        Returns
        -------
        Standardizer
            With offset 0 and scale 1.
        """
        return cls(np.float64(0.0), np.float64(1.0))  # type: ignore[arg-type]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Standardise values of shape [N] or [N, D]."""
        return (values - self.offset) / self.scale
