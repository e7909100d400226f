"""L-BFGS on all rows: optimum, records, callbacks, failing evaluations."""

import math
from itertools import pairwise

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from scipy.optimize import OptimizeResult
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from gpvi.approximations import Exact, GaussianProcess, InducingPoints
from gpvi.exceptions import ConvergenceWarning, NotPositiveDefiniteError, NumericalError
from gpvi.inference import FitProblem, FitRecord, fit, initialize_hyperparameters, maximize
from gpvi.inference.coordinates import Curvature
from gpvi.inference.evaluator import Evaluation
from gpvi.inference.full_batch import _Loss, _Progress
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, as_likelihood

GENERATOR = np.random.default_rng(3)
X = np.sort(GENERATOR.uniform(0, 6, size=(40, 1)), axis=0)
Y = np.sin(2 * X[:, 0]) + 0.2 * GENERATOR.normal(size=40)
INPUTS, TARGETS = torch.as_tensor(X), torch.as_tensor(Y)


def build(approximation=None, likelihood=None, y=TARGETS, **options) -> FitProblem:
    approximation = Exact() if approximation is None else approximation
    likelihood = GaussianLikelihood(noise=0.5) if likelihood is None else likelihood
    gp = GaussianProcess(ScaleKernel(RBFKernel()).double())
    return FitProblem(
        gp,
        approximation,
        as_likelihood(likelihood),
        INPUTS,
        y,
        approximation.plan(INPUTS),
        **options,
    )


def ascend(problem: FitProblem, **options):
    history: list[FitRecord] = []
    settings = {"max_iter": 100, "max_evaluations": None, "tolerance": 1e-8, **options}
    return maximize(problem, stage="full batch", history=history, **settings), history


def state(problem: FitProblem) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part, module in problem.modules.items()
        for name, value in module.state_dict().items()
    }


def assert_unchanged(problem: FitProblem, before: dict[str, torch.Tensor]):
    after = state(problem)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


class TestOptimum:
    def reference(self) -> float:
        kernel = ConstantKernel(1.0) * RBF(0.7) + WhiteKernel(0.5, (1e-6, 1e3))
        return (
            GaussianProcessRegressor(kernel, n_restarts_optimizer=3, random_state=0)
            .fit(X, Y)
            .log_marginal_likelihood_value_
        )

    def test_exact_reaches_scikit_learn(self):
        ascent, _ = ascend(build())
        assert ascent.converged
        assert ascent.objective == pytest.approx(self.reference(), abs=1e-4)

    @pytest.mark.parametrize("objective", ["elbo", "tighter_elbo"])
    def test_inducing_points_at_all_rows_reach_it_too(self, objective):
        points = InducingPoints(inducing_points=INPUTS, learn=False, jitter=1e-10)
        ascent, _ = ascend(build(points, objective=objective))
        assert ascent.converged
        assert ascent.objective == pytest.approx(self.reference(), abs=1e-2)

    def test_learned_inducing_points_help(self):
        held = build(InducingPoints(inducing_points=INPUTS[:8], learn=False))
        moved = build(InducingPoints(inducing_points=INPUTS[:8]))
        assert ascend(moved)[0].objective > ascend(held)[0].objective + 1.0
        assert not torch.equal(moved.approximation.inducing_points, INPUTS[:8])

    def test_classification_improves_and_converges(self):
        problem = build(likelihood=BernoulliLikelihood(), y=(TARGETS > 0).double())
        start = problem.value().item()
        ascent, history = ascend(problem, tolerance=1e-6)
        assert ascent.converged and ascent.objective > start + 1.0
        assert problem.value().item() == pytest.approx(ascent.objective, abs=1e-3)
        assert history[-1].gradient_norm < 1e-2

    def test_leaves_parameters_at_the_best_point(self):
        problem = build()
        ascent, history = ascend(problem, max_iter=7)
        assert ascent.objective == max(record.objective for record in history)
        assert problem.value().item() == pytest.approx(ascent.objective, abs=1e-9)

    def test_repeatable(self):
        first, second = build(), build()
        ascend(first), ascend(second)
        assert_unchanged(first, state(second))

    def test_noise_free_data_end_without_complaint(self):
        problem = build(y=torch.sin(INPUTS[:, 0]))
        ascent, _ = ascend(problem, tolerance=1e-6)
        assert ascent.converged

    def test_learned_curvature_saves_iterations(self):
        first = build()
        ascent, history = ascend(first)
        assert isinstance(ascent.curvature, Curvature)
        assert set(ascent.curvature.slices) == {
            "gp.kernel.raw_outputscale",
            "gp.kernel.base_kernel.raw_lengthscale",
            "likelihood.raw_noise",
        }
        again, shorter = ascend(build(), curvature=ascent.curvature)
        assert again.objective == pytest.approx(ascent.objective, abs=1e-5)
        assert len(shorter) <= len(history)


