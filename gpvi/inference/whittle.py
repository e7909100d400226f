r"""Starting hyperparameters of long series from their periodogram, in O(N log N).

On a regular grid with step :math:`\Delta` the discrete Fourier transform nearly decorrelates a
stationary series, so that the log likelihood of its N values is close to

.. math:: -\tfrac12 \sum_{f=0}^{N-1} \left[ \log 2\pi S_f + I_f / S_f \right], \qquad
          I_f = \frac{1}{n} \Big| \sum_t g_t y_t e^{-2\pi i f t / N} \Big|^2, \quad n = \sum_t g_t.

The weights :math:`g` are zero for missing values and one for the others. Whittle's likelihood puts
the spectral density in the place of :math:`S_f`, which is wrong by aliasing, leakage and gaps. The
debiased one takes the expectation of :math:`I_f` under the model, with all three in it:

.. math:: S_f = \sum_{|j| < N} \frac{a_j}{n} k(j \Delta) \, e^{-2\pi i f j / N}
                + \frac{1}{n} \sum_t g_t \sigma_t^2, \qquad a_j = \sum_t g_t g_{t + |j|}.

Without gaps :math:`a_j / n` is the triangle :math:`1 - |j| / N`. A likelihood that is not Gaussian
gets pseudo-observations :math:`\lambda_1 / \lambda_2` with noise :math:`1 / \lambda_2` from its
sites. (The posterior mean in their place drives the lengthscale to infinity, as it is smooth
already.)

References
----------
Sykulski, A. M., Olhede, S. C., Guillaumin, A. P., Lilly, J. M. & Early, J. J. (2019). The debiased
Whittle likelihood. Biometrika 106.
Guillaumin, A. P., Sykulski, A. M., Olhede, S. C. & Simons, F. J. (2022). The debiased spatial
Whittle likelihood. Journal of the Royal Statistical Society B 84.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from scipy.optimize import minimize
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, Sites
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference._periodogram import GridData, Spectrum, find_grid, stamp_column
from gpvi.inference.cvi import cvi
from gpvi.inference.parameters import ParameterVector, log_prior, unchanged_on_error
from gpvi.likelihoods import Likelihood, as_likelihood
from gpvi.linalg import serial_blas

__all__ = ["debiased_whittle", "whittle_initialize"]

# Stamps may miss their place on the grid by this fraction of a step: for a likelihood, for a start.
_EXACT, _NEAREST = 1e-3, 0.25

# Sites by an exact process up to this many rows.
_MAX_DENSE = 2_000

# A site of this precision leaves all but a thousandth of the prior variance.
_LEAST_INFORMATION = 1e-3

# Fewer values say too little about a spectrum.
_MIN_ROWS = 8

# Lengthscales tried before the ascent, as logarithms of factors; L-BFGS then stays in this reach.
_SHIFTS = math.log(4.0) * np.arange(-6, 3)
_REACH = 7.0

# Answer for points at which numbers leave their range.
_WALL = 1e10


def debiased_whittle(
    gp: GaussianProcess | Kernel, t: Tensor, y: Tensor, noise: Tensor | float | None = None
) -> Tensor:
    r"""Debiased Whittle log likelihood of a series on a regular grid.

    .. math:: -\tfrac12 \frac{n}{N} \sum_{f=0}^{N-1} \left[ \log 2\pi S_f + I_f / S_f \right]

    with the periodogram I of ``y - mean(t)`` and its expectation S under the model, for n observed
    values on a grid of N places. Close to the log likelihood, and equal to it for white noise.

    Parameters
    ----------
    gp : GaussianProcess or gpytorch kernel
        Stationary, with batch dims ``*b``; a kernel has mean zero.
    t : Tensor, shape [N] or [N, 1]
        Stamps on a regular grid, in any order; places may be left out.
    y : Tensor, shape [N] or [*b, N]
        Values; NaN means not observed.
    noise : Tensor or float, shape broadcastable to [*b, N], optional
        Noise variance, of all rows or of each; none if left out.

    Returns
    -------
    Tensor, shape [*b]
        Nats, differentiable in ``noise`` and the parameters of ``gp``.

    Raises
    ------
    InputError
        If the stamps are not on a grid, or shapes do not fit, or nothing was observed.
    UnsupportedError
        If the process is not stationary.

    Examples
    --------
    >>> import gpytorch, torch
    >>> kernel = gpytorch.kernels.MaternKernel(nu=1.5).double()
    >>> t = torch.arange(100).double()
    >>> debiased_whittle(kernel, t, torch.sin(t), noise=0.1).shape
    torch.Size([])
    """
    process = gp if isinstance(gp, GaussianProcess) else GaussianProcess(gp)
    stamps = stamp_column(t)
    grid = find_grid(stamps, _EXACT)
    if grid is None:
        raise InputError(
            f"The {len(stamps)} stamps do not lie on a regular grid; use the exact log likelihood, or "
            "put them on one, with NaN at places without a value."
        )
    y = y.to(stamps)
    variance = torch.as_tensor(0.0 if noise is None else noise, dtype=y.dtype, device=y.device)
    spectrum = Spectrum(grid, stamps, GridData(y, lambda: variance, ~torch.isnan(y)))
    if not spectrum.fewest_values:
        raise InputError(
            f"No value was observed in some series of y, of shape {tuple(y.shape)}; every series needs one."
        )
    if not spectrum.suits(process):
        raise UnsupportedError(
            f"The {type(process.kernel).__name__} is not stationary: its covariance does not depend on "
            "time differences alone. A periodogram has no use then; use the exact log likelihood."
        )
    return spectrum.log_likelihood(process)


def whittle_initialize(
    gp: GaussianProcess,
    likelihood: GPyTorchLikelihood,
    x: Tensor,
    y: Tensor,
    *,
    sites: Sites | None = None,
    weights: Tensor | None = None,
    max_iter: int = 100,
    **rows: Tensor,
) -> bool:
    """Fit hyperparameters by the debiased Whittle likelihood, in place.

    A start for the exact evidence, at the price of some Fourier transforms: the lengthscales are
    first moved together to the best of nine sizes, then everything follows by L-BFGS. Registered
    priors count. Parameters of a Gaussian likelihood are fitted too; those of any other stay.

    Parameters
    ----------
    gp : GaussianProcess
        Stationary.
    likelihood : gpytorch or gpvi likelihood
        Any.
    x : Tensor, shape [N, 1]
        Stamps near a regular grid (within a quarter of a step), in any order.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    sites : Sites, optional
        On data rows, from CVI at the starting values, for a likelihood that is not Gaussian. Left
        out, an exact process makes them, for at most 2,000 rows.
    weights : Tensor, shape [N], optional
        Row weights.
    max_iter : int
        The most L-BFGS iterations.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    bool
        False, with nothing changed, where this is not the tool: stamps off a grid or repeated, a
        process that is not stationary, or fewer than eight values.

    Raises
    ------
    InputError
        If ``x`` has several columns, if shapes do not fit, or if sites are needed.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import parse_kernel
    >>> from gpvi.likelihoods import GaussianLikelihood
    >>> t = torch.arange(200).double()
    >>> gp = GaussianProcess(parse_kernel("matern32", 1))
    >>> whittle_initialize(gp, GaussianLikelihood(), t.unsqueeze(-1), torch.sin(0.1 * t))
    True
    """
    if max_iter < 1:
        raise InputError(f"max_iter is {max_iter}; it must be at least 1.")
    model = as_likelihood(likelihood)
    stamps, y = stamp_column(x), y.to(x)
    x = stamps.unsqueeze(-1)
    extras: dict[str, Any] = dict(rows) if weights is None else {**rows, "weights": weights}
    model.check_targets(y, **extras)
    grid = find_grid(stamps, _NEAREST)
    if grid is None:
        return False
    _, missing, extras = model.prepare(y, x, len(stamps), extras)
    modules: dict[str, torch.nn.Module] = {"gp": gp}
    if model.num_latents == 1 and model.gaussian_noise(y, **extras) is not None:
        modules["likelihood"] = model
        shares = extras.pop("weights", torch.ones_like(y))
        data = _gaussian_data(model, y, ~missing & (shares > 0), shares, extras)
    else:
        if sites is None:
            sites = _dense_sites(gp, model, x, y, extras)
        data = _pseudo_data(gp, x, sites)
    spectrum = Spectrum(grid, stamps, data)
    if spectrum.fewest_values < _MIN_ROWS or not spectrum.suits(gp):
        return False

    def objective() -> Tensor:
        return spectrum.log_likelihood(gp).sum() + log_prior(list(modules.values()))

    with unchanged_on_error(modules.values()), serial_blas():
        _ascend(ParameterVector(modules), objective, len(stamps), max_iter)
    return True


def _gaussian_data(
    likelihood: Likelihood, y: Tensor, observed: Tensor, shares: Tensor, extras: dict[str, Any]
) -> GridData:
    """Targets with their noise, which a weight w divides by w."""
    shares = torch.where(observed, shares, 1.0)

    def noise() -> Tensor:
        variance = likelihood.gaussian_noise(y, **extras)
        assert variance is not None
        return variance / shares

    return GridData(y, noise, observed)


def _pseudo_data(gp: GaussianProcess, x: Tensor, sites: Sites) -> GridData:
    """What Gaussian targets would have the given sites."""
    if sites.on != "data" or sites.full:
        raise InputError(f"The sites are on {sites.on!r}; pass diagonal sites on data rows.")
    with torch.no_grad():
        # The huge noise of rows that say nothing would drown the others. No row that says something
        # is left out, nor weighted less: that would prefer one side of f and bias its mean.
        informed = sites.lam2 * gp.variance(x) > _LEAST_INFORMATION
    precision = torch.where(informed, sites.lam2, 1.0).detach()
    return GridData(sites.lam1.detach() / precision, precision.reciprocal, informed)


def _dense_sites(
    gp: GaussianProcess, likelihood: Likelihood, x: Tensor, y: Tensor, extras: dict[str, Any]
) -> Sites:
    """Sites of CVI with the exact process."""
    if len(x) > _MAX_DENSE:
        raise InputError(
            f"{type(likelihood).__name__} needs sites, and an exact process is too slow for {len(x)} rows; "
            "pass the sites of gpvi.inference.cvi with another approximation."
        )
    return cvi(Exact().prior(gp, x), likelihood, y, **extras).sites


def _ascend(
    vector: ParameterVector, objective: Callable[[], Tensor], num_rows: int, max_iter: int
) -> None:
    """L-BFGS from the best of some lengthscales, to the best point that it meets."""
    best_value, best = math.inf, vector.values()

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best_value, best
        vector.assign(point)
        value = objective()
        slope = -vector.gradient(value) / num_rows
        result = -float(value.detach()) / num_rows
        if not (math.isfinite(result) and np.isfinite(slope).all()):
            return _WALL, np.zeros(len(point))
        if result < best_value:
            best_value, best = result, point.copy()
        return result, slope

    is_length = np.zeros(vector.size)
    for name, place in vector.slices().items():
        is_length[place] = name.endswith("raw_lengthscale")
    start = best
    for shift in _SHIFTS if is_length.any() else (0.0,):
        loss(start + shift * is_length)
    if best_value < math.inf:
        bounds = list(zip(best - _REACH, best + _REACH, strict=True))
        minimize(
            loss, best, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": max_iter}
        )
    vector.assign(best)
