"""Sparse inverse Cholesky factors against GPBoost and VNNGP: time, scores and memory, as JSON.

    python tests/benchmarks/bench_sparse_inverse.py --data DIR [--peers PATH/TO/PYTHON]
        [--tables evidence,order,fit,scaling,equal_time,covariance] [--out FILE.jsonl]

Every row is a process of its own on one core with one thread; times are CPU seconds after a warm-up that
compiles. With ``--peers``, the interpreter of an environment that holds gpboost, gpytorch and scipy, the
peers run too. Rows go to the file as JSON lines and a table in Markdown beside it and to the screen.

``evidence``    Matern-3/2 log evidence of 50,000 rows at fixed parameters: its value, and the value with its
                gradient by all parameters (GPBoost: the value; no function of it returns the gradient),
                with 20 and 30 neighbours, in rounds. `generic` takes a GPyTorch kernel object instead of
                the compiled one. With the rows as given both have one value: to ten digits on `uniform`;
                the grid of `modis50k` leaves a choice between equally near neighbours.
``order``       Maximin ordering and neighbours of a million points in a square.
``fit``         Whole fits of `modis50k`, `banana` and `aircraft` with predictions of the test rows.
``scaling``     Time per point and memory with a million points and with a tenth of them: ordering and
                neighbours, evidence with gradient, posterior at fixed hyperparameters, predictions
                (per new point).
``equal_time``  VNNGP with as much CPU time as our fit took, and with ten times that, for every combination of
                learning rate, batch size and start. The table shows the one with the best test scores.
``covariance``  Joint covariance of the function at the test rows of `airfoil` for fixed hyperparameters
                against the exact one. VNNGP trains its variational distribution for a minute.

With ``--rows N`` every case is cut to N training rows, to see that all runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from spatial_cases import (
    COVARIANCE_CASE,
    EVIDENCE_PARAMETERS,
    ISOTROPIC,
    Array,
    Job,
    Split,
    Stopwatch,
    covariance_scores,
    cpu_seconds,
    load_case,
    parse_job,
    peak_megabytes,
    print_row,
    scores,
    timed,
)
from splits import synthetic_split
from torch import Tensor

from gpvi import Fixed, GPClassifier, GPCountRegressor, GPRegressor
from gpvi.approximations import SparseInverseCholesky
from gpvi.linalg import (
    NeighborPattern,
    earlier_neighbors,
    inverse_columns,
    maximin_order,
    order_by_level,
    row_log_densities,
    row_log_evidence,
    spatial_order,
)

__all__ = ["MEASURES", "TABLES"]

HERE = Path(__file__).resolve().parent
DEFAULT_OUT = Path(".benchmarks/sparse_inverse.jsonl")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

EQUAL_TIME_CASES = ("modis50k", "airfoil", "elevators")
LEARNING_RATES = (0.01, 0.03, 0.1)
BATCH_SIZES = (64, 256, 1024)
STARTS = ("prior", "targets")
COVARIANCE_SECONDS = 60.0
WARM_UP_ROWS = 300
EVIDENCE_ROWS = 50_000
MILLION = 1_000_000

RATIOS = {
    "evidence": {
        "gradient_over_peer_value": ("gradient_cpu_s", "value_cpu_s"),
        "generic_gradient_over_peer_value": ("generic_gradient_cpu_s", "value_cpu_s"),
    },
    "order": {"over_peer": ("order_and_neighbors_cpu_s", "order_and_neighbors_cpu_s")},
    "fit": {"over_peer": ("fit_cpu_s", "fit_cpu_s")},
}
"""Columns of the table: one of our times over one of the peer's."""

ESTIMATORS = {"regression": GPRegressor, "binary": GPClassifier, "counts": GPCountRegressor}


