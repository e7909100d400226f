"""Fits whose neighbours are found anew on the way."""

import copy
from itertools import pairwise
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, SparseInverseCholesky
from gpvi.inference import FitProblem, FitRecord, WarmStart, fit
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, as_likelihood

pytestmark = pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(200, 2, dtype=torch.float64, generator=GENERATOR)
# Far more wiggly along the first column than along the second.
Y = (12 * X[:, 0]).sin() + 0.3 * X[:, 1]
Y = Y + 0.1 * torch.randn(200, dtype=torch.float64, generator=GENERATOR)
LABELS = (Y > 0).double()


def process(ard: bool = True, lengthscale: Any = (1.0, 0.1)) -> GaussianProcess:
    base = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=2 if ard else None).double()
    base.lengthscale = torch.tensor(lengthscale if ard else 0.3, dtype=torch.float64)
    return GaussianProcess(gpytorch.kernels.ScaleKernel(base).double())


def likelihood(gaussian: bool = True) -> Any:
    return as_likelihood(GaussianLikelihood(noise=0.1) if gaussian else BernoulliLikelihood())


def train(approximation: Any, gp: GaussianProcess, y: Tensor = Y, **options: Any) -> Any:
    noise = likelihood(y is not LABELS)
    settings = {"warm_start": None, "max_iter": 40} | options
    return fit(gp, approximation, noise, X, y, **settings), noise


def stages(history: list[FitRecord]) -> list[str]:
    return list(dict.fromkeys(record.stage for record in history))


def problem(approximation: Any = None, gp: Any = None, **options: Any) -> FitProblem:
    approximation = SparseInverseCholesky(8) if approximation is None else approximation
    gp = process() if gp is None else gp
    y = options.pop("y", Y)
    plan = approximation.plan(X)
    return FitProblem(gp, approximation, likelihood(), X, y, plan, **options)


