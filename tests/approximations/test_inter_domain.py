"""Inter-domain features: a class with closed forms, against inducing points, quadrature and dense algebra."""

import copy
import math
import pickle
from collections.abc import Callable

import gpytorch
import numpy as np
import pytest
import torch
from torch import Tensor

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    InducingPoints,
    InterDomain,
    InterDomainFeatures,
    Orthogonal,
    Sites,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import cvi, elbo
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood

NOISE = 0.1


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def process(batch: int | None = None) -> GaussianProcess:
    shape = torch.Size([] if batch is None else [batch])
    base = gpytorch.kernels.RBFKernel(batch_shape=shape)
    kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=shape).double()
    base.lengthscale = 0.3 + 0.2 * uniform(*shape, 1, 1, seed=3)
    kernel.outputscale = 0.7 + uniform(*shape, seed=4)
    mean = gpytorch.means.ConstantMean(batch_shape=shape).double()
    mean.constant.data.copy_(0.5 * uniform(*shape, seed=5))
    return GaussianProcess(kernel, mean)


X, Z = 2 * uniform(24, 1), 2 * uniform(7, 1, seed=1).sort(0).values
Y = torch.sin(3 * X[:, 0]) + 0.3 * uniform(24, seed=6)
NEW = 2 * uniform(5, 1, seed=9)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def sites(y: Tensor = Y) -> Sites:
    return Sites(y / NOISE, torch.full_like(y, 1.0 / NOISE))


