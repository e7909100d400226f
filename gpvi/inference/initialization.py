"""Starting values of hyperparameters from the data: lengthscales from median distances."""

import gpytorch
import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import GaussianProcess
from gpvi.exceptions import InputError
from gpvi.kernels import set_lengthscales
from gpvi.likelihoods import as_likelihood

__all__ = ["initialize_hyperparameters", "median_lengthscales"]

_MAX_PAIRS = 20_000


def median_lengthscales(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Lengthscale of every input column from the median distance between rows.

    :math:`\ell_d = \sqrt{D}\; \mathrm{median}_{i \ne j, x_{id} \ne x_{jd}} |x_{id} - x_{jd}|` over random
    pairs, so that the scaled distance of a typical pair is about one whatever the number of columns.

    Parameters
    ----------
    x : Tensor, shape [N, D]
        Inputs.
    generator : torch.Generator, optional
        Source of the random pairs (on the CPU).

    Returns
    -------
    Tensor, shape [D]
        Positive; 1 for a constant column.

    Raises
    ------
    InputError
        If ``x`` has another shape, or no rows.

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
    size, num_columns = x.shape
    pairs = torch.randint(size, (2, _MAX_PAIRS), generator=generator, device=generator.device)
    left, right = pairs.to(x.device)
    distance = (x.detach()[left] - x.detach()[right]).abs()
    distance = torch.where(distance > 0, distance, torch.full_like(distance, torch.nan))
    median = distance.nanmedian(0).values
    return torch.where(torch.isnan(median), torch.ones_like(median), median * num_columns**0.5)


def initialize_hyperparameters(
    gp: GaussianProcess,
    likelihood: GPyTorchLikelihood,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator | None = None,
    **rows: Tensor,
) -> None:
    """Set lengthscales from distances and a constant mean from the targets, in place.

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
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.
    """
    set_lengthscales(gp.kernel, median_lengthscales(x.reshape(-1, x.shape[-1]), generator))
    mean = gp.mean_module
    if not isinstance(mean, gpytorch.means.ConstantMean) or not mean.raw_constant.requires_grad:
        return
    guess = as_likelihood(likelihood).initial_latent(y, **rows)
    if guess is not None:
        mean.initialize(constant=guess.mean().to(mean.raw_constant).expand(mean.batch_shape))
