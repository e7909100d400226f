r"""Nearest neighbours: among the earlier points of an ordered set, or among all points of another.

Point i of a sparse inverse Cholesky factor conditions on the nearest of the points 0, ..., i - 1 (Vecchia,
1988). One k-d tree over all points serves every query: a node that knows its earliest point is skipped as
soon as that is later than the query (Bentley, 1975, for the tree). The search is exact in any dimension;
it looks at some fifty distances a point in two columns, and at most other points above about ten.

References
----------
Vecchia, A. V. (1988). Estimation and model identification for continuous spatial processes. JRSS B.
Bentley, J. L. (1975). Multidimensional binary search trees used for associative searching.
Communications of the ACM.
"""

from typing import Any, Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.sparse_inverse._points import (
    as_array,
    check_columns,
    check_first,
    check_num_neighbors,
    compiled_engine,
    largest,
    rescaled,
    scale_exponent,
)
from gpvi.linalg.sparse_inverse.ordering import curve_order, spatial_order
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["NeighborSearch", "earlier_neighbors", "nearest_points", "neighbor_pattern"]

# Entries of one answer of SciPy's tree: 64 MB of distances and numbers.
_MAX_ENTRIES = 1 << 22

_NONE = np.iinfo(np.int32).max


class NeighborSearch:
    """Points with the tree that finds the nearest of them, for more than one question.

    Parameters
    ----------
    points : Tensor, shape [M, D]
        Points in their order, in units in which distances mean something.

    Raises
    ------
    InputError
        If points is no floating-point matrix, is empty, or holds NaN or infinite coordinates.

    Examples
    --------
    >>> import torch
    >>> search = NeighborSearch(torch.tensor([[0.0], [4.0], [1.0]]))
    >>> search.nearest(torch.tensor([[3.0]]), 2).tolist(), search.earlier(2).tolist()
    ([[1, 2]], [[-1, -1], [0, -1], [0, 1]])
    """

    def __init__(self, points: Tensor) -> None:
        self._given = as_array(points, "points")
        self._largest = largest(self._given)
        self._exponent = scale_exponent(self._largest)
        self._x = rescaled(self._given, self._exponent)
        self._engine = _neighbor_engine()
        self._tree = self._engine.tree(self._x)
        self._number: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._x)

    def renumbered(self, number: Tensor) -> "NeighborSearch":
        """The same points under other numbers, by which ties are not broken anew.

        Parameters
        ----------
        number : Tensor of int, shape [M]
            New number of every point. Only :meth:`nearest` goes by it.

        Returns
        -------
        NeighborSearch
            Shares the tree.

        Raises
        ------
        InputError
            If there is not one number per point.
        """
        if number.shape != (len(self),):
            raise InputError(
                f"number has shape {tuple(number.shape)}; pass one for each of the {len(self)} points."
            )
        search = object.__new__(NeighborSearch)
        vars(search).update(vars(self))
        search._number = number.to("cpu", torch.int32).numpy()
        return search

    def earlier(self, num_neighbors: int, first: int = 0) -> Tensor:
        """Find the nearest earlier points of every point: see :func:`earlier_neighbors`.

        Parameters
        ----------
        num_neighbors : int
            The most neighbours m of a point.
        first : int
            The first point to find neighbours for.

        Returns
        -------
        Tensor of int32, shape [M - first, m]
            Numbers in the order of the points as they were given, on the CPU.
        """
        check_num_neighbors(num_neighbors)
        check_first(first, len(self))
        return torch.from_numpy(self._engine.earlier(self._tree, self._x, num_neighbors, first))

    def nearest(self, queries: Tensor, num_neighbors: int) -> Tensor:
        """Find the nearest points of every query: see :func:`nearest_points`.

        Parameters
        ----------
        queries : Tensor, shape [Q, D]
            Where to look for neighbours.
        num_neighbors : int
            The most neighbours m of a query.

        Returns
        -------
        Tensor of int32, shape [Q, m]
            Numbers of points, ascending, on the device of the queries.

        Raises
        ------
        InputError
            As for :func:`nearest_points`.
        """
        check_num_neighbors(num_neighbors)
        z = as_array(queries, "queries")
        check_columns({"points": self._given, "queries": z})
        # Queries far beyond the points put both on another scale than the tree's.
        exponent = scale_exponent(self._largest, largest(z))
        tree, z = self._tree, rescaled(z, exponent)
        if exponent != self._exponent:
            tree = self._engine.tree(rescaled(self._given, exponent))
        found = self._engine.nearest(tree, z, num_neighbors, curve_order(z))
        if self._number is not None:
            moved = np.where(found >= 0, self._number[found], _NONE)
            moved.sort(axis=1)
            found = np.where(moved == _NONE, -1, moved).astype(np.int32)
        return torch.from_numpy(found).to(queries.device)


