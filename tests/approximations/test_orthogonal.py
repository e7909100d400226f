"""Orthogonal blocks of inducing variables, and any inter-domain features as a basis."""

import copy
import pickle

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi import GPRegressor
from gpvi.approximations import (
    Approximation,
    Exact,
    GaussianProcess,
    InducingPoints,
    InterDomain,
    InterDomainFeatures,
    Orthogonal,
    Sites,
    SparseInverseCholesky,
)
from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.inference import cvi, elbo, fit
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood

NOISE = 0.1


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def process(batch: int | None = None, seed: int = 3) -> GaussianProcess:
    shape = torch.Size([] if batch is None else [batch])
    base = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=2, batch_shape=shape)
    kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=shape).double()
    base.lengthscale = 0.3 + uniform(*shape, 1, 2, seed=seed)
    kernel.outputscale = 0.7 + uniform(*shape, seed=seed + 1)
    mean = gpytorch.means.ConstantMean(batch_shape=shape).double()
    mean.constant.data.copy_(0.5 * uniform(*shape, seed=seed + 2))
    return GaussianProcess(kernel, mean)


X, Z, V = 2 * uniform(30, 2), 2 * uniform(6, 2, seed=1), 2 * uniform(4, 2, seed=2)
Y = torch.sin(3 * X[:, 0]) + X[:, 1]
NEW = 2 * uniform(5, 2, seed=9)


def points(z: Tensor) -> InducingPoints:
    return InducingPoints(inducing_points=z)


def orthogonal(q: str, first: Tensor = Z, second: Tensor = V) -> Orthogonal:
    return Orthogonal(points(first), points(second), q=q, jitter=1e-10)


def sites(y: Tensor = Y, noise: float = NOISE) -> Sites:
    return Sites(y / noise, torch.full_like(y, 1.0 / noise))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Averages(torch.nn.Module):
    """Averages of the function over pairs of points: inducing variables that are no values of it."""

    def __init__(self, pairs: Tensor) -> None:
        super().__init__()
        self.pairs = torch.nn.Parameter(pairs)

    @property
    def basis_shape(self) -> torch.Size:
        return self.pairs.shape[:-2]

    def initialize(self, gp, x, generator=None) -> None:
        """They are there already."""

    def map_inputs(self, transform) -> None:
        self.pairs.data = transform(self.pairs.data)

    def Kuu(self, kernel):
        rows = self.pairs.flatten(0, 1)
        return (
            kernel(rows).to_dense().unflatten(-1, (-1, 2)).mean(-1).unflatten(-2, (-1, 2)).mean(-2)
        )

    def Kuf(self, kernel, x):
        return kernel(self.pairs.flatten(0, 1), x).to_dense().unflatten(-2, (-1, 2)).mean(-2)


def test_both_blocks_together_are_inducing_points() -> None:
    with torch.no_grad():
        ours = orthogonal("joint").prior(process(), X).condition(sites())
        theirs = (
            InducingPoints(inducing_points=torch.cat([Z, V]), jitter=1e-10)
            .prior(process(), X)
            .condition(sites())
        )
        close(ours.log_partition, theirs.log_partition)
        close(ours.predict(NEW).mean, theirs.predict(NEW).mean)
        close(ours.predict(NEW).variance, theirs.predict(NEW).variance)
        close(ours.kl(), theirs.kl())


def test_blocks_keep_the_joint_mean_and_their_own_precision() -> None:
    with torch.no_grad():
        joint = orthogonal("joint").prior(process(), X).condition(sites())
        block = orthogonal("block").prior(process(), X).condition(sites())
        close(block.predict(NEW).mean, joint.predict(NEW).mean)
        F = block.prior.features
        precision = torch.eye(10, dtype=torch.float64) + F @ F.mT / NOISE
        precision[:6, 6:], precision[6:, :6] = 0.0, 0.0
        close(block.marginals().explained, (F * torch.linalg.solve(precision, F)).sum(0))


