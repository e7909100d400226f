r"""Covariance matrices of noisy values of Markov processes as linear operators.

For a semiseparable K and a diagonal D a Kalman filter gives the factor of :math:`(K + D)^{-1}`, two
recursions, and :math:`\log |K + D|`; nothing is iterated and nothing is estimated.

References
----------
Durbin, J. & Koopman, S. J. (2012). Time Series Analysis by State Space Methods, chapter 4.
"""

from typing import Any

import torch
from linear_operator.operators import (
    AddedDiagLinearOperator,
    DiagLinearOperator,
    LinearOperator,
    SumLinearOperator,
)
from linear_operator.utils.memoize import cached
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov._kalman_factor import KalmanFactor
from gpvi.linalg.markov._operator_functions import InverseQuadratic, Solve
from gpvi.linalg.markov.operators import SemiseparableLinearOperator
from gpvi.linalg.markov.smoothing import markov_log_partition

__all__ = ["SemiseparablePlusDiagonalLinearOperator"]


class SemiseparablePlusDiagonalLinearOperator(AddedDiagLinearOperator):
    """``K + D`` with exact solves and log-determinants in linear time, and their gradients.

    Entries of the diagonal must be positive for solves and determinants. Whatever linear_operator
    offers beyond products, solves, determinants, diagonals and draws (roots, eigenvalues) works, in
    its own ways.

    Parameters
    ----------
    covariance : SemiseparableLinearOperator
        ``K``.
    diagonal : DiagLinearOperator
        ``D``.
    preconditioner_override : None
        Kept for linear_operator's sake; nothing is preconditioned here.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import as_state_space, parse_kernel
    >>> model = as_state_space(parse_kernel("matern12", 1)).model()
    >>> time = torch.linspace(0, 1, 5, dtype=torch.float64)
    >>> noisy = SemiseparableLinearOperator.from_model(model, time).add_diagonal(torch.ones(5).double())
    >>> inv_quad, logdet = noisy.inv_quad_logdet(torch.ones(5, 1).double(), logdet=True)
    >>> bool(torch.isclose(logdet, noisy.to_dense().logdet()))
    True
    """

    def __init__(
        self,
        covariance: SemiseparableLinearOperator,
        diagonal: DiagLinearOperator,
        preconditioner_override: None = None,
    ) -> None:
        if not isinstance(covariance, SemiseparableLinearOperator):
            raise InputError(
                f"covariance must be a SemiseparableLinearOperator; got "
                f"{type(covariance).__name__}. Add other operators as AddedDiagLinearOperator."
            )
        super().__init__(covariance, diagonal)

    @property
    def diagonal_part(self) -> Tensor:
        """Entries of D, shape [*b, N]."""
        return self._diag_tensor._diagonal()

    def solve(self, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
        """``(K + D)^-1 Y`` or ``X (K + D)^-1 Y``, by recursions.

        Parameters
        ----------
        right_tensor : Tensor, shape [*b, N, C] or [N]
            ``Y``.
        left_tensor : Tensor, shape [*b, R, N], optional
            ``X``.

        Returns
        -------
        Tensor, shape [*b, N, C], [N] or [*b, R, C]
            Differentiable once.
        """
        columns = right_tensor.unsqueeze(-1) if right_tensor.dim() == 1 else right_tensor
        operator, columns = self._with_batch_of(columns)
        solution = Solve.apply(operator.representation_tree(), columns, *operator.representation())
        if right_tensor.dim() == 1:
            solution = solution.squeeze(-1)
        return solution if left_tensor is None else left_tensor @ solution

    def inv_quad(self, inv_quad_rhs: Tensor, reduce_inv_quad: bool = True) -> Tensor:
        """``y' (K + D)^-1 y``, exactly.

        Parameters
        ----------
        inv_quad_rhs : Tensor, shape [*b, N, C] or [N]
            Columns y.
        reduce_inv_quad : bool
            Whether to sum over columns.

        Returns
        -------
        Tensor, shape [*b] or [*b, C]
            Differentiable once.
        """
        vector = inv_quad_rhs.dim() == 1
        columns = inv_quad_rhs.unsqueeze(-1) if vector else inv_quad_rhs
        operator, columns = self._with_batch_of(columns)
        representation = operator.representation()
        value = InverseQuadratic.apply(operator.representation_tree(), columns, *representation)
        return value.sum(-1) if reduce_inv_quad or vector else value

    def inv_quad_logdet(
        self,
        inv_quad_rhs: Tensor | None = None,
        logdet: bool | None = False,
        reduce_inv_quad: bool | None = True,
    ) -> tuple[Tensor, Tensor]:
        """Both terms of a Gaussian log density, exactly.

        Parameters
        ----------
        inv_quad_rhs : Tensor, shape [*b, N, C] or [N], optional
            Columns y.
        logdet : bool
            Whether the determinant is wanted.
        reduce_inv_quad : bool
            Whether to sum over columns.

        Returns
        -------
        inv_quad : Tensor, shape [*b] or [*b, C]
            ``y' (K + D)^-1 y``; empty without y.
        logdet : Tensor, shape [*b]
            ``log |K + D|``; zero if not wanted.
        """
        empty = torch.zeros([], dtype=self.dtype, device=self.device)
        quadratic = empty
        if inv_quad_rhs is not None:
            quadratic = self.inv_quad(inv_quad_rhs, bool(reduce_inv_quad))
        return quadratic, self._log_determinant() if logdet else empty

    def _log_determinant(self) -> Tensor:
        """``log |D| + log |I + D^-1 K|``, the second from the forward pass."""
        model, steps = self._linear_op.model()
        D = self._sorted_diagonal()
        total = markov_log_partition(model, steps, torch.zeros_like(D), D.reciprocal())
        return D.log().sum(-1) - 2.0 * total.squeeze(-1)

    def _sorted_diagonal(self) -> Tensor:
        D = self._linear_op.sort(self.diagonal_part.unsqueeze(-1)).squeeze(-1)
        if not bool((D > 0).all()):
            raise InputError(
                f"The diagonal added to a covariance matrix has an entry {float(D.min()):.3g}; solves "
                "and determinants need positive entries."
            )
        return D

    def _solve(
        self, rhs: Tensor, preconditioner: Any = None, num_tridiag: int | None = 0
    ) -> Tensor:
        return self._linear_op.unsort(self._factor().solve(self._linear_op.sort(rhs)))

    @cached(name="kalman_factor")
    def _factor(self) -> KalmanFactor:
        covariance, D = self._linear_op, self._sorted_diagonal()
        model, steps = covariance.model()
        return KalmanFactor.factorize(model, steps, covariance.transition.detach(), D)

    def _with_batch_of(self, columns: Tensor) -> tuple[LinearOperator, Tensor]:
        """Operator and right-hand side with the same batch dims."""
        if columns.dim() < 2 or columns.shape[-2] != self.shape[-1]:
            raise InputError(
                f"A right-hand side of shape {tuple(columns.shape)} does not fit an operator of shape "
                f"{tuple(self.shape)}."
            )
        batch = torch.broadcast_shapes(self.batch_shape, columns.shape[:-2])
        operator = self if batch == self.batch_shape else self._expand_batch(batch)
        return operator, columns.expand(*batch, *columns.shape[-2:])

    def zero_mean_mvn_samples(self, num_samples: int) -> Tensor:
        """Draws by the recursion of the process, and independent noise.

        Parameters
        ----------
        num_samples : int
            S.

        Returns
        -------
        Tensor, shape [S, *b, N]
            From PyTorch's global generator.
        """
        draws = self._linear_op.zero_mean_mvn_samples(num_samples)
        return draws + self.diagonal_part.sqrt() * torch.randn_like(draws)

    def _mul_constant(self, other: float | Tensor) -> LinearOperator:
        return _joined(*(part._mul_constant(other) for part in self.linear_ops))

    def _sum_batch(self, dim: int) -> LinearOperator:
        return SumLinearOperator(*(part._sum_batch(dim) for part in self.linear_ops))

    def __add__(self, other: Any) -> Any:
        if isinstance(other, DiagLinearOperator):
            return _joined(self._linear_op, self._diag_tensor + other)
        return _joined(self._linear_op + other, self._diag_tensor)


def _joined(covariance: LinearOperator, diagonal: LinearOperator) -> LinearOperator:
    """The sum, as the operator with exact solves where that is possible."""
    if not isinstance(diagonal, DiagLinearOperator):
        return SumLinearOperator(covariance, diagonal)
    if isinstance(covariance, SemiseparableLinearOperator):
        return SemiseparablePlusDiagonalLinearOperator(covariance, diagonal)
    return AddedDiagLinearOperator(covariance, diagonal)
