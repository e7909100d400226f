"""Errors and warnings of gpvi, each with its own class so that callers can tell them apart.

Every error says what was wrong, the offending value or shape, and what to do about it.
"""

from sklearn.exceptions import ConvergenceWarning as _SklearnConvergenceWarning

__all__ = [
    "AccuracyWarning",
    "ConvergenceWarning",
    "DataWarning",
    "EngineWarning",
    "ExtrapolationWarning",
    "GPVIError",
    "GPVIWarning",
    "InputError",
    "InputTypeError",
    "JitterWarning",
    "MissingDependencyError",
    "ModelFileError",
    "NotPositiveDefiniteError",
    "NumericalError",
    "PriorCollapseWarning",
    "UnsupportedError",
]


class GPVIError(Exception):
    """Base class of every error that gpvi raises on purpose."""


class InputError(GPVIError, ValueError):
    """An argument has a wrong value, type or shape."""


class InputTypeError(InputError, TypeError):
    """An argument is of a kind that cannot be used at all, such as a sparse matrix."""


class MissingDependencyError(GPVIError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class ModelFileError(GPVIError, ValueError):
    """A file is no saved model that can be read, or an object cannot be written to one."""


class UnsupportedError(GPVIError, NotImplementedError):
    """Two parts that are each fine do not work together; the message names both."""


class NumericalError(GPVIError, RuntimeError):
    """A computation left the range of floating-point numbers."""


class NotPositiveDefiniteError(NumericalError):
    """A matrix that must be positive definite is not, even after the whole jitter ladder."""


class GPVIWarning(UserWarning):
    """Base class of every warning that gpvi issues."""


class JitterWarning(GPVIWarning):
    """A factorisation needed more jitter than its documented default."""


class ConvergenceWarning(GPVIWarning, _SklearnConvergenceWarning):
    """An iteration stopped before its convergence test was met."""


class PriorCollapseWarning(GPVIWarning):
    """After a fit, q(f) is still practically the prior: nothing was learned from the data."""


class EngineWarning(GPVIWarning):
    """A compiled engine is not available; the slower tensor engine serves instead."""


class AccuracyWarning(GPVIWarning):
    """An approximation is used where it is known to be poor; the message says what else to try."""


class DataWarning(GPVIWarning):
    """The data allow less than was asked for; something else was done, which the message names."""


class ExtrapolationWarning(GPVIWarning):
    """Predictions lie far outside the inputs of the fit, where the prior speaks and not the data."""
