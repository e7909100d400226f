"""Plans: the index structure of a data set, computed once and never differentiated.

Groups are independent draws of the process (series, subjects, images): rows of different groups
share hyperparameters and nothing else. Flat groups of unequal size are padded to a rectangle whose
padding rows repeat a real row and carry zero sites, which is exact for every prior.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["GroupIndex", "Plan"]


class IndexStructure:
    """Marks dataclasses that hold row numbers only: off the graph they are what they were on it."""


@dataclass(frozen=True, eq=False)
class GroupIndex:
    """Where every row of flat groups goes in a padded rectangle.

    Parameters
    ----------
    labels : Tensor of int64, shape [G]
        Group labels, sorted.
    rows : Tensor of int64, shape [G, T]
        Row number of every slot; padding repeats the first row of the group.
    observed : Tensor of bool, shape [G, T]
        False on padding.
    group : Tensor of int64, shape [N]
        Number of every row's group (position in ``labels``).
    slot : Tensor of int64, shape [N]
        Position of every row in its group.
    """

    labels: Tensor
    rows: Tensor
    observed: Tensor
    group: Tensor
    slot: Tensor

    @classmethod
    def build(cls, groups: Tensor) -> "GroupIndex":
        """Index flat group labels.

        Parameters
        ----------
        groups : Tensor of int, shape [N]
            A label per row, in any order.

        Returns
        -------
        GroupIndex
            Rows keep their order within a group.
        """
        if groups.dim() != 1 or not len(groups) or groups.dtype.is_floating_point:
            raise InputError(
                f"groups has shape {tuple(groups.shape)} and dtype {groups.dtype}; "
                "pass one integer label per row, shape [N]."
            )
        labels, group, counts = torch.unique(groups, return_inverse=True, return_counts=True)
        order = torch.argsort(group, stable=True)
        starts = torch.cumsum(counts, 0) - counts
        slot = torch.empty_like(group)
        slot[order] = torch.arange(len(group), device=group.device) - starts[group[order]]
        width = int(counts.max())
        rows = order[starts].unsqueeze(-1).repeat(1, width)
        rows[group, slot] = torch.arange(len(group), device=group.device)
        observed = torch.arange(width, device=group.device) < counts.unsqueeze(-1)
        return cls(labels, rows, observed, group, slot)

    def pad_inputs(self, x: Tensor, num_batch_dims: int) -> Tensor:
        """Gather inputs ``[N, D]`` into ``[G, 1 (per batch dim), T, D]``."""
        padded = x[self.rows]
        return padded.reshape(len(self.labels), *[1] * num_batch_dims, *padded.shape[1:])

    def pad_rows(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Scatter per-row values ``[*b, N]`` into ``[G, *b, T]``, padding with ``fill``."""
        gathered = values[..., self.rows].movedim(-2, 0)
        shape = (len(self.labels), *[1] * (values.dim() - 1), self.rows.shape[-1])
        padding = torch.full((), fill, dtype=values.dtype, device=values.device)
        return torch.where(self.observed.reshape(shape), gathered, padding)

    def flatten(self, padded: Tensor) -> Tensor:
        """Inverse of :meth:`pad_rows`: ``[G, *b, T]`` to ``[*b, N]``."""
        return padded.movedim(0, -2)[..., self.group, self.slot]

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sum per-row values ``[*b, N]`` within groups into ``[G, *b]``."""
        flat = torch.zeros(
            *values.shape[:-1], len(self.labels), dtype=values.dtype, device=values.device
        )
        return flat.index_add(-1, self.group, values).movedim(-1, 0)

    def locate(self, groups: Tensor) -> Tensor:
        """Group numbers of labels, refusing labels that were not there."""
        if groups.dim() != 1 or groups.dtype.is_floating_point:
            raise InputError(
                f"groups has shape {tuple(groups.shape)} and dtype {groups.dtype}; "
                "pass one integer label per row, shape [N]."
            )
        groups = groups.to(self.labels).contiguous()
        position = torch.searchsorted(self.labels, groups).clamp_max(len(self.labels) - 1)
        unknown = self.labels[position] != groups
        if bool(unknown.any()):
            raise InputError(
                f"Group {int(groups[unknown][0])} was not among the {len(self.labels)} groups that "
                "the posterior was conditioned on."
            )
        return position


@dataclass(frozen=True, eq=False)
class Plan:
    """Index structure of a data set.

    Parameters
    ----------
    num_rows : int
        Rows N that it was made for.
    groups : GroupIndex, optional
        Index of flat groups.
    observed : Tensor of bool, shape [*g, N], optional
        Of padded inputs: False on padding rows. These always carry zero sites; a prior whose basis
        are the rows themselves also leaves them out of densities.
    """

    num_rows: int
    groups: GroupIndex | None = None
    observed: Tensor | None = None

    @classmethod
    def build(cls, x: Tensor, groups: Tensor | None) -> "Plan":
        """Check inputs and index groups.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Data inputs.
        groups : Tensor of int, shape [N], optional
            Flat group labels.

        Returns
        -------
        Plan
            For these inputs.
        """
        if x.dim() < 2 or not x.dtype.is_floating_point:
            raise InputError(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}; pass floating-point inputs of "
                "shape [N, D] (x.unsqueeze(-1) for one input column)."
            )
        if groups is None:
            return cls(x.shape[-2])
        if x.dim() != 2:
            raise InputError(
                f"Flat groups need inputs of shape [N, D], not {tuple(x.shape)}; "
                "for inputs that are already batched leave groups out."
            )
        if groups.shape[:1] != x.shape[:1]:
            raise InputError(
                f"groups has shape {tuple(groups.shape)} for {x.shape[-2]} rows; pass one integer "
                "label per row, shape [N]."
            )
        return cls(x.shape[-2], GroupIndex.build(groups.to(x.device)))

    def check(self, x: Tensor) -> None:
        """Refuse inputs that the plan was not made for."""
        if x.dim() < 2 or x.shape[-2] != self.num_rows:
            raise InputError(
                f"The plan was made for {self.num_rows} rows and x has shape {tuple(x.shape)}; "
                "call plan(x) again."
            )
