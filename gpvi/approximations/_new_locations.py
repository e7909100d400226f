r"""Moments and samples of a sparse inverse Cholesky posterior at new inputs.

New inputs come behind the data in the order: each is given its nearest locations s,
:math:`f_* \mid f \sim N(\mu_* + w^\top (f_s - \mu_s), r)`. Marginals look at each alone. Jointly, a new input
conditions on locations and on new inputs before it; with the new columns of the factor split into a
block B at the locations and a triangular block W among themselves,

.. math:: \operatorname{cov}(f_*) = W^{-\top} (I + B^\top (VV^\top)^{-1} B) W^{-1}.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpvi.approximations._gather import take_rows
from gpvi.approximations._per_pattern import Position, flat, per_pattern, position_in
from gpvi.approximations._random import standard_normal
from gpvi.approximations._sparse_columns import columns_at
from gpvi.linalg import (
    NeighborPattern,
    earlier_neighbors,
    factor_transpose_solve,
    inverse_gram,
    inverse_norms,
    maximin_order,
)

if TYPE_CHECKING:
    from gpvi.approximations.sparse_inverse_posterior import SparseInversePosterior
    from gpvi.approximations.sparse_inverse_prior import SparseInversePrior

# New inputs whose neighbours and weights are held at once.
_CHUNK = 50_000

# Entries of a block of correlations.
_BLOCK = 2**24


def new_marginals(
    posterior: "SparseInversePosterior", x: Tensor, shifts: Tensor
) -> tuple[Tensor, Tensor]:
    """What values at the locations imply at every new input alone, and variances there.

    Parameters
    ----------
    posterior : SparseInversePosterior
        What predicts.
    x : Tensor, shape [*g, Q, D]
        New inputs.
    shifts : Tensor, shape [*b, K, M]
        K sets of values at the locations, less the prior mean, by place.

    Returns
    -------
    shifts : Tensor, shape [*b, K, Q]
        In double precision.
    variance : Tensor, shape [*b, Q]
        In double precision.
    """
    prior = posterior.prior
    lead = torch.broadcast_shapes(prior.lead, x.shape[:-2])

    def moments(position: Position, shifts: Tensor, factor: Tensor) -> Tensor:
        pattern = prior.factor_pattern(position_in(prior.lead, position))
        rows = x[position_in(x.shape[:-2], position)]
        if not len(rows):
            return torch.cat([shifts[..., :0], shifts[..., :1, :0]], -2)
        parts = []
        for part in rows.split(_CHUNK):
            index, columns = _columns(prior, position, part, among=False)
            scale = columns[..., -1]
            weights = -columns[..., :-1] / scale.unsqueeze(-1)
            mean = _pulled(weights, index, shifts)
            variance = scale.square().reciprocal() + inverse_norms(pattern, factor, index, weights)
            parts.append(_stacked(mean, variance.unsqueeze(-2)))
        return torch.cat(parts, -1)

    both = per_pattern(lead, moments, (shifts, 2), (posterior.factor, 2), trailing=2)
    return both[..., :-1, :], both[..., -1, :]


def joint_moments(
    posterior: "SparseInversePosterior", x: Tensor, shifts: Tensor
) -> tuple[Tensor, Tensor]:
    """What values at the locations imply at new inputs, and the full covariance there.

    Parameters
    ----------
    posterior : SparseInversePosterior
        What predicts.
    x : Tensor, shape [*g, Q, D]
        New inputs.
    shifts : Tensor, shape [*b, K, M]
        K sets of values at the locations, less the prior mean, by place.

    Returns
    -------
    shifts : Tensor, shape [*b, K, Q]
        In double precision.
    covariance : Tensor, shape [*b, Q, Q]
        Positive semi-definite by construction.
    """
    prior = posterior.prior
    lead = torch.broadcast_shapes(prior.lead, x.shape[:-2])
    number = shifts.shape[-2]

    def moments(position: Position, shifts: Tensor, factor: Tensor) -> Tensor:
        pattern = prior.factor_pattern(position_in(prior.lead, position))
        rows = x[position_in(x.shape[:-2], position)]
        if not len(rows):
            return shifts[..., :0]
        order = _order(prior, rows)
        index, columns = _columns(prior, position, rows[order], among=True)
        old, values = _old_part(index, columns, prior.num_basis)
        W = _dense_block(index, columns, prior.num_basis)
        eye = torch.eye(len(rows), dtype=W.dtype, device=W.device)
        root = torch.linalg.solve_triangular(W.mT, eye, upper=False)
        gram = inverse_gram(pattern, factor, old, values)
        covariance = root @ root.mT + root @ gram @ root.mT
        pull = -(values.unsqueeze(-3) * shifts[..., old.long().clamp_min(0)]).sum(-1)
        back = torch.argsort(order)
        mean = (pull @ root.mT)[..., back]
        return _stacked(mean, covariance[..., back, :][..., back])

    both = per_pattern(lead, moments, (shifts, 2), (posterior.factor, 2), trailing=2)
    covariance = both[..., number:, :]
    return both[..., :number, :], 0.5 * (covariance + covariance.mT)


def _pulled(weights: Tensor, index: Tensor, shifts: Tensor) -> Tensor:
    """``sum_a weights_a shifts_a`` of every set of shifts, [*b, K, Q], a few new inputs at a time."""
    size = max(1, _CHUNK // shifts.shape[-2])
    pieces = zip(weights.split(size, -2), index.split(size), strict=True)
    return torch.cat(
        [(w.unsqueeze(-3) * shifts[..., i.long().clamp_min(0)]).sum(-1) for w, i in pieces], -1
    )


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    """Rows of two matrices in one, [*b, K1 + K2, Q]."""
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (first, second)], -2)


def sample_new(
    posterior: "SparseInversePosterior",
    x: Tensor,
    gap: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Draws at new inputs, less the prior mean, given draws at the locations.

    Parameters
    ----------
    posterior : SparseInversePosterior
        What predicts.
    x : Tensor, shape [*g, Q, D]
        New inputs.
    gap : Tensor, shape [*S, *b, M]
        Draws at the locations less the prior mean, in their order.
    generator : torch.Generator, optional
        Source of randomness.

    Returns
    -------
    Tensor, shape [*S, *b, Q]
        In double precision.
    """
    prior = posterior.prior
    lead = torch.broadcast_shapes(prior.lead, x.shape[:-2])
    num_batch = max(len(lead), prior.mean.dim() - 1)
    num_samples = gap.dim() - 1 - max(prior.mean.dim() - 1, posterior.shift.dim() - 1)
    samples, batch = gap.shape[:num_samples], gap.shape[num_samples:-1]
    wide = torch.broadcast_shapes(batch, lead)
    missing = max(0, num_batch - len(batch), len(wide) - len(batch))
    gap = gap.reshape(*samples, *[1] * missing, *batch, gap.shape[-1])
    noise = standard_normal((*samples, *wide, x.shape[-2]), gap, generator)

    def draw(position: Position, gap: Tensor, noise: Tensor) -> Tensor:
        rows = x[position_in(x.shape[:-2], position)]
        order = _order(prior, rows)
        index, columns = _columns(prior, position, rows[order], among=True)
        old, values = _old_part(index, columns, prior.num_basis)
        pull = (values * gap[..., old.long().clamp_min(0)]).sum(-1)
        pattern, block = _new_part(index, columns, prior.num_basis)
        drawn = factor_transpose_solve(pattern, block, noise - pull)
        return drawn[..., torch.argsort(order)]

    return per_pattern(lead, draw, (gap, 1), (noise, 1))


