"""The dense linear kernel against GPyTorch's."""

import pickle
from copy import deepcopy
from unittest import TestCase

import gpytorch
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase

from gpvi.kernels import LinearKernel


class TestLinearKernelConformance(BaseKernelTestCase, TestCase):
    """GPyTorch's own test case for kernels."""

    def create_kernel_no_ard(self, **kwargs) -> LinearKernel:
        return LinearKernel(**kwargs)

    def create_kernel_ard(self, num_dims: int, **kwargs) -> LinearKernel:
        return LinearKernel(ard_num_dims=num_dims, **kwargs)


def inputs(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def pair(**arguments) -> tuple[LinearKernel, gpytorch.kernels.LinearKernel]:
    ours = LinearKernel(**arguments).double()
    theirs = gpytorch.kernels.LinearKernel(**arguments).double()
    values = torch.linspace(0.5, 2.0, ours.variance.numel(), dtype=torch.float64)
    ours.variance = values.view_as(ours.variance)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ard_num_dims": 3},
        {"batch_shape": torch.Size([2])},
        {"batch_shape": torch.Size([4, 2]), "ard_num_dims": 3},
        {"active_dims": (2, 0)},
    ],
    ids=repr,
)
@pytest.mark.parametrize("rows", [2, 6])
def test_values_and_gradients_equal_gpytorch(arguments, rows):
    ours, theirs = pair(**arguments)
    x1, x2 = inputs(rows, 3), inputs(5, 3)
    for left, right in ((x1, x1), (x1, x2)):
        values = ours(left, right).to_dense(), theirs(left, right).to_dense()
        assert torch.allclose(*values, rtol=1e-12, atol=1e-14)
        weights = inputs(*values[0].shape)
        gradients = [
            torch.autograd.grad((weights * value).sum(), kernel.raw_variance)[0]
            for value, kernel in zip(values, (ours, theirs), strict=True)
        ]
        assert torch.allclose(*gradients, rtol=1e-10)
    assert torch.allclose(ours(x1, diag=True), theirs(x1, diag=True), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:The last_dim_is_batch argument:DeprecationWarning")
def test_one_matrix_for_each_coordinate():
    ours, theirs = pair()
    x = inputs(4, 3)
    actual = ours(x, last_dim_is_batch=True).to_dense()
    assert actual.shape == (3, 4, 4)
    assert torch.allclose(actual, theirs(x, last_dim_is_batch=True).to_dense())
    diagonal = ours(x, diag=True, last_dim_is_batch=True)
    assert torch.allclose(diagonal, actual.diagonal(dim1=-2, dim2=-1))


def test_sum_with_a_singular_term_is_silent_and_exact():
    """Warnings are errors here: GPyTorch's linear kernel adds jitter in this sum."""
    x = torch.linspace(0, 1, 50, dtype=torch.float64).unsqueeze(-1)
    smooth = ScaleKernel(RBFKernel()).double()
    ours, _ = pair()
    expected = smooth(x).to_dense() + ours.variance * x @ x.mT
    assert torch.allclose((smooth + ours)(x).to_dense(), expected, rtol=1e-14)


@pytest.mark.parametrize("rows", [3, 12])
def test_exact_prediction_with_gpytorch(rows):
    class Model(gpytorch.models.ExactGP):
        def __init__(self, x, y, likelihood, kernel):
            super().__init__(x, y, likelihood)
            self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(x), self.covar_module(x)
            )

    kernel, _ = pair()
    x, y, x_new = inputs(rows, 2), inputs(rows), inputs(4, 2)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model = Model(x, y, likelihood, kernel).eval()
    with torch.no_grad():
        mean = model(x_new).mean
        noisy = kernel(x).to_dense() + likelihood.noise * torch.eye(rows)
        expected = kernel(x_new, x).to_dense() @ torch.linalg.solve(noisy, y)
    assert torch.allclose(mean, expected, rtol=1e-8)


def test_copies_keep_the_values():
    kernel, _ = pair(ard_num_dims=3)
    x = inputs(4, 3)
    for copy in (pickle.loads(pickle.dumps(kernel)), deepcopy(kernel)):
        assert torch.equal(copy(x).to_dense(), kernel(x).to_dense())
