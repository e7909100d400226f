"""Gaussian process regression with the scikit-learn interface."""

from collections.abc import Sequence
from copy import deepcopy
from numbers import Integral
from typing import Any, Self

import gpytorch
import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from gpvi.approximations import Approximation, Exact, GaussianProcess, InducingPoints, Marginals
from gpvi.estimators.scaling import Standardizer
from gpvi.exceptions import InputError
from gpvi.inference import Callback, FitResult, ProgressBar, fit, initialize_hyperparameters
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import GaussianLikelihood, as_likelihood

__all__ = ["GPRegressor"]

# "auto" conditions on all rows up to here; a Cholesky of this size takes well under a second.
_MAX_EXACT_ROWS = 2_000

_PREDICTION_ROWS = 4_096

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


class GPRegressor(RegressorMixin, BaseEstimator):
    """Gaussian process regression.

    The model is ``y = f(x) + noise`` with ``f`` a Gaussian process; hyperparameters (and inducing
    inputs) maximise a lower bound on the evidence.

    Parameters
    ----------
    kernel : str, gpytorch kernel or scikit-learn kernel
        Short names can be added and multiplied: "matern52 + linear". An object is copied. Trainable
        lengthscales start from the data; those with ``requires_grad`` off keep their values.
    ard : bool
        For kernels given as strings, one lengthscale per column; if False, one lengthscale, and X is
        scaled by one common factor.
    mean : {"constant", "zero"} or gpytorch mean
        Prior mean.
    likelihood : "gaussian" or a likelihood
        Of gpvi or GPyTorch; copied.
    approximation : {"auto", "exact", "inducing"} or Approximation
        "auto" is exact up to 2,000 rows and uses inducing points above. An object is copied; inducing
        inputs that it holds are in the units of X.
    num_inducing : int
        Inducing points of "inducing" (fewer if the data hold fewer distinct rows).
    standardize : bool
        Standardise X and y internally; everything reported is in the units of the data.
    objective : {"tighter_elbo", "elbo"}
        What is maximised.
    max_iter : int
        L-BFGS iterations after the warm start, or minibatch steps.
    batch_size : int, optional
        Fit on minibatches of this many rows.
    learning_rate : float
        Of the minibatch fit.
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
    elbo_ : float
        Final objective in total nats, in the units of y.
    history_ : list of FitRecord
        One record per objective evaluation.
    n_iter_ : int
        Iterations after the warm start, at least 1 as scikit-learn expects.
    n_features_in_ : int
        Columns of X.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(0, 6, 40)[:, None]
    >>> model = GPRegressor(random_state=0).fit(X, np.sin(X[:, 0]))
    >>> mean, std = model.predict(np.array([[np.pi / 2]]), return_std=True)
    >>> mean.round(2)
    array([1.])
    """

    def __init__(
        self,
        kernel: Any = "matern52",
        *,
        ard: bool = True,
        mean: Any = "constant",
        likelihood: Any = "gaussian",
        approximation: Any = "auto",
        num_inducing: int = 512,
        standardize: bool = True,
        objective: str = "tighter_elbo",
        max_iter: int = 100,
        batch_size: int | None = None,
        learning_rate: float = 0.03,
        random_state: Any = None,
        device: Any = "cpu",
        dtype: str = "float64",
        verbose: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.kernel = kernel
        self.ard = ard
        self.mean = mean
        self.likelihood = likelihood
        self.approximation = approximation
        self.num_inducing = num_inducing
        self.standardize = standardize
        self.objective = objective
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.verbose = verbose
        self.callbacks = callbacks

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        y : array-like, shape [N]
            Targets.

        Returns
        -------
        GPRegressor
            Itself; as it was before if anything is raised.
        """
        before = dict(vars(self))
        try:
            return self._fit(X, y)
        except BaseException:
            self.__dict__ = before
            raise

    def _fit(self, X: Any, y: Any) -> Self:
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        generator = torch.Generator().manual_seed(int(seed))
        x_map, y_map = self._standardizers(X, y)
        inputs, targets = self._tensor(x_map(X)), self._tensor(y_map(y))
        gp = GaussianProcess(self._build_kernel(X.shape[1]), self._build_mean())
        likelihood = self._build_likelihood()
        self._check_targets(likelihood, y, targets)
        gp.to(self.device, self._dtype())
        likelihood.to(self.device, self._dtype())
        approximation = self._build_approximation(len(y))
        approximation.map_inputs(lambda z: self._tensor(x_map(z.double().cpu().numpy())))
        approximation.to(self.device, self._dtype())
        initialize_hyperparameters(gp, likelihood, inputs, targets, generator)
        result = self._run(gp, approximation, likelihood, inputs, targets, generator)
        self._x_map, self._y_map = x_map, y_map
        self.posterior_ = result.posterior.compact()
        self.kernel_ = gp.kernel
        self.likelihood_ = likelihood
        self.approximation_ = approximation
        # A density in y's units is the standardised one divided by the scale, once per row.
        self.elbo_ = result.objective - len(y) * float(np.log(y_map.scale))
        self.history_ = result.history
        self.n_iter_ = max(1, result.num_iterations)
        return self

    def predict(
        self, X: Any, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict new observations.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs.
        return_std : bool
            Whether to return the standard deviation of a new observation, noise included.

        Returns
        -------
        mean : ndarray, shape [N]
            Predictive means.
        std : ndarray, shape [N]
            Only if ``return_std``.
        """
        check_is_fitted(self, "posterior_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        inputs = self._tensor(self._x_map(X))
        model = as_likelihood(self.likelihood_)
        means, variances = [], []
        with torch.no_grad():
            for rows in inputs.split(_PREDICTION_ROWS):
                moments = self.posterior_.predict(rows)
                assert isinstance(moments, Marginals)
                mean, variance = model.predict_mean_var(moments.mean, moments.variance)
                means.append(mean)
                variances.append(variance)
        scale, offset = self._y_map.scale, self._y_map.offset
        mean = torch.cat(means).double().cpu().numpy() * scale + offset
        if not return_std:
            return mean
        return mean, torch.cat(variances).double().cpu().numpy() ** 0.5 * scale

    def _check_targets(
        self, likelihood: gpytorch.likelihoods.Likelihood, y: np.ndarray, targets: Tensor
    ) -> None:
        model = as_likelihood(likelihood)
        model.check_targets(torch.tensor(y))
        try:
            model.check_targets(targets)
        except InputError as error:
            raise InputError(
                f"{type(likelihood).__name__} and standardize=True: standardised targets are not of its "
                f"kind ({error}) Pass standardize=False."
            ) from error

    def _standardizers(self, X: np.ndarray, y: np.ndarray) -> tuple[Standardizer, Standardizer]:
        if not self.standardize:
            return Standardizer.identity(), Standardizer.identity()
        return Standardizer.fit(X, common_scale=not self.ard), Standardizer.fit(y)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=self._dtype(), device=self.device)

    def _dtype(self) -> torch.dtype:
        if self.dtype not in _DTYPES:
            raise InputError(f"dtype is {self.dtype!r}; it must be one of {', '.join(_DTYPES)}.")
        return _DTYPES[self.dtype]

    def _build_kernel(self, num_features: int) -> gpytorch.kernels.Kernel:
        return parse_kernel(self.kernel, num_features, ard=self.ard, dtype=self._dtype())

    def _build_mean(self) -> gpytorch.means.Mean:
        if isinstance(self.mean, gpytorch.means.Mean):
            return deepcopy(self.mean)
        if self.mean == "constant":
            return gpytorch.means.ConstantMean()
        if self.mean == "zero":
            return gpytorch.means.ZeroMean()
        raise InputError(f"mean is {self.mean!r}; pass 'constant', 'zero' or a gpytorch mean.")

    def _build_likelihood(self) -> gpytorch.likelihoods.Likelihood:
        if isinstance(self.likelihood, gpytorch.likelihoods.Likelihood):
            return deepcopy(self.likelihood)
        if self.likelihood == "gaussian":
            return GaussianLikelihood(noise=0.1)
        raise InputError(
            f"likelihood is {self.likelihood!r}; pass 'gaussian' or a likelihood object."
        )

    def _build_approximation(self, num_rows: int) -> Approximation:
        choice = self.approximation
        if isinstance(choice, Approximation):
            return deepcopy(choice)
        if choice == "auto":
            choice = "exact"
            if num_rows > _MAX_EXACT_ROWS or self.batch_size is not None:
                choice = "inducing"
        if choice == "exact":
            return Exact()
        if choice == "inducing":
            if not isinstance(self.num_inducing, Integral) or self.num_inducing < 1:
                raise InputError(
                    f"num_inducing is {self.num_inducing!r}; it must be an integer of at least 1."
                )
            return InducingPoints(int(self.num_inducing))
        raise InputError(
            f"approximation is {self.approximation!r}; pass 'auto', 'exact', 'inducing' or an "
            "Approximation object."
        )

    def _run(
        self,
        gp: GaussianProcess,
        approximation: Approximation,
        likelihood: gpytorch.likelihoods.Likelihood,
        inputs: Tensor,
        targets: Tensor,
        generator: torch.Generator,
    ) -> FitResult:
        callbacks = list(self.callbacks)
        bar = ProgressBar() if self.verbose else None
        if bar is not None:
            callbacks.append(bar)
        try:
            return fit(
                gp,
                approximation,
                likelihood,
                inputs,
                targets,
                objective=self.objective,
                max_iter=self.max_iter,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                generator=generator,
                callbacks=callbacks,
            )
        finally:
            if bar is not None:
                bar.close()
