"""Neighbour-given inducing points: against dense algebra, the sparse inverse prior and the exact process."""

import copy
import itertools
import pickle

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    NeighborInducing,
    NeighborInducingPrior,
    Sites,
    SparseInverseCholesky,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import cvi, elbo, fit
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood

NOISE = 0.1


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def process(batch: int | None = None, lengthscale: float = 0.5) -> GaussianProcess:
    shape = torch.Size([] if batch is None else [batch])
    base = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=shape)
    kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=shape).double()
    base.lengthscale = lengthscale * (1.0 + uniform(*shape, 1, 1, seed=3))
    kernel.outputscale = 1.0 + uniform(*shape, seed=4)
    return GaussianProcess(kernel)


X = 2.0 * uniform(40, 2)
Y = torch.sin(4.0 * X[:, 0]) + 0.3 * uniform(40, seed=1)


def sites(y: Tensor = Y) -> Sites:
    return Sites(y / NOISE, torch.full_like(y, 1.0 / NOISE))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def dense_evidence(prior: NeighborInducingPrior, y: Tensor, noise: float) -> Tensor:
    """Log evidence of rows given their neighbours, by dense algebra of the same model."""
    M = prior.num_basis
    eye = torch.eye(M, dtype=torch.float64)
    basis = prior.unwhiten(eye)
    weights = torch.stack([projected(prior, row) for row in eye], -1)
    noise_free = weights @ basis.mT @ basis @ weights.mT
    covariance = noise_free + torch.diag(noise + prior.residual)
    zero = torch.zeros_like(y)
    return torch.distributions.MultivariateNormal(zero, covariance).log_prob(y)


def projected(prior: NeighborInducingPrior, basis: Tensor) -> Tensor:
    """E[f | u] at the rows, from the moments of a q that knows u."""
    certain = Sites(1e12 * basis, torch.full_like(basis, 1e12), on="basis")
    return prior.condition(certain).marginals().mean


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(noise=NOISE), BernoulliLikelihood()])
def test_all_rows_as_inducing_points_and_neighbours_is_exact(likelihood) -> None:
    y = Y if isinstance(likelihood, GaussianLikelihood) else (Y > 0.5).double()
    gp = process()
    approximation = NeighborInducing(inducing_points=X, num_neighbors=39, nugget=1e-10)
    with torch.no_grad():
        ours = cvi(approximation.prior(gp, X), likelihood, y, tolerance=1e-12)
        exact = cvi(Exact().prior(gp, X), likelihood, y, tolerance=1e-12)
        assert ours.objective == pytest.approx(exact.objective, abs=1e-4)
        new = 2.0 * uniform(7, 2, seed=5)
        mine, theirs = ours.posterior.predict(new), exact.posterior.predict(new)
    close(mine.mean, theirs.mean, 1e-3)
    close(mine.variance, theirs.variance, 1e-3)


def test_all_rows_as_inducing_points_is_the_sparse_inverse_prior() -> None:
    gp = process()
    with torch.no_grad():
        ours = NeighborInducing(inducing_points=X, num_neighbors=8).prior(gp, X).condition(sites())
        theirs = SparseInverseCholesky(8).prior(gp, X).condition(sites())
        close(ours.log_partition, theirs.log_partition)
        close(ours.marginals().mean, theirs.marginals().mean)
        close(ours.marginals().variance, theirs.marginals().variance)


