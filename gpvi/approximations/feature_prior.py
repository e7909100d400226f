r"""Structured prior through finitely many basis variables, whatever they are.

With basis variables u of mean :math:`m_u` and covariance :math:`K_{uu} = LL^\top`, and
:math:`F = L^{-1}K_{uf}`,

.. math:: f = m + F^\top e + \text{residual}, \qquad e = L^{-1}(u - m_u) \sim N(0, I),

and the residual has variance :math:`k_{nn} - \sum_m F_{mn}^2`. Data sites act on the projection
:math:`r_n = E[f_n \mid u]`; moved onto u (:meth:`FeaturePrior.tie`) they outlive the minibatch
that made them.

References
----------
Titsias, M. (2009). Variational learning of inducing variables in sparse Gaussian processes.
Adam, V., Chang, P., Khan, M. E. & Solin, A. (2021). Dual parameterization of sparse variational
Gaussian processes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gpvi.approximations._residual import residual_variance
from gpvi.approximations.base import Prior
from gpvi.approximations.feature_posterior import FeaturePosterior
from gpvi.approximations.features import Basis
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.whitened import WhitenedGaussian
from gpvi.exceptions import InputError
from gpvi.linalg import (
    identity_plus_congruence,
    identity_plus_low_rank,
    log_det_from_cholesky,
    mat_vec,
    solve_lower_transposed,
    solve_lower_vec,
)

__all__ = ["FeaturePrior"]

_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class FeaturePrior(Prior):
    """Structured prior of a finite basis at fixed inputs and hyperparameters.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    basis : Basis
        What the basis variables are.
    basis_mean : Tensor, shape [*b, M]
        Prior mean of u.
    basis_factor : Tensor, shape [*b, M, M]
        Cholesky factor L of Kuu (with its jitter).
    features : Tensor, shape [*b, M, N]
        ``F = L^-1 Kuf``.
    x_mean, x_residual : Tensor, shape [*b, N]
        Prior mean and conditional variance of the rows.
    jitter : Tensor
        Relative jitter that Kuu has.
    """

    gp: GaussianProcessLike
    x: Tensor
    basis: Basis
    basis_mean: Tensor
    basis_factor: Tensor
    features: Tensor
    x_mean: Tensor
    x_residual: Tensor
    jitter: Tensor

    site_spaces = ("data", "basis", "whitened")

    @classmethod
    def on_basis(cls, gp: GaussianProcessLike, x: Tensor, basis: Basis, jitter: float) -> Self:
        """Evaluate and factorise (``gp`` and ``basis`` are snapshots already).

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        x : Tensor, shape [*g, N, D]
            Data inputs.
        basis : Basis
            What the basis variables are.
        jitter : float
            Relative to the mean diagonal of Kuu.

        Returns
        -------
        FeaturePrior
            On the graph.
        """
        result = basis.factorise(gp, jitter)
        features = basis.whitened(gp, result.factor, x)
        residual = residual_variance(gp, x, features)
        mean = basis.mean(gp, result.factor)
        return cls(gp, x, basis, mean, result.factor, features, gp.mean(x), residual, result.jitter)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of any rows, and what they leave of the prior variance.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Rows.

        Returns
        -------
        features : Tensor, shape [*b, M, N]
            ``F``.
        residual : Tensor, shape [*b, N]
            ``k_nn - sum_m F_mn^2``.
        """
        features = self.basis.whitened(self.gp, self.basis_factor, x)
        return features, residual_variance(self.gp, x, features)

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
        """Number M of basis variables."""
        return self.basis_factor.shape[-1]

    def whiten(self, basis: Tensor) -> Tensor:
        """``e = L^-1 (u - m_u)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Basis values u.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Whitened values.
        """
        return solve_lower_vec(self.basis_factor, basis - self.basis_mean)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """``u = m_u + L e``.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, M]
            Whitened values e.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Basis values.
        """
        return self.basis_mean + mat_vec(self.basis_factor, whitened)

    def log_prob(self, basis: Tensor) -> Tensor:
        """``log N(u | m_u, Kuu)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Basis values u.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log densities.
        """
        squares = self.whiten(basis).square().sum(-1)
        log_det = log_det_from_cholesky(self.basis_factor)
        return -0.5 * (squares + log_det + self.num_basis * _LOG_2PI)

    def tie(self, sites: Sites) -> Sites:
        r"""Data sites as sites about u: ``Lam = A diag(lam2) A'`` with ``A = Kuu^-1 Kuf``.

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
        weights = solve_lower_transposed(self.basis_factor, self.features)
        # r_n = offset_n + A_n'u, so that the basis values carry their own mean.
        offset = self.x_mean - mat_vec(weights.mT, self.basis_mean)
        lam1 = mat_vec(weights, sites.lam1 - sites.lam2 * offset)
        return Sites(lam1, (weights * sites.lam2.unsqueeze(-2)) @ weights.mT, on="basis")

    def tangent(
        self, posterior: Posterior, mean: Tensor, explained: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Analytic form of :meth:`Prior.tangent`: no backward pass through factorisations of W.

        Parameters
        ----------
        posterior : FeaturePosterior
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
        assert isinstance(posterior, FeaturePosterior) and residual is not None
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

    def _condition(self, sites: Sites) -> FeaturePosterior:
        shift, precision = SITE_FORMS[sites.on](self, sites)
        return self._posterior(
            sites, WhitenedGaussian.from_precision(shift, precision), log_site_at_zero(self, sites)
        )

    def _posterior(
        self, sites: Sites, whitened: WhitenedGaussian, constant: Tensor
    ) -> FeaturePosterior:
        return FeaturePosterior(self, sites, whitened, constant)


def log_site_at_zero(prior: FeaturePrior, sites: Sites) -> Tensor:
    """Log site value at ``e = 0``, shape [*b].

    Parameters
    ----------
    prior : FeaturePrior
        The prior.
    sites : Sites
        In any space.

    Returns
    -------
    Tensor, shape [*b]
        ``log t`` there.
    """
    if sites.on == "whitened":
        shape = torch.broadcast_shapes(sites.lam1.shape, prior.basis_mean.shape)
        return sites.lam1.new_zeros(shape[:-1])
    return sites.log_value(prior.x_mean if sites.on == "data" else prior.basis_mean)


def _from_data(prior: FeaturePrior, sites: Sites) -> tuple[Tensor, Tensor]:
    centred = sites.lam1 - sites.lam2 * prior.x_mean
    precision = identity_plus_low_rank(prior.features, sites.lam2)
    return mat_vec(prior.features, centred), precision


def _from_basis(prior: FeaturePrior, sites: Sites) -> tuple[Tensor, Tensor]:
    mean, factor = prior.basis_mean, prior.basis_factor
    second = mat_vec(sites.lam2, mean) if sites.full else sites.lam2 * mean
    precision = identity_plus_congruence(factor, sites.lam2, diagonal=not sites.full)
    return mat_vec(factor.mT, sites.lam1 - second), precision


def _from_whitened(prior: FeaturePrior, sites: Sites) -> tuple[Tensor, Tensor]:
    full = sites.lam2 if sites.full else torch.diag_embed(sites.lam2)
    eye = torch.eye(prior.num_basis, dtype=full.dtype, device=full.device)
    shape = torch.broadcast_shapes(sites.lam1.shape, prior.basis_mean.shape)
    return sites.lam1.expand(shape), full + eye


#: Shift h and precision W of ``q(e) = N(W^-1 h, W^-1)`` from sites, by their space.
SITE_FORMS: dict[str, Callable[[FeaturePrior, Sites], tuple[Tensor, Tensor]]] = {
    "data": _from_data,
    "basis": _from_basis,
    "whitened": _from_whitened,
}
