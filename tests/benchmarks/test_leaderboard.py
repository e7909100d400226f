"""Planning, resuming and the page of the leaderboard, on made-up rows: nothing is fitted here."""

import argparse
import json
import xml.etree.ElementTree as ElementTree

import pytest


def made_up(job, nlpd, seconds, **changes):
    row = {"peer": job.peer, "task": job.task, "seed": job.seed, "options": dict(job.options)}
    row |= {"status": "ok", "error": None, "machine": "test processor", "n": 277, "rmse": 0.5}
    row |= {"nlpd": nlpd, "objective": None, "fit_cpu_s": seconds, "fit_wall_s": seconds}
    return row | {"predict_cpu_s": 0.1, "compile_s": 1.0, "peak_mb": 100.0} | changes


@pytest.fixture
def board(load):
    return load("leaderboard")


def ladder(board, peer, task="yacht", seed=0):
    (found,) = board.plan_ladders([task], [peer], [seed])
    return found


def summary_of(load, rows):
    return load("table").summarise(rows)


def test_every_entry_has_one_job_for_each_budget_and_seeds_are_outermost(board, load):
    registry = load("registry")
    peers = list(registry.LEADERBOARD)
    ladders = board.plan_ladders(registry.LEADERBOARD_TASKS, peers, [0, 1])
    assert [jobs[0].seed for jobs in ladders] == sorted(jobs[0].seed for jobs in ladders)
    assert all(len({job.key for job in jobs}) == len(jobs) for jobs in ladders)
    large = {jobs[0].peer for jobs in ladders if jobs[0].task == "protein"}
    small = {"gpvi-exact", "gpvi-exact-matern32", "gpvi-full-scale", "gpytorch-sgpr-float64"}
    assert large == set(peers) - small
    assert [job.options["steps"] for job in ladder(board, "gpytorch-sgpr", "kin40k")] == [
        5,
        15,
        50,
    ]
    ours = [job.options for job in ladder(board, "gpvi-coreset")]
    assert ours[0] == {"num_inducing": 200, "max_iter": 0} and ours[-1] == {"num_inducing": 200}


def test_budgets_grow(load):
    for budgets in load("registry").LEADERBOARD.values():
        for values in (budgets.small, budgets.large):
            known = [value for value in values if value is not None]
            assert known == sorted(set(known))
            assert None not in values[:-1]


def test_every_entry_has_a_name_and_runs_on_real_targets(load):
    registry, page = load("registry"), load("leaderboard_page")
    assert set(page.NAMES) == set(registry.LEADERBOARD) <= set(registry.PEERS)
    assert all("regression" in registry.PEERS[peer].kinds for peer in registry.LEADERBOARD)
    new = {"gpvi-sic", "gpvi-coreset", "gpytorch-vnngp"}
    assert not any(registry.PEERS[peer].default for peer in new)


def arguments(tmp_path, **changes):
    found = {"data": tmp_path, "out": tmp_path / "rows.jsonl", "tasks": ["yacht"], "seeds": [0]}
    found |= {"peers": ["gpboost-vecchia"], "python": [], "core": None, "cpu_limit": 10.0}
    return argparse.Namespace(**found | changes)


def test_a_stopped_run_goes_on_and_out_of_time_ends_a_ladder(board, monkeypatch, tmp_path):
    jobs = ladder(board, "gpboost-vecchia")
    fitted = []

    def fake(job, *_):
        fitted.append(job.options["max_iter"])
        if job.options["max_iter"] >= 10:
            return made_up(job, None, None, status="timed out", error="no result")
        return made_up(job, 0.5, 2.0)

    monkeypatch.setattr(board, "run_job", fake)
    out = tmp_path / "rows.jsonl"
    crashed = made_up(jobs[0], None, None, status="failed", error="killed")
    out.write_text(json.dumps(crashed) + "\n")
    board.measure(arguments(tmp_path))
    assert fitted == [3, 10]
    rows = board.read_latest([out])
    assert [rows[job.key]["status"] for job in jobs] == ["ok", "timed out", "timed out"]
    assert "shorter fit" in rows[jobs[2].key]["error"]
    written = out.read_text()
    board.measure(arguments(tmp_path))
    assert out.read_text() == written


