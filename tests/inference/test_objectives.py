"""Bounds of the evidence: order, tightness, counting of rows, gradients at frozen sites."""

import functools
from collections.abc import Callable

import gpytorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from gpvi.approximations import (
    Approximation,
    Exact,
    GaussianProcess,
    InducingPoints,
    Marginals,
    Sites,
)
from gpvi.exceptions import InputError
from gpvi.inference import data_term, dual, elbo, optimal_log_v, tighter_elbo
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    as_likelihood,
)

KNOWN_NOISE = GaussianLikelihood(learn_noise=False)


def uniform(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def process(*batch: int, lengthscale: float = 0.6, outputscale: float = 1.3) -> GaussianProcess:
    shape = torch.Size(batch)
    base = gpytorch.kernels.MaternKernel(nu=2.5, batch_shape=shape)
    kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=shape).double()
    base.lengthscale = lengthscale
    kernel.outputscale = outputscale
    return GaussianProcess(kernel)


def inducing(count: int, seed: int = 4) -> InducingPoints:
    return InducingPoints(inducing_points=uniform(count, 1, seed=seed, high=3.0), learn=False)


def gaussian_sites(y: Tensor, noise: Tensor, weights: Tensor | float = 1.0) -> Sites:
    precision = torch.where(y.isnan(), 0.0, weights / noise)
    return Sites(precision * torch.nan_to_num(y), precision)


def evidence(gp: GaussianProcess, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    covariance = gp.covariance(x) + torch.diag_embed(noise)
    return MultivariateNormal(gp.mean(x), covariance).log_prob(y)


# --- order of the bounds -------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 8),
    lengthscale=st.floats(0.05, 3.0),
    log_noise=st.floats(-7.0, 3.0),
    equal=st.booleans(),
)
def test_bounds_are_ordered(seed, count, lengthscale, log_noise, equal):
    """elbo <= tighter_elbo <= exact evidence, for one noise or one per row, any y."""
    x, y = uniform(9, 1, seed=seed, high=3.0), 2.0 * normal(9, seed=seed + 1)
    spread = 0.0 if equal else 2.0
    noise = (log_noise + spread * normal(9, seed=seed + 2)).exp()
    gp = process(lengthscale=lengthscale).requires_grad_(False)
    posterior = inducing(count, seed).prior(gp, x).condition(gaussian_sites(y, noise))
    lower = elbo(posterior, KNOWN_NOISE, y, noise=noise)
    tighter = tighter_elbo(posterior, KNOWN_NOISE, y, noise=noise)
    exact = evidence(gp, x, y, noise)
    slack = 1e-9 * (1.0 + exact.abs())
    assert bool(lower <= tighter + slack) and bool(tighter <= exact + slack)
    # Any sites give bounds, not only the best ones.
    other = posterior.prior.condition(Sites(normal(9, seed=seed + 3), uniform(9, seed=seed + 4)))
    assert bool(elbo(other, KNOWN_NOISE, y, noise=noise) <= exact + slack)
    assert bool(tighter_elbo(other, KNOWN_NOISE, y, noise=noise) <= exact + slack)
    variance = posterior.marginals().variance
    assert bool((variance >= 0).all() and (posterior.kl() >= -1e-9))


def test_tightened_bound_gains_much_where_much_is_left_over():
    x, noise = uniform(60, 1, seed=1, high=3.0), torch.full((60,), 0.05).double()
    gp = process(lengthscale=0.2).requires_grad_(False)
    covariance = gp.covariance(x) + torch.diag(noise)
    y = torch.linalg.cholesky(covariance) @ normal(60, seed=2)
    posterior = inducing(6).prior(gp, x).condition(gaussian_sites(y, noise))
    exact = evidence(gp, x, y, noise)
    gap = exact - elbo(posterior, KNOWN_NOISE, y, noise=noise)
    tighter_gap = exact - tighter_elbo(posterior, KNOWN_NOISE, y, noise=noise)
    assert float(tighter_gap) < 0.7 * float(gap)


