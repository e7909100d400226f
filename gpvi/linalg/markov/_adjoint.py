"""The compiled passes as differentiable operations.

The log partition generates everything: its derivatives by the sites are the moments, and the derivative
of its gradient along a direction of the sites is the gradient of the moments. The latter comes from the
same passes in complex arithmetic.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpvi.exceptions import NumericalError, UnsupportedError
from gpvi.linalg.markov._compiled import Passes, element

__all__ = ["LogPartition", "Smooth", "prepare", "refuse_graph", "run_forward"]

# An imaginary step so small that its square vanishes: derivatives come out to full precision.
_IMAGINARY = 1e-30


class LogPartition(torch.autograd.Function):
    """Forward pass; the backward pass runs when a gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, lam1: Tensor, lam2: Tensor, *tensors: Tensor) -> Tensor:
        ctx.passes, ctx.keep = passes, any(ctx.needs_input_grad)
        ctx.save_for_backward(lam1, lam2, *tensors)
        totals, ctx.stores = run_forward(passes, lam1, lam2, tensors, ctx.keep)
        return torch.from_numpy(totals)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph()
        lam1, lam2, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        gradients = _Gradients(ctx.passes, lam1, lam2, tuple(tensors), wanted)
        # A second backward pass through the same graph finds its moments given away.
        stores = ctx.stores
        if stores is None:
            _, stores = run_forward(ctx.passes, lam1, lam2, tuple(tensors), True)
        ctx.stores = None
        for number in range(len(lam1)):
            gradients.add_log_partition(number, upstream[number], stores[number])
            ctx.passes.give_back(stores[number])
        return None, *gradients.collected()


class Smooth(torch.autograd.Function):
    """Both passes; derivatives of the moments are those of the gradient along a direction."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, lam1: Tensor, lam2: Tensor, *tensors: Tensor) -> Any:
        ctx.passes = passes
        ctx.set_materialize_grads(False)
        totals, stores = run_forward(passes, lam1, lam2, tensors, True)
        ctx.stores = stores if any(ctx.needs_input_grad) else None
        mean, variance = torch.empty_like(lam1), torch.empty_like(lam2)
        divergence = np.empty_like(totals)
        weight = np.ones(totals.shape[1])
        for b in range(len(lam1)):
            arrays, (j, w) = element(tensors, b), element((lam1, lam2), b)
            result = passes.backward(arrays, j, w, stores[b], weight, keep=False)
            mean[b], variance[b] = torch.from_numpy(result.mean), torch.from_numpy(result.variance)
            divergence[b] = result.divergence
        ctx.save_for_backward(lam1, lam2, mean, variance, *tensors)
        local = torch.from_numpy(divergence)
        ctx.mark_non_differentiable(local)
        return torch.from_numpy(totals), mean, variance, local

    @staticmethod
    def backward(
        ctx: Any,
        by_total: Tensor | None,
        by_mean: Tensor | None,
        by_variance: Tensor | None,
        _: Any,
    ) -> tuple[Tensor | None, ...]:
        refuse_graph()
        lam1, lam2, mean, variance, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        gradients = _Gradients(ctx.passes, lam1, lam2, tuple(tensors), wanted)
        for number in range(len(lam1)):
            if by_total is not None:
                gradients.add_log_partition(number, by_total[number], ctx.stores[number])
            if by_mean is not None or by_variance is not None:
                zeros = torch.zeros_like(variance[number])
                spread = zeros if by_variance is None else by_variance[number]
                along1, along2 = ctx.passes.direction(spread, mean[number])
                if by_mean is not None:
                    along1 = along1 + by_mean[number]
                gradients.add_directional(number, along1, along2)
        return None, *gradients.collected()


def refuse_graph() -> None:
    """Say so instead of losing second derivatives in silence."""
    if torch.is_grad_enabled():
        raise UnsupportedError(
            "This is differentiable once, and create_graph=True asks for more; functions that take an "
            "engine are differentiable again with engine='tensor'."
        )


class _Gradients:
    """Adds up gradients by the sites and by the tensors of the passes."""

    def __init__(
        self,
        passes: Passes,
        lam1: Tensor,
        lam2: Tensor,
        tensors: tuple[Tensor, ...],
        wanted: tuple[bool, ...],
    ) -> None:
        self._passes, self._sites, self._tensors = passes, (lam1, lam2), tensors
        self._wanted = wanted
        self._by_sites: list[Tensor | None] = [None, None]
        self._sums = [np.zeros(tuple(tensor.shape)) for tensor in tensors]

    def add_log_partition(self, number: int, upstream: Tensor, store: np.ndarray) -> None:
        """Gradient of the weighted sum of one batch element's log partitions."""
        arrays, (j, w) = element(self._tensors, number), element(self._sites, number)
        weight = np.ascontiguousarray(upstream.numpy())
        result = self._passes.backward(arrays, j, w, store, weight, keep=False)
        self._add(number, result, result.gradients, self._passes.spread(weight))

    def add_directional(self, number: int, along1: Tensor, along2: Tensor) -> None:
        """Derivative of the log partition's gradient along a direction of the sites."""
        passes = self._passes
        arrays, (j, w) = element(self._tensors, number), element(self._sites, number)
        j = j + _IMAGINARY * 1j * along1.numpy()
        w = w + _IMAGINARY * 1j * along2.numpy()
        store = np.empty(passes.store_shape(True, turned=True), np.complex128)
        passes.forward(arrays, j, w, store)
        ones = np.ones(len(passes.starts) - 1, np.complex128)
        result = passes.backward(arrays, j, w, store, ones, keep=False)
        turned = [part.imag / _IMAGINARY for part in result.gradients]
        self._add(number, result, turned, np.ones(1), imaginary=True)

    def collected(self) -> list[Tensor | None]:
        """Gradients in the order of the inputs, where they are wanted."""
        sums = [torch.from_numpy(part) for part in self._sums]
        values = [*self._by_sites, *sums]
        return [value if want else None for value, want in zip(values, self._wanted, strict=True)]

    def _add(
        self,
        number: int,
        result: Any,
        gradients: list[np.ndarray],
        scale: np.ndarray,
        imaginary: bool = False,
    ) -> None:
        if self._wanted[0] or self._wanted[1]:
            parts = self._passes.site_gradients(result)
            for n, part in enumerate(parts):
                turned = part.imag / _IMAGINARY if imaginary else part
                self._add_by_site(n, number, _scaled(turned, scale))
        for total, part in zip(self._sums, gradients, strict=True):
            if part.size:
                total[number if len(total) > 1 else 0] += part

    def _add_by_site(self, which: int, number: int, part: np.ndarray) -> None:
        known = self._by_sites[which]
        if known is None and len(self._sites[which]) == 1:
            self._by_sites[which] = torch.from_numpy(part[None])
            return
        if known is None:
            known = self._by_sites[which] = torch.zeros_like(self._sites[which])
        known[number] += torch.from_numpy(part)


