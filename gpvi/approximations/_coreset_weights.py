r"""Weights of pseudo-observations: the diagonal precision closest to given Gaussian sites.

In whitened coordinates :math:`u = m + Le` sites of any kind make :math:`q^*(e) = N(\cdot, \Omega^{-1})`. Of
all :math:`q(e) = N(\cdot, S_e)` with :math:`S_e^{-1} = I + L^\top \operatorname{diag}(w) L` the closest one
(in Kullback-Leibler divergence from q to q*) has the mean of q* and maximises

.. math:: g(w) = -\tfrac12 \log |I + L^\top W L| - \tfrac12 \operatorname{tr}(\Omega S_e), \qquad
          2 \nabla g = \operatorname{diag} T - \operatorname{diag} S,

with :math:`S = L S_e L^\top` and :math:`T = L S_e \Omega S_e L^\top`. A natural-gradient step solves with
the Fisher matrix :math:`S \circ S` and is exact in one go where the family holds q*; near the maximum
Newton's matrix :math:`S \circ (2T - S)` takes over.
"""

import torch
from torch import Tensor

from gpvi.linalg import log_det_from_cholesky, solve_lower

_MOST_STEPS = 60
_MOST_HALVINGS = 30

# Nats to be gained by a full step: Newton's method below the first, nothing worth it below the second.
_NEAR, _ENOUGH = 1.0, 1e-10

# A step must gain this fraction of what its slope promises, up to rounding.
_ARMIJO = 1e-4
_ROUNDING = 1e-12

# Relative to its scaled diagonal; coinciding points would make the system singular.
_RIDGE = 1e-12

# A weight of zero stays there if its slope points below by more than rounding.
_HELD = 1e-9


def best_weights(factor: Tensor, precision_factor: Tensor, signed: bool) -> Tensor:
    """Weights that maximise g, off the graph.

    Parameters
    ----------
    factor : Tensor, shape [*b, M, M]
        ``L``, in double precision.
    precision_factor : Tensor, shape [*b, M, M]
        Cholesky factor of ``Omega``.
    signed : bool
        Whether weights may be negative.

    Returns
    -------
    Tensor, shape [*b, M]
        Within a step of the maximum that :func:`polish` takes.
    """
    weights = _start(factor, precision_factor, signed)
    value = _value(factor, precision_factor, weights)
    for _ in range(_MOST_STEPS):
        S, T = _moments(factor, precision_factor, weights)
        gap = _gap(S, T)
        free = _free(weights, S, gap, signed)
        step = _step(S, T, torch.where(free, gap, 0.0), free)
        going = 0.5 * (gap * step).sum(-1) > _ENOUGH
        if not bool(going.any()):
            break
        weights, value, moved = _search(
            factor, precision_factor, weights, value, gap, step, going, signed
        )
        if not moved:
            break
    return weights


def polish(factor: Tensor, precision_factor: Tensor, weights: Tensor, signed: bool) -> Tensor:
    """One step of Newton's method on the graph, which carries the derivatives of the maximiser.

    Parameters
    ----------
    factor, precision_factor : Tensor, shape [*b, M, M]
        ``L`` and the factor of ``Omega``, on the graph.
    weights : Tensor, shape [*b, M]
        From :func:`best_weights`.
    signed : bool
        Whether weights may be negative.

    Returns
    -------
    Tensor, shape [*b, M]
        The maximiser; weights held at zero are constant.
    """
    S, T = _moments(factor, precision_factor, weights)
    gap = _gap(S, T)
    free = _free(weights, S.detach(), gap.detach(), signed)
    step = _step(S.detach(), T.detach(), torch.where(free, gap, 0.0), free)
    result = weights + step
    if signed:
        return result
    # Below zero by rounding: the value goes, its slope stays.
    return torch.where(result < 0, result - result.detach(), result)


def _start(factor: Tensor, precision_factor: Tensor, signed: bool) -> Tensor:
    """Equal weights that hold as much precision as the sites: N/M of it for N equal rows."""
    size = factor.shape[-1]
    told = precision_factor.square().sum((-2, -1)) - size
    equal = (told / factor.square().sum((-2, -1))).clamp_min(0.0)
    shape = torch.broadcast_shapes(factor.shape[:-2], precision_factor.shape[:-2])
    return equal.expand(shape).unsqueeze(-1).repeat(*[1] * len(shape), size)


