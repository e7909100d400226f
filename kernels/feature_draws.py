"""Random features of a kernel, from its structure.

Linear, constant and one-column cosine kernels, and small products and sums of them, have finitely
many features and are represented exactly. Stationary kernels have frequencies drawn from their
spectra, kernels of categorical columns random phases, and other products and sums combine those of
their parts.
"""

import math
from dataclasses import dataclass, replace
from functools import reduce
from operator import add, mul

import gpytorch
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    CosineKernel,
    Kernel,
    ProductKernel,
    ScaleKernel,
)

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels._spectra import SPECTRA, uniform_numbers
from gpvi.kernels.hamming import HammingKernel
from gpvi.kernels.linear import LinearKernel
from gpvi.kernels.power import PowerKernel
from gpvi.kernels.random_features import RandomFeatures
from gpvi.kernels.structure import input_dimensions
from gpvi.kernels.white import WhiteKernel

__all__ = ["draw_features"]

_LINEAR = (LinearKernel, gpytorch.kernels.LinearKernel)


def draw_features(
    kernel: Kernel,
    num_inputs: int,
    num_features: int = 2000,
    generator: torch.Generator | None = None,
) -> RandomFeatures:
    r"""Random features of a kernel.

    .. math:: k(x, x') \approx \psi(x)^\top \psi(x'), \qquad E[\psi(x)^\top \psi(x')] = k(x, x')

    The error falls as :math:`F^{-1/2}`, relative to the kernel's variance.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        Made of RBF, Matern, rational quadratic, periodic, cosine (of one column), linear, constant
        and Hamming kernels by sums, products, integer powers and scales. Its parameters are read
        once, without gradients.
    num_inputs : int
        Number D of input columns.
    num_features : int
        Number F of features for every random term of a sum; terms with finitely many features have
        exactly those.
    generator : torch.Generator, optional
        Source of randomness; a fresh one seeded by torch if left out.

    Returns
    -------
    RandomFeatures
        A function of inputs, the same at every call.

    Raises
    ------
    InputError
        If ``num_features`` is too small, or the kernel does not fit the inputs.
    UnsupportedError
        For white noise, which is no function of the inputs, and kernels of other classes.

    References
    ----------
    Rahimi, Recht, "Random features for large-scale kernel machines", NIPS 2007.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.kernels import draw_features
    >>> features = draw_features(
    ...     gpytorch.kernels.RBFKernel(), 1, 4000, torch.Generator().manual_seed(0)
    ... )
    >>> values = features(torch.tensor([[0.0], [0.5]]))
    >>> round((values[0] @ values[1]).item(), 1)
    0.8
    """
    if isinstance(num_features, bool) or not isinstance(num_features, int) or num_features < 1:
        raise InputError(f"num_features is {num_features!r}; it must be an integer of at least 1.")
    # Refuses active_dims that do not exist.
    for _ in input_dimensions(kernel, num_inputs):
        pass
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    whole = _Part.of(kernel, list(range(num_inputs)))
    with torch.no_grad():
        return _Drawing(num_inputs, num_features, generator).spread(whole)


@dataclass(frozen=True)
class _Part:
    """A kernel inside a kernel, with the input columns that it sees."""

    kernel: Kernel
    dims: list[int]

    @classmethod
    def of(cls, kernel: Kernel, seen: list[int], select: bool = True) -> "_Part":
        if select and kernel.active_dims is not None:
            seen = [seen[index] for index in kernel.active_dims.tolist()]
        return cls(kernel, seen)

    @property
    def kind(self) -> type[Kernel]:
        return type(self.kernel)

    @property
    def is_product(self) -> bool:
        return self.kind in (ProductKernel, PowerKernel)

    @property
    def is_sum(self) -> bool:
        return self.kind is AdditiveKernel

    def base(self) -> "_Part":
        """The kernel inside a scale, which has taken over the selection of columns."""
        return _Part.of(self.kernel.base_kernel, self.dims, select=False)

    def operands(self) -> "list[_Part]":
        """Terms of a sum, factors of a product (a power has its base several times)."""
        if self.kind is PowerKernel:
            return [_Part.of(self.kernel.base_kernel, self.dims)] * self.kernel.power
        return [_Part.of(kernel, self.dims) for kernel in self.kernel.kernels]


