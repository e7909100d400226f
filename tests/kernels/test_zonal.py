"""Kernels of the chord against GPyTorch's in the space around the sphere, and their spectra."""

import math
import pickle
from copy import deepcopy
from unittest import TestCase

import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from scipy.special import ive

from gpvi.approximations import GaussianProcess
from gpvi.exceptions import InputError
from gpvi.kernels import LinearKernel, parse_kernel
from gpvi.kernels._gegenbauer import gegenbauer_series, multiplicities
from gpvi.kernels.arc_cosine import ArcCosineKernel
from gpvi.kernels.zonal import ZonalKernel, require_zonal_form, zonal_form

SHAPES = ("matern12", "matern32", "matern52", "rbf")


class TestZonalConformance(BaseKernelTestCase, TestCase):
    """GPyTorch's own test case for kernels, without the one that splits columns."""

    def create_kernel_no_ard(self, **kwargs) -> ZonalKernel:
        return ZonalKernel(**kwargs)

    def create_kernel_ard(self, num_dims: int, **kwargs) -> ZonalKernel:
        return ZonalKernel(ard_num_dims=num_dims, **kwargs)

    def create_kernel_with_prior(self, prior) -> ZonalKernel:
        return ZonalKernel(lengthscale_prior=prior)

    test_no_batch_kernel_double_batch_x_no_ard = None
    test_no_batch_kernel_double_batch_x_ard = None


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(shape: str = "matern52", **arguments) -> ZonalKernel:
    kernel = ZonalKernel(shape, **arguments).double()
    values = torch.linspace(0.5, 1.5, kernel.lengthscale.numel(), dtype=torch.float64)
    kernel.lengthscale = values.view_as(kernel.lengthscale)
    batch = torch.linspace(0.7, 1.2, kernel.bias.numel()).double().view_as(kernel.bias)
    kernel.bias, kernel.sphere_lengthscale = batch, 1.1 * batch
    return kernel


def around(shape: str, scale: float):
    nu = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}.get(shape)
    kernel = (RBFKernel() if nu is None else MaternKernel(nu=nu)).double()
    kernel.lengthscale = scale
    return kernel


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_kernel_of_directions(shape):
    kernel, x1, x2 = made(shape, ard_num_dims=3), inputs(6, 3), inputs(5, 3, seed=1)
    other = around(shape, kernel.sphere_lengthscale.item())
    lifted = [
        torch.cat([x / kernel.lengthscale, kernel.bias.expand(len(x), 1)], -1) for x in (x1, x2)
    ]
    d1, d2 = (v / v.norm(dim=-1, keepdim=True) for v in lifted)
    torch.testing.assert_close(kernel(x1, x2).to_dense(), other(d1, d2).to_dense())
    torch.testing.assert_close(kernel(x1).to_dense(), other(d1).to_dense(), atol=1e-7, rtol=1e-7)
    assert torch.equal(kernel(x1, diag=True), torch.ones(6, dtype=torch.float64))
    pairs = kernel(x1[:5], x2, diag=True)
    torch.testing.assert_close(pairs, kernel(x1[:5], x2).to_dense().diagonal())


def test_lengths_do_not_matter():
    kernel, x = made(), inputs(6, 3)
    before = kernel(x).to_dense()
    kernel.lengthscale, kernel.bias = kernel.lengthscale.detach() / 2, kernel.bias.detach() * 2
    torch.testing.assert_close(kernel(x).to_dense(), before)
    assert kernel(1e6 * x[:1], 2e6 * x[:1]).to_dense().item() == pytest.approx(1.0)


class Of(torch.nn.Module):
    """A function of a kernel as a module, for `functional_call`."""

    def __init__(self, kernel: ZonalKernel, function) -> None:
        super().__init__()
        self.kernel, self.function = kernel, function

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self.function(self.kernel, *arguments)


def derivatives_agree(kernel: ZonalKernel, function, *arguments: torch.Tensor) -> bool:
    names = [f"kernel.{name}" for name, _ in kernel.named_parameters()]
    raw = [p.detach().clone().requires_grad_() for p in kernel.parameters()]
    module = Of(kernel, function)

    def called(*values):
        parameters = dict(zip(names, values, strict=False))
        return torch.func.functional_call(module, parameters, values[len(names) :])

    return torch.autograd.gradcheck(called, (*raw, *arguments))


@pytest.mark.parametrize("shape", ["matern32", "matern52", "rbf"])
def test_gradients(shape):
    kernel, x, z = made(shape, ard_num_dims=2), inputs(4, 2), inputs(3, 2, seed=1)
    assert derivatives_agree(kernel, lambda k, x: k.forward(x, z), x.requires_grad_())


@pytest.mark.parametrize("shape", SHAPES)
def test_eigenvalues_follow_the_parameters(shape):
    assert derivatives_agree(made(shape), lambda k: k.eigenvalues(6, 4))


