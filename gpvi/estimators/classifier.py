"""Gaussian process classification with the scikit-learn interface."""

from collections.abc import Mapping
from typing import Any

import gpytorch
import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from gpvi.estimators.base import GaussianProcessEstimator
from gpvi.estimators.building import LikelihoodBuilder
from gpvi.estimators.reporting import LeaveOneOutClasses, leave_one_out_classes
from gpvi.estimators.targets import class_labels, own_type, scored_weights
from gpvi.estimators.validation import own_errors
from gpvi.exceptions import InputError
from gpvi.likelihoods import BernoulliLikelihood, OrdinalLikelihood, RobustMaxLikelihood

__all__ = ["GPClassifier"]


class GPClassifier(ClassifierMixin, GaussianProcessEstimator):
    """Gaussian process classification.

    Two classes: ``P(y = 1) = Phi(f(x))`` with ``f`` a Gaussian process. More classes: one latent function
    per class, which share the kernel and its hyperparameters, and a softmax; or, for classes in an order,
    one latent function and cut points.

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
        Prior mean of the latent functions.
    likelihood : {"auto", "probit", "logit", "softmax", "robust_max", "ordinal"} or a likelihood
        "auto" is "probit" for two classes and "softmax" for more. "robust_max" is for three or more classes
        with labels that may be wrong, "ordinal" for those in the order of ``classes_``, which is that of
        numbers or the alphabet: one latent function for all, and learned cut points. An object, of gpvi or
        GPyTorch, is copied; its classes are coded 0, 1, ...
    approximation : str or Approximation
        "auto" is exact up to 1,170 rows (fewer for more than two classes). More rows: neighbours ("sic", a
        sparse inverse Cholesky factor) in at most three columns with a Matern kernel, else inducing points.
        With one numeric column and a kernel that has an exact state-space form it takes that above 292 rows
        (more for kernels of many states): the same in linear time. "state_space" also takes an RBF kernel,
        by a process of finite order. An object is copied; inducing inputs that it holds are in the units
        of X.
    num_inducing : int, optional
        Size of the basis: inducing points of "inducing" (512 if left out), "neighbor_inducing" (2,000) and of
        both blocks of "orthogonal" (512), of "full_scale" (100, with 20 neighbours), pseudo-points of
        "coreset" (100), units of "spherical" (128, for kernels such as "arc_cosine" and "zonal_matern52").
        Fewer if the data hold fewer distinct rows.
    standardize : bool
        Standardise X internally.
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
        Let NaN or None in y stand for a label that was not observed.
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
    classes_ : ndarray, shape [C]
        Labels, sorted.
    posterior_ : Posterior
        Of the latent functions, over standardised inputs.
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
    >>> X = np.linspace(-2, 2, 30)[:, None]
    >>> model = GPClassifier(random_state=0).fit(X, np.where(X[:, 0] > 0, "yes", "no"))
    >>> model.predict(np.array([[-1.0], [1.0]])).tolist()
    ['no', 'yes']
    """

    _kind = "label"

    def predict(
        self,
        X: Any,
        return_std: bool = False,
        return_cov: bool = False,
        *,
        latent: bool = False,
        batch_size: int | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict labels, or the latent functions behind them.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        return_std : bool
            With ``latent``: whether to return standard deviations of f.
        return_cov : bool
            With ``latent``: whether to return the joint covariance of f instead.
        latent : bool
            Predict f instead of labels.
        batch_size : int, optional
            Rows at a time (4,096, or 65,536 in state space, if left out).

        Returns
        -------
        labels : ndarray, shape [N]
            The most probable class; with ``latent`` the mean of f, shape [N] or [N, C].
        std : ndarray, shape [N] or [N, C]
            Only if ``return_std``.
        covariance : ndarray, shape [N, N] or [C, N, N]
            Only if ``return_cov``.

        Raises
        ------
        InputError
            For inputs that do not fit those of the fit, and for a standard deviation of labels.
        """
        if not latent:
            if return_std or return_cov:
                raise InputError(
                    "return_std and return_cov need latent=True here: labels have no standard deviation; "
                    "predict_proba says how sure a label is."
                )
            probabilities = self.predict_proba(X, batch_size=batch_size)
            return self.classes_[probabilities.argmax(1)]
        if return_std and return_cov:
            raise InputError("return_std and return_cov are both True; ask for one of them.")
        array = self._new_inputs(X)
        if return_cov:
            mean, covariance = self._model.latent_covariance(array)
            return mean.T, covariance
        mean, variance = self._model.latent(array, self._pieces(batch_size))
        return (mean.T, np.sqrt(variance).T) if return_std else mean.T

    def predict_proba(self, X: Any, *, batch_size: int | None = None) -> np.ndarray:
        """Probability of every class, the uncertainty of f averaged over.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        batch_size : int, optional
            Rows at a time (4,096, or 65,536 in state space, if left out).

        Returns
        -------
        ndarray, shape [N, C]
            In the order of ``classes_``; rows sum to one.
        """
        probabilities = np.exp(self.predict_log_proba(X, batch_size=batch_size))
        return probabilities / probabilities.sum(1, keepdims=True)

    def predict_log_proba(self, X: Any, *, batch_size: int | None = None) -> np.ndarray:
        """Log probability of every class, accurate for small ones.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        ndarray, shape [N, C]
            In the order of ``classes_``.
        """
        array = self._new_inputs(X)
        pieces = self._pieces(batch_size)
        return self._model.log_probabilities(array, len(self.classes_), pieces)

    def decision_function(self, X: Any, *, batch_size: int | None = None) -> np.ndarray:
        """How much surer the prediction is of one class than of the others.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        ndarray, shape [N] for two classes, [N, C] for more
            Log odds of the second class; log probabilities of all classes for more than two.
        """
        logs = self.predict_log_proba(X, batch_size=batch_size)
        return logs[:, 1] - logs[:, 0] if len(self.classes_) == 2 else logs

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of labels that are predicted right.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        y : array-like, shape [N]
            Labels; rows without one are left out with ``allow_missing_targets``.
        sample_weight : array-like, shape [N], optional
            Row weights.

        Returns
        -------
        float
            Accuracy, between 0 and 1.

        Raises
        ------
        InputError
            For labels that the fit would refuse.
        """
        predicted = self.predict(X)
        labels, known = self._targets(y, len(predicted))
        weights = scored_weights(sample_weight, known, type(self).__name__)
        with own_errors(f"y of {type(self).__name__}"):
            right = accuracy_score(own_type(labels[known]), predicted[known], sample_weight=weights)
        return float(right)

    def leave_one_out(self) -> LeaveOneOutClasses:
        """Predict every label of the fit from all the others, without fitting again.

        The site of one row is taken away and the others stay; hyperparameters are those of the fit. A row
        with a weight is left out with all its repeats.

        Returns
        -------
        LeaveOneOutClasses
            Class probabilities, and the log probability of every label.

        Raises
        ------
        UnsupportedError
            After a minibatch fit.
        """
        check_is_fitted(self, "posterior_")
        return leave_one_out_classes(self._model, type(self).__name__, len(self.classes_))

    def _decoded(self, targets: np.ndarray) -> np.ndarray:
        return self.classes_[targets.astype(np.int64)]

    def _likelihoods(self) -> Mapping[str, LikelihoodBuilder]:
        count = len(self.classes_)
        softmax = {"softmax": lambda _: _softmax(count)}
        if count > 2:
            return {
                "auto": softmax["softmax"],
                **softmax,
                "robust_max": lambda _: RobustMaxLikelihood(count),
                "ordinal": lambda _: OrdinalLikelihood(count),
            }
        return {
            "auto": lambda _: BernoulliLikelihood(),
            "probit": lambda _: BernoulliLikelihood(),
            "logit": lambda _: BernoulliLikelihood(link="logit"),
            **softmax,
        }

    def _targets(self, y: Any, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        name = type(self).__name__
        labels, missing = class_labels(y, num_rows, name)
        if missing.any() and not self.allow_missing_targets:
            raise InputError(
                f"y of {name} holds {int(missing.sum())} missing label(s) (NaN), the first in row "
                f"{int(np.flatnonzero(missing)[0])}; drop these rows or set allow_missing_targets=True."
            )
        if missing.all():
            raise InputError(f"y of {name} holds no label at all: all {num_rows} are missing.")
        with own_errors(f"y of {name}"):
            check_classification_targets(own_type(labels[~missing]))
        return labels, ~missing

    def _learn_targets(self, targets: np.ndarray) -> np.ndarray:
        targets = own_type(targets)
        self.classes_, codes = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"y of {type(self).__name__} holds one class only ({self.classes_.tolist()[0]!r}); a "
                "classifier needs at least two classes."
            )
        return codes.astype(np.float64)

    def _encoded(self, y: Any, num_rows: int) -> np.ndarray:
        labels, missing = class_labels(y, num_rows, type(self).__name__)
        table = {label: float(code) for code, label in enumerate(self.classes_.tolist())}
        unknown = {label for label in labels[~missing].tolist() if label not in table}
        if unknown:
            raise InputError(
                f"y holds the label {sorted(unknown, key=str)[0]!r}, which the fit did not see; its classes "
                f"are {self.classes_.tolist()}."
            )
        return np.array(
            [
                np.nan if lost else table[label]
                for label, lost in zip(labels.tolist(), missing, strict=True)
            ]
        )


def _softmax(num_classes: int) -> gpytorch.likelihoods.SoftmaxLikelihood:
    return gpytorch.likelihoods.SoftmaxLikelihood(
        num_features=num_classes, num_classes=num_classes, mixing_weights=False
    )
