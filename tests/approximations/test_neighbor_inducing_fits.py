"""Fits, refreshes and refusals of neighbour-given inducing points."""

import math

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

from gpvi.approximations import (
    NeighborInducing,
    Sites,
    SparseInverseCholesky,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import fit, tighter_elbo
from gpvi.likelihoods import GaussianLikelihood, PoissonLikelihood


@pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("learn", [False, True])
def test_fits_of_all_rows(learn):
    gp, x = process([0.5, 0.5]), inputs(120)
    y = targets(x)
    approximation = NeighborInducing(30, 8, learn=learn, refresh_every=5)
    likelihood = GaussianLikelihood(noise=0.2)
    approximation.initialize(gp, x)
    prior = approximation.prior(gp, x).detach()
    first = float(tighter_elbo(prior.condition(gaussian_sites(y, 0.2)), likelihood, y).detach())
    z = approximation.inducing_points.detach().clone()
    result = fit(gp, approximation, likelihood, x, y, max_iter=15, warm_start=None)
    assert result.objective > first + 1.0
    assert torch.equal(approximation.inducing_points, z) != learn
    prediction = result.posterior.predict(inputs(50, seed=9))
    truth = (5.0 * inputs(50, seed=9)[:, 0]).sin()
    assert float((prediction.mean - truth).square().mean().sqrt()) < 0.25


@pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")
def test_fits_of_counts_and_of_minibatches():
    gp, x = process([0.5, 0.5]), inputs(150)
    y = (1.0 + targets(x)).exp().round()
    approximation = NeighborInducing(20, 6)
    result = fit(gp, approximation, PoissonLikelihood(), x, y, max_iter=4, warm_start=None)
    assert math.isfinite(result.objective)
    small_steps = fit(
        gp, approximation, PoissonLikelihood(), x, y, max_iter=3, batch_size=50, generator=seeded()
    )
    assert math.isfinite(small_steps.objective)
    assert small_steps.objective > result.objective - 30.0


@pytest.mark.filterwarnings("ignore::gpvi.exceptions.AccuracyWarning")
@pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")
def test_minibatches_come_near_the_fit_of_all_rows():
    x = inputs(600)
    y = (1.0 + targets(x)).exp().round()
    results = []
    for options in ({"max_iter": 20}, {"max_iter": 150, "batch_size": 64, "generator": seeded()}):
        gp, approximation = process([0.5, 0.5]), NeighborInducing(100, 12)
        result = fit(gp, approximation, PoissonLikelihood(), x, y, warm_start=None, **options)
        results.append(result.objective)
    whole, batches = results
    assert whole - 10.0 < batches < whole + 1.0


@pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")
def test_minibatches_need_no_matrix_over_inducing_values():
    gp, x = process([0.1, 0.1]), inputs(6_000)
    y = targets(x)
    approximation = NeighborInducing(5_500, 3)
    options = {"warm_start": None, "max_iter": 3, "batch_size": 32, "generator": seeded()}
    result = fit(gp, approximation, GaussianLikelihood(noise=0.1), x, y, **options)
    assert math.isfinite(result.objective)


@pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")
def test_minibatches_go_on_from_a_checkpoint(tmp_path):
    x = inputs(200)
    y = targets(x)

    class Stop(Exception):
        pass

    def run(path, callback=None):
        gp = process([0.5, 0.5])
        callbacks = () if callback is None else (callback,)
        result = fit(
            gp,
            NeighborInducing(40, 5, refresh_every=5),
            GaussianLikelihood(noise=0.1),
            x,
            y,
            warm_start=None,
            max_iter=80,
            batch_size=20,
            generator=seeded(),
            checkpoint=path,
            callbacks=callbacks,
        )
        return result.objective, gp.kernel.lengthscale.detach()

    def interrupt(record):
        if len(seen := [*steps, record.evaluation]) > 60:
            raise Stop
        steps.append(seen[-1])

    steps: list[int] = []
    path = tmp_path / "fit"
    with pytest.raises(Stop):
        run(path, interrupt)
    again, whole = run(path), run(None)
    assert again[0] == pytest.approx(whole[0], abs=1e-8)
    torch.testing.assert_close(again[1], whole[1])


def test_neighbors_are_found_anew_where_ratios_have_changed():
    gp, x, _, approximation = small(learn=False)
    plan = approximation.plan(x)
    assert approximation.refresh(gp, plan) is plan
    approximation.prior(gp, x, plan=plan)
    assert approximation.refresh_period(gp, x) == 20
    assert approximation.refresh_period(process(0.3), x) is None
    assert approximation.refresh(gp, plan) is plan
    moved = process([0.1, 3.0])
    fresh = approximation.refresh(moved, plan)
    assert fresh is not plan
    assert approximation.refresh(moved, fresh) is fresh
    held = NeighborInducing(25, 6, refresh_every=None)
    assert held.refresh(moved, plan) is plan
    learned = NeighborInducing(25, 6, learn=True)
    learned.initialize(gp, x)
    plan = learned.plan(x)
    learned.prior(gp, x, plan=plan)
    assert learned.refresh(gp, plan) is plan
    with torch.no_grad():
        learned.inducing_points.copy_(learned.inducing_points.flip(0).square())
    assert learned.refresh(gp, plan) is not plan


def test_impossible_options_and_requests():
    gp, x, y, approximation = small()
    for options, message in (
        ({}, "exactly one of num_inducing"),
        ({"num_inducing": 0}, "num_inducing is 0"),
        ({"num_inducing": 5, "num_neighbors": 0}, "num_neighbors is 0"),
        ({"num_inducing": 5, "selection": "greedy"}, "selection is 'greedy'"),
        ({"num_inducing": 5, "family": "dense"}, "family is 'dense'"),
        ({"num_inducing": 5, "objective": "ep"}, "objective is 'ep'"),
        ({"num_inducing": 5, "neighbors": "city"}, "neighbors is 'city'"),
        ({"num_inducing": 5, "nugget": 0.0}, "nugget is 0.0"),
        ({"num_inducing": 5, "refresh_every": 0}, "refresh_every is 0"),
    ):
        with pytest.raises(InputError, match=message):
            NeighborInducing(**options)
    prior = approximation.prior(gp, x)
    with pytest.raises(UnsupportedError, match="smallest lam2 is -1"):
        prior.condition(Sites(y, -torch.ones_like(y)))
    with pytest.raises(InputError, match="made for 60 rows"):
        approximation.prior(gp, x[:5], plan=approximation.plan(x))
    with pytest.raises(InputError, match="make it by plan"):
        approximation.prior(gp, x, plan=SparseInverseCholesky(3).plan(x))
    q = (torch.zeros(25).double(), torch.ones(25, 7).double())
    for inducing in (torch.zeros(0, dtype=torch.int64), torch.zeros(2), torch.tensor([25])):
        with pytest.raises(InputError, match="inducing"):
            prior.batch(q, inducing)
    with pytest.raises(InputError, match="mean has shape"):
        prior.batch((q[0][:3], q[1]), torch.tensor([0]))
    with pytest.raises(InputError, match="it must be"):
        prior.batch((q[0], q[1][:, :3]), torch.tensor([0]))
    with pytest.raises(InputError, match="must be positive"):
        prior.batch((q[0], -q[1]), torch.tensor([0]))
    with pytest.raises(InputError, match="NaN"):
        approximation.plan(x * torch.nan)
    with pytest.raises(InputError, match="NaN"):
        prior.condition(gaussian_sites(y)).predict(x * torch.nan)
    with pytest.raises(UnsupportedError, match="no sites"):
        prior.posterior(*q).leave_one_out()
