"""Do predictive intervals and distributions hold what they promise (Gneiting et al., 2007)?"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from gpvi.exceptions import InputError
from gpvi.metrics._checks import matrix, rows, weighted_mean, weights_of
from gpvi.metrics.scores import gaussian_rows

__all__ = [
    "calibration_error",
    "gaussian_pit",
    "interval_coverage",
    "interval_width",
    "pit_from_samples",
    "quantile_calibration_error",
]


def interval_coverage(
    y: ArrayLike, lower: ArrayLike, upper: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    r"""Share of observations inside their predictive intervals, ends included.

    .. math:: \textstyle\sum_n w_n 1[l_n \le y_n \le u_n] / \sum_n w_n

    Parameters
    ----------
    y : array-like, shape [N]
        Observations.
    lower, upper : array-like, shape [N]
        Ends of the intervals, such as an estimator's `predict_interval(X, coverage)`.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        Between 0 and 1; compare with the nominal coverage.

    Raises
    ------
    InputError
        If shapes differ, a value is not finite, or a lower end exceeds its upper end.

    References
    ----------
    Gneiting, T., Balabdaoui, F. and Raftery, A. (2007). Probabilistic forecasts, calibration and
    sharpness. JRSS B 69.

    Examples
    --------
    >>> from gpvi.metrics import interval_coverage
    >>> interval_coverage([0.0, 1.0, 5.0, 2.0], lower=[-1, -1, -1, -1], upper=[2, 2, 2, 2])
    0.75
    """
    y = rows("y", y)
    lower, upper = _interval(lower, upper, len(y))
    return weighted_mean(((lower <= y) & (y <= upper)).astype(float), sample_weight)


def interval_width(
    lower: ArrayLike, upper: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    r"""Mean width of predictive intervals, their sharpness.

    .. math:: \textstyle\sum_n w_n (u_n - l_n) / \sum_n w_n

    Narrow is good only among predictions whose coverage holds.

    Parameters
    ----------
    lower, upper : array-like, shape [N]
        Ends of the intervals.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        In the units of y.

    Raises
    ------
    InputError
        If shapes differ, a value is not finite, or a lower end exceeds its upper end.

    References
    ----------
    Gneiting, T., Balabdaoui, F. and Raftery, A. (2007). Probabilistic forecasts, calibration and
    sharpness. JRSS B 69.

    Examples
    --------
    >>> from gpvi.metrics import interval_width
    >>> interval_width([0.0, 1.0], [2.0, 2.0])
    1.5
    """
    lower = rows("lower", lower)
    lower, upper = _interval(lower, upper, len(lower))
    return weighted_mean(upper - lower, sample_weight)


def gaussian_pit(y: ArrayLike, mean: ArrayLike, std: ArrayLike) -> np.ndarray:
    r"""Probability integral transform (PIT) under Gaussian predictions.

    .. math:: u_n = \Phi\left( (y_n - m_n) / s_n \right)

    Uniform on [0, 1] if the predictions are calibrated. A heap at both ends means error bars too
    narrow, a heap in the middle error bars too wide.

    Parameters
    ----------
    y : array-like, shape [N]
        Observations.
    mean : array-like, shape [N]
        Predictive means.
    std : array-like, shape [N]
        Positive predictive standard deviations, noise included.

    Returns
    -------
    ndarray, shape [N]
        Values in [0, 1].

    Raises
    ------
    InputError
        If shapes differ, a value is not finite, or a standard deviation is not positive.

    References
    ----------
    Gneiting, T., Balabdaoui, F. and Raftery, A. (2007). Probabilistic forecasts, calibration and
    sharpness. JRSS B 69.

    Examples
    --------
    >>> from gpvi.metrics import gaussian_pit
    >>> gaussian_pit([0.0, 1.96], mean=[0.0, 0.0], std=[1.0, 1.0]).round(3)
    array([0.5  , 0.975])
    """
    y, mean, std = gaussian_rows(y, mean, std)
    if std.min() == 0:
        raise InputError("std holds 0; the transform needs positive standard deviations.")
    return ndtr((y - mean) / std)


def pit_from_samples(
    y: ArrayLike, samples: ArrayLike, *, random_state: int | np.random.Generator = 0
) -> np.ndarray:
    r"""Randomised probability integral transform (PIT) of predictions given as samples.

    .. math:: u_n = \frac{\#\{x_i < y_n\} + V_n\, (\#\{x_i = y_n\} + 1)}{S + 1}, \qquad
              V_n \sim U(0, 1)

    Exactly uniform if the observation and the S samples are exchangeable, also for counts: the
    random part spreads ties evenly. Without it a calibrated forecast of counts looks biased.

    Parameters
    ----------
    y : array-like, shape [N]
        Observations.
    samples : array-like, shape [N, S]
        Independent draws of every observation, or its predictive quantiles at the levels
        (k - 1/2) / S.
    random_state : int or numpy Generator
        Source of the uniform numbers.

    Returns
    -------
    ndarray, shape [N]
        Values in [0, 1].

    Raises
    ------
    InputError
        If shapes differ or a value is not finite.

    References
    ----------
    Czado, C., Gneiting, T. and Held, L. (2009). Predictive model assessment for count data.
    Biometrics 65.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.metrics import pit_from_samples
    >>> draws = np.random.default_rng(0).poisson(2.0, (500, 100))
    >>> pit = pit_from_samples(draws[:, 0], draws[:, 1:])
    >>> round(float(pit.mean()), 1)
    0.5
    """
    y = rows("y", y)
    samples = matrix("samples", samples, len(y), "S")
    below = (samples < y[:, None]).sum(1)
    ties = (samples == y[:, None]).sum(1)
    spread = np.random.default_rng(random_state).uniform(size=len(y))
    return (below + spread * (ties + 1)) / (samples.shape[1] + 1)


def calibration_error(
    pit: ArrayLike, *, levels: ArrayLike | None = None, sample_weight: ArrayLike | None = None
) -> float:
    r"""Mean absolute difference between nominal and empirical probability, from PIT values.

    .. math:: \frac1Q \sum_{q=1}^Q \Big| p_q - \textstyle\sum_n w_n 1[u_n \le p_q] / \sum_n w_n \Big|

    Parameters
    ----------
    pit : array-like, shape [N]
        Probability integral transform of every observation, from `gaussian_pit` or, for counts and
        other distributions, `pit_from_samples`.
    levels : array-like, shape [Q], optional
        Nominal probabilities p; 0.01, 0.02, ..., 0.99 if left out.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        0 is best. With calibrated predictions of N rows expect about :math:`0.3 / \sqrt{N}`.

    Raises
    ------
    InputError
        If a value lies outside [0, 1].

    References
    ----------
    Gneiting, T., Balabdaoui, F. and Raftery, A. (2007). Probabilistic forecasts, calibration and
    sharpness. JRSS B 69.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.metrics import calibration_error
    >>> round(calibration_error((np.arange(1000) + 0.5) / 1000), 4)
    0.0
    >>> calibration_error(np.full(10, 0.5), levels=[0.25, 0.75])
    0.25
    """
    pit = rows("pit", pit)
    if pit.min() < 0 or pit.max() > 1:
        raise InputError(f"pit spans [{pit.min():g}, {pit.max():g}]; it must lie in [0, 1].")
    nominal = _levels(np.arange(1, 100) / 100 if levels is None else levels)
    weights = weights_of(sample_weight, len(pit))
    observed = np.average(pit[:, None] <= nominal, axis=0, weights=weights)
    return float(np.abs(nominal - observed).mean())


def quantile_calibration_error(
    y: ArrayLike,
    quantiles: ArrayLike,
    levels: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Mean absolute difference between nominal and empirical probability, from quantiles.

    .. math:: \frac1Q \sum_{q=1}^Q \Big| p_q - \textstyle\sum_n w_n 1[y_n \le F_n^{-1}(p_q)] / \sum_n w_n
              \Big|

    For continuous y. The quantiles of counts are exceeded less often than their levels say, however
    good the prediction: use `calibration_error` on `pit_from_samples` there.

    Parameters
    ----------
    y : array-like, shape [N]
        Observations.
    quantiles : array-like, shape [N, Q]
        Predictive quantiles, such as an estimator's `predict_quantiles(X, levels)`.
    levels : array-like, shape [Q]
        Their nominal probabilities p.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        0 is best.

    Raises
    ------
    InputError
        If shapes differ, a value is not finite, or a level lies outside (0, 1).

    References
    ----------
    Gneiting, T., Balabdaoui, F. and Raftery, A. (2007). Probabilistic forecasts, calibration and
    sharpness. JRSS B 69.

    Examples
    --------
    >>> from gpvi.metrics import quantile_calibration_error
    >>> quantile_calibration_error([0.0, 1.0], [[-0.5, 0.5], [-0.5, 0.5]], levels=[0.25, 0.75])
    0.25
    """
    y = rows("y", y)
    nominal = _levels(levels)
    quantiles = matrix("quantiles", quantiles, len(y), "Q")
    if quantiles.shape[1] != len(nominal):
        raise InputError(f"quantiles has {quantiles.shape[1]} columns for {len(nominal)} levels.")
    weights = weights_of(sample_weight, len(y))
    observed = np.average(y[:, None] <= quantiles, axis=0, weights=weights)
    return float(np.abs(nominal - observed).mean())


def _interval(lower: ArrayLike, upper: ArrayLike, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = rows("lower", lower, num_rows), rows("upper", upper, num_rows)
    crossed = np.flatnonzero(lower > upper)
    if crossed.size:
        row = crossed[0]
        raise InputError(
            f"lower exceeds upper in {crossed.size} rows, first in row {row} "
            f"({lower[row]:g} > {upper[row]:g}); are the two swapped?"
        )
    return lower, upper


def _levels(levels: ArrayLike) -> np.ndarray:
    nominal = rows("levels", levels)
    if nominal.min() <= 0 or nominal.max() >= 1:
        raise InputError(
            f"levels span [{nominal.min():g}, {nominal.max():g}]; each must lie strictly between 0 and 1."
        )
    return nominal