def _scaled(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Rows times their series' weights."""
    if (scale == 1.0).all():
        return values
    return values * scale.reshape(-1, *[1] * (values.ndim - 1))


def run_forward(
    passes: Passes, lam1: Tensor, lam2: Tensor, tensors: tuple[Tensor, ...], keep: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    totals = np.empty((len(lam1), len(passes.starts) - 1))
    stores = []
    for b in range(len(lam1)):
        store = passes.borrow(keep)
        j, w = element((lam1, lam2), b)
        totals[b], row = passes.forward(element(tensors, b), j, w, store)
        if row >= 0:
            row //= passes.sites_per_row
            if np.min(w[row]) >= 0.0:
                raise NumericalError(
                    f"The prior variance at row {row} (in order of time) is too large for double "
                    "precision: a trend far from its origin, for instance. Centre the stamps, or move the "
                    "origin of the kernel to them."
                )
            raise NumericalError(
                f"The site of row {row} (in order of time) has precision "
                f"{float(np.min(w[row])):.3g}, which leaves the posterior "
                "improper; bound site precisions from below."
            )
        if not np.isfinite(totals[b]).all():
            raise NumericalError(
                "The log partition is not finite: sites or hyperparameters hold NaN or infinite entries; "
                "take a smaller step."
            )
        stores.append(store)
    return totals, stores


def prepare(passes: Passes, lam1: Tensor, lam2: Tensor) -> tuple[tuple[Tensor, ...], torch.Size]:
    """Float64 inputs with one flat batch dim ([1, ...] where they are shared), and the batch shape."""
    core = passes.site_dims
    sites = ((lam1.double(), core), (lam2.double(), 2 * core - 1))
    parts = list(zip(passes.tensors, passes.cores, strict=True))
    shapes = [value.shape[: value.dim() - dims] for value, dims in (*sites, *parts)]
    shape = torch.broadcast_shapes(*shapes)
    size = shape.numel()

    def flat(value: Tensor, dims: int, share: bool) -> Tensor:
        own, rest = value.shape[: value.dim() - dims], value.shape[value.dim() - dims :]
        if share and own.numel() == 1:
            return value.reshape(1, *rest)
        return value.expand(*shape, *rest).reshape(size, *rest)

    inputs = [flat(value, dims, share=False) for value, dims in sites]
    inputs += [flat(value, dims, share=True) for value, dims in parts]
    return tuple(inputs), shape
