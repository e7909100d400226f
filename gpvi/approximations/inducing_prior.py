r"""Structured prior and posterior of inducing points.

With :math:`u = f(Z)`, :math:`K_{zz} = LL^\top` and :math:`F = L^{-1}K_{zx}`,

.. math:: f = m + F^\top e + \text{residual}, \qquad e = L^{-1}(u - m_z) \sim N(0, I),

and the residual has variance :math:`k_{nn} - \sum_m F_{mn}^2`. Data sites act on the projection
:math:`r_n = E[f_n \mid u]`; moved onto u (:meth:`InducingPrior.tie`) they outlive the minibatch
that made them.

References
----------
Titsias, M. (2009). Variational learning of inducing variables in sparse Gaussian processes.
Adam, V., Chang, P., Khan, M. E. & Solin, A. (2021). Dual parameterization of sparse variational
Gaussian processes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._checks import check_new_inputs, refuse_groups
from gpvi.approximations._random import align_samples
from gpvi.approximations._residual import (
    ResidualDraw,
    check_residual,
    sample_residual,
)
from gpvi.approximations._site_root import site_root
from gpvi.approximations.base import Prior
from gpvi.approximations.cavity import (
    cavity,
    check_rows_have_sites,
    gap_from_factor,
    gap_from_moments,
)
from gpvi.approximations.features import factorise_inducing, inducing_features
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.moments import Draw, Marginals, joint_normal
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.whitened import WhitenedGaussian
from gpvi.exceptions import InputError
from gpvi.linalg import (
    identity_plus_congruence,
    identity_plus_low_rank,
    log_det_from_cholesky,
    mat_vec,
    safe_cholesky,
    solve_lower_transposed,
    solve_lower_vec,
    sum_of_squares,
)

__all__ = ["InducingPosterior", "InducingPrior"]

_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class InducingPrior(Prior):
    """Structured prior of :class:`InducingPoints` at fixed inputs and hyperparameters.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    z : Tensor, shape [*b, M, D]
        Inducing inputs.
    z_mean : Tensor, shape [*b, M]
        Prior mean of u.
    z_factor : Tensor, shape [*b, M, M]
        Cholesky factor L of Kzz (with its jitter).
    features : Tensor, shape [*b, M, N]
        ``F = L^-1 Kzx``.
    x_mean, x_residual : Tensor, shape [*b, N]
        Prior mean and conditional variance of the rows.
    jitter : Tensor
        Relative jitter that Kzz has.
    """

    gp: GaussianProcessLike
    x: Tensor
    z: Tensor
    z_mean: Tensor
    z_factor: Tensor
    features: Tensor
    x_mean: Tensor
    x_residual: Tensor
    jitter: Tensor

    site_spaces = ("data", "basis", "whitened")

    @classmethod
    def build(cls, gp: GaussianProcessLike, x: Tensor, z: Tensor, jitter: float) -> "InducingPrior":
        """Evaluate and factorise (``gp`` is a snapshot already)."""
        result = factorise_inducing(gp, z, jitter)
        features, residual = inducing_features(gp, z, result.factor, x)
        return cls(
            gp, x, z, gp.mean(z), result.factor, features, gp.mean(x), residual, result.jitter
        )

    @property
    def mean(self) -> Tensor:
        """Prior mean at the data rows, shape [*b, N]."""
        return self.x_mean

    @property
    def residual(self) -> Tensor:
        """Conditional variance of the data rows given u, shape [*b, N]."""
        return self.x_residual

    @property
    def num_basis(self) -> int:
        """Number M of inducing points."""
        return self.z.shape[-2]

    def whiten(self, basis: Tensor) -> Tensor:
        """``e = L^-1 (u - m_z)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Inducing values u.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Whitened values.
        """
        return solve_lower_vec(self.z_factor, basis - self.z_mean)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """``u = m_z + L e``.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, M]
            Whitened values e.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Inducing values.
        """
        return self.z_mean + mat_vec(self.z_factor, whitened)

    def log_prob(self, basis: Tensor) -> Tensor:
        """``log N(u | m_z, Kzz)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Inducing values u.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log densities.
        """
        squares = self.whiten(basis).square().sum(-1)
        log_det = log_det_from_cholesky(self.z_factor)
        return -0.5 * (squares + log_det + self.num_basis * _LOG_2PI)

    def tie(self, sites: Sites) -> Sites:
        r"""Data sites as sites about u: ``Lam = A diag(lam2) A'`` with ``A = Kzz^-1 Kzx``.

        Parameters
        ----------
        sites : Sites
            On the data rows of this prior.

        Returns
        -------
        Sites
            On the basis, with a full ``lam2``; conditioning on them gives the same q(u).
        """
        if sites.on != "data":
            raise InputError(f"Only sites on data rows can be tied, not sites on {sites.on!r}.")
        self._check_sites(sites)
        weights = solve_lower_transposed(self.z_factor, self.features)
        # r_n = offset_n + A_n'u, so that the inducing values carry their own mean.
        offset = self.x_mean - mat_vec(weights.mT, self.z_mean)
        lam1 = mat_vec(weights, sites.lam1 - sites.lam2 * offset)
        return Sites(lam1, (weights * sites.lam2.unsqueeze(-2)) @ weights.mT, on="basis")

    def tangent(
        self, posterior: Posterior, mean: Tensor, explained: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Analytic form of :meth:`Prior.tangent`: no backward pass through factorisations of W.

        Parameters
        ----------
        posterior : InducingPosterior
            On data sites.
        mean, explained : Tensor, shape [*b, N]
            Weights of means and explained variances.
        residual : Tensor, shape [*b, N]
            Weights of the residuals.

        Returns
        -------
        Tensor, scalar
            On the graph.
        """
        assert isinstance(posterior, InducingPosterior) and residual is not None
        with torch.no_grad():
            by_features, by_mean = posterior.whitened.slopes(
                self.features.detach(),
                posterior.sites,
                posterior.marginals().mean,
                mean,
                explained,
            )
        return (
            (by_features * self.features).sum()
            + (by_mean * self.x_mean).sum()
            + (residual * self.x_residual).sum()
        )

    def _condition(self, sites: Sites) -> "InducingPosterior":
        return InducingPosterior(self, sites, *_SITE_FORMS[sites.on](self, sites))


