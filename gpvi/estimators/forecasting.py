"""What a time series estimator says about times: forecasts, and the parts of a sum of kernels."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpvi._optional import import_optional
from gpvi.approximations import StateSpacePosterior
from gpvi.estimators.model import FittedModel

__all__ = ["Component", "Decomposition", "Forecast", "decompose"]


@dataclass(frozen=True, eq=False)
class Forecast:
    """Prediction of new observations at coming times.

    Parameters
    ----------
    times : ndarray or pandas.DatetimeIndex, shape [H]
        Stamps, as those of the fit.
    mean, std : ndarray, shape [H]
        Of an observation, in the units of y.
    lower, upper : ndarray, shape [H]
        Ends of the central interval.
    coverage : float
        Its probability.
    """

    times: Any
    mean: np.ndarray
    std: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    coverage: float

    def __len__(self) -> int:
        """Number of times H."""
        return len(self.mean)

    def to_frame(self) -> Any:
        """The forecast as a data frame (needs pandas).

        Returns
        -------
        pandas.DataFrame
            Columns mean, std, lower and upper; times as its index.
        """
        columns = {name: getattr(self, name) for name in ("mean", "std", "lower", "upper")}
        return _frame(columns, self.times, "Forecast.to_frame")


@dataclass(frozen=True, eq=False)
class Component:
    """One term of a sum of kernels.

    Parameters
    ----------
    mean, std : ndarray, shape [N]
        In the units of y (of the latent function, for counts).
    """

    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Posterior of every additive term of a kernel.

    The means of all terms and the prior mean add up to the mean of the latent function. Their
    uncertainties do not: what one term does not explain another one must, so that terms are correlated.

    Parameters
    ----------
    times : ndarray or pandas.DatetimeIndex, shape [N]
        Stamps, as those of the fit.
    components : dict of str to Component
        By the terms of the kernel expression.
    prior_mean : ndarray, shape [N]
        In the units of y (of the latent function, for counts).
    """

    times: Any
    components: dict[str, Component]
    prior_mean: np.ndarray

    def __getitem__(self, name: str) -> Component:
        """A component by name."""
        return self.components[name]

    def to_frame(self) -> Any:
        """The decomposition as a data frame (needs pandas).

        Returns
        -------
        pandas.DataFrame
            Columns "prior mean", and for every term its name and its name with " std"; times as its
            index.
        """
        columns = {"prior mean": self.prior_mean}
        for name, part in self.components.items():
            columns |= {name: part.mean, f"{name} std": part.std}
        return _frame(columns, self.times, "Decomposition.to_frame")


def decompose(
    model: FittedModel, array: np.ndarray, times: Any, names: tuple[str, ...] | None
) -> Decomposition:
    """The terms of a fitted state-space model.

    Parameters
    ----------
    model : FittedModel
        With a posterior in state space.
    array : ndarray, shape [N, D]
        Inputs.
    times : object
        The same as the user sees them.
    names : tuple of str, optional
        Of the terms, in order; those of the state-space form if left out.

    Returns
    -------
    Decomposition
        In the units of the data.
    """
    posterior, inputs = model.posterior, model.inputs(array)
    assert isinstance(posterior, StateSpacePosterior)
    found = posterior.components(inputs)
    scale = float(model.y_map.scale)
    parts = {}
    for name, moments in zip(names or tuple(found), found.values(), strict=True):
        mean = moments.mean.double().cpu().numpy() * scale
        parts[name] = Component(mean, moments.variance.double().cpu().numpy() ** 0.5 * scale)
    mean = posterior.prior.gp.mean(inputs).detach().double().cpu().numpy()
    return Decomposition(times, parts, model.y_map.inverse(mean))


def _frame(columns: dict[str, np.ndarray], times: Any, purpose: str) -> Any:
    pandas = import_optional("pandas", purpose, "pip install pandas")
    return pandas.DataFrame(columns, index=pandas.Index(times, name="time"))
