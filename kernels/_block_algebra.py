"""Scaling and multiplying independent Gauss-Markov processes.

Everything stays a cascade where it can, because cascades have compiled passes: a constant scales, a
cosine turns the other factor, polynomials multiply to polynomials. Only two processes that both
carry noise need a Kronecker product.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpvi.exceptions import UnsupportedError
from gpvi.kernels.state_space import PowerWeight, ProductWeight, RowWeight
from gpvi.linalg.markov.blocks import CascadeBlock, MarkovBlock, matern_noise, stationary_cascade
from gpvi.linalg.markov.dense_blocks import KroneckerBlock, ScaledBlock
from gpvi.linalg.markov.launched import LaunchedBlock, SteadyBlock

__all__ = [
    "WeightedBlock",
    "constant_block",
    "matern_block",
    "multiply",
    "polynomial_block",
    "scale",
]


@dataclass(frozen=True, eq=False)
class WeightedBlock:
    """A block and how its readout depends on the row.

    Attributes
    ----------
    block : MarkovBlock
        The block.
    weight : RowWeight or None
        None for a weight of one.
    """

    block: MarkovBlock
    weight: RowWeight | None = None


def matern_block(
    order: int, lengthscale: Tensor, variance: Tensor, frequency: Tensor | None = None
) -> CascadeBlock:
    """Matern process of smoothness ``order + 1/2``, turning if there is a frequency.

    Parameters
    ----------
    order : int
        ``p``.
    lengthscale : Tensor, shape [*b]
        Lengthscale.
    variance : Tensor, shape [*b]
        Variance.
    frequency : Tensor, shape [*b], optional
        Angular frequency.

    Returns
    -------
    CascadeBlock
        With ``p + 1`` states, or twice as many.
    """
    noise = matern_noise(order) * variance
    start = stationary_cascade(order, noise, rotating=frequency is not None)
    return CascadeBlock(order, math.sqrt(2 * order + 1) / lengthscale, noise, start, frequency)


def constant_block(variance: Tensor) -> SteadyBlock:
    """A constant.

    Parameters
    ----------
    variance : Tensor, shape [*b]
        Variance.

    Returns
    -------
    SteadyBlock
        With one state.
    """
    return SteadyBlock.make(variance)


def polynomial_block(variances: Tensor, origin: Tensor | None = None) -> LaunchedBlock:
    """Random polynomials about an origin.

    Parameters
    ----------
    variances : Tensor, shape [*b, p + 1]
        Variance of each derivative at the origin, the value first.
    origin : Tensor, shape [*b] or (), optional
        The origin; zero if left out.

    Returns
    -------
    LaunchedBlock
        With ``p + 1`` states: the function and its derivatives.
    """
    zero = torch.zeros_like(variances[..., 0])
    return LaunchedBlock(
        order=variances.shape[-1] - 1,
        rate=zero + 1.0,
        noise=zero,
        start=torch.diag_embed(variances),
        damped=False,
        origin=zero if origin is None else origin,
        noiseless=True,
    )


def scale(block: MarkovBlock, factor: Tensor) -> MarkovBlock:
    """Multiply the covariance of a block.

    Parameters
    ----------
    block : MarkovBlock
        The block.
    factor : Tensor, shape [*b]
        Positive.

    Returns
    -------
    MarkovBlock
        A cascade if the block is one.
    """
    if isinstance(block, CascadeBlock):
        return replace(
            block, noise=factor * block.noise, start=factor[..., None, None] * block.start
        )
    if isinstance(block, ScaledBlock):
        return ScaledBlock(block.block, factor * block.scale)
    return ScaledBlock(block, factor)


def multiply(left: WeightedBlock, right: WeightedBlock, column: int) -> list[WeightedBlock]:
    """Blocks whose covariances add up to the product of two.

    Parameters
    ----------
    left, right : WeightedBlock
        Factors.
    column : int
        The column that is time.

    Returns
    -------
    list of WeightedBlock
        One or more.

    Raises
    ------
    UnsupportedError
        For a process that starts at an origin times one that carries noise.
    """
    weight = _product_weight(left.weight, right.weight)
    return [
        WeightedBlock(part.block, _product_weight(weight, part.weight))
        for part in _multiply(left.block, right.block, column)
    ]


def _multiply(left: MarkovBlock, right: MarkovBlock, column: int) -> list[WeightedBlock]:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, SteadyBlock):
            if one.frequency is None:
                return [WeightedBlock(scale(other, one.start[..., 0, 0]))]
            if isinstance(other, CascadeBlock):
                scaled = scale(other, one.start[..., 0, 0])
                assert isinstance(scaled, CascadeBlock)
                return [WeightedBlock(block) for block in _turn(scaled, one.frequency)]
    if _is_polynomial(left) and _is_polynomial(right):
        return _multiply_polynomials(left, right, column)  # type: ignore[arg-type]
    for one, other in ((left, right), (right, left)):
        if isinstance(one, LaunchedBlock) and one.noiseless and other.stationary:
            return _weigh(one, other, column)
    for block in (left, right):
        if not block.stationary:
            raise UnsupportedError(
                "a process that starts at an origin times another that carries noise has no "
                "state-space form with noise that depends on the step alone; add the two kernels "
                "instead, or take a linear kernel for the trend"
            )
    return [WeightedBlock(KroneckerBlock(left, right))]


def _turn(block: CascadeBlock, frequency: Tensor) -> list[CascadeBlock]:
    """A cosine of unit variance times a cascade."""
    if block.frequency is None:
        two = torch.eye(2, dtype=block.start.dtype, device=block.start.device)
        start = torch.kron(block.start.contiguous(), two)
        if isinstance(block, SteadyBlock):
            return [SteadyBlock.make(block.start[..., 0, 0], frequency)]
        return [replace(block, start=start, frequency=frequency)]
    half = scale(block, torch.full_like(block.rate, 0.5))
    assert isinstance(half, CascadeBlock)
    apart, together = block.frequency - frequency, block.frequency + frequency
    return [replace(half, frequency=apart), replace(half, frequency=together)]


def _is_polynomial(block: MarkovBlock) -> bool:
    return isinstance(block, LaunchedBlock) and block.noiseless


def _derivative_variances(block: LaunchedBlock) -> Tensor:
    """Variances of the derivatives at the origin, shape [*b, p + 1]."""
    step = 1 if block.frequency is None else 2
    return block.start.diagonal(dim1=-2, dim2=-1)[..., ::step]


def _weigh(trend: LaunchedBlock, other: MarkovBlock, column: int) -> list[WeightedBlock]:
    """Polynomials, turning or not, times a stationary process: powers of time as row weights."""
    carriers = [WeightedBlock(other)]
    variances = _derivative_variances(trend)
    if trend.frequency is not None:
        unit = torch.ones_like(variances[..., 0])
        carriers = _multiply(SteadyBlock.make(unit, trend.frequency), other, column)
    found = []
    for power in range(trend.order + 1):
        factor = variances[..., power] / math.factorial(power) ** 2
        ones = torch.ones_like(factor)
        weight = PowerWeight(power, ones, trend.origin, column) if power else None
        for carrier in carriers:
            # A monomial that the trend does not have leaves no block behind.
            if bool((factor.detach() != 0).any()):
                joint = _product_weight(weight, carrier.weight)
                found.append(WeightedBlock(scale(carrier.block, factor), joint))
    return found


def _multiply_polynomials(
    left: LaunchedBlock, right: LaunchedBlock, column: int
) -> list[WeightedBlock]:
    if not torch.equal(*torch.broadcast_tensors(left.origin.detach(), right.origin.detach())):
        raise UnsupportedError(
            "a product of two trends about different origins has no state-space form here; give "
            "both the same origin"
        )
    a, b = _derivative_variances(left), _derivative_variances(right)
    entries: list[Tensor | float] = [0.0] * (left.order + right.order + 1)
    for i in range(left.order + 1):
        for j in range(right.order + 1):
            entries[i + j] = entries[i + j] + math.comb(i + j, i) ** 2 * a[..., i] * b[..., j]
    block = polynomial_block(torch.stack([torch.as_tensor(e) for e in entries], -1), left.origin)
    blocks: list[CascadeBlock] = [block]
    for frequency in (left.frequency, right.frequency):
        if frequency is not None:
            blocks = [turned for part in blocks for turned in _turn(part, frequency)]
    return [WeightedBlock(part) for part in blocks]


def _product_weight(left: RowWeight | None, right: RowWeight | None) -> RowWeight | None:
    if left is None or right is None:
        return right if left is None else left
    return ProductWeight(left, right)
