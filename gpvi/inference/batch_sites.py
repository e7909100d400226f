r"""Tied natural-gradient sites on the inducing values, moved by minibatches.

The sites (:math:`\lambda_1 \in R^M, \Lambda_2 \in R^{M \times M}`) outlive the minibatch that updated
them. Every batch scores q *before* it changes q - scoring q on the rows that it was just fitted to would
overstate the bound - and then moves the sites towards N/B times its own duals.

References
----------
Adam, V., Chang, P., Khan, M. E. & Solin, A. (2021). Dual parameterization of sparse variational
Gaussian processes. NeurIPS.
"""

import torch
from torch import Tensor

from gpvi.approximations import Marginals, Posterior, Prior, Sites
from gpvi.exceptions import NumericalError
from gpvi.inference.batch_scheme import BatchStep, ParameterGroup, Scored
from gpvi.inference.data_term import data_term, dual
from gpvi.inference.objectives import elbo, optimal_log_v, tighter_elbo
from gpvi.inference.problem import FitProblem

__all__ = ["TiedSites"]

# Rows at a time when all of them are scored: every chunk factorises Kzz anew.
_SCORED_ROWS = 4_096
_START_ROWS = 256


class TiedSites:
    """Batches of rows for approximations with a finite basis.

    Parameters
    ----------
    problem : FitProblem
        Whole data set.
    batch_size : int
        Rows per step.
    natural_step_size : float
        Step of the sites once the first ``1 / natural_step_size`` steps (running average) are over.
    """

    last_refresh = (0, 0)

    def __init__(self, problem: FitProblem, batch_size: int, natural_step_size: float) -> None:
        self.problem, self.batch_size = problem, batch_size
        self.natural_step_size = natural_step_size
        self.sites: Sites | None = None
        self.log_v: Tensor | None = None

    @property
    def num_items(self) -> int:
        """Rows of the data set."""
        return self.problem.num_rows

    def groups(self) -> list[ParameterGroup]:
        """None: sites move by themselves."""
        return []

    def trains(self, number: int) -> bool:
        """Hyperparameters wait until q has seen as many batches as its running average needs."""
        return number * self.natural_step_size >= 1.0

    def refresh(self, number: int) -> bool:
        """Nothing here depends on neighbours."""
        return False

    def start(self, generator: torch.Generator) -> None:
        """First sites at a rough guess near the targets: from the prior the first steps may overshoot."""
        if self.sites is not None:
            return
        size = min(self.num_items, max(self.batch_size, _START_ROWS))
        chosen = torch.randperm(self.num_items, generator=generator, device=generator.device)
        batch = self.problem.take(chosen[:size].cpu())
        rows = batch.rows if batch.weights is None else {**batch.rows, "weights": batch.weights}
        guess = batch.likelihood.initial_latent(batch.y, **rows)
        if guess is None or batch.likelihood.num_latents > 1:
            return
        posterior = self._condition(batch)
        marginals = posterior.marginals()
        near = Marginals(
            guess.expand_as(marginals.mean).to(marginals.mean), 0.01 * marginals.explained.detach()
        )
        sites = self._target(posterior, batch, near, None)
        if bool(torch.isfinite(sites.lam1).all() and torch.isfinite(sites.lam2).all()):
            self.sites = sites

    def score(self, index: Tensor) -> Scored:
        """Score a batch of rows, int64 [B]."""
        batch = self.problem.take(index)
        posterior = self._condition(batch)

        def update(step: BatchStep) -> None:
            size = max(self.natural_step_size * step.decay, 1.0 / (step.number + 2.0))
            self._update_sites(posterior, batch, step.damping * size)

        return Scored(self._bound(posterior, batch).sum(), update)

    def snapshot(self) -> dict[str, Tensor]:
        """Sites and residual scale."""
        values: dict[str, Tensor] = {}
        if self.sites is not None:
            values |= {"lam1": self.sites.lam1, "lam2": self.sites.lam2}
        if self.log_v is not None:
            values["log_v"] = self.log_v
        return values

    def assign(self, values: dict[str, Tensor]) -> None:
        """Inverse of :meth:`snapshot`."""
        like = self.problem.x
        self.sites = self.log_v = None
        if "lam1" in values:
            self.sites = Sites(values["lam1"].to(like), values["lam2"].to(like), on="basis")
        if "log_v" in values:
            self.log_v = values["log_v"].to(like)

    def posterior(self) -> Posterior:
        """Detached posterior on the tied sites, without data rows."""
        prior = self.problem.approximation.prior(self.problem.gp, self.problem.x[..., :1, :])
        return prior.detach().condition(self._tied(prior)).compact()

    def objective(self) -> float:
        """Objective over all rows at today's parameters and sites, total nats."""
        total, kl = 0.0, 0.0
        with torch.no_grad():
            for rows in torch.arange(self.num_items).split(max(self.batch_size, _SCORED_ROWS)):
                batch = self.problem.take(rows)
                posterior = self._condition(batch)
                share = len(rows) / self.num_items
                kl = float(posterior.kl().sum())
                total += share * (float(self._bound(posterior, batch).sum()) + kl)
        return total - kl

    def _condition(self, batch: FitProblem) -> Posterior:
        prior = batch.approximation.prior(batch.gp, batch.x)
        return prior.condition(self._tied(prior))

    def _tied(self, prior: Prior) -> Sites:
        if self.sites is None:
            mean = prior.mean
            shape = (*mean.shape[:-1], prior.num_basis)
            self.sites = Sites.zeros(
                shape, on="basis", full=True, dtype=mean.dtype, device=mean.device
            )
        return self.sites

    def _bound(self, posterior: Posterior, batch: FitProblem) -> Tensor:
        y, likelihood = batch.y, batch.likelihood
        if not batch.tighter:
            return elbo(
                posterior, likelihood, y, self.num_items, weights=batch.weights, **batch.rows
            )
        if self.log_v is None and likelihood.gaussian_noise(y, **batch.rows) is None:
            mean = posterior.marginals().mean
            self.log_v = torch.zeros(mean.shape[:-1], dtype=mean.dtype, device=mean.device)
        return tighter_elbo(
            posterior,
            likelihood,
            y,
            self.num_items,
            weights=batch.weights,
            log_v=self.log_v,
            **batch.rows,
        )

    def _update_sites(self, posterior: Posterior, batch: FitProblem, rate: float) -> None:
        log_v, weights = self.log_v, batch.weights
        marginals = posterior.marginals()
        target = self._target(posterior, batch, marginals, log_v)
        sites = self._tied(posterior.prior).lerp(target, rate)
        if not bool(torch.isfinite(sites.lam1).all() and torch.isfinite(sites.lam2).all()):
            raise NumericalError("the sites of a minibatch are not finite")
        self.sites = sites
        if log_v is not None and marginals.residual is not None:
            best = optimal_log_v(
                batch.likelihood, batch.y, marginals, weights=weights, **batch.rows
            )
            self.log_v = torch.lerp(log_v, best, rate)

    def _target(
        self, posterior: Posterior, batch: FitProblem, moments: Marginals, log_v: Tensor | None
    ) -> Sites:
        """Tied sites of a batch, scaled up to all rows, from duals at given moments."""

        def term(q: Marginals) -> Tensor:
            return data_term(
                batch.likelihood, batch.y, q, weights=batch.weights, log_v=log_v, **batch.rows
            )

        fresh = dual(term, moments, min_precision=0.0)
        with torch.no_grad():
            return (self.num_items / batch.num_rows) * posterior.prior.tie(fresh)
