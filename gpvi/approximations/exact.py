r"""Exact conditioning: the basis is the function at all data rows.

With non-negative site precisions :math:`s = \sqrt{\lambda_2}`, :math:`B = I + sKs` has eigenvalues
of at least one: neither duplicate inputs nor missing rows need jitter. With a negative precision (a
site wider than the prior) the whitened form :math:`f = m + Le` serves, at about twice the cost.
Cost :math:`O(N^3)`.

References
----------
Rasmussen, C. E. & Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, section
3.4.3.
"""

import math
from dataclasses import dataclass
from functools import cached_property

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
from gpvi.approximations.base import Approximation, Draw, Marginals, Posterior, Prior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.plan import Plan
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

__all__ = ["Exact", "ExactPosterior", "ExactPrior"]

_LOG_2PI = math.log(2.0 * math.pi)

# Relative jitter where the prior's own factor is asked for (whitening, sampling, densities).
_FACTOR_JITTER = {torch.float64: 1e-10, torch.float32: 1e-6}


class Exact(Approximation):
    """No approximation of the prior: condition the process at all data rows.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import GaussianProcess, Sites
    >>> x = torch.linspace(0, 1, 4, dtype=torch.float64).unsqueeze(-1)
    >>> prior = Exact().prior(GaussianProcess(gpytorch.kernels.RBFKernel().double()), x)
    >>> prior.condition(Sites.zeros((4,))).kl().item()
    0.0
    """

    whole_data = True

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> "ExactPrior":
        covariance = gp.covariance(x)
        if plan.observed is not None:
            covariance = _decouple(covariance, plan.observed)
        return ExactPrior(gp, x, gp.mean(x), covariance, plan.observed)


@dataclass(frozen=True, eq=False)
class ExactPrior(Prior):
    """Prior of f at all data rows.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    x_mean : Tensor, shape [*b, N]
        Prior mean.
    covariance : Tensor, shape [*b, N, N]
        Prior covariance.
    observed : Tensor of bool, shape [*g, N], optional
        False on padding rows, which are independent of all others and left out of densities.
    """

    gp: GaussianProcessLike
    x: Tensor
    x_mean: Tensor
    covariance: Tensor
    observed: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """Prior mean at the data rows, shape [*b, N]."""
        return self.x_mean

    @property
    def num_basis(self) -> int:
        """Number N of rows."""
        return self.x.shape[-2]

    @cached_property
    def factor(self) -> Tensor:
        """Cholesky factor of the prior covariance (with relative jitter 1e-10), on demand."""
        with on_graph():
            jitter = _FACTOR_JITTER[self.covariance.dtype]
            return safe_cholesky(self.covariance, jitter=jitter, name="Kxx", inputs=self.x).factor

    def cross_covariance(self, x: Tensor) -> Tensor:
        """Prior covariance between the data rows and new inputs.

        Parameters
        ----------
        x : Tensor, shape [*g, N_new, D]
            New inputs.

        Returns
        -------
        Tensor, shape [*b, N, N_new]
            Zero for padding rows.
        """
        cross = self.gp.covariance(self.x, x)
        return cross if self.observed is None else cross * self.observed.unsqueeze(-1)

    def whiten(self, basis: Tensor) -> Tensor:
        """``e = L^-1 (f - m)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, N]
            Function values.

        Returns
        -------
        Tensor, shape [*S, *b, N]
            Whitened values.
        """
        return solve_lower_vec(self.factor, basis - self.x_mean)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """``f = m + L e``.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, N]
            Whitened values.

        Returns
        -------
        Tensor, shape [*S, *b, N]
            Function values.
        """
        return self.x_mean + mat_vec(self.factor, whitened)

    def log_prob(self, basis: Tensor) -> Tensor:
        """``log N(f | m, K)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, N]
            Function values.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log densities.
        """
        scale = self.factor.diagonal(dim1=-2, dim2=-1)
        rows = self.whiten(basis).square() + 2.0 * scale.log() + _LOG_2PI
        return -0.5 * (rows if self.observed is None else rows * self.observed).sum(-1)

    def _condition(self, sites: Sites) -> Posterior:
        if bool((sites.lam2 < 0).any()):
            return _condition_whitened(self, sites)
        # sqrt has an infinite slope at 0: an unobserved row would turn gradients into NaN.
        return ExactPosterior.build(self, sites, zero_safe_sqrt(sites.lam2))


