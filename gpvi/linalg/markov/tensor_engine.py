r"""Filter, smoother, log-normaliser and samples of Gauss-Markov processes with Gaussian sites.

The posterior is the prior path of a :class:`~gpvi.linalg.markov.model.MarkovModel` times sites
:math:`\exp(\lambda_1 f - \tfrac12 \lambda_2 f^2)`, one per row; a zero site is a missing value.
Everything here is in covariance form, so that a step of length zero, a process without noise and a
grid far finer than the lengthscale are ordinary cases, and everything is parallel in time: plain
tensor operations with leading batch dims, on any device, differentiable in all tensors.

The log-normaliser has a hand-written adjoint. With (r, N) of the smoother and
:math:`G = r r^\top - N`,

.. math:: \frac{\partial \log Z}{\partial Q_k} = \tfrac12 G_k, \qquad
          \frac{\partial \log Z}{\partial A_k} = r_k (m_{k-1}^+)^\top + G_k A_k P_{k-1}^+ .

The usual form, by moments of pairs of states and :math:`Q^{-1}`, loses all digits at a thousand
points per lengthscale; this one none.

References
----------
Särkkä, S. & García-Fernández, Á. F. (2021). Temporal parallelization of Bayesian smoothers. IEEE
Transactions on Automatic Control 66(1).
de Jong, P. (1989). Smoothing and interpolation with the state-space model. JASA 84(408).
"""

from typing import Any

import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov._tensor_chain import Chain, build_chain
from gpvi.linalg.markov._tensor_passes import (
    adjoint,
    conditional_step,
    log_increments,
    messages,
    pad_front,
    predicted,
    readout_moments,
    update_at,
)
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.scan import affine, associative_scan
from gpvi.linalg.markov.state_path import StatePath

__all__ = ["tensor_log_partition", "tensor_marginals", "tensor_sample", "tensor_state_path"]


def tensor_state_path(model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor) -> StatePath:
    """Predicted moments and smoothing adjoint of every state.

    Parameters
    ----------
    model : MarkovModel
        Prior and readout.
    steps : Steps
        Stamps of T rows, in one or several series.
    lam1 : Tensor, shape [*b, T], or [*b, T, K] with ``model.outputs``
        Linear terms of the sites.
    lam2 : Tensor, shape [*b, T], or [*b, T, K, K] with ``model.outputs``
        Precisions of the sites, symmetric; negative ones too, while the product is proper.

    Returns
    -------
    StatePath
        Differentiable by autograd in all tensors.

    Raises
    ------
    InputError
        If shapes do not fit.
    NumericalError
        If prior times sites up to some row is improper; the row is named.

    Examples
    --------
    >>> import torch
    >>> from gpvi.linalg.markov.blocks import CascadeBlock, matern_noise, stationary_cascade
    >>> one = torch.ones((), dtype=torch.float64)
    >>> c = matern_noise(0) * one
    >>> model = MarkovModel((CascadeBlock(0, one, c, stationary_cascade(0, c)),))
    >>> steps = Steps.single(torch.tensor([0.0, 0.5]).double())
    >>> path = tensor_state_path(model, steps, one.expand(2), one.expand(2))
    >>> path.smoothed_mean().flatten()
    tensor([0.6163, 0.6163], dtype=torch.float64)
    """
    chain = build_chain(model, steps, lam1, lam2)
    m, P = predicted(chain)
    r, N = adjoint(chain, m, update_at(chain, P))
    return StatePath(m.squeeze(-1), P, r.squeeze(-1), N)


