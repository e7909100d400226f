"""Conjugate-computation variational inference: its fixed point is the best Gaussian q."""

import math
import pickle

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean
from torch import Tensor
from torch.distributions import Normal

from gpvi.approximations import Exact, GaussianProcess, InducingPoints, Marginals, Prior, Sites
from gpvi.exceptions import InputError, NumericalError
from gpvi.inference import cvi, data_term, dual, elbo, optimal_log_v, tighter_elbo
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    Likelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    as_likelihood,
)

X = torch.linspace(0.0, 3.0, 15, dtype=torch.float64).unsqueeze(-1)
WAVE = (2.0 * X[:, 0]).sin()
LABELS = (WAVE > 0).double()
COUNTS = (2.0 + 2.0 * WAVE).exp().floor()
UNIT = torch.sigmoid(WAVE)
CLASSES = torch.arange(15.0, dtype=torch.float64).div(5).floor()


def process(scale: float = 1.0, *batch: int) -> GaussianProcess:
    shape = torch.Size(batch)
    kernel = ScaleKernel(RBFKernel(batch_shape=shape), batch_shape=shape).double()
    kernel.outputscale, kernel.base_kernel.lengthscale = scale, 0.8
    mean = ConstantMean(batch_shape=shape).double()
    mean.initialize(constant=0.3)
    return GaussianProcess(kernel, mean)


def exact_prior(scale: float = 1.0, *batch: int) -> Prior:
    return Exact().prior(process(scale, *batch), X)


def inducing_prior(num_inducing: int = 4) -> Prior:
    points = torch.linspace(0.0, 3.0, num_inducing, dtype=torch.float64).unsqueeze(-1)
    return InducingPoints(inducing_points=points).prior(process(), X)


def softmax() -> gpytorch.likelihoods.Likelihood:
    likelihood = gpytorch.likelihoods.SoftmaxLikelihood(num_features=3, num_classes=3)
    likelihood.mixing_weights.data = 1.5 * torch.eye(3) - 0.3
    return likelihood.double()


SINGLE_LATENT = {
    "probit": (BernoulliLikelihood(), LABELS),
    "logit": (BernoulliLikelihood(link="logit"), LABELS),
    "poisson": (PoissonLikelihood(), COUNTS),
    "softplus poisson": (PoissonLikelihood(link="softplus"), COUNTS),
    "student t": (StudentTLikelihood(scale=0.3), WAVE),
    "gpytorch bernoulli": (gpytorch.likelihoods.BernoulliLikelihood(), LABELS),
    "gpytorch laplace": (gpytorch.likelihoods.LaplaceLikelihood().double(), WAVE),
    "gpytorch poisson": (gpytorch.likelihoods.PoissonLikelihood(), COUNTS),
    "gpytorch beta": (gpytorch.likelihoods.BetaLikelihood().double(), UNIT),
    "gpytorch negative binomial": (
        gpytorch.likelihoods.NegativeBinomialLikelihood().double(),
        COUNTS,
    ),
    "gpytorch student t": (gpytorch.likelihoods.StudentTLikelihood().double(), WAVE),
}


class SumOfLatents(Likelihood):
    """Gaussian noise about the sum of four latents, which couples them as strongly as possible."""

    num_latents = 4
    noise = 0.01

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Normal:
        return Normal(function_samples.sum(-1), self.noise**0.5)

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        return self.forward(function_samples).log_prob(y)

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        squares = (y - mean.sum(-2)).square() + variance.sum(-2)
        return -0.5 * (squares / self.noise + math.log(2 * math.pi * self.noise))


