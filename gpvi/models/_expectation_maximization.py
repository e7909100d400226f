r"""Alternate between latents and parameters of a Gaussian-process factor analysis.

The ELBO rises over the sites, then over loadings and offset with q held, then over kernels: the
log-normaliser at held sites has the ELBO's own gradient at the sites' optimum. Along with the kernels
the latents may be mixed, scaled and shifted, :math:`z = \mu + R z'`, which loadings :math:`C R` and
offset :math:`d + C \mu` then undo exactly. Without that (parameter expansion) all these directions, in
which latents and readout have to move together, would take very many rounds.

References
----------
Liu, C., Rubin, D. B. & Wu, Y. N. (1998). Parameter expansion to accelerate EM. Biometrika.
"""

import torch
from torch import Tensor

from gpvi.likelihoods import LinearReadoutLikelihood
from gpvi.models._chains import LatentChains, moved_sites
from gpvi.models._latent_inference import LatentState, infer_latents, latent_state
from gpvi.models._learning import ascend, fit_readout

__all__ = ["alternate"]

_SWEEPS, _KERNEL_STEPS = 5, 5
# How often a change of kernels that lowers the ELBO is halved.
_HALVINGS = 4


class _Expansion(torch.nn.Module):
    """Mixing R and shift mu of the latents, from which the readout frees them again."""

    def __init__(self, num_latents: int, mean_field: bool) -> None:
        super().__init__()
        size = (num_latents,) if mean_field else (num_latents, num_latents)
        self.excess = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.shift = torch.nn.Parameter(torch.zeros(num_latents, dtype=torch.float64))

    def mixing(self, share: float = 1.0) -> Tensor:
        """``I + share * excess``."""
        excess = torch.diag(self.excess) if self.excess.dim() == 1 else self.excess
        return torch.eye(len(excess), dtype=excess.dtype) + share * excess


def alternate(
    chains: LatentChains,
    readout: LinearReadoutLikelihood,
    y: Tensor,
    state: LatentState,
    *,
    max_iter: int,
    tolerance: float,
) -> tuple[LatentState, list[float], bool]:
    """Fit latents, readout and kernels, the last two in place.

    Parameters
    ----------
    chains : LatentChains
        Prior; its kernels are changed.
    readout : LinearReadoutLikelihood
        Changed.
    y : Tensor, shape [T, P]
        Targets.
    state : LatentState
        Where to start.
    max_iter : int
        The most rounds.
    tolerance : float
        Stop once a round gains less than this many nats.

    Returns
    -------
    state : LatentState
        Of the final parameters.
    history : list of float
        ELBO after every round.
    converged : bool
        Whether the last round gained less than the tolerance.
    """

    def infer(state: LatentState) -> LatentState:
        return infer_latents(
            chains, readout, y, state, max_sweeps=_SWEEPS, tolerance=0.1 * tolerance
        )[0]

    state = infer(state)
    history: list[float] = []
    for _ in range(max_iter):
        before = state.elbo
        fit_readout(readout, y, state.mean, state.covariance)
        state = latent_state(chains, readout, y, state.lam1, state.lam2)
        state = _fit_kernels(chains, readout, y, state)
        state = infer(state)
        history.append(state.elbo)
        if state.elbo - before < tolerance:
            return state, history, True
    return state, history, False


def _fit_kernels(
    chains: LatentChains, readout: LinearReadoutLikelihood, y: Tensor, state: LatentState
) -> LatentState:
    """Raise the log-normaliser over kernels, mixing and shift, as far as the ELBO follows."""
    expansion = _Expansion(chains.num_latents, state.lam2.dim() == 2)
    modules = {f"latent{k}": kernel for k, kernel in enumerate(chains.kernels)}
    parameters = [p for module in modules.values() for p in module.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]

    def objective() -> Tensor:
        return chains.log_partition(state.lam1, state.lam2, expansion.mixing(), expansion.shift)

    ascend({**modules, "expansion": expansion}, objective, max_iter=_KERNEL_STEPS)
    after = [parameter.detach().clone() for parameter in parameters]
    C, d = readout.loadings.detach().clone(), readout.offset.detach().clone()
    with torch.no_grad():
        for halving in range(_HALVINGS):
            share = 0.5**halving
            for parameter, old, new in zip(parameters, before, after, strict=True):
                parameter.copy_(torch.lerp(old, new, share))
            mixing, shift = expansion.mixing(share), share * expansion.shift
            readout.loadings.copy_(C @ mixing)
            readout.offset.copy_(d + C @ shift)
            sites = moved_sites(state.lam1, state.lam2, mixing, shift)
            trial = latent_state(chains, readout, y, *sites)
            if trial.elbo >= state.elbo:
                return trial
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old)
        readout.loadings.copy_(C)
        readout.offset.copy_(d)
    return state
