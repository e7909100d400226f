"""The fit loop: warm start on a subset, then full batch or minibatches, with history and checkpoints."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import Approximation, GaussianProcess, InducingPoints
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference.alternation import ascend_in_turns
from gpvi.inference.checkpoint import EvaluationLog, fingerprint, module_settings
from gpvi.inference.coordinates import Curvature
from gpvi.inference.evaluator import Ascent
from gpvi.inference.full_batch import maximize
from gpvi.inference.minibatch import Minibatcher
from gpvi.inference.parameters import unchanged_on_error
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord, FitResult
from gpvi.inference.reports import warn_about
from gpvi.inference.rounds import ascend_in_rounds
from gpvi.inference.site_rules import check_rule
from gpvi.likelihoods import as_likelihood

__all__ = ["OPTIMIZERS", "WarmStart", "fit"]

#: Names of the optimisers of :func:`fit`.
OPTIMIZERS = ("auto", "lbfgs", "adam")


@dataclass(frozen=True)
class WarmStart:
    """Hyperparameters from a subset of the rows before the first look at all of them.

    Parameters
    ----------
    num_rows : int
        Rows of the subset; sets of less than twice as many targets are not warm-started, nor are those
        whose few inducing points make full evaluations nearly as cheap.
    num_inducing : int
        Fixed inducing rows on the subset.
    max_evaluations : int
        Objective evaluations on the subset.
    num_terms : int
        Terms that stand for all where the objective is a sum of at least four times as many (the evidence of
        the responses of SparseInverseCholesky): these replace the subset.

    Raises
    ------
    InputError
        If one of them is less than 1.
    """

    num_rows: int = 1_500
    num_inducing: int = 256
    max_evaluations: int = 60
    num_terms: int = 5_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name} of the warm start is {value}; it must be at least 1.")


def fit(
    gp: GaussianProcess,
    approximation: Approximation,
    likelihood: GPyTorchLikelihood,
    x: Tensor,
    y: Tensor,
    *,
    objective: str = "auto",
    inference: str = "cvi",
    groups: Tensor | None = None,
    weights: Tensor | None = None,
    max_iter: int = 100,
    tolerance: float = 1e-6,
    warm_start: WarmStart | None = WarmStart(),
    optimizer: str = "auto",
    batch_size: int | None = None,
    learning_rate: float = 0.03,
    natural_step_size: float = 0.1,
    generator: torch.Generator | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike | None = None,
    **rows: Tensor,
) -> FitResult:
    r"""Fit hyperparameters, structure parameters and q to data; the modules are trained in place.

    Without ``batch_size``: L-BFGS (or Adam) on the objective of all rows, with q at its optimum inside.
    With it: natural-gradient steps for q and Adam for the rest on minibatches; for approximations that are
    sums over rows, Adam for all, starting from q at its optimum.

    Parameters
    ----------
    gp : GaussianProcess
        With sensible starting values (see :func:`initialize_hyperparameters`).
    approximation : Approximation
        Initialised here, after the warm start, if it was not yet.
    likelihood : gpytorch or gpvi likelihood
        Any.
    x : Tensor, shape [N, D] or [*g, N, D]
        Inputs.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    objective : {"auto", "tighter_elbo", "elbo", "ep", "laplace"}
        What is maximised (with the log densities of registered priors added): for "cvi" a bound, the
        tightened one by default, or :func:`ep_energy`, for which q and hyperparameters take turns; for the
        other rules "ep" or "laplace". A Gaussian likelihood has its ELBO for the last two.
    inference : {"cvi", "ep", "laplace"}
        Where the sites of a likelihood that is not Gaussian come from: :func:`cvi`,
        :func:`expectation_propagation` or :func:`laplace`.
    groups : Tensor of int, shape [N], optional
        Flat independent groups.
    weights : Tensor, shape [N], optional
        Row weights; an integer weight equals repeated rows, and zero leaves a row out.
    max_iter : int
        Iterations of L-BFGS, or steps of Adam, after the warm start; 0 stops there.
    tolerance : float
        Stopping rule in nats per row of weight one (see :func:`gpvi.inference.full_batch.maximize`).
    warm_start : WarmStart, optional
        None starts on all rows at once.
    optimizer : {"auto", "lbfgs", "adam"}
        "auto" is L-BFGS on all rows and Adam on minibatches. The warm start always uses L-BFGS.
    batch_size : int, optional
        Rows per minibatch.
    learning_rate : float
        Step size of Adam.
    natural_step_size : float
        Step size of q in the minibatch fit, where it has one.
    generator : torch.Generator, optional
        Source of randomness on the CPU; unseeded if left out.
    callbacks : sequence of callable
        Called with every :class:`FitRecord`; returning True stops.
    checkpoint : path-like, optional
        File from which a killed fit resumes; needs a seeded generator.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    FitResult
        Posterior, objective, history.

    Raises
    ------
    InputError, UnsupportedError
        For data or options that do not fit together; the modules are then unchanged.
    NumericalError
        If the starting values already fail, or minibatch steps again and again.

    Whatever is raised, also by a callback, the modules are left as they were.

    Examples
    --------
    >>> import torch
    >>> from gpvi.approximations import Exact
    >>> from gpvi.kernels import parse_kernel
    >>> from gpvi.likelihoods import GaussianLikelihood
    >>> x = torch.linspace(0, 1, 20, dtype=torch.float64).unsqueeze(-1)
    >>> gp = GaussianProcess(parse_kernel("rbf", 1))
    >>> result = fit(gp, Exact(), GaussianLikelihood(), x, (6 * x[:, 0]).sin())
    >>> result.converged
    True
    """
    started = time.perf_counter()
    _check_types(gp, approximation, x, y)
    if not isinstance(max_iter, Integral) or max_iter < 0:
        raise InputError(f"max_iter is {max_iter}; it must be an integer of at least 0.")
    if checkpoint is not None and generator is None:
        raise InputError(
            f"The checkpoint {os.fspath(checkpoint)!r} needs a seeded generator, or the fit cannot be "
            "repeated."
        )
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    model = as_likelihood(likelihood)
    model.check_targets(y, **rows, **({} if weights is None else {"weights": weights}))
    plan = approximation.plan(x, groups)
    problem = FitProblem(
        gp, approximation, model, x, y, plan, objective, weights, dict(rows), inference=inference
    )
    _check_problem(problem)
    if problem.needs_all_sites:
        check_rule(approximation, model, problem.objective, inference, batch_size)
    if problem.alternates and checkpoint is not None:
        raise UnsupportedError(
            f"objective='ep' and checkpoint={os.fspath(checkpoint)!r}: turns of q and hyperparameters cannot "
            "be resumed; leave checkpoint out, or use objective='elbo'."
        )
    optimizer = _checked_optimizer(optimizer, batch_size)
    _check_step_sizes(learning_rate, natural_step_size)
    if batch_size is not None:
        _check_minibatch(problem, batch_size)
    settings: dict[str, object] = {
        "max_iter": max_iter,
        "tolerance": tolerance,
        "warm_start": str(warm_start),
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate if optimizer == "adam" else None,
        "natural_step_size": None if batch_size is None else natural_step_size,
    }
    path = None if checkpoint is None else os.fspath(checkpoint)
    digest = "" if path is None else _digest(problem, groups, generator, settings)
    run = _Run(generator, callbacks, path, digest, started)
    with unchanged_on_error(problem.modules.values()):
        warm = _warm_start(problem, warm_start, run)
        approximation.initialize(gp, x[..., problem.observed, :], generator)
        num_steps = 0 if warm is not None and warm.stopped else max_iter
        if batch_size is None:
            curvature = None if warm is None else warm.curvature
            rate = learning_rate if optimizer == "adam" else None
            result = _full_batch(problem, num_steps, tolerance, rate, curvature, run)
        else:
            loop = Minibatcher(
                problem,
                batch_size,
                num_steps,
                learning_rate,
                natural_step_size,
                tolerance,
                generator,
                run.history,
                callbacks,
                path,
                digest=digest,
                started=started,
            )
            result = loop.fit()
        if warm is not None and warm.stopped:
            result = replace(result, message=warm.message, stopped=True)
        warn_about(result, max_iter)
    return result


@dataclass(frozen=True, eq=False)
class _Run:
    """What all stages of one fit share."""

    generator: torch.Generator
    callbacks: Sequence[Callback]
    checkpoint: str | None
    digest: str
    started: float
    history: list[FitRecord] = field(default_factory=list)

    def log(self, suffix: str = "") -> EvaluationLog | None:
        """Evaluation log of a stage, if the fit has a checkpoint."""
        if self.checkpoint is None:
            return None
        return EvaluationLog(self.checkpoint + suffix, self.digest)


def _full_batch(
    problem: FitProblem,
    max_iter: int,
    tolerance: float,
    learning_rate: float | None,
    curvature: Curvature | None,
    run: _Run,
) -> FitResult:
    """Ascend on all rows: by Adam if there is a learning rate, else by L-BFGS."""
    ascent = Ascent(math.nan, 0, False, "no iterations after the warm start")
    if max_iter:
        ascend = ascend_in_turns if problem.alternates else ascend_in_rounds
        ascent = ascend(
            problem,
            max_iter=max_iter,
            tolerance=tolerance,
            learning_rate=learning_rate,
            history=run.history,
            callbacks=run.callbacks,
            log=run.log,
            started=run.started,
            curvature=curvature,
        )
        problem.refresh()
    outcome = problem.infer()
    return FitResult(
        outcome.posterior.detach(),
        outcome.objective,
        ascent.num_iterations,
        ascent.converged,
        ascent.message,
        run.history,
        outcome.log_v,
        ascent.stopped,
    )


def _warm_start(problem: FitProblem, options: WarmStart | None, run: _Run) -> Ascent | None:
    """Train hyperparameters on a subset, where that makes sense."""
    if options is None:
        return None
    terms = problem.sample_terms(options.num_terms, run.generator)
    if terms is not None:
        return _ascend_first(problem.on_terms(terms), options, run)
    if (
        problem.plan.groups is not None
        or problem.x.dim() > 2
        or not problem.approximation.subset_warm_start
        or len(problem.observed) < 2 * options.num_rows
        or not _saves_work(problem, options)
    ):
        return None
    observed = problem.observed
    order = torch.randperm(len(observed), generator=run.generator)[: options.num_rows]
    chosen = observed[order.to(observed.device)]
    points = problem.x[chosen[: options.num_inducing]]
    subset = problem.take(chosen, InducingPoints(inducing_points=points, learn=False))
    return _ascend_first(subset, options, run)


def _ascend_first(problem: FitProblem, options: WarmStart, run: _Run) -> Ascent:
    # A subset of rows, with inducing points, is for a rough start, for which the bound does as well.
    bound = problem.objective in ("tighter_elbo", "elbo")
    rough = problem if bound else replace(problem, objective="elbo", inference="cvi")
    return maximize(
        rough,
        stage="warm start",
        max_iter=options.max_evaluations,
        max_evaluations=options.max_evaluations,
        tolerance=1e-4,
        history=run.history,
        callbacks=run.callbacks,
        log=run.log(".warm-start"),
        started=run.started,
    )


def _saves_work(problem: FitProblem, options: WarmStart) -> bool:
    """Whether evaluations on the subset cost a third of those on all rows, or less."""
    approximation = problem.approximation
    if not isinstance(approximation, InducingPoints):
        return True
    points, size = approximation.inducing_points, approximation.num_inducing
    size = size if points is None else points.shape[-2]
    assert size is not None
    subset = options.num_rows * min(options.num_inducing, options.num_rows) ** 2
    return 3 * subset <= len(problem.observed) * size**2


def _check_types(gp: object, approximation: object, x: object, y: object) -> None:
    for name, value, wanted in (
        ("gp", gp, GaussianProcess),
        ("approximation", approximation, Approximation),
        ("x", x, Tensor),
        ("y", y, Tensor),
    ):
        if not isinstance(value, wanted):
            raise InputError(
                f"{name} is of type {type(value).__name__}; it must be of type {wanted.__name__}."
            )


def _check_problem(problem: FitProblem) -> None:
    if not len(problem.observed):
        raise InputError(
            f"No target counts: each of the {problem.num_rows} rows is NaN or has weight zero."
        )
    with torch.no_grad():
        row = problem.x[..., :1, :]
        moments = problem.gp.mean(row) + problem.gp.variance(row)
    if moments.dtype != problem.x.dtype:
        raise InputError(
            f"x is {problem.x.dtype} and the process computes in {moments.dtype}; convert one of them "
            "(gp.to(x))."
        )


def _checked_optimizer(optimizer: str, batch_size: int | None) -> str:
    """The optimiser by its own name; "auto" resolved."""
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer is {optimizer!r}; it must be one of {', '.join(OPTIMIZERS)}.")
    if optimizer == "lbfgs" and batch_size is not None:
        raise InputError(
            f"optimizer='lbfgs' and batch_size={batch_size}: L-BFGS cannot follow a noisy objective; "
            "leave one of them out."
        )
    if optimizer == "auto":
        return "lbfgs" if batch_size is None else "adam"
    return optimizer


def _check_step_sizes(learning_rate: float, natural_step_size: float) -> None:
    if not 0.0 < learning_rate < math.inf:
        raise InputError(f"learning_rate is {learning_rate}; it must be positive and finite.")
    if not 0.0 < natural_step_size <= 1.0:
        raise InputError(f"natural_step_size is {natural_step_size}; it must lie in (0, 1].")


def _check_minibatch(problem: FitProblem, batch_size: int) -> None:
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be an integer of at least 1.")
    name = type(problem.approximation).__name__
    if problem.plan.groups is not None:
        raise UnsupportedError("batch_size and groups: minibatches of rows would cut groups apart.")
    if problem.approximation.row_minibatches:
        if problem.x.dim() > 2:
            raise UnsupportedError(
                f"batch_size, {name} and x of shape {tuple(problem.x.shape)}: rows are drawn from one data "
                "set of shape [N, D]; leave batch_size out."
            )
        return
    if problem.approximation.whole_data:
        raise UnsupportedError(
            f"batch_size and {name}: this approximation needs whole data; use InducingPoints, or leave "
            "batch_size out."
        )
    if not problem.approximation.finite_basis:
        raise UnsupportedError(
            f"batch_size and {name}: its sites belong to rows and cannot be tied to a basis; leave "
            "batch_size out."
        )


def _digest(
    problem: FitProblem,
    groups: Tensor | None,
    generator: torch.Generator,
    settings: dict[str, object],
) -> str:
    tensors = [problem.x, problem.y, problem.weights, groups]
    tensors += [problem.rows[name] for name in sorted(problem.rows)]
    modules = {}
    for name, module in problem.modules.items():
        modules[name] = module_settings(module)
        tensors += [*module.parameters(), *module.buffers()]
    settings |= {
        "objective": problem.objective,
        "inference": problem.inference,
        "rows": sorted(problem.rows),
        "modules": modules,
    }
    return fingerprint([*tensors, generator.get_state()], settings)
