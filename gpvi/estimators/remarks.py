"""Remarks on a finished fit: what the data did not allow, and what a user may not expect."""

from typing import Any

import gpytorch
import numpy as np

from gpvi.approximations import Approximation, InducingPoints
from gpvi.estimators.inputs import InputColumns
from gpvi.exceptions import DataWarning
from gpvi.kernels import HammingKernel, input_dimensions

__all__ = ["remarks"]


def remarks(
    y: np.ndarray,
    columns: InputColumns,
    kernel: gpytorch.kernels.Kernel,
    approximation: Approximation,
    num_inducing: int | None,
    chosen: Any,
) -> list[tuple[type[Warning], str]]:
    """Remarks on a fit, as warnings to issue.

    Parameters
    ----------
    y : ndarray, shape [N]
        Targets of the fit.
    columns : InputColumns
        Of the inputs.
    kernel : gpytorch.kernels.Kernel
        Of the fit.
    approximation : Approximation
        Of the fit.
    num_inducing : int or None
        As given to the estimator.
    chosen : object
        The approximation as given to the estimator.

    Returns
    -------
    list of tuple
        Category and text.
    """
    texts = []
    if np.ptp(y) == 0.0:
        texts.append(f"y is constant ({y[0]:g}): there is nothing to learn from X.")
    asked = num_inducing is not None or isinstance(chosen, Approximation)
    if isinstance(approximation, InducingPoints):
        points, wanted = approximation.inducing_points, approximation.num_inducing
        if asked and points is not None and wanted is not None and points.shape[-2] < wanted:
            texts.append(
                f"num_inducing is {wanted}, but X holds {points.shape[-2]} distinct rows only: "
                f"{points.shape[-2]} inducing points are used."
            )
    for column in _plain_codes(kernel, columns):
        texts.append(
            f"The kernel takes the codes of the categorical column {columns.label(column)!r} for "
            "numbers; give it a HammingKernel or IndexKernel with active_dims there, or pass the kernel by "
            "name."
        )
    return [(DataWarning, text) for text in texts]


def _plain_codes(kernel: gpytorch.kernels.Kernel, columns: InputColumns) -> list[int]:
    """Categorical columns that some part of a kernel takes for numbers."""
    seen: set[int] = set()
    for part, dims in input_dimensions(kernel, columns.num_features):
        compares = isinstance(part, HammingKernel | gpytorch.kernels.IndexKernel)
        inner = [child for child in part.modules() if isinstance(child, gpytorch.kernels.Kernel)]
        # A part with kernels of its own sees columns through them.
        if not compares and len(inner) == 1:
            seen |= {int(column) for column in dims}
    return [int(column) for column in np.flatnonzero(columns.categorical) if int(column) in seen]
