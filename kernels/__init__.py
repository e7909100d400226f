"""Covariance functions: what a kernel is, and how to make one.

Everything here is, makes or examines a GPyTorch kernel: white noise, linear kernels, kernels of
categorical columns and integer powers, kernels from short expressions or scikit-learn objects,
questions about their structure, random features, starting values; and, on the line, kernels of
Gauss-Markov processes and the state-space forms of all that have one.
"""

from gpvi.kernels.arc_cosine import ArcCosineKernel
from gpvi.kernels.feature_draws import draw_features
from gpvi.kernels.fractional import (
    FractionalBrownianKernel,
    FractionalOUKernel,
    MarkovFractionalBrownianKernel,
)
from gpvi.kernels.hamming import HammingKernel
from gpvi.kernels.hida_matern import HidaMaternKernel, HidaMaternMixture
from gpvi.kernels.initialization import set_lengthscales
from gpvi.kernels.integrated_wiener import IntegratedWienerKernel
from gpvi.kernels.lengthscales import column_lengthscales
from gpvi.kernels.linear import LinearKernel
from gpvi.kernels.markov_kernel import MarkovKernel
from gpvi.kernels.matern import HalfIntegerMaternKernel
from gpvi.kernels.parsing import KERNELS, KernelEntry, parse_kernel
from gpvi.kernels.power import PowerKernel
from gpvi.kernels.quasi_periodic import QuasiPeriodicKernel
from gpvi.kernels.random_features import RandomFeatures
from gpvi.kernels.seasonal import SeasonalKernel
from gpvi.kernels.short_names import KernelNumber
from gpvi.kernels.sklearn_conversion import from_sklearn
from gpvi.kernels.space_time import SpaceTimeKernel
from gpvi.kernels.state_space import StateSpaceForm, StateSpaceKernel
from gpvi.kernels.state_space_conversion import as_state_space, has_state_space
from gpvi.kernels.structure import StationaryForm, input_dimensions, is_white, stationary_form
from gpvi.kernels.white import WhiteKernel
from gpvi.kernels.zonal import ZonalForm, ZonalKernel, require_zonal_form, zonal_form

__all__ = [
    "KERNELS",
    "ArcCosineKernel",
    "FractionalBrownianKernel",
    "FractionalOUKernel",
    "HalfIntegerMaternKernel",
    "HammingKernel",
    "HidaMaternKernel",
    "HidaMaternMixture",
    "IntegratedWienerKernel",
    "KernelEntry",
    "KernelNumber",
    "LinearKernel",
    "MarkovFractionalBrownianKernel",
    "MarkovKernel",
    "PowerKernel",
    "QuasiPeriodicKernel",
    "RandomFeatures",
    "SeasonalKernel",
    "SpaceTimeKernel",
    "StateSpaceForm",
    "StateSpaceKernel",
    "StationaryForm",
    "WhiteKernel",
    "ZonalForm",
    "ZonalKernel",
    "as_state_space",
    "column_lengthscales",
    "draw_features",
    "from_sklearn",
    "has_state_space",
    "input_dimensions",
    "is_white",
    "parse_kernel",
    "require_zonal_form",
    "set_lengthscales",
    "stationary_form",
    "zonal_form",
]
