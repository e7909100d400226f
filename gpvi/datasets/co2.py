"""Weekly carbon dioxide at Mauna Loa with its gaps, as a series on a regular grid."""

import numpy as np

from gpvi._optional import import_optional
from gpvi.datasets.dataset import Dataset

__all__ = ["load_co2"]

_DAYS_IN_YEAR = 365.25


def load_co2() -> Dataset:
    """Carbon dioxide in the air at Mauna Loa, every week from 1958 to 2001, with gaps.

    Like ``load_dataset("co2")``, but 59 weeks without a measurement are kept, as NaN, and time runs
    evenly: all weeks are 7 / 365.25 years apart.

    Returns
    -------
    Dataset
        Inputs are decimal years; targets parts per million, NaN where nothing was measured.

    Raises
    ------
    MissingDependencyError
        If statsmodels is not installed.
    """
    module = import_optional(
        "statsmodels.datasets.co2", "The series of carbon dioxide", 'pip install "gpvi[examples]"'
    )
    series = module.load_pandas().data["co2"]
    date = series.index.to_numpy().astype("datetime64[D]")
    days = (date - np.datetime64("1958-01-01", "D")).astype(np.float64)
    return Dataset(
        name="co2",
        task="regression",
        data=(1958.0 + days / _DAYS_IN_YEAR)[:, None],
        target=series.to_numpy(dtype=np.float64),
        feature_names=("year",),
        target_name="co2",
        description="Weekly carbon dioxide in the air at Mauna Loa, 1958 to 2001, in parts per "
        "million: a trend and a yearly cycle, with gaps.",
        source="Keeling and Whorf (2004), Carbon Dioxide Information Analysis Center. Carried by "
        "statsmodels.",
        licence="public domain",
    )
