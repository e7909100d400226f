"""The data, split and standardised once for every peer.

Regression tasks come with stored test masks: column ``seed`` makes the split. The others hold out a
tenth of the rows, drawn with a generator seeded by the split. Inputs are standardised per column by
the moments of the training rows, and so are the targets of regression tasks; labels are 0 and 1 and
counts stay as they are. Every peer is fitted to the same arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from registry import Kind, TaskSpec

__all__ = ["Array", "Split", "bin_events", "load_split", "synthetic_split"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FIRST_SEED = 1000
"""Added to the number of the split where rows are held out at random."""


@dataclass(frozen=True)
class Split:
    """Training rows and test inputs as the peers get them, and test targets as they were.

    The training targets of regression are standardised, with the mean and scale given here.
    """

    kind: Kind
    train_inputs: Array
    train_targets: Array
    test_inputs: Array
    test_targets: Array
    target_mean: float = 0.0
    target_scale: float = 1.0


def load_split(task: TaskSpec, folder: Path, seed: int) -> Split:
    """Read the data of a task and split them.

    Raises
    ------
    ValueError
        If the file of a regression task holds no test mask for this seed.
    """
    test: Mask
    if task.kind == "regression":
        with np.load(folder / f"{task.source}.npz") as stored:
            inputs, targets = stored["X"].astype(np.float64), stored["y"].astype(np.float64)
            masks = np.unpackbits(stored["test_mask"], axis=0)[: int(stored["n"])].astype(bool)
        if not 0 <= seed < masks.shape[1]:
            raise ValueError(f"{task.source} has test masks 0 to {masks.shape[1] - 1}, not {seed}")
        test = masks[:, seed]
    else:
        load = _load_labels if task.bins is None else _load_counts
        inputs, targets = load(task, folder)
        test = np.zeros(len(targets), bool)
        held_out = np.random.default_rng(FIRST_SEED + seed).permutation(len(targets))
        test[held_out[: len(targets) // 10]] = True
    return _standardised(task.kind, inputs, targets, test)


def _load_labels(task: TaskSpec, folder: Path) -> tuple[Array, Array]:
    origin, _, name = task.source.rpartition(":")
    if origin == "sklearn":
        from sklearn import datasets

        inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    else:
        with np.load(folder / f"{name}.npz") as stored:
            inputs, labels = stored["X"], stored["y"]
    return inputs.astype(np.float64), labels.astype(np.float64)


def _load_counts(task: TaskSpec, folder: Path) -> tuple[Array, Array]:
    with np.load(folder / f"{task.source}.npz") as stored:
        (times,) = (stored[name] for name in stored.files)
    if times.dtype.kind == "U":
        times = times.astype("datetime64[D]").astype(np.float64)
    assert task.bins is not None
    return bin_events(times, task.bins)


def bin_events(times: Array, bins: int) -> tuple[Array, Array]:
    """Centres [bins, 1] and counts [bins] of equal bins from the first event to the last."""
    counts, edges = np.histogram(times, bins)
    return 0.5 * (edges[1:] + edges[:-1])[:, None], counts.astype(np.float64)


def _standardised(kind: Kind, inputs: Array, targets: Array, test: Mask) -> Split:
    train_inputs, train_targets = inputs[~test], targets[~test]
    centre, scale = train_inputs.mean(0), train_inputs.std(0)
    # A constant column carries nothing; dividing by one leaves it at zero.
    scale = np.where(scale < 1e-12, 1.0, scale)
    target_mean, target_scale = 0.0, 1.0
    if kind == "regression":
        target_mean, target_scale = float(train_targets.mean()), float(train_targets.std())
    return Split(
        kind,
        np.ascontiguousarray((train_inputs - centre) / scale),
        (train_targets - target_mean) / target_scale,
        np.ascontiguousarray((inputs[test] - centre) / scale),
        targets[test],
        target_mean,
        target_scale,
    )


def synthetic_split(num_rows: int, num_inputs: int, kind: Kind) -> Split:
    """A smooth function of normal inputs, observed as the kind of target says, for warming up.

    The first rows of a real data set would not do: a column may be constant there, which some
    libraries refuse.
    """
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((num_rows, num_inputs))
    signal = np.sin(inputs.sum(1))
    if kind == "counts":
        targets = generator.poisson(np.exp(signal)).astype(np.float64)
    else:
        targets = signal + 0.1 * generator.standard_normal(num_rows)
        if kind == "binary":
            targets = (targets > 0).astype(np.float64)
    return Split(kind, inputs, targets, inputs[:50], targets[:50])
