"""Gradients, batch dims, samples and sites of neighbour-given inducing points."""

import copy
import math
import pickle

import gpytorch
import pytest
import torch
from gpvi_neighbor_cases import (
    gaussian_sites,
    inputs,
    process,
    seeded,
    small,
)
from torch import Tensor

from gpvi.approximations import (
    GaussianProcess,
    NeighborInducing,
    Sites,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import cvi, elbo
from gpvi.likelihoods import BernoulliLikelihood


def test_gradients_of_everything():
    gp, x, y, approximation = small(learn=True)
    plan, new = approximation.plan(x), inputs(3, seed=9)
    approximation.prior(gp, x, plan=plan)
    names = [name for name, _ in gp.named_parameters()]
    z = approximation.inducing_points.detach().clone()

    def everything(x, z, lam1, lam2, *values):
        state = dict(zip(names, values, strict=True))

        class Outputs(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.gp, self.approximation = gp, approximation

            def forward(self):
                prior = self.approximation.prior(self.gp, x, plan=plan)
                q = prior.condition(Sites(lam1, lam2))
                here, there = q.marginals(), q.predict(new)
                parts = [q.log_partition, q.kl(), here.mean, here.variance, there.variance]
                return torch.cat([part.flatten() for part in parts])

        replaced = {f"gp.{name}": value for name, value in state.items()}
        replaced["approximation.points.inducing_points"] = z
        return torch.func.functional_call(Outputs(), replaced, ())

    lam2 = 0.5 + 3.0 * inputs(60, 1, seed=4).squeeze(-1)
    arguments = [x, z, lam2 * y, lam2, *gp.parameters()]
    arguments = [value.detach().clone().requires_grad_() for value in arguments]
    assert torch.autograd.gradcheck(everything, arguments, fast_mode=True, atol=1e-4, rtol=1e-3)


def test_gradient_of_a_fit_is_that_of_its_objective():
    """Sites at their fixed point: held, they give the derivative of the maximised bound."""
    gp, x, y, approximation = small()
    y = (y > 0).double()
    likelihood, plan = BernoulliLikelihood(), approximation.plan(x)

    def value() -> Tensor:
        prior = approximation.prior(gp, x, plan=plan)
        result = cvi(prior, likelihood, y, tolerance=1e-10, max_steps=200)
        return elbo(prior.condition(result.sites), likelihood, y)

    parameter = gp.kernel.raw_lengthscale
    (slope,) = torch.autograd.grad(value(), parameter)
    step = 1e-2
    with torch.no_grad():
        parameter[0, 0] += step
        above = float(value())
        parameter[0, 0] -= 2 * step
        below = float(value())
        parameter[0, 0] += step
    numeric = (above - below) / (2 * step)
    assert abs(numeric - float(slope[0, 0])) < 0.02 * max(1.0, abs(numeric))


def test_sites_at_zero_precision_have_gradients():
    gp, x, y, approximation = small()
    lam2 = torch.full_like(y, 2.0)
    lam2[::3] = 0.0
    lam2.requires_grad_()
    posterior = approximation.prior(gp, x).condition(Sites(lam2.detach() * y, lam2))
    (slope,) = torch.autograd.grad(posterior.log_partition, lam2)
    moments = posterior.marginals()
    expected = -0.5 * (moments.mean.square() + moments.explained)
    # The factor is incomplete, so that this holds nearly.
    torch.testing.assert_close(slope, expected.detach(), rtol=0.05, atol=0.01)


def test_every_latent_with_inducing_points_of_its_own():
    kernel = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=torch.Size([2])).double()
    kernel.lengthscale = torch.tensor([[[0.3]], [[0.6]]], dtype=torch.float64)
    gp, z = GaussianProcess(kernel), torch.stack([inputs(15, seed=1), inputs(15, seed=2)])
    x = torch.stack([inputs(20, seed=s) for s in (3, 4, 5)]).unsqueeze(1)
    lam1 = torch.randn(3, 2, 20, dtype=torch.float64, generator=seeded())
    sites = Sites(lam1, torch.ones_like(lam1))
    whole = NeighborInducing(inducing_points=z, num_neighbors=5).prior(gp, x).condition(sites)
    new = inputs(4, seed=6)
    draw = whole.rsample((5,), generator=seeded())
    assert draw.values.shape == (5, 3, 2, 20) and draw.basis.shape == (5, 3, 2, 15)
    assert whole.log_ratio(draw).shape == (5, 3, 2)
    for latent in range(2):
        one = gpytorch.kernels.MaternKernel(nu=1.5).double()
        one.lengthscale = kernel.lengthscale[latent].detach()
        approximation = NeighborInducing(inducing_points=z[latent], num_neighbors=5)
        for entry in range(3):
            part = Sites(lam1[entry, latent], torch.ones(20).double())
            alone = approximation.prior(GaussianProcess(one), x[entry, 0]).condition(part)
            torch.testing.assert_close(whole.kl()[entry, latent], alone.kl())
            torch.testing.assert_close(
                whole.predict(new).variance[entry, latent], alone.predict(new).variance
            )
            torch.testing.assert_close(
                whole.marginals().mean[entry, latent], alone.marginals().mean
            )


def test_flat_groups_have_inducing_values_of_their_own():
    gp, x, y, approximation = small()
    groups = torch.arange(60) % 3
    plan = approximation.plan(x, groups)
    whole = approximation.prior(gp, x, plan=plan).condition(gaussian_sites(y))
    for label in range(3):
        rows = groups == label
        alone = approximation.prior(gp, x[rows]).condition(gaussian_sites(y[rows]))
        torch.testing.assert_close(whole.kl()[label], alone.kl())
        torch.testing.assert_close(whole.marginals().mean[rows], alone.marginals().mean)


def test_single_precision_and_copies():
    gp, x, y, approximation = small()
    posterior = approximation.prior(gp, x).condition(gaussian_sites(y))
    lower = copy.deepcopy(approximation).float()
    half = lower.prior(copy.deepcopy(gp).float(), x.float()).condition(gaussian_sites(y.float()))
    assert half.kl().dtype == half.marginals().mean.dtype == torch.float32
    torch.testing.assert_close(half.kl().double(), posterior.kl(), rtol=2e-3, atol=2e-3)
    new = inputs(5, seed=7)
    expected = posterior.predict(new)
    for copied in (
        pickle.loads(pickle.dumps(posterior.detach())),
        copy.deepcopy(posterior.detach()),
        posterior.compact(),
    ):
        torch.testing.assert_close(copied.predict(new).mean, expected.mean)
        torch.testing.assert_close(copied.predict(new).explained, expected.explained)
        torch.testing.assert_close(copied.kl(), posterior.kl())
    assert posterior.compact().marginals().mean.shape == (0,)


def test_inducing_points_are_saved_chosen_moved_and_forgotten():
    gp, x, _, approximation = small()
    z = approximation.inducing_points
    assert z.shape == (25, 2) and not z.requires_grad
    assert all(bool((x == point).all(-1).any()) for point in z)
    twin = NeighborInducing(25, 6)
    twin.load_state_dict(approximation.state_dict())
    torch.testing.assert_close(twin.inducing_points, z)
    twin.map_inputs(lambda points: 2.0 * points)
    torch.testing.assert_close(twin.inducing_points, 2.0 * z)
    twin.reset()
    assert twin.inducing_points is None
    with pytest.raises(InputError, match="initialize"):
        twin.prior(gp, x)
    for selection in ("kmeans++", "random"):
        other = NeighborInducing(25, 6, selection=selection, learn=True)
        other.initialize(gp, x, seeded())
        assert other.inducing_points.shape == (25, 2) and other.inducing_points.requires_grad
    # Lengthscales decide what is far: along the second column nothing is.
    wide = NeighborInducing(5, 3)
    wide.initialize(process([0.3, 1e6]), x)
    spread = wide.inducing_points[:, 0].sort().values.diff()
    assert float(spread.min()) > 0.1


def test_samples_with_and_without_residuals():
    gp, x, y, approximation = small()
    posterior = approximation.prior(gp, x).detach().condition(gaussian_sites(y, 1.0))
    moments, number = posterior.marginals(), 4000
    for residual, variance in (("none", moments.explained), ("independent", moments.variance)):
        values = posterior.rsample((number,), residual=residual, generator=seeded()).values
        error = (values.var(0) / variance).log().abs()
        assert float(error.max()) < 6 * math.sqrt(2 / number)
        assert bool(((values.mean(0) - moments.mean).abs() < 6 * (variance / number).sqrt()).all())
    new = inputs(6, seed=5)
    joint = posterior.predict(new, joint=True)
    draw = posterior.rsample((number,), new, generator=seeded(1))
    spread = joint.variance.unsqueeze(-1) * joint.variance + joint.covariance_matrix.square()
    error = (draw.values.mT.cov() - joint.covariance_matrix).abs()
    assert bool((error < 6 * (spread / number).sqrt()).all())
    ratios = posterior.log_ratio(draw)
    bound = 5 * float(ratios.std()) / math.sqrt(number) + 0.02
    assert abs(float(ratios.mean() + posterior.kl())) < bound
    # Alone, new inputs are independent given the inducing values; jointly they condition on each other.
    near = torch.cat([new, new + 1e-6])
    covariance = posterior.predict(near, joint=True).covariance_matrix
    assert float((covariance[:6, 6:].diagonal() / joint.variance).min()) > 0.99


def test_paths_are_functions_through_inducing_values():
    gp, x, y, approximation = small()
    posterior = approximation.prior(gp, x).condition(gaussian_sites(y))
    z, weights = posterior.path_weights(
        lambda points: torch.zeros(2, len(points), dtype=torch.float64), seeded()
    )
    assert z.shape == (25, 2) and weights.shape == (2, 25)


def test_sites_on_the_basis():
    gp, x, y, approximation = small()
    prior = approximation.prior(gp, x)
    data = prior.condition(gaussian_sites(y))
    tied = prior.tie(gaussian_sites(y))
    assert tied.full and tied.on == "basis"
    basis = prior.condition(tied)
    torch.testing.assert_close(basis.kl(), data.kl(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(basis.marginals().mean, data.marginals().mean)
    # Log values of sites differ by what a draw of u does not change.
    draw = data.rsample((4,), generator=seeded())
    gap = gaussian_sites(y).log_value(data._site_values(draw.basis)) - tied.log_value(draw.basis)
    torch.testing.assert_close(gap, gap[:1].expand(4), rtol=1e-7, atol=1e-6)
    difference = data.log_partition - basis.log_partition
    torch.testing.assert_close(difference, gap[0], rtol=1e-4, atol=1e-3)
    lam2 = 1.0 + inputs(25, 1, seed=2).squeeze(-1)
    diagonal, full = (
        prior.condition(Sites(lam2, second, on="basis")) for second in (lam2, torch.diag(lam2))
    )
    torch.testing.assert_close(diagonal.kl(), full.kl(), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(diagonal.log_partition, full.log_partition, rtol=1e-3, atol=1e-3)
    with pytest.raises(UnsupportedError, match="no single row"):
        diagonal.leave_one_out()
