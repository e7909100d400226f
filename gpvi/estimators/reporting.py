"""What a fitted estimator tells about itself: leave-one-out predictions and the summary."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gpvi.approximations import Marginals, Posterior, SparseInversePrior, StateSpacePrior
from gpvi.estimators.fitting import FitOutcome
from gpvi.estimators.inputs import InputColumns
from gpvi.estimators.model import FittedModel, label_densities, normalised
from gpvi.estimators.scaling import log_unit
from gpvi.estimators.units import Hyperparameter
from gpvi.exceptions import UnsupportedError

__all__ = [
    "FitSummary",
    "HyperparameterRow",
    "LeaveOneOut",
    "LeaveOneOutClasses",
    "leave_one_out",
    "leave_one_out_classes",
    "summarize",
]


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """Prediction of every observation of a fit from all the others, hyperparameters unchanged.

    Parameters
    ----------
    mean, std : ndarray, shape [N]
        Of the observation, in the units of y; NaN for rows that were not fitted (no target, no weight).
    log_density : ndarray, shape [N]
        Log predictive density in nats, over the units of y.
    """

    mean: np.ndarray
    std: np.ndarray
    log_density: np.ndarray

    @property
    def total_log_density(self) -> float:
        """Sum over the fitted rows: the leave-one-out log predictive probability."""
        return float(np.nansum(self.log_density))


@dataclass(frozen=True, eq=False)
class LeaveOneOutClasses:
    """Prediction of every label of a fit from all the others, hyperparameters unchanged.

    Parameters
    ----------
    probabilities : ndarray, shape [N, C]
        Of every class, in the order of ``classes_``; NaN for rows that were not fitted.
    log_density : ndarray, shape [N]
        Log probability of the label, in nats.
    """

    probabilities: np.ndarray
    log_density: np.ndarray

    @property
    def total_log_density(self) -> float:
        """Sum over the fitted rows: the leave-one-out log predictive probability."""
        return float(np.nansum(self.log_density))


def leave_one_out(model: FittedModel, name: str) -> LeaveOneOut:
    """Leave-one-out predictions of a fitted model with numeric targets.

    Parameters
    ----------
    model : FittedModel
        Of a full-batch fit.
    name : str
        Class of the estimator, for messages.

    Returns
    -------
    LeaveOneOut
        One entry per row that was passed to the fit.

    Raises
    ------
    UnsupportedError
        If the fit has no sites of single rows.
    """
    cavity = _cavity(model, name)
    with torch.no_grad():
        mean, variance = model.observation.predict_mean_var(
            cavity.mean, cavity.variance, **model.target_rows
        )
    scale = float(model.y_map.scale)
    censored = model.target_rows.get("censored")
    unit = log_unit(model.y_map, None if censored is None else censored.cpu().numpy())
    return LeaveOneOut(
        _spread(model.y_map.inverse(mean.double().cpu().numpy()), model.used),
        _spread(variance.double().cpu().numpy() ** 0.5 * scale, model.used),
        _spread(_densities(model, cavity, model.targets) - unit, model.used),
    )


def leave_one_out_classes(model: FittedModel, name: str, num_classes: int) -> LeaveOneOutClasses:
    """Leave-one-out class probabilities of a fitted classifier.

    Parameters
    ----------
    model : FittedModel
        Of a full-batch fit.
    name : str
        Class of the estimator, for messages.
    num_classes : int
        C; classes are coded 0, ..., C - 1.

    Returns
    -------
    LeaveOneOutClasses
        One entry per row that was passed to the fit.

    Raises
    ------
    UnsupportedError
        If the fit has no sites of single rows.
    """
    cavity = _cavity(model, name)
    with torch.no_grad():
        densities = label_densities(model.observation, cavity.mean, cavity.variance, num_classes)
    logs = normalised(torch.stack(densities, dim=-1).double().cpu().numpy())
    own = np.take_along_axis(logs, model.targets.cpu().numpy().astype(np.int64)[:, None], 1)[:, 0]
    probabilities = np.full((len(model.used), num_classes), np.nan)
    probabilities[model.used] = np.exp(logs)
    return LeaveOneOutClasses(probabilities, _spread(own, model.used))


def _cavity(model: FittedModel, name: str) -> Marginals:
    if model.cavity is None:
        raise UnsupportedError(
            f"leave_one_out and this fit of {name}: it keeps no trace of single rows (minibatches do not), "
            "or one of them has no prediction from the others; fit without batch_size, or cross-validate."
        )
    return model.cavity


def _densities(model: FittedModel, cavity: Marginals, targets: Tensor) -> np.ndarray:
    with torch.no_grad():
        density = model.observation.predict_log_density(
            targets, cavity.mean, cavity.variance, **model.target_rows
        )
    return density.double().cpu().numpy()


def _spread(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    spread = np.full(len(used), np.nan)
    spread[used] = values
    return spread


@dataclass(frozen=True)
class HyperparameterRow:
    """One line of the table of hyperparameters.

    Parameters
    ----------
    name : str
        Where it is, such as "kernel.base_kernel.lengthscale".
    column : str
        Input column that it belongs to; empty if it belongs to all.
    value : float
        In the units of the data.
    unit : str
        "X", "y", "y^2", "y^2/X^2", "1/X^2"; empty for a number without units, or a value that only
        makes sense after standardisation.
    status : str
        "learned", "learned, with a prior", "fixed".
    """

    name: str
    column: str
    value: float
    unit: str
    status: str


@dataclass(frozen=True)
class FitSummary:
    """Summary of a fit; ``print`` shows it as a table.

    Parameters
    ----------
    estimator : str
        Class of the estimator.
    num_rows, num_features : int
        Size of the data that were fitted.
    approximation, reason : str
        What was used, and why.
    likelihood : str
        Class of the likelihood.
    elbo : float
        In total nats, in the units of y.
    elbo_per_row : float
        Divided by the number of rows.
    evaluations : int
        Objective evaluations.
    seconds : float
        Of the last start's evaluations.
    message : str
        Why the fit stopped.
    converged : bool
        Whether the stopping rule was met.
    jitter : float
        Largest jitter of a factorisation, relative to the mean diagonal; 0 if none was needed.
    standardized : bool
        Whether the fit standardised the data.
    hyperparameters : tuple of HyperparameterRow
        In the units of the data.
    warnings : tuple of str
        What the fit warned about.
    """

    estimator: str
    num_rows: int
    num_features: int
    approximation: str
    reason: str
    likelihood: str
    elbo: float
    elbo_per_row: float
    evaluations: int
    seconds: float
    message: str
    converged: bool
    jitter: float
    standardized: bool
    hyperparameters: tuple[HyperparameterRow, ...]
    warnings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [
            f"{self.estimator} on {self.num_rows} rows x {self.num_features} columns",
            f"  approximation  {self.approximation} ({self.reason})",
            f"  likelihood     {self.likelihood}",
            f"  elbo           {self.elbo:.6g} nats ({self.elbo_per_row:.4g} per row)",
            f"  fit            {self.evaluations} evaluations, {self.seconds:.2f} s; "
            f"{'converged' if self.converged else 'not converged'}: {self.message}",
            f"  jitter         {f'{self.jitter:.0e} of the mean diagonal' if self.jitter else 'none'}",
            f"  standardised   {'yes' if self.standardized else 'no'}",
            "",
            *_table(self.hyperparameters),
        ]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)


def summarize(
    estimator: str,
    outcome: FitOutcome,
    parameters: list[Hyperparameter],
    columns: InputColumns,
    standardized: bool,
) -> FitSummary:
    """Summary of a finished fit.

    Parameters
    ----------
    estimator : str
        Class of the estimator.
    outcome : FitOutcome
        Of the fit.
    parameters : list of Hyperparameter
        At their final values.
    columns : InputColumns
        Of the inputs.
    standardized : bool
        Whether the fit standardised the data.

    Returns
    -------
    FitSummary
        Plain numbers and text.
    """
    result, model = outcome.result, outcome.model
    num_rows = len(model.targets)
    return FitSummary(
        estimator=estimator,
        num_rows=num_rows,
        num_features=columns.num_features,
        approximation=_describe(model.posterior),
        reason=outcome.choice.reason,
        likelihood=type(model.likelihood).__name__,
        elbo=outcome.objective,
        elbo_per_row=outcome.objective / num_rows,
        evaluations=len(outcome.history),
        seconds=outcome.history[-1].seconds if outcome.history else 0.0,
        message=result.message,
        converged=result.converged,
        jitter=_jitter(model.posterior),
        standardized=standardized,
        hyperparameters=tuple(row for parameter in parameters for row in _rows(parameter, columns)),
        warnings=tuple(f"{category.__name__}: {text}" for category, text in outcome.warnings),
    )


def _describe(posterior: Posterior) -> str:
    prior = posterior.prior
    name = type(prior).__name__.removesuffix("Prior")
    if isinstance(prior, StateSpacePrior):
        return f"{name} with {prior.form.dimension} states"
    if isinstance(prior, SparseInversePrior):
        number = prior.geometry.neighbors.shape[-1]
        return (
            f"{name}Cholesky with {number} neighbours at {prior.num_basis} locations of "
            f"{prior.x.shape[-2]} rows"
        )
    return f"{name} with {prior.num_basis} basis values"


def _jitter(posterior: Posterior) -> float:
    # Inducing points have theirs in the prior, exact conditioning in the posterior.
    found = (getattr(posterior.prior, "jitter", None), getattr(posterior, "jitter", None))
    return max(
        (float(torch.as_tensor(jitter).max()) for jitter in found if jitter is not None),
        default=0.0,
    )


def _rows(parameter: Hyperparameter, columns: InputColumns) -> list[HyperparameterRow]:
    value = np.asarray(parameter.value)
    status = "learned" if parameter.raw.requires_grad else "fixed"
    if f"{parameter.name}_prior" in getattr(parameter.module, "_priors", {}):
        status += ", with a prior"
    labels = [""]
    if parameter.is_per_column or (len(parameter.columns) == 1 and parameter.unit == "X"):
        labels = [columns.label(column) for column in parameter.columns]
    flat = value.reshape(-1, len(labels))
    rows = []
    for batch, line in enumerate(flat):
        name = parameter.path if len(flat) == 1 else f"{parameter.path}[{batch}]"
        rows += [
            HyperparameterRow(name, label, float(number), parameter.unit, status)
            for label, number in zip(labels, line, strict=True)
        ]
    return rows


def _table(rows: tuple[HyperparameterRow, ...]) -> list[str]:
    cells = [("hyperparameter", "column", "value", "unit", "")]
    cells += [(r.name, r.column, f"{r.value:.4g}", r.unit, r.status) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
