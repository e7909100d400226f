r"""A free-form q of :class:`NeighborInducing` seen through two independent minibatches.

Row terms are a sum over rows, each given H inducing values; the divergence is a sum over inducing values,
each given its earlier neighbours. B rows and B' inducing points drawn uniformly therefore give

.. math:: \frac NB \sum_{n \in \text{rows}} E_q \log p(y_n \mid f_n)
          - \frac M{B'} \sum_{j \in \text{inducing}} \mathrm{kl}_j ,

an unbiased estimate of the bound. Terms ask only for ancestors of the inducing values in question, all of
them or three generations back, and parameters of q are gathered there. The price is that of these
ancestors; besides, a step fills one table of M numbers. Rows near each other share ancestors, of which there
are hardly more for larger M; scattered ones do not, until each of the B rows has its own.

References
----------
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from gpvi.approximations._gather import take_rows
from gpvi.approximations._neighbor_inducing_average import (
    averaged_divergence,
    check_one_set,
    covariance_at,
)
from gpvi.approximations._neighbor_inducing_rows import behind_neighbors, row_norms
from gpvi.approximations._residual import ResidualDraw
from gpvi.approximations._sparse_columns import columns_at
from gpvi.approximations.moments import Draw, Marginals
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.linalg import NeighborPattern, inverse_norms, spatial_order

if TYPE_CHECKING:
    from gpvi.approximations.neighbor_inducing_prior import NeighborInducingPrior

__all__ = ["FreeForm", "NeighborInducingBatch"]

#: Maps places [K] to means [*b, K] and columns [*b, K, k + 1] of the factor of q.
FreeForm = Callable[[Tensor], tuple[Tensor, Tensor]]

# Ancestors that variances look at unless all count: neighbours and their neighbours.
_GENERATIONS = 2


@dataclass(frozen=True, eq=False)
class NeighborInducingBatch(Posterior):
    """Some rows and some inducing points of a free-form q.

    Parameters
    ----------
    prior : NeighborInducingPrior
        At the rows.
    sites : Sites
        Zero.
    inducing : Tensor of int64, shape [B]
        Places of the inducing points.
    places : Tensor of int64, shape [K]
        Places of all inducing points that matter for these rows and inducing points.
    pattern : NeighborPattern
        Of the factor among these.
    shift : Tensor, shape [*b, K]
        Mean of q there, less that of the prior.
    factor : Tensor, shape [*b, K, k + 1]
        V there.
    number : Tensor of int32, shape [M + 1]
        Where among them every place is; -1 elsewhere, and last.
    """

    prior: "NeighborInducingPrior"
    sites: Sites
    inducing: Tensor
    places: Tensor
    pattern: NeighborPattern
    shift: Tensor
    factor: Tensor
    number: Tensor

    @classmethod
    def build(
        cls,
        prior: "NeighborInducingPrior",
        q: FreeForm | tuple[Tensor, Tensor],
        inducing: Tensor,
    ) -> "NeighborInducingBatch":
        """Gather what rows and inducing points ask for; see :meth:`NeighborInducingPrior.batch`."""
        inner = prior.inner
        check_one_set(inner)
        if prior.rows.lead.numel() != 1:
            raise UnsupportedError(
                f"Batches are of one data set, and x has batch dims {tuple(prior.rows.lead)}."
            )
        _check(inducing, inner.num_basis)
        position = (0,) * len(inner.lead)
        whole = inner.factor_pattern(position)
        alone = prior.rows.index[prior.rows.exact][:, 0].long()
        asked = torch.cat(
            [
                prior.rows.index.flatten().long(),
                whole.neighbors[alone].flatten().long(),
                inducing,
                inner.pattern(position).neighbors[inducing].flatten().long(),
            ]
        )
        places, number = _ancestors(whole.neighbors, asked, inner.complete)
        mean, factor = _gather(q, inner.num_basis, places)
        width = whole.num_neighbors + 1
        if mean.shape[-1] != len(places) or factor.shape[-2:] != (len(places), width):
            raise InputError(
                f"q gave a mean of shape {tuple(mean.shape)} and a factor of {tuple(factor.shape)} for "
                f"{len(places)} places; it must be [*b, {len(places)}] and [*b, {len(places)}, {width}]."
            )
        neighbors, off = _compressed(number[whole.neighbors[places].long()], factor[..., :-1])
        factor = torch.cat([off, factor[..., -1:]], -1)
        # Whatever takes all inducing points together would cost more, the larger M is.
        z = take_rows(inner.x[position], inner.geometry.first[0][places])
        order = spatial_order(inner.geometry.scaled(z)).to(torch.int32)
        pattern = NeighborPattern(neighbors, order)
        batch = torch.broadcast_shapes(mean.shape[:-1], prior.x_mean.shape[:-1])
        shift = mean.double() - inner.gp.mean(z).double()
        return cls(
            prior,
            prior._no_sites(batch),
            inducing,
            places,
            pattern,
            shift,
            factor.double(),
            number,
        )

    @property
    def kl_is_whole(self) -> bool:
        """True: the estimate is of the whole divergence."""
        return True

    @property
    def log_partition(self) -> Tensor:
        """Minus the estimate of the whole divergence: there are no sites."""
        return -self.kl()

    def kl(self) -> Tensor:
        """Estimate of the whole ``KL(q || prior)``; with objective "swsgp" the average over these rows."""
        prior = self.prior
        if prior.objective == "swsgp":
            every = torch.arange(len(self.places), device=self.places.device)
            covariance = covariance_at(self.pattern, self.factor, every)
            index = self._local(prior.rows.index)
            value = averaged_divergence(prior.inner, index, self.places, self.shift, covariance)
            return value.to(prior.x_mean)
        inner, chosen = prior.inner, self.inducing
        position = (0,) * len(inner.lead)
        neighbors = self._local(inner.pattern(position).neighbors[chosen])
        index, slot = behind_neighbors(neighbors, self.number[chosen])
        z = take_rows(inner.x[position], inner.geometry.first[0][self.places])
        columns = columns_at(inner.gp, z, neighbors, self.number[chosen], inner.nugget)
        own = torch.nn.functional.one_hot(slot, index.shape[-1]).to(columns)
        off = torch.nn.functional.pad(columns[..., :-1], (0, 1))
        values = off + own * columns[..., -1:]
        trace = inverse_norms(self.pattern, self.factor, index, values, complete=inner.complete)
        projection = (values * self.shift[..., index.long().clamp_min(0)]).sum(-1)
        diagonal = self.factor[..., self.number[chosen].long(), -1]
        terms = 0.5 * (trace - 1.0 + projection.square()) + (diagonal / columns[..., -1]).log()
        return (inner.num_basis * terms.mean(-1)).to(prior.x_mean)

    def _marginals(self) -> Marginals:
        prior = self.prior
        index = self._local(prior.rows.index)
        weights = prior.weights.reshape(*prior.weights.shape[:-2], *index.shape)
        mean = (weights * self.shift[..., index.long().clamp_min(0)]).sum(-1)
        exact = prior.rows.exact.reshape(-1)
        complete = prior.inner.complete
        explained = row_norms(self.pattern, self.factor, index, weights, exact, complete)
        mean = prior.x_mean + mean.to(prior.x_mean)
        return Marginals(mean, explained.to(mean).expand_as(mean), prior.residual.expand_as(mean))

    def predict(self, x: Tensor, joint: bool = False, groups: Tensor | None = None) -> NoReturn:
        """Refused: a batch holds a part of q. Use ``prior.posterior(mean, factor)``."""
        raise UnsupportedError(
            f"A batch of {len(self.places)} inducing values predicts nowhere else; make the whole q by "
            "prior.posterior(mean, factor)."
        )

    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> NoReturn:
        """Refused: a batch holds a part of q. Use ``prior.posterior(mean, factor)``."""
        raise UnsupportedError(
            f"A batch of {len(self.places)} inducing values has no joint samples; make the whole q by "
            "prior.posterior(mean, factor)."
        )

    def log_ratio(self, draw: Draw) -> NoReturn:
        """Refused: a batch holds a part of q."""
        raise UnsupportedError(
            "A batch holds a part of q; prior.posterior(mean, factor) has log ratios."
        )

    def leave_one_out(self) -> NoReturn:
        """Refused: a free-form q has no sites."""
        raise UnsupportedError(
            "A free-form q has no sites, so that no row can be left out; condition the prior on sites."
        )

    def _local(self, index: Tensor) -> Tensor:
        """Places [..., k] of one set as numbers among those at hand, int32 [R, k]."""
        return self.number[index.long()].reshape(-1, index.shape[-1])

    def _site_values(self, basis: Tensor) -> NoReturn:
        raise UnsupportedError("A batch holds a part of q, and no sites.")


def _ancestors(neighbors: Tensor, asked: Tensor, complete: bool) -> tuple[Tensor, Tensor]:
    """Places asked for and their ancestors, ascending, and their numbers by place (-1 elsewhere).

    Filling that table is all that takes longer the more places there are.
    """
    M = len(neighbors)
    number = torch.full((M + 1,), -1, dtype=torch.int32, device=asked.device)
    found, generation = [], 0
    while len(asked) and (complete or generation <= _GENERATIONS):
        fresh = asked[(asked >= 0) & (number[asked] < 0)]
        # Of equal places one has the last word.
        own = torch.arange(len(fresh), dtype=torch.int32, device=asked.device)
        number[fresh] = own
        fresh = fresh[number[fresh] == own]
        found.append(fresh)
        asked, generation = neighbors[fresh].flatten().long(), generation + 1
    places = torch.cat(found).sort().values
    number[places] = torch.arange(len(places), dtype=torch.int32, device=asked.device)
    return places, number


def _compressed(neighbors: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours [K, k] and values [*b, K, k], those of -1 left out and the others moved to the front."""
    kept = neighbors >= 0
    width = neighbors.shape[-1]
    slot = torch.where(kept, kept.cumsum(-1) - 1, width)
    padded = torch.full((len(slot), width + 1), -1, dtype=neighbors.dtype, device=slot.device)
    room = values.new_zeros(*values.shape[:-1], width + 1)
    moved = room.scatter(-1, slot.expand(values.shape), values)
    return padded.scatter(-1, slot, neighbors)[:, :-1].contiguous(), moved[..., :-1]


