r"""The prior of :class:`NeighborInducing`: inducing values in an order, rows given the nearest of them.

.. math:: \tilde p(u) = \prod_j p(u_j \mid u_{s_j}), \qquad
          \tilde p(f_n \mid u) = N\bigl(\mu_n + w_n^\top (u - m)_{I_n}, d_n\bigr) .

The first is a sparse inverse Cholesky prior over the inducing inputs, :math:`N(m, (UU^\top)^{-1})`; the
second conditions a row on its nearest inducing points. Together they are one consistent model, so that
bounds are bounds of its evidence. The basis is u, and sites of the data act on the projections
:math:`r_n = \mu_n + w_n^\top (u - m)_{I_n}`.

References
----------
Jafrasteh, B., Villacampa-Calvo, C. & Hernandez-Lobato, D. (2022). Input dependent sparse Gaussian processes.
ICML.
Wu, L., Pleiss, G. & Cunningham, J. (2022). Variational nearest neighbor Gaussian process. ICML.
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from gpvi.approximations._lazy import on_graph
from gpvi.approximations._neighbor_inducing_rows import NeighborRows, row_moments
from gpvi.approximations._neighbor_inducing_sites import factor_and_shift, site_system, tied
from gpvi.approximations.base import Prior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.neighbor_inducing_batch import FreeForm, NeighborInducingBatch
from gpvi.approximations.neighbor_inducing_posterior import NeighborInducingPosterior
from gpvi.approximations.sites import Sites
from gpvi.approximations.sparse_inverse_posterior import SparseInversePosterior
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.exceptions import InputError, UnsupportedError

__all__ = ["NeighborInducingPrior"]

# Sites are tied as a matrix over all inducing values, which is gone through row by row.
_MOST_TIED = 5_000


@dataclass(frozen=True, eq=False)
class NeighborInducingPrior(Prior):
    """Inducing values with a sparse precision factor, and rows given the nearest of them.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    x_mean : Tensor, shape [*b, N]
        Prior mean of the rows.
    inner : SparseInversePrior
        Prior of the inducing values.
    rows : NeighborRows
        Nearest inducing points of every row.
    objective : {"elbo", "swsgp"}
        What the divergence of posteriors is.
    """

    gp: GaussianProcessLike
    x: Tensor
    x_mean: Tensor
    inner: SparseInversePrior
    rows: NeighborRows
    objective: str = "elbo"

    site_spaces = ("data", "basis")

    #: The weights outlive a detaching: they are the price of the prior, with the factor.
    carried: ClassVar[tuple[str, ...]] = ("_moments",)

    @property
    def exact_conditioning(self) -> bool:  # type: ignore[override]
        """False: the posterior's factor is incomplete."""
        return False

    @cached_property
    def _moments(self) -> Tensor:
        with on_graph():
            return row_moments(self.inner, self.x, self.rows)

    @property
    def weights(self) -> Tensor:
        """Weights w of the neighbours of every row, shape [*b, N, H], in double precision."""
        return self._moments[..., :-1]

    @property
    def mean(self) -> Tensor:
        """Prior mean at the data rows, shape [*b, N]."""
        return self.x_mean

    @property
    def residual(self) -> Tensor:
        """Variance d of the rows given the inducing values, shape [*b, N]."""
        return self._moments[..., -1].to(self.x_mean)

    @property
    def num_basis(self) -> int:
        """Number M of distinct inducing inputs."""
        return self.inner.num_basis

    def whiten(self, basis: Tensor) -> Tensor:
        """``e = U'(u - m)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Inducing values, in the order of the inducing inputs.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Whitened values.
        """
        return self.inner.whiten(basis)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """``u = m + U^-T e``.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, M]
            Whitened values.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Inducing values.
        """
        return self.inner.unwhiten(whitened)

    def log_prob(self, basis: Tensor) -> Tensor:
        """``log N(u | m, (UU')^-1)``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, M]
            Inducing values.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log densities.
        """
        return self.inner.log_prob(basis)

    def tie(self, sites: Sites) -> Sites:
        r"""Data sites as sites about u, ``A diag(lam2) A'``: a full matrix, for moderate M.

        Parameters
        ----------
        sites : Sites
            On the data rows of this prior.

        Returns
        -------
        Sites
            On the basis; conditioning on them gives the same q.

        Raises
        ------
        UnsupportedError
            For more than 5,000 inducing points.
        """
        if sites.on != "data":
            raise InputError(f"Only sites on data rows can be tied, not sites on {sites.on!r}.")
        self._check_sites(sites)
        if self.num_basis > _MOST_TIED:
            raise UnsupportedError(
                f"Tied sites of {self.num_basis} inducing values are a matrix of that size; up to "
                f"{_MOST_TIED} can be tied. Train a free-form q on batches instead (prior.batch)."
            )
        return tied(self, sites)

    def posterior(self, mean: Tensor, factor: Tensor) -> NeighborInducingPosterior:
        r"""A free-form q: any mean, and any factor on the pattern of the family.

        .. math:: q(u) = N(\nu, (VV^\top)^{-1})

        Parameters
        ----------
        mean : Tensor, shape [*b, M]
            :math:`\nu`, by place in the order of the inducing points.
        factor : Tensor, shape [*b, M, k + 1]
            V on the pattern of the posterior; diagonals are positive.

        Returns
        -------
        NeighborInducingPosterior
            Without sites: its log partition is minus its divergence from the prior.

        Raises
        ------
        InputError
            If shapes do not fit, or a diagonal is not positive.
        """
        inner = self.inner.posterior(mean, factor)
        batch = torch.broadcast_shapes(mean.shape[:-1], self.x_mean.shape[:-1])
        return NeighborInducingPosterior(self, self._no_sites(batch), inner, True)

    def batch(self, q: FreeForm | tuple[Tensor, Tensor], inducing: Tensor) -> NeighborInducingBatch:
        """A free-form q as these rows and some inducing points see it, at the price of their ancestors.

        The rows of this prior and the inducing points are two independent batches: row terms are scaled by
        ``num_data`` of the objective, divergences by M over the number of inducing points drawn.

        Parameters
        ----------
        q : callable, or tuple of Tensor
            Maps places [K] to means [*b, K] and columns [*b, K, k + 1] of V there; or the mean [*b, M] and
            factor [*b, M, k + 1] of :meth:`posterior`.
        inducing : Tensor of int64, shape [B]
            Places of inducing points drawn uniformly out of M.

        Returns
        -------
        NeighborInducingBatch
            Its divergence is an unbiased estimate of the whole one.

        Raises
        ------
        InputError
            If there are no places, or numbers that are none.
        UnsupportedError
            For priors over several data sets.
        """
        return NeighborInducingBatch.build(self, q, inducing)

    def _no_sites(self, batch: torch.Size) -> Sites:
        shape = (*batch, self.x.shape[-2])
        return Sites.zeros(shape, dtype=self.x_mean.dtype, device=self.x_mean.device)

    def _condition(self, sites: Sites) -> NeighborInducingPosterior:
        factor, shift = factor_and_shift(self.inner, site_system(self, sites))
        z = self.inner.x_mean
        none = Sites.zeros((*shift.shape[:-1], z.shape[-1]), dtype=z.dtype, device=z.device)
        inner = SparseInversePosterior(self.inner, none, shift, factor, True)
        return NeighborInducingPosterior(self, sites, inner)
