"""Checkpoints: a fit that was killed at any moment resumes to the same bits."""

import functools
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, InducingPoints
from gpvi.exceptions import InputError, NotPositiveDefiniteError, NumericalError
from gpvi.inference import (
    EvaluationLog,
    FitProblem,
    FitRecord,
    FitResult,
    Minibatcher,
    WarmStart,
    fingerprint,
    fit,
    load_state,
    save_state,
)
from gpvi.inference.checkpoint import module_settings
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood

# The function hides the module of the same name.
fit_module = sys.modules["gpvi.inference.fit"]


class TestFingerprint:
    def test_sees_values_shapes_types_and_settings(self):
        base = torch.arange(6.0)
        digests = {
            fingerprint([base], {"a": 1}),
            fingerprint([base], {"a": 2}),
            fingerprint([base.reshape(2, 3)], {"a": 1}),
            fingerprint([base.double()], {"a": 1}),
            fingerprint([base + 1e-6], {"a": 1}),
            fingerprint([base, None], {"a": 1}),
            fingerprint([None, base], {"a": 1}),
        }
        assert len(digests) == 7
        assert fingerprint([base.clone()], {"a": 1}) in digests

    def test_module_settings(self):
        def settings(module: torch.nn.Module) -> list:
            return module_settings(module)

        assert settings(MaternKernel(nu=1.5)) != settings(MaternKernel(nu=2.5))
        assert settings(RBFKernel()) != settings(MaternKernel())
        assert settings(RBFKernel()) == settings(RBFKernel())
        assert settings(InducingPoints(5)) != settings(InducingPoints(6))
        assert settings(InducingPoints(5)) != settings(InducingPoints(5, selection="random"))
        assert settings(BernoulliLikelihood()) != settings(BernoulliLikelihood(link="logit"))
        assert settings(RBFKernel().train()) == settings(RBFKernel().eval())


class TestEvaluationLog:
    def filled(self, path: Path) -> list[np.ndarray]:
        records = [np.arange(3.0), np.array([np.nan]), np.linspace(0, 1, 7)]
        log = EvaluationLog(path, "digest")
        for record in records:
            log.append(record)
        return records

    def test_plays_back(self, tmp_path):
        records = self.filled(tmp_path / "log")
        log = EvaluationLog(tmp_path / "log", "digest")
        for record in records:
            assert np.array_equal(log.replay(), record, equal_nan=True)
        assert log.replay() is None
        log.append(np.ones(2))
        assert len(EvaluationLog(tmp_path / "log", "digest")._pending) == 4

    def test_cut_anywhere(self, tmp_path):
        records = self.filled(tmp_path / "log")
        content = (tmp_path / "log").read_bytes()
        ends = [len(content)]
        for record in reversed(records):
            ends.insert(0, ends[0] - record.nbytes - struct.calcsize("<QI"))
        path = tmp_path / "cut"
        for size in range(len(content) + 1):
            path.write_bytes(content[:size])
            log = EvaluationLog(path, "digest")
            complete = sum(end <= size for end in ends[1:])
            assert len(log._pending) == complete
            log.append(np.full(2, 9.0))
            again = EvaluationLog(path, "digest")._pending
            assert len(again) == complete + 1 and again[-1].tolist() == [9.0, 9.0]

    def test_damaged_record_is_dropped_with_what_follows(self, tmp_path):
        self.filled(tmp_path / "log")
        content = bytearray((tmp_path / "log").read_bytes())
        content[-1] ^= 255
        (tmp_path / "log").write_bytes(content)
        assert len(EvaluationLog(tmp_path / "log", "digest")._pending) == 2

    def test_refuses_other_fits_and_other_files(self, tmp_path):
        self.filled(tmp_path / "log")
        before = (tmp_path / "log").read_bytes()
        with pytest.raises(InputError, match="other data, settings"):
            EvaluationLog(tmp_path / "log", "another")
        assert (tmp_path / "log").read_bytes() == before
        (tmp_path / "letter").write_text("Dear Sir")
        with pytest.raises(InputError, match="not a gpvi checkpoint"):
            EvaluationLog(tmp_path / "letter", "digest")
        assert (tmp_path / "letter").read_text() == "Dear Sir"


