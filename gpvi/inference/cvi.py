r"""Conjugate-computation variational inference: natural-gradient ascent on Gaussian sites.

One sweep moves the sites towards the duals of the data term,
:math:`\lambda \leftarrow (1-\rho)\lambda + \rho\,\mathrm{dual}(E_q \log p(y\mid f))`, which is a
natural-gradient step of length :math:`\rho` on q. A Gaussian likelihood needs one sweep with
:math:`\rho = 1`. Any other gets backtracking: a sweep that gains less than a tenth of what the slope
promises (Armijo's rule), or leaves the range of floating-point numbers, is retaken with half the step.
Without that, latents that a likelihood couples would oscillate.

References
----------
Khan, M. E. & Lin, W. (2017). Conjugate-computation variational inference. AISTATS.
Chang, P. E., Wilkinson, W. J., Khan, M. E. & Solin, A. (2020). Fast variational learning in state-space
Gaussian process models. MLSP.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import Marginals, Posterior, Prior, Sites
from gpvi.exceptions import InputError, NumericalError
from gpvi.inference.data_term import data_term, dual
from gpvi.inference.objectives import elbo, optimal_log_v, tighter_elbo
from gpvi.likelihoods import Likelihood, as_likelihood

__all__ = ["CVIResult", "cvi"]

_SMALLEST_STEP = 1e-4

# A sweep must gain this fraction of its slope; a conjugate one gains half.
_ARMIJO = 0.1


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
    """

    sites: Sites
    posterior: Posterior
    objective: float
    steps: int
    converged: bool
    history: list[float] = field(default_factory=list)
    log_v: Tensor | None = None


def cvi(
    prior: Prior,
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    *,
    sites: Sites | None = None,
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
        Use the tightened bound: sites and residual scale are updated in turn.
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
    if exact is not None:
        state = problem.evaluate(exact)
        _require_finite(state.objective, likelihood)
        return CVIResult(exact, state.posterior, state.objective, 1, True, [state.objective])
    return _iterate(problem, sites, max_steps, step_size, tolerance, likelihood)


@dataclass(frozen=True, eq=False)
class _State:
    sites: Sites
    posterior: Posterior
    marginals: Marginals
    objective: float
    log_v: Tensor | None


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
        guess = self.likelihood.initial_latent(self.y, **self.rows)
        explained = self.prior.condition(self.zeros()).marginals().explained
        if guess is None or self.likelihood.num_latents > 1:
            return self.fresh(Marginals(mean, explained, self.prior.residual), None)
        near = Marginals(guess.expand_as(mean), 0.01 * explained)
        return self.fresh(near, None)

    def fresh(self, marginals: Marginals, log_v: Tensor | None) -> Sites:
        """Duals of the data term at given moments."""
        return dual(
            lambda q: data_term(
                self.likelihood, self.y, q, weights=self.weights, log_v=log_v, **self.rows
            ),
            marginals,
            min_precision=self.min_precision,
        )

    def evaluate(self, sites: Sites) -> _State:
        """Posterior, moments and objective for sites."""
        posterior = self.prior.condition(sites)
        marginals = posterior.marginals()
        scale = None
        with torch.no_grad():
            if self.tighter and marginals.residual is not None:
                if self.likelihood.gaussian_noise(self.y, **self.rows) is None:
                    scale = optimal_log_v(
                        self.likelihood, self.y, marginals, weights=self.weights, **self.rows
                    )
                value = tighter_elbo(
                    posterior,
                    self.likelihood,
                    self.y,
                    weights=self.weights,
                    log_v=scale,
                    **self.rows,
                )
            else:
                value = elbo(posterior, self.likelihood, self.y, weights=self.weights, **self.rows)
        return _State(sites, posterior, marginals, float(value.sum()), scale)

    def zeros(self) -> Sites:
        """Sites that say nothing."""
        mean = self.prior.mean
        return Sites.zeros(mean.shape, dtype=mean.dtype, device=mean.device)


def _iterate(
    problem: _Problem,
    sites: Sites | None,
    max_steps: int,
    step_size: float,
    tolerance: float,
    likelihood: GPyTorchLikelihood,
) -> CVIResult:
    state = _first_state(problem, sites, likelihood)
    history = [state.objective]
    step, converged, taken = step_size, False, 0
    while taken < max_steps and not converged:
        fresh = problem.fresh(state.marginals, state.log_v)
        trial = _try(problem, state.sites.lerp(fresh, step))
        while trial is None or not _gains_enough(state, trial, step):
            step *= 0.5
            if step < _SMALLEST_STEP:
                # No step along the natural gradient helps: a fixed point up to clipping and rounding,
                # unless there is no natural gradient because the duals are not finite.
                return _result(state, taken, trial is not None, history)
            trial = _try(problem, state.sites.lerp(fresh, step))
        converged = trial.objective - state.objective < tolerance * step
        state = trial
        history.append(state.objective)
        taken += 1
        step = min(step_size, 2.0 * step)
    return _result(state, taken, converged, history)


def _gains_enough(state: _State, trial: _State, step: float) -> bool:
    """Armijo's rule; the slope times the step is ``2 KL(old || new) / step`` to first order."""
    moments = state.marginals
    by_mean = (trial.sites.lam1 - state.sites.lam1) * moments.mean
    by_square = (trial.sites.lam2 - state.sites.lam2) * (moments.mean.square() + moments.explained)
    change = (trial.posterior.log_partition - state.posterior.log_partition).sum()
    divergence = max(0.0, float(change - (by_mean - 0.5 * by_square).sum()))
    slack = 1e-10 * (1.0 + abs(state.objective))
    return trial.objective - state.objective >= 2.0 * _ARMIJO * divergence / step - slack


def _first_state(problem: _Problem, sites: Sites | None, likelihood: GPyTorchLikelihood) -> _State:
    for candidate in (lambda: sites, problem.start, problem.zeros):
        start = candidate()
        state = None if start is None else _try(problem, start.detach())
        if state is not None:
            return state
    raise NumericalError(
        f"The objective of {type(likelihood).__name__} is not finite even at the prior; check the "
        "targets and the scale of the hyperparameters."
    )


def _try(problem: _Problem, sites: Sites) -> _State | None:
    if not bool(torch.isfinite(sites.lam1).all() and torch.isfinite(sites.lam2).all()):
        return None
    try:
        state = problem.evaluate(sites)
    except NumericalError:
        return None
    return state if math.isfinite(state.objective) else None


def _result(state: _State, taken: int, converged: bool, history: list[float]) -> CVIResult:
    return CVIResult(
        state.sites, state.posterior, state.objective, taken, converged, history, state.log_v
    )


def _require_finite(value: float, likelihood: GPyTorchLikelihood) -> None:
    if not math.isfinite(value):
        raise NumericalError(
            f"The objective of {type(likelihood).__name__} is {value}; check targets and noise."
        )