def tensor_marginals(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor
) -> tuple[Tensor, Tensor]:
    """Posterior moments of the readouts.

    Parameters
    ----------
    model : MarkovModel
        Prior and readout.
    steps : Steps
        Stamps of T rows.
    lam1 : Tensor, shape [*b, T], or [*b, T, K] with ``model.outputs``
        Linear terms of the sites.
    lam2 : Tensor, shape [*b, T], or [*b, T, K, K] with ``model.outputs``
        Precisions of the sites.

    Returns
    -------
    mean : Tensor, shape [*b, T] or [*b, T, K]
        Posterior means.
    variance : Tensor, shape [*b, T] or [*b, T, K, K]
        Posterior variances, or covariances between the outputs of a row.

    Raises
    ------
    InputError
        If shapes do not fit.
    NumericalError
        If prior times sites up to some row is improper.

    Examples
    --------
    >>> import torch
    >>> from gpvi.linalg.markov.blocks import CascadeBlock, matern_noise, stationary_cascade
    >>> one = torch.ones((), dtype=torch.float64)
    >>> c = matern_noise(0) * one
    >>> model = MarkovModel((CascadeBlock(0, one, c, stationary_cascade(0, c)),))
    >>> steps = Steps.single(torch.tensor([0.0, 0.5]).double())
    >>> tensor_marginals(model, steps, one.expand(2), torch.tensor([1.0, 0.0]).double())[1]
    tensor([0.5000, 0.8161], dtype=torch.float64)
    """
    chain = build_chain(model, steps, lam1, lam2)
    m, P = predicted(chain)
    site = update_at(chain, P)
    mean, variance = readout_moments(chain, m, site, *adjoint(chain, m, site))
    if model.outputs is None:
        return mean[..., 0, 0], variance[..., 0, 0]
    return mean.squeeze(-1), variance


def tensor_log_partition(model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor) -> Tensor:
    r"""Log-normaliser of prior times sites, :math:`\log E[\prod_k e^{\lambda_1 f - \lambda_2 f^2/2}]`.

    Parameters
    ----------
    model : MarkovModel
        Prior and readout.
    steps : Steps
        Stamps of T rows in G series.
    lam1 : Tensor, shape [*b, T], or [*b, T, K] with ``model.outputs``
        Linear terms of the sites.
    lam2 : Tensor, shape [*b, T], or [*b, T, K, K] with ``model.outputs``
        Precisions of the sites.

    Returns
    -------
    Tensor, shape [*b, G]
        One total per series. First derivatives by the adjoint of the module's docstring, higher
        ones by autograd through it.

    Raises
    ------
    InputError
        If shapes do not fit.
    NumericalError
        If prior times sites up to some row is improper.

    Examples
    --------
    >>> import torch
    >>> from gpvi.linalg.markov.blocks import CascadeBlock, matern_noise, stationary_cascade
    >>> one = torch.ones((), dtype=torch.float64)
    >>> c = matern_noise(0) * one
    >>> model = MarkovModel((CascadeBlock(0, one, c, stationary_cascade(0, c)),))
    >>> steps = Steps.single(torch.tensor([0.0]).double())
    >>> tensor_log_partition(model, steps, 0.0 * one.expand(1), one.expand(1))  # -log(2) / 2
    tensor([-0.3466], dtype=torch.float64)
    """
    chain = build_chain(model, steps, lam1, lam2)
    value: Tensor = _LogPartition.apply(steps.series, steps.num_series, *chain)
    return value


