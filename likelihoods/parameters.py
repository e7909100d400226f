"""Trained parameters with bounds, which a likelihood reads and sets by their plain names."""

import math
from typing import Any, overload

import gpytorch
import torch
from gpytorch.constraints import GreaterThan, Interval
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["BoundedParameter"]


class BoundedParameter:
    """Declare a bounded, trainable parameter as an attribute of a likelihood class.

    The module holds the unconstrained `raw_<name>` with GPyTorch's constraint, so that optimisers,
    priors and `state_dict` treat it as any other. Reading the attribute gives the constrained value
    `[*batch_shape, 1]`; assigning a number or tensor checks it against the bounds.

    Parameters
    ----------
    lower, upper : float
        Open bounds; without an upper one the transform is a softplus, otherwise a sigmoid.

    Examples
    --------
    >>> class Module(gpytorch.Module):
    ...     power = BoundedParameter(0.0)
    >>> module = Module()
    >>> Module.power.register(module, 3.0)
    >>> module.power.detach(), list(module.state_dict())[0]
    (tensor([3.], dtype=torch.float64), 'raw_power')
    """

    def __init__(self, lower: float = 0.0, upper: float = math.inf) -> None:
        self.lower, self.upper = lower, upper
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def register(
        self,
        module: gpytorch.Module,
        value: float | Tensor,
        learn: bool = True,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        lower: float | None = None,
    ) -> None:
        """Create the parameter in a module; its `__init__` calls this once.

        Parameters
        ----------
        module : gpytorch.Module
            The likelihood.
        value : float or Tensor
            Starting value, strictly between the bounds.
        learn : bool
            Whether it is trained.
        batch_shape : torch.Size
            Shape of a batch of independent values, `[*batch_shape, 1]`.
        lower : float, optional
            Another lower bound for this module.

        Raises
        ------
        InputError
            For a value out of bounds.
        """
        low = self.lower if lower is None else lower
        bounded = math.isfinite(self.upper)
        constraint = Interval(low, self.upper) if bounded else GreaterThan(low)
        raw = torch.nn.Parameter(
            torch.zeros(*batch_shape, 1, dtype=torch.float64), requires_grad=learn
        )
        module.register_parameter(f"raw_{self.name}", raw)
        module.register_constraint(f"raw_{self.name}", constraint.double())
        self.__set__(module, value)

    @overload
    def __get__(self, module: None, owner: type) -> "BoundedParameter": ...

    @overload
    def __get__(self, module: gpytorch.Module, owner: type) -> Tensor: ...

    def __get__(self, module: Any, owner: type) -> "BoundedParameter | Tensor":
        if module is None:
            return self
        constraint = getattr(module, f"raw_{self.name}_constraint")
        return constraint.transform(getattr(module, f"raw_{self.name}"))

    def __set__(self, module: gpytorch.Module, value: float | Tensor) -> None:
        constraint = getattr(module, f"raw_{self.name}_constraint")
        raw = getattr(module, f"raw_{self.name}")
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        low, high = float(constraint.lower_bound), float(constraint.upper_bound)
        if not bool(((value > low) & (value < high) & value.isfinite()).all()):
            range_ = f"exceed {low}" if math.isinf(high) else f"lie strictly in ({low}, {high})"
            raise InputError(
                f"{self.name} must be finite and {range_}, got {value.detach().tolist()}. Pass a "
                "value inside."
            )
        module.initialize(**{f"raw_{self.name}": constraint.inverse_transform(value)})
