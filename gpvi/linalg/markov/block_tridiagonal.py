r"""Block-tridiagonal matrices, and the precision of the states of a Gauss-Markov process.

The states of a Markov process have a block-tridiagonal precision,

.. math:: \Lambda_{kk} = Q_k^{-1} + A_{k+1}^\top Q_{k+1}^{-1} A_{k+1}, \qquad
          \Lambda_{k+1, k} = -Q_{k+1}^{-1} A_{k+1},

with the initial covariance for Q where a series begins; sites add :math:`H_k^\top \Lambda_k H_k` to
the diagonal. It is the form to choose where other code wants a sparse precision. Its accuracy is
limited, and the covariance form of :mod:`gpvi.linalg.markov.tensor_engine` is the default: noise of
a smooth process has entries of size x to the powers 1 to 2p + 1 on a grid of step x (in units of
the lengthscale), and the precision their inverses. The largest error of posterior means, in
standard deviations of the prior, against the covariance form (float64, 100 rows, sites of
precision one, Matérn processes of order p, ``x = rate * dt``, the worse of both methods and eight
problems; "fails" stands for a precision that is no longer positive definite):

===== ======= ======= ======== ========
p     x = 1   x = 0.1 x = 0.01 x = 1e-3
===== ======= ======= ======== ========
0     9e-16   2e-15   4e-15    2e-14
1     1e-15   4e-13   1e-10    9e-08
2     3e-14   3e-09   6e-05    2e-01
3     6e-12   3e-05   fails    fails
===== ======= ======= ======== ========

References
----------
Grigorievskiy, A., Lawrence, N. & Särkkä, S. (2017). Parallelizable sparse inverse formulation
Gaussian processes. MLSP.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov._semidefinite import semidefinite_cholesky
from gpvi.linalg.markov._tensor_chain import transition_and_noise
from gpvi.linalg.markov.block_cholesky import BlockCholesky, CyclicReduction, SequentialCholesky
from gpvi.linalg.markov.model import MarkovModel, Steps

__all__ = ["BlockTridiagonal", "markov_precision"]

Method = Literal["cyclic", "sequential"]

_FACTORS: dict[str, type[SequentialCholesky] | type[CyclicReduction]] = {
    "cyclic": CyclicReduction,
    "sequential": SequentialCholesky,
}


@dataclass(frozen=True, eq=False)
class BlockTridiagonal:
    """A symmetric block-tridiagonal matrix of T blocks of size d.

    Everything is differentiable by autograd. Each of :meth:`solve`, :meth:`log_det` and
    :meth:`selected_inverse` factorises anew; for several of them keep the result of
    :meth:`cholesky`, which has the same methods. ``method`` is ``"cyclic"`` (block cyclic
    reduction, log2(T) rounds of batched operations, for any device) or ``"sequential"`` (the
    Cholesky factor itself, a Python loop over T).

    Parameters
    ----------
    diagonal : Tensor, shape [*b, T, d, d]
        Blocks (k, k), symmetric.
    lower : Tensor, shape [*b, T - 1, d, d]
        Blocks (k + 1, k).

    Raises
    ------
    InputError
        If the shapes do not fit each other.

    Examples
    --------
    >>> import torch
    >>> fours, ones = torch.full((3, 1, 1), 4.0), torch.full((2, 1, 1), 1.0)
    >>> matrix = BlockTridiagonal(fours.double(), ones.double())
    >>> [round(v, 6) for v in matrix.solve(torch.tensor([[5.0], [6.0], [5.0]]).double())[:, 0].tolist()]
    [1.0, 1.0, 1.0]
    >>> round(matrix.log_det().exp().item(), 6)  # 4 * (16 - 1) - 4
    56.0
    """

    diagonal: Tensor
    lower: Tensor

    def __post_init__(self) -> None:
        *_, rows, size, columns = (0, 0, 0, *self.diagonal.shape)
        expected = (rows - 1, size, size)
        if rows < 1 or size != columns or self.lower.shape[-3:] != expected:
            raise InputError(
                f"diagonal has shape {tuple(self.diagonal.shape)} and lower "
                f"{tuple(self.lower.shape)}; they must be [*b, T, d, d] and [*b, T - 1, d, d]."
            )

    @property
    def batch_shape(self) -> torch.Size:
        """Batch dims ``*b``."""
        return torch.broadcast_shapes(self.diagonal.shape[:-3], self.lower.shape[:-3])

    def cholesky(self, method: Method = "cyclic") -> BlockCholesky:
        """Factorise.

        Parameters
        ----------
        method : {"cyclic", "sequential"}
            How.

        Returns
        -------
        BlockCholesky
            With methods ``solve``, ``log_det`` and ``selected_inverse``.

        Raises
        ------
        InputError
            If there is no such method.
        NotPositiveDefiniteError
            If the matrix is not positive definite.
        """
        if method not in _FACTORS:
            raise InputError(f"method is {method!r}; it must be one of {sorted(_FACTORS)}.")
        shape = self.batch_shape
        diagonal, lower = (x.expand(*shape, *x.shape[-3:]) for x in (self.diagonal, self.lower))
        return _FACTORS[method].factorize(diagonal, lower)

    def solve(self, rhs: Tensor, method: Method = "cyclic") -> Tensor:
        """Solution x of ``matrix x = rhs``.

        Parameters
        ----------
        rhs : Tensor, shape [*s, *b, T, d]
            Right-hand sides.
        method : {"cyclic", "sequential"}
            How.

        Returns
        -------
        Tensor, shape [*s, *b, T, d]
            Solutions.

        Raises
        ------
        InputError
            If the right-hand side has a wrong shape, or there is no such method.
        NotPositiveDefiniteError
            If the matrix is not positive definite.
        """
        self._check(rhs)
        return self.cholesky(method).solve(rhs)

    def log_det(self, method: Method = "cyclic") -> Tensor:
        """Log-determinant.

        Parameters
        ----------
        method : {"cyclic", "sequential"}
            How.

        Returns
        -------
        Tensor, shape [*b]
            Exact.

        Raises
        ------
        InputError
            If there is no such method.
        NotPositiveDefiniteError
            If the matrix is not positive definite.
        """
        return self.cholesky(method).log_det()

    def selected_inverse(self, method: Method = "cyclic") -> tuple[Tensor, Tensor]:
        """Blocks of the inverse where the matrix has blocks: variances and lag-one covariances.

        Parameters
        ----------
        method : {"cyclic", "sequential"}
            How.

        Returns
        -------
        diagonal : Tensor, shape [*b, T, d, d]
            Blocks (k, k).
        lower : Tensor, shape [*b, T - 1, d, d]
            Blocks (k + 1, k).

        Raises
        ------
        InputError
            If there is no such method.
        NotPositiveDefiniteError
            If the matrix is not positive definite.
        """
        return self.cholesky(method).selected_inverse()

    def matmul(self, vectors: Tensor) -> Tensor:
        """Product with vectors.

        Parameters
        ----------
        vectors : Tensor, shape [*s, *b, T, d]
            Vectors.

        Returns
        -------
        Tensor, shape [*s, *b, T, d]
            ``matrix x``.

        Raises
        ------
        InputError
            If the vectors have a wrong shape.
        """
        self._check(vectors)
        x = vectors.unsqueeze(-1)
        down = self.lower @ x[..., :-1, :, :]
        up = self.lower.mT @ x[..., 1:, :, :]
        pad = torch.nn.functional.pad
        product = self.diagonal @ x + pad(down, (0, 0, 0, 0, 1, 0)) + pad(up, (0, 0, 0, 0, 0, 1))
        return product.squeeze(-1)

    def to_dense(self) -> Tensor:
        """The whole matrix.

        Returns
        -------
        Tensor, shape [*b, T d, T d]
            With zeros where there are no blocks.
        """
        rows, size = self.diagonal.shape[-3:-1]
        dense = self.diagonal.new_zeros(*self.batch_shape, rows, rows, size, size)
        k = torch.arange(rows, device=dense.device)
        dense[..., k, k, :, :] = self.diagonal
        dense[..., k[1:], k[:-1], :, :] = self.lower
        dense[..., k[:-1], k[1:], :, :] = self.lower.mT
        return dense.movedim(-2, -3).flatten(-2).flatten(-3, -2)

    def _check(self, vectors: Tensor) -> None:
        if vectors.shape[-2:] != self.diagonal.shape[-3:-1]:
            raise InputError(
                f"The vectors have shape {tuple(vectors.shape)}; for "
                f"{self.diagonal.shape[-3]} blocks of size {self.diagonal.shape[-1]} it must end in "
                f"{tuple(self.diagonal.shape[-3:-1])}."
            )


def markov_precision(model: MarkovModel, steps: Steps) -> BlockTridiagonal:
    """Precision of the states of a Gauss-Markov process, before any site.

    Parameters
    ----------
    model : MarkovModel
        The prior.
    steps : Steps
        Stamps, all different within a series.

    Returns
    -------
    BlockTridiagonal
        With zeros between series. See the module for how far its digits go.

    Raises
    ------
    InputError
        If the noise of some step is singular: a step of length zero, or a block without noise.

    Examples
    --------
    >>> import torch
    >>> from gpvi.linalg.markov.blocks import CascadeBlock, matern_noise, stationary_cascade
    >>> one = torch.ones((), dtype=torch.float64)
    >>> c = matern_noise(0) * one
    >>> model = MarkovModel((CascadeBlock(0, one, c, stationary_cascade(0, c)),))
    >>> precision = markov_precision(model, Steps.single(torch.tensor([0.0, 0.5]).double()))
    >>> precision.to_dense().inverse()[0]  # exp(-0.5)
    tensor([1.0000, 0.6065], dtype=torch.float64)
    """
    A, Q = transition_and_noise(model, steps)
    C = semidefinite_cholesky(Q)
    _check_regular(C, steps)
    root = torch.linalg.solve_triangular(C, A, upper=False)
    inverse = torch.cholesky_inverse(C)
    later = root[..., 1:, :, :]
    later = torch.nn.functional.pad(later.mT @ later, (0, 0, 0, 0, 0, 1))
    across = torch.linalg.solve_triangular(C.mT, root, upper=True)
    return BlockTridiagonal(inverse + later, -across[..., 1:, :, :])


def _check_regular(factor: Tensor, steps: Steps) -> None:
    regular = (factor.detach().diagonal(dim1=-2, dim2=-1) > 0).all(-1)
    if bool(regular.all()):
        return
    row = int((~regular).nonzero()[0, -1])
    dt = float(steps.dt[..., row].min())
    cause = "the row before has the same stamp" if dt == 0 else "a part of the model has no noise"
    if row in steps.starts.tolist():
        cause = "the first state of this series has a singular covariance"
    raise InputError(
        f"The state at row {row} (stamp {float(steps.time[..., row].flatten()[0]):g}) has no "
        f"precision given the one before: {cause}. Merge equal stamps, or use the covariance form "
        "(tensor_state_path), which takes singular noise as it is."
    )