@pytest.mark.parametrize("q", ["block", "delta"])
@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_gradients_are_those_of_the_bound_solved_anew(q: str, kind: str) -> None:
    gaussian = kind == "gaussian"
    likelihood = GaussianLikelihood(noise=NOISE) if gaussian else BernoulliLikelihood()
    y = Y if gaussian else (Y > 1.0).double()
    gp, approximation = process(), orthogonal(q)
    raw = gp.kernel.base_kernel.raw_lengthscale

    def best() -> tuple[float, Sites]:
        with torch.no_grad():
            result = cvi(approximation.prior(gp, X), likelihood, y, tolerance=1e-13)
        return result.objective, result.sites

    held = best()[1]
    elbo(approximation.prior(gp, X).condition(held), likelihood, y).backward()
    found, values, step = raw.grad[0, 0].item(), [], 1e-4
    for sign in (1.0, -1.0):
        with torch.no_grad():
            raw[0, 0] += sign * step
            values.append(best()[0])
            raw[0, 0] -= sign * step
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("features", [False, True], ids=["points", "features"])
@pytest.mark.parametrize("q", ["block", "delta"])
def test_everything_is_differentiable(q: str, features: bool) -> None:
    """In sites (a zero one too), inputs, hyperparameters and both blocks; the mean by its own adjoint."""
    base = Averages(2 * uniform(5, 2, 2, seed=4)) if features else points(Z)
    modules = torch.nn.ModuleDict({"gp": process(), "pair": Orthogonal(base, points(V), q=q)})

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = modules

        def forward(self, x: Tensor, lam1: Tensor, lam2: Tensor) -> Tensor:
            prior, own = self.parts["pair"].prior(self.parts["gp"], x), Sites(lam1, lam2)
            found = []
            for posterior in (prior.condition(own), prior.condition(prior.tie(own))):
                here, there = posterior.marginals(), posterior.predict(NEW)
                draw = posterior.rsample((1,), generator=torch.Generator().manual_seed(0))
                found += [posterior.log_partition, posterior.kl(), here.mean, here.explained]
                found += [there.mean, there.variance, draw.values, posterior.log_ratio(draw)]
            return torch.cat([value.flatten() for value in found])

    outputs = Outputs()
    names = [name for name, _ in outputs.named_parameters()]

    def function(x: Tensor, lam1: Tensor, lam2: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(outputs, state, (x, lam1, lam2))

    lam2 = 1.0 + uniform(30, seed=5)
    lam2[3] = 0.0
    inputs = [value.detach().clone() for value in (X, Y * lam2, lam2, *outputs.parameters())]
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("q", ["block", "delta"])
def test_second_derivatives_are_refused(q: str) -> None:
    lam1 = sites().lam1.requires_grad_()
    posterior = orthogonal(q).prior(process(), X).condition(Sites(lam1, sites().lam2))
    for value in (posterior.log_partition, posterior.kl()):
        with pytest.raises(UnsupportedError, match="create_graph"):
            torch.autograd.grad(value, lam1, create_graph=True, retain_graph=True)


def test_precisions_that_are_negative_across_blocks_are_refused() -> None:
    """Both diagonal blocks are positive definite, so only the solve for the mean can tell."""
    prior = orthogonal("block").prior(process(), X)
    lam2 = torch.zeros(10, 10, dtype=torch.float64)
    lam2[0, 7] = lam2[7, 0] = 3.0
    lam1 = torch.eye(10, dtype=torch.float64)[0] - torch.eye(10, dtype=torch.float64)[7]
    with torch.no_grad(), pytest.raises(NumericalError, match="precision of both blocks"):
        prior.condition(Sites(lam1, lam2, "whitened"))


@pytest.mark.parametrize("q", ["joint", "block", "delta"])
def test_minibatches_of_rows_are_unbiased(q: str) -> None:
    gp, likelihood, approximation = process(), GaussianLikelihood(noise=NOISE), orthogonal(q)
    with torch.no_grad():
        whole = approximation.prior(gp, X)
        tied = whole.tie(sites())
        expected = elbo(whole.condition(tied), likelihood, Y)
        values, lam2 = [], 0.0
        for rows in torch.arange(30).split(6):
            prior = approximation.prior(gp, X[rows])
            values.append(elbo(prior.condition(tied), likelihood, Y[rows], 30))
            lam2 = lam2 + prior.tie(sites(Y[rows])).lam2
    close(torch.stack(values).mean(0), expected, 1e-8)
    close(lam2, tied.lam2, 1e-8)


def test_other_domains() -> None:
    gp, likelihood = process(), GaussianLikelihood(noise=NOISE)
    features = Averages(2 * uniform(8, 2, 2, seed=4))
    assert isinstance(features, InterDomainFeatures)
    prior = InterDomain(features).prior(gp, X)
    with torch.no_grad():
        Kuf = features.Kuf(gp.kernel, X)
        Q = Kuf.mT @ torch.linalg.solve(features.Kuu(gp.kernel), Kuf)
        close(prior.residual, (gp.covariance(X) - Q).diagonal(), 1e-4)
        covariance = Q + NOISE * torch.eye(30, dtype=torch.float64)
        joint = torch.distributions.MultivariateNormal(gp.mean(X), covariance)
        dense = joint.log_prob(Y) - 0.5 * prior.residual.sum() / NOISE
    value = elbo(prior.condition(sites()), likelihood, Y)
    close(value.detach(), dense, 1e-4)
    value.backward()
    assert bool(torch.isfinite(features.pairs.grad).all()) and bool(features.pairs.grad.any())
    both = Orthogonal(features, points(V)).prior(gp, X)
    with torch.no_grad():
        assert bool((both.residual <= prior.residual + 1e-6).all())
        better = elbo(both.condition(sites()), likelihood, Y)
        assert value.item() < better.item() < cvi(Exact().prior(gp, X), likelihood, Y).objective
    # What is finished does not move with its features.
    finished = prior.detach().condition(sites())
    before = finished.predict(NEW).mean
    features.pairs.data.add_(0.3)
    assert torch.equal(finished.predict(NEW).mean, before)
    with pytest.raises(UnsupportedError, match="function"):
        finished.path_weights(lambda inputs: inputs[..., 0].unsqueeze(0), torch.Generator())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", ["joint", "block", "delta"])
def test_batches_copies_and_dtypes(q: str, dtype: torch.dtype) -> None:
    gp, own = process(2).to(dtype), sites()
    blocks = [InducingPoints(inducing_points=part.to(dtype)) for part in (Z, V)]
    with torch.no_grad():
        posterior = (
            Orthogonal(*blocks, q=q)
            .prior(gp, X.to(dtype))
            .condition(Sites(own.lam1.to(dtype), own.lam2.to(dtype)))
        )
        expected = posterior.predict(NEW.to(dtype))
        assert expected.mean.shape == (2, 5) and expected.mean.dtype == dtype
        copied = pickle.loads(pickle.dumps(posterior.detach()))
        for other in (copy.deepcopy(posterior), copied, posterior.compact()):
            close(other.predict(NEW.to(dtype)).variance, expected.variance, 1e-3)
        draw = posterior.rsample((3,))
        assert draw.values.shape == (3, 2, 30) and posterior.log_ratio(draw).shape == (3, 2)


def test_divergence_is_the_mean_of_log_ratios() -> None:
    with torch.no_grad():
        posterior = orthogonal("block").prior(process(), X).condition(sites())
        draw = posterior.rsample((20_000,), generator=torch.Generator().manual_seed(0))
        ratio = -posterior.log_ratio(draw)
    assert ratio.mean().item() == pytest.approx(posterior.kl().item(), abs=0.1)


def test_choosing_points_and_fitting() -> None:
    """Greedy blocks are the first and the next of the greedy inducing points."""

    def fitted(approximation: Approximation) -> float:
        generator, likelihood = torch.Generator().manual_seed(5), GaussianLikelihood(noise=0.3)
        return fit(
            process(), approximation, likelihood, X, Y, max_iter=200, generator=generator
        ).objective

    approximation = Orthogonal(InducingPoints(5), InducingPoints(4), q="block")
    block, whole = fitted(approximation), fitted(InducingPoints(9))
    joint = fitted(Orthogonal(InducingPoints(5), InducingPoints(4)))
    assert approximation.inducing_points.shape == (9, 2)
    assert joint == pytest.approx(whole, abs=1e-3)
    assert abs(block - whole) < 3.0
    moved = copy.deepcopy(approximation)
    moved.map_inputs(lambda z: 2.0 * z)
    close(moved.inducing_points.detach(), 2.0 * approximation.inducing_points.detach())


@pytest.mark.filterwarnings("ignore:The fit is not converged")
def test_by_name() -> None:
    model = GPRegressor(approximation="orthogonal", num_inducing=12, max_iter=30, random_state=0)
    assert model.fit(X.numpy(), Y.numpy()).score(X.numpy(), Y.numpy()) > 0.95
    assert model.approximation_.q == "block"
    with pytest.raises(InputError, match="at least 2"):
        GPRegressor(approximation="orthogonal", num_inducing=1).fit(X.numpy(), Y.numpy())


def test_bad_input() -> None:
    with pytest.raises(InputError, match="q is 'other'"):
        orthogonal("other")
    with pytest.raises(UnsupportedError, match="only be InducingPoints"):
        Orthogonal(points(Z), SparseInverseCholesky(5))
    same = points(Z)
    with pytest.raises(InputError, match="same object"):
        Orthogonal(same, same)
    with pytest.raises(InputError, match="pass InducingPoints or another module"):
        InterDomain(torch.nn.Linear(2, 2))
