r"""Orders of points: every location once, coarse to fine (maximin), and along a space-filling curve.

A sparse inverse Cholesky factor depends on the order of its points. In the maximin order every point is
as far as possible from all before it, so that early points cover the whole domain and the nearest earlier
neighbours of a point lie all around it (Guinness, 2018; Schäfer, Katzfuss & Owhadi, 2021). The curve is
no statistical choice: it makes loops over rows find neighbouring rows near each other in memory.

References
----------
Guinness, J. (2018). Permutation and grouping methods for sharpening Gaussian process approximations.
Technometrics.
Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
minimization. SIAM Journal on Scientific Computing.
Morton, G. M. (1966). A computer oriented geodetic data base and a new technique in file sequencing. IBM.
"""

from heapq import heapify, heappop, heapreplace
from typing import Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.sparse_inverse._points import (
    as_array,
    as_arrays,
    compiled_engine,
    squared_distances,
)

__all__ = ["maximin_order", "merge_duplicates", "spatial_order"]

# Distances that the exact maximin order may take: every pair of 24,000 points, or 1,000 a point, which
# low dimensions stay far below (80 a point in two columns, 330 in five, at N = 1e5).
_PAIRS, _PAIRS_PER_POINT = 300_000_000, 1_000

# Columns and bits of the space-filling curve: 63 bits in all.
_CURVE_COLUMNS, _CURVE_BITS, _MAX_BITS = 8, 63, 32


