"""The kernel of categorical columns against its definition."""

import math
import pickle
from copy import deepcopy
from unittest import TestCase

import gpytorch
import pytest
import torch
from gpytorch.constraints import Interval
from gpytorch.priors import GammaPrior
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from hypothesis import given
from hypothesis import strategies as st

from gpvi.approximations import GaussianProcess
from gpvi.kernels import HammingKernel, parse_kernel, set_lengthscales


class TestHammingKernelConformance(BaseKernelTestCase, TestCase):
    """GPyTorch's own test case for kernels."""

    def create_kernel_no_ard(self, **kwargs) -> HammingKernel:
        return HammingKernel(**kwargs)

    def create_kernel_ard(self, num_dims: int, **kwargs) -> HammingKernel:
        return HammingKernel(ard_num_dims=num_dims, **kwargs)

    def create_kernel_with_prior(self, prior) -> HammingKernel:
        return HammingKernel(lengthscale_prior=prior)


def codes(*shape: int, seed: int = 0, levels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, shape, generator=generator).double()


def made(**arguments) -> HammingKernel:
    """A kernel with another lengthscale in every place."""
    kernel = HammingKernel(**arguments).double()
    values = torch.linspace(0.4, 3.0, kernel.lengthscale.numel(), dtype=torch.float64)
    kernel.lengthscale = values.view_as(kernel.lengthscale)
    return kernel


def reference(x1: torch.Tensor, x2: torch.Tensor, lengthscale: torch.Tensor) -> torch.Tensor:
    differ = (x1.unsqueeze(-2) != x2.unsqueeze(-3)).to(lengthscale)
    return (-(differ / lengthscale.unsqueeze(-2)).sum(-1)).exp()


@pytest.mark.parametrize(
    "arguments",
    [{}, {"ard_num_dims": 4}, {"batch_shape": torch.Size([2])}]
    + [{"batch_shape": torch.Size([3, 2]), "ard_num_dims": 4}],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(arguments, dtype):
    kernel = made(**arguments).to(dtype)
    x1, x2 = codes(6, 4).to(dtype), codes(5, 4, seed=1).to(dtype)
    for left, right in ((x1, x1), (x1, x2)):
        actual = kernel(left, right).to_dense()
        expected = reference(left, right, kernel.lengthscale)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, expected)
        gradients = [
            torch.autograd.grad(value.square().sum(), kernel.raw_lengthscale)[0]
            for value in (actual, expected)
        ]
        torch.testing.assert_close(*gradients)
    assert torch.equal(
        kernel(x1.expand(*kernel.batch_shape, 6, 4), diag=True),
        torch.ones(*kernel.batch_shape, 6, dtype=dtype),
    )
    pairs = kernel(x1[:5].expand(*kernel.batch_shape, 5, 4), x2, diag=True)
    torch.testing.assert_close(pairs, kernel(x1[:5], x2).to_dense().diagonal(dim1=-2, dim2=-1))


def test_batches_of_inputs_meet_batches_of_kernels():
    kernel = made(batch_shape=torch.Size([2]), ard_num_dims=4)
    x1, x2 = codes(3, 1, 6, 4), codes(3, 1, 5, 4, seed=1)
    actual = kernel(x1, x2).to_dense()
    assert actual.shape == (3, 2, 6, 5)
    torch.testing.assert_close(actual, reference(x1, x2, kernel.lengthscale))


@pytest.mark.filterwarnings("ignore:The last_dim_is_batch argument:DeprecationWarning")
@pytest.mark.parametrize("ard", [None, 4])
def test_one_matrix_for_each_column(ard):
    kernel = made(ard_num_dims=ard)
    x = codes(6, 4)
    actual = kernel(x, last_dim_is_batch=True).to_dense()
    assert actual.shape == (4, 6, 6)
    torch.testing.assert_close(actual.prod(0), kernel(x).to_dense())
    diagonal = kernel(x, diag=True, last_dim_is_batch=True)
    torch.testing.assert_close(diagonal, actual.diagonal(dim1=-2, dim2=-1))


