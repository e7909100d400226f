"""What strategies hand to GPyTorch: q(f) at inputs, and q and p of the basis as a pair for the KL.

Wrappers around a strategy (linear model of coregionalisation, independent tasks) ask
``torch.distributions.kl_divergence`` for the KL of two distributions instead of calling the strategy.
:class:`BasisPosterior` and :class:`BasisPrior` answer with the posterior's own KL.
"""

from typing import Any

import torch
from gpytorch.distributions import Distribution, MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.lazy import LazyEvaluatedKernelTensor
from gpytorch.utils.memoize import add_to_cache
from linear_operator.operators import DiagLinearOperator, LinearOperator
from torch import Tensor
from torch.distributions.kl import register_kl

from gpvi.approximations import Marginals, Posterior, Prior

__all__ = [
    "BasisPosterior",
    "BasisPrior",
    "FunctionPosterior",
    "dense_prediction",
    "diagonal_prediction",
    "lazy_prediction",
    "marginals_at",
]


class FunctionPosterior(MultivariateNormal):
    """q(f) at inputs, which remembers how its variance splits.

    Parameters
    ----------
    mean : Tensor, shape [*b, N]
        Posterior mean.
    covariance_matrix : Tensor or LinearOperator, shape [*b, N, N]
        Posterior covariance.
    validate_args : bool
        As in :class:`gpytorch.distributions.MultivariateNormal`.
    marginals : Marginals, shape [*b, N], optional
        Explained and residual variance; lost by indexing and arithmetic.
    """

    def __init__(
        self,
        mean: Tensor,
        covariance_matrix: Tensor | LinearOperator,
        validate_args: bool = False,
        marginals: Marginals | None = None,
    ) -> None:
        super().__init__(mean, covariance_matrix, validate_args)
        self.marginals = marginals


def marginals_at(posterior: Posterior, x: Tensor) -> Marginals:
    """Marginal moments at inputs.

    Parameters
    ----------
    posterior : Posterior
        What to predict with.
    x : Tensor, shape [*g, N, D]
        Inputs.

    Returns
    -------
    Marginals
        Shape [*b, N].
    """
    marginals = posterior.predict(x)
    assert isinstance(marginals, Marginals)
    return marginals


def diagonal_prediction(marginals: Marginals) -> FunctionPosterior:
    """q(f) with its marginals only.

    Parameters
    ----------
    marginals : Marginals, shape [*b, N]
        Moments.

    Returns
    -------
    FunctionPosterior
        With a diagonal covariance.
    """
    shape = torch.broadcast_shapes(marginals.mean.shape, marginals.variance.shape)
    covariance = DiagLinearOperator(marginals.variance.expand(shape))
    return FunctionPosterior(marginals.mean.expand(shape), covariance, marginals=marginals)


def dense_prediction(posterior: Posterior, x: Tensor) -> FunctionPosterior:
    """q(f) with its full covariance, computed at once.

    Parameters
    ----------
    posterior : Posterior
        What to predict with.
    x : Tensor, shape [*g, N, D]
        Inputs.

    Returns
    -------
    FunctionPosterior
        Batch shape [*b].
    """
    joint = posterior.predict(x, joint=True)
    assert isinstance(joint, MultivariateNormal)
    return FunctionPosterior(joint.mean, joint.lazy_covariance_matrix)


def lazy_prediction(posterior: Posterior, x: Tensor) -> FunctionPosterior:
    """q(f) whose covariances are computed when they are asked for, for the rows asked for.

    Parameters
    ----------
    posterior : Posterior
        What to predict with.
    x : Tensor, shape [*g, N, D]
        Inputs.

    Returns
    -------
    FunctionPosterior
        Batch shape [*b].
    """
    marginals = marginals_at(posterior, x)
    covariance = _LazyCovariance(x, x, kernel=_PosteriorKernel(posterior, marginals))
    # Means and variances are what most callers want, and they are there already.
    add_to_cache(covariance, "kernel_diag", marginals.variance.expand(covariance.shape[:-1]))
    return FunctionPosterior(marginals.mean, covariance, marginals=marginals)


class _PosteriorKernel(Kernel):
    """Posterior covariance as a function of two inputs, for GPyTorch's lazy evaluation."""

    def __init__(self, posterior: Posterior, marginals: Marginals) -> None:
        super().__init__()
        self.posterior = posterior
        self._like = marginals.mean

    @property
    def batch_shape(self) -> torch.Size:
        return self._like.shape[:-1]

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if diag:
            return marginals_at(self.posterior, x1).variance
        if x1.shape == x2.shape and torch.equal(x1, x2):
            return self._joint(x1)
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        both = [x.expand(*batch, *x.shape[-2:]) for x in (x1, x2)]
        return self._joint(torch.cat(both, -2))[..., : x1.shape[-2], x1.shape[-2] :]

    def _joint(self, x: Tensor) -> Tensor:
        joint = self.posterior.predict(x, joint=True)
        assert isinstance(joint, MultivariateNormal)
        return joint.covariance_matrix


class _LazyCovariance(LazyEvaluatedKernelTensor):
    """As its base, but batches are indexed after evaluation: a posterior cannot be indexed."""

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        if any(index != slice(None) for index in batch_indices):
            return self.evaluate_kernel()._getitem(row_index, col_index, *batch_indices)
        return super()._getitem(row_index, col_index, *batch_indices)


class BasisPosterior(Distribution):
    """q of the basis, as far as GPyTorch needs it: shapes, samples, and the KL to the prior.

    Parameters
    ----------
    posterior : Posterior
        What it stands for.
    batch_shape : torch.Size
        Batch shape of the strategy.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, posterior: Posterior, batch_shape: torch.Size) -> None:
        self.posterior = posterior
        size = torch.Size([posterior.prior.num_basis])
        super().__init__(batch_shape, size, validate_args=False)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Reparametrised samples of the basis, from a fresh generator.

        Parameters
        ----------
        sample_shape : sequence of int
            Sample shape S.

        Returns
        -------
        Tensor, shape [*S, *b, M]
            Basis values.
        """
        return self.posterior.rsample(sample_shape, residual="none").basis


class BasisPrior(Distribution):
    """p of the basis: the partner of :class:`BasisPosterior`.

    Parameters
    ----------
    prior : Prior
        What it stands for.
    batch_shape : torch.Size
        Batch shape of the strategy.
    """

    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self, prior: Prior, batch_shape: torch.Size) -> None:
        self.prior = prior
        super().__init__(batch_shape, torch.Size([prior.num_basis]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Prior log density.

        Parameters
        ----------
        value : Tensor, shape [*S, *b, M]
            Basis values.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log densities.
        """
        return self.prior.log_prob(value)


@register_kl(BasisPosterior, BasisPrior)
def _kl(q: BasisPosterior, p: BasisPrior) -> Tensor:
    return q.posterior.kl().expand(q.batch_shape)
