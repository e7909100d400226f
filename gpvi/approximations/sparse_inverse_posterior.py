r"""The posterior of a sparse inverse Cholesky prior: :math:`q(f) = N(\nu, (VV^\top)^{-1})`.

The mean solves the prior precision plus the sites' by conjugate gradients, to rounding. The factor V is
the incomplete Cholesky factor of the same matrix, so that q is not exactly prior times sites: the
divergence comes from the two factors, and the log partition is the lower bound that goes with it. Both
are exact where the pattern holds all earlier locations. Variances use the ancestors of a location up to
three generations back; where neighbours are few and data weak, what lies further back is missing from
variances, and the bound may exceed its evidence by what that hides.

References
----------
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpvi.approximations._checks import check_finite, check_new_inputs, refuse_groups
from gpvi.approximations._gather import add_last
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._new_locations import joint_moments, new_marginals, sample_new
from gpvi.approximations._per_pattern import per_pattern, position_in
from gpvi.approximations._random import standard_normal
from gpvi.approximations._residual import ResidualDraw, check_residual
from gpvi.approximations._variance_check import crude_variances, stacked, variance_ratios
from gpvi.approximations.moments import Draw, Marginals, joint_normal
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.sparse_inverse_rows import SparseInverseRows
from gpvi.exceptions import UnsupportedError
from gpvi.linalg import factor_product, factor_transpose_product, factor_transpose_solve

if TYPE_CHECKING:
    from gpvi.approximations.sparse_inverse_prior import SparseInversePrior

__all__ = ["SparseInversePosterior"]


@dataclass(frozen=True, eq=False)
class SparseInversePosterior(Posterior):
    """A Gaussian with a sparse inverse Cholesky factor.

    Parameters
    ----------
    prior : SparseInversePrior
        What was conditioned.
    sites : Sites
        On the data rows; zero for a free-form q.
    shift : Tensor, shape [*b, M]
        Mean of q less that of the prior, by place in the order of the locations.
    factor : Tensor, shape [*b, M, k + 1]
        V.
    free : bool
        Whether q has parameters of its own instead of sites.
    """

    prior: "SparseInversePrior"
    sites: Sites
    shift: Tensor
    factor: Tensor
    free: bool = False

    #: Variances and traces cost more than anything else of a posterior.
    carried: ClassVar[tuple[str, ...]] = ("_norms",)

    @cached_property
    def _norms(self) -> Tensor:
        with on_graph():
            return self.prior.norms(self.factor)

    @property
    def log_partition(self) -> Tensor:
        """``E_q[log t] - KL(q || prior)``, total: a lower bound on ``log E_prior[t]``."""
        q, sites = self.marginals(), self.sites
        square = q.mean.square() + q.explained
        rows = sites.lam1 * q.mean - 0.5 * sites.lam2 * square
        return self.sum_rows(rows) - self.kl()

    def kl(self) -> Tensor:
        """``KL(q || prior)``, total, from the two factors."""
        return self.kl_places().sum(-1).to(self.prior.x_mean)

    def kl_places(self) -> Tensor:
        """Its terms by place in the order of the locations.

        Returns
        -------
        Tensor, shape [*b, M]
            Nats, in double precision.
        """
        return self.prior._divergence(self.shift, self.factor, self._norms[1])

    def variance_ratios(self) -> Tensor:
        """Variances over the exact ones of the same prior and sites, at a few locations.

        Costs a few rough solves by conjugate gradients at each of up to eight locations: those where an
        incomplete factor would show that it is a bad one, and some that are spread over the data.

        Returns
        -------
        Tensor, shape [*b, n]
            Ones where the factor is exact; in double precision, off the graph.

        Raises
        ------
        UnsupportedError
            For a free-form q, and families that leave entries out on purpose: there is nothing to compare
            with.
        """
        if self.free or self.prior.family != "sic":
            raise UnsupportedError(
                "Only a posterior on sites, of family 'sic', is meant to have the variances of prior times "
                "sites."
            )
        prior, place = self.prior, self.prior.at_lead(self.prior.geometry.place)
        lam2 = add_last(self.sites.lam2.double(), place, prior.num_basis)
        batch = torch.broadcast_shapes(self.factor.shape[:-2], lam2.shape[:-1])
        tensors = [
            tensor.expand(*batch, *tensor.shape[-dims:]).reshape(-1, *tensor.shape[-dims:])
            for tensor, dims in (
                (prior.columns, 2),
                (lam2, 1),
                (self.factor, 2),
                (self._norms[0], 1),
            )
        ]
        positions = list(np.ndindex(*batch))
        with torch.no_grad():
            ratios = [
                variance_ratios(prior.pattern(position_in(prior.lead, position)), *parts)
                for position, *parts in zip(positions, *tensors, strict=True)
            ]
        return stacked(ratios, batch)

    def accuracy_remarks(self) -> tuple[str, ...]:
        """Whether variances are far from the exact ones of the same prior and sites.

        Returns
        -------
        tuple of str
            At most one sentence.
        """
        if self.free or self.prior.family != "sic":
            return ()
        return crude_variances(self.variance_ratios, "the function")

    def _marginals(self) -> Marginals:
        prior = self.prior
        mean = prior.mean + prior.to_rows(self.shift).to(prior.x_mean)
        return Marginals(mean, prior.to_rows(self._norms[0]).to(prior.x_mean))

    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments anywhere: a new input is given its nearest locations; see :meth:`Posterior.predict`.

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
        if joint:
            shifts, covariance = joint_moments(self, x, self.shift.unsqueeze(-2))
            shift = shifts[..., 0, :]
            lead = torch.broadcast_shapes(mean.shape[:-1], covariance.shape[:-2])
            mean = (mean + shift.to(mean)).expand(*lead, -1)
            return joint_normal(mean, covariance.to(mean).expand(*lead, -1, -1))
        shifts, variance = new_marginals(self, x, self.shift.unsqueeze(-2))
        mean = mean + shifts[..., 0, :].to(mean)
        return Marginals(mean, variance.to(mean).expand_as(mean))

    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Reparametrised joint samples ``f = nu + V^-T e``; see :meth:`Posterior.rsample`.

        Parameters
        ----------
        shape : sequence of int
            Sample shape S.
        x : Tensor, shape [*g, N_new, D], optional
            Where; the data rows if left out.
        residual : {"joint", "independent", "none"}
            No residual is left, so all three are the same.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values and function values at the distinct locations.
        """
        check_residual(residual)
        prior = self.prior
        batch = torch.broadcast_shapes(self.shift.shape[:-1], self.factor.shape[:-2])
        noise = standard_normal((*shape, *batch, prior.num_basis), self.shift, generator)
        gap = self.shift + per_pattern(
            prior.lead,
            lambda position, V, e: factor_transpose_solve(prior.factor_pattern(position), V, e),
            (self.factor, 2),
            (noise, 1),
        )
        basis = prior.to_basis(prior.place_mean + gap).to(prior.x_mean)
        if x is None:
            return Draw(prior.mean + prior.to_rows(gap).to(prior.x_mean), basis)
        check_new_inputs(self, x)
        check_finite(x)
        values = prior.gp.mean(x) + sample_new(self, x, gap, generator).to(x)
        return Draw(values, basis)

    def log_ratio(self, draw: Draw) -> Tensor:
        """``log p(basis) - log q(basis)`` from the two factors, shape [*S, *b].

        Parameters
        ----------
        draw : Draw
            With ``basis`` of shape [*S, *b, M].

        Returns
        -------
        Tensor, shape [*S, *b]
            Log weights of the prior against q.
        """
        prior = self.prior
        gap = prior.to_places(draw.basis.double()) - prior.place_mean
        by_prior = prior._transpose_product(gap)
        by_q = per_pattern(
            prior.lead,
            lambda position, V, v: factor_transpose_product(prior.factor_pattern(position), V, v),
            (self.factor, 2),
            (gap - self.shift, 1),
        )
        logs = prior.columns[..., -1].log() - self.factor[..., -1].log()
        rows = logs + 0.5 * (by_q.square() - by_prior.square())
        return rows.sum(-1).to(prior.x_mean)

    def rows(self, index: Tensor) -> SparseInverseRows:
        """This posterior as a minibatch of rows sees it.

        Parameters
        ----------
        index : Tensor of int64, shape [B]
            Data rows.

        Returns
        -------
        SparseInverseRows
            Its divergence is an unbiased estimate of the whole one, for rows drawn uniformly.
        """
        return SparseInverseRows(self, index)

    def leave_one_out(self) -> Marginals:
        """Moments of f at every data row without its own site; see :meth:`Posterior.leave_one_out`.

        Returns
        -------
        Marginals
            Shape [*b, N].

        Raises
        ------
        UnsupportedError
            For a free-form q, which has no sites to take away.
        """
        if self.free:
            raise UnsupportedError(
                "A free-form q has no sites, so that no row can be left out; condition the prior on sites."
            )
        return super().leave_one_out()

    def path_weights(
        self, prior_path: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Weights ``U U'(f - m - g)`` for a draw f of q; see :meth:`Posterior.path_weights`.

        Parameters
        ----------
        prior_path : callable
            Values [S, *b, M] of draws of the prior without its mean.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        inputs : Tensor, shape [*g, M, D]
            The locations in their order.
        weights : Tensor, shape [S, *b, M]
            One per location. Between locations the draw is that of the process given all of them, to which
            the prior's own neighbours are an approximation.
        """
        prior = self.prior
        inputs = prior.points
        drawn = prior_path(inputs)
        basis = self.rsample(drawn.shape[:1], generator=generator).basis
        gap = prior.to_places(basis.double()) - prior.place_mean - drawn.double()
        weights = per_pattern(
            prior.lead,
            lambda position, U, v: factor_product(prior.pattern(position), U, v),
            (prior.columns, 2),
            (prior._transpose_product(gap), 1),
        )
        # Padding repeats a location, and has no say.
        return inputs, (weights * prior.at_lead(prior.geometry.real)).to(prior.x_mean)

    def _site_values(self, basis: Tensor) -> Tensor:
        return self.prior.to_rows(self.prior.to_places(basis))