class TestState:
    def test_round_trip(self, tmp_path):
        tensors = {
            "a": torch.randn(3, generator=torch.Generator().manual_seed(0)),
            "b": torch.ones(2, 2),
        }
        assert load_state(tmp_path / "state", "digest") is None
        save_state(tmp_path / "state", "digest", tensors, {"step": 3, "loss": [0.1, float("nan")]})
        loaded, state = load_state(tmp_path / "state", "digest")
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
        assert state["step"] == 3 and state["loss"][0] == 0.1
        assert [path.name for path in tmp_path.iterdir()] == ["state"]

    def test_overlapping_views(self, tmp_path):
        base = torch.arange(6.0)
        save_state(tmp_path / "state", "d", {"a": base[:3], "b": base.reshape(2, 3).T}, {})
        loaded, _ = load_state(tmp_path / "state", "d")
        assert loaded["b"].tolist() == base.reshape(2, 3).T.tolist()

    def test_refuses(self, tmp_path):
        path = tmp_path / "state"
        save_state(path, "digest", {"a": torch.ones(1)}, {})
        with pytest.raises(InputError, match="other data, settings"):
            load_state(path, "another")
        content = path.read_bytes()
        for size in (0, 4, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:size])
            with pytest.raises(InputError, match="damaged"):
                load_state(path, "digest")
        path.write_bytes(b"Dear Sir, this is not a checkpoint at all")
        with pytest.raises(InputError, match="not a gpvi checkpoint"):
            load_state(path, "digest")


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = 6 * torch.rand(70, 1, generator=generator, dtype=torch.float64)
    noise = 0.2 * torch.randn(70, generator=generator, dtype=torch.float64)
    return x, (2 * x[:, 0]).sin() + noise


class Killed(Exception):
    """Stands for the process being killed."""


class Run:
    """One configuration of a fit, which can be started again and again from the same values."""

    def __init__(self, likelihood: Callable, targets: Callable, **options) -> None:
        self.likelihood, self.targets, self.options = likelihood, targets, options

    def __call__(
        self, checkpoint: Path | None = None, kill: tuple[str, int] | None = None, **changes
    ) -> tuple[FitResult, list[Tensor]]:
        x, y = data()
        mean = gpytorch.means.ConstantMean().double()
        gp = GaussianProcess(ScaleKernel(MaternKernel()).double(), mean)
        approximation, likelihood = InducingPoints(10), self.likelihood()

        def kill_at(record: FitRecord) -> None:
            if kill == (record.stage, record.evaluation):
                raise Killed

        result = fit(
            gp,
            approximation,
            likelihood,
            x,
            self.targets(y),
            generator=torch.Generator().manual_seed(changes.pop("seed", 7)),
            callbacks=[] if kill is None else [kill_at],
            checkpoint=checkpoint,
            **{**self.options, **changes},
        )
        values = [p.detach() for m in (gp, approximation, likelihood) for p in m.parameters()]
        return result, values


SUBSET = WarmStart(num_rows=30, num_inducing=8, max_evaluations=8)
LOOSE = {"tolerance": 1e-3, "max_iter": 7, "warm_start": SUBSET}
GAUSSIAN = Run(GaussianLikelihood, lambda y: y, **LOOSE)
BERNOULLI = Run(BernoulliLikelihood, lambda y: (y > 0).double(), **LOOSE)
ADAM = Run(BernoulliLikelihood, lambda y: (y > 0).double(), optimizer="adam", **LOOSE)
MINIBATCH = Run(
    lambda: PoissonLikelihood(),
    lambda y: (y + 1).exp().floor(),
    batch_size=16,
    warm_start=SUBSET,
    max_iter=60,
    learning_rate=0.02,
)

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")


