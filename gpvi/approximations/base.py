"""The contract: plan, prior, posterior.

Every approximation is a structured Gaussian prior that is conditioned on Gaussian sites, in three
stages of immutable objects:

* ``plan(x)`` - indices only, once per data set, never differentiable;
* ``prior(gp, x)`` - the factorisation of the structured prior, once per hyperparameter value;
* ``prior.condition(sites)`` - the posterior, once per set of sites.

Shapes: ``b`` are batch dims (latents last among them), rows N, basis size M, samples S in front.
"Total" means summed over rows, shape ``[*b]``, or ``[G, *b]`` for G flat groups.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from gpvi.approximations._detach import detached
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.plan import Plan
from gpvi.approximations.posterior import Posterior
from gpvi.approximations.sites import Sites, SiteSpace
from gpvi.exceptions import InputError, UnsupportedError

__all__ = ["Approximation", "Prior"]


class Prior(ABC):
    """A structured Gaussian prior at fixed inputs and hyperparameters, immutable.

    Attributes
    ----------
    gp : GaussianProcessLike
        Snapshot of the process.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    mean : Tensor, shape [*b, N]
        Prior mean at the rows.
    residual : Tensor, shape [*b, N], or None
        Conditional variance of the rows given the basis.
    """

    gp: GaussianProcessLike
    x: Tensor

    #: Spaces in which :meth:`condition` accepts sites.
    site_spaces: tuple[SiteSpace, ...] = ("data",)

    #: Whether q is exactly prior times sites. Where it is not, fixed points of natural-gradient steps are
    #: maxima of the bound only nearly, and gradients with q held are nearly total ones.
    exact_conditioning: bool = True

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Prior mean at the data rows, shape [*b, N]."""

    @property
    def residual(self) -> Tensor | None:
        """Conditional variance of the data rows given the basis; None if nothing is left."""
        return None

    @property
    @abstractmethod
    def num_basis(self) -> int:
        """Size M of the basis."""

    def condition(self, sites: Sites) -> Posterior:
        """Multiply with Gaussian sites and normalise.

        Parameters
        ----------
        sites : Sites
            In one of the spaces of ``site_spaces``, with batch dims that broadcast to the prior's.

        Returns
        -------
        Posterior
            The conditioned process.

        Raises
        ------
        UnsupportedError
            If this prior takes no sites in that space.
        InputError
            If the number of sites does not fit.
        """
        self._check_sites(sites)
        # A copy: site buffers are often updated in place, and a posterior must not move with them.
        return self._condition(Sites(sites.lam1.clone(), sites.lam2.clone(), sites.on))

    def tangent(
        self, posterior: "Posterior", mean: Tensor, explained: Tensor, residual: Tensor | None
    ) -> Tensor:
        r"""Scalar with the gradient of an objective at held sites; its own value means nothing.

        .. math:: \nabla \Bigl[ \log Z + \sum_n (a_n m_n + b_n v_n + c_n d_n) \Bigr]

        in everything this prior depends on, with weights a, b, c of the marginal means, explained
        variances and residuals. Any objective of a posterior on these sites has this form to first
        order.

        Parameters
        ----------
        posterior : Posterior
            This prior, possibly detached, conditioned on data sites.
        mean, explained : Tensor, shape [*b, N]
            Weights a and b.
        residual : Tensor, shape [*b, N], or None
            Weights c, where there is a residual.

        Returns
        -------
        Tensor, scalar
            On the graph.
        """
        held = self.condition(posterior.sites.detach())
        moments = held.marginals()
        scalar = (
            held.log_partition.sum() + (mean * moments.mean + explained * moments.explained).sum()
        )
        if residual is None or moments.residual is None:
            return scalar
        return scalar + (residual * moments.residual).sum()

    @abstractmethod
    def whiten(self, basis: Tensor) -> Tensor:
        """Coordinates in which the prior of the basis is standard normal, shape [*S, *b, M]."""

    @abstractmethod
    def unwhiten(self, whitened: Tensor) -> Tensor:
        """Inverse of :meth:`whiten`."""

    @abstractmethod
    def log_prob(self, basis: Tensor) -> Tensor:
        """Prior log density of basis values, total."""

    def tie(self, sites: Sites) -> Sites:
        """Move data sites onto a finite basis, so that they survive the minibatch that made them.

        Parameters
        ----------
        sites : Sites
            On the data rows of this prior.

        Returns
        -------
        Sites
            On the basis; conditioning on them gives the same q.

        Raises
        ------
        UnsupportedError
            If the basis grows with the data.
        """
        raise UnsupportedError(
            f"{type(self).__name__} has one basis value per data row, so sites cannot be tied to "
            "it; use the data sites themselves."
        )

    def detach(self) -> Self:
        """The same prior off the graph.

        Returns
        -------
        Prior
            With every tensor and the snapshot detached.
        """
        return detached(self)

    def _check_sites(self, sites: Sites) -> None:
        if sites.on not in self.site_spaces:
            raise UnsupportedError(
                f"{type(self).__name__} takes sites on {' or '.join(self.site_spaces)}, "
                f"not on {sites.on!r}."
            )
        mean = self.mean
        size = mean.shape[-1] if sites.on == "data" else self.num_basis
        if sites.lam1.shape[-1] != size:
            what = "data rows" if sites.on == "data" else "basis values"
            raise InputError(
                f"{sites.lam1.shape[-1]} sites for {size} {what} of {type(self).__name__}."
            )
        if sites.lam1.dtype != mean.dtype or sites.lam1.device != mean.device:
            raise InputError(
                f"The sites are {sites.lam1.dtype} on {sites.lam1.device} and the prior is "
                f"{mean.dtype} on {mean.device}; convert one of them."
            )
        self._check_batch(sites.lam1.shape[:-1])

    def _check_batch(self, batch: torch.Size) -> None:
        own = self.mean.shape[:-1]
        try:
            torch.broadcast_shapes(batch, own)
        except RuntimeError:
            raise InputError(
                f"Sites of batch shape {tuple(batch)} do not broadcast with the batch shape "
                f"{tuple(own)} of {type(self).__name__}."
            ) from None

    @abstractmethod
    def _condition(self, sites: Sites) -> Posterior: ...


