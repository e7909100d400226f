r"""Posterior states anywhere, from what one pair of passes left at the rows.

Between two rows the state at a time :math:`t_*` has the prior moments moved forward from the last row
before it, and the adjoint pair of the next row moved back to it:

.. math:: E[z_*] = m_* + P_* r_*, \qquad \mathrm{Cov}[z_*] = P_* - P_* N_* P_*.

This equals inserting a row without a site; no pass is run again and nothing is inverted.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov._adjoint import prepare, run_forward
from gpvi.linalg.markov._compiled import choose_passes, element, to_double
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.smoothing import Engine, check_sites, runs_compiled
from gpvi.linalg.markov.state_path import StatePath
from gpvi.linalg.markov.tensor_engine import tensor_state_path

__all__ = ["MarkovPath", "markov_path"]


@dataclass(frozen=True, eq=False)
class MarkovPath:
    """Predicted moments and adjoints at the rows; made by :func:`markov_path`.

    Parameters
    ----------
    model : MarkovModel
        Off the graph.
    steps : Steps
        Rows.
    lam1, lam2 : Tensor, shape [*b, T]
        Sites.
    store : Tensor, shape [*b, T, s]
        Predicted means and upper triangles of covariances, in double precision.
    adjoint : Tensor, shape [*b, T, s]
        ``r`` and upper triangles of ``N``, the row's own site included.
    """

    model: MarkovModel
    steps: Steps
    lam1: Tensor
    lam2: Tensor
    store: Tensor
    adjoint: Tensor

    def states(self, time: Tensor, series: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Posterior moments of the state at any times.

        Parameters
        ----------
        time : Tensor, shape [*g, M]
            In any order.
        series : Tensor of int64, shape [M], optional
            Series of every time; the only one if left out.

        Returns
        -------
        mean : Tensor, shape [*b, M, d]
            In double precision.
        covariance : Tensor, shape [*b, M, d, d]
            Likewise.
        """
        time = time.double()
        before = self._rows_before(time, series)
        number = torch.zeros_like(before) if series is None else series
        starts = torch.cat([self.steps.starts, self.steps.starts.new_tensor([self.steps.num_rows])])
        has_left = before >= starts[number]
        has_right = before + 1 < starts[number + 1]
        left = before.clamp_min(0)
        right = (before + 1).clamp_max(self.steps.num_rows - 1)
        m, P = self._forward(time, left, has_left)
        r, N = self._backward(time, right, has_right)
        shift = (P @ r.unsqueeze(-1)).squeeze(-1)
        return m + shift, P - P @ N @ P

    def matrices(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Predicted covariances and adjoint precisions of some rows.

        Parameters
        ----------
        rows : slice
            Which.

        Returns
        -------
        covariance : Tensor, shape [*b, M, d, d]
            ``P``, given the sites of earlier rows.
        precision : Tensor, shape [*b, M, d, d]
            ``N``, from the sites of these rows and later ones.
        """
        return self._unpack(self.store[..., rows, :])[1], self._unpack(self.adjoint[..., rows, :])[
            1
        ]

    def state_path(self) -> StatePath:
        """The same as dense matrices, with smoothed, filtered and lag-one moments.

        Returns
        -------
        StatePath
            In double precision; a copy of ``2 d (d + 1)`` numbers per row.
        """
        return StatePath(*self._unpack(self.store), *self._unpack(self.adjoint))

    def _forward(self, time: Tensor, left: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """Moments given the rows up to now: filtered at the last row, then moved."""
        m, P = self._unpack(_take(self.store, left))
        h = self._readout(left)
        lam1, lam2 = _take_rows(self.lam1, left).double(), _take_rows(self.lam2, left).double()
        u = (P @ h.unsqueeze(-1)).squeeze(-1)
        s, a = (h * u).sum(-1), (h * m).sum(-1)
        gain = (lam1 - lam2 * a) / (1.0 + lam2 * s)
        shrink = lam2 / (1.0 + lam2 * s)
        m = m + gain.unsqueeze(-1) * u
        P = P - shrink[..., None, None] * u.unsqueeze(-1) * u.unsqueeze(-2)
        dt = (time - _take_rows(self.steps.time.double(), left)).clamp_min(0.0)
        A, Q = self.model.transition(dt), self.model.process_noise(dt)
        start = self.model.initial(time)
        m = torch.where(exists.unsqueeze(-1), (A @ m.unsqueeze(-1)).squeeze(-1), 0.0)
        P = torch.where(exists[..., None, None], A @ P @ A.mT + Q, start)
        return m, P

    def _backward(self, time: Tensor, right: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """Adjoints of the next row, moved back; zero behind the last one."""
        r, N = self._unpack(_take(self.adjoint, right))
        dt = (_take_rows(self.steps.time.double(), right) - time).clamp_min(0.0)
        A = self.model.transition(dt)
        r = torch.where(exists.unsqueeze(-1), (A.mT @ r.unsqueeze(-1)).squeeze(-1), 0.0)
        return r, torch.where(exists[..., None, None], A.mT @ N @ A, 0.0)

    def _readout(self, rows: Tensor) -> Tensor:
        if self.model.rows is not None:
            return _take(self.model.rows, rows)
        return self.model.readout.unsqueeze(-2)

    def _unpack(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        d = self.model.dimension
        return rows[..., :d], rows[..., self._place]

    @cached_property
    def _place(self) -> Tensor:
        """Where entry (i, k) of a matrix lies in a stored row."""
        d = self.model.dimension
        place = torch.zeros(d, d, dtype=torch.int64)
        i, k = torch.triu_indices(d, d)
        place[i, k] = place[k, i] = torch.arange(len(i)) + d
        return place.to(self.store.device)

    def _rows_before(self, time: Tensor, series: Tensor | None) -> Tensor:
        """Number of the last row of the same series that is not later; before its start if none."""
        known = self.steps.time.double()
        if self.steps.num_series == 1:
            shape = torch.broadcast_shapes(known.shape[:-1], time.shape[:-1])
            known = known.expand(*shape, -1).contiguous()
            time = time.expand(*shape, -1).contiguous()
            return torch.searchsorted(known, time, right=True) - 1
        if series is None:
            raise InputError(
                f"These are {self.steps.num_series} series; say for every time which one it belongs to."
            )
        keys = (
            np.append(np.zeros(self.steps.num_rows), np.ones(len(time))),
            np.append(known.cpu().numpy(), time.cpu().numpy()),
            np.append(self.steps.series.cpu().numpy(), series.cpu().numpy()),
        )
        order = np.lexsort(keys)
        is_row = order < self.steps.num_rows
        count = np.cumsum(is_row) - 1
        found = np.empty(len(order), np.int64)
        found[order] = count
        return torch.from_numpy(found[self.steps.num_rows :]).to(time.device)


def markov_path(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor, *, engine: Engine = "auto"
) -> MarkovPath:
    """Run both passes and keep what predictions need, off the graph.

    Parameters
    ----------
    model : MarkovModel
        With one readout per row.
    steps : Steps
        Stamps.
    lam1, lam2 : Tensor, shape [*b, T]
        Sites.
    engine : {"auto", "compiled", "tensor"}
        Which engine runs.

    Returns
    -------
    MarkovPath
        Holds ``2 d + d (d + 1)`` numbers per row.

    Raises
    ------
    InputError
        If shapes do not fit, or the model has several outputs.
    NumericalError
        If a site is so negative that the posterior is improper.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import parse_kernel, as_state_space
    >>> model = as_state_space(parse_kernel("matern32", 1)).model()
    >>> steps = Steps.single(torch.linspace(0, 1, 5, dtype=torch.float64))
    >>> path = markov_path(model, steps, torch.zeros(5).double(), torch.ones(5).double())
    >>> path.states(torch.tensor([0.3, 2.0]).double())[0].shape
    torch.Size([2, 2])
    """
    if model.outputs is not None:
        raise InputError("A path is of a model with one readout per row, and this one has outputs.")
    check_sites(model, steps, lam1, lam2, engine)
    with torch.no_grad():
        if runs_compiled(engine, lam1):
            store, adjoint = _compiled_path(model, steps, lam1, lam2)
        else:
            path = tensor_state_path(model, steps, lam1, lam2)
            upper = torch.triu_indices(model.dimension, model.dimension)
            store, adjoint = (
                torch.cat([vector, matrix[..., upper[0], upper[1]]], -1).double()
                for vector, matrix in (
                    (path.mean, path.covariance),
                    (path.adjoint_mean, path.adjoint_precision),
                )
            )
        return MarkovPath(to_double(model), steps, lam1, lam2, store, adjoint)


def _compiled_path(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor
) -> tuple[Tensor, Tensor]:
    passes = choose_passes(model, steps)
    inputs, shape = prepare(passes, lam1, lam2)
    lam1, lam2, *tensors = inputs
    _, stores = run_forward(passes, lam1, lam2, tuple(tensors), True)
    adjoints, weight = [], np.zeros(len(passes.starts) - 1)
    for b in range(len(lam1)):
        arrays, (j, w) = element(tuple(tensors), b), element((lam1, lam2), b)
        adjoints.append(passes.backward(arrays, j, w, stores[b], weight, keep=True).adjoint)
    store, adjoint = (
        torch.from_numpy(part[0][None] if len(part) == 1 else np.stack(part))
        for part in (stores, adjoints)
    )
    return (store.reshape(*shape, *store.shape[1:]), adjoint.reshape(*shape, *adjoint.shape[1:]))


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """Rows [*b, M] of values [*b, T, s]."""
    if rows.dim() == 1:
        return values[..., rows, :]
    shape = torch.broadcast_shapes(values.shape[:-2], rows.shape[:-1])
    rows = rows.expand(*shape, -1).unsqueeze(-1).expand(*shape, rows.shape[-1], values.shape[-1])
    return values.expand(*shape, *values.shape[-2:]).gather(-2, rows)


def _take_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Entries [*b, M] of values [*b, T]."""
    return _take(values.unsqueeze(-1), rows).squeeze(-1)
