"""Ordered distinct locations of a data set and the earlier neighbours of each.

Rows at one location share one value of the function, so the basis of a sparse inverse Cholesky prior are
the distinct locations; the sites of such rows add up. The order decides which neighbours are earlier, and
distances are measured in lengthscales, or by the correlation itself, both at the hyperparameters of the
moment: they are numbers, frozen until they are made anew.

References
----------
Guinness, J. (2018). Permutation and grouping methods for sharpening Gaussian process approximations.
Technometrics.
Kang, M. & Katzfuss, M. (2023). Correlation-based sparse inverse Cholesky factorization for fast Gaussian
process inference. Statistics and Computing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import NamedTuple

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpvi.approximations._lazy import on_graph
from gpvi.approximations._left_over import LeftOverProcess, pair_covariance
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.plan import IndexStructure
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import column_lengthscales
from gpvi.linalg import (
    NeighborPattern,
    NeighborSearch,
    correlation_neighbors,
    maximin_order,
    merge_duplicates,
    order_by_level,
    spatial_order,
)

__all__ = ["GeometryOptions", "NeighborGeometry"]

# Orders of the locations.
_ORDERINGS = ("maximin", "random")

# How near two locations are: by their distance in lengthscales, or by their correlation.
_DISTANCES = ("euclidean", "correlation")

# The most neighbours: blocks of so many are factorised for every location.
_MOST = 1_000


@dataclass(frozen=True)
class GeometryOptions:
    """How locations are ordered and neighbours chosen.

    Parameters
    ----------
    num_neighbors : int
        The most earlier neighbours m of a location.
    num_prediction_neighbors : int
        The most neighbours of a new input.
    ordering : {"maximin", "random"}
        Order of the locations.
    neighbors : {"euclidean", "correlation"}
        Distance by which neighbours are nearest.
    seed : int
        Of the random order, or of the first location of maximin ones (0: the one nearest to the centroid).

    Raises
    ------
    InputError
        For unknown names and numbers out of range.
    """

    num_neighbors: int
    num_prediction_neighbors: int
    ordering: str
    neighbors: str
    seed: int

    def __post_init__(self) -> None:
        seed = self.seed
        for name in ("num_neighbors", "num_prediction_neighbors"):
            number = getattr(self, name)
            if (
                isinstance(number, bool)
                or not isinstance(number, Integral)
                or not 1 <= int(number) <= _MOST
            ):
                raise InputError(
                    f"{name} is {number!r}; it must be an integer from 1 to {_MOST}; time "
                    "grows with its cube."
                )
        if isinstance(seed, bool) or not isinstance(seed, Integral) or int(seed) < 0:
            raise InputError(f"seed is {seed!r}; it must be an integer of at least 0.")
        for name, value, known in (
            ("ordering", self.ordering, _ORDERINGS),
            ("neighbors", self.neighbors, _DISTANCES),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")


@dataclass(frozen=True, eq=False)
class NeighborGeometry(IndexStructure):
    """Places of rows among ordered locations, and the neighbours of every place.

    For P data sets of T rows each, brought to a common number M of locations by padding places, which
    repeat a location, condition on nothing and are conditioned on by nothing.

    Parameters
    ----------
    first : Tensor of int64, shape [P, M]
        The row that stands for the location at every place of the order.
    place : Tensor of int64, shape [P, T]
        Place of every row's location.
    rank : Tensor of int64, shape [P, M]
        Place of every location, numbered in the order in which they appear among the rows.
    real : Tensor of bool, shape [P, M]
        False on padding, by place.
    neighbors : Tensor of int32, shape [P, M, m]
        Earlier neighbours of every place, -1 behind them.
    schedule : Tensor of int32, shape [P, M]
        Places in an order that keeps near ones together.
    scale : Tensor, shape [D]
        Lengthscales that distances were measured in; infinite for columns that were left out.
    """

    first: Tensor
    place: Tensor
    rank: Tensor
    real: Tensor
    neighbors: Tensor
    schedule: Tensor
    scale: Tensor

    @property
    def num_locations(self) -> int:
        """Places M, padding included."""
        return self.first.shape[-1]

    @cached_property
    def patterns(self) -> tuple[NeighborPattern, ...]:
        """The pattern of every data set."""
        with on_graph():
            pairs = zip(self.neighbors, self.schedule, strict=True)
            return tuple(NeighborPattern(index, order) for index, order in pairs)

    @cached_property
    def location_at(self) -> Tensor:
        """Number of the location at every place, int64 [P, M]: the inverse of ``rank``."""
        with on_graph():
            return torch.argsort(self.rank, dim=-1)

    @cached_property
    def copies(self) -> Tensor:
        """Rows at every place, shape [P, M], in double precision."""
        with on_graph():
            ones = torch.ones(self.place.shape, dtype=torch.float64, device=self.place.device)
            total = torch.zeros(self.first.shape, dtype=torch.float64, device=self.place.device)
            return total.scatter_add(-1, self.place, ones)

    @cached_property
    def _searches(self) -> dict[int, NeighborSearch]:
        return {}

    def search(self, entry: int, known: Callable[[], Tensor]) -> NeighborSearch:
        """What finds the nearest locations of a data set; kept for the next question.

        Parameters
        ----------
        entry : int
            Number of the data set.
        known : callable
            Gives its locations in their order, shape [K, D], padding left out; asked at first only.

        Returns
        -------
        NeighborSearch
            Numbers are places.
        """
        kept = self._searches
        if entry not in kept:
            kept[entry] = NeighborSearch(self.scaled(known()))
        return kept[entry]

    def scaled(self, x: Tensor) -> Tensor:
        """Inputs in the units in which neighbours are near.

        Parameters
        ----------
        x : Tensor, shape [Q, D]
            Inputs.

        Returns
        -------
        Tensor, shape [Q, D_used]
            In lengthscales, off the graph, in double precision.
        """
        return _in_lengthscales(x, self.scale)

    @classmethod
    def build(
        cls, gp: GaussianProcessLike, x: Tensor, options: GeometryOptions
    ) -> "NeighborGeometry":
        """Order the locations of data sets and find neighbours at today's hyperparameters.

        Parameters
        ----------
        gp : GaussianProcessLike
            Its kernel measures distances.
        x : Tensor, shape [P, T, D]
            Inputs, off the graph.
        options : GeometryOptions
            Order, distance and number of neighbours.

        Returns
        -------
        NeighborGeometry
            On the device of x.

        Raises
        ------
        InputError
            For inputs that are not finite, and distances in lengthscales without any lengthscale.
        """
        if not bool(torch.isfinite(x).all()):
            raise InputError(
                f"x holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite; drop these rows."
            )
        scale = distance_scale(gp, x.shape[-1], options.neighbors)
        sets = [_one_set(gp, rows, scale, options) for rows in x]
        most = max(len(part.first) for part in sets)
        width = max(part.neighbors.shape[-1] for part in sets)
        padded = [_pad(part, most, width) for part in sets]
        first, place, rank, neighbors, schedule, real = (
            torch.stack(parts) for parts in zip(*padded, strict=True)
        )
        geometry = cls(first, place, rank, real, neighbors, schedule, scale)
        geometry._searches.update({entry: part.search for entry, part in enumerate(sets)})
        return geometry


def kernel_of(gp: GaussianProcessLike) -> Kernel:
    """The kernel of a process, which neighbours cannot do without."""
    kernel = getattr(gp, "kernel", None)
    if not isinstance(kernel, Kernel):
        raise UnsupportedError(
            f"{type(gp).__name__} has no kernel attribute, and neighbours are chosen by the kernel; pass a "
            "GaussianProcess."
        )
    return kernel


def distance_scale(gp: GaussianProcessLike, num_features: int, neighbors: str) -> Tensor:
    """Lengthscale of every column, infinite where the kernel sees none of its own.

    Parameters
    ----------
    gp : GaussianProcessLike
        With a kernel.
    num_features : int
        Columns D.
    neighbors : {"euclidean", "correlation"}
        With "correlation" a kernel without any lengthscale is fine: order is then by plain distance.

    Returns
    -------
    Tensor, shape [D]
        In double precision, on the CPU.
    """
    kernel = kernel_of(gp)
    scale = column_lengthscales(kernel, num_features)
    if bool(torch.isinf(scale).all()):
        if neighbors == "euclidean":
            raise InputError(
                f"neighbors='euclidean' measures distances in lengthscales, and this kernel "
                f"({type(kernel).__name__}) has none; use SparseInverseCholesky(neighbors='correlation')."
            )
        return torch.ones_like(scale)
    return scale


def correlation_of(gp: GaussianProcessLike, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Correlations of pairs of rows of x, averaged (in size) over the batch of the process."""
    kernel = kernel_of(gp)
    variance = gp.variance(x)
    none = ~(variance > 0.0)
    if bool(none.any()):
        row = none.reshape(-1, len(x)).any(0)
        raise InputError(
            f"The prior variance is zero at {int(row.sum())} of {len(x)} locations, for instance at "
            f"{x[row][0].tolist()}: such values have no correlations. Leave these rows out, or add a "
            "constant kernel."
        )
    deviation = variance.sqrt()
    left_over = gp.pairs(x) if isinstance(gp, LeftOverProcess) else None

    def correlation(first: Tensor, second: Tensor) -> Tensor:
        if left_over is not None:
            covariance = left_over(first, second)
        else:
            covariance = pair_covariance(kernel, x[first], x[second])
        size = (covariance / (deviation[..., first] * deviation[..., second])).abs()
        return size.reshape(-1, size.shape[-1]).mean(0)

    return correlation


