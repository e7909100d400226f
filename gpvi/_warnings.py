"""Warnings that point at the caller's line rather than into this package, and a way to collect them."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["collect_warnings", "warn", "without"]

_OWN_PACKAGES = ("gpvi", "gpytorch", "linear_operator", "torch")

# Not a setting: only the innermost `collect_warnings` of this very call chain sees it.
_COLLECTED: ContextVar[list[tuple[type[Warning], str]] | None] = ContextVar(
    "collected", default=None
)


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning whose location is the first frame outside gpvi, gpytorch and torch."""
    collected = _COLLECTED.get()
    if collected is not None:
        collected.append((category, message))
        return
    level = 2
    frame = sys._getframe(1)
    # Module names, not paths: a user's own folders may bear any name.
    while frame.f_back is not None and _package(frame.f_globals) in _OWN_PACKAGES:
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


@contextmanager
def collect_warnings() -> Iterator[list[tuple[type[Warning], str]]]:
    """Keep this package's own warnings in a list instead of issuing them."""
    collected: list[tuple[type[Warning], str]] = []
    token = _COLLECTED.set(collected)
    try:
        yield collected
    finally:
        _COLLECTED.reset(token)


@contextmanager
def without(category: type[Warning]) -> Iterator[None]:
    """Drop this package's own warnings of one category; others are issued at the end."""
    with collect_warnings() as collected:
        yield
    for kind, message in collected:
        if not issubclass(kind, category):
            warn(message, kind)


def _package(namespace: dict[str, object]) -> str:
    return str(namespace.get("__name__", "")).partition(".")[0]
