"""Coresets: limits, the best member of the family, gradients, and what a coreset can be turned into."""

import copy
import math
import pickle
import warnings

import gpytorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, InducingPoints, Sites, sample_paths
from gpvi.approximations._coreset_posterior import CoresetPosterior
from gpvi.approximations._coreset_weights import best_weights, polish
from gpvi.approximations.coreset import Coreset
from gpvi.exceptions import ConvergenceWarning, InputError, UnsupportedError
from gpvi.inference import cvi, data_term, dual, elbo, fit, tighter_elbo
from gpvi.inference.problem import FitProblem
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood

NUM_ROWS, NUM_POINTS, NOISE = 40, 6, 0.1


def uniform(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator)


X = 3.0 * uniform(NUM_ROWS, 2, seed=0)
Z = 3.0 * uniform(NUM_POINTS, 2, seed=1)
NEW = 4.0 * uniform(7, 2, seed=2)
Y = (2.0 * X[:, 0]).sin() + X[:, 1].cos() + 0.5 * (uniform(NUM_ROWS, seed=3) - 0.5)


def process(batch: int | None = None, seed: int = 4) -> GaussianProcess:
    shape = torch.Size([] if batch is None else [batch])
    base = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=2, batch_shape=shape)
    kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=shape).double()
    base.lengthscale = 0.5 + uniform(*shape, 1, 2, seed=seed)
    kernel.outputscale = 0.7 + uniform(*shape, seed=seed + 1)
    mean = gpytorch.means.ConstantMean(batch_shape=shape).double()
    mean.constant.data.copy_(0.5 * uniform(*shape, seed=seed + 2))
    return GaussianProcess(kernel, mean)


def gaussian_sites(y: Tensor = Y, noise: float = NOISE) -> Sites:
    return Sites(y / noise, torch.full_like(y, 1.0 / noise))


def conditioned(points: Tensor = Z, sites: Sites | None = None) -> CoresetPosterior:
    prior = Coreset(points=points).prior(process(), X)
    return prior.condition(gaussian_sites() if sites is None else sites)


def pseudo_sites() -> Sites:
    weights = 1.0 + 5.0 * uniform(NUM_POINTS, seed=7)
    return Sites(weights * uniform(NUM_POINTS, seed=8), weights, on="basis")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_pseudo_observations_are_the_data_of_an_exact_process():
    """Without factor of Kzz and without jitter, coinciding points included."""
    z = torch.cat([Z, Z[:2]])
    weights = 1.0 + 5.0 * uniform(len(z), seed=7)
    targets = uniform(len(z), seed=8)
    prior = Coreset(points=z, jitter=0.0).prior(process(), X)
    posterior = prior.condition(Sites(weights * targets, weights, on="basis"))
    exact = Exact().prior(process(), z).condition(Sites(weights * targets, weights))
    close(posterior.log_partition, exact.log_partition, 1e-12)
    close(posterior.kl(), exact.kl(), 1e-12)
    actual, expected = posterior.predict(NEW), exact.predict(NEW)
    close(actual.mean, expected.mean, 1e-12)
    close(actual.variance, expected.variance, 1e-12)
    assert "inducing" not in vars(prior) and "dense" not in vars(posterior)


def test_closed_form_divergence():
    posterior = conditioned(sites=pseudo_sites())
    q, p = posterior.predict(Z, joint=True), process()
    prior = torch.distributions.MultivariateNormal(p.mean(Z), p.covariance(Z))
    normal = torch.distributions.MultivariateNormal(q.mean, q.covariance_matrix)
    close(posterior.kl(), torch.distributions.kl_divergence(normal, prior), 1e-7)


def test_all_rows_as_points_is_exact():
    posterior = Coreset(points=X, jitter=1e-13).prior(process(), X).condition(gaussian_sites())
    exact = Exact().prior(process(), X).condition(gaussian_sites())
    close(posterior.log_partition, exact.log_partition)
    close(posterior.predict(NEW).mean, exact.predict(NEW).mean)
    close(posterior.predict(NEW).variance, exact.predict(NEW).variance)
    close(posterior.coreset.targets, Y, 1e-6)
    close(posterior.coreset.observations(NOISE), torch.ones(NUM_ROWS).double(), 1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), log_noise=st.floats(-6.0, 2.0), number=st.integers(1, 20))
