"""Products with sparse rows, and their products with themselves on a pattern, as tensor operations.

The counterpart of the compiled loops for other devices: the same functions of flat tensors, values
[F, N, H] or [1, N, H] and vectors [F, M, R] or [F, N, R].
"""

import torch
from torch import Tensor

from gpvi.linalg.sparse_inverse._incomplete_tensor import Shares
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern
from gpvi.linalg.sparse_inverse.rectangular import SparseRows

__all__ = ["gram", "gram_gradients", "outer", "product", "transpose_product"]

# Numbers in the largest intermediate result: half a gigabyte in double precision.
_LARGEST = 2**26


def product(rows: SparseRows, values: Tensor, vectors: Tensor) -> Tensor:
    """``R v`` for vectors [F, N, R]."""
    F, _, R = vectors.shape
    x = vectors.new_zeros(F, rows.num_basis + 1, R)
    for part in _pieces(rows, vectors):
        shares = _used(rows, values, part).unsqueeze(-1) * vectors[:, part].unsqueeze(-2)
        x.index_add_(1, _index(rows)[part].flatten(), shares.flatten(1, 2))
    return x[:, :-1]


def transpose_product(rows: SparseRows, values: Tensor, vectors: Tensor) -> Tensor:
    """``R' u`` for vectors [F, M, R]."""
    padded = torch.nn.functional.pad(vectors, (0, 0, 0, 1))
    sums = [
        (_used(rows, values, part).unsqueeze(-2) @ padded[:, _index(rows)[part]]).squeeze(-2)
        for part in _pieces(rows, vectors)
    ]
    return torch.cat(sums, 1)


def outer(rows: SparseRows, left: Tensor, right: Tensor) -> Tensor:
    """Entries of ``sum_r l_r r_r'`` in the slots of R, for vectors [F, M, R] and [F, N, R]."""
    padded = torch.nn.functional.pad(left, (0, 0, 0, 1))
    entries = [
        (padded[:, _index(rows)[part]] @ right[:, part].unsqueeze(-1)).squeeze(-1)
        for part in _pieces(rows, left)
    ]
    return torch.cat(entries, 1)


def gram(rows: SparseRows, on: NeighborPattern, values: Tensor) -> Tensor:
    """Entries [F, M, k + 1] of R R' on a pattern, for values [F, N, H]."""
    sums = values.new_zeros(len(values), on.num_rows + 1, on.num_neighbors + 1)
    _shares(rows, on).add(sums, _used(rows, values), None, 1.0)
    return sums[:, :-1]


def gram_gradients(
    rows: SparseRows, on: NeighborPattern, values: Tensor, by_sums: Tensor
) -> Tensor:
    """Gradients by values, for all or one of them for all, from those by the entries [F, M, k + 1]."""
    padded = torch.nn.functional.pad(by_sums, (0, 0, 0, 1))
    values = _used(rows, values)
    return _shares(rows, on).adjoint(padded, values, None, 1.0) * (rows.index >= 0)


def _shares(rows: SparseRows, on: NeighborPattern) -> Shares:
    return Shares(_index(rows), on)


def _used(rows: SparseRows, values: Tensor, part: slice = slice(None)) -> Tensor:
    """Values of some rows, zero in unused slots."""
    return torch.where(rows.index[part] >= 0, values[:, part], 0.0)


def _index(rows: SparseRows) -> Tensor:
    """Row numbers in R, those in unused slots being one behind the last."""
    return torch.where(rows.index < 0, rows.num_basis, rows.index).long()


def _pieces(rows: SparseRows, vectors: Tensor) -> list[slice]:
    """So many rows at a time that a copy of all vectors for every entry stays below a bound."""
    N, H = rows.index.shape
    size = max(1, _LARGEST // max(1, len(vectors) * H * vectors.shape[-1]))
    return [slice(start, start + size) for start in range(0, max(N, 1), size)]
