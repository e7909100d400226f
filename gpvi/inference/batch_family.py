r"""A q of the sparse inverse Cholesky family with parameters of its own, trained on batches of rows.

Its values are those at all rows or, for :class:`NeighborInducing`, at inducing points, of which every step
then draws a second, independent batch.

:math:`q(f) = N(\nu, (VV^\top)^{-1})` starts from the fixed point of conjugate-computation variational
inference with an incomplete Cholesky factor, which is near the best q of the family. From there all of its
numbers are moved by Adam, together with the hyperparameters, on the unbiased row estimate of the bound.

Its parameters are distances from the start, in units in which the bound has a curvature of about one (see
:mod:`gpvi.inference.batch_units`).

Held still, such a q would hold back the hyperparameters of the prior that it fits, as in an expectation-
maximisation, which takes many epochs where data say little. Its start therefore goes along with
them, to first order, as the fixed point's sites held would have it. That changes no optimum, only the way.

References
----------
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gpvi.approximations import (
    NeighborInducing,
    NeighborInducingPosterior,
    NeighborInducingPrior,
    Posterior,
    Prior,
    Sites,
)
from gpvi.approximations._gather import take_rows
from gpvi.approximations.neighbor_inducing_plan import NeighborInducingPlan
from gpvi.approximations.sparse_inverse_posterior import SparseInversePosterior
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.inference.batch_neighbors import BatchNeighbors
from gpvi.inference.batch_scheme import ParameterGroup, Scored
from gpvi.inference.batch_units import factor_units, shift_units
from gpvi.inference.objectives import elbo
from gpvi.inference.parameters import ParameterVector
from gpvi.inference.problem import FitProblem

__all__ = ["FreeFamily"]

# Gradients far below this many nats per unit, times the entries of a column, make steps in proportion, as of
# plain gradient ascent: nothing else keeps entries at rest that are where they should be. The curvature of
# a column's entries together grows with their number.
_FLOOR = 0.25

# q starts anew once a hyperparameter (as GPyTorch stores it) has moved further than this by the end of an
# epoch: first order is good for small ways only.
_FAR = 0.05

# Of so many hyperparameters, each of which costs a factorisation; and the step of the differences.
_MOST_SLOPES = 20
_STEP = 1e-4

# No derivative: the factor has changed over from the incomplete one to its substitute, or back.
_STEEPEST = 100.0

_PREFIX = "family."


@dataclass(frozen=True, eq=False)
class _Start:
    """Where q started, and the units of its parameters.

    Parameters
    ----------
    shift, shift_unit : Tensor, shape [*b, M]
        Mean of q less that of the prior.
    factor, factor_unit : Tensor, shape [*b, M, k + 1]
        V; the units of its last slots are those of the logarithms of the diagonal. Zero for slots that are
        not used.
    lam1, lam2 : Tensor, shape [*b, N]
        Sites of the fixed point, where the next one is looked for.
    values : Tensor, shape [P]
        Hyperparameters of the process there.
    shift_slope, factor_slope : Tensor, shape [P', *b, M] and [P', *b, M, k + 1]
        Derivatives of shift and V (of the logarithms of its diagonal) by these with the sites held, for all
        of them or, where there are many, none.
    """

    shift: Tensor
    shift_unit: Tensor
    factor: Tensor
    factor_unit: Tensor
    lam1: Tensor
    lam2: Tensor
    values: Tensor
    shift_slope: Tensor
    factor_slope: Tensor


class FreeFamily:
    """Batches of rows for a sparse inverse Cholesky q.

    Parameters
    ----------
    problem : FitProblem
        Whole data set, one input set.
    batch_size : int
        Rows per step.
    step_size : float
        Learning rate of q.
    """

    log_v: Tensor | None = None

    def __init__(self, problem: FitProblem, batch_size: int, step_size: float) -> None:
        self.problem, self.step_size = problem, step_size
        self.neighbors = BatchNeighbors(problem, problem.plan, batch_size)
        self._parameters = ParameterVector({"gp": problem.gp}).parameters
        self._epoch = math.ceil(problem.num_rows / batch_size)
        self._start: _Start | None = None
        self._outcome: tuple[Posterior, float] | None = None
        self._generator: torch.Generator | None = None
        self._mean = self._off = self._diagonal = torch.nn.Parameter(problem.x.new_zeros(()))

    @property
    def num_items(self) -> int:
        """Rows of the data set."""
        return self.problem.num_rows

    @property
    def last_refresh(self) -> tuple[int, int]:
        """How often neighbours have been found anew, and after how many steps the last time."""
        return self.neighbors.last_refresh

    def start(self, generator: torch.Generator) -> None:
        """Fixed point and incomplete Cholesky factor at today's hyperparameters."""
        self._generator = generator
        if self._start is None:
            self._restart()

    def groups(self) -> list[ParameterGroup]:
        """Mean, off-diagonal entries and log diagonal of V."""
        parts = [part for part in self._named().values() if part.numel()]
        floor = max(1.0, _FLOOR * (self._off.shape[-1] + 1))
        return [ParameterGroup(parts, self.step_size, floor / self.num_items)]

    def trains(self, number: int) -> bool:
        """Always: q starts near its optimum."""
        return True

    def refresh(self, number: int) -> bool:
        """Once an epoch: start q anew with other neighbours, or far from where it started."""
        start = self._start
        changed = self.neighbors.refresh(number)
        if start is None or number == 0 or number % self._epoch:
            far = False
        else:
            far = bool(((self._values() - start.values).abs() > _FAR).any())
        if changed or far:
            self._restart()
        return changed or far

    def score(self, index: Tensor) -> Scored:
        """Score a batch of rows, int64 [B]."""
        self._outcome = None
        problem = self.problem
        index = index.to(problem.x.device)
        value = elbo(
            self._view(index),
            problem.likelihood,
            problem.y.index_select(-1 - problem.likelihood.target_dims, index),
            problem.num_rows,
            weights=None if problem.weights is None else problem.weights[..., index],
            **{name: values[..., index] for name, values in problem.rows.items()},
        )
        return Scored(value.sum())

    def snapshot(self) -> dict[str, Tensor]:
        """Parameters of q, where it started, and what brings the neighbours back."""
        values = self.neighbors.snapshot()
        if self._start is not None:
            values |= {_PREFIX + f.name: getattr(self._start, f.name) for f in fields(_Start)}
            values |= {
                _PREFIX + name: parameter.detach().clone()
                for name, parameter in self._named().items()
            }
        return values

    def assign(self, values: dict[str, Tensor]) -> None:
        """Inverse of :meth:`snapshot`."""
        device = self.problem.x.device
        self.neighbors.assign(values)
        self.problem.plan = self.neighbors.plan
        self._begin(_Start(*(values[_PREFIX + f.name].to(device) for f in fields(_Start))))
        with torch.no_grad():
            for name, parameter in self._named().items():
                parameter.copy_(values[_PREFIX + name])

    def posterior(self) -> Posterior:
        """Detached q at today's parameters, or the fixed point.

        Returns
        -------
        SparseInversePosterior or NeighborInducingPosterior
            The fixed point where its bound is higher, or neighbours are others by now.
        """
        return self._best()[0]

    def objective(self) -> float:
        """Bound of :meth:`posterior` over all rows, total nats."""
        return self._best()[1]

    def _best(self) -> tuple[Posterior, float]:
        if self._outcome is None:
            problem = self.problem
            problem.plan = self.neighbors.plan
            moved = problem.refresh()
            result = problem.infer()
            q, value = result.posterior, result.objective
            if not moved:
                # Adam may trail hyperparameters that have just moved, or be ahead of the fixed point.
                with torch.no_grad():
                    own = self._condition(self._prior())
                    extras = {"weights": problem.weights, **problem.rows}
                    bound = float(elbo(own, problem.likelihood, problem.y, **extras).sum())
                if not value >= bound:
                    q, value = own, bound
            self._outcome = q.detach(), value
        return self._outcome

    def _view(self, index: Tensor) -> Posterior:
        """q as some rows see it; with inducing points, on as many of these, drawn independently."""
        problem = self.problem
        if not isinstance(problem.approximation, NeighborInducing):
            q = self._condition(self._prior())
            assert isinstance(q, SparseInversePosterior)
            return q.rows(index)
        x = problem.x.index_select(-2, index)
        plan = self.neighbors.plan
        assert isinstance(plan, NeighborInducingPlan)
        prior = problem.approximation.prior(problem.gp, x, plan=plan.at(x))
        assert isinstance(prior, NeighborInducingPrior) and self._generator is not None
        inner, device = prior.inner, self._generator.device
        drawn = torch.randint(
            prior.num_basis, (len(index),), generator=self._generator, device=device
        )

        def local(places: Tensor) -> tuple[Tensor, Tensor]:
            shift, factor = self._parameters_at(places)
            z = take_rows(inner.x, inner.geometry.first[0][places])
            return inner.gp.mean(z).double() + shift, factor

        return prior.batch(local, drawn.to(index.device))

    def _prior(self) -> Prior:
        problem = self.problem
        return problem.approximation.prior(problem.gp, problem.x, plan=self.neighbors.plan)

    def _condition(self, prior: Prior) -> Posterior:
        assert isinstance(prior, SparseInversePrior | NeighborInducingPrior)
        inner = prior.inner if isinstance(prior, NeighborInducingPrior) else prior
        shift, factor = self._parameters_at(slice(None))
        return prior.posterior(inner.place_mean + shift, factor)

    def _parameters_at(self, places: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Mean of q less that of the prior, and columns of V."""
        start = self._start
        assert start is not None
        shift = start.shift[..., places] + start.shift_unit[..., places] * self._mean[..., places]
        moved = [self._off[..., places, :], self._diagonal[..., places].unsqueeze(-1)]
        change = start.factor_unit[..., places, :] * torch.cat(moved, -1)
        if len(start.shift_slope):
            way = self._values() - start.values
            shift = shift + torch.tensordot(way, start.shift_slope[..., places], 1)
            change = change + torch.tensordot(way, start.factor_slope[..., places, :], 1)
        factor = start.factor[..., places, :]
        off = factor[..., :-1] + change[..., :-1]
        return shift, torch.cat([off, factor[..., -1:] * change[..., -1:].exp()], -1)

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return {"mean": self._mean, "off": self._off, "diagonal": self._diagonal}

    def _restart(self) -> None:
        """q from the fixed point at today's hyperparameters."""
        problem = self.problem
        problem.plan = self.neighbors.plan
        result = problem.infer()
        problem.sites = result.sites
        q = _of_places(result.posterior)
        deviation = q._norms[0].detach().sqrt()
        index = q.prior.factor_pattern(()).neighbors
        batch = torch.broadcast_shapes(q.shift.shape[:-1], q.factor.shape[:-2])
        shift = q.shift.detach().expand(*batch, -1)
        factor = q.factor.detach().expand(*batch, *q.factor.shape[-2:])
        units = factor_units(index, factor, deviation.expand(*batch, -1))
        sites = Sites(result.sites.lam1.detach(), result.sites.lam2.detach())
        self._begin(
            _Start(
                shift,
                shift_units(index, factor),
                factor,
                units,
                sites.lam1,
                sites.lam2,
                self._values().detach(),
                *self._slopes(sites, shift, factor),
            )
        )

    def _values(self) -> Tensor:
        """Hyperparameters of the process as one vector, in double precision."""
        parts = [parameter.flatten().double() for parameter in self._parameters]
        return torch.cat(parts) if parts else self.problem.x.new_zeros(0).double()

    def _slopes(self, sites: Sites, shift: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Forward differences of shift and V by every hyperparameter of the process, at held sites."""
        number = sum(parameter.numel() for parameter in self._parameters)
        used = number if number <= _MOST_SLOPES else 0
        shifts, factors = shift.new_zeros(used, *shift.shape), factor.new_zeros(used, *factor.shape)
        if not used:
            return shifts, factors
        places = [(p, i) for p in self._parameters for i in range(p.numel())]
        for k, (parameter, i) in enumerate(places):
            with torch.no_grad(), _moved(parameter, i) as step:
                q = _of_places(self._prior().condition(sites))
                logs = (q.factor[..., -1] / factor[..., -1]).log() / step
                if float(logs.abs().max()) <= _STEEPEST:
                    shifts[k] = (q.shift - shift) / step
                    factors[k, ..., :-1] = (q.factor[..., :-1] - factor[..., :-1]) / step
                    factors[k, ..., -1] = logs
        return shifts, factors

    def _begin(self, start: _Start) -> None:
        """Adopt a start, with all parameters at zero."""
        self._outcome = None
        self.problem.sites = Sites(start.lam1, start.lam2)
        if self._start is None:
            off, diagonal = start.factor[..., :-1], start.factor[..., -1]
            self._mean, self._off, self._diagonal = (
                torch.nn.Parameter(torch.zeros_like(part)) for part in (start.shift, off, diagonal)
            )
        self._start = start
        with torch.no_grad():
            for parameter in self._named().values():
                parameter.zero_()


def _of_places(q: Posterior) -> SparseInversePosterior:
    """q of the values that its factor is on."""
    q = q.inner if isinstance(q, NeighborInducingPosterior) else q
    assert isinstance(q, SparseInversePosterior)
    return q


@contextmanager
def _moved(parameter: Tensor, i: int) -> Iterator[float]:
    """One entry of a parameter a step further for a moment; how far it is."""
    flat = parameter.detach().view(-1)
    value = flat[i].clone()
    flat[i] += _STEP
    try:
        yield float(flat[i] - value)
    finally:
        flat[i] = value
