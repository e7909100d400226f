"""Spike counts of many neurons that follow a low-dimensional nonlinear oscillation."""

import math
from dataclasses import dataclass

import numpy as np

from gpvi.exceptions import InputError

__all__ = ["SpikeTrains", "make_spike_trains"]

# The oscillator: nonlinearity, speed in units of its own time per second, steps of Runge-Kutta per bin.
_STIFFNESS, _SPEED, _SUBSTEPS = 1.5, 5.0, 4
# Its state is let run this long, in its own time, before a trial begins.
_SETTLING = 20.0


@dataclass(frozen=True, eq=False)
class SpikeTrains:
    """Binned spikes of simultaneously recorded neurons, and what drove them.

    Attributes
    ----------
    counts : ndarray, shape [R, T, P]
        Spikes in every bin of R trials.
    time : ndarray, shape [T]
        Centres of the bins in seconds.
    latents : ndarray, shape [R, T, 2]
        The trajectories behind the rates, of mean zero and variance one over all trials.
    rates : ndarray, shape [R, T, P]
        Expected counts.
    loadings : ndarray, shape [P, 2]
        How neurons read the trajectories.
    offset : ndarray, shape [P]
        Their log rates at the origin.
    """

    counts: np.ndarray
    time: np.ndarray
    latents: np.ndarray
    rates: np.ndarray
    loadings: np.ndarray
    offset: np.ndarray


def make_spike_trains(
    num_trials: int = 10,
    num_bins: int = 500,
    num_neurons: int = 50,
    *,
    bin_width: float = 0.02,
    mean_rate: float = 25.0,
    random_state: int | np.random.Generator = 0,
) -> SpikeTrains:
    r"""Poisson spikes driven by van der Pol oscillators that start anywhere on their cycle.

    .. math:: \dot x_1 = s x_2, \qquad \dot x_2 = s \left( \mu (1 - x_1^2) x_2 - x_1 \right), \qquad
              y_p \sim \mathrm{Poisson}\left( e^{c_p^\top z + d_p} \right)

    with :math:`\mu = 1.5`, :math:`s = 5` (about 1.4 seconds a cycle) and z the standardised x.
    Loadings have random directions and lengths between one half and one.

    Parameters
    ----------
    num_trials, num_bins, num_neurons : int
        R, T and P.
    bin_width : float
        In seconds.
    mean_rate : float
        Spikes per second of every neuron, averaged over trials.
    random_state : int or numpy Generator
        Source of randomness.

    Returns
    -------
    SpikeTrains
        Counts with the truth behind them.

    Raises
    ------
    InputError
        If a number is out of range.

    References
    ----------
    van der Pol, B. (1926). On relaxation-oscillations. Philosophical Magazine.

    Examples
    --------
    >>> from gpvi.datasets import make_spike_trains
    >>> spikes = make_spike_trains(3, 200, 8)
    >>> spikes.counts.shape, bool(abs(spikes.counts.mean() / (25.0 * 0.02) - 1) < 0.1)
    ((3, 200, 8), True)
    """
    sizes = {"num_trials": num_trials, "num_bins": num_bins, "num_neurons": num_neurons}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise InputError(f"{name} is {size!r}; it must be an integer of at least 1.")
    for name, value in {"bin_width": bin_width, "mean_rate": mean_rate}.items():
        if not 0.0 < value < math.inf:
            raise InputError(f"{name} is {value!r}; it must be a positive number.")
    rng = np.random.default_rng(random_state)
    latents = _oscillators(num_trials, num_bins, bin_width, rng)
    rows = latents.reshape(-1, 2)
    deviation = rows.std(0)
    latents = (latents - rows.mean(0)) / np.where(deviation > 0.0, deviation, 1.0)
    angle = rng.uniform(0.0, 2.0 * np.pi, num_neurons)
    length = rng.uniform(0.5, 1.0, num_neurons)
    loadings = length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    relative = np.exp(latents @ loadings.T)
    offset = np.log(mean_rate * bin_width / relative.mean((0, 1)))
    rates = relative * np.exp(offset)
    return SpikeTrains(
        counts=rng.poisson(rates).astype(np.float64),
        time=bin_width * (np.arange(num_bins) + 0.5),
        latents=latents,
        rates=rates,
        loadings=loadings,
        offset=offset,
    )


def _oscillators(
    num_trials: int, num_bins: int, bin_width: float, rng: np.random.Generator
) -> np.ndarray:
    """Trajectories [R, T, 2] by the classical Runge-Kutta method."""

    def slope(x: np.ndarray) -> np.ndarray:
        speed = _STIFFNESS * (1.0 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]
        return np.stack([x[:, 1], speed], axis=1)

    def advance(x: np.ndarray, duration: float) -> np.ndarray:
        # Short steps however wide the bins are.
        count = max(_SUBSTEPS, math.ceil(duration / 0.05))
        h = duration / count
        for _ in range(count):
            k1 = slope(x)
            k2 = slope(x + 0.5 * h * k1)
            k3 = slope(x + 0.5 * h * k2)
            k4 = slope(x + h * k3)
            x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return x

    x = advance(rng.uniform(-2.0, 2.0, (num_trials, 2)), _SETTLING)
    path = []
    for _ in range(num_bins):
        x = advance(x, _SPEED * bin_width)
        path.append(x)
    return np.stack(path, axis=1)