class Approximation(torch.nn.Module, ABC):
    """How a Gaussian process is approximated: options and structure parameters, no kernel.

    Attributes
    ----------
    whole_data : bool
        True if a prior needs all rows of a data set (or of a group) at once.
    finite_basis : bool
        True if the basis does not grow with the data, so that sites can be tied to it.
    subset_warm_start : bool
        True if hyperparameters fitted to a subset of the rows are a good start for all of them.
    exact_conditioning : bool
        As of its priors.
    row_minibatches : bool
        True if objectives are sums over rows given few others each, so that minibatches of rows estimate
        them although a prior needs whole data.
    """

    whole_data: bool = True
    finite_basis: bool = False
    row_minibatches: bool = False
    subset_warm_start: bool = True
    exact_conditioning: bool = True

    def extra_repr(self) -> str:
        """Options that are not the defaults, for ``repr``.

        Returns
        -------
        str
            As they would be written in a call.
        """
        shown = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            value = getattr(self, name, getattr(getattr(self, "options", None), name, None))
            default = parameter.default
            if name == "self" or value is None or isinstance(value, torch.nn.Module):
                continue
            if isinstance(value, Tensor):
                shown.append(f"{name}=<{'x'.join(map(str, value.shape))}>")
            elif default is inspect.Parameter.empty or value != default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Choose structure parameters (inducing inputs, say) for data; nothing to do by default.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process with its initial hyperparameters.
        x : Tensor, shape [N, D]
            Data inputs.
        generator : torch.Generator, optional
            Source of randomness.
        """

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Move structure parameters that live among the inputs to other units; none by default.

        Parameters
        ----------
        transform : callable
            Maps inputs, shape [*b, M, D], to the same shape.
        """

    def plan(self, x: Tensor, groups: Tensor | None = None) -> Plan:
        """Index structure of a data set.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Data inputs.
        groups : Tensor of int, shape [N], optional
            Independent groups (series, subjects): rows of different groups share hyperparameters
            and nothing else.

        Returns
        -------
        Plan
            Reusable for every hyperparameter value.
        """
        return Plan.build(x, groups)

    def refresh_period(self, gp: GaussianProcessLike, x: Tensor) -> int | None:
        """Iterations of an optimiser after which :meth:`refresh` should be asked.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        x : Tensor, shape [*g, N, D]
            Data inputs.

        Returns
        -------
        int or None
            None (the default) for plans that cannot change with hyperparameters.
        """
        return None

    def refresh(self, gp: GaussianProcessLike, plan: Plan) -> Plan:
        """The plan to go on with, for plans that depend on hyperparameters; by default the same.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        plan : Plan
            In use.

        Returns
        -------
        Plan
            The same object if nothing changes.
        """
        return plan

    def sample_terms(
        self, gp: GaussianProcessLike, plan: Plan, number: int, generator: torch.Generator
    ) -> Tensor | None:
        """Some terms of a :meth:`collapsed_objective` that is a sum, drawn uniformly.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        plan : Plan
            Of the data.
        number : int
            How many.
        generator : torch.Generator
            Source of randomness, on the CPU.

        Returns
        -------
        Tensor or None
            None (the default) where the objective is no sum of many more terms than that.
        """
        return None

    def collapsed_objective(
        self,
        gp: GaussianProcessLike,
        x: Tensor,
        y: Tensor,
        noise: Tensor,
        *,
        tighter: bool,
        copies: Tensor | None = None,
        plan: Plan | None = None,
        terms: Tensor | None = None,
    ) -> Tensor | None:
        """Bound of a Gaussian likelihood as one operation, where the approximation has one.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process, live: gradients reach its parameters.
        x : Tensor, shape [*g, N, D]
            Data inputs.
        y : Tensor, shape [*b, N]
            Targets, all observed.
        noise : Tensor, scalar or shape [*b, N]
            Noise variances.
        tighter : bool
            Whether to use the tightened bound.
        copies : Tensor, shape [N], optional
            How many rows with independent residuals each row stands for in the tightened bound.
        plan : Plan, optional
            From :meth:`plan` for these inputs, where the approximation has use for it.
        terms : Tensor, optional
            From :meth:`sample_terms`, where the approximation has any: estimate the objective from these.

        Returns
        -------
        Tensor, shape [*b], or None
            Total nats; None (the default) sends fits through :meth:`prior` and its sites, which gives
            the same value at a higher price (or, where the approximation says so, another one).
        """
        return None

    def prior(self, gp: GaussianProcessLike, x: Tensor, *, plan: Plan | None = None) -> Prior:
        """Structured prior at data inputs, for today's hyperparameters.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process; the prior holds a snapshot of it.
        x : Tensor, shape [*g, N, D]
            Data inputs.
        plan : Plan, optional
            From :meth:`plan` for these inputs.

        Returns
        -------
        Prior
            Differentiable in hyperparameters, structure parameters and inputs.
        """
        from gpvi.approximations.grouped import GroupedPrior

        if plan is None:
            plan = self.plan(x)
        plan.check(x)
        # A copy, so that in-place changes to the caller's inputs cannot reach a finished posterior.
        x, gp = x.clone(), gp.snapshot()
        if plan.groups is None:
            return self._prior(gp, x, plan)
        num_batch_dims = len(gp.batch_shape)
        padded = plan.groups.pad_inputs(x, num_batch_dims)
        observed = plan.groups.observed.reshape(-1, *[1] * num_batch_dims, padded.shape[-2])
        inner = self._prior(gp, padded, Plan(padded.shape[-2], observed=observed))
        return GroupedPrior(inner, x, plan.groups)

    @abstractmethod
    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> Prior: ...
