"""The classes that a saved model may contain, by the name under which files know them.

A loader that imported whatever a file names would run that file's choice of code, so the names are
looked up here and nowhere else. GPyTorch's and gpvi's classes go by the package that exports them:
files outlive a move between private modules.
"""

import inspect
import types
from collections.abc import Iterable, Iterator
from typing import TypeVar

import gpytorch
import sklearn.gaussian_process.kernels
import torch
from gpytorch.likelihoods import noise_models
from gpytorch.priors import wishart_prior
from gpytorch.utils.quadrature import GaussHermiteQuadrature1D
from torch import nn

import gpvi.approximations
import gpvi.inference
import gpvi.kernels
import gpvi.likelihoods
from gpvi.approximations import (
    _left_over,
    _neighbor_inducing_rows,
    _neighbor_inducing_sites,
    _orthogonal_basis,
    _orthogonal_gaussian,
    _orthogonal_prior,
    _orthogonal_solve,
    _state_space_knots,
    exact_posterior,
    features,
    neighbor_geometry,
    whitened,
)
from gpvi.exceptions import InputError
from gpvi.likelihoods import wrapped_multi, wrapped_single
from gpvi.linalg import quadrature

__all__ = ["CLASSES", "register_class"]

ClassT = TypeVar("ClassT", bound=type)

# All public classes of these modules that derive from one of the bases.
_FAMILIES: tuple[tuple[types.ModuleType, tuple[type, ...]], ...] = (
    (gpytorch.kernels, (gpytorch.kernels.Kernel,)),
    (gpytorch.means, (gpytorch.means.Mean,)),
    (gpytorch.constraints, (gpytorch.constraints.Interval,)),
    (gpytorch.priors, (gpytorch.priors.Prior,)),
    (wishart_prior, (gpytorch.priors.Prior,)),
    (gpytorch.likelihoods, (gpytorch.Module,)),
    (noise_models, (gpytorch.Module,)),
    # Hyperparameter priors are made of these.
    (torch.distributions, (torch.distributions.Distribution,)),
    (torch.distributions.transforms, (torch.distributions.Transform,)),
    # Estimators keep the kernel that they were given.
    (sklearn.gaussian_process.kernels, (sklearn.gaussian_process.kernels.Kernel,)),
    (gpvi.kernels, (gpytorch.kernels.Kernel,)),
    (gpvi.likelihoods, (gpytorch.likelihoods.Likelihood,)),
    (wrapped_single, (gpytorch.likelihoods.Likelihood,)),
    (wrapped_multi, (gpytorch.likelihoods.Likelihood,)),
    (gpvi.approximations, (object,)),
    (exact_posterior, (gpvi.approximations.Posterior,)),
    (whitened, (object,)),
    (_state_space_knots, (object,)),
    (neighbor_geometry, (object,)),
    (features, (object,)),
    (_neighbor_inducing_rows, (object,)),
    (_neighbor_inducing_sites, (object,)),
    (_left_over, (object,)),
    (_orthogonal_basis, (object,)),
    (_orthogonal_gaussian, (object,)),
    (_orthogonal_prior, (object,)),
    (_orthogonal_solve, (_orthogonal_solve.DensePrecision, _orthogonal_solve.LowRankPrecision)),
    (quadrature, (quadrature.QuadratureRule,)),
)
# Further ones, one by one: a class whose methods write files or start processes has no place here.
_SINGLE: tuple[tuple[types.ModuleType, tuple[type, ...]], ...] = (
    (
        torch.nn,
        (
            nn.Identity,
            nn.Linear,
            nn.ModuleDict,
            nn.ModuleList,
            nn.ReLU,
            nn.Sequential,
            nn.Sigmoid,
            nn.Softplus,
            nn.Tanh,
        ),
    ),
    (gpytorch.utils.quadrature, (GaussHermiteQuadrature1D,)),
    (
        gpvi.inference,
        (
            gpvi.inference.CVIResult,
            gpvi.inference.FitRecord,
            gpvi.inference.FitResult,
            gpvi.inference.WarmStart,
        ),
    ),
)


class _Plain:
    """A class whose instances are their attributes and nothing else."""


