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
from gpvi.exceptions import AccuracyWarning, InputError
from gpvi.inference import cvi
from gpvi.kernels import ArcCosineKernel, ZonalKernel
from gpvi.kernels._gegenbauer import multiplicities
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


@pytest.mark.parametrize("activation", ["softplus", "shifted_softplus", "exponential"])
def test_covariances_are_the_outputs_of_units(activation: str) -> None:
    gp, x, w = process(ZonalKernel("matern52")), inputs(20, 2), inputs(5, 3, seed=1)
    features = SphericalActivationFeatures(activation=activation, directions=w, num_levels=20)
    lengthscale, bias = gp.kernel.base_kernel.lengthscale, gp.kernel.base_kernel.bias
    lifted = torch.cat([x / lengthscale, bias.expand(20, 1)], -1)
    t = (w / w.norm(dim=-1, keepdim=True)) @ (lifted / lifted.norm(dim=-1, keepdim=True)).mT
    outputs = {
        "softplus": torch.nn.functional.softplus(t),
        "shifted_softplus": torch.nn.functional.softplus(t - 0.3),
        "exponential": (2.0 * t).exp(),
    }[activation]
    torch.testing.assert_close(features.Kuf(gp.kernel, x), outputs, atol=1e-6, rtol=1e-6)
    unscaled = features.Kuu(gp.kernel.base_kernel)
    torch.testing.assert_close(features.Kuu(gp.kernel), unscaled / gp.kernel.outputscale)


def test_softplus_under_the_arc_cosine_kernel_grows_with_the_inputs() -> None:
    gp, x, w = process(ArcCosineKernel()), inputs(20, 2), inputs(5, 3, seed=1)
    features = SphericalActivationFeatures(directions=w, num_levels=20)
    lifted = torch.cat([x / gp.kernel.base_kernel.lengthscale, torch.ones(20, 1)], -1)
    r = lifted.norm(dim=-1)
    t = (w / w.norm(dim=-1, keepdim=True)) @ (lifted / r[:, None]).mT
    expected = r * torch.nn.functional.softplus(t)
    torch.testing.assert_close(features.Kuf(gp.kernel, x), expected, atol=1e-6, rtol=1e-6)


def test_relu_units_get_worse_with_every_level() -> None:
    """Their norms grow without bound; the number that is chosen stops before that."""
    gp, x = process(ArcCosineKernel()), inputs(200, 4)

    def left(num_levels: int | None) -> float:
        features = SphericalActivationFeatures(32, "relu", num_levels=num_levels)
        approximation = InterDomain(features)
        if num_levels is None:
            approximation.initialize(gp, x, seeded())
        else:
            with pytest.warns(AccuracyWarning, match="rougher than functions of the process"):
                approximation.initialize(gp, x, seeded())
        with torch.no_grad():
            return float(approximation.prior(gp, x).residual.mean())

    eight, sixteen = left(8), left(16)
    assert left(None) < 0.2 * eight < 0.2 * sixteen


