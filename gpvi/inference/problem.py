"""A fitting problem: process, approximation, likelihood and data bound together.

:meth:`FitProblem.value` is the objective as a function of today's parameters, on the graph. Where the
likelihood is Gaussian it is the collapsed bound in closed form; otherwise the sites are brought to their
fixed point first (off the graph) and the bound is differentiated at frozen sites, which gives the total
derivative because the objective's own data term made the sites.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gpvi._warnings import without
from gpvi.approximations import Approximation, GaussianProcess, Plan, Posterior, Prior, Sites
from gpvi.exceptions import AccuracyWarning, InputError
from gpvi.inference.cvi import CVIResult, cvi
from gpvi.inference.data_term import data_term
from gpvi.inference.ep_energy import ep_energy
from gpvi.inference.parameters import log_prior
from gpvi.inference.site_rules import find_sites, open_basis, resolve_objective, value_at_sites
from gpvi.likelihoods import Likelihood

__all__ = ["CVI_TOLERANCE", "FitProblem"]

_CVI_STEPS = 30

#: Nats that a sweep of CVI must gain where nothing else is said.
CVI_TOLERANCE = 1e-5


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
    y : Tensor, shape [N] or [*b, N] ([*b, N, P] for a likelihood of several outputs)
        Targets; NaN means not observed. Brought to the dtype of ``x``.
    plan : Plan
        From ``approximation.plan``.
    objective : {"auto", "tighter_elbo", "elbo", "ep", "laplace"}
        What is maximised. At sites that do not make it stationary, "ep" is taken at held ones, which
        :meth:`settle` brings up to date.
    weights : Tensor, shape [N], optional
        Row weights.
    rows : dict of str to Tensor
        Per-row extras of the likelihood.
    sites : Sites, optional
        Where CVI starts next time (moves with the fit).
    log_v : Tensor, optional
        Likewise, the log residual scale.
    inner_tolerance : float
        Nats that a sweep of CVI inside :meth:`value` must gain.
    terms : Tensor, optional
        Terms of a collapsed objective that stand for all (see :meth:`sample_terms`).
    inference : {"cvi", "ep", "laplace"}
        Where the sites of a likelihood that is not Gaussian come from.

    Raises
    ------
    InputError
        For an unknown objective, inputs that are not finite, and targets or extras that do not fit
        ``x``.
    """

    gp: GaussianProcess
    approximation: Approximation
    likelihood: Likelihood
    x: Tensor
    y: Tensor
    plan: Plan
    objective: str = "tighter_elbo"
    weights: Tensor | None = None
    rows: dict[str, Any] = field(default_factory=dict)
    sites: Sites | None = None
    log_v: Tensor | None = None
    inner_tolerance: float = CVI_TOLERANCE
    terms: Tensor | None = None
    inference: str = "cvi"
    _used_plan: Plan | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.objective = resolve_objective(self.objective, self.inference)
        if not bool(torch.isfinite(self.x).all()):
            raise InputError(
                f"x holds {int((~torch.isfinite(self.x)).sum())} values that are NaN or infinite; "
                "drop these rows or impute them (only y may have NaN)."
            )
        # Extras get one entry per row, and none that is NaN where no target was observed.
        given = {**self.rows, "weights": self.weights}
        _, _, extras = self.likelihood.prepare(self.y, self.x, self.num_rows, given)
        self.y = self.y.to(self.x)
        self.weights, self.rows = extras.pop("weights", None), extras

    @property
    def num_rows(self) -> int:
        """Number of data rows N."""
        return self.x.shape[-2]

    @property
    def observed(self) -> Tensor:
        """Numbers of the rows with a target and a positive weight (in some batch entry)."""
        return (self._largest_weights > 0).nonzero().squeeze(-1)

    @property
    def total_weight(self) -> float:
        """Sum of the weights of all rows with a target (the largest over batch entries)."""
        return float(self._largest_weights.sum())

    @property
    def _largest_weights(self) -> Tensor:
        seen = (~self.likelihood.missing(self.y)).to(self.x.dtype)
        if self.weights is not None:
            seen = torch.where(seen > 0, self.weights, 0.0)
        return seen.reshape(-1, self.num_rows).amax(0)

    @property
    def tighter(self) -> bool:
        """Whether the tightened bound is maximised."""
        return self.objective == "tighter_elbo"

    @property
    def exact_gradient(self) -> bool:
        """Whether gradients are those of :meth:`value` to rounding, and not with q held."""
        if self.alternates:
            return True
        return self.approximation.exact_conditioning or self._noise() is not None

    @property
    def alternates(self) -> bool:
        """Whether :meth:`value` holds the sites, so that q and hyperparameters have to take turns."""
        matched = self.inference == "ep" and self.approximation.exact_conditioning
        return self.objective == "ep" and not matched and self._noise() is None

    @property
    def needs_all_sites(self) -> bool:
        """Whether the objective is made of the sites of single rows, all of them at a time."""
        return self.objective in ("ep", "laplace") and self._noise() is None

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The modules whose parameters are trained, by name."""
        return {
            "gp": self.gp,
            "approximation": self.approximation,
            "likelihood": self.likelihood,
        }

    def take(self, index: Tensor, approximation: Approximation | None = None) -> "FitProblem":
        """The problem on some of the rows, sharing the modules.

        Parameters
        ----------
        index : Tensor of int64, shape [B]
            Rows.
        approximation : Approximation, optional
            Another approximation.

        Returns
        -------
        FitProblem
            Without sites.
        """
        index = index.to(self.x.device)
        approximation = self.approximation if approximation is None else approximation
        x = self.x.index_select(-2, index)
        return replace(
            self,
            approximation=approximation,
            x=x,
            y=self.y.index_select(-1 - self.likelihood.target_dims, index),
            plan=approximation.plan(x),
            weights=None if self.weights is None else self.weights[..., index],
            rows={name: values[..., index] for name, values in self.rows.items()},
            sites=None,
            log_v=None,
            terms=None,
        )

    def refresh(self) -> bool:
        """Bring plans up to date with today's hyperparameters.

        Returns
        -------
        bool
            Whether one of them changed, and the objective with it.
        """
        renew, rows = self.approximation.refresh, self._used
        if self.plan.groups is None and self.y.dim() == 1 and not bool(rows.all()):
            self._plan_of_used(self.x[..., rows, :])
        plan, used = renew(self.gp, self.plan), self._used_plan
        fresh = None if used is None else renew(self.gp, used)
        changed = plan is not self.plan or fresh is not used
        self.plan, self._used_plan = plan, fresh
        return changed

    def value(self) -> Tensor:
        """Objective at today's parameters, scalar total nats (plus log priors), on the graph."""
        # An optimiser passes hyperparameters that are no result; :meth:`infer` warns of those that are.
        with without(AccuracyWarning):
            bound = self._energy() if self.alternates else self.gaussian_value()
            if bound is None:
                by_cvi = self.inference == "cvi"
                bound = self._fixed_point_value() if by_cvi else self._value_at_own_sites()
        return bound.sum() + log_prior(list(self.modules.values()))

    def infer(self) -> CVIResult:
        """Fixed-point sites at today's parameters, off the graph."""
        with torch.no_grad():
            prior = self.approximation.prior(self.gp, self.x, plan=self.plan)
            sites = self._gaussian_sites()
            if sites is None:
                result = self._infer(prior, CVI_TOLERANCE)
                if not self.alternates:
                    return result
                return replace(result, objective=float(self._energy_of(result.posterior).sum()))
            posterior = prior.condition(sites)
            bound = self._site_bound(posterior)
            value = float(bound.sum())
        return CVIResult(sites, posterior.detach(), value, 1, True, [value])

    def settle(self) -> None:
        """Bring the sites that an energy holds to their fixed point at today's parameters."""
        if self.alternates:
            with torch.no_grad(), without(AccuracyWarning):
                self.sites = self._infer(self._energy_prior(), CVI_TOLERANCE).sites

    def gaussian_value(self) -> Tensor | None:
        """Collapsed bound of a Gaussian likelihood, total per batch entry; None for any other."""
        noise = self._noise()
        if noise is None:
            return None
        fast = self._fast_gaussian(noise)
        return self._general_gaussian() if fast is None else fast

    def _energy(self) -> Tensor:
        """Energy of expectation propagation at held sites."""
        if self.sites is None:
            self.settle()
        assert self.sites is not None
        return self._energy_of(self._energy_prior().condition(self.sites))

    def _energy_prior(self) -> Prior:
        """Today's prior, unless the energy is no guide to its hyperparameters."""
        prior = self.approximation.prior(self.gp, self.x, plan=self.plan)
        if prior.residual is not None and self.inference == "cvi":
            raise open_basis(self.approximation, self.objective)
        return prior

    def _energy_of(self, posterior: Posterior) -> Tensor:
        return ep_energy(posterior, self.likelihood, self.y, weights=self.weights, **self.rows)

    def _fixed_point_value(self) -> Tensor:
        """Objective at fixed-point sites, with the gradient at held sites."""
        prior = self.approximation.prior(self.gp, self.x, plan=self.plan)
        result = self._infer(prior, self.inner_tolerance)
        self.sites, self.log_v = result.sites, result.log_v
        slopes = self._likelihood_slopes(result) + self._prior_slopes(prior, result)
        return result.objective + (slopes - slopes.detach())

    def _value_at_own_sites(self) -> Tensor:
        """Objective of a rule whose sites make its gradient at held sites the total one."""
        prior = self.approximation.prior(self.gp, self.x, plan=self.plan)
        self.sites = self._infer(prior, self.inner_tolerance).sites
        return value_at_sites(self.inference, prior, *self._row_data)

    @property
    def _row_data(self) -> tuple[Likelihood, Tensor, Sites | None, Tensor | None, dict[str, Any]]:
        return self.likelihood, self.y, self.sites, self.weights, self.rows

    def _prior_slopes(self, prior: Prior, result: CVIResult) -> Tensor:
        """Scalar with the objective's gradient in what the prior depends on.

        The objective is ``log Z`` plus row terms minus ``E_q[log t]``, so at sites that are dual to the
        row terms only ``log Z`` and the residuals are left; the first two weights are what is missing.
        """
        terms, sites = result.terms, result.sites
        assert terms is not None
        mean = terms.by_mean - sites.lam1 + sites.lam2 * result.posterior.marginals().mean
        explained = terms.by_variance + 0.5 * sites.lam2
        residual = None
        if prior.residual is not None:
            scale = 1.0 if result.log_v is None else result.log_v.exp().unsqueeze(-1)
            residual = scale * terms.by_variance
        return prior.tangent(result.posterior, mean, explained, residual)

    def _likelihood_slopes(self, result: CVIResult) -> Tensor:
        """Scalar with the objective's gradient in the likelihood's parameters."""
        if not any(parameter.requires_grad for parameter in self.likelihood.parameters()):
            return self.x.new_zeros(())
        moments = result.posterior.marginals()
        return data_term(
            self.likelihood,
            self.y,
            moments,
            weights=self.weights,
            log_v=result.log_v,
            **self.rows,
        ).sum()

    def _infer(self, prior: Prior, tolerance: float) -> CVIResult:
        if self.inference != "cvi":
            return find_sites(self.inference, prior, *self._row_data)
        return cvi(
            prior,
            self.likelihood,
            self.y,
            sites=self.sites,
            log_v=self.log_v,
            max_steps=_CVI_STEPS,
            tolerance=tolerance,
            tighter=self.tighter,
            weights=self.weights,
            **self.rows,
        )

    def _fast_gaussian(self, noise: Tensor) -> Tensor | None:
        """The core's collapsed bound, where the approximation offers one."""
        if self.plan.groups is not None or self.y.dim() > 1:
            return None
        route = self.approximation.collapsed_objective
        used = self._used
        x, y = self.x, self.y
        noise = noise.reshape(()) if noise.numel() == 1 else noise.expand_as(y)
        weights = self.weights
        plan = self.plan
        if not bool(used.all()):
            x, y = x[..., used, :], y[used]
            noise = noise if noise.dim() == 0 else noise[used]
            weights = None if weights is None else weights[used]
            plan = self._plan_of_used(x)
        if weights is None:
            return route(self.gp, x, y, noise, tighter=self.tighter, plan=plan, terms=self.terms)
        # w log N(y; f, s) is log N(y; f, s/w) up to this constant.
        spare = 0.5 * ((weights - 1.0) * (2.0 * math.pi * noise).log() + weights.log()).sum()
        bound = route(
            self.gp,
            x,
            y,
            noise / weights,
            tighter=self.tighter,
            copies=weights.clamp_min(1.0),
            plan=plan,
            terms=self.terms,
        )
        return None if bound is None else bound - spare

    def sample_terms(self, number: int, generator: torch.Generator) -> Tensor | None:
        """Some terms of the objective, drawn uniformly.

        Parameters
        ----------
        number : int
            How many.
        generator : torch.Generator
            Source of randomness, on the CPU.

        Returns
        -------
        Tensor or None
            None where the objective is no sum of many more terms.
        """
        if self.plan.groups is not None or self.y.dim() > 1 or self._noise() is None:
            return None
        used, plan = self._used, self.plan
        if not bool(used.all()):
            plan = self._plan_of_used(self.x[..., used, :])
        return self.approximation.sample_terms(self.gp, plan, number, generator)

    def on_terms(self, terms: Tensor) -> "FitProblem":
        """The problem with some terms standing for all, sharing modules and plans.

        Parameters
        ----------
        terms : Tensor
            From :meth:`sample_terms`.

        Returns
        -------
        FitProblem
            Its objective is an unbiased estimate.
        """
        part = replace(self, terms=terms)
        part._used_plan = self._used_plan
        return part

    @property
    def _used(self) -> Tensor:
        """Rows with a target and a positive weight."""
        used = ~torch.isnan(self.y)
        return used if self.weights is None else used & (self.weights > 0)

    def _plan_of_used(self, x: Tensor) -> Plan:
        """Plan of the rows that a collapsed objective sees, kept."""
        if self._used_plan is None:
            self._used_plan = self.approximation.plan(x)
        return self._used_plan

    def _general_gaussian(self) -> Tensor:
        """``log Z + sum log c_n - residual terms`` through the contract, for any prior."""
        prior = self.approximation.prior(self.gp, self.x, plan=self.plan)
        sites = self._gaussian_sites()
        assert sites is not None
        return self._site_bound(prior.condition(sites))

    def _gaussian_sites(self) -> Sites | None:
        """Sites of a Gaussian likelihood, on the graph of its noise; None for any other."""
        noise = self._noise()
        if noise is None:
            return None
        observed = ~torch.isnan(self.y)
        precision = self._row_weights() / noise
        return Sites(precision * torch.where(observed, self.y, 0.0), precision)

    def _site_bound(self, posterior: Posterior) -> Tensor:
        """Bound of a posterior on Gaussian sites: no marginals needed."""
        noise, weight = self._noise(), self._row_weights()
        assert noise is not None
        y = torch.where(torch.isnan(self.y), 0.0, self.y)
        precision = weight / noise
        rows = -0.5 * (weight * (2.0 * math.pi * noise).log() + precision * y.square())
        residual = posterior.prior.residual
        if residual is not None:
            ratio = precision * residual
            if self.tighter:
                copies = weight.clamp_min(1.0)
                ratio = copies * (ratio / copies).log1p()
            rows = rows - 0.5 * ratio
        return posterior.log_partition + posterior.sum_rows(rows)

    def _noise(self) -> Tensor | None:
        if self.likelihood.num_latents > 1:
            return None
        return self.likelihood.gaussian_noise(self.y, **self.rows)

    def _row_weights(self) -> Tensor:
        observed = (~torch.isnan(self.y)).to(self.y.dtype)
        return observed if self.weights is None else observed * self.weights
