"""Minibatches of a sparse inverse Cholesky approximation: unbiased estimates, q, fits, checkpoints."""

import math
import sys

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess
from gpvi.approximations.sparse_inverse import SparseInverseCholesky
from gpvi.exceptions import NumericalError, UnsupportedError
from gpvi.inference import FitProblem, FitRecord, Minibatcher, elbo, fit
from gpvi.inference.batch_family import FreeFamily
from gpvi.inference.batch_responses import ResponseBatches
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    as_likelihood,
)

# The function hides the module of the same name.
fit_module = sys.modules["gpvi.inference.fit"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SIZE = 24
X = torch.rand(SIZE, 2, generator=seeded(1), dtype=torch.float64)
X[5] = X[17] = X[3]
X[20] = X[8]
Y = (4 * X[:, 0]).sin() + X[:, 1] + 0.2 * torch.randn(SIZE, generator=seeded(2)).double()
LABELS = (Y > 1).double()
WEIGHTS = torch.linspace(0.5, 2.0, SIZE).double()
FAMILIES = pytest.mark.parametrize("family", ["sic", "diagonal", "first_points"])


def process(*batch: int, lengthscale: float = 0.3, ard: int | None = 2) -> GaussianProcess:
    shape = torch.Size(batch)
    base = MaternKernel(nu=1.5, ard_num_dims=ard, batch_shape=shape)
    kernel = ScaleKernel(base, batch_shape=shape).double()
    kernel.base_kernel.lengthscale = lengthscale
    mean = gpytorch.means.ConstantMean(batch_shape=shape).double()
    mean.initialize(constant=0.4)
    return GaussianProcess(kernel, mean)


def loop(approximation, likelihood, y: Tensor, *, x: Tensor = X, gp=None, **options) -> Minibatcher:
    data = {name: options.pop(name) for name in ("weights", "rows") if name in options}
    problem = FitProblem(
        process() if gp is None else gp,
        approximation,
        as_likelihood(likelihood),
        x,
        y,
        approximation.plan(x),
        **data,
    )
    settings = {
        "batch_size": 6,
        "num_steps": 40,
        "learning_rate": 0.02,
        "natural_step_size": 0.1,
        "tolerance": 1e-8,
        "generator": seeded(),
        "history": [],
        **options,
    }
    return Minibatcher(problem, **settings)


def assert_close(first, second, **tolerance) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def observed(y: Tensor, *missing: int) -> Tensor:
    y = y.clone()
    y[list(missing)] = torch.nan
    return y


RESPONSES = {
    "plain": (lambda: GaussianLikelihood(noise=0.1), Y, {}),
    "missing": (lambda: GaussianLikelihood(noise=0.1), observed(Y, 0, 3, 11), {}),
    "weights": (lambda: GaussianLikelihood(noise=0.1), Y, {"weights": WEIGHTS}),
    "noise of rows": (
        lambda: GaussianLikelihood(noise=0.1),
        observed(Y, 2),
        {"rows": {"noise": 0.1 * WEIGHTS}, "weights": WEIGHTS},
    ),
}


class TestResponses:
    @pytest.fixture(params=RESPONSES)
    def batches(self, request) -> Minibatcher:
        make, y, options = RESPONSES[request.param]
        batches = loop(SparseInverseCholesky(4), make(), y, **options)
        batches._begin()
        return batches

    @pytest.mark.parametrize("size", [1, 3])
    def test_batches_average_to_the_whole(self, batches, size):
        """Value and gradient, over all batches of some size that a permutation is cut into."""
        scheme = batches.scheme
        assert isinstance(scheme, ResponseBatches)
        number = scheme.num_items - scheme.num_items % size
        whole = batches.problem.value()
        places = torch.randperm(scheme.num_items, generator=seeded(4))
        # Every place is in `size` of the batches below, once at each position.
        parts = [places.roll(shift)[:size] for shift in range(scheme.num_items)]
        mean = sum(scheme.score(part).value for part in parts) / len(parts)
        assert number > 0
        torch.testing.assert_close(mean, whole, rtol=1e-9, atol=0)
        gradients = [torch.autograd.grad(v, batches.parameters) for v in (whole, mean)]
        assert_close(*gradients, rtol=1e-8, atol=1e-10)

    def test_objective_is_that_of_the_posterior(self, batches):
        result = batches.problem.infer()
        assert batches.objective() == pytest.approx(result.objective, rel=1e-12)
        moments = batches.posterior().marginals()
        torch.testing.assert_close(moments.mean, result.posterior.marginals().mean)
        assert not moments.mean.requires_grad

    def test_no_distinct_locations(self):
        """All rows at one place: one conditional, without neighbours."""
        x = torch.zeros(SIZE, 2).double()
        batches = loop(SparseInverseCholesky(4), GaussianLikelihood(noise=0.1), Y, x=x)
        assert batches.scheme.num_items == 1
        value = batches.scheme.score(torch.zeros(1, dtype=torch.int64)).value
        torch.testing.assert_close(value, batches.problem.value())


class TestFamily:
    @pytest.fixture(params=["sic", "diagonal", "first_points"])
    def batches(self, request) -> Minibatcher:
        approximation = SparseInverseCholesky(4, family=request.param)
        labels = observed(LABELS, 0, 11)
        batches = loop(approximation, BernoulliLikelihood(), labels, weights=WEIGHTS)
        batches._begin()
        with torch.no_grad():
            for parameter in q_parameters(batches):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(3)))
            for parameter in batches.parameters:
                parameter.add_(0.02)  # so that q goes along
        return batches

    @pytest.mark.parametrize("size", [1, 5])
    def test_batches_average_to_the_whole(self, batches, size):
        scheme, problem = batches.scheme, batches.problem
        assert isinstance(scheme, FreeFamily)
        whole = elbo(
            scheme._condition(scheme._prior()), problem.likelihood, problem.y, weights=WEIGHTS
        )
        rows = torch.randperm(SIZE, generator=seeded(4))
        parts = [rows.roll(shift)[:size] for shift in range(SIZE)]
        mean = sum(scheme.score(part).value for part in parts) / SIZE
        torch.testing.assert_close(mean, whole, rtol=1e-9, atol=0)
        parameters = batches.parameters + q_parameters(batches)
        gradients = [torch.autograd.grad(v, parameters) for v in (whole, mean)]
        assert_close(*gradients, rtol=1e-8, atol=1e-10)

    def test_starts_at_the_fixed_point(self, batches):
        with torch.no_grad():
            for parameter in q_parameters(batches):
                parameter.zero_()
            for parameter in batches.parameters:
                parameter.sub_(0.02)
        best = batches.problem.infer()
        assert batches.objective() == pytest.approx(best.objective, rel=1e-6)
        assert batches.posterior().kl().item() == pytest.approx(
            best.posterior.kl().item(), rel=1e-3
        )

    def test_q_goes_along_with_hyperparameters(self):
        """Near the fixed point of other hyperparameters, without a step of its own."""
        batches = loop(SparseInverseCholesky(4), BernoulliLikelihood(), LABELS)
        batches._begin()
        scheme = batches.scheme

        def gaps() -> tuple[float, float]:
            """Distances from the sites' own posterior: of q, and of what q was at the start."""
            held = scheme.problem.sites
            with torch.no_grad():
                prior = scheme._prior()
                own, best = scheme._condition(prior), prior.condition(held)
                start = prior.posterior(
                    prior.place_mean + scheme._start.shift, scheme._start.factor
                )
                bound = elbo(best, scheme.problem.likelihood, LABELS)
                mine, stale = (elbo(q, scheme.problem.likelihood, LABELS) for q in (own, start))
            return float(abs(bound - mine)), float(abs(bound - stale))

        assert max(gaps()) < 1e-8
        with torch.no_grad():
            for parameter in batches.parameters:
                parameter.add_(0.1)
        along, stale = gaps()
        assert along < 0.1 * stale

    def test_several_latents(self):
        theirs = gpytorch.likelihoods.SoftmaxLikelihood(num_features=3, num_classes=3).double()
        theirs.mixing_weights.data = torch.eye(3).double()
        labels = (3 * X[:, 0]).floor()
        batches = loop(SparseInverseCholesky(4), theirs, labels, gp=process(3), num_steps=8)
        batches._begin()
        start = batches.objective()
        whole = batches.scheme._condition(batches.scheme._prior())
        assert whole.shift.shape == (3, 21)
        batches.run()
        assert batches.objective() > start - 0.5

    def test_a_gaussian_likelihood_may_have_one(self):
        approximation = SparseInverseCholesky(4, evidence="function")
        batches = loop(approximation, GaussianLikelihood(noise=0.1), Y)
        batches._begin()
        assert isinstance(batches.scheme, FreeFamily)
        assert batches.objective() >= batches.problem.infer().objective - 1e-9

    def test_the_better_of_both_is_kept(self, batches):
        """A q that has lost its way is not handed out."""
        with torch.no_grad():
            for parameter in q_parameters(batches):
                parameter.mul_(30.0)
        assert not batches.posterior().free
        assert batches.objective() == batches.problem.infer().objective


