r"""A Gaussian site on the readout of one state per row, without an inverse of its precision.

With a state of covariance P, readout H (K by d) and site
:math:`\exp(\lambda_1^\top u - \tfrac12 u^\top \Lambda u)`, :math:`u = H x`, everything follows from

.. math:: U = P H^\top, \quad S = H U, \quad M = I + \Lambda S, \quad
          e_0 = M^{-1} \lambda_1, \quad R = M^{-1} \Lambda.

The precision :math:`\Lambda` may be zero (a missing value), singular or indefinite, as long as the
product with the Gaussian is proper. One output takes divisions, several take one K by K inverse.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError
from gpvi.linalg.markov._semidefinite import semidefinite_cholesky
from gpvi.linalg.markov.model import MarkovModel

__all__ = ["SiteUpdate", "canonical_sites", "check_proper", "identity", "inverse", "site_update"]


class SiteUpdate(NamedTuple):
    """What a site does to a state.

    Parameters
    ----------
    gain : Tensor, shape [*b, T, d, K]
        ``U``.
    spread : Tensor, shape [*b, T, K, K]
        ``S``, the covariance of the readout.
    shrink : Tensor, shape [*b, T, K, K]
        ``M^-1``.
    vector : Tensor, shape [*b, T, K, 1]
        ``e_0``.
    matrix : Tensor, shape [*b, T, K, K]
        ``R``, symmetric.
    """

    gain: Tensor
    spread: Tensor
    shrink: Tensor
    vector: Tensor
    matrix: Tensor

    def covariance(self, prior: Tensor) -> Tensor:
        """``P - U R U'``, shape [*b, T, d, d]."""
        return prior - self.gain @ self.matrix @ self.gain.mT


def site_update(covariance: Tensor, readout: Tensor, lam1: Tensor, lam2: Tensor) -> SiteUpdate:
    """Combine sites with states.

    Parameters
    ----------
    covariance : Tensor, shape [*b, T, d, d]
        ``P``.
    readout : Tensor, shape [*b, T or 1, K, d]
        ``H``.
    lam1 : Tensor, shape [*b, T, K, 1]
        Linear terms.
    lam2 : Tensor, shape [*b, T, K, K]
        Precisions.

    Returns
    -------
    SiteUpdate
        Differentiable.
    """
    U = covariance @ readout.mT
    S = readout @ U
    if lam2.shape[-1] == 1:
        D = 1.0 + lam2 * S
        return SiteUpdate(U, S, 1.0 / D, lam1 / D, lam2 / D)
    shrink = inverse(identity(S) + lam2 @ S)
    R = shrink @ lam2
    return SiteUpdate(U, S, shrink, shrink @ lam1, 0.5 * (R + R.mT))


def canonical_sites(
    model: MarkovModel, rows: int, lam1: Tensor, lam2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Readouts and sites with the shapes of several outputs, whatever the model has.

    Parameters
    ----------
    model : MarkovModel
        Names the readout.
    rows : int
        Number T of rows.
    lam1 : Tensor, shape [*b, T] or [*b, T, K]
        Linear terms; the longer shape with ``model.outputs``.
    lam2 : Tensor, shape [*b, T] or [*b, T, K, K]
        Precisions.

    Returns
    -------
    tuple of Tensor
        ``H`` [*b, T or 1, K, d], ``lam1`` [*b, T, K, 1] and ``lam2`` [*b, T, K, K].

    Raises
    ------
    InputError
        If a shape does not fit the model or the rows.
    """
    if model.outputs is not None:
        K = model.outputs.shape[-2]
        if lam1.shape[-2:] != (rows, K) or lam2.shape[-3:] != (rows, K, K):
            raise InputError(
                f"lam1 has shape {tuple(lam1.shape)} and lam2 {tuple(lam2.shape)}; for {rows} rows "
                f"of {K} outputs they must be [*b, {rows}, {K}] and [*b, {rows}, {K}, {K}]."
            )
        return model.outputs.unsqueeze(-3), lam1.unsqueeze(-1), lam2
    if lam1.shape[-1:] != (rows,) or lam2.shape[-1:] != (rows,):
        raise InputError(
            f"lam1 has shape {tuple(lam1.shape)} and lam2 {tuple(lam2.shape)}; for {rows} rows both "
            f"must be [*b, {rows}]."
        )
    if model.rows is not None and model.rows.shape[-2] != rows:
        raise InputError(
            f"The model has {model.rows.shape[-2]} readouts for {rows} rows; it must have one per row."
        )
    readout = model.readout[..., None, :] if model.rows is None else model.rows
    return readout.unsqueeze(-2), lam1[..., None, None], lam2[..., None, None]


def check_proper(update: SiteUpdate, lam2: Tensor) -> None:
    """Refuse sites whose product with the states is no Gaussian.

    Parameters
    ----------
    update : SiteUpdate
        Of the predicted states.
    lam2 : Tensor, shape [*b, T, K, K]
        Precisions.

    Raises
    ------
    NumericalError
        Naming the row and ``1 + lam2 * variance`` there, or for several outputs the smallest
        eigenvalue of that matrix.
    """
    with torch.no_grad():
        if lam2.shape[-1] == 1:
            smallest = (1.0 + lam2 * update.spread)[..., 0, 0]
            bad = ~(smallest > 0)
        else:
            # 1 + Lambda S has the eigenvalues of 1 + C' Lambda C, S = C C', and that is symmetric.
            root = semidefinite_cholesky(torch.nan_to_num(update.spread))
            inner = torch.nan_to_num(identity(root) + root.mT @ lam2 @ root)
            info = torch.linalg.cholesky_ex(inner).info
            bad = (info > 0) | ~torch.isfinite(update.spread).flatten(-2).all(-1)
            smallest = inner
        if not bool(bad.any()):
            return
        place = tuple(int(i) for i in bad.nonzero()[0])
        value = smallest[place] if smallest.dim() == bad.dim() else None
        if value is None:
            value = torch.linalg.eigvalsh(smallest[place])[0]
    where = f"row {place[-1]}" + (f" of batch {place[:-1]}" if len(place) > 1 else "")
    raise NumericalError(
        f"The product of prior and sites is no Gaussian: 1 + lam2 * variance is {float(value):.3g} at "
        f"{where}, and must be positive. Use sites of larger lam2 there (zero is a missing value), or "
        "look for NaN in sites and hyperparameters."
    )


def identity(like: Tensor) -> Tensor:
    """Unit matrix of the size, dtype and device of the last two dims of a tensor."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def inverse(matrix: Tensor) -> Tensor:
    """Inverses of small matrices, shape [*b, d, d], without waiting for a device.

    One and two rows have closed forms: a call of LAPACK per matrix costs ten times as much.
    """
    size = matrix.shape[-1]
    if size == 1:
        return matrix.reciprocal()
    if size > 2:
        return torch.linalg.inv_ex(matrix).inverse
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    adjugate = torch.stack([d, -b, -c, a], -1) / (a * d - b * c).unsqueeze(-1)
    return adjugate.unflatten(-1, (2, 2))
