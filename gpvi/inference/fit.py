"""The fit loop: warm start on a subset, then full batch or minibatches, with history and checkpoints."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import Approximation, GaussianProcess, InducingPoints, Posterior
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference.checkpoint import EvaluationLog, fingerprint
from gpvi.inference.coordinates import Curvature
from gpvi.inference.full_batch import Ascent, maximize
from gpvi.inference.minibatch import Minibatcher
from gpvi.inference.problem import FitProblem
from gpvi.inference.records import Callback, FitRecord, FitResult
from gpvi.inference.reports import warn_about
from gpvi.likelihoods import as_likelihood

__all__ = ["WarmStart", "fit"]


@dataclass(frozen=True)
class WarmStart:
    """Hyperparameters from a subset of the rows before the first look at all of them.

    Parameters
    ----------
    num_rows : int
        Rows of the subset; sets of less than twice as many rows are not warm-started.
    num_inducing : int
        Fixed inducing rows on the subset.
    max_evaluations : int
        Objective evaluations on the subset.
    """

    num_rows: int = 2_000
    num_inducing: int = 256
    max_evaluations: int = 60


def fit(
    gp: GaussianProcess,
    approximation: Approximation,
    likelihood: GPyTorchLikelihood,
    x: Tensor,
    y: Tensor,
    *,
    objective: str = "tighter_elbo",
    groups: Tensor | None = None,
    weights: Tensor | None = None,
    max_iter: int = 100,
    tolerance: float = 1e-6,
    warm_start: WarmStart | None = WarmStart(),
    batch_size: int | None = None,
    learning_rate: float = 0.01,
    natural_step_size: float = 0.1,
    generator: torch.Generator | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike | None = None,
    **rows: Tensor,
) -> FitResult:
    r"""Fit hyperparameters, structure parameters and q to data; the modules are trained in place.

    Without ``batch_size``: L-BFGS on the objective of all rows, with q at its optimum inside. With it:
    natural-gradient steps for q and Adam for the rest on minibatches.

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
    objective : {"tighter_elbo", "elbo"}
        What is maximised (with the log densities of registered priors added).
    groups : Tensor of int, shape [N], optional
        Flat independent groups.
    weights : Tensor, shape [N], optional
        Row weights.
    max_iter : int
        L-BFGS iterations, or minibatch steps, after the warm start; 0 stops there.
    tolerance : float
        Stopping rule in nats per row (see :func:`gpvi.inference.full_batch.maximize`).
    warm_start : WarmStart, optional
        None starts on all rows at once.
    batch_size : int, optional
        Rows per minibatch.
    learning_rate, natural_step_size : float
        Step sizes of the minibatch fit.
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
        If the starting values already fail; the modules are then unchanged.

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
    if max_iter < 0:
        raise InputError(f"max_iter is {max_iter}; it must be at least 0.")
    if checkpoint is not None and generator is None:
        raise InputError("A checkpoint needs a seeded generator, or the fit cannot be repeated.")
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    model = as_likelihood(likelihood)
    model.check_targets(y, **rows, **({} if weights is None else {"weights": weights}))
    problem = FitProblem(
        gp,
        approximation,
        model,
        x,
        y,
        approximation.plan(x, groups),
        objective,
        weights,
        dict(rows),
    )
    if batch_size is not None:
        _check_minibatch(problem, batch_size)
    digest = _digest(problem, max_iter, tolerance, warm_start, batch_size, generator)
    history: list[FitRecord] = []
    warm = _warm_start(
        problem, warm_start, generator, history, callbacks, checkpoint, digest, started
    )
    approximation.initialize(gp, x, generator)
    num_steps = 0 if warm is not None and warm.stopped else max_iter
    curvature = None if warm is None else warm.curvature
    if batch_size is None:
        result = _full_batch(
            problem,
            num_steps,
            tolerance,
            history,
            callbacks,
            checkpoint,
            digest,
            started,
            curvature,
        )
    else:
        loop = Minibatcher(
            problem,
            batch_size,
            num_steps,
            learning_rate,
            natural_step_size,
            tolerance,
            generator,
            history,
            callbacks,
            None if checkpoint is None else os.fspath(checkpoint),
            digest=digest,
            started=started,
        )
        converged, message = loop.run()
        result = FitResult(
            loop.posterior(), loop.objective(), loop.step, converged, message, history, loop.log_v
        )
    warn_about(result, max_iter)
    return result


