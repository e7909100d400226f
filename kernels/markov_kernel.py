r"""A kernel on the line whose covariance matrices are operators: exact GPs in linear time.

Wrapped around a kernel with a state-space form, :class:`MarkovKernel` lets GPyTorch's own exact GP
train and predict in O(N) time and memory, without another line of code. See Hartikainen, J. & Särkkä,
S. (2010). Kalman filtering and smoothing solutions to temporal Gaussian process regression models.
MLSP.
"""

from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from linear_operator.operators import LinearOperator
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels.state_space import StateSpaceForm
from gpvi.kernels.state_space_conversion import as_state_space
from gpvi.linalg.markov.conditioning import condition_last
from gpvi.linalg.markov.cross_operator import CrossCovarianceLinearOperator
from gpvi.linalg.markov.operators import SemiseparableLinearOperator
from gpvi.linalg.markov.plus_diagonal_operator import SemiseparablePlusDiagonalLinearOperator

__all__ = ["MarkovKernel"]


class MarkovKernel(Kernel):
    """A kernel with a state-space form, with covariance matrices that are never formed.

    What is linear in N for a Gaussian likelihood: value and gradient of
    ``ExactMarginalLogLikelihood``, the predictive distribution (mean, joint covariance as an operator,
    variances, draws), products with covariance matrices, square or between different rows.
    Noise may differ between rows; NaN among the targets are missing observations when predicting under
    ``gpytorch.settings.observation_nan_policy("mask")``. A ``ScaleKernel`` may be inside or outside.

    What is not: sums and products of several ``MarkovKernel`` (wrap the sum instead), fantasies, and
    whatever asks linear_operator for a root, eigenvalues, single rows or the whole of a matrix.

    Kernels whose state-space form is an approximation (RBF, Periodic) are replaced by it.

    Parameters
    ----------
    base_kernel : gpytorch.kernels.Kernel
        See :func:`~gpvi.kernels.as_state_space` for those that have a form.
    rbf_order : {2, 4, 6, 8, 10}, default 6
        Number of states for an RBF kernel.
    periodic_tolerance : float, default 1e-6
        Variance that the harmonics of a periodic kernel may lack.

    Raises
    ------
    UnsupportedError
        If a part of the kernel has no state-space form.

    References
    ----------
    Hartikainen, J. & Särkkä, S. (2010). Kalman filtering and smoothing solutions to temporal Gaussian
    process regression models. MLSP.

    Examples
    --------
    >>> import gpytorch, torch
    >>> kernel = MarkovKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
    >>> x = torch.linspace(0, 1, 100_000, dtype=torch.float64).unsqueeze(-1)
    >>> noisy = kernel(x).evaluate_kernel().add_diagonal(torch.tensor(0.1).double())
    >>> noisy.logdet().isfinite().item()  # the matrix would take 80 GB
    True
    """

    def __init__(
        self, base_kernel: Kernel, *, rbf_order: int = 6, periodic_tolerance: float = 1e-6
    ) -> None:
        super().__init__()
        self.base_kernel = base_kernel
        self.rbf_order, self.periodic_tolerance = rbf_order, periodic_tolerance
        self.state_space()

    @property
    def is_stationary(self) -> bool:
        """Whether the base kernel is."""
        return bool(self.base_kernel.is_stationary)

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dims of the base kernel."""
        return self.base_kernel.batch_shape

    @batch_shape.setter
    def batch_shape(self, value: torch.Size) -> None:
        # Kernel.__init__ and Kernel.__getitem__ set it; the base kernel has its own.
        self._batch_shape = value

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor | LinearOperator:
        """Covariances between two sets of rows.

        Parameters
        ----------
        x1 : Tensor, shape [*g, N, 1]
            Rows.
        x2 : Tensor, shape [*g, M, 1]
            Rows.
        diag : bool, default False
            Whether only covariances of equal row numbers are wanted.
        last_dim_is_batch : bool, default False
            Handed on to the base kernel.
        **params
            Handed on to the base kernel.

        Returns
        -------
        SemiseparableLinearOperator, CrossCovarianceLinearOperator or Tensor
            The first if both sets are the same; what the base kernel returns for ``diag``.

        Raises
        ------
        InputError
            If the rows have more than one column.
        """
        if diag or last_dim_is_batch:
            return self.base_kernel(
                x1, x2, diag=diag, last_dim_is_batch=last_dim_is_batch, **params
            )
        if x1.shape[-1] != 1:
            raise InputError(
                f"MarkovKernel takes rows of one column, the time; got {x1.shape[-1]} columns. Set "
                "active_dims of the kernel it is wrapped in, or use the base kernel."
            )
        if x1.shape == x2.shape and torch.equal(x1, x2):
            return self._covariance(x1)
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        both = [x.expand(*batch, *x.shape[-2:]) for x in (x2, x1)]
        return CrossCovarianceLinearOperator(self._covariance(torch.cat(both, -2)), x1.shape[-2])

    def prediction_strategy(
        self, train_inputs: Any, train_prior_dist: Any, train_labels: Tensor, likelihood: Any
    ) -> DefaultPredictionStrategy:
        """How GPyTorch's exact GP predicts with this kernel.

        Parameters
        ----------
        train_inputs : list of Tensor
            Rows.
        train_prior_dist : gpytorch.distributions.MultivariateNormal
            Prior of the training rows.
        train_labels : Tensor, shape [*b, N]
            Targets.
        likelihood : gpytorch.likelihoods.Likelihood
            Gaussian.

        Returns
        -------
        DefaultPredictionStrategy
            One that predicts in linear time.
        """
        return _MarkovPredictionStrategy(train_inputs, train_prior_dist, train_labels, likelihood)

    def _covariance(self, x: Tensor) -> SemiseparableLinearOperator:
        form = self.state_space()
        return SemiseparableLinearOperator.from_model(form.model(x), x[..., form.time_dim])

    def state_space(self) -> StateSpaceForm:
        """The form of the base kernel.

        Returns
        -------
        StateSpaceForm
            On the graph of its parameters.
        """
        return as_state_space(
            self.base_kernel,
            rbf_order=self.rbf_order,
            periodic_tolerance=self.periodic_tolerance,
        )


class _MarkovPredictionStrategy(DefaultPredictionStrategy):
    """Predicts from one pass over training and test rows together."""

    def exact_prediction(
        self, test_mean: Tensor, test_test_covar: Any, test_train_covar: Any
    ) -> tuple[Tensor, Any]:
        """Predictive mean and covariance.

        Parameters
        ----------
        test_mean : Tensor, shape [*b, M]
            Prior mean.
        test_test_covar : LinearOperator, shape [*b, M, M]
            Prior covariance.
        test_train_covar : LinearOperator, shape [*b, M, N]
            Prior covariance with the training rows.

        Returns
        -------
        mean : Tensor, shape [*b, M]
            Predictive mean.
        covariance : LinearOperator, shape [*b, M, M]
            Predictive covariance.
        """
        noisy = self.lik_train_train_covar.evaluate_kernel()
        joint = test_train_covar
        if isinstance(joint, CrossCovarianceLinearOperator) and joint.rows_last:
            joint = joint.joint
        # Otherwise the test rows may be the training rows.
        if not (
            isinstance(joint, SemiseparableLinearOperator)
            and isinstance(noisy, SemiseparablePlusDiagonalLinearOperator)
        ):
            return super().exact_prediction(test_mean, test_test_covar, test_train_covar)
        targets = self.train_labels - self.train_prior_dist.mean
        seen = torch.isfinite(targets)
        lam2 = torch.where(seen, noisy.diagonal_part.reciprocal(), 0.0)
        lam1 = lam2 * torch.where(seen, targets, 0.0)
        more = joint.shape[-1] - targets.shape[-1]
        lam1, lam2 = (torch.nn.functional.pad(lam, (0, more)) for lam in (lam1, lam2))
        mean, covariance = condition_last(joint, lam1, lam2, test_train_covar.shape[-2])
        return test_mean + mean, covariance
