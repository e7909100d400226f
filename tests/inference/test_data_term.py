"""Expected log likelihoods of rows and their dual sites."""

import functools

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import Marginals
from gpvi.exceptions import InputError
from gpvi.inference import data_term, dual
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

Y = torch.tensor([0.0, 2.0, float("nan"), 1.0], dtype=torch.float64)


def uniform(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def marginals(*batch: int, residual: bool = True) -> Marginals:
    shape = (*batch, 4)
    return Marginals(
        uniform(*shape, seed=0, low=-1.0),
        uniform(*shape, seed=1, low=0.1),
        uniform(*shape, seed=2, low=0.1) if residual else None,
    )


@pytest.mark.parametrize("batch", [(), (2,), (3, 2)])
def test_poisson_closed_form(batch):
    """E[y f - exp f - log y!] with variance explained + v residual."""
    q, log_v = marginals(*batch), uniform(*batch, seed=3, low=-2.0)
    weights, exposure = uniform(4, seed=4), uniform(4, seed=5, low=0.5, high=2.0)
    variance = q.explained + log_v.exp().unsqueeze(-1) * q.residual
    expected = Y * (q.mean + exposure.log()) - exposure * (q.mean + variance / 2).exp()
    expected = weights * (expected - torch.lgamma(Y + 1))
    expected[..., 2] = 0.0
    actual = data_term(PoissonLikelihood(), Y, q, weights=weights, log_v=log_v, exposure=exposure)
    torch.testing.assert_close(actual, expected)


def test_without_scale_all_of_the_residual_counts():
    q, likelihood = marginals(), BernoulliLikelihood()
    whole = Marginals(q.mean, q.variance)
    y = (Y > 0).double()
    torch.testing.assert_close(data_term(likelihood, y, q), data_term(likelihood, y, whole))
    zero = torch.tensor(0.0).double()
    torch.testing.assert_close(data_term(likelihood, y, q), data_term(likelihood, y, q, log_v=zero))


def test_scale_without_residual_changes_nothing():
    q = marginals(residual=False)
    torch.testing.assert_close(
        data_term(PoissonLikelihood(), Y, q, log_v=torch.tensor(3.0)),
        data_term(PoissonLikelihood(), Y, q),
    )


def test_gpytorch_likelihoods_are_wrapped():
    q, y = marginals(), torch.nan_to_num(Y).clamp_max(1.0)
    theirs = gpytorch.likelihoods.BernoulliLikelihood()
    assert data_term(theirs, y, q).shape == (4,)
    noise = gpytorch.likelihoods.GaussianLikelihood().double()
    ours = GaussianLikelihood(noise=noise.noise.item())
    torch.testing.assert_close(data_term(noise, y, q), data_term(ours, y, q))


def test_unknown_extras_are_refused():
    with pytest.raises(InputError, match="exposre"):
        data_term(PoissonLikelihood(), Y, marginals(), exposre=torch.ones(4))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_dual_of_gaussian_noise_is_the_exact_site(batch):
    """Whatever the marginals: lam1 = w y / noise, lam2 = w / noise, nothing where y is missing."""
    noise, weights = uniform(4, seed=6, low=0.2), uniform(4, seed=7)
    term = functools.partial(
        data_term, GaussianLikelihood(learn_noise=False), Y, weights=weights, noise=noise
    )
    sites = dual(lambda q: term(q), marginals(*batch))
    observed = ~Y.isnan()
    lam2 = torch.where(observed, weights / noise, 0.0).expand(*batch, 4)
    torch.testing.assert_close(sites.lam2, lam2)
    torch.testing.assert_close(sites.lam1, lam2 * torch.nan_to_num(Y))
    assert sites.on == "data" and bool((sites.lam2[..., 2] == 0).all())


@pytest.mark.parametrize("residual", [True, False])
def test_dual_is_the_derivative_in_mean_and_explained(residual):
    q, step = marginals(residual=residual), 1e-5
    log_v = torch.tensor(-0.5).double()
    term = functools.partial(data_term, PoissonLikelihood(), Y, log_v=log_v)

    def moved(mean: float, explained: float) -> Tensor:
        return term(Marginals(q.mean + mean, q.explained + explained, q.residual))

    sites = dual(lambda q: term(q), q)
    lam2 = -(moved(0, step) - moved(0, -step)) / step
    torch.testing.assert_close(sites.lam2, lam2, rtol=1e-6, atol=1e-8)
    slope = (moved(step, 0) - moved(-step, 0)) / (2 * step)
    torch.testing.assert_close(sites.lam1, slope + lam2 * q.mean, rtol=1e-6, atol=1e-8)


def test_dual_leaves_graph_and_modes_alone():
    q = marginals()
    live = Marginals(q.mean.requires_grad_(), q.explained.requires_grad_(), q.residual)
    with torch.no_grad():
        quiet = dual(lambda m: data_term(PoissonLikelihood(), Y, m), live)
        assert not torch.is_grad_enabled()
    loud = dual(lambda m: data_term(PoissonLikelihood(), Y, m), live)
    assert torch.equal(quiet.lam1, loud.lam1)
    assert not loud.lam1.requires_grad and not loud.lam2.requires_grad
    assert live.mean.grad is None and torch.equal(live.mean, q.mean)


def test_precision_is_clipped_where_asked():
    """A Student t is not log-concave: far from the data its sites have negative precision."""
    q = Marginals(torch.zeros(1).double(), torch.full((1,), 0.01).double())
    far = torch.full((1,), 6.0).double()
    likelihood = StudentTLikelihood().double()
    free = dual(lambda m: data_term(likelihood, far, m), q)
    clipped = dual(lambda m: data_term(likelihood, far, m), q, min_precision=0.0)
    assert float(free.lam2) < 0.0
    assert float(clipped.lam2) == 0.0
    # The slope at the mean, which is 0 here, is kept.
    torch.testing.assert_close(clipped.lam1, free.lam1)


def test_explained_variance_broadcasts_to_the_mean():
    q = Marginals(uniform(2, 4, seed=0), uniform(4, seed=1, low=0.1))
    assert dual(lambda m: data_term(PoissonLikelihood(), Y, m), q).lam2.shape == (2, 4)


def test_single_precision():
    q = marginals()
    small = Marginals(q.mean.float(), q.explained.float(), q.residual.float())
    for likelihood in (PoissonLikelihood(), GaussianLikelihood(), BernoulliLikelihood()):
        y = Y.clamp_max(1.0).float()
        assert data_term(likelihood, y, small).dtype == torch.float32
        sites = dual(lambda m, lik=likelihood, y=y: data_term(lik, y, m), small)
        assert sites.lam1.dtype == sites.lam2.dtype == torch.float32