def best_gaussian(prior: Prior, likelihood: Likelihood, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """ELBO maximised over mean and Cholesky factor of q(f), without sites (Opper & Archambeau 2009)."""
    covariance = prior.gp.covariance(X).detach()
    factor = torch.linalg.cholesky(covariance + 1e-10 * torch.eye(len(X)).double())
    # q(f) = N(mean + factor m, (factor S)(factor S)') keeps the problem well scaled.
    m = torch.zeros(len(X)).double().requires_grad_()
    s = torch.eye(len(X)).double().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [m, s],
        max_iter=800,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def moments() -> tuple[Tensor, Tensor]:
        root = factor @ s.tril()
        return prior.mean.detach() + factor @ m, root.square().sum(-1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        lower = s.tril()
        kl = 0.5 * (m.square().sum() + lower.square().sum() - len(m))
        kl = kl - lower.diagonal().abs().log().sum()
        value = kl - data_term(likelihood, y, Marginals(*moments())).sum()
        value.backward()
        return value

    optimizer.step(loss)
    mean, variance = moments()
    return mean.detach(), variance.detach(), -float(loss().detach())


class TestFixedPoint:
    def test_gaussian_takes_one_exact_step(self):
        likelihood = GaussianLikelihood(noise=0.2)
        prior = exact_prior()
        result = cvi(prior, likelihood, WAVE)
        assert (result.steps, result.converged, result.history) == (1, True, [result.objective])
        covariance = process().covariance(X) + 0.2 * torch.eye(15).double()
        evidence = torch.distributions.MultivariateNormal(prior.mean, covariance).log_prob(WAVE)
        assert result.objective == pytest.approx(evidence.item(), abs=1e-9)
        weights = torch.linalg.solve(covariance, WAVE - prior.mean)
        mean = prior.mean + process().covariance(X) @ weights
        assert torch.allclose(result.posterior.marginals().mean, mean, atol=1e-9)

    def test_gaussian_ignores_where_to_start(self):
        start = Sites(torch.ones(15).double(), torch.ones(15).double())
        result = cvi(exact_prior(), GaussianLikelihood(noise=0.2), WAVE, sites=start)
        assert result.objective == cvi(exact_prior(), GaussianLikelihood(noise=0.2), WAVE).objective

    @pytest.mark.parametrize("name", SINGLE_LATENT)
    def test_converges_monotonically(self, name):
        likelihood, y = SINGLE_LATENT[name]
        result = cvi(exact_prior(), likelihood, y, tolerance=1e-8, max_steps=200)
        gains = torch.tensor(result.history).diff()
        assert result.converged
        assert bool((gains >= -1e-8).all())
        assert len(result.history) == result.steps + 1
        if name == "gpytorch laplace":  # its kink makes the quadrature step from node to node
            return
        # A fixed point: the duals at q are the sites of q (where they are not clipped).
        model = as_likelihood(likelihood)
        marginals = result.posterior.marginals()
        fresh = dual(lambda q: data_term(model, y, q), marginals, min_precision=0.0)
        moved = elbo(exact_prior().condition(result.sites.lerp(fresh, 0.1)), likelihood, y)
        assert abs(moved.item() - result.objective) < 1e-6

    @pytest.mark.parametrize("name", ["probit", "logit", "poisson", "softplus poisson"])
    def test_is_the_best_gaussian(self, name):
        likelihood, y = SINGLE_LATENT[name]
        prior = exact_prior()
        result = cvi(prior, likelihood, y, tolerance=1e-10, max_steps=300)
        mean, variance, value = best_gaussian(prior, likelihood, y)
        assert result.objective == pytest.approx(value, abs=1e-5)
        marginals = result.posterior.marginals()
        assert torch.allclose(marginals.mean, mean, atol=2e-3)
        assert torch.allclose(marginals.variance, variance, atol=2e-3)

    def test_inducing_sites_see_the_whole_variance(self):
        prior = inducing_prior()
        result = cvi(prior, PoissonLikelihood(), COUNTS, tolerance=1e-10)
        sites = Sites(result.sites.lam1.requires_grad_(), result.sites.lam2.requires_grad_())
        value = elbo(prior.detach().condition(sites), PoissonLikelihood(), COUNTS)
        slopes = torch.autograd.grad(value, (sites.lam1, sites.lam2))
        assert max(float(slope.abs().max()) for slope in slopes) < 1e-4

    def test_softmax_converges_although_coupled(self):
        prior = exact_prior(4.0, 3)
        result = cvi(prior, softmax(), CLASSES, tolerance=1e-7)
        assert result.converged
        assert bool((torch.tensor(result.history).diff() >= -1e-8).all())
        assert result.sites.lam1.shape == (3, 15)
        mean, variance = result.posterior.marginals().mean, result.posterior.marginals().variance
        logits = as_likelihood(softmax())
        density = logits.predict_log_density(CLASSES, mean, variance)
        assert bool((density.exp() > 0.5).float().mean() > 0.9)

    def test_multitask_gaussian_with_missing_rows(self):
        likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2, rank=1).double()
        y = torch.stack([WAVE, -WAVE], dim=-1)
        y[3] = torch.nan
        result = cvi(exact_prior(1.0, 2), likelihood, y)
        assert result.converged
        assert result.sites.lam1.shape == (2, 15)
        assert bool((result.sites.lam2[:, 3] == 0).all())


class TestDamping:
    def test_step_size_damps_every_sweep(self):
        fast = cvi(exact_prior(), BernoulliLikelihood(), LABELS)
        slow = cvi(exact_prior(), BernoulliLikelihood(), LABELS, step_size=0.2, max_steps=300)
        assert slow.steps > fast.steps
        assert slow.objective == pytest.approx(fast.objective, abs=1e-4)
        start = slow.history[0]
        once = cvi(exact_prior(), BernoulliLikelihood(), LABELS, step_size=0.2, max_steps=1)
        assert (once.steps, once.converged) == (1, False)
        assert once.history == [start, slow.history[1]]

    def test_backtracking_where_a_full_step_overshoots(self):
        y = torch.full((15,), 500.0).double()
        prior = exact_prior()
        start = Sites.zeros((15,))
        fresh = dual(
            lambda q: data_term(PoissonLikelihood(), y, q), prior.condition(start).marginals()
        )
        before = elbo(prior.condition(start), PoissonLikelihood(), y)
        with torch.no_grad():
            after = elbo(prior.condition(fresh), PoissonLikelihood(), y)
        assert not after > before
        result = cvi(prior, PoissonLikelihood(), y, sites=start)
        assert result.converged
        assert bool((torch.tensor(result.history).diff() >= -1e-8).all())
        guessed = cvi(prior, PoissonLikelihood(), y)
        assert result.objective == pytest.approx(guessed.objective, abs=1e-4)

    def test_four_equal_loadings(self):
        prior, likelihood = exact_prior(1.0, 4), SumOfLatents()
        sites = Sites.zeros((4, 15))
        for _ in range(15):
            marginals = prior.detach().condition(sites).marginals()
            sites = dual(lambda q: data_term(likelihood, WAVE, q), marginals)
        undamped = elbo(prior.condition(sites), likelihood, WAVE).item()
        assert undamped < -1e6
        result = cvi(prior, likelihood, WAVE, max_steps=400, tolerance=1e-9)
        assert result.converged
        # The mean of a factorised Gaussian q is exact: condition the sum on the data.
        covariance = process().covariance(X).detach()
        total = 4 * covariance + likelihood.noise * torch.eye(15).double()
        target = 0.3 + covariance @ torch.linalg.solve(total, WAVE - 4 * 0.3)
        assert torch.allclose(result.posterior.marginals().mean, target.expand(4, 15), atol=1e-4)
        damped = cvi(prior, likelihood, WAVE, max_steps=400, tolerance=1e-9, step_size=0.25)
        assert damped.objective == pytest.approx(result.objective, abs=1e-5)

    def test_outliers_keep_clipped_sites_proper(self):
        y = WAVE.clone()
        y[[4, 9]] = 25.0
        likelihood = StudentTLikelihood(scale=0.1)
        result = cvi(exact_prior(), likelihood, y)
        assert result.converged
        assert bool((result.sites.lam2 >= 0).all())
        raw = dual(lambda q: data_term(likelihood, y, q), result.posterior.marginals())
        assert bool((raw.lam2[[4, 9]] < 0).all())
        assert bool((result.sites.lam2[[4, 9]] < 1e-3).all())

    def test_min_precision(self):
        result = cvi(exact_prior(), BernoulliLikelihood(), LABELS, min_precision=0.5)
        assert bool((result.sites.lam2 >= 0.5 - 1e-12).all())


class TestRows:
    @pytest.mark.parametrize("make_prior", [Exact(), None], ids=["exact", "inducing"])
    @pytest.mark.parametrize("name", ["probit", "poisson", "student t"])
    def test_missing_rows_say_nothing(self, name, make_prior):
        likelihood, y = SINGLE_LATENT[name]
        y = y.clone()
        y[[2, 7]] = torch.nan
        seen = ~y.isnan()
        approximation = make_prior or InducingPoints(inducing_points=X[::4])
        full = cvi(approximation.prior(process(), X), likelihood, y, tolerance=1e-9)
        part = cvi(approximation.prior(process(), X[seen]), likelihood, y[seen], tolerance=1e-9)
        assert full.objective == pytest.approx(part.objective, abs=1e-6)
        assert bool((full.sites.lam1[~seen] == 0).all())
        assert bool((full.sites.lam2[~seen] == 0).all())
        assert torch.allclose(
            full.posterior.marginals().mean[seen], part.posterior.marginals().mean, atol=1e-4
        )

    def test_missing_rows_of_gaussian_and_nan_extras(self):
        y, noise = WAVE.clone(), torch.full((15,), 0.1).double()
        y[3] = noise[3] = torch.nan
        likelihood = GaussianLikelihood(learn_noise=False)
        seen = ~y.isnan()
        full = cvi(exact_prior(), likelihood, y, noise=noise)
        part = cvi(Exact().prior(process(), X[seen]), likelihood, y[seen], noise=noise[seen])
        assert full.objective == pytest.approx(part.objective, abs=1e-9)

    @pytest.mark.parametrize("name", ["gaussian", "probit", "poisson"])
    def test_weights_are_repeated_rows(self, name):
        likelihood, y = SINGLE_LATENT.get(name, (GaussianLikelihood(noise=0.1), WAVE))
        times = torch.ones(15, dtype=torch.int64)
        times[[1, 6]] = torch.tensor([2, 3])
        approximation = InducingPoints(inducing_points=X[::4])
        weighted = cvi(
            approximation.prior(process(), X),
            likelihood,
            y,
            weights=times.double(),
            tolerance=1e-9,
        )
        repeated = cvi(
            approximation.prior(process(), X.repeat_interleave(times, 0)),
            likelihood,
            y.repeat_interleave(times),
            tolerance=1e-9,
        )
        assert weighted.objective == pytest.approx(repeated.objective, abs=1e-6)

    def test_row_extras_reach_the_likelihood(self):
        exposure = torch.linspace(0.5, 2.0, 15).double()
        result = cvi(exact_prior(), PoissonLikelihood(), COUNTS, exposure=exposure)
        plain = cvi(exact_prior(), PoissonLikelihood(), COUNTS)
        assert abs(result.objective - plain.objective) > 0.01
        with pytest.raises(InputError, match="exposre"):
            cvi(exact_prior(), PoissonLikelihood(), COUNTS, exposre=exposure)

    def test_groups_are_separate_problems(self):
        groups = torch.tensor([0, 1, 2] * 5)
        plan = Exact().plan(X, groups)
        prior = Exact().prior(process(), X, plan=plan)
        result = cvi(prior, PoissonLikelihood(), COUNTS, tolerance=1e-9)
        alone = sum(
            cvi(
                Exact().prior(process(), X[groups == g]),
                PoissonLikelihood(),
                COUNTS[groups == g],
                tolerance=1e-9,
            ).objective
            for g in range(3)
        )
        assert result.objective == pytest.approx(alone, abs=1e-6)

    def test_batch_of_processes(self):
        y = torch.stack([LABELS, 1 - LABELS])
        result = cvi(exact_prior(1.0, 2), BernoulliLikelihood(), y, tolerance=1e-9)
        assert result.sites.lam1.shape == (2, 15)
        alone = [cvi(exact_prior(), BernoulliLikelihood(), row, tolerance=1e-9) for row in y]
        assert result.objective == pytest.approx(sum(a.objective for a in alone), abs=1e-6)

    def test_float32(self):
        kernel = ScaleKernel(MaternKernel())
        prior = Exact().prior(GaussianProcess(kernel), X.float())
        result = cvi(prior, BernoulliLikelihood(), LABELS.float(), tolerance=1e-3)
        assert result.sites.lam1.dtype == torch.float32
        assert result.converged


class TestTighter:
    @pytest.mark.parametrize("name", ["probit", "poisson"])
    def test_alternation_reaches_the_joint_optimum(self, name):
        likelihood, y = SINGLE_LATENT[name]
        prior = inducing_prior().detach()
        result = cvi(prior, likelihood, y, tighter=True, tolerance=1e-10, max_steps=300)
        assert result.converged and result.log_v is not None
        assert float(result.log_v) < 0
        assert bool((torch.tensor(result.history).diff() >= -1e-8).all())
        leaves = [result.sites.lam1.clone(), result.sites.lam2.clone(), result.log_v.clone()]
        for leaf in leaves:
            leaf.requires_grad_()
        posterior = prior.condition(Sites(leaves[0], leaves[1]))
        value = tighter_elbo(posterior, likelihood, y, log_v=leaves[2])
        assert value.item() == pytest.approx(result.objective, abs=1e-9)
        slopes = torch.autograd.grad(value, leaves)
        assert max(float(slope.abs().max()) for slope in slopes) < 1e-4
        plain = cvi(prior, likelihood, y, tolerance=1e-10)
        assert result.objective > plain.objective

    def test_is_the_elbo_without_residual(self):
        tight = cvi(exact_prior(), BernoulliLikelihood(), LABELS, tighter=True)
        assert tight.log_v is None
        assert tight.objective == cvi(exact_prior(), BernoulliLikelihood(), LABELS).objective

    def test_gaussian_needs_no_scale(self):
        result = cvi(inducing_prior(), GaussianLikelihood(noise=0.1), WAVE, tighter=True)
        assert result.log_v is None
        plain = cvi(inducing_prior(), GaussianLikelihood(noise=0.1), WAVE)
        assert result.objective > plain.objective

    def test_scale_is_that_of_the_final_moments(self):
        prior = inducing_prior()
        result = cvi(prior, PoissonLikelihood(), COUNTS, tighter=True)
        marginals = result.posterior.marginals()
        best = optimal_log_v(PoissonLikelihood(), COUNTS, marginals)
        assert torch.allclose(result.log_v, best)


class TestResult:
    def test_warm_start_from_sites_is_immediate(self):
        first = cvi(exact_prior(), PoissonLikelihood(), COUNTS, tolerance=1e-9)
        again = cvi(exact_prior(), PoissonLikelihood(), COUNTS, sites=first.sites, tolerance=1e-6)
        assert again.steps <= 1 and again.converged
        assert again.objective == pytest.approx(first.objective, abs=1e-7)

    def test_unusable_start_falls_back(self):
        bad = Sites(torch.full((15,), torch.nan).double(), torch.ones(15).double())
        result = cvi(exact_prior(), PoissonLikelihood(), COUNTS, sites=bad)
        assert result.converged

    def test_detached_and_picklable(self):
        result = cvi(exact_prior(), PoissonLikelihood(), COUNTS)
        assert not result.sites.lam1.requires_grad and not result.sites.lam2.requires_grad
        assert not result.posterior.marginals().mean.requires_grad
        twin = pickle.loads(pickle.dumps(result))
        assert torch.equal(twin.posterior.marginals().mean, result.posterior.marginals().mean)

    def test_leaves_gradients_and_rng_alone(self):
        gp = process()
        state = torch.get_rng_state()
        cvi(Exact().prior(gp, X), PoissonLikelihood(), COUNTS)
        assert all(parameter.grad is None for parameter in gp.parameters())
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"step_size": 0.0}, "step_size is 0.0"),
            ({"step_size": 1.5}, r"\(0, 1\]"),
            ({"max_steps": 0}, "max_steps is 0"),
        ],
    )
    def test_impossible_options(self, arguments, match):
        with pytest.raises(InputError, match=match):
            cvi(exact_prior(), PoissonLikelihood(), COUNTS, **arguments)

    def test_targets_of_another_kind(self):
        with pytest.raises(InputError, match="PoissonLikelihood"):
            cvi(exact_prior(), PoissonLikelihood(), -COUNTS - 1)

    def test_wrong_length(self):
        with pytest.raises(InputError, match="14"):
            cvi(exact_prior(), PoissonLikelihood(), COUNTS[:14])

    def test_hopeless_objective(self):
        class Hopeless(PoissonLikelihood):
            def _variational_expectations(self, y, mean, variance, **rows):
                return (mean + variance) * torch.nan

        with pytest.raises(NumericalError, match="Hopeless"):
            cvi(exact_prior(), Hopeless(), COUNTS)

    def test_duals_that_are_not_finite_do_not_count_as_converged(self):
        class NoSlope(PoissonLikelihood):
            """Its value is fine, its derivative is NaN."""

            def _variational_expectations(self, y, mean, variance, **rows):
                return (mean - mean.detach()).sqrt() - variance

        result = cvi(exact_prior(), NoSlope(), COUNTS, sites=Sites.zeros((15,)))
        assert not result.converged