def test_bounds_are_ordered(seed: int, log_noise: float, number: int):
    """Coreset at most inducing points at most evidence, for both bounds."""
    noise, z, gp = math.exp(log_noise), 3.0 * uniform(number, 2, seed=seed), process(seed=seed)
    likelihood = GaussianLikelihood(noise=noise).double()
    with torch.no_grad():
        exact = cvi(Exact().prior(gp, X), likelihood, Y).objective
        for bound in (elbo, tighter_elbo):
            tight = bound(
                InducingPoints(inducing_points=z)
                .prior(gp, X)
                .condition(gaussian_sites(noise=noise)),
                likelihood,
                Y,
            )
            ours = Coreset(points=z).prior(gp, X).condition(gaussian_sites(noise=noise))
            value = bound(ours, likelihood, Y)
            slack = 1e-8 * (1.0 + abs(float(tight)))
            assert float(value) <= float(tight) + slack
            assert float(tight) <= exact + slack
            # The part of the family loss that is the price of a diagonal is a divergence from q*.
            close(value - tight, ours.log_partition - ours.target.log_partition, 1e-6)


def test_log_partition_is_expected_log_site_less_divergence():
    for sites in (gaussian_sites(), conditioned().prior.tie(gaussian_sites())):
        posterior = conditioned(sites=sites)
        if sites.on == "data":
            q = posterior.marginals()
            expected = sites.lam1 * q.mean - 0.5 * sites.lam2 * (q.mean.square() + q.explained)
            expected = expected.sum()
        else:
            q = posterior.predict(Z, joint=True)
            second = q.covariance_matrix + q.mean.outer(q.mean)
            expected = sites.lam1 @ q.mean - 0.5 * (sites.lam2 * second).sum()
        close(posterior.log_partition, expected - posterior.kl(), 1e-6)


def test_no_other_pseudo_observations_are_better():
    posterior = conditioned()
    best, prior = posterior.log_partition.item(), posterior.prior
    pseudo = posterior.pseudo
    for seed in range(10):
        factor = (0.2 * (uniform(NUM_POINTS, seed=20 + seed) - 0.5)).exp()
        shift = 0.1 * (uniform(NUM_POINTS, seed=40 + seed) - 0.5)
        moved = Sites(factor * pseudo.lam1 + shift, factor * pseudo.lam2, on="basis")
        q = CoresetPosterior(prior, moved, moved, None, True)
        m, sites = q.marginals(), gaussian_sites()
        rows = sites.lam1 * m.mean - 0.5 * sites.lam2 * (m.mean.square() + m.explained)
        assert (rows.sum() - q.kl()).item() < best


def test_the_mean_is_that_of_inducing_points():
    free = InducingPoints(inducing_points=Z).prior(process(), X).condition(gaussian_sites())
    close(conditioned().predict(NEW).mean, free.predict(NEW).mean)


@pytest.mark.parametrize("signed", [False, True])
def test_weights_are_a_maximum(signed: bool):
    """Also where the start is far, points coincide and some weight is zero."""
    gp, z = process(), torch.cat([Z, Z[:1] + 1e-9, 10.0 + Z[:1]])
    factor = torch.linalg.cholesky(gp.covariance(z) + 1e-8 * torch.eye(len(z)).double()).detach()
    weights = torch.tensor([5.0, 0.0, 3.0, 100.0, 2.0, 7.0, 1.0, 0.0]).double()
    precision = torch.eye(len(z)).double() + factor.mT @ (weights.unsqueeze(-1) * factor)
    root = torch.linalg.cholesky(precision)
    found = polish(factor, root, best_weights(factor, root, signed), signed)
    # The two points that coincide share what they weigh together.
    together = torch.cat([(found[0] + found[6]).unsqueeze(0), found[1:6], found[7:]])
    expected = torch.cat([weights[:1] + weights[6:7], weights[1:6], weights[7:]])
    close(together, expected, 1e-5)
    # A batch is what its entries are, and a non-negative target outside the family has a bounded optimum.
    other = torch.linalg.cholesky(precision + 0.3 * factor.mT @ torch.ones(8, 8).double() @ factor)
    both = best_weights(factor, torch.stack([root, other]), signed)
    close(both[1], best_weights(factor, other, signed), 1e-6)


