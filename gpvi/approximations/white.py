r"""The white prior: every row is independent, as in an ordinary variational autoencoder.

Rows count as distinct even where their inputs coincide. A site may be wider than the prior, as long
as :math:`\lambda_2 > -1/k_{nn}`.
"""

import math
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._checks import check_new_inputs, refuse_groups
from gpvi.approximations._random import standard_normal
from gpvi.approximations._residual import ResidualDraw, check_residual
from gpvi.approximations.base import Approximation, Prior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.moments import Draw, Marginals, joint_normal
from gpvi.approximations.plan import Plan
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.exceptions import NumericalError, UnsupportedError
from gpvi.kernels import is_white

__all__ = ["White", "WhitePosterior", "WhitePrior"]

_LOG_2PI = math.log(2.0 * math.pi)


class White(Approximation):
    """Independent rows; needs a kernel that is white.

    Examples
    --------
    >>> import torch
    >>> from gpvi.approximations import GaussianProcess, Sites
    >>> from gpvi.kernels import WhiteKernel
    >>> prior = White().prior(GaussianProcess(WhiteKernel().double()), torch.zeros(3, 1).double())
    >>> prior.condition(Sites.zeros((3,))).marginals().variance.shape
    torch.Size([3])
    """

    whole_data = False
    subset_warm_start = False

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> "WhitePrior":
        kernel = getattr(gp, "kernel", None)
        if kernel is None or not is_white(kernel):
            name = type(gp if kernel is None else kernel).__name__
            raise UnsupportedError(
                f"White needs a white kernel and got {name}, whose correlations it would drop; use "
                "gpvi.kernels.WhiteKernel, or another approximation."
            )
        return WhitePrior(gp, x, gp.mean(x), gp.variance(x), plan.observed)


@dataclass(frozen=True, eq=False)
class WhitePrior(Prior):
    """Independent normal priors.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    x_mean, x_variance : Tensor, shape [*b, N]
        Moments of every row.
    observed : Tensor of bool, shape [*g, N], optional
        False on padding rows, which densities leave out.
    """

    gp: GaussianProcessLike
    x: Tensor
    x_mean: Tensor
    x_variance: Tensor
    observed: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """Prior mean at the data rows, shape [*b, N]."""
        return self.x_mean

    @property
    def num_basis(self) -> int:
        """Number N of rows."""
        return self.x.shape[-2]

    def whiten(self, basis: Tensor) -> Tensor:
        """``(z - m) / scale``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, N]
            Values.

        Returns
        -------
        Tensor, shape [*S, *b, N]
            Whitened values.
        """
        return (basis - self.x_mean) / self.x_variance.sqrt()

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """``m + scale * e``.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, N]
            Whitened values.

        Returns
        -------
        Tensor, shape [*S, *b, N]
            Values.
        """
        return self.x_mean + self.x_variance.sqrt() * whitened

    def log_prob(self, basis: Tensor) -> Tensor:
        """Sum of independent normal log densities.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, N]
            Values.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log densities.
        """
        rows = self.whiten(basis).square() + self.x_variance.log() + _LOG_2PI
        return -0.5 * (rows if self.observed is None else rows * self.observed).sum(-1)

    def _condition(self, sites: Sites) -> "WhitePosterior":
        gain = 1.0 + self.x_variance * sites.lam2
        if not bool((gain > 0).all()):
            raise NumericalError(
                f"A site has precision {sites.lam2.min().item():.3g}, below minus the prior "
                f"precision {1 / self.x_variance.max().item():.3g}: the posterior would be "
                "improper. Bound the site precision from below."
            )
        return WhitePosterior(self, sites)


@dataclass(frozen=True, eq=False)
class WhitePosterior(Posterior):
    """Independent normal posteriors.

    Parameters
    ----------
    prior : WhitePrior
        What was conditioned.
    sites : Sites
        On the data rows.
    """

    prior: WhitePrior
    sites: Sites

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        prior, sites = self.prior, self.sites
        gain = 1.0 + prior.x_variance * sites.lam2
        variance = prior.x_variance / gain
        return prior.x_mean + variance * (sites.lam1 - sites.lam2 * prior.x_mean), variance, gain

    @property
    def log_partition(self) -> Tensor:
        """``log E_prior[exp(sum log t)]``, total."""
        _, variance, gain = self._moments()
        centred = self.sites.lam1 - self.sites.lam2 * self.prior.x_mean
        spread = 0.5 * (variance * centred.square() - gain.log()).sum(-1)
        return self.sites.log_value(self.prior.x_mean) + spread

    def kl(self) -> Tensor:
        """Sum of independent normal KL divergences, total."""
        mean, _, gain = self._moments()
        shift = (mean - self.prior.x_mean).square() / self.prior.x_variance
        return 0.5 * (gain.reciprocal() - 1.0 + gain.log() + shift).sum(-1)

    def _marginals(self) -> Marginals:
        mean, variance, _ = self._moments()
        return Marginals(mean, variance)

    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments at new inputs: the prior, but for rows that equal a data row.

        Parameters
        ----------
        x : Tensor, shape [*g, N_new, D]
            Inputs.
        joint : bool
            Whether to return the (diagonal) covariance.
        groups : None
            This posterior has no groups.

        Returns
        -------
        Marginals or MultivariateNormal
            The latter if ``joint``. Where several data rows equal a new one, the first decides.
        """
        refuse_groups(self, groups)
        check_new_inputs(self, x)
        same = (x.unsqueeze(-2) == self.prior.x.unsqueeze(-3)).all(-1)
        known, match = same.max(-1)
        mean, variance, _ = self._moments()
        prior_mean, prior_variance = self.prior.gp.mean(x), self.prior.gp.variance(x)
        shape = torch.broadcast_shapes(mean.shape[:-1], match.shape[:-1])
        match = match.expand(*shape, match.shape[-1])
        picked_mean = mean.expand(*shape, mean.shape[-1]).gather(-1, match)
        picked_variance = variance.expand(*shape, variance.shape[-1]).gather(-1, match)
        mean = torch.where(known, picked_mean, prior_mean)
        variance = torch.where(known, picked_variance, prior_variance)
        if joint:
            return joint_normal(mean, torch.diag_embed(variance))
        return Marginals(mean, variance)

    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Reparametrised samples; see :meth:`Posterior.rsample`.

        Parameters
        ----------
        shape : sequence of int
            Sample shape S.
        x : None
            Rows elsewhere are independent of the data; sampling them here is refused.
        residual : {"joint", "independent", "none"}
            No residual is left, so all three are the same.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values, which are the basis.
        """
        check_residual(residual)
        if x is not None:
            raise UnsupportedError(
                "WhitePosterior samples at its data rows only; other rows are independent draws of "
                "the prior (use predict)."
            )
        mean, variance, _ = self._moments()
        values = mean + variance.sqrt() * standard_normal((*shape, *mean.shape), mean, generator)
        return Draw(values, values)

    def leave_one_out(self) -> Marginals:
        """Moments of every row given all others: those of the prior.

        Returns
        -------
        Marginals
            Shape [*b, N].
        """
        shape = self.marginals().mean.shape
        return Marginals(self.prior.x_mean.expand(shape), self.prior.x_variance.expand(shape))

    def _site_values(self, basis: Tensor) -> Tensor:
        return basis
