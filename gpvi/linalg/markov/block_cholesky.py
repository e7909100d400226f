r"""Factors of block-tridiagonal matrices: row after row, or by halving.

The sequential factor is the Cholesky factor itself, block bidiagonal; its cost is that of a Python
loop over rows. Block cyclic reduction takes every other block out at once (they are no neighbours,
so that the Schur complement of the rest is block tridiagonal again) and repeats: the Cholesky
factor of a reordered matrix, in log2(T) rounds of batched operations.

References
----------
Golub, G. H. & Van Loan, C. F. (2013). Matrix Computations, sections 4.5 and 12.
Gander, W. & Golub, G. H. (1997). Cyclic reduction: history and applications.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.exceptions import NotPositiveDefiniteError
from gpvi.linalg.markov.scan import interleave

__all__ = ["BlockCholesky", "CyclicReduction", "SequentialCholesky"]


class BlockCholesky(ABC):
    """A factorised positive definite block-tridiagonal matrix."""

    @abstractmethod
    def log_det(self) -> Tensor:
        """Log-determinant, shape [*b]."""

    @abstractmethod
    def solve(self, rhs: Tensor) -> Tensor:
        """Solution x of ``matrix x = rhs``.

        Parameters
        ----------
        rhs : Tensor, shape [*s, *b, T, d]
            Right-hand sides; batch dims broadcast.

        Returns
        -------
        Tensor, shape [*s, *b, T, d]
            Solutions.
        """

    @abstractmethod
    def selected_inverse(self) -> tuple[Tensor, Tensor]:
        """Blocks of the inverse where the matrix has blocks.

        Returns
        -------
        diagonal : Tensor, shape [*b, T, d, d]
            Blocks (k, k).
        lower : Tensor, shape [*b, T - 1, d, d]
            Blocks (k + 1, k).
        """


@dataclass(frozen=True, eq=False)
class SequentialCholesky(BlockCholesky):
    """Lower block-bidiagonal factor of a block-tridiagonal matrix.

    Parameters
    ----------
    diagonal : tuple of T Tensors, each of shape [*b, d, d]
        Lower triangular blocks ``L_k``.
    lower : tuple of T - 1 Tensors, each of shape [*b, d, d]
        Blocks ``U_k`` in row k + 1 and column k.
    """

    diagonal: tuple[Tensor, ...]
    lower: tuple[Tensor, ...]

    @classmethod
    def factorize(cls, diagonal: Tensor, lower: Tensor) -> "SequentialCholesky":
        """Factorise from the first block to the last.

        Parameters
        ----------
        diagonal : Tensor, shape [*b, T, d, d]
            Blocks (k, k).
        lower : Tensor, shape [*b, T - 1, d, d]
            Blocks (k + 1, k).

        Returns
        -------
        SequentialCholesky
            The factor.

        Raises
        ------
        NotPositiveDefiniteError
            If a leading part of the matrix is not positive definite.
        """
        factors: list[Tensor] = []
        sides: list[Tensor] = []
        schur = diagonal[..., 0, :, :]
        for k in range(diagonal.shape[-3]):
            if k > 0:
                side = _right_divide(lower[..., k - 1, :, :], factors[-1])
                sides.append(side)
                schur = diagonal[..., k, :, :] - side @ side.mT
            factors.append(_factor(schur, diagonal.shape[-3]))
        return cls(tuple(factors), tuple(sides))

    def log_det(self) -> Tensor:
        """Log-determinant; see :meth:`BlockCholesky.log_det`."""
        return _log_det(torch.stack(self.diagonal, -3))

    def solve(self, rhs: Tensor) -> Tensor:
        """Forward and back substitution; see :meth:`BlockCholesky.solve`.

        Parameters
        ----------
        rhs : Tensor, shape [*s, *b, T, d]
            Right-hand sides.

        Returns
        -------
        Tensor, shape [*s, *b, T, d]
            Solutions.
        """
        parts = [part.unsqueeze(-1) for part in rhs.unbind(-2)]
        for k, L in enumerate(self.diagonal):
            if k > 0:
                parts[k] = parts[k] - self.lower[k - 1] @ parts[k - 1]
            parts[k] = torch.linalg.solve_triangular(L, parts[k], upper=False)
        for k in range(len(parts) - 1, -1, -1):
            if k + 1 < len(parts):
                parts[k] = parts[k] - self.lower[k].mT @ parts[k + 1]
            parts[k] = torch.linalg.solve_triangular(self.diagonal[k].mT, parts[k], upper=True)
        return torch.cat(parts, -1).mT

    def selected_inverse(self) -> tuple[Tensor, Tensor]:
        """Diagonal and lag-one blocks, from the last to the first.

        Returns
        -------
        diagonal : Tensor, shape [*b, T, d, d]
            Blocks (k, k).
        lower : Tensor, shape [*b, T - 1, d, d]
            Blocks (k + 1, k).
        """
        blocks = [torch.cholesky_inverse(self.diagonal[-1])]
        sides: list[Tensor] = []
        for k in range(len(self.lower) - 1, -1, -1):
            W = _right_divide_plain(self.lower[k], self.diagonal[k])
            side = -blocks[-1] @ W
            sides.append(side)
            blocks.append(torch.cholesky_inverse(self.diagonal[k]) - W.mT @ side)
        diagonal = torch.stack(blocks[::-1], -3)
        return diagonal, torch.stack(sides[::-1], -3) if sides else diagonal[..., :0, :, :]


@dataclass(frozen=True, eq=False)
class CyclicReduction(BlockCholesky):
    """One round of block cyclic reduction, and the factor of what it leaves.

    The E blocks 0, 2, 4, ... are taken out, and the O blocks 1, 3, 5, ... are left.

    Parameters
    ----------
    factors : Tensor, shape [*b, E, d, d]
        Cholesky factors of the blocks taken out.
    before : Tensor, shape [*b, E - 1, d, d]
        ``L^-1`` times the block to the left of each of them but the first.
    after : Tensor, shape [*b, O, d, d]
        ``L^-1`` times the block to the right, where there is one.
    rest : CyclicReduction, optional
        Of the Schur complement of the other blocks; None for one block.
    """

    factors: Tensor
    before: Tensor
    after: Tensor
    rest: "CyclicReduction | None"

    @classmethod
    def factorize(cls, diagonal: Tensor, lower: Tensor) -> "CyclicReduction":
        """Factorise by halving.

        Parameters
        ----------
        diagonal : Tensor, shape [*b, T, d, d]
            Blocks (k, k).
        lower : Tensor, shape [*b, T - 1, d, d]
            Blocks (k + 1, k).

        Returns
        -------
        CyclicReduction
            All rounds.

        Raises
        ------
        NotPositiveDefiniteError
            If the matrix is not positive definite.
        """
        return cls._round(diagonal, lower, diagonal.shape[-3])

    @classmethod
    def _round(cls, diagonal: Tensor, lower: Tensor, total: int) -> "CyclicReduction":
        factors = _factor(diagonal[..., ::2, :, :], total)
        kept = diagonal.shape[-3] // 2
        # Block (k, k - 1) stands to the left of block k, block (k, k + 1) to the right.
        before = _left_divide(factors[..., 1:, :, :], lower[..., 1::2, :, :])
        after = _left_divide(factors[..., :kept, :, :], lower[..., ::2, :, :].mT)
        if kept == 0:
            return cls(factors, before, after, None)
        gain = after.mT @ after
        pairs = before.shape[-3]
        gain = gain + _pad(before.mT @ before, kept - pairs)
        inner = kept - 1
        links = -after[..., 1:, :, :].mT @ before[..., :inner, :, :]
        rest = cls._round(diagonal[..., 1::2, :, :] - gain, links, total)
        return cls(factors, before, after, rest)

    def log_det(self) -> Tensor:
        """Log-determinant; see :meth:`BlockCholesky.log_det`."""
        own = _log_det(self.factors)
        return own if self.rest is None else own + self.rest.log_det()

    def solve(self, rhs: Tensor) -> Tensor:
        """Reduce, solve and substitute back; see :meth:`BlockCholesky.solve`.

        Parameters
        ----------
        rhs : Tensor, shape [*s, *b, T, d]
            Right-hand sides.

        Returns
        -------
        Tensor, shape [*s, *b, T, d]
            Solutions.
        """
        return self._solve(rhs.unsqueeze(-1)).squeeze(-1)

    def _solve(self, rhs: Tensor) -> Tensor:
        out = _left_divide(self.factors, rhs[..., ::2, :, :])
        if self.rest is None:
            return _left_divide_transposed(self.factors, out)
        kept, pairs = self.after.shape[-3], self.before.shape[-3]
        reduced = rhs[..., 1::2, :, :] - self.after.mT @ out[..., :kept, :, :]
        reduced = reduced - _pad(self.before.mT @ out[..., 1:, :, :], kept - pairs)
        x = self.rest._solve(reduced)
        out = out - _pad(self.after @ x, self.factors.shape[-3] - kept)
        out = out - _pad_front(self.before @ x[..., :pairs, :, :])
        return interleave(_left_divide_transposed(self.factors, out), x)

    def selected_inverse(self) -> tuple[Tensor, Tensor]:
        """Diagonal and lag-one blocks, from the last round to the first.

        Returns
        -------
        diagonal : Tensor, shape [*b, T, d, d]
            Blocks (k, k).
        lower : Tensor, shape [*b, T - 1, d, d]
            Blocks (k + 1, k).
        """
        own = torch.cholesky_inverse(self.factors)
        if self.rest is None:
            return own, own[..., :0, :, :]
        V, across = self.rest.selected_inverse()
        kept, pairs, count = V.shape[-3], self.before.shape[-3], own.shape[-3]
        # x_k = -W x_{k-1} - Z x_{k+1} + noise: regressions on the neighbours, which are known.
        Z = _left_divide_transposed(self.factors[..., :kept, :, :], self.after)
        W = _left_divide_transposed(self.factors[..., 1:, :, :], self.before)
        right = -Z @ V
        if kept > 1:
            inner = kept - 1
            right = right - _pad_front(W[..., :inner, :, :] @ across.mT)
        left = -W @ V[..., :pairs, :, :]
        if kept > 1:
            left = left - _pad(Z[..., 1:, :, :] @ across, pairs - inner)
        blocks = own - _pad(right @ Z.mT, count - kept) - _pad_front(left @ W.mT)
        lower = right.mT if pairs == 0 else interleave(right.mT, left)
        return interleave(blocks, V), lower


def _factor(matrix: Tensor, total: int) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info > 0).any()):
        raise NotPositiveDefiniteError(
            f"A block-tridiagonal matrix of {total} blocks of size {matrix.shape[-1]} "
            f"({matrix.dtype}) is not positive definite. A precision loses definiteness to rounding "
            "on grids that are fine for the lengthscale: use the covariance form, which does not, or "
            "float64."
        )
    return factor


def _log_det(factors: Tensor) -> Tensor:
    return 2.0 * factors.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))


def _left_divide(factor: Tensor, matrix: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, matrix, upper=False)


def _left_divide_transposed(factor: Tensor, matrix: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor.mT, matrix, upper=True)


def _right_divide(matrix: Tensor, factor: Tensor) -> Tensor:
    """``M L^-T``."""
    return torch.linalg.solve_triangular(factor.mT, matrix, upper=True, left=False)


def _right_divide_plain(matrix: Tensor, factor: Tensor) -> Tensor:
    """``M L^-1``."""
    return torch.linalg.solve_triangular(factor, matrix, upper=False, left=False)


def _pad(matrices: Tensor, rows: int) -> Tensor:
    """Rows of zeros behind the last one."""
    return torch.nn.functional.pad(matrices, (0, 0, 0, 0, 0, rows))


def _pad_front(matrices: Tensor) -> Tensor:
    """A row of zeros before the first one."""
    return torch.nn.functional.pad(matrices, (0, 0, 0, 0, 1, 0))
