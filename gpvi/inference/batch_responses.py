r"""Minibatches of conditionals of Gaussian responses: hyperparameters without a posterior.

The evidence of the responses is a sum over locations of log conditionals given earlier neighbours, so
that B locations drawn uniformly out of M give an unbiased estimate,

.. math:: \frac MB \sum_{i \in \text{batch}} \log p(y_i \mid y_{s_i}).

A step gathers the rows at these locations and at their neighbours, and nothing of the others. Rows at one
location count as one response, whose noise is that of their precision-weighted mean; what is left of their
log density belongs to the location. The posterior is made at the end, once.

References
----------
Vecchia, A. V. (1988). Estimation and model identification for continuous spatial processes. JRSS B.
"""

import math

import torch
from torch import Tensor

from gpvi.approximations import Posterior
from gpvi.approximations.neighbor_geometry import NeighborGeometry
from gpvi.approximations.response_evidence import response_evidence
from gpvi.approximations.sparse_inverse import SparseInverseCholesky
from gpvi.inference.batch_neighbors import BatchNeighbors
from gpvi.inference.batch_scheme import ParameterGroup, Scored
from gpvi.inference.cvi import CVIResult
from gpvi.inference.problem import FitProblem

__all__ = ["ResponseBatches"]

_LOG_2PI = math.log(2.0 * math.pi)


