"""A kernel for categorical columns, coded as numbers.

Codes such as 0, 1, 2 for "red", "green", "blue" have no order and no distances, so that a kernel of
their difference would invent both. Counting the columns in which two rows disagree uses nothing
that the codes do not say.
"""

from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior
from torch import Tensor

__all__ = ["HammingKernel"]


class HammingKernel(Kernel):
    r"""Covariance that decays with every column in which two rows disagree.

    .. math:: k(x, x') = \exp\Big(-\sum_d \frac{1[x_d \ne x'_d]}{\ell_d}\Big)

    Every column contributes a factor :math:`(1 - \rho_d) 1[x_d = x'_d] + \rho_d` with
    :math:`\rho_d = e^{-1/\ell_d}` between 0 and 1: a sum of white and constant covariances. The
    kernel is a product of those and therefore positive definite for any number of levels; a level
    never seen before is as far from each known one as these are from each other. The similarity
    that counts agreements is Gower's (1971), the exponential form that of Ru et al. (2020), and the
    factor of one column is the simplest group kernel of Roustant et al. (2020).

    Parameters
    ----------
    ard_num_dims : int, optional
        Number of columns, for one lengthscale each; one lengthscale for all if left out.
    batch_shape : torch.Size, default torch.Size([])
        One set of lengthscales for each element of this batch.
    active_dims : tuple of int, optional
        The categorical columns among the inputs.
    lengthscale_prior : gpytorch.priors.Prior, optional
        Prior over the lengthscales.
    lengthscale_constraint : gpytorch.constraints.Interval, optional
        Range of the lengthscales; positive unless given.

    Attributes
    ----------
    lengthscale : Tensor, shape (*batch_shape, 1, D or 1)
        Columns that may disagree until the covariance has dropped by a factor of e. Starts at twice
        `ard_num_dims`, so that rows that agree nowhere correlate by 0.61; a shared lengthscale
        starts at 2, and one with a constraint where that says.

    Notes
    -----
    The value does not change with small changes of the inputs: gradients with respect to inputs are
    zero, and inducing inputs stay at the levels where they start.

    References
    ----------
    Gower, "A general coefficient of similarity and some of its properties", Biometrics 1971.

    Roustant, Padonou, Deville, Clement, Perrin, Giorla, Wynn, "Group kernels for Gaussian process
    metamodels with categorical inputs", SIAM/ASA Journal on Uncertainty Quantification 2020.

    Ru, Alvi, Nguyen, Osborne, Roberts, "Bayesian optimisation over multiple continuous and
    categorical inputs", ICML 2020.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import HammingKernel
    >>> kernel = HammingKernel()
    >>> kernel(torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 3.0]])).to_dense().detach()
    tensor([[1.0000, 0.6065, 0.3679],
            [0.6065, 1.0000, 0.3679],
            [0.3679, 0.3679, 1.0000]])
    """

    has_lengthscale = True

    def __init__(
        self,
        ard_num_dims: int | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
    ) -> None:
        super().__init__(
            ard_num_dims=ard_num_dims,
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint,
        )
        # A range of the user's brings its own start.
        if lengthscale_constraint is None:
            self.initialize(lengthscale=2.0 * (ard_num_dims or 1))

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Evaluate the kernel.

        Parameters
        ----------
        x1 : Tensor, shape (*batch, N, D)
            Left inputs.
        x2 : Tensor, shape (*batch, M, D)
            Right inputs.
        diag : bool, default False
            Compare row n of `x1` with row n of `x2` only.
        last_dim_is_batch : bool, default False
            Give one matrix for each column.
        **params
            What GPyTorch hands to every kernel of a composition; this one has no use for it.

        Returns
        -------
        Tensor, shape (*batch, N, M), or (*batch, N) with diag=True
            Values in (0, 1], one where all columns agree.
        """
        rates = self.lengthscale.squeeze(-2).reciprocal()
        rates = rates[..., None] if diag else rates[..., None, None]
        dim = -2 if diag else -3
        if last_dim_is_batch:
            return (-_where(_differ_by_column(x1, x2, diag), rates)).exp()
        # One column at a time: all at once would need N M D numbers instead of N M.
        differ = [_differ(x1, x2, column, diag) for column in range(x1.shape[-1])]
        if rates.shape[dim] == 1:
            count = torch.zeros_like(differ[0], dtype=x1.dtype)
            for mask in differ:
                count += mask
            return (-count * rates.select(dim, 0)).exp()
        cost = _where(differ[0], rates.select(dim, 0))
        for column, mask in enumerate(differ[1:], start=1):
            cost = cost + _where(mask, rates.select(dim, column))
        return (-cost).exp()


def _where(differ: Tensor, rate: Tensor) -> Tensor:
    # The graph keeps the mask, one byte an entry, where a product would keep numbers.
    return torch.where(differ, rate, torch.zeros_like(rate))


def _differ(x1: Tensor, x2: Tensor, column: int, diag: bool) -> Tensor:
    """Where the rows disagree in a column, shape (*batch, N, M) or (*batch, N)."""
    left, right = x1[..., column], x2[..., column]
    return left != right if diag else left.unsqueeze(-1) != right.unsqueeze(-2)


def _differ_by_column(x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
    """The disagreements of every column, shape (*batch, D, N, M) or (*batch, D, N)."""
    x1, x2 = x1.mT, x2.mT
    return x1 != x2 if diag else x1.unsqueeze(-1) != x2.unsqueeze(-2)
