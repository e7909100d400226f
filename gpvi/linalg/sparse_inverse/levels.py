r"""Rows of a pattern in levels: what can be computed at once.

Solving :math:`U^\top x = b` takes the rows after their neighbours, and :math:`U x = b` as well as an
incomplete Cholesky factorisation take them after all rows that have them as neighbours. Rows whose turn
comes at the same time form a level; with a maximin ordering there are some log N of them times a constant,
so that each level is wide enough for tensor operations (Anderson & Saad, 1989).

References
----------
Anderson, E. & Saad, Y. (1989). Solving sparse triangular linear systems on parallel computers.
International Journal of High Speed Computing.
"""

import numpy as np
import torch
from torch import Tensor

from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["backward_levels", "forward_levels"]


def forward_levels(pattern: NeighborPattern) -> tuple[Tensor, ...]:
    """Row numbers by level, every row after its neighbours.

    Parameters
    ----------
    pattern : NeighborPattern
        Neighbours of every row.

    Returns
    -------
    tuple of Tensor of int64, shape [n]
        Levels in order; computed once per pattern.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0], [0], [2]], dtype=torch.int32))
    >>> [level.tolist() for level in forward_levels(pattern)]
    [[0], [1, 2], [3]]
    """
    return _levels(pattern)[0]


def backward_levels(pattern: NeighborPattern) -> tuple[Tensor, ...]:
    """Row numbers by level, every row after those that have it as a neighbour.

    Parameters
    ----------
    pattern : NeighborPattern
        Neighbours of every row.

    Returns
    -------
    tuple of Tensor of int64, shape [n]
        Levels in order; computed once per pattern.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0], [0], [2]], dtype=torch.int32))
    >>> [level.tolist() for level in backward_levels(pattern)]
    [[1, 3], [2], [0]]
    """
    return _levels(pattern)[1]


def _levels(pattern: NeighborPattern) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Both schedules, kept with the pattern as its other properties are."""
    kept = pattern.__dict__.get("_levels")
    if kept is not None:
        return kept
    device = pattern.neighbors.device
    M = pattern.num_rows
    index = pattern.neighbors.cpu().numpy()
    used = index >= 0
    counts = used.sum(-1)
    row = np.repeat(np.arange(M), counts)
    neighbor = index[used].astype(np.int64)
    by_neighbor = np.argsort(neighbor, kind="stable")
    dependents = np.bincount(neighbor, minlength=M)
    schedules = (
        _group(dependents, row[by_neighbor], counts),
        _group(counts, neighbor, dependents),
    )
    forward, backward = (
        tuple(torch.from_numpy(level).to(device) for level in levels) for levels in schedules
    )
    pattern.__dict__["_levels"] = (forward, backward)
    return forward, backward


def _group(lengths: np.ndarray, targets: np.ndarray, waiting: np.ndarray) -> list[np.ndarray]:
    """Levels of a graph whose node i has edges to ``lengths[i]`` successive targets; `waiting` counts
    the edges that lead to each node."""
    ends = np.cumsum(lengths)
    waiting = waiting.copy()
    level = np.flatnonzero(waiting == 0)
    levels = []
    while len(level):
        levels.append(level)
        sizes = lengths[level]
        # Positions of all edges of this level, one run after the other.
        offsets = np.repeat(ends[level] - np.cumsum(sizes), sizes)
        reached, edges = np.unique(targets[np.arange(sizes.sum()) + offsets], return_counts=True)
        waiting[reached] -= edges
        level = reached[waiting[reached] == 0]
    return levels
