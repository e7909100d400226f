"""Posteriors of the exact prior, for site precisions that are non-negative and for others."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._checks import check_new_inputs, refuse_groups
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._random import align_samples, standard_normal
from gpvi.approximations._residual import (
    ResidualDraw,
    check_residual,
    sample_residual,
    zero_safe_sqrt,
)
from gpvi.approximations._site_root import site_root
from gpvi.approximations.cavity import cavity, gap_from_factor
from gpvi.approximations.moments import Draw, Marginals, joint_normal
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.whitened import WhitenedGaussian
from gpvi.linalg import (
    identity_plus_low_rank,
    log_det_from_cholesky,
    mat_vec,
    safe_cholesky,
    solve_lower,
    solve_lower_transposed_vec,
    solve_lower_vec,
    sum_of_squares,
)

if TYPE_CHECKING:
    from gpvi.approximations.exact import ExactPrior

__all__ = ["ExactPosterior", "WidePosterior", "whiten_sites"]

# Sites of at least this precision relative to the prior's are divided by their root.
_STRONG = 1e-3


def whiten_sites(prior: "ExactPrior", sites: Sites) -> WhitenedGaussian:
    """q(e) of data sites, with ``f = m + L e``.

    Parameters
    ----------
    prior : ExactPrior
        Supplies the factor L.
    sites : Sites
        On the data rows, of any sign that leaves q proper.

    Returns
    -------
    WhitenedGaussian
        Against the prior N(0, I).
    """
    features = prior.factor.mT
    precision = identity_plus_low_rank(features, sites.lam2)
    shift = mat_vec(features, sites.lam1 - sites.lam2 * prior.x_mean)
    return WhitenedGaussian.from_precision(shift, precision)


class _ExactBase(Posterior):
    """What both forms of the exact posterior share."""

    prior: "ExactPrior"
    sites: Sites
    whitened: WhitenedGaussian

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
            How f at new inputs is drawn given f at the data rows; at the data rows nothing is left.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values and function values at the data rows.
        """
        check_residual(residual)
        # Through whitened coordinates rather than by Matheron's rule, whose draws have slopes of size
        # 1 / sqrt(lam2) in weak sites.
        whitened = self.whitened.rsample(shape, generator)
        basis = self.prior.unwhiten(whitened)
        if x is None:
            return Draw(basis, basis)
        check_new_inputs(self, x)
        prior = self.prior
        features = solve_lower(prior.factor, prior.cross_covariance(x))
        mean = prior.gp.mean(x)
        aligned = align_samples(whitened, len(shape), features.shape[:-2])
        values = mean + mat_vec(features.mT, aligned)
        return Draw(sample_residual(prior.gp, x, features, values, residual, generator), basis)

    def _site_values(self, basis: Tensor) -> Tensor:
        return basis