def _order(prior: "SparseInversePrior", rows: Tensor) -> Tensor:
    return maximin_order(prior.geometry.scaled(rows))


def _columns(
    prior: "SparseInversePrior", position: Position, rows: Tensor, among: bool
) -> tuple[Tensor, Tensor]:
    """Neighbours [Q, m] and columns [*k, Q, m + 1] of new inputs behind the locations."""
    own_position = position_in(prior.lead, position)
    entry = flat(prior.lead, own_position)
    first = prior.geometry.first[entry][prior.geometry.real[entry]]
    known = take_rows(prior.x[own_position], first)
    M = prior.num_basis
    # Padding is behind the locations; new inputs come behind both, so that numbers stay those of places.
    filler = known[:1].expand(M - len(known), -1)
    points = torch.cat([known, filler, rows])
    index = _neighbors(prior, entry, known, rows, among)
    own = torch.arange(M, M + len(rows), dtype=torch.int32, device=rows.device)
    return index, columns_at(prior.gp, points, index, own, prior.nugget)


def _neighbors(
    prior: "SparseInversePrior", entry: int, known: Tensor, rows: Tensor, among: bool
) -> Tensor:
    """Nearest locations of new inputs (and new inputs before them), int32 [Q, m]."""
    M = prior.num_basis
    number = min(
        prior.options.num_prediction_neighbors, len(known) + (len(rows) - 1 if among else 0)
    )
    with torch.no_grad():
        if prior.options.neighbors == "correlation":
            index = _most_correlated(prior, known, rows, number, among)
        else:
            search, new = prior.geometry.search(entry, lambda: known), prior.geometry.scaled(rows)
            index = search.nearest(new, min(number, len(known)))
            if among and len(rows) > 1:
                old = prior.geometry.scaled(known)
                index = _nearest_of_both(old, new, index, number)
    return torch.where(index >= len(known), index + (M - len(known)), index).to(torch.int32)


