"""Prior and posterior of two blocks whose q keeps them independent.

The prior is that of any finite basis; only conditioning differs, because q has no cross block.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpvi.approximations._orthogonal_gaussian import BlockGaussian
from gpvi.approximations._orthogonal_solve import DensePrecision, LowRankPrecision, Precision
from gpvi.approximations.base import Prior
from gpvi.approximations.cavity import cavity, check_rows_have_sites, gap_from_moments
from gpvi.approximations.feature_posterior import FeaturePosterior
from gpvi.approximations.feature_prior import SITE_FORMS, FeaturePrior, log_site_at_zero
from gpvi.approximations.moments import Draw, Marginals
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.linalg import mat_vec


@dataclass(frozen=True, eq=False)
class BlockPrior(FeaturePrior):
    """Prior of an orthogonal pair, conditioned to the best q with independent blocks.

    That q is not prior times sites, but fixed points of natural-gradient steps are maxima of the bound over
    this family, and gradients with sites held are total there: what ``exact_conditioning`` promises.

    Parameters
    ----------
    split : int
        Size of the first block.
    moved : bool
        Whether the second block keeps the covariance of its prior.
    """

    split: int = 0
    moved: bool = False

    def in_blocks(self, split: int, *, moved: bool) -> "BlockPrior":
        """The same prior with its blocks named."""
        return replace(self, split=split, moved=moved)

    def tangent(
        self, posterior: Posterior, mean: Tensor, explained: Tensor, residual: Tensor | None
    ) -> Tensor:
        """See :meth:`Prior.tangent`; by automatic differentiation of the blocks."""
        return Prior.tangent(self, posterior, mean, explained, residual)

    def _condition(self, sites: Sites) -> "BlockPosterior":
        precision: Precision
        if sites.on == "data":
            precision = LowRankPrecision(self.features, sites.lam2)
            shift = mat_vec(self.features, sites.lam1 - sites.lam2 * self.x_mean)
        else:
            shift, matrix = SITE_FORMS[sites.on](self, sites)
            precision = DensePrecision(matrix)
        whitened = BlockGaussian.best(precision, shift, self.split, moved=self.moved)
        return BlockPosterior(self, sites, whitened, log_site_at_zero(self, sites))


@dataclass(frozen=True, eq=False)
class BlockPosterior(FeaturePosterior):
    """Posterior with independent blocks; its log partition is the lower bound ``E_q[log t] - KL``."""

    prior: BlockPrior
    whitened: BlockGaussian  # type: ignore[assignment]

    def log_ratio(self, draw: Draw) -> Tensor:
        """``log p(basis) - log q(basis)`` from the two densities, shape [*S, *b].

        Parameters
        ----------
        draw : Draw
            With ``basis`` of shape [*S, *b, M].

        Returns
        -------
        Tensor, shape [*S, *b]
            Log weights of the prior against q.
        """
        return self.whitened.log_ratio(self.prior.whiten(draw.basis))

    def leave_one_out(self) -> Marginals:
        """Moments of every row without its own site; see :meth:`Posterior.leave_one_out`.

        Returns
        -------
        Marginals
            From the marginals of this q, which are nearly those of prior times sites.
        """
        check_rows_have_sites(type(self).__name__, self.sites)
        moments, sites = self.marginals(), self.sites
        gap = gap_from_moments(sites.lam2, moments.explained)
        return cavity(moments, sites, gap, sites.lam1 - sites.lam2 * moments.mean)

    def compact(self) -> "BlockPosterior":
        """The same q without data rows; see :meth:`FeaturePosterior.compact`.

        Returns
        -------
        BlockPosterior
            Same q, KL and predictions; its sites leave the blocks independent.
        """
        small = super().compact()
        assert isinstance(small, BlockPosterior)
        return replace(small, whitened=self.whitened.own())


def expand_points(first: Tensor, second: Tensor) -> Tensor:
    """Both sets of inputs in one, shape [*b, M + K, D]."""
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (first, second)], -2)
