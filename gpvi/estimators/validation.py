"""What goes into an estimator, checked once and refused in one sentence.

scikit-learn's own checks do the conversion (frames, lists, memory maps, sparse matrices); what they refuse
is raised again as this package's errors, and what they cannot know is checked here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from gpvi.exceptions import GPVIError, InputError, InputTypeError

__all__ = [
    "check_choice",
    "check_device",
    "check_finite_inputs",
    "check_flag",
    "check_integer",
    "check_length",
    "check_levels",
    "check_number",
    "check_row_names",
    "check_seed",
    "own_errors",
    "row_extras",
    "row_values",
]

_MAX_SEED = 2**31 - 1


@contextmanager
def own_errors(subject: str) -> Iterator[None]:
    """Raise scikit-learn's refusals as :class:`InputError` or :class:`InputTypeError`.

    Parameters
    ----------
    subject : str
        What is being looked at, such as "X of GPRegressor", for the message.
    """
    try:
        yield
    except GPVIError:
        raise
    except TypeError as error:
        raise InputTypeError(_sentence(subject, error)) from error
    except ValueError as error:
        raise InputError(_sentence(subject, error)) from error


def _sentence(subject: str, error: Exception) -> str:
    text = str(error).strip()
    if text.startswith("The feature names should match"):
        return text  # the one message whose further lines are no dump of the data
    return f"{subject} cannot be used: {text.partition(chr(10))[0].rstrip(' :.')}."


def check_finite_inputs(X: np.ndarray, estimator: str, names: np.ndarray | None) -> None:
    """Refuse NaN and infinite inputs.

    Parameters
    ----------
    X : ndarray, shape [N, D]
        Numbers.
    estimator : str
        Class name, for the message.
    names : ndarray of str, shape [D], optional
        Column names, for the message.

    Raises
    ------
    InputError
        Names the number of bad values and the first of them.
    """
    bad = ~np.isfinite(X)
    if not bad.any():
        return
    row, column = np.argwhere(bad)[0]
    where = f"column {column}" if names is None else f"column {str(names[column])!r}"
    what = "NaN" if np.isnan(X[row, column]) else "inf"
    raise InputError(
        f"X of {estimator} holds {int(bad.sum())} NaN or infinite value(s), the first ({what}) in row "
        f"{row}, {where}; drop or impute these rows."
    )


def check_length(y: np.ndarray, num_rows: int, estimator: str) -> None:
    """Refuse targets that are not one per row.

    Parameters
    ----------
    y : ndarray, shape [N]
        Targets.
    num_rows : int
        Rows of X.
    estimator : str
        Class name, for the message.

    Raises
    ------
    InputError
        With both numbers.
    """
    if len(y) != num_rows:
        raise InputError(
            f"y of {estimator} has {len(y)} values for {num_rows} rows of X; pass one per row."
        )


def row_values(
    values: object,
    num_rows: int,
    name: str,
    estimator: str,
    *,
    positive: bool,
    signed: bool = False,
) -> np.ndarray | None:
    """One number per row, or one for all, as a float64 vector.

    Parameters
    ----------
    values : array-like, shape [N], or a number, or None
        Weights, noise variances, exposures.
    num_rows : int
        N.
    name, estimator : str
        For messages.
    positive : bool
        Whether 0 is refused too.
    signed : bool
        Whether any finite number will do.

    Returns
    -------
    ndarray, shape [N], or None
        A copy.

    Raises
    ------
    InputError
        For another shape, and values that are not finite or out of range.
    """
    if values is None:
        return None
    try:
        if np.iscomplexobj(np.asarray(values)):
            raise TypeError("complex numbers")
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} of {estimator} is not numeric: {error}; pass numbers.") from error
    if array.ndim == 0:
        array = np.full(num_rows, float(array))
    if array.shape != (num_rows,):
        raise InputError(
            f"{name} of {estimator} has shape {array.shape} for {num_rows} rows; pass one value per row, "
            "as a 1D array."
        )
    outside = (array <= 0) if positive else (array < 0)
    bad = ~np.isfinite(array) | (outside & (not signed))
    if bad.any():
        kind = "" if signed else " and positive" if positive else " and non-negative"
        raise InputError(
            f"{name} of {estimator} must be finite{kind}, got {array[bad][0]} in row "
            f"{int(np.flatnonzero(bad)[0])} ({int(bad.sum())} such row(s)); correct or drop these rows."
        )
    return array


def check_row_names(owner: object, names: set[str], accepted: frozenset[str]) -> None:
    """Refuse extras of rows that a likelihood does not take, by the names that estimators give them.

    Parameters
    ----------
    owner : object
        The likelihood, for the message.
    names : set of str
        Extras, by the likelihood's names.
    accepted : frozenset of str
        Extras that it takes.

    Raises
    ------
    InputError
        Names those that it does not take.
    """
    unknown = sorted(names - accepted)
    if unknown:
        listed = ", ".join("noise_variance" if name == "noise" else name for name in unknown)
        raise InputError(
            f"{type(owner).__name__} has no use for {listed}; leave it out or choose another likelihood."
        )


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse an option that is not among the known ones.

    Parameters
    ----------
    name : str
        Of the option.
    value : object
        Its value.
    choices : tuple
        The known ones.

    Raises
    ------
    InputError
        If the value is another one.
    """
    if not any(value is choice or (type(value) is str and value == choice) for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise InputError(f"{name} is {value!r}; it must be one of {listed}.")


def check_integer(name: str, value: object, lowest: int) -> int:
    """An option that must be an integer.

    Parameters
    ----------
    name : str
        Of the option.
    value : object
        Its value.
    lowest : int
        The smallest value allowed.

    Returns
    -------
    int
        The value.

    Raises
    ------
    InputError
        If it is none, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < lowest:
        raise InputError(f"{name} is {value!r}; it must be an integer of at least {lowest}.")
    return int(value)


def check_flag(name: str, value: object) -> None:
    """Refuse an option that is neither True nor False.

    Parameters
    ----------
    name : str
        Of the option.
    value : object
        Its value.

    Raises
    ------
    InputError
        For anything but a truth value, 0 or 1.
    """
    if not (isinstance(value, bool | np.bool_ | int | np.integer) and value in (0, 1)):
        raise InputError(f"{name} is {value!r}; it must be True or False.")


def check_number(name: str, value: object, low: float, high: float) -> float:
    """An option that must be a number strictly between two others.

    Parameters
    ----------
    name : str
        Of the option.
    value : object
        Its value.
    low, high : float
        Exclusive bounds.

    Returns
    -------
    float
        The value.

    Raises
    ------
    InputError
        If it is none, or out of range.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not low < float(value) < high:  # type: ignore[arg-type]
        raise InputError(
            f"{name} is {value!r}; it must be a number strictly between {low:g} and {high:g}."
        )
    return float(value)  # type: ignore[arg-type]


def check_levels(levels: object) -> list[float]:
    """Probabilities of quantiles.

    Parameters
    ----------
    levels : sequence of float
        As given.

    Returns
    -------
    list of float
        Strictly between 0 and 1.

    Raises
    ------
    InputError
        For anything else.
    """
    if isinstance(levels, str) or not isinstance(levels, Sequence | np.ndarray) or not len(levels):
        raise InputError(
            f"levels is {levels!r}; pass a sequence of probabilities such as [0.1, 0.9]."
        )
    return [check_number("a level of the quantiles", level, 0.0, 1.0) for level in levels]


def check_seed(random_state: object) -> int:
    """Seed drawn from what scikit-learn calls a random state.

    Parameters
    ----------
    random_state : int, RandomState or None
        None draws from NumPy's global state.

    Returns
    -------
    int
        For a generator of torch.

    Raises
    ------
    InputError
        For anything else.
    """
    try:
        return int(check_random_state(random_state).randint(_MAX_SEED))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"random_state is {random_state!r}; pass an integer from 0 to {2**32 - 1}, a RandomState or "
            "None."
        ) from error