def earlier_neighbors(points: Tensor, num_neighbors: int, first: int = 0) -> Tensor:
    r"""Find the nearest earlier points of every point of an ordered set.

    Row i - first holds the :math:`m` numbers j < i of smallest :math:`\lVert x_i - x_j \rVert`, ascending,
    with -1 behind them where there are fewer. Ties go to the lower number.

    The time grows like M log M in few columns and like M^2 where all of more than about ten columns
    matter.

    Parameters
    ----------
    points : Tensor, shape [M, D]
        Points in their order, in units in which distances mean something.
    num_neighbors : int
        The most neighbours m of a point.
    first : int
        The first point to find neighbours for: with new points appended behind old ones, the number of
        the old ones.

    Returns
    -------
    Tensor of int32, shape [M - first, m]
        Numbers of earlier points.

    Raises
    ------
    InputError
        If points is no floating-point matrix, is empty, or holds NaN or infinite coordinates, if
        num_neighbors is not positive, or first beyond the points.

    Examples
    --------
    >>> import torch
    >>> earlier_neighbors(torch.tensor([[0.0], [4.0], [1.0], [3.0]]), 2).tolist()
    [[-1, -1], [0, -1], [0, 1], [1, 2]]
    """
    check_num_neighbors(num_neighbors)
    return NeighborSearch(points).earlier(num_neighbors, first).to(points.device)


def nearest_points(points: Tensor, queries: Tensor, num_neighbors: int) -> Tensor:
    r"""Find the nearest points of every query.

    Row q holds the :math:`m` numbers j of smallest :math:`\lVert z_q - x_j \rVert`, ascending, with -1
    behind them where there are fewer. Ties go to the lower number.

    Parameters
    ----------
    points : Tensor, shape [M, D]
        Points to choose from.
    queries : Tensor, shape [Q, D]
        Where to look for neighbours.
    num_neighbors : int
        The most neighbours m of a query.

    Returns
    -------
    Tensor of int32, shape [Q, m]
        Numbers of points.

    Raises
    ------
    InputError
        If points or queries are no floating-point matrix of as many columns, are empty, or hold NaN or
        infinite coordinates, or if num_neighbors is not positive.

    Examples
    --------
    >>> import torch
    >>> nearest_points(torch.tensor([[0.0], [4.0], [1.0]]), torch.tensor([[3.0], [-1.0]]), 2).tolist()
    [[1, 2], [0, 2]]
    """
    return NeighborSearch(points).nearest(queries, num_neighbors)


def neighbor_pattern(points: Tensor, num_neighbors: int) -> NeighborPattern:
    """The pattern of nearest earlier neighbours, with rows scheduled along a space-filling curve.

    Parameters
    ----------
    points : Tensor, shape [M, D]
        Points in their order, in units in which distances mean something.
    num_neighbors : int
        The most neighbours m of a point.

    Returns
    -------
    NeighborPattern
        Neighbours of all points, on their device.

    Raises
    ------
    InputError
        If points is no floating-point matrix, is empty, or holds NaN or infinite coordinates, or if
        num_neighbors is not positive.

    Examples
    --------
    >>> import torch
    >>> pattern = neighbor_pattern(torch.tensor([[0.0], [4.0], [1.0], [3.0]]), 2)
    >>> pattern.neighbors[-1].tolist(), pattern.order.tolist()
    ([1, 2], [0, 2, 3, 1])
    """
    return NeighborPattern(earlier_neighbors(points, num_neighbors), spatial_order(points))


