r"""Processes in time at a fixed set of places.

A separable covariance :math:`k_t(t, t') k_s(s, s')` on S places is the sum of S independent copies of
the process in time, mixed by a square root of the covariance of the places. Inference is linear in
the number of stamps, with S times the states. See Särkkä, S., Solin, A. & Hartikainen, J. (2013).
Spatiotemporal learning via infinite-dimensional Bayesian filtering and smoothing. IEEE Signal
Processing Magazine 30(4).
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

import torch
from gpytorch.kernels import Kernel
from linear_operator import to_dense
from torch import Tensor

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels._block_algebra import WeightedBlock
from gpvi.kernels.state_space import RowWeight, StateSpaceForm
from gpvi.kernels.state_space_conversion import as_state_space
from gpvi.linalg.cholesky import safe_cholesky

__all__ = ["SpaceTimeKernel"]


@dataclass(frozen=True, eq=False)
class _Places:
    """The places, and the columns of a row that hold one."""

    places: Tensor
    columns: tuple[int, ...]

    def index(self, x: Tensor) -> Tensor:
        """Number of every row's place, shape [*g, N]."""
        rows = x[..., list(self.columns)].detach()
        found = torch.full(rows.shape[:-1], -1, dtype=torch.int64, device=x.device)
        # One place at a time: all at once would need N S D bytes.
        for number, place in enumerate(self.places.to(rows)):
            found = torch.where((rows == place).all(-1), number, found)
        unknown = (found < 0).nonzero()
        if unknown.numel() > 0:
            row = tuple(unknown[0].tolist())
            raise InputError(
                f"Row {row[-1]} is at the place {rows[row].tolist()}, which is none of the "
                f"{len(self.places)} places of the SpaceTimeKernel; give the kernel all places, "
                "those of the predictions too."
            )
        return found


@dataclass(frozen=True, eq=False)
class _PlaceWeight(RowWeight):
    """The entry of one column of the square root that belongs to a row's place."""

    places: _Places
    column: Tensor

    def values(self, x: Tensor, memo: dict[int, Tensor]) -> Tensor:
        """Weight of every row, shape [*b, N]."""
        key = id(self.places)
        if key not in memo:
            memo[key] = self.places.index(x)
        index = memo[key]
        shape = torch.broadcast_shapes(index.shape[:-1], self.column.shape[:-1])
        column = self.column.expand(*shape, self.column.shape[-1])
        return column.gather(-1, index.expand(*shape, index.shape[-1]))


