"""Inducing points with nearest neighbours for what they leave open."""

import copy
import math
import pickle
import warnings

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi import GPClassifier, GPRegressor
from gpvi.approximations import (
    Exact,
    FullScale,
    GaussianProcess,
    InducingPoints,
    Sites,
    SparseInverseCholesky,
    SphericalActivationFeatures,
)
from gpvi.approximations._left_over import LeftOverProcess
from gpvi.approximations.features import PointBasis
from gpvi.exceptions import ConvergenceWarning, InputError, UnsupportedError
from gpvi.inference import cvi, elbo, fit
from gpvi.kernels import ArcCosineKernel
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood

NOISE = 0.05


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rough_and_smooth() -> GaussianProcess:
    """A long smooth part and a short rough one."""
    smooth = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()
    rough = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=0.5)).double()
    smooth.base_kernel.lengthscale, smooth.outputscale = 1.5, 2.0
    rough.base_kernel.lengthscale, rough.outputscale = 0.2, 0.5
    return GaussianProcess(smooth + rough)


def draw(gp: GaussianProcess, x: Tensor, seed: int = 1) -> Tensor:
    covariance = gp.covariance(x).detach() + NOISE * torch.eye(len(x), dtype=x.dtype)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(x), dtype=x.dtype, generator=generator)
    return torch.linalg.cholesky(covariance) @ noise


X = 4 * uniform(150, 2)
GP = rough_and_smooth()
Y = draw(GP, X)
SITES = Sites(Y / NOISE, torch.full_like(Y, 1 / NOISE))
SITE_CONSTANT = -0.5 * Y.square().sum() / NOISE - 0.5 * len(Y) * math.log(2 * math.pi * NOISE)


def full_scale(number: int, points: int = 20, **options) -> FullScale:
    base = InducingPoints(inducing_points=X[:points] + 0.01)
    return FullScale(base, SparseInverseCholesky(number, **options))


def responses(approximation, x: Tensor = X, y: Tensor = Y, noise: float = NOISE) -> Tensor:
    variance = torch.tensor(noise, dtype=x.dtype)
    return approximation.collapsed_objective(GP, x, y, variance, tighter=False)


def value(tensor: Tensor) -> float:
    return tensor.detach().item()


def exact_evidence() -> float:
    return value(Exact().prior(GP, X).condition(SITES).log_partition + SITE_CONSTANT)


def dense_prior(approximation: FullScale) -> Tensor:
    """Covariance of f at the rows that the approximation stands for."""
    prior = approximation.prior(GP, X)
    eye = torch.eye(prior.num_basis, dtype=X.dtype)
    columns = prior.unwhiten(eye) - prior.unwhiten(torch.zeros_like(eye))
    basis = columns[:, prior.num_features :]
    return basis.mT @ basis


def test_all_neighbors_give_the_exact_evidence_of_responses():
    whole = full_scale(149)
    assert value(responses(whole)) == pytest.approx(exact_evidence(), abs=1e-6)


def test_gradients_of_the_evidence_are_those_of_the_exact_one():
    parameters = list(GP.parameters())
    ours = torch.autograd.grad(responses(full_scale(149)), parameters)
    exact = Exact().prior(GP, X).condition(SITES).log_partition
    expected = torch.autograd.grad(exact, parameters, allow_unused=True)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_evidence_of_responses_is_that_of_its_dense_covariance():
    """With noise in the factor the responses have a covariance of their own."""
    approximation = full_scale(4)
    plan = approximation.plan(X)
    basis = PointBasis(approximation.inducing_points)
    rest = LeftOverProcess(GP, basis, basis.factorise(GP, 1e-8).factor)
    geometry = plan.geometry(rest)
    order, neighbors = geometry.first[0], geometry.patterns[0].neighbors
    left = rest.covariance(X[order]) + NOISE * torch.eye(len(X), dtype=X.dtype)
    factor = torch.zeros_like(left)
    for row, near in enumerate(neighbors):
        members = torch.cat([near[near >= 0].long(), torch.tensor([row])])
        root = torch.linalg.cholesky(left[members][:, members])
        last = torch.zeros(len(members), 1, dtype=X.dtype)
        last[-1] = 1.0
        factor[members, row] = torch.linalg.solve_triangular(root.mT, last, upper=True)[:, 0]
    features = basis.whitened(GP, rest.factor, X[order])
    covariance = features.mT @ features + torch.linalg.inv(factor @ factor.mT)
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(X)).double(), covariance)
    assert value(responses(approximation)) == pytest.approx(
        value(normal.log_prob(Y[order])), abs=1e-6
    )


@pytest.mark.parametrize("neighbors", [2, 5, 10])
def test_bound_is_below_the_evidence_of_its_own_prior(neighbors):
    approximation = full_scale(neighbors)
    posterior = approximation.prior(GP, X).condition(SITES)
    covariance = dense_prior(approximation) + NOISE * torch.eye(len(X), dtype=X.dtype)
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(X)).double(), covariance)
    own, bound = value(normal.log_prob(Y)), value(posterior.log_partition + SITE_CONSTANT)
    assert bound <= own + 1e-8
    assert own - bound < 1.0