class NeighborEngine(Protocol):
    """How neighbours are found: numbers ascending, -1 behind them."""

    def tree(self, x: np.ndarray) -> Any:
        """What the other methods search in."""

    def earlier(self, tree: Any, x: np.ndarray, num_neighbors: int, first: int) -> np.ndarray:
        """Nearest earlier rows of every row from `first` on, of the rows that the tree is over."""

    def nearest(
        self, tree: Any, queries: np.ndarray, num_neighbors: int, schedule: np.ndarray
    ) -> np.ndarray:
        """Nearest rows of a tree for every query, which may be visited by schedule."""


class SciPyEngine:
    """Without Numba: SciPy's tree over blocks that double, asked for more until enough are earlier.

    In a block of twice as many points as come before it, at least half of the tree is earlier than any
    query, so that a little over twice the neighbours nearly always suffice.
    """

    def tree(self, x: np.ndarray) -> cKDTree:
        """See :class:`NeighborEngine`."""
        return cKDTree(x)

    def earlier(self, tree: cKDTree, x: np.ndarray, num_neighbors: int, first: int) -> np.ndarray:
        """See :class:`NeighborEngine`."""
        out = np.empty((len(x) - first, num_neighbors), dtype=np.int32)
        begin = first
        while begin < len(x):
            end = min(len(x), max(2 * begin, 8 * num_neighbors))
            part = tree if end == len(x) else cKDTree(x[:end])
            rows, k = np.arange(begin, end), 2 * num_neighbors + 8
            while len(rows):
                k = min(k, end)
                short = [
                    self._ask(part, x, some, k, out, first)
                    for some in np.array_split(rows, 1 + len(rows) * k // _MAX_ENTRIES)
                ]
                rows, k = np.concatenate(short), 2 * k
            begin = end
        return out

    def nearest(
        self, tree: cKDTree, queries: np.ndarray, num_neighbors: int, schedule: np.ndarray
    ) -> np.ndarray:
        """See :class:`NeighborEngine`."""
        out = np.full((len(queries), num_neighbors), -1, dtype=np.int32)
        k = min(num_neighbors, tree.n)
        for rows in np.array_split(schedule, 1 + len(queries) * k // _MAX_ENTRIES):
            found = tree.query(queries[rows], np.arange(1, k + 1))[1]
            out[rows, :k] = np.sort(found, axis=1)
        return out

    @staticmethod
    def _ask(
        tree: cKDTree, x: np.ndarray, rows: np.ndarray, k: int, out: np.ndarray, first: int
    ) -> np.ndarray:
        """Fill in the rows that find enough earlier points among the k nearest; return the others."""
        found = tree.query(x[rows], np.arange(1, k + 1))[1]
        earlier = found < rows[:, None]
        m = out.shape[1]
        full = (earlier.sum(axis=1) >= np.minimum(m, rows)) | (k == tree.n)
        found, earlier = found[full], earlier[full]
        kept = np.sort(np.where(earlier & (earlier.cumsum(axis=1) <= m), found, _NONE), axis=1)[
            :, :m
        ]
        filled = out[rows[full] - first]
        filled[:] = -1
        filled[:, : kept.shape[1]] = np.where(kept == _NONE, -1, kept)
        out[rows[full] - first] = filled
        return rows[~full]


def _neighbor_engine() -> NeighborEngine:
    compiled = compiled_engine("_neighbors_cpu", "neighbour search")
    return SciPyEngine() if compiled is None else compiled