def _nearest_of_both(old: Tensor, new: Tensor, index: Tensor, number: int) -> Tensor:
    """The nearest of the nearest locations and the nearest new inputs before, ascending, -1 behind."""
    before = earlier_neighbors(new, min(number, len(new) - 1))
    both = torch.cat([index, torch.where(before >= 0, before + len(old), -1)], -1)
    points = torch.cat([old, new])
    gap = (points[both.long().clamp_min(0)] - new.unsqueeze(-2)).square().sum(-1)
    gap = gap.masked_fill(both < 0, torch.inf)
    nearest = torch.argsort(gap, dim=-1, stable=True)[..., :number]
    none = len(points)
    kept = both.gather(-1, nearest)
    kept = torch.where(kept >= 0, kept, none).sort(dim=-1).values
    return torch.where(kept < none, kept, -1)


def _most_correlated(
    prior: "SparseInversePrior", known: Tensor, rows: Tensor, number: int, among: bool
) -> Tensor:
    """The locations (and earlier new inputs) of largest correlation, ascending, -1 behind them."""
    gp = prior.gp
    others = torch.cat([known, rows]) if among else known
    deviation = gp.variance(others).sqrt()
    size = max(1, _BLOCK // max(1, len(others)))
    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        covariance = gp.covariance(part, others).abs() / deviation.unsqueeze(-2)
        score = covariance.reshape(-1, *covariance.shape[-2:]).mean(0)
        if among:
            place = torch.arange(len(others), device=rows.device)
            own = len(known) + start + torch.arange(len(part), device=rows.device)
            score = score.masked_fill(place >= own.unsqueeze(-1), -1.0)
        best = score.topk(number, dim=-1)
        index = torch.where(best.values >= 0, best.indices, len(others))
        index = index.sort(dim=-1).values
        found.append(torch.where(index < len(others), index, -1))
    return torch.cat(found).to(torch.int32)


def _old_part(index: Tensor, columns: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """Entries of new columns at the locations: numbers [Q, m] and values [*k, Q, m].

    Numbers ascend, so that the locations come before the new inputs.
    """
    old = (index >= 0) & (index < M)
    return torch.where(old, index, -1), torch.where(old, columns[..., :-1], 0.0)


def _new_part(index: Tensor, columns: Tensor, M: int) -> tuple[NeighborPattern, Tensor]:
    """The triangular block of new columns among themselves, as a pattern with its columns."""
    new = index >= M
    # Used slots to the front; a stable sort keeps them ascending.
    order = torch.argsort((~new).to(torch.int8), dim=-1, stable=True)
    moved = torch.where(new, index - M, -1).gather(-1, order).to(torch.int32)
    values = torch.where(new, columns[..., :-1], 0.0)
    values = values.gather(-1, order.expand(values.shape))
    return NeighborPattern(moved), torch.cat([values, columns[..., -1:]], -1)


def _dense_block(index: Tensor, columns: Tensor, M: int) -> Tensor:
    """The same block as a dense upper triangular matrix [*k, Q, Q]."""
    pattern, values = _new_part(index, columns, M)
    Q = pattern.num_rows
    # One row more, which collects the slots that are not used.
    rows = torch.where(pattern.neighbors >= 0, pattern.neighbors, Q).long()
    own = torch.arange(Q, device=rows.device).unsqueeze(-1)
    rows = torch.cat([rows, own], -1)
    dense = torch.zeros(*values.shape[:-2], Q, Q + 1, dtype=values.dtype, device=values.device)
    return dense.scatter(-1, rows.expand(values.shape), values)[..., :Q].mT
