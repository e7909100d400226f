"""Which approximation an estimator takes: by name, as an object, or by cost."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from gpytorch.kernels import (
    ConstantKernel,
    Kernel,
    MaternKernel,
    RBFKernel,
    RQKernel,
    SpectralMixtureKernel,
)

from gpvi.approximations import (
    Approximation,
    Coreset,
    Exact,
    FullScale,
    InducingPoints,
    InterDomain,
    NeighborInducing,
    Orthogonal,
    SparseInverseCholesky,
    SphericalActivationFeatures,
    StateSpace,
)
from gpvi.estimators.validation import check_integer
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import as_state_space, column_lengthscales, zonal_form

__all__ = ["ApproximationChoice", "choose"]

# One exact Cholesky of this size takes well under a second.
_MAX_EXACT_ROWS = 2_000

# Up to this many rows one evaluation of the dense algebra is as cheap as a pass of up to 15 states.
_FEW_ROWS = 500
_FEW_STATES = 15

# Sweeps of a non-Gaussian likelihood per evaluation of the objective.
_SWEEPS = 5

_DEFAULT_INDUCING = 512

# Neighbours carry nearly everything in so few columns, for kernels that are no smoother than Matern-5/2.
_FEW_COLUMNS = 3


# Pseudo-points of a coreset: few enough to be looked at.
_DEFAULT_CORESET = 100

# Neighbours make many inducing points cheap.
_DEFAULT_NEIGHBOR_INDUCING = 2_000

# Inducing points that neighbours take the rest of, and neighbours: every row has features of all points.
_DEFAULT_FULL_SCALE = 100
_FULL_SCALE_NEIGHBORS = 20

# Units of a spherical basis.
_DEFAULT_UNITS = 128


_WITHOUT_POINTS: Mapping[str, type[Approximation]] = MappingProxyType(
    {"exact": Exact, "state_space": StateSpace, "sic": SparseInverseCholesky}
)


def _inducing(number: int | None, kernel: Kernel) -> Approximation:
    return InducingPoints(number or _DEFAULT_INDUCING)


def _coreset(number: int | None, kernel: Kernel) -> Approximation:
    return Coreset(number or _DEFAULT_CORESET)


def _neighbor_inducing(number: int | None, kernel: Kernel) -> Approximation:
    near = "euclidean" if falls_with_distance(kernel) else "correlation"
    return NeighborInducing(number or _DEFAULT_NEIGHBOR_INDUCING, neighbors=near)


def _spherical(number: int | None, kernel: Kernel) -> Approximation:
    return InterDomain(SphericalActivationFeatures(number or _DEFAULT_UNITS, "exponential"))


def _orthogonal(number: int | None, kernel: Kernel) -> Approximation:
    number = number or _DEFAULT_INDUCING
    if number < 2:
        raise InputError(
            f"num_inducing is {number}; approximation='orthogonal' has two blocks and needs at least 2."
        )
    half = number // 2
    if zonal_form(kernel) is not None:
        base = SphericalActivationFeatures(number - half, "exponential")
        return Orthogonal(base, InducingPoints(half))
    return Orthogonal(InducingPoints(number - half), InducingPoints(half), q="block")


def _full_scale(number: int | None, kernel: Kernel) -> Approximation:
    near = "euclidean" if falls_with_distance(kernel) else "correlation"
    rest = SparseInverseCholesky(_FULL_SCALE_NEIGHBORS, neighbors=near)
    return FullScale(InducingPoints(number or _DEFAULT_FULL_SCALE), rest)


# What num_inducing counts: inducing points, pseudo-points, units, both blocks together.
_WITH_POINTS: Mapping[str, Callable[[int | None, Kernel], Approximation]] = MappingProxyType(
    {
        "inducing": _inducing,
        "coreset": _coreset,
        "neighbor_inducing": _neighbor_inducing,
        "spherical": _spherical,
        "orthogonal": _orthogonal,
        "full_scale": _full_scale,
    }
)

_NAMES = ", ".join(repr(name) for name in ("auto", *_WITHOUT_POINTS, *_WITH_POINTS))


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
    kernel: Kernel,
    num_features: int,
    num_rows: int,
    num_inducing: int | None,
    batch_size: int | None,
    gaussian: bool,
    num_latents: int,
) -> ApproximationChoice:
    """Approximation by name, as an object, or chosen by cost.

    Parameters
    ----------
    spec : str or Approximation
        "auto", "exact", "state_space", "sic", "inducing", "coreset", "neighbor_inducing", "spherical",
        "orthogonal", "full_scale"; an object is copied.
    kernel : gpytorch.kernels.Kernel
        Over the inputs.
    num_features : int
        Input columns D.
    num_rows : int
        N.
    num_inducing : int or None
        Size of the basis of approximations that have one; None stands for their default.
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
        For anything else, and state space for more than one column.
    UnsupportedError
        For state space and a kernel without a state-space form.
    """
    if num_inducing is not None:
        check_integer("num_inducing", num_inducing, 1)
    if isinstance(spec, Approximation):
        return ApproximationChoice(deepcopy(spec), "given")
    reason = "asked for"
    name = spec if isinstance(spec, str) else None
    if name == "auto":
        asked = num_inducing is not None or batch_size is not None
        states = None if asked or num_features > 1 else exact_states(kernel)
        local = not asked and has_local_neighbors(kernel, num_features)
        name, reason = _cheapest(num_rows, batch_size, gaussian, num_latents, states, local)
    if name == "sic" and not falls_with_distance(kernel):
        return ApproximationChoice(
            SparseInverseCholesky(neighbors="correlation"),
            f"{reason}; neighbours by correlation, which does not fall with distance here",
        )
    if name is not None and name in _WITHOUT_POINTS:
        if name == "state_space":
            _check_state_space(kernel, num_features)
        unused = "" if num_inducing is None else f"; num_inducing={num_inducing} is not used"
        return ApproximationChoice(_WITHOUT_POINTS[name](), reason + unused)
    if name is not None and name in _WITH_POINTS:
        number = None if num_inducing is None else int(num_inducing)
        return ApproximationChoice(_WITH_POINTS[name](number, kernel), reason)
    raise InputError(f"approximation is {spec!r}; pass {_NAMES} or an Approximation object.")


def _cheapest(
    num_rows: int,
    batch_size: int | None,
    gaussian: bool,
    num_latents: int,
    states: int | None,
    local: bool,
) -> tuple[str, str]:
    """Name and reason of the approximation that "auto" takes."""
    limit = exact_limit(gaussian, num_latents)
    if batch_size is not None:
        return "inducing", "auto: minibatches need a finite basis"
    if states is not None:
        limit = min(limit, dense_limit(gaussian, states))
        if num_rows > limit:
            return "state_space", (
                f"auto: one column, {num_rows} rows are more than {limit}, and the kernel has a state-space "
                "form: exact in linear time"
            )
    if num_rows <= limit:
        return "exact", f"auto: {num_rows} rows are at most {limit}"
    if local:
        return "sic", (
            f"auto: {num_rows} rows are more than {limit}, in at most {_FEW_COLUMNS} columns and with a "
            "rough kernel: every value given its nearest neighbours"
        )
    return "inducing", f"auto: {num_rows} rows are more than {limit}"


def exact_states(kernel: Kernel) -> int | None:
    """States of a kernel whose state-space form is exact.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        Over one column.

    Returns
    -------
    int or None
        At the kernel's present values; None if there is no such form. That of a periodic kernel, which
        lacks a millionth of its variance, counts as exact; that of an RBF kernel does not.
    """
    if any(isinstance(part, RBFKernel | SpectralMixtureKernel) for part in kernel.modules()):
        return None
    try:
        return as_state_space(kernel).dimension
    except UnsupportedError:
        return None


def has_local_neighbors(kernel: Kernel, num_features: int) -> bool:
    """Whether some tens of neighbours carry nearly all that other values say.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        Over the inputs.
    num_features : int
        Columns D.

    Returns
    -------
    bool
        In at most three columns, each with a lengthscale, and for Matern kernels: smoother ones look further
        than their neighbours, and periodic or non-stationary ones elsewhere.
    """
    if num_features > _FEW_COLUMNS:
        return False
    if not all(isinstance(part, MaternKernel | ConstantKernel) for part in leaf_kernels(kernel)):
        return False
    return bool(torch.isfinite(column_lengthscales(kernel, num_features)).all())


def falls_with_distance(kernel: Kernel) -> bool:
    """Whether the nearest inputs are the most correlated ones.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        Over the inputs.

    Returns
    -------
    bool
        For kernels made of Matern, RBF and rational quadratic ones and constants, with a lengthscale.
    """
    local = (MaternKernel, RBFKernel, RQKernel, ConstantKernel)
    if not all(isinstance(part, local) for part in leaf_kernels(kernel)):
        return False
    return any(not isinstance(part, ConstantKernel) for part in leaf_kernels(kernel))


def leaf_kernels(kernel: Kernel) -> list[Kernel]:
    """The kernels that a sum, product or scaled kernel is made of.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        Any.

    Returns
    -------
    list of Kernel
        Those without parts.
    """
    return [
        part
        for part in kernel.modules()
        if isinstance(part, Kernel) and not any(True for _ in part.sub_kernels())
    ]


def _check_state_space(kernel: Kernel, num_features: int) -> None:
    if num_features != 1:
        raise InputError(
            f"approximation='state_space' and X with {num_features} columns: state space is for one column, "
            "time. Pass that column alone, or approximation='auto'; a kernel object that sees one column "
            "only (active_dims) goes with an approximation object, StateSpace(time_dim=...)."
        )
    as_state_space(kernel)


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


def dense_limit(gaussian: bool, states: int) -> int:
    """Rows up to which dense algebra is about as cheap as passes over the states.

    Parameters
    ----------
    gaussian : bool
        Whether the likelihood is Gaussian.
    states : int
        States of the kernel.

    Returns
    -------
    int
        Rows.
    """
    growth = max(1.0, states / _FEW_STATES) ** (2.0 / 3.0)
    return round(_FEW_ROWS * growth / (1 if gaussian else _SWEEPS) ** (1.0 / 3.0))
