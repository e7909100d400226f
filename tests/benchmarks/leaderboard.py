"""Scores against CPU time for every approximation of gpvi and for its peers, on regression sets.

``python tests/benchmarks/leaderboard.py measure --data DIR --out ROWS.jsonl [--peers P,Q]`` fits every
entry once for each of its budgets, from scratch, and appends a row per fit. What is in the file
already is not measured again, so that a run that was stopped goes on where it was.

``python tests/benchmarks/leaderboard.py write ROWS.jsonl ... --docs docs`` writes the tables between
the markers of ``leaderboard.md`` and draws the figure. See README.md beside this file for the rules.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from leaderboard_page import draw, insert, page
from registry import LEADERBOARD, LEADERBOARD_TASKS, PEERS, TASKS, Option, options_for
from run import Job, run_job
from table import summarise

__all__ = ["key_of", "plan_ladders", "read_latest"]

CPU_LIMIT = 360.0
"""CPU seconds of a whole worker: imports, warm-up, a fit of four to five minutes, predictions."""

WALL_LIMIT = 3600.0


def plan_ladders(
    tasks: Sequence[str], peers: Sequence[str], seeds: Sequence[int]
) -> list[list[Job]]:
    """The fits of one entry to one split, shortest first, for all of them; seeds outermost."""
    ladders = []
    for seed in seeds:
        for task in tasks:
            for peer in peers:
                if TASKS[task].large and not PEERS[peer].large:
                    continue
                budgets = LEADERBOARD[peer]
                common = options_for(peer, task, {})
                common.pop(budgets.option, None)
                rungs: list[dict[str, Option]] = [
                    {} if value is None else {budgets.option: value}
                    for value in (budgets.large if TASKS[task].large else budgets.small)
                ]
                ladders.append([Job(peer, task, seed, common | rung) for rung in rungs])
    return ladders


def key_of(row: dict[str, Any]) -> str:
    """What identifies the measurement of a row."""
    return Job(row["peer"], row["task"], row["seed"], row["options"]).key


def read_latest(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Rows by what they measured; of several the last, for failed fits are tried again."""
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        for line in file.read_text().splitlines():
            if line.strip():
                row = json.loads(line)
                rows[key_of(row)] = row
    return rows


def measure(arguments: argparse.Namespace) -> None:
    """Fit what the file does not have yet."""
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    known = read_latest([arguments.out] if arguments.out.exists() else [])
    ladders = plan_ladders(arguments.tasks, arguments.peers, arguments.seeds)
    left = sum(not _settled(known.get(job.key)) for ladder in ladders for job in ladder)
    interpreters = dict(arguments.python)
    with tempfile.TemporaryDirectory() as cache, arguments.out.open("a") as sink:
        for ladder in ladders:
            spent = False
            for job in ladder:
                row = known.get(job.key)
                if row is None or not _settled(row):
                    row = _without_time(job) if spent else None
                    row = row or run_job(
                        job,
                        arguments.data,
                        interpreters.get(PEERS[job.peer].library, sys.executable),
                        arguments.core,
                        WALL_LIMIT,
                        Path(cache),
                        arguments.cpu_limit,
                    )
                    sink.write(json.dumps(row) + "\n")
                    sink.flush()
                    left -= 1
                    print(_progress(row, left), file=sys.stderr, flush=True)
                spent = spent or row["status"] == "timed out"


def _settled(row: dict[str, Any] | None) -> bool:
    """Whether measuring again would say the same."""
    return row is not None and row["status"] in ("ok", "timed out")


def _without_time(job: Job) -> dict[str, Any]:
    row = {"peer": job.peer, "task": job.task, "seed": job.seed, "options": dict(job.options)}
    return row | {"status": "timed out", "error": "a shorter fit ran out of time already"}


def _progress(row: dict[str, Any], left: int) -> str:
    name = f"[{left} left] {row['task']} {row['peer']} {row['options']} seed {row['seed']}:"
    if row["status"] != "ok":
        return f"{name} {row['status']}: {row['error']}"
    return f"{name} NLPD {row['nlpd']:.4f} in {row['fit_cpu_s']:.1f} CPU s"


def write(arguments: argparse.Namespace) -> None:
    """The page and its figure from rows."""
    rows = read_latest(arguments.rows)
    planned = {
        job.key
        for ladder in plan_ladders(LEADERBOARD_TASKS, list(LEADERBOARD), range(10))
        for job in ladder
    }
    # Rows of ladders that have changed since are not compared with the others.
    kept = [row for key, row in rows.items() if key in planned]
    summary = summarise(kept)
    figure = arguments.docs / "images" / "leaderboard.svg"
    figure.parent.mkdir(exist_ok=True)
    # Seeds are outermost: every entry has the first split before any has the next.
    first = [row for row in kept if row["seed"] in summary["seeds"][:1]]
    draw(summarise(first)["medians"], figure)
    insert(arguments.docs / "leaderboard.md", page(summary, f"images/{figure.name}"))


def _names(text: str, allowed: Iterable[str]) -> list[str]:
    names, allowed = text.split(","), list(allowed)
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)} not known; choose from {', '.join(allowed)}"
        )
    return names


def _interpreter(text: str) -> tuple[str, str]:
    library, _, path = text.partition("=")
    if library not in {PEERS[peer].library for peer in LEADERBOARD} or not path:
        raise argparse.ArgumentTypeError(f"want LIBRARY=PATH, with a library of ours, not {text!r}")
    return library, path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure", help="fit and append rows")
    measuring.set_defaults(command=measure)
    measuring.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    measuring.add_argument("--out", type=Path, default=Path(".benchmarks/leaderboard.jsonl"))
    measuring.add_argument(
        "--tasks",
        type=lambda text: _names(text, LEADERBOARD_TASKS),
        default=list(LEADERBOARD_TASKS),
    )
    measuring.add_argument(
        "--peers", type=lambda text: _names(text, LEADERBOARD), default=list(LEADERBOARD)
    )
    measuring.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2]
    )
    measuring.add_argument(
        "--python",
        type=_interpreter,
        action="append",
        default=[],
        metavar="LIBRARY=PATH",
        help="interpreter of the environment that holds a library (default: this one)",
    )
    pinning = hasattr(os, "sched_setaffinity")
    measuring.add_argument(
        "--core", type=int, default=max(os.sched_getaffinity(0)) if pinning else None
    )
    measuring.add_argument("--cpu-limit", type=float, default=CPU_LIMIT, help="CPU seconds a run")
    writing = commands.add_parser("write", help="write the page and the figure")
    writing.set_defaults(command=write)
    writing.add_argument("rows", type=Path, nargs="+")
    writing.add_argument("--docs", type=Path, default=Path("docs"))
    return parser.parse_args()


def main() -> None:
    """Measure or write."""
    arguments = _arguments()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
