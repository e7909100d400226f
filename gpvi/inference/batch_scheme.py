"""What a minibatch fit asks of the thing it fits: a score of a batch, and a state.

:class:`Minibatcher` shuffles, steps, records and saves; a scheme says what a batch is worth on the graph,
what happens to q once that is known, and which parameters of q, if any, Adam trains along.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpvi.approximations import Posterior

__all__ = ["BatchScheme", "BatchStep", "ParameterGroup", "Scored"]


@dataclass(frozen=True)
class BatchStep:
    """Where a fit stands.

    Parameters
    ----------
    number : int
        Steps taken so far.
    damping : float
        Factor on all step sizes, below one after failures.
    decay : float
        Factor on all step sizes, below one towards the end.
    """

    number: int
    damping: float
    decay: float


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters of q that Adam trains along with the hyperparameters.

    Parameters
    ----------
    parameters : list of Parameter
        Trained in place.
    rate : float
        Their own learning rate.
    floor : float
        Gradients (of the objective per row) that are far smaller than this are not blown up to full steps.
    """

    parameters: list[torch.nn.Parameter]
    rate: float
    floor: float


@dataclass(frozen=True, eq=False)
class Scored:
    """What a batch says of the objective.

    Parameters
    ----------
    value : Tensor, scalar
        Unbiased estimate in total nats, without the log densities of priors, on the graph.
    update : callable, optional
        What happens to q once the score is known, called with a :class:`BatchStep`.
    """

    value: Tensor
    update: Callable[[BatchStep], None] | None = None


class BatchScheme(Protocol):
    """How q and the objective are estimated from batches."""

    log_v: Tensor | None

    @property
    def num_items(self) -> int:
        """How many items batches are drawn from: rows, or locations."""

    @property
    def last_refresh(self) -> tuple[int, int]:
        """How often neighbours have been found anew, and after how many steps the last time."""

    def start(self, generator: torch.Generator) -> None:
        """Make the state of q; nothing to do where there is one already."""

    def groups(self) -> list[ParameterGroup]:
        """Parameters of q, after :meth:`start` or :meth:`assign`."""

    def trains(self, number: int) -> bool:
        """Whether hyperparameters may move after so many steps."""

    def refresh(self, number: int) -> bool:
        """Bring neighbours up to date where it is time; whether they changed (and q starts anew)."""

    def score(self, index: Tensor) -> Scored:
        """Score a batch of items, int64 [B]."""

    def snapshot(self) -> dict[str, Tensor]:
        """What steps change, by name."""

    def assign(self, values: dict[str, Tensor]) -> None:
        """Inverse of :meth:`snapshot`; other names are ignored."""

    def posterior(self) -> Posterior:
        """Detached posterior at today's parameters."""

    def objective(self) -> float:
        """Objective over all rows at today's parameters, total nats."""
