"""Inference and fits with a Markov prior equal those with the dense one."""

import gpytorch
import pytest
import torch

from gpvi.approximations import Exact, GaussianProcess, StateSpace
from gpvi.inference import cvi, elbo, fit
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

LIKELIHOODS = {
    "gaussian": lambda: GaussianLikelihood(noise=0.1),
    "bernoulli": BernoulliLikelihood,
    "poisson": PoissonLikelihood,
    "student-t": StudentTLikelihood,
    "gpytorch laplace": lambda: gpytorch.likelihoods.LaplaceLikelihood().double(),
    "gpytorch softmax": lambda: gpytorch.likelihoods.SoftmaxLikelihood(
        num_classes=3, mixing_weights=False
    ).double(),
}


def data(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Unsorted stamps with a repeated one, and targets of a kind."""
    generator = torch.Generator().manual_seed(4)
    t = 6 * torch.rand(30, dtype=torch.float64, generator=generator)
    t[9] = t[2]
    f = torch.sin(2 * t)
    noise = torch.rand(30, dtype=torch.float64, generator=generator)
    if "softmax" in name:
        return t.unsqueeze(-1), (f > 0.3).double() + (f > -0.3)
    if "bernoulli" in name:
        return t.unsqueeze(-1), (noise < torch.special.ndtr(2 * f)).double()
    if "poisson" in name:
        return t.unsqueeze(-1), torch.poisson((1 + f).exp(), generator=generator)
    return t.unsqueeze(-1), f + 0.3 * (noise - 0.5)


def process(name: str) -> GaussianProcess:
    batch = torch.Size([3]) if "softmax" in name else torch.Size()
    kernel = parse_kernel("matern32", 1, batch_shape=batch)
    return GaussianProcess(kernel, gpytorch.means.ConstantMean(batch_shape=batch).double())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_fixed_points_agree(name):
    x, y = data(name)
    results = [
        cvi(approximation.prior(process(name), x), LIKELIHOODS[name](), y, tolerance=1e-11)
        for approximation in (StateSpace(), Exact())
    ]
    ours, dense = results
    assert abs(ours.objective - dense.objective) < 1e-7
    torch.testing.assert_close(
        ours.posterior.marginals().mean, dense.posterior.marginals().mean, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "poisson", "student-t"])
def test_fits_agree(name):
    x, y = data(name)
    y[3] = torch.nan
    fitted = []
    for approximation in (StateSpace(), Exact()):
        gp = process(name)
        result = fit(gp, approximation, LIKELIHOODS[name](), x, y, max_iter=40)
        fitted.append((result.objective, gp.kernel.base_kernel.lengthscale.item()))
    assert abs(fitted[0][0] - fitted[1][0]) < 1e-3
    assert abs(fitted[0][1] / fitted[1][1] - 1) < 0.05


def test_weights_are_repeated_rows():
    x, y = data("poisson")
    weights = torch.ones(30).double()
    weights[[4, 7]] = 2.0
    again = torch.cat([torch.arange(30), torch.tensor([4, 7])])
    likelihood, gp = PoissonLikelihood(), process("poisson")
    weighted = cvi(StateSpace().prior(gp, x), likelihood, y, weights=weights, tolerance=1e-11)
    repeated = cvi(StateSpace().prior(gp, x[again]), likelihood, y[again], tolerance=1e-11)
    assert abs(weighted.objective - repeated.objective) < 1e-8


def test_series_of_unequal_length_share_their_hyperparameters():
    x, y = data("poisson")
    groups = (torch.arange(30) % 3 == 0).long()
    gp, likelihood = process("poisson"), PoissonLikelihood()
    result = fit(gp, StateSpace(), likelihood, x, y, groups=groups, max_iter=30)
    assert result.posterior.kl().shape == (2,)
    alone = [
        cvi(StateSpace().prior(gp, x[rows]), likelihood, y[rows], tolerance=1e-10).objective
        for rows in (groups == 0, groups == 1)
    ]
    assert abs(sum(alone) - result.objective) < 1e-3
    total = elbo(result.posterior, likelihood, y)
    assert total.shape == (2,)