@pytest.mark.parametrize("activation", ["softplus", "relu", "exponential", "learnable"])
def test_derivatives_of_both_covariances(activation: str) -> None:
    w, x = inputs(3, 3), inputs(4, 2, seed=1).requires_grad_()
    features = SphericalActivationFeatures(activation=activation, directions=w, num_levels=5)
    kernel = process(ZonalKernel("matern52", ard_num_dims=2)).kernel

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.kernel = features, kernel

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.features.Kuu(self.kernel), self.features.Kuf(self.kernel, x)

    module = Both()
    names = [name for name, _ in module.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert len(names) == (7 if activation == "learnable" else 5)

    def function(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, parameters, (x,))

    assert torch.autograd.gradcheck(function, (x, *values))


@pytest.mark.parametrize("name", FEATURES)
def test_batches_of_kernels(name: str) -> None:
    kernel = ZonalKernel("matern32", batch_shape=torch.Size([2]))
    kernel = gpytorch.kernels.ScaleKernel(kernel, batch_shape=torch.Size([2])).double()
    kernel.outputscale = torch.tensor([0.5, 2.0])
    kernel.base_kernel.sphere_lengthscale = torch.tensor([0.6, 1.4])
    kernel.base_kernel.bias = torch.tensor([0.8, 1.2])
    gp, x, features = GaussianProcess(kernel), inputs(20, 2), FEATURES[name]()
    features.initialize(gp, x, seeded())
    for element in range(2):
        one = gpytorch.kernels.ScaleKernel(kernel.base_kernel[element]).double()
        one.outputscale = kernel.outputscale[element].detach()
        Kuu = features.Kuu(kernel)
        torch.testing.assert_close(Kuu[element] if Kuu.dim() > 2 else Kuu, features.Kuu(one))
        torch.testing.assert_close(features.Kuf(kernel, x)[element], features.Kuf(one, x))


def test_batches_of_directions() -> None:
    kernel, x, w = process(ZonalKernel("matern32")).kernel, inputs(20, 2), inputs(12, 3)
    made = [
        SphericalActivationFeatures(activation="learnable", directions=v, num_levels=6)
        for v in (w.reshape(2, 6, 3), w[6:])
    ]
    torch.testing.assert_close(made[0].Kuu(kernel)[1], made[1].Kuu(kernel))
    torch.testing.assert_close(made[0].Kuf(kernel, x)[1], made[1].Kuf(kernel, x))


@pytest.mark.parametrize("name", FEATURES)
def test_states_load_into_fresh_features(name: str) -> None:
    gp, x, features = process(ZonalKernel("matern32")), inputs(40, 2), FEATURES[name]()
    features.initialize(gp, x, seeded())
    other = FEATURES[name]()
    other.load_state_dict(features.state_dict())
    other.initialize(gp, inputs(10, 2, seed=5))  # there already: nothing happens
    for loaded in (other, copy.deepcopy(features), pickle.loads(pickle.dumps(features))):
        assert torch.equal(loaded.Kuu(gp.kernel), features.Kuu(gp.kernel))
        assert torch.equal(loaded.Kuf(gp.kernel, x), features.Kuf(gp.kernel, x))


def test_harmonics_take_the_levels_that_the_kernel_has() -> None:
    x = inputs(5, 2)
    for kernel, counts in (
        (ArcCosineKernel(), [1, 3, 5, 0, 9, 0, 13]),
        (ZonalKernel(), [1, 3, 5, 7]),
    ):
        features = SphericalHarmonicFeatures(num_features=31 if counts[3] == 0 else 16)
        features.initialize(process(kernel), x, seeded())
        assert features.levels.bincount().tolist() == counts
    with pytest.raises(InputError, match="harmonics, more than 4096"):
        SphericalHarmonicFeatures(num_levels=12).initialize(process(ZonalKernel()), inputs(5, 9))


def test_harmonics_are_the_leading_eigenfunctions() -> None:
    """What complete levels leave open is the sum of the other levels, at every input alike."""
    gp, x = process(ZonalKernel("matern52")), inputs(30, 3)
    approximation = InterDomain(SphericalHarmonicFeatures(num_levels=4))
    approximation.initialize(gp, x, seeded())
    shares = gp.kernel.base_kernel.eigenvalues(4, 4) * multiplicities(4, 4)
    expected = gp.kernel.outputscale * (1.0 - shares.sum())
    found = approximation.prior(gp, x).residual
    torch.testing.assert_close(found, expected.expand(30), rtol=1e-5, atol=1e-8)


def test_active_columns_and_wrong_numbers_of_columns() -> None:
    w, x = inputs(5, 3), inputs(6, 4)
    features = SphericalActivationFeatures(directions=w, num_levels=6)
    chosen = ZonalKernel(active_dims=(3, 1)).double()
    expected = features.Kuf(ZonalKernel().double(), x[:, [3, 1]])
    torch.testing.assert_close(features.Kuf(chosen, x), expected)
    with pytest.raises(InputError, match="3 coordinates, the bias included"):
        features.Kuf(ZonalKernel().double(), x)
    with pytest.raises(InputError, match="convert one of them"):
        features.Kuf(ZonalKernel(), x[:, :2].float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of num_features and directions"),
        ({"num_features": 0}, "num_features is 0"),
        ({"num_features": 3, "num_levels": 0}, "num_levels is 0"),
        ({"directions": torch.zeros(2, 3)}, "none of them the origin"),
        ({"directions": torch.ones(3)}, "shape"),
    ],
)
def test_impossible_options(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SphericalActivationFeatures(**arguments)


def test_before_initialize() -> None:
    for features in (SphericalActivationFeatures(3), SphericalHarmonicFeatures(num_levels=3)):
        with pytest.raises(InputError, match="call initialize"):
            features.Kuu(ZonalKernel())
