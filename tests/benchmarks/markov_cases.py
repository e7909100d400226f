"""The series of ``bench_markov.py`` and how it is timed: all that the workers share.

Imported by every worker under the interpreter of its own environment, hence needs only numpy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Case", "Stopwatch", "parse_case", "peak_megabytes", "print_report", "synthetic_series"]

Array = NDArray[np.float64]

ROWS_PER_LENGTHSCALE = 20
NOISE = 0.3


@dataclass(frozen=True)
class Case:
    """What one worker measures."""

    kernel: str
    rows: int
    grid: str
    repeats: int


def parse_case(description: str) -> Case:
    """The case on the command line of a worker."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--grid", choices=("irregular", "regular"), required=True)
    parser.add_argument("--repeats", type=int, required=True)
    return Case(**vars(parser.parse_args()))


def synthetic_series(case: Case) -> tuple[Array, Array]:
    """Sorted stamps, 20 to the unit of time, and sines of three periods in noise."""
    rng = np.random.default_rng(0)
    length = case.rows / ROWS_PER_LENGTHSCALE
    if case.grid == "regular":
        t = np.arange(case.rows) / ROWS_PER_LENGTHSCALE
    else:
        t = np.sort(rng.uniform(0.0, length, case.rows))
    signal = np.sin(t) + 0.5 * np.sin(2.3 * t + 1.0) + 0.3 * np.sin(0.37 * t)
    return t, signal + NOISE * rng.standard_normal(case.rows)


class Stopwatch:
    """CPU seconds of a call: of the first, which may compile, and of later ones."""

    def __init__(self, function: Callable[[], object], repeats: int) -> None:
        start = time.perf_counter()
        function()
        self.first_wall = time.perf_counter() - start
        self.seconds = []
        for _ in range(repeats):
            begin = time.process_time()
            function()
            self.seconds.append(time.process_time() - begin)

    def summary(self) -> dict[str, float]:
        """Median and minimum, and wall seconds of the first call."""
        return {
            "median": statistics.median(self.seconds),
            "min": min(self.seconds),
            "first_wall": self.first_wall,
        }


def peak_megabytes() -> float:
    """Most memory that this process ever held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM; the memory of a process is read on Linux only")


def print_report(
    library: str, case: Case, log_likelihood: float, value: Stopwatch, gradient: Stopwatch
) -> None:
    """One JSON line."""
    row = {
        "library": library,
        **asdict(case),
        "log_likelihood": log_likelihood,
        "value_cpu_s": value.summary(),
        "gradient_cpu_s": gradient.summary(),
        "gradient_ns_per_step": 1e9 * statistics.median(gradient.seconds) / case.rows,
        "peak_mb": peak_megabytes(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(row), flush=True)
