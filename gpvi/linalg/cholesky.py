"""Cholesky factorisation with one documented jitter ladder.

A Gram matrix is positive definite in exact arithmetic and often not in floating point. Everything
in this package that factorises one goes through :func:`safe_cholesky`, so that there is one place
that decides how much is added to a diagonal, and one error that says what was wrong.

Jitter is *relative* to the mean diagonal: ``jitter=1e-8`` adds ``1e-8 * mean(diag(A))``. The base
jitter that a caller asks for is part of its model (the same in objective and prediction, and
differentiable); the ladder above it is an emergency measure that warns.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.exceptions import JitterWarning, NotPositiveDefiniteError, NumericalError

__all__ = ["DEFAULT_JITTER", "CholeskyResult", "default_jitter", "safe_cholesky"]

#: Base jitter, relative to the mean diagonal, of the Gram matrices of inducing points.
DEFAULT_JITTER: dict[torch.dtype, float] = {torch.float64: 1e-8, torch.float32: 1e-6}

# First rung of the ladder where the base jitter is zero, and the last rung for any base.
_FIRST_RUNG = {torch.float64: 1e-12, torch.float32: 1e-8}
_LAST_RUNG = {torch.float64: 1e-4, torch.float32: 1e-3}


class CholeskyResult(NamedTuple):
    """A lower Cholesky factor and the relative jitter that it needed.

    Parameters
    ----------
    factor : Tensor, shape [*b, n, n]
        Lower triangular ``L`` with ``L L' = A + jitter * mean(diag(A)) * I``.
    jitter : Tensor, shape [*b]
        Relative jitter of every matrix of the batch (base and ladder together).
    """

    factor: Tensor
    jitter: Tensor


def default_jitter(dtype: torch.dtype) -> float:
    """Relative base jitter for the Gram matrix of inducing points in a dtype.

    Parameters
    ----------
    dtype : torch.dtype
        ``torch.float64`` or ``torch.float32``.

    Returns
    -------
    float
        Relative to the mean diagonal.

    Examples
    --------
    >>> import torch
    >>> default_jitter(torch.float64)
    1e-08
    """
    return DEFAULT_JITTER.get(dtype, DEFAULT_JITTER[torch.float32])


def safe_cholesky(
    matrix: Tensor,  # shape: [*b, n, n]
    *,
    jitter: float = 0.0,
    scale: Tensor | None = None,  # shape: [*b]
    name: str = "matrix",
    inputs: Tensor | None = None,  # shape: [*b, n, D]
) -> CholeskyResult:
    r"""Cholesky factor of ``A + jitter * mean(diag(A)) * I``, with more jitter only on failure.

    On failure the jitter of the failing matrices of the batch (no others) grows by factors of ten
    up to 1e-4 (float64) or 1e-3 (float32), with a :class:`~gpvi.exceptions.JitterWarning`.
    A float32 matrix is factorised in float64 and the factor rounded back.

    Parameters
    ----------
    matrix : Tensor, shape [*b, n, n]
        Symmetric; only the lower triangle is read.
    jitter : float
        Base jitter, relative to ``scale``, added always.
    scale : Tensor, optional, shape [*b]
        What jitter is relative to: the mean diagonal if left out. For a difference of matrices (a
        conditional covariance) pass the mean diagonal of the minuend, whose rounding is what the
        jitter must cover.
    name : str
        What the matrix is called in warnings and errors.
    inputs : Tensor, optional, shape [*b, n, D]
        The inputs behind rows and columns: the error then names the two closest ones.

    Returns
    -------
    CholeskyResult
        Factor and relative jitter.

    Raises
    ------
    NumericalError
        If the matrix holds NaN or infinity.
    NotPositiveDefiniteError
        If the last rung of the ladder fails too.

    Examples
    --------
    >>> import torch
    >>> A = torch.tensor([[4.0, 2.0], [2.0, 3.0]], dtype=torch.float64)
    >>> safe_cholesky(A).factor[1, 0].item()
    1.0
    """
    work = matrix.double() if matrix.dtype == torch.float32 else matrix
    if scale is None:
        scale = work.diagonal(dim1=-2, dim2=-1).mean(-1)
        # Of a zero matrix jitter has no scale to be relative to.
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    scale = scale.to(work.dtype).expand(work.shape[:-2])
    if jitter:
        work = _add_to_diagonal(work, jitter * scale)
    factor, info = torch.linalg.cholesky_ex(work)
    used = torch.full(scale.shape, jitter, dtype=work.dtype, device=work.device)
    if bool(info.any()):
        factor, used = _climb(matrix, work, scale, info, used, jitter, name, inputs)
    return CholeskyResult(factor.to(matrix.dtype), used)


def _climb(
    matrix: Tensor,
    work: Tensor,
    scale: Tensor,
    info: Tensor,
    used: Tensor,
    jitter: float,
    name: str,
    inputs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if not bool(torch.isfinite(matrix).all()):
        bad = int((~torch.isfinite(matrix)).sum())
        raise NumericalError(
            f"{name} {tuple(matrix.shape)} ({matrix.dtype}) holds {bad} NaN or infinite entries; "
            "check the inputs and the hyperparameters that it was computed from."
        )
    tried = [jitter]
    rung = max(10.0 * jitter, _FIRST_RUNG.get(matrix.dtype, 1e-8))
    last = _LAST_RUNG.get(matrix.dtype, 1e-3)
    while rung <= last * 1.001:
        tried.append(rung)
        used = torch.where(info > 0, torch.full_like(used, rung), used)
        factor, info_now = torch.linalg.cholesky_ex(_add_to_diagonal(work, (used - jitter) * scale))
        if not bool(info_now.any()):
            warn(
                f"{name} of size {matrix.shape[-1]} ({matrix.dtype}) needed jitter "
                f"{rung:.0e} (relative to the mean diagonal) instead of {jitter:.0e}.",
                JitterWarning,
            )
            return factor, used
        info = info_now
        rung *= 10.0
    raise NotPositiveDefiniteError(_describe(matrix, name, tried, inputs))


def _add_to_diagonal(matrix: Tensor, value: Tensor) -> Tensor:
    return matrix + torch.diag_embed(value.unsqueeze(-1).expand(*value.shape, matrix.shape[-1]))


def _describe(matrix: Tensor, name: str, tried: list[float], inputs: Tensor | None) -> str:
    diagonal = matrix.detach().diagonal(dim1=-2, dim2=-1)
    text = (
        f"{name} of shape {tuple(matrix.shape)} ({matrix.dtype}) is not positive definite: "
        f"smallest diagonal entry {float(diagonal.min()):.3g}, relative jitters tried "
        f"{', '.join(f'{value:.0e}' for value in tried)}."
    )
    if inputs is not None and inputs.shape[-2] > 1:
        text += f" {_closest_pair(inputs)}"
    return text + " Remove duplicate inputs, use float64, or pass a larger jitter."


def _closest_pair(inputs: Tensor) -> str:
    points = inputs.detach().double().reshape(-1, *inputs.shape[-2:])
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    size = points.shape[-2]
    flat = int(distance.argmin())
    i, j = (flat // size) % size, flat % size
    return f"The closest inputs are rows {i} and {j}, {float(distance.min()):.3g} apart."
