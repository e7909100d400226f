"""A fit that is killed at any moment goes on from its checkpoint to the same result, bit for bit.

One process imports torch once and forks a child for every attempt. A child is killed with SIGKILL: at a
given evaluation, by its own callback, or after a given time, by its parent. All attempts share one
checkpoint.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpvi.estimators import GPRegressor
from gpvi.exceptions import InputError

DRIVER = '''
import json, os, signal, sys, time, warnings
import numpy as np
import torch
torch.set_num_threads(1)
import gpvi.estimators.fitting as fitting
from gpvi.estimators import GPClassifier, GPCountRegressor, GPRegressor
from gpvi.inference import WarmStart

warnings.simplefilter("ignore")
fitting.WarmStart = lambda: WarmStart(num_rows=30, num_inducing=10, max_evaluations=6)
generator = np.random.default_rng(0)
X = generator.uniform(-2, 2, size=(80, 2))
f = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1]
TARGETS = {
    "GPRegressor": f + 0.1 * generator.normal(size=80),
    "GPClassifier": f > 0,
    "GPCountRegressor": generator.poisson(np.exp(f + 1)),
}
WEIGHTS = generator.integers(0, 3, size=80)
CLASSES = {cls.__name__: cls for cls in (GPRegressor, GPClassifier, GPCountRegressor)}


def fit(job, checkpoint, last=None, path=None):
    """One attempt; dies at evaluation number `last`, else leaves its results at `path`."""
    count = 0

    def die(record):
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    options = {"random_state": 0, "checkpoint": checkpoint, "callbacks": [die], **job["options"]}
    weights = WEIGHTS if job["weights"] else None
    model = CLASSES[job["cls"]](**options).fit(X, TARGETS[job["cls"]], weights)
    if path:
        history = [(r.stage, r.evaluation, r.objective, r.best, r.restart) for r in model.history_]
        mean, std = model.predict(X, latent=True, return_std=True)
        np.savez(
            path, mean=mean, std=std, elbo=model.elbo_,
            history=json.dumps(history), table=str(model.summary()).split("standardised")[1],
        )


def attempt(*arguments, delay=None):
    """Run `fit` in a child; returns the signal that ended it, or 0."""
    child = os.fork()
    if not child:
        status = 1
        try:
            fit(*arguments)
            status = 0
        finally:
            os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "an attempt failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def run(name, job):
    folder = os.path.join(sys.argv[1], name)
    os.mkdir(folder)
    checkpoint = os.path.join(folder, "checkpoint")
    # In this process, so that the children find everything imported and compiled.
    fit(job, None, None, os.path.join(folder, "whole.npz"))
    started = time.perf_counter()
    fit(job, None)
    whole = time.perf_counter() - started
    killed = [attempt(job, checkpoint, last) == signal.SIGKILL for last in job["kills"]]
    for part in job["delays"]:
        attempt(job, checkpoint, delay=part * whole)
    assert attempt(job, checkpoint, None, os.path.join(folder, "resumed.npz")) == 0
    return sum(killed)


jobs = json.loads(sys.argv[2])
print(json.dumps({name: run(name, job) for name, job in jobs.items()}))
'''

JOBS: dict[str, dict[str, Any]] = {
    "warm start and restarts": {
        "options": {
            "approximation": "inducing",
            "num_inducing": 8,
            "num_restarts": 1,
            "max_iter": 12,
        },
        "kills": [1, 2, 3, 5, 6, 7, 8, 9, 11, 14, 17, 20, 23, 26],
        "delays": [0.05, 0.1, 0.2, 0.3, 0.5, 0.7],
    },
    "minibatches": {
        "options": {"batch_size": 20, "num_inducing": 8, "max_iter": 160},
        # The state is written every 50 steps: counted from there, some die before the next time.
        "kills": [1, 3, 20, 49, 50, 51, 2, 10, 49, 51, 5, 30, 51, 3],
        "delays": [0.1, 0.2, 0.3, 0.4, 0.6, 0.8],
    },
    "adam": {
        "options": {"optimizer": "adam", "max_iter": 25},
        "kills": [1, 4, 10, 20, 28],
        "delays": [],
    },
    "classes": {
        "cls": "GPClassifier",
        "options": {"max_iter": 8},
        "kills": [1, 3, 6, 9],
        "delays": [],
    },
    "weighted counts": {
        "cls": "GPCountRegressor",
        "weights": True,
        "options": {"max_iter": 8},
        "kills": [1, 3, 6, 9],
        "delays": [],
    },
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Folder with the results of all jobs, and how many attempts of each were killed on the spot."""
    folder = tmp_path_factory.mktemp("resume")
    jobs = {name: {"cls": "GPRegressor", "weights": False, **job} for name, job in JOBS.items()}
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder), json.dumps(jobs)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("name", list(JOBS))
def test_killed_fits_resume_to_the_same_bits(
    name: str, outcomes: tuple[Path, dict[str, int]]
) -> None:
    job, folder = JOBS[name], outcomes[0] / name
    assert outcomes[1][name] == len(job["kills"]), "every one of these was cut short"
    with np.load(folder / "whole.npz") as whole, np.load(folder / "resumed.npz") as resumed:
        assert whole.files == resumed.files
        for part in whole.files:
            if part != "history":
                assert np.array_equal(whole[part], resumed[part]), part
        records = [json.loads(str(found["history"])) for found in (whole, resumed)]
    if "batch_size" not in job["options"]:
        assert records[0] == records[1]


