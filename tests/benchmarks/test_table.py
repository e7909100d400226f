"""The arithmetic behind the benchmark table, on made-up rows: nothing is fitted here."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

HERE = Path(__file__).resolve().parent


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


def test_peers_run_where_their_kind_of_model_applies(load):
    registry, run = load("registry"), load("run")
    jobs = run.plan_jobs(list(registry.TASKS), list(registry.PEERS), [0], ["default"], {})
    by_task = {task: {job.peer for job in jobs if job.task == task} for task in registry.TASKS}
    assert "sklearn-gpc" in by_task["ionosphere"] and "sklearn-gpr" not in by_task["ionosphere"]
    assert "gpflow-vgp" not in by_task["banana"] and "gpvi-exact" not in by_task["banana"]
    assert not any(peer.endswith(("float32", "float64")) for peer in by_task["elevators"])
    assert {"gpvi-exact-float32", "gpflow-svgp-float32"} <= by_task["coal"]
    assert all(len(peers) > 4 for peers in by_task.values())


def test_settings_follow_the_kind_of_targets(load):
    options_for = load("registry").options_for
    assert options_for("gpytorch-svgp", "elevators", {})["steps"] == 600
    assert options_for("gpytorch-svgp", "banana", {})["steps"] == 300
    assert options_for("gpytorch-svgp", "banana", {"steps": 9})["steps"] == 9
    assert options_for("gpboost-vecchia", "banana", {})["max_iter"] == 1000
    assert options_for("gpflow-vgp", "coal", {})["lengthscale"] == 0.15
    assert "lengthscale" not in options_for("gpytorch-svgp", "elevators", {})
    assert options_for("gpvi-inducing-float32", "banana", {}) == {
        "dtype": "float32",
        "num_inducing": 128,
    }


def test_slow_peers_may_run_fewer_seeds(load):
    run = load("run")
    fewer = dict(
        [run._fewer_seeds("sklearn-gpc=0,2"), run._fewer_seeds("sklearn-gpc@ionosphere=1")]
    )
    tasks, peers = ["ionosphere", "breast_cancer"], ["sklearn-gpc", "gpflow-vgp"]
    jobs = run.plan_jobs(tasks, peers, [0, 1, 2], ["default"], {}, fewer)
    seeds = {}
    for job in jobs:
        seeds.setdefault((job.peer, job.task), []).append(job.seed)
    assert seeds == {
        ("sklearn-gpc", "ionosphere"): [1],
        ("sklearn-gpc", "breast_cancer"): [0, 2],
        ("gpflow-vgp", "ionosphere"): [0, 1, 2],
        ("gpflow-vgp", "breast_cancer"): [0, 1, 2],
    }
    assert run._fewer_seeds("gpflow-vgp@aircraft=none") == (("gpflow-vgp", "aircraft"), [])
    with pytest.raises(argparse.ArgumentTypeError, match=r"PEER\[@TASK\]"):
        run._fewer_seeds("sklearn-gpc@nowhere=0")


def test_a_kind_stands_for_its_tasks(load):
    run = load("run")
    assert run._tasks("coal,binary") == ["coal", "banana", "ionosphere", "breast_cancer"]
    assert "kin40k" not in run._tasks("regression")
    with pytest.raises(argparse.ArgumentTypeError, match="bananas"):
        run._tasks("bananas")


def test_float32_entries_are_compared_with_float32_peers_only(load):
    rows = []
    for name, dtype in (("gpflow-svgp", "float64"), ("gpytorch-svgp", "float32")):
        rows.append(row(name, 0, 0.25, 8.0) | {"settings": {"dtype": dtype}})
    for name, dtype in (("gpvi-inducing", "float64"), ("gpvi-inducing-float32", "float32")):
        rows.append(row(name, 0, 0.24, 1.0) | {"settings": {"dtype": dtype}})
    ratios = load("table").summarise(rows)["ratios"]
    assert {(entry["ours"], entry["peer"], entry["precision"]) for entry in ratios} == {
        ("gpvi-inducing", "gpflow-svgp", "float64"),
        ("gpvi-inducing", "gpytorch-svgp", "float32"),
        ("gpvi-inducing-float32", "gpytorch-svgp", "float32"),
    }


def test_one_section_per_task_with_the_error_that_its_targets_have(load):
    binary = row("gpflow-svgp", 0, 0.25, 8.0) | {"task": "banana", "error_rate": 0.125}
    del binary["rmse"]
    counts = row("gpflow-vgp", 0, 0.75, 8.0) | {"task": "coal", "rmse": 0.6875}
    table = load("table")
    text = table.render(table.summarise([counts, binary, row("sklearn-gpr", 0, -0.5, 3.0)]))
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## elevators (regression)", "## banana (binary)", "## coal (counts)"]
    _, elevators, banana, coal = text.split("## ")
    assert "| RMSE | NLPD |" in elevators
    assert "| error rate | NLPD |" in banana and "| 0.125 | 0.25 |" in banana
    assert "| RMSE of the rate | NLPD |" in coal and "| 0.6875 | 0.75 |" in coal


def test_every_peer_has_its_file_and_every_peer_file_its_peer(load):
    modules = {spec.module for spec in load("registry").PEERS.values()}
    assert modules == {file.stem for file in HERE.glob("peer_*.py")}


def test_split_standardises_by_training_rows_and_scores_in_original_units(load, tmp_path):
    splits, scoring = load("splits"), load("scoring")
    task = load("registry").TaskSpec("toy", 5, large=False)
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(3.0, 2.0, (40, 3)), rng.normal(-5.0, 4.0, 40)
    inputs[:, 2] = 7.0
    masks = np.zeros((40, 2), bool)
    masks[:10, 0], masks[10:20, 1] = True, True
    np.savez(tmp_path / "toy.npz", X=inputs, y=targets, n=40, test_mask=np.packbits(masks, axis=0))
    split = splits.load_split(task, tmp_path, 1)
    np.testing.assert_allclose(split.train_inputs[:, :2].mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(split.train_inputs[:, :2].std(0), 1.0)
    np.testing.assert_allclose(split.test_inputs[:, 2], 0.0)
    np.testing.assert_allclose(split.test_targets, targets[10:20])
    np.testing.assert_allclose(
        split.train_targets * split.target_scale + split.target_mean,
        np.delete(targets, range(10, 20)),
    )
    scored = scoring.scores(split, np.zeros(10), np.ones(10))
    train_mean, train_scale = split.target_mean, split.target_scale
    residual = targets[10:20] - train_mean
    assert scored["rmse"] == pytest.approx(np.sqrt(np.mean(residual**2)))
    density = -0.5 * (residual / train_scale) ** 2 - np.log(train_scale * np.sqrt(2 * np.pi))
    assert scored["nlpd"] == pytest.approx(-density.mean())
    with pytest.raises(ValueError, match="not positive"):
        scoring.scores(split, np.zeros(10), np.zeros(10))
    with pytest.raises(ValueError, match="test masks 0 to 1"):
        splits.load_split(task, tmp_path, 2)


def test_labels_are_held_out_at_random_by_seed_and_stay_labels(load, tmp_path):
    splits, spec = load("splits"), load("registry").TaskSpec
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(3.0, 2.0, (50, 2)), rng.integers(0, 2, 50)
    np.savez(tmp_path / "toy.npz", X=inputs, y=labels)
    task = spec("toy", 5, large=False, kind="binary")
    first, again, other = (splits.load_split(task, tmp_path, seed) for seed in (0, 0, 1))
    assert first.test_targets.shape == (5,)
    assert set(np.concatenate([first.train_targets, first.test_targets])) == {0.0, 1.0}
    assert first.train_targets.sum() + first.test_targets.sum() == labels.sum()
    np.testing.assert_array_equal(first.test_inputs, again.test_inputs)
    assert not np.array_equal(first.test_inputs, other.test_inputs)
    np.testing.assert_allclose(first.train_inputs.mean(0), 0.0, atol=1e-12)
    shipped = spec("sklearn:breast_cancer", 5, large=False, kind="binary")
    assert splits.load_split(shipped, tmp_path, 0).train_inputs.shape == (513, 30)


@pytest.mark.parametrize(
    "times",
    [
        np.array([0.0, 0.5, 1.5, 4.0]),
        np.array(["1999-12-31", "2000-01-01", "2000-01-03", "2000-01-08"]),
    ],
)
def test_events_are_counted_in_equal_bins(load, tmp_path, times):
    np.savez(tmp_path / "events.npz", t=times)
    task = load("registry").TaskSpec("events", 5, large=False, kind="counts", bins=4)
    inputs, counts = load("splits")._load_counts(task, tmp_path)
    np.testing.assert_array_equal(counts, [2, 1, 0, 1])
    np.testing.assert_allclose(np.diff(inputs[:, 0]), np.ptp(inputs) / 3)


def test_scores_of_labels(load):
    split = load("splits").synthetic_split(60, 2, "binary")
    scores = load("scoring").scores
    sure = scores(split, split.test_targets)
    assert sure["error_rate"] == 0.0 and sure["nlpd"] == pytest.approx(0.0, abs=1e-9)
    undecided = scores(split, np.full(50, 0.5))
    assert undecided["nlpd"] == pytest.approx(np.log(2))
    wrong = scores(split, 1 - split.test_targets)
    assert wrong["error_rate"] == 1.0 and wrong["nlpd"] == pytest.approx(12 * np.log(10))
    with pytest.raises(ValueError, match="between 0 and 1"):
        scores(split, np.full(50, 1.1))
    with pytest.raises(ValueError, match="not finite"):
        scores(split, np.full(50, np.nan))
    with pytest.raises(ValueError, match="shape"):
        scores(split, np.full(49, 0.5))


def test_scores_of_counts(load):
    split = load("splits").synthetic_split(60, 2, "counts")
    scoring = load("scoring")
    rate = np.full(50, 2.0)
    scored = scoring.scores(split, rate, np.full(50, -1.5))
    assert scored["nlpd"] == 1.5
    assert scored["rmse"] == pytest.approx(np.sqrt(np.mean((split.test_targets - 2.0) ** 2)))
    with pytest.raises(ValueError, match="above one"):
        scoring.scores(split, rate, np.full(50, 0.5))
    with pytest.raises(ValueError, match="rate is not positive"):
        scoring.scores(split, -rate, np.full(50, -1.5))


def test_poisson_log_density_agrees_with_sums_and_samples(load):
    density = load("scoring").poisson_log_density
    counts = np.arange(40.0)
    mean, variance = np.full(40, 0.3), np.full(40, 0.4)
    assert np.exp(density(mean, variance, counts)).sum() == pytest.approx(1.0, abs=1e-4)
    certain = density(mean, np.zeros(40), counts)
    np.testing.assert_allclose(certain, stats.poisson.logpmf(counts, np.exp(0.3)), atol=1e-9)
    samples = np.exp(0.3 + np.sqrt(0.4) * np.random.default_rng(0).standard_normal(200_000))
    expected = np.log(stats.poisson.pmf(2, samples).mean())
    assert density(mean, variance, counts)[2] == pytest.approx(expected, abs=5e-3)
