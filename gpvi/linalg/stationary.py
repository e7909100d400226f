"""Stationary kernels as functions of the squared scaled distance, with their slopes.

Hand-written adjoints (the collapsed bound, Vecchia likelihoods) need a correlation ``k(r^2)`` and
its slope ``h = dk/d(r^2)`` rather than a kernel object: with ``r^2 = sum_d (x_d - z_d)^2 / l_d^2``
every derivative by inputs and lengthscales is ``h`` times a polynomial in them. One table holds the
kernels whose ``k`` and ``h`` share one exponential (Rasmussen and Williams, 2006, chapter 4); the
compiled loops in ``gpvi.linalg._stationary_cpu`` follow the same table.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["STATIONARY_KERNELS", "stationary_slope", "stationary_value"]

#: Names of the kernels in the table. The position of a name is its code in the compiled loops.
STATIONARY_KERNELS = ("rbf", "matern12", "matern32", "matern52")

# The slope of Matern-1/2 grows like 1/r. Two inputs closer than 1e-10 lengthscales count as one,
# with slope zero: the middle of the one-sided derivatives, and what keeps sums of slopes finite.
COINCIDENT = 1e-20


def stationary_value(name: str, squared_distance: Tensor) -> Tensor:
    r"""Correlation ``k(r^2)`` of a stationary kernel.

    .. math:: e^{-r^2/2}, \quad e^{-r}, \quad (1 + \sqrt3 r) e^{-\sqrt3 r}, \quad
        (1 + \sqrt5 r + \tfrac53 r^2) e^{-\sqrt5 r}

    for ``"rbf"``, ``"matern12"``, ``"matern32"`` and ``"matern52"``.

    Parameters
    ----------
    name : str
        One of :data:`STATIONARY_KERNELS`.
    squared_distance : Tensor, any shape
        ``r^2``, not negative.

    Returns
    -------
    Tensor, shape of `squared_distance`
        Correlations. Derivatives come from :func:`stationary_slope`; automatic differentiation
        through the square root gives NaN at zero distance.

    Raises
    ------
    InputError
        If the name is not in the table.

    References
    ----------
    C. E. Rasmussen and C. K. I. Williams, *Gaussian Processes for Machine Learning*, 2006.

    Examples
    --------
    >>> import torch
    >>> stationary_value("matern12", torch.tensor([0.0, 4.0]))
    tensor([1.0000, 0.1353])
    """
    return _entry(name)[0](squared_distance)


def stationary_slope(name: str, squared_distance: Tensor) -> Tensor:
    r"""Slope ``h = dk/d(r^2)`` of a stationary kernel.

    .. math:: -\tfrac12 e^{-r^2/2}, \quad -\tfrac{1}{2r} e^{-r}, \quad -\tfrac32 e^{-\sqrt3 r},
        \quad -\tfrac56 (1 + \sqrt5 r) e^{-\sqrt5 r}

    for ``"rbf"``, ``"matern12"``, ``"matern32"`` and ``"matern52"``. Matern-1/2 has no
    derivative at zero distance; inputs closer than 1e-10 lengthscales get slope zero there.

    Parameters
    ----------
    name : str
        One of :data:`STATIONARY_KERNELS`.
    squared_distance : Tensor, any shape
        ``r^2``, not negative.

    Returns
    -------
    Tensor, shape of `squared_distance`
        Slopes, not positive.

    Raises
    ------
    InputError
        If the name is not in the table.

    References
    ----------
    C. E. Rasmussen and C. K. I. Williams, *Gaussian Processes for Machine Learning*, 2006.

    Examples
    --------
    >>> import torch
    >>> stationary_slope("rbf", torch.tensor([0.0]))
    tensor([-0.5000])
    """
    return _entry(name)[1](squared_distance)


def _rbf(r2: Tensor) -> Tensor:
    return torch.exp(-0.5 * r2)


def _rbf_slope(r2: Tensor) -> Tensor:
    return -0.5 * torch.exp(-0.5 * r2)


def _matern12(r2: Tensor) -> Tensor:
    return torch.exp(-r2.sqrt())


def _matern12_slope(r2: Tensor) -> Tensor:
    r = r2.clamp_min(COINCIDENT).sqrt()
    return torch.where(r2 > COINCIDENT, -0.5 * torch.exp(-r) / r, 0.0)


def _matern32(r2: Tensor) -> Tensor:
    t = sqrt(3.0) * r2.sqrt()
    return (1.0 + t) * torch.exp(-t)


def _matern32_slope(r2: Tensor) -> Tensor:
    return -1.5 * torch.exp(-sqrt(3.0) * r2.sqrt())


def _matern52(r2: Tensor) -> Tensor:
    t = sqrt(5.0) * r2.sqrt()
    return (1.0 + t + t.square() / 3.0) * torch.exp(-t)


def _matern52_slope(r2: Tensor) -> Tensor:
    t = sqrt(5.0) * r2.sqrt()
    return (-5.0 / 6.0) * (1.0 + t) * torch.exp(-t)


_TABLE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "rbf": (_rbf, _rbf_slope),
    "matern12": (_matern12, _matern12_slope),
    "matern32": (_matern32, _matern32_slope),
    "matern52": (_matern52, _matern52_slope),
}


def _entry(name: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    if name not in _TABLE:
        raise InputError(
            f"unknown stationary kernel {name!r}; choose one of {', '.join(STATIONARY_KERNELS)}, "
            "or evaluate the kernel yourself and call the generic function."
        )
    return _TABLE[name]
