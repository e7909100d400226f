"""Time of the collapsed bound on the elevators data, printed as JSON.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 taskset -c 0 \
        python tests/benchmarks/bench_collapsed_bound.py --data DIR

DIR holds `elevators.npz` with X, y, n and the packed columns `test_mask`, one per split. Times are
CPU seconds of this process (median and minimum after a warm-up), for value and gradient by inducing
inputs, lengthscales, outputscale and noise. The rate of a plain matrix product of the same size,
measured between the repeats, says how busy the machine was.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpvi.linalg.collapsed_bound import stationary_collapsed_bound


def load(folder: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Training inputs and targets of one split, standardised by their own mean and deviation."""
    with np.load(folder / "elevators.npz") as data:
        test = np.unpackbits(data["test_mask"], axis=0)[: int(data["n"]), seed].astype(bool)
        x, y = data["X"][~test].astype(float), data["y"][~test].astype(float)
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation < 1e-12, 1.0, deviation)
    return torch.from_numpy(x), torch.from_numpy((y - y.mean()) / y.std())


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", type=int, default=0)
    parser.add_argument("--inducing", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--kernel", default="matern52")
    arguments = parser.parse_args()

    x, y = load(arguments.data, arguments.split)
    (N, D), M = x.shape, arguments.inducing
    generator = torch.Generator().manual_seed(arguments.split)
    z = x[torch.randperm(N, generator=generator)[:M]].clone()
    leaves = (
        z,
        torch.full((D,), float(np.sqrt(D)), dtype=x.dtype),
        torch.ones((), dtype=x.dtype),
        torch.full((), 0.1, dtype=x.dtype),
    )
    for leaf in leaves:
        leaf.requires_grad_()
    row_noise = torch.full((N,), 0.1, dtype=x.dtype, requires_grad=True)

    def bound(tighter: bool, noise: Tensor) -> Tensor:
        z, lengthscale, outputscale, _ = leaves
        return stationary_collapsed_bound(
            arguments.kernel, x, z, y, lengthscale, outputscale, noise, jitter=1e-6, tighter=tighter
        )

    def value_only() -> Tensor:
        with torch.no_grad():
            return bound(True, leaves[3])

    tasks: dict[str, Callable[[], object]] = {
        "tightened": lambda: bound(True, leaves[3]).backward(),
        "plain": lambda: bound(False, leaves[3]).backward(),
        "tightened, noise per row": lambda: bound(True, row_noise).backward(),
        "tightened, value only": value_only,
    }
    # Compile and load everything on a few rows, then see what one evaluation adds to the peak.
    stationary_collapsed_bound(
        arguments.kernel, x[:99], z, y[:99], *leaves[1:], jitter=1e-6, tighter=True
    ).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tasks["tightened"]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    square = torch.eye(M, dtype=x.dtype) + 0.01
    tall = torch.ones(N, M, dtype=x.dtype)
    out = torch.empty_like(tall)
    tasks["gemm"] = lambda: torch.mm(tall, square, out=out)
    for task in tasks.values():  # gradients accumulate into the leaves: harmless
        task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(arguments.repeats):
        for name, task in tasks.items():
            seconds[name].append(cpu_seconds(task))
    rates = [2e-9 * N * M * M / t for t in seconds.pop("gemm")]
    report = {
        "rows": N,
        "dimensions": D,
        "inducing": M,
        "kernel": arguments.kernel,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_seconds": {
            name: {"median": round(statistics.median(t), 3), "min": round(min(t), 3)}
            for name, t in seconds.items()
        },
        "gemm_gflops": {"median": round(statistics.median(rates), 1), "max": round(max(rates), 1)},
        "extra_peak_memory_mb": round(peak / 1024),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