class TestFits:
    @pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
    def test_rounds_have_stages_of_their_own(self, optimizer: str) -> None:
        gp = process()
        result, _ = train(SparseInverseCholesky(8, refresh_every=5), gp, optimizer=optimizer)
        found = stages(result.history)
        assert found[:2] == ["full batch", "full batch, refresh 1"]
        wanted = ["full batch"] + [f"full batch, refresh {i}" for i in range(1, len(found))]
        assert found == wanted
        assert result.num_iterations <= 40
        for stage in found:
            numbers = [r.evaluation for r in result.history if r.stage == stage]
            assert numbers == list(range(1, len(numbers) + 1))

    def test_reaches_the_exact_optimum(self) -> None:
        first, second = process(), process()
        result, noise = train(SparseInverseCholesky(15, refresh_every=5), first, max_iter=100)
        exact, other = train(Exact(), second, max_iter=100)
        assert len(stages(result.history)) > 1
        at = problem(Exact(), first)
        at.likelihood.load_state_dict(noise.state_dict())
        assert at.value().item() == pytest.approx(exact.objective, abs=1.0)
        found = first.kernel.base_kernel.lengthscale.detach()
        assert noise.noise.item() == pytest.approx(other.noise.item(), rel=0.1)
        # The posterior's neighbours are those of the final lengthscales.
        scale = result.posterior.prior.geometry.scale
        ratio = (scale / found[0]).log()
        assert float(ratio.max() - ratio.min()) < 0.05 + 1e-9

    @pytest.mark.filterwarnings("ignore:The incomplete Cholesky")
    @pytest.mark.filterwarnings("ignore:Posterior variances of the function are crude")
    def test_refreshing_helps(self) -> None:
        values = {}
        for period in (5, None):
            gp = process()
            _, noise = train(SparseInverseCholesky(4, refresh_every=period), gp, max_iter=60)
            at = problem(Exact(), gp)
            at.likelihood.load_state_dict(noise.state_dict())
            values[period] = at.value().item()
        assert values[5] > values[None]

    def test_none_keeps_the_plan(self) -> None:
        gp = process()
        before = SparseInverseCholesky(8).plan(X).geometry(gp)
        result, _ = train(SparseInverseCholesky(8, refresh_every=None), gp)
        assert stages(result.history) == ["full batch"]
        assert torch.equal(result.posterior.prior.geometry.neighbors, before.neighbors)

    def test_one_lengthscale_never_refreshes(self) -> None:
        gp = process(ard=False)
        approximation = SparseInverseCholesky(8, refresh_every=1)
        assert approximation.refresh_period(gp, X) is None
        result, _ = train(approximation, gp)
        assert stages(result.history) == ["full batch"]
        correlation = SparseInverseCholesky(8, neighbors="correlation", refresh_every=1)
        assert correlation.refresh_period(gp, X) == 1

    def test_other_approximations_have_one_round(self) -> None:
        result, _ = train(Exact(), process(), max_iter=5)
        assert stages(result.history) == ["full batch"]

    def test_classes(self) -> None:
        result, _ = train(SparseInverseCholesky(6, refresh_every=3), process(), LABELS, max_iter=8)
        assert stages(result.history)[:2] == ["full batch", "full batch, refresh 1"]
        assert result.objective == result.objective

    def test_evidence_of_the_function(self) -> None:
        approximation = SparseInverseCholesky(8, refresh_every=5, evidence="function")
        result, _ = train(approximation, process(), max_iter=12)
        assert stages(result.history)[:2] == ["full batch", "full batch, refresh 1"]
        objectives = [r.best for r in result.history]
        assert objectives[-1] > objectives[0] + 50

    def test_a_callback_ends_all_rounds(self) -> None:
        result, _ = train(
            SparseInverseCholesky(8, refresh_every=5), process(), callbacks=[lambda record: True]
        )
        assert result.stopped and len(result.history) == 1

    def test_iterations_are_counted_over_rounds(self) -> None:
        result, _ = train(SparseInverseCholesky(8, refresh_every=5), process(), max_iter=7)
        assert result.num_iterations == 7 and len(stages(result.history)) == 2

    def test_terms_replace_the_subset(self) -> None:
        result, _ = train(
            SparseInverseCholesky(8),
            process(),
            warm_start=WarmStart(num_terms=40),
            generator=torch.Generator().manual_seed(0),
        )
        assert stages(result.history)[:2] == ["warm start", "full batch"]

    def test_same_seed_same_fit(self) -> None:
        values = []
        for _ in range(2):
            gp = process()
            generator = torch.Generator().manual_seed(3)
            result, _ = train(
                SparseInverseCholesky(8, refresh_every=5), gp, max_iter=12, generator=generator
            )
            values.append([r.objective for r in result.history])
        assert values[0] == values[1]

    def test_checkpoints_of_rounds(self, tmp_path: Any) -> None:
        """A fit that was cut off in a later round goes on to the same place."""
        path = str(tmp_path / "log")
        options = {"max_iter": 14, "checkpoint": path}
        seeds = [torch.Generator().manual_seed(3) for _ in range(3)]
        approximation = SparseInverseCholesky(8, refresh_every=5)
        whole, _ = train(approximation, process(), max_iter=14, generator=seeds[0])
        calls = []

        def cut(record: FitRecord) -> None:
            calls.append(record)
            if record.stage == "full batch, refresh 1" and record.evaluation == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(approximation, process(), callbacks=[cut], generator=seeds[1], **options)
        resumed, _ = train(approximation, process(), generator=seeds[2], **options)
        assert [r.stage for r in resumed.history] == [r.stage for r in whole.history]
        assert resumed.objective == pytest.approx(whole.objective, rel=1e-12)


