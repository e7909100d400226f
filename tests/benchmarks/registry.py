"""What is compared on what: the tasks, the peers and the settings of each.

Only names and numbers live here, so that the launcher, the worker and the table agree on them
without importing any of the libraries under test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "DEFAULT_LADDER",
    "KINDS",
    "LEADERBOARD",
    "LEADERBOARD_TASKS",
    "OURS",
    "PEERS",
    "TASKS",
    "Budgets",
    "Kind",
    "Option",
    "PeerSpec",
    "TaskSpec",
    "options_for",
]

Option = int | float | str
Kind = Literal["regression", "binary", "counts"]

KINDS: tuple[Kind, ...] = ("regression", "binary", "counts")
"""Kinds of targets: real numbers, labels 0 and 1, and counts."""

DEFAULT_LADDER = ("0", "5", "10", "15", "20", "30", "40", "default")
"""Values of ``max_iter`` for our entries; ``default`` leaves it to the estimator."""


@dataclass(frozen=True)
class TaskSpec:
    """A data set: where it is, what its targets are, and what all models are given for it.

    ``source`` is the stem of a file, or ``sklearn:NAME`` for what scikit-learn ships. Times of events
    are counted in ``bins`` equal bins from the first event to the last. ``lengthscale`` is where the
    lengthscales of the peers start, in units of the standardised inputs; None is their own start, one.
    """

    source: str
    num_inducing: int
    large: bool
    default: bool = True
    kind: Kind = "regression"
    bins: int | None = None
    lengthscale: float | None = None


@dataclass(frozen=True)
class PeerSpec:
    """Where the code of a peer is, which library it needs, and its settings.

    ``small_options`` hold on tasks that are not large, ``kind_options`` on tasks of a kind; later ones
    win. ``starts`` says that the peer takes the starting lengthscale of the task, ``default`` that it
    runs where no peers are named.
    """

    module: str
    factory: str
    library: str
    options: Mapping[str, Option] = field(default_factory=dict)
    small_options: Mapping[str, Option] = field(default_factory=dict)
    kind_options: Mapping[Kind, Mapping[str, Option]] = field(default_factory=dict)
    kinds: tuple[Kind, ...] = ("regression",)
    sparse: bool = True
    large: bool = True
    starts: bool = False
    default: bool = True


@dataclass(frozen=True)
class Budgets:
    """The ladder of an entry of the leaderboard: one fit from scratch for each value of ``option``.

    None leaves the option to the estimator. Values grow, so that what runs out of time ends a ladder.
    """

    option: str
    small: tuple[int | None, ...]
    large: tuple[int | None, ...]


TASKS: dict[str, TaskSpec] = {
    "elevators": TaskSpec("elevators", 512, large=True),
    "protein": TaskSpec("protein", 512, large=True),
    "kin40k": TaskSpec("kin40k", 512, large=True, default=False),
    "concrete": TaskSpec("concrete", 200, large=False),
    "airfoil": TaskSpec("airfoil", 200, large=False),
    "energy": TaskSpec("energy", 200, large=False),
    "yacht": TaskSpec("yacht", 200, large=False),
    "banana": TaskSpec("banana", 128, large=True, kind="binary", lengthscale=1.0),
    "ionosphere": TaskSpec("ionosphere", 100, large=False, kind="binary", lengthscale=5.0),
    "breast_cancer": TaskSpec(
        "sklearn:breast_cancer", 100, large=False, kind="binary", lengthscale=5.0
    ),
    "coal": TaskSpec("coal", 100, large=False, kind="counts", bins=333, lengthscale=0.15),
    "aircraft": TaskSpec("aircraft", 100, large=False, kind="counts", bins=1181, lengthscale=0.15),
}

_NOT_GAUSSIAN: tuple[Kind, ...] = ("binary", "counts")
_SVGP_GAUSSIAN = {"steps": 600, "batch_size": 1024, "learning_rate": 0.03}
_SVGP = {"steps": 300, "batch_size": 1024, "learning_rate": 0.03}

PEERS: dict[str, PeerSpec] = {
    "gpvi-inducing": PeerSpec("peer_gpvi", "Inducing", "gpvi", kinds=KINDS),
    "gpvi-exact": PeerSpec("peer_gpvi", "Exact", "gpvi", kinds=KINDS, sparse=False, large=False),
    "gpvi-sic": PeerSpec("peer_gpvi", "SparseInverse", "gpvi", sparse=False, default=False),
    "gpvi-exact-matern32": PeerSpec(
        "peer_gpvi",
        "Exact",
        "gpvi",
        {"kernel": "matern32"},
        sparse=False,
        large=False,
        default=False,
    ),
    "gpvi-sic-matern32": PeerSpec(
        "peer_gpvi", "SparseInverse", "gpvi", {"kernel": "matern32"}, sparse=False, default=False
    ),
    "gpvi-neighbor-inducing": PeerSpec(
        "peer_gpvi", "NeighborInducing", "gpvi", sparse=False, default=False
    ),
    "gpvi-coreset": PeerSpec("peer_gpvi", "Coreset", "gpvi", default=False),
    "gpvi-orthogonal": PeerSpec("peer_gpvi", "Orthogonal", "gpvi", default=False),
    "gpvi-spherical": PeerSpec("peer_gpvi", "Spherical", "gpvi", default=False),
    "gpvi-spherical-orthogonal": PeerSpec(
        "peer_gpvi", "SphericalOrthogonal", "gpvi", default=False
    ),
    "gpvi-full-scale": PeerSpec(
        "peer_gpvi", "FullScale", "gpvi", sparse=False, large=False, default=False
    ),
    "gpvi-inducing-float32": PeerSpec(
        "peer_gpvi", "Inducing", "gpvi", {"dtype": "float32"}, kinds=_NOT_GAUSSIAN
    ),
    "gpvi-exact-float32": PeerSpec(
        "peer_gpvi",
        "Exact",
        "gpvi",
        {"dtype": "float32"},
        kinds=_NOT_GAUSSIAN,
        sparse=False,
        large=False,
    ),
    "gpytorch-svgp": PeerSpec(
        "peer_gpytorch",
        "Variational",
        "gpytorch",
        _SVGP_GAUSSIAN,
        kind_options={"binary": _SVGP, "counts": _SVGP},
        kinds=KINDS,
        starts=True,
    ),
    "gpytorch-svgp-float64": PeerSpec(
        "peer_gpytorch",
        "Variational",
        "gpytorch",
        {**_SVGP, "dtype": "float64"},
        kinds=_NOT_GAUSSIAN,
        starts=True,
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
    "gpytorch-sgpr-float64": PeerSpec(
        "peer_gpytorch",
        "Collapsed",
        "gpytorch",
        {"steps": 40, "learning_rate": 0.1, "dtype": "float64"},
        large=False,
        default=False,
    ),
    "gpflow-sgpr": PeerSpec(
        "peer_gpflow", "Collapsed", "gpflow", {"max_iter": 12}, {"max_iter": 100}
    ),
    "gpytorch-vnngp": PeerSpec(
        "peer_vnngp",
        "NearestNeighbor",
        "gpytorch",
        {"steps": 600, "batch_size": 256, "learning_rate": 0.01, "num_neighbors": 20},
        sparse=False,
        default=False,
    ),
    "gpflow-svgp": PeerSpec(
        "peer_gpflow",
        "Variational",
        "gpflow",
        _SVGP_GAUSSIAN,
        kind_options={"binary": _SVGP, "counts": _SVGP},
        kinds=KINDS,
        starts=True,
    ),
    "gpflow-svgp-float32": PeerSpec(
        "peer_gpflow",
        "Variational",
        "gpflow",
        {**_SVGP, "dtype": "float32"},
        kinds=_NOT_GAUSSIAN,
        starts=True,
    ),
    "gpflow-vgp": PeerSpec(
        "peer_gpflow",
        "Full",
        "gpflow",
        {"max_iter": 100},
        kinds=_NOT_GAUSSIAN,
        sparse=False,
        large=False,
        starts=True,
    ),
    "gpboost-vecchia": PeerSpec(
        "peer_gpboost",
        "Vecchia",
        "gpboost",
        {"max_iter": 10, "num_neighbors": 20, "matern_shape": 1.5},
        {"max_iter": 1000},
        {"binary": {"max_iter": 1000}, "counts": {"max_iter": 1000}},
        kinds=KINDS,
        sparse=False,
    ),
    "sklearn-gpr": PeerSpec("peer_sklearn", "Exact", "sklearn", sparse=False, large=False),
    "sklearn-gpc": PeerSpec(
        "peer_sklearn",
        "Laplace",
        "sklearn",
        kinds=("binary",),
        sparse=False,
        large=False,
        starts=True,
    ),
}

OURS = tuple(name for name, spec in PEERS.items() if spec.library == "gpvi")
"""Names of our own entries, which are fitted once for every rung of the iteration ladder."""

LEADERBOARD_TASKS = ("yacht", "energy", "concrete", "airfoil", "elevators", "kin40k", "protein")
"""The sets of the leaderboard, small ones first."""

_OUR_BUDGETS = Budgets("max_iter", (0, 5, 10, 20, 40, None), (5, 20, None))
_SVGP_BUDGETS = Budgets("steps", (150, 600, 2000), (150, 600, 2000))

LEADERBOARD: dict[str, Budgets] = {
    "gpvi-exact": _OUR_BUDGETS,
    "gpvi-exact-matern32": _OUR_BUDGETS,
    "gpvi-inducing": _OUR_BUDGETS,
    "gpvi-sic": _OUR_BUDGETS,
    "gpvi-sic-matern32": _OUR_BUDGETS,
    "gpvi-neighbor-inducing": _OUR_BUDGETS,
    "gpvi-coreset": _OUR_BUDGETS,
    "gpvi-orthogonal": _OUR_BUDGETS,
    "gpvi-spherical": _OUR_BUDGETS,
    "gpvi-spherical-orthogonal": _OUR_BUDGETS,
    "gpvi-full-scale": Budgets("max_iter", (0, 5, 10, 20, 40, None), ()),
    "gpytorch-svgp": _SVGP_BUDGETS,
    "gpytorch-sgpr": Budgets("steps", (40, 150, 600), (5, 15, 50)),
    "gpytorch-sgpr-float64": Budgets("steps", (40, 150, 600), ()),
    "gpytorch-vnngp": _SVGP_BUDGETS,
    "gpflow-svgp": _SVGP_BUDGETS,
    "gpflow-sgpr": Budgets("max_iter", (12, 40, 100, 300), (5, 12, 30)),
    "gpboost-vecchia": Budgets("max_iter", (3, 10, 1000), (3, 10)),
}
"""The entries of the leaderboard and how long each is trained."""


def options_for(peer: str, task: str, overrides: Mapping[str, Option]) -> dict[str, Option]:
    """Settings of one peer on one task: defaults, those for small tasks and for the kind of targets,
    then the user's.

    Raises
    ------
    ValueError
        If an override names a setting that the peer does not have.
    """
    peer_spec, task_spec = PEERS[peer], TASKS[task]
    options = dict(peer_spec.options)
    if not task_spec.large:
        options.update(peer_spec.small_options)
    options.update(peer_spec.kind_options.get(task_spec.kind, {}))
    unknown = sorted(set(overrides) - set(options))
    if unknown:
        raise ValueError(
            f"{peer} has no setting {', '.join(unknown)}; it has {', '.join(sorted(options))}"
        )
    options.update(overrides)
    if peer_spec.sparse:
        options["num_inducing"] = task_spec.num_inducing
    if peer_spec.starts and task_spec.lengthscale is not None:
        options["lengthscale"] = task_spec.lengthscale
    return options
