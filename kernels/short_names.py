"""The short names of kernel expressions: what they stand for, and the numbers that some of them take.

Structural time series are sums of a trend, seasons and a rest (Harvey, A. C. (1989). Forecasting,
structural time series models and the Kalman filter), and so have short names of their own here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpytorch.kernels import (
    ConstantKernel,
    CosineKernel,
    Kernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    RQKernel,
)

from gpvi.exceptions import InputError
from gpvi.kernels._parameters import assign_parameter, keep_start
from gpvi.kernels.arc_cosine import ArcCosineKernel
from gpvi.kernels.hamming import HammingKernel
from gpvi.kernels.hida_matern import HidaMaternKernel
from gpvi.kernels.integrated_wiener import IntegratedWienerKernel
from gpvi.kernels.linear import LinearKernel
from gpvi.kernels.matern import HalfIntegerMaternKernel
from gpvi.kernels.seasonal import SeasonalKernel
from gpvi.kernels.white import WhiteKernel
from gpvi.kernels.zonal import ZonalKernel

__all__ = ["KERNELS", "KernelEntry", "KernelNumber"]

# A drifting season forgets its pattern over this many periods, at first.
_DRIFT_PERIODS = 10.0


@dataclass(frozen=True)
class KernelNumber:
    """A number that a short name takes, as in ``season(365.25)``.

    Attributes
    ----------
    name : str
        By which it can also be given: ``season(period=365.25)``.
    kind : {"time", "order", "switch"}
        A positive length of time, in the units of the inputs; a whole number from 0 to 8; or True
        or False.
    required : bool
        Whether it must be given.
    """

    name: str
    kind: str
    required: bool = False

    def check(self, value: object) -> float:
        """The value as a number.

        Parameters
        ----------
        value : object
            A constant of an expression.

        Returns
        -------
        float
            Checked.

        Raises
        ------
        InputError
            Says what the number must be.
        """
        wanted = {
            "time": "a positive number",
            "order": "a whole number from 0 to 8",
            "switch": "True or False",
        }
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        number = float(value) if isinstance(value, int | float) else math.nan
        fits = {
            "time": is_number and 0.0 < number < math.inf,
            "order": is_number and number in range(9),
            "switch": isinstance(value, bool),
        }
        if not fits[self.kind]:
            raise InputError(f"{self.name} is {value!r} and must be {wanted[self.kind]}")
        return number


@dataclass(frozen=True)
class KernelEntry:
    """What a short name stands for.

    Attributes
    ----------
    build : callable
        Makes the kernel from `ard_num_dims` (None for one lengthscale) and `batch_shape`; the
        numbers that were given are keyword arguments.
    variance : str or None
        The kernel's own variance parameter; None for a kernel of unit variance, which a
        `ScaleKernel` scales.
    numbers : tuple of KernelNumber
        What may stand in parentheses behind the name, in this order.
    one_column : bool
        Whether it is a kernel of time only.
    """

    build: Callable[..., Kernel]
    variance: str | None = None
    numbers: tuple[KernelNumber, ...] = ()
    one_column: bool = False


def _matern(nu: float) -> Callable[..., Kernel]:
    def build(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
        return MaternKernel(nu=nu, ard_num_dims=ard_num_dims, batch_shape=batch_shape)

    return build


def _smooth_matern(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return HalfIntegerMaternKernel(3, ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _rbf(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return RBFKernel(ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _rational_quadratic(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return RQKernel(ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _periodic(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    if ard_num_dims is None:  # GPyTorch's class does not take an explicit None here.
        return PeriodicKernel(batch_shape=batch_shape)
    return PeriodicKernel(ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _hamming(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return HammingKernel(ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _arc_cosine(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return ArcCosineKernel(ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _zonal(shape: str) -> Callable[..., Kernel]:
    def build(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
        return ZonalKernel(shape, ard_num_dims=ard_num_dims, batch_shape=batch_shape)

    return build


def _linear(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return LinearKernel(batch_shape=batch_shape)


def _white(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return WhiteKernel(batch_shape=batch_shape)


def _constant(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return ConstantKernel(batch_shape=batch_shape)


def _trend(ard_num_dims: int | None, batch_shape: torch.Size, order: float = 1) -> Kernel:
    return IntegratedWienerKernel(int(order), batch_shape=batch_shape)


def _season(
    ard_num_dims: int | None, batch_shape: torch.Size, period: float, learn: float = False
) -> Kernel:
    return _with_period(SeasonalKernel(batch_shape=batch_shape).double(), period, learn)


def _quasi_season(
    ard_num_dims: int | None,
    batch_shape: torch.Size,
    period: float,
    drift: float | None = None,
    learn: float = False,
) -> Kernel:
    kernel = SeasonalKernel(drift_order=1, batch_shape=batch_shape).double()
    time = _DRIFT_PERIODS * period if drift is None else drift
    assign_parameter(kernel, "lengthscale", time)
    keep_start(kernel, "lengthscale")
    return _with_period(kernel, period, learn)


def _cosine(
    ard_num_dims: int | None, batch_shape: torch.Size, period: float, learn: float = False
) -> Kernel:
    # GPyTorch's period is half of one: the time from the highest to the lowest value.
    return _with_period(CosineKernel(batch_shape=batch_shape).double(), 0.5 * period, learn)


def _hida(
    ard_num_dims: int | None, batch_shape: torch.Size, order: float, period: float | None = None
) -> Kernel:
    kernel = HidaMaternKernel(int(order), batch_shape=batch_shape).double()
    if period is not None:
        assign_parameter(kernel, "frequency", 2.0 * math.pi / period)
        keep_start(kernel, "frequency")
    return kernel


def _with_period(kernel: Kernel, period: float, learn: float) -> Kernel:
    """A period is known, and stays, unless it is said to be a starting value."""
    assign_parameter(kernel, "period_length", period)
    keep_start(kernel, "period_length")
    kernel.raw_period_length.requires_grad_(bool(learn))
    return kernel


_PERIOD = KernelNumber("period", "time", required=True)
_LEARN = KernelNumber("learn", "switch")

#: Short names of kernels.
KERNELS: dict[str, KernelEntry] = {
    "matern12": KernelEntry(_matern(0.5)),
    "matern32": KernelEntry(_matern(1.5)),
    "matern52": KernelEntry(_matern(2.5)),
    "matern72": KernelEntry(_smooth_matern),
    "rbf": KernelEntry(_rbf),
    "rational_quadratic": KernelEntry(_rational_quadratic),
    "periodic": KernelEntry(_periodic),
    "hamming": KernelEntry(_hamming),
    "arc_cosine": KernelEntry(_arc_cosine),
    "zonal_matern12": KernelEntry(_zonal("matern12")),
    "zonal_matern32": KernelEntry(_zonal("matern32")),
    "zonal_matern52": KernelEntry(_zonal("matern52")),
    "zonal_rbf": KernelEntry(_zonal("rbf")),
    "linear": KernelEntry(_linear, variance="variance"),
    "constant": KernelEntry(_constant, variance="constant"),
    "white": KernelEntry(_white, variance="variance"),
    "trend": KernelEntry(
        _trend,
        variance="variance",
        numbers=(KernelNumber("order", "order"),),
        one_column=True,
    ),
    "season": KernelEntry(_season, numbers=(_PERIOD, _LEARN), one_column=True),
    "quasi_season": KernelEntry(
        _quasi_season,
        numbers=(_PERIOD, KernelNumber("drift", "time"), _LEARN),
        one_column=True,
    ),
    "cosine": KernelEntry(_cosine, numbers=(_PERIOD, _LEARN), one_column=True),
    "hida": KernelEntry(
        _hida,
        numbers=(KernelNumber("order", "order", required=True), KernelNumber("period", "time")),
        one_column=True,
    ),
}
