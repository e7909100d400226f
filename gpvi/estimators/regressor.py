"""Gaussian process regression with the scikit-learn interface."""

from collections.abc import Mapping

import torch
from sklearn.base import RegressorMixin
from torch.distributions import constraints

from gpvi.estimators.building import LikelihoodBuilder
from gpvi.estimators.regression import RegressionEstimator
from gpvi.likelihoods import (
    BetaLikelihood,
    CensoredGaussianLikelihood,
    ExponentialLikelihood,
    GammaLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
    LogNormalLikelihood,
    StudentTLikelihood,
    WeibullLikelihood,
)
from gpvi.likelihoods.moments import is_discrete

__all__ = ["GPRegressor", "gaussian", "student_t"]

# Likelihoods of positive numbers and proportions; f is on the scale of a link.
_OTHER_SCALES: Mapping[str, LikelihoodBuilder] = {
    "log_normal": lambda _: LogNormalLikelihood(),
    "gamma": lambda _: GammaLikelihood(),
    "exponential": lambda _: ExponentialLikelihood(),
    "weibull": lambda _: WeibullLikelihood(),
    "beta": lambda _: BetaLikelihood(),
}


class GPRegressor(RegressorMixin, RegressionEstimator):
    """Gaussian process regression.

    The model is ``y = f(x) + noise`` with ``f`` a Gaussian process, or another distribution of y given f;
    hyperparameters (and inducing inputs) maximise a lower bound on the evidence.

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
        Prior mean.
    likelihood : str or a likelihood
        "gaussian" (which "auto" is), "student_t" and "laplace": noise about f. "censored_gaussian": the same
        where some rows are only bounds (see ``censored`` in ``fit``). "log_normal", "gamma", "exponential"
        and "weibull": positive numbers such as survival times, censored or not, of scale exp(f). "beta":
        proportions with log odds f. An object, of gpvi or GPyTorch, is copied; quantile regression is
        ``QuantileLikelihood(level)``.
    approximation : str or Approximation
        "auto" is exact up to 2,000 rows (1,170 for a likelihood that is not Gaussian). More rows: neighbours
        ("sic", a sparse inverse Cholesky factor) in at most three columns with a Matern kernel, else
        inducing points. With one numeric column and a kernel that has an exact state-space form it takes
        that above 500 rows (292; more for kernels of many states): exact too, in linear time. "state_space"
        also takes an RBF kernel, by a process of finite order. An object is copied; inducing inputs that it
        holds are in the units of X.
    num_inducing : int, optional
        Size of the basis: inducing points of "inducing" (512 if left out), "neighbor_inducing" (2,000) and of
        both blocks of "orthogonal" (512), of "full_scale" (100, with 20 neighbours), pseudo-points of
        "coreset" (100), units of "spherical" (128, for kernels such as "arc_cosine" and "zonal_matern52").
        Fewer if the data hold fewer distinct rows.
    standardize : bool
        Standardise X and y internally; everything reported is in the units of the data. Positive numbers
        and proportions stay as they are.
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
        In standardised units.
    kernel_ : gpytorch.kernels.Kernel
        Fitted kernel, in standardised units.
    likelihood_ : gpytorch likelihood
        Fitted likelihood, in standardised units.
    approximation_ : Approximation
        What was used, in standardised units.
    coreset_ : DataCoreset
        Weighted points in the units of the data; with ``approximation="coreset"`` only.
    elbo_ : float
        Bound on the log evidence in total nats, in the units of y; the energy or
        Laplace's evidence with their objectives.
    history_ : list of FitRecord
        One record per objective evaluation, in nats of the standardised targets.
    n_iter_ : int
        Iterations after the warm start, at least 1 as scikit-learn expects.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of str
        Names of the columns, if X had them.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(0, 6, 40)[:, None]
    >>> model = GPRegressor(random_state=0).fit(X, np.sin(X[:, 0]))
    >>> mean, std = model.predict(np.array([[np.pi / 2]]), return_std=True)
    >>> mean.round(2)
    array([1.])
    """

    @property
    def _standardizes_targets(self) -> bool:
        """Whether targets are real numbers, not positive ones or proportions."""
        if isinstance(self.likelihood, Likelihood):
            latents = self.likelihood.num_latents
            shape = (2,) if latents == 1 else (2, latents)
            conditional = self.likelihood.forward(torch.zeros(shape, dtype=torch.float64))
            # Counts are refused as standardised: whoever means them says standardize=False.
            return is_discrete(conditional) or conditional.support is constraints.real
        return not isinstance(self.likelihood, str) or self.likelihood not in _OTHER_SCALES

    # The mixin's knows nothing of targets that are not observed.
    score = RegressionEstimator.score

    def _likelihoods(self) -> Mapping[str, LikelihoodBuilder]:
        return {
            "auto": gaussian,
            "gaussian": gaussian,
            "student_t": student_t,
            "laplace": _laplace,
            "censored_gaussian": _censored_gaussian,
            **_OTHER_SCALES,
        }


def gaussian(target_scale: float) -> GaussianLikelihood:
    """Gaussian noise with a tenth of the variance of the targets.

    Parameters
    ----------
    target_scale : float
        Their standard deviation.

    Returns
    -------
    GaussianLikelihood
        At starting values.
    """
    variance = target_scale**2
    return GaussianLikelihood(noise=0.1 * variance, min_noise=1e-6 * variance)


def student_t(target_scale: float) -> StudentTLikelihood:
    """Student-t noise of three tenths of the deviation of the targets.

    Parameters
    ----------
    target_scale : float
        Their standard deviation.

    Returns
    -------
    StudentTLikelihood
        At starting values.
    """
    return StudentTLikelihood(scale=0.3 * target_scale, min_scale=1e-6 * target_scale)


def _laplace(target_scale: float) -> LaplaceLikelihood:
    return LaplaceLikelihood(scale=0.3 * target_scale, min_scale=1e-6 * target_scale)


def _censored_gaussian(target_scale: float) -> CensoredGaussianLikelihood:
    variance = target_scale**2
    return CensoredGaussianLikelihood(noise=0.1 * variance, min_noise=1e-6 * variance)