def merge_duplicates(x: Tensor) -> tuple[Tensor, Tensor]:
    """Number the distinct locations among rows.

    Rows are one location if all coordinates are equal; -0.0 equals 0.0. ``x[first]`` are the locations,
    and ``x[first][location]`` is x again.

    Parameters
    ----------
    x : Tensor, shape [N, D]
        One point in every row.

    Returns
    -------
    first : Tensor of int64, shape [M]
        The first row of every location, ascending.
    location : Tensor of int64, shape [N]
        The number of every row's location.

    Raises
    ------
    InputError
        If x is no floating-point matrix, is empty, or holds NaN or infinite coordinates.

    Examples
    --------
    >>> import torch
    >>> first, location = merge_duplicates(torch.tensor([[1.0], [0.0], [1.0], [-0.0]]))
    >>> first.tolist(), location.tolist()
    ([0, 1], [0, 1, 0, 1])
    """
    values = as_array(x, "x")
    order = np.lexsort(values.T)  # stable: rows of one location stay in order
    new = np.zeros(len(values), dtype=bool)
    new[0] = True
    for column in values.T:
        ordered = column[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.cumsum(new) - 1
    first = order[new]
    appearance = np.argsort(first)
    number = np.empty_like(appearance)
    number[appearance] = np.arange(len(first))
    return _tensor(first[appearance], x), _tensor(number[group], x)


def maximin_order(x: Tensor, start: int | None = None) -> Tensor:
    r"""Order points so that each is as far as possible from all before it.

    The first point is the one nearest to the centroid, or the one asked for; then
    :math:`i_{k+1} = \arg\max_j \min_{l \le k} \lVert x_j - x_{i_l} \rVert`. Ties go to the lower row. Points
    that coincide with an earlier one come last, by row number: merge them before.

    The order is exact as long as that takes at most 3e8 + 1000 M distances, of the order of M log M in low
    dimensions. Above about ten columns the distances of all pairs are needed, and from some 20,000 points
    on the order may change over to a fixed random one after the first thousands of points; random orders
    lose little to maximin there.

    Parameters
    ----------
    x : Tensor, shape [M, D]
        One point in every row, in units in which distances mean something: divide by the lengthscales.
    start : int, optional
        Row of the first point.

    Returns
    -------
    Tensor of int64, shape [M]
        Row numbers in the new order: ``x[order]`` is the ordered set.

    Raises
    ------
    InputError
        If x is no floating-point matrix, is empty, or holds NaN or infinite coordinates, or there is no row
        `start`.

    References
    ----------
    Guinness, J. (2018). Permutation and grouping methods for sharpening Gaussian process
    approximations. Technometrics.

    Examples
    --------
    >>> import torch
    >>> maximin_order(torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])).tolist()
    [2, 0, 4, 1, 3]
    """
    (values,) = as_arrays({"x": x})
    M = len(values)
    if start is not None and not 0 <= start < M:
        raise InputError(f"start is {start}; rows are 0 to {M - 1}.")
    first = int(squared_distances(values, values.mean(axis=0)).argmin()) if start is None else start
    order, distance = _ordering_engine().maximin(values, first, _PAIRS + _PAIRS_PER_POINT * M)
    rest = np.ones(M, dtype=bool)
    rest[order] = False
    apart = np.flatnonzero(rest & (distance > 0.0))
    np.random.default_rng(0).shuffle(apart)
    return _tensor(np.concatenate((order, apart, np.flatnonzero(rest & (distance <= 0.0)))), x)


def spatial_order(x: Tensor) -> Tensor:
    """Order points along a Z-shaped space-filling curve.

    The bits of the coordinates are interleaved, those of the eight widest columns at most, all on the
    scale of the widest.

    Parameters
    ----------
    x : Tensor, shape [M, D]
        One point in every row.

    Returns
    -------
    Tensor of int32, shape [M]
        Row numbers along the curve; rows in one cell of its finest grid stay in order.

    Raises
    ------
    InputError
        If x is no floating-point matrix, is empty, or holds NaN or infinite coordinates.

    References
    ----------
    Morton, G. M. (1966). A computer oriented geodetic data base and a new technique in file
    sequencing. IBM.

    Examples
    --------
    >>> import torch
    >>> spatial_order(torch.tensor([[0.0, 0.0], [9.0, 9.0], [1.0, 0.0], [8.0, 9.0]])).tolist()
    [0, 2, 3, 1]
    """
    (values,) = as_arrays({"x": x})
    return _tensor(curve_order(values), x)


def curve_order(values: np.ndarray) -> np.ndarray:
    """The order of :func:`spatial_order` as an int32 array."""
    low, spread = values.min(axis=0), np.ptp(values, axis=0)
    columns = np.argsort(-spread, kind="stable")[:_CURVE_COLUMNS]
    columns = columns[spread[columns] > 0.0]
    if len(columns) == 0:
        return np.arange(len(values), dtype=np.int32)
    C, bits = len(columns), min(_CURVE_BITS // len(columns), _MAX_BITS)
    bytes_ = np.arange(256, dtype=np.uint64)
    # Every byte with C - 1 zeros between its bits.
    spaced = np.zeros(256, dtype=np.uint64)
    for b in range(8):
        spaced |= ((bytes_ >> np.uint64(b)) & np.uint64(1)) << np.uint64(b * C)
    code = np.zeros(len(values), dtype=np.uint64)
    factor = (2.0**bits - 1.0) / spread[columns[0]]
    for c, column in enumerate(columns):
        cell = ((values[:, column] - low[column]) * factor).astype(np.uint64)
        for shift in range(0, bits, 8):
            byte = (cell >> np.uint64(shift)) & np.uint64(255)
            code |= spaced[byte] << np.uint64(shift * C + (C - 1 - c))
    return np.argsort(code, kind="stable").astype(np.int32)


class OrderingEngine(Protocol):
    """How a maximin order is found."""

    def maximin(self, x: np.ndarray, first: int, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """Selected rows in order, until all others coincide with one of them or the budget of
        distances is spent, and every row's squared distance to them, below zero for their own."""


class SciPyEngine:
    """Without Numba: SciPy's tree finds whom a new point may concern, a heap the next point.

    Distances to the selection only fall, so that keys in the heap are upper bounds: a key is renewed when
    it comes to the top.
    """

    def maximin(self, x: np.ndarray, first: int, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`OrderingEngine`."""
        tree, distance = cKDTree(x), squared_distances(x, x[first])
        distance[first] = -1.0
        order = [first]
        heap = [(-value, row) for row, value in enumerate(distance.tolist())]
        heapify(heap)
        while budget >= 0:
            key, row = heap[0]
            if -key > distance[row]:
                heapreplace(heap, (-float(distance[row]), row))
                continue
            if -key <= 0.0:
                break
            heappop(heap)
            order.append(row)
            # A little more than the radius: the tree rounds its own distances.
            near = np.asarray(tree.query_ball_point(x[row], (-key) ** 0.5 * (1.0 + 1e-9)))
            distance[near] = np.minimum(distance[near], squared_distances(x[near], x[row]))
            distance[row] = -1.0
            budget -= len(near)
        return np.array(order), distance


def _ordering_engine() -> OrderingEngine:
    compiled = compiled_engine("_ordering_cpu", "maximin ordering")
    return SciPyEngine() if compiled is None else compiled


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)
