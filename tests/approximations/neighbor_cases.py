"""Problems of neighbour-given inducing points, and their model as dense algebra."""

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations import (
    GaussianProcess,
    NeighborInducing,
    NeighborInducingPrior,
    Sites,
)
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
