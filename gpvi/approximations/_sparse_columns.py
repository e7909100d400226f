"""Columns of the sparse inverse Cholesky factor of a process, by the fastest way its kernel allows."""

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpvi.approximations._left_over import LeftOverProcess, pair_covariance
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.neighbor_geometry import kernel_of
from gpvi.kernels import StationaryForm, stationary_form
from gpvi.linalg import inverse_columns, stationary_inverse_columns


def columns_at(
    gp: GaussianProcessLike,
    points: Tensor,
    neighbors: Tensor,
    own: Tensor,
    nugget: float,
    schedule: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Columns ``L^-T e_last`` of rows with neighbours.

    Parameters
    ----------
    gp : GaussianProcessLike
        Kernel of batch shape [*k].
    points : Tensor, shape [T, D]
        Inputs.
    neighbors : Tensor of int32, shape [R, m]
        Numbers of neighbours among the points.
    own : Tensor of int32, shape [R]
        Number of every row's own point.
    nugget : float
        Added to the variance of every point, relative to it.
    schedule : Tensor of int32, shape [R], optional
        Order in which rows are visited.
    noise : Tensor, shape [*s, T], optional
        Further variance of every point; batch dims broadcast with those of the kernel.

    Returns
    -------
    Tensor, shape [*k, R, m + 1]
        Own entry last; in double precision whatever the inputs are.
    """
    if isinstance(gp, LeftOverProcess):
        return gp.columns(points, neighbors, own, nugget, schedule, noise)
    form = closed_form(gp, points)
    if form is not None:
        wide = points.double()
        scale = wide.new_ones(()) if form.outputscale is None else form.outputscale.double()
        lengthscale = form.lengthscale.double()

        def columns(extra: Tensor) -> Tensor:
            return stationary_inverse_columns(
                form.name, wide, neighbors, own, lengthscale, scale, extra, schedule=schedule
            )

        if noise is None:
            return columns(nugget * scale)
        batch = [columns(nugget * scale + row) for row in noise.reshape(-1, noise.shape[-1])]
        return torch.stack(batch).reshape(*noise.shape[:-1], *batch[0].shape)
    return kernel_columns(gp, points, neighbors, own, nugget, schedule, noise)


def kernel_columns(
    gp: GaussianProcessLike,
    points: Tensor,
    neighbors: Tensor,
    own: Tensor,
    nugget: float,
    schedule: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Columns of any kernel, evaluated at the distinct pairs of neighbours.

    Parameters
    ----------
    gp, points, neighbors, own, nugget, schedule, noise : object
        As for :func:`columns_at`.

    Returns
    -------
    Tensor, shape [*b, R, m + 1]
        In double precision.
    """
    kernel = kernel_of(gp)

    def covariance(first: Tensor, second: Tensor) -> Tensor:
        left, right = points.index_select(0, first), points.index_select(0, second)
        return pair_covariance(kernel, left, right).double()

    variance = pair_covariance(kernel, points, points).double()
    extra = nugget * variance if noise is None else nugget * variance + noise
    batch = torch.broadcast_shapes(variance.shape[:-1], extra.shape[:-1])
    variance = variance.expand(*batch, -1)
    return inverse_columns(covariance, variance, neighbors, own, extra, schedule=schedule)


def closed_form(gp: GaussianProcessLike, points: Tensor) -> StationaryForm | None:
    """The kernel in closed form, where the core can use it."""
    kernel = getattr(gp, "kernel", None)
    if points.requires_grad or not isinstance(kernel, Kernel):
        return None
    return stationary_form(kernel)
