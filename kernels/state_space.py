r"""What a kernel looks like as a Gauss-Markov process, and which kernels say so themselves.

A kernel on the line has a state-space form if it is a sum of processes

.. math:: f(t) = \sum_i w_i(x) \, h_i^\top z_i(t), \qquad
          z_i(t + \Delta) = A_i(\Delta) z_i(t) + \epsilon_i,

with finitely many states. The weights :math:`w_i` of a row are one for most kernels; they hold a
polynomial trend that multiplies a random process, or the place of an observation in space. See
Hartikainen, J. & Särkkä, S. (2010). Kalman filtering and smoothing solutions to temporal Gaussian
process regression models. MLSP.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov.blocks import MarkovBlock
from gpvi.linalg.markov.model import MarkovModel

__all__ = [
    "PowerWeight",
    "ProductWeight",
    "RowWeight",
    "StateSpaceForm",
    "StateSpaceKernel",
]


class RowWeight(ABC):
    """A factor of a block's readout that depends on the row."""

    @abstractmethod
    def values(self, x: Tensor, memo: dict[int, Tensor]) -> Tensor:
        """Weight of every row.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Rows.
        memo : dict
            What weights that share a part have already computed for these rows, by the identity of
            that part.

        Returns
        -------
        Tensor, shape [*b, N]
            Weights.
        """


@dataclass(frozen=True, eq=False)
class PowerWeight(RowWeight):
    """A power of the time since an origin, ``scale (t - origin)^power``.

    Parameters
    ----------
    power : int
        Exponent.
    scale : Tensor, shape [*b]
        Factor.
    origin : Tensor, shape [*b] or ()
        Where the weight is zero.
    column : int
        The column that is time.
    """

    power: int
    scale: Tensor
    origin: Tensor
    column: int

    def values(self, x: Tensor, memo: dict[int, Tensor]) -> Tensor:
        """Weight of every row.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Rows.
        memo : dict
            Not used.

        Returns
        -------
        Tensor, shape [*b, N]
            Weights.
        """
        elapsed = x[..., self.column] - self.origin.unsqueeze(-1)
        return self.scale.unsqueeze(-1) * elapsed**self.power


@dataclass(frozen=True, eq=False)
class ProductWeight(RowWeight):
    """The product of two weights.

    Parameters
    ----------
    left, right : RowWeight
        Factors.
    """

    left: RowWeight
    right: RowWeight

    def values(self, x: Tensor, memo: dict[int, Tensor]) -> Tensor:
        """Weight of every row.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Rows.
        memo : dict
            Handed on to the factors.

        Returns
        -------
        Tensor, shape [*b, N]
            Weights.
        """
        return self.left.values(x, memo) * self.right.values(x, memo)


@dataclass(frozen=True, eq=False)
class StateSpaceForm:
    """A kernel as a sum of Markov blocks, on the graph of the kernel's parameters.

    Attributes
    ----------
    blocks : tuple of MarkovBlock
        Independent processes; their sum has the kernel's covariance.
    terms : tuple of int
        For every block, the additive term of the kernel that it belongs to.
    labels : tuple of str
        A unique readable name for every additive term.
    time_dim : int
        The column of x that is time.
    weights : tuple of (RowWeight or None), optional
        For every block, how its readout depends on the row; None for not at all.

    Raises
    ------
    InputError
        If the lengths disagree, or labels repeat.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.kernels import as_state_space
    >>> kernel = gpytorch.kernels.MaternKernel(nu=1.5) + gpytorch.kernels.LinearKernel()
    >>> form = as_state_space(kernel)
    >>> form.labels, form.terms, form.dimension
    (('matern32', 'linear'), (0, 1), 4)
    >>> form.component(1)
    tensor([0., 0., 1., 1.])
    """

    blocks: tuple[MarkovBlock, ...]
    terms: tuple[int, ...]
    labels: tuple[str, ...]
    time_dim: int = 0
    weights: tuple[RowWeight | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "weights", (None,) * len(self.blocks))
        if not len(self.blocks) == len(self.terms) == len(self.weights):
            raise InputError(
                f"A state-space form has one term and one weight for each block; got "
                f"{len(self.blocks)} blocks, {len(self.terms)} terms, {len(self.weights)} weights."
            )
        if len(set(self.labels)) < len(self.labels):
            raise InputError(f"labels must be unique, got {self.labels}.")
        if any(not 0 <= term < len(self.labels) for term in self.terms):
            raise InputError(f"terms {self.terms} must number the {len(self.labels)} labels.")

    @property
    def dimension(self) -> int:
        """Number d of states."""
        return sum(block.dimension for block in self.blocks)

    @property
    def needs_rows(self) -> bool:
        """Whether :meth:`model` needs the rows x."""
        return any(weight is not None for weight in self.weights)

    def model(self, x: Tensor | None = None) -> MarkovModel:
        """The process at given rows.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D], optional
            Rows, in any order; needed only if :attr:`needs_rows`.

        Returns
        -------
        MarkovModel
            With a readout per row, in the order of x, if weights depend on the row.

        Raises
        ------
        InputError
            If the readout depends on the row and there are no rows.
        """
        if not self.needs_rows:
            return MarkovModel(self.blocks)
        if x is None:
            raise InputError(
                "The state of this kernel is read off in a way that depends on the row (a place in "
                "space, or a trend that multiplies a process); pass the rows x to model(x)."
            )
        memo: dict[int, Tensor] = {}
        rows = []
        for block, weight in zip(self.blocks, self.weights, strict=True):
            readout = block.readout.unsqueeze(-2)
            if weight is None:
                rows.append(readout.expand(*readout.shape[:-2], x.shape[-2], -1))
            else:
                rows.append(weight.values(x, memo).unsqueeze(-1) * readout)
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in rows))
        return MarkovModel(
            self.blocks, torch.cat([part.expand(*shape, part.shape[-1]) for part in rows], -1)
        )

    def component(self, term: int) -> Tensor:
        """Which states belong to an additive term.

        Parameters
        ----------
        term : int
            Number of the term.

        Returns
        -------
        Tensor, shape [d]
            Ones for its states, zeros for the others.

        Raises
        ------
        InputError
            If there is no such term.
        """
        if not 0 <= term < len(self.labels):
            raise InputError(f"term must be one of 0..{len(self.labels) - 1}, got {term!r}.")
        like = self.blocks[0].readout
        parts = [
            torch.full((block.dimension,), float(number == term), dtype=like.dtype)
            for block, number in zip(self.blocks, self.terms, strict=True)
        ]
        return torch.cat(parts).to(like.device)


@runtime_checkable
class StateSpaceKernel(Protocol):
    """A kernel that knows its own state-space form.

    Whatever has this method can be used wherever :func:`~gpvi.kernels.as_state_space` is, in sums,
    products and scaled too. Rotating cascades in the form must have a start of the form
    ``P kron I``.

    Examples
    --------
    >>> from gpvi.kernels import HalfIntegerMaternKernel, StateSpaceKernel
    >>> isinstance(HalfIntegerMaternKernel(order=3), StateSpaceKernel)
    True
    """

    def state_space(self) -> StateSpaceForm:
        """The form, on the graph of the kernel's parameters, of batch shape ``*b``.

        Returns
        -------
        StateSpaceForm
            At the kernel's present values.
        """
        ...
