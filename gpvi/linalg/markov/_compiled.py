"""The compiled engine: which passes serve a model, and the arrays they run on.

A :class:`Passes` object turns a model into a flat list of float64 tensors (what gradients flow to)
and runs the two passes on one batch element as NumPy arrays. The arrays of the sites may be
complex: at ``site + 1e-30i * direction`` the imaginary parts of all results are directional
derivatives to full precision, so that no second adjoint need be written.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gpvi.linalg.markov._generated_code import checked_in, generated
from gpvi.linalg.markov._generator import CHECKED_IN
from gpvi.linalg.markov.blocks import CascadeBlock
from gpvi.linalg.markov.model import MarkovModel, Steps

__all__ = [
    "Backward",
    "CascadePasses",
    "PackedPasses",
    "Passes",
    "choose_passes",
    "element",
    "to_double",
    "unpack",
]

ValueT = TypeVar("ValueT")

# Straight-line code that is not checked in is compiled for a while on first use: that pays for long
# series and small states only.
_MIN_ROWS = 50_000
_MAX_DIMENSION = 10

# Arrays that are kept for the next evaluation.
_MOST_SPARE = 4

Arrays = list[np.ndarray]


@dataclass(frozen=True, eq=False)
class Backward:
    """Results of a backward pass over one batch element.

    Parameters
    ----------
    mean, variance : ndarray, shape [T]
        Posterior moments of the rows.
    divergence : ndarray, shape [G]
        KL divergence of every series from its prior.
    adjoint : ndarray, shape [T, s] or [0, s]
        ``r`` and the upper triangle of ``N`` of every row, its own site included.
    gradients : list of ndarray
        Of the weighted sum of log partitions, one per tensor of the passes.
    """

    mean: np.ndarray
    variance: np.ndarray
    divergence: np.ndarray
    adjoint: np.ndarray
    gradients: Arrays


class Passes(ABC):
    """The passes over one model at given steps.

    Attributes
    ----------
    tensors : tuple of Tensor, each [*b or fewer, ...]
        float64, on the graph of the model's parameters.
    cores : tuple of int
        How many trailing dims of each tensor are not batch dims.
    dimension : int
        Number d of states.
    num_rows : int
        Rows that carry a scalar site.
    starts : ndarray of int64, shape [G + 1]
        Where series begin, and the number of rows.
    sites_per_row : int
        Scalar sites at every stamp.
    spare : list of ndarray
        Arrays to reuse.
    """

    tensors: tuple[Tensor, ...]
    cores: tuple[int, ...]
    dimension: int
    num_rows: int
    starts: np.ndarray
    spare: list[np.ndarray]
    sites_per_row: int = 1
    #: Trailing dims of ``lam1`` that are not batch dims: rows, and outputs of matrix sites.
    site_dims: int = 1

    @abstractmethod
    def forward(self, arrays: Arrays, j: np.ndarray, w: np.ndarray, store: np.ndarray) -> Any:
        """Run forward; returns log partitions [G] and the row of an impossible site, or -1."""

    @abstractmethod
    def backward(
        self,
        arrays: Arrays,
        j: np.ndarray,
        w: np.ndarray,
        store: np.ndarray,
        weight: np.ndarray,
        keep: bool,
    ) -> Backward:
        """Run backward from what :meth:`forward` stored."""

    @property
    def width(self) -> int:
        """Numbers that are stored per row: d means and a triangle of covariances."""
        return self.dimension + self.dimension * (self.dimension + 1) // 2

    def store_shape(self, keep: bool, turned: bool = False) -> tuple[int, int]:
        """Shape of the array for :meth:`forward`, with complex sites if `turned`; without rows it
        keeps nothing."""
        return (self.num_rows if keep else 0, self.width)

    def borrow(self, keep: bool) -> np.ndarray:
        """An array of :meth:`store_shape`, used before if there is one."""
        shape = self.store_shape(keep)
        while keep and self.spare:
            array = self.spare.pop()
            if array.shape == shape:
                return array
        return np.empty(shape)

    def give_back(self, store: np.ndarray) -> None:
        """Let the next passes over the same steps use an array."""
        if len(self.spare) < _MOST_SPARE:
            self.spare.append(store)

    def spread(self, weight: np.ndarray) -> np.ndarray:
        """Weights of series [G] as weights of stamps [T]."""
        return np.repeat(weight, np.diff(self.starts) // self.sites_per_row)

    def site_gradients(self, result: Backward) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the log partitions by the sites: ``E[f]`` and ``-E[f^2] / 2``."""
        # In place: on long series temporaries cost as much as the arithmetic.
        second = result.mean * result.mean
        second += result.variance
        second *= -0.5
        return result.mean, second

    def direction(self, by_variance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Direction of the sites along which the log partition's slope is what a cotangent of the
        variances asks for: ``-2 dv m`` and ``-2 dv``."""
        return -2.0 * by_variance * mean, -2.0 * by_variance


class CascadePasses(Passes):
    """Straight-line passes over a sum of cascades.

    Parameters
    ----------
    model : MarkovModel
        Of cascades.
    steps : Steps
        Stamps.
    module : module
        Generated for the model's list of blocks.
    """

    cores = (1, 1, 1, 1, 2)

    def __init__(self, model: MarkovModel, steps: Steps, module: ModuleType) -> None:
        self.dimension, self.num_rows = model.dimension, steps.num_rows
        self.starts, self.spare = _bounds(steps, 1), steps.spare
        self._module = module
        rate, frequency, noise = [], [], []
        for block in model.blocks:
            assert isinstance(block, CascadeBlock)
            rate.append(block.rate)
            noise.append(block.noise)
            still = torch.zeros_like(block.rate)
            frequency.append(still if block.frequency is None else block.frequency)
        upper = torch.triu_indices(self.dimension, self.dimension)
        start = _initial(model, steps)[..., upper[0], upper[1]]
        self._twice = np.where(upper[0] == upper[1], 1.0, 2.0)
        self.tensors = (steps.dt, _stack(rate), _stack(frequency), _stack(noise), start)

    def forward(self, arrays: Arrays, j: np.ndarray, w: np.ndarray, store: np.ndarray) -> Any:
        """See :class:`Passes`."""
        dt, rate, frequency, noise, start = arrays
        out = np.zeros(len(self.starts) - 1, j.dtype)
        row = self._module.forward(dt, self.starts, rate, frequency, noise, start, j, w, store, out)
        return out, row

    def backward(
        self,
        arrays: Arrays,
        j: np.ndarray,
        w: np.ndarray,
        store: np.ndarray,
        weight: np.ndarray,
        keep: bool,
    ) -> Backward:
        """See :class:`Passes`."""
        dt, rate, frequency, noise, _ = arrays
        mean, variance = np.empty_like(j), np.empty_like(j)
        slopes = [np.zeros(array.shape, j.dtype) for array in arrays[1:]]
        slopes.append(np.zeros(len(dt) if self.tensors[0].requires_grad else 0, j.dtype))
        adjoint = np.empty((len(j) if keep else 0, self.width), j.dtype)
        divergence = np.zeros(len(self.starts) - 1, j.dtype)
        self._module.backward(
            dt, self.starts, rate, frequency, noise, j, w, store, weight,
            mean, variance, *slopes, adjoint, divergence,
        )  # fmt: skip
        by_rate, by_frequency, by_noise, by_start, by_dt = slopes
        gradients = [by_dt, by_rate, by_frequency, by_noise, by_start * self._twice]
        return Backward(mean, variance, divergence, adjoint, gradients)


class PackedPasses(Passes):
    """Loops over any model, with blocks of A and Q evaluated once per distinct step.

    Parameters
    ----------
    model : MarkovModel
        Any.
    steps : Steps
        Stamps.
    sites_per_row : int
        Scalar sites at every stamp (K where matrix sites were taken apart).
    readout : Tensor, shape [*b, R, d], optional
        Instead of the model's: one for all, or one per scalar site.
    """

    cores = (2, 2, 3, 2)

    def __init__(
        self,
        model: MarkovModel,
        steps: Steps,
        sites_per_row: int = 1,
        readout: Tensor | None = None,
    ) -> None:
        self.dimension, self.spare = model.dimension, steps.spare
        self.size = np.array([block.dimension for block in model.blocks])
        index, distinct = steps.distinct
        self._index, self._bounds = index.cpu().numpy(), _bounds(steps, 1)
        A = _packed([block.transition(distinct) for block in model.blocks])
        Q = _packed([block.process_noise(distinct) for block in model.blocks])
        if readout is None:
            readout = model.readout.unsqueeze(-2) if model.rows is None else model.rows
        self.tensors = (A, Q, _initial(model, steps), readout)
        self._lay_out(sites_per_row, own_readout=readout.shape[-2] > 1)

    def repeated(self, sites_per_row: int) -> "PackedPasses":
        """The same for another number of scalar sites at every stamp, each with its own readout."""
        other = copy.copy(self)
        other._lay_out(sites_per_row, own_readout=True)
        return other

    def _lay_out(self, sites_per_row: int, own_readout: bool) -> None:
        self.num_rows = len(self._index) * sites_per_row
        self.starts = self._bounds * sites_per_row
        self.unit = np.full(self.num_rows, -1, dtype=np.int64)
        self.unit[::sites_per_row] = self._index
        self.which = np.arange(self.num_rows) if own_readout else np.zeros(self.num_rows, np.int64)

    def forward(self, arrays: Arrays, j: np.ndarray, w: np.ndarray, store: np.ndarray) -> Any:
        """See :class:`Passes`."""
        from gpvi.linalg.markov import _packed_cpu

        A, Q, start, readout = arrays
        out = np.zeros(len(self.starts) - 1, j.dtype)
        row = _packed_cpu.forward(
            self.unit, self.starts, self.size, A, Q, start, readout.astype(j.dtype, copy=False),
            self.which, j, w, store, out,
        )  # fmt: skip
        return out, row

    def backward(
        self,
        arrays: Arrays,
        j: np.ndarray,
        w: np.ndarray,
        store: np.ndarray,
        weight: np.ndarray,
        keep: bool,
    ) -> Backward:
        """See :class:`Passes`."""
        from gpvi.linalg.markov import _packed_cpu

        A, _, _, readout = arrays
        mean, variance = np.empty_like(j), np.empty_like(j)
        moving = self.tensors[0].requires_grad or self.tensors[1].requires_grad
        wanted = (moving, moving, True, self.tensors[3].requires_grad)
        slopes = [
            np.zeros(a.shape if want else (0, *a.shape[1:]), j.dtype)
            for a, want in zip(arrays, wanted, strict=True)
        ]
        adjoint = np.empty((len(j) if keep else 0, self.width), j.dtype)
        divergence = np.zeros(len(self.starts) - 1, j.dtype)
        _packed_cpu.backward(
            self.unit, self.starts, self.size, A, readout.astype(j.dtype, copy=False),
            self.which, j, w, store, weight, mean, variance, slopes[0], slopes[1], slopes[2], slopes[3],
            adjoint, divergence,
        )  # fmt: skip
        return Backward(mean, variance, divergence, adjoint, slopes)


def choose_passes(model: MarkovModel, steps: Steps) -> Passes:
    """Straight-line code where it exists or pays, loops elsewhere.

    Parameters
    ----------
    model : MarkovModel
        Any, brought to float64 here.
    steps : Steps
        Stamps.

    Returns
    -------
    Passes
        For scalar sites.
    """
    model, steps = to_double(model), to_double(steps)
    if model.is_cascade:
        signature = tuple(
            (b.order, b.damped, b.frequency is not None)
            for b in model.blocks
            if isinstance(b, CascadeBlock)
        )
        if signature in CHECKED_IN:
            return CascadePasses(model, steps, checked_in(signature))
        if steps.num_rows >= _MIN_ROWS and model.dimension <= _MAX_DIMENSION:
            return CascadePasses(model, steps, generated(signature))
    return PackedPasses(model, steps)


def to_double(value: ValueT) -> ValueT:
    """A tree of dataclasses with its floating-point tensors in double precision, on the graph.

    Parameters
    ----------
    value : dataclass, tuple or Tensor
        Model, block or steps.

    Returns
    -------
    same type
        The value itself if nothing changes.
    """
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value  # type: ignore[return-value]
    if isinstance(value, tuple):
        parts = tuple(to_double(item) for item in value)
        same = all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else parts  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        changes = {}
        for field in fields(value):
            old = getattr(value, field.name)
            new = to_double(old)
            if new is not old:
                changes[field.name] = new
        return replace(value, **changes) if changes else value
    return value


def _bounds(steps: Steps, sites_per_row: int) -> np.ndarray:
    bounds = np.append(steps.starts.cpu().numpy(), steps.num_rows).astype(np.int64)
    return bounds * sites_per_row


def _initial(model: MarkovModel, steps: Steps) -> Tensor:
    """Covariance at first stamps, [*b, 1 or G, d, d]: one for all where the model is stationary."""
    stationary = all(block.stationary for block in model.blocks)
    return model.initial(steps.first[..., :1] if stationary else steps.first)


def _stack(parts: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*parts), -1)


def _packed(blocks: list[Tensor]) -> Tensor:
    """Blocks [*b, U, n, n] side by side, [*b, U, sum n^2]."""
    shape = torch.broadcast_shapes(*(block.shape[:-2] for block in blocks))
    return torch.cat([b.reshape(*b.shape[:-2], -1).expand(*shape, -1) for b in blocks], -1)


def unpack(rows: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [T, d] and full symmetric matrices [T, d, d] from stored rows.

    Parameters
    ----------
    rows : ndarray, shape [T, s]
        Vector and upper triangle.
    dimension : int
        d.

    Returns
    -------
    vector : ndarray, shape [T, d]
        First part.
    matrix : ndarray, shape [T, d, d]
        Second part.
    """
    place = np.zeros((dimension, dimension), np.int64)
    upper = np.triu_indices(dimension)
    place[upper] = np.arange(len(upper[0])) + dimension
    place.T[upper] = place[upper]
    return rows[:, :dimension], rows[:, place]


def element(tensors: tuple[Tensor, ...], number: int) -> Arrays:
    """One batch element of flat tensors [B or 1, ...] as arrays."""
    return [np.ascontiguousarray(t.detach()[number if len(t) > 1 else 0].numpy()) for t in tensors]
