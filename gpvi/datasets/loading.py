"""The data sets that scikit-learn, statsmodels and scikit-lego carry, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from sklearn import datasets as sklearn_datasets

from gpvi._optional import import_optional
from gpvi.datasets.dataset import Dataset, DatasetInfo
from gpvi.exceptions import InputError

__all__ = ["list_datasets", "load_dataset"]

_COMMAND = 'pip install "gpvi[examples]"'


@dataclass(frozen=True, eq=False)
class _Table:
    """What a reader gets out of a package."""

    data: np.ndarray
    target: np.ndarray
    feature_names: tuple[str, ...]
    trials: np.ndarray | None = None


@dataclass(frozen=True)
class _Entry:
    info: DatasetInfo
    target_name: str
    description: str
    source: str
    read: Callable[[], _Table]


def load_dataset(name: str) -> Dataset:
    """Load a data set that an installed package carries.

    Parameters
    ----------
    name : str
        One of `list_datasets`.

    Returns
    -------
    Dataset
        Rows with missing values are left out.

    Raises
    ------
    InputError
        If there is no data set of this name.
    MissingDependencyError
        If the package that carries it is not installed.

    Examples
    --------
    >>> from gpvi.datasets import load_dataset
    >>> diabetes = load_dataset("diabetes")
    >>> diabetes.data.shape, diabetes.target_name
    ((442, 10), 'progression')
    """
    found = [entry for entry in _ENTRIES if entry.info.name == name]
    if not found:
        names = [entry.info.name for entry in _ENTRIES]
        close = get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"there is no data set {name!r}.{hint} There are: {', '.join(names)}.")
    entry = found[0]
    table = entry.read()
    return Dataset(
        name=entry.info.name,
        task=entry.info.task,
        data=table.data,
        target=table.target,
        feature_names=table.feature_names,
        target_name=entry.target_name,
        description=entry.description,
        source=f"{entry.source} Carried by {entry.info.package}.",
        licence=entry.info.licence,
        trials=table.trials,
    )


def list_datasets() -> dict[str, DatasetInfo]:
    """What `load_dataset` offers, whether or not the packages are installed.

    Returns
    -------
    dict of str to DatasetInfo
        Package, shape, task and licence by name.

    Examples
    --------
    >>> from gpvi.datasets import list_datasets
    >>> info = list_datasets()["wine"]
    >>> info.package, info.num_rows, info.num_columns, info.task
    ('scikit-learn', 178, 13, 'multi-class')
    """
    return {entry.info.name: entry.info for entry in _ENTRIES}


def _diabetes() -> _Table:
    bunch = sklearn_datasets.load_diabetes(scaled=False)
    return _Table(bunch.data, bunch.target, tuple(bunch.feature_names))


def _labelled(load: Callable[[], Any]) -> _Table:
    bunch = load()
    names = tuple(str(name) for name in bunch.feature_names)
    return _Table(bunch.data, bunch.target_names[bunch.target].astype(str), names)


def _breast_cancer() -> _Table:
    return _labelled(sklearn_datasets.load_breast_cancer)


def _wine() -> _Table:
    return _labelled(sklearn_datasets.load_wine)


def _statsmodels(name: str) -> Any:
    """Data frame of one of statsmodels' data sets."""
    module = import_optional(f"statsmodels.datasets.{name}", f"The data set {name!r}", _COMMAND)
    return module.load_pandas().data


def _columns(frame: Any, features: list[str], target: str) -> _Table:
    data = frame[features].to_numpy(dtype=np.float64)
    names = tuple(name.lower() for name in features)
    return _Table(data, frame[target].to_numpy(dtype=np.float64), names)


def _co2() -> _Table:
    series = _statsmodels("co2")["co2"].dropna()
    date = series.index
    days_in_year = np.where(date.is_leap_year, 366.0, 365.0)
    year = np.asarray(date.year) + (np.asarray(date.day_of_year) - 1) / days_in_year
    return _Table(year[:, None], series.to_numpy(dtype=np.float64), ("year",))


def _sunspots() -> _Table:
    return _columns(_statsmodels("sunspots"), ["YEAR"], "SUNACTIVITY")


def _nile() -> _Table:
    return _columns(_statsmodels("nile"), ["year"], "volume")


def _engel() -> _Table:
    return _columns(_statsmodels("engel"), ["income"], "foodexp")


def _randhie() -> _Table:
    frame = _statsmodels("randhie")
    return _columns(frame, [name for name in frame.columns if name != "mdvis"], "mdvis")


def _star98() -> _Table:
    frame = _statsmodels("star98")
    counts = ["NABOVE", "NBELOW"]
    # The products of columns are left out: a Gaussian process finds interactions by itself.
    features = [name for name in frame.columns if name not in counts and "_" not in name]
    table = _columns(frame, features, "NABOVE")
    trials = frame[counts].to_numpy(dtype=np.float64).sum(1)
    return _Table(table.data, table.target, table.feature_names, trials)