@pytest.mark.parametrize("seed", range(50))
def test_never_above_its_own_evidence(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(30, 2, dtype=torch.float64, generator=generator)
    gp = process(lengthscale=0.1 + float(torch.rand((), generator=generator)))
    number = int(torch.randint(4, 25, (), generator=generator))
    neighbors = int(torch.randint(2, 8, (), generator=generator))
    approximation = NeighborInducing(inducing_points=x[:number], num_neighbors=neighbors)
    y = torch.randn(30, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        prior = approximation.prior(gp, x)
        bound = elbo(prior.condition(sites(y)), GaussianLikelihood(noise=NOISE), y)
        # Two or three neighbours lack ancestors: variances and bound are theirs up to that.
        slack = 1e-6 if neighbors > 3 else 0.3
        assert float(bound) <= float(dense_evidence(prior, y, NOISE)) + slack


def test_few_nats_below_with_all_rows_as_inducing_points() -> None:
    with torch.no_grad():
        prior = NeighborInducing(inducing_points=X, num_neighbors=10).prior(process(), X)
        bound = elbo(prior.condition(sites()), GaussianLikelihood(noise=NOISE), Y)
        evidence = dense_evidence(prior, Y, NOISE)
    assert float(evidence) - 2.0 < float(bound) <= float(evidence)


def test_averaged_objective_is_no_bound() -> None:
    """Maximised over independent inducing values it exceeds the exact evidence."""
    x = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
    generator = torch.Generator().manual_seed(0)
    y = torch.sin(2 * x[:, 0]) + 0.3 * torch.randn(60, dtype=torch.float64, generator=generator)
    gp, likelihood = process().requires_grad_(False), GaussianLikelihood(noise=NOISE)
    approximation = NeighborInducing(inducing_points=x, num_neighbors=5, objective="swsgp")
    prior = approximation.prior(gp, x)
    mean = y[prior.inner.geometry.first[0]].clone().requires_grad_()
    width = prior.inner.factor_pattern(()).num_neighbors + 1
    root = torch.full((60, width), 1.5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([mean, root], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -elbo(prior.posterior(mean, root.exp()), likelihood, y)
        loss.backward()
        optimizer.step()
    exact = Exact().prior(gp, x).condition(sites(y))
    assert -loss.item() > elbo(exact, likelihood, y).item() + 5.0


def test_batches_of_rows_and_of_inducing_points_are_unbiased() -> None:
    gp, likelihood = process(), GaussianLikelihood(noise=NOISE)
    z, x, y = X[:9], X[:12], Y[:12]
    approximation = NeighborInducing(inducing_points=z, num_neighbors=2)
    with torch.no_grad():
        whole = approximation.prior(gp, x)
        start = whole.condition(sites(y))
        mean = start.inner.shift + whole.inner.place_mean
        q = whole.posterior(mean, start.inner.factor)
        expected = elbo(q, likelihood, y)
        values = []
        plan = approximation.plan(x)
        approximation.prior(gp, x, plan=plan)
        for rows, inducing in itertools.product(
            torch.arange(12).split(4), torch.arange(9).split(3)
        ):
            prior = approximation.prior(gp, x[rows], plan=plan.at(x[rows]))
            batch = prior.batch((mean, start.inner.factor), inducing)
            values.append(elbo(batch, likelihood, y[rows], 12))
    close(torch.stack(values).mean(0), expected, 1e-8)


def test_hyperparameter_gradients_of_the_collapsed_bound() -> None:
    likelihood, approximation = (
        GaussianLikelihood(noise=NOISE),
        NeighborInducing(inducing_points=X[:20], num_neighbors=8),
    )
    gp = process()
    plan = approximation.plan(X)

    def bound() -> Tensor:
        return elbo(approximation.prior(gp, X, plan=plan).condition(sites()), likelihood, Y)

    bound().backward()
    raw = gp.kernel.base_kernel.raw_lengthscale
    step, found = 1e-5, raw.grad.item()
    values = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            raw += sign * step
            values.append(bound().item())
            raw -= sign * step
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_fits_like_its_neighbours() -> None:
    gp, likelihood = process(), GaussianLikelihood(noise=0.5)
    result = fit(gp, NeighborInducing(40, 15), likelihood, X, Y, max_iter=40)
    other = fit(process(), Exact(), GaussianLikelihood(noise=0.5), X, Y, max_iter=40)
    assert abs(result.objective - other.objective) < 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_and_dtypes(dtype: torch.dtype) -> None:
    gp = process(2).to(dtype)
    approximation = NeighborInducing(inducing_points=X[:15].to(dtype), num_neighbors=6)
    with torch.no_grad():
        part = sites()
        q = approximation.prior(gp, X.to(dtype)).condition(
            Sites(part.lam1.to(dtype), part.lam2.to(dtype))
        )
        new = X[:3].to(dtype) + 0.1
        expected = q.predict(new)
        assert expected.mean.shape == (2, 3) and expected.mean.dtype == dtype
        for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q.detach()))):
            assert torch.equal(other.predict(new).variance, expected.variance)
        joint = q.predict(new, joint=True)
        close(joint.variance, expected.variance, 1e-2)
        assert q.rsample((5,), new).values.shape == (5, 2, 3)
    loaded = NeighborInducing(15, 6)
    loaded.load_state_dict(approximation.state_dict())
    assert torch.equal(loaded.inducing_points, approximation.inducing_points)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="num_inducing"):
        NeighborInducing()
    with pytest.raises(InputError, match="objective is 'other'"):
        NeighborInducing(5, objective="other")
    with pytest.raises(InputError, match="num_neighbors is 0"):
        NeighborInducing(5, 0)
    with pytest.raises(InputError, match="nugget"):
        NeighborInducing(5, nugget=0.0)
    approximation = NeighborInducing(inducing_points=X[:5])
    wrong = X.clone()
    wrong[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        approximation.prior(process(), wrong)
    prior = approximation.prior(process(), X)
    with pytest.raises((InputError, UnsupportedError)):
        prior.condition(Sites(Y, -torch.ones_like(Y)))
