r"""Control over hyperparameters by name: fixed values, starting values, bounds and priors.

Everything is in the units of the data (see :mod:`gpvi.estimators.units`). The prior "dimension_scaled" is the
one that made vanilla Bayesian optimisation work in high dimensions: with r the range of a column,

.. math:: \ell_d / r_d \sim \mathrm{LogNormal}(\sqrt{2} + \tfrac12 \log D,\; \sqrt{3}),

so that typical distances, which grow like :math:`\sqrt{D}`, stay a fixed number of lengthscales.

References
----------
Hvarfner, C., Hellsten, E. O. & Nardi, L. (2024). Vanilla Bayesian optimization performs great in high
dimensions. ICML.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from numbers import Real
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.constraints import GreaterThan, Interval, LessThan
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from gpvi.estimators.units import Hyperparameter
from gpvi.exceptions import InputError

__all__ = [
    "Fixed",
    "Free",
    "HyperparameterSpec",
    "InDataUnits",
    "apply_hyperparameters",
    "check_hyperparameters",
    "scale_amplitudes",
    "start_hyperparameters",
]

DIMENSION_SCALED = "dimension_scaled"


@dataclass(frozen=True)
class Fixed:
    """A hyperparameter that keeps its value.

    Parameters
    ----------
    value : float or sequence of float
        In the units of the data; a sequence has one value per column.

    Examples
    --------
    >>> Fixed(0.1)
    Fixed(value=0.1)
    """

    value: Any


@dataclass(frozen=True)
class Free:
    """A hyperparameter that is learned, with a starting value, bounds or a prior.

    Parameters
    ----------
    initial : float or sequence of float, optional
        Starting value; chosen from the data if left out.
    bounds : tuple of float, optional
        Lowest and highest value, each a number or one per column; None on one side leaves it open.
    prior : gpytorch prior or "dimension_scaled", optional
        Its log density is added to the objective.

    Examples
    --------
    >>> Free(initial=1.0, bounds=(0.1, 10.0))
    Free(initial=1.0, bounds=(0.1, 10.0), prior=None)
    """

    initial: Any = None
    bounds: Any = None
    prior: Any = None


#: What a hyperparameter may be set to.
HyperparameterSpec = Fixed | Free | gpytorch.priors.Prior | str


@dataclass(frozen=True, eq=False)
class InDataUnits:
    """Closure of a registered prior: the value in the units that the prior is about.

    Parameters
    ----------
    name : str
        Of the constrained value.
    factor, offset : Tensor
        To those units.
    """

    name: str
    factor: Tensor
    offset: Tensor

    def __call__(self, module: torch.nn.Module) -> Tensor:
        value = getattr(module, self.name)
        return value * self.factor.to(value) + self.offset.to(value)


def check_hyperparameters(specs: Any) -> dict[str, Fixed | Free]:
    """Bring a specification to :class:`Fixed` and :class:`Free`.

    Parameters
    ----------
    specs : mapping of str to HyperparameterSpec, or None
        As given to an estimator.

    Returns
    -------
    dict of str to Fixed or Free
        In the same order.

    Raises
    ------
    InputError
        For anything else.
    """
    if specs is None:
        return {}
    if not isinstance(specs, Mapping):
        raise InputError(
            f"hyperparameters is {specs!r}; pass a dict such as {{'noise': Fixed(0.1)}}."
        )
    return {name: _checked(name, spec) for name, spec in specs.items()}


def _checked(name: object, spec: Any) -> Fixed | Free:
    if not isinstance(name, str):
        raise InputError(f"hyperparameters has the key {name!r}; keys are names of parameters.")
    if isinstance(spec, gpytorch.priors.Prior) or isinstance(spec, str):
        spec = Free(prior=spec)
    if isinstance(spec, Fixed):
        return spec
    if not isinstance(spec, Free):
        raise InputError(
            f"hyperparameters[{name!r}] is {spec!r}; pass Fixed(value), Free(initial=, bounds=, prior=), "
            "a gpytorch prior or 'dimension_scaled'."
        )
    if isinstance(spec.prior, str) and spec.prior != DIMENSION_SCALED:
        raise InputError(
            f"The prior of hyperparameters[{name!r}] is {spec.prior!r}; the only one with a name is "
            f"{DIMENSION_SCALED!r}, others are gpytorch priors."
        )
    if spec.prior is not None and not isinstance(spec.prior, str | gpytorch.priors.Prior):
        raise InputError(
            f"The prior of hyperparameters[{name!r}] is {spec.prior!r}; pass a gpytorch prior."
        )
    if spec.bounds is not None and not _is_pair(spec.bounds):
        raise InputError(
            f"The bounds of hyperparameters[{name!r}] are {spec.bounds!r}; pass (low, high)."
        )
    return spec


def _is_pair(bounds: object) -> bool:
    return (
        isinstance(bounds, Sequence | np.ndarray)
        and len(bounds) == 2
        and all(bound is None or _is_numeric(bound) for bound in bounds)
    )


def _is_numeric(bound: object) -> bool:
    if isinstance(bound, Real):
        return not isinstance(bound, bool)
    return isinstance(bound, Sequence | np.ndarray) and np.asarray(bound).dtype.kind in "if"


def apply_hyperparameters(
    specs: Mapping[str, Fixed | Free], parameters: list[Hyperparameter], ranges: np.ndarray
) -> None:
    """Fix parameters and give them priors, in place.

    Call it before starting values are taken from the data (fixed parameters keep theirs), and
    :func:`start_hyperparameters` afterwards.

    Parameters
    ----------
    specs : mapping of str to Fixed or Free
        From :func:`check_hyperparameters`.
    parameters : list of Hyperparameter
        From :func:`gpvi.estimators.units.list_hyperparameters`.
    ranges : ndarray, shape [D]
        Range of every input column in the units of the data, positive.

    Raises
    ------
    InputError
        For names that match nothing and values that do not fit.
    """
    for name, spec, parameter in _resolved(specs, parameters):
        if isinstance(spec, Fixed):
            _assign(parameter, spec.value, name)
            parameter.raw.requires_grad_(False)
        elif spec.prior is not None:
            _register(parameter, spec.prior, ranges, name)


def start_hyperparameters(
    specs: Mapping[str, Fixed | Free], parameters: list[Hyperparameter], ranges: np.ndarray
) -> None:
    """Set bounds, and starting values that take precedence over those from the data, in place.

    A value from the data that lies outside its bounds is moved inside.

    Parameters
    ----------
    specs : mapping of str to Fixed or Free
        From :func:`check_hyperparameters`.
    parameters : list of Hyperparameter
        From :func:`gpvi.estimators.units.list_hyperparameters`.
    ranges : ndarray, shape [D]
        Range of every input column in the units of the data.

    Raises
    ------
    InputError
        For values that do not fit.
    """
    for name, spec, parameter in _resolved(specs, parameters):
        if not isinstance(spec, Free):
            continue
        if spec.bounds is not None:
            _bound(parameter, spec.bounds, name)
        if spec.initial is not None:
            _assign(parameter, spec.initial, name)
        elif spec.prior == DIMENSION_SCALED:
            location, spread = _dimension_scaled(parameter, ranges)
            mode = np.exp(location - spread**2) * _ranges_of(parameter, ranges)
            _assign(parameter, _inside(parameter, mode), name)


def scale_amplitudes(parameters: list[Hyperparameter], target_scale: float) -> None:
    """Bring amplitudes of kernels to the size of the targets, in place.

    Parameters
    ----------
    parameters : list of Hyperparameter
        At starting values for targets of unit standard deviation.
    target_scale : float
        Standard deviation of the targets in the units of the fit.
    """
    for parameter in parameters:
        amplitude = parameter.unit in ("y^2", "y^2/X^2") and parameter.path.startswith("kernel.")
        if amplitude and parameter.raw.requires_grad and target_scale != 1.0:
            _assign(parameter, parameter.value * target_scale**2, parameter.path)


def _resolved(
    specs: Mapping[str, Fixed | Free], parameters: list[Hyperparameter]
) -> list[tuple[str, Fixed | Free, Hyperparameter]]:
    """Which entry speaks for which parameter: of two, the longer name."""
    chosen: dict[str, tuple[str, Fixed | Free, Hyperparameter]] = {}
    for name, spec in specs.items():
        for parameter in _matching(name, parameters):
            other = chosen.get(parameter.path)
            if other is not None and other[0].count(".") == name.count("."):
                raise InputError(
                    f"hyperparameters names {parameter.path} twice, as {other[0]!r} and as {name!r}; say it "
                    "once."
                )
            if other is None or other[0].count(".") < name.count("."):
                chosen[parameter.path] = (name, spec, parameter)
    return list(chosen.values())


def _matching(name: str, parameters: list[Hyperparameter]) -> list[Hyperparameter]:
    found = [
        p for p in parameters if name in (p.path, p.kind, p.name) or p.path.endswith("." + name)
    ]
    if not found:
        known = sorted({p.name for p in parameters}) + sorted(p.path for p in parameters)
        raise InputError(
            f"hyperparameters names {name!r}, which this model does not have; its parameters are "
            f"{', '.join(known)}."
        )
    if name == "lengthscale":
        # Of periodic and Hamming kernels it is a pure number: those need their full name.
        found = [p for p in found if p.unit == "X"] or found
    return found


def _assign(parameter: Hyperparameter, value: object, name: str) -> None:
    try:
        target = parameter.internal(value)
        target = np.broadcast_to(target, parameter.value.shape)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The value {value!r} for hyperparameters[{name!r}] does not fit {parameter.path} of shape "
            f"{parameter.value.shape}; pass a number, or one per column."
        ) from error
    raw, constraint = parameter.raw, _constraint(parameter)
    tensor = torch.as_tensor(target.copy(), dtype=torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"The value {value!r} for hyperparameters[{name!r}] is not finite.")
    if constraint is not None:
        low, high = constraint.lower_bound.double(), constraint.upper_bound.double()
        if not bool(((tensor > low.cpu()) & (tensor < high.cpu())).all()):
            bounds = [_in_data_units(parameter, b) for b in (low, high)]
            raise InputError(
                f"The value {value!r} for hyperparameters[{name!r}] lies outside the range of "
                f"{parameter.path}, which is ({bounds[0]}, {bounds[1]}) in the units of the data."
            )
        tensor = constraint.inverse_transform(tensor.to(low.device))
    with torch.no_grad():
        raw.copy_(tensor.to(raw))


def _in_data_units(parameter: Hyperparameter, bound: Tensor) -> str:
    values = np.unique(np.atleast_1d(bound.cpu().numpy() * parameter.factor + parameter.offset))
    return ", ".join(f"{value:.4g}" for value in values)


def _bound(parameter: Hyperparameter, bounds: tuple[Any, Any], name: str) -> None:
    low = np.asarray(-math.inf if bounds[0] is None else bounds[0], dtype=np.float64)
    high = np.asarray(math.inf if bounds[1] is None else bounds[1], dtype=np.float64)
    if not np.all(low < high):
        raise InputError(
            f"The bounds of hyperparameters[{name!r}] are {bounds!r}; the lower one must be less."
        )
    old = _constraint(parameter)
    floor = -math.inf if old is None else float(old.lower_bound.max())
    ceiling = math.inf if old is None else float(old.upper_bound.min())
    try:
        shape = np.broadcast_shapes(np.shape(parameter.factor), low.shape, high.shape)
        np.broadcast_to(np.empty(shape), parameter.value.shape)
    except ValueError as error:
        raise InputError(
            f"The bounds {bounds!r} of hyperparameters[{name!r}] do not fit {parameter.path} of shape "
            f"{parameter.value.shape}; pass numbers, or one per column."
        ) from error
    lower = np.maximum(np.broadcast_to(parameter.internal(low), shape), floor)
    upper = np.minimum(np.broadcast_to(parameter.internal(high), shape), ceiling)
    if not (lower < upper).all():
        raise InputError(
            f"The bounds {bounds!r} of hyperparameters[{name!r}] leave nothing of the range of "
            f"{parameter.path}; move them."
        )
    if any(np.isinf(side).any() and not np.isinf(side).all() for side in (lower, upper)):
        raise InputError(
            f"The bounds {bounds!r} of hyperparameters[{name!r}] are open for some columns and not for "
            "others; give every column a number, or pass None for all."
        )
    raw_name = f"raw_{parameter.name}"
    module = parameter.module
    if not isinstance(module, gpytorch.Module) or not hasattr(module, raw_name):
        raise InputError(f"{parameter.path} cannot be bounded; leave bounds out.")
    constraint = _interval(torch.tensor(lower), torch.tensor(upper))
    value = torch.as_tensor(parameter.internal(parameter.value))
    inside = _clamp(value, torch.tensor(lower), torch.tensor(upper))
    module.register_constraint(raw_name, constraint.to(parameter.raw.device))
    with torch.no_grad():
        parameter.raw.copy_(constraint.inverse_transform(inside).to(parameter.raw))


def _interval(low: Tensor, high: Tensor) -> Interval:
    constraint: Interval
    if bool(torch.isinf(high).all()):
        constraint = GreaterThan(0.0)
    elif bool(torch.isinf(low).all()):
        constraint = LessThan(0.0)
    else:
        constraint = Interval(0.0, 1.0)
    # The constructors round bounds to float32.
    constraint.lower_bound, constraint.upper_bound = low, high
    return constraint


def _clamp(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Move values strictly inside an interval, where the transform still has a slope."""
    width = torch.where(torch.isfinite(high - low), high - low, torch.ones_like(high - low))
    return torch.maximum(torch.minimum(value, high - 1e-3 * width), low + 1e-3 * width)


