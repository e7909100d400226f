"""Row extras: what a likelihood knows about each observation besides its target.

Weights, exposures and known noise variances arrive as keyword arguments with one entry per row.
They are checked against the names a likelihood accepts, so that a misspelt name is an error and not
an option without effect.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = [
    "check_row_values",
    "check_target_shape",
    "checked_rows",
    "fill_by_mean",
    "refuse_other_classes",
    "where_missing",
]

_REQUIREMENTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "censored": ("0, 1 or -1", lambda values: (values == 0) | (values.abs() == 1)),
    "weights": ("non-negative", lambda values: values >= 0),
    "exposure": ("positive", lambda values: values > 0),
    "trials": ("at least 1", lambda values: values >= 1),
    "noise": ("non-negative (a variance)", lambda values: values >= 0),
}


def checked_rows(
    rows: Mapping[str, object],
    accepted: Iterable[str],
    owner: str,
    like: Tensor,
    num_rows: int,
) -> dict[str, Tensor]:
    """Check names and lengths of row extras and bring them to one dtype and device.

    Parameters
    ----------
    rows : mapping
        Extras by name; entries that are None are left out.
    accepted : iterable of str
        Names that the likelihood accepts.
    owner : str
        Class name of the likelihood, for messages.
    like : Tensor
        Gives dtype and device.
    num_rows : int
        Number of rows N; every extra ends in N or in 1.

    Returns
    -------
    dict
        Tensors of shape `[*b, N]`, `[*b, 1]` or `[]`.

    Raises
    ------
    InputError
        For unknown names and wrong lengths.

    Examples
    --------
    >>> checked_rows({"weights": [1, 2]}, {"weights"}, "Mine", torch.zeros(2), 2)
    {'weights': tensor([1., 2.])}
    """
    accepted = frozenset(accepted)
    checked: dict[str, Tensor] = {}
    for name, value in rows.items():
        if name not in accepted:
            raise InputError(
                f"{owner} does not accept the row argument {name!r}. It accepts: "
                f"{', '.join(sorted(accepted))}."
            )
        if value is None:
            continue
        tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        if tensor.dim() and tensor.shape[-1] not in (1, num_rows):
            raise InputError(
                f"The row argument {name!r} of {owner} has shape {tuple(tensor.shape)}, but there "
                f"are {num_rows} rows. Pass one entry per row in the last dimension."
            )
        checked[name] = tensor
    return checked


def check_row_values(rows: Mapping[str, Tensor], observed: Tensor, owner: str) -> None:
    """Raise where an extra of an observed row is not finite or out of its range.

    Parameters
    ----------
    rows : mapping
        Extras by name, as returned by `checked_rows`.
    observed : Tensor
        Boolean `[*b, N]`; rows without a target may hold anything.
    owner : str
        Class name of the likelihood, for messages.

    Raises
    ------
    InputError
        Names the first offending value.

    Examples
    --------
    >>> check_row_values({"weights": torch.ones(2)}, torch.tensor([True, False]), "Mine")
    """
    for name, values in rows.items():
        kind, in_range = _REQUIREMENTS.get(name, ("finite", torch.isfinite))
        bad = observed & ~(torch.isfinite(values) & in_range(values))
        if bad.any():
            offending = values.expand(bad.shape)[bad][0].item()
            raise InputError(
                f"The row argument {name!r} of {owner} must be finite and {kind}, got {offending} "
                f"at {int(bad.sum())} observed row(s). Correct or drop these rows."
            )


def check_target_shape(y: Tensor, num_rows: int, target_dims: int, owner: str) -> None:
    """Refuse targets that do not have one entry per row.

    Parameters
    ----------
    y : Tensor
        Targets, `[*b, N]` or `[*b, N, P]`.
    num_rows : int
        N.
    target_dims : int
        0 for numbers, 1 for vectors of P outputs.
    owner : str
        Name of the likelihood, for the message.

    Raises
    ------
    InputError
        If the rows do not match.
    """
    if y.dim() <= target_dims or y.shape[-1 - target_dims] != num_rows:
        raise InputError(
            f"{owner} got targets of shape {tuple(y.shape)} for {num_rows} rows. Pass y with shape "
            f"[*b, N{', P' if target_dims else ''}]; a column [N, 1] must be flattened."
        )


def refuse_other_classes(labels: Tensor, num_classes: int, owner: str) -> None:
    """Raise for labels that are no class number.

    Parameters
    ----------
    labels : Tensor
        Of observed rows.
    num_classes : int
        C; classes are 0, ..., C - 1.
    owner : str
        Class name of the likelihood, for the message.

    Raises
    ------
    InputError
        Names the first of them.
    """
    bad = labels[(labels != labels.round()) | (labels < 0) | (labels >= num_classes)]
    if len(bad):
        raise InputError(
            f"{owner} needs classes 0, 1, ..., {num_classes - 1}, got {bad[0].item()}. Encode the classes "
            "first (those of an order in that order)."
        )


def checked_levels(levels: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """Probabilities as a tensor.

    Parameters
    ----------
    levels : sequence of float or Tensor
        Probabilities.
    like : Tensor
        Of the dtype and device to use.

    Returns
    -------
    Tensor
        `[Q]`.

    Raises
    ------
    InputError
        If one is not strictly between 0 and 1.
    """
    probabilities = torch.as_tensor(levels, dtype=like.dtype, device=like.device)
    if probabilities.dim() != 1 or not bool(((probabilities > 0) & (probabilities < 1)).all()):
        raise InputError(
            f"levels must be a list of probabilities strictly between 0 and 1, got {levels!r}."
        )
    return probabilities


def where_missing(missing: Tensor, fill: float, value: Tensor) -> Tensor:
    """Put a constant where a row is missing, cutting its gradient.

    Parameters
    ----------
    missing : Tensor
        Boolean `[*b, N]`.
    fill : float
        The constant.
    value : Tensor
        Finite terms `[*c, N]`.

    Returns
    -------
    Tensor
        Broadcast shape.

    Examples
    --------
    >>> where_missing(torch.tensor([True, False]), 0.0, torch.ones(2))
    tensor([0., 1.])
    """
    return torch.where(missing, torch.full_like(value, fill), value)


def fill_by_mean(values: Tensor, observed: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give unobserved rows the (weighted) mean of the observed ones, 0 if there are none.

    Parameters
    ----------
    values : Tensor
        `[*b, N]`.
    observed : Tensor
        Boolean `[*b, N]`.
    weights : Tensor, optional
        Of the rows, `[*b, N]`; all one if left out.

    Returns
    -------
    Tensor
        `[*b, N]`.

    Examples
    --------
    >>> fill_by_mean(torch.tensor([1.0, 9.0, 3.0]), torch.tensor([True, False, True]))
    tensor([1., 2., 3.])
    """
    shares = torch.ones_like(values) if weights is None else weights.expand(values.shape)
    shares = where_missing(~observed, 0.0, shares)
    total = (shares * where_missing(~observed, 0.0, values)).sum(-1, keepdim=True)
    weight = shares.sum(-1, keepdim=True)
    return torch.where(observed, values, total / torch.where(weight > 0, weight, 1.0))
