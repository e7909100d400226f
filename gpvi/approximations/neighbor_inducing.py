r"""Inducing points of which every row sees its nearest only.

M inducing points carry q; every row is conditioned on the H of them that are nearest to it, and every
inducing value on its H nearest earlier ones. The cost is :math:`O((N + M) H^3)`, so that M can be large,
up to all rows, and a training step on minibatches of rows and of inducing points looks at the ancestors
of these alone. The divergence counts every inducing value once: what is maximised is a lower bound of the
evidence of one consistent model (with all ancestors in the variances; see ``ancestors``). With all
rows as inducing points that model is :class:`SparseInverseCholesky`.

References
----------
Jafrasteh, B., Villacampa-Calvo, C. & Hernandez-Lobato, D. (2022). Input dependent sparse Gaussian processes.
ICML.
Wu, L., Pleiss, G. & Cunningham, J. (2022). Variational nearest neighbor Gaussian process. ICML.
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real

import torch
from torch import Tensor

from gpvi.approximations._lazy import on_graph
from gpvi.approximations._neighbor_inducing_rows import NeighborRows
from gpvi.approximations._plans import prior_of_plan
from gpvi.approximations.base import Approximation, Prior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.inducing import InducingPoints
from gpvi.approximations.neighbor_geometry import (
    GeometryOptions,
    NeighborGeometry,
    distance_scale,
    kernel_of,
    scale_change,
)
from gpvi.approximations.neighbor_inducing_plan import NeighborInducingPlan
from gpvi.approximations.neighbor_inducing_prior import NeighborInducingPrior
from gpvi.approximations.plan import Plan
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.exceptions import InputError
from gpvi.kernels import stationary_form
from gpvi.linalg import maximin_order, merge_duplicates

__all__ = ["NeighborInducing"]

_SELECTIONS = ("maximin", "kmeans++", "random")
_FAMILIES = ("sic", "diagonal")
_OBJECTIVES = ("elbo", "swsgp")
_ANCESTORS = ("auto", "all", "near")

# Inducing points up to which variances take all ancestors by default.
_MANY = 2_000

# Neighbours are found anew once ratios of lengthscales have changed by more than this, in logs.
_REFRESH_CHANGE = 0.05

_NUGGET = {torch.float64: 1e-8, torch.float32: 1e-6}


class NeighborInducing(Approximation):
    r"""Condition every row on its nearest inducing points, and these on each other.

    Parameters
    ----------
    num_inducing : int, optional
        How many inducing inputs :meth:`initialize` chooses (fewer if the data hold fewer distinct rows).
    num_neighbors : int
        Nearest inducing points H of every row, and the most earlier neighbours of an inducing point.
    inducing_points : Tensor, shape [*b, M, D], optional
        Inducing inputs to start from, in place of ``num_inducing``.
    selection : {"maximin", "kmeans++", "random"}
        How :meth:`initialize` chooses: rows far from each other, k-means++ seeding, random rows.
    neighbors : {"euclidean", "correlation"}
        Nearest in distance, scaled by lengthscales, or largest in correlation.
    num_prediction_neighbors : int, optional
        Inducing points of a new input; twice as many as ``num_neighbors`` if left out, which smooths
        predictions and is no other model of the data.
    family : {"sic", "diagonal"}, optional
        Pattern of the factor of q: that of the prior, or none (independent inducing values, which only do for
        few inducing points). By default "sic", and "diagonal" for objective "swsgp".
    objective : {"elbo", "swsgp"}
        "swsgp" replaces the divergence by its average over the neighbours of every row, as sparse-within-
        sparse processes do. That is *not* a bound: it may lie far above the evidence, and cannot be used to
        compare models or to choose hyperparameters. It is here to reproduce such results.
    learn : bool
        Whether the inducing inputs are trained.
    refresh_every : int or None
        Iterations of an optimiser after which a fit finds neighbours anew, where inducing inputs or ratios of
        lengthscales have moved. None keeps the first ones.
    nugget : float, optional
        Variance added at every inducing input and row, relative to the prior's; by default 1e-8 in double
        precision.
    ancestors : {"auto", "all", "near"}
        Which of the earlier inducing values, neighbours of neighbours and so on, the variances of q look at.
        With "all" these are exact and the objective is a bound. "near" goes back three generations, which
        is faster the more inducing points there are, and leaves something out of variances: the objective
        may then exceed its evidence by a little. "auto" is "all" up to 2,000 inducing points.
    seed : int
        Of the first point of maximin orders, where 0 is the one nearest to the centroid.

    Raises
    ------
    InputError
        If an option is impossible.

    References
    ----------
    Jafrasteh, B., Villacampa-Calvo, C. & Hernandez-Lobato, D. (2022). Input dependent sparse Gaussian
    processes. ICML.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import GaussianProcess, Sites
    >>> x = torch.rand(500, 2, dtype=torch.float64)
    >>> gp = GaussianProcess(gpytorch.kernels.MaternKernel(nu=1.5).double())
    >>> approximation = NeighborInducing(100, 10)
    >>> approximation.initialize(gp, x)
    >>> posterior = approximation.prior(gp, x).condition(Sites.zeros((500,)))
    >>> posterior.prior.weights.shape, posterior.prior.num_basis
    (torch.Size([500, 10]), 100)
    """

    whole_data = False
    finite_basis = True
    exact_conditioning = False

    def __init__(
        self,
        num_inducing: int | None = None,
        num_neighbors: int = 20,
        *,
        inducing_points: Tensor | None = None,
        selection: str = "maximin",
        neighbors: str = "euclidean",
        num_prediction_neighbors: int | None = None,
        family: str | None = None,
        objective: str = "elbo",
        learn: bool = False,
        refresh_every: int | None = 20,
        nugget: float | None = None,
        ancestors: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        further = num_prediction_neighbors
        if further is None:
            further = min(2 * num_neighbors, 1_000) if isinstance(num_neighbors, Integral) else 1
        if family is None:
            family = "diagonal" if objective == "swsgp" else "sic"
        self.options = GeometryOptions(num_neighbors, further, "maximin", neighbors, seed)
        for name, value, known in (
            ("selection", selection, _SELECTIONS),
            ("family", family, _FAMILIES),
            ("objective", objective, _OBJECTIVES),
            ("ancestors", ancestors, _ANCESTORS),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
        _check_numbers(refresh_every, nugget)
        self.selection, self.family, self.objective = selection, family, objective
        self.learn, self.refresh_every, self.nugget = learn, refresh_every, nugget
        self.ancestors = ancestors
        # Keeps the inducing inputs; "maximin" is chosen here.
        method = "random" if selection == "maximin" else selection
        self.points = InducingPoints(num_inducing, inducing_points, selection=method, learn=learn)

    @property
    def row_minibatches(self) -> bool:  # type: ignore[override]
        """Whether minibatch fits train a q of its own: if inducing inputs stand still."""
        return not self.learn

    @property
    def num_inducing(self) -> int | None:
        """How many inducing inputs are chosen; None where they were given."""
        return self.points.num_inducing

    @property
    def inducing_points(self) -> Tensor | None:
        """The inducing inputs, shape [*b, M, D]; None before they are chosen."""
        return self.points.inducing_points

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Choose inducing inputs among the rows of ``x``; does nothing if they are there already.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process; its lengthscales measure distances for "maximin".
        x : Tensor, shape [N, D]
            Data inputs (leading dims are flattened into rows).
        generator : torch.Generator, optional
            Source of randomness of the other selections.
        """
        number = self.num_inducing
        if self.inducing_points is not None or number is None:
            return
        if self.selection != "maximin":
            self.points.initialize(gp, x, generator)
            return
        rows = x.detach().reshape(-1, x.shape[-1])
        rows = rows[merge_duplicates(rows)[0]]
        scale = distance_scale(gp, rows.shape[-1], self.options.neighbors).to(rows.device)
        scaled = (rows.double() / scale)[:, torch.isfinite(scale)]
        chosen = rows[maximin_order(scaled)[:number].long()]
        self.points.load_state_dict({"inducing_points": chosen})

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Move the inducing inputs to other units.

        Parameters
        ----------
        transform : callable
            Maps inducing inputs, shape [*b, M, D], to the same shape.
        """
        self.points.map_inputs(transform)

    def reset(self) -> None:
        """Forget the inducing inputs that :meth:`initialize` chose."""
        self.points.reset()

    def plan(self, x: Tensor, groups: Tensor | None = None) -> NeighborInducingPlan:
        """Prepare the search for neighbours, which happens when the first prior is made.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Data inputs.
        groups : Tensor of int, shape [N], optional
            Flat independent groups: each has inducing values of its own.

        Returns
        -------
        NeighborInducingPlan
            For every hyperparameter value; :meth:`refresh` says when to make another.
        """
        base = Plan.build(x, groups)
        if not bool(torch.isfinite(x).all()):
            raise InputError(
                f"x holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite; drop these "
                "rows."
            )
        return NeighborInducingPlan(base.num_rows, base.groups)

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
            None where inducing inputs stay and all columns share one lengthscale.
        """
        if self.options.neighbors == "euclidean" and not self.learn:
            form = stationary_form(kernel_of(gp))
            if form is not None and form.lengthscale.numel() == 1:
                return None
        return self.refresh_every

    def refresh(self, gp: GaussianProcessLike, plan: Plan) -> Plan:
        """The plan to go on with at today's hyperparameters and inducing inputs.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process.
        plan : Plan
            In use.

        Returns
        -------
        Plan
            The same one while neighbours are those that would be found today, up to changes of the
            lengthscales' ratios by less than five per cent.
        """
        if not isinstance(plan, NeighborInducingPlan) or self.refresh_every is None:
            return plan
        if not plan._geometry:
            return plan
        old = plan._geometry[0]
        if self.options.neighbors == "euclidean" and not self.learn:
            new = distance_scale(gp, len(old.scale), "euclidean")
            if scale_change(old.scale, new) <= _REFRESH_CHANGE:
                return plan
        fresh = plan.anew()
        with torch.no_grad():
            for rows, x in plan._rows:
                _, found = self._find(gp, x, fresh)
                if not torch.equal(found.index, rows.index):
                    return fresh
            if not plan._rows:
                self._inner(gp, self.points.checked_points(old.first.new_empty(0)), fresh)
        today = fresh._geometry[0]
        same = torch.equal(today.neighbors, old.neighbors) and torch.equal(today.first, old.first)
        return plan if same else fresh

    def prior(self, gp: GaussianProcessLike, x: Tensor, *, plan: Plan | None = None) -> Prior:
        """Structured prior at data inputs, for today's hyperparameters.

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
            Differentiable in hyperparameters, inducing inputs and inputs, with the neighbours held.
        """
        return prior_of_plan(self, NeighborInducingPlan, gp, x, plan)

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> NeighborInducingPrior:
        assert isinstance(plan, NeighborInducingPlan)
        inner, rows = self._find(gp, x, plan)
        return NeighborInducingPrior(gp, x, gp.mean(x), inner, rows, self.objective)

    def _find(
        self, gp: GaussianProcessLike, x: Tensor, plan: NeighborInducingPlan
    ) -> tuple[SparseInversePrior, NeighborRows]:
        """Prior of the inducing values, and neighbours of rows, found where the plan has none."""
        inner = self._inner(gp, self._held(x, plan), plan)
        merge = not (self.learn or x.requires_grad) and self.objective == "elbo"
        if not plan._rows:
            with on_graph(), torch.no_grad():
                rows = NeighborRows.build(inner, x, self.options.num_neighbors, merge)
                plan._rows.append((rows, x.detach()))
        rows = plan._rows[0][0]
        if not merge and bool(rows.exact.any()):
            # Found when inputs stood still: a row that may move is given its inducing value like any other.
            rows = replace(rows, exact=torch.zeros_like(rows.exact))
        return inner, rows

    def _held(self, x: Tensor, plan: NeighborInducingPlan) -> Tensor:
        """The inducing inputs, safe from changes in place."""
        if self.learn:
            return self.points.checked_points(x).clone()
        z = self.points.checked_points(x)
        if plan._points:
            source, version, copy = plan._points[0]
            if source is z and version == z._version:
                return copy
        plan._points[:] = [(z, z._version, z.clone())]
        return plan._points[0][2]

    def _inner(
        self, gp: GaussianProcessLike, z: Tensor, plan: NeighborInducingPlan
    ) -> SparseInversePrior:
        if not plan._geometry:
            with on_graph(), torch.no_grad():
                sets = z.detach().reshape(-1, *z.shape[-2:])
                plan._geometry.append(NeighborGeometry.build(gp, sets, self.options))
        geometry = plan._geometry[0]
        if self.learn:
            # New inputs look for inducing points where these are by now.
            patterns, geometry = geometry.patterns, replace(geometry)
            vars(geometry)["patterns"] = patterns
        nugget = _NUGGET.get(z.dtype, 1e-4) if self.nugget is None else self.nugget
        complete = self.ancestors == "all"
        if self.ancestors == "auto":
            complete = geometry.num_locations <= _MANY
        mean, options = gp.mean(z), self.options
        return SparseInversePrior(gp, z, mean, geometry, options, nugget, self.family, complete)


def _check_numbers(refresh_every: int | None, nugget: float | None) -> None:
    whole = isinstance(refresh_every, Integral) and not isinstance(refresh_every, bool)
    if refresh_every is not None and not (whole and refresh_every >= 1):
        raise InputError(
            f"refresh_every is {refresh_every!r}; it must be None or an integer of at least 1."
        )
    if nugget is not None and not (isinstance(nugget, Real) and 0.0 < nugget < 1.0):
        raise InputError(
            f"nugget is {nugget!r}; it must lie strictly between 0 and 1: without any, rows could not "
            "coincide with inducing points."
        )
