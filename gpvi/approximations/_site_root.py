"""Square roots of site precisions."""

import torch
from torch import Tensor


def site_root(lam2: Tensor, variance: Tensor) -> Tensor:
    """``s = sqrt(lam2)`` with a slope at 0 that yields the right derivatives of everything else.

    The slope of a bare square root at 0 is infinite, and a guarded one drops the derivative by the
    precision of an unobserved row. What is added is tiny against ``variance``, shape [*b, N], the
    prior variance of the rows, and moves no result by more than rounding.
    """
    finfo = torch.finfo(lam2.dtype)
    scale = variance.detach().mean(-1, keepdim=True).clamp_min(finfo.tiny)
    return (lam2 + finfo.eps / (4.0 * scale)).sqrt()
