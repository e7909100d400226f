"""Checks that every posterior makes of the inputs it is asked about."""

from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpvi.exceptions import InputError, UnsupportedError

if TYPE_CHECKING:
    from gpvi.approximations.posterior import Posterior


def refuse_groups(posterior: "Posterior", groups: Tensor | None) -> None:
    """Refuse group labels where the posterior was not conditioned on groups."""
    if groups is not None:
        raise UnsupportedError(
            f"groups were passed to {type(posterior).__name__}, which was conditioned without "
            "groups; pass groups to plan() first."
        )


def check_new_inputs(posterior: "Posterior", x: Tensor) -> None:
    """Refuse inputs that do not fit those the posterior was conditioned at."""
    known = posterior.prior.x
    if x.dim() < 2 or x.shape[-1] != known.shape[-1]:
        raise InputError(
            f"x has shape {tuple(x.shape)}; pass inputs of shape [N, {known.shape[-1]}] "
            "(x.unsqueeze(-1) for one input column)."
        )
    if x.dtype != known.dtype or x.device != known.device:
        raise InputError(
            f"x is {x.dtype} on {x.device} and the data inputs are {known.dtype} on "
            f"{known.device}; convert x first."
        )
    try:
        torch.broadcast_shapes(x.shape[:-2], posterior.prior.mean.shape[:-1])
    except RuntimeError:
        raise InputError(
            f"x has batch shape {tuple(x.shape[:-2])}, which does not broadcast with that of the "
            f"posterior, {tuple(posterior.prior.mean.shape[:-1])}."
        ) from None


def check_finite(x: Tensor) -> None:
    """Refuse inputs without a place among the others."""
    if not bool(torch.isfinite(x).all()):
        raise InputError(
            f"x holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite; drop these rows."
        )


def check_count(name: str, value: object) -> None:
    """Refuse what is no number of things."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be an integer of at least 1.")
