"""British coal-mining disasters, 1851 to 1962: the published record, as a table in the code.

The record is a list of the days between one explosion in a British coal mine that killed ten men or
more and the next.

References
----------
Jarrett, R. G. (1979). A note on the intervals between coal-mining disasters. Biometrika 66, 191-193.
Maguire, B. A., Pearson, E. S. & Wynn, A. H. A. (1952). The time intervals between industrial
accidents. Biometrika 39, 168-180. (The first, shorter version of the record.)
"""

from numbers import Integral

import numpy as np

from gpvi.datasets.dataset import Dataset
from gpvi.exceptions import InputError

__all__ = ["coal_mining_dates", "load_coal_mining"]

_FIRST_DAY = "1851-03-15"

# Days from every disaster to the next; two of them happened on one day.
_INTERVALS = """
    157 123 2 124 12 4 10 216 80 12 33 66 232 826 40 12 29 190 97 65 186 23 92 197 431 16 154 95 25
    19 78 202 36 110 276 16 88 225 53 17 538 187 34 101 41 139 42 1 250 80 3 324 56 31 96 70 41 93 24
    91 143 16 27 144 45 6 208 29 112 43 193 134 420 95 125 34 127 218 2 0 378 36 15 31 215 11 137 4 15
    72 96 124 50 120 203 176 55 93 59 315 59 61 1 13 189 345 20 81 286 114 108 188 233 28 22 61 78 99
    326 275 54 217 113 32 388 151 361 312 354 307 275 78 17 1205 644 467 871 48 123 456 498 49 131 182
    255 194 224 566 462 228 806 517 1643 54 326 1312 348 745 217 120 275 20 66 292 4 368 307 336 19
    329 330 312 536 145 75 364 37 19 156 47 129 1630 29 217 7 18 1358 2366 952 632
"""

_DAYS_IN_YEAR = 365.25


def coal_mining_dates() -> np.ndarray:
    """Days of the 191 disasters.

    Returns
    -------
    ndarray of datetime64[D], shape [191]
        From 15 March 1851 to 22 March 1962, in order.

    Examples
    --------
    >>> from gpvi.datasets import coal_mining_dates
    >>> len(coal_mining_dates()), str(coal_mining_dates()[-1])
    (191, '1962-03-22')
    """
    elapsed = np.cumsum([0, *map(int, _INTERVALS.split())])
    return np.datetime64(_FIRST_DAY, "D") + elapsed.astype("timedelta64[D]")


def load_coal_mining(num_bins: int | None = None) -> Dataset:
    """Coal-mining disasters in Britain, counted by calendar year or in equal bins.

    The rate falls about 1890, from three a year to one: safety laws, or the miners' unions.

    Parameters
    ----------
    num_bins : int, optional
        Number of equal bins from the first disaster to the last; calendar years if left out.

    Returns
    -------
    Dataset
        Inputs are calendar years, or the middles of the bins as decimal years; `exposure` is the
        width of a bin in years, so that rates are per year.

    Raises
    ------
    InputError
        If the number of bins is not a positive integer.

    Examples
    --------
    >>> from gpvi.datasets import load_coal_mining
    >>> coal = load_coal_mining()
    >>> coal.data[:3, 0], coal.target[:3]
    (array([1851., 1852., 1853.]), array([4., 5., 4.]))
    """
    dates = coal_mining_dates()
    if num_bins is None:
        year = dates.astype("datetime64[Y]").astype(int) + 1970
        places = np.arange(year[0], year[-1] + 1, dtype=np.float64)
        counts = np.bincount(year - year[0])
        width = 1.0
    else:
        if isinstance(num_bins, bool) or not isinstance(num_bins, Integral) or num_bins < 1:
            raise InputError(f"num_bins is {num_bins!r}; it must be an integer of at least 1.")
        # The days before the first one of its year, and half of that day itself.
        before = (dates[0] - dates[0].astype("datetime64[Y]")).astype(int) + 0.5
        elapsed = (before + (dates - dates[0]).astype(int)) / _DAYS_IN_YEAR
        counts, edges = np.histogram(elapsed, bins=int(num_bins))
        places = 1851.0 + 0.5 * (edges[1:] + edges[:-1])
        width = edges[1] - edges[0]
    return Dataset(
        name="coal mining",
        task="counts",
        data=places[:, None],
        target=counts.astype(np.float64),
        feature_names=("year",),
        target_name="disasters",
        description="Explosions in British coal mines that killed ten men or more, 1851 to 1962.",
        source="Jarrett (1979), A note on the intervals between coal-mining disasters, Biometrika 66.",
        licence="public domain",
        exposure=np.full(len(places), width),
    )
