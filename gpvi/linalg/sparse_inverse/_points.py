"""What ordering and neighbour search share: checked coordinates and the choice of engine."""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.exceptions import EngineWarning, InputError

__all__ = [
    "as_array",
    "as_arrays",
    "check_columns",
    "check_first",
    "check_num_neighbors",
    "compiled_engine",
    "largest",
    "rescaled",
    "scale_exponent",
    "squared_distances",
]

# Binary exponent from which coordinates are rescaled: far below the overflow of a sum of squares.
_LARGE_EXPONENT = 300


def as_array(x: Tensor, name: str) -> np.ndarray:
    """Finite coordinates as float64 on the CPU, [M, D]; not to be written to."""
    if x.dim() != 2 or 0 in x.shape:
        raise InputError(
            f"{name} has shape {tuple(x.shape)}; pass one point in every row, shape [M, D] with at "
            "least one row and one column."
        )
    if not x.is_floating_point():
        raise InputError(
            f"{name} has dtype {x.dtype}; distances need floating-point coordinates: convert it, "
            f"for instance with {name}.double()."
        )
    values = x.detach().to("cpu", torch.float64).contiguous().numpy()
    finite = np.isfinite(values)
    if not finite.all():
        rows = int((~finite.all(axis=1)).sum())
        raise InputError(
            f"{name} holds {int((~finite).sum())} NaN or infinite coordinates in {rows} of "
            f"{len(values)} rows; drop these rows first."
        )
    return values


def as_arrays(tensors: dict[str, Tensor]) -> list[np.ndarray]:
    """Coordinates of one space, multiplied by a power of two where squares would over- or underflow."""
    arrays = {name: as_array(x, name) for name, x in tensors.items()}
    check_columns(arrays)
    exponent = scale_exponent(*map(largest, arrays.values()))
    return [rescaled(values, exponent) for values in arrays.values()]


def check_columns(arrays: dict[str, np.ndarray]) -> None:
    """Refuse coordinates of different spaces."""
    if len({values.shape[1] for values in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in arrays.items())
        raise InputError(f"expected the same number of columns; got {shapes}.")


def largest(values: np.ndarray) -> float:
    """Largest magnitude of a coordinate."""
    return float(np.abs(values).max())


def scale_exponent(*magnitudes: float) -> int:
    """Binary exponent to divide coordinates by, 0 where their squares neither over- nor underflow."""
    exponent = int(np.frexp(max(magnitudes))[1])
    return exponent if abs(exponent) > _LARGE_EXPONENT else 0


def rescaled(values: np.ndarray, exponent: int) -> np.ndarray:
    """Coordinates divided by a power of two."""
    return np.ldexp(values, -exponent) if exponent else values


def check_num_neighbors(num_neighbors: int) -> None:
    """Refuse anything but a positive number."""
    if num_neighbors < 1:
        raise InputError(f"num_neighbors is {num_neighbors}; it must be at least 1.")


def check_first(first: int, num_points: int) -> None:
    """Refuse a first row beyond the points."""
    if not 0 <= first <= num_points:
        raise InputError(
            f"first is {first}, but there are {num_points} points; pass a number from 0 to {num_points}."
        )


@cache
def compiled_engine(module: str, operation: str, fallback: str = "SciPy's k-d tree") -> Any:
    """The compiled engine of a module, or None with a warning where Numba does not work."""
    try:
        return import_module(f"gpvi.linalg.sparse_inverse.{module}").CompiledEngine()
    except ImportError as error:
        warn(
            f"the compiled engine of the {operation} is not available ({error}); {fallback} serves "
            "instead, at several times the cost. Reinstall numba.",
            EngineWarning,
        )
        return None


def squared_distances(x: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Squared distances of the rows to a point, summed column by column as the compiled loops do."""
    total = np.square(x[:, 0] - point[0])
    for d in range(1, x.shape[1]):
        total += np.square(x[:, d] - point[d])
    return total
