"""From rows to a table: medians over seeds, and the time we need to reach each peer's accuracy.

``python tests/benchmarks/table.py ROWS.jsonl ...`` renders rows that were measured before.

For each peer and seed the target is the peer's final NLPD. Our own entries are fitted from
scratch once per value of ``max_iter``; the time to reach the target is the fit time of the
cheapest of these fits whose NLPD is at or below the target, without interpolation between them.
The ratio divides it by the fit time of the peer. A seed whose target no fit reaches counts as
infinite, so a median over seeds is finite only if more than half of them get there. Our float64
entries are compared with every peer, our float32 entries with the peers that ran in float32.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from registry import OURS, TASKS

__all__ = ["number", "provenance", "render", "summarise", "time_to_reach"]

Row = Mapping[str, Any]
MEASURES = (
    "n",
    "rmse",
    "error_rate",
    "nlpd",
    "objective",
    "fit_cpu_s",
    "fit_wall_s",
    "predict_cpu_s",
    "peak_mb",
)


ERRORS = {
    "regression": ("RMSE", "rmse"),
    "binary": ("error rate", "error_rate"),
    "counts": ("RMSE of the rate", "rmse"),
}
"""Heading and measure of the column beside the NLPD, by kind of targets."""


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Medians per (task, peer, options) and ratios per (task, peer) as plain JSON values."""
    return {
        "medians": [_medians(group) for group in _grouped(rows)],
        "ratios": _ratios(rows),
        "machines": sorted({row["machine"] for row in rows if "machine" in row}),
        "merged": sorted({row["merged"] for row in rows if "merged" in row}),
        "seeds": sorted({row["seed"] for row in rows}),
    }


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in the seed only. Rows of different options are never pooled."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps([row["task"], row["peer"], row["options"]], sort_keys=True)
        groups.setdefault(key, []).append(row)
    for group in groups.values():
        seeds = [row["seed"] for row in group]
        if len(seeds) != len(set(seeds)):
            raise ValueError(
                f"{group[0]['peer']} on {group[0]['task']} has two rows for one seed: "
                f"{sorted(seeds)}; give each measurement once"
            )
    return list(groups.values())


def _medians(group: Sequence[Row]) -> dict[str, Any]:
    good = [row for row in group if row["status"] == "ok"]
    first = group[0]
    entry: dict[str, Any] = {key: first[key] for key in ("task", "peer", "options")}
    entry |= {"label": _label(first), "ok": len(good), "runs": len(group)}
    entry["precision"] = _precision(good[0]) if good else None
    for measure in MEASURES:
        values = [row[measure] for row in good if row.get(measure) is not None]
        entry[measure] = median(values) if values else None
    # Compiled code is cached within a run: only the first fit pays, so the largest is the cost.
    entry["compile_s"] = max((row["compile_s"] for row in good), default=None)
    failures = {f"{row['status']}: {row['error']}" for row in group if row["status"] != "ok"}
    entry["failures"] = sorted(failures)
    return entry


def _label(row: Row) -> str:
    if row["peer"] not in OURS:
        return str(row["peer"])
    return f"{row['peer']}, max_iter={row['options'].get('max_iter', 'default')}"


def _precision(row: Row) -> str | None:
    """What the peer said it computed in; rows written by early versions do not tell."""
    precision = row.get("settings", {}).get("dtype")
    return None if precision is None else str(precision)


def time_to_reach(fits: Iterable[tuple[float, float]], target: float) -> tuple[float, bool]:
    """Time of the cheapest fit whose NLPD is at most ``target``, and whether it stays there.

    Parameters
    ----------
    fits
        Pairs (seconds, NLPD) of independent fits.
    target
        NLPD to reach.

    Returns
    -------
    tuple
        Seconds (infinite if no fit reaches the target), and True if every more expensive fit
        reaches it as well, so that the ratio does not rest on one lucky fit.
    """
    ordered = sorted(fits)
    reached = [nlpd <= target for _, nlpd in ordered]
    if True not in reached:
        return math.inf, False
    first = reached.index(True)
    return ordered[first][0], all(reached[first:])


def _ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    good = [row for row in rows if row["status"] == "ok"]
    entries = []
    for group in _grouped([row for row in good if row["peer"] not in OURS]):
        task, peer = group[0]["task"], group[0]["peer"]
        for ours in OURS:
            if ours.endswith("float32") and _precision(group[0]) != "float32":
                continue
            per_seed = []
            for row in group:
                fits = [
                    (own["fit_cpu_s"], own["nlpd"])
                    for own in good
                    if (own["peer"], own["task"], own["seed"]) == (ours, task, row["seed"])
                ]
                if fits:
                    seconds, stays = time_to_reach(fits, row["nlpd"])
                    per_seed.append((seconds, seconds / row["fit_cpu_s"], stays))
            if per_seed:
                entries.append(
                    {
                        "task": task,
                        "peer": peer,
                        "options": group[0]["options"],
                        "precision": _precision(group[0]),
                        "ours": ours,
                        "target_nlpd": median(row["nlpd"] for row in group),
                        "peer_fit_cpu_s": median(row["fit_cpu_s"] for row in group),
                        "our_fit_cpu_s": _finite(median(s for s, _, _ in per_seed)),
                        "ratio": _finite(median(ratio for _, ratio, _ in per_seed)),
                        "reached": sum(math.isfinite(s) for s, _, _ in per_seed),
                        "stays": sum(stays for _, _, stays in per_seed),
                        "seeds": len(per_seed),
                    }
                )
    return entries


