"""Models and bounds of neighbour-given inducing points, against dense algebra."""

import math
import warnings

import gpytorch
import pytest
import torch
from gpvi_neighbor_cases import (
    gaussian_sites,
    inputs,
    own_evidence,
    own_model,
    process,
    seeded,
    small,
    targets,
)

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    InducingPoints,
    NeighborInducing,
    SparseInverseCholesky,
)
from gpvi.approximations.neighbor_geometry import GeometryOptions, NeighborGeometry
from gpvi.exceptions import AccuracyWarning, UnsupportedError
from gpvi.inference import cvi, elbo, tighter_elbo
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood
from gpvi.linalg import factor_product


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


@pytest.mark.filterwarnings("ignore:The incomplete Cholesky factor")
@pytest.mark.parametrize("number", [2, 3, 5])
def test_bounds_hold_for_few_neighbors_and_weak_data(number):
    """All ancestors count, so that q is one Gaussian; the nearest alone would not do here."""
    excess = {"all": -math.inf, "near": -math.inf}
    for seed in range(50):
        noise = (0.05, 1.0, 10.0)[seed % 3]
        x = inputs(100 + 20 * (seed % 4), 1 + seed % 3, seed=seed)
        kernel = parse_kernel(("matern12", "matern32")[(seed // 3) % 2], x.shape[-1])
        kernel = kernel.double()
        kernel.initialize(**{"base_kernel.lengthscale": 0.1 + 0.8 * ((7 * seed) % 10) / 10})
        gp, y = GaussianProcess(kernel), targets(x, noise**0.5, seed=seed)
        given = {"inducing_points": x} if seed % 2 else {"num_inducing": 60}
        for ancestors in excess:
            approximation = NeighborInducing(num_neighbors=number, ancestors=ancestors, **given)
            approximation.initialize(gp, x)
            with torch.no_grad():
                prior = approximation.prior(gp, x)
                posterior = prior.condition(gaussian_sites(y, noise))
                bound = tighter_elbo(posterior, GaussianLikelihood(noise=noise), y)
                gap = float(bound - own_evidence(prior, y, noise))
            excess[ancestors] = max(excess[ancestors], gap)
    assert excess["all"] < 1e-6
    if number == 2:
        assert excess["near"] > 1e-3


def test_all_ancestors_are_the_default_for_few_inducing_points():
    gp, x = process(), inputs(2_100)
    for number, complete in ((2_000, True), (2_050, False)):
        approximation = NeighborInducing(number, 3, selection="random")
        approximation.initialize(gp, x, seeded())
        assert approximation.prior(gp, x[:1]).inner.complete is complete


def test_divergences_and_moments_are_exactly_those_of_q():
    gp, x, y, approximation = small()
    posterior = approximation.prior(gp, x).condition(gaussian_sites(y))
    A, K = own_model(posterior.prior)
    eye = torch.eye(25, dtype=torch.float64)
    V = factor_product(posterior.prior.inner.pattern(()), posterior.inner.factor, eye).mT
    S = torch.linalg.inv(V @ V.mT)
    normal = torch.distributions.MultivariateNormal
    q, p = normal(posterior.inner.shift, S), normal(torch.zeros(25).double(), K)
    kl = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(posterior.kl(), kl, rtol=1e-9, atol=1e-9)
    explained = (A.mT @ S @ A).diagonal()
    torch.testing.assert_close(posterior.marginals().explained, explained, rtol=1e-9, atol=1e-9)


def test_variances_are_checked_against_those_of_the_precision():
    gp, x, y, approximation = small()
    prior, sites = approximation.prior(gp, x).detach(), gaussian_sites(y)
    posterior = prior.condition(sites)
    A, K = own_model(prior)
    precision = torch.linalg.inv(K) + A @ torch.diag(sites.lam2) @ A.mT
    exact = posterior.inner._norms[0] / torch.linalg.inv(precision).diagonal()
    for ratios in (
        posterior.variance_ratios(),
        prior.condition(prior.tie(sites)).variance_ratios(),
    ):
        assert not ratios.requires_grad
        assert float((exact - ratios.unsqueeze(-1)).abs().amin(-1).max()) < 0.02
    assert posterior.accuracy_remarks() == ()
    free = prior.posterior(torch.zeros(25).double(), torch.ones(25, 7).double())
    assert free.accuracy_remarks() == ()
    with pytest.raises(UnsupportedError, match="meant to have"):
        free.variance_ratios()


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
    (remark,) = posterior.accuracy_remarks()
    assert "variances of the inducing values are crude" in remark
    bound = elbo(posterior, GaussianLikelihood(noise=0.1), y)
    evidence = own_evidence(prior, y, 0.1)
    assert -20.0 < float((bound - evidence).detach()) < 0.0
    A, K = own_model(prior)
    covariance = A.mT @ K @ A
    mean = covariance @ torch.linalg.solve(covariance + 0.1 * torch.eye(200).double(), y)
    torch.testing.assert_close(posterior.marginals().mean, mean, rtol=1e-7, atol=1e-8)
