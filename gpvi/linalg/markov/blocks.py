r"""Building blocks of Gauss-Markov processes: how a state moves, and how much noise it collects.

A block is a linear stochastic differential equation with state z of dimension d,

.. math:: z(t + \Delta) = A(\Delta) z(t) + \epsilon, \qquad \epsilon \sim N(0, Q(\Delta)), \qquad
          f(t) = h^\top z(t).

:class:`CascadeBlock` covers most kernels on the line. Its states are
:math:`z_i = (1 + D / \lambda)^i f`, so that noise enters the last state only and everything depends
on the dimensionless step :math:`x = \lambda \Delta`:

.. math:: A = e^{-x} T, \quad T_{i, i+k} = \frac{x^k}{k!}, \qquad
          Q_{ij} = c \, \frac{I_{n_i + n_j}(x)}{n_i! \, n_j!}, \quad n_i = p - i, \quad
          I_n(x) = \int_0^x s^n e^{-2s} ds.

Every term is positive: the usual :math:`P - A P A^\top` loses all digits of Q for smooth processes
on fine grids, this form none.

References
----------
Hartikainen, J. & Särkkä, S. (2010). Kalman filtering and smoothing solutions to temporal Gaussian
process regression models. MLSP.
Dowling, M., Sokół, P. & Park, I. M. (2021). Hida-Matérn kernel.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CascadeBlock", "MarkovBlock", "matern_noise", "stationary_cascade"]

# Terms of the series for I_n; its argument is at most two.
_SERIES_TERMS = 26
_SERIES_LIMIT = 2.0


class MarkovBlock(ABC):
    """One linear stochastic differential equation, with batch dims ``*b`` in its parameters.

    Attributes
    ----------
    dimension : int
        Number d of states.
    batch_shape : torch.Size
        Batch dims ``*b``.
    stationary : bool
        Whether :meth:`initial` is the same at every time.
    readout : Tensor, shape [*b, d]
        ``h``, by which f is read off the state.
    """

    stationary: bool = True

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Number d of states."""

    @property
    @abstractmethod
    def batch_shape(self) -> torch.Size:
        """Batch dims of the parameters."""

    @property
    @abstractmethod
    def readout(self) -> Tensor:
        """``h``, shape [*b, d]."""

    @abstractmethod
    def transition(self, dt: Tensor) -> Tensor:
        """Transition matrices A.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps, not negative; the batch dims g and b broadcast.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            Differentiable in the steps and all parameters.
        """

    @abstractmethod
    def process_noise(self, dt: Tensor) -> Tensor:
        """Process noise Q.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps, not negative.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            Positive semi-definite; zero for a step of length zero.
        """

    @abstractmethod
    def initial(self, time: Tensor) -> Tensor:
        """Covariance of the state at the first stamp of a series.

        Parameters
        ----------
        time : Tensor, shape [*g, G]
            First stamps.

        Returns
        -------
        Tensor, shape [*b, G, d, d]
            The stationary covariance, where there is one.
        """


