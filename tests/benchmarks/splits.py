"""The data, split and standardised once for every peer, and the two scores.

Column ``seed`` of the stored test masks makes the split. Inputs are standardised per column and
targets overall, by the moments of the training rows; every peer is fitted to the same standardised
arrays. Scores are computed here, from a Gaussian predictive mean and variance of the standardised
target, in the original units of the target: a root mean squared error (RMSE) and a mean negative
log predictive density (NLPD).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Split", "load_split", "scores", "synthetic_split"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Standardised training rows, standardised test inputs, and test targets as they were."""

    train_inputs: Array
    train_targets: Array
    test_inputs: Array
    test_targets: Array
    target_mean: float
    target_scale: float


def load_split(file: Path, seed: int) -> Split:
    """Read one ``.npz`` file (``X``, ``y``, ``n``, packed ``test_mask``) and split it.

    Raises
    ------
    ValueError
        If the file holds no test mask for this seed.
    """
    with np.load(file) as stored:
        inputs = stored["X"].astype(np.float64)
        targets = stored["y"].astype(np.float64)
        masks = np.unpackbits(stored["test_mask"], axis=0)[: int(stored["n"])].astype(bool)
    if not 0 <= seed < masks.shape[1]:
        raise ValueError(f"{file.name} has test masks 0 to {masks.shape[1] - 1}, not {seed}")
    test = masks[:, seed]
    train_inputs, train_targets = inputs[~test], targets[~test]
    centre, scale = train_inputs.mean(0), train_inputs.std(0)
    # A constant column carries nothing; dividing by one leaves it at zero.
    scale = np.where(scale < 1e-12, 1.0, scale)
    target_mean, target_scale = float(train_targets.mean()), float(train_targets.std())
    return Split(
        np.ascontiguousarray((train_inputs - centre) / scale),
        (train_targets - target_mean) / target_scale,
        np.ascontiguousarray((inputs[test] - centre) / scale),
        targets[test],
        target_mean,
        target_scale,
    )


def synthetic_split(num_rows: int, num_inputs: int) -> Split:
    """A smooth function of normal inputs plus noise, for warming up.

    The first rows of a real data set would not do: a column may be constant there, which some
    libraries refuse.
    """
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((num_rows, num_inputs))
    targets = np.sin(inputs.sum(1)) + 0.1 * generator.standard_normal(num_rows)
    return Split(inputs, targets, inputs[:50], targets[:50], 0.0, 1.0)


def scores(split: Split, mean: Array, variance: Array) -> dict[str, float]:
    """RMSE and NLPD, in original units, of a Gaussian prediction of the standardised targets.

    Raises
    ------
    ValueError
        If a shape is wrong, a mean is not finite or a variance is not positive and finite: such
        a run is reported as failed rather than clipped into a score.
    """
    mean, variance = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
    if mean.shape != split.test_targets.shape or variance.shape != split.test_targets.shape:
        raise ValueError(
            f"predictions of shape {mean.shape} and {variance.shape} for "
            f"{split.test_targets.shape} test targets"
        )
    if not np.isfinite(mean).all() or not (np.isfinite(variance) & (variance > 0)).all():
        raise ValueError("a predictive mean is not finite or a predictive variance not positive")
    variance = variance * split.target_scale**2
    residual = split.test_targets - (mean * split.target_scale + split.target_mean)
    return {
        "rmse": float(np.sqrt(np.mean(residual**2))),
        "nlpd": float(np.mean(0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance))),
    }
