"""scikit-learn estimators."""

from gpvi.estimators.regressor import GPRegressor
from gpvi.estimators.scaling import Standardizer

__all__ = ["GPRegressor", "Standardizer"]
