"""Stamps as users give them: dates of pandas, NumPy and Python, or plain numbers.

pandas is looked for in what is given and never needed.
"""

import datetime
import sys
import warnings
from typing import Any

import numpy as np

from gpvi._warnings import warn
from gpvi.exceptions import DataWarning, InputError

__all__ = ["announce_merged", "index_frequency", "series_rows", "stamp_values"]


def stamp_values(stamps: Any, owner: str) -> tuple[np.ndarray, str | None, bool]:
    """Stamps as an array.

    Parameters
    ----------
    stamps : array-like, shape [N] or [N, 1]
        Dates or numbers.
    owner : str
        Class name, for messages.

    Returns
    -------
    values : ndarray of datetime64 or numbers, shape [N]
        In the resolution in which they came; in UTC if there is a time zone.
    zone : str or None
        Time zone of dates.
    pandas : bool
        Whether dates were pandas'.

    Raises
    ------
    InputError
        For another shape, and what is neither dates nor numbers.
    """
    dates = _dates_of_pandas(stamps)
    if dates is not None:
        zone = None if dates.tz is None else str(dates.tz)
        plain = dates if dates.tz is None else dates.tz_convert("UTC").tz_localize(None)
        return plain.to_numpy(), zone, True
    values = np.asarray(stamps)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InputError(
            f"{owner} got stamps of shape {values.shape}; pass one time per row, shape [N] or [N, 1]."
        )
    if values.dtype.kind == "O":
        values = _dates_of_python(values, owner)
    if values.dtype.kind not in "Miuf":
        advice = {
            "U": "convert text with np.array(stamps, dtype='datetime64[s]') or pandas.to_datetime",
            "m": "divide durations by one unit, stamps / np.timedelta64(1, 'D')",
        }
        raise InputError(
            f"{owner} got stamps of type {values.dtype}, which are neither dates nor numbers; "
            f"{advice.get(values.dtype.kind, 'pass dates or numbers')}."
        )
    return values, None, False


def announce_merged(values: np.ndarray, numbers: np.ndarray, owner: str) -> None:
    """Warn of stamps that differ and whose numbers do not.

    Parameters
    ----------
    values : ndarray of datetime64 or numbers, shape [N]
        From :func:`stamp_values`, none missing.
    numbers : ndarray of float64, shape [N]
        What became of them.
    owner : str
        Class name, for messages.
    """
    if values.dtype.kind == "f" and values.dtype.itemsize <= numbers.itemsize:
        return
    order = np.argsort(values, kind="stable")
    values, numbers = values[order], numbers[order]
    merged = (values[1:] != values[:-1]) & (numbers[1:] == numbers[:-1])
    if not merged.any():
        return
    first = int(np.flatnonzero(merged)[0])
    if values.dtype.kind == "M":
        why = "dates count in microseconds"
        advice = "(t - t[0]) / np.timedelta64(1, 'ns')"
    else:
        why = "they have more digits than float64"
        advice = "t - t[0]"
    warn(
        f"{int(merged.sum())} of {len(values)} stamps that {owner} got differ by too little from the one "
        f"before, such as {values[first]} and {values[first + 1]}, and are taken as equal: {why}. Pass the "
        f"time since the first, {advice}, to keep them apart.",
        DataWarning,
    )


def index_frequency(stamps: Any) -> str | None:
    """Calendar frequency of a regular pandas index, which a constant spacing would leave.

    Parameters
    ----------
    stamps : array-like, shape [N] or [N, 1]
        Dates or numbers.

    Returns
    -------
    str or None
        Of the stamps in order of time, such as "MS" for months; None if there is none.
    """
    dates = _dates_of_pandas(stamps)
    pandas = sys.modules.get("pandas")
    if dates is None or pandas is None:
        return None
    # The frequency of a descending index leads into the past, and offsets of several parts have no
    # name to restore them from.
    if dates.freq is not None and dates.freq.n > 0 and _is_name(pandas, dates.freqstr):
        return str(dates.freqstr)
    distinct = dates.dropna().unique().sort_values()
    if len(distinct) < 3:
        return None
    with warnings.catch_warnings():
        # It is about to return objects instead of text.
        warnings.simplefilter("ignore")
        found = pandas.infer_freq(distinct)
    return None if found is None else str(getattr(found, "freqstr", found))


def series_rows(t: Any, y: Any, owner: str) -> tuple[Any, Any]:
    """Stamps and targets, from a series that brings both.

    Parameters
    ----------
    t : array-like, shape [N], or a pandas Series
        Stamps, or targets whose index they are.
    y : array-like, shape [N], or None
        Targets.
    owner : str
        Class name, for messages.

    Returns
    -------
    t, y : array-like, shape [N]
        Both.

    Raises
    ------
    InputError
        For stamps without targets.
    """
    if y is not None:
        return t, y
    if not (hasattr(t, "index") and hasattr(t, "to_numpy")):
        raise InputError(
            f"{owner} got no y; pass stamps and targets, or a pandas Series whose index are the stamps."
        )
    values = t.to_numpy()
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return t.index, values


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
    # Dates of Python have microseconds; those of pandas among them may have more.
    if any(getattr(value, "nanosecond", 0) > 0 for value in values):
        plain = [getattr(value, "to_datetime64", lambda value=value: value)() for value in values]
        return np.array(plain, dtype="datetime64[ns]")
    return values.astype("datetime64[us]")


def _is_name(pandas: Any, frequency: str) -> bool:
    try:
        pandas.tseries.frequencies.to_offset(frequency)
    except ValueError:
        return False
    return True
