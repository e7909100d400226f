"""The fit loop: warm start, full batch or minibatches, warnings, and inputs that do not fit."""

import math
import warnings

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, InducingPoints, White
from gpvi.exceptions import (
    ConvergenceWarning,
    InputError,
    NumericalError,
    PriorCollapseWarning,
    UnsupportedError,
)
from gpvi.inference import FitResult, WarmStart, fit
from gpvi.kernels import WhiteKernel
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(size: int = 60, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = seeded(5)
    x = 6 * torch.rand(size, 2, generator=generator, dtype=dtype)
    noise = 0.2 * torch.randn(size, generator=generator, dtype=dtype)
    return x, (2 * x[:, 0]).sin() + noise


def process(mean: bool = True) -> GaussianProcess:
    kernel = ScaleKernel(MaternKernel(ard_num_dims=2)).double()
    return GaussianProcess(kernel, gpytorch.means.ConstantMean().double() if mean else None)


def state(*modules: torch.nn.Module) -> list[dict[str, Tensor]]:
    return [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]


def same(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


class TestFullBatch:
    def test_result(self):
        x, y = data()
        gp, likelihood = process(), GaussianLikelihood(noise=0.5)
        result = fit(gp, Exact(), likelihood, x, y, generator=seeded())
        assert isinstance(result, FitResult)
        assert result.converged and not result.stopped and result.num_iterations > 3
        assert {record.stage for record in result.history} == {"full batch"}
        assert result.objective == pytest.approx(
            max(record.objective for record in result.history), abs=1e-6
        )
        assert likelihood.noise.item() == pytest.approx(0.04, abs=0.03)
        lengthscales = gp.kernel.base_kernel.lengthscale.detach().squeeze()
        assert lengthscales[1] > 5 * lengthscales[0]  # the second column does not matter
        assert not result.posterior.marginals().mean.requires_grad
        residual = y - result.posterior.marginals().mean
        assert residual.std() < 0.25

    def test_inducing_points_are_chosen_and_trained(self):
        x, y = data()
        approximation = InducingPoints(12)
        result = fit(process(), approximation, GaussianLikelihood(), x, y, generator=seeded())
        assert approximation.inducing_points.shape == (12, 2)
        rows = torch.cdist(approximation.inducing_points.detach(), x).min(-1).values
        assert bool((rows > 1e-6).any())
        evidence = fit(process(), Exact(), GaussianLikelihood(), x, y).objective
        assert evidence - 15 < result.objective <= evidence + 1e-6

    def test_classification_with_an_own_gpytorch_likelihood(self):
        x, y = data()
        likelihood = gpytorch.likelihoods.BernoulliLikelihood()
        result = fit(process(), Exact(), likelihood, x, (y > 0).double(), tolerance=1e-5)
        assert result.converged
        assert result.objective > len(y) * math.log(0.5)

    def test_no_iterations(self):
        x, y = data()
        gp, likelihood = process(), GaussianLikelihood(noise=0.3)
        before = state(gp, likelihood)
        result = fit(gp, Exact(), likelihood, x, y, max_iter=0)
        assert same(before, state(gp, likelihood))
        assert result.history == [] and result.num_iterations == 0 and not result.converged
        covariance = gp.covariance(x) + 0.3 * torch.eye(60).double()
        evidence = torch.distributions.MultivariateNormal(gp.mean(x), covariance).log_prob(y)
        assert result.objective == pytest.approx(evidence.item(), abs=1e-6)

    def test_missing_targets_weights_and_extras(self):
        x, y = data()
        noise = torch.full((60,), 0.04).double()
        y[::7] = noise[::7] = torch.nan
        weights = torch.ones(60).double()
        likelihood = GaussianLikelihood(learn_noise=False)
        options = {"generator": seeded(), "tolerance": 1e-8}
        full = fit(process(), Exact(), likelihood, x, y, weights=weights, noise=noise, **options)
        seen = ~y.isnan()
        kept = fit(process(), Exact(), likelihood, x[seen], y[seen], noise=noise[seen], **options)
        assert full.objective == pytest.approx(kept.objective, abs=1e-3)

    def test_groups(self):
        x, y = data()
        groups = torch.arange(60) % 4
        result = fit(process(), Exact(), GaussianLikelihood(), x, y, groups=groups)
        assert result.converged
        assert result.posterior.kl().shape == (4,)

    def test_several_outputs(self):
        x, y = data(30)
        shape = torch.Size([2])
        kernel = ScaleKernel(MaternKernel(ard_num_dims=2, batch_shape=shape), batch_shape=shape)
        likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2).double()
        targets = torch.stack([y, -y], dim=-1)
        result = fit(
            GaussianProcess(kernel.double()), Exact(), likelihood, x, targets, tolerance=1e-4
        )
        assert result.converged and result.posterior.kl().shape == (2,)

    def test_float32(self):
        x, y = data(dtype=torch.float32)
        kernel = ScaleKernel(MaternKernel(ard_num_dims=2))
        likelihood = GaussianLikelihood(noise=0.3).float()
        result = fit(GaussianProcess(kernel), InducingPoints(20), likelihood, x, y, tolerance=1e-4)
        assert result.posterior.marginals().mean.dtype == torch.float32
        reference = fit(
            process(False),
            InducingPoints(20),
            GaussianLikelihood(noise=0.3),
            *data(),
            tolerance=1e-4,
        )
        assert result.objective == pytest.approx(reference.objective, abs=2.0)

    def test_duplicate_rows(self):
        x, y = data(30)
        x, y = x.repeat(4, 1), torch.cat([y, y + 0.1, y - 0.1, y])
        for approximation in (Exact(), InducingPoints(50)):
            result = fit(process(), approximation, GaussianLikelihood(noise=0.3), x, y)
            assert math.isfinite(result.objective)

    def test_repeatable_and_leaves_the_global_generator(self):
        x, y = data()
        rng = torch.get_rng_state()
        runs = []
        for _ in range(2):
            gp, approximation = process(), InducingPoints(10)
            fit(gp, approximation, GaussianLikelihood(), x, y, generator=seeded(3))
            runs.append(state(gp, approximation))
        fit(process(), InducingPoints(10), GaussianLikelihood(), x, y)
        assert same(*runs)
        assert torch.equal(torch.get_rng_state(), rng)


class TestWarmStart:
    def run(self, size: int, **options) -> tuple[FitResult, GaussianProcess]:
        x, y = data(size)
        gp = process()
        settings = {"num_rows": 50, "num_inducing": 8, "max_evaluations": 15} | options
        result = fit(
            gp,
            InducingPoints(15),
            GaussianLikelihood(),
            x,
            y,
            generator=seeded(),
            warm_start=WarmStart(**settings),
            max_iter=20,
            tolerance=1e-3,
        )
        return result, gp

    def test_only_from_twice_as_many_rows(self):
        few, _ = self.run(99)
        many, _ = self.run(100)
        assert {record.stage for record in few.history} == {"full batch"}
        stages = [record.stage for record in many.history]
        assert stages == sorted(stages, reverse=True) and set(stages) == {
            "warm start",
            "full batch",
        }
        assert sum(stage == "warm start" for stage in stages) <= 17

    def test_only_where_it_saves_work(self):
        """With few inducing points an evaluation on all rows costs less than one on the subset."""
        costly, _ = self.run(150, num_inducing=20)
        assert {record.stage for record in costly.history} == {"full batch"}

    def test_improves_the_first_full_evaluation(self):
        x, y = data(200)
        options = {"generator": seeded(), "tolerance": 1e-3}
        likelihoods = GaussianLikelihood(noise=0.9), GaussianLikelihood(noise=0.9)
        warm = fit(
            process(), Exact(), likelihoods[0], x, y, warm_start=WarmStart(num_rows=80), **options
        )
        cold = fit(process(), Exact(), likelihoods[1], x, y, warm_start=None, **options)
        first = next(record for record in warm.history if record.stage == "full batch")
        assert first.objective > cold.history[0].objective + 10
        assert warm.objective == pytest.approx(cold.objective, abs=1.0)

    def test_subset_has_targets(self):
        x, y = data(300)
        y[: 300 - 40] = torch.nan
        options = {"max_iter": 5, "tolerance": 0.1, "generator": seeded()}
        few, many = WarmStart(num_rows=21), WarmStart(num_rows=20, num_inducing=10)
        result = fit(process(), Exact(), GaussianLikelihood(), x, y, warm_start=few, **options)
        assert result.history[0].stage == "full batch"
        result = fit(process(), Exact(), GaussianLikelihood(), x, y, warm_start=many, **options)
        assert result.history[0].stage == "warm start"
        assert result.history[0].objective > -100  # of 20 targets, not of a few

    def test_not_for_groups(self):
        x, y = data(100)
        result = fit(
            process(),
            Exact(),
            GaussianLikelihood(),
            x,
            y,
            groups=torch.arange(100) % 5,
            warm_start=WarmStart(num_rows=20),
            tolerance=1e-2,
        )
        assert {record.stage for record in result.history} == {"full batch"}

    def test_not_where_a_subset_says_little(self):
        x, y = data(100)
        result = fit(
            GaussianProcess(WhiteKernel().double()),
            White(),
            PoissonLikelihood(),
            x,
            (y + 2).exp().floor(),
            warm_start=WarmStart(num_rows=20),
            tolerance=1e-3,
        )
        assert {record.stage for record in result.history} == {"full batch"}

    def test_counts_rows_of_several_outputs(self):
        x, y = data(60)
        shape = torch.Size([2])
        kernel = ScaleKernel(MaternKernel(batch_shape=shape), batch_shape=shape).double()
        likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2).double()
        result = fit(
            GaussianProcess(kernel),
            Exact(),
            likelihood,
            x,
            torch.stack([y, -y], dim=-1),
            warm_start=WarmStart(num_rows=20, num_inducing=10, max_evaluations=5),
            tolerance=1e-2,
        )
        assert result.history[0].stage == "warm start"

    def test_a_callback_may_stop_it(self):
        x, y = data(100)
        result = fit(
            process(),
            InducingPoints(15),
            GaussianLikelihood(),
            x,
            y,
            generator=seeded(),
            warm_start=WarmStart(num_rows=50, num_inducing=8),
            callbacks=[lambda record: record.evaluation == 3],
        )
        assert len(result.history) == 3 and result.stopped and not result.converged
        assert "callback" in result.message and result.num_iterations == 0
        assert math.isfinite(result.objective)

    def test_impossible_options(self):
        with pytest.raises(InputError, match="num_rows of the warm start is 0"):
            WarmStart(num_rows=0)


