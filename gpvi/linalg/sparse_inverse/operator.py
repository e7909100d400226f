r"""Covariance matrices with a sparse inverse Cholesky factor as linear operators, without the matrix.

The covariance is :math:`K = (UU^\top)^{-1} = U^{-\top} U^{-1}` with U upper triangular and sparse. Its
Cholesky factor is :math:`U^{-\top}`, so that products take two triangular solves and draws one; solves take
two products, and the determinant is that of the diagonal of U. Nothing is iterated or estimated, and every
cost is one pass over the entries of U per vector. The points come in an order, and those before some point
have the covariance of the leading part of U.
"""

from typing import Any

import torch
from linear_operator.operators import LinearOperator, RootLinearOperator, TriangularLinearOperator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpvi.exceptions import InputError
from gpvi.linalg.sparse_inverse._apply import apply_factor
from gpvi.linalg.sparse_inverse._engine import runs_compiled
from gpvi.linalg.sparse_inverse._factor_operator import (
    PatternLinearOperator,
    SparseFactorLinearOperator,
)
from gpvi.linalg.sparse_inverse.closure import inverse_diagonal
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

__all__ = ["SparseInverseCholeskyLinearOperator"]

# Columns of the covariance that are in memory at once.
_CHUNK = 128


class SparseInverseCholeskyLinearOperator(PatternLinearOperator):
    r"""The covariance :math:`(UU^\top)^{-1}` of M points, for U on a pattern of neighbours.

    Parameters
    ----------
    columns : Tensor, shape [*b, M, m + 1]
        U, with a positive diagonal in the last slot and zeros in unused slots.
    neighbors : NeighborPattern, or Tensor of int32, shape [M, m]
        Where U has entries: earlier points, ascending, -1 behind them.
    schedule : Tensor of int32, shape [M], optional
        For a tensor of neighbours, see :class:`NeighborPattern`.

    Raises
    ------
    InputError
        If the columns do not fit the neighbours, or there is a schedule beside a pattern.

    References
    ----------
    Schäfer, F., Katzfuss, M. & Owhadi, H. (2021). Sparse Cholesky factorization by Kullback-Leibler
    minimization. SIAM Journal on Scientific Computing.

    Examples
    --------
    >>> import torch
    >>> neighbors = torch.tensor([[-1], [0]], dtype=torch.int32)
    >>> columns = torch.tensor([[0.0, 1.0], [-1.0, 2.0]])  # U U' = [[2, -2], [-2, 4]]
    >>> covariance = SparseInverseCholeskyLinearOperator(columns, neighbors)
    >>> covariance.to_dense()
    tensor([[1.0000, 0.5000],
            [0.5000, 0.5000]])
    """

    def __init__(
        self,
        columns: Tensor,
        neighbors: NeighborPattern | Tensor,
        schedule: Tensor | None = None,
    ) -> None:
        if isinstance(neighbors, Tensor):
            neighbors = NeighborPattern(neighbors, schedule)
        elif schedule is not None:
            raise InputError("A pattern of neighbours has its own schedule; leave schedule out.")
        super().__init__(columns, neighbors)

    def solve(self, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
        """``K^-1 Y`` or ``X K^-1 Y``, by two products with U.

        Parameters
        ----------
        right_tensor : Tensor, shape [*b, M, C] or [M]
            ``Y``.
        left_tensor : Tensor, shape [*b, R, M], optional
            ``X``.

        Returns
        -------
        Tensor, shape [*b, M, C], [M], [*b, R, C] or [*b, R]
            Differentiable.

        Raises
        ------
        InputError
            If Y does not fit.
        """
        solution = self._solve(right_tensor)
        return solution if left_tensor is None else left_tensor @ solution

    def inv_quad(self, inv_quad_rhs: Tensor, reduce_inv_quad: bool = True) -> Tensor:
        """``y' K^-1 y``, by one product with U.

        Parameters
        ----------
        inv_quad_rhs : Tensor, shape [*b, M, C] or [M]
            Columns y.
        reduce_inv_quad : bool
            Whether to sum over columns.

        Returns
        -------
        Tensor, shape [*b] or [*b, C]
            Differentiable.
        """
        return self.inv_quad_logdet(inv_quad_rhs, reduce_inv_quad=reduce_inv_quad)[0]

    def inv_quad_logdet(
        self,
        inv_quad_rhs: Tensor | None = None,
        logdet: bool | None = False,
        reduce_inv_quad: bool | None = True,
    ) -> tuple[Tensor, Tensor]:
        """Both terms of a Gaussian log density, exactly.

        Parameters
        ----------
        inv_quad_rhs : Tensor, shape [*b, M, C] or [M], optional
            Columns y.
        logdet : bool
            Whether the determinant is wanted.
        reduce_inv_quad : bool
            Whether to sum over columns.

        Returns
        -------
        inv_quad : Tensor, shape [*b] or [*b, C]
            ``y' K^-1 y``; zero without y.
        logdet : Tensor, shape [*b]
            ``log |K|``; zero if not wanted.
        """
        quadratic = determinant = torch.zeros([], dtype=self.dtype, device=self.device)
        if inv_quad_rhs is not None:
            vector = inv_quad_rhs.dim() == 1
            columns = inv_quad_rhs.unsqueeze(-1) if vector else inv_quad_rhs
            quadratic = self._run(("transpose_product",), columns).square().sum(-2)
            quadratic = quadratic.sum(-1) if reduce_inv_quad or vector else quadratic
        if logdet:
            determinant = -2.0 * self._columns[..., -1].log().sum(-1)
        return quadratic, determinant

    def root_decomposition(self, method: str | None = None) -> LinearOperator:
        """``K = R R'`` with ``R = U^-T``, exactly.

        Parameters
        ----------
        method : str, optional
            One of linear_operator's other roots.

        Returns
        -------
        RootLinearOperator
            With a sparse factor inside, if no method is named.
        """
        if method is not None:
            return super().root_decomposition(method)
        root = SparseFactorLinearOperator(
            self._columns, self._pattern, inverse=True, transposed=True
        )
        return RootLinearOperator(root)

    def root_inv_decomposition(
        self,
        initial_vectors: Tensor | None = None,
        test_vectors: Tensor | None = None,
        method: str | None = None,
    ) -> LinearOperator:
        """``K^-1 = R R'`` with ``R = U``, exactly.

        Parameters
        ----------
        initial_vectors, test_vectors : Tensor, optional
            For the Lanczos method, if that is named.
        method : str, optional
            One of linear_operator's other roots.

        Returns
        -------
        RootLinearOperator
            With U inside, if no method is named.
        """
        if method is not None:
            return super().root_inv_decomposition(initial_vectors, test_vectors, method)
        return RootLinearOperator(SparseFactorLinearOperator(self._columns, self._pattern))

    def zero_mean_mvn_samples(self, num_samples: int) -> Tensor:
        """Draws ``U^-T e`` from white noise e.

        Parameters
        ----------
        num_samples : int
            S.

        Returns
        -------
        Tensor, shape [S, *b, M]
            From PyTorch's global generator, as linear_operator draws everywhere.
        """
        shape = (num_samples, *self.shape[:-1])
        noise = torch.randn(shape, dtype=self.dtype, device=self.device)
        return apply_factor("transpose_solve", self._pattern, self._columns, noise)

    def _matmul(self, rhs: Tensor) -> Tensor:
        return self._run(("solve", "transpose_solve"), rhs)

    def _solve(
        self, rhs: Tensor, preconditioner: object = None, num_tridiag: int | None = 0
    ) -> Tensor:
        return self._run(("transpose_product", "product"), rhs)

    def _transpose_nonbatch(self) -> "SparseInverseCholeskyLinearOperator":
        return self

    def _cholesky(self, upper: bool | None = False) -> TriangularLinearOperator:
        factor = self.root_decomposition().root.to_dense()
        return TriangularLinearOperator(factor.mT if upper else factor, upper=bool(upper))

    def _mul_constant(self, other: float | Tensor) -> LinearOperator:
        constant = torch.as_tensor(other, dtype=self.dtype, device=self.device)
        if not bool((constant > 0).all()):
            return super()._mul_constant(other)
        return self._with(self._columns / constant.sqrt()[..., None, None])

    def _diagonal(self) -> Tensor:
        if not (self._columns.requires_grad and torch.is_grad_enabled()):
            return inverse_diagonal(self._pattern, self._columns)
        # The solves of a chunk are done again for its gradient, rather than all be kept.
        kwargs: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        starts = range(0, self._pattern.num_rows, _CHUNK)
        parts = [checkpoint(self._variances, start, **kwargs) for start in starts]
        return torch.cat(parts).movedim(0, -1)

    def _variances(self, start: int) -> Tensor:
        """Of a chunk of points, [C, *b]."""
        M = self._pattern.num_rows
        stop = min(start + _CHUNK, M)
        # Later points do not matter, and leaving them out halves the cost of loops; levels would have to
        # be found anew.
        part = self._leading(stop) if runs_compiled(self._columns) else self
        size = part.shape[-1]
        unit = torch.zeros(stop - start, size, dtype=self.dtype, device=self.device)
        unit[:, start:].fill_diagonal_(1.0)
        unit = unit.reshape(-1, *[1] * len(self.batch_shape), size)
        return apply_factor("solve", part._pattern, part._columns, unit).square().sum(-1)

    def _leading(self, count: int) -> "SparseInverseCholeskyLinearOperator":
        """The covariance of the first points."""
        if count == self._pattern.num_rows:
            return self
        pattern = NeighborPattern(self._pattern.neighbors[:count])
        return SparseInverseCholeskyLinearOperator(self._columns[..., :count, :], pattern)

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        both = (row_index, col_index)
        if all(isinstance(index, slice) for index in both):
            rows, columns = (range(self.shape[-1])[index] for index in both)
            if rows == columns == range(len(rows)) and len(rows) < self.shape[-1]:
                whole = slice(None)
                return self._leading(len(rows))._getitem(whole, whole, *batch_indices)
        return super()._getitem(row_index, col_index, *batch_indices)

    def _get_indices(self, row_index: Tensor, col_index: Tensor, *batch_indices: Tensor) -> Tensor:
        rows, columns, *batch = torch.broadcast_tensors(row_index, col_index, *batch_indices)
        wanted, which = columns.flatten().unique(return_inverse=True)
        entries = torch.zeros(rows.numel(), dtype=self.dtype, device=self.device)
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            unit = torch.zeros(self.shape[-1], len(chunk), dtype=self.dtype, device=self.device)
            unit[chunk, torch.arange(len(chunk), device=self.device)] = 1.0
            here = ((which >= start) & (which < start + _CHUNK)).nonzero().squeeze(-1)
            place = (part.flatten()[here] for part in (*batch, rows))
            entries = entries.index_put((here,), self._matmul(unit)[*place, which[here] - start])
        return entries.view(rows.shape)
