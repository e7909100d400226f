"""Dates and numbers to numbers and back."""

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpvi.estimators.time_axis import TimeAxis
from gpvi.exceptions import DataWarning, InputError

DATES = pd.date_range("2001-03-01", periods=6, freq="D")


def learn(stamps: Any, unit: str = "auto") -> tuple[TimeAxis, np.ndarray]:
    return TimeAxis.learn(stamps, unit, "Model")


class TestKinds:
    @pytest.mark.parametrize(
        "stamps",
        [
            DATES,
            pd.Series(DATES),
            pd.DataFrame({"t": DATES}),
            DATES.to_period("D"),
            pd.Series(DATES.to_period("D")),
            DATES.to_numpy(),
            DATES.to_numpy()[:, None],
            DATES.to_numpy().astype("datetime64[D]"),
            list(DATES),
            [date.to_pydatetime() for date in DATES],
            [date.date() for date in DATES],
            DATES.tz_localize("Asia/Tokyo"),
            pd.Series(DATES.tz_localize("Asia/Tokyo")),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_dates_become_days_since_the_first(self, stamps: Any) -> None:
        axis, numbers = learn(stamps)
        np.testing.assert_array_equal(numbers, np.arange(6.0))
        assert axis.unit == "D" and axis.spacing == 1.0
        np.testing.assert_array_equal(axis.numbers(stamps, "Model"), numbers)

    @pytest.mark.parametrize(
        "stamps",
        [[3.0, 1.0, 2.5], [[3.0], [1.0], [2.5]], np.float32([3, 1, 2.5]), pd.Index([3.0, 1, 2.5])],
    )
    def test_numbers_stay(self, stamps: Any) -> None:
        axis, numbers = learn(stamps)
        np.testing.assert_array_equal(numbers, [3.0, 1.0, 2.5])
        assert not axis.is_dates and axis.spacing == 1.0
        np.testing.assert_array_equal(axis.stamps(numbers), numbers)

    @pytest.mark.parametrize(("unit", "length"), [("h", 24.0), ("s", 86_400.0), ("W", 1 / 7)])
    def test_units(self, unit: str, length: float) -> None:
        axis, numbers = learn(DATES, unit)
        np.testing.assert_allclose(np.diff(numbers), length)
        assert axis.spacing == pytest.approx(length)

    def test_a_year_has_365_and_a_quarter_days(self) -> None:
        _, numbers = learn(pd.to_datetime(["2001-01-01", "2005-01-01"]), "Y")
        assert numbers[1] == 4.0

    def test_long_ago_and_far_away(self) -> None:
        stamps = np.array(["0001-01-01", "9999-12-31"], dtype="datetime64[D]")
        axis, numbers = learn(stamps)
        np.testing.assert_array_equal(axis.stamps(numbers).astype("datetime64[D]"), stamps)


class TestBack:
    @pytest.mark.parametrize("unit", ["us", "ms", "s", "min", "h", "D", "W", "Y"])
    def test_round_trip_to_the_microsecond(self, unit: str) -> None:
        generator = np.random.default_rng(0)
        stamps = np.datetime64("1990-05-05T03:04:05.123456") + np.sort(
            generator.integers(0, 10**15, 50)
        ).astype("timedelta64[us]")
        axis, numbers = learn(stamps, unit)
        gap = (axis.stamps(numbers) - stamps) / np.timedelta64(1, "us")
        assert np.abs(gap).max() <= 1

    def test_pandas_in_pandas_out(self) -> None:
        axis, numbers = learn(DATES)
        assert axis.stamps(numbers).equals(DATES.as_unit("us"))

    def test_time_zones(self) -> None:
        local = pd.date_range("2001-03-24", periods=4, freq="D", tz="Europe/Berlin")
        axis, numbers = learn(local)
        # The clocks go forward on the 25th.
        np.testing.assert_allclose(np.diff(numbers), [1, 23 / 24, 1])
        assert (axis.stamps(numbers) == local).all()


class TestAhead:
    def test_steps_and_lengths(self) -> None:
        axis, _ = learn(DATES.to_numpy())
        for horizon in (3, np.int64(3), 3.5, np.timedelta64(84, "h"), datetime.timedelta(days=3)):
            np.testing.assert_allclose(axis.ahead(5.0, horizon, "Model"), [6, 7, 8])

    def test_median_spacing_of_irregular_numbers(self) -> None:
        axis, _ = learn([0.0, 2.0, 2.0, 4.0, 6.0, 16.0])
        np.testing.assert_allclose(axis.ahead(16.0, 2, "Model"), [18, 20])

    @pytest.mark.parametrize("freq", ["MS", "ME", "QS", "YS", "B"])
    def test_calendar_frequencies(self, freq: str) -> None:
        index = pd.date_range("2001-01-31", periods=14, freq=freq)
        axis, numbers = learn(pd.DatetimeIndex(index[:10].tolist()))
        found = axis.stamps(axis.ahead(numbers[-1], 4, "Model"))
        assert (found == index[10:]).all()

    def test_a_length_of_months(self) -> None:
        index = pd.date_range("2001-01-01", periods=12, freq="MS")
        axis, numbers = learn(index)
        found = axis.stamps(axis.ahead(numbers[-1], pd.Timedelta(days=62), "Model"))
        assert [str(date.date()) for date in found] == ["2002-01-01", "2002-02-01"]

    @pytest.mark.parametrize("freq", ["MS", "ME", "QS", "B", "D", "2W"])
    def test_descending_indices(self, freq: str) -> None:
        index = pd.date_range("2001-01-31", periods=14, freq=freq)
        axis, numbers = learn(index[:10][::-1])
        assert axis.frequency is not None and not axis.frequency.startswith("-")
        found = axis.stamps(axis.ahead(numbers.max(), 4, "Model"))
        assert (found == index[10:]).all()

    def test_two_descending_stamps(self) -> None:
        axis, numbers = learn(pd.date_range("2001-01-01", periods=2, freq="MS")[::-1])
        np.testing.assert_allclose(axis.ahead(numbers.max(), 2, "Model"), [62, 93])

    def test_frequencies_without_a_name(self) -> None:
        index = pd.date_range("2001-01-01", periods=6, freq=pd.DateOffset(months=1))
        axis, numbers = learn(index[:4])
        found = axis.stamps(axis.ahead(numbers[-1], 2, "Model"))
        assert (found == index[4:]).all()

    @pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
    def test_lengths_reach_all_stamps_within(self, zone: str | None) -> None:
        axis, numbers = learn(pd.date_range("2001-01-01", "2022-02-01", freq="MS", tz=zone))
        last = numbers[-1]
        found = axis.stamps(axis.ahead(last, pd.Timedelta("365D"), "Model"))
        assert len(found) == 12 and str(found[-1].date()) == "2023-02-01"
        found = axis.stamps(axis.ahead(last, pd.Timedelta("28D"), "Model"))
        assert [str(date.date()) for date in found] == ["2022-03-01"]
        for short in (27.9, datetime.timedelta(days=27), pd.Timedelta("27D")):
            with pytest.raises(InputError, match=r"a length of time of at least 28 D"):
                axis.ahead(last, short, "Model")

    @pytest.mark.parametrize("freq", ["MS", "QS", "B", "D", "W", "h"])
    @pytest.mark.parametrize("unit", ["s", "D", "Y"])
    def test_lengths_and_steps_agree(self, freq: str, unit: str) -> None:
        axis, numbers = learn(pd.date_range("2001-01-01", periods=30, freq=freq), unit)
        last = numbers[-1]
        steps = axis.ahead(last, 40, "Model")
        for length in (
            steps[-1] - last,
            pd.Timedelta(np.ptp(axis.stamps(np.array([last, steps[-1]])))),
        ):
            np.testing.assert_array_equal(axis.ahead(last, length, "Model"), steps)

    def test_explicit_stamps(self) -> None:
        axis, _ = learn(DATES)
        np.testing.assert_allclose(axis.ahead(5.0, DATES[-1:] + pd.Timedelta(days=2), "Model"), [7])

    @pytest.mark.parametrize("horizon", [0, -2, True, 0.5, np.inf, np.nan, np.timedelta64(1, "h")])
    def test_no_step(self, horizon: Any) -> None:
        axis, _ = learn(DATES)
        with pytest.raises(InputError, match="at least one step"):
            axis.ahead(5.0, horizon, "Model")

    @pytest.mark.parametrize("stamps", [[5.0], [6.0, 5.0], [4.0]])
    def test_explicit_stamps_up_to_the_last(self, stamps: list[float]) -> None:
        axis, _ = learn(np.arange(6.0))
        with pytest.raises(InputError, match=r"1 stamp.s. to forecast.*not after the last one, 5;"):
            axis.ahead(5.0, stamps, "Model")
        dates, numbers = learn(DATES)
        with pytest.raises(InputError, match=r"such as 2001-03-06.*call predict"):
            dates.ahead(numbers[-1], DATES[-1:], "Model")

    @pytest.mark.parametrize(
        "horizon",
        [
            None, "3", b"3", pd.NaT, pd.Timestamp("2002-01-01"), datetime.date(2002, 1, 1), np.True_, 1j,
            np.datetime64("2002-01-01"), np.timedelta64("NaT"), np.array("3"), -np.inf, -1e300, 1e300,
            10**9, 10**400, -(10**400), datetime.timedelta.max, datetime.timedelta.min, pd.Timedelta.max,
        ],
        ids=repr,
    )  # fmt: skip
    @pytest.mark.parametrize("stamps", [DATES, DATES.to_numpy(), DATES.tz_localize("Asia/Tokyo")])
    def test_what_no_horizon_is(self, stamps: Any, horizon: Any) -> None:
        axis, _ = learn(stamps, "us")
        if isinstance(horizon, pd.Timedelta):
            # Three centuries of days are allowed.
            assert len(axis.ahead(5.0, horizon, "Model")) == horizon.days
            return
        with pytest.raises(InputError, match=r"one step.*integer.*length of time.*stamps after"):
            axis.ahead(5.0, horizon, "Model")

    @pytest.mark.parametrize("horizon", [None, "3", 1e300, -np.inf, 10**9, 10**400])
    def test_what_no_horizon_is_after_numbers(self, horizon: Any) -> None:
        axis, _ = learn([0.0, 1.0])
        with pytest.raises(InputError, match=r"at least 1 in the units of the stamps \(a float\)"):
            axis.ahead(1.0, horizon, "Model")

    @pytest.mark.parametrize("freq", ["10YS", "365D", None])
    def test_the_end_of_dates(self, freq: str | None) -> None:
        stamps = pd.date_range("2001-01-01", periods=5, freq=freq or "365D")
        axis, numbers = learn(stamps if freq else stamps.to_numpy())
        with pytest.raises(InputError, match=r"of 1e\+06 steps.*cannot be computed.*shorter"):
            axis.ahead(numbers[-1], 10**6, "Model")

    def test_arrays_of_one_number(self) -> None:
        axis, _ = learn(DATES)
        np.testing.assert_array_equal(axis.ahead(5.0, np.array(2), "Model"), [6, 7])

    def test_lengths_that_are_none(self) -> None:
        axis, _ = learn(DATES)
        with pytest.raises(InputError, match="months and years have no fixed length"):
            axis.ahead(5.0, np.timedelta64(3, "M"), "Model")

    def test_a_duration_after_numbers(self) -> None:
        axis, _ = learn([0.0, 1.0])
        with pytest.raises(InputError, match="stamps are numbers"):
            axis.ahead(1.0, np.timedelta64(1, "D"), "Model")


class TestMerged:
    NANOSECONDS = np.datetime64("2020-01-01T00:00:00", "ns") + np.array([0, 3000, 300, 5000])

    @pytest.mark.parametrize(
        "convert",
        [lambda t: t, pd.DatetimeIndex, pd.Series, lambda t: [pd.Timestamp(x) for x in t],
         lambda t: pd.DatetimeIndex(t).tz_localize("Asia/Tokyo"), lambda t: t.astype("datetime64[ps]")],
    )  # fmt: skip
    def test_nanoseconds(self, convert: Any) -> None:
        with pytest.warns(
            DataWarning, match=r"1 of 4 stamps that Model.*count in microseconds.*'ns'"
        ):
            _, numbers = learn(convert(self.NANOSECONDS), "us")
        np.testing.assert_array_equal(numbers, [0, 3, 0, 5])

    def test_the_advice_keeps_them_apart(self) -> None:
        t = self.NANOSECONDS
        _, numbers = learn((t - t[0]) / np.timedelta64(1, "ns"))
        np.testing.assert_array_equal(numbers, [0, 3000, 300, 5000])
        learn(t.astype(np.int64) - t.astype(np.int64)[0])

    def test_nanoseconds_apart(self) -> None:
        learn(self.NANOSECONDS[[0, 1, 3, 0, 1]])
        learn(pd.DatetimeIndex(self.NANOSECONDS[[0, 1, 3, 0, 1]]))

    @pytest.mark.parametrize("dtype", [np.int64, np.uint64])
    def test_integers_with_more_digits_than_floats(self, dtype: type) -> None:
        t = self.NANOSECONDS.astype(np.int64).astype(dtype)
        learn(t)
        learn(t[[0, 0, 1]])
        t[2] = t[0] + dtype(1)
        with pytest.warns(DataWarning, match=r"1 of 4.*more digits than float64.*t - t\[0\]"):
            learn(t)

    def test_dates_that_a_year_does_not_resolve(self) -> None:
        stamps = np.array(["0001-01-01", "9999-01-01"], dtype="datetime64[us]").repeat(2)
        learn(stamps)
        stamps[-1] += 1
        with pytest.warns(DataWarning, match="taken as equal"):
            learn(stamps, "Y")

    def test_later_stamps(self) -> None:
        axis, _ = learn(DATES)
        with pytest.warns(DataWarning, match="1 of 4 stamps"):
            axis.ahead(5.0, pd.DatetimeIndex(self.NANOSECONDS), "Model")


class TestRefusals:
    @pytest.mark.parametrize(
        ("stamps", "message"),
        [
            (["2001-01-01"], "convert text with np.array"),
            ([True, False], "neither dates nor numbers"),
            ([1j], "neither dates nor numbers"),
            (np.array([1], dtype="timedelta64[D]"), "divide durations by one unit"),
            ([object()], "of type object; pass dates or numbers"),
            ([datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)], "pass a pandas.DatetimeIndex"),
            (np.zeros((3, 2)), r"shape \(3, 2\)"),
            (3.0, r"shape \(\)"),
            ([], "no stamps"),
            ([1.0, np.nan], "NaN or infinite, the first in row 1"),
            ([np.inf, 1.0], "NaN or infinite, the first in row 0"),
            (pd.DatetimeIndex(["2001-01-01", None]), "1 stamp.s. that are NaT, the first in row 1"),
            (np.array(["NaT"], dtype="datetime64[s]"), "NaT"),
        ],
    )
    def test_stamps(self, stamps: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            learn(stamps)

    def test_units(self) -> None:
        with pytest.raises(InputError, match="time_unit is 'days'; pass 'auto' or one of"):
            learn(DATES, "days")
        with pytest.raises(InputError, match="stamps are numbers, which have a unit already"):
            learn([1.0, 2.0], "h")

    def test_another_kind_than_the_fit(self) -> None:
        dates, _ = learn(DATES)
        numbers, _ = learn([1.0, 2.0])
        with pytest.raises(InputError, match="was fitted to dates and got numbers"):
            dates.numbers([1.0], "Model")
        with pytest.raises(InputError, match="was fitted to numbers and got dates"):
            numbers.numbers(DATES, "Model")
        with pytest.raises(InputError, match="time zone None and got dates with time zone UTC"):
            dates.numbers(DATES.tz_localize("UTC"), "Model")
