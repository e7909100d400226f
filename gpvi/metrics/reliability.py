"""Do predicted class probabilities hold what they promise (Naeini et al., 2015)?"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from gpvi.exceptions import InputError
from gpvi.metrics._checks import matrix, rows, weights_of

__all__ = ["ReliabilityCurve", "expected_calibration_error", "reliability_curve", "top_label"]


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Predicted and observed frequency in bins of the predicted probability; empty bins left out.

    Attributes
    ----------
    probability : ndarray, shape [B]
        Mean predicted probability in every bin.
    frequency : ndarray, shape [B]
        Share of rows in which the event took place.
    weight : ndarray, shape [B]
        Sum of the weights of a bin's rows; their number, without weights.
    lower, upper : ndarray, shape [B]
        Ends of the bins.
    """

    probability: np.ndarray
    frequency: np.ndarray
    weight: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the weighted mean distance of the two."""
        gaps = np.abs(self.probability - self.frequency)
        return float(np.average(gaps, weights=self.weight))


def reliability_curve(
    event: ArrayLike,
    probability: ArrayLike,
    *,
    num_bins: int = 10,
    strategy: Literal["uniform", "quantile"] = "uniform",
    sample_weight: ArrayLike | None = None,
) -> ReliabilityCurve:
    """Bin predicted probabilities and count how often the event took place.

    Parameters
    ----------
    event : array-like of bool or 0/1, shape [N]
        Whether the event took place.
    probability : array-like, shape [N]
        Its predicted probability.
    num_bins : int
        Number of bins.
    strategy : {"uniform", "quantile"}
        Bins of equal width, or of about equally many rows.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    ReliabilityCurve
        One entry for every bin that holds rows of positive weight.

    Raises
    ------
    InputError
        If shapes differ or a value is out of range.

    References
    ----------
    Naeini, M., Cooper, G. and Hauskrecht, M. (2015). Obtaining well calibrated probabilities using
    Bayesian binning. AAAI.

    Examples
    --------
    >>> from gpvi.metrics import reliability_curve
    >>> curve = reliability_curve([0, 1, 1, 1], [0.2, 0.2, 0.9, 0.8], num_bins=2)
    >>> curve.probability.round(2), curve.frequency, curve.weight
    (array([0.2 , 0.85]), array([0.5, 1. ]), array([2., 2.]))
    """
    event = rows("event", event)
    if not np.isin(event, (0.0, 1.0)).all():
        raise InputError(
            f"event holds {event[~np.isin(event, (0.0, 1.0))][0]:g}; it must be bool or 0 and 1."
        )
    probability = _probabilities("probability", rows("probability", probability, len(event)))
    weights = weights_of(sample_weight, len(event))
    edges = _edges(probability, num_bins, strategy)
    # Bins are closed above and the first one below too, so that 0 and 1 have their places.
    index = np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, len(edges) - 2)
    size = len(edges) - 1
    weight = np.bincount(index, weights, size)
    used = weight > 0
    safe = np.where(used, weight, 1.0)
    return ReliabilityCurve(
        probability=(np.bincount(index, weights * probability, size) / safe)[used],
        frequency=(np.bincount(index, weights * event, size) / safe)[used],
        weight=weight[used],
        lower=edges[:-1][used],
        upper=edges[1:][used],
    )


def expected_calibration_error(
    y: ArrayLike,
    probability: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    num_bins: int = 15,
    strategy: Literal["uniform", "quantile"] = "uniform",
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Expected calibration error (ECE) of class probabilities.

    .. math:: \sum_b \frac{w_b}{\sum_c w_c} \left| \mathrm{frequency}_b - \mathrm{probability}_b \right|

    over bins b of the predicted probability. With ``probability`` of shape [N] the event is the
    positive class; with shape [N, C], that the most probable class is the right one ("top label").
    The two differ for two classes too. The estimate is biased upwards when bins hold few rows.

    Parameters
    ----------
    y : array-like, shape [N]
        Labels.
    probability : array-like, shape [N] or [N, C]
        Probability of the second of two classes, or of every class.
    classes : array-like, shape [2] or [C], optional
        Labels in the order of the columns, such as an estimator's `classes_`; 0, 1, ... if left
        out.
    num_bins : int
        Number of bins.
    strategy : {"uniform", "quantile"}
        Bins of equal width, or of about equally many rows.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        Between 0 and 1; 0 is best.

    Raises
    ------
    InputError
        If shapes do not fit, a label is unknown, or probabilities are out of range.

    References
    ----------
    Naeini, M., Cooper, G. and Hauskrecht, M. (2015). Obtaining well calibrated probabilities using
    Bayesian binning. AAAI.

    Examples
    --------
    >>> from gpvi.metrics import expected_calibration_error
    >>> round(expected_calibration_error([0, 1, 1, 1], [0.2, 0.2, 0.9, 0.8], num_bins=2), 3)
    0.225
    >>> probability = [[0.8, 0.1, 0.1], [0.2, 0.6, 0.2]]
    >>> round(expected_calibration_error(["a", "b"], probability, classes=["a", "b", "c"]), 3)
    0.3
    """
    if np.ndim(probability) == 2:
        event, confidence = top_label(y, probability, classes=classes)
    else:
        labels = _labels(y)
        names = _class_names(classes, 2)
        event = _indices(labels, names) == 1
        confidence = rows("probability", probability, len(labels))
    curve = reliability_curve(
        event, confidence, num_bins=num_bins, strategy=strategy, sample_weight=sample_weight
    )
    return curve.error


