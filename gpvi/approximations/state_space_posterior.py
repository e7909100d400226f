"""The posterior of a Markov prior: moments, predictions, paths and components in linear time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations._checks import check_new_inputs, refuse_groups
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._random import standard_normal
from gpvi.approximations._residual import ResidualDraw, check_residual, zero_safe_sqrt
from gpvi.approximations._state_space_knots import knots_at
from gpvi.approximations.moments import Draw, Marginals, joint_normal
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.linalg import (
    MarkovPath,
    Smoothed,
    markov_log_partition,
    markov_path,
    markov_sample,
    markov_smooth,
)

if TYPE_CHECKING:
    from gpvi.approximations.state_space_prior import StateSpacePrior

__all__ = ["StateSpacePosterior"]

# Numbers in the states of one chunk of new rows.
_CHUNK = 2**21

# Relative jitter where the inverse of the prior's covariance is asked for.
_FACTOR_JITTER = 1e-10


@dataclass(frozen=True, eq=False)
class StateSpacePosterior(Posterior):
    """Markov prior conditioned on sites.

    Parameters
    ----------
    prior : StateSpacePrior
        What was conditioned.
    sites : Sites
        On the data rows.
    """

    prior: "StateSpacePrior"
    sites: Sites

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Sites about f less its mean, in order of time."""
        with on_graph():
            prior, sites = self.prior, self.sites
            lam1 = prior.sort(sites.lam1 - sites.lam2 * prior.mean)
            return lam1, prior.sort(sites.lam2)

    @cached_property
    def _smoothed(self) -> Smoothed:
        with on_graph():
            return markov_smooth(self.prior.model, self.prior.steps, *self._sorted)

    @cached_property
    def _path(self) -> MarkovPath:
        lam1, lam2 = self._sorted
        with on_graph():
            prior = self.prior.detach()
            return markov_path(prior.model, prior.steps, lam1.detach(), lam2.detach())

    @property
    def log_partition(self) -> Tensor:
        """``log E_prior[exp(sum log t)]``, total."""
        if "_smoothed" in self.__dict__:
            centred = self._smoothed.log_partition
        else:
            centred = markov_log_partition(self.prior.model, self.prior.steps, *self._sorted)
        mean, sites = self.prior.mean, self.sites
        at_mean = self.sum_rows(sites.lam1 * mean - 0.5 * sites.lam2 * mean.square())
        return at_mean + self._total(centred)

    def kl(self) -> Tensor:
        """``KL(q || prior)``, total, from terms that do not cancel."""
        return self._total(self._smoothed.divergence)

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sum values given per data row into a total.

        Parameters
        ----------
        values : Tensor, shape [*b, N]
            One value per row.

        Returns
        -------
        Tensor
            Total, shape [*b], or [G, *b] for flat groups.
        """
        groups = self.prior.groups
        return values.sum(-1) if groups is None else groups.sum_rows(values)

    def _total(self, series: Tensor) -> Tensor:
        """Values of series [*b, G] as a total."""
        return series.squeeze(-1) if self.prior.groups is None else series.movedim(-1, 0)

    def _marginals(self) -> Marginals:
        prior, smoothed = self.prior, self._smoothed
        mean = prior.mean + prior.unsort(smoothed.mean)
        return Marginals(mean, prior.unsort(smoothed.variance))

    def predict(
        self, x: Tensor, joint: bool = False, groups: Tensor | None = None
    ) -> Marginals | gpytorch.distributions.MultivariateNormal:
        """Moments anywhere, between, before and after the data rows.

        Off the graph, one new row costs O(d^3) and no pass is run again; on the graph, the new rows are
        inserted without sites.

        Parameters
        ----------
        x : Tensor, shape [*g, N_new, D]
            Inputs.
        joint : bool
            Whether to return the full covariance.
        groups : Tensor of int, shape [N_new], optional
            The group of every new row, for a posterior over flat groups.

        Returns
        -------
        Marginals or MultivariateNormal
            The latter if ``joint``.
        """
        self._check_rows(x, joint, groups)
        if joint:
            moments = self.predict(x)
            assert isinstance(moments, Marginals)
            return joint_normal(moments.mean, knots_at(self.prior, x).covariance(*self._sorted))
        if torch.is_grad_enabled() and self._needs_graph(x):
            knots = knots_at(self.prior, x, groups)
            smoothed = knots.smooth(*self._sorted)
            mean = self.prior.gp.mean(x) + knots.at_new(smoothed.mean)
            return Marginals(mean, knots.at_new(smoothed.variance))
        moments = self._local(x, groups, None)
        return Marginals(self.prior.gp.mean(x) + moments.mean, moments.explained)

    def components(
        self, x: Tensor | None = None, groups: Tensor | None = None
    ) -> dict[str, Marginals]:
        """Moments of every additive term of the kernel, off the graph.

        The terms of a sum are independent under the prior and dependent under q: their means add up to
        that of f less the prior mean, their variances do not.

        Parameters
        ----------
        x : Tensor, shape [*g, N_new, D], optional
            Where; the data rows if left out.
        groups : Tensor of int, shape [N_new], optional
            The group of every new row, for a posterior over flat groups.

        Returns
        -------
        dict of str to Marginals, shape [*b, N_new]
            By the labels of the kernel's state-space form.
        """
        prior = self.prior
        if x is None:
            x = prior.x
            groups = None if prior.groups is None else prior.groups.labels[prior.groups.group]
        self._check_rows(x, False, groups)
        form = prior.form
        return {
            label: self._local(x, groups, form.component(term))
            for term, label in enumerate(form.labels)
        }

    def states(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior moments of the state of a single series, off the graph.

        Parameters
        ----------
        time : Tensor, shape [*g, M]
            Any times.

        Returns
        -------
        mean : Tensor, shape [*b, M, d]
            States of the process less its mean function, in double precision.
        covariance : Tensor, shape [*b, M, d, d]
            Their covariances.

        Raises
        ------
        UnsupportedError
            For flat groups.
        """
        if self.prior.groups is not None:
            raise UnsupportedError("States of a posterior over groups: condition on one group.")
        with torch.no_grad():
            return self._path.states(time)

    def rsample(
        self,
        shape: torch.Size | tuple[int, ...] = (),
        x: Tensor | None = None,
        residual: ResidualDraw = "joint",
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Reparametrised joint samples; see :meth:`Posterior.rsample`.

        Parameters
        ----------
        shape : sequence of int
            Sample shape S.
        x : Tensor, shape [*g, N_new, D], optional
            Where; the data rows if left out.
        residual : {"joint", "independent", "none"}
            No residual is left, so all three are the same.
        generator : torch.Generator, optional
            Source of randomness.

        Returns
        -------
        Draw
            Values and state paths at the data rows.
        """
        check_residual(residual)
        if x is None:
            knots = knots_at(self.prior, None)
        elif self.prior.groups is not None:
            raise UnsupportedError(
                "A posterior over groups samples at its data rows only; condition on one group to sample "
                f"it at x of shape {tuple(x.shape)}."
            )
        else:
            check_new_inputs(self, x)
            knots = knots_at(self.prior, x)
        lam1, lam2 = knots.sites(*self._sorted)
        batch = torch.broadcast_shapes(lam1.shape[:-1], self.prior.mean.shape[:-1])
        d = self.prior.form.dimension
        size = torch.Size(shape).numel()
        normals = standard_normal((size, *batch, lam1.shape[-1], d), self.prior.mean, generator)
        states = markov_sample(knots.model, knots.steps, lam1, lam2, normals)
        states = states.reshape(*shape, *states.shape[1:])
        basis = knots.rows(states, knots.old).flatten(-2)
        if x is None:
            return Draw(self.prior.function_values(basis), basis)
        values = self.prior.gp.mean(x) + knots.at_new(knots.read(states))
        return Draw(values, basis)

    def log_ratio(self, draw: Draw) -> Tensor:
        """``log p(basis) - log q(basis)``, shape [*S, *b], or [*S, G, *b] for flat groups."""
        values, sites = self._site_values(draw.basis), self.sites
        rows = sites.lam1 * values - 0.5 * sites.lam2 * values.square()
        num_batch_dims = max(self.prior.mean.dim(), sites.lam1.dim()) - 1
        if self.prior.groups is None:
            return self.log_partition - rows.sum(-1)
        return self.log_partition - self.prior.sum_sorted(self.prior.sort(rows), num_batch_dims)

    def path_weights(
        self, prior_path: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Weights of kernel functions at the data rows; see :meth:`Posterior.path_weights`.

        With noise of precision ``lam2`` drawn along, ``w = j - lam2 m_j`` where ``j = lam1 - lam2 g -
        sqrt(lam2) e`` and ``m_j`` is the posterior mean that sites (j, lam2) give: one pass a draw. Sites
        wider than the prior have no such noise: then ``w = K^-1 (f - g)`` for a draw f of q, with a
        relative jitter of 1e-10.

        Parameters
        ----------
        prior_path : callable
            Values [S, *b, N] of draws of the prior without its mean.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        inputs : Tensor, shape [*g, N, D]
            The data rows.
        weights : Tensor, shape [S, *b, N]
            One per row.

        Raises
        ------
        UnsupportedError
            For flat groups, which share no function.
        """
        prior = self.prior
        if prior.groups is not None:
            raise UnsupportedError(
                "Every group has functions of its own; condition on one group to sample its functions."
            )
        lam1, lam2 = self._sorted
        drawn = prior_path(prior.x)
        if bool((lam2 < 0).any()):
            values = self.rsample(drawn.shape[:1], generator=generator).values
            jitter = _FACTOR_JITTER * prior.gp.variance(prior.x).mean(-1, keepdim=True)
            gap, lam2 = (
                prior.sort(values - prior.mean - drawn),
                prior.sort(1.0 / jitter + 0.0 * drawn),
            )
            target = lam2 * gap
            smoothed = markov_smooth(prior.model, prior.steps, target, lam2)
            return prior.x, prior.unsort(lam2 * (gap - smoothed.mean))
        drawn = prior.sort(drawn)
        noise = standard_normal(tuple(drawn.shape), drawn, generator)
        target = lam1 - lam2 * drawn - zero_safe_sqrt(lam2) * noise
        smoothed = markov_smooth(prior.model, prior.steps, target, lam2.expand_as(target))
        return prior.x, prior.unsort(target - lam2 * smoothed.mean)

    def _check_rows(self, x: Tensor, joint: bool, groups: Tensor | None) -> None:
        time = x[..., self.prior.time_dim] if x.shape[-1] > self.prior.time_dim else x
        if not bool(torch.isfinite(time).all()):
            raise InputError(
                f"{int((~torch.isfinite(time)).sum())} stamps of x are NaN or infinite; drop these rows."
            )
        if self.prior.groups is None:
            refuse_groups(self, groups)
            check_new_inputs(self, x)
            return
        if groups is None:
            raise InputError("This posterior is over groups: pass groups, one label per row of x.")
        if joint:
            raise UnsupportedError(
                "joint=True and groups: condition on one group to predict it jointly."
            )
        if groups.shape != x.shape[:1] or x.dim() != 2:
            raise InputError(
                f"x has shape {tuple(x.shape)} and groups {tuple(groups.shape)}; "
                "pass x [N, D] and one label per row, groups [N]."
            )
        check_new_inputs(self, x)

    def _needs_graph(self, x: Tensor) -> bool:
        lam1, lam2 = self._sorted
        model, time = self.prior.model, self.prior.steps.time
        start = model.initial(time[..., :1])
        parts = [x, lam1, lam2, time, start, model.transition(lam1.new_zeros(1))]
        return any(part.requires_grad for part in parts)

    def _local(self, x: Tensor, groups: Tensor | None, mask: Tensor | None) -> Marginals:
        """Moments of f, or of some of its states, less the prior mean, from the kept path."""
        with torch.no_grad():
            prior = self.prior
            series = None if prior.groups is None or groups is None else prior.groups.locate(groups)
            size = max(1, _CHUNK // prior.form.dimension**2)
            pieces = []
            for start in range(0, max(1, x.shape[-2]), size):
                part = x[..., start : start + size, :]
                chosen = None if series is None else series[start : start + size]
                mean, covariance = self._path.states(part[..., prior.time_dim], chosen)
                readout = _readout(prior, part)
                readout = readout if mask is None else readout * mask.to(readout)
                value = (readout * mean).sum(-1)
                spread = (readout * (covariance @ readout.unsqueeze(-1)).squeeze(-1)).sum(-1)
                pieces.append((value.to(x), spread.clamp_min(0.0).to(x)))
            means, variances = zip(*pieces, strict=True)
            return Marginals(torch.cat(means, -1), torch.cat(variances, -1))

    def _site_values(self, basis: Tensor) -> Tensor:
        return self.prior.function_values(basis)


def _readout(prior: "StateSpacePrior", x: Tensor) -> Tensor:
    """Readout of new rows, shape [*b, N_new, d], in double precision."""
    model = prior.form.model(x if prior.form.needs_rows else None)
    return (model.readout.unsqueeze(-2) if model.rows is None else model.rows).double()
