"""What is compared on what: the tasks, the peers and the settings of each.

Only names and numbers live here, so that the launcher, the worker and the table agree on them
without importing any of the libraries under test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "DEFAULT_LADDER",
    "OURS",
    "PEERS",
    "TASKS",
    "Option",
    "PeerSpec",
    "TaskSpec",
    "options_for",
]

Option = int | float | str

OURS = ("gpvi-inducing", "gpvi-exact")
"""Names of our own entries, which are fitted once for every rung of the iteration ladder."""

DEFAULT_LADDER = ("0", "5", "10", "15", "20", "30", "40", "default")
"""Values of ``max_iter`` for our entries; ``default`` leaves it to the estimator."""


@dataclass(frozen=True)
class TaskSpec:
    """A regression data set: the stem of its file, and the inducing points of sparse models."""

    file: str
    num_inducing: int
    large: bool
    default: bool = True


@dataclass(frozen=True)
class PeerSpec:
    """Where the code of a peer is, which library it needs, and its settings by task size."""

    module: str
    factory: str
    library: str
    options: Mapping[str, Option] = field(default_factory=dict)
    small_options: Mapping[str, Option] = field(default_factory=dict)
    sparse: bool = True
    large: bool = True


TASKS: dict[str, TaskSpec] = {
    "elevators": TaskSpec("elevators", 512, large=True),
    "protein": TaskSpec("protein", 512, large=True),
    "kin40k": TaskSpec("kin40k", 512, large=True, default=False),
    "concrete": TaskSpec("concrete", 200, large=False),
    "airfoil": TaskSpec("airfoil", 200, large=False),
    "energy": TaskSpec("energy", 200, large=False),
    "yacht": TaskSpec("yacht", 200, large=False),
}

PEERS: dict[str, PeerSpec] = {
    "gpvi-inducing": PeerSpec("peer_gpvi", "Inducing", "gpvi"),
    "gpvi-exact": PeerSpec("peer_gpvi", "Exact", "gpvi", sparse=False, large=False),
    "gpytorch-svgp": PeerSpec(
        "peer_gpytorch",
        "Variational",
        "gpytorch",
        {"steps": 600, "batch_size": 1024, "learning_rate": 0.03},
    ),
    "gpytorch-svgp-ng": PeerSpec(
        "peer_gpytorch",
        "NaturalVariational",
        "gpytorch",
        {"steps": 300, "batch_size": 1024, "learning_rate": 0.03, "natural_learning_rate": 0.1},
    ),
    "gpytorch-sgpr": PeerSpec(
        "peer_gpytorch", "Collapsed", "gpytorch", {"steps": 40, "learning_rate": 0.1}
    ),
    "gpflow-sgpr": PeerSpec(
        "peer_gpflow", "Collapsed", "gpflow", {"max_iter": 12}, {"max_iter": 100}
    ),
    "gpboost-vecchia": PeerSpec(
        "peer_gpboost",
        "Vecchia",
        "gpboost",
        {"max_iter": 10, "num_neighbors": 20, "matern_shape": 1.5},
        {"max_iter": 1000},
        sparse=False,
    ),
    "sklearn-gpr": PeerSpec("peer_sklearn", "Exact", "sklearn", sparse=False, large=False),
}


def options_for(peer: str, task: str, overrides: Mapping[str, Option]) -> dict[str, Option]:
    """Settings of one peer on one task: defaults, then those for small tasks, then the user's.

    Raises
    ------
    ValueError
        If an override names a setting that the peer does not have.
    """
    peer_spec, task_spec = PEERS[peer], TASKS[task]
    options = dict(peer_spec.options)
    if not task_spec.large:
        options.update(peer_spec.small_options)
    unknown = sorted(set(overrides) - set(options))
    if unknown:
        raise ValueError(
            f"{peer} has no setting {', '.join(unknown)}; it has {', '.join(sorted(options))}"
        )
    options.update(overrides)
    if peer_spec.sparse:
        options["num_inducing"] = task_spec.num_inducing
    return options
