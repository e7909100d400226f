"""Dense counterparts of sparse inverse Cholesky factors, and factors to try; a reference, not a test."""

import torch
from torch import Tensor

from gpvi.linalg.sparse_inverse.pattern import NeighborPattern


def random_pattern(M: int, m: int, seed: int = 0, ragged: bool = False) -> NeighborPattern:
    """Up to m earlier points per row, drawn at random; of random number if ragged."""
    generator = torch.Generator().manual_seed(seed)
    neighbors = torch.full((M, m), -1, dtype=torch.int32)
    for i in range(1, M):
        count = min(i, m)
        if ragged and m > 0:
            count = min(count, int(torch.randint(0, m + 1, (), generator=generator)))
        chosen = torch.randperm(i, generator=generator)[:count].sort().values
        neighbors[i, :count] = chosen.to(torch.int32)
    schedule = torch.randperm(M, generator=generator).to(torch.int32)
    return NeighborPattern(neighbors, schedule)


def full_pattern(M: int) -> NeighborPattern:
    """Every earlier point of every row."""
    return random_pattern(M, max(M - 1, 0))


def first_points(M: int, k: int) -> NeighborPattern:
    """The first k points as neighbours of all."""
    index = torch.arange(k, dtype=torch.int32).expand(M, k)
    rows = torch.arange(M, dtype=torch.int32).unsqueeze(-1)
    return NeighborPattern(torch.where(index < rows, index, -1))


def random_columns(
    pattern: NeighborPattern,
    batch: tuple[int, ...] = (),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Columns [*b, M, m + 1] of a well-conditioned factor, zero in unused slots."""
    generator = torch.Generator().manual_seed(seed)
    M, m = pattern.neighbors.shape
    scale = 0.6 / max(m, 1) ** 0.5
    below = scale * torch.randn(*batch, M, m, generator=generator, dtype=torch.float64)
    below = below * (pattern.neighbors >= 0)
    diagonal = 0.8 + torch.rand(*batch, M, 1, generator=generator, dtype=torch.float64)
    return torch.cat([below, diagonal], -1).to(dtype)


def random_vector(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normals."""
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def dense_factor(pattern: NeighborPattern, columns: Tensor) -> Tensor:
    """U [*b, M, M], differentiable in the columns."""
    M = pattern.num_rows
    rows = torch.cat([pattern.neighbors.long(), torch.arange(M).unsqueeze(-1)], -1)
    wide = columns.new_zeros(*columns.shape[:-2], M, M + 1)
    # Unused slots go to a last entry that is cut off; rows of `wide` are columns of U.
    place = torch.where(rows < 0, M, rows).expand(columns.shape)
    return wide.scatter(-1, place, columns)[..., :M].mT


def on_pattern(pattern: NeighborPattern, matrix: Tensor) -> Tensor:
    """Entries [*b, M, m + 1] of a matrix [*b, M, M] on the pattern, zero in unused slots."""
    M = pattern.num_rows
    rows = torch.cat([pattern.neighbors.long(), torch.arange(M).unsqueeze(-1)], -1)
    entries = matrix.mT.gather(-1, rows.clamp_min(0).expand(*matrix.shape[:-2], *rows.shape))
    return entries * (rows >= 0)


def smooth_factor(M: int, m: int, nugget: float) -> tuple[NeighborPattern, Tensor]:
    """Prior of a smooth function at M points on a line, a power of two, in a maximin order: nearly
    singular for small nuggets, so that incomplete factors break down at 1e-10."""
    levels = (M - 1).bit_length()
    order = [int(format(i, f"0{levels}b")[::-1], 2) for i in range(M)]
    x = torch.linspace(0.0, 1.0, M, dtype=torch.float64)[order]
    index = torch.full((M, m), -1, dtype=torch.int32)
    columns = torch.zeros(M, m + 1, dtype=torch.float64)
    for i in range(M):
        near = (x[:i] - x[i]).abs().argsort()[:m].sort().values
        index[i, : len(near)] = near.to(torch.int32)
        points = torch.cat([x[near], x[i : i + 1]])
        K = torch.exp(-0.5 * ((points[:, None] - points) / 0.3).square())
        L = torch.linalg.cholesky(K + nugget * torch.eye(len(points)))
        last = torch.zeros(len(points), 1, dtype=torch.float64)
        last[-1] = 1.0
        u = torch.linalg.solve_triangular(L.mT, last, upper=True).squeeze(-1)
        columns[i, : len(near)], columns[i, -1] = u[:-1], u[-1]
    return NeighborPattern(index), columns
