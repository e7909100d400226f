r"""The posterior of some rows of a Markov process as a covariance operator of its own.

Given Gaussian sites the states are a Markov process still: with the later sites' message
:math:`\exp(\eta^\top z - \tfrac12 z^\top J z)` and :math:`Q = C C^\top`,
:math:`B = I + C^\top J C`,

.. math:: z_k = (A - C B^{-1} C^\top J A) z_{k-1} + \dots + N(0, \, C B^{-1} C^\top).

Rows that nobody asks for are run over: their transitions are multiplied up to the next row that is
wanted.
"""

import torch
from torch import Tensor

from gpvi.linalg.markov._tensor_chain import build_chain
from gpvi.linalg.markov._tensor_passes import conditional_step, messages
from gpvi.linalg.markov.operators import SemiseparableLinearOperator
from gpvi.linalg.markov.scan import Element, associative_scan
from gpvi.linalg.markov.smoothing import markov_marginals

__all__ = ["condition_last"]


def condition_last(
    prior: SemiseparableLinearOperator, lam1: Tensor, lam2: Tensor, count: int
) -> tuple[Tensor, SemiseparableLinearOperator]:
    """Posterior mean and covariance of the last rows of a matrix, in linear time.

    Parameters
    ----------
    prior : SemiseparableLinearOperator
        Covariance of N values.
    lam1, lam2 : Tensor, shape [*b, N]
        Sites ``exp(lam1 f - lam2 f^2 / 2)`` in the order of the matrix; zero for no observation.
    count : int
        M, how many of the last rows are wanted.

    Returns
    -------
    mean : Tensor, shape [*b, M]
        Posterior mean of the last M values, the prior's being zero.
    covariance : SemiseparableLinearOperator
        Posterior covariance, of shape [*b, M, M].

    Raises
    ------
    NumericalError
        If a site is so negative that the posterior is improper.

    References
    ----------
    Särkkä, S. & García-Fernández, Á. F. (2021). Temporal parallelization of Bayesian smoothers.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.kernels import as_state_space
    >>> model = as_state_space(gpytorch.kernels.MaternKernel(nu=0.5).double()).model()
    >>> prior = SemiseparableLinearOperator.from_model(model, torch.tensor([0.0, 0.0]).double())
    >>> one = torch.tensor([1.0, 0.0]).double()  # a site on the first, which is the second too
    >>> mean, covariance = condition_last(prior, one, one, 1)
    >>> round(mean.item(), 6), round(covariance.to_dense().item(), 6)
    (0.5, 0.5)
    """
    model, steps = prior.model()
    j, w = (prior.sort(lam.unsqueeze(-1)).squeeze(-1) for lam in (lam1, lam2))
    mean = prior.unsort(markov_marginals(model, steps, j, w)[0].unsqueeze(-1)).squeeze(-1)
    chain = build_chain(model, steps, j, w)
    transition, root = conditional_step(chain.transition, chain.noise, messages(chain)[1])
    first = prior.shape[-1] - count
    order = prior.order.expand(*transition.shape[:-2])
    wanted = order >= first
    transition, noise = _jump(transition, root.mT @ root, wanted)
    # A stable sort puts the wanted rows in front, in order of time.
    rows = torch.argsort((~wanted).to(torch.int8), dim=-1, stable=True)[..., :count]
    d = transition.shape[-1]
    index = rows[..., None, None].expand(*rows.shape, d, d)
    readout = prior.readout.expand(*transition.shape[:-1])
    covariance = SemiseparableLinearOperator(
        transition.gather(-3, index),
        noise.gather(-3, index),
        readout.gather(-2, index[..., 0]),
        order.gather(-1, rows) - first,
    )
    return mean[..., first:], covariance


def _jump(transition: Tensor, noise: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Transition and noise of every row from the last wanted row before it."""
    begins = torch.nn.functional.pad(wanted[..., :-1], (1, 0), value=True)
    mark = begins[..., None, None].to(transition.dtype)

    def combine(earlier: Element, later: Element) -> Element:
        (first, spread, begun), (second, more, begins_here) = earlier, later
        fresh = begins_here > 0
        moved = torch.where(fresh, second, second @ first)
        noisy = torch.where(fresh, more, second @ spread @ second.mT + more)
        return moved, noisy, torch.maximum(begun, begins_here)

    moved, noisy, _ = associative_scan(combine, (transition, noise, mark))
    return moved, noisy
