r"""Hyperparameters in the units of the data.

Fits run on standardised data. Whoever fixes a lengthscale or reads one wants it in the units of X, so every
parameter comes with the factor between the two. With standardised inputs :math:`x = (X - a) / s` and targets
:math:`(y - b) / t`:

=========================================  ====================
parameter                                  value in data units
=========================================  ====================
lengthscale, period of a kernel            times :math:`s_d`
amplitude (outputscale, constant, white)   times :math:`t^2`
variance of a linear kernel                times :math:`t^2 / s^2` (a further factor: :math:`1 / s^2`)
variance of a trend of order p             times :math:`t^2 / s^{2 p + 1}`
frequency of a kernel                      times :math:`1 / s`
noise variance                             times :math:`t^2`
scale of Student-t and Laplace noise       times :math:`t`
constant mean                              times :math:`t`, plus b
=========================================  ====================

A parameter shared by columns of different scales has no value in data units and stays as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import gpytorch
import numpy as np
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    CosineKernel,
    Kernel,
    PeriodicKernel,
    ProductKernel,
    ScaleKernel,
)

from gpvi.approximations import GaussianProcess
from gpvi.estimators.scaling import Standardizer
from gpvi.kernels import (
    HammingKernel,
    IntegratedWienerKernel,
    LinearKernel,
    WhiteKernel,
    input_dimensions,
)
from gpvi.likelihoods import LaplaceLikelihood, QuantileLikelihood, StudentTLikelihood

__all__ = ["Hyperparameter", "list_hyperparameters"]

# Noise with a scale in the units of y.
_OF_A_SCALE = (StudentTLikelihood, LaplaceLikelihood, QuantileLikelihood)


@dataclass(frozen=True, eq=False)
class Hyperparameter:
    """One parameter of a kernel, mean or likelihood, and its units.

    Parameters
    ----------
    path : str
        Where it is, such as "kernel.base_kernel.lengthscale".
    kind : str
        Class of its owner, in short, and its name: "matern.lengthscale".
    module : torch.nn.Module
        The owner.
    name : str
        Attribute of the owner that holds the constrained value.
    factor, offset : ndarray
        ``data units = factor * value + offset``, broadcasting to the value.
    unit : str
        "X", "y", "y^2", "y^2/X^2", "y^2/X^3", "1/X", "1/X^2" ("f" in place of "y" behind a link), or ""
        for a number without units.
    columns : tuple of int
        Input columns that its kernel sees; empty for other parameters.
    """

    path: str
    kind: str
    module: torch.nn.Module
    name: str
    factor: np.ndarray
    offset: np.ndarray
    unit: str
    columns: tuple[int, ...] = ()

    @property
    def raw(self) -> torch.nn.Parameter:
        """The trained parameter behind the value."""
        raw = getattr(self.module, f"raw_{self.name}", None)
        return getattr(self.module, self.name) if raw is None else raw

    @property
    def is_per_column(self) -> bool:
        """Whether it has one value for every column of its kernel."""
        shape = getattr(self.module, self.name).shape
        return len(self.columns) > 1 and shape[-1:] == (len(self.columns),)

    @property
    def value(self) -> np.ndarray:
        """Today's value in data units."""
        value = getattr(self.module, self.name).detach().double().cpu().numpy()
        return value * self.factor + self.offset

    def internal(self, value: object) -> np.ndarray:
        """A value in data units, brought to the units of the fit.

        Parameters
        ----------
        value : float or array-like
            In data units.

        Returns
        -------
        ndarray
            In the units of the fit.
        """
        return (np.asarray(value, dtype=np.float64) - self.offset) / self.factor


