"""State-space forms of GPyTorch's kernels.

A kernel is taken apart into sums and products down to parts whose form is known, so that the states
of the whole are on the graph of the parameters that the kernel already has. See Solin, A. (2016).
Stochastic differential equation methods for spatio-temporal Gaussian process regression. Aalto
University.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import gpytorch
import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from torch import Tensor

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import linear
from gpvi.kernels._block_algebra import (
    WeightedBlock,
    constant_block,
    matern_block,
    multiply,
    polynomial_block,
    scale,
)
from gpvi.kernels._harmonics import harmonic_variances
from gpvi.kernels.power import PowerKernel
from gpvi.kernels.state_space import StateSpaceForm, StateSpaceKernel
from gpvi.linalg.markov.launched import SteadyBlock
from gpvi.linalg.markov.rational import RationalBlock

__all__ = ["as_state_space", "has_state_space"]


@dataclass(frozen=True)
class _Options:
    """How parts without an exact form are approximated."""

    rbf_order: int
    periodic_tolerance: float


@dataclass(frozen=True)
class _Part:
    """A converted part of a kernel: what it is called, and which column it sees (None: all)."""

    blocks: list[WeightedBlock]
    label: str
    column: int | None
    in_space: bool = False


def as_state_space(
    kernel: Kernel, *, rbf_order: int = 6, periodic_tolerance: float = 1e-6
) -> StateSpaceForm:
    r"""State-space form of a kernel on the line.

    Exact for Matern kernels of every order, cosines, constants, linear and polynomial kernels, and
    whatever kernel has a method `state_space`; for their sums, products, integer powers and scaled
    versions. Two kernels are approximated:

    - RBF kernels by a process whose inverse spectrum is a Taylor polynomial. The largest error of
      the correlation is 5.6e-2, 1.2e-2, 2.6e-3, 6.1e-4 and 1.5e-4 for orders 2, 4, 6, 8 and 10.
    - Periodic kernels by as many harmonics as leave out a variance of at most
      `periodic_tolerance`, rescaled to the right variance. GPyTorch's lengthscale enters unsquared,
      :math:`\exp(-2 \sin^2(\pi \tau / T) / \lambda)`. At :math:`\lambda = 1` the default takes
      7 harmonics, at 0.1 it takes 17.

    A spectral mixture is a sum of products of both, an RBF kernel and a cosine.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel. `active_dims` may pick the column that is time.
    rbf_order : {2, 4, 6, 8, 10}, default 6
        Number of states for an RBF kernel.
    periodic_tolerance : float, default 1e-6
        Variance that the harmonics of a periodic kernel may lack, relative to its variance.

    Returns
    -------
    StateSpaceForm
        On the graph of the kernel's parameters.

    Raises
    ------
    UnsupportedError
        If a part of the kernel has no state-space form; the message names the part.
    InputError
        If an option is out of range, or `kernel` is no kernel.

    References
    ----------
    Hartikainen, J. & Särkkä, S. (2010). Kalman filtering and smoothing solutions to temporal
    Gaussian process regression models. MLSP.

    Solin, A. & Särkkä, S. (2014). Explicit link between periodic covariance functions and state
    space models. AISTATS.

    Examples
    --------
    >>> from gpytorch.kernels import CosineKernel, MaternKernel, ScaleKernel
    >>> from gpvi.kernels import as_state_space
    >>> form = as_state_space(ScaleKernel(MaternKernel(nu=2.5)) * CosineKernel())
    >>> form.labels, form.dimension
    (('matern52 * cosine',), 6)
    """
    if not isinstance(kernel, Kernel):
        raise InputError(f"kernel must be a gpytorch Kernel, got {type(kernel).__name__}.")
    if rbf_order not in (2, 4, 6, 8, 10):
        raise InputError(f"rbf_order must be 2, 4, 6, 8 or 10, got {rbf_order!r}.")
    if not 0.0 < periodic_tolerance < 1.0:
        raise InputError(f"periodic_tolerance must lie in (0, 1), got {periodic_tolerance!r}.")
    options = _Options(rbf_order, periodic_tolerance)
    parts = _convert_terms(kernel, options)
    blocks = [item for part in parts for item in part.blocks]
    return StateSpaceForm(
        blocks=tuple(item.block for item in blocks),
        terms=tuple(number for number, part in enumerate(parts) for _ in part.blocks),
        labels=_unique([part.label for part in parts]),
        time_dim=_common_column(parts) or 0,
        weights=tuple(item.weight for item in blocks),
    )


def has_state_space(kernel: Kernel) -> bool:
    """Whether :func:`as_state_space` can convert a kernel.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        The kernel to examine.

    Returns
    -------
    bool
        True if it can, at the kernel's present values.

    Examples
    --------
    >>> from gpytorch.kernels import MaternKernel, RQKernel
    >>> from gpvi.kernels import has_state_space
    >>> has_state_space(MaternKernel(nu=0.5)), has_state_space(RQKernel())
    (True, False)
    """
    try:
        as_state_space(kernel)
    except UnsupportedError:
        return False
    return True


def _terms(kernel: Kernel) -> list[tuple[Kernel, int | None]]:
    """The additive terms of a kernel, each with the column that its sum has selected."""
    if type(kernel) is not AdditiveKernel:
        return [(kernel, None)]
    column = _select(kernel, None, select=True)
    found = [pair for term in kernel.kernels for pair in _terms(term)]
    return [(term, column if inner is None else inner) for term, inner in found]


def _convert_terms(kernel: Kernel, options: _Options) -> list[_Part]:
    """All additive terms; a refusal says which one it is about."""
    terms, parts = _terms(kernel), []
    for number, (term, column) in enumerate(terms):
        try:
            parts.append(_convert(term, column, True, options))
        except UnsupportedError as error:
            if len(terms) == 1:
                raise
            raise UnsupportedError(f"Term {number + 1} of {len(terms)}: {error}") from None
    return parts


def _convert(kernel: Kernel, column: int | None, select: bool, options: _Options) -> _Part:
    """One part of the kernel; `column` is the one that the parts around it have selected."""
    column = _select(kernel, column, select)
    if isinstance(kernel, StateSpaceKernel):
        form = kernel.state_space()
        pairs = zip(form.blocks, form.weights, strict=True)
        blocks = [WeightedBlock(*pair) for pair in pairs]
        column = form.time_dim if form.needs_rows else column
        return _Part(blocks, " + ".join(form.labels), column, form.needs_rows)
    kind = type(kernel)
    if kind is ScaleKernel:
        base = _convert(kernel.base_kernel, column, False, options)
        factor = kernel.outputscale
        scaled = [WeightedBlock(scale(b.block, factor), b.weight) for b in base.blocks]
        return replace(base, blocks=scaled)
    if kind is AdditiveKernel:
        parts = [_convert(term, column, True, options) for term in kernel.kernels]
        joined = [item for part in parts for item in part.blocks]
        label = "(" + " + ".join(part.label for part in parts) + ")"
        return _Part(joined, label, _common_column(parts), any(part.in_space for part in parts))
    if kind is ProductKernel:
        return _product([_convert(part, column, True, options) for part in kernel.kernels])
    if kind is PowerKernel:
        base = _convert(kernel.base_kernel, column, True, options)
        power = _product([base] * kernel.power)
        return replace(power, label=f"{base.label}^{kernel.power}")
    leaf = _LEAVES.get(kind)
    if leaf is None:
        raise UnsupportedError(_refusal(kernel))
    if (kernel.ard_num_dims or 1) > 1:
        raise UnsupportedError(
            f"{kind.__name__} with ard_num_dims={kernel.ard_num_dims} has no state-space form: "
            "state space needs one column. Pick the time column with active_dims=(k,) and leave "
            "ard_num_dims out."
        )
    blocks, label = leaf(kernel, options)
    return _Part(blocks, label, column)


def _product(parts: list[_Part]) -> _Part:
    column = _common_column(parts)
    blocks = parts[0].blocks
    label = " * ".join(part.label for part in parts)
    for part in parts[1:]:
        try:
            blocks = [
                product
                for left in blocks
                for right in part.blocks
                for product in multiply(left, right, column or 0)
            ]
        except UnsupportedError as error:
            raise UnsupportedError(f"In {label}: {error}.") from None
    return _Part(blocks, label, column, any(part.in_space for part in parts))


def _select(kernel: Kernel, column: int | None, select: bool) -> int | None:
    """The column that a part sees, in the numbering of the whole kernel's input."""
    # A ScaleKernel takes over the active_dims of its base and then bypasses their selection there.
    if not select or kernel.active_dims is None:
        return column
    chosen = kernel.active_dims.tolist()
    if len(chosen) > 1 and _is_in_space(kernel):
        return chosen[0]
    if len(chosen) != 1 or (column is not None and chosen[0] != 0):
        raise UnsupportedError(
            f"{type(kernel).__name__} with active_dims={tuple(chosen)} has no state-space form: "
            "state space needs one column, the same for all parts."
        )
    return chosen[0] if column is None else column


