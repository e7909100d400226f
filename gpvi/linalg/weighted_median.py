"""Medians of weighted values, in which an integer weight counts like repeating the value."""

import torch
from torch import Tensor

__all__ = ["weighted_median"]


def weighted_median(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Lower weighted median over the last dimension.

    The smallest value such that those up to it hold at least half of the total weight.

    Parameters
    ----------
    values : Tensor, shape [*b, n]
        NaN is left out.
    weights : Tensor, shape broadcastable to [*b, n], optional
        Not negative; all one if left out.

    Returns
    -------
    Tensor, shape [*b]
        NaN where nothing has weight.

    Examples
    --------
    >>> import torch
    >>> weighted_median(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([5.0, 1.0, 1.0]))
    tensor(3.)
    """
    known = ~values.isnan()
    if weights is None:
        return values.nanmedian(-1).values
    # In float64: sums of integer weights are exact there.
    shares = torch.where(known, weights.double(), 0.0)
    ordered, order = torch.where(known, values, torch.inf).sort(-1)
    reached = shares.gather(-1, order).cumsum(-1)
    total = reached[..., -1:]
    place = (reached < 0.5 * total).sum(-1, keepdim=True).clamp_max(values.shape[-1] - 1)
    median = ordered.gather(-1, place)
    return torch.where(total > 0, median, torch.nan).squeeze(-1)
