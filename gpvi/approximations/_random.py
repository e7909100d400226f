"""Standard normal draws from an explicit generator; the global random state is never touched."""

import torch
from torch import Tensor


def standard_normal(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Draw N(0, 1) numbers of the dtype and device of ``like``; unseeded without a generator."""
    if generator is None:
        generator = torch.Generator(device=like.device)
        generator.seed()
    draws = torch.randn(shape, dtype=like.dtype, device=generator.device, generator=generator)
    return draws.to(like.device)


def align_samples(samples: Tensor, num_sample_dims: int, batch: torch.Size) -> Tensor:
    """Make samples ``[*S, *b, M]`` broadcast with a wider batch: ``[*S, 1, ..., *b, M]``."""
    own = samples.dim() - 1 - num_sample_dims
    missing = max(len(batch) - own, 0)
    shape = samples.shape
    return samples.reshape(*shape[:num_sample_dims], *[1] * missing, *shape[num_sample_dims:])
