"""What :class:`NeighborInducing` finds once for many priors: an order, and who is near whom."""

from dataclasses import dataclass, field

from torch import Tensor

from gpvi.approximations._neighbor_inducing_rows import NeighborRows
from gpvi.approximations.neighbor_geometry import NeighborGeometry
from gpvi.approximations.plan import Plan

__all__ = ["NeighborInducingPlan"]


@dataclass(frozen=True, eq=False)
class NeighborInducingPlan(Plan):
    """Order of the inducing points and nearest ones of every row, found when the first prior asks.

    Parameters
    ----------
    num_rows : int
        Rows N that it was made for.
    groups : GroupIndex, optional
        Index of flat groups.
    observed : Tensor of bool, shape [*g, N], optional
        Of padded inputs.
    """

    _geometry: list[NeighborGeometry] = field(default_factory=list, init=False, repr=False)
    _rows: list[tuple[NeighborRows, Tensor]] = field(default_factory=list, init=False, repr=False)
    # Inducing inputs that stand still (them, version, copy): a copy of all takes longer than a step on few.
    _points: list[tuple[Tensor, int, Tensor]] = field(default_factory=list, init=False, repr=False)

    def at(self, x: Tensor) -> "NeighborInducingPlan":
        """The plan of other rows, a minibatch say, with the same order of the inducing points.

        Parameters
        ----------
        x : Tensor, shape [*g, B, D]
            Inputs.

        Returns
        -------
        NeighborInducingPlan
            Shares what has been found, or will be, of the inducing points.
        """
        plan = NeighborInducingPlan(x.shape[-2])
        # One list for both: whoever asks first finds the order for the other.
        object.__setattr__(plan, "_geometry", self._geometry)
        object.__setattr__(plan, "_points", self._points)
        return plan

    def anew(self) -> "NeighborInducingPlan":
        """The same plan with nothing found yet."""
        return NeighborInducingPlan(self.num_rows, self.groups, self.observed)

    def held(self, geometry: NeighborGeometry) -> "NeighborInducingPlan":
        """The same plan with a given order of the inducing points and given neighbours among them.

        Parameters
        ----------
        geometry : NeighborGeometry
            Of the inducing inputs.

        Returns
        -------
        NeighborInducingPlan
            Which asks no kernel for these any more.
        """
        plan = self.anew()
        plan._geometry.append(geometry)
        return plan
