"""Gaussian process regression for counts with the scikit-learn interface."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import d2_tweedie_score
from sklearn.utils import Tags

from gpvi.estimators.building import LikelihoodBuilder
from gpvi.estimators.regression import RegressionEstimator
from gpvi.estimators.targets import scored_weights
from gpvi.estimators.validation import check_row_names
from gpvi.exceptions import InputError
from gpvi.likelihoods import (
    BinomialLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    ZeroInflatedLikelihood,
)

__all__ = ["GPCountRegressor"]


class GPCountRegressor(RegressorMixin, RegressionEstimator):
    """Gaussian process regression for counts.

    The model is ``y ~ Poisson(exposure * exp(f(x)))`` with ``f`` a Gaussian process, or another distribution
    of counts. Counts that are not whole numbers are accepted as quasi-likelihood, negative ones are refused.

    Parameters
    ----------
    kernel : str, gpytorch kernel or scikit-learn kernel
        Short names can be added and multiplied: "matern52 + linear". An object is copied. Trainable
        lengthscales start from the data; those with ``requires_grad`` off keep their values, which are
        those of standardised columns unless ``standardize=False``.
    ard : bool
        For kernels given as strings, one lengthscale per column; if False, one lengthscale, and X is
        scaled by one common factor.
    categorical_features : "from_dtype", list of names or positions, or None
        Columns to compare for equality only; "from_dtype" takes the categorical ones of a pandas or polars
        frame. A kernel given as a string is multiplied by a Hamming kernel over them.
    mean : {"constant", "zero"} or gpytorch mean
        Prior mean of the log rate (of the log odds for "binomial").
    likelihood : str or a likelihood
        "poisson" (which "auto" is); "negative_binomial", which learns a dispersion; "zero_inflated_poisson"
        and "zero_inflated_negative_binomial", which also learn a share of further zeros; or "binomial",
        successes out of ``trials`` with log odds f. An object, of gpvi or GPyTorch, is copied.
    approximation : str or Approximation
        "auto" is exact up to 1,170 rows. More rows: neighbours ("sic", a sparse inverse Cholesky factor) in
        at most three columns with a Matern kernel, else inducing points. With one numeric column and a kernel
        that has an exact state-space form it takes that above 292 rows (more for kernels of many states):
        the same in linear time. "state_space" also takes an RBF kernel, by a process of finite order. An
        object is copied; inducing inputs that it holds are in the units of X.
    num_inducing : int, optional
        Size of the basis: inducing points of "inducing" (512 if left out), "neighbor_inducing" (2,000) and of
        both blocks of "orthogonal" (512), of "full_scale" (100, with 20 neighbours), pseudo-points of
        "coreset" (100), units of "spherical" (128, for kernels such as "arc_cosine" and "zonal_matern52").
        Fewer if the data hold fewer distinct rows.
    standardize : bool
        Standardise X internally; counts stay as they are.
    hyperparameters : dict, optional
        Control by name, in the units of the data: ``{"noise": Fixed(0.1), "lengthscale":
        Free(initial=1.0, bounds=(0.1, 10.0), prior=...)}``, a gpytorch prior, or "dimension_scaled" for
        lengthscales. Names are those that ``summary()`` shows (without an index), or their last parts;
        where two match, the longer one counts.
    objective : {"auto", "tighter_elbo", "elbo", "ep", "laplace"}
        What is maximised (with the log densities of priors): for "cvi" the tightened bound, the plain one, or
        the energy of expectation propagation; for the other rules theirs. "auto" is the first.
    inference : {"cvi", "ep", "laplace"}
        Variational inference, expectation propagation or Laplace's approximation; the same for Gaussian
        noise. The last two need all rows at a time, the last an approximation that leaves nothing of f open.
    optimizer : {"auto", "lbfgs", "adam"} or None
        "auto" is L-BFGS on all rows and Adam on minibatches; None keeps all hyperparameters at their
        starting values.
    max_iter : int
        Iterations after the warm start, or minibatch steps.
    batch_size : int, optional
        Fit on minibatches of this many rows.
    learning_rate : float
        Of Adam.
    num_restarts : int
        Further fits from starting values that are moved at random; the best is kept.
    allow_missing_targets : bool
        Let NaN in y stand for a target that was not observed.
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
    posterior_ : Posterior
        Of the log rate (log odds), over standardised inputs.
    kernel_ : gpytorch.kernels.Kernel
        Fitted kernel, over standardised inputs.
    likelihood_ : gpytorch likelihood
        Fitted likelihood.
    approximation_ : Approximation
        What was used, over standardised inputs.
    coreset_ : DataCoreset
        Weighted points in the units of the data; with ``approximation="coreset"`` only.
    elbo_ : float
        Bound on the log evidence in total nats; the energy or Laplace's evidence with their objectives.
    history_ : list of FitRecord
        One record per objective evaluation.
    n_iter_ : int
        Iterations after the warm start, at least 1 as scikit-learn expects.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of str
        Names of the columns, if X had them.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.arange(20.0)[:, None]
    >>> y = np.round(10 + 8 * np.sin(X[:, 0] / 3))
    >>> model = GPCountRegressor(random_state=0).fit(X, y)
    >>> lower, upper = model.predict_interval(X, coverage=0.9)
    >>> bool(np.mean((lower <= y) & (y <= upper)) > 0.9)
    True
    """

    _kind = "count"

    def score(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        exposure: Any = None,
        trials: Any = None,
    ) -> float:
        """Fraction of the Poisson deviance explained, :math:`D^2`; 1 is best.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        y : array-like, shape [N]
            Counts; rows without one are left out with ``allow_missing_targets``.
        sample_weight : array-like, shape [N], optional
            Row weights.
        exposure, trials : array-like, shape [N], optional
            Of the counts; with it rates are compared, weighted by exposure (trials).

        Returns
        -------
        float
            1 minus the ratio of the deviances of the prediction and of one common rate.

        Raises
        ------
        InputError
            For counts that the fit would refuse.
        """
        rate, name = self.predict(X), type(self).__name__
        assert isinstance(rate, np.ndarray)
        values, known = self._targets(y, len(rate))
        weights = scored_weights(sample_weight, known, name)
        rows = self._rows(self._given(None, exposure, trials), len(values))
        check_row_names(self.likelihood_, set(rows), self._model.observation.row_arguments)
        counts, rate = values[known], rate[known]
        for exposed in rows.values():  # no likelihood takes both
            exposed = exposed[known]
            counts, weights = counts / exposed, exposed if weights is None else exposed * weights
        return float(d2_tweedie_score(counts, rate, sample_weight=weights, power=1))

    def _likelihoods(self) -> Mapping[str, LikelihoodBuilder]:
        return {
            "auto": lambda _: PoissonLikelihood(),
            "poisson": lambda _: PoissonLikelihood(),
            "negative_binomial": lambda _: NegativeBinomialLikelihood(),
            "zero_inflated_poisson": lambda _: ZeroInflatedLikelihood(PoissonLikelihood()),
            "zero_inflated_negative_binomial": lambda _: ZeroInflatedLikelihood(
                NegativeBinomialLikelihood()
            ),
            "binomial": lambda _: BinomialLikelihood(),
        }

    def _targets(self, y: Any, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        values, observed = super()._targets(y, num_rows)
        self._refuse_negative(values)
        return values, observed

    def _encoded(self, y: Any, num_rows: int) -> np.ndarray:
        values = super()._encoded(y, num_rows)
        self._refuse_negative(values)
        return values

    def _refuse_negative(self, values: np.ndarray) -> None:
        negative = values[values < 0]
        if len(negative):
            raise InputError(
                f"y of {type(self).__name__} holds {len(negative)} negative value(s) such as "
                f"{negative[0]:g}; counts are at least 0. Use GPRegressor for real numbers."
            )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags
