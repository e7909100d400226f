"""What all estimators share: options, the fit, saving, and the predictions that need no more than a model.

References
----------
Buitinck, L. et al. (2013). API design for machine learning software: experiences from the scikit-learn
project.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from gpvi.estimators.building import LikelihoodBuilder, build_likelihood
from gpvi.estimators.coresets import keep_coreset
from gpvi.estimators.fitting import TrainingData, fit_model
from gpvi.estimators.functions import FunctionSamples
from gpvi.estimators.hyperparameters import HyperparameterSpec, check_hyperparameters
from gpvi.estimators.inputs import InputColumns, learn_columns
from gpvi.estimators.model import FittedModel
from gpvi.estimators.preparation import (
    check_data,
    check_kind,
    check_options,
    fit_options,
    standardizers,
    target_scale,
    usable_rows,
)
from gpvi.estimators.reporting import FitSummary, summarize
from gpvi.estimators.saving import fitted_names, load_estimator, save_estimator
from gpvi.estimators.scaling import Standardizer
from gpvi.estimators.units import list_hyperparameters
from gpvi.estimators.validation import check_integer, check_seed, row_extras, row_values
from gpvi.inference import Callback

__all__ = ["GaussianProcessEstimator"]


class GaussianProcessEstimator(BaseEstimator, ABC):
    """Base class of the estimators; see :class:`GPRegressor` for the options.

    Parameters
    ----------
    kernel, ard, categorical_features : object
        The kernel.
    mean, likelihood : object
        Prior mean, and distribution of y given f.
    approximation, num_inducing : object
        How f is approximated.
    standardize : bool
        Whether data are standardised inside.
    hyperparameters : dict
        Fixed values, starting values, bounds, priors.
    objective, inference, optimizer, max_iter, batch_size, learning_rate, num_restarts : object
        The fit.
    allow_missing_targets : bool
        Whether y may hold NaN.
    random_state, device, dtype, verbose, callbacks, checkpoint : object
        How the fit runs.
    """

    def __init__(
        self,
        kernel: Any = "matern52",
        *,
        ard: bool = True,
        categorical_features: Any = "from_dtype",
        mean: Any = "constant",
        likelihood: Any = "auto",
        approximation: Any = "auto",
        num_inducing: int | None = None,
        standardize: bool = True,
        hyperparameters: Mapping[str, HyperparameterSpec] | None = None,
        objective: str = "auto",
        inference: str = "cvi",
        optimizer: str | None = "auto",
        max_iter: int = 100,
        batch_size: int | None = None,
        learning_rate: float = 0.03,
        num_restarts: int = 0,
        allow_missing_targets: bool = False,
        random_state: Any = None,
        device: Any = "cpu",
        dtype: str = "float64",
        verbose: bool = False,
        callbacks: Sequence[Callback] = (),
        checkpoint: str | os.PathLike | None = None,
    ) -> None:
        self.kernel = kernel
        self.ard = ard
        self.categorical_features = categorical_features
        self.mean = mean
        self.likelihood = likelihood
        self.approximation = approximation
        self.num_inducing = num_inducing
        self.standardize = standardize
        self.hyperparameters = hyperparameters
        self.objective = objective
        self.inference = inference
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.num_restarts: int | None = num_restarts
        self.allow_missing_targets = allow_missing_targets
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.verbose = verbose
        self.callbacks = callbacks
        self.checkpoint = checkpoint

    @property
    def _standardizes_targets(self) -> bool:
        """Whether targets are standardised; only real numbers can be."""
        return False

    #: What is predicted: "number", "count" or "label".
    _kind = "number"

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        noise_variance: Any = None,
        exposure: Any = None,
        trials: Any = None,
        censored: Any = None,
    ) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array-like or data frame, shape [N, D]
            Inputs.
        y : array-like, shape [N]
            Targets.
        sample_weight : array-like, shape [N], optional
            Non-negative; a row of weight w counts like w equal rows, one of weight 0 is left out.
        noise_variance : array-like, shape [N], optional
            Known variance of every measurement, added to the learned one (Gaussian likelihood).
        exposure : array-like, shape [N], optional
            Time, area or population behind every count.
        trials : array-like, shape [N], optional
            Whole numbers of which the counts are successes (binomial likelihood); 1 if left out.
        censored : array-like, shape [N], optional
            1 where the true value is above y (as in survival times), -1 where it is below, 0 where it is y.

        Returns
        -------
        self
            Fitted; as it was before if anything is raised.

        Raises
        ------
        InputError
            For data or options that cannot be used.
        UnsupportedError
            For options that do not work together.
        NumericalError
            If every start breaks down numerically.
        """
        before = dict(self.__dict__)
        extras = self._given(noise_variance, exposure, trials, censored)
        try:
            return self._fit(X, y, sample_weight, extras)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def log_predictive_density(
        self,
        X: Any,
        y: Any,
        *,
        noise_variance: Any = None,
        exposure: Any = None,
        trials: Any = None,
        censored: Any = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Log density (or probability) of new observations under the prediction.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        y : array-like, shape [N]
            Observations; NaN gives NaN.
        noise_variance, exposure, trials, censored : array-like, shape [N], optional
            Of the observations.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        ndarray, shape [N]
            In nats, over the units of y.
        """
        array = self._new_inputs(X)
        rows = self._rows(self._given(noise_variance, exposure, trials, censored), len(array))
        targets, pieces = self._encoded(y, len(array)), self._pieces(batch_size)
        return self._model_at(array).log_density(array, targets, rows, pieces)

    def sample_y(
        self,
        X: Any,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        noise_variance: Any = None,
        exposure: Any = None,
        trials: Any = None,
    ) -> np.ndarray:
        """Joint samples of new observations; the cost is cubic in the number of rows.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        n_samples : int
            Number of samples S.
        random_state : int, RandomState or None
            Seeds them.
        noise_variance, exposure, trials : array-like, shape [N], optional
            Of the observations.

        Returns
        -------
        ndarray, shape [N, S]
            In the units of y.
        """
        array = self._new_inputs(X)
        rows = self._rows(self._given(noise_variance, exposure, trials), len(array))
        size = check_integer("n_samples", n_samples, 1)
        model = self._model_at(None)
        return self._decoded(model.samples(array, size, rows, _generator(random_state)).T)

    def sample_functions(
        self, n_functions: int = 1, random_state: Any = None, *, num_features: int = 2_000
    ) -> FunctionSamples:
        """Functions drawn from the posterior, which can be evaluated anywhere, again and again.

        The prior part is made of random features, the update by the data is exact (decoupled sampling of
        Wilson et al. 2020).

        Parameters
        ----------
        n_functions : int
            Number of functions S.
        random_state : int, RandomState or None
            Seeds them.
        num_features : int
            Random features of the prior part; its error shrinks with their square root.

        Returns
        -------
        FunctionSamples
            Callable: inputs [N, D] to values of f, shape [N, S], in the units of y (of the latent function
            for counts and classes).

        Raises
        ------
        UnsupportedError
            For kernels without random features (white noise, or kernels of your own).
        """
        check_is_fitted(self, "posterior_")
        size = check_integer("n_functions", n_functions, 1)
        features = check_integer("num_features", num_features, 1)
        model = self._model_at(None)
        paths = model.paths(size, features, _generator(random_state))
        like = model.targets.new_empty(0)
        return FunctionSamples(paths, self._columns, model.x_map, model.y_map, like)

    def summary(self) -> FitSummary:
        """What was fitted and how: approximation, objective, jitter, hyperparameters, warnings.

        Returns
        -------
        FitSummary
            ``print`` it, or read its fields.
        """
        check_is_fitted(self, "posterior_")
        return self._summary

    def save(self, path: str | os.PathLike) -> None:
        """Write the fitted estimator to a file, without pickle.

        Callbacks are not saved, nor a ``random_state`` that is not a number.

        Parameters
        ----------
        path : path-like
            Of the file, which is replaced as a whole if it exists.

        Raises
        ------
        ModelFileError
            If the estimator holds something that cannot be saved, such as a kernel of an unregistered
            class.
        """
        check_is_fitted(self, "posterior_")
        save_estimator(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike, *, device: Any = "cpu") -> Self:
        """Read an estimator that :meth:`save` wrote; nothing in the file is executed.

        Parameters
        ----------
        path : path-like
            Of the file.
        device : str or torch.device
            Where to compute.

        Returns
        -------
        estimator
            Predicts as the saved one.

        Raises
        ------
        ModelFileError
            If the file is damaged, of a newer version, of another estimator, or needs an unknown class.
        """
        return load_estimator(cls, path, device)

    def _fit(self, X: Any, y: Any, sample_weight: Any, extras: Mapping[str, Any]) -> Self:
        for name in fitted_names(self):
            delattr(self, name)
        check_options(self)
        specs = check_hyperparameters(self.hyperparameters)
        data = self._training_data(X, y, sample_weight, extras)
        scale = target_scale(data) if self._standardizes_targets and not self.standardize else 1.0
        likelihood = build_likelihood(self.likelihood, self._likelihoods(), scale)
        check_kind(likelihood, self._kind, len(getattr(self, "classes_", ())))
        x_map, y_map = self._maps(data)
        check_data(likelihood, data, y_map)
        options = fit_options(self, likelihood, x_map, y_map, scale, specs)
        outcome = fit_model(data, options)
        self._columns, self._model = data.columns, outcome.model
        self.posterior_ = outcome.model.posterior
        self.kernel_ = outcome.process.kernel
        self.likelihood_ = outcome.model.likelihood
        self.approximation_ = outcome.choice.approximation
        self.elbo_, self.history_ = outcome.objective, outcome.history
        self.n_iter_ = max(1, outcome.result.num_iterations)
        target = "y" if self._standardizes_targets else "f"
        parameters = list_hyperparameters(outcome.process, self.likelihood_, x_map, y_map, target)
        self._summary = summarize(
            type(self).__name__, outcome, parameters, data.columns, bool(self.standardize)
        )
        keep_coreset(self, outcome.model)
        return self

    def _training_data(
        self, X: Any, y: Any, sample_weight: Any, extras: Mapping[str, Any]
    ) -> TrainingData:
        columns, array = self._learn_columns(X, y)
        targets, observed = self._targets(y, len(array))
        name = type(self).__name__
        weights = row_values(sample_weight, len(array), "sample_weight", name, positive=False)
        rows = self._rows(extras, len(array))
        used = usable_rows(observed, weights, name)
        return TrainingData(
            array[used],
            self._learn_targets(targets[used]),
            None if weights is None else weights[used],
            {key: values[used] for key, values in rows.items()},
            used,
            columns.within(array[used]),
        )

    def _learn_columns(self, X: Any, y: Any) -> tuple[InputColumns, np.ndarray]:
        """What there is to know about the inputs, and their numbers [N, D]."""
        return learn_columns(self, X, y, self.categorical_features)

    def _maps(self, data: TrainingData) -> tuple[Standardizer, Standardizer]:
        """Of inputs and targets to the units of the fit."""
        return standardizers(
            data,
            standardize=bool(self.standardize),
            common_scale=not self.ard,
            targets=self._standardizes_targets,
        )

    def _prior_mean(self) -> Any:
        """The prior mean that is meant by the option."""
        return self.mean

    def _model_at(self, array: np.ndarray | None) -> FittedModel:
        """What predicts moments at inputs [N, D], or everything (None)."""
        return self._model

    @staticmethod
    def _given(
        noise: Any, exposure: Any, trials: Any = None, censored: Any = None
    ) -> dict[str, Any]:
        return dict(noise_variance=noise, exposure=exposure, trials=trials, censored=censored)

    def _rows(self, given: Mapping[str, Any], num_rows: int) -> dict[str, np.ndarray]:
        return row_extras(given, num_rows, type(self).__name__)

    def _new_inputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "posterior_")
        array = self._columns.encode(self, X)
        self._columns.warn_if_far(array)
        return array

    def _pieces(self, size: Any) -> int | None:
        return None if size is None else check_integer("batch_size", size, 1)

    @abstractmethod
    def _likelihoods(self) -> Mapping[str, LikelihoodBuilder]:
        """Likelihoods that have a name here."""

    @abstractmethod
    def _targets(self, y: Any, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Checked targets in their own units, and which rows have one."""

    def _learn_targets(self, targets: np.ndarray) -> np.ndarray:
        """Numbers for the likelihood, from the targets of the rows that are fitted."""
        return targets

    @abstractmethod
    def _encoded(self, y: Any, num_rows: int) -> np.ndarray:
        """Numbers for the likelihood, from new targets."""

    def _decoded(self, targets: np.ndarray) -> np.ndarray:
        """Targets in the user's coding, from numbers of the likelihood."""
        return targets

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _generator(random_state: Any) -> torch.Generator:
    return torch.Generator().manual_seed(check_seed(random_state))