def _inside(parameter: Hyperparameter, value: np.ndarray) -> np.ndarray:
    constraint = _constraint(parameter)
    if constraint is None:
        return value
    inner = _clamp(
        torch.as_tensor(parameter.internal(value)),
        constraint.lower_bound.double().cpu(),
        constraint.upper_bound.double().cpu(),
    )
    return inner.numpy() * parameter.factor + parameter.offset


def _constraint(parameter: Hyperparameter) -> Interval | None:
    return getattr(parameter.module, f"raw_{parameter.name}_constraint", None)


def _register(parameter: Hyperparameter, prior: Any, ranges: np.ndarray, name: str) -> None:
    module = parameter.module
    if not isinstance(module, gpytorch.Module):
        raise InputError(f"{parameter.path} cannot have a prior; leave it out.")
    factor, offset = np.asarray(parameter.factor), np.asarray(parameter.offset)
    if prior == DIMENSION_SCALED:
        if parameter.unit != "X" or parameter.name != "lengthscale":
            raise InputError(
                f"'dimension_scaled' is a prior of lengthscales; {parameter.path} is something else "
                f"(hyperparameters[{name!r}])."
            )
        location, spread = _dimension_scaled(parameter, ranges)
        prior = LogNormalPrior(torch.tensor(location), torch.tensor(spread))
        factor = factor / _ranges_of(parameter, ranges)
    closure = InDataUnits(parameter.name, torch.as_tensor(factor), torch.as_tensor(offset))
    module.register_prior(f"{parameter.name}_prior", _double(prior), closure)


def _double(prior: gpytorch.priors.Prior) -> gpytorch.priors.Prior:
    return deepcopy(prior).double()


def _dimension_scaled(parameter: Hyperparameter, ranges: np.ndarray) -> tuple[float, float]:
    size = len(parameter.columns) or 1
    return math.sqrt(2.0) + 0.5 * math.log(size), math.sqrt(3.0)


def _ranges_of(parameter: Hyperparameter, ranges: np.ndarray) -> np.ndarray:
    own = ranges[list(parameter.columns)] if parameter.columns else ranges
    return own if parameter.is_per_column else np.asarray(float(np.mean(own)))
