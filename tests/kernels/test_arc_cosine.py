"""The arc-cosine kernel against its definition as an expectation and its spectrum."""

import math
import pickle
from copy import deepcopy
from unittest import TestCase

import pytest
import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import ScaleKernel
from gpytorch.priors import GammaPrior
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase

from gpvi.approximations import GaussianProcess
from gpvi.exceptions import InputError
from gpvi.kernels import parse_kernel
from gpvi.kernels._gegenbauer import angle_rule, funk_hecke, gegenbauer_series, multiplicities
from gpvi.kernels.arc_cosine import ArcCosineKernel


class TestArcCosineConformance(BaseKernelTestCase, TestCase):
    """GPyTorch's own test case for kernels, without the one that splits columns."""

    def create_kernel_no_ard(self, **kwargs) -> ArcCosineKernel:
        return ArcCosineKernel(**kwargs)

    def create_kernel_ard(self, num_dims: int, **kwargs) -> ArcCosineKernel:
        return ArcCosineKernel(ard_num_dims=num_dims, **kwargs)

    def create_kernel_with_prior(self, prior) -> ArcCosineKernel:
        return ArcCosineKernel(lengthscale_prior=prior)

    test_no_batch_kernel_double_batch_x_no_ard = None
    test_no_batch_kernel_double_batch_x_ard = None


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(order: int = 1, **arguments) -> ArcCosineKernel:
    kernel = ArcCosineKernel(order, **arguments).double()
    values = torch.linspace(0.5, 1.5, kernel.lengthscale.numel(), dtype=torch.float64)
    kernel.lengthscale = values.view_as(kernel.lengthscale)
    kernel.bias = torch.linspace(0.7, 1.2, kernel.bias.numel()).double().view_as(kernel.bias)
    return kernel


def reference(order: int, x1: torch.Tensor, x2: torch.Tensor, bias: float) -> torch.Tensor:
    """Of lifted inputs, by the formulas of Cho and Saul."""
    lift = [torch.cat([x, torch.full_like(x[..., :1], bias)], -1) for x in (x1, x2)]
    r = lift[0].norm(dim=-1)[:, None] * lift[1].norm(dim=-1)[None]
    theta = (lift[0] @ lift[1].mT / r).clamp(-1, 1).acos()
    J = {
        0: math.pi - theta,
        1: theta.sin() + (math.pi - theta) * theta.cos(),
        2: 3 * theta.sin() * theta.cos() + (math.pi - theta) * (1 + 2 * theta.cos() ** 2),
    }[order]
    return r**order * J / {0: math.pi, 1: math.pi, 2: 3 * math.pi}[order]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_values_against_the_formulas(order):
    kernel, x1, x2 = made(order, ard_num_dims=3), inputs(6, 3), inputs(5, 3, seed=1)
    scale, bias = kernel.lengthscale.detach(), kernel.bias.item()
    for left, right in ((x1, x1), (x1, x2)):
        expected = reference(order, left / scale, right / scale, bias)
        torch.testing.assert_close(kernel(left, right).to_dense(), expected, atol=1e-7, rtol=1e-9)
    torch.testing.assert_close(kernel(x1, diag=True), kernel(x1).to_dense().diagonal())
    pairs = kernel(x1[:5], x2, diag=True)
    torch.testing.assert_close(pairs, kernel(x1[:5], x2).to_dense().diagonal())


@pytest.mark.parametrize("order", [0, 1, 2])
def test_is_the_covariance_of_random_units(order):
    """Twice the mean of products of units with normal weights."""
    kernel, x = made(order), inputs(3, 2)
    lifted = torch.cat([x / kernel.lengthscale, kernel.bias.expand(3, 1)], -1).detach()
    drive = lifted @ inputs(3, 400_000, seed=7)
    units = (drive > 0).double() if order == 0 else drive.clamp_min(0.0) ** order
    expected = 2.0 / {0: 1, 1: 1, 2: 3}[order] * (units @ units.mT) / units.shape[-1]
    torch.testing.assert_close(kernel(x).to_dense().detach(), expected, rtol=0.05, atol=0.02)


def test_order_one_is_homogeneous():
    kernel, x1, x2 = made(), inputs(6, 3), inputs(5, 3, seed=1)
    before = kernel(x1, x2).to_dense()
    kernel.lengthscale = kernel.lengthscale.detach() / 3.0
    kernel.bias = kernel.bias.detach() * 3.0
    torch.testing.assert_close(kernel(x1, x2).to_dense(), 9.0 * before)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("diag", [False, True])
def test_gradients_with_equal_rows(order, diag):
    """Automatic derivatives of the arc cosine would be NaN on the diagonal."""
    kernel = made(order, ard_num_dims=2)
    raw = [p.detach().clone().requires_grad_() for p in kernel.parameters()]
    names = [f"kernel.{name}" for name, _ in kernel.named_parameters()]
    x, weights = inputs(4, 2).requires_grad_(), inputs(4, 4, seed=3)

    def function(x, *values):
        parameters = dict(zip(names, values, strict=True))
        value = torch.func.functional_call(Dense(kernel), parameters, (x, diag))
        return (weights.diagonal() * value if diag else weights * value).sum()

    assert torch.autograd.gradcheck(function, (x, *raw))
    if order == 2:  # under order one the second derivative is infinite where rows are equal
        assert torch.autograd.gradgradcheck(function, (x, *raw))