class TestInOneProcess:
    """The same by an exception in place of a kill, so that it runs where nothing can be forked."""

    @staticmethod
    def data() -> tuple[np.ndarray, np.ndarray]:
        X = np.random.default_rng(0).uniform(-2, 2, size=(40, 2))
        noise = 0.1 * np.random.default_rng(1).normal(size=40)
        return X, np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] + noise

    @pytest.mark.parametrize(
        "options",
        [
            {"max_iter": 15},
            {"max_iter": 8, "num_restarts": 2},
            {"max_iter": 120, "batch_size": 10, "num_inducing": 6},
            {"max_iter": 10, "optimizer": "adam"},
        ],
        ids=["full batch", "restarts", "minibatches", "adam"],
    )
    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_interrupted_fits(self, options: dict[str, Any], tmp_path: Path) -> None:
        X, y = self.data()
        whole = GPRegressor(random_state=3, **options).fit(X, y)
        path = tmp_path / "checkpoint"
        for last in (1, 5, 9, 60):
            seen = []

            def interrupt(record: Any, seen: list = seen, last: int = last) -> None:
                seen.append(record)
                if len(seen) == last:
                    raise KeyboardInterrupt

            model = GPRegressor(random_state=3, checkpoint=path, callbacks=[interrupt], **options)
            try:
                model.fit(X, y)
            except KeyboardInterrupt:
                assert not hasattr(model, "posterior_")
        resumed = GPRegressor(random_state=3, checkpoint=path, **options).fit(X, y)
        assert resumed.elbo_ == whole.elbo_
        assert np.array_equal(
            resumed.predict(X, return_std=True), whole.predict(X, return_std=True)
        )

    def test_a_finished_fit_is_played_back(self, tmp_path: Path) -> None:
        X, y = self.data()
        options = {"random_state": 3, "checkpoint": tmp_path / "checkpoint"}
        first = GPRegressor(**options).fit(X, y)
        content = (tmp_path / "checkpoint").read_bytes()
        second = GPRegressor(**options).fit(X, y)
        assert second.elbo_ == first.elbo_ and (tmp_path / "checkpoint").read_bytes() == content

    def test_another_fit_is_refused(self, tmp_path: Path) -> None:
        X, y = self.data()
        path = tmp_path / "checkpoint"
        GPRegressor(random_state=3, checkpoint=path).fit(X, y)
        others: list[tuple[dict[str, Any], np.ndarray]] = [
            ({"random_state": 4}, y),
            ({"random_state": 3}, y + X[:, 0]),
            ({"random_state": 3, "kernel": "rbf"}, y),
            ({"random_state": 3, "objective": "elbo"}, y),
            ({"random_state": 3, "dtype": "float32"}, y),
        ]
        content = path.read_bytes()
        for options, targets in others:
            model = GPRegressor(checkpoint=path, **options)
            with pytest.raises(InputError, match="belongs to a fit with other data, settings"):
                model.fit(X, targets)
            assert not hasattr(model, "posterior_") and path.read_bytes() == content

    def test_files_that_are_no_checkpoints(self, tmp_path: Path) -> None:
        X, y = self.data()
        path = tmp_path / "notes"
        path.write_text("something else entirely\n" * 10)
        for options in ({}, {"batch_size": 10, "num_inducing": 5}):
            with pytest.raises(InputError, match=r"notes.* is not a gpvi checkpoint"):
                GPRegressor(random_state=0, checkpoint=path, **options).fit(X, y)
        assert path.read_text().startswith("something else")