@dataclass(frozen=True, eq=False)
class InducingPosterior(Posterior):
    """Posterior of :class:`InducingPoints`.

    Parameters
    ----------
    prior : InducingPrior
        What was conditioned.
    sites : Sites
        On data, basis or whitened basis.
    whitened : WhitenedGaussian
        q(e).
    constant : Tensor, shape [*b]
        Log site value at ``e = 0``.
    """

    prior: InducingPrior
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
        features, residual = inducing_features(prior.gp, prior.z, prior.z_factor, x)
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
            Values and inducing values.
        """
        check_residual(residual)
        prior = self.prior
        if x is None:
            x, features, mean = prior.x, prior.features, prior.x_mean
        else:
            check_new_inputs(self, x)
            features, _ = inducing_features(prior.gp, prior.z, prior.z_factor, x)
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
            # Rows can only determine themselves where they are as few as the inducing points; then
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
        """Weights of the inducing points; see :meth:`Posterior.path_weights`.

        Parameters
        ----------
        prior_path : callable
            Draws of the prior.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        inputs : Tensor, shape [*b, M, D]
            The inducing inputs.
        weights : Tensor, shape [S, *b, M]
            ``L^-T (e - L^-1 g)`` with e drawn from q.
        """
        prior = self.prior
        path = prior_path(prior.z)
        return prior.z, self.whitened.path_weights(prior.z_factor, path, generator)

    def compact(self) -> "InducingPosterior":
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
        eye = torch.eye(prior.num_basis, dtype=whitened.factor.dtype, device=whitened.factor.device)
        precision = whitened.factor @ whitened.factor.mT - eye
        precision = precision.expand(*whitened.shift.shape, prior.num_basis)
        sites = Sites(whitened.shift, precision, on="whitened")
        return InducingPosterior(small, sites, whitened, torch.zeros_like(self.constant))

    def _site_values(self, basis: Tensor) -> Tensor:
        if self.sites.on == "basis":
            return basis
        whitened = self.prior.whiten(basis)
        if self.sites.on == "whitened":
            return whitened
        return self.prior.x_mean + mat_vec(self.prior.features.mT, whitened)


def _from_data(prior: InducingPrior, sites: Sites) -> tuple[WhitenedGaussian, Tensor]:
    centred = sites.lam1 - sites.lam2 * prior.x_mean
    precision = identity_plus_low_rank(prior.features, sites.lam2)
    shift = mat_vec(prior.features, centred)
    return WhitenedGaussian.from_precision(shift, precision), sites.log_value(prior.x_mean)


def _from_basis(prior: InducingPrior, sites: Sites) -> tuple[WhitenedGaussian, Tensor]:
    second = mat_vec(sites.lam2, prior.z_mean) if sites.full else sites.lam2 * prior.z_mean
    shift = mat_vec(prior.z_factor.mT, sites.lam1 - second)
    precision = identity_plus_congruence(prior.z_factor, sites.lam2, diagonal=not sites.full)
    return WhitenedGaussian.from_precision(shift, precision), sites.log_value(prior.z_mean)


def _from_whitened(prior: InducingPrior, sites: Sites) -> tuple[WhitenedGaussian, Tensor]:
    full = sites.lam2 if sites.full else torch.diag_embed(sites.lam2)
    eye = torch.eye(prior.num_basis, dtype=full.dtype, device=full.device)
    shift = sites.lam1.expand(torch.broadcast_shapes(sites.lam1.shape, prior.z_mean.shape))
    return WhitenedGaussian.from_precision(shift, full + eye), torch.zeros_like(shift[..., 0])


_SITE_FORMS: dict[str, Callable[[InducingPrior, Sites], tuple[WhitenedGaussian, Tensor]]] = {
    "data": _from_data,
    "basis": _from_basis,
    "whitened": _from_whitened,
}
