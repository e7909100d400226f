"""Greedy conditional-variance selection: the pivots of a partial Cholesky factorisation.

The next pivot is the row whose variance given the rows already chosen is largest, which greedily
maximises the log-determinant of the chosen block and bounds the trace error of the Nystrom
approximation that the pivots span (Burt, Rasmussen & van der Wilk, 2020, JMLR 21, section 4.2).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["greedy_conditional_variance"]


def greedy_conditional_variance(
    variance: Tensor,  # shape: [N]
    covariance_row: Callable[[int], Tensor],
    num_pivots: int,
    *,
    tolerance: float = 1e-10,
) -> tuple[Tensor, Tensor]:
    r"""Choose rows one by one by largest conditional variance.

    With :math:`d_j = k_{jj} - \sum_i L_{ij}^2` the pivot is :math:`\arg\max_j d_j`. The cost is
    :math:`O(N M^2)` time and :math:`O(N M)` memory. Selection stops early once the largest
    conditional variance is below ``tolerance`` times the largest prior variance: further rows
    would be duplicates of those already chosen, as far as the kernel can tell.

    Parameters
    ----------
    variance : Tensor, shape [N]
        Prior variances :math:`k_{jj}`.
    covariance_row : callable
        ``covariance_row(i)`` returns the covariances of row ``i`` with all rows, shape [N].
    num_pivots : int
        The most rows to choose.
    tolerance : float
        Relative conditional variance at which to stop.

    Returns
    -------
    pivots : Tensor of int64, shape [M]
        Row numbers in order of choice, ``M <= num_pivots``.
    conditional_variance : Tensor, shape [N]
        What is left after conditioning on the chosen rows.

    Raises
    ------
    InputError
        If ``num_pivots`` is below one.

    Examples
    --------
    >>> import torch
    >>> K = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> greedy_conditional_variance(K.diagonal(), lambda i: K[i], 2)[0]
    tensor([0, 2])
    """
    if num_pivots < 1:
        raise InputError(f"num_pivots is {num_pivots}; it must be at least 1.")
    remaining = variance.detach().clone()
    size = remaining.shape[0]
    limit = min(num_pivots, size)
    factor = torch.zeros(limit, size, dtype=remaining.dtype, device=remaining.device)
    floor = tolerance * float(remaining.max())
    pivots: list[int] = []
    for step in range(limit):
        best = int(remaining.argmax())
        if float(remaining[best]) <= floor:
            break
        row = covariance_row(best).detach()
        if step:
            row = row - factor[:step, best] @ factor[:step]
        row = row / remaining[best].sqrt()
        factor[step] = row
        remaining = (remaining - row.square()).clamp_min(0.0)
        remaining[best] = 0.0
        pivots.append(best)
    return torch.tensor(pivots, dtype=torch.int64, device=remaining.device), remaining
