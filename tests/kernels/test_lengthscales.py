"""How far a kernel reaches in every column: sums, products, batches, columns that nothing sees."""

import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    ConstantKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    ScaleKernel,
)

from gpvi.kernels import HammingKernel, column_lengthscales


def matern(lengthscale: object, **options: object) -> Kernel:
    scale = torch.as_tensor(lengthscale, dtype=torch.float64)
    size = scale.shape[-1] if scale.dim() else None
    kernel = MaternKernel(nu=1.5, ard_num_dims=size, **options).double()
    kernel.lengthscale = scale
    return kernel


def check(kernel: Kernel, expected: list[float]) -> None:
    found = column_lengthscales(kernel, len(expected))
    assert found.dtype == torch.float64 and not found.requires_grad
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_one_for_all_columns() -> None:
    check(ScaleKernel(matern(0.4)), [0.4, 0.4, 0.4])


def test_one_per_column() -> None:
    check(ScaleKernel(matern([0.4, 2.0])), [0.4, 2.0])


def test_parts_take_the_shortest() -> None:
    first, second = matern([0.4, 2.0]), matern([1.0, 0.5])
    check(first + second, [0.4, 0.5])
    check(ScaleKernel(first) * second, [0.4, 0.5])


def test_active_columns() -> None:
    check(
        matern(0.4, active_dims=(2,)) + matern([3.0, 0.7], active_dims=(0, 2)), [3.0, math.inf, 0.4]
    )
    check(matern([0.4, 0.9], active_dims=(2, 0)), [0.9, math.inf, 0.4])


def test_nested_active_columns() -> None:
    """Columns of an inner kernel are numbered within those of the outer one."""
    outer = matern(0.4, active_dims=(1,)) + matern(0.9, active_dims=(1,))
    outer.active_dims = torch.tensor([0, 2])
    check(outer, [math.inf, math.inf, 0.4])
    # A scale takes the columns of what it scales.
    check(ScaleKernel(matern(0.4, active_dims=(1,)), active_dims=(0, 2)), [math.inf, 0.4, math.inf])


def test_batches_take_the_geometric_mean() -> None:
    kernel = MaternKernel(ard_num_dims=2, batch_shape=torch.Size([2])).double()
    kernel.lengthscale = torch.tensor([[[0.5, 1.0]], [[2.0, 4.0]]]).double()
    check(kernel, [1.0, 2.0])


def test_periods() -> None:
    kernel = PeriodicKernel().double()
    kernel.period_length, kernel.lengthscale = 3.0, 0.25
    check(kernel, [3.0 * 0.5 / (2 * math.pi)])
    # Near zero, the kernel is that of a squared exponential of this lengthscale.
    at = torch.tensor([[0.0], [1e-3]], dtype=torch.float64)
    wanted = (1e-3 / column_lengthscales(kernel, 1)).square() / 2
    fall = -kernel(at).to_dense()[0, 1].log()
    assert fall.item() == pytest.approx(wanted.item(), rel=1e-3)


@pytest.mark.parametrize(
    "kernel", [LinearKernel(), ConstantKernel(), LinearKernel() + ConstantKernel(), HammingKernel()]
)
def test_kernels_without_any(kernel: Kernel) -> None:
    check(kernel, [math.inf, math.inf])


def test_categories_do_not_count() -> None:
    kernel = matern(0.4, active_dims=(0,)) * HammingKernel(active_dims=(1,))
    check(kernel, [0.4, math.inf])


def test_mixed_with_linear() -> None:
    check(matern(0.4) + LinearKernel(), [0.4, 0.4])


def test_single_precision() -> None:
    kernel = RBFKernel(ard_num_dims=2)
    kernel.lengthscale = torch.tensor([0.5, 0.25])
    check(kernel, [0.5, 0.25])


def test_parameters_are_untouched() -> None:
    kernel = gpytorch.kernels.ScaleKernel(matern([0.4, 2.0]))
    before = {name: value.clone() for name, value in kernel.state_dict().items()}
    column_lengthscales(kernel, 2).mul_(3.0)
    assert all(torch.equal(before[name], value) for name, value in kernel.state_dict().items())
