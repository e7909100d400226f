r"""One natural-gradient step on sites, for any likelihood and any number of mixed latent functions.

References
----------
Khan, M. E. & Lin, W. (2017). Conjugate-computation variational inference. AISTATS.
Adam, V., Chang, P., Khan, M. E. & Solin, A. (2021). Dual parameterization of sparse variational
Gaussian processes. NeurIPS.
"""

import gpytorch
from torch import Tensor

from gpvi.approximations import Marginals, Posterior, Sites
from gpvi.exceptions import InputError
from gpvi.inference import data_term, dual

__all__ = ["mixed_marginals", "natural_sites"]


def natural_sites(
    posterior: Posterior,
    likelihood: gpytorch.likelihoods.Likelihood,
    y: Tensor,
    *,
    step_size: float,
    scale: float,
    min_precision: float | None,
    mixing: Tensor | None,
    rows: dict[str, Tensor],
) -> Sites:
    r"""Sites after a step: :math:`(1-\rho)\lambda + \rho\, s\, \mathrm{dual}(E_q \log p(y \mid f))`.

    Parameters
    ----------
    posterior : Posterior
        q at the rows of ``y``, conditioned on the sites to move.
    likelihood : gpytorch or gpvi likelihood
        Any.
    y : Tensor, shape [B] or [*b, B]
        Targets.
    step_size : float
        :math:`\rho` in (0, 1].
    scale : float
        :math:`s`, rows of the data set per row of this batch.
    min_precision : float or None
        Clips the precisions of single rows from below.
    mixing : Tensor, shape [L, P], or None
        Combinations of latent functions that the likelihood sees.
    rows : dict of Tensor, shape [B]
        Per-row extras of the data term.

    Returns
    -------
    Sites
        In the space of the posterior's own sites, off the graph.

    Raises
    ------
    InputError
        For an impossible step size.
    """
    if not 0.0 < step_size <= 1.0:
        raise InputError(f"step_size is {step_size}; it must lie in (0, 1].")

    def term(marginals: Marginals) -> Tensor:
        seen = marginals if mixing is None else mixed_marginals(marginals, mixing)
        return data_term(likelihood, y, seen, **rows)

    fresh = dual(term, posterior.marginals(), min_precision=min_precision)
    if posterior.sites.on == "basis":
        fresh = scale * posterior.prior.tie(fresh)
    return posterior.sites.lerp(fresh, step_size).detach()


def mixed_marginals(marginals: Marginals, mixing: Tensor) -> Marginals:
    r"""Moments of :math:`\sum_l a_{lp} g_l(x_n)` for independent latent functions.

    Parameters
    ----------
    marginals : Marginals, shape [*b, L, N]
        Of the latent functions.
    mixing : Tensor, shape [*b, L, P]
        Coefficients :math:`a_{lp}`.

    Returns
    -------
    Marginals, shape [*b, P, N]
        Of the outputs.

    Examples
    --------
    >>> import torch
    >>> latent = Marginals(torch.ones(2, 1), torch.ones(2, 1))
    >>> mixed_marginals(latent, torch.tensor([[1.0], [2.0]])).variance
    tensor([[5.]])
    """
    squares = mixing.square().mT
    residual = marginals.residual
    if residual is not None:
        residual = squares @ residual.expand_as(marginals.mean)
    explained = squares @ marginals.explained.expand_as(marginals.mean)
    return Marginals(mixing.mT @ marginals.mean, explained, residual)