def objective(problem: FitProblem) -> float:
    problem.sites = problem.log_v = None
    return float(problem.value().detach())


@pytest.mark.parametrize("name", ["elbo", "tighter_elbo"])
@pytest.mark.parametrize("kind", ["gaussian", "bernoulli", "poisson"])
def test_gradients_are_those_of_the_best_bound(name: str, kind: str):
    """Of a full-batch fit, against finite differences of the bound that is optimised anew."""
    likelihood, y = {
        "gaussian": (GaussianLikelihood(noise=NOISE).double(), Y),
        "bernoulli": (BernoulliLikelihood(), (Y > 0.5).double()),
        "poisson": (PoissonLikelihood(), (3.0 + 2.0 * Y).clamp_min(0.0).round()),
    }[kind]
    gp, approximation = process(), Coreset(points=Z)
    problem = FitProblem(
        gp,
        approximation,
        likelihood,
        X,
        y,
        approximation.plan(X),
        objective=name,
        inner_tolerance=1e-11,
    )
    parameters = [p for module in problem.modules.values() for p in module.parameters()]
    slopes = torch.autograd.grad(problem.value(), parameters)
    step = 1e-4
    for parameter, slope in zip(parameters, slopes, strict=True):
        flat = parameter.data.view(-1)
        start = flat[0].clone()
        values = []
        for sign in (1.0, -1.0):
            flat[0] = start + sign * step
            values.append(objective(problem))
        flat[0] = start
        numerical = (values[0] - values[1]) / (2.0 * step)
        assert abs(numerical - float(slope.view(-1)[0])) < 2e-4 * (1.0 + abs(numerical))


def test_fast_bound_is_that_of_the_contract():
    likelihood = GaussianLikelihood(noise=NOISE).double()
    noise = torch.tensor(NOISE, dtype=torch.float64)
    approximation = Coreset(points=Z)
    for tighter, bound in ((False, elbo), (True, tighter_elbo)):
        fast = approximation.collapsed_objective(process(), X, Y, noise, tighter=tighter)
        close(fast, bound(conditioned(), likelihood, Y), 1e-9)


