"""What a coreset says in words and numbers, and as a GPyTorch model."""

import copy
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations.exact_posterior import ExactPosterior
from gpvi.approximations.gaussian_process import GaussianProcess, GaussianProcessLike
from gpvi.approximations.posterior import Posterior
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.linalg import mat_vec

__all__ = ["CoresetSummary", "exact_gp", "summarise"]

# Weights have at least this fraction of the prior's precision where they are divided by.
_LEAST = 1e-10


@dataclass(frozen=True, eq=False)
class CoresetSummary:
    """A data set in few weighted points.

    Parameters
    ----------
    inputs : Tensor, shape [*b, M, D]
        Where the points lie.
    targets : Tensor, shape [*b, M]
        Pseudo-observations of the latent function.
    weights : Tensor, shape [*b, M]
        Their precisions (one over noise variances).

    Examples
    --------
    >>> import torch
    >>> point = CoresetSummary(torch.zeros(1, 1), torch.ones(1), torch.tensor([50.0]))
    >>> point.observations(noise=0.5)
    tensor([25.])
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor

    def observations(self, noise: float | Tensor) -> Tensor:
        """How many observations with Gaussian noise every point stands for.

        Parameters
        ----------
        noise : float or Tensor
            Noise variance of one observation.

        Returns
        -------
        Tensor, shape [*b, M]
            ``weights * noise``.

        Raises
        ------
        InputError
            If the noise is not positive.
        """
        if not bool(torch.as_tensor(noise > 0).all()):
            raise InputError(f"noise is {noise}; it must be positive.")
        return self.weights * noise


def summarise(core: Posterior, covariance: Tensor) -> CoresetSummary:
    """Pseudo-observations with finite targets, from the exact posterior on them."""
    prior, sites = core.prior, core.sites
    weights = sites.lam2.expand_as(sites.lam1)
    mean = core.marginals().mean
    if isinstance(core, ExactPosterior):
        pull, mean = core.weights, prior.mean + mat_vec(covariance, core.weights)
    else:
        pull = sites.lam1 - sites.lam2 * mean
    # With no weight left a point still pulls at the mean: a far target that hardly counts.
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    least = _LEAST / scale
    divisor = torch.where(weights.abs() < least, least, weights)
    shape = (*weights.shape[:-1], *prior.x.shape[-2:])
    return CoresetSummary(
        prior.x.detach().expand(torch.broadcast_shapes(prior.x.shape, shape)),
        (mean + pull / divisor).detach(),
        torch.where(weights >= 0, divisor, weights).detach(),
    )


def exact_gp(gp: GaussianProcessLike, summary: CoresetSummary) -> gpytorch.models.ExactGP:
    """GPyTorch's exact model of weighted points."""
    if not isinstance(gp, GaussianProcess):
        raise UnsupportedError(
            f"{type(gp).__name__} has no mean and kernel of its own that a GPyTorch model could take; "
            "condition a prior of a GaussianProcess."
        )
    if bool((summary.weights < 0).any()):
        raise UnsupportedError(
            f"The smallest weight is {float(summary.weights.min()):.3g}: a negative one is no noise "
            "variance. Condition on sites of non-negative precision."
        )
    own = copy.deepcopy(gp.detach())
    for module in own.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(value)
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(1.0 / summary.weights)
    model = _PseudoDataGP(summary, likelihood, own)
    return model.eval()


class _PseudoDataGP(gpytorch.models.ExactGP):
    """Exact inference on the points of a coreset."""

    def __init__(
        self,
        summary: CoresetSummary,
        likelihood: gpytorch.likelihoods.Likelihood,
        gp: GaussianProcess,
    ) -> None:
        super().__init__(summary.inputs, summary.targets, likelihood)
        self.mean_module, self.covar_module = gp.mean_module, gp.kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """Prior at inputs."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))
