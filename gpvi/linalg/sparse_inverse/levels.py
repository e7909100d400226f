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

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpvi.linalg.sparse_inverse._points import compiled_engine
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["backward_levels", "forward_levels", "order_by_level"]

_NONE = np.iinfo(np.int32).max


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


def order_by_level(pattern: NeighborPattern) -> tuple[Tensor, NeighborPattern]:
    """Renumber points so that loops over them find what they need in the cache.

    Every order in which points come after their neighbours makes the same factor. This one goes level by
    level and follows the schedule within each: points that are visited in turn lie near each other, and so
    do their neighbours, in each of the levels before.

    Parameters
    ----------
    pattern : NeighborPattern
        Neighbours of every point, and a schedule along which near points follow each other.

    Returns
    -------
    order : Tensor of int64, shape [M]
        Old number of the point at every new one.
    pattern : NeighborPattern
        The same neighbours and schedule by new numbers.

    Examples
    --------
    >>> import torch
    >>> neighbors = torch.tensor([[-1, -1], [0, -1], [0, 1], [1, -1], [0, -1]], dtype=torch.int32)
    >>> order, pattern = order_by_level(NeighborPattern(neighbors))
    >>> order.tolist(), pattern.neighbors.tolist()
    ([0, 1, 4, 2, 3], [[-1, -1], [0, -1], [0, -1], [0, 1], [1, -1]])
    """
    index, schedule = pattern.neighbors.cpu().numpy(), pattern.order.cpu().numpy()
    engine = _engine()
    level = engine.level_numbers(index)
    # A stable sort keeps the schedule within a level.
    order = schedule[np.argsort(level[schedule], kind="stable")].astype(np.int64)
    number = np.empty(len(order), dtype=np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    neighbors = torch.from_numpy(engine.renumbered(index, order, number))
    device = pattern.neighbors.device
    renumbered = NeighborPattern(
        neighbors.to(device), torch.from_numpy(number[schedule]).to(device)
    )
    return torch.from_numpy(order).to(device), renumbered


class LevelEngine(Protocol):
    """How levels are found and neighbours renumbered."""

    def level_numbers(self, neighbors: np.ndarray) -> np.ndarray:
        """Level of every row, int64 [M]."""

    def renumbered(
        self, neighbors: np.ndarray, order: np.ndarray, number: np.ndarray
    ) -> np.ndarray:
        """Neighbours of the rows of an order by their new numbers, ascending."""


class NumPyEngine:
    """Without Numba: all rows of a level at once."""

    def level_numbers(self, neighbors: np.ndarray) -> np.ndarray:
        """See :class:`LevelEngine`."""
        out = np.empty(len(neighbors), dtype=np.int64)
        for number, level in enumerate(_schedules(neighbors)[0]):
            out[level] = number
        return out

    def renumbered(
        self, neighbors: np.ndarray, order: np.ndarray, number: np.ndarray
    ) -> np.ndarray:
        """See :class:`LevelEngine`."""
        old = neighbors[order]
        new = np.sort(np.where(old >= 0, number[old], _NONE), axis=-1)
        return np.where(new == _NONE, -1, new).astype(np.int32)


def _engine() -> LevelEngine:
    compiled = compiled_engine("_levels_cpu", "renumbering of neighbours", "NumPy")
    return NumPyEngine() if compiled is None else compiled


def _levels(pattern: NeighborPattern) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Both schedules, kept with the pattern as its other properties are."""
    kept = pattern.__dict__.get("_levels")
    if kept is not None:
        return kept
    device = pattern.neighbors.device
    forward, backward = (
        tuple(torch.from_numpy(level).to(device) for level in levels)
        for levels in _schedules(pattern.neighbors.cpu().numpy())
    )
    pattern.__dict__["_levels"] = (forward, backward)
    return forward, backward


def _schedules(index: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Forward and backward levels of a table of neighbours."""
    M = len(index)
    used = index >= 0
    counts = used.sum(-1)
    row = np.repeat(np.arange(M), counts)
    neighbor = index[used].astype(np.int64)
    by_neighbor = np.argsort(neighbor, kind="stable")
    dependents = np.bincount(neighbor, minlength=M)
    return (
        _group(dependents, row[by_neighbor], counts),
        _group(counts, neighbor, dependents),
    )


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