def outputs(posterior: CoresetPosterior) -> Tensor:
    moments, there = posterior.marginals(), posterior.predict(NEW)
    draw = posterior.rsample((1,), generator=torch.Generator().manual_seed(0))
    parts = [posterior.log_partition, posterior.kl(), moments.mean, moments.variance, there.mean]
    parts += [there.variance, draw.values, posterior.log_ratio(draw)]
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("on", ["data", "tied", "pseudo"])
def test_gradients_of_everything(on: str):
    """In sites, inputs, points and hyperparameters, through the best pseudo-observations."""
    approximation, gp = Coreset(points=Z), process()
    modules = torch.nn.ModuleDict({"approximation": approximation, "gp": gp})
    names = [name for name, _ in modules.named_parameters()]
    tied = approximation.prior(gp, X).tie(gaussian_sites())
    sites = {"data": gaussian_sites(), "tied": tied, "pseudo": pseudo_sites()}[on].detach()
    weights = torch.randn(
        (), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ) + uniform(1000, seed=9)

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = modules

        def forward(self, x: Tensor, lam1: Tensor, lam2: Tensor) -> Tensor:
            prior = self.parts["approximation"].prior(self.parts["gp"], x)
            lam2 = 0.5 * (lam2 + lam2.mT) if lam2.dim() == 2 else lam2
            values = outputs(prior.condition(Sites(lam1, lam2, sites.on)))
            return (weights[: len(values)] * values).sum()

    function = Outputs()

    def evaluate(x: Tensor, lam1: Tensor, lam2: Tensor, *values: Tensor) -> Tensor:
        state = {"parts." + n: v for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(function, state, (x, lam1, lam2))

    inputs = [X, sites.lam1, sites.lam2, *modules.parameters()]
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(evaluate, inputs, fast_mode=True, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:The fit is not converged")
@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_fits(batch_size: int | None, kind: str):
    """Full batches and minibatches, unchanged, towards the fit of inducing points."""
    gaussian = kind == "gaussian"
    y = Y if gaussian else (Y > 0.5).double()
    values = []
    for approximation in (Coreset(NUM_POINTS), InducingPoints(NUM_POINTS, selection="kmeans++")):
        likelihood = GaussianLikelihood(noise=NOISE).double() if gaussian else BernoulliLikelihood()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            result = fit(
                process(),
                approximation,
                likelihood,
                X,
                y,
                batch_size=batch_size,
                max_iter=60,
                generator=torch.Generator().manual_seed(0),
            )
        assert bool(result.posterior.predict(NEW).variance.isfinite().all())
        values.append(float(result.objective))
    assert values[0] == pytest.approx(values[1], abs=4.0)


def test_minibatch_steps_reach_the_full_batch():
    """Sites tied batch by batch come to the fixed point of all rows."""
    y, likelihood = (Y > 0.5).double(), BernoulliLikelihood()
    with torch.no_grad():
        prior = Coreset(points=Z).prior(process(), X)
        whole = cvi(prior, likelihood, y)
        tied = prior.tie(Sites.zeros((NUM_ROWS,)))
        parts = torch.arange(NUM_ROWS).reshape(4, -1)
        for _ in range(25):
            for rows in parts:
                batch = Coreset(points=Z).prior(process(), X[rows])
                posterior = batch.condition(tied)
                fresh = dual(
                    lambda q, r=rows: data_term(likelihood, y[r], q), posterior.marginals()
                )
                tied = tied.lerp(4.0 * batch.tie(fresh), 0.1)
        final = prior.condition(tied)
    assert float(elbo(final, likelihood, y)) == pytest.approx(whole.objective, abs=0.1)
    assert final.kl_is_whole and not whole.posterior.kl_is_whole


@pytest.mark.parametrize("batched_points", [False, True])
def test_batches_are_their_entries(batched_points: bool):
    gp = process(2)
    points = torch.stack([Z, Z + 0.1]) if batched_points else Z
    sites = Sites(torch.stack([Y, -Y]) / NOISE, torch.full((2, NUM_ROWS), 1 / NOISE).double())
    posterior = Coreset(points=points).prior(gp, X).condition(sites)
    assert posterior.coreset.inputs.shape == (2, NUM_POINTS, 2)
    assert posterior.coreset.weights.shape == posterior.coreset.targets.shape == (2, NUM_POINTS)
    model = posterior.as_exact_gp()
    for entry in range(2):
        alone = process()
        state = {
            k: v[entry].reshape(alone.state_dict()[k].shape)
            for k, v in gp.state_dict().items()
            if v.dim() and k in alone.state_dict() and v.numel() > 1
        }
        alone.load_state_dict(state, strict=False)
        z = points[entry] if batched_points else points
        one = (
            Coreset(points=z).prior(alone, X).condition(Sites(sites.lam1[entry], sites.lam2[entry]))
        )
        close(posterior.log_partition[entry], one.log_partition)
        close(posterior.kl()[entry], one.kl())
        close(posterior.predict(NEW).variance[entry], one.predict(NEW).variance)
        close(posterior.coreset.weights[entry], one.coreset.weights, 1e-6)
    close(model(NEW).variance, posterior.predict(NEW).variance)


def test_single_precision():
    wide, sites = conditioned(), gaussian_sites()
    approximation = Coreset(points=Z.float())
    narrow = Sites(sites.lam1.float(), sites.lam2.float())
    posterior = approximation.prior(process().float(), X.float()).condition(narrow)
    assert posterior.coreset.weights.dtype == torch.float32
    close(posterior.log_partition.double(), wide.log_partition, 1e-3)
    close(posterior.predict(NEW.float()).variance.double(), wide.predict(NEW).variance, 1e-3)
    close(posterior.coreset.weights.double(), wide.coreset.weights, 1e-2)


@pytest.mark.parametrize("sites", [None, pseudo_sites()], ids=["data", "pseudo"])
def test_copies(sites: Sites | None):
    posterior = conditioned(sites=sites)
    x = posterior.predict(NEW)
    detached = posterior.detach()
    for other in (
        detached,
        copy.deepcopy(detached),
        pickle.loads(pickle.dumps(detached)),
        posterior.compact().detach(),
        pickle.loads(pickle.dumps(posterior.compact().detach())),
    ):
        close(other.predict(NEW).variance, x.variance, 1e-12)
        close(other.kl(), posterior.kl(), 1e-12)
        close(other.coreset.weights, posterior.coreset.weights, 1e-12)
        assert not other.kl().requires_grad
    draw = posterior.compact().rsample((2,), NEW, generator=torch.Generator().manual_seed(0))
    assert draw.values.shape == (2, 7)


def test_exact_model_of_gpytorch():
    posterior = conditioned()
    model, expected = posterior.as_exact_gp(), posterior.predict(NEW, joint=True)
    assert isinstance(model, gpytorch.models.ExactGP)
    actual = model(NEW)
    close(actual.mean, expected.mean)
    close(actual.covariance_matrix, expected.covariance_matrix)
    with gpytorch.settings.fast_pred_var():
        fast = posterior.as_exact_gp()(NEW)
    close(fast.variance, expected.variance, 1e-6)
    # Fantasies condition on more data; the process here is the same one.
    noise = torch.full((2,), 0.2, dtype=torch.float64)
    y = torch.tensor([0.5, -0.5], dtype=torch.float64)
    fantasy = model.get_fantasy_model(NEW[:2], y, noise=noise)
    summary = posterior.coreset
    inputs = torch.cat([summary.inputs, NEW[:2]])
    weights = torch.cat([summary.weights, 1.0 / noise])
    sites = Sites(weights * torch.cat([summary.targets, y]), weights)
    close(
        fantasy(NEW).mean, Exact().prior(process(), inputs).condition(sites).predict(NEW).mean, 1e-6
    )
    # Copies: training the model leaves the posterior as it is.
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    close(posterior.predict(NEW, joint=True).covariance_matrix, expected.covariance_matrix, 1e-14)


def test_a_point_without_weight_still_pulls():
    sites = pseudo_sites()
    lam2 = sites.lam2.clone()
    lam2[0] = 0.0
    posterior = conditioned(sites=Sites(sites.lam1, lam2, on="basis"))
    model = posterior.as_exact_gp()
    close(model(NEW).mean, posterior.predict(NEW).mean, 1e-6)
    close(model(NEW).variance, posterior.predict(NEW).variance)


def test_sites_wider_than_the_prior():
    sites = pseudo_sites()
    lam2 = sites.lam2.clone()
    lam2[0] = -0.05
    posterior = conditioned(sites=Sites(sites.lam1, lam2, on="basis"))
    close(posterior.pseudo.lam2, lam2, 1e-6)
    with pytest.raises(UnsupportedError, match="no noise variance"):
        posterior.as_exact_gp()


@pytest.mark.parametrize("compact", [False, True])
def test_pruning(compact: bool):
    """A point far from all data weighs nothing, and nothing is lost without it."""
    posterior = conditioned(torch.cat([Z, 60.0 + Z[:2]]))
    posterior = posterior.compact() if compact else posterior
    pruned = posterior.prune()
    assert pruned.kept.tolist() == list(range(NUM_POINTS))
    assert abs(float(pruned.change)) < 1e-5
    close(pruned.posterior.predict(NEW).variance, posterior.predict(NEW).variance, 1e-6)
    assert pruned.posterior.coreset.inputs.shape == (NUM_POINTS, 2)
    again = pruned.posterior.prune()
    assert float(again.change) == 0.0 and again.posterior is pruned.posterior
    # Dropping a point that weighs costs something.
    weights = posterior.coreset.weights
    fraction = float(1.01 * weights[:NUM_POINTS].min() / weights.mean())
    costly = posterior.prune(min(fraction, 1.0))
    assert len(costly.kept) < NUM_POINTS and float(costly.change) < -1e-4
    with pytest.raises(InputError, match="threshold is -1"):
        posterior.prune(-1.0)


def test_pruning_reports_the_change_of_the_bound():
    posterior = conditioned()
    likelihood = GaussianLikelihood(noise=NOISE).double()
    weights = posterior.coreset.weights
    pruned = posterior.prune(min(1.0, float(1.01 * weights.min() / weights.mean())))
    change = elbo(pruned.posterior, likelihood, Y) - elbo(posterior, likelihood, Y)
    close(pruned.change, change.detach(), 1e-7)


def test_leave_one_out_has_the_means_of_refits():
    posterior = conditioned()
    moments = posterior.leave_one_out()
    for row in (0, 7):
        lam2 = gaussian_sites().lam2.clone()
        lam2[row] = 0.0
        lam1 = torch.where(lam2 > 0, gaussian_sites().lam1, 0.0)
        refit = conditioned(sites=Sites(lam1, lam2)).marginals()
        close(moments.mean[row], refit.mean[row], 1e-7)
        assert (moments.variance[row] / refit.variance[row]).item() == pytest.approx(1.0, abs=0.4)
    for tied in (posterior.compact(), conditioned(sites=pseudo_sites())):
        with pytest.raises(UnsupportedError, match="belong to no single row"):
            tied.leave_one_out()


def test_paths_are_draws():
    posterior = conditioned().detach()
    paths = sample_paths(
        posterior, 4000, num_features=500, generator=torch.Generator().manual_seed(0)
    )
    values, q = paths(NEW), posterior.predict(NEW)
    error = (values.mean(0) - q.mean).abs() / q.variance.sqrt()
    assert float(error.max()) < 0.15
    assert float((values.var(0) / q.variance - 1.0).abs().max()) < 0.25


def test_choosing_points():
    for selection in ("kmeans++", "greedy", "random"):
        approximation = Coreset(5, selection=selection)
        assert approximation.inducing_points is None
        approximation.initialize(process(), X, torch.Generator().manual_seed(0))
        points = approximation.points.detach().clone()
        assert points.shape == (5, 2)
        approximation.initialize(process(), X, torch.Generator().manual_seed(1))
        assert torch.equal(approximation.points, points)
        assert approximation.inducing_points is approximation.points
        approximation.map_inputs(lambda z: 2.0 * z)
        assert torch.equal(approximation.points, 2.0 * points)
        restored = Coreset(5)
        restored.load_state_dict(approximation.state_dict())
        assert torch.equal(restored.points, approximation.points)
        approximation.reset()
        assert approximation.points is None
    assert not Coreset(points=Z, learn=False).points.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither"),
        ({"num_points": 3, "points": Z}, "both"),
        ({"num_points": 0}, "num_points is 0"),
        ({"num_points": True}, "num_points is True"),
        ({"num_points": 3, "selection": "best"}, "selection is 'best'"),
        ({"num_points": 3, "jitter": 2.0}, "jitter is 2.0"),
        ({"points": [1.0]}, "points is a list"),
        ({"points": torch.zeros(0, 2)}, r"points has shape \(0, 2\)"),
        ({"points": torch.full((2, 2), torch.nan)}, "4 values that are NaN"),
    ],
)
def test_impossible_options(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        Coreset(**options)


def test_points_that_do_not_fit():
    with pytest.raises(InputError, match="call initialize"):
        Coreset(3).prior(process(), X)
    with pytest.raises(InputError, match="columns"):
        Coreset(points=Z[:, :1]).prior(process(), X)
    with pytest.raises(InputError, match="convert one of them"):
        Coreset(points=Z.float()).prior(process(), X)
    with pytest.raises(InputError, match="no way back"):
        Coreset(points=Z).reset()
    with pytest.raises(InputError, match="noise is 0"):
        conditioned().coreset.observations(0.0)