def _decouple(covariance: Tensor, observed: Tensor) -> Tensor:
    """Make padding rows independent: as copies of real rows they would make K singular."""
    keep = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    diagonal = torch.eye(covariance.shape[-1], dtype=torch.bool, device=covariance.device)
    return torch.where(keep | diagonal, covariance, torch.zeros_like(covariance))


def _condition_whitened(prior: ExactPrior, sites: Sites) -> "WidePosterior":
    features = prior.factor.mT
    precision = identity_plus_low_rank(features, sites.lam2)
    shift = mat_vec(features, sites.lam1 - sites.lam2 * prior.x_mean)
    return WidePosterior(prior, sites, WhitenedGaussian.from_precision(shift, precision))


class _ExactBase(Posterior):
    """What both forms of the exact posterior share."""

    prior: ExactPrior
    sites: Sites

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
        basis = self._sample_basis(tuple(shape), generator)
        if x is None:
            return Draw(basis, basis)
        check_new_inputs(self, x)
        prior = self.prior
        features = solve_lower(prior.factor, prior.cross_covariance(x))
        mean = prior.gp.mean(x)
        whitened = align_samples(prior.whiten(basis), len(shape), features.shape[:-2])
        values = mean + mat_vec(features.mT, whitened)
        return Draw(sample_residual(prior.gp, x, features, values, residual, generator), basis)

    def _sample_basis(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

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
    """

    prior: ExactPrior
    sites: Sites
    root: Tensor
    factor: Tensor
    weights: Tensor

    @classmethod
    def build(cls, prior: ExactPrior, sites: Sites, root: Tensor) -> "ExactPosterior":
        """Factorise B and solve for the weights."""
        scaled = root.unsqueeze(-1) * prior.covariance * root.unsqueeze(-2)
        eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
        factor = safe_cholesky(scaled + eye, name="I + sKs").factor
        centred = sites.lam1 - sites.lam2 * prior.x_mean
        projected = root * mat_vec(prior.covariance, centred)
        weights = centred - root * _solve(factor, projected)
        return cls(prior, sites, root, factor, weights)

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

    def kl(self) -> Tensor:
        """``KL(q(f) || p(f))``, total."""
        # tr(B^-1) = N - sum lam2 var(f); the targets enter only through E[f] - m, so that nothing
        # of the size of lam1^2 has to cancel.
        spread = (self.sites.lam2 * self.marginals().explained).sum(-1)
        shift = (self.weights * self._shift).sum(-1)
        return 0.5 * (shift - spread + log_det_from_cholesky(self.factor))

    def marginals(self) -> Marginals:
        """Moments at the data rows."""
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
            return gpytorch.distributions.MultivariateNormal(mean, covariance)
        variance = self.prior.gp.variance(x) - sum_of_squares(half)
        return Marginals(mean, variance.clamp_min(0.0))

    def _sample_basis(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        # Matheron's rule: a prior draw corrected by conditioning; no posterior covariance is
        # factorised.
        prior = self.prior
        noise = standard_normal((*shape, *self.weights.shape), self.weights, generator)
        draw = mat_vec(prior.factor, noise)
        error = standard_normal((*shape, *self.weights.shape), self.weights, generator)
        # Residual of the pseudo-observations, scaled by s so that absent ones (s = 0) drop out.
        correction = self.root * _solve(self.factor, self.root * draw + error)
        return prior.x_mean + draw + mat_vec(prior.covariance, self.weights - correction)


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

    prior: ExactPrior
    sites: Sites
    whitened: WhitenedGaussian

    @property
    def log_partition(self) -> Tensor:
        """``log E_prior[exp(sum log t)]``, total."""
        return self.sites.log_value(self.prior.x_mean) + self.whitened.log_normaliser()

    def kl(self) -> Tensor:
        """``KL(q(f) || p(f))``, total."""
        return self.whitened.kl()

    def marginals(self) -> Marginals:
        """Moments at the data rows."""
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
            return gpytorch.distributions.MultivariateNormal(
                mean, self.whitened.covariance(features) + spare
            )
        spare = (self.prior.gp.variance(x) - sum_of_squares(features)).clamp_min(0.0)
        return Marginals(mean, explained + spare)

    def _sample_basis(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return self.prior.unwhiten(self.whitened.rsample(shape, generator))


def _solve(factor: Tensor, vectors: Tensor) -> Tensor:
    return solve_lower_transposed_vec(factor, solve_lower_vec(factor, vectors))
