"""Fit gpvi and its peers to the same splits, one process each, and tabulate the results.

``python tests/benchmarks/run.py --data DIR [--tasks A,B] [--peers P,Q] [--seeds 0,1,2]``

Every (peer, task, seed) runs alone, pinned to one core with one thread in every pool, so that CPU
seconds can be compared even while the machine does other things. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import DEFAULT_LADDER, KINDS, OURS, PEERS, TASKS, Option, options_for
from table import render, summarise

__all__ = ["Job", "plan_jobs", "run_job"]

HERE = Path(__file__).resolve().parent
CPU_GRACE = 10
"""CPU seconds between the signal that asks a worker to stop and the one that stops it."""

DEFAULT_OUT = Path(".benchmarks/rows.jsonl")


@dataclass(frozen=True)
class Job:
    """One measurement to make."""

    peer: str
    task: str
    seed: int
    options: Mapping[str, Option]

    @property
    def key(self) -> str:
        """What identifies the measurement, hence what a merged row must agree with."""
        return row_key(self.peer, self.task, self.seed, self.options)


def row_key(peer: str, task: str, seed: int, options: Mapping[str, Any]) -> str:
    """Canonical text of what was measured."""
    return json.dumps([peer, task, seed, dict(options)], sort_keys=True)


def plan_jobs(
    tasks: Sequence[str],
    peers: Sequence[str],
    seeds: Sequence[int],
    ladder: Sequence[str],
    overrides: Mapping[str, Mapping[str, Option]],
    seeds_for: Mapping[tuple[str, str | None], Sequence[int]] | None = None,
) -> list[Job]:
    """All measurements, seeds outermost, so that a drift of the machine hits every peer alike.

    ``seeds_for`` names the seeds of one peer, on one task or (None) on all; the others are left out.
    """
    jobs = []
    fewer = seeds_for or {}
    for seed in seeds:
        for task in tasks:
            for peer in peers:
                if not _applies(peer, task):
                    continue
                if seed not in fewer.get((peer, task), fewer.get((peer, None), seeds)):
                    continue
                options = options_for(peer, task, overrides.get(peer, {}))
                rungs: list[dict[str, Option]] = [{}]
                if peer in OURS:
                    rungs = [{} if k == "default" else {"max_iter": int(k)} for k in ladder]
                jobs += [Job(peer, task, seed, options | rung) for rung in rungs]
    return jobs


def _applies(peer: str, task: str) -> bool:
    peer_spec, task_spec = PEERS[peer], TASKS[task]
    return task_spec.kind in peer_spec.kinds and (peer_spec.large or not task_spec.large)


def run_job(
    job: Job,
    data: Path,
    interpreter: str,
    core: int | None,
    limit: float,
    compile_cache: Path,
    cpu_limit: float | None = None,
) -> dict[str, Any]:
    """Start the worker for one measurement and read its row; a crash is a row too.

    ``limit`` are wall seconds and ``cpu_limit`` CPU seconds of the whole process.
    """
    command = [interpreter, str(HERE / "worker.py"), "--peer", job.peer, "--task", job.task]
    command += ["--seed", str(job.seed), "--data", str(data.resolve())]
    command += ["--options", json.dumps(dict(job.options))]
    row = {"peer": job.peer, "task": job.task, "seed": job.seed, "options": dict(job.options)}
    try:
        done = subprocess.run(
            command,
            env=_environment(compile_cache),
            preexec_fn=lambda: _restrict(core, cpu_limit),
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return row | {"status": "timed out", "error": f"no result within {limit:g} s"}
    except OSError as error:
        return row | {"status": "failed", "error": f"{interpreter}: {error}"}
    if cpu_limit is not None and done.returncode == -signal.SIGXCPU:
        return row | {"status": "timed out", "error": f"no result within {cpu_limit:g} CPU s"}
    # Compiled libraries print to the same stream; the row is the last line, and a JSON object.
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"peer"')]
    if done.returncode or not lines:
        tail = " ".join(done.stderr.split())[-400:]
        return row | {"status": "failed", "error": f"exit status {done.returncode}: {tail}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def _restrict(core: int | None, cpu_limit: float | None) -> None:
    """Runs in the new process."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    if cpu_limit is not None:
        soft = math.ceil(cpu_limit)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + CPU_GRACE))


def _environment(compile_cache: Path) -> dict[str, str]:
    pools = ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB", "NUMEXPR")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": ""}
    cache = {"NUMBA_CACHE_DIR": str(compile_cache)}
    return os.environ | {f"{pool}_NUM_THREADS": "1" for pool in pools} | quiet | cache