class _OneSet(NamedTuple):
    """First rows, places, ranks, neighbours and schedule of one data set, and its search."""

    first: Tensor
    place: Tensor
    rank: Tensor
    neighbors: Tensor
    schedule: Tensor
    search: NeighborSearch


def _one_set(
    gp: GaussianProcessLike, x: Tensor, scale: Tensor, options: GeometryOptions
) -> _OneSet:
    """Order the locations of one data set [T, D] and find their neighbours."""
    first, location = merge_duplicates(x)
    distinct = x[first]
    scaled = _in_lengthscales(distinct, scale)
    order = _order(scaled, options).long()
    points = scaled[order]
    search = NeighborSearch(points)
    number = min(options.num_neighbors, len(order) - 1)
    if number == 0:
        neighbors = torch.empty(len(order), 0, dtype=torch.int32, device=x.device)
    elif options.neighbors == "euclidean":
        neighbors = search.earlier(number).to(x.device)
    else:
        correlation = correlation_of(gp, distinct[order])
        with torch.no_grad():
            neighbors = correlation_neighbors(correlation, points, number)
    by_level, pattern = order_by_level(NeighborPattern(neighbors, spatial_order(points)))
    search = search.renumbered(torch.argsort(by_level))
    order = order[by_level]
    rank = torch.argsort(order)
    return _OneSet(first[order], rank[location], rank, pattern.neighbors, pattern.order, search)


