r"""Streaming in time: one new observation costs a step of the filter.

A fitted Markov posterior is, for the future, the moments of its last state. A new row moves them
forward, meets its own site and leaves the moments of the state there:

.. math:: p(z_t \mid y_{1:t}) \propto p(z_t \mid y_{1:t-1}) \, \exp(\lambda_1 f_t - \tfrac12
          \lambda_2 f_t^2).

With a Gaussian likelihood this equals refitting to all rows at the same hyperparameters. For any other,
the new site is the fixed point given the rows before it, which later rows would still move: the usual
assumed-density filter.

References
----------
Särkkä, S. (2013). Bayesian Filtering and Smoothing.
Opper, M. (1998). A Bayesian approach to on-line learning.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import (
    GaussianProcessLike,
    Marginals,
    Sites,
    StateSpacePosterior,
    WhitePrior,
)
from gpvi.exceptions import InputError, InputTypeError, UnsupportedError
from gpvi.inference.cvi import cvi
from gpvi.kernels import StateSpaceForm, as_state_space
from gpvi.likelihoods import as_likelihood
from gpvi.linalg import MarkovModel
from gpvi.linalg.markov._compiled import to_double

__all__ = ["OnlineFilter"]

# Relative difference of two steps that is nothing but the rounding of stamps.
_SAME_STEP = 1e-9


@dataclass(frozen=True, eq=False)
class OnlineFilter:
    """The state of a process in time given everything observed so far; made by :meth:`start`.

    Updates return a new object and leave this one as it was.

    Parameters
    ----------
    gp : GaussianProcessLike
        Process at the hyperparameters of the fit, off the graph.
    likelihood : gpytorch or gpvi likelihood
        How rows are observed.
    time_dim : int
        Column of the inputs that is time.
    rbf_order : int
        Order of the process that stands for an RBF kernel.
    time : Tensor, scalar
        Last stamp.
    mean : Tensor, shape [*b, d]
        Moments of the state there, in double precision.
    covariance : Tensor, shape [*b, d, d]
        Likewise.
    num_updates : int
        Rows since the start.
    sites : Sites or None
        Sites [*b, n] of the n rows of the last update.

    Examples
    --------
    >>> import torch
    >>> from gpvi.approximations import GaussianProcess, StateSpace
    >>> from gpvi.inference import cvi
    >>> from gpvi.kernels import parse_kernel
    >>> from gpvi.likelihoods import GaussianLikelihood
    >>> gp, noise = GaussianProcess(parse_kernel("matern32", 1)), GaussianLikelihood(noise=0.1)
    >>> x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
    >>> posterior = cvi(StateSpace().prior(gp, x[:4]), noise, x[:4, 0]).posterior
    >>> online = OnlineFilter.start(posterior, noise).update(x[4:], x[4:, 0])
    >>> round(online.predict(x[4:] + 0.1).mean.item(), 3)
    0.855
    """

    gp: GaussianProcessLike
    likelihood: GPyTorchLikelihood
    time_dim: int
    rbf_order: int
    time: Tensor
    mean: Tensor
    covariance: Tensor
    num_updates: int = 0
    sites: Sites | None = None

    @classmethod
    def start(cls, posterior: StateSpacePosterior, likelihood: GPyTorchLikelihood) -> Self:
        """Filter that goes on where a posterior ends.

        Parameters
        ----------
        posterior : StateSpacePosterior
            Of one series.
        likelihood : gpytorch or gpvi likelihood
            How further rows are observed.

        Returns
        -------
        OnlineFilter
            At the last stamp of the posterior.

        Raises
        ------
        InputTypeError
            If the posterior is not of a state-space prior.
        UnsupportedError
            For posteriors over groups or batches of inputs.
        """
        if not isinstance(posterior, StateSpacePosterior):
            raise InputTypeError(
                f"{type(posterior).__name__} has no state to go on from; streaming needs a posterior of "
                "StateSpace()."
            )
        prior = posterior.prior
        if prior.groups is not None or prior.x.dim() > 2:
            raise UnsupportedError(
                "A posterior over groups, or over batches of inputs, has no single last row; condition on "
                "one series."
            )
        time = prior.x[:, prior.time_dim].max().detach()
        mean, covariance = posterior.states(time.unsqueeze(-1))
        return cls(
            prior.gp.detach(),
            likelihood,
            prior.time_dim,
            prior.rbf_order,
            time,
            mean.squeeze(-2),
            covariance.squeeze(-3),
        )

    def update(self, x: Tensor, y: Tensor, **rows: Tensor) -> Self:
        """Observe further rows.

        Parameters
        ----------
        x : Tensor, shape [n, D]
            Inputs, in order of time and none before the last one.
        y : Tensor, shape [n]
            Targets; NaN means not observed.
        **rows : Tensor, shape [n]
            Per-row extras of the likelihood.

        Returns
        -------
        OnlineFilter
            At the last new row.

        Raises
        ------
        InputError
            For shapes that do not fit, inputs that are not finite, and rows before the last stamp.
        """
        time = self._check(x)
        if y.shape != x.shape[:1]:
            raise InputError(f"y has shape {tuple(y.shape)} for {len(x)} rows; pass one per row.")
        if not len(x):
            raise InputError("There are no rows to update with.")
        if bool((time.diff() < 0).any()):
            raise InputError("The new rows are not in order of time; sort them first.")
        model = as_likelihood(self.likelihood)
        model.check_targets(y, **rows)
        with torch.no_grad():
            current, sites = self, []
            for n in range(len(x)):
                one = slice(n, n + 1)
                extras = {name: values[..., one] for name, values in rows.items()}
                current = current._observe(x[one], y[one], extras)
                assert current.sites is not None
                sites.append(current.sites)
        lam1 = torch.cat([site.lam1 for site in sites], -1)
        lam2 = torch.cat([site.lam2 for site in sites], -1)
        return current._moved(num_updates=self.num_updates + len(x), sites=Sites(lam1, lam2))

    def predict(self, x: Tensor) -> Marginals:
        """Moments of f at the last stamp or later.

        Parameters
        ----------
        x : Tensor, shape [M, D]
            Inputs, in any order.

        Returns
        -------
        Marginals
            Shape [*b, M].

        Raises
        ------
        InputError
            For rows before the last stamp.
        """
        time = self._check(x)
        with torch.no_grad():
            model = self._at(x)
            dt = (time - self.time).double()
            A, Q = model.transition(dt), model.process_noise(dt)
            mean = (A @ self.mean[..., None, :, None]).squeeze(-1)
            covariance = A @ self.covariance.unsqueeze(-3) @ A.mT + Q
            h = model.readout.unsqueeze(-2) if model.rows is None else model.rows
            variance = (h * (covariance @ h.unsqueeze(-1)).squeeze(-1)).sum(-1)
            value = self.gp.mean(x) + (h * mean).sum(-1).to(x)
            return Marginals(value, variance.clamp_min(0.0).to(x))

    @cached_property
    def _form(self) -> StateSpaceForm:
        kernel = self.gp.kernel  # type: ignore[attr-defined]
        return to_double(as_state_space(kernel, rbf_order=self.rbf_order))

    @cached_property
    def _model(self) -> MarkovModel | None:
        """The process, where it is the same at every row."""
        return None if self._form.needs_rows else self._form.model()

    @cached_property
    def _matrices(self) -> dict[float, tuple[Tensor, Tensor]]:
        """A and Q of the last step: stamps are often equally spaced."""
        return {}

    def _moved(self, **changes: Any) -> Self:
        """:func:`dataclasses.replace` that keeps what follows from the hyperparameters alone."""
        new = replace(self, **changes)
        new.__dict__.update(_form=self._form, _model=self._model, _matrices=self._matrices)
        return new

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle needs: lazy attributes come again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _at(self, x: Tensor) -> MarkovModel:
        return self._form.model(x.double()) if self._model is None else self._model

    def _step(self, model: MarkovModel, time: Tensor) -> tuple[Tensor, Tensor]:
        dt = float(time - self.time)
        # Steps that differ by the rounding of the stamps are the same step.
        slack = 4.0 * torch.finfo(time.dtype).eps * float(time.abs())
        for known, matrices in self._matrices.items():
            if abs(known - dt) <= min(slack, _SAME_STEP * abs(dt)):
                return matrices
        step = self.mean.new_tensor([dt])
        matrices = model.transition(step).squeeze(-3), model.process_noise(step).squeeze(-3)
        self._matrices.clear()
        self._matrices[dt] = matrices
        return matrices

    def _check(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[-1] <= self.time_dim or x.dtype != self.time.dtype:
            raise InputError(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}; pass rows [n, D] of {self.time.dtype} "
                f"with time in column {self.time_dim}."
            )
        if not bool(torch.isfinite(x).all()):
            raise InputError("x holds values that are NaN or infinite.")
        time = x[:, self.time_dim]
        if len(x) and bool(time.min() < self.time):
            raise InputError(
                f"A row at time {float(time.min()):.10g} is before the last one, {float(self.time):.10g}; "
                "only later rows can be streamed. Condition on all rows again, or predict with the "
                "posterior."
            )
        return time

    def _observe(self, x: Tensor, y: Tensor, rows: dict[str, Any]) -> Self:
        """One row: move, find its site, update."""
        model, time = self._at(x), x[0, self.time_dim]
        A, Q = self._step(model, time)
        m = (A @ self.mean.unsqueeze(-1)).squeeze(-1)
        P = A @ self.covariance @ A.mT + Q
        h = model.readout if model.rows is None else model.rows.squeeze(-2)
        u = (P @ h.unsqueeze(-1)).squeeze(-1)
        a, s = (h * m).sum(-1), (h * u).sum(-1)
        offset = self.gp.mean(x)
        sites = self._sites(x, y, offset + a.unsqueeze(-1).to(x), s.unsqueeze(-1).to(x), rows)
        sites = Sites(sites.lam1.expand_as(offset), sites.lam2.expand_as(offset))
        lam2 = sites.lam2.squeeze(-1).double()
        lam1 = (sites.lam1 - sites.lam2 * offset).squeeze(-1).double()
        inverse = 1.0 / (1.0 + lam2 * s)
        m = m + ((lam1 - lam2 * a) * inverse).unsqueeze(-1) * u
        P = P - (lam2 * inverse)[..., None, None] * u.unsqueeze(-1) * u.unsqueeze(-2)
        return self._moved(time=time, mean=m, covariance=P, sites=sites)

    def _sites(
        self, x: Tensor, y: Tensor, mean: Tensor, variance: Tensor, rows: dict[str, Any]
    ) -> Sites:
        """The site of a row whose f has these moments before it is seen."""
        model = as_likelihood(self.likelihood)
        noise = model.gaussian_noise(y, **rows) if model.num_latents == 1 else None
        if noise is not None:
            precision = noise.reciprocal().expand_as(y) * rows.get("weights", 1.0)
            return Sites(precision * y, precision).mask(~torch.isnan(y))
        return cvi(WhitePrior(self.gp, x, mean, variance), self.likelihood, y, **rows).sites
