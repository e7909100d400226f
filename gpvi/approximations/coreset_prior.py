r"""Structured prior of a coreset: any sites become pseudo-observations at M inputs.

The family is :math:`q(u) \propto p(u) \prod_c N(y_c \mid u_c, 1/w_c)` with :math:`u = f(Z)`: its mean is
free, its precision is the prior's plus a diagonal. Pseudo-observations as they are (diagonal sites on the
basis) are conditioned on exactly, through :math:`B = I + W^{1/2} K_{zz} W^{1/2}`, whose eigenvalues are at
least one. Any other sites are replaced by the member of the family that is closest to what they make of the
prior: it has the exact mean, and the weights of :mod:`gpvi.approximations._coreset_weights`.

References
----------
Adam, V., Chang, P., Khan, M. E. & Solin, A. (2021). Dual parameterization of sparse variational
Gaussian processes. NeurIPS.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gpvi.approximations._coreset_posterior import CoresetPosterior
from gpvi.approximations._coreset_weights import best_weights, polish
from gpvi.approximations._lazy import on_graph
from gpvi.approximations.base import Prior
from gpvi.approximations.features import prior_covariance
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.inducing_prior import InducingPosterior, InducingPrior
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.linalg import mat_vec, solve_lower_transposed_vec

__all__ = ["CoresetPrior"]


@dataclass(frozen=True, eq=False)
class CoresetPrior(Prior):
    """Structured prior of :class:`Coreset` at fixed inputs and hyperparameters.

    Where q is not exactly prior times sites it is the best of its family to rounding: fixed points of
    natural-gradient steps are maxima of the bound, and gradients with q held are total ones.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    z : Tensor, shape [*b, M, D]
        Inputs of the pseudo-observations.
    x_mean : Tensor, shape [*b, N]
        Prior mean of the rows.
    z_mean : Tensor, shape [*b, M]
        Prior mean of u.
    covariance : Tensor, shape [*b, M, M]
        Kzz, without jitter.
    relative_jitter : float
        For the factor of Kzz, where one is needed.
    """

    gp: GaussianProcessLike
    x: Tensor
    z: Tensor
    x_mean: Tensor
    z_mean: Tensor
    covariance: Tensor
    relative_jitter: float

    site_spaces = ("data", "basis", "whitened")

    @classmethod
    def build(cls, gp: GaussianProcessLike, x: Tensor, z: Tensor, jitter: float) -> "CoresetPrior":
        """Evaluate (``gp`` is a snapshot already)."""
        return cls(gp, x, z, gp.mean(x), gp.mean(z), prior_covariance(gp, z), jitter)

    @cached_property
    def inducing(self) -> InducingPrior:
        """The prior through the same inputs with Kzz factorised, made where something asks for it."""
        with on_graph():
            return InducingPrior.build(self.gp, self.x, self.z, self.relative_jitter)

    @property
    def mean(self) -> Tensor:
        """Prior mean at the data rows, shape [*b, N]."""
        return self.x_mean

    @property
    def residual(self) -> Tensor:
        """Conditional variance of the data rows given u, shape [*b, N]."""
        return self.inducing.x_residual

    @property
    def num_basis(self) -> int:
        """Number M of pseudo-observations."""
        return self.z.shape[-2]

    def whiten(self, basis: Tensor) -> Tensor:
        """``e = L^-1 (u - m_z)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Function values u.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Whitened values.
        """
        return self.inducing.whiten(basis)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """``u = m_z + L e``.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, M]
            Whitened values.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Function values.
        """
        return self.inducing.unwhiten(whitened)

    def log_prob(self, basis: Tensor) -> Tensor:
        """``log N(u | m_z, Kzz)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Function values u.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log densities.
        """
        return self.inducing.log_prob(basis)

    def tie(self, sites: Sites) -> Sites:
        """Data sites as sites about u; see :meth:`InducingPrior.tie`.

        Parameters
        ----------
        sites : Sites
            On the data rows of this prior.

        Returns
        -------
        Sites
            On the basis, with a full ``lam2``; conditioning on them gives the same q(u).
        """
        return self.inducing.tie(sites)

    def tangent(
        self, posterior: Posterior, mean: Tensor, explained: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Gradient of an objective with the pseudo-observations held; see :meth:`Prior.tangent`.

        They are the best there are, so that what they would do has no first-order effect.

        Parameters
        ----------
        posterior : Posterior
            On data sites.
        mean, explained : Tensor, shape [*b, N]
            Weights of means and explained variances.
        residual : Tensor, shape [*b, N], or None
            Weights of the residuals.

        Returns
        -------
        Tensor, scalar
            On the graph.
        """
        if not isinstance(posterior, CoresetPosterior) or posterior.target is None:
            return super().tangent(posterior, mean, explained, residual)
        held = self.hold(posterior.sites.detach(), posterior.pseudo.detach())
        moments = held.marginals()
        scalar = (
            held.log_partition.sum() + (mean * moments.mean + explained * moments.explained).sum()
        )
        return scalar if residual is None else scalar + (residual * self.residual).sum()

    def hold(self, sites: Sites, pseudo: Sites) -> CoresetPosterior:
        """A posterior with given pseudo-observations, which the bound of other sites is for.

        Parameters
        ----------
        sites : Sites
            In any space.
        pseudo : Sites
            Diagonal sites on the basis, from conditioning on ``sites`` at nearly the same
            hyperparameters.

        Returns
        -------
        CoresetPosterior
            Its log partition has the value and the gradients of a bound on that of ``sites`` to first
            order.
        """
        target = self.inducing.condition(sites)
        assert isinstance(target, InducingPosterior)
        return CoresetPosterior(self, sites, pseudo, target, True)

    def _condition(self, sites: Sites) -> CoresetPosterior:
        negative = not sites.full and bool((sites.lam2 < 0).any())
        if sites.on == "basis" and not sites.full and not negative:
            return CoresetPosterior(self, sites, sites)
        target = self.inducing.condition(sites)
        assert isinstance(target, InducingPosterior)
        return CoresetPosterior(self, sites, _closest(target, signed=negative), target, True)


def _closest(target: InducingPosterior, *, signed: bool) -> Sites:
    """Pseudo-observations of the member closest to a Gaussian q(u), as diagonal sites on u.

    Weights are non-negative unless the sites behind the target are not.
    """
    prior, shift = target.prior, target.whitened.mean
    factor, root = prior.basis_factor.double(), target.whitened.factor.double()
    with torch.no_grad():
        weights = best_weights(factor, root, signed)
    weights = polish(factor, root, weights, signed).to(shift)
    # (Kzz^-1 + W) m - Kzz^-1 m_z, without the inverse.
    pull = solve_lower_transposed_vec(prior.basis_factor, shift)
    lam1 = pull + weights * (prior.basis_mean + mat_vec(prior.basis_factor, shift))
    return Sites(lam1, weights.expand_as(lam1), on="basis")
