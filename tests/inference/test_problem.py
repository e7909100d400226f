"""The objective as a function of hyperparameters: routes that must agree, and its gradient."""

import gpytorch
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior
from torch import Tensor

from gpvi.approximations import Approximation, Exact, GaussianProcess, InducingPoints
from gpvi.exceptions import InputError
from gpvi.inference import FitProblem, ParameterVector, cvi, elbo, log_prior, tighter_elbo
from gpvi.inference import problem as problem_module
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    as_likelihood,
)

X = torch.linspace(0.0, 3.0, 20, dtype=torch.float64).unsqueeze(-1)
Y = (2.0 * X[:, 0]).sin() + 0.3


def process(*batch: int) -> GaussianProcess:
    shape = torch.Size(batch)
    kernel = ScaleKernel(RBFKernel(batch_shape=shape), batch_shape=shape).double()
    kernel.base_kernel.lengthscale = 0.7
    mean = gpytorch.means.ConstantMean(batch_shape=shape).double()
    mean.initialize(constant=0.2)
    return GaussianProcess(kernel, mean)


def build(approximation: Approximation, likelihood=None, y: Tensor = Y, x: Tensor = X, **options):
    likelihood = GaussianLikelihood(noise=0.1) if likelihood is None else likelihood
    plan = approximation.plan(x, options.pop("groups", None))
    gp = options.pop("gp", None) or process()
    return FitProblem(gp, approximation, as_likelihood(likelihood), x, y, plan, **options)


def inducing() -> InducingPoints:
    return InducingPoints(inducing_points=X[::4])


APPROXIMATIONS = pytest.mark.parametrize("make", [Exact, inducing])
OBJECTIVES = pytest.mark.parametrize("objective", ["elbo", "tighter_elbo"])


def gradient(problem: FitProblem, value: Tensor):
    return torch.as_tensor(ParameterVector(problem.modules).gradient(value))


def assert_routes_agree(problem: FitProblem):
    """Fast route, route through the contract, and the definition on CVI's posterior."""
    fast = problem.gaussian_value()
    general = problem._general_gaussian()
    assert torch.allclose(fast, general, rtol=1e-6, atol=1e-6)
    assert torch.allclose(
        gradient(problem, fast.sum()), gradient(problem, general.sum()), atol=1e-4
    )
    prior = problem.approximation.prior(problem.gp, problem.x, plan=problem.plan)
    result = cvi(
        prior,
        problem.likelihood,
        problem.y,
        weights=problem.weights,
        tighter=problem.tighter,
        **problem.rows,
    )
    assert result.objective == pytest.approx(fast.sum().item(), abs=1e-5)
    inferred = problem.infer()
    assert inferred.objective == pytest.approx(fast.sum().item(), abs=1e-5)
    bound = tighter_elbo if problem.tighter else elbo
    again = bound(
        inferred.posterior, problem.likelihood, problem.y, weights=problem.weights, **problem.rows
    )
    assert again.sum().item() == pytest.approx(fast.sum().item(), abs=1e-5)


