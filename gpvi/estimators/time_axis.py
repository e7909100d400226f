"""Time as numbers, and back again: dates or plain numbers, and the stamps that follow the last one.

Dates become the time since the first of them, in a unit that the user names; a difference of whole
microseconds, so that equal stamps stay equal.
"""

import datetime
import math
import sys
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator

from gpvi._warnings import warn
from gpvi.estimators.inputs import InputColumns
from gpvi.estimators.stamps import announce_merged, index_frequency, stamp_values
from gpvi.exceptions import ExtrapolationWarning, InputError

__all__ = ["TimeAxis", "TimeColumns"]

_SECOND = 1_000_000

# In microseconds; a year has 365.25 days.
_UNITS = {
    "us": 1,
    "ms": 1_000,
    "s": _SECOND,
    "min": 60 * _SECOND,
    "h": 3_600 * _SECOND,
    "D": 86_400 * _SECOND,
    "W": 7 * 86_400 * _SECOND,
    "Y": 31_557_600 * _SECOND,
}

# A forecast of more steps is a mistake in the units of its horizon.
_MOST_STEPS = 10_000_000

# Predictions beyond the range of the fit by more than this multiple of its length are far away.
_FAR = 1.0


@dataclass(frozen=True)
class TimeAxis:
    """How stamps of one series become numbers.

    Parameters
    ----------
    unit : str
        Such as "D" for dates; empty for numbers.
    origin : int
        The first date in microseconds since 1970; 0 for numbers.
    zone : str or None
        Time zone of the dates.
    pandas : bool
        Whether the dates were pandas'.
    frequency : str or None
        Of a regular pandas index, such as "MS" for months.
    spacing : float
        Median distance of neighbouring stamps, in the unit; NaN if all are the same.
    """

    unit: str
    origin: int
    zone: str | None
    pandas: bool
    frequency: str | None
    spacing: float

    @classmethod
    def learn(cls, stamps: Any, time_unit: Any, owner: str) -> tuple[Self, np.ndarray]:
        """Look at the stamps of a fit.

        Parameters
        ----------
        stamps : array-like, shape [N] or [N, 1]
            Dates or numbers.
        time_unit : str
            "auto", or "us", "ms", "s", "min", "h", "D", "W" or "Y" for dates.
        owner : str
            Class name, for messages.

        Returns
        -------
        axis : TimeAxis
            What was learned.
        numbers : ndarray, shape [N]
            The stamps in the unit.

        Raises
        ------
        InputError
            For stamps or a unit that cannot be used.
        """
        if time_unit != "auto" and time_unit not in _UNITS:
            known = ", ".join(repr(name) for name in _UNITS)
            raise InputError(f"time_unit is {time_unit!r}; pass 'auto' or one of {known}.")
        values, zone, pandas = stamp_values(stamps, owner)
        if values.dtype.kind == "M":
            unit = "D" if time_unit == "auto" else time_unit
            origin = int(_microseconds(values).min()) if len(values) else 0
        elif time_unit == "auto":
            unit, origin = "", 0
        else:
            raise InputError(
                f"time_unit is {time_unit!r} and the stamps are numbers, which have a unit already; leave "
                "time_unit out, or pass dates."
            )
        axis = cls(unit, origin, zone, pandas, index_frequency(stamps), math.nan)
        numbers = axis.numbers(stamps, owner)
        gaps = np.diff(np.unique(numbers))
        spacing = float(np.median(gaps)) if len(gaps) else math.nan
        return cls(unit, origin, zone, pandas, axis.frequency, spacing), numbers

    @property
    def is_dates(self) -> bool:
        """Whether stamps are dates."""
        return bool(self.unit)

    def numbers(self, stamps: Any, owner: str) -> np.ndarray:
        """Stamps in the unit.

        Parameters
        ----------
        stamps : array-like, shape [N] or [N, 1]
            Of the kind of the fit.
        owner : str
            Class name, for messages.

        Returns
        -------
        ndarray of float64, shape [N]
            Finite.

        Raises
        ------
        InputError
            For stamps of another kind, another shape, and missing ones.
        """
        values, zone, _ = stamp_values(stamps, owner)
        if not len(values):
            raise InputError(f"{owner} got no stamps; pass at least one.")
        if (values.dtype.kind == "M") != self.is_dates:
            kinds = ("dates", "numbers") if self.is_dates else ("numbers", "dates")
            raise InputError(
                f"{owner} was fitted to {kinds[0]} and got {kinds[1]}; pass {kinds[0]}."
            )
        if self.is_dates and (zone is None) != (self.zone is None):
            raise InputError(
                f"{owner} was fitted to dates with time zone {self.zone} and got dates with time zone "
                f"{zone}; use tz_localize or tz_convert."
            )
        missing = np.isnat(values) if self.is_dates else ~np.isfinite(values)
        if missing.any():
            what = "NaT" if self.is_dates else "NaN or infinite"
            raise InputError(
                f"{owner} got {int(missing.sum())} stamp(s) that are {what}, the first in row "
                f"{int(np.flatnonzero(missing)[0])}; drop these rows."
            )
        if self.is_dates:
            numbers = (_microseconds(values) - self.origin) / _UNITS[self.unit]
        else:
            numbers = values.astype(np.float64)
        announce_merged(values, numbers, owner)
        return numbers

    def stamps(self, numbers: np.ndarray) -> Any:
        """Numbers as stamps of the kind of the fit.

        Parameters
        ----------
        numbers : ndarray, shape [N]
            In the unit.

        Returns
        -------
        ndarray or pandas.DatetimeIndex, shape [N]
            Dates of NumPy to the microsecond (UTC if there is a time zone), or those of pandas.
        """
        if not self.is_dates:
            return numbers
        whole = np.rint(numbers * _UNITS[self.unit]).astype(np.int64) + self.origin
        dates = whole.astype("datetime64[us]")
        pandas = sys.modules.get("pandas")
        if not self.pandas or pandas is None:
            return dates
        index = pandas.DatetimeIndex(dates)
        return index if self.zone is None else index.tz_localize("UTC").tz_convert(self.zone)

    def ahead(self, last: float, horizon: Any, owner: str) -> np.ndarray:
        """Numbers of the stamps that follow the last one.

        Parameters
        ----------
        last : float
            The last stamp, in the unit.
        horizon : int, length of time, or stamps
            How many steps of the median spacing (of the frequency, for a regular pandas index), how
            long, or when.
        owner : str
            Class name, for messages.

        Returns
        -------
        ndarray, shape [H]
            In the unit, after the last stamp.

        Raises
        ------
        InputError
            For a horizon that holds no step or too many, steps of a single stamp, and stamps that are not
            after the last one.
        """
        if isinstance(horizon, np.ndarray) and not horizon.ndim:
            horizon = horizon[()]
        length = _length(horizon, self)
        if length is None and hasattr(horizon, "__len__") and not isinstance(horizon, str | bytes):
            return self._later(last, horizon, owner)
        if math.isnan(self.spacing):
            raise InputError(
                f"{owner} was fitted to one stamp only, which has no spacing; pass the times to forecast."
            )
        if length is None and (
            isinstance(horizon, bool) or not isinstance(horizon, int | np.integer)
        ):
            raise self._refusal(last, horizon)
        steps = int(horizon) if length is None else length / self.spacing
        # Written so that NaN is refused.
        if not 0 < steps <= _MOST_STEPS:
            raise self._refusal(last, horizon)
        coming = self._following(last, steps, length)
        if not len(coming):
            raise self._refusal(last, horizon)
        return coming

    def _later(self, last: float, stamps: Any, owner: str) -> np.ndarray:
        """Numbers of explicit stamps, all of which have to come after the last one."""
        numbers = self.numbers(stamps, owner)
        past = numbers <= last
        if past.any():
            raise InputError(
                f"{owner} got {int(past.sum())} stamp(s) to forecast, such as "
                f"{self.show(float(numbers[past][0]))}, that are not after the last one, "
                f"{self.show(last)}; pass later ones, or call predict."
            )
        return numbers

    def _following(self, last: float, steps: float, length: float | None) -> np.ndarray:
        """Numbers of the next stamps: so many steps, or all within a length."""
        try:
            if self.frequency is not None and "pandas" in sys.modules:
                return self._on_calendar(last, steps, length)
            coming = last + self.spacing * np.arange(1, math.floor(steps + 1e-9) + 1)
            if self.is_dates and len(coming):
                latest = round(coming[-1] * _UNITS[self.unit]) + self.origin
                if latest > np.iinfo(np.int64).max:
                    raise OverflowError("dates end there")
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"The stamps of {steps:g} steps after {self.show(last)} cannot be computed: {error}. Pass a "
                "shorter horizon, or the stamps themselves."
            ) from error
        return coming

    def _on_calendar(self, last: float, steps: float, length: float | None) -> np.ndarray:
        """The same at a frequency of pandas, whose steps may differ in length."""
        date_range = sys.modules["pandas"].date_range
        start = self.stamps(np.array([last]))[0]
        if length is None:
            dates = date_range(start, periods=int(steps) + 1, freq=self.frequency)
            dates = dates[dates > start][: int(steps)]
        else:
            end = start + np.timedelta64(round(length * _UNITS[self.unit]), "us")
            dates = date_range(start, end, freq=self.frequency)
            dates = dates[dates > start]
        return (_microseconds(stamp_values(dates, "")[0]) - self.origin) / _UNITS[self.unit]

    def _refusal(self, last: float, horizon: Any) -> InputError:
        shortest = self._following(last, 1, None)[0] - last
        unit = self.unit or "in the units of the stamps"
        length = "a float or a timedelta" if self.is_dates else "a float"
        return InputError(
            f"horizon is {horizon!r}; pass at least one step and at most {_MOST_STEPS:_} (an integer), a "
            f"length of time of at least {shortest:.6g} {unit} ({length}), or a list or an array of stamps "
            f"after the last one, {self.show(last)}."
        )

    def show(self, number: float) -> str:
        """One stamp for a message.

        Parameters
        ----------
        number : float
            In the unit.

        Returns
        -------
        str
            A date or a number.
        """
        return str(self.stamps(np.array([number]))[0]) if self.is_dates else f"{number:.10g}"


