"""What tests of state-space forms share: the covariance matrix that a form implies."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpvi.kernels import StateSpaceForm


def _covariance(form: StateSpaceForm, x: Tensor) -> Tensor:
    """h A ... A P h' for all pairs of rows, which are in ascending order of time."""
    model = form.model(x)
    N, d = x.shape[-2], model.dimension
    time = x[..., form.time_dim]
    A, Q = model.transition(torch.diff(time)), model.process_noise(torch.diff(time))
    shape = torch.broadcast_shapes(model.batch_shape, A.shape[:-3], Q.shape[:-3])
    rows = model.readout.unsqueeze(-2) if model.rows is None else model.rows
    h = rows.expand(*torch.broadcast_shapes(shape, rows.shape[:-2]), N, d)
    P = model.initial(time[..., :1])[..., 0, :, :]
    entries = {}
    for i in range(N):
        state = (P @ h[..., i, :, None])[..., 0]
        for j in range(i, N):
            entries[i, j] = entries[j, i] = (h[..., j, :] * state).sum(-1)
            if j + 1 < N:
                state = (A[..., j, :, :] @ state.unsqueeze(-1))[..., 0]
        if i + 1 < N:
            P = A[..., i, :, :] @ P @ A[..., i, :, :].mT + Q[..., i, :, :]
    return torch.stack([torch.stack([entries[i, j] for j in range(N)], -1) for i in range(N)], -2)


@pytest.fixture(scope="session")
def state_space_covariance() -> Callable[[StateSpaceForm, Tensor], Tensor]:
    return _covariance
