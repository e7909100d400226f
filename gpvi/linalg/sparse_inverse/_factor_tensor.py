"""Products and triangular solves with sparse inverse Cholesky factors, as tensor operations.

The counterpart of the compiled loops for other devices: the same functions of flat tensors, columns
[F, M, m + 1] or [1, M, m + 1] and vectors [F, M, R]. Solves go level by level.
"""

import torch
from torch import Tensor

from gpvi.linalg.sparse_inverse.levels import backward_levels, forward_levels
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["outer", "product", "solve", "transpose_product", "transpose_solve"]

# Numbers in the largest intermediate result: half a gigabyte in double precision.
_LARGEST = 2**26


def product(pattern: NeighborPattern, columns: Tensor, vectors: Tensor) -> Tensor:
    """``U v``."""
    below, diagonal, index = _parts(pattern, columns)
    x = _padded(diagonal * vectors)
    for block in _blocks(vectors, index):
        shares = below.unsqueeze(-1) * vectors[..., block].unsqueeze(-2)
        x[..., block].index_add_(1, index.flatten(), shares.flatten(1, 2))
    return x[:, :-1]


def transpose_product(pattern: NeighborPattern, columns: Tensor, vectors: Tensor) -> Tensor:
    """``U' v``."""
    below, diagonal, index = _parts(pattern, columns)
    padded = _padded(vectors)
    sums = [_gathered(below, padded[..., block], index) for block in _blocks(vectors, index)]
    return diagonal * vectors + torch.cat(sums, -1)


def solve(pattern: NeighborPattern, columns: Tensor, vectors: Tensor) -> Tensor:
    """``U^-1 b``."""
    below, diagonal, index = _parts(pattern, columns)
    x = _padded(vectors)
    for rows in backward_levels(pattern):
        value = x[:, rows] / diagonal[:, rows]
        x[:, rows] = value
        shares = below[:, rows].unsqueeze(-1) * value.unsqueeze(-2)
        x.index_add_(1, index[rows].flatten(), -shares.flatten(1, 2))
    return x[:, :-1]


def transpose_solve(pattern: NeighborPattern, columns: Tensor, vectors: Tensor) -> Tensor:
    """``U^-T b``."""
    below, diagonal, index = _parts(pattern, columns)
    x = _padded(torch.zeros_like(vectors))
    for rows in forward_levels(pattern):
        known = _gathered(below[:, rows], x, index[rows])
        x[:, rows] = (vectors[:, rows] - known) / diagonal[:, rows]
    return x[:, :-1]


def outer(pattern: NeighborPattern, left: Tensor, right: Tensor) -> Tensor:
    """Entries of ``sum_r l_r r_r'`` on the pattern, [F, M, m + 1]."""
    padded, index = _padded(left), _index(pattern)
    entries = left.new_zeros(*left.shape[:2], index.shape[-1], 1)
    for block in _blocks(left, index):
        entries += padded[..., block][:, index] @ right[..., block].unsqueeze(-1)
    return torch.cat([entries.squeeze(-1), (left * right).sum(-1, keepdim=True)], -1)


def _blocks(vectors: Tensor, index: Tensor) -> list[slice]:
    """So many vectors at a time that a copy of them for every entry stays below a bound."""
    F, _, R = vectors.shape
    size = max(1, _LARGEST // max(1, F * index.numel()))
    return [slice(start, start + size) for start in range(0, max(R, 1), size)]


def _index(pattern: NeighborPattern) -> Tensor:
    """Neighbours, those in unused slots being a row behind the last."""
    used = pattern.neighbors >= 0
    return torch.where(used, pattern.neighbors, pattern.num_rows).long()


def _parts(pattern: NeighborPattern, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entries off the diagonal [F, M, m], the diagonal [F, M, 1], and the neighbours."""
    below = torch.where(pattern.neighbors >= 0, columns[..., :-1], 0.0)
    return below, columns[..., -1:], _index(pattern)


def _padded(vectors: Tensor) -> Tensor:
    """Vectors with a zero behind, for the unused slots."""
    return torch.nn.functional.pad(vectors, (0, 0, 0, 1))


def _gathered(below: Tensor, padded: Tensor, index: Tensor) -> Tensor:
    """Sums over neighbours of entries times values, [F, n, R]."""
    return (below.unsqueeze(-2) @ padded[:, index]).squeeze(-2)