class TestProblem:
    def test_objective_is_continuous_within_a_round(self) -> None:
        """Neighbours are held while lengthscales move: small steps give small changes."""
        case = problem()
        base = case.gp.kernel.base_kernel
        values = []
        with torch.no_grad():
            case.value()
            plan = case.plan
            for step in torch.linspace(0.0, 1.0, 201, dtype=torch.float64):
                base.lengthscale = torch.stack([1.0 - 0.9 * step, 0.1 + 0.9 * step])
                values.append(case.value().item())
        assert case.plan is plan
        slopes = [b - a for a, b in pairwise(values)]
        assert max(abs(b - a) for a, b in pairwise(slopes)) < 0.05 * (max(values) - min(values))
        # Found anew, the neighbours are others and so is the value.
        assert case.refresh()
        assert case.plan is not plan
        assert abs(case.value().item() - values[-1]) > 1e-3

    def test_refresh_without_a_change(self) -> None:
        case = problem()
        assert not case.refresh()
        case.value()
        plan = case.plan
        assert not case.refresh() and case.plan is plan
        with torch.no_grad():
            case.gp.kernel.base_kernel.lengthscale *= 3.0
            case.gp.kernel.outputscale = 2.0
        assert not case.refresh() and case.plan is plan

    def test_refresh_with_missing_targets(self) -> None:
        """The plan of the rows that have a target is brought up to date as well."""
        y = Y.clone()
        y[::5] = torch.nan
        case = problem(y=y)
        case.value()
        used = case._used_plan
        with torch.no_grad():
            case.gp.kernel.base_kernel.lengthscale = torch.tensor([0.1, 1.0]).double()
        assert case.refresh() and case._used_plan is not used
        fresh = problem(gp=case.gp, y=y)
        assert case.value().item() == pytest.approx(fresh.value().item(), rel=1e-12)

    def test_terms_are_unbiased(self) -> None:
        case = problem(weights=torch.linspace(0.5, 2.0, 200).double())
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            whole = case.value().item()
            parts = torch.stack(
                [case.on_terms(case.sample_terms(50, generator)).value() for _ in range(300)]
            )
        error = parts.std().item() / 300**0.5
        assert abs(parts.mean().item() - whole) < 4 * error
        assert case.terms is None

    def test_terms_of_all_places_are_the_whole(self) -> None:
        y = Y.clone()
        y[::5] = torch.nan
        case = problem(y=y)
        with torch.no_grad():
            whole = case.value().item()
            part = case.on_terms(torch.arange(160)).value().item()
        assert part == pytest.approx(whole, rel=1e-12)

    def test_no_terms_elsewhere(self) -> None:
        generator = torch.Generator().manual_seed(0)
        assert problem(Exact()).sample_terms(20, generator) is None
        assert problem().sample_terms(51, generator) is None
        function = SparseInverseCholesky(8, evidence="function")
        assert problem(function).sample_terms(20, generator) is None

    @pytest.mark.parametrize("evidence", ["responses", "function"])
    def test_gradient(self, evidence: str) -> None:
        case = problem(SparseInverseCholesky(10, evidence=evidence))
        case.value().backward()
        for module, name in (("gp", "kernel.raw_outputscale"), ("likelihood", None)):
            parameters = dict(case.modules[module].named_parameters())
            parameter = parameters[name] if name else next(iter(parameters.values()))
            values = []
            for step in (1e-4, -1e-4):
                with torch.no_grad():
                    parameter += step
                    values.append(case.value().item())
                    parameter -= step
            slope = (values[0] - values[1]) / 2e-4
            assert parameter.grad.sum().item() == pytest.approx(slope, rel=1e-3)

    def test_integer_weights_are_repeated_rows(self) -> None:
        weights = 1.0 + (torch.arange(200) % 3 == 0).double()
        index = torch.arange(200).repeat_interleave(weights.long())
        for evidence in ("responses", "function"):
            approximation = SparseInverseCholesky(8, evidence=evidence)
            gp = copy.deepcopy(process())
            weighted = problem(approximation, gp, weights=weights)
            repeated = FitProblem(
                gp, approximation, likelihood(), X[index], Y[index], approximation.plan(X[index])
            )
            assert weighted.value().item() == pytest.approx(repeated.value().item(), rel=1e-8)