def test_formula_of_the_tightened_bound():
    """-(1/2) sum log(1 + d/noise) in place of -(1/2) sum d/noise, with one noise per row."""
    x, y = uniform(9, 1, seed=1, high=3.0), normal(9, seed=2)
    noise = uniform(9, seed=3, low=0.1)
    gp = process().requires_grad_(False)
    posterior = inducing(3).prior(gp, x).condition(gaussian_sites(y, noise))
    ratio = posterior.prior.residual / noise
    difference = tighter_elbo(posterior, KNOWN_NOISE, y, noise=noise) - elbo(
        posterior, KNOWN_NOISE, y, noise=noise
    )
    torch.testing.assert_close(difference, 0.5 * (ratio - ratio.log1p()).sum())


def test_both_are_one_where_nothing_is_left_over():
    x, y, noise = uniform(9, 1, seed=1, high=3.0), normal(9, seed=2), uniform(9, seed=3, low=0.1)
    gp = process().requires_grad_(False)
    posterior = Exact().prior(gp, x).condition(gaussian_sites(y, noise))
    lower = elbo(posterior, KNOWN_NOISE, y, noise=noise)
    torch.testing.assert_close(lower, evidence(gp, x, y, noise))
    assert torch.equal(lower, tighter_elbo(posterior, KNOWN_NOISE, y, noise=noise))
    # Also with a scale: there is nothing that it could scale, and no row to pay for.
    for log_v in (torch.tensor(-1.0).double(), None):
        poisson = PoissonLikelihood()
        assert torch.equal(
            elbo(posterior, poisson, y.abs().round()),
            tighter_elbo(posterior, poisson, y.abs().round(), log_v=log_v),
        )
    with pytest.raises(InputError, match="no residual"):
        optimal_log_v(PoissonLikelihood(), y.abs().round(), posterior.marginals())


# --- which rows count, and how much --------------------------------------------------------------