@dataclass(frozen=True)
class _Drawing:
    """Draws of features for one set of inputs."""

    num_inputs: int
    num_features: int
    generator: torch.Generator

    def spread(self, part: _Part) -> RandomFeatures:
        """Features of a whole kernel: every term of a sum gets its own."""
        finite = self.finite(part, self.num_features)
        if finite is not None:
            return finite
        if part.kind is ScaleKernel:
            return self.spread(part.base()).scaled(part.kernel.outputscale)
        if part.is_sum:
            return reduce(add, [self.spread(term) for term in part.operands()])
        if part.is_product:
            return self._spread_product(part)
        return self.draw(part, self.num_features)

    def _spread_product(self, part: _Part) -> RandomFeatures:
        """Finite factors meet every random feature, so that they stay exact."""
        exact, rest = None, []
        for factor in part.operands():
            finite = self.finite(factor, self.num_features)
            size = 1 if exact is None else exact.num_features
            if finite is not None and size * finite.num_features <= self.num_features:
                exact = finite if exact is None else exact.outer(finite)
            else:
                rest.append(factor)
        if exact is None:
            return self._draw_product(rest, self.num_features)
        count = math.ceil(self.num_features / exact.num_features)
        return exact.outer(self._draw_product(rest, count))

    def finite(self, part: _Part, limit: int) -> RandomFeatures | None:
        """The exact features of a kernel that has few, None for others.

        A composition has few if there are at most `limit`; a single kernel has no more than columns.
        """
        if part.kind in _LINEAR:
            return self._linear(part)
        if part.kind is ConstantKernel:
            return RandomFeatures.amplitudes(part.kernel.constant.sqrt(), self.num_inputs)
        if part.kind is CosineKernel:
            return self._cosine(part)
        if part.kind is ScaleKernel:
            base = self.finite(part.base(), limit)
            return None if base is None else base.scaled(part.kernel.outputscale)
        if part.is_sum or part.is_product:
            return self._finite_composition(part, limit)
        return None

    def _finite_composition(self, part: _Part, limit: int) -> RandomFeatures | None:
        features = None
        for operand in part.operands():
            following = self.finite(operand, limit)
            if following is None:
                return None
            if features is None:
                features = following
                continue
            sizes = features.num_features, following.num_features
            if (sum(sizes) if part.is_sum else sizes[0] * sizes[1]) > limit:
                return None
            features = features + following if part.is_sum else features.outer(following)
        return features

    def draw(self, part: _Part, count: int) -> RandomFeatures:
        """Features of which each, times its number, has the kernel as its expectation.

        Only such features may be multiplied one by one: their order carries no information.
        """
        if part.kind is ScaleKernel:
            return self.draw(part.base(), count).scaled(part.kernel.outputscale)
        finite = self.finite(part, count)
        if finite is not None:
            return self._resample(finite, count)
        if part.is_sum:
            return self._draw_sum(part, count)
        if part.is_product:
            return self._draw_product(part.operands(), count)
        if part.kind in SPECTRA:
            return self._stationary(part, count)
        if part.kind is HammingKernel:
            return self._levels(part, count)
        raise _unsupported(part.kind)

    def _draw_product(self, factors: list[_Part], count: int) -> RandomFeatures:
        features = [self.draw(factor, count) for factor in factors]
        # Each brings the weight 1 / count, and the product needs it once.
        again = features[0].scale.new_tensor(float(count) ** (len(features) - 1))
        return reduce(mul, features).scaled(again)

    def _draw_sum(self, part: _Part, count: int) -> RandomFeatures:
        terms = part.operands()
        if count < len(terms):
            raise InputError(
                f"{count} feature(s) cannot be shared by the {len(terms)} terms of a sum inside a "
                "product; raise num_features."
            )
        sizes = [count // len(terms) + (i < count % len(terms)) for i in range(len(terms))]
        features = [self.draw(term, size) for term, size in zip(terms, sizes, strict=True)]
        return self._shuffled(reduce(add, features))

    def _resample(self, features: RandomFeatures, count: int) -> RandomFeatures:
        """A finite set of features as a random sequence that has each equally often."""
        size = features.num_features
        steps = torch.arange(count, dtype=torch.float64, device=features.scale.device)
        places = (steps + uniform_numbers((), self.generator, steps)) * size / count
        index = places.long().clamp_max(size - 1)
        ratio = features.scale.new_tensor(size / count)
        return self._shuffled(features.take(index).scaled(ratio))

    def _shuffled(self, features: RandomFeatures) -> RandomFeatures:
        device = self.generator.device
        order = torch.randperm(features.num_features, generator=self.generator, device=device)
        return features.take(order.to(features.scale.device))

    def _linear(self, part: _Part) -> RandomFeatures:
        variance = part.kernel.variance.squeeze(-2)
        scale = variance.sqrt().expand(*variance.shape[:-1], len(part.dims))
        features = RandomFeatures.amplitudes(scale, self.num_inputs)
        columns = torch.tensor([part.dims], dtype=torch.int64, device=scale.device)
        return replace(features, columns=columns)

    def _cosine(self, part: _Part) -> RandomFeatures:
        if len(part.dims) != 1:
            raise UnsupportedError(
                f"CosineKernel of {len(part.dims)} columns has no random features (it is no "
                "covariance function there); give it one column by active_dims."
            )
        frequency = math.pi / part.kernel.period_length
        return self._with_phases(part, frequency, torch.ones_like(frequency[..., 0, :]))

    def _stationary(self, part: _Part, count: int) -> RandomFeatures:
        draws = SPECTRA[part.kind](part.kernel, len(part.dims), count, self.generator)
        return self._with_phases(part, draws, torch.full_like(draws[..., 0, :], count**-0.5))

    def _with_phases(
        self, part: _Part, frequencies: torch.Tensor, scale: torch.Tensor
    ) -> RandomFeatures:
        features = RandomFeatures.amplitudes(scale, self.num_inputs)
        dims = torch.tensor(part.dims, dtype=torch.int64, device=scale.device)
        # Added, because active_dims may name a column twice.
        phases = features.frequencies.index_add(-2, dims, frequencies)
        return replace(features, frequencies=phases)

    def _levels(self, part: _Part, count: int) -> RandomFeatures:
        lengthscale = part.kernel.lengthscale.mT
        shape = (*part.kernel.batch_shape, len(part.dims), count)
        # Two levels correlate by rho if with probability rho a feature does not tell them apart.
        blind = (-1.0 / lengthscale).exp()
        active = uniform_numbers(shape, self.generator, lengthscale) >= blind
        bounds = torch.iinfo(torch.int64)
        seeds = torch.randint(
            bounds.min,
            bounds.max,
            (len(part.dims), count),
            generator=self.generator,
            device=self.generator.device,
        )
        scale = lengthscale.new_full((*part.kernel.batch_shape, count), count**-0.5)
        return replace(
            RandomFeatures.amplitudes(scale, self.num_inputs),
            level_columns=tuple(part.dims),
            level_seeds=seeds.to(scale.device),
            level_active=active.to(scale.dtype),
        )


def _unsupported(kind: type[Kernel]) -> UnsupportedError:
    if kind is WhiteKernel:
        return UnsupportedError(
            "WhiteKernel has no random features: white noise is no function that could be "
            "evaluated anywhere. Leave it to the likelihood, or draw values at fixed inputs with "
            "posterior.rsample(x=x)."
        )
    return UnsupportedError(
        f"{kind.__name__} has no random features here; draw values at fixed inputs with "
        "posterior.rsample(x=x), or use RBF, Matern, rational quadratic, periodic, linear, constant "
        "and Hamming kernels and sums, products and scales of them."
    )