class ClassRegistry:
    """Two-way table of classes and the names that files use for them."""

    def __init__(self) -> None:
        self._by_name: dict[str, type] = {}
        self._by_class: dict[type, str] = {}

    def __iter__(self) -> Iterator[type]:
        """All classes."""
        return iter(self._by_class)

    def add(self, name: str, cls: type) -> None:
        """Enter a class under a name; once entered, both keep each other.

        Parameters
        ----------
        name : str
            As files spell it.
        cls : type
            The class.

        Raises
        ------
        InputError
            If the name belongs to another class, or the class cannot be saved by its attributes.
        """
        other = self._by_name.get(name)
        if other is cls:
            return
        if other is not None:
            raise InputError(
                f"another class is registered as {name!r} already ({other!r}); rename the new one, or "
                "restart Python after editing a class."
            )
        check_savable(cls)
        self._by_name[name] = cls
        self._by_class.setdefault(cls, name)

    def name_of(self, cls: type) -> str | None:
        """Name of a class in files.

        Parameters
        ----------
        cls : type
            Any class.

        Returns
        -------
        str or None
            None for an unknown class; that a base is known does not help.
        """
        return self._by_class.get(cls)

    def get(self, name: str) -> type | None:
        """Class behind a name in a file.

        Parameters
        ----------
        name : str
            As the file spells it.

        Returns
        -------
        type or None
            None for an unknown name.
        """
        return self._by_name.get(name)


def check_savable(cls: type) -> None:
    """Refuse classes whose instances are more than their attributes.

    Parameters
    ----------
    cls : type
        The class.

    Raises
    ------
    InputError
        If instances hold data outside their attribute dictionary.
    """
    if issubclass(cls, tuple):
        complete = hasattr(cls, "_fields") and cls.__dictoffset__ == 0
    else:
        # Slots and built-in bases alike lay an instance out in another way than a plain class.
        complete = _layout(cls) == _layout(_Plain)
    if not complete:
        raise InputError(
            f"instances of {cls.__qualname__} hold data that are not attributes (__slots__, or a base "
            "such as dict, ndarray or Tensor) and would be lost in a file; keep those data in an "
            "ordinary attribute instead."
        )


def _layout(cls: type) -> tuple[int, ...]:
    return cls.__basicsize__, cls.__itemsize__, cls.__dictoffset__, cls.__weakrefoffset__


def register_class(cls: ClassT, *, name: str | None = None) -> ClassT:
    """Let files contain a class of your own: a kernel, mean, likelihood or plain Python class.

    Instances are saved by their attributes and rebuilt without calling ``__init__``. Register the
    class before saving and, in the process that loads, before loading. Usable as a decorator.

    Parameters
    ----------
    cls : type
        The class.
    name : str, optional
        How files name it; ``"module.Class"`` if left out. Give one to be free to move the class.

    Returns
    -------
    type
        The class itself.

    Raises
    ------
    InputError
        If it is not a class, if the name belongs to another class, or if instances hold data that are
        not attributes (subclasses of tensors, arrays and built-in types; ``__slots__``).

    Examples
    --------
    >>> import gpytorch
    >>> from gpvi.persistence import register_class
    >>> @register_class
    ... class DoubledRBF(gpytorch.kernels.RBFKernel):
    ...     def forward(self, x1, x2, **params):
    ...         return 2.0 * super().forward(x1, x2, **params)
    """
    if not isinstance(cls, type):
        raise InputError(f"register_class takes a class, got {cls!r}; pass its type.")
    if name is not None and not (isinstance(name, str) and name):
        raise InputError(f"name must be a string that is not empty, got {name!r}.")
    CLASSES.add(f"{cls.__module__}.{cls.__qualname__}" if name is None else name, cls)
    return cls


def _public_classes(module: types.ModuleType, bases: tuple[type, ...]) -> Iterable[type]:
    # Some libraries' modules have no __all__.
    exported = getattr(module, "__all__", None)
    for name in sorted(vars(module)) if exported is None else exported:
        value = getattr(module, name)
        if not (isinstance(value, type) and issubclass(value, bases)):
            continue
        defined_here = exported is not None or value.__module__ == module.__name__
        if defined_here and not inspect.isabstract(value) and not _is_protocol(value):
            yield value


def _is_protocol(cls: type) -> bool:
    return bool(getattr(cls, "_is_protocol", False))


def _built_in() -> ClassRegistry:
    registry = ClassRegistry()
    for module, bases in _FAMILIES:
        for cls in _public_classes(module, bases):
            if registry.name_of(cls) is None:
                registry.add(f"{module.__name__}.{cls.__name__}", cls)
    for module, classes in _SINGLE:
        for cls in classes:
            registry.add(f"{module.__name__}.{cls.__name__}", cls)
    return registry


#: Every class that files may contain; :func:`register_class` adds to it.
CLASSES = _built_in()