@dataclass(frozen=True, eq=False)
class ExactPosterior(_ExactBase):
    """Exact posterior with non-negative site precisions.

    Parameters
    ----------
    prior : ExactPrior
        What was conditioned.
    sites : Sites
        On the data rows.
    root : Tensor, shape [*b, N]
        ``s``, square roots of the site precisions.
    factor : Tensor, shape [*b, N, N]
        Cholesky factor of ``B = I + sKs``.
    weights : Tensor, shape [*b, N]
        ``K^-1 (E[f] - m)``, without K^-1.
    jitter : Tensor, shape [*b], optional
        Relative jitter that B needed; normally 0.
    """

    prior: "ExactPrior"
    sites: Sites
    root: Tensor
    factor: Tensor
    weights: Tensor
    jitter: Tensor | None = None

    @classmethod
    def build(cls, prior: "ExactPrior", sites: Sites) -> "ExactPosterior":
        """Factorise B and solve for the weights."""
        root = site_root(sites.lam2, prior.covariance.diagonal(dim1=-2, dim2=-1))
        scaled = root.unsqueeze(-1) * prior.covariance * root.unsqueeze(-2)
        eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
        factor, jitter = safe_cholesky(scaled + eye, name="I + sKs")
        centred = sites.lam1 - sites.lam2 * prior.x_mean
        weights = _weigh(prior.covariance, root, factor, centred)
        return cls(prior, sites, root, factor, weights, jitter)

    @property
    def log_partition(self) -> Tensor:
        """``log E_prior[exp(sum log t)]``, total."""
        # With K a = E[f] - m and l the centred lam1, the quadratic term is l'(K - Ks B^-1 sK)l =
        # l'K a.
        centred = self.sites.lam1 - self.sites.lam2 * self.prior.x_mean
        quadratic = (centred * self._shift).sum(-1)
        constant = self.sites.log_value(self.prior.x_mean)
        return constant + 0.5 * (quadratic - log_det_from_cholesky(self.factor))

    @cached_property
    def _shift(self) -> Tensor:
        with on_graph():
            return mat_vec(self.prior.covariance, self.weights)

    @cached_property
    def whitened(self) -> WhitenedGaussian:  # type: ignore[override]
        """q(e) with ``f = m + L e``, for samples."""
        with on_graph():
            return whiten_sites(self.prior, self.sites)

    def slopes(self, mean: Tensor, explained: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of ``log Z + sum(mean * m + explained * v)`` at held sites.

        With ``H = s B^-1 s``, ``P = I - KH`` and ``K^-1 (m - m_0) = w``: that by K is
        ``(w w' - H) / 2 + P' mean w' + P' diag(explained) P`` (symmetrised), by the prior mean
        ``w + P' mean``.

        Parameters
        ----------
        mean, explained : Tensor, shape [*b, N]
            Weights of means and variances.

        Returns
        -------
        by_covariance : Tensor, shape [*b, N, N]
            Derivative by the prior covariance.
        by_mean : Tensor, shape [*b, N]
            Derivative by the prior mean.
        """
        covariance, root = self.prior.covariance, self.root
        inverse = torch.cholesky_inverse(self.factor)
        H = root.unsqueeze(-1) * inverse * root.unsqueeze(-2)
        P = -covariance @ H
        P.diagonal(dim1=-2, dim2=-1).add_(1.0)
        pull = mat_vec(P.mT, mean)
        outer = (0.5 * self.weights + pull).unsqueeze(-1) * self.weights.unsqueeze(-2)
        spread = P.mT @ (explained.unsqueeze(-1) * P)
        return spread - 0.5 * H + 0.5 * (outer + outer.mT), self.weights + pull

    def kl(self) -> Tensor:
        """``KL(q(f) || p(f))``, total."""
        # tr(B^-1) = N - sum lam2 var(f); the targets enter only through E[f] - m, so that nothing
        # of the size of lam1^2 has to cancel.
        spread = (self.sites.lam2 * self.marginals().explained).sum(-1)
        shift = (self.weights * self._shift).sum(-1)
        return 0.5 * (shift - spread + log_det_from_cholesky(self.factor))

    def _marginals(self) -> Marginals:
        half = solve_lower(self.factor, self.root.unsqueeze(-1) * self.prior.covariance)
        prior_variance = self.prior.covariance.diagonal(dim1=-2, dim2=-1)
        return Marginals(
            self.prior.x_mean + self._shift, (prior_variance - sum_of_squares(half)).clamp_min(0.0)
        )

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
        cross = self.prior.cross_covariance(x)
        mean = self.prior.gp.mean(x) + mat_vec(cross.mT, self.weights)
        half = solve_lower(self.factor, self.root.unsqueeze(-1) * cross)
        if joint:
            covariance = self.prior.gp.covariance(x) - half.mT @ half
            return joint_normal(mean, covariance)
        variance = self.prior.gp.variance(x) - sum_of_squares(half)
        return Marginals(mean, variance.clamp_min(0.0))

    def leave_one_out(self) -> Marginals:
        """Moments of every row given all others; see :meth:`Posterior.leave_one_out`.

        Returns
        -------
        Marginals
            Accurate for any noise: nothing is divided out of the posterior itself.
        """
        return cavity(self.marginals(), self.sites, gap_from_factor(self.factor), self.weights)

    def path_weights(
        self, prior_path: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Matheron's rule without ``K^-1`` and without targets; see :meth:`Posterior.path_weights`.

        Parameters
        ----------
        prior_path : callable
            Draws of the prior.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        inputs : Tensor, shape [*g, N, D]
            The data rows.
        weights : Tensor, shape [S, *b, N]
            Zero on rows without a site.
        """
        prior = self.prior
        mean = prior.x_mean + prior_path(prior.x)
        # The natural parameter of noisy targets less that of the path: zero where nothing was seen.
        noise = standard_normal(tuple(mean.shape), mean, generator)
        lam1 = self.sites.lam1 + zero_safe_sqrt(self.sites.lam2) * noise
        return prior.x, _weigh(
            prior.covariance, self.root, self.factor, lam1 - self.sites.lam2 * mean
        )


@dataclass(frozen=True, eq=False)
class WidePosterior(_ExactBase):
    """Exact posterior where some site precision is negative (q wider than the prior somewhere).

    Parameters
    ----------
    prior : ExactPrior
        What was conditioned.
    sites : Sites
        On the data rows.
    whitened : WhitenedGaussian
        q(e) with ``f = m + L e``.
    """

    prior: "ExactPrior"
    sites: Sites
    whitened: WhitenedGaussian

    @property
    def log_partition(self) -> Tensor:
        """``log E_prior[exp(sum log t)]``, total."""
        return self.sites.log_value(self.prior.x_mean) + self.whitened.log_normaliser()

    def kl(self) -> Tensor:
        """``KL(q(f) || p(f))``, total."""
        return self.whitened.kl()

    def _marginals(self) -> Marginals:
        mean, variance = self.whitened.project(self.prior.factor.mT)
        return Marginals(self.prior.x_mean + mean, variance)

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
        features = solve_lower(self.prior.factor, self.prior.cross_covariance(x))
        mean, explained = self.whitened.project(features)
        mean = self.prior.gp.mean(x) + mean
        if joint:
            spare = self.prior.gp.covariance(x) - features.mT @ features
            return joint_normal(mean, self.whitened.covariance(features) + spare)
        spare = (self.prior.gp.variance(x) - sum_of_squares(features)).clamp_min(0.0)
        return Marginals(mean, explained + spare)

    def path_weights(
        self, prior_path: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Through the factor of the prior; see :meth:`Posterior.path_weights`.

        Parameters
        ----------
        prior_path : callable
            Draws of the prior.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        inputs : Tensor, shape [*g, N, D]
            The data rows.
        weights : Tensor, shape [S, *b, N]
            ``L^-T (e - L^-1 g)`` with e drawn from q.
        """
        prior = self.prior
        weights = self.whitened.path_weights(prior.factor, prior_path(prior.x), generator)
        return prior.x, weights if prior.observed is None else weights * prior.observed


def _weigh(covariance: Tensor, root: Tensor, factor: Tensor, centred: Tensor) -> Tensor:
    """``(I + Lam K)^-1 c`` for centred first natural parameters c, shape [*S, *b, N]."""
    # Two forms of one thing, s B^-1 (c / s) and c - s B^-1 sKc: the second loses digits where noise is
    # small, the first where a site says next to nothing.
    variance = covariance.detach().diagonal(dim1=-2, dim2=-1)
    strong = root.detach().square() * variance > _STRONG
    scaled = torch.where(strong, centred / root, 0.0)
    weak = torch.where(strong, 0.0, centred)
    rest = scaled - root * mat_vec(covariance, weak)
    return weak + root * solve_lower_transposed_vec(factor, solve_lower_vec(factor, rest))
