"""The arithmetic behind the benchmark table, on made-up rows: nothing is fitted here."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def load(monkeypatch):
    """Import a module of this folder as the scripts do, and forget it afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(HERE))

    def loader(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield loader
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == HERE:
            del sys.modules[name]


def row(peer: str, seed: int, nlpd: float, seconds: float, **options: int) -> dict[str, Any]:
    return {
        "peer": peer,
        "task": "elevators",
        "seed": seed,
        "options": options,
        "status": "ok",
        "error": None,
        "machine": "test processor",
        "n": 100,
        "rmse": 0.1,
        "nlpd": nlpd,
        "objective": None,
        "fit_cpu_s": seconds,
        "fit_wall_s": 2 * seconds,
        "predict_cpu_s": 0.5,
        "compile_s": 10.0 - seed,
        "peak_mb": 300.0,
    }


def test_medians_over_seeds_and_largest_compile_time(load):
    rows = [row("gpytorch-svgp", s, n, t) for s, n, t in ((0, -0.9, 5), (1, -0.7, 9), (2, -0.8, 1))]
    (entry,) = load("table").summarise(rows)["medians"]
    assert (entry["nlpd"], entry["fit_cpu_s"], entry["fit_wall_s"]) == (-0.8, 5, 10)
    assert entry["compile_s"] == 10.0
    assert entry["objective"] is None
    assert (entry["ok"], entry["runs"]) == (3, 3)


def test_rows_of_different_options_are_not_pooled(load):
    rows = [row("gpytorch-svgp", 0, -0.9, 5, steps=600), row("gpytorch-svgp", 1, -0.5, 1, steps=10)]
    assert len(load("table").summarise(rows)["medians"]) == 2


def test_a_measurement_given_twice_is_refused(load):
    with pytest.raises(ValueError, match="two rows for one seed"):
        load("table").summarise([row("sklearn-gpr", 0, -0.9, 5), row("sklearn-gpr", 0, -0.8, 4)])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (-0.5, (1.0, True)),
        (-0.85, (2.0, False)),  # the fit of 3 s falls back above the target
        (-0.9, (2.0, False)),  # equal counts as reached
        (-0.95, (4.0, True)),
        (-1.5, (math.inf, False)),
    ],
)
def test_time_to_reach_takes_the_cheapest_fit_that_is_good_enough(load, target, expected):
    fits = [(4.0, -1.0), (1.0, -0.5), (3.0, -0.8), (2.0, -0.9)]
    assert load("table").time_to_reach(fits, target) == expected


def test_ratio_is_the_median_of_ratios_per_seed(load):
    rows = []
    for seed, peer_seconds in ((0, 10.0), (1, 20.0), (2, 100.0)):
        rows.append(row("gpflow-sgpr", seed, -0.9, peer_seconds))
        rows.append(row("gpvi-inducing", seed, -0.8, 1.0, max_iter=0))
        rows.append(row("gpvi-inducing", seed, -0.91, 5.0, max_iter=5))
    (entry,) = load("table").summarise(rows)["ratios"]
    assert entry["ratio"] == pytest.approx(0.25)
    assert entry["our_fit_cpu_s"] == 5.0
    assert (entry["reached"], entry["stays"], entry["seeds"]) == (3, 3, 3)


@pytest.mark.parametrize(("short", "expected"), [(1, 0.5), (2, None)])
def test_seeds_that_fall_short_count_as_infinite(load, short, expected):
    rows = []
    for seed in range(3):
        rows.append(row("gpboost-vecchia", seed, -0.95, 10.0))
        rows.append(row("gpvi-inducing", seed, -0.9 if seed < short else -0.96, 5.0))
    summary = load("table").summarise(rows)
    (entry,) = summary["ratios"]
    assert entry["ratio"] == expected
    assert entry["reached"] == 3 - short
    json.dumps(summary, allow_nan=False)
    assert ("not reached" in load("table").render(summary)) is (expected is None)


def test_failures_are_shown_and_do_not_enter_the_medians(load):
    missing = {"peer": "gpflow-sgpr", "task": "elevators", "seed": 0, "options": {}}
    missing |= {"status": "not installed", "error": "No module named 'gpflow'"}
    crashed = {"peer": "sklearn-gpr", "task": "elevators", "seed": 1, "options": {}}
    crashed |= {"status": "failed", "error": "exit status -9: "}
    table = load("table")
    summary = table.summarise([missing, crashed, row("sklearn-gpr", 0, -0.5, 3.0)])
    by_peer = {entry["peer"]: entry for entry in summary["medians"]}
    assert by_peer["gpflow-sgpr"]["nlpd"] is None
    assert (by_peer["sklearn-gpr"]["nlpd"], by_peer["sklearn-gpr"]["ok"]) == (-0.5, 1)
    text = table.render(summary)
    assert "gpflow-sgpr: not installed: No module named 'gpflow'" in text
    assert "| 1/2 |" in text