def q_parameters(batches: Minibatcher) -> list[torch.nn.Parameter]:
    return batches.scheme.groups()[0].parameters


BIG = 200
BIG_X = torch.rand(BIG, 2, generator=seeded(7), dtype=torch.float64)
SURFACE = 2 * (6 * BIG_X[:, 0]).sin() * (4 * BIG_X[:, 1]).cos()
BIG_LABELS = (torch.rand(BIG, generator=seeded(8)) < torch.sigmoid(2 * SURFACE)).double()


class TestTraining:
    @FAMILIES
    @pytest.mark.filterwarnings("ignore:The incomplete Cholesky")
    def test_q_alone_does_not_lose_what_it_started_with(self, family):
        gp = process(lengthscale=0.4)
        for parameter in gp.parameters():
            parameter.requires_grad_(False)
        approximation = SparseInverseCholesky(10, family=family)
        batches = loop(
            approximation,
            BernoulliLikelihood(),
            BIG_LABELS,
            x=BIG_X,
            gp=gp,
            batch_size=25,
            num_steps=80,
        )
        batches._begin()
        start = batches.problem.infer().objective
        batches.run()
        scheme = batches.scheme
        own = scheme._condition(scheme._prior())
        reached = elbo(own, batches.problem.likelihood, BIG_LABELS).item()
        assert any(parameter.any() for parameter in q_parameters(batches))
        assert reached > start - 0.2
        assert batches.objective() >= max(reached, start) - 1e-6

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_comes_close_to_the_full_batch(self):
        results = []
        for size in (None, 25):
            gp = process(lengthscale=0.4)
            results.append(
                fit(
                    gp,
                    SparseInverseCholesky(10),
                    BernoulliLikelihood(),
                    BIG_X,
                    BIG_LABELS,
                    batch_size=size,
                    learning_rate=0.05,
                    max_iter=30 if size is None else 200,
                    generator=seeded(),
                )
            )
        whole, small = (result.objective for result in results)
        assert whole - 0.7 < small < whole + 0.7
        assert len(results[1].history) == results[1].num_iterations == 200

    def test_step_size_of_q_is_used(self):
        moved = []
        for size in (0.01, 0.1):
            batches = loop(
                SparseInverseCholesky(4),
                PoissonLikelihood(),
                (Y + 1).exp().floor(),
                natural_step_size=size,
                num_steps=2,
            )
            batches.run()
            moved.append(q_parameters(batches)[0].abs().max().item())
        assert 2 * moved[0] < moved[1]