def test_means_are_exact_for_their_own_prior():
    approximation = full_scale(4)
    covariance = dense_prior(approximation)
    posterior = approximation.prior(GP, X).condition(SITES)
    noisy = covariance + NOISE * torch.eye(len(X), dtype=X.dtype)
    expected = covariance @ torch.linalg.solve(noisy, Y)
    torch.testing.assert_close(posterior.marginals().mean, expected, atol=1e-7, rtol=1e-7)
    spread = covariance - covariance @ torch.linalg.solve(noisy, covariance)
    ratio = posterior.marginals().variance / spread.diagonal()
    assert ratio.min() > 0.8 and ratio.max() < 1.2


def divergence(covariance: Tensor) -> float:
    """KL from noisy values of the process to noisy values of an approximation."""
    noise = NOISE * torch.eye(len(X), dtype=X.dtype)
    zeros = torch.zeros(len(X), dtype=X.dtype)
    exact = torch.distributions.MultivariateNormal(zeros, GP.covariance(X) + noise)
    other = torch.distributions.MultivariateNormal(zeros, covariance + noise)
    return value(torch.distributions.kl_divergence(exact, other))


@pytest.mark.parametrize("neighbors", [3, 6, 12])
def test_is_nearer_to_the_process_than_both_parents(neighbors):
    sparse = SparseInverseCholesky(neighbors).prior(GP, X)
    columns = sparse.unwhiten(torch.eye(len(X), dtype=X.dtype))
    features = InducingPoints(inducing_points=X[:20] + 0.01).prior(GP, X).features
    ours = divergence(dense_prior(full_scale(neighbors)))
    assert ours < 0.5 * divergence(columns.mT @ columns)
    assert ours < 0.1 * divergence(features.mT @ features)


def test_joint_moments_and_samples_agree():
    posterior = full_scale(6).prior(GP, X).condition(SITES)
    x = 4 * uniform(6, 2, seed=5)
    joint, alone = posterior.predict(x, joint=True), posterior.predict(x)
    # Jointly, new inputs condition on each other too: with few neighbours the two differ a little.
    torch.testing.assert_close(joint.mean, alone.mean, atol=0.1, rtol=0.1)
    values = posterior.rsample((20_000,), x, generator=torch.Generator().manual_seed(0)).values
    torch.testing.assert_close(values.mean(0), joint.mean, atol=0.03, rtol=0.0)
    torch.testing.assert_close(values.T.cov(), joint.covariance_matrix, atol=0.03, rtol=0.05)


def test_repeated_rows_add_up():
    """Two rows at one place are one response with half the noise."""
    twice, y = torch.cat([X, X]), torch.cat([Y, Y + 0.1])
    merged = responses(full_scale(8), X, Y + 0.05, NOISE / 2)
    both = responses(full_scale(8), twice, y)
    gap = -0.5 * math.log(2) - 0.5 * math.log(2 * math.pi * NOISE) - 0.005 / (2 * NOISE)
    assert value(both - merged) == pytest.approx(len(X) * gap, rel=1e-6)


def test_log_ratio_is_that_of_the_two_densities():
    posterior = full_scale(5).prior(GP, X).condition(SITES)
    sample = posterior.rsample((3,), generator=torch.Generator().manual_seed(0))
    prior = posterior.prior
    white = prior.whiten(sample.basis)
    torch.testing.assert_close(prior.unwhiten(white), sample.basis, atol=1e-6, rtol=1e-6)
    draws = posterior.rsample((4_000,), generator=torch.Generator().manual_seed(1))
    ratio = posterior.log_ratio(draws)
    error = value(ratio.std()) / math.sqrt(len(ratio))
    assert value(ratio.mean()) == pytest.approx(-value(posterior.kl()), abs=5 * error)


