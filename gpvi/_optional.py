"""Imports of packages that only some parts of gpvi need."""

from importlib import import_module
from types import ModuleType

from gpvi.exceptions import MissingDependencyError

__all__ = ["import_optional"]


def import_optional(module: str, purpose: str, command: str) -> ModuleType:
    """Import a module, or say what needs it and how to get it.

    Parameters
    ----------
    module : str
        Full name of the module.
    purpose : str
        What needs it; the subject of the error message.
    command : str
        How to install it.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    MissingDependencyError
        If the package is not installed. An installed package that fails to import raises its own
        error, which says more.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingDependencyError(
            f"{purpose} needs the package {package!r}, which is not installed: {command}",
            name=package,
        ) from error
