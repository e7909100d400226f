r"""Minibatches of rows of a sparse inverse Cholesky posterior.

The divergence from the prior is a sum over locations, whose terms ask only for the columns of the prior's
factor at these locations and for the ancestors of each. A location counts once for each of its rows, with
a weight of one over their number, so that B rows drawn uniformly out of N estimate the whole sum without
bias,

.. math:: \frac NB \sum_{n \in \text{batch}} \frac{1}{c_n} \mathrm{kl}_{i(n)}.

References
----------
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._lazy import on_graph
from gpvi.approximations._residual import ResidualDraw
from gpvi.approximations.moments import Draw, Marginals
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.linalg import inverse_norms

if TYPE_CHECKING:
    from gpvi.approximations.sparse_inverse_posterior import SparseInversePosterior
    from gpvi.approximations.sparse_inverse_prior import SparseInversePrior

__all__ = ["SparseInverseRows"]


@dataclass(frozen=True, eq=False)
class SparseInverseRows(Posterior):
    """Some rows of a posterior, with an estimate of the whole divergence.

    Parameters
    ----------
    whole : SparseInversePosterior
        Over one data set.
    index : Tensor of int64, shape [B]
        Data rows.

    Raises
    ------
    InputError
        If there are no rows, or numbers that are none.
    UnsupportedError
        For posteriors over several data sets.
    """

    whole: "SparseInversePosterior"
    index: Tensor

    def __post_init__(self) -> None:
        size = self.whole.prior.x.shape[-2]
        if self.whole.prior.lead.numel() != 1:
            raise UnsupportedError(
                f"Rows of a posterior over {self.whole.prior.lead.numel()} data sets: take them from one."
            )
        index = self.index
        if index.dim() != 1 or not len(index) or index.dtype != torch.int64:
            raise InputError(
                f"index has shape {tuple(index.shape)} and dtype {index.dtype}; pass int64 row numbers [B]."
            )
        if int(index.min()) < 0 or int(index.max()) >= size:
            raise InputError(
                f"index runs from {int(index.min())} to {int(index.max())}; rows are 0 to {size - 1}."
            )

    @property
    def prior(self) -> "SparseInversePrior":  # type: ignore[override]
        """Prior of the whole posterior."""
        return self.whole.prior

    @property
    def sites(self) -> Sites:  # type: ignore[override]
        """Sites of these rows."""
        sites = self.whole.sites
        return Sites(sites.lam1[..., self.index], sites.lam2[..., self.index])

    @property
    def kl_is_whole(self) -> bool:
        """True: the estimate is of the whole divergence."""
        return True

    @property
    def log_partition(self) -> Tensor:
        """Estimate of the whole log partition."""
        q, sites = self.marginals(), self.sites
        rows = sites.lam1 * q.mean - 0.5 * sites.lam2 * (q.mean.square() + q.explained)
        return self._scale * rows.sum(-1) - self.kl()

    def kl(self) -> Tensor:
        """Estimate of the whole ``KL(q || prior)``."""
        prior, shift = self.prior, self.whole.shift
        places, columns = self._places, self._columns
        index = prior.pattern(self._position).neighbors[places]
        at = torch.cat([index, places.unsqueeze(-1).to(index)], -1)
        projection = (columns * shift[..., at.long().clamp_min(0)]).sum(-1)
        trace = self._norms(at, columns)
        logs = self.whole.factor[..., places, -1].log() - columns[..., -1].log()
        rows = 0.5 * (trace - 1.0 + projection.square()) + logs
        copies = prior.geometry.copies[0].to(rows)[places]
        return (self._scale * (rows / copies).sum(-1)).to(prior.x_mean)

    def _marginals(self) -> Marginals:
        prior, places = self.prior, self._places
        pattern = prior.factor_pattern(self._position)
        at = torch.cat([pattern.neighbors[places], places.unsqueeze(-1).to(torch.int32)], -1)
        own = torch.zeros(at.shape, dtype=self.whole.factor.dtype, device=at.device)
        own[..., -1] = 1.0
        variance = self._norms(at, own)
        mean = prior.mean[..., self.index] + self.whole.shift[..., places].to(prior.x_mean)
        return Marginals(mean, variance.to(prior.x_mean).expand_as(mean))

    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments anywhere, by the whole posterior; see :meth:`Posterior.predict`."""
        return self.whole.predict(x, joint, groups)

    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Joint samples of the whole posterior, at these rows unless x says where else.

        Parameters
        ----------
        shape : sequence of int
            Sample shape S.
        x : Tensor, shape [N_new, D], optional
            Where; these rows if left out.
        residual : {"joint", "independent", "none"}
            No difference here.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values and the whole basis.
        """
        draw = self.whole.rsample(shape, x, residual, generator)
        return draw if x is not None else Draw(draw.values[..., self.index], draw.basis)

    def log_ratio(self, draw: Draw) -> Tensor:
        """Log weights of the whole basis, shape [*S, *b]."""
        return self.whole.log_ratio(draw)

    def leave_one_out(self) -> Marginals:
        """As of the whole posterior, at these rows; see :meth:`Posterior.leave_one_out`."""
        moments = self.whole.leave_one_out()
        return Marginals(moments.mean[..., self.index], moments.explained[..., self.index])

    @property
    def _scale(self) -> float:
        return self.prior.x.shape[-2] / len(self.index)

    @property
    def _position(self) -> tuple[int, ...]:
        return (0,) * len(self.prior.lead)

    @property
    def _places(self) -> Tensor:
        return self.prior.geometry.place[0][self.index]

    @cached_property
    def _columns(self) -> Tensor:
        with on_graph():
            return self.prior.columns_of(self._places)

    def _norms(self, index: Tensor, values: Tensor) -> Tensor:
        """``|V^-1 b|^2`` of sparse b; slots that are not used are anywhere in the row."""
        order = torch.argsort((index < 0).to(torch.int8), dim=-1, stable=True)
        pattern = self.prior.factor_pattern(self._position)
        values = values.gather(-1, order.expand(values.shape))
        return inverse_norms(pattern, self.whole.factor, index.gather(-1, order), values)

    def _site_values(self, basis: Tensor) -> Tensor:
        return self.whole._site_values(basis)[..., self.index]