class ResponseBatches:
    """Batches of locations for the evidence of Gaussian responses.

    Parameters
    ----------
    problem : FitProblem
        Whole data set, one for which :meth:`suits` is true.
    batch_size : int
        Locations per step.
    """

    log_v: Tensor | None = None

    def __init__(self, problem: FitProblem, batch_size: int) -> None:
        self.problem = problem
        self._rows = problem.observed
        everything = len(self._rows) == problem.num_rows
        self._x = problem.x if everything else problem.x[self._rows]
        plan = problem.plan if everything else problem.approximation.plan(self._x)
        self.neighbors = BatchNeighbors(problem, plan, batch_size)
        self._index_rows()
        self._outcome: CVIResult | None = None

    @staticmethod
    def suits(problem: FitProblem) -> bool:
        """Whether a problem maximises the evidence of Gaussian responses.

        Parameters
        ----------
        problem : FitProblem
            Any.

        Returns
        -------
        bool
            False for other likelihoods, several data sets, and where that of the function was asked for.
        """
        likelihood, approximation = problem.likelihood, problem.approximation
        return (
            isinstance(approximation, SparseInverseCholesky)
            and approximation.evidence == "responses"
            and problem.y.dim() == 1
            and likelihood.num_latents == 1
            and likelihood.gaussian_noise(problem.y, **problem.rows) is not None
        )

    @property
    def num_items(self) -> int:
        """Locations with a target."""
        return self.neighbors.geometry.num_locations

    @property
    def last_refresh(self) -> tuple[int, int]:
        """How often neighbours have been found anew, and after how many steps the last time."""
        return self.neighbors.last_refresh

    def start(self, generator: torch.Generator) -> None:
        """There is no q yet."""

    def groups(self) -> list[ParameterGroup]:
        """None: there is no q yet."""
        return []

    def trains(self, number: int) -> bool:
        """Always: nothing has to be waited for."""
        return True

    def refresh(self, number: int) -> bool:
        """Find neighbours anew, if it is time and they are others."""
        changed = self.neighbors.refresh(number)
        if changed:
            self._index_rows()
        return changed

    def snapshot(self) -> dict[str, Tensor]:
        """What brings the neighbours back."""
        return self.neighbors.snapshot()

    def assign(self, values: dict[str, Tensor]) -> None:
        """Inverse of :meth:`snapshot`."""
        self._outcome = None
        if self.neighbors.assign(values):
            self._index_rows()

    def score(self, index: Tensor) -> Scored:
        """Score a batch of locations, int64 [B], by place in the order."""
        self._outcome = None
        geometry = self.neighbors.geometry
        index = index.to(self._x.device)
        around = geometry.neighbors[0][index].long()
        places = torch.cat([index, around[around >= 0]]).unique()
        rows, owner = self._rows_at(places)
        own = torch.searchsorted(places, index)
        responses, variances, spare = self._merge(rows, owner, len(places), own)
        small = _among(geometry, places, own, around)
        points = self._x[geometry.first[0][places]]
        total = response_evidence(
            self.problem.gp, small, points, responses, variances, own.to(torch.int32)
        )
        # The estimate above is scaled to these places, not to all.
        value = total * (geometry.num_locations / len(places))
        return Scored((value + spare * (geometry.num_locations / len(index))).sum())

    def posterior(self) -> Posterior:
        """Detached posterior at today's parameters."""
        return self._infer().posterior.detach()

    def objective(self) -> float:
        """Bound of the posterior over all rows at today's parameters, total nats."""
        return self._infer().objective

    def _infer(self) -> CVIResult:
        if self._outcome is None:
            if len(self._rows) == self.problem.num_rows:
                self.problem.plan = self.neighbors.plan
            self.problem.refresh()
            self._outcome = self.problem.infer()
        return self._outcome

    def _index_rows(self) -> None:
        """Rows sorted by place, and where those of each place start."""
        geometry = self.neighbors.geometry
        self._sorted = torch.argsort(geometry.place[0], stable=True)
        self._counts = torch.bincount(geometry.place[0], minlength=geometry.num_locations)
        self._starts = self._counts.cumsum(0) - self._counts

    def _rows_at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Row numbers of the data at places, and the number among the places of each."""
        counts = self._counts[places]
        owner = torch.repeat_interleave(torch.arange(len(places), device=places.device), counts)
        within = torch.arange(len(owner), device=places.device) - (counts.cumsum(0) - counts)[owner]
        return self._rows[self._sorted[self._starts[places][owner] + within]], owner

    def _merge(
        self, rows: Tensor, owner: Tensor, size: int, own: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Responses of places with noise variances, and what else the batch's rows say, in nats."""
        problem = self.problem
        y = problem.y[rows]
        extras = {name: values[..., rows] for name, values in problem.rows.items()}
        noise = problem.likelihood.gaussian_noise(y, **extras)
        assert noise is not None
        noise = noise.reshape(()) if noise.numel() == 1 else noise.expand_as(y)
        spare = y.new_zeros(())
        in_batch = torch.zeros(size, dtype=y.dtype, device=y.device).index_fill(0, own, 1.0)[owner]
        if problem.weights is not None:
            # w log N(y; f, s) is log N(y; f, s/w) up to this.
            weights = problem.weights[rows]
            left = (weights - 1.0) * (2.0 * math.pi * noise).log() + weights.log()
            spare = spare - 0.5 * (in_batch * left).sum()
            noise = noise / weights
        if len(rows) == size:
            return y, noise, spare
        noise = noise.expand_as(y)
        variance = y.new_zeros(size).index_add(0, owner, noise.reciprocal()).reciprocal()
        responses = variance * y.new_zeros(size).index_add(0, owner, y / noise)
        by_row = noise.log() + (y - responses[owner]).square() / noise + _LOG_2PI
        by_place = variance[own].log() + _LOG_2PI
        spare = spare + 0.5 * (by_place.sum() - (in_batch * by_row).sum())
        return responses, variance, spare


def _among(
    geometry: NeighborGeometry, places: Tensor, own: Tensor, around: Tensor
) -> NeighborGeometry:
    """The geometry of some places only, ascending; those not in the batch get no neighbours."""
    size, device = len(places), places.device
    each = torch.arange(size, device=device).unsqueeze(0)
    local = torch.where(around >= 0, torch.searchsorted(places, around.clamp_min(0)), -1)
    neighbors = torch.full((size, around.shape[-1]), -1, dtype=torch.int32, device=device)
    neighbors[own] = local.to(torch.int32)
    return NeighborGeometry(
        first=each,
        place=each,
        rank=each,
        real=torch.ones(1, size, dtype=torch.bool, device=device),
        neighbors=neighbors.unsqueeze(0),
        schedule=each.to(torch.int32),
        scale=geometry.scale,
    )
