r"""What a filter and a smoother leave behind, in the form that needs no inverse.

The smoother runs on the adjoint pair (r, N) of de Jong: with predicted moments m and P,

.. math:: E[x \mid \text{all}] = m + P r, \qquad \mathrm{Cov}[x \mid \text{all}] = P - P N P,

and :math:`\tfrac12 (r r^\top - N)` is the derivative of the log-normaliser in P. Neither the
predicted covariance nor the process noise is ever inverted: on a fine grid the first is nearly
singular and the second is zero.

References
----------
de Jong, P. (1989). Smoothing and interpolation with the state-space model. JASA 84(408).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.linalg.markov._site_update import canonical_sites, site_update
from gpvi.linalg.markov.model import MarkovModel, Steps

__all__ = ["StatePath"]


@dataclass(frozen=True, eq=False)
class StatePath:
    """Predicted moments of every state and the adjoint pair that smooths them.

    Parameters
    ----------
    mean : Tensor, shape [*b, T, d]
        ``m``, given the sites of all earlier rows of the series.
    covariance : Tensor, shape [*b, T, d, d]
        ``P``, likewise.
    adjoint_mean : Tensor, shape [*b, T, d]
        ``r``, from the site of the row itself and all later ones.
    adjoint_precision : Tensor, shape [*b, T, d, d]
        ``N``, likewise.

    Examples
    --------
    >>> import torch
    >>> one = torch.ones(1, 1).double()
    >>> path = StatePath(0.0 * one, one[None], 0.5 * one, 0.75 * one[None])
    >>> path.smoothed_mean().item(), path.smoothed_covariance().item()
    (0.5, 0.25)
    """

    mean: Tensor
    covariance: Tensor
    adjoint_mean: Tensor
    adjoint_precision: Tensor

    def smoothed_mean(self) -> Tensor:
        """Posterior means of the states, ``m + P r``, shape [*b, T, d]."""
        return self.mean + (self.covariance @ self.adjoint_mean.unsqueeze(-1)).squeeze(-1)

    def smoothed_covariance(self) -> Tensor:
        """Posterior covariances of the states, ``P - P N P``, shape [*b, T, d, d]."""
        P = self.covariance
        return P - P @ self.adjoint_precision @ P

    def filtered(self, model: MarkovModel, lam1: Tensor, lam2: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the states given the sites up to and including their own row.

        Parameters
        ----------
        model : MarkovModel
            The model of the path; only its readout is used.
        lam1 : Tensor, shape [*b, T] or [*b, T, K]
            Linear terms of the sites of the path.
        lam2 : Tensor, shape [*b, T] or [*b, T, K, K]
            Precisions of the sites of the path.

        Returns
        -------
        mean : Tensor, shape [*b, T, d]
            ``m + U (e_0 - R H m)``.
        covariance : Tensor, shape [*b, T, d, d]
            ``P - U R U'``.
        """
        H, lam1, lam2 = canonical_sites(model, self.mean.shape[-2], lam1, lam2)
        site = site_update(self.covariance, H, lam1, lam2)
        m = self.mean.unsqueeze(-1)
        m = m + site.gain @ (site.vector - site.matrix @ (H @ m))
        return m.squeeze(-1), site.covariance(self.covariance)

    def lag_one(self, model: MarkovModel, steps: Steps, lam2: Tensor) -> Tensor:
        r"""Posterior covariances of neighbouring states.

        .. math:: \mathrm{Cov}[x_{k+1}, x_k \mid \text{all}]
                  = (I - P_{k+1} N_{k+1}) \, A_{k+1} \, P^{\text{filtered}}_k

        Parameters
        ----------
        model : MarkovModel
            The model of the path.
        steps : Steps
            Its rows.
        lam2 : Tensor, shape [*b, T] or [*b, T, K, K]
            Precisions of the sites of the path.

        Returns
        -------
        Tensor, shape [*b, T - 1, d, d]
            Entry k belongs to rows k + 1 and k; zero where row k + 1 begins a series.
        """
        lam1 = lam2 if model.outputs is None else lam2[..., 0]
        _, filtered = self.filtered(model, torch.zeros_like(lam1), lam2)
        A = model.transition(steps.dt).index_fill(-3, steps.starts, 0.0)[..., 1:, :, :]
        step = A @ filtered[..., :-1, :, :]
        P, N = self.covariance[..., 1:, :, :], self.adjoint_precision[..., 1:, :, :]
        return step - P @ (N @ step)