def check_device(device: Any) -> torch.device:
    """A device of torch that exists here.

    Parameters
    ----------
    device : str or torch.device
        As given.

    Returns
    -------
    torch.device
        Usable.

    Raises
    ------
    InputError
        If torch does not know it or cannot reach it.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"device is {device!r}, which torch cannot use here ({reason}); pass 'cpu' or a device of "
            "this machine."
        ) from error
    return found


def row_extras(given: Mapping[str, object], num_rows: int, estimator: str) -> dict[str, np.ndarray]:
    """Extras of the likelihood that were given, by the likelihood's names for them.

    Parameters
    ----------
    given : mapping of str to array-like, shape [N], or None
        "noise_variance" (known, of every measurement), "exposure" and "trials" (behind every count), and
        "censored" (1 where y is a lower bound, -1 where it is an upper bound, else 0).
    num_rows : int
        N.
    estimator : str
        Class name, for messages.

    Returns
    -------
    dict of str to ndarray, shape [N]
        "noise", "exposure", "trials" and "censored".
    """
    rows = {
        name.removesuffix("_variance"): row_values(
            values,
            num_rows,
            name,
            estimator,
            positive=name in ("exposure", "trials"),
            signed=name == "censored",
        )
        for name, values in given.items()
    }
    return {name: values for name, values in rows.items() if values is not None}
