"""Numerically safe pieces of the link functions that the likelihoods share.

Written so that neither the value nor any derivative overflows far out in the tails, where naive
forms return minus infinity or NaN.
"""

import torch
from torch import Tensor

__all__ = ["inverse_softplus", "log_softplus", "probit_logits"]

# Below this, softplus(f) = exp(f) up to a relative error of exp(f)/2.
_SMALL_LATENT = -30.0


def log_softplus(latent: Tensor) -> Tensor:
    r"""Logarithm of :math:`\mathrm{softplus}(f) = \log(1 + e^f)`, finite however negative f is.

    Parameters
    ----------
    latent : Tensor
        f, any shape.

    Returns
    -------
    Tensor
        Same shape.

    Examples
    --------
    >>> log_softplus(torch.tensor([-1000.0, 0.0, 50.0]))
    tensor([-1.0000e+03, -3.6651e-01,  3.9120e+00])
    """
    small = latent < _SMALL_LATENT
    # The inner `where` keeps the derivative of the branch that is not taken finite.
    safe = torch.where(small, torch.zeros_like(latent), latent)
    return torch.where(small, latent, torch.nn.functional.softplus(safe).log())


def inverse_softplus(value: Tensor) -> Tensor:
    r"""Solve :math:`\mathrm{softplus}(f) = y` for f, as :math:`f = y + \log(1 - e^{-y})`.

    Parameters
    ----------
    value : Tensor
        Positive numbers, any shape.

    Returns
    -------
    Tensor
        Same shape.

    Examples
    --------
    >>> inverse_softplus(torch.tensor([1.3132617, 100.0]))
    tensor([  1.0000, 100.0000])
    """
    return value + (-torch.expm1(-value)).log()


def probit_logits(latent: Tensor) -> Tensor:
    r"""Log odds of the probit probability, :math:`\log\Phi(f) - \log\Phi(-f)`.

    Parameters
    ----------
    latent : Tensor
        f, any shape.

    Returns
    -------
    Tensor
        Same shape; finite where :math:`\Phi(f)` itself has rounded to 0 or 1.

    Examples
    --------
    >>> probit_logits(torch.tensor([0.0, 20.0], dtype=torch.float64))
    tensor([  0.0000, 203.9172], dtype=torch.float64)
    """
    return torch.special.log_ndtr(latent) - torch.special.log_ndtr(-latent)
