"""Inter-domain features on the sphere: consistent covariances, floors, and what uses them."""

import copy
import pickle

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi import GPRegressor
from gpvi.approximations import (
    Exact,
    GaussianProcess,
    InducingPoints,
    InterDomain,
    InterDomainFeatures,
    Orthogonal,
    Sites,
    SphericalActivationFeatures,
    SphericalHarmonicFeatures,
)
from gpvi.exceptions import InputError
from gpvi.inference import cvi
from gpvi.kernels import ArcCosineKernel, ZonalKernel
from gpvi.likelihoods import GaussianLikelihood


def inputs(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator)


def process(kernel: gpytorch.kernels.Kernel) -> GaussianProcess:
    kernel = gpytorch.kernels.ScaleKernel(kernel).double()
    kernel.outputscale = 1.7
    return GaussianProcess(kernel)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


FEATURES = {
    "softplus": lambda: SphericalActivationFeatures(24, "softplus"),
    "shifted_softplus": lambda: SphericalActivationFeatures(24, "shifted_softplus"),
    "exponential": lambda: SphericalActivationFeatures(24, "exponential"),
    "learnable": lambda: SphericalActivationFeatures(24, "learnable"),
    "harmonics": lambda: SphericalHarmonicFeatures(num_features=24),
}
KERNELS = {
    "matern32": lambda: ZonalKernel("matern32"),
    "rbf": lambda: ZonalKernel("rbf"),
    "arc-cosine": ArcCosineKernel,
}


@pytest.mark.parametrize("columns", [2, 4, 8])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", FEATURES)
def test_never_explain_more_than_there_is(name: str, kernel: str, columns: int) -> None:
    """K - Kfu Kuu^-1 Kuf is positive semi-definite: both covariances come from one truncation."""
    gp, x, features = process(KERNELS[kernel]()), inputs(50, columns), FEATURES[name]()
    features.initialize(gp, x, seeded())
    assert isinstance(features, InterDomainFeatures)
    with torch.no_grad():
        Kuu, Kuf = features.Kuu(gp.kernel), features.Kuf(gp.kernel, x)
        M = len(Kuu)
        assert features.basis_shape == (M,) and Kuf.shape == (M, 50)
        Kuu = Kuu + 1e-8 * Kuu.diagonal().mean() * torch.eye(M, dtype=torch.float64)
        rest = gp.covariance(x) - Kuf.mT @ torch.linalg.solve(Kuu, Kuf)
        assert float(torch.linalg.eigvalsh(rest).min()) > -1e-5
        assert float(rest.diagonal().mean()) < 0.9 * float(gp.variance(x).mean())


def test_harmonics_of_all_levels_explain_nearly_everything() -> None:
    gp, x = process(ZonalKernel("rbf")), inputs(40, 2)
    approximation = InterDomain(SphericalHarmonicFeatures(num_levels=12))
    approximation.initialize(gp, x, seeded())
    with torch.no_grad():
        residual = approximation.prior(gp, x).residual
        assert float(residual.max()) < 1e-6 * 1.7


def test_floor_of_softplus_and_what_lies_beneath() -> None:
    """No odd level above one: more units do not help, units of both parities do."""
    gp, x = process(ZonalKernel("matern52")), inputs(200, 2)

    def left(features: torch.nn.Module) -> float:
        approximation = InterDomain(features)
        approximation.initialize(gp, x, seeded())
        with torch.no_grad():
            return float((approximation.prior(gp, x).residual / gp.variance(x)).mean())

    floor = left(SphericalActivationFeatures(64, "softplus"))
    assert floor > 0.04
    assert left(SphericalActivationFeatures(128, "softplus")) > 0.04
    assert left(SphericalActivationFeatures(64, "exponential")) < 0.5 * floor


def test_orthogonal_points_repair_the_floor() -> None:
    gp, x = process(ZonalKernel("matern52")), inputs(150, 2)
    features = SphericalActivationFeatures(32, "softplus")
    alone = InterDomain(features)
    alone.initialize(gp, x, seeded())
    both = Orthogonal(features, InducingPoints(16))
    both.initialize(gp, x, seeded())
    with torch.no_grad():
        assert float(both.prior(gp, x).residual.mean()) < 0.5 * float(
            alone.prior(gp, x).residual.mean()
        )


def test_bound_is_below_the_exact_evidence() -> None:
    gp, x = process(ZonalKernel("matern32")), inputs(40, 2)
    y, likelihood = torch.sin(2 * x[:, 0]), GaussianLikelihood(noise=0.1)
    with torch.no_grad():
        exact = cvi(Exact().prior(gp, x), likelihood, y).objective
        for make in FEATURES.values():
            approximation = InterDomain(make())
            approximation.initialize(gp, x, seeded())
            assert cvi(approximation.prior(gp, x), likelihood, y).objective <= exact


def test_copies_and_states() -> None:
    gp, x = process(ZonalKernel("matern32")), inputs(30, 2)
    approximation = InterDomain(SphericalActivationFeatures(12, "learnable"))
    approximation.initialize(gp, x, seeded())
    sites = Sites(x[:, 0], torch.ones(30, dtype=torch.float64))
    with torch.no_grad():
        q = approximation.prior(gp, x).condition(sites)
        expected = q.predict(x[:4])
        for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q.detach()))):
            assert torch.equal(other.predict(x[:4]).variance, expected.variance)
    # A finished posterior does not move with its features.
    for parameter in approximation.parameters():
        parameter.data.add_(0.1)
    with torch.no_grad():
        assert torch.equal(q.predict(x[:4]).mean, expected.mean)


def test_gradients_reach_the_directions() -> None:
    gp, x = process(ZonalKernel("matern32")), inputs(30, 2)
    approximation = InterDomain(SphericalActivationFeatures(12, "learnable"))
    approximation.initialize(gp, x, seeded())
    approximation.prior(gp, x).residual.sum().backward()
    gradients = [p.grad for p in approximation.parameters() if p.requires_grad]
    assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)


def test_single_precision() -> None:
    gp, x = process(ZonalKernel("matern32")), inputs(30, 2).float()
    gp = gp.float()
    approximation = InterDomain(SphericalActivationFeatures(8, "exponential"))
    approximation.initialize(gp, x, seeded())
    with torch.no_grad():
        residual = approximation.prior(gp, x).residual
    assert residual.dtype == torch.float32 and bool((residual > 0).all())


@pytest.mark.filterwarnings("ignore:The fit is not converged")
def test_a_fit() -> None:
    x = inputs(200, 2)
    y = torch.sin(2 * x[:, 0]) * torch.cos(x[:, 1])
    model = GPRegressor(
        "zonal_matern52", approximation="spherical", num_inducing=40, max_iter=60, random_state=0
    )
    assert model.fit(x.numpy(), y.numpy()).score(x.numpy(), y.numpy()) > 0.8


def test_other_kernels_are_refused() -> None:
    gp, x = process(gpytorch.kernels.RBFKernel()), inputs(10, 2)
    for features in (SphericalActivationFeatures(4), SphericalHarmonicFeatures(num_features=4)):
        with pytest.raises(InputError, match="need a kernel on the sphere"):
            features.initialize(gp, x)
    with pytest.raises(InputError, match="need a kernel on the sphere"):
        GPRegressor("rbf", approximation="spherical").fit(x.numpy(), x[:, 0].numpy())
    with pytest.raises(InputError, match="activation is 'tanh'"):
        SphericalActivationFeatures(4, "tanh")