def _search(
    factor: Tensor,
    precision_factor: Tensor,
    weights: Tensor,
    value: Tensor,
    gap: Tensor,
    step: Tensor,
    going: Tensor,
    signed: bool,
) -> tuple[Tensor, Tensor, bool]:
    """Backtrack along the projected step, every entry of the batch for itself."""
    length = going.to(weights.dtype)
    slack = _ROUNDING * (1.0 + value.abs())
    for _ in range(_MOST_HALVINGS):
        trial = weights + length.unsqueeze(-1) * step
        trial = trial if signed else trial.clamp_min(0.0)
        new = _value(factor, precision_factor, trial)
        promised = 0.5 * (gap * (trial - weights)).sum(-1)
        good = ~going | (new >= value + _ARMIJO * promised - slack)
        if bool(good.all()):
            break
        length = torch.where(good, length, 0.5 * length)
    taken = good & going
    weights = torch.where(taken.unsqueeze(-1), trial, weights)
    return weights, torch.where(taken, new, value), bool(taken.any())


def _value(factor: Tensor, precision_factor: Tensor, weights: Tensor) -> Tensor:
    """``g(w)``, minus infinity where q would not be proper."""
    root, info = torch.linalg.cholesky_ex(_precision(factor, weights))
    safe = torch.where((info > 0)[..., None, None], _eye(root), root)
    trace = solve_lower(safe, precision_factor).square().sum((-2, -1))
    value = -0.5 * (log_det_from_cholesky(safe) + trace)
    return torch.where(info > 0, -torch.inf, value)


def _moments(factor: Tensor, precision_factor: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``S`` and ``T``, shape [*b, M, M]."""
    root = torch.linalg.cholesky(_precision(factor, weights))
    half = solve_lower(root, factor.mT)
    whole = torch.linalg.solve_triangular(root.mT, half, upper=True)
    seen = precision_factor.mT @ whole
    return half.mT @ half, seen.mT @ seen


def _precision(factor: Tensor, weights: Tensor) -> Tensor:
    product = factor.mT @ (weights.unsqueeze(-1) * factor)
    return product + _eye(product)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _gap(S: Tensor, T: Tensor) -> Tensor:
    return (T - S).diagonal(dim1=-2, dim2=-1)


def _free(weights: Tensor, S: Tensor, gap: Tensor, signed: bool) -> Tensor:
    """Which weights may move."""
    if signed:
        return torch.ones_like(weights, dtype=torch.bool)
    return (weights > 0) | (gap > -_HELD * S.diagonal(dim1=-2, dim2=-1))


def _step(S: Tensor, T: Tensor, gap: Tensor, free: Tensor) -> Tensor:
    """Newton's step where it is near and uphill, else the natural gradient."""
    natural = _solve(S.square(), gap, free)[0]
    newton, proper = _solve(S * (2.0 * T - S), gap, free)
    near = 0.5 * (gap.detach() * natural.detach()).sum(-1) < _NEAR
    return torch.where((proper & near).unsqueeze(-1), newton, natural)


def _solve(matrix: Tensor, right: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Solution among free entries, zero elsewhere, and whether the matrix was positive definite."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    usable = free & (diagonal > 0)
    scale = torch.where(usable, diagonal, 1.0).rsqrt()
    both = usable.unsqueeze(-1) & usable.unsqueeze(-2)
    scaled = torch.where(both, matrix * scale.unsqueeze(-1) * scale.unsqueeze(-2), 0.0)
    eye = _eye(matrix)
    rest = torch.where(usable, _RIDGE, 1.0)
    root, info = torch.linalg.cholesky_ex(scaled + rest.unsqueeze(-1) * eye)
    root = torch.where((info > 0)[..., None, None], eye, root)
    column = torch.where(usable, right * scale, 0.0).unsqueeze(-1)
    solution = torch.cholesky_solve(column, root).squeeze(-1) * scale
    return solution, (info == 0) & (usable | ~free).all(-1)
