"""From the options of an estimator to a kernel, a mean and a likelihood."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import (
    Kernel,
    ProductKernel,
    ScaleKernel,
)

from gpvi.estimators.inputs import InputColumns
from gpvi.exceptions import InputError
from gpvi.kernels import (
    HammingKernel,
    parse_kernel,
)

__all__ = [
    "LikelihoodBuilder",
    "build_kernel",
    "build_likelihood",
    "build_mean",
]


def build_kernel(
    spec: Any,
    columns: InputColumns,
    *,
    ard: bool,
    dtype: torch.dtype,
    time_scale: float = 1.0,
) -> Kernel:
    """Kernel over all columns: an expression's kernel, times a Hamming kernel for categories.

    Parameters
    ----------
    spec : str, gpytorch kernel or scikit-learn kernel
        Objects are copied and see the columns as they are, categories as codes.
    columns : InputColumns
        Of the inputs.
    ard : bool
        One lengthscale per column, for expressions.
    dtype : torch.dtype
        Of the parameters.
    time_scale : float
        By which numeric inputs were divided: periods in an expression are in the units before.

    Returns
    -------
    gpytorch.kernels.Kernel
        Shares nothing with ``spec``.
    """
    categorical = columns.categorical
    if not isinstance(spec, str) or not categorical.any():
        return parse_kernel(spec, columns.num_features, ard=ard, dtype=dtype, time_scale=time_scale)
    places = torch.arange(columns.num_features)
    mask = torch.from_numpy(categorical)
    levels = HammingKernel(
        ard_num_dims=int(mask.sum()), active_dims=tuple(places[mask].tolist())
    ).to(dtype)
    if bool(mask.all()):
        return ScaleKernel(levels).to(dtype)
    numeric = parse_kernel(spec, int((~mask).sum()), ard=ard, dtype=dtype, time_scale=time_scale)
    numeric.active_dims = places[~mask]
    return ProductKernel(numeric, levels)


def build_mean(spec: Any, batch_shape: torch.Size) -> gpytorch.means.Mean:
    """Prior mean.

    Parameters
    ----------
    spec : {"constant", "zero"} or gpytorch mean
        An object is copied.
    batch_shape : torch.Size
        One mean for every latent function.

    Returns
    -------
    gpytorch.means.Mean
        Shares nothing with ``spec``.

    Raises
    ------
    InputError
        For anything else.
    """
    if isinstance(spec, gpytorch.means.Mean):
        return deepcopy(spec)
    if isinstance(spec, str) and spec == "constant":
        return gpytorch.means.ConstantMean(batch_shape=batch_shape)
    if isinstance(spec, str) and spec == "zero":
        return gpytorch.means.ZeroMean(batch_shape=batch_shape)
    raise InputError(f"mean is {spec!r}; pass 'constant', 'zero' or a gpytorch mean.")


#: Makes a likelihood whose starting values suit targets of a given standard deviation.
LikelihoodBuilder = Callable[[float], gpytorch.likelihoods.Likelihood]


def build_likelihood(
    spec: Any, known: Mapping[str, LikelihoodBuilder], target_scale: float
) -> gpytorch.likelihoods.Likelihood:
    """Likelihood by name or as an object.

    Parameters
    ----------
    spec : str or a likelihood
        An object is copied.
    known : mapping of str to callable
        Builders by name.
    target_scale : float
        Standard deviation of the targets in the units of the fit.

    Returns
    -------
    gpytorch or gpvi likelihood
        Shares nothing with ``spec``.

    Raises
    ------
    InputError
        For anything else.
    """
    if isinstance(spec, gpytorch.likelihoods.Likelihood):
        return deepcopy(spec)
    if isinstance(spec, str) and spec in known:
        return known[spec](target_scale)
    names = ", ".join(repr(name) for name in known)
    raise InputError(f"likelihood is {spec!r}; pass {names} or a likelihood object.")
