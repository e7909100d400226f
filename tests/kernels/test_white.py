"""White noise: a pure function of the rows, and a well-behaved GPyTorch kernel."""

import pickle
from copy import deepcopy
from unittest import TestCase

import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels import WhiteKernel


class TestWhiteKernelConformance(BaseKernelTestCase, TestCase):
    """GPyTorch's own test case for kernels."""

    def create_kernel_no_ard(self, **kwargs) -> WhiteKernel:
        return WhiteKernel(**kwargs)


def white(variance: float | Tensor = 2.0, **arguments) -> WhiteKernel:
    kernel = WhiteKernel(**arguments).double()
    kernel.variance = variance
    return kernel


def rows_with_repeats(*, batch: tuple[int, ...] = (), rows: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (*batch, rows, 2), generator=generator).double()


def naive(x1: Tensor, x2: Tensor, variance: float) -> Tensor:
    values = [[variance * float(torch.equal(a, b)) for b in x2] for a in x1]
    return torch.tensor(values, dtype=torch.float64)


def test_equal_rows_share_their_noise():
    x1, x2 = rows_with_repeats(rows=8), rows_with_repeats(rows=5)
    covariance = white(2.0)(x1, x2).to_dense()
    assert torch.equal(covariance, naive(x1, x2, 2.0).to(covariance))
    assert 0 < (covariance == 0).sum() < covariance.numel()


def test_rows_that_agree_in_one_coordinate_are_not_equal():
    x = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert torch.equal(white(1.0).float()(x).to_dense(), torch.eye(2))


def test_active_dims_choose_what_is_compared():
    x = torch.tensor([[0.0, 1.0], [0.0, 2.0]]).double()
    kernel = white(3.0, active_dims=(0,))
    assert torch.equal(kernel(x).to_dense(), torch.full((2, 2), 3.0).double())


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=8))
def test_covariance_is_positive_semidefinite(rows):
    covariance = white(1.5)(torch.tensor(rows).double()).to_dense()
    assert torch.linalg.eigvalsh(covariance).min() > -1e-12
    assert torch.equal(covariance, covariance.mT)


@given(st.permutations(range(8)))
def test_permuting_rows_permutes_the_matrix(order):
    x = rows_with_repeats()
    covariance = white()(x).to_dense()
    assert torch.equal(white()(x[order]).to_dense(), covariance[order][:, order])


@pytest.mark.parametrize(
    "index",
    [
        (slice(0, 4), slice(2, 8)),
        (slice(None, None, 2), slice(1, None, 3)),
        (torch.tensor([3, 0, 3]), slice(None)),
        (2, slice(None)),
    ],
)
def test_slices_of_the_lazy_matrix(index):
    x = rows_with_repeats()
    lazy, dense = white()(x), white()(x).to_dense()
    part = lazy[index]
    assert torch.equal(part if torch.is_tensor(part) else part.to_dense(), dense[index])


def test_diagonal_of_a_lazy_rectangle():
    x1, x2 = rows_with_repeats(), rows_with_repeats().flip(0)
    kernel = white()
    expected = kernel(x1, x2).to_dense().diagonal()
    assert torch.equal(kernel(x1, x2, diag=True), expected)
    assert torch.equal(kernel(x1, x2).diagonal(), expected)


@pytest.mark.parametrize("batch_shape", [(2,), (3, 2)])
def test_batch_of_kernels_on_shared_inputs(batch_shape):
    variances = torch.arange(1.0, 1.0 + torch.Size(batch_shape).numel()).double().view(batch_shape)
    kernel = white(variances, batch_shape=torch.Size(batch_shape))
    x = rows_with_repeats()
    expected = variances[..., None, None] * naive(x, x, 1.0)
    assert torch.allclose(kernel(x).to_dense(), expected, rtol=1e-14)
    assert torch.allclose(kernel(x, diag=True), expected.diagonal(dim1=-2, dim2=-1), rtol=1e-14)


def test_inputs_with_different_batch_shapes_broadcast():
    x1, x2 = rows_with_repeats(batch=(3, 1)), rows_with_repeats(batch=(4,), rows=5)
    covariance = white(2.0)(x1, x2).to_dense()
    assert covariance.shape == (3, 4, 8, 5)
    assert torch.equal(covariance[2, 1], naive(x1[2, 0], x2[1], 2.0).to(covariance))


@pytest.mark.parametrize("active_dims", [None, (1,)])
def test_indexing_the_batch_keeps_active_dims(active_dims):
    variances = torch.tensor([1.0, 2.0, 3.0]).double()
    kernel = white(variances, batch_shape=torch.Size([3]), active_dims=active_dims)
    x = rows_with_repeats()
    for index in (1, slice(1, 3), torch.tensor([2, 0])):
        part = kernel[index]
        assert part.batch_shape == variances[index].shape
        assert torch.equal(part(x).to_dense(), kernel(x).to_dense()[index])
    assert white()[0].variance.shape == ()


