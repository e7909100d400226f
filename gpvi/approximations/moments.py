"""What a posterior says about rows: marginal moments and joint draws."""

from dataclasses import dataclass

import gpytorch
from linear_operator import to_linear_operator
from torch import Tensor

__all__ = ["Draw", "Marginals", "joint_normal"]


@dataclass(frozen=True, eq=False)
class Marginals:
    """Marginal moments of q at rows.

    Parameters
    ----------
    mean : Tensor, shape [*b, N]
        Posterior means.
    explained : Tensor, shape [*b, N]
        Posterior variance of the projection ``r_n = E[f_n | basis]``.
    residual : Tensor, shape [*b, N], optional
        Conditional variance of ``f_n`` given the basis; None where the basis is f itself.

    Examples
    --------
    >>> import torch
    >>> Marginals(torch.zeros(2), torch.ones(2), torch.ones(2)).variance
    tensor([2., 2.])
    """

    mean: Tensor
    explained: Tensor
    residual: Tensor | None = None

    @property
    def variance(self) -> Tensor:
        """Marginal variance of f, ``explained + residual``."""
        return self.explained if self.residual is None else self.explained + self.residual


@dataclass(frozen=True, eq=False)
class Draw:
    """Joint samples of the latent function and of the basis.

    Parameters
    ----------
    values : Tensor, shape [*S, *b, N]
        Samples of f at the rows asked for.
    basis : Tensor, shape [*S, *b, M]
        The basis values behind them.
    """

    values: Tensor
    basis: Tensor


def joint_normal(mean: Tensor, covariance: Tensor) -> gpytorch.distributions.MultivariateNormal:
    """Joint normal over a dense covariance that may be singular in floating point.

    Handed a tensor, the constructor would factorise it at once and refuse a singular one; handed an
    operator, it factorises (with jitter) when a sample or a density asks for it.

    Parameters
    ----------
    mean : Tensor, shape [*b, N]
        Means.
    covariance : Tensor, shape [*b, N, N]
        Symmetric, positive semi-definite up to rounding.

    Returns
    -------
    MultivariateNormal
        With a lazy covariance.
    """
    return gpytorch.distributions.MultivariateNormal(mean, to_linear_operator(covariance))
