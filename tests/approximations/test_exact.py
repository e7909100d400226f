"""Exact conditioning: duplicates, extreme sites, negative precisions."""

import warnings

import gpytorch
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from gpvi.approximations import Exact, ExactPosterior, GaussianProcess, Sites
from gpvi.exceptions import NumericalError
from gpvi.inference import elbo
from gpvi.likelihoods import GaussianLikelihood

X = torch.linspace(0.0, 3.0, 8, dtype=torch.float64).unsqueeze(-1)


def process(lengthscale: float = 1.0) -> GaussianProcess:
    kernel = gpytorch.kernels.RBFKernel().double()
    kernel.lengthscale = lengthscale
    return GaussianProcess(kernel).requires_grad_(False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_duplicates_are_exact_without_jitter():
    """Two equal rows with precisions a and b are one row with a + b; K itself is singular."""
    first, second = torch.full((8,), 3.0).double(), torch.full((8,), 7.0).double()
    y1, y2 = normal(8), normal(8, seed=1)
    doubled = Sites(torch.cat([first * y1, second * y2]), torch.cat([first, second]))
    merged = Sites(first * y1 + second * y2, first + second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twice = Exact().prior(process(), X.repeat(2, 1)).condition(doubled)
    once = Exact().prior(process(), X).condition(merged)
    for actual, expected in (
        (twice.log_partition, once.log_partition),
        (twice.kl(), once.kl()),
        (twice.marginals().mean[8:], once.marginals().mean),
        (twice.marginals().variance[:8], once.marginals().variance),
        (twice.predict(X + 0.1).variance, once.predict(X + 0.1).variance),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_jitter_in_k_would_cost_nats():
    """What chol(K + jitter) would change in the evidence of noisy data with duplicates."""
    x, noise = X.repeat(2, 1), 1e-3
    y = x[:, 0].sin() + noise**0.5 * normal(16)
    K = process().covariance(x)
    sites = Sites(y / noise, torch.full_like(y, 1 / noise))
    evidence = elbo(
        Exact().prior(process(), x).condition(sites), GaussianLikelihood(noise=noise), y
    ).item()

    def dense(jitter: float) -> float:
        covariance = K + (noise + jitter) * torch.eye(16, dtype=torch.float64)
        return MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y).item()

    assert evidence == pytest.approx(dense(0.0), abs=1e-9)
    assert abs(dense(1e-6) - evidence) > 5e-4


@pytest.mark.parametrize("noise", [1e-2, 1e-6, 1e-10])
def test_kl_does_not_cancel_for_precise_sites(noise):
    """lam1^2 / lam2 grows as 1 / noise; the KL does not, and keeps its digits."""
    gp = process(0.5)
    y = 3.0 + X[:, 0].sin()
    posterior = Exact().prior(gp, X).condition(Sites(y / noise, torch.full_like(y, 1 / noise)))
    K = gp.covariance(X).double()
    # KL from the spectrum of K: the noise is one number.
    values, vectors = torch.linalg.eigh(K)
    weight = vectors.mT @ y
    shrink = values / (values + noise)
    expected = 0.5 * (
        (values * (weight / (values + noise)).square()).sum()
        + ((1 - shrink) - 1 - (noise / (values + noise)).log()).sum()
    )
    torch.testing.assert_close(posterior.kl(), expected, rtol=1e-6, atol=0.0)


def test_negative_precision_uses_the_whitened_form():
    lam2 = torch.full((8,), 2.0).double()
    assert type(Exact().prior(process(), X).condition(Sites(lam2, lam2))) is ExactPosterior
    lam2[3] = -0.01
    posterior = Exact().prior(process(0.5), X).condition(Sites(lam2, lam2))
    assert type(posterior) is not ExactPosterior
    K = process(0.5).covariance(X)
    expected = torch.linalg.inv(torch.linalg.inv(K) + torch.diag(lam2)).diagonal()
    torch.testing.assert_close(posterior.marginals().variance, expected, rtol=1e-6, atol=1e-6)


def test_improper_posteriors_are_refused():
    lam2 = torch.zeros(8, dtype=torch.float64)
    lam2[3] = -2.0  # the prior precision given the other rows is larger, but not without them
    with pytest.raises(NumericalError, match="site precision is too negative"):
        Exact().prior(process(0.01), X).condition(Sites(lam2, lam2))


def test_slopes_of_draws_stay_bounded_in_weak_sites():
    """A site near zero moves a draw by its size, not by its square root."""
    prior = Exact().prior(process(), X)
    slopes = []
    for precision in (0.0, 1e-12, 1e-6, 1e-2):
        lam2 = torch.full((8,), precision).double().requires_grad_()
        draw = prior.condition(Sites(torch.zeros(8).double(), lam2)).rsample(
            (1,), generator=torch.Generator().manual_seed(0)
        )
        (slope,) = torch.autograd.grad(draw.values.sum(), lam2)
        slopes.append(slope)
    for slope in slopes[1:]:
        torch.testing.assert_close(slope, slopes[0], rtol=0.2, atol=0.05)


def test_many_samples_do_not_copy_the_factor():
    """A thousand draws at new inputs take memory for the draws, not for a thousand factors."""
    x = torch.linspace(0.0, 9.0, 200, dtype=torch.float64).unsqueeze(-1)
    posterior = Exact().prior(process(0.3), x).condition(Sites(x[:, 0], torch.ones_like(x[:, 0])))
    largest = 0

    class Record(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Record():
        posterior.log_ratio(posterior.rsample((1000,), x[:7] + 0.01))
    assert largest <= 1000 * 200


def test_new_inputs_with_more_batch_dims():
    """One function sampled at several sets of inputs: the draw at the data is shared."""
    posterior = Exact().prior(process(), X).condition(Sites(X[:, 0], torch.ones_like(X[:, 0])))
    new = normal(2, 3, 1)
    for number in (2, 5):
        draw = posterior.rsample((number,), new, generator=torch.Generator().manual_seed(0))
        assert draw.values.shape == (number, 2, 3) and draw.basis.shape == (number, 8)
    # At the data themselves the values are the basis, whichever block they stand in.
    same = posterior.rsample((4,), X.expand(2, 8, 1), generator=torch.Generator().manual_seed(0))
    for block in range(2):
        torch.testing.assert_close(same.values[:, block], same.basis, rtol=0, atol=1e-3)