@APPROXIMATIONS
@OBJECTIVES
class TestGaussianRoutes:
    def test_plain(self, make, objective):
        assert_routes_agree(build(make(), objective=objective))

    def test_missing_targets(self, make, objective):
        y = Y.clone()
        y[[0, 5, 19]] = torch.nan
        problem = build(make(), y=y, objective=objective)
        assert_routes_agree(problem)
        kept = build(make(), y=Y[~y.isnan()], x=X[~y.isnan()], objective=objective)
        assert torch.allclose(problem.value(), kept.value(), atol=1e-7)

    def test_weights_are_repeated_rows(self, make, objective):
        times = torch.ones(20, dtype=torch.int64)
        times[[1, 6]] = torch.tensor([2, 3])
        weights = times.double()
        weights[9] = 0.0
        problem = build(make(), weights=weights, objective=objective)
        assert_routes_agree(problem)
        times[9] = 0
        x, y = X.repeat_interleave(times, 0), Y.repeat_interleave(times)
        repeated = build(make(), x=x, y=y, objective=objective)
        assert torch.allclose(problem.value(), repeated.value(), atol=1e-5)
        assert problem.total_weight == repeated.total_weight == 22.0
        assert len(problem.observed) == 19

    def test_noise_per_row_with_gaps(self, make, objective):
        y, noise = Y.clone(), torch.linspace(0.05, 0.3, 20).double()
        y[3] = noise[3] = torch.nan
        weights = torch.ones(20).double()
        weights[3] = torch.nan  # what an unobserved row weighs does not matter
        problem = build(make(), y=y, objective=objective, rows={"noise": noise}, weights=weights)
        assert_routes_agree(problem)
        seen = ~y.isnan()
        kept = build(make(), y=y[seen], x=X[seen], objective=objective, rows={"noise": noise[seen]})
        assert torch.allclose(problem.value(), kept.value(), atol=1e-6)

    def test_groups(self, make, objective):
        groups = torch.arange(20) % 3
        problem = build(make(), groups=groups, objective=objective)
        assert_routes_agree(problem)
        alone = sum(
            build(make(), x=X[groups == g], y=Y[groups == g], objective=objective).value()
            for g in range(3)
        )
        assert torch.allclose(problem.value(), alone, atol=1e-6)

    def test_batch_of_processes(self, make, objective):
        y = torch.stack([Y, Y.cos()])
        problem = build(make(), y=y, gp=process(2), objective=objective)
        assert_routes_agree(problem)
        alone = sum(build(make(), y=row, objective=objective).value() for row in y)
        assert torch.allclose(problem.value(), alone, atol=1e-6)


class TestValue:
    def test_log_priors_are_added_once(self):
        gp = process()
        gp.kernel.register_prior("scale", GammaPrior(2.0, 1.0), lambda m: m.outputscale)
        problem = build(Exact(), gp=gp)
        difference = problem.value() - problem.gaussian_value()
        assert torch.allclose(difference, torch.as_tensor(log_prior([gp])).double())

    def test_tighter_is_between_elbo_and_evidence(self):
        values = [
            build(inducing(), objective="elbo").value(),
            build(inducing(), objective="tighter_elbo").value(),
            build(Exact()).value(),
        ]
        assert values[0] < values[1] < values[2]

    @OBJECTIVES
    @pytest.mark.parametrize(
        ("likelihood", "y"),
        [
            (BernoulliLikelihood(), (Y > 0.3).double()),
            (PoissonLikelihood(), (Y + 1.5).exp().floor()),
        ],
    )
    @APPROXIMATIONS
    def test_gradient_is_that_of_the_solved_objective(
        self, make, likelihood, y, objective, monkeypatch
    ):
        monkeypatch.setattr(problem_module, "_CVI_STEPS", 200)
        problem = build(make(), likelihood, y, objective=objective)
        problem.inner_tolerance = 1e-11
        vector = ParameterVector(problem.modules)
        got = vector.gradient(problem.value())
        point = vector.values()
        for i in range(len(point)):
            ends = []
            for step in (1e-4, -1e-4):
                moved = point.copy()
                moved[i] += step
                vector.assign(moved)
                ends.append(problem.value().item())
            assert got[i] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-3, abs=1e-3)

    @OBJECTIVES
    @pytest.mark.parametrize(
        ("likelihood", "y"),
        [
            (BernoulliLikelihood(), (Y > 0.3).double()),
            (StudentTLikelihood(), Y),
        ],
    )
    @pytest.mark.parametrize("groups", [None, torch.arange(20) % 3])
    @APPROXIMATIONS
    def test_gradient_at_held_sites_is_that_of_the_bound(
        self, make, likelihood, y, objective, groups, monkeypatch
    ):
        """Also far from the fixed point, where nothing cancels: against automatic differentiation."""
        monkeypatch.setattr(problem_module, "_CVI_STEPS", 1)
        weights = torch.linspace(0.0, 2.0, 20).double()
        problem = build(make(), likelihood, y, objective=objective, groups=groups, weights=weights)
        vector = ParameterVector(problem.modules)
        value = problem.value()
        got = vector.gradient(value)
        prior = problem.approximation.prior(problem.gp, problem.x, plan=problem.plan)
        posterior = prior.condition(problem.sites)
        if objective == "elbo":
            bound = elbo(posterior, likelihood, y, weights=weights)
        else:
            bound = tighter_elbo(posterior, likelihood, y, weights=weights, log_v=problem.log_v)
        assert value.item() == pytest.approx(bound.sum().item(), abs=1e-8)
        assert got == pytest.approx(vector.gradient(bound.sum()), rel=1e-6, abs=1e-6)

    def test_sites_are_kept_for_the_next_time(self):
        problem = build(Exact(), BernoulliLikelihood(), (Y > 0.3).double())
        assert problem.sites is None
        problem.value()
        first = problem.sites
        assert problem.infer().steps <= 1
        assert problem.sites is first

    def test_integer_targets_and_weights(self):
        labels = (Y > 0.3).long()
        problem = build(
            Exact(), BernoulliLikelihood(), labels, weights=torch.ones(20, dtype=torch.int64)
        )
        reference = build(Exact(), BernoulliLikelihood(), labels.double())
        assert torch.allclose(problem.value(), reference.value())

    def test_float32(self):
        gp = process().float()
        problem = build(
            InducingPoints(inducing_points=X[::4].float()),
            GaussianLikelihood(noise=0.1),
            Y.float(),
            X.float(),
            gp=gp,
        )
        assert problem.value().item() == pytest.approx(build(inducing()).value().item(), abs=1e-2)


