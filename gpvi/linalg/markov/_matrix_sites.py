r"""Matrix sites of several outputs as scalar sites of their own readouts.

A site :math:`\exp(j^\top u - \tfrac12 u^\top J u)` about :math:`u = H z` is, with
:math:`J = L \Delta L^\top` (L unit lower triangular), the product of K scalar sites about
:math:`L_k^\top u` with precisions :math:`\Delta_k`: steps of length zero, each with its own readout.
No inverse of J is formed, so a singular or zero J is fine; an indefinite one takes its eigenvectors
for L.
"""

from typing import Any

import numpy as np
import torch

from gpvi.linalg.markov._compiled import Arrays, Backward, PackedPasses, Passes, to_double, unpack
from gpvi.linalg.markov.model import MarkovModel, Steps

__all__ = ["MatrixPasses", "take_apart"]

# Pivots below this fraction of their diagonal entry are rounding; larger entries than that fraction
# beside them are not.
_PIVOT = 1e-14
_LOST = 1e-12


class MatrixPasses(Passes):
    """Passes over a model with K outputs and matrix sites.

    Parameters
    ----------
    model : MarkovModel
        With outputs.
    steps : Steps
        Stamps.
    """

    cores = (2, 2, 3, 2)
    site_dims = 2

    def __init__(self, model: MarkovModel, steps: Steps) -> None:
        assert model.outputs is not None
        model, steps = to_double(model), to_double(steps)
        assert model.outputs is not None
        self.sites_per_row = model.outputs.shape[-2]
        rows = steps.num_rows * self.sites_per_row
        plain = MarkovModel(model.blocks)
        filler = model.outputs.detach().new_zeros(1, 1).expand(rows, model.dimension)
        self._inner = PackedPasses(plain, steps, self.sites_per_row, filler)
        self._turned = self._inner.repeated(2 * self.sites_per_row)
        self.dimension, self.num_rows = model.dimension, rows
        self.starts, self.spare = self._inner.starts, self._inner.spare
        A, Q, start, _ = self._inner.tensors
        self.tensors = (A, Q, start, model.outputs)

    def store_shape(self, keep: bool, turned: bool = False) -> tuple[int, int]:
        """See :class:`Passes`."""
        return ((2 if turned else 1) * self.num_rows if keep else 0, self.width)

    def forward(self, arrays: Arrays, j: np.ndarray, w: np.ndarray, store: np.ndarray) -> Any:
        """See :class:`Passes`."""
        readout, scalar_j, scalar_w = take_apart(arrays[3], j, w)
        inner = self._passes_for(w)
        return inner.forward([*arrays[:3], readout], scalar_j, scalar_w, store)

    def backward(
        self,
        arrays: Arrays,
        j: np.ndarray,
        w: np.ndarray,
        store: np.ndarray,
        weight: np.ndarray,
        keep: bool,
    ) -> Backward:
        """See :class:`Passes`; moments are [T, K] and [T, K, K]."""
        readout, scalar_j, scalar_w = take_apart(arrays[3], j, w)
        passes = self._passes_for(w)
        inner = passes.backward(
            [*arrays[:3], readout], scalar_j, scalar_w, store, weight, keep=True
        )
        H, every = arrays[3], len(scalar_j) // len(j)
        m, P = unpack(store[::every], self.dimension)
        r, N = unpack(inner.adjoint[::every], self.dimension)
        state = m + (P @ r[..., None])[..., 0]
        covariance = P - P @ N @ P
        with_outputs = covariance @ H.T
        mean = state @ H.T
        spread = H @ with_outputs
        scale = self.spread(weight)[:, None, None] if weight.size > 1 else weight.reshape(1, 1, 1)
        pull = (j - (w @ mean[..., None])[..., 0])[..., None] * state[:, None, :]
        by_outputs = (scale * (pull - w @ np.swapaxes(with_outputs, 1, 2))).sum(0)
        gradients = [*inner.gradients[:3], by_outputs]
        adjoint = inner.adjoint if keep else inner.adjoint[:0]
        return Backward(mean, spread, inner.divergence, adjoint, gradients)

    def _passes_for(self, w: np.ndarray) -> PackedPasses:
        return self._turned if np.iscomplexobj(w) else self._inner

    def site_gradients(self, result: Backward) -> tuple[np.ndarray, np.ndarray]:
        """``E[u]`` and ``-E[u u'] / 2``."""
        mean = result.mean
        return mean, -0.5 * (result.variance + mean[:, :, None] * mean[:, None, :])

    def direction(
        self, by_variance: torch.Tensor, mean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Passes`."""
        symmetric = by_variance + by_variance.mT
        return -(symmetric @ mean.unsqueeze(-1)).squeeze(-1), -symmetric


def take_apart(H: np.ndarray, j: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """Matrix sites as scalar sites.

    The imaginary part of a precision is a direction, of any rank and sign where the real part may
    be zero: it gets scalar sites of its own.

    Parameters
    ----------
    H : ndarray, shape [K, d]
        Readouts of the outputs.
    j : ndarray, shape [T, K]
        Linear terms, real or complex.
    w : ndarray, shape [T, K, K]
        Precisions, real or complex.

    Returns
    -------
    readout : ndarray, shape [T S, d]
        Of S = K scalar sites for real and S = 2 K for complex sites, one row after the other.
    linear, precision : ndarray, shape [T S]
        Their terms.
    """
    T = len(j)
    roots, targets, pivots = _diagonalize(j, np.ascontiguousarray(w.real))
    if np.iscomplexobj(w):
        values, vectors = np.linalg.eigh(w.imag)
        roots = np.concatenate([roots, vectors], 2)
        targets = np.concatenate([targets, np.zeros_like(j)], 1)
        pivots = np.concatenate([pivots, 1j * values], 1)
    readout = np.swapaxes(roots, 1, 2) @ H
    return readout.reshape(T * pivots.shape[1], -1), targets.reshape(-1), pivots.reshape(-1)


def _diagonalize(j: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """L, targets and pivots with ``w = L diag(pivots) L'`` and ``j = L targets``, for real w.

    By elimination, which keeps the digits of pivots of different size; where there are negative
    pivots, or zero ones before a column that is not zero, by eigenvectors.
    """
    K = j.shape[1]
    lower, pivots = np.zeros_like(w), np.zeros(j.shape)
    targets, rest = np.array(j), np.array(w)
    scale = np.sqrt(np.abs(np.diagonal(w, axis1=1, axis2=2)))
    fails = np.zeros(len(j), bool)
    for k in range(K):
        pivot = rest[:, k, k]
        used = pivot > _PIVOT * scale[:, k] ** 2
        below = np.abs(rest[:, k:, k])
        fails |= ~used & (below > _LOST * scale[:, k:] * scale[:, k, None]).any(1)
        column = rest[:, k:, k] * np.where(used, 1.0 / np.where(used, pivot, 1.0), 0.0)[:, None]
        column[:, 0] = 1.0
        lower[:, k:, k] = column
        pivots[:, k] = np.where(used, pivot, 0.0)
        rest[:, k:, k:] -= pivots[:, k, None, None] * column[:, :, None] * column[:, None, :]
        targets[:, k + 1 :] -= column[:, 1:] * targets[:, k, None]
    if fails.any():
        pivots[fails], vectors = np.linalg.eigh(w[fails])
        lower[fails] = vectors
        targets[fails] = (np.swapaxes(vectors, 1, 2) @ j[fails][..., None])[..., 0]
    return lower, targets, pivots
