r"""A season: a periodic function that is zero on average.

A periodic kernel lets its functions have a level of their own (at lengthscale one almost half of the
variance), which no data can tell from that of a trend beside it. Without its constant harmonic, the
parts of a sum mean what they say. See Durrande, N., Hensman, J., Rattray, M. & Lawrence, N. D.
(2016). Detecting periodicities with Gaussian processes. PeerJ Computer Science.
"""

import math
from collections.abc import Callable

import torch
from gpytorch.constraints import GreaterThan, Interval
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels._batched import Constrained, OneColumnKernel, check_order
from gpvi.kernels._block_algebra import matern_block
from gpvi.kernels._harmonics import harmonic_variances
from gpvi.kernels.matern import matern_correlation
from gpvi.kernels.state_space import StateSpaceForm
from gpvi.linalg.markov.blocks import MarkovBlock
from gpvi.linalg.markov.launched import SteadyBlock

__all__ = ["SeasonalKernel"]

# Sharper patterns take more than 25 harmonics.
_SHARPEST = 0.05


class SeasonalKernel(OneColumnKernel):
    r"""A periodic kernel less its mean over a period, exactly repeating or drifting.

    .. math:: k(t, t') = k_p(|t - t'|) \, \frac{s(t - t') - q}{1 - q}, \qquad
              s(\tau) = \exp\Big(-\frac{2}{\lambda} \sin^2 \frac{\pi \tau}{T}\Big)

    with the mean :math:`q = e^{-1/\lambda} I_0(1 / \lambda)` of s over a period, and :math:`k_p` one,
    or the Matern correlation of smoothness :math:`p + 1/2` for a pattern that changes with time.
    Every draw without drift sums to zero over a period.

    Parameters
    ----------
    drift_order : int, optional
        ``p``, 0 to 8, of a drifting pattern; one that repeats exactly if left out.
    tolerance : float, default 1e-6
        Share of the variance that the harmonics of the state-space form may lack. The dense kernel
        is exact.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    active_dims : tuple of int, optional
        The column that is time.
    lengthscale_prior, period_length_prior, periodic_lengthscale_prior : Prior, optional
        Priors over the parameters.
    lengthscale_constraint, period_length_constraint : Interval, optional
        Ranges of the parameters; positive unless given.
    periodic_lengthscale_constraint : Interval, optional
        Range of the parameter; above 0.05 unless given, where 25 harmonics are enough.

    Attributes
    ----------
    lengthscale : Tensor, shape (*batch_shape, 1, 1)
        Time over which the pattern drifts; only with ``drift_order``.
    period_length : Tensor, shape batch_shape
        ``T``, starts at one.
    periodic_lengthscale : Tensor, shape batch_shape
        ``lambda``, starts at one: the larger, the smoother the pattern within a period.

    Raises
    ------
    InputError
        If the order or the tolerance is out of range.

    References
    ----------
    Durrande, N., Hensman, J., Rattray, M. & Lawrence, N. D. (2016). Detecting periodicities with
    Gaussian processes. PeerJ Computer Science.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import SeasonalKernel
    >>> kernel = SeasonalKernel()
    >>> kernel.period_length = 4.0
    >>> year = kernel(torch.arange(4.0).unsqueeze(-1)).to_dense().detach()
    >>> year[0, 0], year[0, 2] < 0
    (tensor(1.), tensor(True))
    """

    period_length = Constrained()
    periodic_lengthscale = Constrained()

    def __init__(
        self,
        drift_order: int | None = None,
        tolerance: float = 1e-6,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
        period_length_prior: Prior | None = None,
        period_length_constraint: Interval | None = None,
        periodic_lengthscale_prior: Prior | None = None,
        periodic_lengthscale_constraint: Interval | None = None,
    ) -> None:
        self.has_lengthscale = drift_order is not None
        if drift_order is None and (lengthscale_prior or lengthscale_constraint):
            raise InputError(
                "A season without drift_order repeats exactly and has no lengthscale; leave out its "
                "prior and constraint, or give it a drift_order."
            )
        super().__init__(
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint,
        )
        if not 0.0 < tolerance < 1.0:
            raise InputError(f"tolerance must lie in (0, 1), got {tolerance!r}.")
        self.drift_order = None if drift_order is None else check_order(drift_order)
        self.tolerance = tolerance
        self.add_parameter("period_length", period_length_prior, period_length_constraint, 1.0)
        bounded = periodic_lengthscale_constraint or GreaterThan(_SHARPEST)
        self.add_parameter("periodic_lengthscale", periodic_lengthscale_prior, bounded)
        if periodic_lengthscale_constraint is None:
            self.periodic_lengthscale = torch.ones(self.batch_shape)

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
        apart = t1 - t2
        wave = torch.sin(torch.pi * apart / lift(self.period_length))
        rate = lift(1.0 / self.periodic_lengthscale)
        mean = torch.special.i0e(rate)
        pattern = (torch.exp(-2.0 * rate * wave.square()) - mean) / (1.0 - mean)
        if self.drift_order is None:
            return pattern
        decay = math.sqrt(2 * self.drift_order + 1) / lift(self.lengthscale[..., 0, 0])
        return pattern * matern_correlation(self.drift_order, decay * apart.abs())

    def state_space(self) -> StateSpaceForm:
        """Two states for each harmonic, or a rotating Matern cascade with drift.

        Returns
        -------
        StateSpaceForm
            One term, on the graph of the parameters.

        Raises
        ------
        UnsupportedError
            If the pattern is so sharp that it takes more than 128 harmonics.
        """
        scale = self.periodic_lengthscale
        waves = 1.0 - float(torch.special.i0e(1.0 / scale.detach()).max())
        variances = harmonic_variances(scale, max(self.tolerance * waves, 1e-14))[..., 1:]
        variances = variances / variances.sum(-1, keepdim=True)
        frequency = 2.0 * torch.pi / self.period_length
        blocks = tuple(
            self._harmonic(variance, j * frequency)
            for j, variance in enumerate(variances.unbind(-1), start=1)
        )
        column = 0 if self.active_dims is None else int(self.active_dims[0])
        label = "season" if self.drift_order is None else "quasi_season"
        return StateSpaceForm(blocks, (0,) * len(blocks), (label,), column)

    def _harmonic(self, variance: Tensor, frequency: Tensor) -> MarkovBlock:
        if self.drift_order is None:
            return SteadyBlock.make(variance, frequency)
        return matern_block(self.drift_order, self.lengthscale[..., 0, 0], variance, frequency)
