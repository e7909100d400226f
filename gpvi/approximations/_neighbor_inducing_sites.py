r"""Posterior precisions of inducing values: prior plus sites, and their factors.

Data sites of precision :math:`\lambda_2` act on the projections :math:`r_n = \mu_n + w_n^\top (u - m)_{I_n}`
and add :math:`A \operatorname{diag}(\lambda_2) A^\top` to the prior precision :math:`UU^\top`, with the
weights as the columns of A. Sites on the basis add a diagonal, or a matrix.
"""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.approximations._gather import take_last
from gpvi.approximations._neighbor_inducing_rows import NeighborRows, row_norms
from gpvi.approximations._per_pattern import Position, per_pattern, position_in
from gpvi.approximations._site_root import site_root
from gpvi.approximations._variance_check import stacked, variance_ratios
from gpvi.approximations.sites import Sites
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.exceptions import AccuracyWarning, NumericalError, UnsupportedError
from gpvi.linalg import (
    NeighborPattern,
    SparseRows,
    incomplete_cholesky,
    mat_vec,
    precision_solve,
    safe_cholesky,
)

if TYPE_CHECKING:
    from gpvi.approximations.neighbor_inducing_prior import NeighborInducingPrior

# Relative rounding that a pivot may fall below its bound by.
_SLACK = 1e-6

# Fractions of the diagonal that are added to it, one after the other, where the factor breaks down.
_SHIFTS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

# Relative jitter of a matrix of sites, which may have any rank.
_SITE_JITTER = 1e-13


@dataclass(frozen=True, eq=False)
class SiteSystem:
    """``P = U U' + diag(w) + R R'`` and ``P a = b``, by place in the order of the inducing points.

    Parameters
    ----------
    rows : NeighborRows
        Where the columns of R have entries.
    values : Tensor, shape [*b, N, H]
        These entries.
    precision : Tensor, shape [*b, M]
        w.
    vector : Tensor, shape [*b, M]
        b.
    """

    rows: NeighborRows
    values: Tensor
    precision: Tensor
    vector: Tensor


def site_system(prior: "NeighborInducingPrior", sites: Sites) -> SiteSystem:
    """What sites add to the precision of the inducing values.

    Parameters
    ----------
    prior : NeighborInducingPrior
        Which they are on.
    sites : Sites
        On data or basis.

    Returns
    -------
    SiteSystem
        In double precision.

    Raises
    ------
    UnsupportedError
        For negative precisions.
    """
    if not sites.full and bool((sites.lam2 < 0.0).any()):
        raise UnsupportedError(
            f"The smallest lam2 is {float(sites.lam2.min()):.3g}: NeighborInducing factorises precisions "
            "that sites only add to. Clip lam2 at zero (min_precision=0 in cvi)."
        )
    return _from_data(prior, sites) if sites.on == "data" else _from_basis(prior, sites)


def tied(prior: "NeighborInducingPrior", sites: Sites) -> Sites:
    """Data sites as sites with a full matrix about u, in the order of the basis."""
    inner, M = prior.inner, prior.num_basis
    weights = prior.weights
    dense = prior.rows.scatter_columns(weights, M)  # A, [*b, M, N]
    lam1, lam2 = sites.lam1.double(), sites.lam2.double()
    offset = prior.x_mean.double() - mat_vec(dense.mT, inner.place_mean)
    first = mat_vec(dense, lam1 - lam2 * offset)
    second = (dense * lam2.unsqueeze(-2)) @ dense.mT
    rank = inner.at_lead(inner.geometry.rank)
    second = take_last(take_last(second, rank.unsqueeze(-2)).mT, rank.unsqueeze(-2))
    return Sites(inner.to_basis(first).to(prior.x_mean), second.to(prior.x_mean), on="basis")


def factor_and_shift(inner: SparseInversePrior, system: SiteSystem) -> tuple[Tensor, Tensor]:
    """Factor V on the pattern of the family, and ``P^-1 b``.

    Parameters
    ----------
    inner : SparseInversePrior
        Prior of the inducing values.
    system : SiteSystem
        What sites add.

    Returns
    -------
    factor : Tensor, shape [*b, M, k + 1]
        V.
    shift : Tensor, shape [*b, M]
        To rounding, whatever V is.
    """
    lead = system.rows.lead

    def own(position: Position) -> NeighborPattern:
        return inner.pattern(position_in(inner.lead, position))

    def sparse(position: Position) -> SparseRows:
        return SparseRows(system.rows.at(position), inner.num_basis)

    def solve(position: Position, U: Tensor, w: Tensor, R: Tensor, V: Tensor, b: Tensor) -> Tensor:
        return precision_solve(own(position), U, w, V, b, rows=sparse(position), values=R)

    def factorise(position: Position, U: Tensor, w: Tensor, R: Tensor) -> Tensor:
        return _factorise(own(position), U, w, sparse(position), R)

    def diagonal(position: Position, U: Tensor, w: Tensor, R: Tensor) -> Tensor:
        return _diagonal(own(position), U, w, sparse(position), R).sqrt().unsqueeze(-1)

    parts = ((inner.columns, 2), (system.precision, 1), (system.values, 2))
    factor = per_pattern(lead, factorise, *parts, trailing=2)
    shift = per_pattern(lead, solve, *parts, (factor.detach(), 2), (system.vector, 1))
    # The mean is the same for every family, and its solver wants the best factor there is.
    if inner.family == "diagonal":
        factor = per_pattern(lead, diagonal, *parts, trailing=2)
    return factor, shift


