"""Time and memory of the log likelihood of a long series, with its gradient, printed as JSON.

    python tests/benchmarks/bench_markov.py [--peers PATH/TO/PYTHON] [--rows 100000,1000000]

Every case (kernel, number of rows, irregular or regular stamps) runs in a process of its own on one
core with one thread, in rounds, so that a drift of the machine hits all alike. Times are CPU seconds
after a first call that compiles. With ``--peers``, the interpreter of an environment that holds
celerite2, tinygp and jax, those libraries run the same cases as far as they have the kernel
(irregular stamps only: neither knows a regular grid), and the ratios of their times to ours follow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

KERNELS = ("matern12", "matern32", "matern52", "matern72", "hida1", "hida2")
PEER_KERNELS = {"celerite2": ("matern32",), "tinygp": ("matern12", "matern32", "matern52")}

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def main() -> None:
    """Run all cases, print one JSON line each and a summary."""
    arguments = parsed()
    found: dict[tuple[str, str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for library, interpreter, kernel, rows, grid in cases(arguments):
            row = run(library, interpreter, kernel, rows, grid, arguments)
            print(json.dumps(row), flush=True)
            if "error" not in row:
                found[library, kernel, rows, grid].append(row)
    print(json.dumps({"summary": list(summary(found))}, indent=2))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=numbers, default=(100_000, 1_000_000))
    parser.add_argument("--kernels", type=names, default=KERNELS)
    parser.add_argument("--grids", type=names, default=("irregular", "regular"))
    parser.add_argument("--repeats", type=int, default=5, help="evaluations per process")
    parser.add_argument("--rounds", type=int, default=2, help="processes per case")
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument("--peers", type=Path, help="interpreter that has celerite2 and tinygp")
    return parser.parse_args()


def names(text: str) -> tuple[str, ...]:
    """Comma-separated words."""
    return tuple(text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Comma-separated integers."""
    return tuple(int(part) for part in text.split(","))


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str, int, str]]:
    """Library, interpreter, kernel, rows and grid of every process of a round."""
    for kernel in arguments.kernels:
        for rows in arguments.rows:
            for grid in arguments.grids:
                yield "gpvi", sys.executable, kernel, rows, grid
                if arguments.peers is None or grid == "regular":
                    continue
                for library, has in PEER_KERNELS.items():
                    if kernel in has:
                        yield library, str(arguments.peers), kernel, rows, grid


def run(
    library: str, interpreter: str, kernel: str, rows: int, grid: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One process on one core: the line that it prints, or its error."""
    worker = HERE / ("series_peer_gpvi.py" if library == "gpvi" else f"series_peer_{library}.py")
    command = [interpreter, str(worker), "--kernel", kernel, "--rows", str(rows), "--grid", grid]
    done = subprocess.run(
        [*command, "--repeats", str(options.repeats)],
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {options.core}),
        check=False,
    )
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:]
        case = {"library": library, "kernel": kernel, "rows": rows, "grid": grid}
        return {**case, "error": " ".join(tail)}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def summary(
    found: dict[tuple[str, str, int, str], list[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """Medians over rounds, and how many times slower than ours the peers are."""

    def median(key: tuple[str, str, int, str], entry: str) -> float:
        return statistics.median(row[entry]["median"] for row in found[key])

    for key in sorted(found):
        library, kernel, rows, grid = key
        row: dict[str, Any] = {"library": library, "kernel": kernel, "rows": rows, "grid": grid}
        row["value_s"] = round(median(key, "value_cpu_s"), 5)
        row["gradient_s"] = round(median(key, "gradient_cpu_s"), 5)
        row["gradient_ns_per_step"] = round(1e9 * row["gradient_s"] / rows, 1)
        row["peak_mb"] = round(max(line["peak_mb"] for line in found[key]))
        row["first_call_s"] = round(
            statistics.median(line["gradient_cpu_s"]["first_wall"] for line in found[key]), 2
        )
        row["log_likelihood"] = found[key][0]["log_likelihood"]
        ours = ("gpvi", kernel, rows, grid)
        if library != "gpvi" and ours in found:
            row["times_ours"] = round(row["gradient_s"] / median(ours, "gradient_cpu_s"), 2)
        yield row


if __name__ == "__main__":
    main()