class TestRefresh:
    def run(self, approximation, likelihood, y: Tensor, gp=None, **options) -> Minibatcher:
        settings = {"learning_rate": 0.1, "num_steps": 30, **options}
        batches = loop(approximation, likelihood, y, gp=gp, **settings)
        batches.run()
        return batches

    @pytest.mark.parametrize("gaussian", [True, False])
    def test_neighbours_follow_the_lengthscales_and_it_is_recorded(self, gaussian):
        likelihood, y = (GaussianLikelihood(), Y) if gaussian else (BernoulliLikelihood(), LABELS)
        batches = self.run(SparseInverseCholesky(4, refresh_every=10), likelihood, y)
        stages = list(dict.fromkeys(record.stage for record in batches.history))
        count, step = batches.scheme.last_refresh
        assert count >= 1 and step % 10 == 0
        assert stages == ["minibatch"] + [f"minibatch, refresh {i + 1}" for i in range(count)]
        last = [r.evaluation for r in batches.history if r.stage == stages[-1]]
        assert last == list(range(1, 30 - step + 1))

    def test_none_without_a_period(self):
        batches = self.run(SparseInverseCholesky(4, refresh_every=None), GaussianLikelihood(), Y)
        assert {record.stage for record in batches.history} == {"minibatch"}

    def test_one_lengthscale_keeps_neighbours(self):
        batches = self.run(SparseInverseCholesky(4), GaussianLikelihood(), Y, process(ard=None))
        assert batches.scheme.last_refresh == (0, 0)

    def test_at_most_once_an_epoch(self):
        batches = loop(SparseInverseCholesky(4, refresh_every=1), GaussianLikelihood(), Y)
        assert batches.scheme.neighbors._period == math.ceil(batches.scheme.num_items / 6)

    def test_q_starts_anew_where_hyperparameters_have_gone_far(self):
        approximation = SparseInverseCholesky(4, refresh_every=None)
        batches = loop(approximation, BernoulliLikelihood(), LABELS, learning_rate=1e-6)
        batches.run()
        assert not batches.scheme.refresh(40)
        with torch.no_grad():
            batches.problem.gp.kernel.raw_outputscale.add_(1.0)
        assert batches.scheme.refresh(40)
        assert not any(parameter.any() for parameter in q_parameters(batches))

    def test_roll_back_across_a_refresh(self):
        """A step that fails right after new neighbours goes back to the old ones."""
        batches = loop(
            SparseInverseCholesky(4, refresh_every=10),
            BernoulliLikelihood(),
            LABELS,
            learning_rate=0.1,
            num_steps=24,
        )
        score, failed = batches.scheme.score, []

        def failing(rows):
            if batches.step == batches.scheme.last_refresh[1] > 0 and not failed:
                failed.append(batches.step)
                raise NumericalError("broken")
            return score(rows)

        batches.scheme.score = failing
        batches.run()
        assert len(failed) == 1 and batches.step == 24
        record = next(record for record in batches.history if record.failed)
        assert (record.stage, record.evaluation) == ("minibatch", failed[0] + 1)
        assert "refresh" in batches.history[-1].stage


