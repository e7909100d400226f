"""Integer powers of kernels."""

import pickle

import pytest
import torch
from gpytorch.kernels import LinearKernel, PolynomialKernel, RBFKernel, ScaleKernel

from gpvi.exceptions import InputError
from gpvi.kernels import PowerKernel


def inputs(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_power_of_a_linear_kernel_is_polynomial():
    linear = LinearKernel().double()
    linear.variance = 1.0
    polynomial = PolynomialKernel(power=3).double()
    polynomial.offset = 1e-300
    x1, x2 = inputs(6, 2), inputs(4, 2)
    assert torch.allclose(PowerKernel(linear, 3)(x1, x2).to_dense(), polynomial(x1, x2).to_dense())


@pytest.mark.parametrize("power", [1, 2, 5])
def test_values_diagonal_and_slices(power):
    base = ScaleKernel(RBFKernel(ard_num_dims=2, active_dims=(0, 2))).double()
    kernel = PowerKernel(base, power)
    x1, x2 = inputs(6, 3), inputs(4, 3)
    expected = base(x1, x2).to_dense() ** power
    assert torch.equal(kernel(x1, x2).to_dense(), expected)
    assert torch.allclose(kernel(x1, x2)[2:, :3].to_dense(), expected[2:, :3])
    assert torch.allclose(kernel(x1, diag=True), kernel(x1).to_dense().diagonal())
    assert kernel.is_stationary


def test_batches_of_composite_kernels():
    shape = torch.Size([2])
    base = ScaleKernel(RBFKernel(batch_shape=shape), batch_shape=shape) + LinearKernel(
        batch_shape=shape
    )
    kernel = PowerKernel(base.double(), 2)
    kernel.base_kernel.kernels[0].outputscale = torch.tensor([1.0, 3.0])
    x = inputs(5, 2)
    assert kernel.batch_shape == shape
    assert torch.allclose(kernel[1](x).to_dense(), kernel(x).to_dense()[1], rtol=1e-12)
    assert set(kernel[1].state_dict()) == set(kernel.state_dict())
    leaf = PowerKernel(RBFKernel().double(), 2)
    expanded = leaf.expand_batch(torch.Size([3]))
    assert expanded.batch_shape == (3,)
    assert torch.allclose(expanded(x).to_dense(), leaf(x).to_dense().expand(3, 5, 5))


def test_parameters_are_held_once_and_gradients_flow():
    kernel = PowerKernel(RBFKernel().double(), 2)
    assert [name for name, _ in kernel.named_parameters()] == ["base_kernel.raw_lengthscale"]
    kernel(inputs(4, 2)).to_dense().sum().backward()
    assert kernel.base_kernel.raw_lengthscale.grad.abs() > 0
    copy = pickle.loads(pickle.dumps(kernel))
    assert torch.equal(copy(inputs(4, 2)).to_dense(), kernel(inputs(4, 2)).to_dense())


@pytest.mark.parametrize("power", [0, -1, 1.5, 2.0, True])
def test_other_exponents_are_refused(power):
    with pytest.raises(InputError, match="at least 1"):
        PowerKernel(RBFKernel(), power)
