"""Options of a factor analysis turned into likelihoods and kernels."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import as_state_space, parse_kernel, set_lengthscales
from gpvi.likelihoods import (
    GaussianLikelihood,
    Likelihood,
    LinearReadoutLikelihood,
    PoissonLikelihood,
    as_likelihood,
)

__all__ = ["build_base", "build_kernels", "check_counts", "start_readout"]

# Share of an output's variance that noise starts with, and the least that it may have.
_START_NOISE, _NOISE_FLOOR = 0.5, 1e-6


def build_base(likelihood: str | gpytorch.likelihoods.Likelihood, y: Tensor) -> Likelihood:
    """Likelihood of one output, a copy where it is a module.

    Parameters
    ----------
    likelihood : {"poisson", "gaussian"} or likelihood
        What was asked for.
    y : Tensor, shape [T, P]
        Observations.

    Returns
    -------
    Likelihood
        In float64.

    Raises
    ------
    InputError
        For an unknown name.
    """
    if isinstance(likelihood, gpytorch.likelihoods.Likelihood):
        return as_likelihood(deepcopy(likelihood).double())
    if likelihood == "poisson":
        return PoissonLikelihood()
    if likelihood == "gaussian":
        observed = ~y.isnan()
        centred = torch.where(observed, y - y.nanmean(0), 0.0)
        variance = centred.square().sum(0) / observed.sum(0)
        variance = torch.where(variance > 0.0, variance, 1.0)
        floor = _NOISE_FLOOR * float(variance.min())
        return GaussianLikelihood(
            noise=(_START_NOISE * variance).unsqueeze(-1),
            min_noise=floor,
            batch_shape=torch.Size([y.shape[1]]),
        )
    raise InputError(
        f'likelihood is {likelihood!r}; pass "poisson", "gaussian" or a likelihood of one output.'
    )


def build_kernels(kernel: Any, num_latents: int, lengthscales: Tensor) -> list[Kernel]:
    """One kernel for every latent, all of them copies.

    Parameters
    ----------
    kernel : str, Kernel or sequence of them
        What was asked for.
    num_latents : int
        K.
    lengthscales : Tensor, shape [K]
        Where those given by name start.

    Returns
    -------
    list of Kernel
        In float64.

    Raises
    ------
    InputError
        If the number of kernels is not K.
    UnsupportedError
        If a kernel has no state-space form, or is not stationary.
    """
    if isinstance(kernel, str | Kernel):
        several = isinstance(kernel, Kernel) and kernel.batch_shape == torch.Size([num_latents])
        parts = [kernel[k] if several else kernel for k in range(num_latents)]
    elif isinstance(kernel, Sequence):
        parts = list(kernel)
    else:
        raise InputError(f"kernel is {kernel!r}; pass a name, a gpytorch kernel or a list of them.")
    if len(parts) != num_latents:
        raise InputError(f"kernel has {len(parts)} entries for {num_latents} latents.")
    kernels = []
    for part, lengthscale in zip(parts, lengthscales, strict=True):
        name = repr(part) if isinstance(part, str) else type(part).__name__
        if isinstance(part, str):
            part = parse_kernel(part, 1)
            set_lengthscales(part, lengthscale.reshape(1))
        elif not isinstance(part, Kernel):
            raise InputError(f"kernel holds {part!r}; pass names or gpytorch kernels.")
        elif part.batch_shape:
            raise InputError(
                f"A kernel has batch shape {tuple(part.batch_shape)}; pass none, or [{num_latents}] "
                "for one entry a latent."
            )
        kernels.append(deepcopy(part).double())
        _check_stationary(kernels[-1], name)
    return kernels


def _check_stationary(kernel: Kernel, name: str) -> None:
    """Refuse a kernel without state-space form, or whose variance changes with time."""
    form = as_state_space(kernel)
    changing = {
        form.labels[term]
        for block, term, weight in zip(form.blocks, form.terms, form.weights, strict=True)
        if weight is not None or not block.stationary
    }
    if changing:
        raise UnsupportedError(
            f"Kernel {name} is not stationary (its term {', '.join(sorted(changing))}), but latents "
            "have prior variance one at all times, since their loadings carry the scale. Use "
            'stationary kernels, such as "matern52", which at a long lengthscale follow trends too.'
        )


def start_readout(base: Likelihood, y: Tensor, num_latents: int) -> LinearReadoutLikelihood:
    """A readout without loadings, whose offset is the mean rough latent value of every output.

    Parameters
    ----------
    base : Likelihood
        Of one output.
    y : Tensor, shape [T, P]
        Observations.
    num_latents : int
        K.

    Returns
    -------
    LinearReadoutLikelihood
        In float64.
    """
    with torch.no_grad():
        latent = base.initial_latent(y.mT)
    offset = torch.zeros(y.shape[1], dtype=y.dtype) if latent is None else latent.mean(-1)
    return LinearReadoutLikelihood(base, y.new_zeros(y.shape[1], num_latents), offset)


def check_counts(base: Likelihood, y: Tensor) -> None:
    """Refuse fractions where spikes are counted.

    Parameters
    ----------
    base : Likelihood
        Of one output.
    y : Tensor, shape [T, P]
        Observations.

    Raises
    ------
    InputError
        Names the first offending value.
    """
    if isinstance(base, PoissonLikelihood):
        fractions = y[~y.isnan() & (y != y.round())]
        if len(fractions):
            raise InputError(
                f"Poisson counts must be whole numbers, got {fractions[0].item()}. Pass counts per "
                'bin instead of rates, or likelihood="gaussian".'
            )