class TestRecords:
    def test_one_record_per_evaluation(self, monkeypatch):
        problem, calls = build(), []
        value = problem.value
        monkeypatch.setattr(problem, "value", lambda: calls.append(1) or value())
        ascent, history = ascend(problem, max_iter=10)
        assert len(history) == len(calls)
        assert [record.evaluation for record in history] == list(range(1, len(calls) + 1))
        assert {record.stage for record in history} == {"full batch"}
        best = np.maximum.accumulate([record.objective for record in history])
        assert np.array_equal([record.best for record in history], best)
        assert all(b.seconds >= a.seconds >= 0 for a, b in pairwise(history))
        assert ascent.num_iterations == 10 and not ascent.converged

    def test_callbacks_see_every_record_and_may_stop(self):
        seen, others = [], []

        def stop(record: FitRecord) -> bool:
            seen.append(record)
            return record.evaluation == 4

        ascent, history = ascend(build(), callbacks=[stop, others.append])
        assert seen == others == history and len(history) == 4
        assert ascent.stopped and not ascent.converged and "callback" in ascent.message

    def test_evaluation_limit(self):
        _, history = ascend(build(), max_evaluations=5)
        assert 5 <= len(history) <= 7  # SciPy looks at the limit between line searches' steps

    def test_stopping_rule(self):
        loose, short = ascend(build(), tolerance=1e-1)
        tight, long = ascend(build(), tolerance=1e-7)
        assert loose.converged and tight.converged
        assert "0.1 nats per row" in loose.message
        assert len(short) < len(long)
        # Three iterations in a row, each less than the tolerance: not one plateau.
        assert loose.num_iterations >= 4

    def test_exceptions_of_callbacks_pass_and_undo(self):
        def explode(record: FitRecord) -> None:
            if record.evaluation == 3:
                raise KeyError("mine")

        problem = build()
        before = state(problem)
        with pytest.raises(KeyError, match="mine"):
            ascend(problem, callbacks=[explode])
        assert_unchanged(problem, before)


class TestFailures:
    @pytest.mark.parametrize("bad", [{3}, {2, 5, 6}, set(range(2, 8))])
    @pytest.mark.parametrize("kind", ["raises", "nan", "slope"])
    def test_a_wall_is_survived(self, monkeypatch, bad, kind):
        reference, _ = ascend(build())
        problem, count = build(), [0]
        value = problem.value

        def failing():
            count[0] += 1
            if count[0] not in bad:
                return value()
            if kind == "raises":
                raise NotPositiveDefiniteError("K is not positive definite.")
            scale = problem.gp.kernel.raw_outputscale
            return value() * torch.nan if kind == "nan" else (scale - scale.detach()).sqrt()

        monkeypatch.setattr(problem, "value", failing)
        ascent, history = ascend(problem)
        assert {record.evaluation for record in history if record.failed} == bad
        assert all(math.isnan(record.objective) == record.failed for record in history)
        assert ascent.objective == pytest.approx(reference.objective, abs=1e-3)

    def test_a_region_that_always_fails(self, monkeypatch):
        problem = build()
        value = problem.value

        def failing():
            if float(problem.gp.kernel.outputscale.detach()) > 0.8:
                raise NotPositiveDefiniteError("K is not positive definite.")
            return value()

        problem.gp.kernel.outputscale = 0.7
        monkeypatch.setattr(problem, "value", failing)
        ascent, history = ascend(problem)
        good = [record.objective for record in history if not record.failed]
        assert ascent.objective == max(good) > good[0]
        assert problem.value().item() == pytest.approx(ascent.objective, abs=1e-9)

    def test_gives_up_in_the_end(self, monkeypatch):
        problem, count = build(), [0]
        value = problem.value

        def failing():
            count[0] += 1
            if count[0] > 3:
                raise NotPositiveDefiniteError("K is not positive definite.")
            return value()

        monkeypatch.setattr(problem, "value", failing)
        ascent, history = ascend(problem)
        assert not ascent.converged and not ascent.stopped
        assert "failed" in ascent.message and "not positive definite" in ascent.message
        assert ascent.objective == max(record.objective for record in history[:3])

    @pytest.mark.parametrize("kind", ["raises", "nan"])
    def test_failure_at_the_start_changes_nothing(self, monkeypatch, kind):
        problem = build()
        value = problem.value
        before = state(problem)

        def failing():
            if kind == "raises":
                raise NotPositiveDefiniteError("K is not positive definite.")
            return value() * torch.nan

        monkeypatch.setattr(problem, "value", failing)
        with pytest.raises(NumericalError, match=r"positive definite|starting values"):
            ascend(problem)
        assert_unchanged(problem, before)


