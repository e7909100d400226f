"""Root mean squared error and the two proper scoring rules NLPD and CRPS (Gneiting and Raftery, 2007)."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from gpvi.exceptions import InputError
from gpvi.metrics._checks import matrix, rows, weighted_mean

__all__ = [
    "continuous_ranked_probability_score",
    "crps_from_samples",
    "gaussian_nlpd",
    "negative_log_predictive_density",
    "root_mean_squared_error",
]

_LOG_2PI = float(np.log(2 * np.pi))


def root_mean_squared_error(
    y: ArrayLike, mean: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    r"""Root of the mean squared error of point predictions.

    .. math:: \sqrt{\textstyle\sum_n w_n (y_n - m_n)^2 / \sum_n w_n}

    Parameters
    ----------
    y : array-like, shape [N]
        Observations.
    mean : array-like, shape [N]
        Predictive means.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        In the units of y.

    Raises
    ------
    InputError
        If shapes differ, or a value is not finite.

    Examples
    --------
    >>> from gpvi.metrics import root_mean_squared_error
    >>> root_mean_squared_error([1.0, 2.0], [1.0, 4.0], sample_weight=[3.0, 1.0])
    1.0
    """
    y = rows("y", y)
    mean = rows("mean", mean, len(y))
    return weighted_mean((y - mean) ** 2, sample_weight) ** 0.5


def negative_log_predictive_density(
    log_density: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    r"""Mean negative log predictive density (NLPD), from log densities.

    .. math:: -\textstyle\sum_n w_n \log p(y_n \mid x_n) / \sum_n w_n

    Lower is better. Densities depend on the units of y: if y is multiplied by c, log c is added.

    Parameters
    ----------
    log_density : array-like, shape [N]
        Log predictive density (for counts and classes, log probability) of every observation, such
        as an estimator's `log_predictive_density(X, y)`.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        Nats per row; infinite if an observation was given density zero.

    Raises
    ------
    InputError
        If a value is NaN or plus infinity.

    References
    ----------
    Gneiting, T. and Raftery, A. (2007). Strictly proper scoring rules, prediction, and estimation.
    JASA 102, section 4.1 (the logarithmic score).

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi.metrics import negative_log_predictive_density
    >>> round(negative_log_predictive_density(np.log([0.5, 0.25])), 4)
    1.0397
    """
    density = np.asarray(log_density, dtype=np.float64)
    impossible = np.isneginf(density)
    density = rows("log_density", np.where(impossible, 0.0, density))
    # A row of weight zero does not count, whatever its density.
    if weighted_mean(impossible.astype(float), sample_weight) > 0:
        return float("inf")
    return -weighted_mean(density, sample_weight)


def gaussian_nlpd(
    y: ArrayLike, mean: ArrayLike, std: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    r"""Mean negative log density of observations under Gaussian predictions.

    .. math:: \tfrac12 \log 2\pi s_n^2 + \frac{(y_n - m_n)^2}{2 s_n^2}, \quad \text{averaged over } n

    Parameters
    ----------
    y : array-like, shape [N]
        Observations.
    mean : array-like, shape [N]
        Predictive means.
    std : array-like, shape [N]
        Positive predictive standard deviations, noise included.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        Nats per row; lower is better.

    Raises
    ------
    InputError
        If shapes differ, a value is not finite, or a standard deviation is not positive.

    References
    ----------
    Gneiting, T. and Raftery, A. (2007). Strictly proper scoring rules, prediction, and estimation.
    JASA 102, section 4.1.

    Examples
    --------
    >>> from gpvi.metrics import gaussian_nlpd
    >>> round(gaussian_nlpd([0.0, 1.0], mean=[0.0, 0.0], std=[1.0, 1.0]), 4)
    1.1689
    """
    y, mean, std = gaussian_rows(y, mean, std)
    if std.min() == 0:
        raise InputError(
            "std holds 0, under which a density is infinite or zero; was the noise left out?"
        )
    return weighted_mean(
        0.5 * ((y - mean) / std) ** 2 + np.log(std) + 0.5 * _LOG_2PI, sample_weight
    )


def continuous_ranked_probability_score(
    y: ArrayLike, mean: ArrayLike, std: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    r"""Mean CRPS of Gaussian predictions, in closed form.

    .. math:: \mathrm{crps}(F, y) = \int (F(t) - 1[y \le t])^2\, dt
              = s \left\{ z (2 \Phi(z) - 1) + 2 \varphi(z) - \pi^{-1/2} \right\}, \quad z = (y - m) / s

    A proper score like the NLPD, in the units of y and milder on outliers: it grows linearly. With
    ``std`` zero it is the absolute error.

    Parameters
    ----------
    y : array-like, shape [N]
        Observations.
    mean : array-like, shape [N]
        Predictive means.
    std : array-like, shape [N]
        Non-negative predictive standard deviations, noise included.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        Lower is better.

    Raises
    ------
    InputError
        If shapes differ, a value is not finite, or a standard deviation is negative.

    References
    ----------
    Gneiting, T. and Raftery, A. (2007). Strictly proper scoring rules, prediction, and estimation.
    JASA 102, section 4.2.

    Examples
    --------
    >>> from gpvi.metrics import continuous_ranked_probability_score
    >>> round(continuous_ranked_probability_score([0.0], mean=[0.0], std=[1.0]), 4)
    0.2337
    """
    y, mean, std = gaussian_rows(y, mean, std)
    certain = std == 0
    z = (y - mean) / np.where(certain, 1.0, std)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    score = std * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))
    return weighted_mean(np.where(certain, np.abs(y - mean), score), sample_weight)


def crps_from_samples(
    y: ArrayLike, samples: ArrayLike, *, fair: bool = True, sample_weight: ArrayLike | None = None
) -> float:
    r"""Mean CRPS of predictions that are given as samples.

    .. math:: \frac1S \sum_i |x_i - y| - \frac{1}{2 c} \sum_{i,j} |x_i - x_j|

    with :math:`c = S (S - 1)` if ``fair``: then the expectation over independent draws is the CRPS of
    the distribution behind them, whatever S. With :math:`c = S^2` it is the CRPS of the samples' own
    empirical distribution, which is right for predictive quantiles at the levels (k - 1/2) / S.

    Parameters
    ----------
    y : array-like, shape [N]
        Observations.
    samples : array-like, shape [N, S]
        Draws of every observation, S >= 2 if ``fair``.
    fair : bool
        Whether to estimate without bias.
    sample_weight : array-like, shape [N], optional
        Non-negative weights.

    Returns
    -------
    float
        In the units of y, lower is better; a fair estimate may be slightly negative.

    Raises
    ------
    InputError
        If shapes differ, a value is not finite, or there are too few samples.

    References
    ----------
    Gneiting, T. and Raftery, A. (2007). Strictly proper scoring rules, prediction, and estimation.
    JASA 102, equation 21. Ferro, C. (2014). Fair scores for ensemble forecasts. QJRMS 140.

    Examples
    --------
    >>> from gpvi.metrics import crps_from_samples
    >>> crps_from_samples([0.0], [[-1.0, 1.0]]), crps_from_samples([0.0], [[-1.0, 1.0]], fair=False)
    (0.0, 0.5)
    """
    y = rows("y", y)
    samples = matrix("samples", samples, len(y), "S")
    size = samples.shape[1]
    if fair and size < 2:
        raise InputError(f"samples has {size} column; the fair estimate needs at least two.")
    ordered = np.sort(samples - y[:, None], axis=1)
    # Sum over pairs i < j of the differences: the k-th smallest is added k - 1 times and taken away
    # S - k times. The coefficients sum to zero, so the values may be centred, which saves digits.
    coefficients = 2.0 * np.arange(1, size + 1) - size - 1
    pairs = (ordered - ordered.mean(1, keepdims=True)) @ coefficients
    spread = pairs / (size * (size - 1) if fair else size**2)
    return weighted_mean(np.abs(ordered).mean(1) - spread, sample_weight)


def gaussian_rows(
    y: ArrayLike, mean: ArrayLike, std: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations with the moments of their predictions, checked."""
    y = rows("y", y)
    mean = rows("mean", mean, len(y))
    std = rows("std", std, len(y))
    if std.min() < 0:
        raise InputError(f"std holds {std.min():g}; standard deviations must not be negative.")
    return y, mean, std
