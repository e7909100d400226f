"""Neighbours during a minibatch fit: found at the start, looked at again now and then, and restorable.

Neighbours are a function of the inputs and of the hyperparameters at which they were found. A checkpoint
therefore holds these hyperparameters instead of the neighbours.
"""

import math

import torch
from torch import Tensor

from gpvi.approximations import NeighborInducingPrior, Plan
from gpvi.approximations.neighbor_geometry import NeighborGeometry
from gpvi.approximations.neighbor_inducing_plan import NeighborInducingPlan
from gpvi.approximations.sparse_inverse import SparseInversePlan
from gpvi.inference.parameters import ParameterVector
from gpvi.inference.problem import FitProblem

__all__ = ["BatchNeighbors"]

_PLACE, _FOUND = "neighbors.refresh", "neighbors.found"


class BatchNeighbors:
    """The neighbours in use, and when they were found.

    Parameters
    ----------
    problem : FitProblem
        Whose process measures distances.
    plan : Plan
        For the rows in use; neighbours are found now.
    batch_size : int
        Items per step: neighbours are looked at again once an epoch at most.
    """

    def __init__(self, problem: FitProblem, plan: Plan, batch_size: int) -> None:
        self._problem = problem
        self._parameters = ParameterVector({"gp": problem.gp}).parameters
        self.last_refresh = (0, 0)
        self._adopt(plan)
        number = problem.num_rows
        if isinstance(plan, SparseInversePlan):  # otherwise places are those of inducing points
            number = self.geometry.num_locations
        epoch = math.ceil(number / batch_size)
        period = problem.approximation.refresh_period(problem.gp, problem.x)
        self._period = None if period is None else max(period, epoch)

    @property
    def geometry(self) -> NeighborGeometry:
        """Places and neighbours of the rows in use, or of the inducing points."""
        if isinstance(self.plan, SparseInversePlan):
            return self.plan.geometry(self._problem.gp)
        problem = self._problem
        with torch.no_grad():
            prior = problem.approximation.prior(problem.gp, problem.x, plan=self.plan)
        assert isinstance(prior, NeighborInducingPrior)
        return prior.inner.geometry

    def refresh(self, number: int) -> bool:
        """Look at the neighbours again, if it is time.

        Parameters
        ----------
        number : int
            Steps taken.

        Returns
        -------
        bool
            Whether they are others now.
        """
        if self._period is None or number == 0 or number % self._period:
            return False
        plan = self._problem.approximation.refresh(self._problem.gp, self.plan)
        if plan is self.plan:
            return False
        self._adopt(plan)
        self.last_refresh = (self.last_refresh[0] + 1, number)
        return True

    def snapshot(self) -> dict[str, Tensor]:
        """What brings the neighbours back."""
        values = {f"{_FOUND}.{i}": value for i, value in enumerate(self._found)}
        return values | {_PLACE: torch.tensor(self.last_refresh)}

    def assign(self, values: dict[str, Tensor]) -> bool:
        """Inverse of :meth:`snapshot`.

        Parameters
        ----------
        values : dict of str to Tensor
            Other names are ignored.

        Returns
        -------
        bool
            Whether the neighbours are others now.
        """
        count, step = values[_PLACE].tolist()
        self.last_refresh = (count, step)
        found = [values[f"{_FOUND}.{i}"].to(p) for i, p in enumerate(self._parameters)]
        if all(torch.equal(a, b) for a, b in zip(found, self._found, strict=True)):
            return False
        today = [parameter.detach().clone() for parameter in self._parameters]
        self._set(found)
        plan = self.plan
        assert isinstance(plan, SparseInversePlan | NeighborInducingPlan)
        self._adopt(plan.anew())
        self._set(today)
        return True

    def _adopt(self, plan: Plan) -> None:
        self.plan = plan
        _ = self.geometry  # found now
        self._found = [parameter.detach().clone() for parameter in self._parameters]

    def _set(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, values, strict=True):
                parameter.copy_(value)
