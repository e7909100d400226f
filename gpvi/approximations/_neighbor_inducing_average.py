r"""Covariances of inducing values under q, and the averaged divergence of sparse-within-sparse processes.

.. math:: \frac1N \sum_n KL\bigl(N(\nu_{I_n}, S_{I_nI_n}) \,\|\, N(m_{I_n}, K_{I_nI_n})\bigr)

takes the divergence of every row's few inducing values, and of these N numbers the average. A divergence of
few values is below that of all of them, so that with this in its place the bound is none.

References
----------
Jafrasteh, B., Villacampa-Calvo, C. & Hernandez-Lobato, D. (2022). Input dependent sparse Gaussian processes.
ICML.
"""

import torch
from torch import Tensor

from gpvi.approximations._gather import take_rows
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.exceptions import UnsupportedError
from gpvi.linalg import NeighborPattern, inverse_gram, safe_cholesky, solve_lower


def covariance_at(pattern: NeighborPattern, factor: Tensor, places: Tensor) -> Tensor:
    """Covariances ``(V V')^-1`` of some values, dense.

    Parameters
    ----------
    pattern : NeighborPattern
        Of V.
    factor : Tensor, shape [*b, M, k + 1]
        V.
    places : Tensor of int64, shape [K]
        Which.

    Returns
    -------
    Tensor, shape [*b, K, K]
        Over all ancestors.
    """
    index = places.to(torch.int32).unsqueeze(-1)
    ones = torch.ones(len(places), 1, dtype=factor.dtype, device=factor.device)
    return inverse_gram(pattern, factor, index, ones)


def averaged_divergence(
    inner: SparseInversePrior, index: Tensor, places: Tensor, shift: Tensor, covariance: Tensor
) -> Tensor:
    """Average over rows of the divergence of their own inducing values.

    Parameters
    ----------
    inner : SparseInversePrior
        Of one set of inducing inputs.
    index : Tensor of int32, shape [N, H]
        Numbers of the inducing values of every row among those at hand; -1 where there is none.
    places : Tensor of int64, shape [K]
        Places of the inducing values at hand.
    shift : Tensor, shape [*b, K]
        Mean of q less that of the prior.
    covariance : Tensor, shape [*b, K, K]
        Of q.

    Returns
    -------
    Tensor, shape [*b]
        Nats, in double precision.
    """
    check_one_set(inner)
    lead = (0,) * len(inner.lead)
    z = take_rows(inner.x[lead], inner.geometry.first[0][places])
    prior = inner.gp.covariance(z).double()
    prior = prior + inner.nugget * torch.diag_embed(prior.diagonal(dim1=-2, dim2=-1))
    at, used = index.long().clamp_min(0), index >= 0
    both = used.unsqueeze(-1) & used.unsqueeze(-2)
    eye = torch.eye(index.shape[-1], dtype=shift.dtype, device=shift.device)

    def factor(matrix: Tensor, name: str) -> Tensor:
        blocks = matrix[..., at.unsqueeze(-1), at.unsqueeze(-2)]
        return safe_cholesky(torch.where(both, blocks, eye), name=name).factor

    L, root = factor(prior, "prior covariance of neighbours"), factor(covariance, "covariance of q")
    gap = torch.where(used, shift[..., at], 0.0)
    batch = torch.broadcast_shapes(L.shape[:-3], root.shape[:-3], gap.shape[:-2])
    L = L.expand(*batch, *L.shape[-3:])
    both_sides = torch.cat(
        [root.expand_as(L), gap.expand(*batch, *gap.shape[-2:]).unsqueeze(-1)], -1
    )
    squares = solve_lower(L, both_sides).square().sum((-1, -2))
    logs = (L.diagonal(dim1=-2, dim2=-1) / root.diagonal(dim1=-2, dim2=-1)).log().sum(-1)
    return (0.5 * (squares - index.shape[-1]) + logs).mean(-1)


def check_one_set(inner: SparseInversePrior) -> None:
    """Refuse several sets of inducing inputs, which have neighbours of their own."""
    if inner.lead.numel() != 1:
        raise UnsupportedError(
            f"This looks at one set of inducing inputs, and there are {inner.lead.numel()}: take them one "
            "by one."
        )