def row_variances(inner: SparseInversePrior, rows: NeighborRows, V: Tensor, R: Tensor) -> Tensor:
    """``|V^-1 r_n|^2`` of columns r_n [*b, N, H], shape [*b, N]."""

    def norms(position: Position, V: Tensor, R: Tensor) -> Tensor:
        pattern = inner.factor_pattern(position_in(inner.lead, position))
        exact = rows.exact[position_in(rows.lead, position)]
        return row_norms(pattern, V, rows.at(position), R, exact, inner.complete)

    return per_pattern(rows.lead, norms, (V, 2), (R, 2))


def ratios_at_places(
    inner: SparseInversePrior, system: SiteSystem, factor: Tensor, variance: Tensor
) -> Tensor:
    """Variances of some inducing values over those of the precision itself.

    Parameters
    ----------
    inner : SparseInversePrior
        Prior of the inducing values.
    system : SiteSystem
        What sites add.
    factor : Tensor, shape [*b, M, k + 1]
        V.
    variance : Tensor, shape [*b, M]
        What V says.

    Returns
    -------
    Tensor, shape [*b, n]
        Ones where V is exact, off the graph.
    """
    parts = (inner.columns, system.precision, factor, variance, system.values)
    core = (2, 1, 2, 1, 2)
    batch = torch.broadcast_shapes(
        *(p.shape[: p.dim() - c] for p, c in zip(parts, core, strict=True))
    )
    whole = [
        p.detach().expand(*batch, *p.shape[p.dim() - c :]) for p, c in zip(parts, core, strict=True)
    ]
    ratios = []
    with torch.no_grad():
        for position in product(*(range(size) for size in batch)):
            columns, precision, factor, near, values = (part[position] for part in whole)
            pattern = inner.pattern(position_in(inner.lead, position))
            rows = SparseRows(system.rows.at(position), inner.num_basis)
            ratios.append(variance_ratios(pattern, columns, precision, factor, near, rows, values))
    return stacked(ratios, batch)


def _from_data(prior: "NeighborInducingPrior", sites: Sites) -> SiteSystem:
    weights, M = prior.weights, prior.num_basis
    lam1, lam2 = sites.lam1.double(), sites.lam2.double()
    centred = lam1 - lam2 * prior.x_mean.double()
    root = site_root(lam2, prior.gp.variance(prior.x).double())
    vector = prior.rows.scatter(weights * centred.unsqueeze(-1), M)
    none = torch.zeros(M, dtype=vector.dtype, device=vector.device)
    return SiteSystem(prior.rows, weights * root.unsqueeze(-1), none, vector)


def _from_basis(prior: "NeighborInducingPrior", sites: Sites) -> SiteSystem:
    inner, M = prior.inner, prior.num_basis
    lam1, lam2 = inner.to_places(sites.lam1.double()), sites.lam2.double()
    every = NeighborRows.everywhere(M, inner.lead, lam1.device, M if sites.full else 0)
    if not sites.full:
        lam2 = inner.to_places(lam2)
        values = lam1.new_zeros(0, M)
        return SiteSystem(every, values, lam2, lam1 - lam2 * inner.place_mean)
    location = inner.at_lead(inner.geometry.location_at).unsqueeze(-2)
    matrix = take_last(take_last(lam2, location).mT, location)
    # Sites that say nothing have a factor too, beside the precision of one value under the prior.
    scale = matrix.diagonal(dim1=-2, dim2=-1).mean(-1) + inner.columns[..., 0, -1].square().detach()
    matrix = matrix.expand(*scale.shape, M, M)
    root = safe_cholesky(matrix, jitter=_SITE_JITTER, scale=scale, name="lam2").factor
    none = torch.zeros(M, dtype=lam1.dtype, device=lam1.device)
    return SiteSystem(every, root.mT, none, lam1 - mat_vec(matrix, inner.place_mean))


def _factorise(
    pattern: NeighborPattern, U: Tensor, w: Tensor, rows: SparseRows, R: Tensor
) -> Tensor:
    """Incomplete factor of P, or of P with a larger diagonal where that breaks down."""
    # With the exact factor a pivot is the precision of a value given all earlier ones and the data.
    least = (1.0 - _SLACK) * U[..., -1].square()
    for share in (0.0, *_SHIFTS):
        more = w if share == 0.0 else w + share * _diagonal(pattern, U, w, rows, R).detach()
        try:
            factor = incomplete_cholesky(pattern, U, more, rows=rows, values=R)
        except NumericalError:
            if not bool(torch.isfinite(U).all() and torch.isfinite(R).all()):
                raise
            continue
        if bool((factor[..., -1].square() >= least).all()):
            break
    else:
        raise NumericalError(
            "No incomplete Cholesky factor of the precision of the inducing values exists; raise the nugget."
        )
    if share > 0.0:
        warn(
            "The incomplete Cholesky factor of the inducing values' precision broke down (a smooth kernel, "
            f"or too few neighbours) and was taken with {share:g} of its diagonal added: means are exact as "
            "before, variances are too small and the bound is lower. Use more neighbours, a rougher kernel, "
            "or a larger nugget.",
            AccuracyWarning,
        )
    return factor


def _diagonal(
    pattern: NeighborPattern, U: Tensor, w: Tensor, rows: SparseRows, R: Tensor
) -> Tensor:
    """The diagonal of P, shape [*b, M]."""
    M = pattern.num_rows
    own = torch.arange(M, device=U.device).unsqueeze(-1)
    prior = _sum_squares(torch.cat([pattern.neighbors.long(), own], -1), U, M)
    return prior + w + _sum_squares(rows.index.long(), R, M)


def _sum_squares(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Sums of squares by number, where index [R, k] is not -1."""
    places = torch.where(index >= 0, index, size).flatten()
    total = torch.zeros(*values.shape[:-2], size + 1, dtype=values.dtype, device=values.device)
    return total.index_add(-1, places, values.square().flatten(-2))[..., :size]
