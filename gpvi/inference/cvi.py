r"""Conjugate-computation variational inference: natural-gradient ascent on Gaussian sites.

One sweep moves the sites towards the duals of the data term,
:math:`\lambda \leftarrow (1-\rho)\lambda + \rho\,\mathrm{dual}(E_q \log p(y\mid f))`, which is a
natural-gradient step of length :math:`\rho` on q. A Gaussian likelihood needs one sweep with
:math:`\rho = 1`. Any other gets backtracking: a sweep that gains less than a tenth of what the slope
promises (Armijo's rule), or leaves the range of floating-point numbers, is retaken with half the step.
Without that, latents that a likelihood couples would oscillate.

The scale v of the tightened bound is the variance of one more Gaussian factor, whose natural parameter
:math:`1/v` moves towards :math:`1 + \tfrac1N \sum_n d_n \lambda_{2,n}` in the same step.

References
----------
Khan, M. E. & Lin, W. (2017). Conjugate-computation variational inference. AISTATS.
Chang, P. E., Wilkinson, W. J., Khan, M. E. & Solin, A. (2020). Fast variational learning in state-space
Gaussian process models. MLSP.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import Marginals, Posterior, Prior, Sites
from gpvi.exceptions import InputError, NumericalError
from gpvi.inference.data_term import RowTerms, row_terms
from gpvi.inference.objectives import assemble, elbo, row_copies, scale_cost, tighter_elbo
from gpvi.likelihoods import Likelihood, as_likelihood

__all__ = ["CVIResult", "cvi"]

_SMALLEST_STEP = 1e-4

# The precision of the scaled residual does not fall below this fraction of the prior's.
_SMALLEST_PRECISION = 1e-3

# A sweep must gain this fraction of its slope; a conjugate one gains half.
_ARMIJO = 0.1

# Where q is not exactly prior times sites, sweeps end within so many nats per row of the maximum.
_INEXACT = 1e-6


@dataclass(frozen=True, eq=False)
class CVIResult:
    """Outcome of :func:`cvi`.

    Parameters
    ----------
    sites : Sites
        On the data rows, off the graph.
    posterior : Posterior
        The (detached) prior conditioned on them.
    objective : float
        Final objective in nats, summed over batch dims.
    steps : int
        Sweeps taken.
    converged : bool
        Whether the last sweep gained less than the tolerance, or no step gains anything.
    history : list of float
        Objective after every sweep.
    log_v : Tensor or None
        Log residual scale of the tightened bound, where one was used.
    terms : RowTerms or None
        Data terms and their derivatives at the posterior; None for a Gaussian likelihood.
    """

    sites: Sites
    posterior: Posterior
    objective: float
    steps: int
    converged: bool
    history: list[float] = field(default_factory=list)
    log_v: Tensor | None = None
    terms: RowTerms | None = None


def cvi(
    prior: Prior,
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    *,
    sites: Sites | None = None,
    log_v: Tensor | None = None,
    max_steps: int = 100,
    step_size: float = 1.0,
    tolerance: float = 1e-6,
    min_precision: float = 0.0,
    tighter: bool = False,
    weights: Tensor | None = None,
    **rows: Tensor,
) -> CVIResult:
    r"""Fixed-point sites of a likelihood under a prior.

    Parameters
    ----------
    prior : Prior
        At the rows of ``y``.
    likelihood : gpytorch or gpvi likelihood
        Any.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    sites : Sites, optional
        Where to start (sites on data rows); a rough guess from the likelihood if left out.
    log_v : Tensor, shape [*b], optional
        Where the log residual scale of the tightened bound starts.
    max_steps : int
        The most sweeps.
    step_size : float
        Longest step in (0, 1]. Latents that a likelihood couples are safe through backtracking; with
        L equal loadings 1/L saves the retries.
    tolerance : float
        Stop once a sweep gains less than this many nats per unit of step.
    min_precision : float
        Site precisions are clipped from below here. At 0 the sites of a likelihood that is not
        log-concave stay proper, at the price of a fixed point that is not exactly stationary.
    tighter : bool
        Use the tightened bound.
    weights : Tensor, shape [N], optional
        Row weights.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    CVIResult
        Sites, posterior and the course of the objective.

    Raises
    ------
    InputError
        For impossible options, and targets or extras that do not fit the prior or the likelihood.
    NumericalError
        If not even the smallest step from the start gives a finite objective.

    Examples
    --------
    >>> import torch
    >>> from gpvi.approximations import Exact, GaussianProcess
    >>> from gpvi.kernels import parse_kernel
    >>> from gpvi.likelihoods import PoissonLikelihood
    >>> x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
    >>> prior = Exact().prior(GaussianProcess(parse_kernel("rbf", 1)), x)
    >>> result = cvi(prior, PoissonLikelihood(), torch.tensor([0.0, 1, 1, 2, 4]).double())
    >>> result.converged
    True
    """
    if not 0.0 < step_size <= 1.0:
        raise InputError(f"step_size is {step_size}; it must lie in (0, 1].")
    if max_steps < 1:
        raise InputError(f"max_steps is {max_steps}; it must be at least 1.")
    model = as_likelihood(likelihood)
    extras = rows if weights is None else {**rows, "weights": weights}
    model.prepare(y, prior.mean, prior.mean.shape[-1], dict(extras))  # checks shapes
    model.check_targets(y, **extras)
    problem = _Problem(prior.detach(), model, y, weights, dict(rows), min_precision, tighter)
    exact = problem.gaussian_sites()
    with torch.no_grad():
        if exact is not None:
            return _one_step(problem, exact)
        return _iterate(problem, sites, log_v, max_steps, step_size, tolerance)


@dataclass(frozen=True, eq=False)
class _State:
    sites: Sites
    log_v: Tensor | None
    posterior: Posterior
    marginals: Marginals
    terms: RowTerms
    objective: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """One inference problem with everything but the sites bound."""

    prior: Prior
    likelihood: Likelihood
    y: Tensor
    weights: Tensor | None
    rows: dict[str, Any]  # of tensors; mypy would match them with every keyword
    min_precision: float
    tighter: bool

    def gaussian_sites(self) -> Sites | None:
        """Exact sites of a Gaussian likelihood, or None."""
        noise = self.likelihood.gaussian_noise(self.y, **self.rows)
        if noise is None or self.likelihood.num_latents > 1:
            return None
        precision = noise.detach().reciprocal().expand_as(self.y)
        if self.weights is not None:
            precision = precision * self.weights
        observed = ~torch.isnan(self.y)
        return Sites(precision * self.y, precision.contiguous()).mask(observed)

    def start(self) -> Sites:
        """Duals at a rough guess of the latent values, or at the prior."""
        mean = self.prior.mean
        rows = self.rows if self.weights is None else {**self.rows, "weights": self.weights}
        guess = self.likelihood.initial_latent(self.y, **rows)
        explained = self.prior.condition(self.zeros()).marginals().explained
        moments = Marginals(mean, explained, self.prior.residual)
        if guess is not None and self.likelihood.num_latents == 1:
            moments = Marginals(guess.expand_as(mean), 0.01 * explained)
        return self._terms(moments, None).dual(moments.mean, self.min_precision)

    def evaluate(self, sites: Sites, log_v: Tensor | None) -> _State:
        """Posterior, moments, row terms and objective."""
        posterior = self.prior.condition(sites)
        marginals = posterior.marginals()
        terms = self._terms(marginals, log_v)
        cost = None if log_v is None else scale_cost(self.copies, log_v, marginals.mean)
        value = assemble(posterior, self.likelihood, terms.value, None, cost)
        return _State(sites, log_v, posterior, marginals, terms, float(value.sum()))

    def step(self, state: _State, target: Sites, length: float) -> _State | None:
        """The state after a step along the natural gradient; None if it is out of range."""
        log_v = state.log_v
        if log_v is not None:
            towards = self._residual_precision(state)
            log_v = -torch.lerp((-log_v).exp(), towards, length).log()
        return self.attempt(state.sites.lerp(target, length), log_v)

    def attempt(self, sites: Sites, log_v: Tensor | None) -> _State | None:
        """:meth:`evaluate`, or None where numbers leave their range."""
        if not bool(torch.isfinite(sites.lam1).all() and torch.isfinite(sites.lam2).all()):
            return None
        try:
            state = self.evaluate(sites, log_v)
        except NumericalError:
            return None
        return state if math.isfinite(state.objective) else None

    def first_log_v(self, log_v: Tensor | None) -> Tensor | None:
        """Where the residual scale starts; None where there is none to choose."""
        if not self.tighter or self.prior.residual is None:
            return None
        start = torch.zeros_like(self.prior.mean[..., 0])
        return start if log_v is None else log_v.detach().to(start).expand_as(start)

    def zeros(self) -> Sites:
        """Sites that say nothing."""
        mean = self.prior.mean
        return Sites.zeros(mean.shape, dtype=mean.dtype, device=mean.device)

    @cached_property
    def copies(self) -> Tensor:
        """How many rows with residuals of their own every row stands for."""
        return row_copies(self.likelihood, self.y, self.weights).to(self.prior.mean)

    def _terms(self, marginals: Marginals, log_v: Tensor | None) -> RowTerms:
        return row_terms(
            self.likelihood, self.y, marginals, weights=self.weights, log_v=log_v, **self.rows
        )

    def _residual_precision(self, state: _State) -> Tensor:
        """``1 + mean d lam2``, kept positive for likelihoods that are not log-concave."""
        residual = self.prior.residual
        assert residual is not None
        count = self.copies.expand_as(state.marginals.mean).sum(-1).clamp_min(1.0)
        total = (residual * state.terms.by_variance).sum(-1)
        return (1.0 - 2.0 * total / count).clamp_min(_SMALLEST_PRECISION)


def _one_step(problem: _Problem, sites: Sites) -> CVIResult:
    """Condition on the exact sites of a Gaussian likelihood."""
    posterior = problem.prior.condition(sites)
    bound = tighter_elbo if problem.tighter else elbo
    value = bound(posterior, problem.likelihood, problem.y, weights=problem.weights, **problem.rows)
    objective = float(value.sum())
    if not math.isfinite(objective):
        raise NumericalError(
            f"The objective of {type(problem.likelihood).__name__} is {objective}; check targets and "
            "noise."
        )
    return CVIResult(sites, posterior, objective, 1, True, [objective])


def _iterate(
    problem: _Problem,
    sites: Sites | None,
    log_v: Tensor | None,
    max_steps: int,
    step_size: float,
    tolerance: float,
) -> CVIResult:
    state = _first_state(problem, sites, log_v)
    history = [state.objective]
    step, converged, taken = step_size, False, 0
    loose = 0.0 if problem.prior.exact_conditioning else _INEXACT * state.marginals.mean.numel()
    while taken < max_steps and not converged:
        fresh = state.terms.dual(state.marginals.mean, problem.min_precision)
        trial = problem.step(state, fresh, step)
        while trial is None or not _gains_enough(state, trial, step, loose):
            step *= 0.5
            if step < _SMALLEST_STEP:
                # No step along the natural gradient helps: a fixed point up to clipping and rounding,
                # unless there is no natural gradient because the duals are not finite.
                return _result(state, taken, trial is not None, history)
            trial = problem.step(state, fresh, step)
        converged = trial.objective - state.objective < max(tolerance * step, loose)
        state = trial
        history.append(state.objective)
        taken += 1
        step = min(step_size, 2.0 * step)
    return _result(state, taken, converged, history)


def _gains_enough(state: _State, trial: _State, step: float, loose: float) -> bool:
    """Armijo's rule; the slope times the step is ``2 KL(old || new) / step`` to first order."""
    moments = state.marginals
    by_mean = (trial.sites.lam1 - state.sites.lam1) * moments.mean
    by_square = (trial.sites.lam2 - state.sites.lam2) * (moments.mean.square() + moments.explained)
    change = (trial.posterior.log_partition - state.posterior.log_partition).sum()
    divergence = max(0.0, float(change - (by_mean - 0.5 * by_square).sum()))
    slack = loose + 1e-10 * (1.0 + abs(state.objective))
    return trial.objective - state.objective >= 2.0 * _ARMIJO * divergence / step - slack


def _first_state(problem: _Problem, sites: Sites | None, log_v: Tensor | None) -> _State:
    log_v = problem.first_log_v(log_v)
    for candidate in (lambda: sites, problem.start, problem.zeros):
        start = candidate()
        state = None if start is None else problem.attempt(start.detach(), log_v)
        if state is not None:
            return state
    raise NumericalError(
        f"The objective of {type(problem.likelihood).__name__} is not finite even at the prior; check "
        "the targets and the scale of the hyperparameters."
    )


def _result(state: _State, taken: int, converged: bool, history: list[float]) -> CVIResult:
    return CVIResult(
        state.sites,
        state.posterior,
        state.objective,
        taken,
        converged,
        history,
        state.log_v,
        state.terms,
    )