LIKELIHOODS = {
    "gaussian": (GaussianLikelihood(noise=0.3).requires_grad_(False), lambda y: y),
    "bernoulli": (BernoulliLikelihood(), lambda y: (y > 0).double()),
    "poisson": (PoissonLikelihood(), lambda y: y.abs().round()),
    "student": (StudentTLikelihood().double().requires_grad_(False), lambda y: y),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("how", ["nan", "weight"])
def test_rows_that_say_nothing_are_rows_that_are_not_there(name, how):
    """In both bounds, the price of the residual scale included, whatever their extras hold."""
    likelihood, targets = LIKELIHOODS[name]
    x, y = uniform(9, 1, seed=1, high=3.0), targets(2.0 * normal(9, seed=2))
    lam2 = uniform(9, seed=3)
    kept = torch.arange(9) != 4
    weights = uniform(9, seed=4, low=0.5, high=2.0)
    lam2[4] = 0.0
    if how == "nan":
        y[4] = weights[4] = float("nan")
    else:
        weights[4] = 0.0
    gp, z = process(), inducing(3)
    whole = z.prior(gp, x).condition(Sites(lam2, lam2))
    part = z.prior(gp, x[kept]).condition(Sites(lam2[kept], lam2[kept]))
    for objective in (elbo, tighter_elbo):
        actual = objective(whole, likelihood, y, weights=weights)
        expected = objective(part, likelihood, y[kept], weights=weights[kept])
        torch.testing.assert_close(actual, expected)
    tighter_elbo(whole, likelihood, y, weights=weights).backward()
    assert all(bool(p.grad.isfinite().all()) for p in gp.parameters())


def test_missing_rows_with_missing_noise():
    """NaN in the extras of a missing row reaches neither value nor gradient."""
    x, y = uniform(6, 1, seed=1, high=3.0), normal(6, seed=2)
    noise = uniform(6, seed=3, low=0.1)
    y[2] = noise[2] = float("nan")
    likelihood = GaussianLikelihood(noise=0.1)
    sites = gaussian_sites(y, 0.1 + torch.nan_to_num(noise))
    posterior = inducing(3).prior(process(), x).condition(sites)
    value = tighter_elbo(posterior, likelihood, y, noise=noise)
    value.backward()
    assert bool(value.isfinite()) and bool(likelihood.raw_noise.grad.isfinite().all())


def test_price_of_the_scale_counts_observed_rows():
    """-(v - log v - 1) / 2 for every observed row of a prior with residual."""
    x, y = uniform(9, 1, seed=1, high=3.0), normal(9, seed=2).abs().round()
    y[3] = y[5] = float("nan")
    lam2 = torch.where(y.isnan(), 0.0, 1.0).double()
    posterior = inducing(3).prior(process(), x).condition(Sites(lam2, lam2))
    log_v = torch.tensor(-0.7).double()
    term = data_term(PoissonLikelihood(), y, posterior.marginals(), log_v=log_v)
    expected = term.sum() - posterior.kl() - 7 * 0.5 * (log_v.exp() - log_v - 1.0)
    actual = tighter_elbo(posterior, PoissonLikelihood(), y, log_v=log_v)
    torch.testing.assert_close(actual, expected)


def test_weighted_rows_are_repeated_rows():
    x, y, noise = uniform(6, 1, seed=1, high=3.0), normal(6, seed=2), uniform(6, seed=3, low=0.2)
    weights = torch.tensor([1.0, 3.0, 1.0, 2.0, 0.0, 1.0]).double()
    rows = torch.repeat_interleave(torch.arange(6), weights.long())
    gp = process().requires_grad_(False)
    for approximation in (Exact(), inducing(3)):
        posterior = approximation.prior(gp, x).condition(gaussian_sites(y, noise, weights))
        repeated = approximation.prior(gp, x[rows]).condition(gaussian_sites(y[rows], noise[rows]))
        weighted = elbo(posterior, KNOWN_NOISE, y, weights=weights, noise=noise)
        torch.testing.assert_close(
            weighted, elbo(repeated, KNOWN_NOISE, y[rows], noise=noise[rows])
        )
        tighter = tighter_elbo(posterior, KNOWN_NOISE, y, weights=weights, noise=noise)
        torch.testing.assert_close(
            tighter, tighter_elbo(repeated, KNOWN_NOISE, y[rows], noise=noise[rows])
        )
        exact = evidence(gp, x[rows], y[rows], noise[rows])
        assert bool(tighter <= exact + 1e-9) and bool(weighted <= tighter + 1e-9)


@pytest.mark.parametrize("weight", [0.2, 0.7, 1.0, 2.5])
def test_fractional_weights_keep_the_bound(weight):
    """One row, nothing explained: the best q(f) has closed-form value, which no bound may exceed."""
    gp = process().requires_grad_(False)
    x, y, noise = (
        torch.zeros(1, 1).double(),
        torch.zeros(1).double(),
        torch.full((1,), 0.3).double(),
    )
    far = InducingPoints(inducing_points=torch.full((1, 1), 1e3).double())
    posterior = far.prior(gp, x).condition(Sites.zeros((1,)))
    weights = torch.full((1,), weight).double()
    value = tighter_elbo(posterior, KNOWN_NOISE, y, weights=weights, noise=noise)
    variance = posterior.marginals().residual
    best = -0.5 * weight * (2 * torch.pi * noise).log() - 0.5 * torch.log1p(
        weight * variance / noise
    )
    limit = best - 0.5 * weight * (y - gp.mean(x)).square() / noise
    assert bool(value <= limit + 1e-7)
    if weight <= 1.0:
        torch.testing.assert_close(value, limit.squeeze())


# --- the residual scale of other likelihoods -----------------------------------------------------


@pytest.mark.parametrize("name", ["bernoulli", "poisson", "student"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_scale_is_optimal(name, batch):
    likelihood, targets = LIKELIHOODS[name]
    x, y = uniform(9, 1, seed=1, high=3.0), targets(2.0 * normal(*batch, 9, seed=2))
    y[..., 3] = float("nan")
    lam2 = torch.where(y.isnan(), 0.0, 0.5).double()
    gp = process(*batch, lengthscale=0.2).requires_grad_(False)
    posterior = inducing(3).prior(gp, x).condition(Sites(lam2 * torch.nan_to_num(y), lam2))
    best = optimal_log_v(likelihood, y, posterior.marginals())
    assert best.shape == batch and not best.requires_grad
    bound = functools.partial(tighter_elbo, posterior, likelihood, y)
    torch.testing.assert_close(bound(), bound(log_v=best))
    for step in (-1.0, -1e-2, 1e-2, 1.0):
        assert bool((bound(log_v=best + step) < bound()).all())
    assert bool((bound() >= elbo(posterior, likelihood, y)).all())
    live = best.clone().requires_grad_()
    (slope,) = torch.autograd.grad(bound(log_v=live).sum(), live)
    assert float(slope.abs().max()) < 1e-7


@pytest.mark.parametrize("residual", [1e-8, 1.0, 30.0, 300.0])
def test_scale_is_found_for_any_residual(residual):
    """Plain fixed-point iteration cycles for log-linear counts with large residual variance."""
    y = torch.tensor([0.0, 3.0, 1.0], dtype=torch.float64)
    q = Marginals(
        torch.zeros(3).double(), torch.ones(3).double(), torch.full((3,), residual).double()
    )
    log_v = optimal_log_v(PoissonLikelihood(), y, q).requires_grad_()
    term = data_term(PoissonLikelihood(), y, q, log_v=log_v)
    bound = term.sum() - 1.5 * (log_v.exp() - log_v - 1.0)
    (slope,) = torch.autograd.grad(bound, log_v)
    assert abs(float(slope)) < 1e-6


def test_minibatches_need_a_fixed_scale():
    x, y = uniform(4, 1, seed=1, high=3.0), torch.ones(4).double()
    prior = inducing(3).prior(process(), x)
    posterior = prior.condition(prior.tie(Sites(y, y)))
    with pytest.raises(InputError, match=r"4 rows out of 40 .*needs log_v"):
        tighter_elbo(posterior, PoissonLikelihood(), y, num_data=40)
    tighter_elbo(posterior, PoissonLikelihood(), y, num_data=40, log_v=torch.zeros(()).double())
    tighter_elbo(posterior, GaussianLikelihood(), y, num_data=40)


# --- gradients at frozen fixed-point sites -------------------------------------------------------

COUNTS = torch.tensor([0.0, 1.0, 3.0, 2.0, 0.0, 1.0, 4.0, 2.0], dtype=torch.float64)
INPUTS = uniform(8, 1, seed=1, high=3.0)
FIXED_POINTS = {
    "poisson": (PoissonLikelihood(), COUNTS),
    "bernoulli": (BernoulliLikelihood(), (COUNTS > 1).double()),
}


def fixed_point(
    approximation: Approximation, gp: GaussianProcess, likelihood, y: Tensor, tighter: bool = False
) -> tuple[Sites, Tensor | None]:
    """Sites (and residual scale) that their own data term gives back."""
    with torch.no_grad():
        prior = approximation.prior(gp, INPUTS)
        sites, log_v = Sites.zeros((8,)), None
        for _ in range(100):
            q = prior.condition(sites).marginals()
            if tighter:
                log_v = optimal_log_v(likelihood, y, q)
            fresh = dual(lambda m, s=log_v: data_term(likelihood, y, m, log_v=s), q)
            sites = sites.lerp(fresh, 0.7)
    return sites, log_v


def slopes(gp: GaussianProcess, value: Tensor) -> Tensor:
    gradients = torch.autograd.grad(value, list(gp.parameters()), retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def resolved_slopes(gp: GaussianProcess, objective: Callable[[GaussianProcess], Tensor]) -> Tensor:
    """Central differences that solve for the sites anew."""
    step, found = 1e-4, []
    for parameter in gp.parameters():
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.add_(sign * step)
                values.append(objective(gp))
                parameter.add_(-sign * step)
        found.append((values[0] - values[1]) / (2 * step))
    return torch.stack(found)


@pytest.mark.parametrize("name", FIXED_POINTS)
@pytest.mark.parametrize("sparse", [False, True])
def test_elbo_at_frozen_sites_has_the_total_gradient(name, sparse):
    """Because its own data term made the sites; log Z only with what it lacks added back."""
    likelihood, y = FIXED_POINTS[name]
    approximation, gp = inducing(4) if sparse else Exact(), process()

    def resolved(gp: GaussianProcess) -> Tensor:
        sites, _ = fixed_point(approximation, gp, likelihood, y)
        return elbo(approximation.prior(gp, INPUTS).condition(sites), likelihood, y)

    sites, _ = fixed_point(approximation, gp, likelihood, y)
    posterior = approximation.prior(gp, INPUTS).condition(sites)
    total = resolved_slopes(gp, resolved)
    frozen = slopes(gp, elbo(posterior, likelihood, y))
    torch.testing.assert_close(frozen, total, rtol=1e-5, atol=1e-6)
    log_partition = slopes(gp, posterior.log_partition)
    if not sparse:
        torch.testing.assert_close(log_partition, total, rtol=1e-5, atol=1e-6)
        return
    assert float((log_partition - total).abs().max()) > 0.05 * float(total.abs().max())
    posterior = approximation.prior(gp, INPUTS).condition(sites)
    lost = 0.5 * (sites.lam2 * posterior.prior.residual).sum()
    corrected = slopes(gp, posterior.log_partition - lost)
    torch.testing.assert_close(corrected, total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FIXED_POINTS)
def test_tightened_bound_at_its_own_sites_has_the_total_gradient(name):
    """The sites come from its data term (variance explained + v residual); plain sites will not do."""
    likelihood, y = FIXED_POINTS[name]
    approximation, gp = inducing(3), process(lengthscale=0.4)

    def value(gp: GaussianProcess, tighter_sites: bool) -> Tensor:
        sites, _ = fixed_point(approximation, gp, likelihood, y, tighter=tighter_sites)
        posterior = approximation.prior(gp, INPUTS).condition(sites)
        return tighter_elbo(posterior, likelihood, y)

    errors = {}
    for tighter_sites in (True, False):
        total = resolved_slopes(gp, lambda gp, own=tighter_sites: value(gp, own))
        frozen = slopes(gp, value(gp, tighter_sites))
        errors[tighter_sites] = float((frozen - total).abs().max() / total.abs().max())
    assert errors[True] < 1e-6
    assert errors[False] > 5e-5


def test_gradients_of_the_objectives():
    """gradcheck through prior, condition and both bounds, likelihood parameters included."""
    likelihood = GaussianLikelihood(noise=0.3)
    modules = torch.nn.ModuleDict(
        {"gp": process(), "z": InducingPoints(inducing_points=uniform(3, 1, seed=4, high=3.0))}
    )

    class Bounds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.likelihood = modules, likelihood

        def forward(self, x: Tensor, y: Tensor, lam1: Tensor, lam2: Tensor) -> Tensor:
            parts = dict(self.parts)
            posterior = parts["z"].prior(parts["gp"], x).condition(Sites(lam1, lam2))
            return torch.stack(
                [
                    elbo(posterior, self.likelihood, y),
                    tighter_elbo(posterior, self.likelihood, y),
                    elbo(posterior, BernoulliLikelihood(), (y > 0).double()),
                    tighter_elbo(
                        posterior,
                        PoissonLikelihood(),
                        torch.ones_like(y),
                        log_v=lam1.mean(),
                    ),
                ]
            )

    bounds = Bounds()
    names = [name for name, _ in bounds.named_parameters()]

    def function(x: Tensor, y: Tensor, lam1: Tensor, lam2: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(bounds, state, (x, y, lam1, lam2))

    lam2 = uniform(5, seed=6)
    lam2[2] = 0.0
    tensors = [uniform(5, 1, seed=1, high=3.0), normal(5, seed=2), normal(5, seed=3), lam2]
    tensors += [value.detach() for value in bounds.parameters()]
    inputs = [tensor.clone().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(function, inputs, atol=1e-6, rtol=1e-4)


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [elbo, tighter_elbo])
def test_shapes(objective):
    x, y = uniform(3, 1, 5, 1, seed=1), normal(3, 2, 5, seed=2).abs().round()
    sites = Sites(y, torch.ones_like(y))
    for likelihood in (GaussianLikelihood(), PoissonLikelihood()):
        for approximation in (Exact(), inducing(3)):
            posterior = approximation.prior(process(2), x).condition(sites)
            assert objective(posterior, likelihood, y).shape == (3, 2)
            flat = approximation.prior(process(), x[0, 0]).condition(
                Sites(sites.lam1[0, 0], sites.lam2[0, 0])
            )
            assert objective(flat, likelihood, y[0, 0]).shape == ()


@pytest.mark.parametrize("objective", [elbo, tighter_elbo])
def test_groups(objective):
    """The bound of every group, the same as alone; one log_v for all groups broadcasts."""
    groups = torch.tensor([1, 0, 1, 1, 0])
    x, y = uniform(5, 1, seed=1), normal(2, 5, seed=2).abs().round()
    options = {} if objective is elbo else {"log_v": torch.tensor(-0.3).double()}
    for likelihood in (GaussianLikelihood(noise=0.2), PoissonLikelihood()):
        approximation = inducing(3)
        plan = approximation.plan(x, groups)
        sites = Sites(y, torch.ones_like(y))
        posterior = approximation.prior(process(2), x, plan=plan).condition(sites)
        value = objective(posterior, likelihood, y, **options)
        assert value.shape == (2, 2)
        for group in range(2):
            rows = groups == group
            alone = approximation.prior(process(2), x[rows]).condition(
                Sites(sites.lam1[:, rows], sites.lam2[:, rows])
            )
            torch.testing.assert_close(
                value[group], objective(alone, likelihood, y[:, rows], **options)
            )


@pytest.mark.parametrize("objective", [elbo, tighter_elbo])
def test_likelihoods_of_several_latents(objective):
    """One total for all latents, their KLs and the price of their scales added up."""
    softmax = gpytorch.likelihoods.SoftmaxLikelihood(num_classes=3, mixing_weights=False)
    likelihood = as_likelihood(softmax)
    x, y = uniform(6, 1, seed=1), torch.tensor([0.0, 2.0, 1.0, 1.0, 0.0, 2.0]).double()
    prior = inducing(3).prior(process(3), x)
    posterior = prior.condition(Sites(normal(3, 6, seed=2), torch.ones(3, 6).double()))
    log_v = torch.full((3,), -0.2).double()
    options = {} if objective is elbo else {"log_v": log_v}
    torch.manual_seed(0)
    value = objective(posterior, likelihood, y, **options)
    assert value.shape == ()
    torch.manual_seed(0)
    expected = data_term(likelihood, y, posterior.marginals(), **options).sum()
    expected = expected - posterior.kl().sum()
    if options:
        expected = expected - 6 * 0.5 * (log_v.exp() - log_v - 1.0).sum()
    torch.testing.assert_close(value, expected)


def test_one_q_is_not_counted_for_several_targets():
    x = uniform(5, 1, seed=1)
    y = normal(2, 5, seed=2)
    posterior = Exact().prior(process(), x).condition(Sites(y[0], torch.ones(5).double()))
    with pytest.raises(InputError, match=r"batch shape \(2,\) and the KL \(\)"):
        elbo(posterior, GaussianLikelihood(), y)


def test_scaling_by_the_number_of_rows_leaves_the_kl_alone():
    x, y = uniform(5, 1, seed=1), normal(5, seed=2)
    prior = inducing(3).prior(process(), x)
    posterior = prior.condition(prior.tie(Sites(y, torch.ones(5).double())))
    once = elbo(posterior, GaussianLikelihood(), y) + posterior.kl()
    twice = elbo(posterior, GaussianLikelihood(), y, num_data=10) + posterior.kl()
    torch.testing.assert_close(twice, 2.0 * once)


@pytest.mark.parametrize("objective", [elbo, tighter_elbo])
def test_single_precision(objective):
    x, y = uniform(5, 1, seed=1).float(), normal(5, seed=2).abs().round().float()
    for likelihood in (GaussianLikelihood(), PoissonLikelihood()):
        for approximation in (Exact(), inducing(3).float()):
            posterior = approximation.prior(process().float(), x).condition(
                Sites(y, torch.ones_like(y))
            )
            value = objective(posterior, likelihood, y)
            assert value.dtype == torch.float32 and bool(value.isfinite())


def test_new_tensors_follow_the_device_of_the_data():
    """With another default device, whatever is created without naming one meets tensors of data."""
    x, y = uniform(5, 1, seed=1), normal(5, seed=2).abs().round()
    likelihoods = [GaussianLikelihood(), PoissonLikelihood(), BernoulliLikelihood()]
    for likelihood in likelihoods:
        posterior = inducing(3).prior(process(), x).condition(Sites(y, torch.ones(5).double()))
        targets = y.clamp_max(1.0)
        with torch.device("meta"):
            for objective in (elbo, tighter_elbo):
                value = objective(posterior, likelihood, targets, weights=y)
                assert value.device.type == "cpu"
            term = functools.partial(data_term, likelihood, targets)
            assert dual(lambda q, t=term: t(q), posterior.marginals()).lam1.device.type == "cpu"
