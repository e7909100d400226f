"""A Gaussian process as a pair of mean and covariance functions, and snapshots of it.

:class:`GaussianProcess` owns the kernel and mean parameters. Priors never hold the live object:
they hold a :meth:`~GaussianProcess.snapshot`, a structural copy whose parameters are clones on the
graph, so that a posterior keeps predicting the same after ``optimizer.step()`` while gradients
still reach the live parameters.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import gpytorch
import torch
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["GaussianProcess", "GaussianProcessLike"]

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


class GaussianProcessLike(Protocol):
    """What an approximation asks of a Gaussian process (a GPyTorch model can be adapted to it)."""

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of kernel and mean."""

    def mean(self, x: Tensor) -> Tensor:
        """Prior mean, shape [*b, N]."""

    def covariance(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """Dense prior covariance, shape [*b, N1, N2]."""

    def variance(self, x: Tensor) -> Tensor:
        """Prior variance, shape [*b, N]."""

    def snapshot(self) -> "GaussianProcessLike":
        """The same functions with today's parameter values, on the graph."""

    def detach(self) -> "GaussianProcessLike":
        """The same functions with today's parameter values, off the graph."""


class GaussianProcess(torch.nn.Module):
    """A Gaussian process prior ``f ~ GP(mean, kernel)``.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        Covariance function; its batch shape (latents last) is the batch shape of the process.
    mean : gpytorch.means.Mean, optional
        Mean function; zero if left out.

    Raises
    ------
    InputError
        If ``kernel`` or ``mean`` is not a GPyTorch kernel or mean.

    Examples
    --------
    >>> import gpytorch, torch
    >>> gp = GaussianProcess(gpytorch.kernels.RBFKernel().double())
    >>> gp.covariance(torch.zeros(2, 1, dtype=torch.float64)).shape
    torch.Size([2, 2])
    """

    if TYPE_CHECKING:
        kernel: gpytorch.kernels.Kernel
        mean_module: gpytorch.means.Mean

    def __init__(
        self, kernel: gpytorch.kernels.Kernel, mean: gpytorch.means.Mean | None = None
    ) -> None:
        super().__init__()
        if not isinstance(kernel, gpytorch.kernels.Kernel):
            raise InputError(
                f"kernel is a {type(kernel).__name__}; pass a gpytorch kernel "
                "(gpvi.kernels.parse_kernel makes one from a short name)."
            )
        if mean is not None and not isinstance(mean, gpytorch.means.Mean):
            raise InputError(f"mean is a {type(mean).__name__}; pass a gpytorch mean or None.")
        self.kernel = kernel
        self.mean_module = (
            gpytorch.means.ZeroMean(batch_shape=kernel.batch_shape) if mean is None else mean
        )

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of kernel and mean."""
        mean_shape = getattr(self.mean_module, "batch_shape", torch.Size())
        return torch.broadcast_shapes(self.kernel.batch_shape, mean_shape)

    def mean(self, x: Tensor) -> Tensor:
        """Prior mean at inputs.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Inputs; their batch dims broadcast with the batch shape.

        Returns
        -------
        Tensor, shape [*b, N]
            Prior mean.
        """
        shape = torch.broadcast_shapes(self.batch_shape, x.shape[:-2])
        return self.mean_module(x).expand(*shape, x.shape[-2])

    def covariance(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """Dense prior covariance.

        Parameters
        ----------
        x1 : Tensor, shape [*g, N1, D]
            First inputs.
        x2 : Tensor, shape [*g, N2, D], optional
            Second inputs; ``x1`` if left out.

        Returns
        -------
        Tensor, shape [*b, N1, N2]
            Covariances.
        """
        other = x1 if x2 is None else x2
        shape = torch.broadcast_shapes(self.batch_shape, x1.shape[:-2], other.shape[:-2])
        dense = self.kernel(x1, other).to_dense()
        return dense.expand(*shape, x1.shape[-2], other.shape[-2])

    def variance(self, x: Tensor) -> Tensor:
        """Prior variance at inputs.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Inputs.

        Returns
        -------
        Tensor, shape [*b, N]
            Prior variances.
        """
        shape = torch.broadcast_shapes(self.batch_shape, x.shape[:-2])
        # With as many latents as rows GPyTorch takes variances [L, N] of inputs [N, D] for a
        # matrix; inputs with one dim more than the variances cannot be mistaken.
        rows = x.reshape(*[1] * (len(shape) + 2 - x.dim()), *x.shape)
        return self.kernel(rows, diag=True).expand(*shape, x.shape[-2])

    def snapshot(self) -> Self:
        """Copy with today's parameter values; gradients still reach the live parameters.

        Returns
        -------
        GaussianProcess
            A structural copy: its parameters are clones on the graph, its submodules copies.
        """
        return copy_module(self, torch.clone)

    def detach(self) -> Self:
        """Copy with today's parameter values, off the graph (and therefore picklable).

        Returns
        -------
        GaussianProcess
            A structural copy with detached parameters.
        """
        return copy_module(self, lambda value: value.detach().clone())


def copy_module(module: ModuleT, transform: Callable[[Tensor], Tensor]) -> ModuleT:
    """Copy a module tree, sending every parameter and buffer through ``transform``.

    ``torch.func.functional_call`` would give the same values, but only inside one call; here the
    copy is an ordinary module that lives as long as the prior that holds it. Tensors and submodules
    that are shared in the tree stay shared in the copy. Hyperparameter priors are left out: a copy
    is evaluated, never trained or loaded into.
    """
    tensors: dict[int, Tensor] = {}
    modules: dict[int, torch.nn.Module] = {}

    def copy_tensor(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        if id(value) not in tensors:
            tensors[id(value)] = transform(value)
        return tensors[id(value)]

    def copy(node: Any) -> Any:
        if node is None:
            return None
        if id(node) in modules:
            return modules[id(node)]
        twin = object.__new__(type(node))
        modules[id(node)] = twin
        # Hooks of torch.nn.utils keep computed weights as plain attributes.
        state = {
            k: copy_tensor(v) if isinstance(v, Tensor) else v for k, v in node.__dict__.items()
        }
        state["_parameters"] = {k: copy_tensor(v) for k, v in node._parameters.items()}
        state["_buffers"] = {k: copy_tensor(v) for k, v in node._buffers.items()}
        state["_modules"] = {k: copy(v) for k, v in node._modules.items()}
        # Both hold bound methods of the live module, which a pickled copy would drag along.
        state["_load_state_dict_pre_hooks"] = OrderedDict()
        if "_priors" in state:
            state["_priors"] = OrderedDict()
        twin.__dict__.update(state)
        return twin

    return copy(module)