def test_gradients_with_q_held_are_nearly_total_ones():
    """At the best sites of a Bernoulli likelihood, against finite differences of refitted bounds."""
    gp, labels = rough_and_smooth(), (Y > 0).double()
    approximation, likelihood = full_scale(8), BernoulliLikelihood()
    plan = approximation.plan(X)
    plan.geometry(gp)

    def bound() -> float:
        prior = approximation.prior(gp, X, plan=plan).detach()
        return float(elbo(cvi(prior, likelihood, labels).posterior, likelihood, labels))

    prior = approximation.prior(gp, X, plan=plan)
    best = cvi(prior.detach(), likelihood, labels).posterior
    zeros = torch.zeros_like(labels)
    raw = gp.kernel.kernels[0].raw_outputscale
    (gradient,) = torch.autograd.grad(prior.tangent(best, zeros, zeros, None), raw)
    values = []
    for step in (1e-3, -2e-3):
        raw.data += step
        values.append(bound())
    expected = (values[0] - values[1]) / 2e-3
    assert float(gradient) == pytest.approx(expected, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("evidence", ["responses", "function"])
def test_fits_raise_the_evidence(evidence):
    gp = GaussianProcess(
        gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
    )
    approximation = full_scale(6, evidence=evidence)
    likelihood = GaussianLikelihood(noise=0.3)
    before = value(elbo(approximation.prior(gp, X).condition(SITES), likelihood, Y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = fit(gp, approximation, likelihood, X, Y, max_iter=15)
    assert result.objective > before + 10


def test_other_features_can_be_the_base():
    base = SphericalActivationFeatures(10, "exponential")
    approximation = FullScale(base, SparseInverseCholesky(10, neighbors="correlation"))
    gp = GaussianProcess(gpytorch.kernels.ScaleKernel(ArcCosineKernel()).double())
    approximation.initialize(gp, X, torch.Generator().manual_seed(0))
    y = torch.sin(X[:, 0])
    posterior = approximation.prior(gp, X).condition(
        Sites(y / NOISE, torch.full_like(y, 1 / NOISE))
    )
    exact = Exact().prior(gp, X).condition(posterior.sites)
    torch.testing.assert_close(
        posterior.marginals().mean, exact.marginals().mean, atol=0.05, rtol=0.05
    )


def test_neighbors_by_correlation_are_those_of_the_residual():
    approximation = full_scale(5, neighbors="correlation")
    plan = approximation.plan(X)
    approximation.prior(GP, X, plan=plan)
    of_whole = SparseInverseCholesky(5, neighbors="correlation")
    other = of_whole.plan(X)
    first = plan.geometry(GP).neighbors
    assert not torch.equal(first, other.geometry(GP).neighbors)
    assert approximation.refresh(GP, plan) is plan


def test_padded_groups_have_the_samples_of_their_rows():
    groups = torch.arange(len(X)) % 7 // 3
    approximation = full_scale(12)
    prior = approximation.prior(GP, X, plan=approximation.plan(X, groups))
    posterior = prior.condition(SITES)
    sample = posterior.rsample((2,), generator=torch.Generator().manual_seed(0))
    ratio = posterior.log_ratio(sample)
    for number in range(3):
        rows = groups == number
        alone = approximation.prior(GP, X[rows]).condition(
            Sites(SITES.lam1[rows], SITES.lam2[rows])
        )
        kept = sample.basis[:, number, : alone.prior.num_basis]
        torch.testing.assert_close(kept[:, 20:], sample.values[:, rows])
        torch.testing.assert_close(
            alone.log_ratio(type(sample)(kept[:, 20:], kept)), ratio[:, number]
        )


def test_detached_posteriors_keep_variances_and_can_be_pickled():
    posterior = full_scale(5).prior(GP, X).condition(SITES)
    variance = posterior.marginals().variance
    held = posterior.detach()
    assert "_norms" in vars(held.rest) and not held.rest._norms.requires_grad
    again = pickle.loads(pickle.dumps(copy.deepcopy(held)))
    torch.testing.assert_close(again.marginals().variance, variance.detach())
    assert again.variance_ratios().min() > 0.7


def test_minibatches_are_refused():
    model = GPRegressor("matern32", approximation="full_scale", num_inducing=10, batch_size=50)
    with pytest.raises(UnsupportedError, match="whole data"):
        model.fit(X.numpy(), Y.numpy())


def test_many_new_inputs_in_pieces(monkeypatch):
    """Pieces of new inputs, and of shifts, make no difference."""
    posterior = full_scale(5).prior(GP, X).condition(SITES)
    x = 4 * uniform(40, 2, seed=8)
    whole = posterior.predict(x)
    monkeypatch.setattr("gpvi.approximations._new_locations._CHUNK", 30)
    pieces = posterior.predict(x)
    torch.testing.assert_close(pieces.mean, whole.mean)
    torch.testing.assert_close(pieces.variance, whole.variance)


def test_wrong_parts_are_refused():
    base, rest = InducingPoints(5), SparseInverseCholesky(5)
    with pytest.raises(InputError, match="SparseInverseCholesky"):
        FullScale(base, InducingPoints(5))
    with pytest.raises(InputError, match="base"):
        FullScale(rest, rest)
    with pytest.raises(InputError, match="plan"):
        full_scale(4).prior(GP, X, plan=Exact().plan(X))
    bad = X.clone()
    bad[0, 0] = math.nan
    posterior = full_scale(4).prior(GP, X).condition(SITES)
    with pytest.raises(InputError, match="NaN"):
        posterior.predict(bad)
    with pytest.raises(InputError, match="NaN"):
        posterior.rsample((), bad)


def test_estimators_know_the_name(tmp_path):
    model = GPRegressor(
        "matern32", approximation="full_scale", num_inducing=20, random_state=0
    ).fit(X.numpy(), Y.numpy())
    assert isinstance(model.approximation_, FullScale)
    mean = model.predict(X.numpy()[:5])
    model.save(tmp_path / "model.gpvi")
    assert GPRegressor.load(tmp_path / "model.gpvi").predict(X.numpy()[:5]) == pytest.approx(mean)
    labels = (Y > 0).long().numpy()
    classes = GPClassifier(
        "matern32", approximation="full_scale", num_inducing=20, random_state=0
    ).fit(X.numpy(), labels)
    assert classes.score(X.numpy(), labels) > 0.8