def test_rows_of_two_processors_bring_a_warning(load):
    table = load("table")
    other = row("sklearn-gpr", 1, -0.5, 3.0) | {"machine": "another processor"}
    assert "different processors" in table.render(
        table.summarise([row("sklearn-gpr", 0, -0.5, 3.0), other])
    )


def test_our_entries_are_planned_once_per_rung_and_small_ones_stay_small(load):
    jobs = load("run").plan_jobs(
        ["elevators", "concrete"], ["gpvi-inducing", "gpvi-exact"], [0, 1], ["0", "default"], {}
    )
    assert [job.options for job in jobs if job.task == "elevators" and job.seed == 0] == [
        {"num_inducing": 512, "max_iter": 0},
        {"num_inducing": 512},
    ]
    assert {job.peer for job in jobs if job.task == "elevators"} == {"gpvi-inducing"}
    assert {job.peer for job in jobs if job.task == "concrete"} == {"gpvi-inducing", "gpvi-exact"}
    assert [job.seed for job in jobs] == [0] * 6 + [1] * 6
    assert len({job.key for job in jobs}) == len(jobs)


def test_a_written_row_matches_its_job_when_merged(load, tmp_path):
    run = load("run")
    (job,) = run.plan_jobs(["concrete"], ["gpboost-vecchia"], [2], ["default"], {})
    file = tmp_path / "rows.jsonl"
    file.write_text(
        json.dumps(
            row(job.peer, 2, 1.0, 1.0)
            | {"task": job.task}
            | {"options": dict(reversed(job.options.items()))}
        )
        + "\n"
    )
    (merged,) = run.read_rows([file])
    key = run.row_key(merged["peer"], merged["task"], merged["seed"], merged["options"])
    assert key == job.key
    assert merged["merged"] == "rows.jsonl"


def test_an_interpreter_that_is_not_there_makes_a_failed_row(load, tmp_path):
    run = load("run")
    (job,) = run.plan_jobs(["yacht"], ["sklearn-gpr"], [0], ["default"], {})
    result = run.run_job(job, tmp_path, str(tmp_path / "python"), None, 10.0, tmp_path)
    assert result["status"] == "failed"
    assert str(tmp_path / "python") in result["error"]


def test_overrides_are_checked_and_small_tasks_have_their_own_settings(load):
    registry = load("registry")
    assert registry.options_for("gpboost-vecchia", "elevators", {})["max_iter"] == 10
    assert registry.options_for("gpboost-vecchia", "concrete", {})["max_iter"] == 1000
    assert registry.options_for("gpboost-vecchia", "concrete", {"max_iter": 3})["max_iter"] == 3
    with pytest.raises(ValueError, match="no setting stpes"):
        registry.options_for("gpytorch-svgp", "elevators", {"stpes": 3})


def test_every_peer_has_its_file_and_every_peer_file_its_peer(load):
    modules = {spec.module for spec in load("registry").PEERS.values()}
    assert modules == {file.stem for file in HERE.glob("peer_*.py")}


def test_split_standardises_by_training_rows_and_scores_in_original_units(load, tmp_path):
    splits = load("splits")
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(3.0, 2.0, (40, 3)), rng.normal(-5.0, 4.0, 40)
    inputs[:, 2] = 7.0
    masks = np.zeros((40, 2), bool)
    masks[:10, 0], masks[10:20, 1] = True, True
    np.savez(tmp_path / "toy.npz", X=inputs, y=targets, n=40, test_mask=np.packbits(masks, axis=0))
    split = splits.load_split(tmp_path / "toy.npz", 1)
    np.testing.assert_allclose(split.train_inputs[:, :2].mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(split.train_inputs[:, :2].std(0), 1.0)
    np.testing.assert_allclose(split.test_inputs[:, 2], 0.0)
    np.testing.assert_allclose(split.test_targets, targets[10:20])
    np.testing.assert_allclose(
        split.train_targets * split.target_scale + split.target_mean,
        np.delete(targets, range(10, 20)),
    )
    scored = splits.scores(split, np.zeros(10), np.ones(10))
    train_mean, train_scale = split.target_mean, split.target_scale
    residual = targets[10:20] - train_mean
    assert scored["rmse"] == pytest.approx(np.sqrt(np.mean(residual**2)))
    density = -0.5 * (residual / train_scale) ** 2 - np.log(train_scale * np.sqrt(2 * np.pi))
    assert scored["nlpd"] == pytest.approx(-density.mean())
    with pytest.raises(ValueError, match="not positive"):
        splits.scores(split, np.zeros(10), np.zeros(10))
    with pytest.raises(ValueError, match="test masks 0 to 1"):
        splits.load_split(tmp_path / "toy.npz", 2)
