"""Data, options, clocks and scores that the workers of ``bench_sparse_inverse.py`` share.

Imported by every worker under the interpreter of its own environment, hence needs only numpy.

``modis50k``  land-surface temperature by longitude and latitude: 50,000 training and 10,000 test rows
              drawn from the two published halves; whole regions are held out. Degrees are centred and
              not scaled, so that one lengthscale means the same in both directions. `modis_lst.npz`
              holds `X`, `y` and the mask `test`.
``banana``    labels, the split of the other benchmarks.
``aircraft``  airliner accidents by day against time in years, a tenth of the days held out.
``airfoil``, ``elevators``, ``protein``  regression in 5, 18 and 9 columns, as in the other benchmarks.
``uniform``   points of constant density in a square with a smooth signal in noise, of any number.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from markov_cases import Stopwatch, peak_megabytes
from registry import TASKS
from scoring import poisson_log_density, scores
from splits import FIRST_SEED, Array, Split, load_split

__all__ = [
    "COVARIANCE_CASE",
    "EVIDENCE_PARAMETERS",
    "ISOTROPIC",
    "Array",
    "Job",
    "Split",
    "Stopwatch",
    "covariance_scores",
    "cpu_seconds",
    "exact_posterior",
    "load_case",
    "parse_job",
    "poisson_log_density",
    "print_row",
    "scores",
    "timed",
    "uniform_points",
]

SPATIAL = ("modis50k", "aircraft", "uniform")
MODIS_ROWS = 50_000
POINTS_PER_LENGTHSCALE = 8

ISOTROPIC = (*SPATIAL, "banana")
"""Cases whose kernels have one lengthscale; the others have one for each column."""

EVIDENCE_PARAMETERS = {"lengthscale": 0.3, "outputscale": 1.0, "noise": 0.1}
"""Where the evidence of a Matern-3/2 kernel is timed; variances, on standardised targets."""

COVARIANCE_CASE = {"lengthscale": 1.5, "outputscale": 1.0, "noise": 0.1}
"""A Matern-5/2 kernel for which joint covariances are compared with the exact ones."""


@dataclass(frozen=True)
class Job:
    """What one process measures; which options count depends on the measure."""

    measure: str
    case: str
    data: str = "."
    rows: int = 0
    neighbors: int = 20
    seed: int = 0
    repeats: int = 3
    max_iter: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.03
    batch_size: int = 256
    start: str = "prior"


def parse_job(description: str | None) -> Job:
    """The job on the command line of a worker: one option for each field."""
    parser = argparse.ArgumentParser(description=description)
    for entry in fields(Job):
        kind = {"int": int, "float": float}.get(str(entry.type), str)
        required = entry.name in ("measure", "case")
        default = None if required else entry.default
        parser.add_argument(f"--{entry.name}", type=kind, required=required, default=default)
    return Job(**vars(parser.parse_args()))


def load_case(job: Job) -> Split:
    """Training and test rows; at most ``job.rows`` training rows, drawn at random, if it is not 0.

    Raises
    ------
    ValueError
        For a case that does not exist.
    """
    folder = Path(job.data)
    if job.case == "modis50k":
        return _modis(folder, job.seed, job.rows or MODIS_ROWS)
    if job.case == "uniform":
        points, targets = uniform_points(job.rows + 2_000, job.seed)
        return _spatial(points[2_000:], targets[2_000:], points[:2_000], targets[:2_000])
    if job.case == "aircraft":
        split = _aircraft(folder, job.seed)
    elif job.case in TASKS:
        split = load_split(TASKS[job.case], folder, job.seed)
    else:
        raise ValueError(f"no case {job.case!r}; there are {', '.join((*SPATIAL, *TASKS))}")
    return _fewer(split, job.rows, job.seed) if job.rows else split


def _modis(folder: Path, seed: int, rows: int) -> Split:
    with np.load(folder / "modis_lst.npz") as stored:
        inputs, targets = stored["X"].astype(float), stored["y"].astype(float)
        test = stored["test"]
    generator = np.random.default_rng(FIRST_SEED + seed)
    train_rows = generator.permutation(int((~test).sum()))[:rows]
    test_rows = generator.permutation(int(test.sum()))[: rows // 5]
    return _spatial(
        inputs[~test][train_rows],
        targets[~test][train_rows],
        inputs[test][test_rows],
        targets[test][test_rows],
    )


def _aircraft(folder: Path, seed: int) -> Split:
    with np.load(folder / "aircraft.npz") as stored:
        day = stored["date"].astype("datetime64[D]").astype(int)
    counts = np.bincount(day - day.min()).astype(float)
    years = np.arange(len(counts))[:, None] / 365.25
    test = np.zeros(len(counts), bool)
    held_out = np.random.default_rng(FIRST_SEED + seed).permutation(len(counts))
    test[held_out[: len(counts) // 10]] = True
    return Split("counts", years[~test], counts[~test], years[test], counts[test])


def _spatial(inputs: Array, targets: Array, test_inputs: Array, test_targets: Array) -> Split:
    centre, mean, scale = inputs.mean(0), float(targets.mean()), float(targets.std())
    return Split(
        "regression",
        np.ascontiguousarray(inputs - centre),
        (targets - mean) / scale,
        np.ascontiguousarray(test_inputs - centre),
        test_targets,
        mean,
        scale,
    )


def _fewer(split: Split, rows: int, seed: int) -> Split:
    chosen = np.random.default_rng(seed).permutation(len(split.train_targets))[:rows]
    test = slice(0, max(rows // 5, 1))
    return Split(
        split.kind,
        np.ascontiguousarray(split.train_inputs[chosen]),
        split.train_targets[chosen],
        np.ascontiguousarray(split.test_inputs[test]),
        split.test_targets[test],
        split.target_mean,
        split.target_scale,
    )


def uniform_points(rows: int, seed: int) -> tuple[Array, Array]:
    """Points in a square that grows with their number, 64 to the square of the unit of length."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(0.0, math.sqrt(rows) / POINTS_PER_LENGTHSCALE, (rows, 2))
    signal = np.sin(points[:, 0]) + np.cos(1.7 * points[:, 1]) + np.sin(0.3 * points.sum(1))
    return points, signal + 0.3 * generator.standard_normal(rows)