def _gather(
    q: FreeForm | tuple[Tensor, Tensor], num_basis: int, places: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and columns of q at places."""
    if callable(q):
        mean, factor = q(places)
    else:
        mean, factor = q
        if mean.shape[-1:] != (num_basis,) or factor.shape[-2:-1] != (num_basis,):
            raise InputError(
                f"mean has shape {tuple(mean.shape)} and factor {tuple(factor.shape)}; pass "
                f"[*b, {num_basis}] and [*b, {num_basis}, k + 1]."
            )
        mean, factor = mean.index_select(-1, places), factor.index_select(-2, places)
    if not bool((factor[..., -1] > 0).all()):
        raise InputError(
            f"The smallest diagonal of factor is {float(factor[..., -1].min()):.3g}; they must be positive."
        )
    return mean, factor


def _check(inducing: Tensor, size: int) -> None:
    if inducing.dim() != 1 or not len(inducing) or inducing.dtype != torch.int64:
        raise InputError(
            f"inducing has shape {tuple(inducing.shape)} and dtype {inducing.dtype}; pass int64 places [B]."
        )
    if int(inducing.min()) < 0 or int(inducing.max()) >= size:
        raise InputError(
            f"inducing runs from {int(inducing.min())} to {int(inducing.max())}; places are 0 to {size - 1}."
        )
