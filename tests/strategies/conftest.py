"""Small GPyTorch models as a user would write them, and data for them."""

from collections.abc import Callable

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import InducingPoints, White
from gpvi.kernels import WhiteKernel
from gpvi.strategies import SiteStrategy


class Model(gpytorch.models.ApproximateGP):
    """A user's model: a strategy, a mean, a kernel."""

    def __init__(
        self,
        make_strategy: Callable,
        kernel: gpytorch.kernels.Kernel | None = None,
        mean: gpytorch.means.Mean | None = None,
        features: torch.nn.Module | None = None,
    ) -> None:
        super().__init__(make_strategy(self))
        self.mean_module = gpytorch.means.ConstantMean() if mean is None else mean
        if kernel is None:
            kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
            kernel.base_kernel.lengthscale = 0.3
        self.covar_module = kernel
        self.features = features
        self.double()

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        x = x if self.features is None else self.features(x)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class Rows:
    """Inputs on a line, inducing inputs on a grid, targets for each kind of likelihood."""

    def __init__(self, size: int = 40, num_inducing: int = 7) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(size, 1, dtype=torch.float64, generator=generator)
        self.z = torch.linspace(0.05, 0.95, num_inducing, dtype=torch.float64).unsqueeze(-1)
        latent = torch.sin(6.0 * self.x[:, 0])
        noise = torch.randn(size, dtype=torch.float64, generator=generator)
        uniform = torch.rand(size, dtype=torch.float64, generator=generator)
        self.y = latent + 0.1 * noise
        self.labels = (uniform < torch.special.ndtr(2.0 * latent)).double()
        self.counts = torch.poisson(torch.exp(latent), generator=generator)

    def targets(self, likelihood: gpytorch.likelihoods.Likelihood) -> Tensor:
        """Targets that a likelihood can explain."""
        name = type(likelihood).__name__
        if name.startswith("Bernoulli"):
            return self.labels
        return self.counts if name.startswith("Poisson") else self.y


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def make_rows() -> type[Rows]:
    return Rows


@pytest.fixture
def make_model() -> type[Model]:
    return Model


@pytest.fixture
def sparse_model(rows: Rows) -> Callable[..., Model]:
    """A model with tied sites; keyword arguments go to the strategy."""

    def make(**options: object) -> Model:
        def strategy(model: Model) -> SiteStrategy:
            approximation = InducingPoints(inducing_points=rows.z, jitter=1e-12)
            return SiteStrategy(model, approximation, **options)

        return Model(strategy)

    return make


@pytest.fixture
def white_model(rows: Rows) -> Callable[..., Model]:
    """A model of independent rows; keyword arguments go to the strategy."""

    def make(**options: object) -> Model:
        return Model(
            lambda model: SiteStrategy(model, White(), train_inputs=rows.x, **options),
            kernel=WhiteKernel(),
        )

    return make
