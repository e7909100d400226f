r"""Expected log likelihoods of rows, and the sites that they are dual to.

For any likelihood the natural-gradient fixed point of conjugate-computation variational inference
is

.. math:: \lambda_{2} = -2\,\partial_v \mathcal{E}, \qquad
          \lambda_{1} = \partial_m \mathcal{E} + \lambda_2 m,

with :math:`\mathcal{E}` the data term as a function of the marginal mean and (explained) variance.

References
----------
Khan, M. E. & Lin, W. (2017). Conjugate-computation variational inference. AISTATS.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import Marginals, Sites
from gpvi.likelihoods import as_likelihood, expectation_slopes

__all__ = ["RowTerms", "data_term", "dual", "row_terms"]


def data_term(
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    marginals: Marginals,
    *,
    weights: Tensor | None = None,
    log_v: Tensor | None = None,
    **rows: Tensor,
) -> Tensor:
    r"""Expected log likelihood of every row, :math:`w_n E_{q(f_n)} \log p(y_n \mid f_n)`.

    Parameters
    ----------
    likelihood : gpytorch or gpvi likelihood
        Any; GPyTorch's own are wrapped.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed and gives zero.
    marginals : Marginals, shape [*b, N]
        Moments of q(f); for a likelihood of L latents the last batch dim is L.
    weights : Tensor, shape [N], optional
        Multiplies every row's term.
    log_v : Tensor, shape broadcastable to [*b], optional
        Log scale of the conditional residual variance (the tightened bound); 0 if left out.
    **rows : Tensor, shape [N]
        Per-row extras that the likelihood names in ``row_arguments`` (exposure, noise, ...);
        others raise.

    Returns
    -------
    Tensor, shape [*b, N]
        Without the latent dim for likelihoods of several latents.

    Examples
    --------
    >>> import torch
    >>> from gpvi.likelihoods import BernoulliLikelihood
    >>> moments = Marginals(torch.zeros(2), torch.zeros(2))
    >>> data_term(BernoulliLikelihood(), torch.tensor([1.0, float("nan")]), moments)
    tensor([-0.6931,  0.0000])
    """
    if weights is not None:
        rows = {**rows, "weights": weights}
    variance = _variance(marginals, log_v)
    return as_likelihood(likelihood).variational_expectations(y, marginals.mean, variance, **rows)


@dataclass(frozen=True, eq=False)
class RowTerms:
    """Data terms of rows with their derivatives, off the graph.

    Parameters
    ----------
    value : Tensor, shape [*b, N]
        As from :func:`data_term`.
    by_mean, by_variance : Tensor, shape [*b, N]
        Derivatives by the marginal mean and (explained) variance, with the latent dim.
    """

    value: Tensor
    by_mean: Tensor
    by_variance: Tensor

    def dual(self, mean: Tensor, min_precision: float | None = None) -> Sites:
        """Sites dual to these terms.

        Parameters
        ----------
        mean : Tensor, shape [*b, N]
            Marginal means at which they were evaluated.
        min_precision : float, optional
            Clip ``lam2`` from below.

        Returns
        -------
        Sites
            On the data rows.
        """
        lam2 = -2.0 * self.by_variance
        if min_precision is not None:
            lam2 = lam2.clamp_min(min_precision)
        return Sites(self.by_mean + lam2 * mean, lam2)


def row_terms(
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    marginals: Marginals,
    *,
    weights: Tensor | None = None,
    log_v: Tensor | None = None,
    **rows: Tensor,
) -> RowTerms:
    """:func:`data_term` and its derivatives in one go, by the likelihood's own short cuts.

    Parameters
    ----------
    likelihood : gpytorch or gpvi likelihood
        Any.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    marginals : Marginals, shape [*b, N]
        Moments of q(f).
    weights : Tensor, shape [N], optional
        Row weights.
    log_v : Tensor, shape broadcastable to [*b], optional
        Log scale of the conditional residual variance.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    RowTerms
        Off the graph.

    Examples
    --------
    >>> import torch
    >>> from gpvi.likelihoods import PoissonLikelihood
    >>> moments = Marginals(torch.zeros(1), torch.zeros(1))
    >>> row_terms(PoissonLikelihood(), torch.ones(1), moments).dual(moments.mean).lam2
    tensor([1.])
    """
    if weights is not None:
        rows = {**rows, "weights": weights}
    variance = _variance(marginals, log_v).expand_as(marginals.mean)
    model = as_likelihood(likelihood)
    return RowTerms(*expectation_slopes(model, y, marginals.mean, variance, **rows))


def _variance(marginals: Marginals, log_v: Tensor | None) -> Tensor:
    if marginals.residual is None:
        return marginals.explained
    scale = 1.0 if log_v is None else log_v.exp().unsqueeze(-1)
    return marginals.explained + scale * marginals.residual


def dual(
    term: Callable[[Marginals], Tensor], marginals: Marginals, *, min_precision: float | None = None
) -> Sites:
    """Sites dual to a data term: its derivative in mean and explained variance.

    Parameters
    ----------
    term : callable
        Maps marginals to row values; usually :func:`data_term` with all else bound.
    marginals : Marginals, shape [*b, N]
        Where to differentiate.
    min_precision : float, optional
        Clip ``lam2`` from below (0 keeps q proper for likelihoods that are not log-concave).

    Returns
    -------
    Sites
        On the data rows, off the graph.

    Examples
    --------
    >>> import torch
    >>> moments = Marginals(torch.zeros(1), torch.ones(1))
    >>> sites = dual(lambda q: -0.5 * ((1.0 - q.mean) ** 2 + q.variance), moments)
    >>> sites.lam1, sites.lam2
    (tensor([1.]), tensor([1.]))
    """
    with torch.enable_grad():
        mean = marginals.mean.detach().requires_grad_()
        explained = marginals.explained.detach().expand_as(mean).clone().requires_grad_()
        residual = None if marginals.residual is None else marginals.residual.detach()
        value = term(Marginals(mean, explained, residual)).sum()
        slope, curvature = torch.autograd.grad(value, (mean, explained))
    lam2 = -2.0 * curvature
    if min_precision is not None:
        lam2 = lam2.clamp_min(min_precision)
    return Sites(slope + lam2 * mean.detach(), lam2)