def three(board, peer, rungs, seeds=(0, 1, 2)):
    rows = []
    for seed in seeds:
        jobs = ladder(board, peer, seed=seed)
        rows += [
            made_up(job, nlpd, seconds) for job, (nlpd, seconds) in zip(jobs, rungs, strict=False)
        ]
    return rows


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([(0.9, 1.0), (0.3, 5.0)], "yes"),
        ([(0.9, 1.0), (0.4, 5.0)], "yes"),  # equal counts as reached
        ([(0.9, 1.0), (0.3, 7.0)], "later"),
        ([(0.9, 1.0), (0.5, 5.0)], "no"),
    ],
)
def test_the_best_within_the_time_of_the_best_peer(board, load, ours, verdict):
    rows = three(board, "gpvi-sic", ours) + three(board, "gpflow-sgpr", [(0.8, 1.0), (0.4, 6.0)])
    page = load("leaderboard_page")
    (standing,) = page.standings(summary_of(load, rows)["medians"])
    assert standing.verdict == verdict
    assert standing.peer["fit_cpu_s"] == 6.0
    text = page.page(summary_of(load, rows), "images/x.svg")
    assert text.count("| GPflow SGPR | max_iter=40 |") == 1
    assert "277 rows, 200 inducing points" in text


def test_medians_over_fewer_splits_are_not_compared(board, load):
    rows = three(board, "gpvi-sic", [(0.5, 1.0)]) + three(board, "gpflow-sgpr", [(0.6, 2.0)])
    rows += three(board, "gpboost-vecchia", [(-9.0, 1.0)], seeds=(0,))
    page = load("leaderboard_page")
    (standing,) = page.standings(summary_of(load, rows)["medians"])
    assert (standing.peer["peer"], standing.verdict) == ("gpflow-sgpr", "yes")


def test_medians_over_different_splits_stand_in_tables_of_their_own(board, load):
    rows = three(board, "gpflow-sgpr", [(0.6, 2.0)])
    rows.append(made_up(ladder(board, "gpvi-coreset")[0], 0.1, 1.0))
    text = load("leaderboard_page").page(summary_of(load, rows), "images/x.svg")
    section = text[text.index("## Yacht") :]
    heads = [i for i, line in enumerate(section.splitlines()) if line.startswith("| model")]
    assert len(heads) == 2
    assert "GPflow" in section.splitlines()[heads[0] + 2]
    assert "coreset" in section.splitlines()[heads[1] + 2]


def test_failures_are_listed_and_peers_alone_have_no_verdict(board, load):
    rows = three(board, "gpflow-sgpr", [(0.6, 2.0)])
    job = ladder(board, "gpytorch-vnngp")[0]
    rows.append(made_up(job, None, None, status="not installed", error="No module named 'x'"))
    text = load("leaderboard_page").page(summary_of(load, rows), "images/x.svg")
    assert "- GPyTorch VNNGP, steps=150: not installed: No module named 'x'" in text
    assert "Not yet comparable: yacht." in text


def test_the_page_is_written_between_its_markers_and_the_figure_drawn(board, load, tmp_path):
    page = load("leaderboard_page")
    rows = three(board, "gpvi-sic", [(0.9, 1.0), (0.3, 5.0)])
    rows += three(board, "gpflow-sgpr", [(0.8, 1.0), (0.4, 6.0)])
    old = made_up(ladder(board, "gpvi-sic")[0], -5.0, 0.1)
    old["options"] = {"max_iter": 7}
    file, target = tmp_path / "rows.jsonl", tmp_path / "leaderboard.md"
    file.write_text("".join(json.dumps(row) + "\n" for row in [old, *rows]))
    target.write_text(f"# Title\n\nabove\n\n{page.BEGIN}\nold\n{page.END}\n\nbelow\n")
    asked = argparse.Namespace(rows=[file], docs=tmp_path)
    board.write(asked)
    text, figure = target.read_text(), (tmp_path / "images/leaderboard.svg").read_bytes()
    assert text.startswith("# Title\n\nabove\n") and text.endswith("\n\nbelow\n")
    assert "old\n" not in text and "max_iter=7" not in text
    assert "(images/leaderboard.svg)" in text
    assert ElementTree.fromstring(figure).tag.endswith("svg")
    board.write(asked)
    assert (target.read_text(), (tmp_path / "images/leaderboard.svg").read_bytes()) == (
        text,
        figure,
    )
    target.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the line"):
        board.write(asked)


def test_a_worker_that_uses_its_cpu_seconds_up_is_stopped(load, tmp_path):
    run = load("run")
    (job,) = run.plan_jobs(["yacht"], ["sklearn-gpr"], [0], ["default"], {})
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\nwhile :; do :; done\n")
    interpreter.chmod(0o755)
    row = run.run_job(job, tmp_path, str(interpreter), None, 60.0, tmp_path, cpu_limit=1.0)
    assert (row["status"], row["error"]) == ("timed out", "no result within 1 CPU s")
