r"""Expectation propagation: sites that match the moments of tilted distributions.

With derivatives :math:`d_1, d_2` of :math:`\log \tilde Z` by the mean of the cavity
:math:`N(m_-, v_-)`, the tilted distribution has the moments

.. math:: \hat m = m_- + v_- d_1, \qquad \hat v = v_- + v_-^2 d_2,

and the site that gives them back, of a fraction a of the likelihood, is

.. math:: a \lambda_2 = -\frac{d_2}{1 + v_- d_2}, \qquad a \lambda_1 = d_1 + a \lambda_2 \hat m .

All rows are updated in one sweep. Sweeps may oscillate: they get shorter when the sites stop coming closer to
their targets. At the fixed point the energy of :func:`gpvi.inference.ep_energy` is stationary in
the sites, so that its gradient at held sites is the total one.

References
----------
Minka, T. (2001). Expectation propagation for approximate Bayesian inference. UAI.
Minka, T. (2004). Power EP. Technical report, Microsoft Research.
Rasmussen, C. E. & Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, section 3.6.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import Posterior, Prior, Sites
from gpvi.approximations.cavity import check_rows_have_sites
from gpvi.exceptions import InputError, NumericalError
from gpvi.inference.cvi import CVIResult, cvi
from gpvi.inference.ep_energy import ep_energy
from gpvi.inference.tilted import Cavity, Fractions, check_one_latent, log_tilted
from gpvi.likelihoods import Likelihood, as_likelihood

__all__ = ["expectation_propagation"]

_SMALLEST_STEP = 1e-3

# Steps grow by the first factor while sites come closer to their targets, and shrink by the second where they
# do not, down to a length at which parallel sweeps hardly ever oscillate.
_GROWTH, _SHRINKAGE, _DAMPED = 1.1, 0.6, 0.05

# The tilted variance is at least this fraction of the cavity's, whatever rounding says.
_LEAST_LEFT = 1e-10


def expectation_propagation(
    prior: Prior,
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    *,
    power: float = 1.0,
    sites: Sites | None = None,
    max_steps: int = 200,
    step_size: float = 1.0,
    tolerance: float = 1e-7,
    min_precision: float = 0.0,
    weights: Tensor | None = None,
    **rows: Tensor,
) -> CVIResult:
    r"""Sites of (power) expectation propagation under a prior.

    Parameters
    ----------
    prior : Prior
        At the rows of ``y``. Where its basis leaves part of f open, that part belongs to the tilted
        distribution, and sites are about the projection: the generalised FITC of Bui et al. (2017).
    likelihood : gpytorch or gpvi likelihood
        With one latent function.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    power : float
        :math:`a` in (0, 1]: how much of a site is taken out at a time. Towards zero the sites become
        those of :func:`gpvi.inference.cvi`.
    sites : Sites, optional
        Where to start; those of a few sweeps of :func:`gpvi.inference.cvi` if left out.
    max_steps : int
        The most sweeps.
    step_size : float
        Longest step in (0, 1] of the sites towards their targets.
    tolerance : float
        Stop once no site would move its row by more, in posterior standard deviations.
    min_precision : float
        Site precisions are clipped from below here. At 0 the sites of a likelihood that is not
        log-concave stay proper, at the price of matching means only where the clip is active.
    weights : Tensor, shape [N], optional
        Row weights; a row of integer weight has as many sites.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    CVIResult
        Sites, posterior, and the energy as objective; ``history`` has the largest move of every sweep.

    Raises
    ------
    InputError
        For impossible options, and targets or extras that do not fit.
    UnsupportedError
        For several latent functions, and priors whose rows have no sites of their own.
    NumericalError
        If not even the smallest step gives a proper posterior.

    References
    ----------
    Bui, T. D., Yan, J. & Turner, R. E. (2017). A unifying framework for Gaussian process pseudo-point
    approximations using power expectation propagation. JMLR.

    Examples
    --------
    >>> import torch
    >>> from gpvi.approximations import Exact, GaussianProcess
    >>> from gpvi.kernels import parse_kernel
    >>> from gpvi.likelihoods import BernoulliLikelihood
    >>> x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
    >>> prior = Exact().prior(GaussianProcess(parse_kernel("rbf", 1)), x)
    >>> labels = torch.tensor([0.0, 0, 1, 1, 1]).double()
    >>> expectation_propagation(prior, BernoulliLikelihood(), labels).converged
    True
    """
    if not 0.0 < step_size <= 1.0:
        raise InputError(f"step_size is {step_size}; it must lie in (0, 1].")
    if max_steps < 1:
        raise InputError(f"max_steps is {max_steps}; it must be at least 1.")
    model = as_likelihood(likelihood)
    check_one_latent(model)
    parts = Fractions.of(model, y, power, weights, prior.mean)
    extras: dict[str, Any] = dict(rows)  # mypy would match tensors with every keyword
    start = cvi(prior, model, y, max_steps=5, sites=sites, weights=weights, **extras)
    check_rows_have_sites(type(start.posterior).__name__, start.posterior.sites)
    if model.gaussian_noise(y, **rows) is not None:
        return start
    problem = _Problem(prior.detach(), model, y, parts, extras, min_precision)
    with torch.no_grad():
        state = problem.state(start.sites if sites is None else sites.detach())
        history, taken = [state.move], 0
        step = step_size
        while state.move > tolerance and taken < max_steps and step >= _SMALLEST_STEP:
            trial = problem.attempt(state.sites.lerp(state.target, step))
            taken += 1
            if trial is None:
                step *= 0.5
                continue
            closer = trial.move < state.move
            step = min(step_size, _GROWTH * step) if closer else max(_DAMPED, _SHRINKAGE * step)
            state = trial
            history.append(state.move)
        energy = ep_energy(state.posterior, model, y, power=power, weights=weights, **extras)
    objective = float(energy.sum())
    if not math.isfinite(objective):
        raise NumericalError(
            f"The energy of {type(model).__name__} is {objective}; check the targets and the scale of the "
            "hyperparameters, or use cvi."
        )
    converged = state.move <= tolerance
    return CVIResult(state.sites, state.posterior, objective, taken, converged, history)


@dataclass(frozen=True, eq=False)
class _State:
    sites: Sites
    posterior: Posterior
    target: Sites
    move: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """Everything but the sites."""

    prior: Prior
    likelihood: Likelihood
    y: Tensor
    parts: Fractions
    rows: dict[str, Tensor]
    min_precision: float

    def attempt(self, sites: Sites) -> _State | None:
        """:meth:`state`, or None where numbers leave their range."""
        try:
            state = self.state(sites)
        except NumericalError:
            return None
        return state if math.isfinite(state.move) else None

    def state(self, sites: Sites) -> _State:
        """Posterior at some sites, and where it would have them."""
        posterior = self.prior.condition(sites)
        cavity = Cavity.of(posterior, self.parts.fraction)
        target = self._target(cavity)
        moments = posterior.marginals()
        scale = moments.explained.clamp_min(0.0)
        pull = (target.lam1 - sites.lam1) - (target.lam2 - sites.lam2) * moments.mean
        by_mean = (pull * scale.sqrt()).abs().amax()
        by_precision = ((target.lam2 - sites.lam2) * scale).abs().amax()
        return _State(sites, posterior, target, max(float(by_mean), float(by_precision)))

    def _target(self, cavity: Cavity) -> Sites:
        """Sites that match the moments of the tilted distributions."""
        with torch.enable_grad():
            mean = cavity.mean.detach().requires_grad_()
            explained = cavity.explained.detach().requires_grad_()
            leaf = Cavity(mean, explained, cavity.residual, cavity.gap)
            value = log_tilted(self.likelihood, self.y, leaf, self.parts, self.rows).sum()
            first, by_variance = torch.autograd.grad(value, (mean, explained))
        v = explained.detach()
        # Twice the slope in the variance is d2 + d1^2.
        second = 2.0 * by_variance - first.square()
        left = (1.0 + v * second).clamp_min(_LEAST_LEFT)
        lam2 = (-second / left / self.parts.fraction).clamp_min(self.min_precision)
        lam1 = first / self.parts.fraction + lam2 * (mean.detach() + v * first)
        return Sites(lam1, lam2)
