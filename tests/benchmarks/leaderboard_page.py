"""Tables and figure of the leaderboard, from medians over seeds.

A comparison of two entries on a set takes the lowest median NLPD among the budgets of each. Scores
are those of held-out rows, so that the choice of a budget sees them, for us and for the peers alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from registry import LEADERBOARD, LEADERBOARD_TASKS, OURS, TASKS
from table import number, provenance

__all__ = ["BEGIN", "END", "Standing", "draw", "insert", "page", "standings"]

BEGIN = "<!-- leaderboard: begin, written by tests/benchmarks/leaderboard.py -->"
END = "<!-- leaderboard: end -->"

Entry = Mapping[str, Any]

NAMES = {
    "gpvi-exact": "gpvi, exact",
    "gpvi-exact-matern32": "gpvi, exact, Matérn-3/2",
    "gpvi-inducing": "gpvi, inducing points",
    "gpvi-sic": "gpvi, sparse inverse Cholesky",
    "gpvi-sic-matern32": "gpvi, sparse inverse Cholesky, Matérn-3/2",
    "gpvi-neighbor-inducing": "gpvi, inducing points given neighbours",
    "gpvi-coreset": "gpvi, coreset",
    "gpvi-orthogonal": "gpvi, orthogonal blocks",
    "gpvi-spherical": "gpvi, spherical features",
    "gpvi-spherical-orthogonal": "gpvi, spherical features and inducing points",
    "gpvi-full-scale": "gpvi, inducing points and neighbours",
    "gpytorch-svgp": "GPyTorch SVGP",
    "gpytorch-sgpr": "GPyTorch SGPR",
    "gpytorch-sgpr-float64": "GPyTorch SGPR, float64",
    "gpytorch-vnngp": "GPyTorch VNNGP",
    "gpflow-svgp": "GPflow SVGP",
    "gpflow-sgpr": "GPflow SGPR",
    "gpboost-vecchia": "GPBoost, Vecchia",
}


class Standing:
    """Who is ahead on one set: the best peer, our best within its time, our best.

    Only medians over the same number of splits are compared: a fit that failed on one is left out.
    """

    def __init__(self, task: str, entries: Sequence[Entry]) -> None:
        here = [entry for entry in entries if entry["task"] == task]
        most = max(entry["ok"] for entry in here)
        scored = [entry for entry in here if entry["ok"] == most > 0]
        self.task = task
        self.peer = _best(entry for entry in scored if entry["peer"] not in OURS)
        ours = [entry for entry in scored if entry["peer"] in OURS]
        self.ours = _best(ours)
        peer = self.peer
        self.ours_in_time = peer and _best(
            entry for entry in ours if entry["fit_cpu_s"] <= peer["fit_cpu_s"]
        )

    @property
    def verdict(self) -> str:
        """Whether the lowest NLPD within the time of the best peer is ours, in words."""
        if self.peer is None or self.ours is None:
            return "not measured"
        if self.ours_in_time and self.ours_in_time["nlpd"] <= self.peer["nlpd"]:
            return "yes"
        return "later" if self.ours["nlpd"] <= self.peer["nlpd"] else "no"


def _best(entries: Any) -> Entry | None:
    return min(entries, key=lambda entry: (entry["nlpd"], entry["fit_cpu_s"]), default=None)


def standings(entries: Sequence[Entry]) -> list[Standing]:
    """One for each set that has been measured."""
    measured = {entry["task"] for entry in entries}
    return [Standing(task, entries) for task in LEADERBOARD_TASKS if task in measured]


def budget(entry: Entry) -> str:
    """The rung of the ladder, as a cell."""
    option = LEADERBOARD[entry["peer"]].option
    return f"{option}={entry['options'].get(option, 'default')}"


def page(summary: Mapping[str, Any], figure: str) -> str:
    """Markdown of everything between the markers."""
    entries = summary["medians"]
    found = standings(entries)
    seeds = ", ".join(map(str, summary["seeds"]))
    lines = [f"Medians over the splits {seeds}. {' '.join(provenance(summary))}", ""]
    lines += [f"![Test NLPD against CPU seconds of the fit, one panel per set]({figure})", ""]
    lines += ["## Who is ahead", "", *_standing_lines(found)]
    for standing in found:
        lines += ["", *_section(standing.task, entries)]
    return "\n".join(lines) + "\n"


def _standing_lines(found: Sequence[Standing]) -> list[str]:
    lines = [
        "| set | splits | best peer | its NLPD | its fit s | ours within that time | NLPD | fit s "
        "| ours at any time | NLPD | fit s | ahead in time |",
        "|---|--:|---|--:|--:|---|--:|--:|---|--:|--:|---|",
    ]
    for standing in found:
        shown = standing.peer or standing.ours
        cells = [standing.task, str(shown["ok"]) if shown else "-"]
        for entry in (standing.peer, standing.ours_in_time, standing.ours):
            cells += (
                ["-", "-", "-"]
                if entry is None
                else [
                    f"{NAMES[entry['peer']]}, {budget(entry)}",
                    number(entry["nlpd"], 4),
                    number(entry["fit_cpu_s"], 3),
                ]
            )
        lines.append(f"| {' | '.join([*cells, standing.verdict])} |")
    words = {
        "yes": "Ours has the lowest NLPD within the time of the best peer on",
        "later": "Ours gets there, but in more time, on",
        "no": "Ours does not reach the best peer on",
        "not measured": "Not yet comparable:",
    }
    lines.append("")
    for verdict, sentence in words.items():
        tasks = [standing.task for standing in found if standing.verdict == verdict]
        if tasks:
            lines.append(f"{sentence} {', '.join(tasks)}.")
    return lines


def _section(task: str, entries: Sequence[Entry]) -> list[str]:
    """The best budget of every entry on one set, and what did not finish."""
    here = [entry for entry in entries if entry["task"] == task]
    best = [_best(e for e in here if e["peer"] == peer and e["ok"]) for peer in LEADERBOARD]
    shown = sorted((entry for entry in best if entry), key=lambda entry: entry["nlpd"])
    rows = f": {shown[0]['n']:.0f} rows" if shown else ""
    lines = [f"## {task.capitalize()}{rows}, {TASKS[task].num_inducing} inducing points"]
    # Medians over different splits are not comparable, and do not stand in one order.
    for splits in sorted({entry["ok"] for entry in shown}, reverse=True):
        lines += ["", *_table([entry for entry in shown if entry["ok"] == splits], here)]
    return lines + _failure_lines(here)


def _table(shown: Sequence[Entry], here: Sequence[Entry]) -> list[str]:
    """Some entries of a set, in their order, with the longest fit of each."""
    lines = [
        "| model | budget | RMSE | NLPD | fit s | predict s | longest fit: NLPD | s | splits |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for entry in shown:
        fits = [e for e in here if e["peer"] == entry["peer"] and e["ok"]]
        last = max(fits, key=lambda e: e["fit_cpu_s"])
        cells = [
            NAMES[entry["peer"]],
            budget(entry),
            number(entry["rmse"], 4),
            number(entry["nlpd"], 4),
            number(entry["fit_cpu_s"], 3),
            number(entry["predict_cpu_s"], 2),
            number(last["nlpd"], 4),
            number(last["fit_cpu_s"], 3),
            f"{entry['ok']} of {entry['runs']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _failure_lines(here: Sequence[Entry]) -> list[str]:
    lines = []
    for peer in LEADERBOARD:
        failed = [entry for entry in here if entry["peer"] == peer and entry["failures"]]
        if failed:
            budgets = ", ".join(budget(entry) for entry in failed)
            lines.append(f"- {NAMES[peer]}, {budgets}: {failed[0]['failures'][0]}")
    return ["", "Fits without a result:", "", *lines] if lines else []


def insert(file: Path, text: str) -> None:
    """Replace what stands between the markers of a page.

    Raises
    ------
    ValueError
        If the page lacks a marker.
    """
    old = file.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} lacks the line {BEGIN!r} or {END!r} behind it")
    file.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def draw(entries: Sequence[Entry], file: Path) -> None:
    """NLPD against CPU seconds of the fit, one panel per set: ours solid, peers dashed."""
    import matplotlib
    from matplotlib.figure import Figure

    tasks = [standing.task for standing in standings(entries)]
    columns = min(4, len(tasks) + 1)
    rows = -(-(len(tasks) + 1) // columns)
    # Text stays text and ids are the same every time, so that the file is small and diffs are too.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "leaderboard"}):
        figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, task in zip(panels, tasks, strict=False):
            _draw_panel(panel, task, [e for e in entries if e["task"] == task and e["ok"]])
        for panel in panels[len(tasks) :]:
            panel.set_axis_off()
        panels[-1].legend(handles=_legend(), loc="center", fontsize=7, frameon=False)
        figure.savefig(file, metadata={"Date": None})


def _draw_panel(panel: Any, task: str, entries: Sequence[Entry]) -> None:
    for peer in LEADERBOARD:
        curve = sorted((e["fit_cpu_s"], e["nlpd"]) for e in entries if e["peer"] == peer)
        if curve:
            panel.plot(*zip(*curve, strict=True), **_style(peer))
    panel.set_xscale("log")
    panel.set_title(task, fontsize=9)
    panel.set_xlabel("CPU s of the fit", fontsize=8)
    panel.set_ylabel("test NLPD", fontsize=8)
    panel.tick_params(labelsize=7)
    scores = sorted(entry["nlpd"] for entry in entries)
    if scores:
        # Short fits can be far off: the axis ends where the best four fifths of the fits end.
        low, high = scores[0], scores[(4 * (len(scores) - 1)) // 5]
        margin = 0.06 * max(high - low, 1e-3)
        panel.set_ylim(low - margin, high + margin)


def _style(peer: str) -> dict[str, Any]:
    ours = [name for name in LEADERBOARD if name in OURS]
    theirs = [name for name in LEADERBOARD if name not in OURS]
    family = ours if peer in OURS else theirs
    place = family.index(peer)
    return {
        "color": f"C{place}",
        "linestyle": "-" if peer in OURS else "--",
        "marker": "o" if peer in OURS else "sv^DPX*"[place % 7],
        "markerfacecolor": f"C{place}" if peer in OURS else "white",
        "markersize": 3.5,
        "linewidth": 1.1,
    }


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=NAMES[peer], **_style(peer)) for peer in LEADERBOARD]