def _full_batch(
    problem: FitProblem,
    max_iter: int,
    tolerance: float,
    history: list[FitRecord],
    callbacks: Sequence[Callback],
    checkpoint: str | os.PathLike | None,
    digest: str,
    started: float,
    curvature: Curvature | None,
) -> FitResult:
    iterations, converged, message = 0, False, "no iterations after the warm start"
    if max_iter:
        log = None if checkpoint is None else EvaluationLog(checkpoint, digest)
        ascent = maximize(
            problem,
            stage="full batch",
            max_iter=max_iter,
            max_evaluations=None,
            tolerance=tolerance,
            history=history,
            callbacks=callbacks,
            log=log,
            started=started,
            curvature=curvature,
        )
        iterations, converged, message = ascent.num_iterations, ascent.converged, ascent.message
    outcome = problem.infer()
    posterior: Posterior = outcome.posterior.detach()
    return FitResult(
        posterior, outcome.objective, iterations, converged, message, history, outcome.log_v
    )


def _warm_start(
    problem: FitProblem,
    options: WarmStart | None,
    generator: torch.Generator,
    history: list[FitRecord],
    callbacks: Sequence[Callback],
    checkpoint: str | os.PathLike | None,
    digest: str,
    started: float,
) -> Ascent | None:
    """Train hyperparameters on a subset, where that makes sense."""
    num_rows = problem.y.shape[-1]
    if (
        options is None
        or problem.plan.groups is not None
        or problem.x.dim() > 2
        or not problem.approximation.subset_warm_start
        or num_rows < 2 * options.num_rows
    ):
        return None
    chosen = torch.randperm(num_rows, generator=generator)[: options.num_rows].to(problem.x.device)
    x = problem.x[chosen]
    subset = FitProblem(
        problem.gp,
        InducingPoints(inducing_points=x[: options.num_inducing], learn=False),
        problem.likelihood,
        x,
        problem.y[..., chosen],
        problem.approximation.plan(x),
        problem.objective,
        None if problem.weights is None else problem.weights[..., chosen],
        {name: value[..., chosen] for name, value in problem.rows.items()},
    )
    log = None
    if checkpoint is not None:
        log = EvaluationLog(f"{os.fspath(checkpoint)}.warm-start", digest)
    return maximize(
        subset,
        stage="warm start",
        max_iter=options.max_evaluations,
        max_evaluations=options.max_evaluations,
        tolerance=1e-4,
        history=history,
        callbacks=callbacks,
        log=log,
        started=started,
    )


def _check_minibatch(problem: FitProblem, batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1.")
    name = type(problem.approximation).__name__
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
    if problem.plan.groups is not None:
        raise UnsupportedError("batch_size and groups: minibatches of rows would cut groups apart.")


def _digest(
    problem: FitProblem,
    max_iter: int,
    tolerance: float,
    warm_start: WarmStart | None,
    batch_size: int | None,
    generator: torch.Generator,
) -> str:
    parameters = [p for module in problem.modules.values() for p in module.parameters()]
    extras = [problem.rows[name] for name in sorted(problem.rows)]
    settings: dict[str, object] = {
        "approximation": type(problem.approximation).__name__,
        "objective": problem.objective,
        "max_iter": max_iter,
        "tolerance": tolerance,
        "warm_start": str(warm_start),
        "batch_size": batch_size,
        "rows": sorted(problem.rows),
    }
    tensors = [problem.x, problem.y, problem.weights, *extras, *parameters]
    return fingerprint([*tensors, generator.get_state()], settings)
