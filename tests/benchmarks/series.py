"""Counts and temperatures in time with the estimators: scores, time and memory, printed as JSON.

    python tests/benchmarks/series.py --data DIR [--tasks coal,aircraft,vic]

Each task runs in a process of its own, on one core with one thread, after a small fit that loads and
compiles everything. Times are CPU seconds of the process; memory is the most that it ever held.

`coal`      British coal-mining disasters in 333 bins: negative log predictive density (NLPD) over the
            ten stored folds. `coal_folds.npz` holds `binned` [333, 2] (time, count) and `cv_index`
            [10, 33], the test rows of each fold; the rows of the other folds train.
`aircraft`  airliner accidents by day, 1919-2017: NLPD of a tenth of the days against time, for a
            ladder of iterations. `aircraft.npz` holds `date`, one entry per accident.
`vic`       half-hourly temperature of three years, a tenth of the 12-hour blocks held out. The file
            `vic_temp.npz` holds `t` in days and `temperature`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from markov_cases import Array, peak_megabytes

from gpvi import GPCountRegressor, GPRegressor

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

# Added to the number of the split where rows are held out at random.
FIRST_SEED = 1000

LADDER = (0, 1, 2, 4, 8, None)
HALF_HOURS_PER_BLOCK = 24


def coal(folder: Path, approximation: str, seed: int) -> Iterator[dict[str, Any]]:
    """NLPD of every fold and their mean."""
    with np.load(folder / "coal_folds.npz") as stored:
        (t, counts), folds = stored["binned"].T, stored["cv_index"]
    width = np.full(len(t), (t[-1] - t[0]) / (len(t) - 1))
    model = GPCountRegressor("matern52", approximation=approximation, random_state=seed)
    warm_up(model, t, counts)
    scores, seconds = [], 0.0
    for fold in range(len(folds)):
        train = np.concatenate(np.delete(folds, fold, axis=0))
        test = folds[fold]
        seconds += cpu_seconds(
            lambda rows=train: model.fit(t[rows, None], counts[rows], exposure=width[rows])
        )
        density = model.log_predictive_density(t[test, None], counts[test], exposure=width[test])
        scores.append(float(-density.mean()))
        yield {"fold": fold, "nlpd": scores[-1], "elbo": float(model.elbo_)}
    deviation = float(np.std(scores))
    yield {"nlpd": float(np.mean(scores)), "deviation": deviation, "fit_cpu_s": seconds}


def aircraft(folder: Path, approximation: str, seed: int) -> Iterator[dict[str, Any]]:
    """NLPD and time for every rung of the ladder of iterations."""
    with np.load(folder / "aircraft.npz") as stored:
        day = stored["date"].astype("datetime64[D]").astype(int)
    counts = np.bincount(day - day.min()).astype(float)
    years = np.arange(len(counts)) / 365.25
    test = np.zeros(len(counts), bool)
    order = np.random.default_rng(FIRST_SEED + seed).permutation(len(counts))
    test[order[: len(counts) // 10]] = True
    warm_up(GPCountRegressor("matern52", approximation=approximation), years, counts)
    for max_iter in LADDER:
        named = {} if max_iter is None else {"max_iter": max_iter}
        model = GPCountRegressor(
            "matern52", approximation=approximation, random_state=seed, **named
        )
        fit = cpu_seconds(lambda model=model: model.fit(years[~test, None], counts[~test]))
        scored: list[Array] = []
        predict = cpu_seconds(
            lambda model=model, scored=scored: scored.append(
                model.log_predictive_density(years[test, None], counts[test])
            )
        )
        yield {
            "max_iter": "default" if max_iter is None else max_iter,
            "evaluations": len(model.history_),
            "nlpd": float(-scored[0].mean()),
            "elbo": float(model.elbo_),
            "fit_cpu_s": fit,
            "score_cpu_s": predict,
        }


def vic(folder: Path, approximation: str, seed: int) -> Iterator[dict[str, Any]]:
    """Scores, time and memory of one fit and one prediction with variances."""
    with np.load(folder / "vic_temp.npz") as stored:
        t, degrees = stored["t"].astype(float), stored["temperature"].astype(float)
    block = np.arange(len(t)) // HALF_HOURS_PER_BLOCK
    num_blocks = int(block.max()) + 1
    held_out = np.random.default_rng(FIRST_SEED + seed).permutation(num_blocks)
    test = np.isin(block, held_out[: num_blocks // 10])
    model = GPRegressor("matern32", approximation=approximation, random_state=seed)
    warm_up(model, t, degrees)
    fit = cpu_seconds(lambda: model.fit(t[~test, None], degrees[~test]))
    after_fit = peak_megabytes()
    found: list[tuple[Array, Array]] = []
    predict = cpu_seconds(lambda: found.append(model.predict(t[test, None], return_std=True)))
    mean, deviation = found[0]
    error = degrees[test] - mean
    density = -0.5 * (np.log(2 * np.pi * deviation**2) + (error / deviation) ** 2)
    scale = degrees[~test].std()
    yield {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "nlpd": float(-density.mean()),
        # Of standardised targets, as other libraries report it.
        "log_evidence": float(model.elbo_ + (~test).sum() * np.log(scale)),
        "evaluations": len(model.history_),
        "fit_cpu_s": fit,
        "predict_cpu_s": predict,
        "peak_mb_after_fit": after_fit,
    }


TASKS = {"coal": coal, "aircraft": aircraft, "vic": vic}


def warm_up(model: Any, t: Array, y: Array) -> None:
    """A fit to some rows with all that a fit does, so that one-off costs stay out."""
    some = np.linspace(0, len(t) - 1, 200).astype(int)
    model.fit(t[some, None], y[some])
    model.log_predictive_density(t[:5, None], y[:5])
    model.predict(t[:5, None], return_std=True)


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """Start one process per task, or be one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--approximation", default="state_space")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", choices=sorted(TASKS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        for row in TASKS[arguments.worker](arguments.data, arguments.approximation, arguments.seed):
            print(json.dumps({"task": arguments.worker, **row}), flush=True)
        print(json.dumps({"task": arguments.worker, "peak_mb": round(peak_megabytes())}))
        return
    core = min(os.sched_getaffinity(0))
    for task in arguments.tasks.split(","):
        if task not in TASKS:
            parser.error(f"unknown task {task!r}; there are {', '.join(TASKS)}")
        subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--worker", task],
            env={**os.environ, **dict.fromkeys(ONE_THREAD, "1")},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            check=True,
        )


if __name__ == "__main__":
    main()
