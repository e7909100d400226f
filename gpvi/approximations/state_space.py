r"""Gauss-Markov conditioning in linear time: the basis is the path of the state.

A kernel with a state-space form is a stochastic differential equation, observed at the rows. In order of
time, conditioning on sites is one Kalman pass forward and one backward: :math:`O(N d^3)` for d states,
exact, for any stamps. Rows with equal stamps share the state (a step of length zero), zero sites are
missing observations, flat groups are series behind one another.

References
----------
Hartikainen, J. & Särkkä, S. (2010). Kalman filtering and smoothing solutions to temporal Gaussian process
regression models. MLSP.
Chang, P. E., Wilkinson, W. J., Khan, M. E. & Solin, A. (2020). Fast variational learning in state-space
Gaussian process models. MLSP.
"""

from dataclasses import dataclass

import torch
from gpytorch.kernels import ConstantKernel, Kernel
from torch import Tensor

from gpvi.approximations.base import Approximation
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.plan import Plan
from gpvi.approximations.state_space_prior import StateSpacePrior
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import SpaceTimeKernel, as_state_space, input_dimensions
from gpvi.linalg import Steps

__all__ = ["StateSpace", "StateSpacePlan"]


@dataclass(frozen=True, eq=False)
class StateSpacePlan(Plan):
    """Order of the rows in time, and where series begin in it.

    Parameters
    ----------
    num_rows : int
        Rows N that it was made for.
    groups : GroupIndex, optional
        Index of flat groups.
    observed : Tensor of bool, shape [*g, N], optional
        Of padded inputs.
    order : Tensor of int64, shape [*g, N]
        Row at every place of the sorted sequence: by group, then time, then row number.
    in_order : bool
        Whether the rows are sorted already.
    time : Tensor, shape [*g, N]
        Stamps in the order of the rows.
    steps : Steps
        Stamps in order, and where series begin among them.
    """

    # Fields without defaults may not come after those with: the checks of `build` make these four.
    order: Tensor = None  # type: ignore[assignment]
    in_order: bool = False
    time: Tensor = None  # type: ignore[assignment]
    steps: Steps = None  # type: ignore[assignment]


