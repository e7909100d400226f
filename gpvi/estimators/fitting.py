"""One fit, from checked arrays and options to a fitted model, with restarts and what there is to tell."""

import math
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpvi._warnings import collect_warnings, warn
from gpvi.approximations import Approximation, GaussianProcess
from gpvi.estimators.building import build_kernel, build_mean
from gpvi.estimators.choosing import ApproximationChoice, choose
from gpvi.estimators.hyperparameters import (
    Fixed,
    Free,
    apply_hyperparameters,
    scale_amplitudes,
    start_hyperparameters,
)
from gpvi.estimators.inputs import InputColumns
from gpvi.estimators.model import FittedModel
from gpvi.estimators.remarks import remarks
from gpvi.estimators.scaling import Standardizer
from gpvi.estimators.units import list_hyperparameters
from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.inference import (
    Callback,
    FitRecord,
    FitResult,
    ParameterVector,
    ProgressBar,
    WarmStart,
    fit,
    initialize_hyperparameters,
    log_prior,
)
from gpvi.kernels.initialization import set_trends
from gpvi.likelihoods import as_likelihood

__all__ = ["FitOptions", "FitOutcome", "TrainingData", "fit_model"]

# Restarts move positive parameters by a factor of about e, others by about one standard deviation.
_RESTART_SPREAD = 1.0


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Checked data of a fit, rows without target or weight left out.

    Parameters
    ----------
    X : ndarray, shape [N, D]
        Encoded inputs, in their own units.
    y : ndarray, shape [N]
        Targets, in their own units.
    weights : ndarray, shape [N], or None
        Positive.
    rows : dict of str to ndarray, shape [N]
        Extras of the likelihood, in the units of the data.
    used : ndarray of bool
        Which rows of what the user passed these are.
    columns : InputColumns
        Of the inputs.
    """

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    rows: dict[str, np.ndarray]
    used: np.ndarray
    columns: InputColumns

    @property
    def density_weight(self) -> float:
        """Number of rows, repeats counted, that have a density: of a bound there is a probability."""
        weights = np.ones(len(self.y)) if self.weights is None else self.weights
        return float(weights[self.rows.get("censored", np.zeros(len(self.y))) == 0].sum())


@dataclass(frozen=True, eq=False)
class FitOptions:
    """Options of an estimator that a fit needs, checked.

    Parameters
    ----------
    kernel, mean, approximation : object
        As given.
    likelihood : gpytorch or gpvi likelihood
        Copied for every restart.
    num_latents : int
        Latent functions.
    ard : bool
        As given.
    x_map, y_map : Standardizer
        To the units of the fit.
    target_scale : float
        Standard deviation of the targets in the units of the fit, if they are real numbers.
    hyperparameters : dict
        Checked.
    num_inducing, batch_size : int or None
        As given.
    optimizer : str or None
        None keeps all hyperparameters at their starting values.
    objective, inference : str
        As given.
    max_iter : int
        As given.
    learning_rate : float
        As given.
    num_restarts : int
        Further starts.
    seed : int
        Of all randomness.
    device : torch.device
        Where to compute.
    dtype : torch.dtype
        In what precision.
    verbose : bool
        Whether to show a progress bar.
    callbacks : sequence of callable
        As given.
    checkpoint : path-like or None
        As given.
    """

    kernel: Any
    mean: Any
    approximation: Any
    likelihood: gpytorch.likelihoods.Likelihood
    num_latents: int
    ard: bool
    x_map: Standardizer
    y_map: Standardizer
    target_scale: float
    hyperparameters: dict[str, Fixed | Free]
    num_inducing: int | None
    batch_size: int | None
    optimizer: str | None
    objective: str
    inference: str
    max_iter: int
    learning_rate: float
    num_restarts: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    verbose: bool
    callbacks: Sequence[Callback]
    checkpoint: str | os.PathLike | None


@dataclass(frozen=True, eq=False)
class FitOutcome:
    """A fitted model and what there is to tell about the fit.

    Parameters
    ----------
    model : FittedModel
        Ready to predict.
    process : GaussianProcess
        Kernel and mean at their final values.
    result : FitResult
        Of the best start.
    objective : float
        In total nats, in the units of y.
    history : list of FitRecord
        Of all starts.
    choice : ApproximationChoice
        What was chosen and why.
    warnings : list of tuple
        Category and text of every warning of the best start.
    """

    model: FittedModel
    process: GaussianProcess
    result: FitResult
    objective: float
    history: list[FitRecord]
    choice: ApproximationChoice
    warnings: list[tuple[type[Warning], str]]


@dataclass(frozen=True, eq=False)
class _Start:
    gp: GaussianProcess
    likelihood: gpytorch.likelihoods.Likelihood
    approximation: Approximation
    result: FitResult
    score: float
    warnings: list[tuple[type[Warning], str]]


def fit_model(data: TrainingData, options: FitOptions) -> FitOutcome:
    """Fit from one or more starts and keep the best.

    Parameters
    ----------
    data : TrainingData
        Checked data.
    options : FitOptions
        Checked options.

    Returns
    -------
    FitOutcome
        Of the start with the highest objective (log priors included).

    Raises
    ------
    GPVIError
        For options that do not fit together; NumericalError only if every start fails.
    """
    problem = _Tensors.build(data, options)
    choice = choose(
        options.approximation,
        kernel=_kernel(data, options),
        num_features=data.columns.num_features,
        num_rows=len(data.y),
        num_inducing=options.num_inducing,
        batch_size=options.batch_size,
        gaussian=as_likelihood(options.likelihood).gaussian_noise(problem.y) is not None,
        num_latents=options.num_latents,
    )
    history: list[FitRecord] = []
    best, failure = None, None
    for number in range(options.num_restarts + 1):
        try:
            start = _run(number, problem, data, options, choice, history)
        except NumericalError as error:
            failure = error
            continue
        if best is None or start.score > best.score:
            best = start
        if start.result.stopped:
            break
    if best is None:
        assert failure is not None
        raise failure
    kernel, fitted = best.gp.kernel, best.approximation
    best.warnings.extend(
        remarks(data.y, data.columns, kernel, fitted, options.num_inducing, options.approximation)
    )
    for category, text in best.warnings:
        warn(text, category)
    return FitOutcome(
        _model(best, problem, data, options),
        best.gp,
        best.result,
        # A density in y's units is the standardised one divided by the scale, once per row.
        best.result.objective - data.density_weight * float(np.log(options.y_map.scale)),
        history,
        replace(choice, approximation=best.approximation),
        best.warnings,
    )


@dataclass(frozen=True, eq=False)
class _Tensors:
    """The data in the units of the fit."""

    x: Tensor
    y: Tensor
    weights: Tensor | None
    rows: dict[str, Tensor]

    @classmethod
    def build(cls, data: TrainingData, options: FitOptions) -> "_Tensors":
        def tensor(values: np.ndarray) -> Tensor:
            return torch.tensor(values, dtype=options.dtype, device=options.device)

        rows = {name: tensor(values) for name, values in data.rows.items()}
        if "noise" in rows:
            rows["noise"] = tensor(data.rows["noise"] / options.y_map.scale**2)
        weights = None if data.weights is None else tensor(data.weights)
        x, y = tensor(options.x_map(data.X)), tensor(options.y_map(data.y))
        for name, values in {"X": x, "y": y, **rows}.items():
            if not bool(torch.isfinite(values).all()):
                raise InputError(
                    f"{name} has values that do not fit into {options.dtype} in the units of the fit; use "
                    "float64, or rescale."
                )
        return cls(x, y, weights, rows)


def _run(
    number: int,
    tensors: _Tensors,
    data: TrainingData,
    options: FitOptions,
    choice: ApproximationChoice,
    history: list[FitRecord],
) -> _Start:
    generator = torch.Generator().manual_seed(options.seed + number)
    gp, likelihood = _prepare(number, tensors, data, options, generator)
    approximation = _fresh(choice.approximation, options)
    bar = ProgressBar() if options.verbose else None
    relay = [_Relay(number, callback) for callback in options.callbacks]
    if bar is not None:
        relay.append(_Relay(number, bar))
    records = _Relay(number, history.append)
    rows: dict[str, Any] = tensors.rows  # mypy would match tensors with every keyword
    try:
        with collect_warnings() as caught:
            result = fit(
                gp,
                approximation,
                likelihood,
                tensors.x,
                tensors.y,
                objective=options.objective,
                inference=options.inference,
                weights=tensors.weights,
                optimizer="auto" if options.optimizer is None else options.optimizer,
                max_iter=0 if options.optimizer is None else options.max_iter,
                warm_start=None if options.optimizer is None else WarmStart(),
                batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                generator=generator,
                callbacks=[records, *relay],
                checkpoint=_checkpoint(options.checkpoint, number),
                **rows,
            )
    finally:
        if bar is not None:
            bar.close()
    if not math.isfinite(result.objective):
        raise NumericalError(
            f"The fit ended at an objective of {result.objective}: q(f) has run away from the data. Start "
            "closer to them (mean='constant', standardize=True), lower learning_rate, or leave batch_size "
            "out."
        )
    with torch.no_grad():
        score = result.objective + float(log_prior([gp, likelihood, approximation]))
    return _Start(gp, likelihood, approximation, result, score, _distinct(caught))


@dataclass(frozen=True)
class _Relay:
    """Callback that adds the number of the start to every record."""

    number: int
    callback: Callback

    def __call__(self, record: FitRecord) -> bool | None:
        return self.callback(replace(record, restart=self.number))


def _prepare(
    number: int,
    tensors: _Tensors,
    data: TrainingData,
    options: FitOptions,
    generator: torch.Generator,
) -> tuple[GaussianProcess, gpytorch.likelihoods.Likelihood]:
    """Process and likelihood at the starting values of a start."""
    kernel = _kernel(data, options)
    latents = torch.Size() if options.num_latents == 1 else torch.Size([options.num_latents])
    gp = GaussianProcess(kernel, build_mean(options.mean, latents))
    likelihood = deepcopy(options.likelihood)
    gp.to(options.device, options.dtype)
    likelihood.to(options.device, options.dtype)
    parameters = list_hyperparameters(gp, likelihood, options.x_map, options.y_map)
    width = data.columns.high - data.columns.low
    ranges = np.where(width > 0, width, np.broadcast_to(options.x_map.scale, width.shape))
    if isinstance(options.kernel, str):
        scale_amplitudes(parameters, options.target_scale)
        if len(time := _numeric(data)):
            first, last = (
                float(options.x_map(ends)[time[0]])
                for ends in (data.columns.low, data.columns.high)
            )
            set_trends(kernel, first, last, options.target_scale)
    apply_hyperparameters(options.hyperparameters, parameters, ranges)
    initialize_hyperparameters(
        gp, likelihood, tensors.x, tensors.y, generator, weights=tensors.weights, **tensors.rows
    )
    start_hyperparameters(options.hyperparameters, parameters, ranges)
    if number:
        vector = ParameterVector({"gp": gp, "likelihood": likelihood}, options.target_scale)
        noise = torch.randn(vector.size, generator=generator, dtype=torch.float64).numpy()
        vector.assign(vector.values() + _RESTART_SPREAD * noise)
    return gp, likelihood


def _kernel(data: TrainingData, options: FitOptions) -> gpytorch.kernels.Kernel:
    time = _numeric(data)
    scale = float(options.x_map.scale[time[0]]) if len(time) else 1.0
    return build_kernel(
        options.kernel, data.columns, ard=options.ard, dtype=options.dtype, time_scale=scale
    )


def _numeric(data: TrainingData) -> np.ndarray:
    """Numeric columns; kernels of time, with periods and trends, see the only one."""
    return np.flatnonzero(~data.columns.categorical)


def _fresh(template: Approximation, options: FitOptions) -> Approximation:
    """A copy of the approximation in the units of the fit."""
    approximation = deepcopy(template)

    def standardise(z: Tensor) -> Tensor:
        values = options.x_map(z.double().cpu().numpy())
        return torch.tensor(values, dtype=options.dtype, device=options.device)

    approximation.map_inputs(standardise)
    return approximation.to(options.device, options.dtype)


def _checkpoint(path: str | os.PathLike | None, number: int) -> str | None:
    if path is None:
        return None
    return os.fspath(path) + (f".restart{number}" if number else "")


def _distinct(caught: list[tuple[type[Warning], str]]) -> list[tuple[type[Warning], str]]:
    """Every evaluation may repeat the same complaint."""
    return list(dict.fromkeys(caught))


def _model(
    start: _Start, tensors: _Tensors, data: TrainingData, options: FitOptions
) -> FittedModel:
    posterior = start.result.posterior
    cavity = None
    try:
        with torch.no_grad():
            cavity = posterior.leave_one_out()
    except (InputError, UnsupportedError, NumericalError):
        # Minibatch fits and white processes have no sites of single rows, and a row that is known from its
        # own target alone has no cavity.
        pass
    return FittedModel(
        posterior=posterior.compact(),
        likelihood=start.likelihood,
        x_map=options.x_map,
        y_map=options.y_map,
        row_names=tuple(sorted(data.rows)),
        cavity=cavity,
        targets=tensors.y,
        target_rows=tensors.rows,
        used=data.used,
    )
