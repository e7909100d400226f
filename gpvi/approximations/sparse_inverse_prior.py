r"""The sparse inverse Cholesky prior: every location given its nearest earlier ones.

In the order of the locations the prior is :math:`\hat p(f) = N(\mu, (UU^\top)^{-1})` with a sparse upper
triangular U, the closest to the process among all factors on its pattern (in Kullback-Leibler divergence
from the process).

References
----------
Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
minimization. SIAM Journal on Scientific Computing.
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from gpvi.approximations._gather import add_last, take_last, take_rows
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._per_pattern import Position, flat, per_pattern
from gpvi.approximations._posterior_factor import posterior_factor
from gpvi.approximations._sparse_columns import columns_at
from gpvi.approximations.base import Prior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.neighbor_geometry import GeometryOptions, NeighborGeometry
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.sparse_inverse_posterior import SparseInversePosterior
from gpvi.exceptions import InputError
from gpvi.linalg import (
    NeighborPattern,
    factor_transpose_product,
    factor_transpose_solve,
    posterior_norms,
    precision_solve,
)

__all__ = ["SparseInversePrior"]

_LOG_2PI = math.log(2.0 * math.pi)

# Precision that stands for no site, where a variance has to be written down.
_NO_SITE = 1e-12

#: Patterns of the posterior's factor: that of the prior, none, or the first locations of the order.
FAMILIES = ("sic", "diagonal", "first_points")


@dataclass(frozen=True, eq=False)
class SparseInversePrior(Prior):
    """Prior of the function at all distinct locations; the basis are its values there.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    x_mean : Tensor, shape [*b, N]
        Prior mean.
    geometry : NeighborGeometry
        Order and neighbours of the locations of all data sets.
    options : GeometryOptions
        How neighbours are chosen for new inputs.
    nugget : float
        Relative variance added at every location.
    family : {"sic", "diagonal", "first_points"}
        Pattern of the posterior's factor.
    complete : bool
        Whether variances and divergences go through all ancestors of a location, and not the nearest.
    """

    gp: GaussianProcessLike
    x: Tensor
    x_mean: Tensor
    geometry: NeighborGeometry
    options: GeometryOptions
    nugget: float
    family: str = "sic"
    complete: bool = False

    #: The factor outlives a detaching: it is the price of the prior.
    carried: ClassVar[tuple[str, ...]] = ("columns",)

    @property
    def exact_conditioning(self) -> bool:  # type: ignore[override]
        """False: the posterior's factor is incomplete."""
        return False

    @cached_property
    def columns(self) -> Tensor:
        """The factor U, shape [*b, M, m + 1], in double precision and the order of the locations."""
        with on_graph():
            return self._columns(None)

    def columns_of(self, places: Tensor) -> Tensor:
        """Some columns of the factor, without the others.

        Parameters
        ----------
        places : Tensor of int64, shape [R]
            In the order of the locations.

        Returns
        -------
        Tensor, shape [*b, R, m + 1]
            In double precision.
        """
        if "columns" in vars(self):
            return self.columns[..., places, :]
        return self._columns(places)

    @property
    def mean(self) -> Tensor:
        """Prior mean at the data rows, shape [*b, N]."""
        return self.x_mean

    @property
    def num_basis(self) -> int:
        """Number M of distinct locations (the largest over data sets)."""
        return self.geometry.num_locations

    @property
    def lead(self) -> torch.Size:
        """Leading dims of the data sets."""
        return self.x.shape[:-2]

    @property
    def points(self) -> Tensor:
        """Locations in their order, shape [*g, M, D]."""
        return take_rows(self.x, self.at_lead(self.geometry.first))

    @cached_property
    def place_mean(self) -> Tensor:
        """Prior mean at the locations in their order, shape [*b, M], in double precision."""
        with on_graph():
            return take_last(self.x_mean.double(), self.at_lead(self.geometry.first))

    @cached_property
    def _family_patterns(self) -> tuple[NeighborPattern, ...]:
        """Patterns of the posterior's factor, where they are not the prior's."""
        with on_graph():
            return tuple(family_pattern(p, self.family) for p in self.geometry.patterns)

    def pattern(self, position: Position) -> NeighborPattern:
        """The prior's pattern for one data set."""
        return self.geometry.patterns[flat(self.lead, position)]

    def factor_pattern(self, position: Position) -> NeighborPattern:
        """The pattern of the posterior's factor for one data set."""
        patterns = self.geometry.patterns if self.family == "sic" else self._family_patterns
        return patterns[flat(self.lead, position)]

    def at_lead(self, index: Tensor) -> Tensor:
        """Index tensor [P, K] with the leading dims of the inputs, [*g, K]."""
        return index.reshape(*self.lead, index.shape[-1])

    def to_places(self, basis: Tensor) -> Tensor:
        """Values by location number, as in the basis, to the order of the locations."""
        return take_last(basis, self.at_lead(self.geometry.location_at))

    def to_basis(self, values: Tensor) -> Tensor:
        """Inverse of :meth:`to_places`."""
        return take_last(values, self.at_lead(self.geometry.rank))

    def to_rows(self, values: Tensor) -> Tensor:
        """Values at the places of the order, at the data rows."""
        return take_last(values, self.at_lead(self.geometry.place))

    def whiten(self, basis: Tensor) -> Tensor:
        """``e = U'(f - m)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Function values at the distinct locations, in the order in which they appear.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Whitened values.
        """
        return self.to_basis(self._white(basis)).to(self.x_mean)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """``f = m + U^-T e``.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, M]
            Whitened values.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Function values.
        """
        shift = per_pattern(
            self.lead,
            lambda position, U, e: factor_transpose_solve(self.pattern(position), U, e),
            (self.columns, 2),
            (self.to_places(whitened.double()), 1),
        )
        return self.to_basis(self.place_mean + shift).to(self.x_mean)

    def log_prob(self, basis: Tensor) -> Tensor:
        """``log N(f | m, (UU')^-1)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Function values.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log densities.
        """
        rows = self.columns[..., -1].log() - 0.5 * (self._white(basis).square() + _LOG_2PI)
        return (rows * self.at_lead(self.geometry.real)).sum(-1).to(self.x_mean)

    def posterior(self, mean: Tensor, factor: Tensor) -> SparseInversePosterior:
        r"""A free-form q: any mean, and any factor on the pattern of the family.

        .. math:: q(f) = N(\nu, (VV^\top)^{-1})

        Parameters
        ----------
        mean : Tensor, shape [*b, M]
            :math:`\nu`, by place in the order of the locations.
        factor : Tensor, shape [*b, M, k + 1]
            V on the pattern of the posterior; diagonals are positive.

        Returns
        -------
        SparseInversePosterior
            Without sites: its log partition is minus its divergence from the prior.

        Raises
        ------
        InputError
            If shapes do not fit, or a diagonal is not positive.
        """
        M, width = self.num_basis, self.factor_pattern((0,) * len(self.lead)).num_neighbors + 1
        if mean.shape[-1:] != (M,) or factor.shape[-2:] != (M, width):
            raise InputError(
                f"mean has shape {tuple(mean.shape)} and factor {tuple(factor.shape)}; pass [*b, {M}] and "
                f"[*b, {M}, {width}]."
            )
        if not bool((factor[..., -1] > 0).all()):
            raise InputError(
                f"The smallest diagonal of factor is {float(factor[..., -1].min()):.3g}; they must be "
                "positive."
            )
        batch = torch.broadcast_shapes(mean.shape[:-1], self.x_mean.shape[:-1])
        zeros = Sites.zeros(
            (*batch, self.x.shape[-2]), dtype=self.x_mean.dtype, device=self.x_mean.device
        )
        shift = mean.double() - self.place_mean
        return SparseInversePosterior(self, zeros, shift, factor.double(), True)

    def tangent(
        self, posterior: Posterior, mean: Tensor, explained: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Gradient of an objective with q held: that of minus the divergence from this prior.

        q is what sites made it, but not exactly their product with the prior (its factor is incomplete),
        so that mean and factor are held and not the sites.

        Parameters
        ----------
        posterior : Posterior
            On data sites.
        mean, explained : Tensor, shape [*b, N]
            Weights of what the sites leave unsaid at this q; a held q does not see them.
        residual : None
            There is none.

        Returns
        -------
        Tensor, scalar
            On the graph.
        """
        if not isinstance(posterior, SparseInversePosterior):
            return super().tangent(posterior, mean, explained, residual)
        held = posterior.detach()
        shift = held.shift + held.prior.place_mean - self.place_mean
        return -self.divergence_rows(shift, held.factor).sum()

    def divergence_rows(self, shift: Tensor, factor: Tensor) -> Tensor:
        r"""Terms of KL(q || prior), one per place.

        .. math:: \tfrac12 |V^{-1} U_{:i}|^2 + \tfrac12 (U_{:i}^\top (\nu - \mu))^2
                  + \log V_{ii} - \log U_{ii} - \tfrac12

        Parameters
        ----------
        shift : Tensor, shape [*b, M]
            Mean of q less that of the prior.
        factor : Tensor, shape [*b, M, k + 1]
            V.

        Returns
        -------
        Tensor, shape [*b, M]
            Nats, in double precision.
        """
        return self._divergence(shift, factor, self.norms(factor)[1])

    def norms(self, factor: Tensor) -> Tensor:
        """Variances ``|V^-1 e_i|^2`` and traces ``|V^-1 U_i|^2`` of a factor, shape [2, *b, M]."""

        def both(position: Position, U: Tensor, V: Tensor) -> Tensor:
            patterns = self.factor_pattern(position), self.pattern(position)
            norms = posterior_norms(patterns[0], V, patterns[1], U, complete=self.complete)
            return torch.stack(norms)

        return per_pattern(self.lead, both, (self.columns, 2), (factor, 2))

    def _divergence(self, shift: Tensor, factor: Tensor, trace: Tensor) -> Tensor:
        quadratic = self._transpose_product(shift).square()
        logs = factor[..., -1].log() - self.columns[..., -1].log()
        return 0.5 * (trace - 1.0 + quadratic) + logs

    def _columns(self, places: Tensor | None) -> Tensor:
        points = self.points

        def columns(position: Position) -> Tensor:
            pattern = self.pattern(position)
            if places is None:
                own = torch.arange(self.num_basis, dtype=torch.int32, device=points.device)
                neighbors, order = pattern.neighbors, pattern.schedule
            else:
                own, neighbors, order = places.to(torch.int32), pattern.neighbors[places], None
            return columns_at(self.gp, points[position], neighbors, own, self.nugget, order)

        return per_pattern(self.lead, columns, trailing=2)

    def _white(self, basis: Tensor) -> Tensor:
        return self._transpose_product(self.to_places(basis.double()) - self.place_mean)

    def _transpose_product(self, vector: Tensor) -> Tensor:
        return per_pattern(
            self.lead,
            lambda position, U, v: factor_transpose_product(self.pattern(position), U, v),
            (self.columns, 2),
            (vector, 1),
        )

    def _condition(self, sites: Sites) -> SparseInversePosterior:
        place = self.at_lead(self.geometry.place)
        centred = (sites.lam1 - sites.lam2 * self.x_mean).double()
        lam1 = add_last(centred, place, self.num_basis)
        lam2 = add_last(sites.lam2.double(), place, self.num_basis)
        factor = self._factorise(lam2, self.pattern)

        def solve(position: Position, U: Tensor, w: Tensor, V: Tensor, b: Tensor) -> Tensor:
            return precision_solve(self.pattern(position), U, w, V, b)

        shift = per_pattern(
            self.lead, solve, (self.columns, 2), (lam2, 1), (factor.detach(), 2), (lam1, 1)
        )
        # The mean is the same for every family, and its solver wants the best factor there is.
        if self.family != "sic":
            factor = self._factorise(lam2, self.factor_pattern)
        return SparseInversePosterior(self, sites, shift, factor)

    def _factorise(self, lam2: Tensor, pattern: Callable[[Position], NeighborPattern]) -> Tensor:
        """Incomplete Cholesky factor of the posterior's precision on a pattern."""

        def factorise(position: Position, U: Tensor, w: Tensor) -> Tensor:
            own, on = self.pattern(position), pattern(position)
            return posterior_factor(own, U, w, on, lambda w: self._local_factor(position, w))

        return per_pattern(self.lead, factorise, (self.columns, 2), (lam2, 1), trailing=2)

    def _local_factor(self, position: Position, lam2: Tensor) -> Tensor:
        """Columns given earlier neighbours and noisy copies of the values around, copies left out."""
        pattern, points, M = self.pattern(position), self.points[position], self.num_basis
        # Noisy copies of the locations stand behind them, as points M, ..., 2 M - 1.
        around = self._around(position, points) + M
        real = self.geometry.real[flat(self.lead, position)].unsqueeze(-1)
        last = 2 * M
        known = torch.where(pattern.neighbors >= 0, pattern.neighbors, last)
        index = torch.cat([known, torch.where(real, around, last)], -1).sort(dim=-1).values
        index = torch.where(index < last, index, -1).to(torch.int32)
        own = torch.arange(M, dtype=torch.int32, device=points.device)
        noise = torch.cat([torch.zeros_like(lam2), (lam2 + _NO_SITE).reciprocal()], -1)
        columns = columns_at(
            self.gp, torch.cat([points, points]), index, own, self.nugget, pattern.schedule, noise
        )
        slot = torch.arange(pattern.num_neighbors, device=points.device)
        used = slot < pattern.counts.unsqueeze(-1)
        kept = torch.where(used, columns[..., : pattern.num_neighbors], 0.0)
        return torch.cat([kept, columns[..., -1:]], -1)

    def _around(self, position: Position, points: Tensor) -> Tensor:
        """Nearest locations of every location, itself included, int32 [M, k]."""
        entry = flat(self.lead, position)
        real = self.geometry.real[entry]
        search = self.geometry.search(entry, lambda: points[real])
        number = min(self.options.num_neighbors + 1, len(search))
        return search.nearest(self.geometry.scaled(points), number)


def family_pattern(pattern: NeighborPattern, family: str) -> NeighborPattern:
    """Pattern of the posterior's factor in a family.

    Parameters
    ----------
    pattern : NeighborPattern
        Of the prior.
    family : {"sic", "diagonal", "first_points"}
        Which.

    Returns
    -------
    NeighborPattern
        With the same rows.
    """
    if family == "sic":
        return pattern
    M, device = pattern.num_rows, pattern.neighbors.device
    number = 0 if family == "diagonal" else pattern.num_neighbors
    first = torch.arange(number, dtype=torch.int32, device=device).expand(M, number)
    row = torch.arange(M, dtype=torch.int32, device=device).unsqueeze(-1)
    neighbors = torch.where(first < row, first, -1).to(torch.int32).contiguous()
    return NeighborPattern(neighbors, pattern.schedule)
