"""Warnings that point at the caller's line rather than into this package."""

import sys
import warnings

_OWN_PACKAGES = ("gpvi", "gpytorch", "linear_operator", "torch")


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning whose location is the first frame outside gpvi, gpytorch and torch."""
    level = 2
    frame = sys._getframe(1)
    # Module names, not paths: a user's own folders may bear any name.
    while frame.f_back is not None and _package(frame.f_globals) in _OWN_PACKAGES:
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def _package(namespace: dict[str, object]) -> str:
    return str(namespace.get("__name__", "")).partition(".")[0]
