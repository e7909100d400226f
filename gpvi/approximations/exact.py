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

import torch
from torch import Tensor

from gpvi.approximations._lazy import on_graph
from gpvi.approximations.base import Approximation, Prior
from gpvi.approximations.collapsed import exact_objective
from gpvi.approximations.exact_posterior import ExactPosterior, WidePosterior, whiten_sites
from gpvi.approximations.features import prior_covariance
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.plan import Plan
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.linalg import (
    mat_vec,
    safe_cholesky,
    solve_lower_vec,
)

__all__ = ["Exact", "ExactPrior"]

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

    def collapsed_objective(
        self,
        gp: GaussianProcessLike,
        x: Tensor,
        y: Tensor,
        noise: Tensor,
        *,
        tighter: bool,
        copies: Tensor | None = None,
        plan: Plan | None = None,
        terms: Tensor | None = None,
    ) -> Tensor:
        """Log evidence of a Gaussian likelihood in one operation with an analytic adjoint.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process, live.
        x : Tensor, shape [*g, N, D]
            Data inputs.
        y : Tensor, shape [*b, N]
            Targets, all observed.
        noise : Tensor, scalar or shape [*b, N]
            Noise variances.
        tighter : bool
            No difference here: nothing is left open.
        copies : Tensor, shape [N], optional
            No difference here either.
        plan : Plan, optional
            Nor here.
        terms : None
            There are none.

        Returns
        -------
        Tensor, shape [*b]
            Nats.
        """
        return exact_objective(gp, x, y, noise)

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> "ExactPrior":
        covariance = prior_covariance(gp, x)
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

    def tangent(
        self, posterior: Posterior, mean: Tensor, explained: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Analytic form of :meth:`Prior.tangent`: matrix products instead of a backward pass.

        Parameters
        ----------
        posterior : Posterior
            On data sites.
        mean, explained : Tensor, shape [*b, N]
            Weights of means and variances.
        residual : None
            There is none.

        Returns
        -------
        Tensor, scalar
            On the graph.
        """
        if not isinstance(posterior, ExactPosterior):
            return super().tangent(posterior, mean, explained, residual)
        with torch.no_grad():
            by_covariance, by_mean = posterior.slopes(mean, explained)
        return (by_covariance * self.covariance).sum() + (by_mean * self.x_mean).sum()

    def _condition(self, sites: Sites) -> Posterior:
        if bool((sites.lam2 < 0).any()):
            return WidePosterior(self, sites, whiten_sites(self, sites))
        return ExactPosterior.build(self, sites)


def _decouple(covariance: Tensor, observed: Tensor) -> Tensor:
    """Make padding rows independent: as copies of real rows they would make K singular."""
    keep = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    diagonal = torch.eye(covariance.shape[-1], dtype=torch.bool, device=covariance.device)
    return torch.where(keep | diagonal, covariance, torch.zeros_like(covariance))
