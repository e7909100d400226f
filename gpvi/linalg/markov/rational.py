r"""Processes with a rational spectrum that stands in for a Gaussian one.

The spectrum of the squared-exponential kernel, :math:`S(\omega) \propto e^{-\omega^2 / 2}` at unit
lengthscale, has no state-space form; the inverse of the Taylor polynomial of its reciprocal does,

.. math:: S_n(\omega) \propto \Big(\sum_{k=0}^n \frac{(\omega^2 / 2)^k}{k!}\Big)^{-1}
          \propto \frac{1}{|a(i \omega)|^2},

where :math:`a` has the roots with negative real part. States are the function and its derivatives,
each of unit variance. Since S depends on the frequency times the lengthscale only, everything but
the step in units of the lengthscale is a constant.

References
----------
Hartikainen, J. & Särkkä, S. (2010). Kalman filtering and smoothing solutions to temporal Gaussian
process regression models. MLSP.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpvi.linalg.markov.blocks import MarkovBlock

__all__ = ["RationalBlock"]

# Up to this step, in lengthscales, transition and noise come from power series at an eighth of it.
_NEAR = 4.0
_DOUBLINGS = 3
_TERMS = 36

# Lengthscales by which the Taylor spectrum of each order comes closest to the kernel, and the
# largest error of the correlation then: 5.6e-2, 1.2e-2, 2.6e-3, 6.1e-4, 1.5e-4.
_STRETCH = {2: 1.1805, 4: 1.0199, 6: 1.00333, 8: 1.00066, 10: 1.00014}


@dataclass(frozen=True, eq=False)
class RationalBlock(MarkovBlock):
    """A stationary process that white noise drives through constant coefficients.

    Made by :meth:`rbf`. Transition and process noise are power series in a short step, which is
    then doubled, ``A(2x) = A(x)^2`` and ``Q(2x) = A(x) Q(x) A(x)' + Q(x)``: no digits are lost. For
    long steps the transition comes from the roots, and the noise is the difference of covariances.

    Parameters
    ----------
    lengthscale : Tensor, shape [*b]
        The unit of time.
    drift : Tensor, shape [d, d]
        ``F`` at unit lengthscale.
    covariance : Tensor, shape [d, d]
        Stationary covariance, with ones along the diagonal.
    transition_series, noise_series : Tensor, shape [M, d, d]
        Coefficients of the powers of the step: from power zero, and from power one.
    roots : Tensor, shape [R, 2]
        Real and imaginary parts of the roots in the upper half plane.
    modes : Tensor, shape [R, 2, d, d]
        What ``e^(re x) cos(im x)`` and ``e^(re x) sin(im x)`` contribute to the transition.

    Examples
    --------
    >>> import torch
    >>> block = RationalBlock.rbf(6, torch.tensor(1.0, dtype=torch.float64))
    >>> A = block.transition(torch.tensor([1.0]).double())
    >>> (A @ block.covariance)[0, 0, 0]  # exp(-1/2) = 0.6065
    tensor(0.6044, dtype=torch.float64)
    """

    lengthscale: Tensor
    drift: Tensor
    covariance: Tensor
    transition_series: Tensor
    noise_series: Tensor
    roots: Tensor
    modes: Tensor

    @classmethod
    def rbf(cls, order: int, lengthscale: Tensor) -> "RationalBlock":
        """Stand-in for the squared-exponential kernel of unit variance.

        Parameters
        ----------
        order : int
            Number of states, even.
        lengthscale : Tensor, shape [*b]
            Lengthscale of the kernel.

        Returns
        -------
        RationalBlock
            On the graph of the lengthscale.
        """
        constants = _constants(order)
        return cls(
            _STRETCH[order] * lengthscale, *(torch.as_tensor(c).to(lengthscale) for c in constants)
        )

    @property
    def dimension(self) -> int:
        """Number d of states."""
        return self.drift.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dims of the lengthscale."""
        return self.lengthscale.shape

    @property
    def readout(self) -> Tensor:
        """The first unit vector, shape [*b, d]."""
        first = torch.zeros(self.dimension, dtype=self.drift.dtype, device=self.drift.device)
        first[0] = 1.0
        return first.expand(*self.batch_shape, self.dimension)

    def transition(self, dt: Tensor) -> Tensor:
        """Transition matrices.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``A``.
        """
        x = dt / self.lengthscale.unsqueeze(-1)
        short = x.clamp_max(_NEAR) / 2**_DOUBLINGS
        near = _series(short, self.transition_series)
        for _ in range(_DOUBLINGS):
            near = near @ near
        return torch.where((x < _NEAR)[..., None, None], near, self._far_transition(x))

    def process_noise(self, dt: Tensor) -> Tensor:
        """Process noise.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            ``Q``.
        """
        x = dt / self.lengthscale.unsqueeze(-1)
        short = x.clamp_max(_NEAR) / 2**_DOUBLINGS
        near = short[..., None, None] * _series(short, self.noise_series)
        A = _series(short, self.transition_series)
        for _ in range(_DOUBLINGS):
            near = A @ near @ A.mT + near
            A = A @ A
        A = self._far_transition(x.clamp_min(_NEAR))
        far = self.covariance - A @ self.covariance @ A.mT
        return torch.where((x < _NEAR)[..., None, None], near, far)

    def initial(self, time: Tensor) -> Tensor:
        """Stationary covariance.

        Parameters
        ----------
        time : Tensor, shape [*g, G]
            First stamps.

        Returns
        -------
        Tensor, shape [*b, G, d, d]
            Expanded, not copied.
        """
        shape = torch.broadcast_shapes(self.batch_shape, time.shape[:-1])
        return self.covariance.expand(*shape, time.shape[-1], *self.covariance.shape)

    def _far_transition(self, x: Tensor) -> Tensor:
        decay, angle = self.roots.unbind(-1)
        envelope = torch.exp(x.unsqueeze(-1) * decay)
        angles = x.unsqueeze(-1) * angle
        waves = torch.stack([envelope * angles.cos(), envelope * angles.sin()], -1)
        return torch.einsum("...rc,rcij->...ij", waves, self.modes)


