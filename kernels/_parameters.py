"""Checks and assignments that the ways of making a kernel share."""

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["assign_parameter", "check_kernel_arguments", "keep_start", "keeps_start"]


def assign_parameter(kernel: Kernel, name: str, value: Tensor | float) -> None:
    """Set a parameter by its constrained value, in place.

    Writes through the raw parameter itself rather than its `.data`, so that whoever watches the
    parameter's version notices.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel that owns the parameter ``raw_<name>``.
    name : str
        Name of the constrained value, such as ``lengthscale``.
    value : Tensor or float
        New value; broadcasts to the parameter's shape.

    Examples
    --------
    >>> from gpvi.kernels import WhiteKernel
    >>> from gpvi.kernels._parameters import assign_parameter
    >>> kernel = WhiteKernel()
    >>> assign_parameter(kernel, "variance", 3.0)
    >>> round(kernel.variance.item(), 6)
    3.0
    """
    raw = getattr(kernel, f"raw_{name}")
    constraint = getattr(kernel, f"raw_{name}_constraint")
    with torch.no_grad():
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        raw.copy_(constraint.inverse_transform(value).expand_as(raw))


def keep_start(kernel: Kernel, name: str) -> None:
    """Say that a parameter was given a value, which initialisers leave as it is.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel that owns the parameter.
    name : str
        Name of the constrained value.

    Examples
    --------
    >>> from gpvi.kernels import WhiteKernel
    >>> from gpvi.kernels._parameters import keep_start, keeps_start
    >>> kernel = WhiteKernel()
    >>> keep_start(kernel, "variance")
    >>> keeps_start(kernel, "variance")
    True
    """
    kernel.given_starts = (*getattr(kernel, "given_starts", ()), name)


def keeps_start(kernel: Kernel, name: str) -> bool:
    """Whether initialisers are to leave a parameter as it is.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel that owns the parameter.
    name : str
        Name of the constrained value.

    Returns
    -------
    bool
        True after :func:`keep_start`.
    """
    return name in getattr(kernel, "given_starts", ())


def check_kernel_arguments(
    num_features: int, dtype: torch.dtype, batch_shape: torch.Size
) -> torch.Size:
    """Check the arguments that every way of making a kernel shares.

    Parameters
    ----------
    num_features : int
        Number D of input dimensions, at least 1.
    dtype : torch.dtype
        A floating-point type.
    batch_shape : torch.Size
        Sizes of the batch dimensions.

    Returns
    -------
    torch.Size
        `batch_shape`, converted from a tuple where necessary.

    Raises
    ------
    InputError
        If one of them is not valid.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels._parameters import check_kernel_arguments
    >>> check_kernel_arguments(2, torch.float64, (3,))
    torch.Size([3])
    """
    if isinstance(num_features, bool) or not isinstance(num_features, int | np.integer):
        raise InputError(f"num_features must be an integer, got {num_features!r}.")
    if num_features < 1:
        raise InputError(f"num_features must be at least 1, got {num_features}.")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype must be a floating-point torch.dtype, got {dtype!r}.")
    return torch.Size(batch_shape)