def test_lazy_batch_index_of_inputs_with_more_batch_dimensions():
    kernel = white(torch.tensor([1.0, 2.0]).double(), batch_shape=torch.Size([2]))
    x = rows_with_repeats(batch=(3, 2))
    assert torch.equal(kernel(x)[2, 1].to_dense(), kernel(x).to_dense()[2, 1])


def test_expanded_kernel_is_trainable():
    kernel = white(torch.tensor([1.0, 2.0]).double(), batch_shape=torch.Size([2]), active_dims=(0,))
    expanded = kernel.expand_batch(3, 2)
    assert expanded.batch_shape == expanded.raw_variance.shape == (3, 2)
    assert torch.equal(expanded.variance, kernel.variance.expand(3, 2))
    assert torch.equal(expanded.active_dims, kernel.active_dims)
    expanded.variance.sum().backward()
    torch.optim.SGD(expanded.parameters(), lr=0.1).step()
    assert kernel.expand_batch(torch.Size([2])) is kernel
    with pytest.raises(InputError, match=r"\(2,\) cannot be expanded to \(3,\)"):
        kernel.expand_batch(torch.Size([3]))


def test_gradient_with_respect_to_the_variance():
    kernel = white(2.0)
    x = rows_with_repeats().requires_grad_()
    (gradient,) = torch.autograd.grad(kernel(x).to_dense().sum(), kernel.raw_variance)
    expected = naive(x, x, 1.0).sum() * torch.sigmoid(kernel.raw_variance)
    assert torch.allclose(gradient, expected)


def test_composes_with_other_kernels():
    x = torch.linspace(0, 1, 5).double().unsqueeze(-1)
    smooth = ScaleKernel(RBFKernel()).double()
    total = smooth + white(0.5)
    expected = smooth(x).to_dense() + 0.5 * torch.eye(5)
    assert torch.allclose(total(x).to_dense(), expected)
    assert total.is_stationary
    product = smooth * white(0.5)
    assert torch.allclose(product(x).to_dense(), 0.5 * smooth.outputscale * torch.eye(5).double())


@pytest.mark.filterwarnings("ignore:The last_dim_is_batch argument:DeprecationWarning")
def test_one_matrix_for_each_coordinate():
    kernel = white(torch.tensor([1.0, 2.0]).double(), batch_shape=torch.Size([2]))
    x = rows_with_repeats(batch=(2,))
    matrices = kernel(x, last_dim_is_batch=True).to_dense()
    diagonals = kernel(x, diag=True, last_dim_is_batch=True)
    assert matrices.shape == (2, 2, 8, 8) and diagonals.shape == (2, 2, 8)
    for batch in range(2):
        for column in range(2):
            coordinate = x[batch, :, [column]]
            expected = kernel[batch](coordinate).to_dense()
            assert torch.equal(matrices[batch, column], expected)
            assert torch.equal(diagonals[batch, column], expected.diagonal())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_parameters(dtype):
    kernel = WhiteKernel().to(dtype)
    covariance = kernel(rows_with_repeats().to(dtype)).to_dense()
    assert kernel.dtype == covariance.dtype == dtype


def test_prior_and_constraint():
    kernel = WhiteKernel(
        variance_prior=GammaPrior(2.0, 1.0), variance_constraint=GreaterThan(1e-3)
    ).double()
    (_, module, prior, closure, setter) = next(iter(kernel.named_priors()))
    assert torch.equal(closure(module), kernel.variance)
    setter(module, 0.7)
    assert torch.allclose(kernel.variance, torch.tensor(0.7).double())
    assert torch.isfinite(prior.log_prob(closure(module)))
    with pytest.raises(InputError, match="GammaPrior"):
        WhiteKernel(variance_prior=3.0)


def test_copies_keep_the_values():
    kernel = WhiteKernel(batch_shape=torch.Size([2]), variance_prior=GammaPrior(2.0, 1.0)).double()
    kernel.variance = torch.tensor([0.3, 4.0])
    loaded = WhiteKernel(batch_shape=torch.Size([2]), variance_prior=GammaPrior(2.0, 1.0)).double()
    loaded.load_state_dict(kernel.state_dict())
    x = rows_with_repeats()
    for copy in (pickle.loads(pickle.dumps(kernel)), deepcopy(kernel), loaded):
        assert torch.equal(copy(x).to_dense(), kernel(x).to_dense())
        copy.variance = 1.0
        assert not torch.equal(copy.variance, kernel.variance)