def _finite(value: float) -> float | None:
    """JSON has no infinity: None stands for 'not reached'."""
    return value if math.isfinite(value) else None


def render(summary: Mapping[str, Any]) -> str:
    """Markdown of a summary, one section per task."""
    lines = [
        f"Medians over seeds {', '.join(map(str, summary['seeds']))}; one core, one thread; CPU "
        "seconds (wall in brackets); NLPD is the mean negative log predictive density (of real "
        "targets, in original units) or probability (of labels and counts) of the held-out rows.",
    ]
    for task in TASKS:
        medians = [entry for entry in summary["medians"] if entry["task"] == task]
        if medians:
            ratios = [entry for entry in summary["ratios"] if entry["task"] == task]
            lines += ["", *_section(task, medians, ratios)]
    lines += ["", *provenance(summary)]
    return "\n".join(lines) + "\n"


def _section(task: str, medians: Sequence[Row], ratios: Sequence[Row]) -> list[str]:
    spec = TASKS[task]
    title, measure = ERRORS[spec.kind]
    lines = [
        f"## {task} ({spec.kind})",
        "",
        f"| peer | precision | n | {title} | NLPD | ELBO or log-ML | fit CPU s (wall) "
        "| predict CPU s | compile CPU s | MB | runs ok |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for entry in sorted(medians, key=lambda e: (e["nlpd"] is None, e["nlpd"] or 0.0, e["label"])):
        fit = f"{number(entry['fit_cpu_s'], 3)} ({number(entry['fit_wall_s'], 3)})"
        cells = [
            entry["label"],
            entry["precision"] or "-",
            number(entry["n"], 6),
            number(entry[measure], 4),
            number(entry["nlpd"], 4),
            number(entry["objective"], 6),
            fit if entry["ok"] else "-",
            number(entry["predict_cpu_s"], 3),
            number(entry["compile_s"], 3),
            number(entry["peak_mb"], 4),
            f"{entry['ok']}/{entry['runs']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    failed = [entry for entry in medians if entry["failures"]]
    if failed:
        lines += ["", "Runs without a result:", ""]
        lines += [f"- {e['label']}: {'; '.join(e['failures'])}" for e in failed]
    return lines + (["", *_ratio_lines(ratios)] if ratios else [])


def _ratio_lines(ratios: Sequence[Row]) -> list[str]:
    lines = [
        "Our fit time to reach the final NLPD of a peer, over the fit time of that peer "
        "(CPU seconds, median of per-seed ratios; below one we are faster):",
        "",
        "| peer | precision | its NLPD | its fit s | ours | our fit s | ratio "
        "| seeds reached (stay) |",
        "|---|---|--:|--:|---|--:|--:|--:|",
    ]
    for entry in sorted(ratios, key=lambda e: (OURS.index(e["ours"]), e["target_nlpd"])):
        ratio = "not reached" if entry["ratio"] is None else number(entry["ratio"], 3)
        cells = [
            entry["peer"],
            entry["precision"] or "-",
            number(entry["target_nlpd"], 4),
            number(entry["peer_fit_cpu_s"], 3),
            entry["ours"],
            number(entry["our_fit_cpu_s"], 3),
            ratio,
            f"{entry['reached']}/{entry['seeds']} ({entry['stays']})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def provenance(summary: Mapping[str, Any]) -> list[str]:
    """Where the rows come from, in sentences."""
    lines = [f"Processor: {', '.join(summary['machines']) or 'not recorded'}."]
    if len(summary["machines"]) > 1:
        lines.append("These rows come from different processors: do not compare their times.")
    if summary["merged"]:
        lines.append(f"Some rows were measured in an earlier run: {', '.join(summary['merged'])}.")
    return lines


def number(value: float | None, digits: int) -> str:
    """``digits`` significant digits, without an exponent for large numbers."""
    if value is None:
        return "-"
    if value != 0 and abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def main() -> None:
    """Render the rows of the named files."""
    rows = []
    for name in sys.argv[1:]:
        rows += [json.loads(line) for line in Path(name).read_text().splitlines() if line.strip()]
    if not rows:
        raise SystemExit("usage: table.py ROWS.jsonl ...")
    print(render(summarise(rows)))


if __name__ == "__main__":
    main()