def _is_in_space(kernel: Kernel) -> bool:
    """Whether the columns of a part beyond the first are a place."""
    while type(kernel) is ScaleKernel:
        kernel = kernel.base_kernel
    return isinstance(kernel, StateSpaceKernel) and kernel.state_space().needs_rows


def _common_column(parts: list[_Part]) -> int | None:
    columns = {part.column for part in parts if part.label != "constant"}
    if columns <= {None, 0} and not (None in columns and any(part.in_space for part in parts)):
        return 0 if 0 in columns else None
    if len(columns) > 1:
        listing = ", ".join(
            f"{part.label}: {'all' if part.column is None else part.column}" for part in parts
        )
        raise UnsupportedError(
            f"The parts of the kernel see different columns ({listing}); state space needs one "
            "column, the same for all parts. Set active_dims of every part to the time column."
        )
    return columns.pop()


def _unique(labels: list[str]) -> tuple[str, ...]:
    """Number labels that occur more than once: "matern32", "matern32 (2)"."""
    found: list[str] = []
    for label in labels:
        label = label.removeprefix("(").removesuffix(")") if label.startswith("(") else label
        name, number = label, 1
        while name in found:
            number += 1
            name = f"{label} ({number})"
        found.append(name)
    return tuple(found)


def _matern(kernel: Kernel, options: _Options) -> tuple[list[WeightedBlock], str]:
    order = int(kernel.nu - 0.5)
    lengthscale = kernel.lengthscale[..., 0, 0]
    block = matern_block(order, lengthscale, torch.ones_like(lengthscale))
    return [WeightedBlock(block)], f"matern{2 * order + 1}2"


