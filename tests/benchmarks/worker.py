"""One measurement in one process: fit one peer to one split, score it, print one JSON line.

Started by ``run.py``, which pins the process and sizes its thread pools. Runs under the
interpreter of whichever environment holds the peer, hence needs nothing but numpy and the peer.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import resource
import time
import traceback
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from registry import PEERS, TASKS
from scoring import scores
from splits import Array, Split, load_split, synthetic_split

__all__ = ["BinaryPeer", "CountPeer", "Peer", "RegressionPeer", "measure"]

WARM_UP_ROWS = 300
WARM_UP_INDUCING = 32


class Peer(Protocol):
    """What the worker asks of every peer; ``settings["dtype"]`` names its precision.

    Its file imports the library and its constructor gets the seed and the options (neither timed).
    Predictions are asked for by one of the protocols below, as the targets of the task need it.
    """

    settings: dict[str, Any]

    def warm_up(self, split: Split, num_inducing: int) -> None:
        """A tiny fit and prediction, so that one-off costs of the process stay out of ``fit``."""

    def fit(self, split: Split) -> None:
        """Fit to the training rows, initialisation included."""

    def objective(self, split: Split) -> float | None:
        """Final ELBO or log marginal likelihood of the training targets (not timed)."""


class RegressionPeer(Peer, Protocol):
    """A peer for real targets."""

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        """Predictive mean and variance of the noisy standardised target."""


class BinaryPeer(Peer, Protocol):
    """A peer for labels 0 and 1."""

    def predict_proba(self, inputs: Array) -> Array:
        """Predictive probability of label 1."""


class CountPeer(Peer, Protocol):
    """A peer for counts."""

    def predict_counts(self, inputs: Array, counts: Array) -> tuple[Array, Array]:
        """Mean of the predictive distribution, and its log probability of the counts given."""


class Stopwatch:
    """Context manager giving CPU seconds of all threads of the process, and wall seconds."""

    cpu: float
    wall: float

    def __enter__(self) -> Stopwatch:
        gc.collect()
        self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cpu = time.process_time() - self._start[0]
        self.wall = time.perf_counter() - self._start[1]


def measure(peer: str, task: str, seed: int, data: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The row of one run; a failure becomes a row with a status and the error's text."""
    row: dict[str, Any] = {"peer": peer, "task": task, "seed": seed, "options": options}
    row |= {"status": "ok", "error": None, "machine": _machine(), "load": _load()}
    row["versions"] = {name: _version(name) for name in ("python", "numpy", PEERS[peer].library)}
    try:
        return row | _run(peer, task, seed, data, options)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        status = "not installed" if missing == PEERS[peer].library else "failed"
        return row | {"status": status, "error": str(error)}
    except Exception as error:  # a peer may raise anything; the table has to show it
        traceback.print_exc()
        return row | {"status": "failed", "error": f"{type(error).__name__}: {error}"[:500]}


def _run(peer: str, task: str, seed: int, data: Path, options: dict[str, Any]) -> dict[str, Any]:
    spec = PEERS[peer]
    split = load_split(TASKS[task], data, seed)
    model = getattr(importlib.import_module(spec.module), spec.factory)(seed, **options)
    warm_up_split = synthetic_split(WARM_UP_ROWS, split.train_inputs.shape[1], split.kind)
    with Stopwatch() as warm_up:
        model.warm_up(warm_up_split, WARM_UP_INDUCING)
    with Stopwatch() as fit:
        model.fit(split)
    with Stopwatch() as predict:
        prediction = _prediction(model, split)
    peak_mb = _peak_mb()
    return {
        "n": len(split.train_targets),
        **scores(split, *prediction),
        "objective": model.objective(split),
        "fit_cpu_s": fit.cpu,
        "fit_wall_s": fit.wall,
        "predict_cpu_s": predict.cpu,
        "compile_s": warm_up.cpu,
        "peak_mb": peak_mb,
        "settings": model.settings,
    }


def _prediction(model: Any, split: Split) -> tuple[Array, ...]:
    if split.kind == "binary":
        return (model.predict_proba(split.test_inputs),)
    if split.kind == "counts":
        return tuple(model.predict_counts(split.test_inputs, split.test_targets))
    return tuple(model.predict(split.test_inputs))


def _peak_mb() -> float:
    """Peak resident memory of this program alone (``ru_maxrss`` also remembers its launcher)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _machine() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _version(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return metadata.version({"sklearn": "scikit-learn"}.get(name, name))
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Parse the launcher's arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, choices=sorted(PEERS))
    parser.add_argument("--task", required=True, choices=sorted(TASKS))
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--options", default="{}", type=json.loads)
    arguments = parser.parse_args()
    row = measure(arguments.peer, arguments.task, arguments.seed, arguments.data, arguments.options)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