class Dense(torch.nn.Module):
    """The matrix as a module's output, for `functional_call`."""

    def __init__(self, kernel: ArcCosineKernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: torch.Tensor, diag: bool) -> torch.Tensor:
        return self.kernel.forward(x, x, diag=diag)


def test_gradients_of_order_zero_are_finite():
    kernel, x = made(0), inputs(5, 2).requires_grad_()
    kernel.forward(x, x).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in kernel.parameters())


@pytest.mark.parametrize("dimension", [2, 3, 5, 9])
def test_eigenvalues_are_squared_coefficients_of_a_ramp(dimension):
    """Order one averages ramps over all directions, which squares their coefficients."""
    eigenvalues = made().eigenvalues(12, dimension).detach()
    rule = angle_rule(dimension, eigenvalues, kink=0.5 * math.pi)
    ramp = funk_hecke(rule[0].cos().clamp_min(0.0), rule, 12, dimension)
    torch.testing.assert_close(eigenvalues, 2.0 * dimension * ramp**2, rtol=1e-9, atol=1e-14)
    assert eigenvalues[3::2].max() < 1e-14


@pytest.mark.parametrize(("order", "tolerance"), [(1, 5e-4), (2, 5e-6)])
@pytest.mark.parametrize("dimension", [3, 5, 9])
def test_eigenvalues_sum_to_one_and_rebuild_the_kernel(order, tolerance, dimension):
    kernel, L = made(order), 40
    eigenvalues = kernel.eigenvalues(L, dimension)
    coefficients = eigenvalues * multiplicities(L, dimension)
    assert 1.0 - tolerance < coefficients.sum().item() < 1.0 + 1e-12
    t = torch.linspace(-1.0, 1.0, 101, dtype=torch.float64)
    series = gegenbauer_series(coefficients, t, dimension)
    torch.testing.assert_close(series, kernel.profile(t.acos()), atol=tolerance, rtol=0.0)


def test_spectrum_knows_the_dimension_from_the_columns():
    assert made(ard_num_dims=4).eigenvalues(3)[1] == made().eigenvalues(3, 5)[1]
    assert made(active_dims=(0, 2)).eigenvalues(3)[1] == made().eigenvalues(3, 3)[1]
    with pytest.raises(InputError, match="pass dimension"):
        made().eigenvalues(3)


def test_batches():
    kernel = made(batch_shape=torch.Size([2, 3]), ard_num_dims=2)
    x = inputs(6, 2)
    dense = kernel(x).to_dense()
    assert dense.shape == (2, 3, 6, 6) and kernel.eigenvalues(5).shape == (2, 3, 5)
    torch.testing.assert_close(kernel[1, 2](x).to_dense(), dense[1, 2])
    torch.testing.assert_close(
        GaussianProcess(kernel).variance(x), dense.diagonal(dim1=-2, dim2=-1)
    )
    wider = made(ard_num_dims=2).expand_batch(4)
    assert wider(x).to_dense().shape == (4, 6, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    kernel, x = made(ard_num_dims=3).to(dtype), inputs(6, 3)
    dense = kernel(x.to(dtype)).to_dense()
    assert dense.dtype == dtype
    torch.testing.assert_close(
        dense.double(), made(ard_num_dims=3)(x).to_dense(), rtol=1e-5, atol=1e-5
    )


def test_only_active_columns_count():
    x = inputs(6, 4)
    kernel = made(active_dims=(2, 0), ard_num_dims=2)
    torch.testing.assert_close(kernel(x).to_dense(), made(ard_num_dims=2)(x[:, [2, 0]]).to_dense())


def test_copies_and_state():
    kernel, x = made(2, ard_num_dims=3, bias_prior=GammaPrior(2.0, 1.0)), inputs(6, 3)
    other = ArcCosineKernel(2, ard_num_dims=3, bias_prior=GammaPrior(2.0, 1.0)).double()
    other.load_state_dict(kernel.state_dict())
    for copy in (pickle.loads(pickle.dumps(kernel)), deepcopy(kernel), other):
        assert torch.equal(copy(x).to_dense(), kernel(x).to_dense())
    snapshot = GaussianProcess(kernel).snapshot()
    torch.testing.assert_close(snapshot.covariance(x), kernel(x).to_dense())


def test_options():
    assert len(list(ArcCosineKernel(bias_prior=GammaPrior(2.0, 1.0)).named_priors())) == 1
    assert 0.1 < ArcCosineKernel(bias_constraint=Interval(0.1, 0.3)).bias.item() < 0.3
    assert not ArcCosineKernel().is_stationary
    for order in (3, -1, True, 1.5):
        with pytest.raises(InputError, match="order is"):
            ArcCosineKernel(order)


@pytest.mark.filterwarnings("ignore:The last_dim_is_batch argument:DeprecationWarning")
def test_columns_cannot_be_split():
    with pytest.raises(InputError, match="does not split into columns"):
        made()(inputs(4, 2), last_dim_is_batch=True).to_dense()


def test_short_name():
    kernel = parse_kernel("arc_cosine + white", 3)
    assert type(kernel.kernels[0]) is ScaleKernel
    assert kernel.kernels[0].base_kernel.lengthscale.shape == (1, 3)
