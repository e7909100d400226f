"""scikit-learn estimators."""

from gpvi.estimators.classifier import GPClassifier
from gpvi.estimators.coresets import DataCoreset
from gpvi.estimators.counts import GPCountRegressor
from gpvi.estimators.forecasting import Component, Decomposition, Forecast
from gpvi.estimators.functions import FunctionSamples
from gpvi.estimators.hyperparameters import Fixed, Free
from gpvi.estimators.regressor import GPRegressor
from gpvi.estimators.reporting import (
    FitSummary,
    HyperparameterRow,
    LeaveOneOut,
    LeaveOneOutClasses,
)
from gpvi.estimators.scaling import Standardizer
from gpvi.estimators.time_series import TimeSeriesGP

__all__ = [
    "Component",
    "DataCoreset",
    "Decomposition",
    "FitSummary",
    "Fixed",
    "Forecast",
    "Free",
    "FunctionSamples",
    "GPClassifier",
    "GPCountRegressor",
    "GPRegressor",
    "HyperparameterRow",
    "LeaveOneOut",
    "LeaveOneOutClasses",
    "Standardizer",
    "TimeSeriesGP",
]