def _series(x: Tensor, coefficients: Tensor) -> Tensor:
    """``sum_m C_m x^m`` for every x, shape [..., d, d]."""
    powers = [torch.ones_like(x)]
    for _ in range(coefficients.shape[0] - 1):
        powers.append(powers[-1] * x)
    return torch.einsum("...m,mij->...ij", torch.stack(powers, -1), coefficients)


def _constants(order: int) -> tuple[np.ndarray, ...]:
    """Drift, covariance, both series, roots and modes at unit lengthscale, in float64."""
    taylor = [1.0 / (2.0**k * math.factorial(k)) for k in range(order, -1, -1)]
    # The polynomial is one in omega^2 = -s^2; the stable square roots of its roots are those of a.
    squares = -np.roots(taylor)
    roots = -np.sqrt(squares)
    a = np.real(np.poly(roots))[::-1]
    F = np.diag(np.ones(order - 1), 1)
    F[-1] = -a[:-1]
    eye = np.eye(order)
    noise = np.zeros((order, order))
    noise[-1, -1] = 1.0
    lyapunov = np.kron(F, eye) + np.kron(eye, F)
    P = np.linalg.solve(lyapunov, -noise.reshape(-1)).reshape(order, order)
    P = (P + P.T) / 2.0
    deviation = np.sqrt(np.diag(P))
    F = F * deviation[None, :] / deviation[:, None]
    P = P / np.outer(deviation, deviation)
    # Noise enters the last state; its strength there is that of the unit noise after scaling.
    c = np.zeros((_TERMS, order))
    c[0, -1] = 1.0 / deviation[-1]
    A = np.zeros((_TERMS, order, order))
    A[0] = eye
    for m in range(1, _TERMS):
        c[m] = F @ c[m - 1] / m
        A[m] = F @ A[m - 1] / m
    Q = np.zeros((_TERMS, order, order))
    for m in range(_TERMS):
        for n in range(_TERMS - m):
            Q[m + n] += np.outer(c[m], c[n]) / (m + n + 1)
    values, vectors = np.linalg.eig(F)
    inverse = np.linalg.inv(vectors)
    upper = np.flatnonzero(values.imag > 0)
    projectors = np.stack([np.outer(vectors[:, k], inverse[k]) for k in upper])
    modes = np.stack([2.0 * projectors.real, -2.0 * projectors.imag], 1)
    return F, P, A, Q, np.stack([values[upper].real, values[upper].imag], -1), modes
