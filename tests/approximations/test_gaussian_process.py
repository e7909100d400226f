"""Processes and their snapshots."""

import copy
import pickle

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PolynomialKernel,
    RBFKernel,
    ScaleKernel,
)
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, Sites
from gpvi.exceptions import InputError


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


KERNELS = {
    "rbf": lambda batch: RBFKernel(batch_shape=batch),
    "scaled matern": lambda batch: ScaleKernel(
        MaternKernel(nu=2.5, batch_shape=batch), batch_shape=batch
    ),
    "sum": lambda batch: RBFKernel(batch_shape=batch) + LinearKernel(batch_shape=batch),
    "product": lambda batch: RBFKernel(batch_shape=batch) * PeriodicKernel(batch_shape=batch),
    "polynomial": lambda batch: PolynomialKernel(2, batch_shape=batch),
    "active dims": lambda batch: RBFKernel(batch_shape=batch, active_dims=(1,)),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("num_rows", [1, 3, 5])
def test_variance_is_the_diagonal_of_the_covariance(name, num_rows):
    """Also with as many rows as latents, where variances [L, N] look like a matrix."""
    gp = GaussianProcess(KERNELS[name](torch.Size([3])).double())
    for parameter in gp.parameters():
        parameter.data = parameter + 0.3 * normal(*parameter.shape)
    for x in (normal(num_rows, 2), normal(3, num_rows, 2), normal(4, 1, num_rows, 2)):
        covariance = gp.covariance(x)
        shape = torch.broadcast_shapes((3,), x.shape[:-2])
        assert covariance.shape == (*shape, num_rows, num_rows)
        assert gp.mean(x).shape == (*shape, num_rows)
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(gp.variance(x), diagonal, rtol=1e-9, atol=1e-9)
        for latent in range(3):
            alone = GaussianProcess(KERNELS[name](torch.Size()).double())
            state = {
                key: value[latent] if value.dim() and value.shape[:1] == (3,) else value
                for key, value in gp.state_dict().items()
            }
            alone.load_state_dict(state)
            part = x[latent] if x.dim() == 3 else x.squeeze(-3) if x.dim() == 4 else x
            torch.testing.assert_close(
                alone.covariance(part), covariance.select(-3, latent), rtol=1e-9, atol=1e-9
            )


def test_batch_shapes_of_kernel_and_mean_broadcast():
    mean = gpytorch.means.ConstantMean(batch_shape=torch.Size([3])).double()
    gp = GaussianProcess(RBFKernel().double(), mean)
    assert gp.batch_shape == (3,)
    assert gp.covariance(normal(4, 2)).shape == (3, 4, 4)
    assert gp.variance(normal(4, 2)).shape == gp.mean(normal(4, 2)).shape == (3, 4)


def test_default_mean_is_zero():
    gp = GaussianProcess(RBFKernel(batch_shape=torch.Size([2])).double())
    assert torch.equal(gp.mean(normal(4, 1)), torch.zeros(2, 4, dtype=torch.float64))


def test_snapshot_keeps_values_and_gradients():
    gp = GaussianProcess(ScaleKernel(RBFKernel()).double())
    snapshot, x = gp.snapshot(), normal(4, 1)
    before = gp.covariance(x)
    with torch.no_grad():
        for parameter in gp.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(snapshot.covariance(x), before)
    assert not torch.allclose(gp.covariance(x), before)
    snapshot.covariance(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in gp.parameters())
    detached = gp.detach()
    assert not detached.covariance(x).requires_grad
    assert not any(p.requires_grad for p in detached.kernel._parameters.values() if p is not None)


def test_snapshot_keeps_what_is_shared():
    """Two terms with one lengthscale: still one tensor, and one gradient, in the copy."""
    base = RBFKernel().double()
    gp = GaussianProcess(ScaleKernel(base).double() + ScaleKernel(base).double())
    first, second = gp.snapshot().kernel.kernels
    assert first.base_kernel is second.base_kernel
    assert first.base_kernel is not base


def test_snapshot_copies_computed_weights():
    """Old-style normalisation keeps its weights as plain attributes, neither parameter nor buffer."""

    class Warped(RBFKernel):
        def __init__(self) -> None:
            super().__init__()
            self.extra = torch.ones(2, dtype=torch.float64)

        def forward(self, x1, x2, **params):
            return super().forward(x1 * self.extra, x2 * self.extra, **params)

    gp, x = GaussianProcess(Warped().double()), normal(4, 2)
    snapshot, before = gp.snapshot(), gp.covariance(x).detach()
    gp.kernel.extra.mul_(3.0)
    torch.testing.assert_close(snapshot.covariance(x).detach(), before)
    gp.kernel.extra = gp.kernel.extra.clone().requires_grad_()
    assert not gp.detach().kernel.extra.requires_grad


def test_detached_copies_with_hyperparameter_priors_are_pickled():
    """They leave the live module, to which priors and hooks are bound, behind."""
    kernel = ScaleKernel(
        RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(2.0, 3.0)),
        outputscale_prior=gpytorch.priors.NormalPrior(1.0, 1.0),
    )
    mean = gpytorch.means.ConstantMean(constant_prior=gpytorch.priors.NormalPrior(0.0, 1.0))
    gp, x = GaussianProcess(kernel.double(), mean.double()), normal(4, 1)
    posterior = Exact().prior(gp, x).condition(Sites(x[:, 0], torch.ones_like(x[:, 0]))).detach()
    data = pickle.dumps(posterior)
    with torch.no_grad():
        gp.kernel.outputscale = 17.0
    again = pickle.loads(data)
    torch.testing.assert_close(again.predict(x).mean, posterior.predict(x).mean)
    assert list(gp.detach().kernel.named_priors()) == []
    assert len(list(gp.kernel.named_priors())) == 2
    assert len(data) < 20_000
    copy.deepcopy(posterior)


def test_training_a_live_process_through_its_snapshots():
    """Gradients of a bound reach the live parameters, and a step changes the next prior only."""
    gp, x = GaussianProcess(RBFKernel().double()), normal(6, 1)
    optimizer = torch.optim.SGD(gp.parameters(), lr=0.1)
    values = []
    for _ in range(3):
        posterior = Exact().prior(gp, x).condition(Sites(x[:, 0].sin(), torch.ones(6).double()))
        optimizer.zero_grad()
        posterior.log_partition.neg().backward()
        optimizer.step()
        values.append(posterior.log_partition.item())
    assert values[0] < values[1] < values[2]


def test_wrong_types():
    with pytest.raises(InputError, match="parse_kernel"):
        GaussianProcess("rbf")
    with pytest.raises(InputError, match="mean is a float"):
        GaussianProcess(RBFKernel(), 0.0)


def test_state_dict():
    gp = GaussianProcess(ScaleKernel(RBFKernel()).double())
    gp.kernel.outputscale = 3.0
    twin = GaussianProcess(ScaleKernel(RBFKernel()).double())
    twin.load_state_dict(gp.state_dict())
    assert float(twin.kernel.outputscale.detach()) == pytest.approx(3.0)
