"""Every public name exists, is documented in numpydoc form, and has a place in the docs."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gpvi

# Set by Python and by base classes, not by whoever calls.
IMPLICIT = {"self", "cls", "args", "kwargs"}


def public_modules() -> list[str]:
    """Every module of the package without a leading underscore anywhere in its name."""
    names = ["gpvi"]
    for info in pkgutil.iter_modules(gpvi.__path__, "gpvi."):
        names.append(info.name)
    # The mapped packages lie outside gpvi.__path__ in an editable install.
    names += [n for n in ("gpvi.kernels", "gpvi.likelihoods") if n not in names]
    for package in list(names[1:]):
        path = getattr(importlib.import_module(package), "__path__", None)
        if path is not None:
            names += [info.name for info in pkgutil.walk_packages(path, f"{package}.")]
    return [n for n in sorted(set(names)) if not any(p.startswith("_") for p in n.split("."))]


def public_objects() -> list[Any]:
    """Every class and function of ours that some module exports, once each, by its full name."""
    found: dict[str, Any] = {}
    for name in public_modules():
        module = importlib.import_module(name)
        for exported in getattr(module, "__all__", ()):
            value = getattr(module, exported, None)
            is_ours = str(getattr(value, "__module__", "")).split(".")[0] == "gpvi"
            if is_ours and (inspect.isclass(value) or inspect.isfunction(value)):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return [pytest.param(value, id=name) for name, value in sorted(found.items())]


def public_methods(cls: type) -> Iterator[tuple[str, Callable]]:
    """The methods that a class defines itself, static and class methods included."""
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


def own_parameters(value: Any) -> list[inspect.Parameter]:
    """The parameters of a function, or those of a class's own `__init__`."""
    if inspect.isclass(value):
        if issubclass(value, BaseException) and "__init__" not in vars(value):
            return []
        if getattr(value, "_is_protocol", False) or inspect.isabstract(value):
            return []
        if "__init__" not in vars(value) or value.__init__ is object.__init__:
            return []
    parameters = inspect.signature(value).parameters.values()
    return [p for p in parameters if p.name not in IMPLICIT]


def section(docstring: str, title: str) -> str | None:
    """Body of one numpydoc section, or None."""
    match = re.search(
        rf"^{title}\n-{{3,}}\n(.*?)(?=^\S[^\n]*\n-{{3,}}\n|\Z)", docstring, re.M | re.S
    )
    return match.group(1) if match else None


def documented_names(body: str) -> set[str]:
    """The names before the colons of a Parameters section: `a, b : Tensor` gives a and b."""
    heads = re.findall(r"^(\S[^:\n]*?)\s*(?::|$)", body, re.M)
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


@pytest.mark.parametrize("name", public_modules())
def test_module_names_what_it_offers(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    assert isinstance(getattr(module, "__all__", None), list | tuple), f"{name} has no __all__"
    missing = [exported for exported in module.__all__ if not hasattr(module, exported)]
    assert not missing, f"{name}.__all__ lists names that do not exist: {missing}"
    assert len(set(module.__all__)) == len(module.__all__)
    assert not [n for n in module.__all__ if n.startswith("_") and n != "__version__"]


@pytest.mark.parametrize("value", public_objects())
def test_docstring_describes_every_parameter(value: Any) -> None:
    docstring = inspect.cleandoc(value.__doc__ or "")
    is_generated = dataclasses.is_dataclass(value) and docstring.startswith(f"{value.__name__}(")
    assert docstring and not is_generated, "has no docstring"
    summary = docstring.split("\n\n")[0]
    assert summary.endswith((".", "!", ":")), f"the first paragraph is no sentence: {summary!r}"
    parameters = own_parameters(value)
    if not parameters:
        return
    body = section(docstring, "Parameters")
    if body is None and dataclasses.is_dataclass(value):
        body = section(docstring, "Attributes")
    if body is None and inspect.isclass(value):
        body = section(inspect.cleandoc(value.__init__.__doc__ or ""), "Parameters")
    assert body is not None, f"takes {[p.name for p in parameters]} but has no Parameters section"
    missing = {p.name for p in parameters} - documented_names(body)
    assert not missing, f"Parameters section lacks {sorted(missing)}"


@pytest.mark.parametrize("value", public_objects())
def test_every_parameter_is_annotated(value: Any) -> None:
    functions = dict(public_methods(value)) if inspect.isclass(value) else {"": value}
    if inspect.isclass(value) and inspect.isfunction(vars(value).get("__init__")):
        if not getattr(value, "_is_protocol", False):  # typing gives every protocol an __init__
            functions["__init__"] = value.__init__
    for name, function in functions.items():
        for parameter in list(inspect.signature(function).parameters.values()):
            if parameter.name not in {"self", "cls"}:
                assert parameter.annotation is not parameter.empty, f"{name}({parameter.name})"


@pytest.mark.parametrize("value", public_objects())
def test_public_methods_have_docstrings(value: Any) -> None:
    if inspect.isclass(value):
        bare = [n for n, _ in public_methods(value) if not inspect.getdoc(getattr(value, n))]
        assert not bare, f"methods without a docstring: {bare}"


def test_api_page_lists_every_package(source_root: Path) -> None:
    listed = set(re.findall(r"^\s+(gpvi\S*)$", (source_root / "docs" / "api.md").read_text(), re.M))
    expected = {name for name in public_modules() if name.count(".") == 1}
    assert listed == expected


@pytest.fixture(scope="module")
def used_inside(source_root: Path) -> set[str]:
    """Every name, with its module, that one of our modules imports from another."""
    return {
        f"{node.module}.{alias.name}"
        for top in ("gpvi", "kernels", "likelihoods")
        for path in (source_root / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("name", [n for n in public_modules() if n.count(".") > 1])
def test_packages_offer_what_their_modules_offer(name: str, used_inside: set[str]) -> None:
    """The API pages follow the packages' `__all__`: other names serve our own modules only."""
    package = importlib.import_module(name.rpartition(".")[0])
    others = set(importlib.import_module(name).__all__) - set(package.__all__)
    forgotten = [exported for exported in others if f"{name}.{exported}" not in used_inside]
    assert not forgotten, f"neither in {package.__name__}.__all__ nor used by us: {forgotten}"


def test_face_of_the_package_is_documented() -> None:
    elsewhere = {
        exported
        for name in public_modules()[1:]
        for exported in importlib.import_module(name).__all__
    }
    unknown = set(gpvi.__all__) - elsewhere - {"__version__"} - {n[5:] for n in public_modules()}
    assert not unknown, f"exported by gpvi but by no public module: {sorted(unknown)}"
