"""Dense formulas for Gauss-Markov models, and models to try them on; a reference, not a test."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gpvi.linalg.markov.blocks import CascadeBlock, matern_noise, stationary_cascade
from gpvi.linalg.markov.model import MarkovModel, Steps


class Posterior(NamedTuple):
    """Moments of all states [*b, T d] and readouts [*b, T K], and totals per series [*b, G]."""

    state_mean: Tensor
    state_covariance: Tensor
    mean: Tensor
    covariance: Tensor
    log_partition: Tensor


def joint_covariance(model: MarkovModel, steps: Steps) -> Tensor:
    """Prior covariance of all states, shape [*b, T d, T d], by products of transitions."""
    A, Q = model.transition(steps.dt), model.process_noise(steps.dt)
    start = model.initial(steps.first)
    shape = torch.broadcast_shapes(A.shape[:-3], Q.shape[:-3], start.shape[:-3])
    d, series, begins = model.dimension, steps.series.tolist(), set(steps.starts.tolist())
    zero = A.new_zeros(*shape, d, d)
    blocks: list[list[Tensor]] = []
    for k in range(steps.num_rows):
        if k in begins:
            row = [zero] * k + [start[..., series[k], :, :].expand(*shape, d, d)]
        else:
            F = A[..., k, :, :]
            row = [F @ block for block in blocks[-1]]
            row.append(F @ blocks[-1][-1] @ F.mT + Q[..., k, :, :])
        blocks.append(row)
    T = steps.num_rows
    full = [
        torch.cat([blocks[i][j] if j <= i else blocks[j][i].mT for j in range(T)], -1)
        for i in range(T)
    ]
    return torch.cat(full, -2)


def readout_matrix(model: MarkovModel, rows: int) -> Tensor:
    """All readouts as one matrix, shape [*b, T K, T d]."""
    if model.outputs is not None:
        H = model.outputs.unsqueeze(-3).expand(*model.outputs.shape[:-2], rows, -1, -1)
    elif model.rows is not None:
        H = model.rows.unsqueeze(-2)
    else:
        H = model.readout[..., None, None, :]
        H = H.expand(*H.shape[:-3], rows, 1, model.dimension)
    K, d = H.shape[-2:]
    full = torch.eye(rows, dtype=H.dtype)[:, None, :, None] * H[..., :, :, None, :]
    return full.reshape(*H.shape[:-3], rows * K, rows * d)


def posterior(model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor) -> Posterior:
    """Condition on sites by one dense solve."""
    T = steps.num_rows
    if model.outputs is None:
        lam2 = torch.diag_embed(lam2)
        K = 1
    else:
        K = lam1.shape[-1]
        wide = torch.eye(T, dtype=lam2.dtype)[:, None, :, None] * lam2[..., :, :, None, :]
        lam1, lam2 = lam1.flatten(-2), wide.reshape(*lam2.shape[:-3], T * K, T * K)
    Kxx = joint_covariance(model, steps)
    H = readout_matrix(model, T)
    Kfx = H @ Kxx
    Kff = Kfx @ H.mT
    M = torch.eye(T * K, dtype=lam2.dtype) + lam2 @ Kff
    right = torch.cat([lam1.unsqueeze(-1).expand(*M.shape[:-1], 1), lam2.expand_as(M)], -1)
    solved = torch.linalg.solve(M, right)
    alpha, R = solved[..., :1], solved[..., 1:]
    per_row = 0.5 * lam1 * (Kff @ alpha).squeeze(-1)
    series = steps.series.repeat_interleave(K)
    totals = []
    for g in range(steps.num_series):
        rows = (series == g).nonzero().squeeze(-1)
        block = M[..., rows[:, None], rows[None, :]]
        totals.append(per_row[..., rows].sum(-1) - 0.5 * torch.linalg.slogdet(block)[1])
    return Posterior(
        (Kfx.mT @ alpha).squeeze(-1),
        Kxx - Kfx.mT @ R @ Kfx,
        (Kff @ alpha).squeeze(-1),
        Kff - Kff @ R @ Kff,
        torch.stack(totals, -1),
    )


def matern(
    order: int,
    rate: Tensor | float = 1.7,
    variance: Tensor | float = 1.3,
    frequency: Tensor | float | None = None,
    dtype: torch.dtype = torch.float64,
) -> CascadeBlock:
    """A stationary cascade."""
    rate = torch.as_tensor(rate, dtype=dtype)
    noise = matern_noise(order) * torch.as_tensor(variance, dtype=dtype)
    if frequency is not None:
        frequency = torch.as_tensor(frequency, dtype=dtype)
    start = stationary_cascade(order, noise, frequency is not None)
    return CascadeBlock(order, rate, noise, start, frequency)


def cosine(frequency: float = 4.0, variance: float = 0.6) -> CascadeBlock:
    """An undamped cosine, which collects no noise."""
    one = torch.ones((), dtype=torch.float64)
    start = variance * torch.eye(2, dtype=torch.float64)
    return CascadeBlock(0, one, 0.0 * one, start, frequency * one, damped=False)


def wiener(order: int = 1, variance: float = 0.4) -> CascadeBlock:
    """An integrated Wiener process, which has no stationary covariance."""
    one = torch.ones((), dtype=torch.float64)
    start = 0.8 * torch.eye(order + 1, dtype=torch.float64)
    return CascadeBlock(order, one, variance * one, start, damped=False)


MODELS = {
    "matern12": MarkovModel((matern(0),)),
    "matern32": MarkovModel((matern(1),)),
    "matern52": MarkovModel((matern(2),)),
    "matern72": MarkovModel((matern(3),)),
    "hida32": MarkovModel((matern(1, frequency=3.0),)),
    "hida52": MarkovModel((matern(2, frequency=2.0),)),
    "cosine": MarkovModel((cosine(),)),
    "wiener": MarkovModel((wiener(),)),
    "sum": MarkovModel((matern(2), cosine(), matern(0, 0.3))),
    "batch": MarkovModel(
        (matern(1, torch.tensor([0.5, 2.0, 3.0]).double(), torch.tensor([[0.7], [1.9]]).double()),)
    ),
}


def stamps(rows: int, seed: int = 0, series: int = 1, duplicates: bool = True) -> Steps:
    """Irregular stamps over about ten units of time, a tenth of the steps of length zero."""
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.rand(rows, generator=generator, dtype=torch.float64) * (20.0 / max(rows, 10))
    if duplicates:
        gaps[torch.rand(rows, generator=generator) < 0.1] = 0.0
    time = gaps.cumsum(0)
    starts = torch.tensor([math.floor(g * rows / series) for g in range(series)])
    for start in starts.tolist():
        time[start:] -= time[start].clone() - 0.5 * start / rows
    return Steps(time, starts)


def sites(
    rows: int, batch: tuple[int, ...] = (), seed: int = 0, outputs: int | None = None
) -> tuple[Tensor, Tensor]:
    """Random sites, a fifth of them zero."""
    generator = torch.Generator().manual_seed(seed)
    inner = (rows,) if outputs is None else (rows, outputs)
    lam1 = torch.randn(*batch, *inner, generator=generator, dtype=torch.float64)
    seen = (torch.rand(*batch, rows, generator=generator) < 0.8).double()
    if outputs is None:
        lam2 = 2.0 * torch.rand(*batch, rows, generator=generator, dtype=torch.float64)
        return lam1 * seen, lam2 * seen
    root = torch.randn(*batch, *inner, outputs, generator=generator, dtype=torch.float64)
    root[..., 0] = 0.0  # singular precisions
    return lam1 * seen[..., None], root @ root.mT * seen[..., None, None]
