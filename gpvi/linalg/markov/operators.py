r"""Covariance matrices of Markov processes as linear operators, without the matrix.

The values of a Markov process at N times are :math:`f = H L \epsilon`: independent noise
:math:`\epsilon_k \sim N(0, Q_k)`, run through the recursion :math:`L` of its states and read off.
Their covariance is semiseparable,

.. math:: K = H L Q L^\top H^\top, \qquad
          L^\top \text{: } g_k = b_k + A_{k+1}^\top g_{k+1}, \qquad
          L \text{: } s_k = A_k s_{k-1} + b_k,

so that a product with K takes two recursions. With a diagonal added, a Kalman filter gives solves and
determinants, see :mod:`gpvi.linalg.markov.plus_diagonal_operator`.

References
----------
Durbin, J. & Koopman, S. J. (2012). Time Series Analysis by State Space Methods, chapter 4.
Foreman-Mackey, D., Agol, E., Ambikasaran, S. & Angus, R. (2017). Fast and scalable Gaussian process
modeling with applications to astronomical time series. The Astronomical Journal 154.
"""

from typing import Any

import torch
from linear_operator.operators import DiagLinearOperator, LinearOperator
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov._semidefinite import semidefinite_cholesky
from gpvi.linalg.markov._sweeps import sweep
from gpvi.linalg.markov._tabulated import tabulated_model
from gpvi.linalg.markov._tensor_chain import transition_and_noise
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.smoothing import markov_marginals

__all__ = ["SemiseparableLinearOperator"]


