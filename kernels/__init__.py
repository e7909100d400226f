"""Covariance functions: what a kernel is, and how to make one.

Everything here is, makes or examines a GPyTorch kernel: white noise, linear kernels, kernels of
categorical columns and integer powers, kernels from short expressions or scikit-learn objects,
questions about their structure, random features, starting values.
"""

from gpvi.kernels.feature_draws import draw_features
from gpvi.kernels.hamming import HammingKernel
from gpvi.kernels.initialization import set_lengthscales
from gpvi.kernels.linear import LinearKernel
from gpvi.kernels.parsing import KERNELS, KernelEntry, parse_kernel
from gpvi.kernels.power import PowerKernel
from gpvi.kernels.random_features import RandomFeatures
from gpvi.kernels.sklearn_conversion import from_sklearn
from gpvi.kernels.structure import StationaryForm, input_dimensions, is_white, stationary_form
from gpvi.kernels.white import WhiteKernel

__all__ = [
    "KERNELS",
    "HammingKernel",
    "KernelEntry",
    "LinearKernel",
    "PowerKernel",
    "RandomFeatures",
    "StationaryForm",
    "WhiteKernel",
    "draw_features",
    "from_sklearn",
    "input_dimensions",
    "is_white",
    "parse_kernel",
    "set_lengthscales",
    "stationary_form",
]
