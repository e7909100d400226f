"""Warnings that point at the caller's line rather than into this package."""

import os
import sys
import warnings

_PACKAGE_ROOTS = tuple(
    os.sep + part + os.sep for part in ("gpvi", "kernels", "likelihoods", "gpytorch", "torch")
)


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning whose location is the first frame outside gpvi, gpytorch and torch."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and any(
        root in frame.f_code.co_filename for root in _PACKAGE_ROOTS
    ):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level - 1 if level > 2 else level)