class Runner:
    """Starts workers, one at a time, and writes down what they print."""

    def __init__(self, arguments: argparse.Namespace, sink: Any, cache: str) -> None:
        self._arguments, self._sink, self._cache = arguments, sink, cache
        self.has_peers = arguments.peers is not None

    def __call__(self, table: str, library: str, job: Job) -> dict[str, Any]:
        """The row of one job, or its error."""
        arguments = self._arguments
        job = replace(job, data=str(arguments.data.resolve()), seed=arguments.seed)
        if arguments.rows:
            # A million and a tenth of it stay apart.
            job = replace(job, rows=arguments.rows * (10 if job.rows == MILLION else 1))
        worker, interpreter = HERE / f"spatial_peer_{library}.py", str(arguments.peers)
        if library == "gpvi":
            worker, interpreter = Path(__file__), sys.executable
        options = [f"--{name}={value}" for name, value in asdict(job).items()]
        done = subprocess.run(
            [interpreter, str(worker), *options],
            env={
                **os.environ,
                **dict.fromkeys(ONE_THREAD, "1"),
                "NUMBA_CACHE_DIR": self._cache,
            },
            preexec_fn=lambda: os.sched_setaffinity(0, {arguments.core}),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"library"')]
        row: dict[str, Any] = {"table": table}
        if done.returncode or not lines:
            tail = " ".join(done.stderr.strip().splitlines()[-1:])
            row |= {"library": library, **asdict(job), "error": tail or "no output"}
        else:
            row |= json.loads(lines[-1])
        self._sink.write(json.dumps(row) + "\n")
        self._sink.flush()
        print(json.dumps(row), file=sys.stderr, flush=True)
        return row

    def both(self, table: str, job: Job) -> Iterator[dict[str, Any]]:
        """Ours, and GPBoost if it is there."""
        yield self(table, "gpvi", job)
        if self.has_peers:
            yield self(table, "gpboost", job)


def evidence_rows(run: Runner, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Both libraries in turn."""
    for _ in range(arguments.rounds):
        for case, neighbors in product(("modis50k", "uniform"), (20, 30)):
            job = Job("evidence", case, rows=EVIDENCE_ROWS, neighbors=neighbors, repeats=5)
            yield from run.both("evidence", job)


def order_rows(run: Runner, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A million points."""
    for neighbors in (20, 30):
        yield from run.both("order", Job("order", "uniform", rows=MILLION, neighbors=neighbors))


def fit_rows(run: Runner, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """GPBoost with 20 neighbours; ours with more too where data are weak."""
    yield from run.both("fit", Job("fit", "modis50k"))
    for case in ("banana", "aircraft"):
        yield from run.both("fit", Job("fit", case))
        for neighbors in (30, 50):
            yield run("fit", "gpvi", Job("fit", case, neighbors=neighbors))


def scaling_rows(run: Runner, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Ours alone, in rounds."""
    for _ in range(arguments.rounds):
        for rows, neighbors in product((MILLION // 10, MILLION), (20, 30)):
            yield run("scaling", "gpvi", Job("scaling", "uniform", rows=rows, neighbors=neighbors))


def equal_time_rows(run: Runner, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Our fit, then theirs with multiples of its time."""
    for case in arguments.cases:
        job = Job("fit", case)
        ours = run("equal_time", "gpvi", job)
        yield ours
        if "error" in ours or not run.has_peers:
            continue
        settings = product(arguments.budgets, arguments.learning_rates, BATCH_SIZES, STARTS)
        for budget, rate, batch_size, start in settings:
            tuned = replace(job, learning_rate=rate, batch_size=batch_size, start=start)
            tuned = replace(tuned, seconds=budget * ours["fit_cpu_s"])
            yield {**run("equal_time", "vnngp", tuned), "times_our_cpu": budget}


def covariance_rows(run: Runner, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Ours, and theirs from both starts."""
    for neighbors in (20, 30):
        yield run("covariance", "gpvi", Job("covariance", "airfoil", neighbors=neighbors))
    for start in STARTS if run.has_peers else ():
        seconds = COVARIANCE_SECONDS if not arguments.rows else 2.0
        yield run("covariance", "vnngp", Job("covariance", "airfoil", start=start, seconds=seconds))


TABLES = {
    "evidence": evidence_rows,
    "order": order_rows,
    "fit": fit_rows,
    "scaling": scaling_rows,
    "equal_time": equal_time_rows,
    "covariance": covariance_rows,
}


def rendered(rows: list[dict[str, Any]]) -> str:
    """Tables in Markdown: medians over rounds; of the settings of a peer the best by test NLPD."""
    machines = sorted({row["machine"] for row in rows if "machine" in row})
    parts = [f"Processor: {'; '.join(machines)}\n"]
    for table in TABLES:
        lines = list(medians([row for row in rows if row["table"] == table]))
        if table == "equal_time":
            lines = list(best(lines))
        for ours in lines:
            ours |= ratios(ours, lines, RATIOS.get(table, {}))
        if not lines:
            continue
        headings = list(dict.fromkeys(name for line in lines for name in line))
        cells = [[text(name, line.get(name)) for name in headings] for line in lines]
        table_rows = (headings, ["---"] * len(headings), *cells)
        body = "\n".join(f"| {' | '.join(row)} |" for row in table_rows)
        parts.append(f"## {table}\n\n{body}\n")
    return "\n".join(parts)


def medians(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One line for all rounds of a job: what it is, then what was found."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    settings = ("library", "case", "rows", "neighbors", "times_our_cpu")
    tuned = ("learning_rate", "batch_size", "start")
    ignored = {"table", "load", "seed", "machine", *asdict(Job("", ""))}
    for row in rows:
        shown = settings if row["library"] != "vnngp" else settings + tuned
        found[json.dumps({name: row[name] for name in shown if name in row})].append(row)
    for key, lines in found.items():
        line = json.loads(key)
        good = [row for row in lines if "error" not in row]
        if not good:
            yield {**line, "error": lines[0]["error"]}
            continue
        for name in good[0]:
            if name not in line and name not in ignored and not name.endswith("_min_cpu_s"):
                line[name] = median(row[name] for row in good)
        yield line


def best(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Ours, and for every case and budget the peer's line with the lowest NLPD."""
    chosen: dict[tuple[str, str, float], dict[str, Any]] = {}
    for line in lines:
        key = line["case"], line["library"], line.get("times_our_cpu", 1.0)
        lowest = chosen.get(key, {}).get("nlpd", float("inf"))
        if key not in chosen or line.get("nlpd", float("inf")) < lowest:
            chosen[key] = line
    yield from chosen.values()


def ratios(
    ours: dict[str, Any], lines: list[dict[str, Any]], wanted: dict[str, tuple[str, str]]
) -> dict[str, float]:
    """Our times over the peer's, with as many neighbours if it ran with these."""
    same = ("case", "rows", "neighbors")
    of_peer = [line for line in lines if line["library"] == "gpboost" and "error" not in line]
    if ours["library"] != "gpvi" or "error" in ours:
        return {}
    for alike in (same, same[:2]):
        for peer in of_peer:
            if all(peer[name] == ours[name] for name in alike):
                return {key: ours[own] / peer[their] for key, (own, their) in wanted.items()}
    return {}


def text(name: str, value: Any) -> str:
    """A cell: five digits, and more where libraries should agree."""
    if value is None:
        return ""
    digits = 12 if "evidence" in name else 5
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def launch() -> None:
    """Run the tables that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--peers", type=Path, help="interpreter that has gpboost and gpytorch")
    parser.add_argument("--tables", type=names, default=tuple(TABLES))
    parser.add_argument("--cases", type=names, default=EQUAL_TIME_CASES, help="of equal_time")
    parser.add_argument("--budgets", type=numbers, default=(1.0, 10.0), help="of equal_time")
    parser.add_argument("--learning-rates", type=numbers, default=LEARNING_RATES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=0, help="cut every case to so many rows")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.tables) - set(TABLES))
    if unknown:
        parser.error(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache, arguments.out.open("w") as sink:
        run = Runner(arguments, sink, cache)
        for table in arguments.tables:
            rows += TABLES[table](run, arguments)
    markdown = rendered(rows)
    arguments.out.with_suffix(".md").write_text(markdown)
    print(markdown)


def names(value: str) -> tuple[str, ...]:
    """Comma-separated words."""
    return tuple(value.split(","))


def numbers(value: str) -> tuple[float, ...]:
    """Comma-separated numbers."""
    return tuple(float(part) for part in value.split(","))


# What follows is the worker of our own rows.


class Ordered:
    """Points in order with their neighbours, and the targets that belong to them."""

    def __init__(self, split: Split, order: Tensor, neighbors: int) -> None:
        points = torch.from_numpy(split.train_inputs)[order.long()].contiguous()
        pattern = NeighborPattern(earlier_neighbors(points, neighbors), spatial_order(points))
        by_level, pattern = order_by_level(pattern)
        self.points = points[by_level]
        self.targets = torch.from_numpy(split.train_targets)[order.long()][by_level]
        self.neighbors, self.schedule = pattern.neighbors, pattern.order
        self.own = torch.arange(len(self.points), dtype=torch.int32)


class Parameters(torch.nn.Module):
    """Lengthscale, variance and noise variance of the evidence, times a factor, and a GPyTorch kernel."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.kernel: Kernel = ScaleKernel(MaternKernel(nu=1.5)).double()
        # GPyTorch would round numbers to single precision, but not tensors.
        value = {
            name: torch.tensor(v, dtype=torch.float64) for name, v in EVIDENCE_PARAMETERS.items()
        }
        self.kernel.base_kernel.lengthscale = value["lengthscale"]
        self.kernel.outputscale = value["outputscale"]
        self.noise = torch.nn.Parameter(value["noise"])

    def compiled(self, rows: Ordered) -> Tensor:
        """By the loops for a kernel that they know by name."""
        return row_log_evidence(
            "matern32",
            rows.points,
            rows.targets,
            rows.neighbors,
            rows.own,
            self.kernel.base_kernel.lengthscale.squeeze(0),
            self.kernel.outputscale,
            self.noise,
            schedule=rows.schedule,
        )

    def generic(self, rows: Ordered) -> Tensor:
        """For a kernel of any kind."""
        points = rows.points

        def covariance(first: Tensor, second: Tensor) -> Tensor:
            return self.kernel(points[first], points[second], diag=True)

        variance = self.kernel(points, points, diag=True)
        columns = inverse_columns(
            covariance, variance, rows.neighbors, rows.own, self.noise, schedule=rows.schedule
        )
        return row_log_densities(columns, rows.neighbors, rows.own, rows.targets).sum()


def evidence(job: Job, split: Split) -> dict[str, Any]:
    """Value and gradient of both routes, and the value for the rows in the order of the file."""
    found: dict[str, Any] = {}
    made: list[Ordered] = []
    points = torch.from_numpy(split.train_inputs)

    def set_up() -> None:
        made.append(Ordered(split, maximin_order(points), job.neighbors))

    set_up()
    found["set_up_cpu_s"] = cpu_seconds(set_up)
    for prefix, route in (("", Parameters.compiled), ("generic_", Parameters.generic)):
        # Other parameters at every call, as for the peer: nothing is left from the one before.
        factors = iter(1 + 0.001 * np.arange(2 * job.repeats + 2))

        def value(route: Any = route, factors: Any = factors) -> None:
            with torch.no_grad():
                route(Parameters(next(factors)), made[-1])

        def gradient(route: Any = route, factors: Any = factors) -> None:
            route(Parameters(next(factors)), made[-1]).backward()

        with torch.no_grad():
            found[f"{prefix}log_evidence"] = float(route(Parameters(), made[-1]))
        found |= timed(f"{prefix}value", Stopwatch(value, job.repeats))
        found |= timed(f"{prefix}gradient", Stopwatch(gradient, job.repeats))
    as_given = Ordered(split, torch.arange(len(points)), job.neighbors)
    with torch.no_grad():
        found["log_evidence_rows_as_given"] = float(Parameters().compiled(as_given))
    return found


def order(job: Job, split: Split) -> dict[str, Any]:
    """Ordering and neighbours."""
    small = torch.from_numpy(split.train_inputs[:2000])
    earlier_neighbors(small[maximin_order(small).long()].contiguous(), job.neighbors)
    points = torch.from_numpy(split.train_inputs)
    orders: list[Tensor] = []
    ordering = cpu_seconds(lambda: orders.append(maximin_order(points)))
    ordered = points[orders[0].long()].contiguous()
    searching = cpu_seconds(lambda: earlier_neighbors(ordered, job.neighbors))
    return {
        "order_and_neighbors_cpu_s": ordering + searching,
        "order_cpu_s": ordering,
        "neighbors_cpu_s": searching,
    }


def estimator(job: Job, split: Split, **options: Any) -> Any:
    """The estimator of a kind of targets with the approximation under test."""
    settings = {"kernel": "matern32", "ard": job.case not in ISOTROPIC, "random_state": job.seed}
    settings["approximation"] = SparseInverseCholesky(num_neighbors=job.neighbors)
    if job.max_iter:
        settings["max_iter"] = job.max_iter
    return ESTIMATORS[split.kind](**(settings | options))


def predicted(model: Any, split: Split) -> tuple[Array, ...]:
    """What the scores of each kind of targets are computed from."""
    if split.kind == "regression":
        mean, deviation = model.predict(split.test_inputs, return_std=True)
        return mean, deviation**2
    if split.kind == "binary":
        return (model.predict_proba(split.test_inputs)[:, 1],)
    density = model.log_predictive_density(split.test_inputs, split.test_targets)
    return model.predict(split.test_inputs), density


def warmed_up(model: Any, split: Split) -> Any:
    """The model after a small fit and prediction, which compile everything."""
    small = synthetic_split(WARM_UP_ROWS, split.train_inputs.shape[1], split.kind)
    predicted(model.fit(small.train_inputs, small.train_targets), small)
    return model


def fit(job: Job, split: Split) -> dict[str, Any]:
    """A whole fit, and the scores of its predictions."""
    model = warmed_up(estimator(job, split), split)
    seconds = cpu_seconds(lambda: model.fit(split.train_inputs, split.train_targets))
    found: list[tuple[Array, ...]] = []
    predict = cpu_seconds(lambda: found.append(predicted(model, split)))
    return {
        "fit_cpu_s": seconds,
        "predict_cpu_s": predict,
        "iterations": len(model.history_),
        "log_evidence": float(model.elbo_),
        **scores(split, *found[0]),
    }


def scaling(job: Job, split: Split) -> dict[str, Any]:
    """Microseconds per point of every stage, and how much memory was needed up to its end."""
    model = warmed_up(estimator(job, split, optimizer=None), split)
    small = load_case(replace(job, rows=2000))
    parameters = Parameters()
    made: list[Ordered] = []
    found: dict[str, Any] = {}

    def set_up(part: Split = split) -> None:
        points = torch.from_numpy(part.train_inputs)
        made.append(Ordered(part, maximin_order(points), job.neighbors))

    def evaluate() -> None:
        parameters.compiled(made[-1]).backward()

    set_up(small)
    evaluate()
    stages = {
        "set_up": set_up,
        "gradient": evaluate,
        "condition": lambda: model.fit(split.train_inputs, split.train_targets),
        "predict": lambda: predicted(model, split),
    }
    for name, stage in stages.items():
        points = len(split.test_targets if name == "predict" else split.train_targets)
        found[f"{name}_us_per_point"] = 1e6 * cpu_seconds(stage) / points
        found[f"{name}_peak_mb"] = round(peak_megabytes())
    return found


def covariance(job: Job, split: Split) -> dict[str, Any]:
    """The posterior for fixed hyperparameters."""
    options: dict[str, Any] = {"kernel": "matern52", "ard": False, "mean": "zero"}
    options |= {"standardize": False, "optimizer": None}
    options["hyperparameters"] = {name: Fixed(value) for name, value in COVARIANCE_CASE.items()}
    model = warmed_up(estimator(job, split, **options), split)
    seconds = cpu_seconds(lambda: model.fit(split.train_inputs, split.train_targets))
    mean, joint = model.predict(split.test_inputs, return_cov=True, latent=True)
    return {"fit_cpu_s": seconds, **covariance_scores(split, mean, joint)}


MEASURES = {
    "evidence": evidence,
    "order": order,
    "fit": fit,
    "scaling": scaling,
    "covariance": covariance,
}


def work() -> None:
    """Measure one job and print its row."""
    torch.set_num_threads(1)
    job = parse_job(__doc__)
    split = load_case(job)
    print_row("gpvi", job, len(split.train_targets), MEASURES[job.measure](job, split))


if __name__ == "__main__":
    if any(option.startswith("--measure") for option in sys.argv[1:]):
        work()
    else:
        launch()
