"""Checks of options and data before a fit touches anything."""

import math
import os
from collections.abc import Sequence

import gpytorch
import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch.distributions import Bernoulli, Categorical, Distribution

from gpvi.estimators.fitting import FitOptions, TrainingData
from gpvi.estimators.hyperparameters import Fixed, Free
from gpvi.estimators.scaling import Standardizer
from gpvi.estimators.validation import (
    check_choice,
    check_device,
    check_flag,
    check_integer,
    check_number,
    check_row_names,
    check_seed,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference.site_rules import resolve_objective
from gpvi.likelihoods import as_likelihood
from gpvi.likelihoods.moments import is_discrete

__all__ = [
    "check_data",
    "check_kind",
    "check_options",
    "fit_options",
    "standardizers",
    "target_scale",
    "usable_rows",
]

# Squares of targets, and a millionth of them, stay normal numbers in single precision.
_SMALLEST = 1e-15

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def check_options(estimator: BaseEstimator) -> None:
    """Refuse impossible options that can be seen without data.

    Parameters
    ----------
    estimator : BaseEstimator
        With the options as attributes.

    Raises
    ------
    InputError, UnsupportedError
        Names the option and its value.
    """
    check_choice("dtype", estimator.dtype, tuple(_DTYPES))
    resolve_objective(estimator.objective, estimator.inference)
    check_choice("optimizer", estimator.optimizer, ("auto", "lbfgs", "adam", None))
    for name in ("ard", "standardize", "allow_missing_targets", "verbose"):
        check_flag(name, getattr(estimator, name))
    check_device(estimator.device)
    check_number("learning_rate", estimator.learning_rate, 0.0, math.inf)
    _check_callbacks(estimator.callbacks)
    check_integer("max_iter", estimator.max_iter, 0)
    restarts = _num_restarts(estimator)
    check_integer("num_restarts", restarts, 0)
    if estimator.optimizer is None and restarts:
        raise UnsupportedError(
            f"optimizer=None and num_restarts={restarts}: restarts move starting values, which "
            "optimizer=None is to keep; leave one of them out."
        )
    if estimator.batch_size is not None:
        check_integer("batch_size", estimator.batch_size, 1)
        if estimator.optimizer in (None, "lbfgs"):
            raise UnsupportedError(
                f"optimizer={estimator.optimizer!r} and batch_size={estimator.batch_size}: minibatches are "
                "fitted by Adam; pass optimizer='auto', or leave batch_size out."
            )
    _check_checkpoint(estimator.checkpoint, estimator.random_state)


def _num_restarts(estimator: BaseEstimator) -> int:
    """The number of restarts; None, where an estimator has it, is one if anything is learned."""
    if estimator.num_restarts is None and getattr(estimator, "restarts_once", False):
        return 0 if estimator.optimizer is None else 1
    return estimator.num_restarts


def _check_callbacks(callbacks: object) -> None:
    if not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks is {callbacks!r}; pass a list of functions.")
    for callback in callbacks:
        if not callable(callback):
            raise InputError(
                f"callbacks holds {callback!r}, which cannot be called; pass functions."
            )


def _check_checkpoint(checkpoint: object, random_state: object) -> None:
    if checkpoint is None:
        return
    if not isinstance(checkpoint, str | os.PathLike):
        raise InputError(f"checkpoint is {checkpoint!r}; pass the path of a file, or None.")
    if not isinstance(random_state, int | np.integer):
        raise InputError(
            f"checkpoint is {os.fspath(checkpoint)!r} and random_state {random_state!r}: only a fit with "
            "an integer random_state can be repeated."
        )


def check_kind(likelihood: gpytorch.likelihoods.Likelihood, kind: str, num_classes: int) -> None:
    """Refuse a likelihood of another kind of target.

    Parameters
    ----------
    likelihood : gpytorch or gpvi likelihood
        Any.
    kind : {"number", "count", "label"}
        What the estimator predicts.
    num_classes : int
        Number of labels.

    Raises
    ------
    UnsupportedError
        Names the likelihood and what would fit.
    """
    model, name = as_likelihood(likelihood), type(likelihood).__name__
    shape = (2,) if model.num_latents == 1 else (2, model.num_latents)
    conditional = model.forward(torch.zeros(shape, dtype=torch.float64))
    found = _num_labels(conditional)
    is_label = found > 0
    if kind == "label":
        if found != num_classes:
            what = f"{found} classes" if is_label else "no labels"
            raise UnsupportedError(
                f"GPClassifier and {name}: it describes {what}, and y has {num_classes}; pass 'auto'."
            )
    elif is_label or model.num_latents > 1 or (kind == "count" and not is_discrete(conditional)):
        wanted = "whole numbers" if kind == "count" else "one number per row"
        raise UnsupportedError(
            f"{name} does not describe {wanted}; pass likelihood='auto', or use another estimator."
        )


def _num_labels(conditional: Distribution) -> int:
    """Labels that a distribution of y given f tells apart; 0 if it is about something else."""
    if isinstance(conditional, Bernoulli):
        return 2
    return conditional.probs.shape[-1] if isinstance(conditional, Categorical) else 0


def usable_rows(observed: np.ndarray, weights: np.ndarray | None, owner: str) -> np.ndarray:
    """Rows that have a target and a positive weight.

    Parameters
    ----------
    observed : ndarray of bool, shape [N]
        Rows with a target.
    weights : ndarray, shape [N], or None
        Non-negative.
    owner : str
        Class name, for the message.

    Returns
    -------
    ndarray of bool, shape [N]
        True where both hold.

    Raises
    ------
    InputError
        If fewer than two rows are left.
    """
    if weights is not None and not (weights > 0).any():
        raise InputError(
            f"sample_weight of {owner} is zero in all {len(weights)} rows; give some a weight."
        )
    used = observed if weights is None else observed & (weights > 0)
    if used.sum() < 2:
        raise InputError(
            f"{owner} has {int(used.sum())} row(s) with a target and a positive sample_weight out of "
            f"{len(used)}; a fit needs at least 2 samples."
        )
    return used


def standardizers(
    data: TrainingData, *, standardize: bool, common_scale: bool, targets: bool
) -> tuple[Standardizer, Standardizer]:
    """Maps of inputs and targets to the units of the fit.

    Parameters
    ----------
    data : TrainingData
        Checked data.
    standardize : bool
        Whether to change anything.
    common_scale : bool
        One scale for all columns.
    targets : bool
        Whether targets are real numbers, which can be standardised.

    Returns
    -------
    x_map, y_map : Standardizer
        Weighted by the weights of the rows.
    """
    if not standardize:
        return Standardizer.identity(data.columns.num_features), Standardizer.identity()
    categorical = data.columns.categorical
    x_map = Standardizer.fit(
        data.X, weights=data.weights, common_scale=common_scale, skip=categorical
    )
    if not targets:
        return x_map, Standardizer.identity()
    return x_map, Standardizer.fit(data.y, weights=data.weights)


def target_scale(data: TrainingData) -> float:
    """Standard deviation of the targets, for starting values where they are not standardised.

    Parameters
    ----------
    data : TrainingData
        Checked data.

    Returns
    -------
    float
        Positive; 1 for constant targets.

    Raises
    ------
    InputError
        If its square leaves the range of single precision, in which GPyTorch keeps bounds.
    """
    scale = float(Standardizer.fit(data.y, weights=data.weights).scale)
    if not _SMALLEST < scale < 1.0 / _SMALLEST:
        raise InputError(
            f"y has a standard deviation of {scale:.3g}, which standardize=False cannot fit; standardise, or "
            "change its unit."
        )
    return scale


def check_data(
    likelihood: gpytorch.likelihoods.Likelihood, data: TrainingData, y_map: Standardizer
) -> None:
    """Refuse targets and extras that are not of the likelihood's kind.

    Parameters
    ----------
    likelihood : gpytorch or gpvi likelihood
        Any.
    data : TrainingData
        In its own units.
    y_map : Standardizer
        Of the targets.

    Raises
    ------
    InputError
        Names the likelihood and the offending value.
    """
    model, name = as_likelihood(likelihood), type(likelihood).__name__
    check_row_names(likelihood, set(data.rows), model.row_arguments)
    rows = {key: torch.as_tensor(values) for key, values in data.rows.items()}
    model.check_targets(torch.tensor(data.y), **rows)
    try:
        model.check_targets(torch.tensor(y_map(data.y)), **rows)
    except InputError as error:
        raise InputError(
            f"{name} and standardize=True: standardised targets are not of its kind ({error}) Pass "
            "standardize=False."
        ) from error


def fit_options(
    estimator: BaseEstimator,
    likelihood: gpytorch.likelihoods.Likelihood,
    x_map: Standardizer,
    y_map: Standardizer,
    scale: float,
    specs: dict[str, Fixed | Free],
) -> FitOptions:
    """Options of an estimator that a fit needs.

    Parameters
    ----------
    estimator : BaseEstimator
        With checked options as attributes.
    likelihood : gpytorch or gpvi likelihood
        Of the fit.
    x_map, y_map : Standardizer
        To the units of the fit.
    scale : float
        Standard deviation of the targets in the units of the fit, if they are real numbers.
    specs : dict
        Checked control over hyperparameters.

    Returns
    -------
    FitOptions
        For :func:`gpvi.estimators.fitting.fit_model`.
    """
    return FitOptions(
        kernel=estimator.kernel,
        mean=estimator._prior_mean(),
        approximation=estimator.approximation,
        likelihood=likelihood,
        num_latents=as_likelihood(likelihood).num_latents,
        ard=bool(estimator.ard),
        x_map=x_map,
        y_map=y_map,
        target_scale=scale,
        hyperparameters=specs,
        num_inducing=estimator.num_inducing,
        batch_size=estimator.batch_size,
        optimizer=estimator.optimizer,
        objective=estimator.objective,
        inference=estimator.inference,
        max_iter=estimator.max_iter,
        learning_rate=estimator.learning_rate,
        num_restarts=_num_restarts(estimator),
        seed=check_seed(estimator.random_state),
        device=check_device(estimator.device),
        dtype=_DTYPES[estimator.dtype],
        verbose=bool(estimator.verbose),
        callbacks=tuple(estimator.callbacks),
        checkpoint=estimator.checkpoint,
    )
