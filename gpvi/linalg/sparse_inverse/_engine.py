"""Which engine runs an operation, and how batch dims are laid out for it."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.exceptions import EngineWarning, InputError
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = [
    "arrange",
    "broadcast_batch",
    "check_vector",
    "engine_for",
    "runs_compiled",
    "shared",
    "working_dtype",
]

_PACKAGE = "gpvi.linalg.sparse_inverse"


def runs_compiled(like: Tensor) -> bool:
    """Whether compiled loops can run where a tensor is."""
    return like.device.type == "cpu" and _numba_works()


def engine_for(operation: str, like: Tensor) -> ModuleType:
    """The compiled or the tensor version of a module of loops, such as `factor`."""
    return import_module(f"{_PACKAGE}._{operation}_{'cpu' if runs_compiled(like) else 'tensor'}")


@cache
def _numba_works() -> bool:
    try:
        import_module("numba")
    except ImportError as error:
        warn(
            f"the compiled loops of sparse inverse Cholesky factors are not available ({error}); tensor "
            "operations level by level serve instead, at some fifty times the cost. Reinstall numba.",
            EngineWarning,
        )
        return False
    return True


def check_vector(pattern: NeighborPattern, name: str, vector: Tensor, like: Tensor) -> None:
    """Refuse vectors that do not fit the pattern or lie on another device."""
    if vector.dim() == 0 or vector.shape[-1] != pattern.num_rows:
        raise InputError(
            f"{name} has shape {tuple(vector.shape)}; the pattern has {pattern.num_rows} rows: pass shape "
            f"[*b, {pattern.num_rows}]."
        )
    devices = {vector.device, like.device, pattern.neighbors.device}
    if len(devices) > 1:
        raise InputError(
            f"{name} is on {vector.device}, columns are on {like.device} and the pattern is on "
            f"{pattern.neighbors.device}; move them to one device."
        )


def broadcast_batch(**shapes: torch.Size) -> torch.Size:
    """Batch dims that all of the named ones broadcast to."""
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        parts = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise InputError(f"batch dims do not broadcast: {parts}.") from error


def working_dtype(*tensors: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of a result, and the one to compute in: compiled loops compute in double precision."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype, torch.float64 if runs_compiled(tensors[0]) else dtype


def arrange(columns: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Columns [F, M, m + 1] of the F different factors, vectors [F, M, R] for each, and a function that
    brings such vectors back to the broadcast shape [*b, M].

    A factor that many vectors share is not copied.
    """
    batch = broadcast_batch(columns=columns.shape[:-2], vector=vector.shape[:-1])
    if not columns.requires_grad:
        # What was expanded is one factor. (The gradient of an expanded leaf has entries of its own.)
        for dim in range(columns.dim() - 2):
            if columns.stride(dim) == 0:
                columns = columns.narrow(dim, 0, min(1, columns.shape[dim]))
    M, D = columns.shape[-2], len(batch)
    own = (1,) * (D + 2 - columns.dim()) + tuple(columns.shape[:-2])
    factors = [d for d in range(D) if own[d] != 1]
    samples = [d for d in range(D) if own[d] == 1]
    order = [*factors, D, *samples]
    moved = vector.expand(*batch, M).permute(order)
    F = torch.Size(batch[d] for d in factors).numel()
    R = torch.Size(batch[d] for d in samples).numel()
    back = [order.index(d) for d in range(D + 1)]

    def restore(x: Tensor) -> Tensor:
        return x.reshape(moved.shape).permute(back)

    return columns.reshape(F, M, columns.shape[-1]), moved.reshape(F, M, R), restore


def shared(tensor: Tensor, batch: torch.Size, core: int) -> Tensor:
    """A tensor [*b, ...] with one flat batch dim, of size 1 where all of the batch shares it."""
    own, rest = tensor.shape[: tensor.dim() - core], tensor.shape[tensor.dim() - core :]
    if own.numel() == 1:
        return tensor.reshape(1, *rest)
    return tensor.expand(*batch, *rest).reshape(batch.numel(), *rest)
