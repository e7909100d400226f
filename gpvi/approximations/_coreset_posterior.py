r"""The posterior of a coreset: that of an exact Gaussian process on M weighted pseudo-observations.

Predictions need :math:`B = I + W^{1/2} K_{zz} W^{1/2} = L_B L_B^\top` alone,

.. math:: E f_* = m_* + k_{*z} a, \qquad
          \operatorname{Var} f_* = k_{**} - |L_B^{-1} W^{1/2} k_{z*}|^2, \qquad
          KL = \tfrac12 (\log|B| + \operatorname{tr} B^{-1} - M + a^\top K_{zz} a).

Kzz itself is factorised (with jitter) only for the split into what u explains and what it leaves open, for
samples, and where sites have to be projected onto u. Such sites define pseudo-observations of u with its
jitter, which is folded into their noise for predictions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._checks import check_new_inputs, refuse_groups
from gpvi.approximations._coreset_summary import CoresetSummary, exact_gp, summarise
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._residual import ResidualDraw, check_residual
from gpvi.approximations.cavity import check_rows_have_sites
from gpvi.approximations.exact import ExactPrior
from gpvi.approximations.inducing_prior import InducingPosterior
from gpvi.approximations.moments import Draw, Marginals
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.exceptions import InputError
from gpvi.linalg import log_det_from_cholesky, solve_lower

if TYPE_CHECKING:
    from gpvi.approximations.coreset_prior import CoresetPrior

__all__ = ["CoresetPosterior", "PrunedCoreset"]


@dataclass(frozen=True, eq=False)
class CoresetPosterior(Posterior):
    """A Gaussian process given weighted pseudo-observations.

    Parameters
    ----------
    prior : CoresetPrior
        What was conditioned.
    sites : Sites
        What it was conditioned on.
    pseudo : Sites
        The pseudo-observations, diagonal sites on the basis.
    target : InducingPosterior, optional
        What the sites make of the prior, where that is not in the family: q is closest to it.
    jittered : bool
        Whether the pseudo-observations are of u with the jitter that the factor of Kzz has.
    """

    prior: "CoresetPrior"
    sites: Sites
    pseudo: Sites
    target: InducingPosterior | None = None
    jittered: bool = False

    @property
    def log_partition(self) -> Tensor:
        """``E_q[log t] - KL(q || prior)``, shape [*b]: a lower bound on ``log E_prior[t]``.

        For pseudo-observations themselves it is equal to that.
        """
        if self.target is not None:
            return self.target.log_partition - self._divergence(self.target)
        return self.dense.log_partition if self.jittered else self.core.log_partition

    def kl(self) -> Tensor:
        """``KL(q(u) || p(u))``, shape [*b]."""
        return self.dense.kl() if self.jittered else self.core.kl()

    @cached_property
    def core(self) -> Posterior:
        """The exact posterior on the pseudo-observations as data, with Z as rows."""
        prior = self.prior
        with on_graph():
            sites = self.pseudo
            if self.jittered:
                shrink = 1.0 / (1.0 + sites.lam2 * self._nugget)
                sites = Sites(sites.lam1 * shrink, sites.lam2 * shrink)
            rows = Sites(sites.lam1, sites.lam2)
            return ExactPrior(prior.gp, prior.z, prior.z_mean, prior.covariance).condition(rows)

    @cached_property
    def dense(self) -> InducingPosterior:
        """The same q through the factor of Kzz (and its jitter)."""
        with on_graph():
            prior = self.prior.inducing if self.target is None else self.target.prior
            result = prior.condition(self.pseudo)
            assert isinstance(result, InducingPosterior)
            return result

    @property
    def coreset(self) -> CoresetSummary:
        """The pseudo-observations, off the graph."""
        with torch.no_grad():
            return summarise(self.core, self.prior.covariance)

    def as_exact_gp(self) -> gpytorch.models.ExactGP:
        """The same process as a GPyTorch model, for fantasies, fast predictions and BoTorch.

        Returns
        -------
        gpytorch.models.ExactGP
            On the pseudo-observations, with noise variances ``1/weights`` in a
            ``FixedNoiseGaussianLikelihood`` and copies of mean and kernel, in evaluation mode.

        Raises
        ------
        UnsupportedError
            For a process that is no :class:`GaussianProcess`, and where a weight is negative.
        """
        return exact_gp(self.prior.gp, self.coreset)

    def prune(self, threshold: float = 1e-3) -> "PrunedCoreset":
        """Drop pseudo-observations that hardly weigh, and find the best q of those left.

        Parameters
        ----------
        threshold : float
            Points with a weight below this fraction of the mean weight go (in a batch: those that are
            below it everywhere).

        Returns
        -------
        PrunedCoreset
            The posterior on fewer points, which points they are, and what it costs.

        Raises
        ------
        InputError
            For a threshold out of [0, 1].

        Examples
        --------
        >>> import gpytorch, torch
        >>> from gpvi.approximations import GaussianProcess, Sites
        >>> from gpvi.approximations.coreset import Coreset
        >>> z = torch.linspace(0, 1, 4, dtype=torch.float64).unsqueeze(-1)
        >>> prior = Coreset(points=z).prior(GaussianProcess(gpytorch.kernels.RBFKernel().double()), z)
        >>> w = torch.tensor([5.0, 0.0, 5.0, 5.0]).double()
        >>> prior.condition(Sites(w, w, on="basis")).prune().kept.tolist()
        [0, 2, 3]
        """
        if not 0.0 <= threshold <= 1.0:
            raise InputError(f"threshold is {threshold}; it must lie in [0, 1].")
        weights = self.coreset.weights
        heavy = weights > threshold * weights.mean(-1, keepdim=True)
        kept = heavy.reshape(-1, weights.shape[-1]).any(0).nonzero().squeeze(-1)
        prior = self.prior
        if len(kept) == weights.shape[-1]:
            zero = torch.zeros_like(self.log_partition.detach())
            return PrunedCoreset(self, kept, zero)
        if self.target is not None:
            small = type(prior).build(
                prior.gp, prior.x, prior.z[..., kept, :], prior.relative_jitter
            )
            fewer = small.condition(self.sites)
            assert isinstance(fewer, CoresetPosterior)
            return PrunedCoreset(fewer, kept, (_bound(fewer) - _bound(self)).detach())
        # The pseudo-observations are all there is: they take the place of the data.
        data = Sites(self.core.sites.lam1, self.core.sites.lam2)
        small = type(prior).build(prior.gp, prior.z, prior.z[..., kept, :], prior.relative_jitter)
        fewer = small.condition(data)
        assert isinstance(fewer, CoresetPosterior)
        change = (_bound(fewer) - self.core.log_partition).detach()
        own = replace(small, x=prior.x, x_mean=prior.x_mean)
        return PrunedCoreset(
            CoresetPosterior(own, fewer.pseudo, fewer.pseudo, None, True), kept, change
        )

    def _marginals(self) -> Marginals:
        if self.jittered:
            return self.dense.marginals()
        moments = self.core.predict(self.prior.x)
        assert isinstance(moments, Marginals)
        residual = self.prior.residual
        # Jitter makes the residual a little larger than it is.
        explained = (moments.variance - residual).clamp_min(0.0)
        return Marginals(moments.mean, explained, residual)

    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments at new inputs, without a factor of Kzz; see :meth:`Posterior.predict`.

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
            The latter if ``joint``. Variances are not split.
        """
        refuse_groups(self, groups)
        check_new_inputs(self, x)
        return self.core.predict(x, joint)

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
            How the conditional residual is drawn.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values and function values at Z.
        """
        check_residual(residual)
        return self.dense.rsample(shape, x, residual, generator)

    def log_ratio(self, draw: Draw) -> Tensor:
        """``log p(u) - log q(u)``, from the pseudo-observations.

        Parameters
        ----------
        draw : Draw
            With ``basis`` of shape [*S, *b, M].

        Returns
        -------
        Tensor, shape [*S, *b]
            Log weights of the prior against q.
        """
        return self.dense.log_ratio(draw)

    def leave_one_out(self) -> Marginals:
        """Moments of f at every row without its site; see :meth:`Posterior.leave_one_out`.

        Means are those of the coreset refitted without the row, because its mean is free. Variances grow
        by the factors by which those of the Gaussian grow that the coreset is closest to; a refit of the
        weights would be near that.

        Returns
        -------
        Marginals
            With the residual of every row.
        """
        check_rows_have_sites(type(self).__name__, self.sites)
        assert self.target is not None
        without, whole = self.target.leave_one_out(), self.target.marginals()
        # A row that u says nothing of has no variance to grow.
        known = whole.explained > 0
        factor = without.explained / torch.where(known, whole.explained, 1.0)
        explained = self.marginals().explained * torch.where(known, factor, 1.0)
        return Marginals(without.mean, explained, without.residual)

    def path_weights(
        self, prior_path: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Matheron's rule on the pseudo-observations; see :meth:`Posterior.path_weights`.

        Parameters
        ----------
        prior_path : callable
            Draws of the prior.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        inputs : Tensor, shape [*b, M, D]
            Z.
        weights : Tensor, shape [S, *b, M]
            One per pseudo-observation.
        """
        return self.core.path_weights(prior_path, generator)

    def compact(self) -> "CoresetPosterior":
        """The pseudo-observations alone, without data rows and their sites.

        Returns
        -------
        CoresetPosterior
            Same KL and predictions; its log partition is that of the pseudo-observations.
        """
        prior = self.prior
        # Clones: slices would keep, and pickle, the storage of all rows.
        small = replace(prior, x=prior.x[..., :0, :].clone(), x_mean=prior.x_mean[..., :0].clone())
        return CoresetPosterior(small, self.pseudo, self.pseudo, None, self.jittered)

    def _divergence(self, target: InducingPosterior) -> Tensor:
        """``KL(q || target)`` at the mean of the target, shape [*b]."""
        own, other = self.dense.whitened.factor, target.whitened.factor
        trace = solve_lower(own, other).square().sum((-2, -1))
        logs = log_det_from_cholesky(own) - log_det_from_cholesky(other)
        return 0.5 * (trace - own.shape[-1] + logs)

    @property
    def _nugget(self) -> Tensor:
        """Jitter of the factor of Kzz, shape [*b, 1]."""
        prior = self.prior.inducing if self.target is None else self.target.prior
        scale = self.prior.covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
        return (prior.jitter.to(scale) * scale).unsqueeze(-1)

    def _site_values(self, basis: Tensor) -> Tensor:
        return basis


@dataclass(frozen=True, eq=False)
class PrunedCoreset:
    """A coreset without the points that hardly weigh.

    Parameters
    ----------
    posterior : CoresetPosterior
        The best q on the points left, for the same sites.
    kept : Tensor of int64, shape [K]
        Which points they are.
    change : Tensor, shape [*b]
        What that does to the bound in nats; what Z leaves open of rows with sites is counted.
    """

    posterior: CoresetPosterior
    kept: Tensor
    change: Tensor


def _bound(posterior: CoresetPosterior) -> Tensor:
    """Bound of the sites as factors of f itself, not of its projection."""
    sites = posterior.sites
    if sites.on != "data":
        return posterior.log_partition
    return posterior.log_partition - 0.5 * (sites.lam2 * posterior.prior.residual).sum(-1)