def _in_lengthscales(x: Tensor, scale: Tensor) -> Tensor:
    """Columns that have a lengthscale, in units of it."""
    scale = scale.to(x.device)
    return (x.detach().double() / scale)[:, torch.isfinite(scale)]


def _order(points: Tensor, options: GeometryOptions) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(options.seed)
    if options.ordering == "random":
        order = torch.randperm(len(points), generator=generator, device="cpu")
        return order.to(points.device)
    if options.seed == 0:
        return maximin_order(points)
    start = torch.randint(len(points), (), generator=generator, device="cpu")
    return maximin_order(points, start=int(start))


def _pad(
    part: _OneSet, most: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Bring one data set to a common number of locations and neighbours."""
    first, place, rank, neighbors, schedule, _ = part
    number = len(first)
    extra = torch.arange(number, most, device=first.device)
    real = torch.arange(most, device=first.device) < number
    shape = (0, width - neighbors.shape[-1], 0, most - number)
    return (
        torch.cat([first, first[:1].expand(most - number)]),
        place,
        torch.cat([rank, extra]),
        torch.nn.functional.pad(neighbors, shape, value=-1),
        torch.cat([schedule, extra.to(torch.int32)]),
        real,
    )


def scale_change(old: Tensor, new: Tensor) -> float:
    """Largest change of the lengthscales' ratios, as a difference of logs."""
    used = torch.isfinite(old) & torch.isfinite(new)
    if bool((torch.isfinite(old) != torch.isfinite(new)).any()):
        return math.inf
    change = (new[used] / old[used]).log()
    return float(change.max() - change.min())