class SpaceTimeKernel(Kernel):
    r"""A kernel in time times a kernel in space, at a fixed set of places.

    .. math:: k\big((t, s), (t', s')\big) = k_t(t, t') \, k_s(s, s')

    The first column of a row is time, the others are its place. As a dense kernel it takes any
    place; its state-space form knows the given ones only.

    Parameters
    ----------
    time_kernel : gpytorch.kernels.Kernel
        A kernel of one column that :func:`~gpvi.kernels.as_state_space` can convert, with that
        function's default options.
    space_kernel : gpytorch.kernels.Kernel
        Any kernel on the places.
    places : Tensor, shape (S, D - 1)
        All places at which there are observations or predictions, each once.
    active_dims : tuple of int, optional
        Columns of time and place, time first.

    Raises
    ------
    InputError
        If `places` has the wrong shape, numbers that are not finite, or a place twice.
    UnsupportedError
        If the time kernel has no state-space form.

    References
    ----------
    Särkkä, S., Solin, A. & Hartikainen, J. (2013). Spatiotemporal learning via infinite-dimensional
    Bayesian filtering and smoothing. IEEE Signal Processing Magazine 30(4).

    Examples
    --------
    >>> import torch
    >>> from gpytorch.kernels import MaternKernel, RBFKernel
    >>> from gpvi.kernels import SpaceTimeKernel
    >>> places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> kernel = SpaceTimeKernel(MaternKernel(nu=1.5), RBFKernel(), places)
    >>> kernel.state_space().model(torch.tensor([[0.3, 1.0, 0.0]])).rows.shape
    torch.Size([1, 6])
    """

    has_lengthscale = False

    def __init__(
        self,
        time_kernel: Kernel,
        space_kernel: Kernel,
        places: Tensor,
        active_dims: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(active_dims=active_dims)
        if as_state_space(time_kernel).needs_rows:
            raise UnsupportedError(
                "The time kernel's own state-space form depends on the row (a trend that multiplies "
                "a process); take such a product apart, or multiply the SpaceTimeKernel by it."
            )
        places = torch.as_tensor(places)
        if places.ndim != 2 or places.shape[0] < 1 or places.shape[1] < 1:
            raise InputError(f"places must have shape (S, D - 1), got {tuple(places.shape)}.")
        if not bool(places.isfinite().all()):
            raise InputError("places must be finite; drop the ones that are not.")
        if places.unique(dim=0).shape[0] < places.shape[0]:
            raise InputError("places must hold every place once; drop the repeated ones.")
        self.time_kernel, self.space_kernel = time_kernel, space_kernel
        self.register_buffer("places", places.detach().clone())

    @property
    def is_stationary(self) -> bool:
        """Whether both kernels are."""
        return self.time_kernel.is_stationary and self.space_kernel.is_stationary

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Evaluate the kernel.

        Parameters
        ----------
        x1 : Tensor, shape (*batch, N, D)
            Left inputs: time, then place.
        x2 : Tensor, shape (*batch, M, D)
            Right inputs.
        diag : bool, default False
            Pair row n of `x1` with row n of `x2` only.
        last_dim_is_batch : bool, default False
            Not possible: the columns belong together.
        **params
            Handed on to both kernels.

        Returns
        -------
        Tensor, shape (*batch, N, M), or (*batch, N) with diag=True
            Covariances.

        Raises
        ------
        InputError
            If the number of columns is wrong, or `last_dim_is_batch` is set.
        """
        if last_dim_is_batch:
            raise InputError("SpaceTimeKernel needs all columns at once, not one matrix for each.")
        if x1.shape[-1] != 1 + self.places.shape[-1]:
            raise InputError(
                f"SpaceTimeKernel takes {1 + self.places.shape[-1]} columns, time and place; got "
                f"{x1.shape[-1]}."
            )
        time = self.time_kernel(x1[..., :1], x2[..., :1], diag=diag, **params)
        space = self.space_kernel(x1[..., 1:], x2[..., 1:], diag=diag, **params)
        return to_dense(time) * to_dense(space)

    def state_space(self) -> StateSpaceForm:
        """As many copies of the process in time as there are places.

        Returns
        -------
        StateSpaceForm
            One term; its model needs the rows.
        """
        form = as_state_space(self.time_kernel)
        covariance = to_dense(self.space_kernel(self.places))
        factor = safe_cholesky(covariance, name="covariance of the places").factor
        number = 1 + self.places.shape[-1]
        chosen = range(number) if self.active_dims is None else self.active_dims.tolist()
        time_column, *place_columns = chosen
        where = _Places(self.places, tuple(place_columns))
        pairs = [
            WeightedBlock(block, _PlaceWeight(where, factor[..., copy]))
            for copy in range(self.places.shape[0])
            for block in form.blocks
        ]
        return StateSpaceForm(
            blocks=tuple(pair.block for pair in pairs),
            terms=(0,) * len(pairs),
            labels=(" + ".join(form.labels) + " in space",),
            time_dim=time_column,
            weights=tuple(pair.weight for pair in pairs),
        )

    # The base class would apply a batch index to the places, and index sub-kernels twice.
    def __getitem__(self, index: Any) -> Self:
        """Kernel of the selected batch elements."""
        return self._with_kernels(self.time_kernel[index], self.space_kernel[index])

    def expand_batch(self, *sizes: Any) -> Self:
        """Kernel with the parameters repeated to a larger batch shape."""
        return self._with_kernels(
            self.time_kernel.expand_batch(*sizes), self.space_kernel.expand_batch(*sizes)
        )

    def _with_kernels(self, time_kernel: Kernel, space_kernel: Kernel) -> Self:
        kernel = deepcopy(self)
        kernel.time_kernel, kernel.space_kernel = time_kernel, space_kernel
        return kernel
