"""Moments of a row given all others, against posteriors that never had its site."""

import gpytorch
import mpmath
import pytest
import torch
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, InducingPoints, Marginals, Sites
from gpvi.exceptions import NumericalError, UnsupportedError
from gpvi.linalg import default_jitter


def refitted(problem) -> Marginals:
    """Row by row: condition again with the row's site set to zero, and look at the row."""
    found = []
    for row in range(problem.x.shape[-2]):
        keep = torch.arange(problem.x.shape[-2]) != row
        sites = problem.sites.mask(keep)
        moments = problem.with_sites(sites.lam1, sites.lam2).posterior().marginals()
        found.append(
            (moments.mean[..., row], moments.explained[..., row], moments.variance[..., row])
        )
    mean, explained, variance = (torch.stack(values, -1) for values in zip(*found, strict=True))
    residual = problem.posterior().marginals().residual
    torch.testing.assert_close(variance, explained if residual is None else explained + residual)
    return Marginals(mean, explained, residual)


def assert_equal(actual: Marginals, expected: Marginals, **tolerance: float) -> None:
    torch.testing.assert_close(actual.mean, expected.mean, **tolerance)
    torch.testing.assert_close(actual.explained, expected.explained, **tolerance)
    assert (actual.residual is None) == (expected.residual is None)
    if expected.residual is not None:
        torch.testing.assert_close(actual.residual, expected.residual, **tolerance)


def test_equals_conditioning_without_the_row(problem):
    posterior = problem.posterior()
    actual = posterior.leave_one_out()
    assert_equal(actual, refitted(problem), rtol=1e-8, atol=1e-9)
    # The second row has no site.
    ordinary = posterior.marginals()
    torch.testing.assert_close(actual.mean[..., 1], ordinary.mean[..., 1])
    torch.testing.assert_close(actual.variance[..., 1], ordinary.variance[..., 1])
    assert_equal(posterior.detach().leave_one_out(), actual, rtol=1e-12, atol=1e-12)


def test_sites_of_negative_precision(problem):
    lam2 = problem.sites.lam2.clone()
    lam2[..., 0] = problem.entry.lowest_precision
    problem = problem.with_sites(problem.sites.lam1, lam2)
    assert_equal(problem.posterior().leave_one_out(), refitted(problem), rtol=1e-7, atol=1e-7)


def test_sites_without_precision_may_still_pull(problem):
    lam1 = problem.sites.lam1.clone()
    lam1[..., 1] = 0.7
    problem = problem.with_sites(lam1, problem.sites.lam2)
    assert_equal(problem.posterior().leave_one_out(), refitted(problem), rtol=1e-7, atol=1e-7)