def _rbf(kernel: Kernel, options: _Options) -> tuple[list[WeightedBlock], str]:
    lengthscale = kernel.lengthscale[..., 0, 0]
    return [WeightedBlock(RationalBlock.rbf(options.rbf_order, lengthscale))], "rbf"


def _periodic(kernel: Kernel, options: _Options) -> tuple[list[WeightedBlock], str]:
    variances = harmonic_variances(kernel.lengthscale[..., 0, 0], options.periodic_tolerance)
    frequency = 2.0 * torch.pi / kernel.period_length[..., 0, 0]
    blocks = [constant_block(variances[..., 0])]
    for j in range(1, variances.shape[-1]):
        blocks.append(SteadyBlock.make(variances[..., j], j * frequency))
    return [WeightedBlock(block) for block in blocks], "periodic"


def _cosine(kernel: Kernel, options: _Options) -> tuple[list[WeightedBlock], str]:
    frequency = torch.pi / kernel.period_length[..., 0, 0]
    return [WeightedBlock(SteadyBlock.make(torch.ones_like(frequency), frequency))], "cosine"


def _constant(kernel: Kernel, options: _Options) -> tuple[list[WeightedBlock], str]:
    return [WeightedBlock(constant_block(kernel.constant[..., 0]))], "constant"


