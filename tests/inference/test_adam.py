"""Full-batch Adam: optimum, stopping, failing evaluations, callbacks."""

import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel

from gpvi.approximations import Exact, GaussianProcess, InducingPoints
from gpvi.exceptions import NotPositiveDefiniteError
from gpvi.inference import FitProblem, FitRecord, fit, maximize, maximize_by_adam
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, as_likelihood

GENERATOR = torch.Generator().manual_seed(3)
X = 6 * torch.rand(40, 1, generator=GENERATOR, dtype=torch.float64)
Y = (2 * X[:, 0]).sin() + 0.2 * torch.randn(40, generator=GENERATOR, dtype=torch.float64)


def build(likelihood=None, y=Y, approximation=None) -> FitProblem:
    likelihood = GaussianLikelihood(noise=0.5) if likelihood is None else likelihood
    approximation = Exact() if approximation is None else approximation
    gp = GaussianProcess(ScaleKernel(RBFKernel()).double())
    return FitProblem(gp, approximation, as_likelihood(likelihood), X, y, approximation.plan(X))


def ascend(problem: FitProblem, **options):
    history: list[FitRecord] = []
    settings = {"max_iter": 400, "tolerance": 1e-6, "learning_rate": 0.1, **options}
    return maximize_by_adam(problem, stage="full batch", history=history, **settings), history


def reference(problem: FitProblem) -> float:
    options = {"max_iter": 100, "max_evaluations": None, "tolerance": 1e-8}
    return maximize(problem, stage="full batch", history=[], **options).objective


def test_reaches_the_optimum_of_l_bfgs():
    ascent, history = ascend(build())
    assert ascent.converged and "halvings" in ascent.message
    assert ascent.objective == pytest.approx(reference(build()), abs=1e-3)
    assert len(history) == ascent.num_iterations + 1
    assert ascent.objective == max(record.objective for record in history)


def test_likelihood_that_is_not_gaussian():
    labels = (Y > 0).double()
    points = InducingPoints(inducing_points=X[:8])
    ascent, _ = ascend(build(BernoulliLikelihood(), labels, points), tolerance=1e-5)
    start = build(BernoulliLikelihood(), labels, InducingPoints(inducing_points=X[:8]))
    assert ascent.objective > float(start.value().detach()) + 1.0


def test_number_of_steps():
    ascent, history = ascend(build(), max_iter=7)
    assert not ascent.converged and ascent.num_iterations == 7 and len(history) == 8


@pytest.mark.parametrize("bad", [{3}, {2, 5, 6}, set(range(2, 5))])
def test_failed_steps_are_taken_back(monkeypatch, bad):
    problem, count, scales = build(), [0], []
    value = problem.value

    def failing():
        count[0] += 1
        scales.append(problem.gp.kernel.outputscale.item())
        if count[0] in bad:
            raise NotPositiveDefiniteError("K is not positive definite.")
        return value()

    monkeypatch.setattr(problem, "value", failing)
    ascent, history = ascend(problem, tolerance=1e-5)
    assert {record.evaluation for record in history if record.failed} == bad
    assert ascent.objective == pytest.approx(reference(build()), abs=0.05)
    first = min(bad)
    origin, there, retry = (math.log(scales[i]) for i in (first - 2, first - 1, first))
    assert abs(retry - origin) < 0.75 * abs(there - origin)


def test_gives_up_in_the_end(monkeypatch):
    problem, count = build(), [0]
    value = problem.value

    def failing():
        count[0] += 1
        if count[0] > 3:
            raise NotPositiveDefiniteError("K is not positive definite.")
        return value()

    monkeypatch.setattr(problem, "value", failing)
    ascent, _ = ascend(problem)
    assert not ascent.converged and not ascent.stopped and "failed" in ascent.message


def test_callback_stops():
    ascent, history = ascend(build(), callbacks=[lambda record: record.evaluation == 4])
    assert ascent.stopped and len(history) == 4 and ascent.num_iterations == 2


def test_nothing_to_train():
    problem = build(GaussianLikelihood(noise=0.1, learn_noise=False))
    problem.gp.requires_grad_(False)
    ascent, history = ascend(problem)
    assert ascent.converged and len(history) == 1


class TestFit:
    def run(self, **options):
        gp = GaussianProcess(ScaleKernel(RBFKernel()).double(), gpytorch.means.ConstantMean())
        return fit(gp.double(), Exact(), GaussianLikelihood(noise=0.5), X, Y, **options)

    def test_learning_rate_counts(self):
        with pytest.warns(match="not converged"):
            slow = self.run(optimizer="adam", learning_rate=1e-4, max_iter=5)
        with pytest.warns(match="not converged"):
            fast = self.run(optimizer="adam", learning_rate=0.1, max_iter=5)
        assert fast.objective > slow.objective + 0.1
        assert {record.stage for record in fast.history} == {"full batch"}

    def test_auto_is_l_bfgs(self):
        auto, named = self.run(max_iter=30), self.run(optimizer="lbfgs", max_iter=30)
        assert [r.objective for r in auto.history] == [r.objective for r in named.history]
