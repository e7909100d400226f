r"""Fractional Brownian motion, dense and with states, and the Ornstein-Uhlenbeck process it drives.

Increments of fractional Brownian motion are positively correlated for a Hurst index above one half
and negatively below; roughness of the paths is the index itself. It is no Markov process, but a bank
of Ornstein-Uhlenbeck processes with one common noise comes close on a finite horizon, and makes
inference linear in the number of stamps.
"""

from collections.abc import Callable
from typing import Literal

import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels._batched import Constrained, OneColumnKernel
from gpvi.kernels._fractional_weights import FractionalType, bank_rates, fractional_weights
from gpvi.kernels._moving_average import bank_covariance, moving_average_covariance
from gpvi.kernels.state_space import StateSpaceForm
from gpvi.linalg.markov.wiener_bank import WienerBankBlock

__all__ = ["FractionalBrownianKernel", "FractionalOUKernel", "MarkovFractionalBrownianKernel"]

# A rate of the bank that comes closer to the mean reversion than this is moved away from it.
_SEPARATION = 1e-3


class _FractionalKernel(OneColumnKernel):
    """What the three kernels share: type, origin and Hurst index."""

    has_lengthscale = False
    hurst = Constrained()

    def __init__(
        self,
        kind: FractionalType,
        origin: float,
        batch_shape: torch.Size | None,
        active_dims: tuple[int, ...] | None,
        hurst_prior: Prior | None,
        hurst_constraint: Interval | None,
    ) -> None:
        super().__init__(batch_shape=batch_shape, active_dims=active_dims)
        if kind not in ("I", "II"):
            raise InputError(f'kind must be "I" or "II", got {kind!r}.')
        self.kind: FractionalType = kind
        self.origin = float(origin)
        constraint = Interval(0.02, 0.98) if hurst_constraint is None else hurst_constraint
        self.add_parameter("hurst", hurst_prior, constraint)

    @property
    def is_stationary(self) -> bool:
        """Whether the value depends on the difference of the inputs only."""
        return False

    def _elapsed(self, t1: Tensor, t2: Tensor) -> tuple[Tensor, Tensor]:
        """Times since the origin, the earlier and the later of every pair."""
        u1, u2 = t1 - self.origin, t2 - self.origin
        if bool((u1 < 0).any()) or bool((u2 < 0).any()):
            first = min(t1.min().item(), t2.min().item())
            raise InputError(
                f"{type(self).__name__} begins at its origin {self.origin:.6g}, but there is a "
                f"time {first:.6g} before; move the origin to the first stamp or earlier."
            )
        return torch.minimum(u1, u2), torch.maximum(u1, u2)


class FractionalBrownianKernel(_FractionalKernel):
    r"""Fractional Brownian motion, exact and dense.

    Type I has stationary increments, with times counted from the origin,

    .. math:: k(t, t') = \tfrac12 \big(t^{2H} + t'^{2H} - |t - t'|^{2H}\big);

    type II starts from nothing at the origin,

    .. math:: k(t, t') = 2 H \int_0^{\min(t, t')} (t - u)^{H - 1/2} (t' - u)^{H - 1/2} du.

    It has no state-space form; :class:`MarkovFractionalBrownianKernel` comes close.

    Parameters
    ----------
    kind : {"I", "II"}, default "I"
        Type of the process.
    origin : float, default 0.0
        Where the process is zero. Times before it are refused.
    batch_shape : torch.Size, default torch.Size([])
        One Hurst index for each element of this batch.
    active_dims : tuple of int, optional
        The column that is time.
    hurst_prior : gpytorch.priors.Prior, optional
        Prior over the Hurst index.
    hurst_constraint : gpytorch.constraints.Interval, optional
        Range of the Hurst index; (0.02, 0.98) unless given.

    Attributes
    ----------
    hurst : Tensor, shape batch_shape
        Hurst index H; starts at one half, the Wiener process.

    References
    ----------
    Mandelbrot, B. B. & Van Ness, J. W. (1968). Fractional Brownian motions, fractional noises and
    applications. SIAM Review 10(4).

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import FractionalBrownianKernel
    >>> kernel = FractionalBrownianKernel()
    >>> kernel.hurst = 0.5
    >>> kernel(torch.tensor([[1.0], [4.0]])).to_dense().detach()
    tensor([[1., 1.],
            [1., 4.]])
    """

    def __init__(
        self,
        kind: FractionalType = "I",
        origin: float = 0.0,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        hurst_prior: Prior | None = None,
        hurst_constraint: Interval | None = None,
    ) -> None:
        super().__init__(kind, origin, batch_shape, active_dims, hurst_prior, hurst_constraint)

    def covariance(self, t1: Tensor, t2: Tensor, lift: Callable[[Tensor], Tensor]) -> Tensor:
        """Covariance at pairs of times.

        Parameters
        ----------
        t1, t2 : Tensor
            Times whose shapes broadcast.
        lift : callable
            Gives a parameter of shape [*b] the dims that it needs to broadcast with them.

        Returns
        -------
        Tensor
            Of the shape to which all broadcast.
        """
        earlier, later = self._elapsed(t1, t2)
        hurst = lift(self.hurst)
        if self.kind == "II":
            return moving_average_covariance(hurst, earlier, later - earlier)
        parts = [_power(t, 2.0 * hurst) for t in (earlier, later, later - earlier)]
        return 0.5 * (parts[0] + parts[1] - parts[2])


