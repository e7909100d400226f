"""Covariances between the values of a Markov process at two sets of times, as a linear operator."""

import torch
from linear_operator.operators import LinearOperator
from torch import Tensor

from gpvi.linalg.markov.operators import SemiseparableLinearOperator

__all__ = ["CrossCovarianceLinearOperator"]


class CrossCovarianceLinearOperator(LinearOperator):
    """A block off the diagonal of a semiseparable matrix: M rows by the other N columns.

    A product takes O((M + N) d^2) per column, by the recursions of the whole matrix.

    Parameters
    ----------
    joint : SemiseparableLinearOperator
        Covariance of all M + N values.
    num_rows : int
        M.
    rows_last : bool
        Whether the rows of the block are the last M of the whole matrix, or the first.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import as_state_space, parse_kernel
    >>> model = as_state_space(parse_kernel("matern12", 1)).model()
    >>> time = torch.tensor([0.0, 1.0, 2.0]).double()
    >>> joint = SemiseparableLinearOperator.from_model(model, time)
    >>> block = CrossCovarianceLinearOperator(joint, 1)
    >>> bool(torch.allclose(block.to_dense(), joint.to_dense()[2:, :2]))
    True
    """

    def __init__(
        self, joint: SemiseparableLinearOperator, num_rows: int, rows_last: bool = True
    ) -> None:
        super().__init__(joint, num_rows=num_rows, rows_last=rows_last)
        self.joint, self.num_rows, self.rows_last = joint, num_rows, rows_last

    def _size(self) -> torch.Size:
        columns = self.joint.shape[-1] - self.num_rows
        return torch.Size((*self.joint.batch_shape, self.num_rows, columns))

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        M = self.num_rows
        before, after = (0, M) if self.rows_last else (M, 0)
        whole = self.joint._matmul(torch.nn.functional.pad(rhs, (0, 0, before, after)))
        return whole[..., -M:, :] if self.rows_last else whole[..., :M, :]

    def _transpose_nonbatch(self) -> "CrossCovarianceLinearOperator":
        return type(self)(self.joint, self.shape[-1], not self.rows_last)

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> "CrossCovarianceLinearOperator":
        return type(self)(self.joint._expand_batch(batch_shape), self.num_rows, self.rows_last)

    def _mul_constant(self, other: float | Tensor) -> LinearOperator:
        scaled = self.joint._mul_constant(other)
        if isinstance(scaled, SemiseparableLinearOperator):
            return type(self)(scaled, self.num_rows, self.rows_last)
        return super()._mul_constant(other)
