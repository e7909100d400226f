"""Sparse inverse Cholesky factors, their inverses and transposes as linear operators."""

from typing import Any

import torch
from linear_operator.operators import LinearOperator
from torch import Tensor

from gpvi.linalg.sparse_inverse._apply import apply_factor
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["PatternLinearOperator", "SparseFactorLinearOperator"]


class PatternLinearOperator(LinearOperator):
    """What operators with columns on a pattern have in common.

    The columns are the operator's one tensor; the pattern goes with it, whatever becomes of the batch
    dims, dtype or device.

    Parameters
    ----------
    columns : Tensor, shape [*b, M, m + 1]
        Entries.
    neighbors : NeighborPattern
        Where they are.
    **options : bool
        What else the constructor of the derived class takes.
    """

    def __init__(self, columns: Tensor, neighbors: NeighborPattern, **options: bool) -> None:
        neighbors.check(columns)
        super().__init__(columns, neighbors=neighbors, **options)
        self._columns, self._pattern, self._options = columns, neighbors, options

    @property
    def columns(self) -> Tensor:
        """Entries of the factor, shape [*b, M, m + 1]."""
        return self._columns

    @property
    def pattern(self) -> NeighborPattern:
        """Where the entries are."""
        return self._pattern

    def to(self, *args: Any, **kwargs: Any) -> "PatternLinearOperator":
        """The operator on another device or in another dtype.

        Parameters
        ----------
        *args, **kwargs : Any
            As for :meth:`torch.Tensor.to`.

        Returns
        -------
        PatternLinearOperator
            Of the same kind.
        """
        return self._with(self._columns.to(*args, **kwargs))

    def cpu(self) -> "PatternLinearOperator":
        """The operator in the memory of the host.

        Returns
        -------
        PatternLinearOperator
            Of the same kind.
        """
        return self._with(self._columns.cpu())

    def cuda(self, device_id: int | str | None = None) -> "PatternLinearOperator":
        """The operator on a CUDA device.

        Parameters
        ----------
        device_id : int or str, optional
            Which; the current one if left out.

        Returns
        -------
        PatternLinearOperator
            Of the same kind.
        """
        return self._with(self._columns.cuda(device_id))

    def detach_(self) -> "PatternLinearOperator":
        """Take the columns off their graph, in place.

        Returns
        -------
        PatternLinearOperator
            Itself.
        """
        self._columns.detach_()
        return self

    def _size(self) -> torch.Size:
        M = self._pattern.num_rows
        return torch.Size((*self._columns.shape[:-2], M, M))

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> "PatternLinearOperator":
        shape = torch.Size((*batch_shape, *self._columns.shape[-2:]))
        # linear_operator rebuilds operators from leaves whose gradients it wants, without a graph.
        return self if self._columns.shape == shape else self._with(self._columns.expand(shape))

    def _with(self, columns: Tensor) -> "PatternLinearOperator":
        return type(self)(columns, self._pattern.to(columns.device), **self._options)

    def _run(self, operations: tuple[str, ...], columns: Tensor) -> Tensor:
        """Products and solves with the factor one after the other, on the columns of a matrix."""
        if columns.dim() == 1:
            return self._run(operations, columns.unsqueeze(-1)).squeeze(-1)
        # Columns come first, so batch dims that the matrix lacks must be there behind them.
        missing = max(0, len(self.batch_shape) + 2 - columns.dim())
        vectors = columns[(None,) * missing].movedim(-1, 0)
        for operation in operations:
            vectors = apply_factor(operation, self._pattern, self._columns, vectors)
        return vectors.movedim(0, -1)


class SparseFactorLinearOperator(PatternLinearOperator):
    """U, its transpose, its inverse, or the transpose of that.

    Parameters
    ----------
    columns : Tensor, shape [*b, M, m + 1]
        U.
    neighbors : NeighborPattern
        Where U has entries.
    inverse : bool
        Whether the operator is an inverse.
    transposed : bool
        Whether it is a transpose.

    Raises
    ------
    InputError
        If the columns do not fit the pattern.

    Examples
    --------
    >>> import torch
    >>> pattern = NeighborPattern(torch.tensor([[-1], [0]], dtype=torch.int32))
    >>> columns = torch.tensor([[0.0, 2.0], [3.0, 4.0]])
    >>> SparseFactorLinearOperator(columns, pattern, transposed=True).to_dense()
    tensor([[2., 0.],
            [3., 4.]])
    """

    def __init__(
        self,
        columns: Tensor,
        neighbors: NeighborPattern,
        inverse: bool = False,
        transposed: bool = False,
    ) -> None:
        super().__init__(columns, neighbors, inverse=inverse, transposed=transposed)
        self._operation = f"{'transpose_' if transposed else ''}{'solve' if inverse else 'product'}"

    def _matmul(self, rhs: Tensor) -> Tensor:
        return self._run((self._operation,), rhs)

    def _transpose_nonbatch(self) -> "SparseFactorLinearOperator":
        options = {**self._options, "transposed": not self._options["transposed"]}
        return SparseFactorLinearOperator(self._columns, self._pattern, **options)
