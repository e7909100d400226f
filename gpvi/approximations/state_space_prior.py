"""The Markov prior: states at the rows in order of time."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gpvi.approximations._gather import take_last
from gpvi.approximations._lazy import on_graph
from gpvi.approximations.base import Prior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.plan import GroupIndex
from gpvi.approximations.sites import Sites
from gpvi.approximations.state_space_posterior import StateSpacePosterior
from gpvi.exceptions import InputError
from gpvi.kernels import StateSpaceForm, as_state_space
from gpvi.linalg import MarkovModel, Steps, mat_vec
from gpvi.linalg.markov import innovation_factors, run_affine

__all__ = ["StateSpacePrior"]

_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class StateSpacePrior(Prior):
    """Prior of the state path; the basis are the states of all rows in order of time, flattened.

    Parameters
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    x_mean : Tensor, shape [*b, N]
        Prior mean.
    order : Tensor of int64, shape [*g, N]
        Row at every place of the sorted sequence.
    starts : Tensor of int64, shape [G]
        Where series begin in it.
    groups : GroupIndex, optional
        Of flat groups, which are the series.
    in_order : bool
        Whether the rows are sorted already.
    time_dim : int
        Column of x that is time.
    rbf_order : int
        Order of the process that stands for an RBF kernel.
    """

    gp: GaussianProcessLike
    x: Tensor
    x_mean: Tensor
    order: Tensor
    starts: Tensor
    groups: GroupIndex | None = None
    in_order: bool = False
    time_dim: int = 0
    rbf_order: int = 6

    @property
    def mean(self) -> Tensor:
        """Prior mean at the data rows, shape [*b, N]."""
        return self.x_mean

    @property
    def num_basis(self) -> int:
        """Numbers in the state path, N d."""
        return self.x.shape[-2] * self.form.dimension

    @cached_property
    def form(self) -> StateSpaceForm:
        """The kernel as a sum of Markov blocks."""
        with on_graph():
            return as_state_space(self.gp.kernel, rbf_order=self.rbf_order)  # type: ignore[attr-defined]

    @cached_property
    def steps(self) -> Steps:
        """Stamps in order."""
        with on_graph():
            return Steps(self.sort(self.x[..., self.time_dim]), self.starts)

    @cached_property
    def model(self) -> MarkovModel:
        """The process at the rows in order."""
        with on_graph():
            if not self.form.needs_rows:
                return self.form.model()
            order = self.order.unsqueeze(-1).expand_as(self.x)
            return self.form.model(self.x.gather(-2, order))

    def sort(self, values: Tensor) -> Tensor:
        """Row values [*s, N] in order of time.

        Parameters
        ----------
        values : Tensor, shape [*s, N]
            In the order of the rows.

        Returns
        -------
        Tensor, shape [*s, N]
            In order of time, batch dims broadcast with those of the inputs.
        """
        return values if self.in_order else take_last(values, self.order)

    def unsort(self, values: Tensor) -> Tensor:
        """Inverse of :meth:`sort`.

        Parameters
        ----------
        values : Tensor, shape [*s, N]
            In order of time.

        Returns
        -------
        Tensor, shape [*s, N]
            In the order of the rows.
        """
        return values if self.in_order else take_last(values, self._inverse)

    @cached_property
    def _inverse(self) -> Tensor:
        return torch.argsort(self.order, dim=-1)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Transitions (zero at starts), factors C of the noise, and which innovations there are."""
        with on_graph():
            return innovation_factors(self.model, self.steps)

    def whiten(self, basis: Tensor) -> Tensor:
        """Innovations ``e_k = C_k^-1 (z_k - A_k z_{k-1})`` with ``C_k C_k' = Q_k``.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, N d]
            State paths.

        Returns
        -------
        Tensor, shape [*S, *b, N d]
            Standard normal under the prior; zero where the state is fixed by the one before (a
            repeated stamp, a deterministic component).
        """
        A, C, exists = self._factors
        states = self._states(basis)
        before = torch.nn.functional.pad(states[..., :-1, :], (0, 0, 1, 0))
        gap = (states - mat_vec(A, before)).unsqueeze(-1)
        eye = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
        # A missing innovation has a zero column; a one in its place makes the factor regular.
        regular = C + eye * (~exists).to(C.dtype).unsqueeze(-1)
        white = torch.linalg.solve_triangular(regular, gap, upper=False).squeeze(-1)
        return torch.where(exists, white, torch.zeros_like(white)).flatten(-2)

    def unwhiten(self, whitened: Tensor) -> Tensor:
        """``z_k = A_k z_{k-1} + C_k e_k``.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, N d]
            Innovations.

        Returns
        -------
        Tensor, shape [*S, *b, N d]
            State paths.
        """
        A, C, _ = self._factors
        return run_affine(A, mat_vec(C, self._states(whitened))).flatten(-2)

    def log_prob(self, basis: Tensor) -> Tensor:
        """Prior log density of state paths, on the space that they can reach.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, N d]
            State paths.

        Returns
        -------
        Tensor, shape [*S, *b], or [*S, G, *b] for flat groups
            Nats.
        """
        _, C, exists = self._factors
        scale = torch.where(exists, C.diagonal(dim1=-2, dim2=-1), 1.0)
        rows = self._states(self.whiten(basis)).square() + 2.0 * scale.log() + _LOG_2PI
        rows = -0.5 * torch.where(exists, rows, torch.zeros_like(rows)).sum(-1)
        return self.sum_sorted(rows, self.mean.dim() - 1)

    def function_values(self, basis: Tensor) -> Tensor:
        """f at the data rows for state paths.

        Parameters
        ----------
        basis : Tensor, shape [*S, *b, N d]
            State paths.

        Returns
        -------
        Tensor, shape [*S, *b, N]
            In the order of the rows.
        """
        readout = self.model.rows
        readout = self.model.readout.unsqueeze(-2) if readout is None else readout
        return self.mean + self.unsort((self._states(basis) * readout).sum(-1))

    def sum_sorted(self, rows: Tensor, num_batch_dims: int) -> Tensor:
        """Totals of values per row in order of time.

        Parameters
        ----------
        rows : Tensor, shape [*S, *b, N]
            In order of time.
        num_batch_dims : int
            How many dims b has.

        Returns
        -------
        Tensor, shape [*S, *b], or [*S, G, *b] for flat groups
            Sums.
        """
        if self.groups is None:
            return rows.sum(-1)
        shape = (*rows.shape[:-1], self.steps.num_series)
        total = torch.zeros(shape, dtype=rows.dtype, device=rows.device)
        total = total.index_add(-1, self.steps.series, rows)
        return total.movedim(-1, total.dim() - 1 - num_batch_dims)

    def _states(self, basis: Tensor) -> Tensor:
        return basis.unflatten(-1, (self.x.shape[-2], self.form.dimension))

    def _check_sites(self, sites: Sites) -> None:
        super()._check_sites(sites)
        own = self.mean.shape[:-1]
        if self.groups is not None and torch.broadcast_shapes(sites.lam1.shape[:-1], own) != own:
            raise InputError(
                f"Sites of batch shape {tuple(sites.lam1.shape[:-1])} for a process of batch shape "
                f"{tuple(own)} over groups; give the kernel (or the mean) the batch shape of the sites."
            )

    def _condition(self, sites: Sites) -> StateSpacePosterior:
        return StateSpacePosterior(self, sites)
