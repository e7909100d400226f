"""Rough latents to start from: factor analysis of smoothed observations on the scale of the link.

Where it finds fewer factors than asked for, principal components of the remainder take their place.

References
----------
Yu, B. M., Cunningham, J. P., Santhanam, G., Ryu, S. I., Shenoy, K. V. & Sahani, M. (2009).
Gaussian-process factor analysis for low-dimensional single-trial analysis of neural population activity.
Journal of Neurophysiology.
"""

import warnings

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from gpvi.likelihoods import Likelihood
from gpvi.models._recordings import Recordings

__all__ = ["correlation_time", "initial_scores"]

# Observations are smoothed over this fraction of a trial, but over a bin at least.
_SMOOTHING = 0.02
# Factors smaller than this share of the largest are replaced.
_SMALLEST_FACTOR = 0.05
# Deviations and principal components below this share of the values are rounding errors.
_ROUNDING = 1e-10


def initial_scores(base: Likelihood, recordings: Recordings, num_latents: int, seed: int) -> Tensor:
    """Scores of unit variance, shape [T, K].

    Parameters
    ----------
    base : Likelihood
        Gives rough latent values of every output.
    recordings : Recordings
        The data.
    num_latents : int
        K.
    seed : int
        For the randomised factorisation.

    Returns
    -------
    Tensor, shape [T, K]
        Standardised; zero where the observations span too few dimensions.
    """
    y = recordings.y
    with torch.no_grad():
        latent = base.initial_latent(y.mT)
    values = y.numpy().copy() if latent is None else latent.mT.numpy().copy()
    observed = ~y.isnan().numpy()
    centre = np.where(observed, values, 0.0).sum(0) / np.maximum(observed.sum(0), 1)
    values = np.where(observed, values, centre)
    width = max(1.0, _SMOOTHING * float(np.median(recordings.lengths)))
    starts = np.cumsum(recordings.lengths)[:-1]
    smooth = np.concatenate(
        [
            gaussian_filter1d(part, width, axis=0, mode="nearest")
            for part in np.split(values, starts)
        ]
    )
    size = np.abs(smooth).max(0)
    smooth = smooth - smooth.mean(0)
    deviation = smooth.std(0)
    varying = deviation > _ROUNDING * size
    smooth, deviation = smooth[:, varying], deviation[varying]
    scores = _factor_scores(smooth, deviation, num_latents, seed)
    return torch.as_tensor(_completed(scores, smooth / deviation, num_latents))


def _factor_scores(
    smooth: np.ndarray, deviation: np.ndarray, num_latents: int, seed: int
) -> np.ndarray:
    """Standardised scores of the factors that are not about zero, [T, at most K]."""
    if not len(deviation):
        return smooth
    model = FactorAnalysis(min(num_latents, len(deviation)), random_state=seed)
    # It takes logarithms of zero where outputs are copies of each other.
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = model.fit_transform(smooth)
    scores = scores - scores.mean(0)
    size = scores.std(0) * np.linalg.norm(model.components_ / deviation, axis=1)
    kept = size > _SMALLEST_FACTOR * size.max()
    return scores[:, kept] / scores[:, kept].std(0)


def _completed(scores: np.ndarray, x: np.ndarray, num_latents: int) -> np.ndarray:
    """Scores followed by principal components of what they leave of x, [T, K].

    A latent of zero with loadings of zero is a saddle of the ELBO that no step leaves. Factor
    analysis returns such ones where it takes outputs for noise of their own, as it often does with
    more factors than a covariance identifies. A column stays zero only where the outputs span
    fewer dimensions than there are latents.
    """
    missing = num_latents - scores.shape[1]
    if not missing:
        return scores
    left = x - scores @ np.linalg.lstsq(scores, x, rcond=None)[0]
    directions, sizes, _ = np.linalg.svd(left, full_matrices=False)
    found = min(missing, int((sizes > _ROUNDING * np.linalg.norm(x)).sum()))
    components = np.zeros((len(x), missing))
    components[:, :found] = np.sqrt(len(x)) * directions[:, :found]
    return np.concatenate([scores, components], 1)


def correlation_time(scores: Tensor, recordings: Recordings) -> Tensor:
    """Time after which the autocorrelation of scores falls below one half, shape [K].

    Parameters
    ----------
    scores : Tensor, shape [T, K]
        Centred.
    recordings : Recordings
        Where trials begin, and their stamps.

    Returns
    -------
    Tensor, shape [K]
        In the unit of the stamps; the longest trial where it never falls that far.
    """
    parts = scores.split(recordings.lengths)
    longest = max(recordings.lengths)
    dt = recordings.steps.dt
    spacing = float(dt[dt > 0].median()) if bool((dt > 0).any()) else 1.0
    reference = scores.square().mean(0)
    found = torch.full_like(reference, longest * spacing)
    undecided = torch.ones_like(found, dtype=torch.bool)
    for lag in range(1, longest):
        products = [part[lag:] * part[:-lag] for part in parts if len(part) > lag]
        below = undecided & (torch.cat(products).mean(0) < 0.5 * reference)
        found = torch.where(below, lag * spacing, found)
        undecided = undecided & ~below
        if not bool(undecided.any()):
            break
    return found