class MarkovFractionalBrownianKernel(_FractionalKernel):
    r"""Fractional Brownian motion as a weighted bank of Ornstein-Uhlenbeck processes.

    .. math:: f(t) = \sum_{k=1}^K w_k(H) Y_k(t), \qquad dY_k = -\gamma_k Y_k \, dt + dW,

    with one Wiener process for all. Type II starts at :math:`Y = 0`; type I subtracts the value of a
    stationary sum at the origin. The rates form a geometric grid; the weights minimise the mean
    squared distance to fractional Brownian motion driven by the same noise, over the horizon, and
    are differentiable in the Hurst index.

    The distance, relative to the mean square of the process, for H of 0.1, 0.3, 0.5, 0.7, 0.9 is
    2e-1, 8e-3, 2e-11, 1e-4, 6e-5 for type II with 5 processes, 1e-1, 9e-4, 1e-14, 8e-7, 1e-7 with
    10; and 1e-1, 2e-3, 3e-4, 9e-3, 2e-1 for type I with 10. Prefer type II unless increments must be
    stationary.

    Parameters
    ----------
    num_processes : int, default 10
        ``K``, at least 1. Rough paths (H below 0.25) need ten or more.
    kind : {"I", "II"}, default "II"
        Type of the process.
    horizon : float, default 1.0
        Length of the interval after the origin on which the bank imitates the process.
    origin : float, default 0.0
        Where the process is zero. Times before it are refused.
    largest_rate : float, optional
        The largest rate times the horizon, and one over the smallest; 20 for five processes, 1000
        for ten and in between and beyond geometrically, if left out.
    batch_shape : torch.Size, default torch.Size([])
        One Hurst index for each element of this batch.
    active_dims : tuple of int, optional
        The column that is time.
    hurst_prior : gpytorch.priors.Prior, optional
        Prior over the Hurst index.
    hurst_constraint : gpytorch.constraints.Interval, optional
        Range of the Hurst index; (0.02, 0.98) unless given.

    Attributes
    ----------
    hurst : Tensor, shape batch_shape
        Hurst index H; starts at one half, the Wiener process.

    Raises
    ------
    InputError
        If an argument is out of range.

    References
    ----------
    Daems, R., Opper, M., Crevecoeur, G. & Birdal, T. (2024). Variational inference for SDEs driven
    by fractional noise. ICLR.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import MarkovFractionalBrownianKernel
    >>> kernel = MarkovFractionalBrownianKernel().double()
    >>> kernel.hurst = 0.7
    >>> kernel(torch.tensor([[0.5], [1.0]]).double()).to_dense().detach().diagonal()  # t^1.4
    tensor([0.3789, 0.9999], dtype=torch.float64)
    """

    def __init__(
        self,
        num_processes: int = 10,
        kind: FractionalType = "II",
        horizon: float = 1.0,
        origin: float = 0.0,
        largest_rate: float | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        hurst_prior: Prior | None = None,
        hurst_constraint: Interval | None = None,
    ) -> None:
        super().__init__(kind, origin, batch_shape, active_dims, hurst_prior, hurst_constraint)
        self.num_processes = num_processes
        self.horizon, self.largest_rate = _check_bank(num_processes, horizon, largest_rate)

    def covariance(self, t1: Tensor, t2: Tensor, lift: Callable[[Tensor], Tensor]) -> Tensor:
        """Covariance at pairs of times.

        Parameters
        ----------
        t1, t2 : Tensor
            Times whose shapes broadcast.
        lift : callable
            Gives a parameter of shape [*b] the dims that it needs to broadcast with them.

        Returns
        -------
        Tensor
            Of the shape to which all broadcast.
        """
        rates, weights = self._bank()
        earlier, later = self._elapsed(t1, t2)
        lifted = [[lift(part) for part in values.unbind(-1)] for values in (rates, weights)]
        return bank_covariance(lifted[0], lifted[1], self._begin, earlier, later)

    def state_space(self) -> StateSpaceForm:
        """A block of K states, and one more for type I.

        Returns
        -------
        StateSpaceForm
            On the graph of the Hurst index.
        """
        rates, weights = self._bank()
        origin = torch.tensor(self.origin, dtype=weights.dtype, device=weights.device)
        block = WienerBankBlock(rates, weights / (2.0 * rates).sqrt(), self._begin, origin)
        column = 0 if self.active_dims is None else int(self.active_dims[0])
        return StateSpaceForm((block,), (0,), ("fractional_brownian",), column)

    @property
    def _begin(self) -> Literal["zero", "increments"]:
        return "zero" if self.kind == "II" else "increments"

    def _bank(self) -> tuple[Tensor, Tensor]:
        """Rates and weights in units of the data."""
        hurst = self.hurst
        rates = bank_rates(self.num_processes, self.largest_rate).to(hurst.device)
        # The normal equations are too ill-conditioned for anything but double precision.
        exact = hurst.double()
        weights = fractional_weights(exact, rates, self.kind)
        weights = weights * self.horizon ** (exact - 0.5).unsqueeze(-1)
        rates = (rates / self.horizon).expand(*hurst.shape, -1)
        return rates.to(hurst), weights.to(hurst)