def top_label(
    y: ArrayLike, probability: ArrayLike, *, classes: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in the most probable class, and whether it is the right one.

    Parameters
    ----------
    y : array-like, shape [N]
        Labels.
    probability : array-like, shape [N, C]
        Probability of every class; rows sum to one.
    classes : array-like, shape [C], optional
        Labels in the order of the columns; 0, 1, ... if left out.

    Returns
    -------
    right : ndarray of bool, shape [N]
        Whether the most probable class (the first of several) is y.
    confidence : ndarray, shape [N]
        Its probability.

    Raises
    ------
    InputError
        If shapes do not fit, a label is unknown, or rows do not sum to one.

    Examples
    --------
    >>> from gpvi.metrics import top_label
    >>> top_label([0, 0], [[0.75, 0.25], [0.5, 0.5]])
    (array([ True,  True]), array([0.75, 0.5 ]))
    """
    labels = _labels(y)
    table = _probabilities("probability", matrix("probability", probability, len(labels), "C"))
    totals = table.sum(1)
    wrong = np.abs(totals - 1).argmax()
    # Loose enough for probabilities computed in float32.
    if abs(totals[wrong] - 1) > 1e-4:
        raise InputError(
            f"probability sums to {totals[wrong]:g} in row {wrong}; rows must sum to one."
        )
    names = _class_names(classes, table.shape[1])
    best = table.argmax(1)
    return best == _indices(labels, names), table[np.arange(len(best)), best]


def _edges(probability: np.ndarray, num_bins: int, strategy: str) -> np.ndarray:
    if isinstance(num_bins, bool) or not isinstance(num_bins, int | np.integer) or num_bins < 1:
        raise InputError(f"num_bins is {num_bins!r}; it must be an integer of at least 1.")
    if strategy == "uniform":
        return np.linspace(0.0, 1.0, num_bins + 1)
    if strategy == "quantile":
        inner = np.quantile(probability, np.linspace(0.0, 1.0, num_bins + 1)[1:-1])
        return np.unique(np.concatenate([[0.0], inner, [1.0]]))
    raise InputError(f"strategy is {strategy!r}; pass 'uniform' or 'quantile'.")


def _probabilities(name: str, values: np.ndarray) -> np.ndarray:
    # Sums of rounded exponentials may exceed one by a few units in the last place.
    if values.min() < -1e-6 or values.max() > 1 + 1e-6:
        raise InputError(
            f"{name} spans [{values.min():g}, {values.max():g}]; it must lie in [0, 1]."
        )
    return np.clip(values, 0.0, 1.0)


def _labels(y: ArrayLike) -> np.ndarray:
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.size == 0:
        raise InputError(f"y has shape {labels.shape}; it must be [N] with at least one row.")
    return labels


def _class_names(classes: ArrayLike | None, num_classes: int) -> np.ndarray:
    names = np.arange(num_classes) if classes is None else np.asarray(classes)
    if names.shape != (num_classes,):
        raise InputError(
            f"classes has shape {names.shape}; the probabilities are those of {num_classes} classes."
        )
    return names


def _indices(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    matches = labels[:, None] == classes
    unknown = ~matches.any(1)
    if unknown.any():
        raise InputError(
            f"y holds the label {labels[unknown].tolist()[0]!r}, which is not among the classes "
            f"{classes.tolist()}; pass classes= in the order of the columns."
        )
    return matches.argmax(1)
