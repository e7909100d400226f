"""Minibatch fitting: what a batch says moves q and, by Adam, everything else.

:class:`Minibatcher` draws batches without replacement, takes the steps, goes back where one breaks down,
and keeps records and checkpoints. What q is and what a batch is worth is up to a scheme:

* natural-gradient sites tied to a finite basis (:class:`TiedSites`);
* conditionals of Gaussian responses given their neighbours, without any q (:class:`ResponseBatches`);
* a q of the sparse inverse Cholesky family with parameters of its own, at rows or inducing points
  (:class:`FreeFamily`).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from gpvi.approximations import Posterior
from gpvi.exceptions import NumericalError
from gpvi.inference.batch_family import FreeFamily
from gpvi.inference.batch_responses import ResponseBatches
from gpvi.inference.batch_scheme import BatchScheme, BatchStep
from gpvi.inference.batch_sites import TiedSites
from gpvi.inference.checkpoint import load_state, save_state
from gpvi.inference.parameters import ParameterVector, log_prior
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord, FitResult

__all__ = ["Minibatcher"]

_MAX_FAILURES = 10
_PATIENCE = 5
_STAGE = "minibatch"

# Prefix of the last good state in a checkpoint.
_GOOD = "good."


@dataclass
class Minibatcher:
    """A minibatch fit in progress; all of its state can be saved and restored.

    Parameters
    ----------
    problem : FitProblem
        Whole data set; its approximation must have a finite basis, or be a sum over rows.
    batch_size : int
        Rows per step.
    num_steps : int
        Steps in all.
    learning_rate : float
        Of Adam; decays linearly to a twentieth over the last three tenths of the steps.
    natural_step_size : float
        Step of tied sites once the first ``1 / natural_step_size`` steps (running average) are over;
        decays with the learning rate, which averages the noise of the minibatches out of q. Of a q with
        parameters of its own: its learning rate.
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
        self.scheme = _scheme(self.problem, self.batch_size, self.natural_step_size)
        self.order = torch.empty(0, dtype=torch.int64)
        self.position = 0
        self.parameters = ParameterVector(self.problem.modules).parameters
        # As a group, because Adam refuses an empty list.
        group = {"params": self.parameters, "rate": self.learning_rate}
        self.optimizer = torch.optim.Adam([group], lr=self.learning_rate)
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
            With the scheme's posterior.
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
            self.scheme.log_v,
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
        self._begin()
        while self.step < self.num_steps and not self.stopped:
            current = self._snapshot()
            try:
                if self.scheme.refresh(self.step):
                    self._forget()
                rows = self._next_rows()
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
        """Detached posterior at today's parameters."""
        return self.scheme.posterior()

    def objective(self) -> float:
        """Objective over all rows at today's parameters and q, total nats."""
        return self.scheme.objective()

    def _begin(self) -> None:
        """First state of q and the optimiser, or those of a checkpoint."""
        loaded = None if self.checkpoint is None else load_state(self.checkpoint, self.digest)
        if loaded is not None:
            self._assign(loaded[0])
        self.scheme.start(self.generator)
        for group in self.scheme.groups() if len(self.optimizer.param_groups) == 1 else []:
            options = {"rate": group.rate, "eps": group.floor}
            self.optimizer.add_param_group({"params": group.parameters, **options})
        if loaded is not None:
            self._restore(*loaded)

    def _advance(self, rows: Tensor) -> tuple[float, float]:
        scored = self.scheme.score(rows)
        value = scored.value + log_prior(list(self.problem.modules.values()))
        if not math.isfinite(float(value.detach())):
            raise NumericalError(f"the objective of a minibatch is {float(value.detach())}")
        if scored.update is not None:
            scored.update(BatchStep(self.step, self.damping, self._decay()))
        largest = 0.0
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.scheme.trains(self.step) and trained:
            self.optimizer.zero_grad()
            (-value / self.num_rows).backward()
            largest = max(float(p.grad.abs().max()) for p in trained if p.grad is not None)
            if not math.isfinite(largest):
                raise NumericalError("the gradient of a minibatch is not finite")
            for group in self.optimizer.param_groups:
                group["lr"] = group["rate"] * self.damping * self._decay()
            self.optimizer.step()
        return float(value.detach()), largest

    def _forget(self) -> None:
        """Momentum of a q that has started anew."""
        for group in self.optimizer.param_groups[1:]:
            for parameter in group["params"]:
                self.optimizer.state.pop(parameter, None)

    def _decay(self) -> float:
        left = (self.num_steps - self.step) / (0.3 * self.num_steps)
        return min(1.0, max(0.05, left))

    def _next_rows(self) -> Tensor:
        if self.position + self.batch_size > len(self.order):
            self.order = torch.randperm(
                self.scheme.num_items, generator=self.generator, device=self.generator.device
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
        refreshes, since = self.scheme.last_refresh
        stage = f"{_STAGE}, refresh {refreshes}" if refreshes else _STAGE
        window = self.estimates[since:][-50:]
        mean = sum(window) / len(window) if window else math.nan
        seconds = time.perf_counter() - self.started
        record = FitRecord(stage, step - since, value, mean, gradient, seconds, failed)
        self.history.append(record)
        # A callback may ask to stop; all of them see the record first.
        self.stopped = any([callback(record) for callback in self.callbacks])

    def _snapshot(self) -> dict[str, Tensor]:
        """What a step changes, by name."""
        values = {f"parameter.{i}": p.detach().clone() for i, p in enumerate(self.parameters)}
        return values | self.scheme.snapshot()

    def _assign(self, values: dict[str, Tensor]) -> None:
        """Inverse of :meth:`_snapshot`."""
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(values[f"parameter.{i}"])
        self.scheme.assign(values)

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
        today = self._snapshot()
        # What no step changes is the same tensor in both states, and a file holds a tensor once.
        same = [name for name, value in self._good.items() if today.get(name) is value]
        tensors = {
            **today,
            **{_GOOD + name: v for name, v in self._good.items() if name not in same},
            "order": self.order,
            "generator": self.generator.get_state(),
        }
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": torch.as_tensor(v) for name, v in state.items()}
        state = {
            "same": same,
            "step": self.step,
            "position": self.position,
            "damping": self.damping,
            "estimates": self.estimates,
            "history": [asdict(record) for record in self.history],
        }
        save_state(self.checkpoint, self.digest, tensors, state)

    def _restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        """All but the parameters and q, from a checkpoint."""
        like = self.problem.x.device
        self._good = {
            name.removeprefix(_GOOD): value.to(like)
            for name, value in tensors.items()
            if name.startswith(_GOOD)
        }
        self._good |= {name: tensors[name].to(like) for name in state["same"]}
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


def _scheme(problem: FitProblem, batch_size: int, natural_step_size: float) -> BatchScheme:
    if not problem.approximation.row_minibatches:
        return TiedSites(problem, batch_size, natural_step_size)
    if ResponseBatches.suits(problem):
        return ResponseBatches(problem, batch_size)
    return FreeFamily(problem, batch_size, natural_step_size)
