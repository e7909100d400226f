"""Functions that models hold as attributes: a fixed table, methods, and accessors of parameters.

A function is saved by its name in a table and never by its code. Methods are saved by name and looked up
in the class of the object that they belong to. What remains are the small closures with which GPyTorch
kernels register hyperparameter priors, such as ``lambda m: m.period_length``; they are recognised by
their code and come back as :class:`Accessor`, which does the same.
"""

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from gpytorch.utils import transforms

_TORCH_FUNCTIONS = (
    "abs",
    "erf",
    "exp",
    "expm1",
    "log",
    "log1p",
    "logit",
    "sigmoid",
    "sqrt",
    "square",
    "tanh",
)


def _table() -> dict[str, Callable]:
    table: dict[str, Callable] = {
        f"torch.{name}": getattr(torch, name) for name in _TORCH_FUNCTIONS
    }
    table["torch.nn.functional.softplus"] = torch.nn.functional.softplus
    inside = [
        transforms.inv_softplus,
        transforms.inv_sigmoid,
        gpytorch.kernels.GaussianSymmetrizedKLKernel().distance_function,
        *(h.hook for h in gpytorch.means.ConstantMean()._load_state_dict_pre_hooks.values()),
    ]
    for function in inside:
        if isinstance(function, types.FunctionType):
            table[f"{function.__module__}.{function.__qualname__}"] = function
    return table


#: Functions that files may name.
FUNCTIONS = _table()
_NAMES = {function: name for name, function in FUNCTIONS.items()}

# What an accessor does, and what the one name in its code must begin with.
_TEMPLATES: dict[str, tuple[types.CodeType, str]] = {
    "read": ((lambda m: m.name).__code__, ""),
    "evaluate": ((lambda m: m.name()).__code__, "_eval_"),
    "set": ((lambda m, v: m.name(v)).__code__, "_set_"),
}
_FORM_FLAGS = (
    inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE
)
# GPyTorch's own closures around a parameter name, in `Module.register_prior`.
_REGISTERED = {
    "Module.register_prior.<locals>.closure_new": "read",
    "Module.register_prior.<locals>.setting_closure_new": "initialize",
}


@dataclass(frozen=True)
class Accessor:
    """Callable that reads or sets one value of a module.

    Parameters
    ----------
    form : {"read", "evaluate", "set", "initialize"}
        What to do.
    name : str
        Attribute, method or parameter.

    Raises
    ------
    ValueError
        If there is no such form, or the name does not go with it.
    """

    form: str
    name: str

    def __post_init__(self) -> None:
        prefix = "" if self.form == "initialize" else _TEMPLATES[self.form][1]
        if not (self.name.isidentifier() and self.name.startswith(prefix)):
            raise ValueError(f"{self.name!r} is no name for the accessor {self.form!r}")

    def __call__(self, module: torch.nn.Module, *values: Any) -> Any:
        """Read or set the value of ``module``."""
        if self.form == "initialize":
            return module.initialize(**{self.name: values[0]})  # type: ignore[operator]
        attribute = getattr(module, self.name)
        return attribute if self.form == "read" else attribute(*values)


def function_name(function: Callable) -> str | None:
    """Name in the table, or None."""
    return _NAMES.get(function)


def as_accessor(function: Callable) -> Accessor | None:
    """The accessor that does what a closure does, or None if it does anything else."""
    if isinstance(function, Accessor):
        return function
    if not isinstance(function, types.FunctionType) or function.__defaults__:
        return None
    form = _REGISTERED.get(function.__qualname__)
    if form and function.__module__ == "gpytorch.module" and function.__closure__:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        return Accessor(form, cells["param"].cell_contents) if set(cells) == {"param"} else None
    code = function.__code__
    for form, (template, prefix) in _TEMPLATES.items():
        if _same_code(code, template) and code.co_names[0].startswith(prefix):
            return Accessor(form, code.co_names[0])
    return None


def find_method(owner: type, name: str) -> types.FunctionType | None:
    """Method that a class defines or inherits, found without running any code.

    The methods of ``torch.nn.Module`` itself are left out: no model holds them as attributes.
    """
    for base in owner.__mro__:
        if base is not torch.nn.Module and name in vars(base):
            found = vars(base)[name]
            return found if isinstance(found, types.FunctionType) else None
    return None


def _same_code(code: types.CodeType, template: types.CodeType) -> bool:
    # Of the flags, those that say where the code was written do not matter.
    same_form = not (code.co_flags ^ template.co_flags) & _FORM_FLAGS
    return (
        same_form
        and len(code.co_names) == 1
        and all(
            getattr(code, part) == getattr(template, part)
            for part in (
                "co_code",
                "co_consts",
                "co_freevars",
                "co_cellvars",
                "co_argcount",
                "co_kwonlyargcount",
            )
        )
    )
