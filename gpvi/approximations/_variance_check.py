"""How far variances of an incomplete factor are from the exact ones, at a few locations.

Exact variances :math:`e_i^\\top P^{-1} e_i` come from conjugate gradients, whose error in this form is the
square of their own, so that a rough solve will do. Half of the locations are those whose variance
looks largest beside the prior's conditional one and half are spread over the data: factors that broke down
nearly overstate few variances by far, ancestors that are left out understate many.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.exceptions import NumericalError
from gpvi.linalg import NeighborPattern, SparseRows, precision_solve

# Relative error of solutions; variances have its square.
_TOLERANCE = 0.1

# Each costs about ten products and solves; fewer where those are dear.
_MANY, _FEW = 8, 4
_LARGE = 100_000

# Variances that are off by more than this factor are worth a warning.
_FAR = 1.25


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


def stacked(ratios: list[Tensor], batch: torch.Size) -> Tensor:
    """Ratios of the entries of a batch side by side, with ones where an entry has fewer.

    Parameters
    ----------
    ratios : list of Tensor, shape [n]
        From :func:`variance_ratios`, by entry of the flat batch.
    batch : torch.Size
        Its shape.

    Returns
    -------
    Tensor, shape [*b, n]
        n is that of the entry with the most.
    """
    most = max(len(part) for part in ratios)
    padded = [torch.nn.functional.pad(part, (0, most - len(part)), value=1.0) for part in ratios]
    return torch.stack(padded).reshape(*batch, most)


def crude_variances(find: Callable[[], Tensor], what: str) -> tuple[str, ...]:
    """Whether variances are far from the exact ones, for ``Posterior.accuracy_remarks``.

    Parameters
    ----------
    find : callable
        Returns the ratios.
    what : str
        Whose variances they are.

    Returns
    -------
    tuple of str
        At most one sentence.
    """
    try:
        ratios = find()
    except NumericalError:
        # The mean has been solved for more exactly than that: rounding, and no news.
        return ()
    low, high = float(ratios.min()), float(ratios.max())
    if low > 1.0 / _FAR and high < _FAR:
        return ()
    return (
        f"Posterior variances of {what} are crude: at {ratios.shape[-1]} locations that were checked they "
        f"are {low:.2f} to {high:.2f} times the exact ones of the same neighbours. Means are exact. Use "
        "more neighbours, a rougher kernel, or approximation='inducing'.",
    )
