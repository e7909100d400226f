r"""Laplace's approximation: a Gaussian at the mode of the posterior, as sites.

Newton's method on :math:`\psi(f) = \sum_n w_n \log p(y_n \mid f_n) + \log p(f)` is conditioning on the sites

.. math:: \lambda_2 = -\partial^2 \log p(y \mid f), \qquad
          \lambda_1 = \partial \log p(y \mid f) + \lambda_2 f,

at the present f, again and again: the posterior mean is the next f. Steps are shortened until
:math:`\psi` grows. With :math:`a = \lambda_1 - \lambda_2 f` one has
:math:`\log p(f) = -\tfrac12 a^\top (f - \mu)` up to a constant, so that no inverse is needed. The evidence is

.. math:: \log Z_{LA} = \log Z_t + \sum_n [w_n \log p(y_n \mid \hat f_n) - \log t_n(\hat f_n)] .

References
----------
Williams, C. K. I. & Barber, D. (1998). Bayesian classification with Gaussian processes. IEEE PAMI.
Rasmussen, C. E. & Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, sections 3.4 and 5.5.
"""

import math
from dataclasses import dataclass

import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import Posterior, Prior, Sites
from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.inference.cvi import CVIResult
from gpvi.inference.tilted import check_one_latent
from gpvi.likelihoods import Likelihood, as_likelihood

__all__ = ["laplace", "laplace_evidence"]

_SMALLEST_STEP = 1e-6


def laplace(
    prior: Prior,
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    *,
    sites: Sites | None = None,
    max_steps: int = 100,
    tolerance: float = 1e-10,
    weights: Tensor | None = None,
    **rows: Tensor,
) -> CVIResult:
    r"""Sites of Laplace's approximation under a prior.

    Parameters
    ----------
    prior : Prior
        At the rows of ``y``; its basis must leave nothing of f open.
    likelihood : gpytorch or gpvi likelihood
        With one latent function. Where it is not log-concave, negative curvatures count as zero: the mode
        is one of :math:`\psi` all the same, and q is no narrower than the curvature there says.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    sites : Sites, optional
        Their posterior mean is where Newton's method starts; the prior mean if left out.
    max_steps : int
        The most Newton steps.
    tolerance : float
        Stop once a step promises less than this many nats.
    weights : Tensor, shape [N], optional
        Row weights.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    CVIResult
        Sites, posterior (at the mode), Laplace's evidence as objective; ``history`` has the values of
        :math:`\psi`, up to a constant.

    Raises
    ------
    InputError
        For impossible options, and targets or extras that do not fit.
    UnsupportedError
        For several latent functions, and priors with a residual.
    NumericalError
        If the log likelihood is not finite at the prior mean.

    Examples
    --------
    >>> import torch
    >>> from gpvi.approximations import Exact, GaussianProcess
    >>> from gpvi.kernels import parse_kernel
    >>> from gpvi.likelihoods import PoissonLikelihood
    >>> x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
    >>> prior = Exact().prior(GaussianProcess(parse_kernel("rbf", 1)), x)
    >>> laplace(prior, PoissonLikelihood(), torch.tensor([0.0, 1, 1, 2, 4]).double()).converged
    True
    """
    if max_steps < 1:
        raise InputError(f"max_steps is {max_steps}; it must be at least 1.")
    model = as_likelihood(likelihood)
    check_one_latent(model)
    if prior.residual is not None:
        raise UnsupportedError(
            f"Laplace's approximation and {type(prior).__name__}, whose basis leaves part of f open: a mode "
            "says nothing about that part. Use cvi, or Exact, SparseInverseCholesky, FullScale or StateSpace."
        )
    extras = rows if weights is None else {**rows, "weights": weights}
    model.prepare(y, prior.mean, prior.mean.shape[-1], dict(extras))  # checks shapes
    model.check_targets(y, **extras)
    problem = _Problem(prior.detach(), model, y, weights, dict(rows))
    with torch.no_grad():
        point = problem.start(sites)
        history, converged, taken = [point.value], False, 0
        while taken < max_steps and not converged:
            newton = problem.newton(point)
            gain = float((point.slope * (newton.f - point.f)).sum() / 2.0)
            taken += 1
            step, trial = 1.0, problem.between(point, newton, 1.0)
            while not trial.value >= point.value and step > _SMALLEST_STEP:
                step *= 0.5
                trial = problem.between(point, newton, step)
            converged = gain < tolerance or not trial.value > point.value
            if trial.value >= point.value:
                point = trial
            history.append(point.value)
        at_mode = problem.sites(point.f)
        posterior = problem.prior.condition(at_mode)
        objective = float(
            laplace_evidence(problem.prior, model, y, at_mode, weights=weights, **rows).sum()
        )
    return CVIResult(at_mode, posterior, objective, taken, converged, history)