def _scikit_lego(name: str) -> Any:
    module = import_optional("sklego.datasets", f"The data set {name!r}", _COMMAND)
    return getattr(module, f"load_{name}")(as_frame=True)


def _abalone() -> _Table:
    frame = _scikit_lego("abalone")
    features = [name for name in frame.columns if name not in {"sex", "rings"}]
    table = _columns(frame, features, "rings")
    kinds = np.array(["F", "I", "M"])
    one_hot = frame["sex"].to_numpy(dtype=str)[:, None] == kinds
    names = table.feature_names + ("female", "infant", "male")
    return _Table(np.hstack([table.data, one_hot]), table.target, names)


def _penguins() -> _Table:
    features = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    frame = _scikit_lego("penguins").dropna(subset=features)
    data = frame[features].to_numpy(dtype=np.float64)
    return _Table(data, frame["species"].to_numpy(dtype=str), tuple(features))


_PUBLIC_DOMAIN = "public domain"

_ENTRIES = (
    _Entry(
        DatasetInfo(
            "diabetes", "scikit-learn", 442, 10, "regression", "not stated; package BSD-3-Clause"
        ),
        "progression",
        "Age, sex, body mass index, blood pressure and six blood values of patients, and how far "
        "their diabetes had progressed a year later.",
        "Efron, Hastie, Johnstone and Tibshirani (2004), Least angle regression, Annals of "
        "Statistics 32.",
        _diabetes,
    ),
    _Entry(
        DatasetInfo("breast_cancer", "scikit-learn", 569, 30, "binary", "CC BY 4.0"),
        "diagnosis",
        "Shapes of cell nuclei in images of breast tissue: means, standard errors and extremes of "
        "ten measurements; is the tumour malignant?",
        "Wolberg, Street and Mangasarian (1995), UCI repository.",
        _breast_cancer,
    ),
    _Entry(
        DatasetInfo("wine", "scikit-learn", 178, 13, "multi-class", "CC BY 4.0"),
        "cultivar",
        "Chemical analysis of wines from one region of Italy, made from three cultivars.",
        "Aeberhard and Forina (1991), UCI repository.",
        _wine,
    ),
    _Entry(
        DatasetInfo("co2", "statsmodels", 2225, 1, "regression", _PUBLIC_DOMAIN),
        "co2",
        "Weekly carbon dioxide in the air at Mauna Loa, 1958 to 2001, in parts per million: a "
        "trend and a yearly cycle, with gaps.",
        "Keeling and Whorf (2004), Carbon Dioxide Information Analysis Center.",
        _co2,
    ),
    _Entry(
        DatasetInfo("sunspots", "statsmodels", 309, 1, "regression", _PUBLIC_DOMAIN),
        "sunactivity",
        "Yearly mean number of sunspots, 1700 to 2008: a cycle of about eleven years.",
        "National Geophysical Data Center, NOAA.",
        _sunspots,
    ),
    _Entry(
        DatasetInfo("nile", "statsmodels", 100, 1, "regression", _PUBLIC_DOMAIN),
        "volume",
        "Yearly flow of the Nile at Aswan, 1871 to 1970, with a drop near 1898.",
        "Cobb (1978), The problem of the Nile, Biometrika 65.",
        _nile,
    ),
    _Entry(
        DatasetInfo("engel", "statsmodels", 235, 1, "regression", _PUBLIC_DOMAIN),
        "foodexp",
        "Income of Belgian households and what they spend on food; the spread grows with income.",
        "Koenker and Bassett (1982), Econometrica 50.",
        _engel,
    ),
    _Entry(
        DatasetInfo("randhie", "statsmodels", 20190, 9, "counts", _PUBLIC_DOMAIN),
        "mdvis",
        "Visits to a doctor within a year, against the terms of the health insurance and the state "
        "of health.",
        "RAND Health Insurance Experiment; Cameron and Trivedi (2005), Microeconometrics.",
        _randhie,
    ),
    _Entry(
        DatasetInfo(
            "star98", "statsmodels", 303, 12, "binomial", "used by permission; rights with author"
        ),
        "nabove",
        "Pupils above the national median in mathematics in Californian school districts, out of "
        "those tested, against make-up and means of the district.",
        "Gill (2000), Generalized Linear Models: A Unified Approach.",
        _star98,
    ),
    _Entry(
        DatasetInfo("abalone", "scikit-lego", 4177, 10, "regression", "CC BY 4.0"),
        "rings",
        "Sizes, weights and sex of abalone, and the rings of their shells, which tell their age.",
        "Nash, Sellers, Talbot, Cawthorn and Ford (1994), UCI repository.",
        _abalone,
    ),
    _Entry(
        DatasetInfo("penguins", "scikit-lego", 342, 4, "multi-class", "CC0"),
        "species",
        "Bill, flipper and body mass of penguins of three species near Palmer Station, Antarctica.",
        "Gorman, Williams and Fraser (2014), PLoS ONE 9.",
        _penguins,
    ),
)