@dataclass(frozen=True, eq=False)
class TimeColumns(InputColumns):
    """The one column of a time series.

    Parameters
    ----------
    names, levels, low, high : object
        See :class:`InputColumns`.
    axis : TimeAxis
        How stamps become numbers.
    """

    axis: TimeAxis

    def label(self, column: int) -> str:
        """Name of the column for messages and tables.

        Parameters
        ----------
        column : int
            Always 0.

        Returns
        -------
        str
            With the unit.
        """
        return f"time [{self.axis.unit}]" if self.axis.unit else "time"

    def within(self, X: np.ndarray) -> "TimeColumns":
        """The same: what was not observed belongs to the series, too.

        Parameters
        ----------
        X : ndarray, shape [N, 1]
            Encoded rows.

        Returns
        -------
        TimeColumns
            With the range of all stamps.
        """
        return self

    def encode(self, estimator: BaseEstimator, X: Any) -> np.ndarray:
        """Numbers for stamps.

        Parameters
        ----------
        estimator : BaseEstimator
            Names itself in messages.
        X : array-like, shape [N] or [N, 1]
            Stamps.

        Returns
        -------
        ndarray of float64, shape [N, 1]
            In the unit.
        """
        return self.axis.numbers(X, type(estimator).__name__)[:, None]

    def warn_if_far(self, X: np.ndarray) -> None:
        """Warn where stamps lie further from those of the fit than they span.

        Parameters
        ----------
        X : ndarray, shape [N, 1]
            From :meth:`encode`.
        """
        low, high = float(self.low[0]), float(self.high[0])
        slack = _FAR * (high - low)
        far = (X < low - slack) | (X > high + slack)
        if slack > 0 and far.any():
            first = float(X[far].ravel()[0])
            warn(
                f"{int(far.sum())} of {len(X)} stamps, such as {self.axis.show(first)}, lie further from the "
                f"series ({self.axis.show(low)} to {self.axis.show(high)}) than it is long; predictions "
                "there rest on the prior.",
                ExtrapolationWarning,
            )


def _microseconds(dates: np.ndarray) -> np.ndarray:
    """Since 1970."""
    return dates.astype("datetime64[us]").astype(np.int64)


def _length(horizon: Any, axis: TimeAxis) -> float | None:
    """A length of time in the unit; None for what is none."""
    if isinstance(horizon, float | np.floating):
        return float(horizon)
    if not isinstance(
        horizon, datetime.timedelta | np.timedelta64
    ):  # pandas' Timedelta is the first
        return None
    if not axis.is_dates:
        raise InputError(
            f"horizon is {horizon!r} and the stamps are numbers; pass steps, a number or stamps."
        )
    if isinstance(horizon, datetime.timedelta):
        return horizon / datetime.timedelta(microseconds=1) / _UNITS[axis.unit]
    try:
        return float(horizon / np.timedelta64(1, "us")) / _UNITS[axis.unit]
    except TypeError as error:
        raise InputError(
            f"horizon is {horizon!r}, and months and years have no fixed length; pass steps, days or stamps."
        ) from error