def test_only_active_columns_count():
    kernel = made(active_dims=(2, 0), ard_num_dims=2)
    x = codes(6, 4)
    expected = reference(x[:, [2, 0]], x[:, [2, 0]], kernel.lengthscale)
    torch.testing.assert_close(kernel(x).to_dense(), expected)
    assert torch.equal(kernel(x + torch.tensor([0, 1, 0, 2])).to_dense(), kernel(x).to_dense())


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.floats(0.05, 50.0),
    st.integers(0, 2**16),
)
def test_positive_definite_and_blind_to_the_codes(columns, levels, lengthscale, seed):
    kernel = HammingKernel().double()
    kernel.lengthscale = lengthscale
    x = codes(12, columns, seed=seed, levels=levels)
    covariance = kernel(x).to_dense().detach()
    assert torch.linalg.eigvalsh(covariance)[0] > -1e-12
    renamed = torch.randn(levels, generator=torch.Generator().manual_seed(seed)).double()[x.long()]
    assert torch.equal(kernel(renamed).to_dense(), covariance)


@pytest.mark.parametrize("columns", [1, 20])
def test_starts_with_moderate_correlations(columns):
    kernel = HammingKernel(ard_num_dims=columns)
    x = torch.stack([torch.zeros(columns), torch.ones(columns)])
    assert math.isclose(kernel(x).to_dense()[0, 1].item(), math.exp(-0.5), rel_tol=1e-5)
    assert math.isclose(HammingKernel().lengthscale.item(), 2.0, rel_tol=1e-5)


def test_prior_and_constraint_are_kept():
    kernel = HammingKernel(
        lengthscale_prior=GammaPrior(2.0, 1.0), lengthscale_constraint=Interval(0.1, 1.0)
    )
    assert len(list(kernel.named_priors())) == 1
    assert 0.1 < kernel.lengthscale.item() < 1.0


def test_data_initialisation_leaves_the_lengthscales():
    kernel = parse_kernel("hamming * rbf", 3)
    before = kernel.base_kernel.kernels[0].lengthscale.clone()
    set_lengthscales(kernel, torch.tensor([0.01, 1.0, 100.0]))
    assert torch.equal(kernel.base_kernel.kernels[0].lengthscale, before)
    assert math.isclose(kernel.base_kernel.kernels[1].lengthscale[0, 2].item(), 100.0)


def test_copies_and_state():
    kernel, x = made(ard_num_dims=4), codes(6, 4)
    other = HammingKernel(ard_num_dims=4).double()
    other.load_state_dict(kernel.state_dict())
    for copy in (pickle.loads(pickle.dumps(kernel)), deepcopy(kernel), other):
        assert torch.equal(copy(x).to_dense(), kernel(x).to_dense())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # linear_operator's
def test_index_kernel_of_one_column_can_be_parsed():
    """GPyTorch's kernel of free level covariances, for one column of integer codes."""
    torch_index = gpytorch.kernels.IndexKernel(num_tasks=3, rank=2, active_dims=(1,))
    with torch.no_grad():
        torch_index.covar_factor.copy_(torch.tensor([[1.0, 0.2], [0.5, -0.3], [0.0, 0.8]]))
    smooth = gpytorch.kernels.RBFKernel(active_dims=(0,))
    kernel = parse_kernel(smooth * torch_index, 2)
    x = torch.stack([torch.linspace(0, 1, 6).double(), codes(6)], -1)
    set_lengthscales(kernel, torch.tensor([0.5, 1.0]))
    gp = GaussianProcess(kernel)
    factor, own = torch_index.covar_factor.double(), torch_index.var.double()
    between = factor @ factor.mT + own.diag()
    level = x[:, 1].long()
    distance = (x[:, :1] - x[:, :1].mT) / 0.5
    expected = (-0.5 * distance.square()).exp() * between[level][:, level]
    torch.testing.assert_close(gp.covariance(x), expected)
    torch.testing.assert_close(gp.covariance(x, x[:2]), expected[:, :2])
    torch.testing.assert_close(gp.variance(x), expected.diagonal())
