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

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from gpvi.approximations import Marginals, Posterior, Sites
from gpvi.exceptions import NumericalError
from gpvi.inference.checkpoint import load_state, save_state
from gpvi.inference.data_term import data_term, dual
from gpvi.inference.objectives import elbo, optimal_log_v, tighter_elbo
from gpvi.inference.parameters import log_prior
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord

__all__ = ["Minibatcher"]

_MAX_FAILURES = 10
_PATIENCE = 5
_STAGE = "minibatch"


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
        Step of the sites once the first ``1 / natural_step_size`` steps (running average) are over.
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
        File for the state, written every ``checkpoint_every`` steps.
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
        modules = self.problem.modules.values()
        self.parameters = _trainable(list(modules))
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.learning_rate)
        self.estimates: list[float] = []

    @property
    def num_rows(self) -> int:
        """Rows of the data set."""
        return self.problem.y.shape[-1]

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
        while self.step < self.num_steps:
            rows = self._next_rows()
            backup = self._snapshot()
            try:
                value, gradient = self._advance(rows)
            except NumericalError as error:
                self._roll_back(backup, error)
                continue
            self.failures = 0
            self.step += 1
            self.estimates.append(value)
            if self._report(value, gradient):
                return False, "a callback asked to stop"
            if self.checkpoint and self.step % self.checkpoint_every == 0:
                self._save()
            if self._converged():
                return True, f"five windows gained less than {self.tolerance:g} nats per row"
        return False, f"{self.num_steps} steps taken"

    def posterior(self) -> Posterior:
        """Detached posterior on the tied sites, without data rows."""
        prior = self.problem.approximation.prior(self.problem.gp, self.problem.x[..., :1, :])
        return prior.detach().condition(self._tied(prior.mean.shape[:-1])).compact()

    def objective(self) -> float:
        """Objective over all rows at today's parameters and sites, total nats."""
        total, kl = 0.0, 0.0
        with torch.no_grad():
            for rows in torch.arange(self.num_rows).split(self.batch_size):
                posterior, y, extras, weights = self._condition(rows)
                share = len(rows) / self.num_rows
                value = self._bound(posterior, y, extras, weights)
                kl = float(posterior.kl().sum())
                total += share * (float(value.sum()) + kl)
        return total - kl

    def _advance(self, rows: Tensor) -> tuple[float, float]:
        posterior, y, extras, weights = self._condition(rows)
        bound = self._bound(posterior, y, extras, weights).sum()
        value = bound + log_prior(list(self.problem.modules.values()))
        if not math.isfinite(float(value.detach())):
            raise NumericalError(f"the objective of a minibatch is {float(value.detach())}")
        self._update_sites(posterior.detach(), y, extras, weights)
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

    def _condition(
        self, rows: Tensor
    ) -> tuple[Posterior, Tensor, dict[str, Tensor], Tensor | None]:
        problem = self.problem
        rows = rows.to(problem.x.device)
        x, y = problem.x[..., rows, :], problem.y[..., rows]
        extras = {name: value[..., rows] for name, value in problem.rows.items()}
        weights = None if problem.weights is None else problem.weights[..., rows]
        prior = problem.approximation.prior(problem.gp, x)
        return prior.condition(self._tied(prior.mean.shape[:-1])), y, extras, weights

    def _tied(self, batch: torch.Size) -> Sites:
        if self.sites is None:
            size = self.problem.approximation.prior(
                self.problem.gp, self.problem.x[..., :1, :]
            ).num_basis
            like = self.problem.x
            self.sites = Sites.zeros(
                (*batch, size), on="basis", full=True, dtype=like.dtype, device=like.device
            )
        return self.sites

    def _bound(
        self, posterior: Posterior, y: Tensor, extras: dict[str, Tensor], weights: Tensor | None
    ) -> Tensor:
        problem = self.problem
        if not problem.tighter:
            return elbo(posterior, problem.likelihood, y, self.num_rows, weights=weights, **extras)
        if self.log_v is None and problem.likelihood.gaussian_noise(y, **extras) is None:
            self.log_v = torch.zeros(
                posterior.marginals().mean.shape[:-1], dtype=y.dtype, device=y.device
            )
        return tighter_elbo(
            posterior,
            problem.likelihood,
            y,
            self.num_rows,
            weights=weights,
            log_v=self.log_v,
            **extras,
        )

    def _update_sites(
        self, posterior: Posterior, y: Tensor, extras: dict[str, Tensor], weights: Tensor | None
    ) -> None:
        likelihood = self.problem.likelihood
        log_v = self.log_v

        def term(moments: Marginals) -> Tensor:
            return data_term(likelihood, y, moments, weights=weights, log_v=log_v, **extras)

        marginals = posterior.marginals()
        fresh = dual(term, marginals, min_precision=0.0)
        if likelihood.num_latents == 1:
            fresh = fresh.mask(~torch.isnan(y))
        target = (self.num_rows / y.shape[-1]) * posterior.prior.tie(fresh)
        rate = self.damping * max(self.natural_step_size, 1.0 / (self.step + 2.0))
        assert self.sites is not None
        sites = self.sites.lerp(target, rate)
        if not bool(torch.isfinite(sites.lam1).all() and torch.isfinite(sites.lam2).all()):
            raise NumericalError("the sites of a minibatch are not finite")
        self.sites = sites
        if log_v is not None and marginals.residual is not None:
            best = optimal_log_v(likelihood, y, marginals, weights=weights, **extras)
            self.log_v = torch.lerp(log_v, best, rate)

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

    def _report(self, value: float, gradient: float) -> bool:
        window = self.estimates[-50:]
        record = FitRecord(
            _STAGE,
            self.step,
            value,
            sum(window) / len(window),
            gradient,
            time.perf_counter() - self.started,
        )
        self.history.append(record)
        return any([callback(record) for callback in self.callbacks])

    def _snapshot(self) -> tuple[list[Tensor], Sites | None, Tensor | None]:
        values = [parameter.detach().clone() for parameter in self.parameters]
        return values, self.sites, self.log_v

    def _roll_back(
        self, backup: tuple[list[Tensor], Sites | None, Tensor | None], error: NumericalError
    ) -> None:
        self.failures += 1
        if self.failures >= _MAX_FAILURES:
            raise NumericalError(
                f"{self.failures} minibatch steps in a row failed, the last one because {error}. Use "
                "float64, a larger jitter or a smaller learning rate."
            ) from error
        values, self.sites, self.log_v = backup
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)
        self.damping *= 0.5
        self.history.append(
            FitRecord(
                _STAGE,
                self.step + 1,
                math.nan,
                math.nan,
                math.nan,
                time.perf_counter() - self.started,
                failed=True,
            )
        )

    def _save(self) -> None:
        assert self.checkpoint is not None and self.sites is not None
        tensors = {
            "lam1": self.sites.lam1,
            "lam2": self.sites.lam2,
            "order": self.order,
            "generator": self.generator.get_state(),
            **{f"parameter.{i}": value for i, value in enumerate(self.parameters)},
        }
        if self.log_v is not None:
            tensors["log_v"] = self.log_v
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": torch.as_tensor(v) for name, v in state.items()}
        state = {
            "step": self.step,
            "position": self.position,
            "damping": self.damping,
            "estimates": self.estimates,
            "history": json.dumps([asdict(record) for record in self.history]),
        }
        save_state(self.checkpoint, self.digest, tensors, state)

    def _restore(self) -> None:
        loaded = None if self.checkpoint is None else load_state(self.checkpoint, self.digest)
        if loaded is None:
            return
        tensors, state = loaded
        like = self.problem.x
        self.sites = Sites(tensors["lam1"].to(like), tensors["lam2"].to(like), on="basis")
        self.log_v = tensors["log_v"].to(like) if "log_v" in tensors else None
        self.order = tensors["order"]
        self.generator.set_state(tensors["generator"])
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"parameter.{i}"])
        self._restore_optimizer(tensors)
        self.step = int(state["step"])  # type: ignore[call-overload]
        self.position = int(state["position"])  # type: ignore[call-overload]
        self.damping = float(state["damping"])  # type: ignore[arg-type]
        self.estimates = list(state["estimates"])  # type: ignore[call-overload]
        self.history[:] = [FitRecord(**r) for r in json.loads(str(state["history"]))]

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        description = self.optimizer.state_dict()
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".", 2)
                description["state"].setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(description)


def _trainable(modules: Sequence[torch.nn.Module]) -> list[torch.nn.Parameter]:
    unique: dict[int, torch.nn.Parameter] = {}
    for parameter in _all_parameters(modules):
        if parameter.requires_grad:
            unique.setdefault(id(parameter), parameter)
    return list(unique.values())


def _all_parameters(modules: Sequence[torch.nn.Module]) -> Iterator[torch.nn.Parameter]:
    for module in modules:
        yield from module.parameters()