@pytest.mark.parametrize(
    ("shape", "tolerance"),
    [("matern12", 0.1), ("matern32", 2e-3), ("matern52", 1e-4), ("rbf", 1e-11)],
)
@pytest.mark.parametrize("dimension", [2, 3, 5, 9])
def test_eigenvalues_sum_to_one_and_rebuild_the_kernel(shape, tolerance, dimension):
    kernel, L = made(shape), 40
    coefficients = kernel.eigenvalues(L, dimension) * multiplicities(L, dimension)
    assert 1.0 - tolerance < coefficients.sum().item() < 1.0 + 1e-10
    t = torch.linspace(-1.0, 1.0, 101, dtype=torch.float64)
    series = gegenbauer_series(coefficients, t, dimension)
    expected = kernel.profile(t.acos())
    torch.testing.assert_close(series, expected, atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("scale", [0.05, 0.4, 2.0])
@pytest.mark.parametrize("dimension", [3, 6])
def test_rbf_eigenvalues_are_bessel_functions(scale, dimension):
    kernel = made("rbf")
    kernel.sphere_lengthscale = scale
    found = kernel.eigenvalues(12, dimension).detach()
    alpha, z = 0.5 * dimension - 1.0, scale**-2
    level = torch.arange(12, dtype=torch.float64)
    bessel = torch.tensor(ive((level + alpha).numpy(), z))
    expected = math.gamma(alpha + 1.0) * (2.0 / z) ** alpha * bessel
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
def test_more_columns_than_levels_can_tell(shape):
    eigenvalues = made(shape).eigenvalues(64, 50).detach()
    assert bool((eigenvalues >= 0).all()) and bool((eigenvalues.diff()[:3] < 0).all())


def test_batches():
    kernel = made(batch_shape=torch.Size([2, 3]), ard_num_dims=2)
    x = inputs(6, 2)
    dense = kernel(x).to_dense()
    assert dense.shape == (2, 3, 6, 6) and kernel.eigenvalues(5).shape == (2, 3, 5)
    torch.testing.assert_close(kernel[1, 2](x).to_dense(), dense[1, 2])
    torch.testing.assert_close(kernel[1, 2].eigenvalues(5), kernel.eigenvalues(5)[1, 2])
    torch.testing.assert_close(
        GaussianProcess(kernel).variance(x), dense.diagonal(dim1=-2, dim2=-1)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(shape, dtype):
    kernel, x = made(shape, ard_num_dims=3).to(dtype), inputs(6, 3)
    dense = kernel(x.to(dtype)).to_dense()
    assert dense.dtype == dtype and kernel.eigenvalues(4).dtype == torch.float64
    exact = made(shape, ard_num_dims=3)(x).to_dense()
    torch.testing.assert_close(dense.double(), exact, rtol=1e-4, atol=2e-4)


def test_copies_and_state():
    kernel, x = made("matern32", ard_num_dims=3), inputs(6, 3)
    other = ZonalKernel("matern32", ard_num_dims=3).double()
    other.load_state_dict(kernel.state_dict())
    for copy in (pickle.loads(pickle.dumps(kernel)), deepcopy(kernel), other):
        assert torch.equal(copy(x).to_dense(), kernel(x).to_dense())


def test_options():
    assert len(list(ZonalKernel(sphere_lengthscale_prior=GammaPrior(2.0, 1.0)).named_priors())) == 1
    with pytest.raises(InputError, match="it must be one of matern12"):
        ZonalKernel("matern72")
    for name in SHAPES:
        assert parse_kernel(f"zonal_{name}", 2).base_kernel.shape == name


@pytest.mark.filterwarnings("ignore:The last_dim_is_batch argument:DeprecationWarning")
def test_columns_cannot_be_split():
    with pytest.raises(InputError, match="does not split into columns"):
        made()(inputs(4, 2), last_dim_is_batch=True).to_dense()


class TestZonalForm:
    def test_sees_through_scales_and_columns(self):
        base = ArcCosineKernel(active_dims=(3, 1)).double()
        kernel = ScaleKernel(ScaleKernel(base)).double()
        kernel.outputscale, kernel.base_kernel.outputscale = 2.0, 3.0
        form = zonal_form(kernel)
        assert form is not None and form.outputscale.item() == pytest.approx(6.0)
        x = inputs(5, 4)
        directions, amplitudes = form.project(x)
        expected = form.outputscale * amplitudes[:, None] * amplitudes
        expected = expected * form.kernel.correlation(directions, directions, False)
        torch.testing.assert_close(kernel(x).to_dense(), expected)

    @pytest.mark.parametrize(
        "kernel", [RBFKernel(), LinearKernel(), ZonalKernel() + LinearKernel(), None], ids=str
    )
    def test_refuses_other_kernels(self, kernel):
        with pytest.raises(InputError, match=r"use ArcCosineKernel or ZonalKernel"):
            require_zonal_form(kernel)
