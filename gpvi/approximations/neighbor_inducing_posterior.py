r"""The posterior of :class:`NeighborInducing`: :math:`q(u) = N(\nu, (VV^\top)^{-1})` and rows given it.

The mean solves the prior precision plus the sites' by conjugate gradients, to rounding. The factor V is the
incomplete Cholesky factor of the same matrix, so that the divergence comes from the two factors and every
inducing value counts once; the log partition is the lower bound that goes with it. All is exact where
patterns hold all earlier inducing points. Whatever V is, q is one Gaussian, and variances and divergence are
exactly its own if they go through all ancestors; from three generations of them they are nearly so.

References
----------
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._checks import check_finite, check_new_inputs, refuse_groups
from gpvi.approximations._gather import take_last
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._neighbor_inducing_average import (
    averaged_divergence,
    check_one_set,
    covariance_at,
)
from gpvi.approximations._neighbor_inducing_rows import NeighborRows, row_moments
from gpvi.approximations._neighbor_inducing_sites import (
    ratios_at_places,
    row_variances,
    site_system,
)
from gpvi.approximations._new_locations import sample_new
from gpvi.approximations._per_pattern import per_pattern
from gpvi.approximations._random import standard_normal
from gpvi.approximations._residual import ResidualDraw, check_residual, zero_safe_sqrt
from gpvi.approximations._variance_check import crude_variances
from gpvi.approximations.moments import Draw, Marginals
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.sparse_inverse_posterior import SparseInversePosterior
from gpvi.exceptions import UnsupportedError

if TYPE_CHECKING:
    from gpvi.approximations.neighbor_inducing_prior import NeighborInducingPrior

__all__ = ["NeighborInducingPosterior"]

# New inputs whose neighbours and weights are held at once.
_CHUNK = 50_000


@dataclass(frozen=True, eq=False)
class NeighborInducingPosterior(Posterior):
    """Rows given their nearest inducing points, under a Gaussian with a sparse inverse Cholesky factor.

    Parameters
    ----------
    prior : NeighborInducingPrior
        What was conditioned.
    sites : Sites
        On data rows or basis; zero for a free-form q.
    inner : SparseInversePosterior
        q of the inducing values.
    free : bool
        Whether q has parameters of its own instead of sites.
    """

    prior: "NeighborInducingPrior"
    sites: Sites
    inner: SparseInversePosterior
    free: bool = False

    @property
    def log_partition(self) -> Tensor:
        """``E_q[log t] - KL(q || prior)``, total: a lower bound on ``log E_prior[t]``."""
        expected = self._expected_basis if self.sites.on == "basis" else self._expected_rows
        return expected - self.kl()

    def kl(self) -> Tensor:
        """``KL(q || prior)``, total; with objective "swsgp" the average over rows instead."""
        if self.prior.objective == "swsgp":
            return self._averaged
        return self.inner.kl()

    def variance_ratios(self) -> Tensor:
        """Variances over the exact ones of the same prior and sites, at a few inducing values.

        Costs a few rough solves by conjugate gradients at each of up to eight: those where an incomplete
        factor would show that it is a bad one, and some that are spread over the inducing points.

        Returns
        -------
        Tensor, shape [*b, n]
            Ones where the factor is exact; in double precision, off the graph.

        Raises
        ------
        UnsupportedError
            For a free-form q, a compact posterior and independent inducing values: there is nothing to
            compare with.
        """
        if self.free or self.prior.inner.family != "sic":
            raise UnsupportedError(
                "Only a posterior on sites, of family 'sic', is meant to have the variances of prior times "
                "sites. What estimators keep for prediction has no sites any more: ask the posterior of "
                "gpvi.inference.fit or cvi; fits warn by themselves."
            )
        system = site_system(self.prior, self.sites)
        return ratios_at_places(
            self.prior.inner, system, self.inner.factor, self.inner._norms[0].detach()
        )

    def accuracy_remarks(self) -> tuple[str, ...]:
        """Whether variances are far from the exact ones of the same prior and sites.

        Returns
        -------
        tuple of str
            At most one sentence.
        """
        if self.free or self.prior.inner.family != "sic":
            return ()
        return crude_variances(self.variance_ratios, "the inducing values")

    @cached_property
    def _averaged(self) -> Tensor:
        prior = self.prior
        with on_graph():
            check_one_set(prior.inner)
            index, shift = prior.rows.index, self.inner.shift
            every = torch.arange(prior.num_basis, device=shift.device)
            covariance = self._covariance(every)
            value = averaged_divergence(
                prior.inner, index.reshape(-1, index.shape[-1]), every, shift, covariance
            )
            return value.to(prior.x_mean)

    def _covariance(self, places: Tensor) -> Tensor:
        of = self.prior.inner
        return per_pattern(
            of.lead,
            lambda position, V: covariance_at(of.factor_pattern(position), V, places),
            (self.inner.factor, 2),
            trailing=2,
        )

    @property
    def _expected_rows(self) -> Tensor:
        q, sites = self.marginals(), self.sites
        rows = sites.lam1 * q.mean - 0.5 * sites.lam2 * (q.mean.square() + q.explained)
        return self.sum_rows(rows)

    @property
    def _expected_basis(self) -> Tensor:
        sites, inner, of = self.sites, self.inner, self.prior.inner
        mean = of.to_basis(of.place_mean + inner.shift).to(of.x_mean)
        value = sites.log_value(mean)
        if not sites.full:
            variance = of.to_basis(inner._norms[0]).to(of.x_mean)
            return value - 0.5 * (sites.lam2 * variance).sum(-1)
        # Covariances in the order of the basis, as the sites are.
        rank = of.at_lead(of.geometry.rank).unsqueeze(-2)
        covariance = self._covariance(torch.arange(of.num_basis, device=mean.device))
        covariance = take_last(take_last(covariance, rank).mT, rank).to(mean)
        return value - 0.5 * (sites.lam2 * covariance).sum((-1, -2))

    def _marginals(self) -> Marginals:
        prior = self.prior
        return _moments(self, prior.x_mean, prior.rows, prior._moments)

    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments anywhere: a new input is given its nearest inducing points.

        Parameters
        ----------
        x : Tensor, shape [*g, N_new, D]
            Inputs.
        joint : bool
            Whether to return the full covariance. New inputs then also condition on each other, as those of
            a :class:`SparseInversePosterior`: alone, they are independent given the inducing values.
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
        prior = self.prior
        if joint:
            return self.inner.predict(x, joint=True)
        mean = prior.gp.mean(x)
        number = prior.inner.options.num_prediction_neighbors
        merge = not x.requires_grad and not prior.inner.x.requires_grad
        parts = []
        for start in range(0, max(1, x.shape[-2]), _CHUNK):
            part = x[..., start : start + _CHUNK, :]
            rows = NeighborRows.build(prior.inner, part, number, merge)
            moments = row_moments(prior.inner, part, rows)
            parts.append(_moments(self, mean[..., start : start + _CHUNK], rows, moments))
        if len(parts) == 1:
            return parts[0]
        return Marginals(
            *(
                torch.cat([getattr(part, name) for part in parts], -1)
                for name in ("mean", "explained", "residual")
            )
        )

    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Reparametrised joint samples; see :meth:`Posterior.rsample`.

        A joint residual conditions rows on inducing values and on each other, in linear time.

        Parameters
        ----------
        shape : sequence of int
            Sample shape S.
        x : Tensor, shape [*g, N_new, D], optional
            Where; the data rows if left out.
        residual : {"joint", "independent", "none"}
            How what the inducing values leave open is drawn.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values and inducing values.
        """
        check_residual(residual)
        prior, of = self.prior, self.prior.inner
        if x is not None:
            check_new_inputs(self, x)
            check_finite(x)
        if generator is None:
            generator = torch.Generator(device=prior.x.device)
            generator.seed()
        basis = self.inner.rsample(shape, generator=generator).basis
        gap = of.to_places(basis.double()) - of.place_mean
        where = prior.x if x is None else x
        if residual == "joint":
            drawn = sample_new(self.inner, where, gap, generator).to(where)
            return Draw(prior.gp.mean(where) + drawn, basis)
        rows, moments, mean = prior.rows, None, prior.x_mean
        if x is None:
            moments = prior._moments
        else:
            rows = NeighborRows.build(of, x, of.options.num_prediction_neighbors, False)
            moments, mean = row_moments(of, x, rows), prior.gp.mean(x)
        values = mean + (moments[..., :-1] * rows.gather(gap)).sum(-1).to(mean)
        if residual == "independent":
            noise = standard_normal(tuple(values.shape), values, generator)
            values = values + zero_safe_sqrt(moments[..., -1].to(values)) * noise
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
        return self.inner.log_ratio(draw)

    def leave_one_out(self) -> Marginals:
        """Moments of every row without its own site; see :meth:`Posterior.leave_one_out`.

        Returns
        -------
        Marginals
            With the residual of every row.

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
        """Weights of the inducing points; see :meth:`Posterior.path_weights`.

        Parameters
        ----------
        prior_path : callable
            Draws of the prior.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        inputs : Tensor, shape [*g, M, D]
            The inducing inputs in their order.
        weights : Tensor, shape [S, *b, M]
            One per inducing point. Elsewhere the draw is that of the process given all of them, to which the
            nearest are an approximation.
        """
        return self.inner.path_weights(prior_path, generator)

    def compact(self) -> "NeighborInducingPosterior":
        """The same q without data rows, for prediction.

        Returns
        -------
        NeighborInducingPosterior
            Same q(u), KL and predictions; ``marginals`` has no rows left.
        """
        prior = self.prior
        if prior.objective == "swsgp":
            return self  # its divergence is an average over rows
        rows = prior.rows
        # Clones: slices would keep, and pickle, the storage of all rows.
        small = replace(
            prior,
            x=prior.x[..., :0, :].clone(),
            x_mean=prior.x_mean[..., :0].clone(),
            rows=NeighborRows(
                rows.index[..., :0, :].clone(),
                rows.exact[..., :0].clone(),
                rows.order[..., :0].clone(),
            ),
        )
        sites, free = self.sites, self.free
        if sites.on == "data":
            batch = torch.broadcast_shapes(sites.lam1.shape[:-1], prior.x_mean.shape[:-1])
            sites, free = small._no_sites(batch), True
        return NeighborInducingPosterior(small, sites, self.inner, free)

    def _site_values(self, basis: Tensor) -> Tensor:
        if self.sites.on == "basis":
            return basis
        prior = self.prior
        gap = prior.inner.to_places(basis.double()) - prior.inner.place_mean
        return prior.x_mean + (prior.weights * prior.rows.gather(gap)).sum(-1).to(prior.x_mean)


def _moments(
    posterior: NeighborInducingPosterior, mean: Tensor, rows: NeighborRows, moments: Tensor
) -> Marginals:
    """Marginals of rows with weights and residuals [*b, N, H + 1]."""
    inner, weights = posterior.inner, moments[..., :-1]
    shift = (weights * rows.gather(inner.shift)).sum(-1)
    explained = row_variances(inner.prior, rows, inner.factor, weights)
    mean = mean + shift.to(mean)
    return Marginals(mean, explained.to(mean).expand_as(mean), moments[..., -1].to(mean))
