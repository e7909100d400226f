r"""The factor of a posterior precision, whatever the order of the locations.

With the exact factor a pivot is the precision of a value given all earlier ones and the data, which is at
least that given its neighbours and its own site, :math:`V_{cc}^2 \ge U_{cc}^2 + w_c`. The incomplete factor
keeps to that in maximin orders and for rough kernels. Elsewhere it may break down; the local factor takes
its place, whose column c describes :math:`f_c` given its earlier neighbours and the sites *around* it,
earlier and later ones. That is a column of the prior's own kind, with noisy copies of the values around as
further neighbours, so that it always exists and no column waits for another. On patterns other than the
prior's the diagonal factor does instead: there a factor that describes conditionals well may still be far
from the prior in divergence.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.exceptions import AccuracyWarning, NumericalError
from gpvi.linalg import NeighborPattern, incomplete_cholesky

# Relative rounding that a pivot may fall below its bound by.
_SLACK = 1e-6


def posterior_factor(
    pattern: NeighborPattern,
    columns: Tensor,
    precision: Tensor,
    on: NeighborPattern,
    local: Callable[[Tensor], Tensor],
) -> Tensor:
    """Incomplete Cholesky factor of ``U U' + diag(w)`` on a pattern, or the local one where it fails.

    Parameters
    ----------
    pattern : NeighborPattern
        Of the prior.
    columns : Tensor, shape [*b, M, m + 1]
        U.
    precision : Tensor, shape [*b, M]
        w.
    on : NeighborPattern
        Of the factor.
    local : callable
        The local factor on the prior's pattern for precisions.

    Returns
    -------
    Tensor, shape [*b, M, k + 1]
        V.
    """
    proper = bool((precision >= 0.0).all())
    own = on is pattern
    try:
        factor = incomplete_cholesky(pattern, columns, precision, on=None if own else on)
    except NumericalError:
        if not (proper and bool(torch.isfinite(columns).all())):
            raise
    else:
        least = columns[..., -1].square() + precision
        if not (own and proper) or bool((factor[..., -1].square() >= (1 - _SLACK) * least).all()):
            return factor
    warn(
        "The incomplete Cholesky factor of the posterior's precision broke down (a smooth kernel, too few "
        f"neighbours, or a random order). A {'local' if own else 'diagonal'} factor serves instead: means "
        "are exact as before, variances and the bound are cruder. Use more neighbours, ordering='maximin', a "
        "rougher kernel, or a larger nugget.",
        AccuracyWarning,
    )
    return local(precision) if own else _diagonal(pattern, columns, precision, on)


def _diagonal(
    pattern: NeighborPattern, columns: Tensor, precision: Tensor, on: NeighborPattern
) -> Tensor:
    """Diagonal factor, which always exists, on a pattern whose other entries it leaves at zero."""
    single = NeighborPattern(on.neighbors[:, :0].contiguous(), on.schedule)
    diagonal = incomplete_cholesky(pattern, columns, precision, on=single)
    return torch.nn.functional.pad(diagonal, (on.num_neighbors, 0))
