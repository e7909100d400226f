r"""Structured prior and posterior of inducing points.

The basis are function values :math:`u = f(Z)`; everything else is that of any finite basis
(:mod:`gpvi.approximations.feature_prior`), with :math:`F = L^{-1}K_{zx}`.

References
----------
Titsias, M. (2009). Variational learning of inducing variables in sparse Gaussian processes.
"""

from dataclasses import dataclass

from torch import Tensor

from gpvi.approximations.feature_posterior import FeaturePosterior
from gpvi.approximations.feature_prior import FeaturePrior
from gpvi.approximations.features import PointBasis
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.sites import Sites
from gpvi.approximations.whitened import WhitenedGaussian

__all__ = ["InducingPosterior", "InducingPrior"]


@dataclass(frozen=True, eq=False)
class InducingPosterior(FeaturePosterior):
    """Posterior of :class:`InducingPoints`; the basis are function values at the inducing inputs.

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


@dataclass(frozen=True, eq=False)
class InducingPrior(FeaturePrior):
    """Structured prior of :class:`InducingPoints` at fixed inputs and hyperparameters.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    basis : PointBasis
        The inducing inputs.
    basis_mean : Tensor, shape [*b, M]
        Prior mean of u.
    basis_factor : Tensor, shape [*b, M, M]
        Cholesky factor L of Kzz (with its jitter).
    features : Tensor, shape [*b, M, N]
        ``F = L^-1 Kzx``.
    x_mean, x_residual : Tensor, shape [*b, N]
        Prior mean and conditional variance of the rows.
    jitter : Tensor
        Relative jitter that Kzz has.
    """

    basis: PointBasis

    @classmethod
    def build(cls, gp: GaussianProcessLike, x: Tensor, z: Tensor, jitter: float) -> "InducingPrior":
        """Evaluate and factorise.

        Parameters
        ----------
        gp : GaussianProcessLike
            Snapshot of the process.
        x : Tensor, shape [*g, N, D]
            Data inputs.
        z : Tensor, shape [*b, M, D]
            Inducing inputs, which nobody changes any more.
        jitter : float
            Relative to the mean diagonal of Kzz.

        Returns
        -------
        InducingPrior
            On the graph.
        """
        return cls.on_basis(gp, x, PointBasis(z), jitter)

    @property
    def z(self) -> Tensor:
        """Inducing inputs, shape [*b, M, D]."""
        return self.basis.points

    @property
    def z_mean(self) -> Tensor:
        """Prior mean of u, shape [*b, M]."""
        return self.basis_mean

    @property
    def z_factor(self) -> Tensor:
        """Cholesky factor L of Kzz (with its jitter), shape [*b, M, M]."""
        return self.basis_factor

    def _posterior(
        self, sites: Sites, whitened: WhitenedGaussian, constant: Tensor
    ) -> InducingPosterior:
        return InducingPosterior(self, sites, whitened, constant)
