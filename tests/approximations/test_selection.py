"""Choosing inducing inputs among data rows."""

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import SELECTION_METHODS, GaussianProcess, select_inducing_points
from gpvi.exceptions import InputError


def process(*batch: int, lengthscale: float = 0.5) -> GaussianProcess:
    kernel = gpytorch.kernels.RBFKernel(batch_shape=torch.Size(batch)).double()
    kernel.lengthscale = lengthscale
    return GaussianProcess(kernel)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def left_over(gp: GaussianProcess, x: Tensor, z: Tensor) -> float:
    cross = gp.covariance(x, z)
    jitter = 1e-8 * torch.eye(len(z), dtype=z.dtype)
    return float(
        len(x) - (cross.mT * torch.linalg.solve(gp.covariance(z) + jitter, cross.mT)).sum()
    )


@pytest.mark.parametrize("method", SELECTION_METHODS)
def test_distinct_rows_are_chosen_and_repeat_with_the_seed(method):
    x = uniform(30, 2).repeat(3, 1)
    state = torch.get_rng_state()
    z = select_inducing_points(process(), x, 8, method, seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert z.shape == (8, 2) and len(torch.unique(z, dim=0)) == 8
    assert bool((z.unsqueeze(1) == x).all(-1).any(-1).all())
    assert torch.equal(z, select_inducing_points(process(), x, 8, method, seeded()))
    assert not torch.equal(z, x[:8])


@pytest.mark.parametrize("method", SELECTION_METHODS)
def test_never_more_than_the_distinct_rows(method):
    x = uniform(4, 1).repeat(5, 1)
    z = select_inducing_points(process(), x, 10, method, seeded())
    assert torch.equal(z.sort(0).values, x[:4].sort(0).values)


@pytest.mark.parametrize("method", SELECTION_METHODS)
def test_constant_columns_and_batches_of_kernels(method):
    x = torch.cat([uniform(20, 1), torch.ones(20, 1, dtype=torch.float64)], -1)
    assert select_inducing_points(process(2), x, 5, method, seeded()).shape == (5, 2)


def test_greedy_explains_more_than_chance():
    gp, x = process(lengthscale=0.2), uniform(200, 1, seed=1) ** 3
    with torch.no_grad():
        greedy = left_over(gp, x, select_inducing_points(gp, x, 6, "greedy", seeded()))
        random = [
            left_over(gp, x, select_inducing_points(gp, x, 6, "random", seeded(seed)))
            for seed in range(10)
        ]
    assert greedy < min(random)


def test_greedy_fills_up_where_the_kernel_sees_no_difference():
    """Under a long lengthscale a few rows explain all; the rest are spread over the inputs."""
    x = uniform(100, 1)
    z = select_inducing_points(process(lengthscale=100.0), x, 20, "greedy", seeded())
    assert z.shape == (20, 1) and len(torch.unique(z)) == 20
    assert float(z.max() - z.min()) > 0.8


@pytest.mark.parametrize("method", SELECTION_METHODS)
def test_single_precision_and_no_generator(method):
    gp = process().float()
    z = select_inducing_points(gp, uniform(50, 2).float(), 20, method)
    assert z.dtype == torch.float32 and len(torch.unique(z, dim=0)) == 20


def test_impossible_requests():
    with pytest.raises(InputError, match="greedy, kmeans"):
        select_inducing_points(process(), uniform(9, 1), 3, "first")
    with pytest.raises(InputError, match="num_inducing is 0"):
        select_inducing_points(process(), uniform(9, 1), 0)
    with pytest.raises(InputError, match=r"num_inducing is 2.5"):
        select_inducing_points(process(), uniform(9, 1), 2.5)
    with pytest.raises(InputError, match=r"x has shape \(9,\).*unsqueeze"):
        select_inducing_points(process(), uniform(9, 1)[:, 0], 3)


@pytest.mark.parametrize("method", SELECTION_METHODS)
def test_new_tensors_follow_the_device_of_the_data(method):
    """With another default device, whatever is created without naming one meets tensors of data."""
    gp, x = process(lengthscale=100.0), uniform(50, 1)
    with torch.device("meta"):
        assert select_inducing_points(gp, x, 20, method, seeded()).device.type == "cpu"


def test_rows_that_nearly_coincide_are_not_chosen_twice():
    x = torch.zeros(6, 1).double()
    x[:, 0] = 1.0 + 1e-15 * torch.arange(6).double()
    x[0] = 1e6
    gp = GaussianProcess(gpytorch.kernels.RBFKernel().double())
    distinct = torch.unique(x, dim=0)
    assert len(distinct) == 6
    for method in SELECTION_METHODS:
        chosen = select_inducing_points(gp, x, 5, method, torch.Generator().manual_seed(0))
        assert len(torch.unique(chosen, dim=0)) == 5
