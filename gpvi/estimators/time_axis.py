"""Time as numbers: dates of pandas, NumPy and Python, or plain numbers, and back again.

Dates become the time since the first of them, in a unit that the user names; a difference of whole
microseconds, so that equal stamps stay equal. pandas is looked for in what is given and never needed.
"""

import datetime
import math
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator

from gpvi._warnings import warn
from gpvi.estimators.inputs import InputColumns
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
        values, zone, pandas = _values(stamps, owner)
        if values.dtype.kind == "M":
            unit = "D" if time_unit == "auto" else time_unit
            origin = int(values.astype(np.int64).min()) if len(values) else 0
        elif time_unit == "auto":
            unit, origin = "", 0
        else:
            raise InputError(
                f"time_unit is {time_unit!r} and the stamps are numbers, which have a unit already; leave "
                "time_unit out, or pass dates."
            )
        axis = cls(unit, origin, zone, pandas, _frequency(stamps), math.nan)
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
        values, zone, _ = _values(stamps, owner)
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
        if not self.is_dates:
            return values.astype(np.float64)
        return (values.astype(np.int64) - self.origin) / _UNITS[self.unit]

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
            In the unit.

        Raises
        ------
        InputError
            For a horizon that holds no step, and steps of a single stamp.
        """
        length = _length(horizon, self)
        if length is None and not isinstance(horizon, int | np.integer):
            return self.numbers(horizon, owner)
        if math.isnan(self.spacing):
            raise InputError(
                f"{owner} was fitted to one stamp only, which has no spacing; pass the times to forecast."
            )
        if length is None:
            steps = int(horizon)
        else:
            steps = math.floor(length / self.spacing + 1e-9) if length < math.inf else 0
        if steps < 1 or isinstance(horizon, bool):
            raise InputError(
                f"horizon is {horizon!r}; pass at least one step (an integer), or a length of time of at "
                f"least {self.spacing:.6g} {self.unit or 'in the units of the stamps'}."
            )
        pandas = sys.modules.get("pandas")
        if self.frequency is not None and pandas is not None:
            index = pandas.DatetimeIndex(self.stamps(np.array([last])))
            coming = pandas.date_range(index[0], periods=steps + 1, freq=self.frequency)
            coming = coming[coming > index[0]][:steps]
            numbers = self.numbers(coming, owner)
            return numbers if length is None else numbers[numbers <= last + length * (1 + 1e-12)]
        return last + self.spacing * np.arange(1, steps + 1)

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


def _values(stamps: Any, owner: str) -> tuple[np.ndarray, str | None, bool]:
    """Stamps as datetime64[us] or float64, shape [N], their time zone, and whether they are pandas'."""
    dates = _dates_of_pandas(stamps)
    if dates is not None:
        zone = None if dates.tz is None else str(dates.tz)
        plain = dates if dates.tz is None else dates.tz_convert("UTC").tz_localize(None)
        return plain.to_numpy().astype("datetime64[us]"), zone, True
    values = np.asarray(stamps)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InputError(
            f"{owner} got stamps of shape {values.shape}; pass one time per row, shape [N] or [N, 1]."
        )
    if values.dtype.kind == "O":
        values = _dates_of_python(values, owner)
    if values.dtype.kind == "M":
        return values.astype("datetime64[us]"), None, False
    if values.dtype.kind not in "iuf":
        advice = {
            "U": "convert text with np.array(stamps, dtype='datetime64[s]') or pandas.to_datetime",
            "m": "divide durations by one unit, stamps / np.timedelta64(1, 'D')",
        }
        raise InputError(
            f"{owner} got stamps of type {values.dtype}, which are neither dates nor numbers; "
            f"{advice.get(values.dtype.kind, 'pass dates or numbers')}."
        )
    return values.astype(np.float64), None, False


def _dates_of_pandas(stamps: Any) -> Any:
    """A DatetimeIndex, for dates or periods of pandas."""
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return None
    if isinstance(stamps, pandas.DataFrame) and stamps.shape[1] == 1:
        stamps = stamps.iloc[:, 0]
    if not isinstance(stamps, pandas.Series | pandas.Index | pandas.api.extensions.ExtensionArray):
        return None
    if isinstance(stamps.dtype, pandas.PeriodDtype):
        return pandas.PeriodIndex(stamps).to_timestamp()
    return pandas.DatetimeIndex(stamps) if stamps.dtype.kind == "M" else None


def _dates_of_python(values: np.ndarray, owner: str) -> np.ndarray:
    for value in values:
        if not isinstance(value, datetime.date) and value is not None:
            kind = type(value).__name__
            raise InputError(
                f"{owner} got the stamp {value!r} of type {kind}; pass dates or numbers."
            )
        if getattr(value, "tzinfo", None) is not None:
            raise InputError(
                f"{owner} got a list of dates with time zones; pass a pandas.DatetimeIndex of them."
            )
    return values.astype("datetime64[us]")


def _frequency(stamps: Any) -> str | None:
    """Calendar frequency of a regular pandas index, which a constant spacing would leave."""
    dates = _dates_of_pandas(stamps)
    pandas = sys.modules.get("pandas")
    if dates is None or pandas is None:
        return None
    if dates.freq is not None:
        return str(dates.freqstr)
    distinct = dates.dropna().unique().sort_values()
    if len(distinct) < 3:
        return None
    with warnings.catch_warnings():
        # It is about to return objects instead of text.
        warnings.simplefilter("ignore")
        found = pandas.infer_freq(distinct)
    return None if found is None else str(getattr(found, "freqstr", found))


def _length(horizon: Any, axis: TimeAxis) -> float | None:
    """A length of time in the unit; None for what is none."""
    if isinstance(horizon, datetime.timedelta):  # pandas' Timedelta is one
        horizon = np.timedelta64(horizon)
    if isinstance(horizon, np.timedelta64):
        if not axis.is_dates:
            raise InputError(
                f"horizon is {horizon!r} and the stamps are numbers; pass steps, a number or stamps."
            )
        return float(horizon / np.timedelta64(1, "us")) / _UNITS[axis.unit]
    return float(horizon) if isinstance(horizon, float | np.floating) else None
