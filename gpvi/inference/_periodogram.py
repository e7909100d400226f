"""Values on a regular grid with gaps: their periodogram, and its expectation under a process."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.approximations import GaussianProcess
from gpvi.exceptions import InputError

__all__ = ["Grid", "GridData", "Spectrum", "find_grid", "stamp_column"]

# A grid with more empty places than this per stamp is a guess, not a grid.
_SPARSEST = 4


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid, and where on it the rows lie (int64, shape [N])."""

    places: Tensor
    length: int
    start: float
    step: float

    def scatter(self, values: Tensor) -> Tensor:
        """Row values at their places, zero at the others; shape [*b, length]."""
        empty = values.new_zeros(*values.shape[:-1], self.length)
        return empty.index_copy(-1, self.places, values)

    def elapsed(self, like: Tensor) -> Tensor:
        """All places as time since the first, shape [length, 1]."""
        number = torch.arange(self.length, dtype=like.dtype, device=like.device)
        return (self.step * number).unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class GridData:
    """Values, their noise at today's parameters, and which were observed, in the order of the rows."""

    values: Tensor
    noise: Callable[[], Tensor]
    observed: Tensor


class Spectrum:
    """Periodogram and expected periodogram of values on a grid.

    Parameters
    ----------
    grid : Grid
        Where the rows lie.
    stamps : Tensor, shape [N]
        Of the rows.
    data : GridData
        Values, of which only observed ones are looked at.
    """

    def __init__(self, grid: Grid, stamps: Tensor, data: GridData) -> None:
        if data.values.shape[-1] != len(stamps):
            raise InputError(
                f"y has shape {tuple(data.values.shape)} for {len(stamps)} stamps; its last dim must "
                "hold one value per stamp."
            )
        self._grid, self._rows, self._noise = grid, stamps.unsqueeze(-1), data.noise
        self._lags = grid.elapsed(stamps)
        self._observed = data.observed
        self._values = torch.where(data.observed, data.values, 0.0)
        weights = data.observed.to(self._values)
        self._count = weights.sum(-1, keepdim=True)
        # Zeros behind the series keep the correlation of its weights from wrapping around.
        padded = torch.fft.rfft(grid.scatter(weights), 2 * grid.length)
        overlap = torch.fft.irfft(padded.abs().square(), 2 * grid.length)[..., : grid.length]
        self._shares = overlap / self._count.clamp_min(1.0)

    @property
    def fewest_values(self) -> int:
        """Observed values of the series that has fewest."""
        return int(self._count.min())

    def suits(self, gp: GaussianProcess) -> bool:
        """Whether some covariances are the same early and late, as they are if stationary."""
        stamps = self._grid.start + self._lags
        size = len(stamps)
        late = size // 2
        lags = sorted({min(lag, size - 1 - late) for lag in (1, 2, size // 7, size - 1 - late)})
        with torch.no_grad():
            variance = gp.variance(stamps[[0, late]])
            early = gp.covariance(stamps[:1], stamps[lags])
            other = gp.covariance(stamps[[late]], stamps[[late + lag for lag in lags]])
            gap = (early - other).abs().amax((-1, -2))
            gap = torch.maximum(gap, variance.diff().abs().amax(-1))
            tolerance = torch.finfo(gap.dtype).eps ** 0.5 * variance.amax(-1)
        return bool((gap <= tolerance).all())

    def log_likelihood(self, gp: GaussianProcess) -> Tensor:
        """Debiased Whittle log likelihood at today's parameters, shape [*b]."""
        residual = torch.where(self._observed, self._values - gp.mean(self._rows), 0.0)
        I = torch.fft.rfft(self._grid.scatter(residual)).abs().square() / self._count  # noqa: E741
        # White noise among the parts of a kernel shows in its variance only.
        variance = gp.variance(self._lags[:1])
        k = gp.covariance(self._lags[:1], self._lags[1:]).squeeze(-2)
        c = self._shares * torch.cat([variance, k], -1)
        noise = torch.where(self._observed, self._noise(), 0.0)
        mean_noise = noise.sum(-1, keepdim=True) / self._count
        S = 2.0 * torch.fft.rfft(c).real - c[..., :1] + mean_noise
        S = S.clamp_min(torch.finfo(S.dtype).eps * float(variance.detach().amax()))
        # All other frequencies come in pairs, of which the transform holds one.
        pairs = torch.full_like(S, 2.0)
        pairs[..., 0] = 1.0
        if self._grid.length % 2 == 0:
            pairs[..., -1] = 1.0
        total = (pairs * (torch.log(2 * math.pi * S) + I / S)).sum(-1)
        return -0.5 / self._grid.length * self._count.squeeze(-1) * total


def stamp_column(t: Tensor) -> Tensor:
    """Stamps as a vector."""
    stamps = t.squeeze(-1) if t.dim() == 2 and t.shape[-1] == 1 else t
    if stamps.dim() != 1 or not stamps.is_floating_point():
        raise InputError(
            f"The stamps have shape {tuple(t.shape)} and dtype {t.dtype}; pass floating-point numbers of "
            "shape [N] or [N, 1]."
        )
    if not bool(torch.isfinite(stamps).all()):
        raise InputError(
            f"{int((~torch.isfinite(stamps)).sum())} of {len(stamps)} stamps are NaN or infinite; drop "
            "these rows."
        )
    return stamps.detach()


def find_grid(stamps: Tensor, tolerance: float) -> Grid | None:
    """The grid on which distinct stamps lie, within a fraction of its step; None without one."""
    if len(stamps) < 2:
        return None
    ordered, order = stamps.double().sort()
    gaps = ordered.diff()
    if not bool((gaps > 0).all()):
        return None
    elapsed = ordered - ordered[0]
    for step in (gaps.median(), gaps.min()):
        counts = (gaps / step).round()
        places = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        length = int(places[-1]) + 1
        if bool((counts < 1).any()) or length > _SPARSEST * len(stamps):
            continue
        fitted = elapsed[-1] / places[-1]
        if bool((elapsed - fitted * places).abs().max() <= tolerance * fitted):
            of_rows = torch.empty_like(order).index_copy(0, order, places.long())
            return Grid(of_rows, length, float(ordered[0]), float(fitted))
    return None
