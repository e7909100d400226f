r"""Nearest earlier neighbours by the correlation of the process instead of the distance of inputs.

Where a kernel is periodic or non-stationary, the points that tell most about a value are not the nearest
ones but those of largest correlation (Kang & Katzfuss, 2023). Their distance :math:`\sqrt{1 - |\rho_{ij}|}`
has no coordinates to build a tree on. Large problems therefore get some: a point is located by its
separations :math:`\sqrt{-\log |\rho|}` from a few landmarks, which unlike the distances do not level off at
one. Neighbours there and neighbours among the inputs are the candidates that the exact correlation
chooses from.

References
----------
Kang, M. & Katzfuss, M. (2023). Correlation-based sparse inverse Cholesky factorization for fast Gaussian
process inference. Statistics and Computing.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.sparse_inverse._points import as_array, check_first, check_num_neighbors
from gpvi.linalg.sparse_inverse.neighbors import earlier_neighbors

__all__ = ["correlation_neighbors"]

# Pairs up to which all are compared: 4,000 points.
_EXACT_PAIRS = 4_000**2

# Candidates of either kind for every neighbour wanted, and landmarks of the coordinates.
_CANDIDATES_PER_NEIGHBOR, _NUM_LANDMARKS = 3, 16

# Pairs of one call of the correlation.
_CHUNK_PAIRS = 1 << 20

# How far rounding may lift a correlation above one.
_TOLERANCE = 1e-3

_NONE = torch.iinfo(torch.int32).max

# k(x_i, x_j) / sqrt(k(x_i, x_i) k(x_j, x_j)) for P pairs of numbers, [P].
Correlation = Callable[[Tensor, Tensor], Tensor]


def correlation_neighbors(
    correlation: Correlation, points: Tensor, num_neighbors: int, first: int = 0
) -> Tensor:
    r"""Find the earlier points of largest absolute correlation for every point of an ordered set.

    Row i - first holds the :math:`m` numbers j < i of smallest :math:`\sqrt{1 - |\rho_{ij}|}`, ascending,
    with -1 behind them where there are fewer. Ties go to the lower number.

    Up to 16 million pairs of a row and a point (4,000 points) all are compared. Beyond that the choice is
    exact among at most 6 m candidates for every row: the 3 m nearest earlier inputs, and the 3 m nearest
    in coordinates made of the separations :math:`\sqrt{-\log |\rho|}` from 16 landmarks; the nearest inputs
    alone would miss most neighbours of a periodic kernel.

    Parameters
    ----------
    correlation : callable
        ``correlation(i, j)`` returns the correlations :math:`k(x_i, x_j) / \sqrt{k(x_i, x_i) k(x_j, x_j)}` of
        pairs of points, given by two int64 tensors of shape [P], as a tensor of shape [P].
    points : Tensor, shape [M, D]
        Points in their order, in units in which distances mean something.
    num_neighbors : int
        The most neighbours m of a point.
    first : int
        The first point to find neighbours for: with new points appended behind old ones, the number of
        the old ones.

    Returns
    -------
    Tensor of int32, shape [M - first, m]
        Numbers of earlier points.

    Raises
    ------
    InputError
        If points is no floating-point matrix, is empty, or holds NaN or infinite coordinates, if
        num_neighbors is not positive or first beyond the points, or if the callable returns another
        shape, NaN, or values above one.

    References
    ----------
    Kang, M. & Katzfuss, M. (2023). Correlation-based sparse inverse Cholesky factorization for fast
    Gaussian process inference. Statistics and Computing.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [0.4], [1.0], [1.9]])
    >>> def periodic(i, j):
    ...     return torch.exp(-2 * torch.sin(torch.pi * (x[i] - x[j])).square()).squeeze(-1)
    >>> correlation_neighbors(periodic, x, 2).tolist()
    [[-1, -1], [0, -1], [0, 1], [0, 2]]
    """
    check_num_neighbors(num_neighbors)
    M, device = len(as_array(points, "points")), points.device
    check_first(first, M)
    out = torch.full((M - first, num_neighbors), -1, dtype=torch.int32, device=device)
    with torch.no_grad():
        if (M - first) * M <= _EXACT_PAIRS:
            everyone = torch.arange(M, dtype=torch.int32, device=device)
            for i, j in _chunks(first, M, M):
                _fill(correlation, i, everyone[:j].expand(j - i, j), out[i - first : j - first])
            return out
        wanted = _CANDIDATES_PER_NEIGHBOR * num_neighbors
        inputs = earlier_neighbors(points, wanted, first)
        coordinates = _separations(correlation, M, device)
        candidates = torch.cat((inputs, earlier_neighbors(coordinates, wanted, first)), dim=-1)
        candidates = candidates.sort(dim=-1).values
        candidates[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = -1
        for i, j in _chunks(first, M, 2 * wanted):
            part = slice(i - first, j - first)
            _fill(correlation, i, candidates[part], out[part])
    return out


def _chunks(first: int, num_points: int, pairs_per_row: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK_PAIRS // pairs_per_row)
    for i in range(first, num_points, step):
        yield i, min(num_points, i + step)


def _fill(correlation: Correlation, first: int, candidates: Tensor, out: Tensor) -> None:
    """Choose among the candidates [R, C] of the rows from `first` on, in ascending order but for -1."""
    rows = torch.arange(first, first + len(candidates), device=candidates.device)
    allowed = (candidates >= 0) & (candidates < rows.unsqueeze(-1))
    row, column = allowed.nonzero(as_tuple=True)
    values = _absolute(correlation, rows[row], candidates[row, column].long())
    similarity = values.new_full(candidates.shape, -1.0)
    similarity[row, column] = values
    m = min(out.shape[1], candidates.shape[1])
    # What lies above the m-th largest value, and of its equals the first ones.
    bound = similarity.topk(m, dim=-1).values[:, -1:]
    above, equal = similarity > bound, similarity == bound
    room = m - above.sum(-1, keepdim=True)
    kept = allowed & (above | (equal & (equal.cumsum(-1) <= room)))
    chosen = torch.where(kept, candidates, _NONE).sort(dim=-1).values[:, :m]
    out[:, :m] = torch.where(chosen == _NONE, -1, chosen)


def _separations(correlation: Correlation, num_points: int, device: torch.device) -> Tensor:
    """Every point's separations from landmarks, each the farthest from those before it, [M, L]."""
    nearest = torch.full((num_points,), torch.inf, dtype=torch.float64, device=device)
    landmark, columns = 0, []
    for _ in range(_NUM_LANDMARKS):
        column = torch.empty_like(nearest)
        for i, j in _chunks(0, num_points, 1):
            others = torch.arange(i, j, device=device)
            values = _absolute(correlation, others, torch.full_like(others, landmark))
            floor = torch.finfo(values.dtype).tiny
            column[i:j] = values.clamp_min(floor).double().log().neg().sqrt()
        columns.append(column)
        nearest = torch.minimum(nearest, column)
        landmark = int(nearest.argmax())
    return torch.stack(columns, dim=-1)


def _absolute(correlation: Correlation, i: Tensor, j: Tensor) -> Tensor:
    """Checked absolute correlations of pairs, at most one."""
    values = correlation(i, j)
    if values.shape != i.shape:
        raise InputError(
            f"correlation returned shape {tuple(values.shape)} for {len(i)} pairs; it must return "
            f"one value for each, shape {tuple(i.shape)}."
        )
    values = values.detach().abs()
    wrong = ~(values <= 1.0 + _TOLERANCE)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise InputError(
            f"correlation returned {float(values[k]):.6g} for the points {int(i[k])} and {int(j[k])}; "
            "divide the covariance by the square root of the product of both variances, and leave out "
            "points of variance zero."
        )
    return values.clamp_max(1.0)