def read_rows(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows of earlier runs, marked as such."""
    rows = []
    for file in files:
        for line in file.read_text().splitlines():
            if line.strip():
                rows.append(json.loads(line) | {"merged": file.name})
    return rows


def _names(text: str, allowed: Iterable[str], kind: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = sorted(set(names) - set(allowed))
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{kind}: {', '.join(unknown) or 'none'} not known; choose from {', '.join(allowed)}"
        )
    return names


def _tasks(text: str) -> list[str]:
    """Names of tasks; a kind stands for its default tasks."""
    names: list[str] = []
    for name in _names(text, [*TASKS, *KINDS], "tasks"):
        of_kind = [task for task, spec in TASKS.items() if spec.kind == name and spec.default]
        names += of_kind or [name]
    return list(dict.fromkeys(names))


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def _fewer_seeds(text: str) -> tuple[tuple[str, str | None], list[int]]:
    name, _, seeds = text.partition("=")
    peer, _, task = name.partition("@")
    if peer not in PEERS or (task and task not in TASKS) or not seeds:
        raise argparse.ArgumentTypeError(f"want PEER[@TASK]=SEEDS or =none, not {text!r}")
    return (peer, task or None), [] if seeds == "none" else _seeds(seeds)


def _rung(text: str) -> str:
    if text != "default" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"a rung is a number or 'default', not {text!r}")
    return text


def _interpreter(text: str) -> tuple[str, str]:
    library, _, path = text.partition("=")
    if library not in {spec.library for spec in PEERS.values()} or not path:
        raise argparse.ArgumentTypeError(f"want LIBRARY=PATH, with a library of ours, not {text!r}")
    return library, path


def _setting(text: str) -> tuple[str, str, Option]:
    name, _, value = text.partition("=")
    peer, _, option = name.partition(".")
    if peer not in PEERS or not option or not value:
        raise argparse.ArgumentTypeError(f"want PEER.OPTION=VALUE, not {text!r}")
    try:
        number: Option = int(value)
    except ValueError:
        number = float(value)
    return peer, option, number


def _core(text: str) -> int | None:
    return None if text == "any" else int(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pinning = hasattr(os, "sched_setaffinity")
    parser.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument(
        "--tasks",
        type=_tasks,
        default=[name for name, spec in TASKS.items() if spec.default],
        help="names of tasks, or of kinds: regression, binary, counts",
    )
    parser.add_argument(
        "--peers",
        type=lambda text: _names(text, PEERS, "peers"),
        default=[name for name, spec in PEERS.items() if spec.default],
    )
    parser.add_argument("--seeds", type=_seeds, default=[0, 1, 2])
    parser.add_argument(
        "--seeds-for",
        type=_fewer_seeds,
        action="append",
        default=[],
        metavar="PEER[@TASK]=SEEDS",
        help="which of the seeds a slow peer runs, or none",
    )
    parser.add_argument(
        "--ladder",
        type=lambda text: [_rung(rung) for rung in text.split(",")],
        default=list(DEFAULT_LADDER),
        help="values of max_iter for our entries (a number, or 'default')",
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help="JSON lines; .md and .json too"
    )
    parser.add_argument(
        "--merge",
        type=Path,
        action="append",
        default=[],
        help="rows that need not be measured again",
    )
    parser.add_argument(
        "--python",
        type=_interpreter,
        action="append",
        default=[],
        metavar="LIBRARY=PATH",
        help="interpreter of the environment that holds a library (default: this one)",
    )
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="PEER.OPTION=VALUE"
    )
    parser.add_argument(
        "--core",
        type=_core,
        default=max(os.sched_getaffinity(0)) if pinning else None,
        help="core to pin every run to, or 'any' (default: the last one allowed)",
    )
    parser.add_argument("--limit", type=float, default=3600.0, help="wall seconds per run")
    return parser.parse_args()


def main() -> None:
    """Measure what is asked for and not merged, then write rows, summary and table."""
    arguments = _arguments()
    overrides: dict[str, dict[str, Option]] = {}
    for peer, option, value in arguments.set:
        overrides.setdefault(peer, {})[option] = value
    jobs = plan_jobs(
        arguments.tasks,
        arguments.peers,
        arguments.seeds,
        arguments.ladder,
        overrides,
        dict(arguments.seeds_for),
    )
    earlier = {
        row_key(row["peer"], row["task"], row["seed"], row["options"]): row
        for row in read_rows(arguments.merge)
        if row["status"] == "ok"
    }
    interpreters = dict(arguments.python)
    rows: list[dict[str, Any]] = []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache, arguments.out.open("w") as sink:
        for number, job in enumerate(jobs, 1):
            row = earlier.get(job.key) or run_job(
                job,
                arguments.data,
                interpreters.get(PEERS[job.peer].library, sys.executable),
                arguments.core,
                arguments.limit,
                Path(cache),
            )
            rows.append(row)
            sink.write(json.dumps(row) + "\n")
            sink.flush()
            print(_progress(number, len(jobs), row), file=sys.stderr, flush=True)
    summary = summarise(rows)
    arguments.out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    markdown = render(summary)
    arguments.out.with_suffix(".md").write_text(markdown)
    print(markdown)


def _progress(number: int, total: int, row: Mapping[str, Any]) -> str:
    name = f"[{number}/{total}] {row['task']} {row['peer']} {row['options']} seed {row['seed']}:"
    if row["status"] != "ok":
        return f"{name} {row['status']}: {row['error']}"
    source = f" (from {row['merged']})" if "merged" in row else ""
    return f"{name} NLPD {row['nlpd']:.4f} in {row['fit_cpu_s']:.1f} CPU s{source}"


if __name__ == "__main__":
    main()
