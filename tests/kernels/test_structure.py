"""What the structure queries recognise, and what they refuse to claim."""

import math

import pytest
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    LinearKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)

from gpvi.exceptions import InputError
from gpvi.kernels import (
    PowerKernel,
    WhiteKernel,
    input_dimensions,
    is_white,
    parse_kernel,
    stationary_form,
)


class Tilted(RBFKernel):
    """A subclass that is neither white nor stationary."""

    def forward(self, x1, x2, diag=False, **params):
        return super().forward(x1, x2, diag=diag, **params) + 1.0


class Correlated(WhiteKernel):
    """A subclass that is no longer white."""

    def forward(self, x1, x2, diag=False, last_dim_is_batch=False, **params):
        return super().forward(x1, x2, diag, last_dim_is_batch, **params) + 1.0


WHITE = [
    WhiteKernel(),
    WhiteKernel(batch_shape=torch.Size([2])),
    ScaleKernel(WhiteKernel()),
    ScaleKernel(ScaleKernel(WhiteKernel())),
    WhiteKernel() + WhiteKernel(),
    WhiteKernel() * RBFKernel(),
    RBFKernel() * ScaleKernel(WhiteKernel()),
    RBFKernel() * LinearKernel() * WhiteKernel(),
    ScaleKernel(RBFKernel() * WhiteKernel()) + WhiteKernel(),
    ProductKernel(RBFKernel() + LinearKernel(), WhiteKernel()),
    PowerKernel(WhiteKernel(), 2),
]
NOT_WHITE = [
    RBFKernel(),
    ConstantKernel(),
    ScaleKernel(RBFKernel()),
    WhiteKernel() + RBFKernel(),
    RBFKernel() * LinearKernel(),
    ProductKernel(WhiteKernel() + RBFKernel(), RBFKernel()),
    PowerKernel(RBFKernel(), 2),
    WhiteKernel(active_dims=(0,)),
    ScaleKernel(WhiteKernel(active_dims=(0,))),
    Correlated(),
    AdditiveKernel(),
    ProductKernel(),
]


@pytest.mark.parametrize("kernel", WHITE, ids=repr)
def test_white_kernels_are_diagonal(kernel):
    assert is_white(kernel)
    x = torch.linspace(-1.0, 1.0, 6).view(6, 1).expand(6, 2)
    covariance = kernel(x).to_dense()
    diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    assert torch.equal(covariance, diagonal)


@pytest.mark.parametrize("kernel", NOT_WHITE, ids=repr)
def test_others_are_not_white(kernel):
    assert not is_white(kernel)


def evaluate(form, x1, x2):
    """The documented closed form, written out."""
    r = ((x1 / form.lengthscale)[:, None] - (x2 / form.lengthscale)[None]).norm(dim=-1)
    value = {
        "rbf": torch.exp(-(r**2) / 2),
        "matern12": torch.exp(-r),
        "matern32": (1 + math.sqrt(3) * r) * torch.exp(-math.sqrt(3) * r),
        "matern52": (1 + math.sqrt(5) * r + 5 * r**2 / 3) * torch.exp(-math.sqrt(5) * r),
    }[form.name]
    return value if form.outputscale is None else form.outputscale * value


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("ard", [False, True])
@pytest.mark.parametrize("name", ["rbf", "matern12", "matern32", "matern52"])
def test_form_reproduces_the_kernel_and_its_gradients(name, ard, scaled):
    kernel = parse_kernel(name, 3, ard=ard)
    kernel.outputscale = 1.7
    kernel.base_kernel.lengthscale = torch.tensor([0.5, 1.0, 2.0]) if ard else 0.8
    kernel = kernel if scaled else kernel.base_kernel
    form = stationary_form(kernel)
    assert form.name == name
    assert form.lengthscale.shape == ((3,) if ard else (1,))
    assert (form.outputscale is None) is not scaled
    generator = torch.Generator().manual_seed(2)
    x1 = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    x2 = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    expected, actual = kernel(x1, x2).to_dense(), evaluate(form, x1, x2)
    assert torch.allclose(actual, expected, rtol=1e-10)
    parameters = list(kernel.parameters())
    weights = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    for left, right in zip(
        torch.autograd.grad((weights * actual).sum(), parameters),
        torch.autograd.grad((weights * expected).sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(left, right, rtol=1e-8)


@pytest.mark.parametrize(
    "kernel",
    [
        RQKernel(),
        LinearKernel(),
        PeriodicKernel(),
        WhiteKernel(),
        Tilted(),
        ScaleKernel(Tilted()),
        ScaleKernel(ScaleKernel(RBFKernel())),
        RBFKernel() + RBFKernel(),
        ScaleKernel(RBFKernel() * RBFKernel()),
        RBFKernel(active_dims=(0,)),
        ScaleKernel(RBFKernel(active_dims=(0,))),
        ScaleKernel(RBFKernel(), active_dims=(0,)),
        RBFKernel(batch_shape=torch.Size([2])),
        ScaleKernel(RBFKernel(batch_shape=torch.Size([2]))),
        ScaleKernel(RBFKernel(), batch_shape=torch.Size([2])),
    ],
    ids=repr,
)
def test_no_form_is_claimed_for_anything_else(kernel):
    assert stationary_form(kernel) is None


def test_form_is_immutable():
    form = stationary_form(RBFKernel())
    with pytest.raises(AttributeError):
        form.name = "matern12"


def test_input_dimensions_compose_through_nested_selections():
    inner = ScaleKernel(RBFKernel(active_dims=(1, 0)))
    outer = AdditiveKernel(inner, LinearKernel())
    outer.active_dims = torch.tensor([3, 2])
    seen = {type(part): dims for part, dims in input_dimensions(outer, 4)}
    assert seen[AdditiveKernel] == seen[LinearKernel] == [3, 2]
    assert seen[ScaleKernel] == seen[RBFKernel] == [2, 3]


def test_input_dimensions_agree_with_what_the_kernel_reads():
    kernel = ScaleKernel(RBFKernel(active_dims=(2, 0))) * LinearKernel(active_dims=(0,))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    read = {dim for _, dims in list(input_dimensions(kernel, 4))[1:] for dim in dims}
    assert read == {0, 2}
    for column in range(4):
        moved = x.clone()
        moved[0, column] += 0.5
        changes = not torch.equal(kernel(moved).to_dense(), kernel(x).to_dense())
        assert changes == (column in read)


def test_input_dimensions_out_of_range():
    with pytest.raises(InputError, match=r"active_dims=\(5,\) of RBFKernel must lie in 0..1"):
        list(input_dimensions(RBFKernel(active_dims=(5,)), 2))
