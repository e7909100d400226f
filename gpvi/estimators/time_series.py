"""Structural time series as Gaussian processes: trends, seasons and a rest, in linear time."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Self

import gpytorch
import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted

from gpvi.estimators.building import LikelihoodBuilder
from gpvi.estimators.fitting import TrainingData
from gpvi.estimators.following import Follower, none_observed
from gpvi.estimators.forecasting import Decomposition, Forecast, decompose
from gpvi.estimators.hyperparameters import HyperparameterSpec
from gpvi.estimators.inputs import InputColumns
from gpvi.estimators.model import FittedModel
from gpvi.estimators.regression import RegressionEstimator
from gpvi.estimators.regressor import gaussian, student_t
from gpvi.estimators.scaling import Standardizer
from gpvi.estimators.stamps import series_rows
from gpvi.estimators.time_axis import TimeAxis, TimeColumns
from gpvi.exceptions import InputError
from gpvi.inference import Callback
from gpvi.kernels import IntegratedWienerKernel
from gpvi.kernels.parsing import kernel_terms
from gpvi.likelihoods import PoissonLikelihood, as_likelihood
from gpvi.likelihoods.moments import is_discrete

__all__ = ["TimeSeriesGP"]


class TimeSeriesGP(RegressorMixin, RegressionEstimator):
    """A Gaussian process over time: fit, forecast, decompose, and go on as new observations come.

    Inference is in state space: exact for the kernels below and linear in the number of stamps, which
    may be irregular, repeated and in any order. ``t`` are dates (pandas, NumPy, Python) or numbers; y may
    hold NaN where nothing was observed.

    Parameters
    ----------
    kernel : str or gpytorch kernel
        Terms joined by ``+`` and ``*``. ``trend`` is a local linear trend (an integrated random walk;
        ``trend(0)`` a random walk); ``season(365.25)`` a pattern that repeats and is zero on average,
        ``quasi_season(365.25)`` one that drifts; ``cosine(period)`` a sine wave; ``hida(order, period)``
        waves that come and go; ``matern12``, ``matern32``, ``matern52``, ``matern72``, ``linear`` and
        ``constant`` as everywhere; ``rbf`` is approximated. Times in it are in ``time_unit``; periods are
        fixed, unless ``learn=True`` stands behind them. An object is copied, and its lengthscales are in
        ``time_unit`` too, counted from the first date (from 0 for numbers).
    time_unit : {"auto", "us", "ms", "s", "min", "h", "D", "W", "Y"}
        Unit of time for dates; "auto" is days. Numbers have a unit already. A year has 365.25 days.
    mean : {"auto", "constant", "zero"} or gpytorch mean
        Prior mean. "auto" is a learned constant, or the average of y where the kernel is an expression with
        a trend, which has a level of its own.
    likelihood : {"auto", "gaussian", "student_t", "poisson"} or a likelihood
        "auto" is "gaussian". An object is copied.
    standardize : bool
        Standardise time and y internally; everything reported is in the units of the data.
    hyperparameters : dict, optional
        Control by name, as for :class:`GPRegressor`.
    optimizer : {"auto", "lbfgs", "adam"} or None
        None keeps all hyperparameters at their starting values.
    max_iter : int
        Iterations after the warm start.
    learning_rate : float
        Of Adam.
    num_restarts : int, optional
        Further fits from starting values that are moved at random; the best is kept. None is one (none
        with ``optimizer=None``): sums of trends, seasons and the rest have several optima, and an
        evaluation is cheap.
    random_state : int, RandomState or None
        Seeds all randomness of the fit.
    device : str or torch.device
        Where to compute.
    dtype : {"float64", "float32"}
        Precision; float64 is recommended.
    verbose : bool
        Show a progress bar, where standard error is a terminal.
    callbacks : sequence of callable
        Called with every record of the fit; returning True stops it.
    checkpoint : path-like, optional
        File from which a fit that was killed goes on; needs an integer ``random_state``.

    Attributes
    ----------
    posterior_ : StateSpacePosterior
        In standardised units, of the rows of the fit (and of those of :meth:`update` once something about
        the past was asked for).
    kernel_, likelihood_, approximation_, elbo_, history_, n_iter_ : object
        As for :class:`GPRegressor`.

    Examples
    --------
    >>> import numpy as np
    >>> t = np.arange(48.0)
    >>> model = TimeSeriesGP("trend + season(12)", random_state=0)
    >>> model = model.fit(t, 0.1 * t + np.sin(2 * np.pi * t / 12))
    >>> model.forecast(3).mean.round(1)
    array([4.8, 5.4, 5.9])
    >>> list(model.decompose().components)
    ['trend', 'season(12)']
    """

    # What the estimators share reads these options, of which there is one choice here.
    ard = True
    categorical_features = None
    approximation = "state_space"
    num_inducing = None
    batch_size = None
    objective = "elbo"
    inference = "cvi"
    allow_missing_targets = True
    restarts_once = True

    # Rows that came after the fit.
    _follower: Follower | None = None

    def __init__(
        self,
        kernel: Any = "trend + matern32",
        *,
        time_unit: str = "auto",
        mean: Any = "auto",
        likelihood: Any = "auto",
        standardize: bool = True,
        hyperparameters: Mapping[str, HyperparameterSpec] | None = None,
        optimizer: str | None = "auto",
        max_iter: int = 100,
        learning_rate: float = 0.03,
        num_restarts: int | None = None,
        random_state: Any = None,
        device: Any = "cpu",
        dtype: str = "float64",
        verbose: bool = False,
        callbacks: Sequence[Callback] = (),
        checkpoint: str | os.PathLike | None = None,
    ) -> None:
        self.kernel = kernel
        self.time_unit = time_unit
        self.mean = mean
        self.likelihood = likelihood
        self.standardize = standardize
        self.hyperparameters = hyperparameters
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.num_restarts = num_restarts
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.verbose = verbose
        self.callbacks = callbacks
        self.checkpoint = checkpoint

    score = RegressionEstimator.score

    def fit(  # type: ignore[override]  # stamps in place of X, and fewer extras
        self,
        t: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        noise_variance: Any = None,
        exposure: Any = None,
    ) -> Self:
        """Fit the model.

        Parameters
        ----------
        t : array-like, shape [N] or [N, 1], or a pandas Series
            Dates or numbers, in any order; without y, a series whose index they are.
        y : array-like, shape [N], optional
            Targets, NaN where nothing was observed; the values of the series if left out.
        sample_weight : array-like, shape [N], optional
            Non-negative; a row of weight w counts like w equal rows.
        noise_variance : array-like, shape [N], optional
            Known variance of every measurement, added to the learned one (Gaussian likelihood).
        exposure : array-like, shape [N], optional
            Time, area or population behind every count.

        Returns
        -------
        self
            Fitted; as it was before if anything is raised.

        Raises
        ------
        InputError
            For data or options that cannot be used.
        UnsupportedError
            For kernels without a state-space form.
        """
        t, y = series_rows(t, y, type(self).__name__)
        super().fit(t, y, sample_weight, noise_variance=noise_variance, exposure=exposure)
        self._follower = None
        return self

    def update(
        self, t: Any, y: Any = None, *, noise_variance: Any = None, exposure: Any = None
    ) -> Self:
        """Go on with new observations, at a cost that does not depend on how many there were.

        Hyperparameters stay. With Gaussian noise the result equals a fit to all rows at these
        hyperparameters; for other likelihoods every new row is taken in given the rows before it, which
        later ones do not revise. Forecasts use the new rows at once; what concerns the past (predictions
        there, ``decompose``, ``sample_y``, ``leave_one_out``) takes one pass over all rows when it is next
        asked for.

        Parameters
        ----------
        t : array-like, shape [n], or a pandas Series
            Stamps, none before the last one so far.
        y : array-like, shape [n], optional
            Targets, NaN where nothing was observed, be it everywhere; the values of the series if left out.
        noise_variance, exposure : array-like, shape [n], optional
            Of the new rows, if the fit had them.

        Returns
        -------
        self
            Updated; as it was before if anything is raised.

        Raises
        ------
        InputError
            For stamps before the last one, and rows that do not fit those of the fit.
        """
        check_is_fitted(self, "posterior_")
        name = type(self).__name__
        t, y = series_rows(t, y, name)
        array = self._columns.encode(self, t)
        last = float(self._columns.high[0])
        if array.min() < last:
            axis = self._axis
            raise InputError(
                f"{name}.update got {axis.show(float(array.min()))}, which is before the last stamp "
                f"{axis.show(last)}; only later rows can follow. Call fit with all rows."
            )
        order = np.argsort(array[:, 0], kind="stable")
        size = len(array)
        targets = np.full(size, np.nan) if none_observed(y, size) else self._encoded(y, size)
        rows = self._rows(self._given(noise_variance, exposure), size)
        follower = self._follower or Follower(self._model)
        follower.update(
            array[order], targets[order], {key: values[order] for key, values in rows.items()}
        )
        self._follower = follower
        self._columns = replace(self._columns, high=array.max(0))
        return self

    def forecast(
        self,
        horizon: Any,
        *,
        coverage: float = 0.95,
        noise_variance: Any = None,
        exposure: Any = None,
    ) -> Forecast:
        """Predict new observations after the last stamp.

        Parameters
        ----------
        horizon : int, length of time, or stamps
            How many steps of the median spacing (of the frequency, for a regular pandas index), how long
            (a float in ``time_unit``, or a timedelta), or the stamps themselves, all after the last one.
        coverage : float
            Probability of the central interval.
        noise_variance, exposure : array-like, shape [H], optional
            Of the new observations.

        Returns
        -------
        Forecast
            Times, means, standard deviations and intervals; ``to_frame`` makes a pandas frame.

        Raises
        ------
        InputError
            For a horizon without a step, one too far away, and stamps up to the last one.
        """
        check_is_fitted(self, "posterior_")
        columns, name = self._columns, type(self).__name__
        numbers = self._axis.ahead(float(columns.high[0]), horizon, name)
        times = self._axis.stamps(numbers)
        extras = {"noise_variance": noise_variance, "exposure": exposure}
        mean, std = self.predict(times, return_std=True, **extras)
        lower, upper = self.predict_interval(times, coverage, **extras)
        return Forecast(times, mean, std, lower, upper, float(coverage))

    def decompose(self, t: Any = None) -> Decomposition:
        """The posterior of every additive term of the kernel.

        Parameters
        ----------
        t : array-like, shape [N], optional
            Where; the stamps of all rows in order of time if left out.

        Returns
        -------
        Decomposition
            Means and standard deviations by term, in the units of y (of the latent function for counts).
        """
        check_is_fitted(self, "posterior_")
        model = self._model_at(None)
        if t is None:
            array = self._observed(model)
            array = np.unique(array)[:, None]
        else:
            array = self._new_inputs(t)
        names = kernel_terms(self.kernel) if isinstance(self.kernel, str) else None
        return decompose(model, array, self._axis.stamps(array[:, 0]), names)

    def plot(self, horizon: Any = None, **options: Any) -> Any:
        """Draw history, prediction and forecast with their band (needs matplotlib).

        Parameters
        ----------
        horizon : int, length of time, or stamps, optional
            As for :meth:`forecast`; no forecast if left out.
        **options : object
            Of :meth:`gpvi.plotting.TimeSeriesDisplay.from_estimator`.

        Returns
        -------
        TimeSeriesDisplay
            With the axes as ``ax_``.
        """
        # Pictures stand above estimators, so that they are looked up when they are asked for.
        display = import_module("gpvi.plotting").TimeSeriesDisplay
        return display.from_estimator(self, horizon, **options)

    def save(self, path: str | os.PathLike) -> None:
        """Write the fitted estimator to a file, without pickle; see :meth:`GPRegressor.save`.

        Parameters
        ----------
        path : path-like
            Of the file, which is replaced as a whole if it exists.
        """
        check_is_fitted(self, "posterior_")
        self._model_at(None)
        super().save(path)

    def history(self) -> tuple[Any, np.ndarray]:
        """The observations so far, in order of time.

        Returns
        -------
        times : ndarray or pandas.DatetimeIndex, shape [N]
            Stamps of all rows with a target.
        y : ndarray, shape [N]
            Their targets.
        """
        check_is_fitted(self, "posterior_")
        model = self._model_at(None)
        numbers = self._observed(model)
        order = np.argsort(numbers, kind="stable")
        targets = model.y_map.inverse(model.targets.double().cpu().numpy())
        return self._axis.stamps(numbers[order]), targets[order]

    @property
    def _axis(self) -> TimeAxis:
        assert isinstance(self._columns, TimeColumns)
        return self._columns.axis

    @property
    def _standardizes_targets(self) -> bool:
        """Whether targets are real numbers."""
        if isinstance(self.likelihood, gpytorch.likelihoods.Likelihood):
            model = as_likelihood(self.likelihood)
            shape = (2,) if model.num_latents == 1 else (2, model.num_latents)
            return not is_discrete(model.forward(torch.zeros(shape, dtype=torch.float64)))
        return bool(self.likelihood != "poisson")

    def _likelihoods(self) -> Mapping[str, LikelihoodBuilder]:
        return {
            "auto": gaussian,
            "gaussian": gaussian,
            "student_t": student_t,
            "poisson": lambda _: PoissonLikelihood(),
        }

    def _learn_columns(self, X: Any, y: Any) -> tuple[InputColumns, np.ndarray]:
        axis, numbers = TimeAxis.learn(X, self.time_unit, type(self).__name__)
        self.n_features_in_ = 1
        array = numbers[:, None]
        return TimeColumns(None, {}, array.min(0), array.max(0), axis), array

    def _maps(self, data: TrainingData) -> tuple[Standardizer, Standardizer]:
        x_map, y_map = super()._maps(data)
        # The lengthscales that a kernel object brings are those of time.
        return x_map if isinstance(self.kernel, str) else Standardizer.identity(1), y_map

    def _prior_mean(self) -> Any:
        if not (isinstance(self.mean, str) and self.mean == "auto"):
            return self.mean
        levelled = isinstance(self.kernel, str) and "trend" in self.kernel
        # Standardised targets are zero on average.
        return (
            "zero" if levelled and self.standardize and self._standardizes_targets else "constant"
        )

    def _new_inputs(self, X: Any) -> np.ndarray:
        array = super()._new_inputs(X)
        earliest = max(
            (
                part.origin * float(self._model.x_map.scale[0]) + float(self._model.x_map.offset[0])
                for part in self.kernel_.modules()
                if isinstance(part, IntegratedWienerKernel)
            ),
            default=-np.inf,
        )
        if array.min() < earliest:
            raise InputError(
                f"{type(self).__name__} got {self._axis.show(float(array.min()))}, and its trend begins "
                f"{self._axis.show(earliest)}, one length of the series before it; predict later stamps."
            )
        return array

    def _model_at(self, array: np.ndarray | None) -> FittedModel:
        if self._follower is None:
            return self._model
        if array is not None and self._follower.reaches(array):
            return self._follower.ahead
        if self._follower.has_rows:
            self._model = self._follower.whole()
            self.posterior_ = self._model.posterior
            self._follower = self._follower.going_on(self._model)
        return self._model

    def _observed(self, model: FittedModel) -> np.ndarray:
        """Stamps of the rows with a target, as numbers, in the order of the rows."""
        x = model.posterior.prior.x.double().cpu().numpy()
        return model.x_map.inverse(x)[:, 0]
