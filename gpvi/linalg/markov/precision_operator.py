"""The precision of the states of a Markov process as a linear operator."""

import torch
from linear_operator.operators import LinearOperator
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov.block_tridiagonal import BlockTridiagonal, markov_precision
from gpvi.linalg.markov.model import MarkovModel, Steps

__all__ = ["BlockTridiagonalLinearOperator"]


class BlockTridiagonalLinearOperator(LinearOperator):
    """A positive definite block-tridiagonal matrix of T blocks of size d.

    Products, solves and log-determinants take O(T d^3), exactly: block cyclic reduction, not
    iterations or estimates. See :mod:`gpvi.linalg.markov.block_tridiagonal` for how far the digits of a
    precision go on fine grids.

    Parameters
    ----------
    blocks : Tensor, shape [*b, T, d, d]
        Blocks (k, k), symmetric.
    lower : Tensor, shape [*b, T - 1, d, d]
        Blocks (k + 1, k).

    Raises
    ------
    InputError
        If the shapes do not fit each other.

    References
    ----------
    Grigorievskiy, A., Lawrence, N. & Särkkä, S. (2017). Parallelizable sparse inverse formulation
    Gaussian processes. MLSP.

    Examples
    --------
    >>> import torch
    >>> fours, ones = torch.full((3, 1, 1), 4.0).double(), torch.full((2, 1, 1), 1.0).double()
    >>> matrix = BlockTridiagonalLinearOperator(fours, ones)
    >>> round(matrix.logdet().exp().item(), 6)  # 4 * (16 - 1) - 4
    56.0
    """

    def __init__(self, blocks: Tensor, lower: Tensor) -> None:
        batch = torch.broadcast_shapes(blocks.shape[:-3], lower.shape[:-3])
        # A tensor that has the batch dims must stay the leaf whose gradient linear_operator wants.
        blocks, lower = (
            part if part.shape[:-3] == batch else part.expand(*batch, *part.shape[-3:])
            for part in (blocks, lower)
        )
        super().__init__(blocks, lower)
        self._blocks, self._lower = blocks, lower
        BlockTridiagonal(blocks, lower)  # looks at the shapes

    @classmethod
    def from_model(cls, model: MarkovModel, steps: Steps) -> "BlockTridiagonalLinearOperator":
        """Precision of the states of a process.

        Parameters
        ----------
        model : MarkovModel
            The process.
        steps : Steps
            Stamps, all different within a series.

        Returns
        -------
        BlockTridiagonalLinearOperator
            Of shape [*b, T d, T d], on the graph of the model.

        Raises
        ------
        InputError
            If the noise of some step is singular.
        """
        precision = markov_precision(model, steps)
        return cls(precision.diagonal, precision.lower)

    @property
    def _matrix(self) -> BlockTridiagonal:
        """The matrix, with blocks symmetrised so that derivatives by their two triangles agree."""
        return BlockTridiagonal(0.5 * (self._blocks + self._blocks.mT), self._lower)

    def _size(self) -> torch.Size:
        *batch, T, d, _ = self._blocks.shape
        return torch.Size((*batch, T * d, T * d))

    def _transpose_nonbatch(self) -> "BlockTridiagonalLinearOperator":
        return self

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        return self._joined(self._matrix.matmul(self._split(rhs)))

    def _diagonal(self) -> Tensor:
        return self._blocks.diagonal(dim1=-2, dim2=-1).flatten(-2)

    def _expand_batch(
        self, batch_shape: torch.Size | list[int]
    ) -> "BlockTridiagonalLinearOperator":
        return type(self)(*(part.expand(*batch_shape, *part.shape[-3:]) for part in self._args))

    def solve(self, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
        """``M^-1 Y`` or ``X M^-1 Y``, by block cyclic reduction.

        Parameters
        ----------
        right_tensor : Tensor, shape [*b, T d, C] or [T d]
            ``Y``.
        left_tensor : Tensor, shape [*b, R, T d], optional
            ``X``.

        Returns
        -------
        Tensor, shape [*b, T d, C], [T d] or [*b, R, C]
            Differentiable.

        Raises
        ------
        NotPositiveDefiniteError
            If the matrix is not positive definite.
        """
        vector = right_tensor.dim() == 1
        columns = right_tensor.unsqueeze(-1) if vector else right_tensor
        solution = self._solve(columns)
        solution = solution.squeeze(-1) if vector else solution
        return solution if left_tensor is None else left_tensor @ solution

    def _solve(
        self, rhs: Tensor, preconditioner: object = None, num_tridiag: int | None = 0
    ) -> Tensor:
        return self._joined(self._matrix.cholesky().solve(self._split(rhs)))

    def inv_quad(self, inv_quad_rhs: Tensor, reduce_inv_quad: bool = True) -> Tensor:
        """``y' M^-1 y``, exactly.

        Parameters
        ----------
        inv_quad_rhs : Tensor, shape [*b, T d, C] or [T d]
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
        """Both terms of a Gaussian log density, exactly, from one factorisation.

        Parameters
        ----------
        inv_quad_rhs : Tensor, shape [*b, T d, C] or [T d], optional
            Columns y.
        logdet : bool
            Whether the determinant is wanted.
        reduce_inv_quad : bool
            Whether to sum over columns.

        Returns
        -------
        inv_quad : Tensor, shape [*b] or [*b, C]
            ``y' M^-1 y``; zero without y.
        logdet : Tensor, shape [*b]
            ``log |M|``; zero if not wanted.
        """
        quadratic = determinant = torch.zeros([], dtype=self.dtype, device=self.device)
        factor = self._matrix.cholesky()
        if inv_quad_rhs is not None:
            vector = inv_quad_rhs.dim() == 1
            columns = self._split(inv_quad_rhs.unsqueeze(-1) if vector else inv_quad_rhs)
            quadratic = (columns * factor.solve(columns)).sum((-2, -1)).movedim(0, -1)
            quadratic = quadratic.sum(-1) if reduce_inv_quad or vector else quadratic
        if logdet:
            determinant = factor.log_det()
        return quadratic, determinant

    def _split(self, columns: Tensor) -> Tensor:
        """Columns [*b, T d, C] as vectors [C, *b, T, d]."""
        T, d = self._blocks.shape[-3:-1]
        if columns.shape[-2] != T * d:
            raise InputError(
                f"A right-hand side of shape {tuple(columns.shape)} does not fit an operator of shape "
                f"{tuple(self.shape)}."
            )
        batch = torch.broadcast_shapes(self.batch_shape, columns.shape[:-2])
        columns = columns.expand(*batch, *columns.shape[-2:])
        return columns.movedim(-1, 0).unflatten(-1, (T, d))

    def _joined(self, vectors: Tensor) -> Tensor:
        """Inverse of :meth:`_split`."""
        return vectors.flatten(-2).movedim(0, -1)
