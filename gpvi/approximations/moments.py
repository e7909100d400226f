"""What a posterior says about rows: marginal moments and joint draws."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Draw", "Marginals"]


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