class Blurred(torch.nn.Module):
    """The function smoothed by Gaussian windows of one width, under a scaled RBF kernel of one input."""

    centres: torch.nn.Parameter | None

    def __init__(self, centres: Tensor | None, width: float) -> None:
        super().__init__()
        self.width = width
        self.register_parameter("centres", None)
        if centres is not None:
            self.centres = torch.nn.Parameter(centres.clone())

    @property
    def basis_shape(self) -> torch.Size | None:
        return None if self.centres is None else self.centres.shape[:-1]

    def initialize(
        self, gp: GaussianProcess, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        if self.centres is None:
            self.centres = torch.nn.Parameter(x.detach()[:7].clone())

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        self.centres.data = transform(self.centres.data)

    def Kuu(self, kernel: gpytorch.kernels.Kernel) -> Tensor:
        return self._between(kernel, self.centres, 2.0)

    def Kuf(self, kernel: gpytorch.kernels.Kernel, x: Tensor) -> Tensor:
        return self._between(kernel, x, 1.0)

    def _between(self, kernel: gpytorch.kernels.Kernel, other: Tensor, windows: float) -> Tensor:
        lengthscale = kernel.base_kernel.lengthscale
        wide = lengthscale.square() + windows * self.width**2
        gap = self.centres - other.mT
        scale = kernel.outputscale[..., None, None] * lengthscale / wide.sqrt()
        return scale * torch.exp(-0.5 * gap.square() / wide)


def blurred(centres: Tensor = Z, width: float = 0.1, jitter: float | None = 1e-10) -> InterDomain:
    return InterDomain(Blurred(centres, width), jitter=jitter)


def test_features_of_no_width_are_inducing_points() -> None:
    gp = process()
    theirs = InducingPoints(inducing_points=Z, jitter=1e-10).prior(gp, X)
    wrapped = InterDomain(InducingPoints(inducing_points=Z), jitter=1e-10).prior(gp, X)
    with torch.no_grad():
        expected = theirs.condition(sites())
        for prior in (blurred(width=0.0).prior(gp, X), wrapped):
            found = prior.condition(sites())
            close(found.log_partition, expected.log_partition)
            close(found.kl(), expected.kl())
            close(prior.residual, theirs.residual)
            close(found.predict(NEW).mean, expected.predict(NEW).mean)
            close(found.predict(NEW).variance, expected.predict(NEW).variance)


def test_covariances_are_integrals_over_the_windows() -> None:
    """The test's own closed forms, so that the tests below stand on something."""
    gp, features = process(), Blurred(Z, 0.1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    steps = 0.1 * torch.as_tensor(nodes)
    shares = torch.as_tensor(weights) / math.sqrt(2 * math.pi)
    spread = (Z + steps).reshape(-1, 1)
    with torch.no_grad():
        Kuf = gp.covariance(spread, X).reshape(7, 40, 24)
        Kuu = gp.covariance(spread).reshape(7, 40, 7, 40)
        close(features.Kuf(gp.kernel, X), torch.einsum("mkn,k->mn", Kuf, shares))
        close(features.Kuu(gp.kernel), torch.einsum("mknl,k,l->mn", Kuu, shares, shares))


def test_bound_is_that_of_dense_algebra_and_below_the_evidence() -> None:
    gp, likelihood, approximation = process(), GaussianLikelihood(noise=NOISE), blurred()
    prior = approximation.prior(gp, X)
    with torch.no_grad():
        Kuf = approximation.features.Kuf(gp.kernel, X)
        Kuu = approximation.features.Kuu(gp.kernel)
        Kuu = Kuu + 1e-10 * Kuu.diagonal().mean() * torch.eye(7, dtype=torch.float64)
        Q = Kuf.mT @ torch.linalg.solve(Kuu, Kuf)
        covariance = Q + NOISE * torch.eye(24, dtype=torch.float64)
        dense = torch.distributions.MultivariateNormal(gp.mean(X), covariance).log_prob(Y)
        dense = dense - 0.5 * (gp.variance(X) - Q.diagonal()).sum() / NOISE
        bound = elbo(prior.condition(sites()), likelihood, Y)
        close(bound, dense, 1e-5)
        assert bound.item() <= cvi(Exact().prior(gp, X), likelihood, Y).objective + 1e-8


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_gradients_with_sites_held_are_total(kind: str) -> None:
    gaussian = kind == "gaussian"
    likelihood = GaussianLikelihood(noise=NOISE) if gaussian else BernoulliLikelihood()
    y = Y if gaussian else (Y > 0.2).double()
    gp, approximation = process(), blurred(jitter=1e-8)
    names = {"lengthscale": gp.kernel.base_kernel.raw_lengthscale}
    names["centres"] = approximation.features.centres

    def best() -> tuple[float, Sites]:
        with torch.no_grad():
            result = cvi(approximation.prior(gp, X), likelihood, y, tolerance=1e-13)
        return result.objective, result.sites

    elbo(approximation.prior(gp, X).condition(best()[1]), likelihood, y).backward()
    step = 1e-4
    for parameter in names.values():
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter[0, 0] += sign * step
                values.append(best()[0])
                parameter[0, 0] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert parameter.grad[0, 0].item() == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_minibatches_of_rows_are_unbiased() -> None:
    gp, likelihood, approximation = process(), BernoulliLikelihood(), blurred()
    labels = (Y > 0.2).double()
    with torch.no_grad():
        whole = approximation.prior(gp, X)
        tied = whole.tie(cvi(whole, likelihood, labels).sites)
        expected = elbo(whole.condition(tied), likelihood, labels)
        parts = []
        for rows in torch.arange(24).split(6):
            posterior = approximation.prior(gp, X[rows]).condition(tied)
            parts.append(elbo(posterior, likelihood, labels[rows], 24))
    close(torch.stack(parts).mean(0), expected, 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_and_dtypes(dtype: torch.dtype) -> None:
    """Every latent function has centres and hyperparameters of its own."""
    gp, approximation = process(2), blurred(torch.stack([Z, Z + 0.05]), jitter=1e-5)
    pair = gp.to(dtype), approximation.to(dtype)
    own = Sites(sites().lam1.to(dtype), sites().lam2.to(dtype))
    with torch.no_grad():
        prior = pair[1].prior(pair[0], X.to(dtype))
        posterior = prior.condition(own)
        moments = posterior.predict(NEW.to(dtype))
        assert prior.features.shape == (2, 7, 24)
        assert moments.mean.shape == (2, 5) and moments.mean.dtype == dtype
        assert posterior.log_partition.shape == (2,)
        draw = posterior.rsample((3,), generator=torch.Generator().manual_seed(0))
        assert draw.values.shape == (3, 2, 24) and posterior.log_ratio(draw).shape == (3, 2)
        again = process(2), blurred(torch.stack([Z, Z + 0.05]), jitter=1e-5)
        reference = again[1].prior(again[0], X).condition(sites()).predict(NEW)
    close(moments.mean.double(), reference.mean, 1e-2 if dtype == torch.float32 else 1e-10)


def test_copies_and_state() -> None:
    gp, approximation = process(), blurred()
    with torch.no_grad():
        expected = approximation.prior(gp, X).condition(sites()).predict(NEW).variance
        restored = blurred(torch.zeros_like(Z))
        restored.load_state_dict(approximation.state_dict())
        copied = pickle.loads(pickle.dumps(approximation))
        for other in (restored, copied, copy.deepcopy(approximation)):
            close(other.prior(gp, X).condition(sites()).predict(NEW).variance, expected, 1e-12)
        finished = approximation.prior(gp, X).condition(sites()).detach()
        for other in (pickle.loads(pickle.dumps(finished)), finished.compact()):
            close(other.predict(NEW).variance, expected, 1e-8)


def test_a_finished_posterior_stays_when_its_features_move() -> None:
    gp, approximation = process(), blurred()
    with torch.no_grad():
        posterior = approximation.prior(gp, X).condition(sites())
        before = posterior.predict(NEW).mean
        approximation.features.centres.add_(0.3)
        assert torch.equal(posterior.predict(NEW).mean, before)
        after = approximation.prior(gp, X).condition(sites()).predict(NEW).mean
    assert not torch.allclose(after, before)


def test_features_choose_and_move_themselves() -> None:
    gp, approximation = process(), InterDomain(Blurred(None, 0.1))
    assert approximation.basis_shape is None
    approximation.initialize(gp, X)
    assert approximation.basis_shape == (7,)
    chosen = approximation.features.centres.detach().clone()
    approximation.initialize(gp, X + 1.0)
    assert torch.equal(approximation.features.centres, chosen)
    approximation.map_inputs(lambda z: 2.0 * z + 1.0)
    close(approximation.features.centres.detach(), 2.0 * chosen + 1.0)


class Covariances:
    """A process without a kernel."""

    batch_shape = torch.Size()

    def snapshot(self) -> "Covariances":
        return self

    def mean(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])

    def covariance(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        return torch.exp(-(x1 - (x1 if x2 is None else x2).mT).square())

    def variance(self, x: Tensor) -> Tensor:
        return x.new_ones(x.shape[:-1])


def test_refusals() -> None:
    assert isinstance(Blurred(Z, 0.1), InterDomainFeatures)
    with pytest.raises(InputError, match="pass its features"):
        InterDomain(blurred())
    with pytest.raises(InputError, match="base is an InterDomain"):
        Orthogonal(blurred(), InducingPoints(3))
    with pytest.raises(InputError, match="jitter of its own"):
        InterDomain(InducingPoints(inducing_points=Z, jitter=1e-6))
    with pytest.raises(InputError, match="jitter is"):
        blurred(jitter=1.5)
    with pytest.raises(InputError, match="have not been chosen"):
        InterDomain(InducingPoints(3)).prior(process(), X)
    with pytest.raises(UnsupportedError, match="need a kernel"):
        blurred().prior(Covariances(), X)
    posterior = blurred().prior(process(), X).condition(sites())
    with pytest.raises(UnsupportedError, match="not made of function values"):
        posterior.path_weights(lambda z: z[..., 0].unsqueeze(0), torch.Generator())
