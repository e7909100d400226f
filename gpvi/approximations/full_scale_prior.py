r"""Full-scale prior: basis variables for what is smooth, nearest neighbours for what they leave open.

.. math:: f = \mu + F^\top e + r, \qquad e \sim N(0, I), \qquad r \sim N(0, (UU^\top)^{-1})

with the whitened features F of any basis and a sparse inverse Cholesky factor U of the covariance
:math:`C = K - F^\top F` that the basis leaves. The basis of this prior are the variables u of the first part
and the function values f at the distinct locations.

References
----------
Sang, H. & Huang, J. Z. (2012). A full scale approximation of covariance functions for large spatial data
sets. JRSS B.
Gyger, T., Furrer, R. & Sigrist, F. (2025). Vecchia-inducing-points full-scale approximations for Gaussian
processes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from gpvi.approximations._gather import add_last, take_last
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._per_pattern import Position, per_pattern
from gpvi.approximations.base import Prior
from gpvi.approximations.feature_prior import FeaturePrior
from gpvi.approximations.full_scale_posterior import FullScalePosterior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.linalg import (
    mat_vec,
    precision_solve,
    solve_lower,
    solve_lower_transposed_vec,
    solve_lower_vec,
)

__all__ = ["FullScalePrior"]


@dataclass(frozen=True, eq=False)
class FullScalePrior(Prior):
    """Features and a sparse residual at fixed inputs and hyperparameters.

    Parameters
    ----------
    features : FeaturePrior
        Of the first part.
    residuals : SparseInversePrior
        Of what it leaves open, without a mean.
    """

    features: FeaturePrior
    residuals: SparseInversePrior

    #: Features at the locations go with the factor of the residuals.
    carried: ClassVar[tuple[str, ...]] = ("place_features",)

    @property
    def gp(self) -> GaussianProcessLike:  # type: ignore[override]
        """Snapshot of the process."""
        return self.features.gp

    @property
    def x(self) -> Tensor:  # type: ignore[override]
        """Data inputs, shape [*g, N, D]."""
        return self.features.x

    @property
    def exact_conditioning(self) -> bool:  # type: ignore[override]
        """False: the factor of the posterior of the residuals is incomplete."""
        return False

    @property
    def mean(self) -> Tensor:
        """Prior mean at the data rows, shape [*b, N]."""
        return self.features.x_mean

    @property
    def num_features(self) -> int:
        """Number M of variables of the first part."""
        return self.features.num_basis

    @property
    def num_basis(self) -> int:
        """Variables of the first part and distinct locations, M + P."""
        return self.num_features + self.residuals.num_basis

    @cached_property
    def place_features(self) -> Tensor:
        """Features F at the locations in their order, shape [*b, M, P], in double precision."""
        with on_graph():
            first = self.residuals.at_lead(self.residuals.geometry.first)
            batch = self.mean.shape[:-1]
            wide = self.features.features.expand(*batch, -1, -1).movedim(-2, 0)
            return take_last(wide, first).movedim(0, -2).double()

    @cached_property
    def place_mean(self) -> Tensor:
        """Prior mean at the locations in their order, shape [*b, P], in double precision."""
        with on_graph():
            first = self.residuals.at_lead(self.residuals.geometry.first)
            return take_last(self.mean.double(), first)

    def split(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened variables e and residuals r by place, of basis values.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M + P]
            u and f.

        Returns
        -------
        whitened : Tensor, shape [*S, *b, M]
            In double precision.
        residuals : Tensor, shape [*S, *b, P]
            In double precision.
        """
        M = self.num_features
        whitened = self.features.whiten(basis[..., :M]).double()
        values = self.residuals.to_places(basis[..., M:].double())
        return whitened, values - self.place_mean - self.by_features(whitened)

    def join(self, whitened: Tensor, residuals: Tensor) -> Tensor:
        """Inverse of :meth:`split`.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, M]
            e.
        residuals : Tensor, shape [*S, *b, P]
            r by place.

        Returns
        -------
        Tensor, shape [*S, *b, M + P]
            u and f.
        """
        values = self.place_mean + self.by_features(whitened) + residuals
        both = [self.features.unwhiten(whitened.to(self.mean)), self.residuals.to_basis(values)]
        lead = torch.broadcast_shapes(*(part.shape[:-1] for part in both))
        return torch.cat([part.expand(*lead, -1) for part in both], -1).to(self.mean)

    def by_features(self, whitened: Tensor) -> Tensor:
        """``F'e`` at the places, shape [*S, *b, P]."""
        return mat_vec(self.place_features.mT, whitened)

    def whiten(self, basis: Tensor) -> Tensor:
        """``e`` and ``U'r``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M + P]
            Basis values.

        Returns
        -------
        Tensor, shape [*S, *b, M + P]
            Whitened values.
        """
        whitened, rest = self.split(basis)
        white = self.residuals.to_basis(self.residuals._transpose_product(rest))
        lead = torch.broadcast_shapes(whitened.shape[:-1], white.shape[:-1])
        return torch.cat([part.expand(*lead, -1) for part in (whitened, white)], -1).to(self.mean)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """Inverse of :meth:`whiten`.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, M + P]
            Whitened values.

        Returns
        -------
        Tensor, shape [*S, *b, M + P]
            Basis values.
        """
        M = self.num_features
        rest = self.residuals.unwhiten(whitened[..., M:])
        return self.join(whitened[..., :M].double(), self.residuals.to_places(rest.double()))

    def log_prob(self, basis: Tensor) -> Tensor:
        """``log N(u | m_u, Kuu) + log N(r | 0, (UU')^-1)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M + P]
            Basis values.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log densities.
        """
        rest = self.residuals.to_basis(self.split(basis)[1])
        first = self.features.log_prob(basis[..., : self.num_features])
        return first + self.residuals.log_prob(rest).to(first)

    def tangent(
        self, posterior: Posterior, mean: Tensor, explained: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Gradient of an objective with q(e, f) held: that of minus the divergence from this prior.

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
        if not isinstance(posterior, FullScalePosterior):
            return super().tangent(posterior, mean, explained, residual)
        held = posterior.detach()
        values = held.prior.place_mean + held.prior.by_features(held.centre) + held.shift
        shift = values - self.place_mean - self.by_features(held.centre)
        slope = held.slope + self.place_features - held.prior.place_features
        rows = self.residuals.divergence_rows(shift, held.factor)
        return -rows.sum() - self.coupling(slope, held.root).sum()

    def coupling(self, slope: Tensor, root: Tensor) -> Tensor:
        r"""``|R^-1 G U|^2 / 2``: what the divergence of r given e adds because r moves with e.

        Parameters
        ----------
        slope : Tensor, shape [*b, M, P]
            G: r has mean ``shift - G'(e - centre)``.
        root : Tensor, shape [*b, M, M]
            R, lower triangular, ``RR'`` the precision of e.

        Returns
        -------
        Tensor, shape [*b]
            Nats.
        """
        moved = solve_lower(root, self.push(slope))
        return 0.5 * moved.square().sum((-2, -1))

    def push(self, slope: Tensor) -> Tensor:
        """``G U``, shape [*b, M, P]."""
        return self.residuals._transpose_product(slope.movedim(-2, 0)).movedim(0, -2)

    def _condition(self, sites: Sites) -> FullScalePosterior:
        inner = self.residuals
        place = inner.at_lead(inner.geometry.place)
        centred = (sites.lam1 - sites.lam2 * self.mean).double()
        lam1 = add_last(centred, place, inner.num_basis)
        lam2 = add_last(sites.lam2.double(), place, inner.num_basis)
        factor = inner._factorise(lam2, inner.pattern)

        def solve(vectors: Tensor) -> Tensor:
            def one(position: Position, U: Tensor, w: Tensor, V: Tensor, b: Tensor) -> Tensor:
                return precision_solve(inner.pattern(position), U, w, V, b)

            return per_pattern(
                inner.lead,
                one,
                (inner.columns, 2),
                (lam2, 1),
                (factor.detach(), 2),
                (vectors, 1),
            )

        batch = torch.broadcast_shapes(lam2.shape[:-1], self.place_features.shape[:-2])
        F = self.place_features.expand(*batch, -1, -1)
        slope = solve((F * lam2.unsqueeze(-2)).movedim(-2, 0)).movedim(0, -2)
        open_ = F - slope
        moved, M = self.push(slope), self.num_features
        eye = torch.eye(M, dtype=F.dtype, device=F.device)
        precision = eye + moved @ moved.mT + (open_ * lam2.unsqueeze(-2)) @ open_.mT
        root = torch.linalg.cholesky(precision)
        pull = mat_vec(open_, lam1).expand(*batch, M)
        centre = solve_lower_transposed_vec(root, solve_lower_vec(root, pull))
        shift = solve(lam1) - mat_vec(slope.mT, centre)
        if inner.family != "sic":
            factor = inner._factorise(lam2, inner.factor_pattern)
        return FullScalePosterior(self, sites, centre, root, shift, slope, factor)
