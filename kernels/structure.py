"""What a kernel is, where that is known: white, or a scaled stationary kernel in closed form.

Inference code that can do better than a dense covariance matrix asks here instead of looking into
GPyTorch's classes. Both questions are answered conservatively: a subclass may override `forward`,
so anything but the exact classes is treated as unknown.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gpytorch.kernels import (
    AdditiveKernel,
    Kernel,
    MaternKernel,
    ProductKernel,
    RBFKernel,
    ScaleKernel,
)
from torch import Tensor, nn

from gpvi.exceptions import InputError
from gpvi.kernels.power import PowerKernel
from gpvi.kernels.white import WhiteKernel

__all__ = ["StationaryForm", "input_dimensions", "is_white", "stationary_form"]

StationaryName = Literal["rbf", "matern12", "matern32", "matern52"]
_MATERN_NAMES: dict[float, StationaryName] = {0.5: "matern12", 1.5: "matern32", 2.5: "matern52"}


def is_white(kernel: Kernel) -> bool:
    """Whether every covariance between distinct inputs is exactly zero.

    True for a `WhiteKernel`, a scaled or raised one, a sum of such kernels, and a product with at
    least one such factor. A kernel with `active_dims` is not white: distinct inputs may agree in
    the coordinates that it sees.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel to examine.

    Returns
    -------
    bool
        True only if the structure proves it.

    Examples
    --------
    >>> from gpytorch.kernels import RBFKernel, ScaleKernel
    >>> from gpvi.kernels import WhiteKernel, is_white
    >>> is_white(ScaleKernel(WhiteKernel()))
    True
    >>> is_white(RBFKernel() + WhiteKernel()), is_white(RBFKernel() * WhiteKernel())
    (False, True)
    """
    if kernel.active_dims is not None:
        return False
    kind = type(kernel)
    if kind is WhiteKernel:
        return True
    if kind is ScaleKernel or kind is PowerKernel:
        return is_white(kernel.base_kernel)
    if kind is AdditiveKernel:
        return len(kernel.kernels) > 0 and all(is_white(term) for term in kernel.kernels)
    if kind is ProductKernel:
        return any(is_white(factor) for factor in kernel.kernels)
    return False


@dataclass(frozen=True, eq=False)
class StationaryForm:
    """Closed form of a scaled stationary kernel.

    With the scaled distance `r = |(x - x') / lengthscale|`, the kernel is `outputscale` times

    - ``rbf``: `exp(-r^2 / 2)`
    - ``matern12``: `exp(-r)`
    - ``matern32``: `(1 + sqrt(3) r) exp(-sqrt(3) r)`
    - ``matern52``: `(1 + sqrt(5) r + 5 r^2 / 3) exp(-sqrt(5) r)`

    Attributes
    ----------
    name : {"rbf", "matern12", "matern32", "matern52"}
        Which of the four.
    lengthscale : Tensor, shape (D,) or (1,)
        Lengthscale of each input dimension, or one for all; on the graph of the kernel's parameter.
    outputscale : Tensor, shape (), or None
        Scale, on the graph of the kernel's parameter; None for a scale of one.
    """

    name: StationaryName
    lengthscale: Tensor
    outputscale: Tensor | None


def stationary_form(kernel: Kernel) -> StationaryForm | None:
    """Closed form of an RBF or Matern kernel, bare or inside one `ScaleKernel`.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel to examine.

    Returns
    -------
    StationaryForm or None
        None for anything else: other kernels, subclasses, batches of kernels, kernels with
        `active_dims`.

    References
    ----------
    Rasmussen and Williams, *Gaussian Processes for Machine Learning*, 2006, section 4.2.1.

    Examples
    --------
    >>> from gpytorch.kernels import LinearKernel, MaternKernel, ScaleKernel
    >>> from gpvi.kernels import stationary_form
    >>> form = stationary_form(ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=3)))
    >>> form.name, tuple(form.lengthscale.shape), tuple(form.outputscale.shape)
    ('matern32', (3,), ())
    >>> stationary_form(LinearKernel()) is None
    True
    """
    scaled = type(kernel) is ScaleKernel
    base = kernel.base_kernel if scaled else kernel
    name = _stationary_name(base)
    if name is None or kernel.batch_shape or _has_active_dims(kernel) or _has_active_dims(base):
        return None
    outputscale = kernel.outputscale if scaled else None
    return StationaryForm(name, base.lengthscale.squeeze(-2), outputscale)


def _stationary_name(kernel: Kernel) -> StationaryName | None:
    if type(kernel) is RBFKernel:
        return "rbf"
    if type(kernel) is MaternKernel:
        return _MATERN_NAMES.get(kernel.nu)
    return None


def _has_active_dims(kernel: Kernel) -> bool:
    return kernel.active_dims is not None


def input_dimensions(kernel: Kernel, num_features: int) -> Iterator[tuple[Kernel, list[int]]]:
    """Each kernel inside a kernel, itself included, with the input dimensions that it sees.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        A kernel, possibly made of others.
    num_features : int
        Number D of input dimensions.

    Yields
    ------
    tuple of (Kernel, list of int)
        A kernel and the indices of its inputs, in the order in which it reads them.

    Raises
    ------
    InputError
        If `active_dims` names a dimension that does not exist.

    Examples
    --------
    >>> from gpytorch.kernels import LinearKernel, RBFKernel
    >>> from gpvi.kernels import input_dimensions
    >>> kernel = RBFKernel(active_dims=(2, 0)) + LinearKernel()
    >>> [(type(part).__name__, dims) for part, dims in input_dimensions(kernel, 3)]
    [('AdditiveKernel', [0, 1, 2]), ('RBFKernel', [2, 0]), ('LinearKernel', [0, 1, 2])]
    """
    yield from _walk(kernel, list(range(num_features)), select=True)


def _walk(kernel: Kernel, seen: list[int], select: bool) -> Iterator[tuple[Kernel, list[int]]]:
    if select and kernel.active_dims is not None:
        seen = _select(kernel, seen)
    yield kernel, seen
    # A ScaleKernel takes over the active_dims of its base and then bypasses their selection there.
    for child in _direct_sub_kernels(kernel):
        yield from _walk(child, seen, select=not isinstance(kernel, ScaleKernel))


def _select(kernel: Kernel, seen: list[int]) -> list[int]:
    chosen = kernel.active_dims.tolist()
    if any(not 0 <= index < len(seen) for index in chosen):
        raise InputError(
            f"active_dims={tuple(chosen)} of {type(kernel).__name__} must lie in 0..{len(seen) - 1}"
            f": the kernel is given {len(seen)} input dimension(s)."
        )
    return [seen[index] for index in chosen]


def _direct_sub_kernels(module: nn.Module) -> Iterator[Kernel]:
    for child in module.children():
        if isinstance(child, Kernel):
            yield child
        else:
            yield from _direct_sub_kernels(child)
