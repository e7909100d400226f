"""The averaged divergence of sparse-within-sparse processes, which makes no bound."""

import pytest
import torch
from gpvi_neighbor_cases import (
    gaussian_sites,
    inputs,
    own_evidence,
    own_model,
    process,
    small,
    targets,
)
from torch import Tensor

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    NeighborInducing,
)
from gpvi.inference import elbo
from gpvi.likelihoods import GaussianLikelihood
from gpvi.linalg import factor_product


def maximise_average(gp: GaussianProcess, x: Tensor, y: Tensor, noise: float, number: int) -> float:
    """The objective of sparse-within-sparse processes at its best independent values."""
    approximation = NeighborInducing(inducing_points=x, num_neighbors=number, objective="swsgp")
    with torch.no_grad():
        prior = approximation.prior(gp, x).detach()
        start = prior.condition(gaussian_sites(y, noise)).inner
    mean = (start.shift + prior.inner.place_mean).clone().requires_grad_()
    log_factor = start.factor.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([mean, log_factor], max_iter=60, line_search_fn="strong_wolfe")
    likelihood = GaussianLikelihood(noise=noise)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -elbo(prior.posterior(mean, log_factor.exp()), likelihood, y)
        value.backward()
        return value

    optimizer.step(loss)
    return -float(loss().detach())


@pytest.mark.parametrize(
    ("columns", "rows", "lengthscale", "noise", "number"),
    [(1, 200, 0.15, 0.08, 5), (5, 150, 0.8, 0.1, 10)],
)
def test_the_averaged_divergence_is_no_bound(columns, rows, lengthscale, noise, number):
    x, gp = inputs(rows, columns, seed=columns), process(lengthscale, nu=2.5)
    y = targets(x)
    exact = Exact().prior(gp, x).detach().condition(gaussian_sites(y, noise))
    evidence = float(elbo(exact, GaussianLikelihood(noise=noise), y).detach())
    assert maximise_average(gp, x, y, noise, number) > evidence + 10.0
    sound = NeighborInducing(inducing_points=x, num_neighbors=number)
    prior = sound.prior(gp, x).detach()
    bound = elbo(prior.condition(gaussian_sites(y, noise)), GaussianLikelihood(noise=noise), y)
    assert float((bound - own_evidence(prior, y, noise)).detach()) < 1e-6


def test_the_averaged_divergence_is_the_mean_over_rows():
    gp, x, _, approximation = small(objective="swsgp", family="sic")
    plan = approximation.plan(x)
    prior = approximation.prior(gp, x, plan=plan)
    posterior = prior.condition(gaussian_sites(targets(x)))
    _, K = own_model(prior)
    z = prior.inner.points
    K = gp.covariance(z) * (1 + 1e-8 * torch.eye(25).double())
    eye = torch.eye(25, dtype=torch.float64)
    V = factor_product(prior.inner.pattern(()), posterior.inner.factor, eye).mT
    S, shift = torch.linalg.inv(V @ V.mT), posterior.inner.shift
    normal, each = torch.distributions.MultivariateNormal, []
    for index in prior.rows.index.long():
        block = torch.meshgrid(index, index, indexing="ij")
        q, p = normal(shift[index], S[block]), normal(torch.zeros(6).double(), K[block])
        each.append(torch.distributions.kl_divergence(q, p))
    torch.testing.assert_close(posterior.kl(), torch.stack(each).mean(), rtol=1e-6, atol=1e-6)
    assert posterior.compact() is posterior
    q = (shift + prior.inner.place_mean, posterior.inner.factor)
    rows = torch.tensor([0, 5, 9])
    view = approximation.prior(gp, x[rows], plan=plan.at(x[rows])).batch(q, torch.tensor([0]))
    torch.testing.assert_close(view.kl(), torch.stack(each)[rows].mean(), rtol=1e-3, atol=1e-3)
