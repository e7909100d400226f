r"""Sparse inverse Cholesky (Vecchia) approximation: every value given its nearest earlier ones.

The prior of N values is a product of conditionals, each given at most m earlier neighbours: a sparse
factor U of the precision, :math:`O(N m^3)` to compute and :math:`O(N m)` to keep. For rough kernels in few
dimensions some tens of neighbours carry nearly all that the other values say.

Two evidences of a Gaussian likelihood can be had. That of the *responses* applies the same approximation
to the noisy targets, whose conditionals are a sum over rows: nothing else to solve, and a subset of the
rows gives an unbiased estimate. That of the *function* applies it to f and takes the bound that belongs
to the posterior; it is closer to the exact evidence at the same m, and an order of magnitude dearer.
Neither bounds the evidence of the process itself: they belong to a nearby model.

References
----------
Vecchia, A. V. (1988). Estimation and model identification for continuous spatial processes. JRSS B.
Katzfuss, M. & Guinness, J. (2021). A general framework for Vecchia approximations of Gaussian processes.
Statistical Science.
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.approximations._lazy import on_graph
from gpvi.approximations._plans import prior_of_plan
from gpvi.approximations.base import Approximation, Prior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.neighbor_geometry import (
    GeometryOptions,
    NeighborGeometry,
    distance_scale,
    kernel_of,
    scale_change,
)
from gpvi.approximations.plan import Plan
from gpvi.approximations.response_evidence import response_evidence
from gpvi.approximations.sparse_inverse_prior import FAMILIES, SparseInversePrior
from gpvi.exceptions import AccuracyWarning, InputError
from gpvi.kernels import stationary_form

__all__ = ["SparseInverseCholesky", "SparseInversePlan"]

# Which evidence of a Gaussian likelihood a fit maximises.
_EVIDENCES = ("responses", "function")

# Neighbours are found anew once ratios of lengthscales have changed by more than this, in logs.
_REFRESH_CHANGE = 0.05

# Above so many columns the nearest points are hardly nearer than any others.
_MANY_COLUMNS = 10

_NUGGET = {torch.float64: 1e-8, torch.float32: 1e-6}


@dataclass(frozen=True, eq=False)
class SparseInversePlan(Plan):
    """Order and neighbours of a data set, found when the first prior asks for them.

    Parameters
    ----------
    num_rows : int
        Rows N that it was made for.
    groups : GroupIndex, optional
        Index of flat groups.
    observed : Tensor of bool, shape [*g, N], optional
        Of padded inputs.
    inputs : Tensor, shape [P, T, D]
        Inputs of the P data sets (groups, batch entries), off the graph.
    options : GeometryOptions
        Order, distance and number of neighbours.
    """

    # Fields without defaults may not come after those with: `SparseInverseCholesky.plan` makes both.
    inputs: Tensor = None  # type: ignore[assignment]
    options: GeometryOptions = None  # type: ignore[assignment]
    _kept: list[NeighborGeometry] = field(default_factory=list, init=False, repr=False)

    def geometry(self, gp: GaussianProcessLike) -> NeighborGeometry:
        """Places and neighbours: found at the first call and kept, whatever the process is later.

        Parameters
        ----------
        gp : GaussianProcessLike
            Its kernel measures distances, the first time.

        Returns
        -------
        NeighborGeometry
            Of all data sets.
        """
        if not self._kept:
            with on_graph(), torch.no_grad():
                self._kept.append(NeighborGeometry.build(gp, self.inputs, self.options))
        return self._kept[0]

    def held(self, geometry: NeighborGeometry) -> "SparseInversePlan":
        """The same plan with given places and neighbours.

        Parameters
        ----------
        geometry : NeighborGeometry
            Of the same inputs.

        Returns
        -------
        SparseInversePlan
            Which asks no kernel any more.
        """
        plan = self.anew()
        plan._kept.append(geometry)
        return plan

    def anew(self) -> "SparseInversePlan":
        """The same plan without its neighbours."""
        return SparseInversePlan(
            self.num_rows, self.groups, self.observed, self.inputs, self.options
        )


class SparseInverseCholesky(Approximation):
    r"""Condition every value of the function on its nearest earlier ones.

    Parameters
    ----------
    num_neighbors : int
        Earlier neighbours m of every location.
    num_prediction_neighbors : int, optional
        Neighbours of a new input; twice as many if left out. They cost little, and new inputs far from the
        data need more of them.
    ordering : {"maximin", "random"}
        Order of the locations. In a maximin order (each as far as possible from those before) the incomplete
        factor of the posterior is safe; in a random one the evidence of the responses is fine, also in many
        columns, and posterior variances may have to come from a cruder, local factor (with a warning).
    neighbors : {"euclidean", "correlation"}
        Nearest in distance, scaled by lengthscales, or largest in correlation, for kernels whose
        correlation does not fall with distance (periodic, non-stationary, without lengthscales).
    refresh_every : int or None
        Iterations of L-BFGS (steps, for minibatches, but at most once an epoch) after which a fit finds
        neighbours anew, if ratios of lengthscales have moved; always at the end of an ascent, and at most
        eight times. None keeps the first ones.
    evidence : {"responses", "function"}
        What a fit with a Gaussian likelihood maximises: the evidence of the noisy responses, or the bound
        of the function's own posterior (dearer, closer to exact).
    family : {"sic", "diagonal", "first_points"}
        Pattern of the posterior's precision factor: the prior's, none (independent values), or the first
        ``num_neighbors`` locations of the order.
    nugget : float, optional
        Variance added at every location, relative to the prior's; by default 1e-8 in double precision.
    seed : int
        Of ordering "random"; of the first location of a maximin order, where 0 is the one nearest to the
        centroid.

    Raises
    ------
    InputError
        If an option is impossible.

    References
    ----------
    Vecchia, A. V. (1988). Estimation and model identification for continuous spatial processes. JRSS B.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import GaussianProcess, Sites
    >>> x = torch.rand(500, 2, dtype=torch.float64)
    >>> gp = GaussianProcess(gpytorch.kernels.MaternKernel(nu=1.5).double())
    >>> posterior = SparseInverseCholesky(10).prior(gp, x).condition(Sites.zeros((500,)))
    >>> posterior.prior.columns.shape
    torch.Size([500, 11])
    """

    whole_data = True
    subset_warm_start = True
    exact_conditioning = False
    row_minibatches = True

    def __init__(
        self,
        num_neighbors: int = 30,
        ordering: str = "maximin",
        neighbors: str = "euclidean",
        *,
        num_prediction_neighbors: int | None = None,
        refresh_every: int | None = 20,
        evidence: str = "responses",
        family: str = "sic",
        nugget: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        further = num_prediction_neighbors
        if further is None:
            further = min(2 * num_neighbors, 1_000) if isinstance(num_neighbors, Integral) else 1
        self.options = GeometryOptions(num_neighbors, further, ordering, neighbors, seed)
        for name, value, known in (
            ("evidence", evidence, _EVIDENCES),
            ("family", family, FAMILIES),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
        if refresh_every is not None and (
            isinstance(refresh_every, bool)
            or not isinstance(refresh_every, Integral)
            or refresh_every < 1
        ):
            raise InputError(
                f"refresh_every is {refresh_every!r}; it must be None or an integer of at least 1."
            )
        if nugget is not None and not (isinstance(nugget, Real) and 0.0 < nugget < 1.0):
            raise InputError(
                f"nugget is {nugget!r}; it must lie strictly between 0 and 1: without any, new inputs could "
                "not coincide with the data."
            )
        self.refresh_every = refresh_every
        self.evidence, self.family, self.nugget = evidence, family, nugget

    def plan(self, x: Tensor, groups: Tensor | None = None) -> SparseInversePlan:
        """Prepare the search for neighbours, which happens when the first prior is made.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Data inputs.
        groups : Tensor of int, shape [N], optional
            Flat independent groups.

        Returns
        -------
        SparseInversePlan
            For every hyperparameter value; :meth:`refresh` says when to make another.
        """
        base = Plan.build(x, groups)
        if not x.shape[-2]:
            raise InputError(f"x has shape {tuple(x.shape)}: there is no row to condition on.")
        _check_columns(x)
        rows = x.detach().clone()
        if base.groups is not None:
            rows = rows[base.groups.rows]
        inputs = rows.reshape(-1, *rows.shape[-2:])
        return SparseInversePlan(base.num_rows, base.groups, None, inputs, self.options)

    def refresh_period(self, gp: GaussianProcessLike, x: Tensor) -> int | None:
        """Iterations between looks at the neighbours; see :meth:`Approximation.refresh_period`.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        x : Tensor, shape [*g, N, D]
            Data inputs.

        Returns
        -------
        int or None
            None where all columns share one lengthscale: nearest points stay nearest.
        """
        if self.options.neighbors == "euclidean":
            form = stationary_form(kernel_of(gp))
            if form is not None and form.lengthscale.numel() == 1:
                return None
        return self.refresh_every

    def refresh(self, gp: GaussianProcessLike, plan: Plan) -> Plan:
        """The plan to go on with at today's hyperparameters.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        plan : Plan
            In use.

        Returns
        -------
        Plan
            The same one while the neighbours are those that would be found today, up to changes of the
            lengthscales' ratios by less than five per cent.
        """
        if not isinstance(plan, SparseInversePlan):
            return plan
        old = plan.geometry(gp)  # found now, if nobody has asked before
        if self.refresh_every is None:
            return plan
        if self.options.neighbors == "euclidean":
            new = distance_scale(gp, plan.inputs.shape[-1], "euclidean")
            if scale_change(old.scale, new) <= _REFRESH_CHANGE:
                return plan
        fresh = plan.anew()
        same = torch.equal(fresh.geometry(gp).neighbors, old.neighbors)
        return plan if same and torch.equal(fresh.geometry(gp).first, old.first) else fresh

    def prior(self, gp: GaussianProcessLike, x: Tensor, *, plan: Plan | None = None) -> Prior:
        """Sparse prior at data inputs, for today's hyperparameters.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        x : Tensor, shape [*g, N, D]
            Data inputs.
        plan : Plan, optional
            From :meth:`plan` for these inputs; without one, neighbours are found anew.

        Returns
        -------
        Prior
            Differentiable in hyperparameters and inputs, with the neighbours held.
        """
        return prior_of_plan(self, SparseInversePlan, gp, x, plan)

    def sample_terms(
        self, gp: GaussianProcessLike, plan: Plan, number: int, generator: torch.Generator
    ) -> Tensor | None:
        """Places whose conditionals estimate the evidence of the responses without bias.

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
        Tensor of int64, shape [R], or None
            Near ones next to each other; None for data of less than four times as many locations, groups,
            and the evidence of the function.
        """
        assert isinstance(plan, SparseInversePlan)
        if self.evidence != "responses" or plan.groups is not None or len(plan.inputs) > 1:
            return None
        geometry = plan.geometry(gp)
        if geometry.num_locations < 4 * number:
            return None
        chosen = torch.randperm(geometry.num_locations, generator=generator, device="cpu")[:number]
        schedule = geometry.schedule[0].long()
        return schedule[chosen.sort().values.to(schedule.device)]

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
        """Evidence of the responses, a sum of their conditionals given earlier neighbours.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process, live.
        x : Tensor, shape [N, D]
            Data inputs.
        y : Tensor, shape [N]
            Targets, all observed.
        noise : Tensor, scalar or shape [N]
            Noise variances.
        tighter : bool
            No difference here: nothing is left open.
        copies : Tensor, shape [N], optional
            No difference here either.
        plan : Plan, optional
            From :meth:`plan` for these inputs.
        terms : Tensor of int64, optional
            Places whose conditionals stand for all.

        Returns
        -------
        Tensor, shape [*b], or None
            Nats; None if the evidence of the function was asked for.
        """
        if self.evidence == "function" or x.dim() > 2:
            return None
        plan = self.plan(x) if plan is None else plan
        assert isinstance(plan, SparseInversePlan)
        return response_evidence(gp, plan.geometry(gp), x, y, noise, places=terms)

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> SparseInversePrior:
        assert isinstance(plan, SparseInversePlan)
        nugget = _NUGGET.get(x.dtype, 1e-4) if self.nugget is None else self.nugget
        geometry = plan.geometry(gp)
        return SparseInversePrior(gp, x, gp.mean(x), geometry, self.options, nugget, self.family)


def _check_columns(x: Tensor) -> None:
    if not bool(torch.isfinite(x).all()):
        raise InputError(
            f"x holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite; drop these rows."
        )
    if x.shape[-1] > _MANY_COLUMNS:
        warn(
            f"SparseInverseCholesky and {x.shape[-1]} input columns: among so many, the nearest points are "
            "hardly nearer than the others, and neighbours carry little of what the rest says. Raise "
            "num_neighbors (time grows with its cube) and compare with InducingPoints.",
            AccuracyWarning,
        )
