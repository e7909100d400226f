"""How far variances of an incomplete factor are from the exact ones, at a few locations.

Exact variances :math:`e_i^\\top P^{-1} e_i` come from conjugate gradients, whose error in this form is the
square of their own, so that a rough solve will do. Half of the locations are those whose variance
looks largest beside the prior's conditional one and half are spread over the data: factors that broke down
nearly overstate few variances by far, ancestors that are left out understate many.
"""

import torch
from torch import Tensor

from gpvi.linalg import NeighborPattern, SparseRows, precision_solve

# Relative error of solutions; variances have its square.
_TOLERANCE = 0.1

# Each costs about ten products and solves; fewer where those are dear.
_MANY, _FEW = 8, 4
_LARGE = 100_000


def variance_ratios(
    pattern: NeighborPattern,
    columns: Tensor,
    precision: Tensor,
    factor: Tensor,
    variance: Tensor,
    rows: SparseRows | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Variances over the exact ones.

    Parameters
    ----------
    pattern : NeighborPattern
        Of the prior and of the factor.
    columns, factor : Tensor, shape [M, m + 1]
        U and V.
    precision : Tensor, shape [M]
        w of ``P = U U' + diag(w) + R' R``.
    variance : Tensor, shape [M]
        What V says.
    rows : SparseRows, optional
        Where the rows of R have entries, if there are any.
    values : Tensor, shape [N, H], optional
        These entries.

    Returns
    -------
    Tensor, shape [n]
        At up to eight locations.
    """
    M = pattern.num_rows
    number = min(_MANY if M <= _LARGE else _FEW, M)
    own = columns[..., -1].square() + precision
    if rows is not None and values is not None:
        used = rows.index >= 0
        own = own.index_add(-1, rows.index[used].long(), values[used].square())
    inflated = (variance * own).topk(number // 2).indices
    spread = torch.linspace(0, M - 1, number - number // 2, device=variance.device).long()
    chosen = torch.cat([inflated, spread]).unique()
    exact = torch.empty_like(variance[chosen])
    for number, place in enumerate(chosen.tolist()):
        unit = torch.zeros_like(variance)
        unit[place] = 1.0
        solved = precision_solve(
            pattern,
            columns,
            precision,
            factor,
            unit,
            rows=rows,
            values=values,
            tolerance=_TOLERANCE,
        )
        exact[number] = solved[place]
    return variance[chosen] / exact