class TestNothingToTrain:
    def frozen(self) -> FitProblem:
        problem = build(likelihood=GaussianLikelihood(noise=0.1, learn_noise=False))
        for parameter in problem.gp.parameters():
            parameter.requires_grad_(False)
        return problem

    def test_evaluates_once(self):
        ascent, history = ascend(self.frozen())
        assert ascent.converged and ascent.num_iterations == 0
        assert [record.objective for record in history] == [ascent.objective]
        assert "no parameters" in ascent.message

    def test_callback(self):
        ascent, _ = ascend(self.frozen(), callbacks=[lambda record: True])
        assert ascent.stopped


def test_box_keeps_scales_within_a_million():
    gp = GaussianProcess(ScaleKernel(RBFKernel()).double())
    likelihood = GaussianLikelihood(noise=0.5, learn_noise=False)
    # Targets that are exactly zero: without a box the outputscale would run to zero.
    problem = FitProblem(
        gp, Exact(), likelihood, INPUTS, torch.zeros(40).double(), Exact().plan(INPUTS)
    )
    start = gp.kernel.outputscale.item()
    ascent, _ = ascend(problem)
    assert ascent.converged
    assert start * math.exp(-14.001) <= gp.kernel.outputscale.item() < 1e-2
    assert isinstance(likelihood, gpytorch.likelihoods.Likelihood)


class TestEdgeOfTheRange:
    """Targets far from the scale of the starting values."""

    @pytest.mark.parametrize("scale", [10.0, 1e2])
    def test_a_steep_start_is_not_leapt_over(self, scale):
        plain, scaled = (edge_fit(factor) for factor in (1.0, scale))
        assert scaled.objective + 80 * math.log(scale) == pytest.approx(plain.objective, abs=0.5)

    def test_the_edge_is_no_optimum(self):
        with pytest.warns(ConvergenceWarning, match="edge of the range"):
            result = edge_fit(1e6)
        assert not result.converged


def edge_fit(scale):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(80, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(80, generator=generator, dtype=torch.float64)
    y = scale * ((6 * x[:, 0]).sin() + x[:, 1] + 0.1 * noise)
    gp, likelihood = GaussianProcess(parse_kernel("matern52", 2)), GaussianLikelihood()
    initialize_hyperparameters(gp, likelihood, x, y, torch.Generator().manual_seed(0))
    return fit(gp, Exact(), likelihood, x, y, generator=torch.Generator().manual_seed(0))


class TestRounding:
    """A covariance that is nearly singular makes values jump by more than a step gains."""

    @pytest.mark.parametrize(("jump", "converged"), [(0.0, False), (1e-3, True)])
    def test_a_line_search_lost_in_rounding_errors_is_the_end(
        self, jump: float, converged: bool
    ) -> None:
        loss = _Loss(_Jumping(jump), np.zeros(2))
        progress = _Progress(1e-9)
        progress.watch(loss)
        for point in (np.zeros(2), np.array([0.5, 0.5])):
            value, _ = loss(point)
            progress(intermediate_result=OptimizeResult(fun=value, x=point))
        for distance in (1e-2, 1e-12, 1e-15):
            loss(point + distance)
        failed = OptimizeResult(status=2, message="ABNORMAL: ")
        message, ended = progress.judge(failed)
        assert ended is converged
        assert ("rounding" in message) is converged


class _Jumping:
    """A parabola of 1e-4, with a jump wherever the optimiser has not been before."""

    total_weight = 1.0

    def __init__(self, jump: float) -> None:
        self._jump = jump

    def evaluate(self, point: np.ndarray) -> Evaluation:
        jump = 0.0 if np.isin(point, (0.0, 0.5)).all() else self._jump
        distance = point - 1.0
        return Evaluation(-1e-4 * float(distance @ distance) - jump, -2e-4 * distance)