class SemiseparableLinearOperator(LinearOperator):
    """Covariance matrix of the values of a Markov process at N times.

    Products take O(N d^2) per column and memory O(N d^2); adding a diagonal gives an operator with
    exact solves and determinants. Made by :meth:`from_model`.

    Parameters
    ----------
    transition : Tensor, shape [*b, N, d, d]
        Of every row, in order of time, from the row before; zero where a series begins.
    noise : Tensor, shape [*b, N, d, d]
        Process noise, the covariance of the state where a series begins.
    readout : Tensor, shape [*b, N, d]
        By which values are read off states, in order of time.
    order : Tensor of int64, shape [*b, N]
        Position in the matrix of every row in order of time.
    sizes : tuple of int, optional
        Sizes of the blocks along the diagonal of transition and noise; one block without them.

    Raises
    ------
    InputError
        If shapes do not fit.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import as_state_space, parse_kernel
    >>> model = as_state_space(parse_kernel("matern12", 1)).model()
    >>> time = torch.tensor([0.7, 0.0]).double()
    >>> covariance = SemiseparableLinearOperator.from_model(model, time)
    >>> covariance.shape, (covariance @ torch.ones(2).double()).shape
    (torch.Size([2, 2]), torch.Size([2]))
    """

    def __init__(
        self,
        transition: Tensor,
        noise: Tensor,
        readout: Tensor,
        order: Tensor,
        sizes: tuple[int, ...] | None = None,
    ) -> None:
        # linear_operator casts all tensors when it is asked for another dtype.
        order = order.to(torch.int64)
        parts = ((transition, 3), (noise, 3), (readout, 2), (order, 1))
        N, d = transition.shape[-3], transition.shape[-1]
        cores = (transition.shape[-3:], noise.shape[-3:], readout.shape[-2:], order.shape[-1:])
        if cores != ((N, d, d), (N, d, d), (N, d), (N,)) or sum(sizes or (d,)) != d:
            raise InputError(
                f"transition, noise, readout and order have shapes "
                f"{', '.join(str(tuple(part.shape)) for part, _ in parts)} and sizes is {sizes}; they "
                "must be [*b, N, d, d], [*b, N, d, d], [*b, N, d], [*b, N], and sizes sum up to d."
            )
        batch = torch.broadcast_shapes(*(part.shape[: part.dim() - k] for part, k in parts))
        whole = [_expanded(part, batch, k) for part, k in parts]
        super().__init__(*whole, sizes=sizes)
        self._transition, self._any_noise, self._readout, self._order = whole
        self._sizes = sizes or (d,)

    @classmethod
    def from_model(cls, model: MarkovModel, time: Tensor) -> "SemiseparableLinearOperator":
        """Covariance of a process at given times.

        Parameters
        ----------
        model : MarkovModel
            With one readout, or one per row in the order of ``time``.
        time : Tensor, shape [*g, N]
            In any order, equal ones too.

        Returns
        -------
        SemiseparableLinearOperator
            Of shape [*b, N, N], on the graph of the model and the times.

        Raises
        ------
        InputError
            If the model has several outputs.
        """
        if model.outputs is not None:
            raise InputError("A covariance matrix is of a model with one readout per row.")
        order = torch.argsort(time.detach(), dim=-1, stable=True)
        steps = Steps.single(time.gather(-1, order))
        transition, noise = transition_and_noise(model, steps)
        readout = model.readout.unsqueeze(-2)
        if model.rows is not None:
            readout = _gathered(model.rows, order)
        readout = readout.expand(*readout.shape[:-2], time.shape[-1], -1)
        sizes = tuple(block.dimension for block in model.blocks)
        return cls(transition, noise, readout, order, sizes=sizes)

    @property
    def transition(self) -> Tensor:
        """Of every row, in order of time, from the row before, shape [*b, N, d, d]."""
        return self._transition

    @property
    def readout(self) -> Tensor:
        """By which values are read off states, in order of time, shape [*b, N, d]."""
        return self._readout

    @property
    def order(self) -> Tensor:
        """Position in the matrix of every row in order of time, shape [*b, N]."""
        return self._order

    @property
    def _noise(self) -> Tensor:
        """Q, symmetrised so that derivatives by its two triangles agree."""
        return 0.5 * (self._any_noise + self._any_noise.mT)

    def model(self) -> tuple[MarkovModel, Steps]:
        """The process as tables, in order of time.

        Returns
        -------
        model : MarkovModel
            With a readout per row.
        steps : Steps
            Numbers of rows, not times.
        """
        return tabulated_model(self._transition, self._noise, self._readout, self._sizes)

    def sort(self, values: Tensor) -> Tensor:
        """Rows of a matrix in order of time.

        Parameters
        ----------
        values : Tensor, shape [*b, N, C]
            In the order of the matrix.

        Returns
        -------
        Tensor, shape [*b, N, C]
            Batch dims broadcast with those of the operator.
        """
        return _gathered(values, self._order)

    def unsort(self, values: Tensor) -> Tensor:
        """Inverse of :meth:`sort`.

        Parameters
        ----------
        values : Tensor, shape [*b, N, C]
            In order of time.

        Returns
        -------
        Tensor, shape [*b, N, C]
            In the order of the matrix.
        """
        return _gathered(values, torch.argsort(self._order, dim=-1))

    def _size(self) -> torch.Size:
        N = self._order.shape[-1]
        return torch.Size((*self._order.shape[:-1], N, N))

    def _transpose_nonbatch(self) -> "SemiseparableLinearOperator":
        return self

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        h = self._readout.unsqueeze(-1)
        g = sweep(self._transition, h * self.sort(rhs).unsqueeze(-2), reverse=True)
        s = sweep(self._transition, self._noise @ g)
        return self.unsort((h * s).sum(-2))

    def _diagonal(self) -> Tensor:
        zero = torch.zeros_like(self._readout[..., 0])
        variance = markov_marginals(*self.model(), zero, zero)[1]
        return self.unsort(variance.unsqueeze(-1)).squeeze(-1)

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> "SemiseparableLinearOperator":
        transition, noise, readout, order = (
            _expanded(part, batch_shape, k)
            for part, k in zip(self._args, (3, 3, 2, 1), strict=True)
        )
        return type(self)(transition, noise, readout, order, **self._kwargs)

    def _mul_constant(self, other: float | Tensor) -> LinearOperator:
        factor = torch.as_tensor(other, dtype=self.dtype, device=self.device)
        if not bool((factor > 0).all()):
            return super()._mul_constant(other)
        noise = self._noise * factor[..., None, None, None]
        return type(self)(self._transition, noise, self._readout, self._order, **self._kwargs)

    def add_diagonal(self, diag: Tensor) -> LinearOperator:
        """``K + D``; see :meth:`linear_operator.operators.LinearOperator.add_diagonal`.

        Parameters
        ----------
        diag : Tensor, shape [*b, N], [*b, 1] or ()
            Entries.

        Returns
        -------
        SemiseparablePlusDiagonalLinearOperator
            The sum.
        """
        return self + super().add_diagonal(diag)._diag_tensor

    def __add__(self, other: Any) -> Any:
        if isinstance(other, DiagLinearOperator):
            # That module needs this one.
            from gpvi.linalg.markov.plus_diagonal_operator import (
                SemiseparablePlusDiagonalLinearOperator,
            )

            return SemiseparablePlusDiagonalLinearOperator(self, other)
        return super().__add__(other)

    def zero_mean_mvn_samples(self, num_samples: int) -> Tensor:
        """Draws of the process by its recursion.

        Parameters
        ----------
        num_samples : int
            S.

        Returns
        -------
        Tensor, shape [S, *b, N]
            From PyTorch's global generator, as linear_operator draws everywhere.
        """
        factor = semidefinite_cholesky(self._noise)
        shape = (num_samples, *self._readout.shape, 1)
        normals = torch.randn(shape, dtype=self.dtype, device=self.device)
        states = sweep(self._transition, factor @ normals).squeeze(-1)
        return self.unsort((self._readout * states).sum(-1, keepdim=True)).squeeze(-1)


def _expanded(part: Tensor, batch: torch.Size | list[int], core: int) -> Tensor:
    """A tensor with batch dims; the same object if it has them already."""
    # linear_operator rebuilds operators from leaves whose gradients it wants, without a graph.
    shape = (*batch, *part.shape[part.dim() - core :])
    return part if part.shape == shape else part.expand(shape)


def _gathered(values: Tensor, order: Tensor) -> Tensor:
    """Rows [*b, N, C] of values by number [*b, N], batch dims broadcast."""
    batch = torch.broadcast_shapes(values.shape[:-2], order.shape[:-1])
    index = order.unsqueeze(-1).expand(*batch, order.shape[-1], values.shape[-1])
    return values.expand(*batch, *values.shape[-2:]).gather(-2, index)
