"""Minibatches: unbiased estimates, tied sites, roll-back, and how close they get to the full batch."""

import functools
import math
import sys

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from torch import Tensor

from gpvi.approximations import GaussianProcess, InducingPoints, Sites
from gpvi.exceptions import ConvergenceWarning, NotPositiveDefiniteError, NumericalError
from gpvi.inference import FitProblem, FitRecord, Minibatcher, cvi, data_term, dual, fit
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    as_likelihood,
)

# The function hides the module of the same name.
fit_module = sys.modules["gpvi.inference.fit"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SIZE = 60
X = 6 * torch.rand(SIZE, 1, generator=seeded(5), dtype=torch.float64)
Y = (2 * X[:, 0]).sin() + 0.2 * torch.randn(SIZE, generator=seeded(6), dtype=torch.float64)
COUNTS = (Y + 1).exp().floor()


def process(*batch: int) -> GaussianProcess:
    shape = torch.Size(batch)
    kernel = ScaleKernel(MaternKernel(batch_shape=shape), batch_shape=shape).double()
    mean = gpytorch.means.ConstantMean(batch_shape=shape).double()
    mean.initialize(constant=0.4)
    return GaussianProcess(kernel, mean)


def build(
    likelihood=None, y: Tensor = Y, objective: str = "elbo", gp=None, **options
) -> FitProblem:
    approximation = InducingPoints(inducing_points=torch.linspace(0, 6, 8).double().unsqueeze(-1))
    likelihood = GaussianLikelihood(noise=0.1) if likelihood is None else likelihood
    gp = process() if gp is None else gp
    plan = approximation.plan(X)
    return FitProblem(
        gp, approximation, as_likelihood(likelihood), X, y, plan, objective, **options
    )


def loop(problem: FitProblem, **options) -> Minibatcher:
    settings = {
        "batch_size": 15,
        "num_steps": 40,
        "learning_rate": 0.02,
        "natural_step_size": 0.2,
        "tolerance": 1e-8,
        "generator": seeded(),
        "history": [],
        **options,
    }
    return Minibatcher(problem, **settings)


CASES = {
    "gaussian": (lambda: GaussianLikelihood(noise=0.1), Y),
    "student t": (lambda: StudentTLikelihood(scale=0.2), Y),
    "bernoulli": (BernoulliLikelihood, (Y > 0).double()),
    "poisson": (PoissonLikelihood, COUNTS),
}


@pytest.fixture(params=CASES)
def case(request):
    make, y = CASES[request.param]
    return make(), y


OBJECTIVES = pytest.mark.parametrize("objective", ["elbo", "tighter_elbo"])


class TestUnbiased:
    @OBJECTIVES
    def test_batches_of_an_epoch_average_to_the_whole(self, case, objective):
        likelihood, y = case
        y = y.clone()
        y[7] = torch.nan
        weights = torch.linspace(0.5, 2, SIZE).double()
        batches = loop(build(likelihood, y, objective, weights=weights))
        for _ in range(3):
            batches._advance(batches._next_rows())
        values, seen, scheme = [], [], batches.scheme
        with torch.no_grad():
            batches.position = len(batches.order)  # start a new epoch
            for _ in range(4):
                rows = batches._next_rows()
                seen += rows.tolist()
                part = batches.problem.take(rows)
                values.append(scheme._bound(scheme._condition(part), part).item())
        assert sorted(seen) == list(range(SIZE))
        assert sum(values) / 4 == pytest.approx(batches.objective(), rel=1e-12)

    def test_unequal_parts_count_by_their_size(self, case):
        likelihood, y = case
        problem = build(likelihood, y)
        first, second = loop(problem, batch_size=17), loop(problem, batch_size=SIZE)
        second.scheme.sites = first.scheme.sites = cvi_sites(problem)
        assert first.objective() == pytest.approx(second.objective(), rel=1e-12)

    def test_tied_updates_average_to_the_full_update(self, case):
        likelihood, y = case
        problem = build(likelihood, y)
        scheme = loop(problem).scheme
        with torch.no_grad():
            prior = problem.approximation.prior(problem.gp, problem.x)
            start = prior.tie(Sites(0.1 * Y, 0.1 * torch.ones(SIZE).double()))
            marginals = prior.condition(start).marginals()
        fresh = dual(lambda q: data_term(problem.likelihood, y, q), marginals, min_precision=0.0)
        rate = 0.5
        whole = start.lerp(prior.tie(fresh), rate)
        total1, total2 = torch.zeros(8).double(), torch.zeros(8, 8).double()
        for rows in torch.arange(SIZE).split(15):
            scheme.sites = start
            batch = problem.take(rows)
            scheme._update_sites(scheme._condition(batch).detach(), batch, rate)
            total1 += scheme.sites.lam1.detach() / 4
            total2 += scheme.sites.lam2.detach() / 4
        assert torch.allclose(total1, whole.lam1.detach(), rtol=1e-9)
        assert torch.allclose(total2, whole.lam2.detach(), rtol=1e-9)

    def test_missing_rows_leave_no_trace(self):
        y = COUNTS.clone()
        y[:15] = torch.nan
        problem = build(PoissonLikelihood(), y)
        scheme = loop(problem).scheme
        batch = problem.take(torch.arange(15))
        scheme._update_sites(scheme._condition(batch).detach(), batch, 0.5)
        assert not scheme.sites.lam1.any() and not scheme.sites.lam2.any()


def cvi_sites(problem: FitProblem) -> Sites:
    with torch.no_grad():
        prior = problem.approximation.prior(problem.gp, problem.x)
        result = cvi(prior, problem.likelihood, problem.y, tolerance=1e-9)
        return prior.tie(result.sites)


class TestSteps:
    def test_rows_are_shuffled_once_an_epoch(self):
        batches = loop(build(), batch_size=25)
        first = [batches._next_rows() for _ in range(2)]
        second = [batches._next_rows() for _ in range(2)]
        assert len(torch.cat(first).unique()) == len(torch.cat(second).unique()) == 50
        assert not torch.equal(first[0], second[0])
        whole = loop(build(), batch_size=1000)
        assert len(whole._next_rows()) == SIZE

    def test_hyperparameters_wait_for_q(self):
        problem = build()
        batches = loop(problem, natural_step_size=0.1, num_steps=100)
        before = problem.gp.kernel.raw_outputscale.item()
        for step in range(12):
            batches._advance(batches._next_rows())
            batches.step += 1
            moved = problem.gp.kernel.raw_outputscale.item() != before
            assert moved == (step >= 10)

    def test_learning_rate_decays_at_the_end(self):
        batches = loop(build(), num_steps=100)
        rates = []
        for batches.step in (0, 50, 70, 85, 99):
            rates.append(batches._decay())
        assert rates == pytest.approx([1, 1, 1, 0.5, 0.05])

    def test_sites_alone_reach_the_fixed_point(self, case):
        likelihood, y = case
        problem = build(likelihood, y)
        for module in problem.modules.values():
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        batches = loop(problem, batch_size=SIZE, num_steps=60, natural_step_size=0.5)
        batches.run()
        best = loop(problem)
        best.scheme.sites = cvi_sites(problem)
        assert batches.objective() == pytest.approx(best.objective(), abs=1e-4)

    def test_stops_when_nothing_is_gained(self):
        problem = build()
        batches = loop(problem, num_steps=3000, learning_rate=1e-4, tolerance=1.0)
        converged, message = batches.run()
        assert converged and batches.step == 300 and "five windows" in message

    def test_callbacks(self):
        seen: list[FitRecord] = []

        def stop(record: FitRecord) -> bool:
            seen.append(record)
            return record.evaluation == 5

        history: list[FitRecord] = []
        batches = loop(build(), callbacks=[stop], history=history)
        assert batches.run() == (False, "a callback asked to stop")
        assert batches.stopped and batches.step == 5 and seen == history
        assert [record.evaluation for record in history] == [1, 2, 3, 4, 5]
        assert history[-1].best == pytest.approx(sum(r.objective for r in history) / 5)

    def test_several_latents(self):
        theirs = gpytorch.likelihoods.SoftmaxLikelihood(num_features=3, num_classes=3).double()
        theirs.mixing_weights.data = torch.eye(3).double()
        labels = (X[:, 0] / 2).floor()
        batches = loop(build(theirs, labels, "tighter_elbo", gp=process(3)))
        start = batches.objective()
        batches.run()
        assert batches.objective() > start + 10
        assert batches.scheme.log_v.shape == (3,)

    def test_several_outputs(self):
        theirs = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2).double()
        batches = loop(build(theirs, torch.stack([Y, -Y], dim=-1), gp=process(2)))
        start = batches.objective()
        batches.run()
        assert batches.objective() > start + 10


