"""Recordings of many outputs over time: what a user passes, checked and laid end to end.

Trials of unequal length become series behind each other, so that no padding is needed; results are cut
back into the form in which the data came.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg import Steps

__all__ = ["Recordings", "read_recordings"]


@dataclass(frozen=True, eq=False)
class Recordings:
    """All trials behind each other.

    Parameters
    ----------
    y : Tensor, shape [T, P]
        Rows of all trials; NaN means not observed.
    steps : Steps
        Stamps, one series for each trial.
    lengths : tuple of int
        Rows of every trial.
    form : {"one", "stack", "list"}
        A single trial ``[T, P]``, equal ones ``[R, T, P]``, or a list.
    """

    y: Tensor
    steps: Steps
    lengths: tuple[int, ...]
    form: Literal["one", "stack", "list"]

    def split(self, values: Tensor) -> Any:
        """Cut rows into trials.

        Parameters
        ----------
        values : Tensor, shape [T, ...]
            One entry for each row.

        Returns
        -------
        ndarray or list of ndarray
            In the form of the data.
        """
        array = values.detach().cpu().numpy()
        if self.form == "one":
            return array
        if self.form == "stack":
            return array.reshape(len(self.lengths), -1, *array.shape[1:])
        return np.split(array, np.cumsum(self.lengths)[:-1])

    @property
    def num_observed(self) -> int:
        """Rows with at least one output."""
        return int((~self.y.isnan().all(-1)).sum())


def read_recordings(Y: Any, t: Any, num_outputs: int | None = None) -> Recordings:
    """Check recordings and lay the trials behind each other.

    Parameters
    ----------
    Y : array-like, shape [T, P] or [R, T, P], or list of arrays [T_r, P]
        NaN means not observed.
    t : array-like, shape [T], or list of arrays [T_r], optional
        Ascending stamps, the same for all trials or one array for each; 0, 1, 2, ... if left out.
    num_outputs : int, optional
        P of the fit.

    Returns
    -------
    Recordings
        In float64.

    Raises
    ------
    InputError
        For shapes that do not fit, values that are no numbers, and stamps out of order.
    """
    trials, form = _trials(Y)
    widths = {trial.shape[1] for trial in trials}
    if len(widths) > 1:
        raise InputError(f"Trials have {sorted(widths)} outputs; all must have the same.")
    if num_outputs is not None and widths != {num_outputs}:
        raise InputError(
            f"The fit had {num_outputs} outputs, Y has {widths.pop()}. Pass all of them, with NaN "
            "for those not observed."
        )
    if not all(trial.size for trial in trials):
        raise InputError("A trial has no bins or no outputs; drop it.")
    for number, trial in enumerate(trials):
        if np.isinf(trial).any():
            raise InputError(f"Trial {number} holds an infinite value; use NaN for missing ones.")
    lengths = tuple(len(trial) for trial in trials)
    stamps = _stamps(t, lengths)
    starts = torch.as_tensor(np.cumsum((0, *lengths[:-1])), dtype=torch.int64)
    steps = Steps(torch.as_tensor(np.concatenate(stamps)), starts)
    return Recordings(torch.as_tensor(np.concatenate(trials)), steps, lengths, form)


def _trials(Y: Any) -> tuple[list[np.ndarray], Literal["one", "stack", "list"]]:
    if isinstance(Y, list | tuple) and len(Y) and _dims(Y[0]) == 2:
        trials = [_numbers(trial, f"Trial {number}") for number, trial in enumerate(Y)]
        for number, trial in enumerate(trials):
            if trial.ndim != 2:
                raise InputError(f"Trial {number} has shape {trial.shape}; pass [T, P].")
        return trials, "list"
    array = _numbers(Y, "Y")
    if array.ndim == 2:
        return [array], "one"
    if array.ndim == 3 and len(array):
        return list(array), "stack"
    raise InputError(
        f"Y has shape {array.shape}; pass [T, P], [trials, T, P] or a list of arrays [T, P]."
    )


def _numbers(value: Any, name: str) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} is no array of numbers ({error}). Pass trials of unequal length as a list of "
            "arrays [T, P]."
        ) from error


def _dims(value: Any) -> int:
    """Dimensions of an array or of nested lists, by their first entries."""
    if hasattr(value, "ndim"):
        return int(value.ndim)
    return 1 + _dims(value[0]) if isinstance(value, list | tuple) and len(value) else 0


def _stamps(t: Any, lengths: Sequence[int]) -> list[np.ndarray]:
    if t is None:
        return [np.arange(float(length)) for length in lengths]
    if isinstance(t, list | tuple) and len(t) and _dims(t[0]) == 1:
        stamps = [_numbers(part, "t") for part in t]
    else:
        stamps = [_numbers(t, "t")] * len(lengths)
    shapes, expected = [part.shape for part in stamps], [(length,) for length in lengths]
    if shapes != expected:
        raise InputError(
            f"t has shapes {shapes} for trials of {list(lengths)} bins; give a stamp each."
        )
    for part in stamps:
        if not np.isfinite(part).all() or (np.diff(part) < 0).any():
            raise InputError("t must be finite and ascending within every trial; sort the bins.")
    return stamps
