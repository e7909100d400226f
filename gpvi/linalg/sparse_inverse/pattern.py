r"""Which entries a sparse inverse Cholesky factor has: every point's nearest earlier points.

Points come in an order, and point i conditions on a set of at most m earlier ones. A factor U on this
pattern is upper triangular; its column i has the entries of the set and a positive diagonal, so that
:math:`(UU^\top)^{-1}` is the covariance of a directed Gaussian model (Vecchia, 1988; Schäfer, Katzfuss &
Owhadi, 2021).

A factor is stored as a tensor ``columns`` of shape [*b, M, m + 1]: ``columns[..., i, k]`` is the entry in
row ``neighbors[i, k]`` of column i, and ``columns[..., i, m]`` its diagonal. Slots that a row does not use
hold zero.

References
----------
Vecchia, A. V. (1988). Estimation and model identification for continuous spatial processes. JRSS B.
Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
minimization. SIAM Journal on Scientific Computing.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["NeighborPattern"]


@dataclass(frozen=True, eq=False)
class NeighborPattern:
    """Earlier neighbours of every point of an ordered set.

    Parameters
    ----------
    neighbors : Tensor of int32, shape [M, m]
        Numbers of earlier points, ascending in every row, and -1 behind them where there are fewer.
    schedule : Tensor of int32, shape [M], optional
        An order in which neighbouring rows are near each other in memory, for loops over rows that do
        not depend on each other; the order of the points if left out.

    Raises
    ------
    InputError
        If the numbers are no earlier points in ascending order, or the schedule is no permutation.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1, -1], [0, -1], [0, 1]], dtype=torch.int32))
    >>> pattern.counts.tolist()
    [0, 1, 2]
    """

    neighbors: Tensor
    schedule: Tensor | None = None

    def __post_init__(self) -> None:
        index = self.neighbors
        if index.dim() != 2 or index.dtype != torch.int32:
            raise InputError(
                f"neighbors has shape {tuple(index.shape)} and dtype {index.dtype}; pass int32 numbers of "
                "shape [M, m]."
            )
        rows = torch.arange(len(index), dtype=torch.int32, device=index.device).unsqueeze(-1)
        used = index >= 0
        later, before = index[:, 1:], index[:, :-1]
        ordered = (later < 0) | ((before >= 0) & (later > before))
        if not bool(((index >= -1) & (index < rows) | ~used).all() and ordered.all()):
            bad = ~((index < rows).all(-1) & ordered.all(-1) & (index >= -1).all(-1))
            raise InputError(
                f"neighbors of row {int(bad.nonzero()[0])} are {index[bad][0].tolist()}; they must be "
                "numbers of earlier rows, ascending, with -1 behind them."
            )
        if self.schedule is not None:
            order = self.schedule
            if order.shape != index.shape[:1] or order.dtype != torch.int32:
                raise InputError(
                    f"schedule has shape {tuple(order.shape)} and dtype {order.dtype}; pass int32, one "
                    f"number for each of the {len(index)} rows."
                )
            if not torch.equal(order.sort().values, rows.squeeze(-1)):
                raise InputError("schedule is not a permutation of the row numbers.")

    @property
    def num_rows(self) -> int:
        """Number M of points."""
        return self.neighbors.shape[0]

    @property
    def num_neighbors(self) -> int:
        """The most neighbours m of a point."""
        return self.neighbors.shape[1]

    @cached_property
    def counts(self) -> Tensor:
        """How many neighbours every point has, int32 [M]."""
        return (self.neighbors >= 0).sum(-1, dtype=torch.int32)

    @cached_property
    def order(self) -> Tensor:
        """The schedule, or the order of the points, int32 [M]."""
        if self.schedule is not None:
            return self.schedule
        return torch.arange(self.num_rows, dtype=torch.int32, device=self.neighbors.device)

    def detach(self) -> "NeighborPattern":
        """The pattern itself: numbers have no gradient."""
        return self

    def to(self, device: torch.device | str) -> "NeighborPattern":
        """The pattern on another device.

        Parameters
        ----------
        device : torch.device or str
            Where.

        Returns
        -------
        NeighborPattern
            Itself if it is there already.
        """
        if self.neighbors.device == torch.device(device):
            return self
        schedule = None if self.schedule is None else self.schedule.to(device)
        return NeighborPattern(self.neighbors.to(device), schedule)

    def check(self, columns: Tensor) -> None:
        """Refuse columns that do not lie on this pattern.

        Parameters
        ----------
        columns : Tensor
            Should have shape [*b, M, m + 1].
        """
        expected = (self.num_rows, self.num_neighbors + 1)
        if columns.shape[-2:] != expected:
            raise InputError(
                f"columns have shape {tuple(columns.shape)}; the pattern has {expected[0]} rows of up to "
                f"{expected[1] - 1} neighbours: pass shape [*b, {expected[0]}, {expected[1]}]."
            )
