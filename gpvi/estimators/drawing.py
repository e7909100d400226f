"""Joint draws of f at many rows."""

from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.approximations import Posterior, StateSpacePosterior
from gpvi.linalg import mat_vec

__all__ = ["draw_latent"]

# Up to here, the root of a covariance matrix is cheaper than paths over all rows.
_JOINT_ROWS = 500

# Numbers in the states of the paths that are drawn at once.
_PATH_NUMBERS = 2**23


def draw_latent(
    posterior: Posterior,
    x: Tensor,
    joint: Callable[[], tuple[Tensor, Tensor]],
    num_samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Joint samples of f, off the graph.

    Parameters
    ----------
    posterior : Posterior
        Of f.
    x : Tensor, shape [N, D]
        Where.
    joint : callable
        Gives mean [*b, N] and covariance [*b, N, N] there.
    num_samples : int
        S.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Tensor, shape [S, *b, N]
        Samples. Of a posterior over states they are paths, linear in the rows; of any other they come from
        the root of the covariance matrix.
    """
    if isinstance(posterior, StateSpacePosterior) and len(x) > _JOINT_ROWS:
        known = posterior.prior.num_basis * posterior.prior.mean.shape[:-1].numel()
        numbers = known * (1 + len(x) / posterior.prior.mean.shape[-1])
        size = max(1, int(_PATH_NUMBERS / numbers))
        parts = [
            posterior.rsample((min(size, num_samples - n),), x, generator=generator).values
            for n in range(0, num_samples, size)
        ]
        return torch.cat(parts)
    mean, covariance = joint()
    # An eigenvalue root needs no jitter where noise-free rows repeat.
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root = vectors * eigenvalues.clamp_min(0.0).sqrt().unsqueeze(-2)
    shape = (num_samples, *mean.shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(mean)
    return mean + mat_vec(root, noise)
