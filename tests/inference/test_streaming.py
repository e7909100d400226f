"""Streaming updates equal conditioning on all rows."""

import pickle
from copy import deepcopy

import gpytorch
import pytest
import torch

from gpvi.approximations import Exact, GaussianProcess, StateSpace
from gpvi.exceptions import InputError, InputTypeError, UnsupportedError
from gpvi.inference import OnlineFilter, cvi
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import GaussianLikelihood, PoissonLikelihood


def process(*batch: int) -> GaussianProcess:
    kernel = parse_kernel("matern52 + matern12 + linear", 1, batch_shape=torch.Size(batch))
    mean = gpytorch.means.ConstantMean(batch_shape=torch.Size(batch)).double()
    mean.initialize(constant=0.7)
    return GaussianProcess(kernel, mean)


def series(rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    t = torch.rand(rows, dtype=torch.float64, generator=generator).sort().values * 3
    t[5] = t[4]
    return t.unsqueeze(-1), torch.sin(3 * t) + 0.1 * torch.randn(
        rows, dtype=torch.float64, generator=generator
    )


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("at_once", [True, False])
def test_gaussian_updates_equal_conditioning_on_all_rows(batch, at_once):
    x, y = series()
    y[8] = torch.nan
    gp, likelihood = process(*batch), GaussianLikelihood(noise=0.05)
    online = OnlineFilter.start(
        cvi(StateSpace().prior(gp, x[:6]), likelihood, y[:6]).posterior, likelihood
    )
    for rows in [slice(6, 12)] if at_once else [slice(n, n + 1) for n in range(6, 12)]:
        online = online.update(x[rows], y[rows])
    whole = cvi(StateSpace().prior(gp, x), likelihood, y).posterior
    later = torch.tensor([[5.0], [3.0], [4.0]]).double()
    expected = whole.predict(later)
    torch.testing.assert_close(online.predict(later).mean, expected.mean, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(
        online.predict(later).variance, expected.variance, rtol=1e-10, atol=1e-11
    )
    assert online.num_updates == 6


def test_noise_of_single_rows_counts():
    x, y = series()
    noise = torch.linspace(0.01, 1.0, 12).double()
    gp, likelihood = process(), GaussianLikelihood(noise=0.05)
    start = cvi(StateSpace().prior(gp, x[:11]), likelihood, y[:11], noise=noise[:11]).posterior
    online = OnlineFilter.start(start, likelihood).update(x[11:], y[11:], noise=noise[11:])
    whole = cvi(Exact().prior(gp, x), likelihood, y, noise=noise).posterior
    torch.testing.assert_close(online.predict(x[11:]).mean, whole.predict(x[11:]).mean)


def test_weights_of_new_rows_count():
    x, y = series()
    weights = torch.linspace(0.5, 5.0, 12).double()
    gp, likelihood = process(), GaussianLikelihood(noise=0.05)
    start = cvi(StateSpace().prior(gp, x[:11]), likelihood, y[:11], weights=weights[:11]).posterior
    online = OnlineFilter.start(start, likelihood).update(x[11:], y[11:], weights=weights[11:])
    whole = cvi(Exact().prior(gp, x), likelihood, y, weights=weights).posterior
    torch.testing.assert_close(online.predict(x[11:]).mean, whole.predict(x[11:]).mean)


def test_steps_that_are_small_against_the_stamps_differ():
    """At an offset of 1e9 a spacing of 1e-6 has a few digits left, and they all count."""
    d = torch.tensor([0, 1, 2, 3, 3.5, 4.5, 4.9, 6, 6.2, 7, 7.4], dtype=torch.float64)
    x, y = (1e9 + 1e-6 * d).unsqueeze(-1), torch.sin(d)
    kernel = gpytorch.kernels.MaternKernel(nu=1.5).double()
    kernel.lengthscale = 1e-6
    gp, likelihood = GaussianProcess(kernel), GaussianLikelihood(noise=0.01)
    start = cvi(StateSpace().prior(gp, x[:3]), likelihood, y[:3]).posterior
    online = OnlineFilter.start(start, likelihood)
    for n in range(3, 11):
        online = online.update(x[n : n + 1], y[n : n + 1])
    whole = cvi(StateSpace().prior(gp, x), likelihood, y).posterior
    later = x[-1:] + 1e-6
    torch.testing.assert_close(online.predict(later).mean, whole.predict(later).mean)


def test_a_missing_count_is_passed_over():
    x, _ = series()
    y = torch.arange(12.0).double()
    gp, likelihood = process(), PoissonLikelihood()
    start = cvi(StateSpace().prior(gp, x[:10]), likelihood, y[:10]).posterior
    online = OnlineFilter.start(start, likelihood)
    after = online.update(x[10:11], torch.tensor([torch.nan]).double())
    torch.testing.assert_close(after.predict(x[11:]).mean, online.predict(x[11:]).mean)


def test_a_poisson_site_is_the_fixed_point_given_the_past():
    x, _ = series()
    y = torch.tensor([0.0, 1, 2, 1, 3, 2, 4, 6, 5, 7, 9, 8]).double()
    gp, likelihood = process(), PoissonLikelihood()
    result = cvi(StateSpace().prior(gp, x[:11]), likelihood, y[:11], tolerance=1e-12)
    online = OnlineFilter.start(result.posterior, likelihood).update(x[11:], y[11:])
    before = result.posterior.predict(x[11:])
    after = online.predict(x[11:])
    # lam2 is the expected rate and lam1 what makes the gradient of the bound vanish.
    rate = (after.mean + 0.5 * after.variance).exp()
    torch.testing.assert_close(1 / after.variance - 1 / before.variance, rate, rtol=1e-3, atol=0.0)
    pull = (after.mean - before.mean) / before.variance
    torch.testing.assert_close(pull, y[11:] - rate, rtol=1e-3, atol=1e-3)


def test_single_precision():
    x, y = series()
    gp, likelihood = process().float(), GaussianLikelihood(noise=0.05).float()
    x, y = x.float(), y.float()
    posterior = cvi(StateSpace().prior(gp, x[:10]), likelihood, y[:10]).posterior
    online = OnlineFilter.start(posterior, likelihood).update(x[10:], y[10:])
    whole = cvi(StateSpace().prior(gp, x), likelihood, y).posterior
    assert online.predict(x[11:]).mean.dtype == torch.float32
    torch.testing.assert_close(online.predict(x[11:]).mean, whole.predict(x[11:]).mean)


def test_updates_leave_the_filter_alone_and_it_can_be_copied():
    x, y = series()
    gp, likelihood = process(), GaussianLikelihood(noise=0.05)
    online = OnlineFilter.start(
        cvi(StateSpace().prior(gp, x[:10]), likelihood, y[:10]).posterior, likelihood
    )
    before = online.predict(x[10:]).mean
    twins = [deepcopy(online), pickle.loads(pickle.dumps(online))]
    updated = online.update(x[10:], y[10:]).predict(x[11:]).mean
    torch.testing.assert_close(online.predict(x[10:]).mean, before, rtol=0, atol=0)
    for twin in twins:
        torch.testing.assert_close(twin.update(x[10:], y[10:]).predict(x[11:]).mean, updated)


def test_refusals():
    x, y = series()
    gp, likelihood = process(), GaussianLikelihood(noise=0.05)
    prior = StateSpace().prior(gp, x[:10])
    online = OnlineFilter.start(cvi(prior, likelihood, y[:10]).posterior, likelihood)
    with pytest.raises(InputError, match="before the last one"):
        online.update(x[:1], y[:1])
    with pytest.raises(InputError, match="before the last one"):
        online.predict(x[:1])
    with pytest.raises(InputError, match="in order of time"):
        online.update(x[[11, 10]], y[10:])
    with pytest.raises(InputError, match="no rows"):
        online.update(x[:0], y[:0])
    with pytest.raises(InputError, match="one per row"):
        online.update(x[10:], y[10:11])
    with pytest.raises(InputError, match="NaN or infinite"):
        online.update(x[10:] * torch.nan, y[10:])
    with pytest.raises(InputError, match="float32"):
        online.update(x[10:].float(), y[10:])
    with pytest.raises(InputTypeError, match="StateSpace"):
        OnlineFilter.start(cvi(Exact().prior(gp, x), likelihood, y).posterior, likelihood)
    groups = torch.zeros(12, dtype=torch.int64)
    approximation = StateSpace()
    grouped = approximation.prior(gp, x, plan=approximation.plan(x, groups))
    with pytest.raises(UnsupportedError, match="groups"):
        OnlineFilter.start(cvi(grouped, likelihood, y).posterior, likelihood)