def list_hyperparameters(
    gp: GaussianProcess,
    likelihood: gpytorch.likelihoods.Likelihood,
    x_map: Standardizer,
    y_map: Standardizer,
    target: str = "y",
) -> list[Hyperparameter]:
    """Every parameter of kernel, mean and likelihood with its units.

    Parameters
    ----------
    gp : GaussianProcess
        Kernel and mean.
    likelihood : gpytorch or gpvi likelihood
        Any.
    x_map, y_map : Standardizer
        Of inputs and targets.
    target : str
        What the process predicts: "y", or "f" where a link lies in between.

    Returns
    -------
    list of Hyperparameter
        In the order of the modules.
    """
    kernel = gp.kernel
    dims = {
        id(part): columns
        for part, columns in input_dimensions(kernel, len(np.atleast_1d(x_map.scale)))
    }
    amplitudes = {id(part) for part in _amplitudes(kernel)}
    found = []
    for root, module in (("kernel", kernel), ("mean", gp.mean_module), ("likelihood", likelihood)):
        for path, owner in module.named_modules():
            for name in _names(owner):
                columns = tuple(int(d) for d in dims.get(id(owner), ()))
                factor, offset, unit = _units(
                    owner, name, columns, id(owner) in amplitudes, x_map, y_map
                )
                found.append(
                    Hyperparameter(
                        ".".join(part for part in (root, path, name) if part),
                        f"{_short(owner)}.{name}",
                        owner,
                        name,
                        factor,
                        offset,
                        unit.replace("y", target),
                        columns,
                    )
                )
    return found


def _names(owner: torch.nn.Module) -> Iterator[str]:
    for name, _ in owner.named_parameters(recurse=False):
        public = name.removeprefix("raw_")
        yield public if hasattr(owner, public) else name


def _short(owner: torch.nn.Module) -> str:
    name = type(owner).__name__
    for ending in ("Kernel", "Likelihood", "Mean"):
        name = name.removesuffix(ending)
    return name.lower()


def _amplitudes(kernel: Kernel) -> list[Kernel]:
    """The parts that carry the amplitude of an additive term: one for each factor chain."""
    if isinstance(kernel, AdditiveKernel):
        return [part for term in kernel.kernels for part in _amplitudes(term)]
    if isinstance(kernel, ProductKernel):
        for factor in kernel.kernels:
            found = _amplitudes(factor)
            if found:
                return found
        return []
    own = ScaleKernel | ConstantKernel | WhiteKernel | LinearKernel | IntegratedWienerKernel
    if isinstance(kernel, own):
        # A variance that is held at one inside a product is no amplitude.
        trained = any(p.requires_grad for p in kernel.parameters(recurse=False))
        return [kernel] if trained or isinstance(kernel, ScaleKernel) else []
    return []


def _units(
    owner: torch.nn.Module,
    name: str,
    columns: tuple[int, ...],
    amplitude: bool,
    x_map: Standardizer,
    y_map: Standardizer,
) -> tuple[np.ndarray, np.ndarray, str]:
    one, zero = np.ones(()), np.zeros(())
    y_scale = np.asarray(y_map.scale)
    if isinstance(owner, Kernel):
        factor, unit = _kernel_factor(owner, name, columns, amplitude, x_map, y_scale)
        return factor, zero, unit
    if isinstance(owner, gpytorch.means.ConstantMean) and name == "constant":
        return y_scale, np.asarray(y_map.offset), "y"
    if isinstance(owner, _OF_A_SCALE) and name == "scale":
        return y_scale, zero, "y"
    if name == "noise":
        return y_scale**2, zero, "y^2"
    return one, zero, ""


def _kernel_factor(
    owner: Kernel,
    name: str,
    columns: tuple[int, ...],
    amplitude: bool,
    x_map: Standardizer,
    y_scale: np.ndarray,
) -> tuple[np.ndarray, str]:
    one = np.ones(())
    if name in ("outputscale", "constant") or (
        isinstance(owner, WhiteKernel) and name == "variance"
    ):
        return (y_scale**2, "y^2") if amplitude else (one, "")
    x_scale = np.atleast_1d(x_map.scale)
    scales = x_scale[list(columns)] if columns else x_scale
    ard = getattr(owner, name).shape[-1:] == (len(scales),)
    if not ard and not np.allclose(scales, scales[0], rtol=1e-12):
        return one, ""
    scales = scales if ard else scales[0]
    if isinstance(owner, LinearKernel):
        return (y_scale**2 / scales**2, "y^2/X^2") if amplitude else (1.0 / scales**2, "1/X^2")
    if isinstance(owner, IntegratedWienerKernel):
        power = 2 * owner.order + 1
        unit = f"X^{power}" if power > 1 else "X"
        return (
            (y_scale**2 / scales**power, f"y^2/{unit}")
            if amplitude
            else (1.0 / scales**power, f"1/{unit}")
        )
    if name == "frequency":
        return 1.0 / scales, "1/X"
    of_inputs = name == "period_length" or (
        name == "lengthscale"
        and not isinstance(owner, PeriodicKernel | CosineKernel | HammingKernel)
    )
    return (scales, "X") if of_inputs else (one, "")