def _linear(kernel: Kernel, options: _Options) -> tuple[list[WeightedBlock], str]:
    slope = kernel.variance[..., 0, 0]
    return [WeightedBlock(polynomial_block(_stack(torch.zeros_like(slope), slope)))], "linear"


def _polynomial(kernel: Kernel, options: _Options) -> tuple[list[WeightedBlock], str]:
    offset, power = kernel.offset[..., 0], int(kernel.power)
    line = WeightedBlock(polynomial_block(_stack(offset, torch.ones_like(offset))))
    product = [line]
    for _ in range(power - 1):
        product = multiply(product[0], line, 0)
    return product, "polynomial"


def _spectral_mixture(kernel: Kernel, options: _Options) -> tuple[list[WeightedBlock], str]:
    scales, means = kernel.mixture_scales[..., 0, 0], kernel.mixture_means[..., 0, 0]
    found: list[WeightedBlock] = []
    for q in range(kernel.num_mixtures):
        lengthscale = 1.0 / (2.0 * torch.pi * scales[..., q])
        bump = WeightedBlock(RationalBlock.rbf(options.rbf_order, lengthscale))
        wave = SteadyBlock.make(kernel.mixture_weights[..., q], 2.0 * torch.pi * means[..., q])
        found += multiply(bump, WeightedBlock(wave), 0)
    return found, "spectral_mixture"


def _stack(*entries: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*entries), -1)


_Leaf = Callable[[Kernel, _Options], tuple[list[WeightedBlock], str]]

# A subclass may override `forward`, so that anything but the exact classes is unknown.
_LEAVES: dict[type[Kernel], _Leaf] = {
    gpytorch.kernels.MaternKernel: _matern,
    gpytorch.kernels.RBFKernel: _rbf,
    gpytorch.kernels.PeriodicKernel: _periodic,
    gpytorch.kernels.CosineKernel: _cosine,
    gpytorch.kernels.ConstantKernel: _constant,
    gpytorch.kernels.LinearKernel: _linear,
    linear.LinearKernel: _linear,
    gpytorch.kernels.PolynomialKernel: _polynomial,
    gpytorch.kernels.SpectralMixtureKernel: _spectral_mixture,
}

_ADVICE = {
    "WhiteKernel": "put white noise into the likelihood, as its noise variance",
    "RQKernel": "the nearest supported kernels are a sum of Materns of different lengthscales, "
    "and RBF (tabulated)",
    "PiecewisePolynomialKernel": "the nearest supported kernel is a Matern",
    "HammingKernel": "categories have no time axis; give each category a series of its own (groups)",
    "HammingIMQKernel": "categories have no time axis; give each category a series of its own "
    "(groups)",
    "IndexKernel": "use SpaceTimeKernel with a kernel over a fixed set of places",
    "MultitaskKernel": "use several latent processes with a readout",
    "LCMKernel": "use several latent processes with a readout",
    "SpectralDeltaKernel": "the nearest supported kernels are SpectralMixtureKernel and sums of "
    "CosineKernel",
    "RFFKernel": "take the kernel that its features approximate, RBFKernel or MaternKernel",
    "GridInterpolationKernel": "take its base kernel; a state-space form needs no grid",
    "GridKernel": "take its base kernel; a state-space form needs no grid",
    "InducingPointKernel": "take its base kernel; a state-space form needs no inducing points",
    "FractionalBrownianKernel": "MarkovFractionalBrownianKernel comes close",
    "ArcKernel": "take its base kernel, RBFKernel or MaternKernel",
}


def _refusal(kernel: Kernel) -> str:
    name = type(kernel).__name__
    advice = _ADVICE.get(
        name, "supported are Matern, RBF, periodic, cosine, linear, polynomial and constant kernels"
    )
    known = [base.__name__ for base in type(kernel).__mro__[1:] if base in _LEAVES]
    if known and name not in _ADVICE:
        advice = f"it may differ from {known[0]}, which has one; give it a method state_space()"
    return f"{name} has no state-space form: {advice}."