@dataclass(frozen=True, eq=False)
class CascadeBlock(MarkovBlock):
    r"""A chain of equal filters driven by white noise, possibly rotating.

    Without a frequency this is a Matérn process of order :math:`p` (smoothness
    :math:`p + \tfrac12`); with one a Hida-Matérn process, every state of which is a pair that turns
    at angular frequency :math:`\omega`; undamped, an integrated Wiener process (rate one) or, of
    order zero without noise, a constant or a cosine.

    Parameters
    ----------
    order : int
        ``p``; a chain has ``p + 1`` states.
    rate : Tensor, shape [*b]
        ``lambda``, in one over the unit of time.
    noise : Tensor, shape [*b]
        ``c``, the scale of the process noise (:func:`matern_noise` times the variance).
    start : Tensor, shape [*b, d, d]
        Covariance of the state at the first stamp.
    frequency : Tensor, shape [*b], optional
        ``omega`` in radians per unit of time. States come in pairs then: number 2i is state i, and
        number 2i + 1 its partner.
    damped : bool
        False leaves ``e^-x`` and ``e^-2s`` out of the formulas.

    Examples
    --------
    >>> import torch
    >>> one = torch.ones((), dtype=torch.float64)
    >>> noise = matern_noise(1)
    >>> block = CascadeBlock(1, one, noise * one, stationary_cascade(1, noise * one))
    >>> block.process_noise(torch.tensor([0.0, 1e-4]).double())[1, 0, 0]  # c x^3 / 3
    tensor(1.3331e-12, dtype=torch.float64)
    """

    order: int
    rate: Tensor
    noise: Tensor
    start: Tensor
    frequency: Tensor | None = None
    damped: bool = True

    @property
    def dimension(self) -> int:
        """Number d of states."""
        return (self.order + 1) * (1 if self.frequency is None else 2)

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dims of the parameters."""
        shapes = [self.rate.shape, self.noise.shape, self.start.shape[:-2]]
        if self.frequency is not None:
            shapes.append(self.frequency.shape)
        return torch.broadcast_shapes(*shapes)

    @property
    def readout(self) -> Tensor:
        """The first unit vector, shape [*b, d]."""
        first = torch.zeros(self.dimension, dtype=self.rate.dtype, device=self.rate.device)
        first[0] = 1.0
        return first.expand(*self.batch_shape, self.dimension)

    def transition(self, dt: Tensor) -> Tensor:
        """``e^-x T``, turned by ``omega dt``; see :meth:`MarkovBlock.transition`.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            Transition matrices.
        """
        x = self.rate.unsqueeze(-1) * dt
        powers = [torch.ones_like(x)]
        for k in range(1, self.order + 1):
            powers.append(powers[-1] * x / k)
        zero = torch.zeros_like(x)
        rows = [
            torch.stack([zero] * i + powers[: self.order + 1 - i], -1)
            for i in range(self.order + 1)
        ]
        A = torch.stack(rows, -2)
        if self.damped:
            A = torch.exp(-x)[..., None, None] * A
        if self.frequency is None:
            return A
        angle = self.frequency.unsqueeze(-1) * dt
        cosine, sine = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
        return _kronecker(A, turn)

    def process_noise(self, dt: Tensor) -> Tensor:
        """``c I_{n_i + n_j}(x) / (n_i! n_j!)``; see :meth:`MarkovBlock.process_noise`.

        Parameters
        ----------
        dt : Tensor, shape [*g, T]
            Steps.

        Returns
        -------
        Tensor, shape [*b, T, d, d]
            Process noise.
        """
        integrals = _integrals(self.rate.unsqueeze(-1) * dt, 2 * self.order, self.damped)
        p = self.order
        rows = [
            torch.stack([integrals[2 * p - i - j] / _weight(p, i, j) for j in range(p + 1)], -1)
            for i in range(p + 1)
        ]
        Q = self.noise[..., None, None, None] * torch.stack(rows, -2)
        if self.frequency is None:
            return Q
        return _kronecker(Q, torch.eye(2, dtype=Q.dtype, device=Q.device))

    def initial(self, time: Tensor) -> Tensor:
        """``start``, whenever the series starts; see :meth:`MarkovBlock.initial`.

        Parameters
        ----------
        time : Tensor, shape [*g, G]
            First stamps.

        Returns
        -------
        Tensor, shape [*b, G, d, d]
            Expanded, not copied.
        """
        shape = torch.broadcast_shapes(self.start.shape[:-2], time.shape[:-1])
        start = self.start.unsqueeze(-3)
        return start.expand(*shape, time.shape[-1], *self.start.shape[-2:])


def matern_noise(order: int) -> float:
    r"""Noise scale of a Matérn process of unit variance, :math:`2^{2p+1} (p!)^2 / (2p)!`.

    Parameters
    ----------
    order : int
        ``p``, for smoothness ``p + 1/2``.

    Returns
    -------
    float
        To be multiplied by the variance.
    """
    return 2.0 ** (2 * order + 1) * math.factorial(order) ** 2 / math.factorial(2 * order)


def stationary_cascade(order: int, noise: Tensor, rotating: bool = False) -> Tensor:
    r"""Stationary covariance of a damped cascade, Q of an infinite step.

    .. math:: P_{ij} = c \, \frac{(n_i + n_j)!}{2^{n_i + n_j + 1} \, n_i! \, n_j!}

    Parameters
    ----------
    order : int
        ``p``.
    noise : Tensor, shape [*b]
        ``c``.
    rotating : bool
        Whether states come in pairs.

    Returns
    -------
    Tensor, shape [*b, d, d]
        With condition number 7, 52, 420 for orders 1, 2, 3.
    """
    p = order
    rows = []
    for i in range(p + 1):
        powers = [2 * p - i - j for j in range(p + 1)]
        rows.append(
            [math.factorial(n) / 2.0 ** (n + 1) / _weight(p, i, j) for j, n in enumerate(powers)]
        )
    unit = torch.tensor(rows, dtype=noise.dtype, device=noise.device)
    if rotating:
        unit = _kronecker(unit, torch.eye(2, dtype=noise.dtype, device=noise.device))
    return noise[..., None, None] * unit


def _weight(order: int, i: int, j: int) -> float:
    return float(math.factorial(order - i) * math.factorial(order - j))


def _integrals(x: Tensor, highest: int, damped: bool) -> list[Tensor]:
    """``I_0, ..., I_n`` at x: the highest by a series of positive terms or, farther out, in closed
    form, the others downward by ``I_{n-1} = (2 I_n + x^n e^-2x) / n``, where nothing cancels."""
    if not damped:
        return [x ** (n + 1) / (n + 1) for n in range(highest + 1)]
    z = 2.0 * x
    decay = torch.exp(-z)
    near = z.clamp_max(_SERIES_LIMIT)
    series = torch.ones_like(x)
    for k in range(_SERIES_TERMS, 0, -1):
        series = 1.0 + near / (highest + 1 + k) * series
    small = (0.5 * near) ** (highest + 1) / (highest + 1) * torch.exp(-near) * series
    far = z.clamp_min(_SERIES_LIMIT)
    partial = torch.ones_like(x)
    for k in range(highest, 0, -1):
        partial = 1.0 + far / k * partial
    # Beyond z = 700 the exponential is zero, and the polynomial must not overflow before that.
    tail = torch.where(far < 700.0, torch.exp(-far) * partial, torch.zeros_like(x))
    large = math.factorial(highest) / 2.0 ** (highest + 1) * (1.0 - tail)
    values = [torch.where(z < _SERIES_LIMIT, small, large)]
    for n in range(highest, 0, -1):
        boundary = torch.where(z < 700.0, x.clamp_max(400.0) ** n * decay, torch.zeros_like(x))
        values.append((2.0 * values[-1] + boundary) / n)
    return values[::-1]


def _kronecker(left: Tensor, right: Tensor) -> Tensor:
    """Kronecker products of the last two dims, batch dims broadcast."""
    product = left[..., :, None, :, None] * right[..., None, :, None, :]
    rows = left.shape[-2] * right.shape[-2]
    return product.reshape(*product.shape[:-4], rows, left.shape[-1] * right.shape[-1])
