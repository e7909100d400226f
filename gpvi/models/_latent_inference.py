r"""Gaussian sites of latents that many outputs read: natural-gradient ascent of the ELBO.

All latents of a row share one matrix site, and a step moves it towards the duals of the data term. In
the mean-field form every latent has a site of its own and they move one at a time: moved together,
latents that the loadings couple would overshoot. A step that gains less than a tenth of what its slope
promises is retaken with half the length.

References
----------
Khan, M. E. & Lin, W. (2017). Conjugate-computation variational inference. AISTATS.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.exceptions import NumericalError
from gpvi.likelihoods import LinearReadoutLikelihood
from gpvi.models._chains import LatentChains, expected_log_sites

__all__ = ["LatentState", "infer_latents", "latent_state", "start_latents"]

# A step must gain this fraction of its slope; a conjugate one gains half.
_ARMIJO = 0.1
_SMALLEST_STEP = 1e-4


@dataclass(frozen=True, eq=False)
class LatentState:
    """Sites, moments and the objective there.

    Parameters
    ----------
    lam1 : Tensor, shape [T, K]
        Linear terms of the sites.
    lam2 : Tensor, shape [T, K, K], or [T, K] in the mean-field form
        Precisions of the sites.
    mean : Tensor, shape [T, K]
        Posterior means.
    covariance : Tensor, shape [T, K, K]
        Posterior covariances of the latents of a row.
    log_partitions, divergences : Tensor, shape [1], or [K] in the mean-field form
        Log-normalisers, and KL divergences from the prior.
    dual1 : Tensor, shape [T, K]
        Linear terms of the duals.
    dual2 : Tensor, shape [T, K, K]
        Precisions of the duals.
    elbo : float
        In nats.
    """

    lam1: Tensor
    lam2: Tensor
    mean: Tensor
    covariance: Tensor
    log_partitions: Tensor
    divergences: Tensor
    dual1: Tensor
    dual2: Tensor
    elbo: float


def start_latents(
    chains: LatentChains,
    readout: LinearReadoutLikelihood,
    y: Tensor,
    mean: Tensor,
    covariance: Tensor,
    *,
    mean_field: bool,
) -> LatentState:
    """The better of two starts: sites dual to rough moments, and no sites.

    Parameters
    ----------
    chains : LatentChains
        Prior.
    readout : LinearReadoutLikelihood
        Of P outputs.
    y : Tensor, shape [T, P]
        Targets.
    mean : Tensor, shape [T, K]
        Rough latent means.
    covariance : Tensor, shape [T, K, K]
        Rough covariances.
    mean_field : bool
        Whether every latent has a site of its own.

    Returns
    -------
    LatentState
        Off the graph.

    Raises
    ------
    NumericalError
        If the ELBO is not finite even at the prior.
    """
    _, lam1, lam2 = _duals(readout, y, mean, covariance, mean_field)
    nothing = latent_state(chains, readout, y, torch.zeros_like(lam1), torch.zeros_like(lam2))
    if not abs(nothing.elbo) < float("inf"):
        raise NumericalError(
            f"The ELBO is {nothing.elbo} at the prior of the latents; check the scale of the data and "
            "of the loadings."
        )
    try:
        guess = latent_state(chains, readout, y, lam1, lam2)
    except NumericalError:
        return nothing
    return guess if guess.elbo > nothing.elbo else nothing


def latent_state(
    chains: LatentChains, readout: LinearReadoutLikelihood, y: Tensor, lam1: Tensor, lam2: Tensor
) -> LatentState:
    """Moments, duals and ELBO at given sites.

    Parameters
    ----------
    chains : LatentChains
        Prior.
    readout : LinearReadoutLikelihood
        Of P outputs.
    y : Tensor, shape [T, P]
        Targets.
    lam1 : Tensor, shape [T, K]
        Linear terms.
    lam2 : Tensor, shape [T, K, K] or [T, K]
        Precisions.

    Returns
    -------
    LatentState
        Off the graph; the ELBO may be infinite.
    """
    if lam2.dim() == 3:
        q = chains.condition(lam1, lam2)
        totals = q.log_partition.reshape(1), q.divergence.reshape(1)
        return _complete(readout, y, lam1, lam2, q.mean, q.covariance, *totals)
    parts = [chains.condition_one(k, lam1[:, k], lam2[:, k]) for k in range(chains.num_latents)]
    return _complete(
        readout,
        y,
        lam1,
        lam2,
        torch.stack([part.mean for part in parts], -1),
        torch.diag_embed(torch.stack([part.covariance for part in parts], -1)),
        torch.stack([part.log_partition for part in parts]),
        torch.stack([part.divergence for part in parts]),
    )


def infer_latents(
    chains: LatentChains,
    readout: LinearReadoutLikelihood,
    y: Tensor,
    state: LatentState,
    *,
    max_sweeps: int,
    tolerance: float,
) -> tuple[LatentState, bool]:
    """Raise the ELBO over the sites, from a state on.

    Parameters
    ----------
    chains : LatentChains
        Prior.
    readout : LinearReadoutLikelihood
        Of P outputs.
    y : Tensor, shape [T, P]
        Targets.
    state : LatentState
        Where to start, by the same chains and readout.
    max_sweeps : int
        The most sweeps over the latents.
    tolerance : float
        Stop once a sweep gains less than this many nats.

    Returns
    -------
    state : LatentState
        The last one.
    converged : bool
        Whether a sweep gained less than the tolerance.
    """
    # Without coupling, or with the coupling in q, all latents may move at once.
    lengths = torch.ones(1 if state.lam2.dim() == 3 else chains.num_latents)
    for _ in range(max_sweeps):
        before = state.elbo
        for k in range(len(lengths)):
            state, lengths[k] = _move(chains, readout, y, state, k, float(lengths[k]))
        if state.elbo - before < tolerance:
            return state, True
    return state, False


def _complete(
    readout: LinearReadoutLikelihood,
    y: Tensor,
    lam1: Tensor,
    lam2: Tensor,
    mean: Tensor,
    covariance: Tensor,
    log_partitions: Tensor,
    divergences: Tensor,
) -> LatentState:
    value, dual1, dual2 = _duals(readout, y, mean, covariance, lam2.dim() == 2)
    elbo = float(value.sum() - divergences.sum())
    totals = log_partitions, divergences
    return LatentState(lam1, lam2, mean, covariance, *totals, dual1, dual2, elbo)


def _duals(
    readout: LinearReadoutLikelihood, y: Tensor, mean: Tensor, covariance: Tensor, mean_field: bool
) -> tuple[Tensor, Tensor, Tensor]:
    value, dual1, dual2 = readout.matrix_duals(y, mean, covariance)
    if mean_field:
        # Duals of one latent with the others held: their means do not count as its own.
        own = dual2.diagonal(dim1=-1, dim2=-2)
        dual1 = dual1 - (dual2 @ mean.unsqueeze(-1)).squeeze(-1) + own * mean
        dual2 = own
    return value, dual1, dual2


def _move(
    chains: LatentChains,
    readout: LinearReadoutLikelihood,
    y: Tensor,
    state: LatentState,
    k: int,
    length: float,
) -> tuple[LatentState, float]:
    """One accepted step (of latent k in the mean-field form) and the length to try next."""
    while length >= _SMALLEST_STEP:
        trial = _attempt(chains, readout, y, state, k, length)
        if trial is not None and _gains_enough(state, trial, length):
            return trial, min(1.0, 2.0 * length)
        length *= 0.5
    return state, 1.0


def _attempt(
    chains: LatentChains,
    readout: LinearReadoutLikelihood,
    y: Tensor,
    state: LatentState,
    k: int,
    length: float,
) -> LatentState | None:
    """The state after a step, None where numbers leave their range."""
    lam1 = torch.lerp(state.lam1, state.dual1, length)
    lam2 = torch.lerp(state.lam2, state.dual2, length)
    if not bool(lam1.isfinite().all() and lam2.isfinite().all()):
        return None
    try:
        if state.lam2.dim() == 3:
            trial = latent_state(chains, readout, y, lam1, lam2)
        else:
            trial = _with_latent(chains, readout, y, state, k, lam1[:, k], lam2[:, k])
    except NumericalError:
        return None
    return trial if abs(trial.elbo) < float("inf") else None


def _with_latent(
    chains: LatentChains,
    readout: LinearReadoutLikelihood,
    y: Tensor,
    state: LatentState,
    k: int,
    lam1: Tensor,
    lam2: Tensor,
) -> LatentState:
    """The state with other sites of latent k."""
    q = chains.condition_one(k, lam1, lam2)
    all1, all2, mean = state.lam1.clone(), state.lam2.clone(), state.mean.clone()
    covariance = state.covariance.clone()
    totals = state.log_partitions.clone(), state.divergences.clone()
    all1[:, k], all2[:, k], mean[:, k], covariance[:, k, k] = lam1, lam2, q.mean, q.covariance
    totals[0][k], totals[1][k] = q.log_partition, q.divergence
    return _complete(readout, y, all1, all2, mean, covariance, *totals)


def _gains_enough(state: LatentState, trial: LatentState, length: float) -> bool:
    """Armijo's rule; the slope times the step is ``2 KL(old || new) / length`` to first order."""
    change = (trial.log_partitions - state.log_partitions).sum()
    difference = trial.lam1 - state.lam1, trial.lam2 - state.lam2
    linear = expected_log_sites(*difference, state.mean, state.covariance)
    divergence = max(0.0, float(change - linear))
    slack = 1e-10 * (1.0 + abs(state.elbo))
    return trial.elbo - state.elbo >= 2.0 * _ARMIJO * divergence / length - slack
