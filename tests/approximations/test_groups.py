"""Flat groups: index structure, predictions, minibatches of groups, refusals."""

import itertools

import gpytorch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, GroupIndex, InducingPoints, Plan, Sites
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import elbo
from gpvi.likelihoods import GaussianLikelihood

GROUPS = torch.tensor([4, -1, 4, 4, 9, -1, 9])
NUM_ROWS = len(GROUPS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def process(*batch: int) -> GaussianProcess:
    kernel = gpytorch.kernels.RBFKernel(batch_shape=torch.Size(batch)).double()
    return GaussianProcess(kernel).requires_grad_(False)


X = normal(NUM_ROWS, 1)


def grouped_posterior(*batch: int, approximation=None):
    approximation = Exact() if approximation is None else approximation
    shape = (*batch, NUM_ROWS)
    sites = Sites(normal(*shape, seed=1), torch.ones(shape, dtype=torch.float64))
    return approximation.prior(process(*batch), X, plan=approximation.plan(X, GROUPS)).condition(
        sites
    )


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_index_maps_rows_there_and_back(labels):
    groups = torch.tensor(labels)
    index = GroupIndex.build(groups)
    assert index.labels.tolist() == sorted(set(labels))
    values = normal(2, len(labels))
    padded = index.pad_rows(values, fill=7.0)
    assert torch.equal(index.flatten(padded), values)
    assert bool((padded.movedim(0, -2)[..., ~index.observed] == 7.0).all())
    for g, label in enumerate(index.labels):
        size = int((groups == label).sum())
        assert torch.equal(padded[g][..., :size], values[..., groups == label])
    torch.testing.assert_close(index.sum_rows(values), index.pad_rows(values).sum(-1))
    assert torch.equal(index.locate(groups), index.group)


def test_shapes():
    posterior = grouped_posterior(2)
    assert posterior.kl().shape == posterior.log_partition.shape == (3, 2)
    assert posterior.marginals().mean.shape == (2, NUM_ROWS)
    draw = posterior.rsample((5, 4), generator=torch.Generator().manual_seed(0))
    assert draw.values.shape == (5, 4, 2, NUM_ROWS)
    assert draw.basis.shape == (5, 4, 3, 2, 3)
    assert posterior.log_ratio(draw).shape == (5, 4, 3, 2)


def test_predictions_in_any_order_and_for_some_groups():
    posterior = grouped_posterior(2)
    new, labels = normal(5, 1, seed=3), torch.tensor([9, 4, 9, 9, 4])
    moments = posterior.predict(new, groups=labels)
    for label in (4, 9):
        rows = GROUPS == label
        alone = (
            Exact()
            .prior(process(2), X[rows])
            .condition(Sites(posterior.sites.lam1[:, rows], posterior.sites.lam2[:, rows]))
        )
        chosen = labels == label
        expected = alone.predict(new[chosen])
        torch.testing.assert_close(moments.mean[:, chosen], expected.mean)
        torch.testing.assert_close(moments.variance[:, chosen], expected.variance)


def test_inducing_points_predict_with_their_residual():
    approximation = InducingPoints(inducing_points=normal(2, 1, seed=4), learn=False)
    posterior = grouped_posterior(approximation=approximation)
    moments = posterior.predict(X, groups=GROUPS)
    torch.testing.assert_close(moments.residual, posterior.marginals().residual)


def test_minibatches_of_groups_scale_everything():
    """G / B times the objective of B whole groups averages to the total of all groups."""
    y, likelihood = normal(NUM_ROWS, seed=5), GaussianLikelihood(noise=0.5).requires_grad_(False)

    def objective(rows: Tensor) -> Tensor:
        plan = Exact().plan(X[rows], GROUPS[rows])
        prior = Exact().prior(process(), X[rows], plan=plan)
        posterior = prior.condition(Sites(2.0 * y[rows], torch.full_like(y[rows], 2.0)))
        with pytest.raises(InputError, match="whole groups yourself"):
            elbo(posterior, likelihood, y[rows], num_data=NUM_ROWS + 1)
        return elbo(posterior, likelihood, y[rows]).sum()

    total = objective(torch.arange(NUM_ROWS))
    batches = [
        3 / 2 * objective(torch.isin(GROUPS, torch.tensor(pair)).nonzero()[:, 0])
        for pair in itertools.combinations((-1, 4, 9), 2)
    ]
    torch.testing.assert_close(torch.stack(batches).mean(), total, rtol=1e-13, atol=1e-13)


def test_latents_of_sites_are_never_taken_for_groups():
    """Three latents and three groups: shapes that would broadcast in the wrong way."""
    plan = Exact().plan(X, GROUPS)
    prior = Exact().prior(process(), X, plan=plan)
    with pytest.raises(InputError, match="batch shape of the sites"):
        prior.condition(Sites.zeros((3, NUM_ROWS)))
    latents = Exact().prior(process(3), X, plan=plan)
    lam1 = normal(NUM_ROWS, seed=1)
    single = latents.condition(Sites(lam1, torch.ones_like(lam1)))
    repeated = latents.condition(Sites(lam1.expand(3, -1), torch.ones_like(lam1).expand(3, -1)))
    torch.testing.assert_close(single.kl(), repeated.kl())


def test_tied_sites_have_a_group_dim():
    approximation = InducingPoints(inducing_points=normal(2, 1, seed=4), learn=False)
    posterior = grouped_posterior(2, approximation=approximation)
    tied = posterior.prior.tie(posterior.sites)
    assert tied.lam1.shape == (3, 2, 2) and tied.lam2.shape == (3, 2, 2, 2)
    again = posterior.prior.condition(tied)
    torch.testing.assert_close(again.kl(), posterior.kl())
    torch.testing.assert_close(again.marginals().mean, posterior.marginals().mean)
    with pytest.raises(InputError, match="6 sites for 7 data rows"):
        posterior.prior.tie(Sites.zeros((6,)))


def test_single_group_and_single_rows():
    for labels in (torch.zeros(NUM_ROWS, dtype=torch.int64), torch.arange(NUM_ROWS)):
        sites = Sites(normal(NUM_ROWS, seed=1), torch.ones(NUM_ROWS, dtype=torch.float64))
        plan = Exact().plan(X, labels)
        posterior = Exact().prior(process(), X, plan=plan).condition(sites)
        assert posterior.kl().shape == (len(labels.unique()),)
    alone = sites.lam1 / 2.0  # unit prior variance, unit site precision
    torch.testing.assert_close(posterior.marginals().mean, alone)


def test_refusals():
    posterior = grouped_posterior()
    with pytest.raises(InputError, match="Group 5 was not among the 3"):
        posterior.predict(X[:2], groups=torch.tensor([4, 5]))
    with pytest.raises(InputError, match="pass groups"):
        posterior.predict(X)
    with pytest.raises(InputError, match="one label per row"):
        posterior.predict(X, groups=GROUPS[:3])
    with pytest.raises(InputError, match="float32"):
        posterior.predict(X, groups=GROUPS.float())
    with pytest.raises(UnsupportedError, match="jointly"):
        posterior.predict(X, joint=True, groups=GROUPS)
    with pytest.raises(UnsupportedError, match=r"data rows only.*posterior\.inner"):
        posterior.rsample((), X)
    for groups, message in (
        (GROUPS.double(), "integer label"),
        (GROUPS[:3], r"shape \(3,\) for 7 rows"),
        (GROUPS.unsqueeze(-1), "integer label"),
    ):
        with pytest.raises(InputError, match=message):
            Plan.build(X, groups)
    with pytest.raises(InputError, match="already batched"):
        Plan.build(X.expand(2, NUM_ROWS, 1), GROUPS)