def exact_posterior(split: Split) -> tuple[Array, Array]:
    """Mean and covariance of the function at the test inputs under the kernel of the comparison."""
    noise = COVARIANCE_CASE["noise"] * np.eye(len(split.train_targets))
    cross = _matern52(split.train_inputs, split.test_inputs)
    factor = np.linalg.cholesky(_matern52(split.train_inputs, split.train_inputs) + noise)
    half = np.linalg.solve(factor, cross)
    mean = half.T @ np.linalg.solve(factor, split.train_targets)
    return mean, _matern52(split.test_inputs, split.test_inputs) - half.T @ half


def _matern52(left: Array, right: Array) -> Array:
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T
    r = np.sqrt(5 * np.maximum(squares, 0.0)) / COVARIANCE_CASE["lengthscale"]
    return np.asarray(COVARIANCE_CASE["outputscale"] * (1 + r + r**2 / 3) * np.exp(-r))


def covariance_scores(split: Split, mean: Array, covariance: Array) -> dict[str, float]:
    """How far a posterior at the test inputs is from the exact one, and its joint log density.

    Errors are relative to the Frobenius norm of the exact entries (a covariance without any entry
    beside its diagonal has 1 there); the density is of all standardised test targets at once.
    """
    exact_mean, exact = exact_posterior(split)
    beside = ~np.eye(len(exact), dtype=bool)
    return {
        "mean_max_error": float(np.abs(mean - exact_mean).max()),
        "variance_error": _relative(np.diag(covariance), np.diag(exact)),
        "off_diagonal_error": _relative(covariance[beside], exact[beside]),
        "joint_nlpd": _joint_nlpd(split, mean, covariance),
        "exact_joint_nlpd": _joint_nlpd(split, exact_mean, exact),
    }


def _relative(found: Array, exact: Array) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _joint_nlpd(split: Split, mean: Array, covariance: Array) -> float:
    size = len(mean)
    targets = (split.test_targets - split.target_mean) / split.target_scale
    factor = np.linalg.cholesky(covariance + COVARIANCE_CASE["noise"] * np.eye(size))
    white = np.linalg.solve(factor, targets - mean)
    log_scale = 2 * np.log(np.diag(factor)).sum() + size * math.log(2 * math.pi)
    return float(0.5 * (white @ white + log_scale) / size)


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def timed(name: str, watch: Stopwatch) -> dict[str, float]:
    """Entries of a row: median and smallest CPU seconds of the calls of a watch after its first."""
    summary = watch.summary()
    return {f"{name}_cpu_s": summary["median"], f"{name}_min_cpu_s": summary["min"]}


def machine() -> str:
    """Processor and its widest vectors: times of processors that differ in these do not compare."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    entries = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {name.strip(): value.strip() for name, value in entries.items()}
    flags = found.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "unknown")
    return f"{found.get('model name', 'unknown')} ({vectors})"


def print_row(library: str, job: Job, split_rows: int, found: dict[str, Any]) -> None:
    """One JSON line: what was measured, what was found, memory and load."""
    row = {"library": library, **asdict(job), "rows": split_rows, **found}
    row |= {"peak_mb": round(peak_megabytes(), 1), "load": round(os.getloadavg()[0], 2)}
    row["machine"] = machine()
    del row["data"]
    print(json.dumps(row), flush=True)
