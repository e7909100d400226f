r"""Minibatch fitting: tied natural-gradient sites for q, Adam for everything else.

The sites live on the inducing values (:math:`\lambda_1 \in R^M, \Lambda_2 \in R^{M \times M}`), so they
outlive the minibatch that updated them. Every step scores q on a fresh minibatch *before* that minibatch
changes q - scoring q on the rows that it was just fitted to would overstate the bound - and then moves
the sites towards N/B times the minibatch's duals.

References
----------
Adam, V., Chang, P., Khan, M. E. & Solin, A. (2021). Dual parameterization of sparse variational
Gaussian processes. NeurIPS.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from gpvi.approximations import Marginals, Posterior, Prior, Sites
from gpvi.exceptions import NumericalError
from gpvi.inference.checkpoint import load_state, save_state
from gpvi.inference.data_term import data_term, dual
from gpvi.inference.objectives import elbo, optimal_log_v, tighter_elbo
from gpvi.inference.parameters import ParameterVector, log_prior
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord, FitResult

__all__ = ["Minibatcher"]

_MAX_FAILURES = 10
_PATIENCE = 5
# Rows at a time when all of them are scored: every chunk factorises Kzz anew.
_SCORED_ROWS = 4_096
_START_ROWS = 256
_STAGE = "minibatch"

# Prefix of the last good state in a checkpoint.
_GOOD = "good."


@dataclass
class Minibatcher:
    """A minibatch fit in progress; all of its state can be saved and restored.

    Parameters
    ----------
    problem : FitProblem
        Whole data set; its approximation must have a finite basis.
    batch_size : int
        Rows per step.
    num_steps : int
        Steps in all.
    learning_rate : float
        Of Adam; decays linearly to a twentieth over the last three tenths of the steps.
    natural_step_size : float
        Step of the sites once the first ``1 / natural_step_size`` steps (running average) are over;
        decays with the learning rate, which averages the noise of the minibatches out of q.
    tolerance : float
        Stop once five windows of steps (an epoch each, at least 50) have not raised the best window's mean
        by this many nats per row.
    generator : torch.Generator
        Shuffles rows.
    history : list of FitRecord
        Appended to.
    callbacks : sequence of callable
        Called with every record.
    checkpoint : str, optional
        File for the state.
    checkpoint_every : int
        Steps between two writes of it.
    digest : str
        Fingerprint of data and settings.
    started : float
        ``time.perf_counter()`` at the beginning of the fit.
    """

    problem: FitProblem
    batch_size: int
    num_steps: int
    learning_rate: float
    natural_step_size: float
    tolerance: float
    generator: torch.Generator
    history: list[FitRecord]
    callbacks: Sequence[Callback] = ()
    checkpoint: str | None = None
    checkpoint_every: int = 50
    digest: str = ""
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.step = 0
        self.damping = 1.0
        self.failures = 0
        self.sites: Sites | None = None
        self.log_v: Tensor | None = None
        self.order = torch.empty(0, dtype=torch.int64)
        self.position = 0
        self.parameters = ParameterVector(self.problem.modules).parameters
        # As a group, because Adam refuses an empty list.
        self.optimizer = torch.optim.Adam([{"params": self.parameters}], lr=self.learning_rate)
        self.estimates: list[float] = []
        self.stopped = False
        # Where the objective was last evaluated without trouble.
        self._good: dict[str, Tensor] = {}

    @property
    def num_rows(self) -> int:
        """Rows of the data set."""
        return self.problem.num_rows

    def fit(self) -> FitResult:
        """Take all steps and report.

        Returns
        -------
        FitResult
            With the posterior on the tied sites.
        """
        converged, message = self.run()
        objective = self.objective()
        if not math.isfinite(objective) and self._good:
            # No batch has scored the last step yet.
            self._assign(self._good)
            objective = self.objective()
        return FitResult(
            self.posterior(),
            objective,
            self.step,
            converged,
            message,
            self.history,
            self.log_v,
            self.stopped,
        )

    def run(self) -> tuple[bool, str]:
        """Take all steps.

        Returns
        -------
        converged : bool
            Whether the stopping rule was met.
        message : str
            Why it stopped.
        """
        self._restore()
        if self.sites is None:
            self._start()
        while self.step < self.num_steps and not self.stopped:
            rows = self._next_rows()
            current = self._snapshot()
            try:
                value, gradient = self._advance(rows)
            except NumericalError as error:
                self._roll_back(error)
                continue
            self._good = current
            self.failures = 0
            self.step += 1
            self.estimates.append(value)
            self._report(self.step, value, gradient)
            if self.checkpoint and self.step % self.checkpoint_every == 0:
                self._save()
            if self._converged():
                return True, f"five windows gained less than {self.tolerance:g} nats per row"
        if self.stopped:
            return False, "a callback asked to stop"
        return False, f"{self.num_steps} steps taken"

    def posterior(self) -> Posterior:
        """Detached posterior on the tied sites, without data rows."""
        prior = self.problem.approximation.prior(self.problem.gp, self.problem.x[..., :1, :])
        return prior.detach().condition(self._tied(prior)).compact()

    def objective(self) -> float:
        """Objective over all rows at today's parameters and sites, total nats."""
        total, kl = 0.0, 0.0
        with torch.no_grad():
            for rows in torch.arange(self.num_rows).split(max(self.batch_size, _SCORED_ROWS)):
                batch = self.problem.take(rows)
                posterior = self._condition(batch)
                share = len(rows) / self.num_rows
                kl = float(posterior.kl().sum())
                total += share * (float(self._bound(posterior, batch).sum()) + kl)
        return total - kl

    def _advance(self, rows: Tensor) -> tuple[float, float]:
        batch = self.problem.take(rows)
        posterior = self._condition(batch)
        bound = self._bound(posterior, batch).sum()
        value = bound + log_prior(list(self.problem.modules.values()))
        if not math.isfinite(float(value.detach())):
            raise NumericalError(f"the objective of a minibatch is {float(value.detach())}")
        self._update_sites(posterior, batch)
        largest = 0.0
        # Hyperparameters wait until q has seen as many batches as its running average needs.
        if self.step * self.natural_step_size >= 1.0 and self.parameters:
            self.optimizer.zero_grad()
            (-value / self.num_rows).backward()
            largest = max(float(p.grad.abs().max()) for p in self.parameters if p.grad is not None)
            if not math.isfinite(largest):
                raise NumericalError("the gradient of a minibatch is not finite")
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * self.damping * self._decay()
            self.optimizer.step()
        return float(value.detach()), largest

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
                posterior, likelihood, y, self.num_rows, weights=batch.weights, **batch.rows
            )
        if self.log_v is None and likelihood.gaussian_noise(y, **batch.rows) is None:
            mean = posterior.marginals().mean
            self.log_v = torch.zeros(mean.shape[:-1], dtype=mean.dtype, device=mean.device)
        return tighter_elbo(
            posterior,
            likelihood,
            y,
            self.num_rows,
            weights=batch.weights,
            log_v=self.log_v,
            **batch.rows,
        )

    def _update_sites(self, posterior: Posterior, batch: FitProblem) -> None:
        log_v, weights = self.log_v, batch.weights
        marginals = posterior.marginals()
        target = self._target(posterior, batch, marginals, log_v)
        rate = self.damping * max(self.natural_step_size * self._decay(), 1.0 / (self.step + 2.0))
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
            return (self.num_rows / batch.num_rows) * posterior.prior.tie(fresh)

    def _start(self) -> None:
        """First sites at a rough guess near the targets: from the prior the first steps may overshoot."""
        size = min(self.num_rows, max(self.batch_size, _START_ROWS))
        chosen = torch.randperm(
            self.num_rows, generator=self.generator, device=self.generator.device
        )
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

    def _decay(self) -> float:
        left = (self.num_steps - self.step) / (0.3 * self.num_steps)
        return min(1.0, max(0.05, left))

    def _next_rows(self) -> Tensor:
        if self.position + self.batch_size > len(self.order):
            self.order = torch.randperm(
                self.num_rows, generator=self.generator, device=self.generator.device
            ).cpu()
            self.position = 0
        rows = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        return rows

    def _converged(self) -> bool:
        window = max(50, math.ceil(self.num_rows / self.batch_size))
        if self.step % window or len(self.estimates) < (_PATIENCE + 1) * window:
            return False
        ends = range(window, len(self.estimates) + 1, window)
        means = [sum(self.estimates[end - window : end]) / window for end in ends]
        gain = max(means[-_PATIENCE:]) - max(means[:-_PATIENCE])
        return gain < self.tolerance * self.num_rows

    def _report(self, step: int, value: float, gradient: float, failed: bool = False) -> None:
        window = self.estimates[-50:]
        mean = sum(window) / len(window) if window else math.nan
        seconds = time.perf_counter() - self.started
        record = FitRecord(_STAGE, step, value, mean, gradient, seconds, failed)
        self.history.append(record)
        # A callback may ask to stop; all of them see the record first.
        self.stopped = any([callback(record) for callback in self.callbacks])

    def _snapshot(self) -> dict[str, Tensor]:
        """What a step changes, by name."""
        values = {f"parameter.{i}": p.detach().clone() for i, p in enumerate(self.parameters)}
        if self.sites is not None:
            values |= {"lam1": self.sites.lam1, "lam2": self.sites.lam2}
        if self.log_v is not None:
            values["log_v"] = self.log_v
        return values

    def _assign(self, values: dict[str, Tensor]) -> None:
        """Inverse of :meth:`_snapshot`."""
        like = self.problem.x
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(values[f"parameter.{i}"])
        self.sites = self.log_v = None
        if "lam1" in values:
            self.sites = Sites(values["lam1"].to(like), values["lam2"].to(like), on="basis")
        if "log_v" in values:
            self.log_v = values["log_v"].to(like)

    def _roll_back(self, error: NumericalError) -> None:
        """Return to where the objective was last seen to be finite, and go on more carefully."""
        self.failures += 1
        if self.failures >= _MAX_FAILURES or not self._good:
            raise NumericalError(
                f"{self.failures} minibatch steps in a row failed, the last one because {error}. Use "
                "float64, a larger jitter or a smaller learning rate."
            ) from error
        self._assign(self._good)
        self.damping *= 0.5
        self._report(self.step + 1, math.nan, math.nan, failed=True)

    def _save(self) -> None:
        assert self.checkpoint is not None
        tensors = {
            **self._snapshot(),
            **{_GOOD + name: value for name, value in self._good.items()},
            "order": self.order,
            "generator": self.generator.get_state(),
        }
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": torch.as_tensor(v) for name, v in state.items()}
        state = {
            "step": self.step,
            "position": self.position,
            "damping": self.damping,
            "estimates": self.estimates,
            "history": [asdict(record) for record in self.history],
        }
        save_state(self.checkpoint, self.digest, tensors, state)

    def _restore(self) -> None:
        loaded = None if self.checkpoint is None else load_state(self.checkpoint, self.digest)
        if loaded is None:
            return
        tensors, state = loaded
        self._assign(tensors)
        like = self.problem.x.device
        self._good = {
            name.removeprefix(_GOOD): value.to(like)
            for name, value in tensors.items()
            if name.startswith(_GOOD)
        }
        self.order = tensors["order"]
        self.generator.set_state(tensors["generator"])
        self._restore_optimizer(tensors)
        self.step, self.position = state["step"], state["position"]
        self.damping, self.estimates = state["damping"], state["estimates"]
        self.history[:] = [FitRecord(**record) for record in state["history"]]

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        description = self.optimizer.state_dict()
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".", 2)
                description["state"].setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(description)
