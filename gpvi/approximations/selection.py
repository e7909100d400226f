"""Choosing inducing inputs among the data rows; never the first rows.

"greedy" takes the row of largest conditional variance again and again (Burt, Rasmussen & van der
Wilk, 2020); "kmeans++" is the seeding of Arthur & Vassilvitskii (2007); "random" draws distinct
rows.
"""

from collections.abc import Callable

import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

from gpvi.approximations._checks import check_count
from gpvi.approximations.gaussian_process import GaussianProcess, GaussianProcessLike
from gpvi.exceptions import InputError
from gpvi.kernels import stationary_form
from gpvi.linalg import greedy_conditional_variance
from gpvi.linalg.stationary import stationary_value

__all__ = ["SELECTION_METHODS", "select_inducing_points"]

#: Names accepted by :func:`select_inducing_points`.
SELECTION_METHODS = ("greedy", "kmeans++", "random")

# The greedy method looks at this many rows, or eight times the inducing points if that is more.
_MAX_CANDIDATES = 4_000


def select_inducing_points(
    gp: GaussianProcessLike,
    x: Tensor,  # shape: [N, D]
    num_inducing: int,
    method: str = "greedy",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose inducing inputs among distinct data rows.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process; its covariance decides for "greedy" (the average over its batch).
    x : Tensor, shape [N, D]
        Data inputs.
    num_inducing : int
        How many; all distinct rows if there are fewer.
    method : {"greedy", "kmeans++", "random"}
        How.
    generator : torch.Generator, optional
        Source of randomness.

    Returns
    -------
    Tensor, shape [M, D]
        Chosen rows, ``M <= num_inducing``.

    Raises
    ------
    InputError
        For an unknown method, fewer than one inducing point, or inputs that are not [N, D].

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import GaussianProcess
    >>> x = torch.linspace(0, 1, 50, dtype=torch.float64).unsqueeze(-1)
    >>> gp = GaussianProcess(gpytorch.kernels.RBFKernel().double())
    >>> select_inducing_points(gp, x, 4, "greedy", torch.Generator().manual_seed(0)).shape
    torch.Size([4, 1])
    """
    if method not in SELECTION_METHODS:
        raise InputError(f"method is {method!r}; it must be one of {', '.join(SELECTION_METHODS)}.")
    check_count("num_inducing", num_inducing)
    if x.dim() != 2:
        raise InputError(
            f"x has shape {tuple(x.shape)}; pass inputs of shape [N, D] "
            "(x.unsqueeze(-1) for one input column)."
        )
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    distinct = torch.unique(x.detach(), dim=0)
    distinct = distinct[_permutation(len(distinct), generator).to(x.device)]
    if len(distinct) <= num_inducing:
        return distinct
    if method == "random":
        return distinct[:num_inducing]
    if method == "kmeans++":
        return _kmeans_plus_plus(distinct, num_inducing, generator)
    return _greedy(gp, distinct, num_inducing, generator)


def _greedy(
    gp: GaussianProcessLike, rows: Tensor, num_inducing: int, generator: torch.Generator
) -> Tensor:
    candidates = rows[: max(_MAX_CANDIDATES, 8 * num_inducing)]
    with torch.no_grad():
        variance = _batch_average(gp.variance(candidates), 1)
        pivots, _ = greedy_conditional_variance(
            variance, _row_function(gp, candidates), num_inducing
        )
    chosen = candidates[pivots]
    missing = num_inducing - len(pivots)
    if not missing:
        return chosen
    # Under today's hyperparameters more rows add nothing, but they will under shorter lengthscales.
    rest = torch.ones(len(candidates), dtype=torch.bool, device=rows.device)
    rest[pivots] = False
    return torch.cat([chosen, _kmeans_plus_plus(candidates[rest], missing, generator)])


def _row_function(gp: GaussianProcessLike, rows: Tensor) -> Callable[[int], Tensor]:
    """Covariances of one row with all; known stationary kernels skip GPyTorch's per-call overhead."""
    form = stationary_form(gp.kernel) if isinstance(gp, GaussianProcess) else None
    if form is None:
        return lambda i: _batch_average(gp.covariance(rows[i : i + 1], rows), 2)[0]
    scaled = rows / form.lengthscale
    scale = 1.0 if form.outputscale is None else form.outputscale
    return lambda i: scale * stationary_value(form.name, (scaled - scaled[i]).square().sum(-1))


def _kmeans_plus_plus(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    scale = rows.std(0, correction=0)
    scaled = rows / torch.where(scale > 0, scale, torch.ones_like(scale))
    _, index = kmeans_plusplus(scaled.cpu().numpy(), count, random_state=seed)
    # Rows so close that rounding hides their distance may be drawn twice; others take their place.
    order = dict.fromkeys([*index.tolist(), *range(len(rows))])
    return rows[torch.tensor(list(order)[:count], device=rows.device)]


def _permutation(size: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator, device=generator.device)


def _batch_average(values: Tensor, event_dims: int) -> Tensor:
    return values.flatten(0, -event_dims - 1).mean(0) if values.dim() > event_dims else values