class TestTake:
    def test_rows(self):
        noise = torch.linspace(0.1, 0.3, 20).double()
        problem = build(inducing(), rows={"noise": noise}, weights=noise * 2)
        part = problem.take(torch.tensor([4, 1]))
        assert torch.equal(part.x, X[[4, 1]]) and torch.equal(part.y, Y[[4, 1]])
        assert torch.equal(part.rows["noise"], noise[[4, 1]])
        assert torch.equal(part.weights, 2 * noise[[4, 1]])
        assert part.gp is problem.gp and part.plan.num_rows == 2 and part.sites is None

    def test_extras_of_one_value_are_spread(self):
        problem = build(inducing(), rows={"noise": torch.tensor([0.2])})
        assert problem.take(torch.arange(3)).rows["noise"].tolist() == pytest.approx([0.2] * 3)

    def test_several_outputs(self):
        y = torch.stack([Y, Y.cos(), Y.sin()], dim=-1)
        likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=3).double()
        problem = build(Exact(), likelihood, y, gp=process(3))
        assert problem.num_rows == 20
        part = problem.take(torch.arange(5))
        assert part.y.shape == (5, 3)
        assert part.value().shape == ()

    def test_another_approximation(self):
        problem = build(Exact())
        part = problem.take(torch.arange(10), inducing())
        assert isinstance(part.approximation, InducingPoints)
        assert "approximation" in part.modules and isinstance(problem.approximation, Exact)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"objective": "evidence"}, "'evidence'.*tighter_elbo"),
            ({"y": Y[:7]}, r"\(7,\).* 20 rows"),
            ({"y": Y.unsqueeze(-1)}, "flattened"),
            ({"weights": torch.ones(3)}, "weights"),
            ({"rows": {"nose": Y}}, "nose"),
            ({"x": torch.where(X > 2, torch.nan, X)}, "7 values that are NaN"),
        ],
    )
    def test_clear_errors(self, options, match):
        with pytest.raises(InputError, match=match):
            build(Exact(), **options)
