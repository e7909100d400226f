"""From the options of an estimator to a kernel, a mean, a likelihood and an approximation."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel, ProductKernel, ScaleKernel

from gpvi.approximations import Approximation, Exact, InducingPoints
from gpvi.estimators.inputs import InputColumns
from gpvi.estimators.validation import check_integer
from gpvi.exceptions import InputError
from gpvi.kernels import HammingKernel, parse_kernel

__all__ = [
    "ApproximationChoice",
    "LikelihoodBuilder",
    "build_kernel",
    "build_likelihood",
    "build_mean",
    "choose",
]

# One exact Cholesky of this size takes well under a second.
_MAX_EXACT_ROWS = 2_000

# Sweeps of a non-Gaussian likelihood per evaluation of the objective.
_SWEEPS = 5

_DEFAULT_INDUCING = 512


def build_kernel(
    spec: Any,
    columns: InputColumns,
    *,
    ard: bool,
    dtype: torch.dtype,
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

    Returns
    -------
    gpytorch.kernels.Kernel
        Shares nothing with ``spec``.
    """
    categorical = columns.categorical
    if not isinstance(spec, str) or not categorical.any():
        return parse_kernel(spec, columns.num_features, ard=ard, dtype=dtype)
    places = torch.arange(columns.num_features)
    mask = torch.from_numpy(categorical)
    levels = HammingKernel(
        ard_num_dims=int(mask.sum()), active_dims=tuple(places[mask].tolist())
    ).to(dtype)
    if bool(mask.all()):
        return ScaleKernel(levels).to(dtype)
    numeric = parse_kernel(spec, int((~mask).sum()), ard=ard, dtype=dtype)
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


@dataclass(frozen=True, eq=False)
class ApproximationChoice:
    """An approximation and why it was taken.

    Parameters
    ----------
    approximation : Approximation
        Not initialised yet.
    reason : str
        One phrase.
    """

    approximation: Approximation
    reason: str


def choose(
    spec: Any,
    *,
    num_rows: int,
    num_inducing: int | None,
    batch_size: int | None,
    gaussian: bool,
    num_latents: int,
) -> ApproximationChoice:
    """Approximation by name, as an object, or chosen by cost.

    Parameters
    ----------
    spec : {"auto", "exact", "inducing"} or Approximation
        An object is copied.
    num_rows : int
        N.
    num_inducing : int or None
        Of "inducing"; None stands for 512.
    batch_size : int or None
        Rows of a minibatch.
    gaussian : bool
        Whether the likelihood is Gaussian: one conditioning per evaluation instead of several.
    num_latents : int
        Latent functions.

    Returns
    -------
    ApproximationChoice
        With the reason.

    Raises
    ------
    InputError
        For anything else.
    """
    if num_inducing is not None:
        check_integer("num_inducing", num_inducing, 1)
    if isinstance(spec, Approximation):
        return ApproximationChoice(deepcopy(spec), "given")
    reason = "asked for"
    name = spec if isinstance(spec, str) else None
    if name == "auto":
        limit = exact_limit(gaussian, num_latents)
        if batch_size is not None:
            name, reason = "inducing", "auto: minibatches need a finite basis"
        elif num_rows <= limit:
            name, reason = "exact", f"auto: {num_rows} rows are at most {limit}"
        else:
            name, reason = "inducing", f"auto: {num_rows} rows are more than {limit}"
    if name == "exact":
        unused = "" if num_inducing is None else f"; num_inducing={num_inducing} is not used"
        return ApproximationChoice(Exact(), reason + unused)
    if name == "inducing":
        size = _DEFAULT_INDUCING if num_inducing is None else num_inducing
        return ApproximationChoice(InducingPoints(int(size)), reason)
    raise InputError(
        f"approximation is {spec!r}; pass 'auto', 'exact', 'inducing' or an Approximation object."
    )


def exact_limit(gaussian: bool, num_latents: int) -> int:
    """Rows up to which exact conditioning costs about as much as 2,000 Gaussian rows.

    Parameters
    ----------
    gaussian : bool
        Whether the likelihood is Gaussian.
    num_latents : int
        Latent functions.

    Returns
    -------
    int
        Rows.
    """
    factors = (1 if gaussian else _SWEEPS) * num_latents
    return round(_MAX_EXACT_ROWS / factors ** (1.0 / 3.0))