def tensor_sample(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor, normals: Tensor
) -> Tensor:
    r"""Posterior paths of the states, an affine and smooth function of standard normals.

    Backward, the sites from row k on become :math:`\exp(\eta^\top x_k - \tfrac12 x_k^\top J x_k)`.
    Forward, with :math:`Q = C C^\top` and :math:`B = I + C^\top J C = L L^\top`,

    .. math:: x_k = A x_{k-1} + C B^{-1} C^\top (\eta - J A x_{k-1}) + C L^{-\top} \epsilon_k .

    Parameters
    ----------
    model : MarkovModel
        Prior and readout.
    steps : Steps
        Stamps of T rows.
    lam1 : Tensor, shape [*b, T], or [*b, T, K] with ``model.outputs``
        Linear terms of the sites.
    lam2 : Tensor, shape [*b, T], or [*b, T, K, K] with ``model.outputs``
        Precisions of the sites; of either sign, as long as the posterior is proper.
    normals : Tensor, shape [S, *b, T, d]
        Independent standard normals; zeros give the posterior mean.

    Returns
    -------
    Tensor, shape [S, *b, T, d]
        Paths; rows of one series with equal stamps have equal states.

    Raises
    ------
    InputError
        If shapes do not fit.
    NumericalError
        If the posterior is improper.

    Examples
    --------
    >>> import torch
    >>> from gpvi.linalg.markov.blocks import CascadeBlock, matern_noise, stationary_cascade
    >>> one = torch.ones((), dtype=torch.float64)
    >>> c = matern_noise(0) * one
    >>> model = MarkovModel((CascadeBlock(0, one, c, stationary_cascade(0, c)),))
    >>> steps, site = Steps.single(torch.tensor([0.0, 0.5]).double()), one.expand(2)
    >>> tensor_sample(model, steps, site, site, torch.zeros(1, 2, 1).double()).flatten()
    tensor([0.6163, 0.6163], dtype=torch.float64)
    """
    chain = build_chain(model, steps, lam1, lam2)
    A, Q = chain.transition, chain.noise
    if normals.dim() < 3 or normals.shape[-2:] != A.shape[-3:-1]:
        raise InputError(
            f"normals has shape {tuple(normals.shape)}; for {steps.num_rows} rows of states of "
            f"dimension {model.dimension} it must be [S, *b, {steps.num_rows}, {model.dimension}]."
        )
    eta, J = messages(chain)
    Phi, root = conditional_step(A, Q, J)
    shift = root.mT @ (root @ eta + normals.unsqueeze(-1))
    return associative_scan(affine, (Phi, shift))[1].squeeze(-1)


class _LogPartition(torch.autograd.Function):
    """Totals of ``log E[site]`` per series, with the adjoint by (r, N)."""

    @staticmethod
    def forward(ctx: Any, series: Tensor, num_series: int, *tensors: Tensor) -> Tensor:
        chain = Chain(*tensors)
        m, P = predicted(chain)
        increments = log_increments(chain, m, update_at(chain, P))
        ctx.save_for_backward(series, m, P, *tensors)
        total = increments.new_zeros(*increments.shape[:-1], num_series)
        return total.index_add_(-1, series, increments)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        series, m, P, *tensors = ctx.saved_tensors
        chain = Chain(*tensors)
        if torch.is_grad_enabled():
            # Somebody wants derivatives of this: the moments kept are no functions of the tensors.
            m, P = predicted(chain)
        weight = upstream[..., series, None, None]
        wanted = Chain(*ctx.needs_input_grad[2:])
        slopes = _slopes(chain, wanted, m, P)
        return None, None, *(None if slope is None else weight * slope for slope in slopes)


def _slopes(chain: Chain, wanted: Chain, mean: Tensor, covariance: Tensor) -> list[Tensor | None]:
    """Derivatives of the log-normaliser in the tensors of a chain, where they are wanted."""
    site = update_at(chain, covariance)
    r, N = adjoint(chain, mean, site)
    G = r @ r.mT - N
    dA = dQ = dH = dlam1 = dlam2 = None
    if wanted.transition:
        m = mean + site.gain @ (site.vector - site.matrix @ (chain.readout @ mean))
        m, P = pad_front(m[..., :-1, :, :]), site.covariance(covariance)[..., :-1, :, :]
        dA = r @ m.mT + G @ chain.transition @ pad_front(P)
    if wanted.noise:
        dQ = 0.5 * G
    if wanted.readout:
        x = mean + covariance @ r
        V = covariance - covariance @ N @ covariance
        dH = (chain.lam1 - chain.lam2 @ (chain.readout @ x)) @ x.mT
        dH = dH - chain.lam2 @ chain.readout @ V
    if wanted.lam1 or wanted.lam2:
        dlam1, variance = readout_moments(chain, mean, site, r, N)
        dlam2 = -0.5 * (dlam1 @ dlam1.mT + variance)
    return [dA, dQ, dH, dlam1, dlam2]
