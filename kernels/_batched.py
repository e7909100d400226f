"""What kernels with parameters of their own share: registration, batches, and the one column.

GPyTorch's base class applies a batch index to every buffer, `active_dims` included, which has no
batch dimensions, and the parameters of an expanded kernel share memory, so that no optimiser could
update them.
"""

from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Self, overload

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["BatchedKernel", "Constrained", "OneColumnKernel", "check_order"]


class Constrained:
    """The value of a parameter behind its constraint, to read and to set.

    ``variance = Constrained()`` in a kernel's class stands for the parameter ``raw_variance``.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, kernel: None, owner: type) -> "Constrained": ...

    @overload
    def __get__(self, kernel: Kernel, owner: type) -> Tensor: ...

    def __get__(self, kernel: Kernel | None, owner: type) -> "Tensor | Constrained":
        if kernel is None:
            return self
        raw = getattr(kernel, f"raw_{self.name}")
        return getattr(kernel, f"raw_{self.name}_constraint").transform(raw)

    def __set__(self, kernel: Kernel, value: Tensor | float) -> None:
        raw = getattr(kernel, f"raw_{self.name}")
        constraint = getattr(kernel, f"raw_{self.name}_constraint")
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        kernel.initialize(**{f"raw_{self.name}": constraint.inverse_transform(value)})


class BatchedKernel(Kernel):
    """A kernel whose parameters have the shape of its batch, and maybe more dimensions after it."""

    def add_parameter(
        self,
        name: str,
        prior: Prior | None,
        constraint: Interval | None,
        start: Tensor | float | None = None,
        size: tuple[int, ...] = (),
    ) -> None:
        """Register a parameter with its constraint and prior.

        Parameters
        ----------
        name : str
            Name of the value; the parameter is ``raw_<name>``.
        prior : gpytorch.priors.Prior or None
            Prior over the value.
        constraint : gpytorch.constraints.Interval or None
            Range of the value; positive if None.
        start : Tensor or float, optional
            First value, unless a constraint is given, which brings its own.
        size : tuple of int, default ()
            Shape of the value of one element of the batch.
        """
        if prior is not None and not isinstance(prior, Prior):
            raise InputError(
                f"{name}_prior must be a gpytorch.priors.Prior, got {type(prior).__name__}; pass "
                "for instance GammaPrior(2.0, 1.0)."
            )
        shape = (*self.batch_shape, *size)
        self.register_parameter(f"raw_{name}", torch.nn.Parameter(torch.zeros(shape)))
        self.register_constraint(f"raw_{name}", Positive() if constraint is None else constraint)
        if prior is not None:
            # Partial objects, not lambdas: a kernel with a prior must stay picklable.
            read, assign = partial(_read, name=name), partial(_assign, name=name)
            self.register_prior(f"{name}_prior", prior, read, assign)
        if start is not None and constraint is None:
            setattr(self, name, torch.as_tensor(start).expand(shape))

    def __getitem__(self, index: Any) -> Self:
        """Kernel of the selected batch elements."""
        if not self.batch_shape:
            return self
        kernel = deepcopy(self)
        for name, parameter in self.named_parameters(recurse=False):
            getattr(kernel, name).data = parameter.detach()[index].clone()
        kernel.batch_shape = torch.zeros(self.batch_shape)[index].shape
        return kernel

    def expand_batch(self, *sizes: Any) -> Self:
        """Kernel with the parameters repeated to a larger batch shape."""
        shape = torch.Size(sizes if all(isinstance(size, int) for size in sizes) else sizes[0])
        old = self.batch_shape
        if shape == old:
            return self
        try:
            torch.zeros(old).expand(shape)
        except RuntimeError:
            raise InputError(
                f"A kernel of batch shape {tuple(old)} cannot be expanded to {tuple(shape)}; the "
                "old shape must broadcast to the new one."
            ) from None
        kernel = deepcopy(self)
        for name, parameter in self.named_parameters(recurse=False):
            own = parameter.shape[len(old) :]
            getattr(kernel, name).data = parameter.detach().expand(*shape, *own).clone()
        kernel.batch_shape = shape
        return kernel


class OneColumnKernel(BatchedKernel):
    """A kernel on the line."""

    @abstractmethod
    def covariance(self, t1: Tensor, t2: Tensor, lift: Callable[[Tensor], Tensor]) -> Tensor:
        """Covariance at pairs of times.

        Parameters
        ----------
        t1, t2 : Tensor
            Times whose shapes broadcast.
        lift : callable
            Gives a parameter of shape [*b] the dims that it needs to broadcast with them.

        Returns
        -------
        Tensor
            Of the shape to which all broadcast.
        """

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Evaluate the kernel.

        Parameters
        ----------
        x1 : Tensor, shape (*batch, N, 1)
            Left inputs.
        x2 : Tensor, shape (*batch, M, 1)
            Right inputs.
        diag : bool, default False
            Pair row n of `x1` with row n of `x2` only.
        last_dim_is_batch : bool, default False
            Give one matrix for each coordinate.
        **params
            What GPyTorch hands to every kernel of a composition; this one has no use for it.

        Returns
        -------
        Tensor, shape (*batch, N, M), or (*batch, N) with diag=True
            Covariances.

        Raises
        ------
        InputError
            If there is more than one column.
        """
        if last_dim_is_batch:
            x1, x2 = x1.mT.unsqueeze(-1), x2.mT.unsqueeze(-1)
        if x1.shape[-1] != 1:
            raise InputError(
                f"{type(self).__name__} is a kernel of one column, got {x1.shape[-1]}; pick the "
                "time column with active_dims=(k,)."
            )
        t1, t2 = x1.squeeze(-1), x2.squeeze(-1)
        if not diag:
            t1, t2 = t1.unsqueeze(-1), t2.unsqueeze(-2)
        added = (None,) * (1 + (not diag) + last_dim_is_batch)
        value = self.covariance(t1, t2, lambda parameter: parameter[(..., *added)])
        shape = torch.broadcast_shapes(t1.shape, t2.shape)
        return value.expand(torch.broadcast_shapes(value.shape, shape))


def check_order(order: int) -> int:
    """Check the order of a process.

    Parameters
    ----------
    order : int
        Number of derivatives, 0 to 8.

    Returns
    -------
    int
        The order.

    Raises
    ------
    InputError
        If it is not an integer in this range.
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= 8:
        raise InputError(f"order must be an integer from 0 to 8, got {order!r}.")
    return order


def _read(kernel: Kernel, name: str) -> Tensor:
    return getattr(kernel, name)


def _assign(kernel: Kernel, value: Tensor | float, name: str) -> None:
    setattr(kernel, name, value)
