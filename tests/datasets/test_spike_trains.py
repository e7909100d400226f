"""The generator of spike trains: shapes, seeds, rates."""

from typing import Any

import numpy as np
import pytest

from gpvi.datasets import make_spike_trains
from gpvi.exceptions import InputError


def test_follows_its_seed() -> None:
    first, again = make_spike_trains(2, 50, 4), make_spike_trains(2, 50, 4)
    np.testing.assert_array_equal(first.counts, again.counts)
    other = make_spike_trains(2, 50, 4, random_state=np.random.default_rng(1))
    assert not np.array_equal(first.counts, other.counts)


def test_rates_and_latents_are_as_said() -> None:
    spikes = make_spike_trains(4, 300, 6, bin_width=0.01, mean_rate=30.0)
    np.testing.assert_allclose(spikes.rates.mean((0, 1)), 0.3)
    np.testing.assert_allclose(spikes.latents.mean((0, 1)), 0.0, atol=1e-12)
    np.testing.assert_allclose(spikes.latents.std((0, 1)), 1.0)
    log_rates = spikes.latents @ spikes.loadings.T + spikes.offset
    np.testing.assert_allclose(np.exp(log_rates), spikes.rates)
    assert spikes.time[0] == pytest.approx(0.005) and len(spikes.time) == 300
    assert abs(spikes.counts.mean() - 0.3) < 0.02


def test_the_oscillator_has_its_period_however_wide_the_bins() -> None:
    for width in (0.005, 0.05):
        x = make_spike_trains(1, int(20 / width), 1, bin_width=width).latents[0, :, 0]
        crossings = np.flatnonzero((x[:-1] < 0) & (x[1:] >= 0)) * width
        assert np.diff(crossings).mean() == pytest.approx(7.0 / 5.0, rel=0.05)


@pytest.mark.parametrize(
    "options", [{"num_trials": 0}, {"num_bins": 2.0}, {"num_neurons": True}, {"mean_rate": 0.0}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        make_spike_trains(**options)