class TestWarnings:
    def test_not_converged(self):
        x, y = data()
        with pytest.warns(
            ConvergenceWarning, match=r"after 2 iterations .*max_iter \(now 2\)"
        ) as got:
            fit(process(), Exact(), GaussianLikelihood(), x, y, max_iter=2)
        assert got[0].filename == __file__

    def test_collapsed(self):
        x, _ = data()
        gp = process(False)
        gp.kernel.outputscale = 1e-8
        with pytest.warns(PriorCollapseWarning, match="KL"):
            fit(gp, Exact(), GaussianLikelihood(noise=1.0), x, torch.zeros(60).double(), max_iter=0)

    def test_silence_where_all_is_well(self):
        x, y = data()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit(process(), Exact(), GaussianLikelihood(), x, y)
            fit(process(), Exact(), GaussianLikelihood(), x, y, max_iter=0)
            fit(process(), Exact(), GaussianLikelihood(), x, y, callbacks=[lambda record: True])


class TestRefusals:
    """Whatever does not fit is said before anything changes."""

    def refused(self, error: type[Exception], match: str, **options) -> None:
        x, y = data()
        arguments = {"likelihood": GaussianLikelihood(), "approximation": InducingPoints(5)}
        arguments |= {"x": x, "y": y, "gp": process()} | options
        modules = [arguments[name] for name in ("gp", "approximation", "likelihood")]
        before = state(*modules)
        with pytest.raises(error, match=match):
            fit(
                arguments.pop("gp"),
                arguments.pop("approximation"),
                arguments.pop("likelihood"),
                arguments.pop("x"),
                arguments.pop("y"),
                **arguments,
            )
        assert same(before, state(*modules))

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"max_iter": -1}, "max_iter is -1"),
            ({"max_iter": 2.5}, "max_iter is 2.5; it must be an integer"),
            ({"y": [0.0] * 60}, "y is of type list; it must be of type Tensor"),
            ({"objective": "bound"}, "objective is 'bound'"),
            ({"y": torch.zeros(10).double()}, r"\(10,\)"),
            ({"y": torch.zeros(60, 1).double()}, "flattened"),
            ({"y": torch.full((60,), torch.inf).double()}, "infinite"),
            ({"y": torch.full((60,), torch.nan).double()}, "each of the 60 rows is NaN"),
            ({"x": torch.full((60, 2), torch.nan).double()}, "120 values that are NaN"),
            ({"x": torch.zeros(60).double()}, "unsqueeze"),
            ({"weights": -torch.ones(60).double()}, "non-negative"),
            ({"exposure": torch.ones(60)}, "exposure"),
            ({"groups": torch.zeros(60)}, "integer"),
            ({"checkpoint": "somewhere"}, "'somewhere' needs a seeded generator"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"batch_size": 8.5}, "batch_size is 8.5; it must be an integer"),
            ({"batch_size": 5, "learning_rate": 0.0}, "learning_rate is 0.0"),
            ({"batch_size": 5, "natural_step_size": 1.5}, "natural_step_size is 1.5"),
            ({"learning_rate": math.inf}, "learning_rate is inf; it must be positive and finite"),
            ({"learning_rate": math.nan}, "learning_rate is nan"),
            ({"optimizer": "sgd"}, "optimizer is 'sgd'; it must be one of auto, lbfgs, adam"),
            ({"optimizer": "lbfgs", "batch_size": 5}, "optimizer='lbfgs' and batch_size=5"),
            (
                {"approximation": InducingPoints(inducing_points=torch.zeros(3, 5).double())},
                "columns",
            ),
            ({"likelihood": BernoulliLikelihood()}, "Bernoulli"),
            ({"x": data(dtype=torch.float32)[0]}, "x is torch.float32 and the process .*float64"),
        ],
    )
    def test_inputs(self, options, match):
        self.refused(InputError, match, **options)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"approximation": Exact()}, "batch_size and Exact.*InducingPoints"),
            ({"approximation": White(), "gp": GaussianProcess(WhiteKernel())}, "White"),
            ({"groups": torch.zeros(60, dtype=torch.int64)}, "groups"),
        ],
    )
    def test_minibatch_combinations(self, options, match):
        self.refused(UnsupportedError, match, batch_size=10, **options)

    def test_not_a_likelihood(self):
        x, y = data()
        with pytest.raises(InputError, match=r"gp is of type ScaleKernel; .*GaussianProcess"):
            fit(process().kernel, Exact(), GaussianLikelihood(), x, y)
        with pytest.raises(InputError, match=r"approximation is of type str; .*Approximation"):
            fit(process(), "exact", GaussianLikelihood(), x, y)
        with pytest.raises(InputError, match="gpytorch likelihood"):
            fit(process(), Exact(), "gaussian", x, y)

    def test_hopeless_start(self):
        gp = process()
        gp.mean_module.raw_constant.data.fill_(1e200)
        self.refused(NumericalError, "starting values", gp=gp, max_iter=5)
        gp.mean_module.raw_constant.data.fill_(torch.inf)
        self.refused(InputError, "raw_constant is not finite", gp=gp, max_iter=5)

    def test_hopeless_after_the_warm_start(self):
        """The warm start has moved the hyperparameters when the full batch fails; they go back."""

        class Fragile(InducingPoints):
            def collapsed_objective(
                self, gp, x, y, noise, *, tighter, copies=None, plan=None, terms=None
            ):
                raise NumericalError("broken")

        self.refused(
            NumericalError,
            "broken",
            approximation=Fragile(5),
            warm_start=WarmStart(num_rows=20, num_inducing=5, max_evaluations=3),
        )

    def test_callback_that_raises(self):
        def explode(record):
            if record.evaluation == 4:
                raise KeyError("mine")

        self.refused(KeyError, "mine", callbacks=[explode])
        self.refused(KeyError, "mine", callbacks=[explode], batch_size=20)
