r"""Vecchia evidence of noisy responses: every response given its nearest earlier ones.

.. math:: \log \hat p(y) = \sum_i \log p(y_i \mid y_{s_i}), \qquad
          y \sim N(\mu, K + \mathrm{diag}(\sigma_n^2))

Rows at one location are one response: their precision-weighted mean, with the sum of their precisions,
says all about f there; what they say about each other is a constant.

References
----------
Vecchia, A. V. (1988). Estimation and model identification for continuous spatial processes. JRSS B.
"""

import math

import torch
from torch import Tensor

from gpvi.approximations._gather import add_last, take_rows
from gpvi.approximations._sparse_columns import closed_form, kernel_columns
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.neighbor_geometry import NeighborGeometry
from gpvi.linalg import row_log_densities, row_log_evidence

__all__ = ["merged_responses", "response_evidence"]

_LOG_2PI = math.log(2.0 * math.pi)


def response_evidence(
    gp: GaussianProcessLike,
    geometry: NeighborGeometry,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    places: Tensor | None = None,
) -> Tensor:
    """Sum of the responses' log conditionals, or an unbiased estimate from some of them.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process, live.
    geometry : NeighborGeometry
        Of these inputs.
    x : Tensor, shape [N, D]
        Data inputs.
    y : Tensor, shape [*b, N]
        Targets, all observed.
    noise : Tensor, scalar or shape [*b, N]
        Noise variances, positive.
    places : Tensor of int64, shape [R], optional
        Conditionals to be summed, by place in the order, scaled by M / R; all if left out.

    Returns
    -------
    Tensor, shape [*b]
        Nats.
    """
    pattern = geometry.patterns[0]
    first, place = geometry.first[0], geometry.place[0]
    M, N = len(first), x.shape[-2]
    points = take_rows(x, first)
    residuals = y - gp.mean(x)
    responses, variances, constant = merged_responses(residuals, noise, first, place, M, N)
    if places is None:
        own = torch.arange(M, dtype=torch.int32, device=x.device)
        neighbors, schedule = pattern.neighbors, pattern.schedule
    else:
        own, neighbors, schedule = places.to(torch.int32), pattern.neighbors[places], None
    total = _conditionals(gp, points, responses, variances, neighbors, own, schedule)
    return total * (M / len(own)) + constant


def merged_responses(
    y: Tensor, noise: Tensor, first: Tensor, place: Tensor, M: int, N: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One response per place with its noise variance, and what is left of the log density.

    Parameters
    ----------
    y : Tensor, shape [*b, N]
        Residuals of the responses.
    noise : Tensor, scalar or shape [*b, N]
        Noise variances.
    first : Tensor of int64, shape [M]
        The row that stands for every place.
    place : Tensor of int64, shape [N]
        Place of every row.
    M, N : int
        Places and rows.

    Returns
    -------
    responses, variances : Tensor, shape [*b, M]
        Precision-weighted means and their noise variances (a scalar stays one).
    constant : Tensor, shape [*b]
        Log density of the rows less that of the responses.
    """
    if M == N:
        variances = noise if noise.dim() == 0 else noise[..., first]
        return y[..., first], variances, y.new_zeros(())
    rows = noise.expand_as(y) if noise.dim() == 0 else noise
    precision = add_last(rows.reciprocal(), place, M)
    responses = add_last(y / rows, place, M) / precision
    by_row = rows.log().sum(-1) + (y.square() / rows).sum(-1) + N * _LOG_2PI
    by_place = -precision.log().sum(-1) + (precision * responses.square()).sum(-1) + M * _LOG_2PI
    return responses, precision.reciprocal(), 0.5 * (by_place - by_row)


def _conditionals(
    gp: GaussianProcessLike,
    points: Tensor,
    responses: Tensor,
    variances: Tensor,
    neighbors: Tensor,
    own: Tensor,
    schedule: Tensor | None,
) -> Tensor:
    form = closed_form(gp, points)
    if form is not None and responses.dim() == 1 and variances.dim() < 2:
        scale = points.new_ones(()) if form.outputscale is None else form.outputscale
        return row_log_evidence(
            form.name,
            points,
            responses,
            neighbors,
            own,
            form.lengthscale,
            scale,
            variances,
            schedule=schedule,
        )
    columns = kernel_columns(gp, points, neighbors, own, 0.0, schedule, variances)
    total = row_log_densities(columns, neighbors, own, responses.double()).sum(-1)
    return total.to(responses)