def assert_same(first: tuple[FitResult, list[Tensor]], second: tuple[FitResult, list[Tensor]]):
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    assert first[0].objective == second[0].objective
    assert first[0].num_iterations == second[0].num_iterations
    assert first[0].converged == second[0].converged
    known = [(r.stage, r.evaluation, r.objective, r.best) for r in first[0].history]
    assert known == [(r.stage, r.evaluation, r.objective, r.best) for r in second[0].history]


class TestResume:
    @pytest.fixture(params=["gaussian", "bernoulli", "adam"])
    def run(self, request) -> Run:
        return {"gaussian": GAUSSIAN, "bernoulli": BERNOULLI, "adam": ADAM}[request.param]

    def test_a_checkpoint_changes_nothing(self, run, tmp_path):
        assert_same(run(), run(tmp_path / "fit"))

    def test_killed_at_any_evaluation(self, run, tmp_path):
        reference = run()
        places = [("warm start", k) for k in (1, 3)] + [("full batch", k) for k in (1, 5)]
        for place in places:
            path = tmp_path / f"{place[0]}-{place[1]}"
            with pytest.raises(Killed):
                run(path, kill=place)
            assert_same(reference, run(path))

    def test_killed_again_and_again(self, run, tmp_path):
        path = tmp_path / "fit"
        for place in [("warm start", 2), ("warm start", 5), ("full batch", 1), ("full batch", 4)]:
            with pytest.raises(Killed):
                run(path, kill=place)
        assert_same(run(), run(path))

    def test_torn_files(self, run, tmp_path):
        reference = run(tmp_path / "whole")
        for suffix in ("", ".warm-start"):
            content = (tmp_path / f"whole{suffix}").read_bytes()
            for size in (5, len(content) // 3, len(content) - 1):
                path = tmp_path / f"torn{suffix}-{size}"
                for other in ("", ".warm-start"):
                    whole = (tmp_path / f"whole{other}").read_bytes()
                    Path(f"{path}{other}").write_bytes(whole[:size] if other == suffix else whole)
                assert_same(reference, run(path))

    def test_a_finished_fit_is_only_played_back(self, run, tmp_path, monkeypatch):
        reference = run(tmp_path / "fit")

        def no_work(self):
            raise AssertionError("evaluated again")

        monkeypatch.setattr("gpvi.inference.problem.FitProblem.value", no_work)
        assert_same(reference, run(tmp_path / "fit"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"seed": 8},
            {"max_iter": 8},
            {"tolerance": 1e-2},
            {"objective": "elbo"},
            {"warm_start": None},
            {"optimizer": "adam", "learning_rate": 0.1},
        ],
    )
    def test_other_settings_are_refused(self, run, changes, tmp_path):
        with pytest.raises(Killed):
            run(tmp_path / "fit", kill=("full batch", 2))
        before = (tmp_path / "fit").read_bytes()
        with pytest.raises(InputError, match="other data, settings"):
            run(tmp_path / "fit", **changes)
        assert (tmp_path / "fit").read_bytes() == before

    def test_other_data_and_models_are_refused(self, tmp_path):
        with pytest.raises(Killed):
            GAUSSIAN(tmp_path / "fit", kill=("warm start", 2))
        for other in (
            Run(GaussianLikelihood, lambda y: y + 1e-12, **LOOSE),
            Run(lambda: GaussianLikelihood(noise=0.2), lambda y: y, **LOOSE),
            Run(gpytorch.likelihoods.GaussianLikelihood, lambda y: y, **LOOSE),
        ):
            with pytest.raises(InputError, match="other data, settings"):
                other(tmp_path / "fit")

    def test_a_kernel_with_the_same_parameters_is_another_fit(self, tmp_path):
        x, y = data()

        def start(nu: float, **options) -> None:
            fit(
                GaussianProcess(MaternKernel(nu=nu).double()),
                Exact(),
                GaussianLikelihood(),
                x,
                y,
                generator=torch.Generator().manual_seed(0),
                checkpoint=tmp_path / "fit",
                tolerance=1e-2,
                **options,
            )

        start(1.5)
        with pytest.raises(InputError, match="other data, settings"):
            start(2.5)
        with pytest.raises(InputError, match="other data, settings"):
            start(1.5, groups=torch.arange(70) % 2)

    def test_other_files_are_refused(self, run, tmp_path):
        (tmp_path / "fit").write_text("Dear Sir")
        with pytest.raises(InputError, match="not a gpvi checkpoint"):
            run(tmp_path / "fit")
        assert (tmp_path / "fit").read_text() == "Dear Sir"

    def test_failed_evaluations_are_played_back(self, tmp_path, monkeypatch):
        value, count = FitProblem.value, [0]

        def failing(problem):
            count[0] += 1
            if count[0] in (4, 11, 12):
                raise NotPositiveDefiniteError("K is not positive definite.")
            return value(problem)

        monkeypatch.setattr(FitProblem, "value", failing)
        reference = GAUSSIAN(warm_start=None)
        assert sum(record.failed for record in reference[0].history) == 3
        for k in (4, 5, 11, 12, 13):
            count[0] = 0
            with pytest.raises(Killed):
                GAUSSIAN(tmp_path / str(k), kill=("full batch", k), warm_start=None)
            resumed = GAUSSIAN(tmp_path / str(k), warm_start=None)
            assert all(torch.equal(a, b) for a, b in zip(reference[1], resumed[1], strict=True))