class Killed(Exception):
    pass


FITS = {
    "responses": (SparseInverseCholesky, GaussianLikelihood, Y, {}),
    "family": (SparseInverseCholesky, BernoulliLikelihood, LABELS, {}),
    "diagonal": (SparseInverseCholesky, BernoulliLikelihood, LABELS, {"family": "diagonal"}),
}


class TestCheckpoint:
    def run(self, name: str, path=None, kill: int | None = None):
        make, likelihood, y, options = FITS[name]
        gp = process()

        def callback(record: FitRecord) -> None:
            seen.append(record)
            if len(seen) == kill:
                raise Killed

        seen: list[FitRecord] = []
        result = fit(
            gp,
            make(4, refresh_every=5, **options),
            likelihood(),
            X,
            y,
            batch_size=6,
            max_iter=32,
            learning_rate=0.1,
            generator=seeded(3),
            callbacks=[callback],
            checkpoint=path,
        )
        values = [parameter.detach() for parameter in gp.parameters()]
        return result, [*values, result.posterior.marginals().mean]

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    @pytest.mark.parametrize("name", FITS)
    def test_a_killed_fit_resumes(self, name, tmp_path, monkeypatch):
        class Often(Minibatcher):
            def __post_init__(self) -> None:
                super().__post_init__()
                self.checkpoint_every = 7

        monkeypatch.setattr(fit_module, "Minibatcher", Often)
        reference, expected = self.run(name)
        for kill in (3, 9, 30):
            path = tmp_path / str(kill)
            with pytest.raises(Killed):
                self.run(name, path, kill)
            resumed, values = self.run(name, path)
            # To the last bit but for BLAS, whose sums depend on where in memory their terms lie.
            assert resumed.objective == pytest.approx(reference.objective, rel=1e-9)
            for a, b in zip(values, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
            stages = [[(r.stage, r.evaluation) for r in f.history] for f in (reference, resumed)]
            assert stages[0] == stages[1]
            objectives = [[r.objective for r in f.history] for f in (reference, resumed)]
            assert objectives[0] == pytest.approx(objectives[1], rel=1e-9)
        assert any("refresh" in record.stage for record in reference.history)


class TestFit:
    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_hyperparameters_near_those_of_the_full_batch(self):
        size = 2_000
        x = torch.rand(size, 2, generator=seeded(1), dtype=torch.float64)
        noise = 0.1 * torch.randn(size, generator=seeded(2)).double()
        y = (8 * x[:, 0]).sin() * (3 * x[:, 1]).cos() + noise
        found = []
        for batch_size in (None, 200):
            gp, likelihood = process(lengthscale=0.5), GaussianLikelihood(noise=0.05)
            result = fit(
                gp,
                SparseInverseCholesky(12),
                likelihood,
                x,
                y,
                warm_start=None,
                batch_size=batch_size,
                learning_rate=0.05,
                max_iter=40 if batch_size is None else 250,
                generator=seeded(),
            )
            values = [
                likelihood.noise.item(),
                *gp.kernel.base_kernel.lengthscale.flatten().tolist(),
            ]
            found.append((result.objective, values))
        (whole, ours), (small, theirs) = found
        assert ours == pytest.approx(theirs, rel=0.15)
        assert small == pytest.approx(whole, abs=10.0)

    def test_groups_are_refused(self):
        with pytest.raises(UnsupportedError, match=r"batch_size and groups: .* cut groups apart"):
            fit(
                process(),
                SparseInverseCholesky(4),
                BernoulliLikelihood(),
                X,
                LABELS,
                groups=torch.arange(SIZE) % 2,
                batch_size=6,
            )

    def test_several_data_sets_are_refused(self):
        with pytest.raises(UnsupportedError, match=r"x of shape \(1, 24, 2\): rows are drawn"):
            fit(
                process(),
                SparseInverseCholesky(4),
                BernoulliLikelihood(),
                X.unsqueeze(0),
                LABELS.unsqueeze(0),
                batch_size=6,
            )

    def test_other_whole_data_approximations_still_are(self):
        with pytest.raises(UnsupportedError, match=r"batch_size and Exact: .* needs whole data"):
            fit(process(), Exact(), BernoulliLikelihood(), X, LABELS, batch_size=6)
