"""Which classes files may contain, and what becomes of others."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gpytorch
import numpy as np
import pytest
import torch

import gpvi.approximations
import gpvi.kernels
import gpvi.likelihoods
from gpvi.exceptions import InputError, ModelFileError
from gpvi.persistence import load_object, register_class, save_object
from gpvi.persistence.registry import CLASSES, check_savable

FORBIDDEN = (gpvi.approximations.GaussianProcessLike,)


class UsersKernel(gpytorch.kernels.RBFKernel):
    """A user's own kernel."""


def test_unknown_class_is_refused_by_name_when_saving(tmp_path: Path) -> None:
    class Mine(gpytorch.kernels.RBFKernel):
        pass

    kernel = gpytorch.kernels.ScaleKernel(Mine() + gpytorch.kernels.RBFKernel())
    with pytest.raises(
        ModelFileError, match=r"kernel\.base_kernel\.kernels\.0 is of the class .*Mine"
    ):
        save_object(tmp_path / "k", kernel, kind="kernel")
    assert list(tmp_path.iterdir()) == []


def test_unknown_class_is_refused_by_name_when_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_class(UsersKernel, name="mypkg.UsersKernel")
    save_object(tmp_path / "k", UsersKernel(), kind="kernel")
    assert type(load_object(tmp_path / "k", kind="kernel")) is UsersKernel
    monkeypatch.delitem(CLASSES._by_name, "mypkg.UsersKernel")
    with pytest.raises(ModelFileError) as caught:
        load_object(tmp_path / "k", kind="kernel")
    assert str(caught.value) == (
        f"{tmp_path / 'k'} cannot be loaded: the file needs the class 'mypkg.UsersKernel', which is not "
        "registered; import the module that defines it and call "
        "gpvi.persistence.register_class(UsersKernel)."
    )


def test_register_class_is_a_decorator_and_may_be_repeated(round_trip: Callable) -> None:
    @register_class
    class Mine:
        value = 1.0

    assert register_class(Mine) is Mine
    assert CLASSES.name_of(Mine) == f"{Mine.__module__}.{Mine.__qualname__}"
    assert isinstance(round_trip(Mine()), Mine)

    class Child(Mine):
        pass

    assert CLASSES.name_of(Child) is None


def test_another_class_under_one_name_is_refused() -> None:
    def make() -> type:
        class Twin:
            pass

        return Twin

    register_class(make())
    with pytest.raises(InputError, match=r"another class is registered as '.*Twin'"):
        register_class(make())
    with pytest.raises(InputError, match="another class is registered"):
        register_class(make(), name="gpytorch.kernels.RBFKernel")


class Slotted:
    """Attributes outside the dictionary."""

    __slots__ = ("a",)


class SlottedAndMore:
    """Attributes in both places."""

    __slots__ = ("__dict__", "a")


class FromSlotted(Slotted):
    """The same by inheritance."""


class Fields(NamedTuple):
    """A named tuple."""

    a: int


class MoreFields(Fields):
    """A named tuple with attributes besides."""


@pytest.mark.parametrize(
    "bad",
    [
        Slotted,
        SlottedAndMore,
        FromSlotted,
        MoreFields,
        *(
            type("Sub", (base,), {})
            for base in (dict, list, str, int, float, tuple, set, Exception)
        ),
        type("Sub", (torch.Tensor,), {}),
        type("Sub", (np.ndarray,), {}),
        type,
    ],
)
def test_classes_with_hidden_contents_are_refused(bad: type) -> None:
    with pytest.raises(InputError, match="hold data that are not attributes"):
        register_class(bad)
    assert CLASSES.name_of(bad) is None


@pytest.mark.parametrize("bad", [3, "os.system", lambda x: x])
def test_only_classes_can_be_registered(bad: Any) -> None:
    with pytest.raises(InputError, match="takes a class"):
        register_class(bad)


@pytest.mark.parametrize("name", ["", 3])
def test_names_are_strings(name: Any) -> None:
    with pytest.raises(InputError, match="name must be a string"):
        register_class(UsersKernel, name=name)


@pytest.mark.parametrize(
    "package",
    [
        gpvi.approximations,
        gpvi.kernels,
        gpvi.likelihoods,
        gpytorch.kernels,
        gpytorch.means,
        gpytorch.likelihoods,
        gpytorch.priors,
        gpytorch.constraints,
    ],
    ids=lambda package: package.__name__,
)
def test_every_public_class_is_known(package: Any) -> None:
    exported = [getattr(package, name) for name in package.__all__]
    bases = (torch.nn.Module, gpvi.approximations.Posterior, gpvi.approximations.Prior)
    missing = [
        cls
        for cls in exported
        if isinstance(cls, type) and issubclass(cls, bases) and not inspect.isabstract(cls)
        if CLASSES.name_of(cls) is None
    ]
    assert not missing


def test_every_part_of_a_posterior_is_known() -> None:
    """Also the classes that the package keeps to itself: any of them may be held by a posterior."""
    missing = set()
    for info in pkgutil.iter_modules(gpvi.approximations.__path__, "gpvi.approximations."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                if issubclass(value, gpytorch.models.GP):
                    continue  # handed out, and never held
                is_part = dataclasses.is_dataclass(value) or issubclass(value, torch.nn.Module)
                if is_part and not inspect.isabstract(value) and CLASSES.name_of(value) is None:
                    missing.add(value)
    assert not missing


def test_known_classes_are_harmless() -> None:
    """Nothing in the table is a process, a file or a callback, and all of it is in its attributes."""
    for cls in CLASSES:
        check_savable(cls)
        assert cls not in FORBIDDEN
        assert not {"write", "system", "open", "popen"} & {name.lower() for name in dir(cls)}
    names = [CLASSES.name_of(cls) for cls in CLASSES]
    assert len(set(names)) == len(names)