class TestResumeMinibatch:
    @pytest.fixture(autouse=True)
    def often(self, monkeypatch):
        monkeypatch.setattr(
            fit_module, "Minibatcher", functools.partial(Minibatcher, checkpoint_every=10)
        )

    def test_killed_at_any_step(self, tmp_path):
        reference = MINIBATCH()
        for place in [("warm start", 3), *[("minibatch", k) for k in (1, 10, 34)]]:
            path = tmp_path / f"{place[0]}-{place[1]}"
            with pytest.raises(Killed):
                MINIBATCH(path, kill=place)
            assert_same(reference, MINIBATCH(path))
        posterior = reference[0].posterior
        resumed = MINIBATCH(tmp_path / "minibatch-34")[0].posterior
        new = torch.linspace(0, 6, 5).double().unsqueeze(-1)
        assert torch.equal(posterior.predict(new).mean, resumed.predict(new).mean)

    def test_failures_around_the_checkpoint(self, tmp_path, monkeypatch):
        advance = Minibatcher._advance

        def failing(loop, rows):
            # Steps 20 and 33 fail once each, whatever was run before.
            if loop.step in (20, 33) and loop.failures == 0:
                raise NumericalError("broken")
            return advance(loop, rows)

        monkeypatch.setattr(Minibatcher, "_advance", failing)
        reference = MINIBATCH()
        assert [r.evaluation for r in reference[0].history if r.failed] == [21, 34]
        for k in (20, 36):
            with pytest.raises(Killed):
                MINIBATCH(tmp_path / str(k), kill=("minibatch", k))
            resumed = MINIBATCH(tmp_path / str(k))
            assert all(torch.equal(a, b) for a, b in zip(reference[1], resumed[1], strict=True))
            assert reference[0].objective == resumed[0].objective

    @pytest.mark.parametrize(
        "changes",
        [{"learning_rate": 0.03}, {"natural_step_size": 0.2}, {"batch_size": 17}, {"seed": 1}],
    )
    def test_other_settings_are_refused(self, changes, tmp_path):
        options = {"warm_start": None, "max_iter": 40}
        MINIBATCH(tmp_path / "fit", **options)
        before = (tmp_path / "fit").read_bytes()
        with pytest.raises(InputError, match="other data, settings"):
            MINIBATCH(tmp_path / "fit", **options, **changes)
        assert (tmp_path / "fit").read_bytes() == before

    def test_other_files_are_refused(self, tmp_path):
        (tmp_path / "fit").write_text("Dear Sir")
        with pytest.raises(InputError, match="not a gpvi checkpoint"):
            MINIBATCH(tmp_path / "fit", warm_start=None)
