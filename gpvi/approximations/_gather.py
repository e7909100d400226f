"""Values of rows by row number, with index tensors that may have batch dims of their own."""

import torch
from torch import Tensor


def take_last(values: Tensor, index: Tensor) -> Tensor:
    """Entries ``values[..., index]``: values [*s, N] and index [*g, K] give [*s', K]."""
    if index.dim() == 1:
        return values[..., index]
    lead = torch.broadcast_shapes(values.shape[:-1], index.shape[:-1])
    return values.expand(*lead, -1).gather(-1, index.expand(*lead, -1))


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of inputs [*g, N, D] by number, index [*g, K]: shape [*g, K, D]."""
    if index.dim() == 1:
        return x.index_select(-2, index)
    return x.gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))


def add_last(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums of ``values`` [*s, N] over equal numbers in index [*g, N]: shape [*s', size]."""
    lead = torch.broadcast_shapes(values.shape[:-1], index.shape[:-1])
    total = torch.zeros(*lead, size, dtype=values.dtype, device=values.device)
    return total.scatter_add(-1, index.expand(*lead, -1), values.expand(*lead, -1))