def test_single_precision(problem):
    expected = problem.posterior().leave_one_out()
    actual = problem.to(torch.float32).posterior().leave_one_out()
    assert actual.mean.dtype == actual.variance.dtype == torch.float32
    torch.testing.assert_close(actual.mean.double(), expected.mean, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(actual.variance.double(), expected.variance, rtol=2e-3, atol=2e-3)


def test_gradients_are_those_of_conditioning_without_the_row(problem):
    lam1 = problem.sites.lam1.clone().requires_grad_()
    lam2 = problem.sites.lam2.clone().requires_grad_()
    problem = problem.with_sites(lam1, lam2)
    parameters = [lam1, lam2, *(p for p in problem.gp.parameters() if p.requires_grad)]
    gradients = []
    for moments in (problem.posterior().leave_one_out(), refitted(problem)):
        total = (moments.mean.sin() + moments.variance.log()).sum()
        gradients.append(torch.autograd.grad(total, parameters, allow_unused=True))
    # Weights of coresets are found by iterations, whose ends differ.
    tolerance = 1e-6 if problem.entry.smooth_at_zero_sites else 1e-3
    for actual, expected in zip(*gradients, strict=True):
        assert (actual is None) == (expected is None) or not bool(
            (actual if expected is None else expected).any()
        )
        if actual is not None and expected is not None:
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def exact_answer(covariance: Tensor, noise: float, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rasmussen and Williams' equations 5.12 with 60 digits."""
    with mpmath.workdps(60):
        rows = range(len(y))
        K = mpmath.matrix(covariance.tolist())
        for n in rows:
            K[n, n] += mpmath.mpf(noise)
        inverse = K**-1
        weights = inverse * mpmath.matrix(y.tolist())
        mean = [float(mpmath.mpf(y[n].item()) - weights[n] / inverse[n, n]) for n in rows]
        variance = [float(1 / inverse[n, n] - mpmath.mpf(noise)) for n in rows]
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(variance, dtype=torch.float64)


@torch.no_grad()  # with gradients GPyTorch's distances of equal rows are 1e-8
@pytest.mark.parametrize("noise", [1e-2, 1e-8, 1e-12])
@pytest.mark.parametrize("name", ["exact", "inducing"])
def test_accurate_where_rows_are_known_from_their_own_target(noise, name):
    """Here ``1 - lam2 v`` is as small as the noise and has no digits left when computed so."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(12, 2, dtype=torch.float64, generator=generator) * 4
    y = x.sum(-1).sin()
    gp = GaussianProcess(gpytorch.kernels.MaternKernel(nu=0.5).double())
    covariance = gp.covariance(x)
    if name == "exact":
        prior = Exact().prior(gp, x)
    else:
        prior = InducingPoints(inducing_points=x.clone(), jitter=0.0).prior(gp, x)
    sites = Sites(y / noise, torch.full_like(y, 1 / noise))
    actual = prior.condition(sites).leave_one_out()
    mean, variance = exact_answer(covariance, noise, y)
    tolerance = {"rtol": 0.0, "atol": max(1e-15 / noise, 1e-9)}
    torch.testing.assert_close(actual.mean, mean, **tolerance)
    torch.testing.assert_close(actual.variance, variance, rtol=1e-6, atol=1e-9)


def test_few_inducing_points_and_little_noise():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(24, 1, dtype=torch.float64, generator=generator) * 4
    x[-1] = 9.0  # a row that alone informs an inducing point
    z = torch.cat([torch.linspace(0, 4, 6, dtype=torch.float64).unsqueeze(-1), x[-1:]])
    gp = GaussianProcess(gpytorch.kernels.RBFKernel().double())
    prior = InducingPoints(inducing_points=z).prior(gp, x)
    noise = 1e-6
    y = x[:, 0].sin()
    actual = prior.condition(Sites(y / noise, torch.full_like(y, 1 / noise))).leave_one_out()
    cross = gp.covariance(x, z)
    Kzz = gp.covariance(z) + default_jitter(torch.float64) * torch.eye(7, dtype=torch.float64)
    mean, variance = exact_answer((cross @ torch.linalg.solve(Kzz, cross.mT)).detach(), noise, y)
    torch.testing.assert_close(actual.explained, variance, rtol=1e-3, atol=1e-3 * noise)
    torch.testing.assert_close(actual.mean, mean, rtol=1e-3, atol=1e-4)


def test_sites_that_belong_to_no_row_are_refused():
    x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
    gp = GaussianProcess(gpytorch.kernels.RBFKernel().double())
    prior = InducingPoints(inducing_points=x[::2].clone()).prior(gp, x)
    posterior = prior.condition(Sites(x[:, 0], torch.ones_like(x[:, 0])))
    tied = prior.condition(prior.tie(posterior.sites))
    for refused in (tied, posterior.compact(), posterior.detach().compact()):
        with pytest.raises(UnsupportedError, match="belong to no single row"):
            refused.leave_one_out()


def test_a_row_that_holds_the_posterior_together_is_named():
    """Two equal rows, one site of precision -1.5 and one of 1: only together are they proper."""
    x = torch.zeros(2, 1, dtype=torch.float64)
    gp = GaussianProcess(gpytorch.kernels.RBFKernel().double())
    lam2 = torch.tensor([-1.5, 1.0], dtype=torch.float64)
    posterior = Exact().prior(gp, x).condition(Sites(torch.zeros_like(lam2), lam2))
    with pytest.raises(NumericalError, match="own site row 1 has no proper"):
        posterior.leave_one_out()
