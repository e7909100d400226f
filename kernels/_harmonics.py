r"""Harmonics of the periodic kernel, differentiable in its lengthscale.

.. math:: e^{-2 \sin^2(\pi \tau / T) / \lambda}
          = \sum_{j \ge 0} q_j \cos(2 \pi j \tau / T), \qquad
          q_j = (2 - 1[j = 0]) \, e^{-z} I_j(z), \quad z = 1 / \lambda.

The ratios :math:`I_j / I_{j-1}` follow from the backward recurrence
:math:`\rho_j = 1 / (2 j / z + \rho_{j+1})` (Miller's algorithm), all terms of which are positive,
and :math:`\sum_j q_j = 1` gives the scale. See Solin, A. & Särkkä, S. (2014). Explicit link between
periodic covariance functions and state space models. AISTATS.
"""

import torch
from torch import Tensor

from gpvi.exceptions import UnsupportedError

__all__ = ["harmonic_variances"]

_MOST_HARMONICS = 128
# So many terms beyond those that count that the start of the recurrence is forgotten.
_LEAD = 24


def harmonic_variances(lengthscale: Tensor, tolerance: float) -> Tensor:
    """Variances of the constant and the cosines, as few as the tolerance allows.

    Parameters
    ----------
    lengthscale : Tensor, shape [*b]
        ``lambda``.
    tolerance : float
        The variance that the terms left out may have together, of one in all.

    Returns
    -------
    Tensor, shape [*b, J + 1]
        They sum to one. Over a batch J is the largest that any element needs.

    Raises
    ------
    UnsupportedError
        If that takes more than 128 harmonics.
    """
    # The variances fall off like a Gaussian of variance z and faster, so that this is enough.
    most = min(_MOST_HARMONICS, int(12.0 + 9.0 * lengthscale.detach().min().item() ** -0.5))
    all_of_them = _variances(lengthscale, most + _LEAD)
    # Summed from the smallest: one minus the others would be noise in single precision.
    missing = all_of_them.detach().flip(-1).cumsum(-1).flip(-1) - all_of_them.detach()
    enough = (missing < tolerance)[..., : most + 1]
    reached = enough.reshape(-1, most + 1).all(0).nonzero()
    if reached.numel() == 0:
        smallest = lengthscale.detach().min().item()
        raise UnsupportedError(
            f"PeriodicKernel with lengthscale {smallest:.3g} has no state-space form of at most "
            f"{_MOST_HARMONICS} harmonics with tolerance {tolerance:.1g}; give the lengthscale a "
            "lower bound, or a larger tolerance."
        )
    kept = all_of_them[..., : int(reached[0]) + 1]
    return kept / kept.sum(-1, keepdim=True)


def _variances(lengthscale: Tensor, highest: int) -> Tensor:
    ratio = torch.zeros_like(lengthscale)
    ratios = []
    for j in range(highest, 0, -1):
        ratio = 1.0 / (2.0 * j * lengthscale + ratio)
        ratios.append(ratio)
    relative = torch.stack([torch.ones_like(lengthscale), *ratios[::-1]], -1).cumprod(-1)
    doubled = torch.cat([relative[..., :1], 2.0 * relative[..., 1:]], -1)
    return doubled / doubled.sum(-1, keepdim=True)
