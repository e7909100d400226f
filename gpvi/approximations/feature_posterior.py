"""Posterior of priors through finitely many basis variables (:mod:`gpvi.approximations.feature_prior`)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._checks import check_new_inputs, refuse_groups
from gpvi.approximations._random import align_samples
from gpvi.approximations._residual import ResidualDraw, check_residual, sample_residual
from gpvi.approximations._site_root import site_root
from gpvi.approximations.cavity import (
    cavity,
    check_rows_have_sites,
    gap_from_factor,
    gap_from_moments,
)
from gpvi.approximations.moments import Draw, Marginals, joint_normal
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.whitened import WhitenedGaussian
from gpvi.exceptions import UnsupportedError
from gpvi.linalg import mat_vec, safe_cholesky, sum_of_squares

if TYPE_CHECKING:
    from gpvi.approximations.feature_prior import FeaturePrior

__all__ = ["FeaturePosterior"]


@dataclass(frozen=True, eq=False)
class FeaturePosterior(Posterior):
    """Posterior of a finite basis.

    Parameters
    ----------
    prior : FeaturePrior
        What was conditioned.
    sites : Sites
        On data, basis or whitened basis.
    whitened : WhitenedGaussian
        q(e).
    constant : Tensor, shape [*b]
        Log site value at ``e = 0``.
    """

    prior: "FeaturePrior"
    sites: Sites
    whitened: WhitenedGaussian
    constant: Tensor

    @property
    def log_partition(self) -> Tensor:
        """``log E_prior[exp(sum log t)]``, shape [*b]."""
        return self.constant + self.whitened.log_normaliser()

    def kl(self) -> Tensor:
        """``KL(q(u) || p(u))``, shape [*b]."""
        return self.whitened.kl()

    def _marginals(self) -> Marginals:
        mean, explained = self.whitened.project(self.prior.features)
        return Marginals(self.prior.x_mean + mean, explained, self.prior.x_residual)

    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments at new inputs; see :meth:`Posterior.predict`.

        Parameters
        ----------
        x : Tensor, shape [*g, N_new, D]
            Inputs.
        joint : bool
            Whether to return the full covariance.
        groups : None
            This posterior has no groups.

        Returns
        -------
        Marginals or MultivariateNormal
            The latter if ``joint``.
        """
        refuse_groups(self, groups)
        check_new_inputs(self, x)
        prior = self.prior
        features, residual = prior.encode(x)
        mean, explained = self.whitened.project(features)
        mean = prior.gp.mean(x) + mean
        if not joint:
            return Marginals(mean, explained, residual)
        spare = prior.gp.covariance(x) - features.mT @ features
        covariance = self.whitened.covariance(features) + spare
        return joint_normal(mean, covariance)

    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Reparametrised joint samples; see :meth:`Posterior.rsample`.

        A joint residual costs ``O(N^3)``.

        Parameters
        ----------
        shape : sequence of int
            Sample shape S.
        x : Tensor, shape [*g, N_new, D], optional
            Where; the data rows if left out.
        residual : {"joint", "independent", "none"}
            How the conditional residual is drawn.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values and basis values.
        """
        check_residual(residual)
        prior = self.prior
        if x is None:
            x, features, mean = prior.x, prior.features, prior.x_mean
        else:
            check_new_inputs(self, x)
            features, _ = prior.encode(x)
            mean = prior.gp.mean(x)
        whitened = self.whitened.rsample(shape, generator)
        aligned = align_samples(whitened, len(shape), features.shape[:-2])
        values = mean + mat_vec(features.mT, aligned)
        values = sample_residual(prior.gp, x, features, values, residual, generator)
        return Draw(values, prior.unwhiten(whitened))

    def leave_one_out(self) -> Marginals:
        """Moments of every row given all other sites; see :meth:`Posterior.leave_one_out`.

        Returns
        -------
        Marginals
            With the residual of every row.
        """
        check_rows_have_sites(type(self).__name__, self.sites)
        moments, sites = self.marginals(), self.sites
        weights = sites.lam1 - sites.lam2 * moments.mean
        return cavity(moments, sites, self._gap(moments.explained), weights)

    def _gap(self, explained: Tensor) -> Tensor:
        features, lam2 = self.prior.features, self.sites.lam2
        if bool((lam2 < 0).any()):
            return gap_from_moments(lam2, explained)
        prior_variance = sum_of_squares(features)
        if features.shape[-1] <= features.shape[-2]:
            # Rows can only determine themselves where they are as few as the basis values; then
            # this form is as cheap as the other.
            scaled = features * site_root(lam2, prior_variance).unsqueeze(-2)
            eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
            return gap_from_factor(safe_cholesky(eye + scaled.mT @ scaled, name="I + sQs").factor)
        # No cavity is wider than the prior; only rounding could say otherwise. (A maximum would split
        # its gradient where both are one, at rows without a site.)
        gap, least = 1.0 - lam2 * explained, 1.0 / (1.0 + lam2 * prior_variance)
        return torch.where(gap < least, least, gap)

    def path_weights(
        self, prior_path: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Weights of the basis; see :meth:`Posterior.path_weights`.

        Parameters
        ----------
        prior_path : callable
            Draws of the prior.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        inputs : Tensor, shape [*b, M, D]
            Where the basis lies.
        weights : Tensor, shape [S, *b, M]
            ``L^-T (e - L^-1 g)`` with e drawn from q.

        Raises
        ------
        UnsupportedError
            If the basis is no set of function values, so that draws of the prior do not tell its values.
        """
        prior, points = self.prior, self.prior.basis.points
        if points is None:
            raise UnsupportedError(
                f"The basis of this {type(self).__name__} is not made of function values (inter-domain "
                "features are not), so it has no samples that are functions of the inputs; draw values at "
                "fixed inputs with posterior.rsample(x=x), or use InducingPoints."
            )
        weights = self.whitened.path_weights(prior.basis_factor, prior_path(points), generator)
        return points, weights

    def compact(self) -> "FeaturePosterior":
        """The same q without data rows, its sites moved onto the whitened basis.

        Returns
        -------
        InducingPosterior
            Same q(u), KL and predictions; ``marginals`` has no rows left.
        """
        prior, whitened = self.prior, self.whitened
        # Clones: slices would keep, and pickle, the storage of all rows.
        small = replace(
            prior,
            x=prior.x[..., :0, :].clone(),
            features=prior.features[..., :0].clone(),
            x_mean=prior.x_mean[..., :0].clone(),
            x_residual=prior.x_residual[..., :0].clone(),
        )
        return replace(
            self,
            prior=small,
            sites=whitened.as_sites(),
            constant=torch.zeros_like(self.constant),
        )

    def _site_values(self, basis: Tensor) -> Tensor:
        if self.sites.on == "basis":
            return basis
        whitened = self.prior.whiten(basis)
        if self.sites.on == "whitened":
            return whitened
        return self.prior.x_mean + mat_vec(self.prior.features.mT, whitened)
