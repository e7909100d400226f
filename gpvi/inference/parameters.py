r"""Trainable parameters of several modules as one flat vector for a quasi-Newton optimiser.

A parameter that GPyTorch keeps positive (lengthscale, noise, outputscale) is optimised on the log scale
:math:`\theta = \log(\text{value} - \text{lower bound})`, where curvature is even; GPyTorch's softplus is
linear for large values, and the lengthscales of irrelevant columns become very large. Everything else
keeps its own scale.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import gpytorch
import numpy as np
import torch
from gpytorch.constraints import Interval
from torch import Tensor

__all__ = ["ParameterVector", "log_prior", "unchanged_on_error"]

# A log-scale parameter may move by this factor either way: exp(14) is about a million.
_LOG_RANGE = 14.0


class ParameterVector:
    """Flat float64 view of the trainable parameters of modules.

    Parameters
    ----------
    modules : dict of str to torch.nn.Module
        Their parameters with ``requires_grad``; shared ones count once.
    mean_scale : float
        Unit of the parameters of mean functions: about the size of the function values.

    Examples
    --------
    >>> import gpytorch
    >>> kernel = gpytorch.kernels.RBFKernel().double()
    >>> kernel.lengthscale = 2.0
    >>> ParameterVector({"kernel": kernel}).values().round(4)
    array([0.6931])
    """

    def __init__(self, modules: dict[str, torch.nn.Module], mean_scale: float = 1.0) -> None:
        self.names: list[str] = []
        self.parameters: list[torch.nn.Parameter] = []
        self._constraints: list[Interval | None] = []
        self._units: list[float] = []
        seen: set[int] = set()
        for prefix, module in modules.items():
            for name, parameter, constraint in _walk(module):
                if id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                self.names.append(f"{prefix}.{name}")
                self.parameters.append(parameter)
                self._constraints.append(constraint if _is_log(constraint) else None)
                of_mean = constraint is None and name.startswith("mean_module.")
                self._units.append(mean_scale if of_mean else 1.0)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(parameter.numel() for parameter in self.parameters)

    def values(self) -> np.ndarray:
        """Today's values, shape [P].

        Returns
        -------
        ndarray of float64
            Log scale where the parameter is positive.
        """
        parts = [
            _to_log(parameter.detach().double(), constraint) / unit
            for parameter, constraint, unit in self._all
        ]
        return _concatenate(parts)

    @property
    def _all(self) -> Iterator[tuple[torch.nn.Parameter, Interval | None, float]]:
        return zip(self.parameters, self._constraints, self._units, strict=True)

    def assign(self, values: np.ndarray) -> None:
        """Write a vector into the parameters.

        Parameters
        ----------
        values : ndarray, shape [P]
            As from :meth:`values`.
        """
        start = 0
        with torch.no_grad():
            for parameter, constraint, unit in self._all:
                stop = start + parameter.numel()
                part = torch.as_tensor(values[start:stop] * unit).reshape(parameter.shape)
                raw = part if constraint is None else _from_log(part, constraint)
                parameter.copy_(raw.to(parameter))
                start = stop

    def gradient(self, value: Tensor) -> np.ndarray:
        """Gradient of a scalar in this vector's coordinates, shape [P].

        Parameters
        ----------
        value : Tensor, scalar
            With a graph that reaches the parameters.

        Returns
        -------
        ndarray of float64
            Zero for parameters that the value does not depend on.
        """
        if not self.parameters:
            return np.zeros(0)
        gradients = torch.autograd.grad(value, self.parameters, allow_unused=True)
        parts = []
        for (parameter, constraint, unit), gradient in zip(self._all, gradients, strict=True):
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            gradient = gradient.detach().double()
            if constraint is not None:
                gradient = gradient * _raw_slope(parameter.detach().double(), constraint)
            parts.append(gradient * unit)
        return _concatenate(parts)

    def slices(self) -> dict[str, slice]:
        """Where each named parameter stands in the vector.

        Returns
        -------
        dict of str to slice
            In order.
        """
        places, start = {}, 0
        for name, parameter in zip(self.names, self.parameters, strict=True):
            places[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
        return places

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest values: a factor of about a million either way on log scales.

        Returns
        -------
        low, high : ndarray, shape [P]
            Infinite for parameters on their own scale.
        """
        reach = [
            np.full(parameter.numel(), np.inf if constraint is None else _LOG_RANGE)
            for parameter, constraint in zip(self.parameters, self._constraints, strict=True)
        ]
        width = np.concatenate(reach) if reach else np.zeros(0)
        values = self.values()
        return values - width, values + width

    def has_floor(self) -> np.ndarray:
        """Which values are log distances from a positive lower bound, where nothing is lost at the bottom.

        Returns
        -------
        ndarray of bool, shape [P]
            True for a noise with a smallest value, say.
        """
        parts = [
            np.full(
                parameter.numel(),
                constraint is not None and bool((constraint.lower_bound > 0).all()),
            )
            for parameter, constraint in zip(self.parameters, self._constraints, strict=True)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


def log_prior(modules: Sequence[torch.nn.Module]) -> Tensor | float:
    """Sum of the log densities of all GPyTorch priors registered in modules, each counted once.

    Parameters
    ----------
    modules : sequence of torch.nn.Module
        Searched recursively; a submodule that appears twice counts once.

    Returns
    -------
    Tensor or float
        Scalar in nats; 0.0 if there are no priors.

    Examples
    --------
    >>> import gpytorch
    >>> log_prior([gpytorch.kernels.RBFKernel()])
    0.0
    """
    total: Tensor | float = 0.0
    seen: set[int] = set()
    for root in modules:
        for module in root.modules():
            if id(module) in seen or not isinstance(module, gpytorch.Module):
                continue
            seen.add(id(module))
            for prior, closure, _ in module._priors.values():
                total = total + prior.log_prob(closure(module)).sum()
    return total


@contextmanager
def unchanged_on_error(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Put all parameters back, bit by bit, if the block raises.

    Parameters
    ----------
    modules : iterable of torch.nn.Module
        Also parameters that the block registers are taken away again.

    Examples
    --------
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> before = layer.weight.item()
    >>> try:
    ...     with unchanged_on_error([layer]):
    ...         _ = layer.weight.data.zero_()
    ...         raise ValueError
    ... except ValueError:
    ...     layer.weight.item() == before
    True
    """
    saved = [
        (module, name, parameter, None if parameter is None else parameter.detach().clone())
        for root in modules
        for module in root.modules()
        for name, parameter in module._parameters.items()
    ]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for module, name, parameter, value in saved:
                setattr(module, name, parameter)
                if parameter is not None and value is not None:
                    parameter.copy_(value)
        raise


def _walk(
    root: torch.nn.Module,
) -> Iterator[tuple[str, torch.nn.Parameter, Interval | None]]:
    for path, module in root.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            constraint = None
            if isinstance(module, gpytorch.Module):
                constraint = module.constraint_for_parameter_name(name)
            yield f"{path}.{name}" if path else name, parameter, constraint


def _is_log(constraint: Interval | None) -> bool:
    return (
        constraint is not None
        and constraint.enforced
        and bool(torch.isinf(constraint.upper_bound).all())
        and bool(torch.isfinite(constraint.lower_bound).all())
    )


def _to_log(raw: Tensor, constraint: Interval | None) -> Tensor:
    if constraint is None:
        return raw
    value = constraint.transform(raw) - constraint.lower_bound.double()
    return value.clamp_min(torch.finfo(torch.float64).tiny).log()


def _from_log(theta: Tensor, constraint: Interval) -> Tensor:
    return constraint.inverse_transform(constraint.lower_bound.double() + theta.exp())


def _raw_slope(raw: Tensor, constraint: Interval) -> Tensor:
    """d raw / d theta."""
    with torch.enable_grad():
        leaf = raw.clone().requires_grad_()
        value = constraint.transform(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return (value.detach() - constraint.lower_bound.double()) / slope


def _concatenate(parts: list[Tensor]) -> np.ndarray:
    if not parts:
        return np.zeros(0)
    return torch.cat([part.reshape(-1).cpu() for part in parts]).numpy()