def laplace_evidence(
    prior: Prior,
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    sites: Sites,
    *,
    weights: Tensor | None = None,
    **rows: Tensor,
) -> Tensor:
    """Laplace's evidence near the sites of a mode, with its total derivative.

    One Newton step from the sites, on the graph, carries how the mode moves with the hyperparameters.

    Parameters
    ----------
    prior : Prior
        On the graph of the hyperparameters.
    likelihood : gpytorch or gpvi likelihood
        As in :func:`laplace`.
    y : Tensor, shape [N] or [*b, N]
        Targets.
    sites : Sites
        From :func:`laplace` at the same hyperparameters.
    weights : Tensor, shape [N], optional
        Row weights.
    **rows : Tensor, shape [N]
        Per-row extras.

    Returns
    -------
    Tensor, shape [*b]
        Total nats.
    """
    model = as_likelihood(likelihood)
    problem = _Problem(prior, model, y, weights, dict(rows))
    with torch.no_grad():
        start = prior.condition(sites.detach()).marginals().mean.detach()
    fresh = problem.sites(start, sites.lam2.detach())
    mode = prior.condition(fresh).marginals().mean
    at_mode = problem.sites(mode)
    posterior: Posterior = prior.condition(at_mode)
    log_t = at_mode.lam1 * mode - 0.5 * at_mode.lam2 * mode.square()
    return posterior.log_partition + posterior.sum_rows(problem.log_prob(mode) - log_t)


@dataclass(frozen=True, eq=False)
class _Point:
    f: Tensor
    a: Tensor  # K^-1 (f - mean)
    slope: Tensor  # of psi
    value: float


@dataclass(frozen=True, eq=False)
class _Newton:
    f: Tensor
    a: Tensor


@dataclass(frozen=True, eq=False)
class _Problem:
    """Everything but f."""

    prior: Prior
    likelihood: Likelihood
    y: Tensor
    weights: Tensor | None
    rows: dict[str, Tensor]

    def log_prob(self, f: Tensor) -> Tensor:
        """Weighted log likelihoods of all rows."""
        value = self.likelihood.log_prob(f, self.y, **self.rows)
        return value if self.weights is None else value * self.weights

    def sites(self, f: Tensor, lam2: Tensor | None = None) -> Sites:
        """Expansion at f, differentiable in f and in the likelihood's parameters; or its slope alone."""
        on_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = f if f.requires_grad else f.detach().requires_grad_()
            slope = torch.autograd.grad(self.log_prob(leaf).sum(), leaf, create_graph=True)[0]
            if lam2 is None:
                curvature = torch.autograd.grad(
                    slope.sum(), leaf, create_graph=on_graph, materialize_grads=True
                )[0]
                lam2 = (-curvature).clamp_min(0.0)
        sites = Sites(slope + lam2 * f, lam2)
        return sites if on_graph else sites.detach()

    def start(self, sites: Sites | None) -> _Point:
        """The prior mean, or the mean under sites if it is better."""
        mean = self.prior.mean
        point = self._point(mean, torch.zeros_like(mean))
        if sites is not None:
            newton = self._from_sites(sites.detach())
            given = self._point(newton.f, newton.a)
            point = given if not given.value <= point.value else point
        if not math.isfinite(point.value):
            raise NumericalError(
                f"The log likelihood of {type(self.likelihood).__name__} is {point.value} at the prior mean; "
                "check the targets and the scale of the hyperparameters."
            )
        return point

    def newton(self, point: _Point) -> _Newton:
        """Where a full step leads."""
        return self._from_sites(self.sites(point.f))

    def between(self, point: _Point, newton: _Newton, step: float) -> _Point:
        """Part of the way."""
        return self._point(torch.lerp(point.f, newton.f, step), torch.lerp(point.a, newton.a, step))

    def _from_sites(self, sites: Sites) -> _Newton:
        f = self.prior.condition(sites).marginals().mean
        return _Newton(f, sites.lam1 - sites.lam2 * f)

    def _point(self, f: Tensor, a: Tensor) -> _Point:
        slope = self.sites(f, torch.zeros_like(f)).lam1 - a
        value = self.log_prob(f).sum() - 0.5 * (a * (f - self.prior.mean)).sum()
        return _Point(f, a, slope, float(value))
