"""Predictions that regression and count estimators share: moments, intervals, quantiles."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted

from gpvi.estimators.base import GaussianProcessEstimator
from gpvi.estimators.reporting import LeaveOneOut, leave_one_out
from gpvi.estimators.targets import scored_weights, target_values
from gpvi.estimators.validation import check_levels, check_number
from gpvi.exceptions import InputError

__all__ = ["RegressionEstimator"]


class RegressionEstimator(GaussianProcessEstimator):
    """Base class of estimators with numeric targets; see :class:`GPRegressor` for the options."""

    def predict(
        self,
        X: Any,
        return_std: bool = False,
        return_cov: bool = False,
        *,
        latent: bool = False,
        noise_variance: Any = None,
        exposure: Any = None,
        trials: Any = None,
        batch_size: int | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict new observations, or the latent function behind them.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        return_std : bool
            Whether to return standard deviations: of a new observation, noise included.
        return_cov : bool
            Whether to return the joint covariance instead.
        latent : bool
            Predict f instead of y: without noise, and for counts on the scale of the link.
        noise_variance, exposure, trials : array-like, shape [N], optional
            Of the new observations; no known noise, and an exposure of 1 (one trial), if left out.
        batch_size : int, optional
            Rows at a time (4,096, or 65,536 in state space, if left out); a covariance is computed at once.

        Returns
        -------
        mean : ndarray, shape [N]
            Predictive means, in the units of y.
        std : ndarray, shape [N]
            Only if ``return_std``.
        covariance : ndarray, shape [N, N]
            Only if ``return_cov``.

        Raises
        ------
        InputError
            For inputs that do not fit those of the fit.
        """
        if return_std and return_cov:
            raise InputError("return_std and return_cov are both True; ask for one of them.")
        array = self._new_inputs(X)
        given = self._given(noise_variance, exposure, trials)
        rows = self._rows(given, len(array))
        model, pieces = self._model_at(None if return_cov else array), self._pieces(batch_size)
        if latent and rows:
            named = " and ".join(name for name, values in given.items() if values is not None)
            raise InputError(f"latent=True and {named}: f has no such thing; leave it out.")
        if return_cov:
            return model.latent_covariance(array) if latent else model.covariance(array, rows)
        mean, variance = (
            model.latent(array, pieces) if latent else model.moments(array, rows, pieces)
        )
        return (mean, np.sqrt(variance)) if return_std else mean

    def predict_quantiles(
        self,
        X: Any,
        levels: Sequence[float] = (0.025, 0.5, 0.975),
        *,
        noise_variance: Any = None,
        exposure: Any = None,
        trials: Any = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Quantiles of new observations; for counts the smallest integer that reaches the level.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        levels : sequence of float
            Q probabilities strictly between 0 and 1.
        noise_variance, exposure, trials : array-like, shape [N], optional
            Of the new observations.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        ndarray, shape [N, Q]
            In the units of y.
        """
        array = self._new_inputs(X)
        rows = self._rows(self._given(noise_variance, exposure, trials), len(array))
        model, pieces = self._model_at(array), self._pieces(batch_size)
        return model.quantiles(array, check_levels(levels), rows, pieces).T

    def predict_interval(
        self,
        X: Any,
        coverage: float = 0.95,
        *,
        noise_variance: Any = None,
        exposure: Any = None,
        trials: Any = None,
        batch_size: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Central interval that a new observation falls into with a given probability.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        coverage : float
            Probability, strictly between 0 and 1 (at least that, for counts).
        noise_variance, exposure, trials : array-like, shape [N], optional
            Of the new observations.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        lower, upper : ndarray, shape [N]
            In the units of y.
        """
        tail = 0.5 * (1.0 - check_number("coverage", coverage, 0.0, 1.0))
        quantiles = self.predict_quantiles(
            X,
            (tail, 1.0 - tail),
            noise_variance=noise_variance,
            exposure=exposure,
            trials=trials,
            batch_size=batch_size,
        )
        return quantiles[:, 0], quantiles[:, 1]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Fraction of the variance explained by the predicted means, :math:`R^2`; 1 is best.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        y : array-like, shape [N]
            Targets; rows without one are left out with ``allow_missing_targets``.
        sample_weight : array-like, shape [N], optional
            Row weights.

        Returns
        -------
        float
            1 minus the ratio of the squared errors of the prediction and of the mean of y.

        Raises
        ------
        InputError
            For targets that the fit would refuse.
        """
        mean = self.predict(X)
        assert isinstance(mean, np.ndarray)
        values, known = self._targets(y, len(mean))
        weights = scored_weights(sample_weight, known, type(self).__name__)
        return float(r2_score(values[known], mean[known], sample_weight=weights))

    def leave_one_out(self) -> LeaveOneOut:
        """Predict every observation of the fit from all the others, without fitting again.

        In closed form for exact Gaussian regression; with other likelihoods and approximations one site is
        taken away and the others stay. Hyperparameters are those of the fit in any case. A row with a weight
        is left out with all its repeats.

        Returns
        -------
        LeaveOneOut
            Mean, standard deviation and log density of every observation, in the units of y.

        Raises
        ------
        UnsupportedError
            After a minibatch fit.

        References
        ----------
        Rasmussen, C. E. & Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, section 5.4.2.
        """
        check_is_fitted(self, "posterior_")
        return leave_one_out(self._model_at(None), type(self).__name__)

    def _targets(self, y: Any, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        name = type(self).__name__
        values = target_values(y, num_rows, name, bool(self.allow_missing_targets))
        return values, ~np.isnan(values)

    def _encoded(self, y: Any, num_rows: int) -> np.ndarray:
        return target_values(y, num_rows, type(self).__name__, allow_missing=True)
