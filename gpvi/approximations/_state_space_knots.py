"""Data rows and new rows merged into one sequence: new rows are steps without a site."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpvi.linalg import MarkovModel, Smoothed, Steps, markov_path, markov_smooth
from gpvi.linalg.markov.innovations import segment_products
from gpvi.linalg.markov.tensor_engine import tensor_state_path

if TYPE_CHECKING:
    from gpvi.approximations.state_space_prior import StateSpacePrior

__all__ = ["Knots", "knots_at"]


@dataclass(frozen=True, eq=False)
class Knots:
    """A merged sequence.

    Parameters
    ----------
    model : MarkovModel
        At the merged rows.
    steps : Steps
        Merged stamps.
    source : Tensor of int64, shape [*g, T]
        For every place of the merged sequence: number of a data row in order of time, or N plus the
        number of a new row.
    old, new : Tensor of int64, shape [*g, N] and [*g, N_new]
        Places of the data rows in order of time, and of the new rows.
    """

    model: MarkovModel
    steps: Steps
    source: Tensor
    old: Tensor
    new: Tensor

    def sites(self, lam1: Tensor, lam2: Tensor) -> tuple[Tensor, Tensor]:
        """Sites [*b, N] in order of time as sites [*b, T], zero on new rows."""
        extra = self.new.shape[-1]
        return tuple(  # type: ignore[return-value]
            _take(torch.nn.functional.pad(value, (0, extra)), self.source) for value in (lam1, lam2)
        )

    def smooth(self, lam1: Tensor, lam2: Tensor) -> Smoothed:
        """Moments of all rows for sites of the data rows."""
        return markov_smooth(self.model, self.steps, *self.sites(lam1, lam2))

    def at_new(self, values: Tensor) -> Tensor:
        """Values [*b, T] at the new rows, in their own order."""
        return _take(values, self.new)

    def rows(self, states: Tensor, places: Tensor) -> Tensor:
        """Rows [*s, P, d] of states [*s, T, d] at places [*g, P]."""
        return _take(states.mT, places.unsqueeze(-2)).mT

    def read(self, states: Tensor) -> Tensor:
        """f less its mean, [*s, T], for states [*s, T, d]."""
        return (states * self._readout).sum(-1)

    @property
    def _readout(self) -> Tensor:
        rows = self.model.rows
        return self.model.readout.unsqueeze(-2) if rows is None else rows

    def covariance(self, lam1: Tensor, lam2: Tensor) -> Tensor:
        r"""Joint posterior covariance of the new rows, shape [*b, N_new, N_new].

        For places i < j, ``Cov = h_i' P_i Phi' (I - N_j P_j) h_j`` with the product Phi of the closed-loop
        transitions ``A_{k+1} (I - u_k h_k' lam2_k / D_k)`` from i to j: no inverse, and O(N d^3) besides
        the size of the result.
        """
        lam1, lam2 = self.sites(lam1, lam2)
        if not self.new.shape[-1]:
            return lam1.new_zeros(*lam1.shape[:-1], 0, 0)
        places, order = torch.sort(self.new, dim=-1)
        # Only rows between the first and the last new one link new rows.
        window = slice(int(places.min()), int(places.max()) + 1)
        P, N = self._moments(lam1, lam2, window)
        A = self.model.transition(self.steps.dt[..., window]).to(P.dtype)
        lam2, places = lam2[..., window].to(P.dtype), places - window.start
        h = self._readout.expand(*self._readout.shape[:-2], self.source.shape[-1], -1)
        h = h[..., window, :].to(P.dtype).expand(*P.shape[:-1])
        u = (P @ h.unsqueeze(-1)).squeeze(-1)
        shrink = lam2 / (1.0 + lam2 * (u * h).sum(-1))
        eye = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
        closed = eye - shrink[..., None, None] * u.unsqueeze(-1) * h.unsqueeze(-2)
        loop = A[..., 1:, :, :] @ closed[..., :-1, :, :]
        loop = torch.cat([eye.expand_as(closed[..., :1, :, :]), loop], -3)
        ends = torch.zeros(
            (*places.shape[:-1], P.shape[-3]), dtype=torch.bool, device=lam1.device
        ).scatter(-1, places, True)
        gaps = _take_matrices(segment_products(loop, ends), places)
        pulled = h - (N @ u.unsqueeze(-1)).squeeze(-1)
        values = _chain_covariance(self.rows(u, places), self.rows(pulled, places), gaps)
        back = torch.argsort(order, dim=-1)
        rows = _take(values.mT, back.unsqueeze(-2)).mT
        return _take(rows, back.unsqueeze(-2)).to(lam1.dtype)

    def _moments(self, lam1: Tensor, lam2: Tensor, window: slice) -> tuple[Tensor, Tensor]:
        """Predicted covariances and adjoint precisions of a window of rows."""
        if torch.is_grad_enabled():
            path = tensor_state_path(self.model, self.steps, lam1, lam2)
            return (
                path.covariance[..., window, :, :],
                path.adjoint_precision[..., window, :, :],
            )
        kept = markov_path(self.model, self.steps, lam1, lam2)
        return kept.matrices(window)


def _chain_covariance(left: Tensor, right: Tensor, gaps: Tensor) -> Tensor:
    """Entries ``(Phi_ji left_i)' right_j`` of a symmetric matrix, rows in order of time."""
    size = left.shape[-2]
    seen, columns = left[..., :0, :], []
    for j in range(size):
        seen = (gaps[..., j : j + 1, :, :] @ seen.unsqueeze(-1)).squeeze(-1)
        seen = torch.cat([seen, left[..., j : j + 1, :]], -2)
        column = (seen * right[..., j : j + 1, :]).sum(-1)
        columns.append(torch.nn.functional.pad(column, (0, size - 1 - j)))
    upper = torch.stack(columns, -1)
    return upper + upper.triu(1).mT


def knots_at(prior: "StateSpacePrior", x: Tensor | None, groups: Tensor | None = None) -> Knots:
    """Merge the data rows of a prior with new rows.

    Parameters
    ----------
    prior : StateSpacePrior
        Supplies the data rows in order of time.
    x : Tensor, shape [*g, N_new, D], or None
        New rows; none at all if left out.
    groups : Tensor of int, shape [N_new], optional
        Labels of their groups.

    Returns
    -------
    Knots
        On the graph.
    """
    steps, size = prior.steps, prior.steps.num_rows
    if x is None:
        places = torch.arange(size, device=prior.order.device)
        return Knots(prior.model, steps, places, places, places[:0])
    new_time = x[..., prior.time_dim]
    shape = torch.broadcast_shapes(steps.time.shape[:-1], new_time.shape[:-1])
    old_time = steps.time.expand(*shape, size)
    time = torch.cat([old_time, new_time.expand(*shape, x.shape[-2])], -1)
    # Stable: a new row comes behind the data rows of the same stamp, whose sites it then has seen.
    source = torch.argsort(time.detach(), dim=-1, stable=True)
    starts = prior.starts
    if groups is not None and prior.groups is not None:
        series = torch.cat([steps.series, prior.groups.locate(groups)])
        source = source[torch.argsort(series[source], stable=True)]
        counts = torch.bincount(series, minlength=len(starts))
        starts = torch.cumsum(counts, 0) - counts
    merged = Steps(_take(time, source), starts)
    place = torch.argsort(source, dim=-1)
    model = prior.model
    if prior.form.needs_rows:
        rows = torch.cat([_sorted_rows(prior, shape), x.expand(*shape, *x.shape[-2:])], -2)
        model = prior.form.model(rows.gather(-2, source.unsqueeze(-1).expand_as(rows)))
    return Knots(model, merged, source, place[..., :size], place[..., size:])


def _sorted_rows(prior: "StateSpacePrior", shape: torch.Size) -> Tensor:
    x = prior.x.gather(-2, prior.order.unsqueeze(-1).expand_as(prior.x))
    return x.expand(*shape, *x.shape[-2:])


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Entries [*s, P] of values [*s, T] at index [*g, P]."""
    if index.dim() == 1:
        return values[..., index]
    batch = torch.broadcast_shapes(values.shape[:-1], index.shape[:-1])
    values = values.expand(*batch, values.shape[-1])
    return values.gather(-1, index.expand(*batch, index.shape[-1]))


def _take_matrices(values: Tensor, index: Tensor) -> Tensor:
    """Matrices [*s, P, d, d] of values [*s, T, d, d]."""
    flat = values.flatten(-2).mT
    return _take(flat, index.unsqueeze(-2)).mT.unflatten(-1, values.shape[-2:])
