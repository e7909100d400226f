r"""The posterior of a full-scale prior: a dense block for the features, a sparse one for what they leave.

.. math:: q(e) = N(\bar e, (RR^\top)^{-1}), \qquad
          q(r \mid e) = N(\rho - G^\top (e - \bar e), (VV^\top)^{-1})

Means and the slope G solve the joint precision of prior and sites, by conjugate gradients to rounding; R
is the best for these. V is the incomplete Cholesky factor of the precision of r given e, as in the sparse
inverse Cholesky posterior, and q is exactly prior times sites where that factor is complete.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._checks import check_finite, check_new_inputs, refuse_groups
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._new_locations import joint_moments, new_marginals, sample_new
from gpvi.approximations._per_pattern import per_pattern
from gpvi.approximations._random import standard_normal
from gpvi.approximations._residual import ResidualDraw, check_residual
from gpvi.approximations.moments import Draw, Marginals, joint_normal
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.sparse_inverse_posterior import SparseInversePosterior
from gpvi.linalg import (
    factor_transpose_product,
    factor_transpose_solve,
    log_det_from_cholesky,
    mat_vec,
    solve_lower,
    solve_lower_transposed_vec,
)

if TYPE_CHECKING:
    from gpvi.approximations.full_scale_prior import FullScalePrior

__all__ = ["FullScalePosterior"]


@dataclass(frozen=True, eq=False)
class FullScalePosterior(Posterior):
    """A Gaussian over whitened features and, given these, sparse residuals.

    Parameters
    ----------
    prior : FullScalePrior
        What was conditioned.
    sites : Sites
        On the data rows.
    centre : Tensor, shape [*b, M]
        Mean of e.
    root : Tensor, shape [*b, M, M]
        R, lower triangular.
    shift : Tensor, shape [*b, P]
        Mean of r at the mean of e, by place in the order of the locations.
    slope : Tensor, shape [*b, M, P]
        G.
    factor : Tensor, shape [*b, P, k + 1]
        V.
    """

    prior: "FullScalePrior"
    sites: Sites
    centre: Tensor
    root: Tensor
    shift: Tensor
    slope: Tensor
    factor: Tensor

    @cached_property
    def rest(self) -> SparseInversePosterior:
        """r given that e is at its mean."""
        with on_graph():
            return SparseInversePosterior(self.prior.residuals, self.sites, self.shift, self.factor)

    @property
    def log_partition(self) -> Tensor:
        """``E_q[log t] - KL(q || prior)``, total: a lower bound on ``log E_prior[t]``."""
        q, sites = self.marginals(), self.sites
        square = q.mean.square() + q.explained
        return self.sum_rows(sites.lam1 * q.mean - 0.5 * sites.lam2 * square) - self.kl()

    def kl(self) -> Tensor:
        """``KL(q(e) || p(e)) + E[KL(q(r | e) || p(r))]``, total."""
        M = self.root.shape[-1]
        inverse = self._solve(torch.eye(M, dtype=self.root.dtype, device=self.root.device))
        first = inverse.square().sum((-2, -1)) + self.centre.square().sum(-1) - M
        total = 0.5 * (first + log_det_from_cholesky(self.root))
        total = total + self.prior.coupling(self.slope, self.root)
        return (total + self.rest.kl_places().sum(-1)).to(self.prior.mean)

    def accuracy_remarks(self) -> tuple[str, ...]:
        """Whether variances of the residuals are far from those of the same prior and sites.

        Returns
        -------
        tuple of str
            At most one sentence.
        """
        return self.rest.accuracy_remarks()

    def variance_ratios(self) -> Tensor:
        """Variances of r given e over the exact ones; see :meth:`SparseInversePosterior.variance_ratios`.

        Returns
        -------
        Tensor, shape [*b, n]
            At a few locations.
        """
        return self.rest.variance_ratios()

    def _marginals(self) -> Marginals:
        prior, inner = self.prior, self.prior.residuals
        gap = self.shift + prior.by_features(self.centre)
        through = self._solve(prior.place_features - self.slope).square().sum(-2)
        mean = prior.mean + inner.to_rows(gap).to(prior.mean)
        variance = inner.to_rows(self.rest._norms[0] + through).to(prior.mean)
        return Marginals(mean, variance)

    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments anywhere: features, and residuals given the nearest locations.

        Parameters
        ----------
        x : Tensor, shape [*g, N_new, D]
            Inputs.
        joint : bool
            Whether to return the full covariance. New inputs then also condition on each other.
        groups : None
            Refused here.

        Returns
        -------
        Marginals or MultivariateNormal
            The latter if ``joint``.
        """
        refuse_groups(self, groups)
        check_new_inputs(self, x)
        check_finite(x)
        mean = self.prior.gp.mean(x)
        F = self.prior.features.encode(x)[0].double()
        shifts = torch.cat([self.slope, self._wide_shift()], -2)
        moments = joint_moments if joint else new_marginals
        values, spread = moments(self.rest, x, shifts)
        slope, shift = values[..., :-1, :], values[..., -1, :]
        gap = shift + mat_vec(F.mT, self.centre)
        through = self._solve(F - slope)
        mean = mean + gap.to(mean)
        if joint:
            covariance = spread + through.mT @ through
            lead = torch.broadcast_shapes(mean.shape[:-1], covariance.shape[:-2])
            covariance = covariance.to(mean).expand(*lead, -1, -1)
            return joint_normal(mean.expand(*lead, -1), covariance)
        variance = spread + through.square().sum(-2)
        return Marginals(mean, variance.to(mean).expand_as(mean))

    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Reparametrised joint samples; see :meth:`Posterior.rsample`.

        Parameters
        ----------
        shape : sequence of int
            Sample shape S.
        x : Tensor, shape [*g, N_new, D], optional
            Where; the data rows if left out.
        residual : {"joint", "independent", "none"}
            The basis leaves nothing open, so all three are the same.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values, and u and f at the distinct locations.
        """
        check_residual(residual)
        prior, inner = self.prior, self.prior.residuals
        batch = torch.broadcast_shapes(self.shift.shape[:-1], self.factor.shape[:-2])
        first = standard_normal((*shape, *batch, self.root.shape[-1]), self.shift, generator)
        second = standard_normal((*shape, *batch, inner.num_basis), self.shift, generator)
        moved = solve_lower_transposed_vec(self.root, first)
        white = per_pattern(
            inner.lead,
            lambda position, V, e: factor_transpose_solve(inner.factor_pattern(position), V, e),
            (self.factor, 2),
            (second, 1),
        )
        rest = self.shift - mat_vec(self.slope.mT, moved) + white
        whitened = self.centre + moved
        basis = prior.join(whitened, rest)
        if x is None:
            gap = prior.by_features(whitened) + rest
            return Draw(prior.mean + inner.to_rows(gap).to(prior.mean), basis)
        check_new_inputs(self, x)
        check_finite(x)
        F = prior.features.encode(x)[0].double()
        gap = mat_vec(F.mT, whitened) + sample_new(self.rest, x, rest, generator)
        return Draw(prior.gp.mean(x) + gap.to(prior.mean), basis)

    def log_ratio(self, draw: Draw) -> Tensor:
        """``log p(basis) - log q(basis)``, shape [*S, *b].

        Parameters
        ----------
        draw : Draw
            With ``basis`` of shape [*S, *b, M + P].

        Returns
        -------
        Tensor, shape [*S, *b]
            Log weights of the prior against q.
        """
        prior, inner = self.prior, self.prior.residuals
        whitened, rest = prior.split(draw.basis)
        gap = whitened - self.centre
        by_root = mat_vec(self.root.mT, gap)
        first = 0.5 * (by_root.square() - whitened.square()).sum(-1)
        first = first - 0.5 * log_det_from_cholesky(self.root)
        by_prior = inner._transpose_product(rest)
        by_q = per_pattern(
            inner.lead,
            lambda position, V, v: factor_transpose_product(inner.factor_pattern(position), V, v),
            (self.factor, 2),
            (rest - self.shift + mat_vec(self.slope.mT, gap), 1),
        )
        logs = inner.columns[..., -1].log() - self.factor[..., -1].log()
        rows = logs + 0.5 * (by_q.square() - by_prior.square())
        return (first + rows.sum(-1)).to(prior.mean)

    def detach(self) -> "FullScalePosterior":
        """The same posterior off the graph; variances are kept.

        Returns
        -------
        FullScalePosterior
            With every tensor detached.
        """
        copy = super().detach()
        if "rest" in vars(self) and "_norms" in vars(self.rest):
            vars(copy.rest)["_norms"] = self.rest._norms.detach()
        return copy

    def _solve(self, matrix: Tensor) -> Tensor:
        """``R^-1`` times a matrix [*b, M, K]."""
        return solve_lower(self.root, matrix)

    def _wide_shift(self) -> Tensor:
        """The shift with the batch dims of the slope, [*b, 1, P]."""
        return self.shift.unsqueeze(-2).expand(*self.slope.shape[:-2], 1, -1)

    def _site_values(self, basis: Tensor) -> Tensor:
        inner = self.prior.residuals
        return inner.to_rows(inner.to_places(basis[..., self.prior.num_features :]))
