"""What the fused operations on stationary kernels share: checks, engines, and the backward pass."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.exceptions import EngineWarning, InputError, NumericalError
from gpvi.linalg.stationary import STATIONARY_KERNELS


def check_kernel_name(name: str, general: str) -> None:
    """Refuse kernels outside the table, naming the general operation."""
    if name not in STATIONARY_KERNELS:
        raise InputError(
            f"unknown stationary kernel {name!r}; choose one of {', '.join(STATIONARY_KERNELS)}, "
            f"or evaluate the kernel and call {general}."
        )


def check_kinds(tensors: dict[str, Tensor], like: Tensor) -> None:
    """Refuse tensors of several dtypes or devices."""
    if not like.is_floating_point() or any(
        t.dtype != like.dtype or t.device != like.device for t in tensors.values()
    ):
        kinds = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
        raise InputError(f"expected one floating-point dtype and one device; got {kinds}")


def check_positive(name: str, value: Tensor) -> None:
    """Refuse a value that is not positive everywhere."""
    if not bool((value > 0).all()):
        raise InputError(
            f"{name} must be positive, but its smallest entry is {float(value.detach().min()):.3g}."
        )


def check_constant_inputs(x: Tensor, general: str) -> None:
    """Refuse inputs that ask for a gradient."""
    if x.requires_grad:
        raise InputError(
            "x requires a gradient, which this function does not compute; detach x, or use "
            f"{general}."
        )


def check_finite(data: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
    """Data must be finite; parameters that are not mean that an optimiser went too far."""
    for name, value in data.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{name} holds NaN or infinite entries; drop these rows first.")
    for name, value in parameters.items():
        if not bool(torch.isfinite(value).all()):
            raise NumericalError(f"{name} holds NaN or infinite entries; take a smaller step.")


def check_range(lengthscale: Tensor, *inputs: Tensor) -> None:
    """Refuse inputs so many lengthscales away that squares would overflow."""
    smallest = float(lengthscale.detach().min())
    largest = max(float(values.detach().abs().max()) for values in inputs)
    if largest > 1e100 * smallest:
        raise NumericalError(
            f"inputs up to {largest:.3g} are more than 1e100 times the smallest lengthscale "
            f"{smallest:.3g}; rescale the inputs or bound the lengthscale."
        )


def describe_shapes(tensors: dict[str, Tensor]) -> str:
    """Names and shapes for an error message."""
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())


def load_engine(module: str, operation: str) -> Any:
    """The compiled engine of an operation, or None with a warning where Numba does not work."""
    try:
        return import_module(module).CompiledEngine()
    except ImportError as error:
        warn(
            f"the compiled engine of the {operation} is not available ({error}); tensor operations "
            "serve instead, at about twice the cost. Reinstall numba.",
            EngineWarning,
        )
        return None


def scaled_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Saved gradients times the incoming one, where they are wanted."""
    return tuple(
        upstream * part if needed and part is not None else None
        for needed, part in zip(ctx.needs_input_grad, ctx.saved_tensors, strict=False)
    )
