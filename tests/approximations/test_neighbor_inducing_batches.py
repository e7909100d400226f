"""Batches of rows and of inducing points."""

import pytest
import torch
from gpvi_neighbor_cases import (
    gaussian_sites,
    inputs,
    process,
    seeded,
    small,
    targets,
)
from torch import Tensor

from gpvi.approximations import (
    NeighborInducing,
)
from gpvi.exceptions import UnsupportedError
from gpvi.inference import elbo
from gpvi.likelihoods import GaussianLikelihood


@pytest.mark.parametrize("family", ["sic", "diagonal"])
def test_two_independent_batches_estimate_the_bound_without_bias(family):
    gp, x, y, approximation = small(family=family)
    likelihood, plan = GaussianLikelihood(noise=0.1), approximation.plan(x)
    with torch.no_grad():
        posterior = approximation.prior(gp, x, plan=plan).condition(gaussian_sites(y))
    mean = posterior.inner.shift + posterior.inner.prior.place_mean
    q = tuple(part.clone().requires_grad_() for part in (mean, posterior.inner.factor))
    asked, values = [], []

    def lazily(places: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(places)
        return q[0][places], q[1][places]

    for rows in torch.randperm(60, generator=seeded()).split(20):
        prior = approximation.prior(gp, x[rows], plan=plan.at(x[rows]))
        for inducing in torch.randperm(25, generator=seeded()).split(5):
            view = prior.batch(lazily, inducing)
            assert torch.equal(view.kl(), prior.batch(q, inducing).kl())
            assert view.kl_is_whole and torch.equal(asked[-1], view.places)
            values.append(elbo(view, likelihood, y[rows], num_data=60))
    estimate = torch.stack(values).mean()
    whole = elbo(approximation.prior(gp, x, plan=plan).posterior(*q), likelihood, y)
    torch.testing.assert_close(estimate, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole, elbo(posterior, likelihood, y), rtol=1e-10, atol=1e-10)
    parameters = [*q, gp.kernel.raw_lengthscale, gp.mean_module.raw_constant]
    slopes = [torch.autograd.grad(value, parameters) for value in (estimate, whole)]
    for actual, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_batches_look_at_few_values():
    gp, x = process(0.05), inputs(3_000)
    approximation = NeighborInducing(1_500, 4)
    approximation.initialize(gp, x)
    plan, rows = approximation.plan(x), torch.arange(3)
    prior = approximation.prior(gp, x[rows], plan=plan.at(x[rows]))
    mean, factor = torch.zeros(1_500).double(), torch.ones(1_500, 5).double()
    view = prior.batch((mean, factor), torch.tensor([1_000, 1_400]))
    assert len(view.places) < 300
    assert "columns" not in vars(prior.inner)
    whole = approximation.prior(gp, x, plan=approximation.plan(x)).posterior(mean, 0 * factor + 1)
    torch.testing.assert_close(
        view.marginals().mean, whole.marginals().mean[rows], rtol=1e-9, atol=1e-9
    )
    for request in (
        lambda: view.predict(x),
        lambda: view.rsample(),
        lambda: view.log_ratio(None),
        lambda: view.leave_one_out(),
    ):
        with pytest.raises(UnsupportedError):
            request()


def test_rows_at_inducing_inputs_in_batches():
    gp, x = process(), inputs(40)
    approximation = NeighborInducing(inducing_points=x, num_neighbors=5)
    plan = approximation.plan(x)
    prior = approximation.prior(gp, x, plan=plan)
    posterior = prior.condition(gaussian_sites(targets(x)))
    q = (posterior.inner.shift + prior.inner.place_mean, posterior.inner.factor)
    rows = torch.tensor([3, 17, 31])
    view = approximation.prior(gp, x[rows], plan=plan.at(x[rows])).batch(q, rows)
    torch.testing.assert_close(view.marginals().variance, posterior.marginals().variance[rows])
    terms = posterior.inner.kl_places()
    torch.testing.assert_close(view.kl(), 40 * terms[rows].mean())


def test_a_plan_notices_inducing_inputs_that_were_moved_in_place():
    gp, x, _, approximation = small()
    plan = approximation.plan(x)
    before = approximation.prior(gp, x, plan=plan).inner.x
    assert approximation.prior(gp, x[:5], plan=plan.at(x[:5])).inner.x is before
    with torch.no_grad():
        approximation.inducing_points.mul_(0.9)
    after = approximation.prior(gp, x, plan=plan).inner.x
    assert torch.equal(after, approximation.inducing_points)
    assert not torch.equal(before, after)
