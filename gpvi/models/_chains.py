"""Independent latent processes on the line as one Gauss-Markov prior, and its conditioning on sites.

Latents have prior variance one: the amplitude of a kernel, which must be stationary, is taken out, since
the loadings that read the latents have a scale of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from gpvi.kernels import as_state_space
from gpvi.linalg import MarkovModel, Steps, markov_log_partition, markov_smooth

__all__ = ["Conditioned", "LatentChains", "expected_log_sites", "moved_sites"]


@dataclass(frozen=True, eq=False)
class Conditioned:
    """Moments of the latents given sites.

    Parameters
    ----------
    mean : Tensor, shape [T, K] or [T]
        Posterior means.
    covariance : Tensor, shape [T, K, K] or [T]
        Posterior covariances between the latents of a row, or variances of one latent.
    log_partition : Tensor, shape []
        Log-normaliser of prior times sites.
    divergence : Tensor, shape []
        ``KL(q || prior)``.
    """

    mean: Tensor
    covariance: Tensor
    log_partition: Tensor
    divergence: Tensor


@dataclass(frozen=True, eq=False)
class LatentChains:
    """K independent Gauss-Markov processes at given steps.

    Parameters
    ----------
    kernels : sequence of gpytorch.kernels.Kernel
        One for each latent, stationary and with a state-space form.
    steps : Steps
        Stamps of T rows in G series.
    """

    kernels: Sequence[gpytorch.kernels.Kernel]
    steps: Steps

    @property
    def num_latents(self) -> int:
        """Number K of latents."""
        return len(self.kernels)

    def condition(self, lam1: Tensor, lam2: Tensor) -> Conditioned:
        """Moments of all latents together, given matrix sites.

        Parameters
        ----------
        lam1 : Tensor, shape [T, K]
            Linear terms.
        lam2 : Tensor, shape [T, K, K]
            Precisions.

        Returns
        -------
        Conditioned
            Off the graph.
        """
        with torch.no_grad():
            model, scale = self._together()
            sites = lam1 / scale, lam2 / (scale.unsqueeze(-1) * scale)
            found = markov_smooth(model, self.steps, *sites)
            covariance = found.variance / (scale.unsqueeze(-1) * scale)
            return Conditioned(
                found.mean / scale, covariance, found.log_partition.sum(), found.divergence.sum()
            )

    def condition_one(self, k: int, lam1: Tensor, lam2: Tensor) -> Conditioned:
        """Moments of one latent, given sites of its own.

        Parameters
        ----------
        k : int
            Which latent.
        lam1, lam2 : Tensor, shape [T]
            Sites.

        Returns
        -------
        Conditioned
            With moments of shape [T].
        """
        with torch.no_grad():
            model, scale = self._one(k)
            sites = lam1 / scale, lam2 / scale.square()
            found = markov_smooth(model, self.steps, *sites)
            return Conditioned(
                found.mean / scale,
                found.variance / scale.square(),
                found.log_partition.sum(),
                found.divergence.sum(),
            )

    def log_partition(self, lam1: Tensor, lam2: Tensor, mixing: Tensor, shift: Tensor) -> Tensor:
        r"""Log-normaliser of sites on :math:`z = \mu + R z'`, z' being these chains.

        .. math:: \log Z = \sum_n \left( \lambda_{1n}^\top \mu
                  - \tfrac12 \mu^\top \Lambda_n \mu \right)
                  + \log Z'(R^\top (\lambda_1 - \Lambda \mu), R^\top \Lambda R)

        Parameters
        ----------
        lam1 : Tensor, shape [T, K]
            Linear terms.
        lam2 : Tensor, shape [T, K, K], or [T, K] for sites of single latents
            Precisions.
        mixing : Tensor, shape [K, K]
            R; diagonal for sites of single latents.
        shift : Tensor, shape [K]
            Prior means.

        Returns
        -------
        Tensor, shape []
            Summed over series, differentiable in kernels, mixing and shift.
        """
        constant = expected_log_sites(lam1, lam2, shift.expand_as(lam1))
        lam1, lam2 = moved_sites(lam1, lam2, mixing, shift)
        if lam2.dim() == 3:
            model, scale = self._together()
            sites = lam1 / scale, lam2 / (scale.unsqueeze(-1) * scale)
            return constant + markov_log_partition(model, self.steps, *sites).sum()
        for k in range(self.num_latents):
            model, scale = self._one(k)
            sites = lam1[:, k] / scale, lam2[:, k] / scale.square()
            constant = constant + markov_log_partition(model, self.steps, *sites).sum()
        return constant

    def _one(self, k: int) -> tuple[MarkovModel, Tensor]:
        """Model of one latent and its standard deviation."""
        model = as_state_space(self.kernels[k]).model()
        P, h = model.initial(self.steps.first[:1])[..., 0, :, :], model.readout
        return model, (h @ P @ h).sqrt()

    def _together(self) -> tuple[MarkovModel, Tensor]:
        """The direct sum of all models with one readout for each, and the deviations, shape [K]."""
        parts = [self._one(k) for k in range(self.num_latents)]
        outputs = torch.block_diag(*(model.readout.unsqueeze(0) for model, _ in parts))
        blocks = tuple(block for model, _ in parts for block in model.blocks)
        return MarkovModel(blocks, outputs=outputs), torch.stack([scale for _, scale in parts])


def moved_sites(lam1: Tensor, lam2: Tensor, mixing: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Sites on z as sites on z', where ``z = shift + mixing z'``.

    Parameters
    ----------
    lam1 : Tensor, shape [T, K]
        Linear terms.
    lam2 : Tensor, shape [T, K, K] or [T, K]
        Precisions.
    mixing : Tensor, shape [K, K]
        Diagonal for sites of single latents.
    shift : Tensor, shape [K]
        Means.

    Returns
    -------
    lam1, lam2 : Tensor
        Of the same shapes, without the constant.
    """
    if lam2.dim() == 3:
        return (lam1 - lam2 @ shift) @ mixing, mixing.mT @ lam2 @ mixing
    factor = mixing.diagonal()
    return (lam1 - lam2 * shift) * factor, lam2 * factor.square()


def expected_log_sites(
    lam1: Tensor, lam2: Tensor, mean: Tensor, covariance: Tensor | None = None
) -> Tensor:
    """``E[sum log site]`` for latents of given moments.

    Parameters
    ----------
    lam1 : Tensor, shape [T, K]
        Linear terms.
    lam2 : Tensor, shape [T, K, K] or [T, K]
        Precisions.
    mean : Tensor, shape [T, K]
        Means.
    covariance : Tensor, shape [T, K, K], optional
        Covariances; zero if left out.

    Returns
    -------
    Tensor, shape []
        Summed over rows.
    """
    second = mean.unsqueeze(-1) * mean.unsqueeze(-2)
    if covariance is not None:
        second = second + covariance
    if lam2.dim() == 2:
        second = second.diagonal(dim1=-1, dim2=-2)
    return (lam1 * mean).sum() - 0.5 * (lam2 * second).sum()
