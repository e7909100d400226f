"""Models, factors, batches and limits of neighbour-given inducing points, against dense algebra."""

import copy
import math
import pickle
import warnings

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    InducingPoints,
    NeighborInducing,
    NeighborInducingPrior,
    Sites,
    SparseInverseCholesky,
)
from gpvi.approximations.neighbor_geometry import GeometryOptions, NeighborGeometry
from gpvi.exceptions import AccuracyWarning, InputError, UnsupportedError
from gpvi.inference import cvi, elbo, fit, tighter_elbo
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood
from gpvi.linalg import factor_product


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(rows: int, columns: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(rows, columns, dtype=torch.float64, generator=seeded(seed))


def process(
    lengthscale: float | list[float] = 0.4, nu: float = 1.5, mean: float = 0.0
) -> GaussianProcess:
    number = len(lengthscale) if isinstance(lengthscale, list) else None
    kernel = gpytorch.kernels.MaternKernel(nu=nu, ard_num_dims=number).double()
    kernel.lengthscale = torch.tensor(lengthscale, dtype=torch.float64)
    constant = gpytorch.means.ConstantMean().double()
    constant.constant.data.fill_(mean)
    return GaussianProcess(kernel, constant)


def targets(x: Tensor, noise: float = 0.3, seed: int = 1) -> Tensor:
    noise_values = torch.randn(len(x), dtype=torch.float64, generator=seeded(seed))
    return (5.0 * x[:, 0]).sin() + noise * noise_values


def gaussian_sites(y: Tensor, noise: float = 0.1) -> Sites:
    return Sites(y / noise, torch.full_like(y, 1.0 / noise))


def small(**options) -> tuple[GaussianProcess, Tensor, Tensor, NeighborInducing]:
    """A problem whose patterns leave much out."""
    gp, x = process([0.4, 0.7], mean=0.3), inputs(60)
    approximation = NeighborInducing(25, 6, **options)
    approximation.initialize(gp, x, seeded())
    return gp, x, targets(x), approximation


def own_model(prior: NeighborInducingPrior) -> tuple[Tensor, Tensor]:
    """Weights A [M, N] and prior covariance [M, M] of the inducing values, dense."""
    inner = prior.inner
    eye = torch.eye(prior.num_basis, dtype=torch.float64)
    U = factor_product(inner.pattern(()), inner.columns, eye).mT
    return prior.rows.scatter_columns(prior.weights, prior.num_basis), torch.linalg.inv(U @ U.mT)


def own_evidence(prior: NeighborInducingPrior, y: Tensor, noise: float) -> Tensor:
    A, K = own_model(prior)
    covariance = A.mT @ K @ A + torch.diag(prior.residual + noise)
    return torch.distributions.MultivariateNormal(prior.mean, covariance).log_prob(y)


@pytest.mark.parametrize(
    ("likelihood", "observe"),
    [
        (GaussianLikelihood(noise=0.1), lambda y: y),
        (PoissonLikelihood(), lambda y: y.exp().round()),
        (BernoulliLikelihood(), lambda y: (y > 0).double()),
    ],
)
def test_all_rows_with_all_neighbors_are_exact(likelihood, observe):
    gp, x = process(mean=0.2), inputs(30)
    y = observe(targets(x))
    approximation = NeighborInducing(inducing_points=x, num_neighbors=29, nugget=1e-10)
    options = {"tolerance": 1e-9, "max_steps": 200}
    actual = cvi(approximation.prior(gp, x), likelihood, y, **options)
    exact = cvi(Exact().prior(gp, x), likelihood, y, **options)
    assert abs(actual.objective - exact.objective) < 1e-4  # sweeps end a little below the optimum
    again = approximation.prior(gp, x).condition(exact.sites)
    assert abs(float(elbo(again, likelihood, y).detach()) - exact.objective) < 1e-7
    new = inputs(7, seed=3)
    for here, there in (
        (again.marginals(), exact.posterior.marginals()),
        (again.predict(new), exact.posterior.predict(new)),
    ):
        torch.testing.assert_close(here.mean, there.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(here.variance, there.variance, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("likelihood", [PoissonLikelihood(), BernoulliLikelihood()])
def test_all_neighbors_are_ordinary_inducing_points(likelihood):
    gp, x = process(), inputs(50)
    y = (targets(x) > 0).double()
    z = inputs(12, seed=5)
    approximation = NeighborInducing(inducing_points=z, num_neighbors=12, nugget=1e-10)
    actual = cvi(approximation.prior(gp, x), likelihood, y, tighter=True)
    usual = cvi(
        InducingPoints(inducing_points=z, jitter=1e-10).prior(gp, x), likelihood, y, tighter=True
    )
    assert abs(actual.objective - usual.objective) < 1e-3
    posterior = approximation.prior(gp, x).condition(usual.sites)
    torch.testing.assert_close(posterior.kl(), usual.posterior.kl(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        posterior.leave_one_out().variance,
        usual.posterior.leave_one_out().variance,
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("neighbors", ["euclidean", "correlation"])
@pytest.mark.parametrize("family", ["sic", "diagonal"])
def test_all_rows_as_inducing_points_are_a_sparse_inverse_cholesky(family, neighbors):
    gp, x = process([0.3, 0.6]), inputs(80)
    sites = gaussian_sites(targets(x))
    options = {"family": family, "neighbors": neighbors}
    many = NeighborInducing(inducing_points=x, num_neighbors=7, ancestors="near", **options)
    vecchia = SparseInverseCholesky(7, **options)
    actual = many.prior(gp, x).condition(sites)
    expected = vecchia.prior(gp, x).condition(sites)
    for name in ("log_partition", "kl"):
        here, there = (getattr(q, name) for q in (actual, expected))
        here, there = (here, there) if name == "log_partition" else (here(), there())
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(actual.marginals().mean, expected.marginals().mean)
    torch.testing.assert_close(actual.marginals().variance, expected.marginals().variance)
    assert not bool(actual.marginals().residual.any())
    new = inputs(9, seed=4)
    torch.testing.assert_close(actual.predict(new).variance, expected.predict(new).variance)
    joint = expected.predict(new, joint=True).covariance_matrix
    torch.testing.assert_close(actual.predict(new, joint=True).covariance_matrix, joint)


def test_all_rows_and_independent_values_are_gpytorch_vnngp():
    jitter, k, x = 1e-6, 5, inputs(40)
    y = targets(x)
    kernel = gpytorch.kernels.MaternKernel(nu=1.5).double()
    kernel.lengthscale = torch.tensor(0.3, dtype=torch.float64)

    class Model(gpytorch.models.ApproximateGP):
        def __init__(self):
            q = gpytorch.variational.MeanFieldVariationalDistribution(len(x)).double()
            strategy = gpytorch.variational.NNVariationalStrategy(
                self, x, q, k=k, training_batch_size=len(x), jitter_val=jitter
            )
            super().__init__(strategy)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = kernel

        def forward(self, x):
            mean, covariance = self.mean_module(x), self.covar_module(x)
            return gpytorch.distributions.MultivariateNormal(mean, covariance)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faiss is not there
        model = Model()
    strategy = model.variational_strategy
    mean = torch.randn(40, dtype=torch.float64, generator=seeded(2))
    deviation = 0.2 + inputs(40, 1, seed=3).squeeze(-1)
    q = strategy._variational_distribution
    q.variational_mean.data.copy_(mean)
    q._variational_stddev.data.copy_(deviation)
    strategy.variational_params_initialized.fill_(1)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.1
    model.train()
    objective = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(x))
    expected = 40 * objective(model(None), y)
    model(None)
    expected_kl = strategy.kl_divergence()

    # The same order and neighbours.
    every = torch.arange(40)
    neighbors = torch.full((40, k), -1, dtype=torch.int32)
    for row in range(1, 40):
        found = every[:row] if row < k else strategy.nn_xinduce_idx[row - k].sort().values
        neighbors[row, : len(found)] = found.int()
    geometry = NeighborGeometry(
        every[None],
        every[None],
        every[None],
        torch.ones(1, 40, dtype=torch.bool),
        neighbors[None],
        every[None].int(),
        torch.full((1,), 0.3, dtype=torch.float64).expand(2),
    )
    approximation = NeighborInducing(
        inducing_points=x, num_neighbors=k, family="diagonal", nugget=jitter
    )
    plan = approximation.plan(x).held(geometry)
    prior = approximation.prior(GaussianProcess(kernel), x, plan=plan)
    posterior = prior.posterior(mean, deviation.reciprocal().unsqueeze(-1))
    torch.testing.assert_close(posterior.kl(), expected_kl, rtol=1e-5, atol=1e-5)
    actual = elbo(posterior, GaussianLikelihood(noise=0.1), y)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_bounds_are_below_the_evidence_of_their_model():
    noise, likelihood = 0.05, GaussianLikelihood(noise=0.05)
    kernels = ("matern12", "matern32", "matern52")
    for seed in range(50):
        x = inputs(60, 1 + seed % 3, seed=seed)
        kernel = parse_kernel(kernels[seed % len(kernels)], x.shape[-1]).double()
        kernel.initialize(**{"base_kernel.lengthscale": 0.1 + 0.8 * ((7 * seed) % 10) / 10})
        gp, y = GaussianProcess(kernel), targets(x, seed=seed)
        family = "diagonal" if seed % 5 == 0 else "sic"
        approximation = NeighborInducing(20 + 2 * (seed % 20), 10, family=family, seed=seed)
        approximation.initialize(gp, x)
        with torch.no_grad():
            prior = approximation.prior(gp, x)
            posterior = prior.condition(gaussian_sites(y, noise))
            evidence = own_evidence(prior, y, noise)
            tight = tighter_elbo(posterior, likelihood, y)
            assert float(elbo(posterior, likelihood, y)) <= float(tight) + 1e-9
            assert float(tight) <= float(evidence) + 1e-6


def test_conditioning_agrees_with_dense_algebra():
    """The mean is exact on any pattern; q, divergence and moments are those of the factor."""
    gp, x, y, approximation = small(num_prediction_neighbors=25)
    prior, sites = approximation.prior(gp, x), gaussian_sites(y)
    posterior = prior.condition(sites)
    A, K = own_model(prior)
    precision = torch.linalg.inv(K) + A @ torch.diag(sites.lam2) @ A.mT
    shift = torch.linalg.solve(precision, A @ (sites.lam1 - sites.lam2 * prior.mean))
    torch.testing.assert_close(posterior.inner.shift, shift, rtol=1e-7, atol=1e-8)
    eye = torch.eye(25, dtype=torch.float64)
    V = factor_product(prior.inner.pattern(()), posterior.inner.factor, eye).mT
    S = torch.linalg.inv(V @ V.mT)
    q = posterior.marginals()
    torch.testing.assert_close(q.mean, prior.mean + A.mT @ shift, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(q.explained, (A.mT @ S @ A).diagonal(), rtol=1e-3, atol=1e-5)
    normal = torch.distributions.MultivariateNormal
    kl = torch.distributions.kl_divergence(normal(shift, S), normal(torch.zeros(25).double(), K))
    torch.testing.assert_close(posterior.kl(), kl, rtol=1e-4, atol=1e-3)
    dense = torch.linalg.inv(precision).diagonal()
    assert bool(((S.diagonal() / dense).log().abs() < 0.1).all())
    # More neighbours for new inputs than for rows.
    new = inputs(6, seed=8)
    cross = torch.linalg.solve(
        gp.covariance(approximation.inducing_points),
        gp.covariance(approximation.inducing_points, new),
    )
    residual = (
        gp.variance(new) - (gp.covariance(new, approximation.inducing_points) @ cross).diagonal()
    )
    torch.testing.assert_close(posterior.predict(new).residual, residual, rtol=1e-5, atol=1e-6)


def test_gradients_of_everything():
    gp, x, y, approximation = small(learn=True)
    plan, new = approximation.plan(x), inputs(3, seed=9)
    approximation.prior(gp, x, plan=plan)
    names = [name for name, _ in gp.named_parameters()]
    z = approximation.inducing_points.detach().clone()

    def everything(x, z, lam1, lam2, *values):
        state = dict(zip(names, values, strict=True))

        class Outputs(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.gp, self.approximation = gp, approximation

            def forward(self):
                prior = self.approximation.prior(self.gp, x, plan=plan)
                q = prior.condition(Sites(lam1, lam2))
                here, there = q.marginals(), q.predict(new)
                parts = [q.log_partition, q.kl(), here.mean, here.variance, there.variance]
                return torch.cat([part.flatten() for part in parts])

        replaced = {f"gp.{name}": value for name, value in state.items()}
        replaced["approximation.points.inducing_points"] = z
        return torch.func.functional_call(Outputs(), replaced, ())

    lam2 = 0.5 + 3.0 * inputs(60, 1, seed=4).squeeze(-1)
    arguments = [x, z, lam2 * y, lam2, *gp.parameters()]
    arguments = [value.detach().clone().requires_grad_() for value in arguments]
    assert torch.autograd.gradcheck(everything, arguments, fast_mode=True, atol=1e-4, rtol=1e-3)


def test_gradient_of_a_fit_is_that_of_its_objective():
    """Sites at their fixed point: held, they give the derivative of the maximised bound."""
    gp, x, y, approximation = small()
    y = (y > 0).double()
    likelihood, plan = BernoulliLikelihood(), approximation.plan(x)

    def value() -> Tensor:
        prior = approximation.prior(gp, x, plan=plan)
        result = cvi(prior, likelihood, y, tolerance=1e-10, max_steps=200)
        return elbo(prior.condition(result.sites), likelihood, y)

    parameter = gp.kernel.raw_lengthscale
    (slope,) = torch.autograd.grad(value(), parameter)
    step = 1e-2
    with torch.no_grad():
        parameter[0, 0] += step
        above = float(value())
        parameter[0, 0] -= 2 * step
        below = float(value())
        parameter[0, 0] += step
    numeric = (above - below) / (2 * step)
    assert abs(numeric - float(slope[0, 0])) < 0.02 * max(1.0, abs(numeric))


def test_sites_at_zero_precision_have_gradients():
    gp, x, y, approximation = small()
    lam2 = torch.full_like(y, 2.0)
    lam2[::3] = 0.0
    lam2.requires_grad_()
    posterior = approximation.prior(gp, x).condition(Sites(lam2.detach() * y, lam2))
    (slope,) = torch.autograd.grad(posterior.log_partition, lam2)
    moments = posterior.marginals()
    expected = -0.5 * (moments.mean.square() + moments.explained)
    # The factor is incomplete, so that this holds nearly.
    torch.testing.assert_close(slope, expected.detach(), rtol=0.05, atol=0.01)


def test_every_latent_with_inducing_points_of_its_own():
    kernel = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=torch.Size([2])).double()
    kernel.lengthscale = torch.tensor([[[0.3]], [[0.6]]], dtype=torch.float64)
    gp, z = GaussianProcess(kernel), torch.stack([inputs(15, seed=1), inputs(15, seed=2)])
    x = torch.stack([inputs(20, seed=s) for s in (3, 4, 5)]).unsqueeze(1)
    lam1 = torch.randn(3, 2, 20, dtype=torch.float64, generator=seeded())
    sites = Sites(lam1, torch.ones_like(lam1))
    whole = NeighborInducing(inducing_points=z, num_neighbors=5).prior(gp, x).condition(sites)
    new = inputs(4, seed=6)
    draw = whole.rsample((5,), generator=seeded())
    assert draw.values.shape == (5, 3, 2, 20) and draw.basis.shape == (5, 3, 2, 15)
    assert whole.log_ratio(draw).shape == (5, 3, 2)
    for latent in range(2):
        one = gpytorch.kernels.MaternKernel(nu=1.5).double()
        one.lengthscale = kernel.lengthscale[latent].detach()
        approximation = NeighborInducing(inducing_points=z[latent], num_neighbors=5)
        for entry in range(3):
            part = Sites(lam1[entry, latent], torch.ones(20).double())
            alone = approximation.prior(GaussianProcess(one), x[entry, 0]).condition(part)
            torch.testing.assert_close(whole.kl()[entry, latent], alone.kl())
            torch.testing.assert_close(
                whole.predict(new).variance[entry, latent], alone.predict(new).variance
            )
            torch.testing.assert_close(
                whole.marginals().mean[entry, latent], alone.marginals().mean
            )


def test_flat_groups_have_inducing_values_of_their_own():
    gp, x, y, approximation = small()
    groups = torch.arange(60) % 3
    plan = approximation.plan(x, groups)
    whole = approximation.prior(gp, x, plan=plan).condition(gaussian_sites(y))
    for label in range(3):
        rows = groups == label
        alone = approximation.prior(gp, x[rows]).condition(gaussian_sites(y[rows]))
        torch.testing.assert_close(whole.kl()[label], alone.kl())
        torch.testing.assert_close(whole.marginals().mean[rows], alone.marginals().mean)


def test_single_precision_and_copies():
    gp, x, y, approximation = small()
    posterior = approximation.prior(gp, x).condition(gaussian_sites(y))
    lower = copy.deepcopy(approximation).float()
    half = lower.prior(copy.deepcopy(gp).float(), x.float()).condition(gaussian_sites(y.float()))
    assert half.kl().dtype == half.marginals().mean.dtype == torch.float32
    torch.testing.assert_close(half.kl().double(), posterior.kl(), rtol=2e-3, atol=2e-3)
    new = inputs(5, seed=7)
    expected = posterior.predict(new)
    for copied in (
        pickle.loads(pickle.dumps(posterior.detach())),
        copy.deepcopy(posterior.detach()),
        posterior.compact(),
    ):
        torch.testing.assert_close(copied.predict(new).mean, expected.mean)
        torch.testing.assert_close(copied.predict(new).explained, expected.explained)
        torch.testing.assert_close(copied.kl(), posterior.kl())
    assert posterior.compact().marginals().mean.shape == (0,)


def test_inducing_points_are_saved_chosen_moved_and_forgotten():
    gp, x, _, approximation = small()
    z = approximation.inducing_points
    assert z.shape == (25, 2) and not z.requires_grad
    assert all(bool((x == point).all(-1).any()) for point in z)
    twin = NeighborInducing(25, 6)
    twin.load_state_dict(approximation.state_dict())
    torch.testing.assert_close(twin.inducing_points, z)
    twin.map_inputs(lambda points: 2.0 * points)
    torch.testing.assert_close(twin.inducing_points, 2.0 * z)
    twin.reset()
    assert twin.inducing_points is None
    with pytest.raises(InputError, match="initialize"):
        twin.prior(gp, x)
    for selection in ("kmeans++", "random"):
        other = NeighborInducing(25, 6, selection=selection, learn=True)
        other.initialize(gp, x, seeded())
        assert other.inducing_points.shape == (25, 2) and other.inducing_points.requires_grad
    # Lengthscales decide what is far: along the second column nothing is.
    wide = NeighborInducing(5, 3)
    wide.initialize(process([0.3, 1e6]), x)
    spread = wide.inducing_points[:, 0].sort().values.diff()
    assert float(spread.min()) > 0.1


def test_samples_with_and_without_residuals():
    gp, x, y, approximation = small()
    posterior = approximation.prior(gp, x).detach().condition(gaussian_sites(y, 1.0))
    moments, number = posterior.marginals(), 4000
    for residual, variance in (("none", moments.explained), ("independent", moments.variance)):
        values = posterior.rsample((number,), residual=residual, generator=seeded()).values
        error = (values.var(0) / variance).log().abs()
        assert float(error.max()) < 6 * math.sqrt(2 / number)
        assert bool(((values.mean(0) - moments.mean).abs() < 6 * (variance / number).sqrt()).all())
    new = inputs(6, seed=5)
    joint = posterior.predict(new, joint=True)
    draw = posterior.rsample((number,), new, generator=seeded(1))
    spread = joint.variance.unsqueeze(-1) * joint.variance + joint.covariance_matrix.square()
    error = (draw.values.mT.cov() - joint.covariance_matrix).abs()
    assert bool((error < 6 * (spread / number).sqrt()).all())
    ratios = posterior.log_ratio(draw)
    bound = 5 * float(ratios.std()) / math.sqrt(number) + 0.02
    assert abs(float(ratios.mean() + posterior.kl())) < bound
    # Alone, new inputs are independent given the inducing values; jointly they condition on each other.
    near = torch.cat([new, new + 1e-6])
    covariance = posterior.predict(near, joint=True).covariance_matrix
    assert float((covariance[:6, 6:].diagonal() / joint.variance).min()) > 0.99


def test_paths_are_functions_through_inducing_values():
    gp, x, y, approximation = small()
    posterior = approximation.prior(gp, x).condition(gaussian_sites(y))
    z, weights = posterior.path_weights(
        lambda points: torch.zeros(2, len(points), dtype=torch.float64), seeded()
    )
    assert z.shape == (25, 2) and weights.shape == (2, 25)


def test_sites_on_the_basis():
    gp, x, y, approximation = small()
    prior = approximation.prior(gp, x)
    data = prior.condition(gaussian_sites(y))
    tied = prior.tie(gaussian_sites(y))
    assert tied.full and tied.on == "basis"
    basis = prior.condition(tied)
    torch.testing.assert_close(basis.kl(), data.kl(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(basis.marginals().mean, data.marginals().mean)
    # Log values of sites differ by what a draw of u does not change.
    draw = data.rsample((4,), generator=seeded())
    gap = gaussian_sites(y).log_value(data._site_values(draw.basis)) - tied.log_value(draw.basis)
    torch.testing.assert_close(gap, gap[:1].expand(4), rtol=1e-7, atol=1e-6)
    difference = data.log_partition - basis.log_partition
    torch.testing.assert_close(difference, gap[0], rtol=1e-4, atol=1e-3)
    lam2 = 1.0 + inputs(25, 1, seed=2).squeeze(-1)
    diagonal, full = (
        prior.condition(Sites(lam2, second, on="basis")) for second in (lam2, torch.diag(lam2))
    )
    torch.testing.assert_close(diagonal.kl(), full.kl(), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(diagonal.log_partition, full.log_partition, rtol=1e-3, atol=1e-3)
    with pytest.raises(UnsupportedError, match="no single row"):
        diagonal.leave_one_out()


@pytest.mark.parametrize("family", ["sic", "diagonal"])
def test_two_independent_batches_estimate_the_bound_without_bias(family):
    gp, x, y, approximation = small(family=family)
    likelihood, plan = GaussianLikelihood(noise=0.1), approximation.plan(x)
    with torch.no_grad():
        posterior = approximation.prior(gp, x, plan=plan).condition(gaussian_sites(y))
    mean = posterior.inner.shift + posterior.inner.prior.place_mean
    q = tuple(part.clone().requires_grad_() for part in (mean, posterior.inner.factor))
    asked, values = [], []

    def lazily(places: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(places)
        return q[0][places], q[1][places]

    for rows in torch.randperm(60, generator=seeded()).split(20):
        prior = approximation.prior(gp, x[rows], plan=plan.at(x[rows]))
        for inducing in torch.randperm(25, generator=seeded()).split(5):
            view = prior.batch(lazily, inducing)
            assert torch.equal(view.kl(), prior.batch(q, inducing).kl())
            assert view.kl_is_whole and torch.equal(asked[-1], view.places)
            values.append(elbo(view, likelihood, y[rows], num_data=60))
    estimate = torch.stack(values).mean()
    whole = elbo(approximation.prior(gp, x, plan=plan).posterior(*q), likelihood, y)
    torch.testing.assert_close(estimate, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole, elbo(posterior, likelihood, y), rtol=1e-10, atol=1e-10)
    parameters = [*q, gp.kernel.raw_lengthscale, gp.mean_module.raw_constant]
    slopes = [torch.autograd.grad(value, parameters) for value in (estimate, whole)]
    for actual, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_batches_look_at_few_values():
    gp, x = process(0.05), inputs(3_000)
    approximation = NeighborInducing(1_500, 4)
    approximation.initialize(gp, x)
    plan, rows = approximation.plan(x), torch.arange(3)
    prior = approximation.prior(gp, x[rows], plan=plan.at(x[rows]))
    mean, factor = torch.zeros(1_500).double(), torch.ones(1_500, 5).double()
    view = prior.batch((mean, factor), torch.tensor([1_000, 1_400]))
    assert len(view.places) < 300
    assert "columns" not in vars(prior.inner)
    whole = approximation.prior(gp, x, plan=approximation.plan(x)).posterior(mean, 0 * factor + 1)
    torch.testing.assert_close(
        view.marginals().mean, whole.marginals().mean[rows], rtol=1e-9, atol=1e-9
    )
    for request in (
        lambda: view.predict(x),
        lambda: view.rsample(),
        lambda: view.log_ratio(None),
        lambda: view.leave_one_out(),
    ):
        with pytest.raises(UnsupportedError):
            request()


def test_rows_at_inducing_inputs_in_batches():
    gp, x = process(), inputs(40)
    approximation = NeighborInducing(inducing_points=x, num_neighbors=5)
    plan = approximation.plan(x)
    prior = approximation.prior(gp, x, plan=plan)
    posterior = prior.condition(gaussian_sites(targets(x)))
    q = (posterior.inner.shift + prior.inner.place_mean, posterior.inner.factor)
    rows = torch.tensor([3, 17, 31])
    view = approximation.prior(gp, x[rows], plan=plan.at(x[rows])).batch(q, rows)
    torch.testing.assert_close(view.marginals().variance, posterior.marginals().variance[rows])
    terms = posterior.inner.kl_places()
    torch.testing.assert_close(view.kl(), 40 * terms[rows].mean())


def maximise_average(gp: GaussianProcess, x: Tensor, y: Tensor, noise: float, number: int) -> float:
    """The objective of sparse-within-sparse processes at its best independent values."""
    approximation = NeighborInducing(inducing_points=x, num_neighbors=number, objective="swsgp")
    with torch.no_grad():
        prior = approximation.prior(gp, x).detach()
        start = prior.condition(gaussian_sites(y, noise)).inner
    mean = (start.shift + prior.inner.place_mean).clone().requires_grad_()
    log_factor = start.factor.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([mean, log_factor], max_iter=60, line_search_fn="strong_wolfe")
    likelihood = GaussianLikelihood(noise=noise)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -elbo(prior.posterior(mean, log_factor.exp()), likelihood, y)
        value.backward()
        return value

    optimizer.step(loss)
    return -float(loss().detach())


@pytest.mark.parametrize(
    ("columns", "rows", "lengthscale", "noise", "number"),
    [(1, 200, 0.15, 0.08, 5), (5, 150, 0.8, 0.1, 10)],
)
def test_the_averaged_divergence_is_no_bound(columns, rows, lengthscale, noise, number):
    x, gp = inputs(rows, columns, seed=columns), process(lengthscale, nu=2.5)
    y = targets(x)
    exact = Exact().prior(gp, x).detach().condition(gaussian_sites(y, noise))
    evidence = float(elbo(exact, GaussianLikelihood(noise=noise), y).detach())
    assert maximise_average(gp, x, y, noise, number) > evidence + 10.0
    sound = NeighborInducing(inducing_points=x, num_neighbors=number)
    prior = sound.prior(gp, x).detach()
    bound = elbo(prior.condition(gaussian_sites(y, noise)), GaussianLikelihood(noise=noise), y)
    assert float((bound - own_evidence(prior, y, noise)).detach()) < 1e-6


def test_the_averaged_divergence_is_the_mean_over_rows():
    gp, x, _, approximation = small(objective="swsgp", family="sic")
    plan = approximation.plan(x)
    prior = approximation.prior(gp, x, plan=plan)
    posterior = prior.condition(gaussian_sites(targets(x)))
    _, K = own_model(prior)
    z = prior.inner.points
    K = gp.covariance(z) * (1 + 1e-8 * torch.eye(25).double())
    eye = torch.eye(25, dtype=torch.float64)
    V = factor_product(prior.inner.pattern(()), posterior.inner.factor, eye).mT
    S, shift = torch.linalg.inv(V @ V.mT), posterior.inner.shift
    normal, each = torch.distributions.MultivariateNormal, []
    for index in prior.rows.index.long():
        block = torch.meshgrid(index, index, indexing="ij")
        q, p = normal(shift[index], S[block]), normal(torch.zeros(6).double(), K[block])
        each.append(torch.distributions.kl_divergence(q, p))
    torch.testing.assert_close(posterior.kl(), torch.stack(each).mean(), rtol=1e-6, atol=1e-6)
    assert posterior.compact() is posterior
    q = (shift + prior.inner.place_mean, posterior.inner.factor)
    rows = torch.tensor([0, 5, 9])
    view = approximation.prior(gp, x[rows], plan=plan.at(x[rows])).batch(q, torch.tensor([0]))
    torch.testing.assert_close(view.kl(), torch.stack(each)[rows].mean(), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("learn", [False, True])
def test_fits_of_all_rows(learn):
    gp, x = process([0.5, 0.5]), inputs(120)
    y = targets(x)
    approximation = NeighborInducing(30, 8, learn=learn, refresh_every=5)
    likelihood = GaussianLikelihood(noise=0.2)
    approximation.initialize(gp, x)
    prior = approximation.prior(gp, x).detach()
    first = float(tighter_elbo(prior.condition(gaussian_sites(y, 0.2)), likelihood, y).detach())
    z = approximation.inducing_points.detach().clone()
    result = fit(gp, approximation, likelihood, x, y, max_iter=15, warm_start=None)
    assert result.objective > first + 1.0
    assert torch.equal(approximation.inducing_points, z) != learn
    prediction = result.posterior.predict(inputs(50, seed=9))
    truth = (5.0 * inputs(50, seed=9)[:, 0]).sin()
    assert float((prediction.mean - truth).square().mean().sqrt()) < 0.25


@pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")
def test_fits_of_counts_and_of_minibatches():
    gp, x = process([0.5, 0.5]), inputs(150)
    y = (1.0 + targets(x)).exp().round()
    approximation = NeighborInducing(20, 6)
    result = fit(gp, approximation, PoissonLikelihood(), x, y, max_iter=4, warm_start=None)
    assert math.isfinite(result.objective)
    small_steps = fit(
        gp, approximation, PoissonLikelihood(), x, y, max_iter=3, batch_size=50, generator=seeded()
    )
    assert math.isfinite(small_steps.objective)
    assert small_steps.objective > result.objective - 30.0


def test_neighbors_are_found_anew_where_ratios_have_changed():
    gp, x, _, approximation = small(learn=False)
    plan = approximation.plan(x)
    assert approximation.refresh(gp, plan) is plan
    approximation.prior(gp, x, plan=plan)
    assert approximation.refresh_period(gp, x) == 20
    assert approximation.refresh_period(process(0.3), x) is None
    assert approximation.refresh(gp, plan) is plan
    moved = process([0.1, 3.0])
    fresh = approximation.refresh(moved, plan)
    assert fresh is not plan
    assert approximation.refresh(moved, fresh) is fresh
    held = NeighborInducing(25, 6, refresh_every=None)
    assert held.refresh(moved, plan) is plan
    learned = NeighborInducing(25, 6, learn=True)
    learned.initialize(gp, x)
    plan = learned.plan(x)
    learned.prior(gp, x, plan=plan)
    assert learned.refresh(gp, plan) is plan
    with torch.no_grad():
        learned.inducing_points.copy_(learned.inducing_points.flip(0).square())
    assert learned.refresh(gp, plan) is not plan


def test_a_factor_that_breaks_down_is_taken_with_a_larger_diagonal():
    """In a random order, of a smooth kernel; the mean does not depend on the factor."""
    kernel = gpytorch.kernels.RBFKernel().double()
    kernel.lengthscale = torch.tensor(0.3, dtype=torch.float64)
    gp, x = GaussianProcess(kernel), inputs(200)
    y = targets(x)
    approximation = NeighborInducing(150, 4, nugget=1e-6)
    approximation.initialize(gp, x)
    z = approximation.inducing_points.detach()
    options = GeometryOptions(4, 8, "random", "euclidean", 0)
    plan = approximation.plan(x).held(NeighborGeometry.build(gp, z[None], options))
    prior = approximation.prior(gp, x, plan=plan).detach()
    with pytest.warns(AccuracyWarning, match="of its diagonal added"):
        posterior = prior.condition(gaussian_sites(y))
    bound = elbo(posterior, GaussianLikelihood(noise=0.1), y)
    evidence = own_evidence(prior, y, 0.1)
    assert -20.0 < float((bound - evidence).detach()) < 0.0
    A, K = own_model(prior)
    covariance = A.mT @ K @ A
    mean = covariance @ torch.linalg.solve(covariance + 0.1 * torch.eye(200).double(), y)
    torch.testing.assert_close(posterior.marginals().mean, mean, rtol=1e-7, atol=1e-8)


def test_impossible_options_and_requests():
    gp, x, y, approximation = small()
    for options, message in (
        ({}, "exactly one of num_inducing"),
        ({"num_inducing": 0}, "num_inducing is 0"),
        ({"num_inducing": 5, "num_neighbors": 0}, "num_neighbors is 0"),
        ({"num_inducing": 5, "selection": "greedy"}, "selection is 'greedy'"),
        ({"num_inducing": 5, "family": "dense"}, "family is 'dense'"),
        ({"num_inducing": 5, "objective": "ep"}, "objective is 'ep'"),
        ({"num_inducing": 5, "neighbors": "city"}, "neighbors is 'city'"),
        ({"num_inducing": 5, "nugget": 0.0}, "nugget is 0.0"),
        ({"num_inducing": 5, "refresh_every": 0}, "refresh_every is 0"),
    ):
        with pytest.raises(InputError, match=message):
            NeighborInducing(**options)
    prior = approximation.prior(gp, x)
    with pytest.raises(UnsupportedError, match="smallest lam2 is -1"):
        prior.condition(Sites(y, -torch.ones_like(y)))
    with pytest.raises(InputError, match="made for 60 rows"):
        approximation.prior(gp, x[:5], plan=approximation.plan(x))
    with pytest.raises(InputError, match="make it by plan"):
        approximation.prior(gp, x, plan=SparseInverseCholesky(3).plan(x))
    q = (torch.zeros(25).double(), torch.ones(25, 7).double())
    for inducing in (torch.zeros(0, dtype=torch.int64), torch.zeros(2), torch.tensor([25])):
        with pytest.raises(InputError, match="inducing"):
            prior.batch(q, inducing)
    with pytest.raises(InputError, match="mean has shape"):
        prior.batch((q[0][:3], q[1]), torch.tensor([0]))
    with pytest.raises(InputError, match="it must be"):
        prior.batch((q[0], q[1][:, :3]), torch.tensor([0]))
    with pytest.raises(InputError, match="must be positive"):
        prior.batch((q[0], -q[1]), torch.tensor([0]))
    with pytest.raises(InputError, match="NaN"):
        approximation.plan(x * torch.nan)
    with pytest.raises(InputError, match="NaN"):
        prior.condition(gaussian_sites(y)).predict(x * torch.nan)
    with pytest.raises(UnsupportedError, match="no sites"):
        prior.posterior(*q).leave_one_out()
