"""The white prior: elementwise formulas, distinct rows, what it refuses."""

import gpytorch
import pytest
import torch

from gpvi.approximations import GaussianProcess, Sites, White
from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.kernels import WhiteKernel


def process(*batch: int) -> GaussianProcess:
    kernel = WhiteKernel(batch_shape=torch.Size(batch)).double()
    mean = gpytorch.means.ConstantMean().double()
    mean.constant.data.fill_(0.3)
    return GaussianProcess(kernel, mean).requires_grad_(False)


VARIANCE = process().kernel.variance.item()


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_sites_from_moments_give_these_moments():
    """An encoder's q, wider and narrower than the prior, comes back exactly, KL included."""
    mean, variance = rows(1.0, -2.0, 0.0), rows(0.1, 2.5, 0.6)
    sites = Sites.from_moments(mean, variance, torch.full_like(mean, VARIANCE), 0.3)
    assert sites.lam2[1] < 0
    posterior = White().prior(process(), torch.arange(3.0).double().unsqueeze(-1)).condition(sites)
    torch.testing.assert_close(posterior.marginals().mean, mean)
    torch.testing.assert_close(posterior.marginals().variance, variance)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()),
        torch.distributions.Normal(rows(0.3, 0.3, 0.3), torch.full_like(mean, VARIANCE**0.5)),
    )
    torch.testing.assert_close(posterior.kl(), kl.sum(), rtol=1e-14, atol=1e-14)


def test_rows_with_equal_inputs_are_distinct():
    x = torch.zeros(2, 1, dtype=torch.float64)
    posterior = White().prior(process(), x).condition(Sites(rows(5.0, 0.0), rows(5.0, 0.0)))
    assert posterior.marginals().mean[0] > 0.8
    torch.testing.assert_close(posterior.marginals().mean[1], rows(0.3)[0])
    draw = posterior.rsample((4000,), generator=torch.Generator().manual_seed(0)).values
    assert abs(float(torch.corrcoef(draw.mT)[0, 1])) < 0.1


def test_predictions_are_the_prior_but_at_known_rows():
    x = torch.arange(3.0).double().unsqueeze(-1)
    posterior = White().prior(process(), x).condition(Sites(rows(1, 2, 3), rows(1, 2, 3)))
    new = torch.tensor([[2.0], [7.0], [2.0]], dtype=torch.float64)
    moments, here = posterior.predict(new), posterior.marginals()
    torch.testing.assert_close(
        moments.mean, torch.stack([here.mean[2], rows(0.3)[0], here.mean[2]])
    )
    assert moments.variance[1].item() == VARIANCE and moments.variance[0] == here.variance[2]
    with pytest.raises(UnsupportedError, match="data rows only"):
        posterior.rsample((), new)


def test_improper_posteriors_are_refused():
    prior = White().prior(process().requires_grad_(True), torch.zeros(2, 1).double())
    with pytest.raises(NumericalError, match=r"precision -1.44, .*improper"):
        prior.condition(Sites(rows(0, 0), rows(0, -1 / VARIANCE)))


def test_only_white_kernels():
    x = torch.zeros(2, 1, dtype=torch.float64)
    for kernel in (
        gpytorch.kernels.RBFKernel(),
        gpytorch.kernels.RBFKernel() + WhiteKernel(),
        WhiteKernel(active_dims=(0,)),
    ):
        with pytest.raises(UnsupportedError, match="needs a white kernel"):
            White().prior(GaussianProcess(kernel.double()), x)
    scaled = gpytorch.kernels.ScaleKernel(WhiteKernel()).double()
    White().prior(GaussianProcess(scaled), x)


def test_sites_elsewhere_are_refused():
    with pytest.raises(UnsupportedError, match="not on 'basis'"):
        White().prior(process(), torch.zeros(2, 1).double()).condition(
            Sites.zeros((2,), on="basis")
        )
    with pytest.raises(InputError):
        White().prior(process(), torch.zeros(2, dtype=torch.float64))
