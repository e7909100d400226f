r"""Moments of one row given the sites of all others: the cavity.

Dividing a posterior :math:`N(r_n | m, v)` by the row's own site
:math:`\exp(\lambda_1 r - \lambda_2 r^2 / 2)` leaves a Gaussian of variance :math:`v / g` with the
gap :math:`g = 1 - \lambda_2 v`. With little noise a row is known from its own target alone:
:math:`\lambda_2 v \to 1`, and the difference loses all its digits. Then the gap has to come
from elsewhere: :math:`g_n = [(I + s Q s)^{-1}]_{nn}`, :math:`s = \sqrt{\lambda_2}`, for projections
of covariance Q is a sum of squares.

References
----------
Rasmussen, C. E. & Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, section
5.4.2.
"""

import torch
from torch import Tensor

from gpvi.approximations.moments import Marginals
from gpvi.approximations.sites import Sites
from gpvi.exceptions import NumericalError, UnsupportedError
from gpvi.linalg import solve_lower, sum_of_squares

__all__ = ["cavity", "check_rows_have_sites", "gap_from_factor", "gap_from_moments"]


def check_rows_have_sites(name: str, sites: Sites) -> None:
    """Refuse posteriors whose sites cannot be taken away row by row.

    Parameters
    ----------
    name : str
        What the posterior is called.
    sites : Sites
        Its sites.

    Raises
    ------
    UnsupportedError
        If the sites are not on the data rows.
    """
    if sites.on != "data":
        raise UnsupportedError(
            f"This {name} has sites on {sites.on!r} (tied, or made compact), which belong to no "
            "single row, so none can be left out; condition on data sites and call leave_one_out() "
            "before compact()."
        )


def gap_from_moments(lam2: Tensor, variance: Tensor) -> Tensor:
    """``1 - lam2 v``, for sites of either sign.

    Parameters
    ----------
    lam2 : Tensor, shape [*b, N]
        Site precisions.
    variance : Tensor, shape [*b, N]
        Variances ``v`` of the projections.

    Returns
    -------
    Tensor, shape [*b, N]
        Positive gaps.

    Raises
    ------
    NumericalError
        If a gap is not positive.
    """
    gap = 1.0 - lam2 * variance
    if bool((gap <= 0).any()):
        row = int((gap <= 0).reshape(-1, gap.shape[-1]).any(0).nonzero()[0, 0])
        raise NumericalError(
            f"Without its own site row {row} has no proper distribution (1 - lam2 v is "
            f"{gap[..., row].min().item():.3g}): either sites of negative precision leave it none, "
            "or its noise is too small for this arithmetic. Bound the site precisions."
        )
    return gap


def gap_from_factor(factor: Tensor) -> Tensor:
    """The diagonal of ``(I + sQs)^-1``, each entry a sum of squares.

    Parameters
    ----------
    factor : Tensor, shape [*b, N, N]
        Lower Cholesky factor of ``I + sQs``.

    Returns
    -------
    Tensor, shape [*b, N]
        Gaps in (0, 1].
    """
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return sum_of_squares(solve_lower(factor, eye.expand_as(factor)))


def cavity(moments: Marginals, sites: Sites, gap: Tensor, weights: Tensor) -> Marginals:
    """Moments of every row without its own site.

    Parameters
    ----------
    moments : Marginals, shape [*b, N]
        With all sites.
    sites : Sites
        On the data rows.
    gap : Tensor, shape [*b, N]
        ``1 - lam2 v``, however it was computed.
    weights : Tensor, shape [*b, N]
        ``lam1 - lam2 m``, the pull of the row's site at the posterior mean.

    Returns
    -------
    Marginals
        Shape [*b, N].
    """
    # 1/(lam2 g) - 1/lam2 is accurate for strong sites, where v itself is a small difference.
    strong = gap < 0.5
    lam2 = torch.where(strong, sites.lam2, torch.ones_like(gap))
    variance = torch.where(strong, (1.0 - gap) / (gap * lam2), moments.explained / gap)
    return Marginals(moments.mean - variance * weights, variance, moments.residual)