class TestRollBack:
    def test_returns_to_where_it_was_fine(self, monkeypatch):
        """A step of Adam that leads out of the workable region is undone, not only slowed down."""
        problem = build()
        batches = loop(problem, learning_rate=0.3, num_steps=60)
        condition, limit = batches.scheme._condition, problem.gp.kernel.outputscale.item() * 1.05

        def fragile(batch):
            if problem.gp.kernel.outputscale.item() > limit:
                raise NotPositiveDefiniteError("Kzz is not positive definite.")
            return condition(batch)

        monkeypatch.setattr(batches.scheme, "_condition", fragile)
        batches.run()
        failed = [record for record in batches.history if record.failed]
        assert failed and all(math.isnan(record.objective) for record in failed)
        assert batches.step == 60
        assert batches.damping == 0.5 ** len(failed)

    def test_failed_steps_are_reported(self, monkeypatch):
        batches, seen = loop(build(), num_steps=5), []
        batches.callbacks = [seen.append]
        advance = batches._advance

        def failing(rows):
            if batches.step == 3 and not batches.failures:
                raise NumericalError("broken")
            return advance(rows)

        monkeypatch.setattr(batches, "_advance", failing)
        batches.run()
        assert [(r.evaluation, r.failed) for r in seen] == [
            (1, False),
            (2, False),
            (3, False),
            (4, True),
            (4, False),
            (5, False),
        ]

    def test_gives_up_and_changes_nothing(self, monkeypatch):
        class Hopeless(Minibatcher):
            def _advance(self, rows):
                if self.step >= 20:
                    raise NumericalError("broken")
                return super()._advance(rows)

        monkeypatch.setattr(fit_module, "Minibatcher", Hopeless)
        gp, approximation, likelihood = process(), InducingPoints(5), GaussianLikelihood()
        before = [p.clone() for m in (gp, likelihood) for p in m.parameters()]
        with pytest.raises(NumericalError, match=r"10 minibatch steps in a row failed.*broken"):
            fit(
                gp,
                approximation,
                likelihood,
                X,
                Y,
                batch_size=20,
                max_iter=40,
                generator=seeded(),
            )
        after = [p for m in (gp, likelihood) for p in m.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert approximation.inducing_points is None

    def test_fails_at_once_if_already_the_first_step_does(self, monkeypatch):
        batches = loop(build())

        def failing(rows):
            raise NumericalError("broken")

        monkeypatch.setattr(batches, "_advance", failing)
        with pytest.raises(NumericalError, match="1 minibatch step"):
            batches.run()


class TestFit:
    def run(self, likelihood, y: Tensor, batch_size: int | None, seed: int = 0, **options):
        torch.manual_seed(99)  # must not matter
        gp, approximation = process(), InducingPoints(10)
        settings = {"learning_rate": 0.05, **options}
        if batch_size is None:
            settings = {"objective": settings.get("objective", "tighter_elbo"), "tolerance": 1e-5}
        result = fit(
            gp,
            approximation,
            likelihood,
            X,
            y,
            batch_size=batch_size,
            generator=seeded(seed),
            **settings,
        )
        return result, [p.detach() for m in (gp, approximation) for p in m.parameters()]

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    @pytest.mark.parametrize(
        ("name", "objective"),
        [("gaussian", "elbo"), ("bernoulli", "tighter_elbo"), ("poisson", "tighter_elbo")],
    )
    def test_comes_close_to_the_full_batch(self, name, objective):
        make, y = CASES[name]
        small, _ = self.run(make(), y, 20, objective=objective, max_iter=250)
        whole, _ = self.run(make(), y, None, objective=objective)
        assert whole.objective - 5.0 < small.objective < whole.objective + 1.0
        assert small.num_iterations == len(small.history) == 250
        assert (small.log_v is None) == (name == "gaussian" or objective == "elbo")

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_posterior_is_compact_and_predicts(self):
        result, _ = self.run(GaussianLikelihood(), Y, 20, max_iter=120)
        assert len(result.posterior.marginals().mean) == 0
        new = torch.linspace(0, 6, 50).double().unsqueeze(-1)
        moments = result.posterior.predict(new)
        assert (moments.mean - (2 * new[:, 0]).sin()).square().mean() < 0.05
        assert not moments.mean.requires_grad
        again = result.posterior.compact().predict(new)
        assert torch.equal(again.mean, moments.mean)

    def test_posterior_equals_that_on_data_sites(self):
        problem = build()
        batches = loop(problem)
        batches.scheme.sites = cvi_sites(problem)
        with torch.no_grad():
            prior = problem.approximation.prior(problem.gp, problem.x)
            result = cvi(prior, problem.likelihood, problem.y)
        new = torch.linspace(0, 6, 9).double().unsqueeze(-1)
        ours, theirs = batches.posterior().predict(new), result.posterior.predict(new)
        assert torch.allclose(ours.mean, theirs.mean, atol=1e-7)
        assert torch.allclose(ours.variance, theirs.variance, atol=1e-7)

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_repeatable(self):
        (first, a), (second, b), (other, c) = (
            self.run(PoissonLikelihood(), COUNTS, 20, seed, max_iter=40) for seed in (1, 1, 2)
        )
        assert first.objective == second.objective != other.objective
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))

    def test_says_so_when_steps_ran_out(self):
        with pytest.warns(ConvergenceWarning, match="30 steps taken"):
            self.run(GaussianLikelihood(), Y, 20, max_iter=30)

    def test_checkpoints_are_written_now_and_then(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            fit_module, "Minibatcher", functools.partial(Minibatcher, checkpoint_every=7)
        )
        written = []
        monkeypatch.setattr(
            "gpvi.inference.minibatch.save_state", lambda path, *rest: written.append(path)
        )
        with pytest.warns(ConvergenceWarning):
            self.run(GaussianLikelihood(), Y, 20, max_iter=30, checkpoint=tmp_path / "fit")
        assert written == [str(tmp_path / "fit")] * 4


def test_large_counts_do_not_run_away():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 1, generator=generator, dtype=torch.float64)
    y = torch.poisson(1e6 * (1.0 + x[:, 0]), generator=generator)
    gp = GaussianProcess(parse_kernel("matern52", 1))  # mean zero: the rate starts at one
    with pytest.warns(ConvergenceWarning):
        result = fit(
            gp,
            InducingPoints(10),
            PoissonLikelihood(),
            x,
            y,
            batch_size=1,
            max_iter=3,
            generator=generator,
        )
    prediction = result.posterior.predict(x)
    assert math.isfinite(result.objective)
    assert bool(((prediction.mean - y.log()).abs() < 3.0).all())
    assert bool(torch.isfinite(prediction.variance).all())