class FractionalOUKernel(_FractionalKernel):
    r"""An Ornstein-Uhlenbeck process driven by fractional Brownian motion.

    .. math:: df = -\theta f \, dt + dB_H, \qquad B_H \approx \sum_k w_k(H) Y_k

    With the bank of :class:`MarkovFractionalBrownianKernel` in place of :math:`B_H`, f is exactly a
    weighted sum of the bank and one more process of rate :math:`\theta` with the same noise. Type II
    starts at zero at the origin; type I is stationary, with variance
    :math:`\Gamma(2H + 1) / (2 \theta^{2H})` but for the bank's error, which is larger there.

    Parameters
    ----------
    num_processes : int, default 10
        ``K``, at least 1.
    kind : {"I", "II"}, default "II"
        Type of the driving process.
    horizon : float, default 1.0
        Length of the interval on which the bank imitates the driving process.
    origin : float, default 0.0
        Where a process of type II is zero. Times before it are refused.
    largest_rate : float, optional
        As in :class:`MarkovFractionalBrownianKernel`.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    active_dims : tuple of int, optional
        The column that is time.
    hurst_prior, reversion_prior : gpytorch.priors.Prior, optional
        Priors over the parameters.
    hurst_constraint, reversion_constraint : gpytorch.constraints.Interval, optional
        Ranges of the parameters; (0.02, 0.98) and positive unless given.

    Attributes
    ----------
    hurst : Tensor, shape batch_shape
        Hurst index H; starts at one half.
    reversion : Tensor, shape batch_shape
        :math:`\theta`; starts at one.

    Notes
    -----
    A rate of the bank within a relative distance of 1e-3 of :math:`\theta` is moved to that
    distance, where the two can still be told apart; the weights belong to the rates as moved.

    References
    ----------
    Cheridito, P., Kawaguchi, H. & Maejima, M. (2003). Fractional Ornstein-Uhlenbeck processes.
    Electronic Journal of Probability 8.

    Daems, R., Opper, M., Crevecoeur, G. & Birdal, T. (2024). Variational inference for SDEs driven
    by fractional noise. ICLR.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import FractionalOUKernel
    >>> kernel = FractionalOUKernel(num_processes=5).double()
    >>> kernel(torch.tensor([[1.0]]).double()).to_dense().item()  # (1 - e^-2) / 2
    0.43233...
    """

    reversion = Constrained()

    def __init__(
        self,
        num_processes: int = 10,
        kind: FractionalType = "II",
        horizon: float = 1.0,
        origin: float = 0.0,
        largest_rate: float | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        hurst_prior: Prior | None = None,
        hurst_constraint: Interval | None = None,
        reversion_prior: Prior | None = None,
        reversion_constraint: Interval | None = None,
    ) -> None:
        super().__init__(kind, origin, batch_shape, active_dims, hurst_prior, hurst_constraint)
        self.num_processes = num_processes
        self.horizon, self.largest_rate = _check_bank(num_processes, horizon, largest_rate)
        self.add_parameter("reversion", reversion_prior, reversion_constraint, 1.0)

    @property
    def is_stationary(self) -> bool:
        """Whether the driving process is of type I."""
        return self.kind == "I"

    def covariance(self, t1: Tensor, t2: Tensor, lift: Callable[[Tensor], Tensor]) -> Tensor:
        """Covariance at pairs of times.

        Parameters
        ----------
        t1, t2 : Tensor
            Times whose shapes broadcast.
        lift : callable
            Gives a parameter of shape [*b] the dims that it needs to broadcast with them.

        Returns
        -------
        Tensor
            Of the shape to which all broadcast.
        """
        rates, weights = self._bank()
        if self.kind == "I":
            earlier, later = torch.zeros_like(t1 - t2), (t1 - t2).abs()
        else:
            earlier, later = self._elapsed(t1, t2)
        lifted = [[lift(part) for part in values.unbind(-1)] for values in (rates, weights)]
        return bank_covariance(lifted[0], lifted[1], self._begin, earlier, later)

    def state_space(self) -> StateSpaceForm:
        """A block of K + 1 states.

        Returns
        -------
        StateSpaceForm
            On the graph of the parameters.
        """
        rates, weights = self._bank()
        origin = torch.tensor(self.origin, dtype=weights.dtype, device=weights.device)
        block = WienerBankBlock(rates, weights / (2.0 * rates).sqrt(), self._begin, origin)
        column = 0 if self.active_dims is None else int(self.active_dims[0])
        return StateSpaceForm((block,), (0,), ("fractional_ou",), column)

    @property
    def _begin(self) -> Literal["zero", "stationary"]:
        return "zero" if self.kind == "II" else "stationary"

    def _bank(self) -> tuple[Tensor, Tensor]:
        """Rates and weights in units of the data, the process of rate theta first."""
        hurst = self.hurst
        exact, theta = hurst.double(), (self.reversion.double() * self.horizon).unsqueeze(-1)
        rates = bank_rates(self.num_processes, self.largest_rate).to(hurst.device)
        apart = rates / theta - 1.0
        side = torch.where(apart < 0, -1.0, 1.0).to(rates)
        moved = theta * (1.0 + side * _SEPARATION)
        rates = torch.where(apart.abs() < _SEPARATION, moved, rates)
        w = fractional_weights(exact, rates, self.kind)
        # s / ((s + gamma)(s + theta)) in partial fractions.
        own = w * rates / (rates - theta)
        first = -(w * theta / (rates - theta)).sum(-1, keepdim=True)
        weights = torch.cat([first, own], -1) * self.horizon ** (exact - 0.5).unsqueeze(-1)
        all_rates = torch.cat([theta, rates], -1) / self.horizon
        return all_rates.to(hurst), weights.to(hurst)


def _check_bank(
    num_processes: int, horizon: float, largest_rate: float | None
) -> tuple[float, float]:
    if isinstance(num_processes, bool) or not isinstance(num_processes, int) or num_processes < 1:
        raise InputError(f"num_processes must be an integer of at least 1, got {num_processes!r}.")
    if not 0.0 < horizon < float("inf"):
        raise InputError(f"horizon must be positive and finite, got {horizon!r}.")
    usual = max(2.0, 20.0 * 50.0 ** ((num_processes - 5) / 5))
    largest = usual if largest_rate is None else largest_rate
    if not 1.0 < largest < float("inf"):
        raise InputError(f"largest_rate must be finite and above 1, got {largest_rate!r}.")
    return float(horizon), float(largest)


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """Power with zero, and a zero gradient, where the base is zero."""
    positive = base > 0
    safe = torch.where(positive, base, torch.ones_like(base))
    return torch.where(positive, safe**exponent, torch.zeros_like(safe))