class StateSpace(Approximation):
    """Exact conditioning of a Markov process in linear time; no approximation for most kernels.

    Takes every kernel that :func:`gpvi.kernels.as_state_space` converts: the Matérn family, constants,
    lines, cosines, periodic and quasi-periodic kernels, integrated Wiener processes, fractional
    Brownian motion, their sums and products. RBF kernels are approximated by processes of finite order,
    periodic ones by finitely many harmonics.

    Parameters
    ----------
    time_dim : int
        The column of the inputs that is time.
    rbf_order : {2, 4, 6, 8, 10}
        Order of the process that stands for an RBF kernel.

    Raises
    ------
    InputError
        If an option is impossible.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import GaussianProcess, Sites
    >>> t = torch.linspace(0, 1, 1000, dtype=torch.float64).unsqueeze(-1)
    >>> gp = GaussianProcess(gpytorch.kernels.MaternKernel(nu=1.5).double())
    >>> posterior = StateSpace().prior(gp, t).condition(Sites.zeros((1000,)))
    >>> round(posterior.predict(torch.tensor([[0.5]], dtype=torch.float64)).variance.item(), 12)
    1.0
    """

    whole_data = True
    subset_warm_start = False

    def __init__(self, time_dim: int = 0, rbf_order: int = 6) -> None:
        super().__init__()
        if isinstance(time_dim, bool) or not isinstance(time_dim, int) or time_dim < 0:
            raise InputError(f"time_dim is {time_dim!r}; it must be an integer of at least 0.")
        if rbf_order not in (2, 4, 6, 8, 10):
            raise InputError(f"rbf_order is {rbf_order!r}; it must be 2, 4, 6, 8 or 10.")
        self.time_dim, self.rbf_order = time_dim, rbf_order

    def plan(self, x: Tensor, groups: Tensor | None = None) -> StateSpacePlan:
        """Sort the rows by time, series by series.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Data inputs, in any order.
        groups : Tensor of int, shape [N], optional
            Series of every row.

        Returns
        -------
        StateSpacePlan
            Reusable for every hyperparameter value.
        """
        plan = Plan.build(x, groups)
        time = self._time(x)
        order = torch.argsort(time, dim=-1, stable=True)
        starts = torch.zeros(1, dtype=torch.int64, device=x.device)
        if plan.groups is not None:
            series = plan.groups.group
            order = order[torch.argsort(series[order], stable=True)]
            counts = torch.bincount(series, minlength=len(plan.groups.labels))
            starts = torch.cumsum(counts, 0) - counts
        in_order = torch.equal(order, torch.arange(x.shape[-2], device=x.device).expand_as(order))
        steps = Steps(time.gather(-1, order), starts)
        return StateSpacePlan(plan.num_rows, plan.groups, None, order, in_order, time, steps)

    def prior(
        self, gp: GaussianProcessLike, x: Tensor, *, plan: Plan | None = None
    ) -> StateSpacePrior:
        """Markov prior at data inputs, for today's hyperparameters; flat groups are series.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process, whose kernel has a state-space form.
        x : Tensor, shape [*g, N, D]
            Data inputs.
        plan : Plan, optional
            From :meth:`plan` for these inputs.

        Returns
        -------
        StateSpacePrior
            Differentiable in hyperparameters and inputs.

        Raises
        ------
        UnsupportedError
            If the kernel has no state-space form.
        InputError
            If the kernel sees other columns than time.
        """
        plan = self.plan(x) if plan is None else plan
        plan.check(x)
        return self._prior(gp.snapshot(), x.clone(), plan)

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> StateSpacePrior:
        if not isinstance(plan, StateSpacePlan):
            plan = self.plan(x)
        kernel = getattr(gp, "kernel", None)
        if kernel is None:
            raise UnsupportedError(
                f"{type(gp).__name__} has no kernel attribute to take a state-space form from."
            )
        form = as_state_space(kernel, rbf_order=self.rbf_order)
        if form.time_dim != self.time_dim:
            raise InputError(
                f"The kernel sees column {form.time_dim} of the inputs and StateSpace takes column "
                f"{self.time_dim} for time; pass StateSpace(time_dim={form.time_dim})."
            )
        _check_columns(kernel, self.time_dim, x.shape[-1])
        prior = StateSpacePrior(
            gp,
            x,
            gp.mean(x),
            plan.order,
            plan.steps.starts,
            plan.groups,
            plan.in_order,
            self.time_dim,
            self.rbf_order,
        )
        if not x.requires_grad:
            if not torch.equal(x[..., self.time_dim], plan.time):
                raise InputError("The plan was made for other stamps; call plan(x) again.")
            # A lazy attribute that is known already: differences of stamps need no second look.
            prior.__dict__["steps"] = plan.steps
        return prior

    def _time(self, x: Tensor) -> Tensor:
        if self.time_dim >= x.shape[-1]:
            raise InputError(
                f"x has shape {tuple(x.shape)} and no column {self.time_dim}, which StateSpace takes for "
                "time."
            )
        time = x[..., self.time_dim].detach()
        if not bool(torch.isfinite(time).all()):
            raise InputError(
                f"{int((~torch.isfinite(time)).sum())} stamps are NaN or infinite; drop these rows."
            )
        return time


def _check_columns(kernel: Kernel, time_dim: int, num_columns: int) -> None:
    """Refuse kernels that see more than time: their other columns would be dropped in silence."""
    if num_columns == 1:
        return
    spatial: set[int] = set()
    for part, seen in input_dimensions(kernel, num_columns):
        if id(part) in spatial:
            continue
        if isinstance(part, SpaceTimeKernel):
            spatial |= {id(module) for module in part.modules()}
            continue
        is_leaf = not any(isinstance(m, Kernel) for m in part.modules() if m is not part)
        if is_leaf and not isinstance(part, ConstantKernel) and seen != [time_dim]:
            raise InputError(
                f"{type(part).__name__} sees the columns {seen} of inputs with {num_columns} columns, and a "
                f"state space knows time alone; give the kernel active_dims=({time_dim},), or take another "
                "approximation."
            )
