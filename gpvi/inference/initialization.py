"""Starting values of hyperparameters from the data: lengthscales from median distances."""

import gpytorch
import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import GaussianProcess
from gpvi.exceptions import InputError
from gpvi.kernels import set_lengthscales
from gpvi.likelihoods import as_likelihood
from gpvi.linalg import weighted_median

__all__ = ["initialize_hyperparameters", "median_lengthscales"]

_MAX_PAIRS = 20_000

# Up to this many rows, equal ones are merged first, so that repeated rows and weights give one result.
_MAX_MERGED = 5_000


def median_lengthscales(
    x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
) -> Tensor:
    r"""Lengthscale of every input column from the median distance between rows.

    :math:`\ell_d = \sqrt{D}\; \mathrm{median}_{i \ne j, x_{id} \ne x_{jd}} |x_{id} - x_{jd}|`, so that
    the scaled distance of a typical pair is about one whatever the number of columns. Over all pairs,
    weighted by :math:`w_i w_j`, if there are at most 20,000 of distinct rows; else over so many random
    ones, drawn in proportion to the weights.

    Parameters
    ----------
    x : Tensor, shape [N, D]
        Inputs.
    generator : torch.Generator, optional
        Source of the random pairs (on the CPU).
    weights : Tensor, shape [N], optional
        Row weights; all one if left out.

    Returns
    -------
    Tensor, shape [D]
        Positive; 1 for a constant column.

    Raises
    ------
    InputError
        If ``x`` has another shape, or no rows; if the weights do not fit or are all zero.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0, 5.0], [2.0, 5.0]], dtype=torch.float64)
    >>> median_lengthscales(x, torch.Generator().manual_seed(0))
    tensor([2.8284, 1.0000], dtype=torch.float64)
    """
    if x.dim() != 2 or not len(x):
        raise InputError(
            f"x has shape {tuple(x.shape)}; pass inputs of shape [N, D] with at least one row "
            "(x.unsqueeze(-1) for one input column)."
        )
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    points, shares = _weighted_points(x.detach(), weights)
    if len(points) * (len(points) - 1) // 2 <= _MAX_PAIRS:
        left, right = torch.triu_indices(len(points), len(points), 1, device=x.device)
        pair_weights: Tensor | None = shares[left] * shares[right]
    else:
        left, right = _random_rows(shares, generator)
        pair_weights = None
    distance = (points[left] - points[right]).abs().mT
    distance = torch.where(distance > 0, distance, torch.nan)
    if not distance.shape[-1]:
        return x.new_ones(x.shape[-1])
    median = weighted_median(distance, pair_weights)
    return torch.where(torch.isnan(median), torch.ones_like(median), median * x.shape[-1] ** 0.5)


def _weighted_points(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows with their weights (float64), equal rows merged where there are not too many."""
    if weights is None:
        shares = torch.ones(len(x), dtype=torch.float64, device=x.device)
    else:
        if weights.shape != x.shape[:1] or not bool((weights >= 0).all() and (weights > 0).any()):
            raise InputError(
                f"weights of shape {tuple(weights.shape)} for {len(x)} rows; pass one non-negative weight "
                "per row, not all of them zero."
            )
        shares, x = weights.detach()[weights > 0].double(), x[weights > 0]
    if len(x) > _MAX_MERGED:
        return x, shares
    points, place = torch.unique(x, dim=0, return_inverse=True)
    return points, shares.new_zeros(len(points)).index_add_(0, place, shares)


def _random_rows(shares: Tensor, generator: torch.Generator) -> Tensor:
    """Pairs of row numbers, each row drawn in proportion to its share, shape [2, P]."""
    draws = torch.rand(
        2, _MAX_PAIRS, generator=generator, device=generator.device, dtype=torch.float64
    )
    reached = shares.cumsum(0)
    return torch.searchsorted(reached, draws.to(shares.device) * reached[-1], right=True).clamp_max(
        len(shares) - 1
    )


def initialize_hyperparameters(
    gp: GaussianProcess,
    likelihood: GPyTorchLikelihood,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
    **rows: Tensor,
) -> None:
    """Set lengthscales from distances and a constant mean from the targets, in place.

    Integer weights have the effect of repeated rows (of up to 5,000 in all; beyond, up to the choice of
    random pairs).

    Parameters
    ----------
    gp : GaussianProcess
        Its kernel's lengthscales and, if it has one, its constant mean are set.
    likelihood : gpytorch or gpvi likelihood
        Its rough latent guess sets the constant mean; without a guess the mean stays.
    x : Tensor, shape [N, D]
        Inputs.
    y : Tensor, shape [N]
        Targets; NaN means not observed.
    generator : torch.Generator, optional
        Source of randomness.
    weights : Tensor, shape [N], optional
        Row weights.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.
    """
    model = as_likelihood(likelihood)
    shares = None
    if weights is not None:
        _, missing, extras = model.prepare(y, x, x.shape[-2], {"weights": weights})
        shares = extras["weights"]
    row_shares = None if shares is None else _over_batch(shares, x)
    columns = x.reshape(-1, x.shape[-1])
    set_lengthscales(gp.kernel, median_lengthscales(columns, generator, row_shares))
    mean = gp.mean_module
    if not isinstance(mean, gpytorch.means.ConstantMean) or not mean.raw_constant.requires_grad:
        return
    guess = model.initial_latent(y, **rows, **({} if weights is None else {"weights": weights}))
    if guess is None:
        return
    if shares is not None:
        counted = torch.where(missing, 0.0, shares).to(guess)
        guess = (counted * guess).sum(-1) / counted.sum(-1).clamp_min(torch.finfo(guess.dtype).tiny)
    mean.initialize(constant=guess.mean().to(mean.raw_constant).expand(mean.batch_shape))


def _over_batch(shares: Tensor, x: Tensor) -> Tensor:
    """One weight for every row of ``x``, flattened: the mean over the batch dims of the targets."""
    while shares.dim() > x.dim() - 1:
        shares = shares.mean(0)
    return shares.expand(x.shape[:-1]).reshape(-1)
