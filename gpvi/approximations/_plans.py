"""Priors of approximations that keep neighbours in a plan of their own."""

from torch import Tensor

from gpvi.approximations.base import Approximation, Prior
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.grouped import GroupedPrior
from gpvi.approximations.neighbor_geometry import kernel_of
from gpvi.approximations.plan import Plan
from gpvi.exceptions import InputError


def prior_of_plan(
    approximation: Approximation,
    kind: type[Plan],
    gp: GaussianProcessLike,
    x: Tensor,
    plan: Plan | None,
) -> Prior:
    """Prior at data inputs: like :meth:`Approximation.prior`, but groups keep the plan of the whole.

    Parameters
    ----------
    approximation : Approximation
        Whose plan and prior.
    kind : type
        Class of its plans.
    gp : GaussianProcessLike
        With a kernel.
    x : Tensor, shape [*g, N, D]
        Data inputs.
    plan : Plan, optional
        For these inputs; made here if left out.

    Returns
    -------
    Prior
        Of copies, so that in-place changes cannot reach it.

    Raises
    ------
    InputError
        For the plan of another approximation.
    """
    plan = approximation.plan(x) if plan is None else plan
    plan.check(x)
    kernel_of(gp)
    if not isinstance(plan, kind):
        raise InputError(
            f"The plan is a {type(plan).__name__}; make it by plan(x) of this approximation."
        )
    x, gp = x.clone(), gp.snapshot()
    if plan.groups is None:
        return approximation._prior(gp, x, plan)
    padded = plan.groups.pad_inputs(x, len(gp.batch_shape))
    return GroupedPrior(approximation._prior(gp, padded, plan), x, plan.groups)
