"""A fitting problem: process, approximation, likelihood and data bound together.

:meth:`FitProblem.value` is the objective as a function of today's parameters, on the graph. Where the
likelihood is Gaussian it is the collapsed bound in closed form; otherwise the sites are brought to their
fixed point first (off the graph) and the bound is differentiated at frozen sites, which gives the total
derivative because the objective's own data term made the sites.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpvi.approximations import Approximation, GaussianProcess, Plan, Sites
from gpvi.exceptions import InputError
from gpvi.inference.cvi import CVIResult, cvi
from gpvi.inference.objectives import elbo, tighter_elbo
from gpvi.inference.parameters import log_prior
from gpvi.likelihoods import Likelihood

__all__ = ["OBJECTIVES", "FitProblem"]

#: Names of the objectives that a fit can maximise.
OBJECTIVES = ("tighter_elbo", "elbo")

_CVI_STEPS = 30
_CVI_TOLERANCE = 1e-5


@dataclass
class FitProblem:
    """Everything a fit needs but the optimiser.

    Parameters
    ----------
    gp : GaussianProcess
        Live process, whose parameters are trained.
    approximation : Approximation
        Initialised.
    likelihood : Likelihood
        Live likelihood.
    x : Tensor, shape [*g, N, D]
        Inputs.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    plan : Plan
        From ``approximation.plan``.
    objective : {"tighter_elbo", "elbo"}
        What is maximised.
    weights : Tensor, shape [N], optional
        Row weights.
    rows : dict of str to Tensor
        Per-row extras of the likelihood.
    sites : Sites, optional
        Where CVI starts next time (moves with the fit).
    """

    gp: GaussianProcess
    approximation: Approximation
    likelihood: Likelihood
    x: Tensor
    y: Tensor
    plan: Plan
    objective: str = "tighter_elbo"
    weights: Tensor | None = None
    rows: dict[str, Tensor] = field(default_factory=dict)
    sites: Sites | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(
                f"objective is {self.objective!r}; it must be one of {', '.join(OBJECTIVES)}."
            )

    @property
    def tighter(self) -> bool:
        """Whether the tightened bound is maximised."""
        return self.objective == "tighter_elbo"

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The modules whose parameters are trained, by name."""
        return {
            "gp": self.gp,
            "approximation": self.approximation,
            "likelihood": self.likelihood,
        }

    def value(self) -> Tensor:
        """Objective at today's parameters, scalar total nats (plus log priors), on the graph."""
        bound = self.gaussian_value()
        if bound is None:
            bound = self._fixed_point_value()
        return bound.sum() + log_prior(list(self.modules.values()))

    def infer(self) -> CVIResult:
        """Fixed-point sites at today's parameters, off the graph."""
        with torch.no_grad():
            return self._infer(self.approximation.prior(self.gp, self.x, plan=self.plan))

    def gaussian_value(self) -> Tensor | None:
        """Collapsed bound of a Gaussian likelihood, total per batch entry; None for any other."""
        noise = self.likelihood.gaussian_noise(self.y, **self.rows)
        if noise is None or self.likelihood.num_latents > 1:
            return None
        fast = self._fast_gaussian(noise)
        return self._general_gaussian(noise) if fast is None else fast

    def _fixed_point_value(self) -> Tensor:
        prior = self.approximation.prior(self.gp, self.x, plan=self.plan)
        result = self._infer(prior)
        self.sites = result.sites
        posterior = prior.condition(result.sites)
        if self.tighter:
            return tighter_elbo(
                posterior,
                self.likelihood,
                self.y,
                weights=self.weights,
                log_v=result.log_v,
                **self.rows,
            )
        return elbo(posterior, self.likelihood, self.y, weights=self.weights, **self.rows)

    def _infer(self, prior: object) -> CVIResult:
        return cvi(
            prior,  # type: ignore[arg-type]
            self.likelihood,
            self.y,
            sites=self.sites,
            max_steps=_CVI_STEPS,
            tolerance=_CVI_TOLERANCE,
            tighter=self.tighter,
            weights=self.weights,
            **self.rows,
        )

    def _fast_gaussian(self, noise: Tensor) -> Tensor | None:
        """The core's collapsed bound, where the approximation offers one."""
        route = getattr(self.approximation, "collapsed_objective", None)
        if route is None or self.plan.groups is not None or self.y.dim() > 1:
            return None
        used = ~torch.isnan(self.y)
        if self.weights is not None:
            used = used & (self.weights > 0)
        x, y = self.x, self.y
        noise = noise.reshape(()) if noise.numel() == 1 else noise.expand_as(y)
        weights = self.weights
        if not bool(used.all()):
            x, y = x[..., used, :], y[used]
            noise = noise if noise.dim() == 0 else noise[used]
            weights = None if weights is None else weights[used]
        if weights is None:
            return route(self.gp, x, y, noise, tighter=self.tighter)
        # w log N(y; f, s) is log N(y; f, s/w) up to this constant.
        spare = 0.5 * ((weights - 1.0) * (2.0 * math.pi * noise).log() + weights.log()).sum()
        return route(self.gp, x, y, noise / weights, tighter=self.tighter) - spare

    def _general_gaussian(self, noise: Tensor) -> Tensor:
        """``log Z + sum log c_n - residual terms`` through the contract, for any prior."""
        prior = self.approximation.prior(self.gp, self.x, plan=self.plan)
        observed = ~torch.isnan(self.y)
        y = torch.where(observed, self.y, torch.zeros_like(self.y))
        weight = observed.to(y.dtype)
        if self.weights is not None:
            weight = weight * self.weights
        precision = weight / noise
        posterior = prior.condition(Sites(precision * y, precision))
        rows = -0.5 * (weight * (2.0 * math.pi * noise).log() + precision * y.square())
        if prior.residual is not None:
            ratio = precision * prior.residual
            rows = rows - 0.5 * (ratio.log1p() if self.tighter else ratio)
        return posterior.log_partition + posterior.sum_rows(rows)
