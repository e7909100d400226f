"""Spectral distributions of stationary kernels, and draws from them.

By Bochner's theorem a stationary kernel of unit variance is the characteristic function of a random
frequency, ``k(x, x') = E cos(w'(x - x'))``. An RBF kernel has normal frequencies, a Matern kernel
multivariate t, a rational quadratic kernel a gamma mixture of normals. A periodic kernel has
frequencies that are multiples of the base frequency: the weights of its Fourier series are scaled
modified Bessel functions, which are the probabilities of the difference of two equal Poisson
variables.

References
----------
Rahimi, A. & Recht, B. (2007). Random features for large-scale kernel machines.
Rasmussen, C. E. & Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, section 4.2.
Solin, A. & Särkkä, S. (2014). Explicit link between periodic covariance functions and state space
models.
"""

import math
from collections.abc import Callable

import torch
from gpytorch.kernels import Kernel, MaternKernel, PeriodicKernel, RBFKernel, RQKernel
from scipy.special import gammaincinv
from torch import Tensor

from gpvi.kernels.matern import HalfIntegerMaternKernel

__all__ = ["SPECTRA", "normal_numbers", "uniform_numbers"]


def normal_numbers(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers in the dtype and on the device of ``like``."""
    draws = torch.randn(shape, dtype=torch.float64, device=generator.device, generator=generator)
    return draws.to(like)


def uniform_numbers(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Numbers in [0, 1) in the dtype and on the device of ``like``."""
    draws = torch.rand(shape, dtype=torch.float64, device=generator.device, generator=generator)
    return draws.to(like)


def _normal(kernel: Kernel, dims: int, count: int, generator: torch.Generator) -> Tensor:
    lengthscale = kernel.lengthscale.mT
    shape = (*kernel.batch_shape, dims, count)
    return normal_numbers(shape, generator, lengthscale) / lengthscale


def _student(kernel: Kernel, dims: int, count: int, generator: torch.Generator) -> Tensor:
    half_integer = isinstance(kernel, HalfIntegerMaternKernel)
    freedom = 2 * kernel.order + 1 if half_integer else round(2 * kernel.nu)
    normal = _normal(kernel, dims, count, generator)
    shape = (*kernel.batch_shape, freedom, count)
    chi_square = normal_numbers(shape, generator, normal).square().sum(-2, keepdim=True)
    return normal * (freedom / chi_square).sqrt()


def _gamma_mixture(kernel: Kernel, dims: int, count: int, generator: torch.Generator) -> Tensor:
    normal = _normal(kernel, dims, count, generator)
    uniform = uniform_numbers((*kernel.batch_shape, 1, count), generator, normal)
    alpha = kernel.alpha.unsqueeze(-1)
    precision = gammaincinv(alpha.double().cpu().numpy(), uniform.double().cpu().numpy())
    return normal * (torch.as_tensor(precision).to(normal) / alpha).sqrt()


def _multiples(kernel: Kernel, dims: int, count: int, generator: torch.Generator) -> Tensor:
    lengthscale, period = kernel.lengthscale.mT, kernel.period_length.mT
    rate = (0.5 / lengthscale).expand(*kernel.batch_shape, dims, count)
    rate = rate.to(generator.device, torch.float64)
    multiple = torch.poisson(rate, generator) - torch.poisson(rate, generator)
    return 2 * math.pi * multiple.to(period) / period


#: Draws of `count` frequencies of shape (*batch, dims, count), for exact classes of kernels.
SPECTRA: dict[type[Kernel], Callable[[Kernel, int, int, torch.Generator], Tensor]] = {
    RBFKernel: _normal,
    MaternKernel: _student,
    HalfIntegerMaternKernel: _student,
    RQKernel: _gamma_mixture,
    PeriodicKernel: _multiples,
}
