r"""Gaussian-process factor analysis: many series that follow a few smooth latent ones.

.. math:: y_{np} \sim p(y \mid c_p^\top z(t_n) + d_p), \qquad z_k \sim GP(0, k_k), \quad k = 1 \dots K

The latents are Gauss-Markov processes, so that everything costs time linear in the number of bins.
Counts and other likelihoods are handled by conjugate-computation variational inference with one Gaussian
site of K dimensions a bin.

References
----------
Yu, B. M., Cunningham, J. P., Santhanam, G., Ryu, S. I., Shenoy, K. V. & Sahani, M. (2009).
Gaussian-process factor analysis for low-dimensional single-trial analysis of neural population activity.
Journal of Neurophysiology.
Dowling, M., Zhao, Y. & Park, I. M. (2023). Linear time GPs for inferring latent trajectories from neural
spike trains. ICML.
"""

from collections.abc import Sequence
from typing import Any, Self

import gpytorch
import numpy as np
import torch
from gpytorch.kernels import Kernel
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gpvi._warnings import warn
from gpvi.exceptions import ConvergenceWarning, InputError
from gpvi.models._chains import LatentChains
from gpvi.models._expectation_maximization import alternate
from gpvi.models._latent_inference import LatentState, infer_latents, start_latents
from gpvi.models._latent_start import correlation_time, initial_scores
from gpvi.models._learning import fit_readout
from gpvi.models._recordings import Recordings, read_recordings
from gpvi.models._setup import build_base, build_kernels, check_counts, start_readout

__all__ = ["GPFactorAnalysis"]

# Spread of the scores from which the fit starts.
_START_VARIANCE = 0.1
# For latents under learned parameters: most sweeps, and nats per bin that end them.
_MAX_SWEEPS, _INFERENCE_TOLERANCE = 100, 1e-6
# Loadings up to this share of an output's largest count as zero.
_NULL_LOADING = 1e-3
_MAX_SEED = 2**31 - 1


class GPFactorAnalysis(BaseEstimator):
    r"""Smooth latent trajectories behind many simultaneously recorded series.

    Every output is explained by :math:`c_p^\top z(t) + d_p` through a likelihood; latents z are
    independent Gaussian processes of prior variance one, whose kernels, like loadings C and offset
    d, are learned. Trials are independent draws of the latents and may differ in length; NaN marks
    what was not observed.

    Parameters
    ----------
    num_latents : int
        Number K of latents, at most the number of outputs.
    kernel : str, gpytorch.kernels.Kernel or sequence of them
        Stationary, with a state-space form; one for every latent, or one that all start from. A
        kernel of batch shape ``[K]`` has one entry for each latent. A name such as "matern52"
        starts with lengthscales by the data; amplitudes are without effect.
    likelihood : {"poisson", "gaussian"} or gpytorch or gpvi likelihood
        Of one output: counts, real numbers with a noise variance for each output, or any other.
    mean_field : bool
        Whether latents are independent under q: cheaper with many latents (d_1^3 + ... + d_K^3
        operations a bin for d_k states, instead of their sum cubed), and overconfident where
        loadings overlap.
    max_iter : int
        The most rounds of inference and learning.
    tolerance : float
        The fit has converged once a round gains less than this many nats per bin.
    random_state : int, RandomState or None
        For the factor analysis that the fit starts from.

    Attributes
    ----------
    loadings_ : ndarray, shape [P, K]
        C.
    offset_ : ndarray, shape [P]
        d.
    kernel_ : tuple of gpytorch.kernels.Kernel
        Learned kernel of every latent.
    likelihood_ : LinearReadoutLikelihood
        The learned readout.
    elbo_ : float
        Lower bound of the log evidence in nats.
    history_ : list of float
        ELBO after every round.
    n_iter_ : int
        Rounds taken.
    converged_ : bool
        Whether the tolerance was met.
    n_features_in_ : int
        Number P of outputs.

    References
    ----------
    Yu, B. M. et al. (2009). Gaussian-process factor analysis for low-dimensional single-trial
    analysis of neural population activity. Journal of Neurophysiology.

    Dowling, M., Zhao, Y. & Park, I. M. (2023). Linear time GPs for inferring latent trajectories
    from neural spike trains. ICML.

    Examples
    --------
    >>> from gpvi.datasets import make_spike_trains
    >>> from gpvi.models import GPFactorAnalysis
    >>> spikes = make_spike_trains(2, 100, 12, mean_rate=40.0)
    >>> model = GPFactorAnalysis(2, tolerance=1e-2).fit(spikes.counts)
    >>> model.transform(spikes.counts).shape, model.loadings_.shape
    ((2, 100, 2), (12, 2))
    """

    def __init__(
        self,
        num_latents: int = 2,
        *,
        kernel: str | Kernel | Sequence[str | Kernel] = "matern52",
        likelihood: str | gpytorch.likelihoods.Likelihood = "poisson",
        mean_field: bool = False,
        max_iter: int = 100,
        tolerance: float = 1e-4,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.num_latents = num_latents
        self.kernel = kernel
        self.likelihood = likelihood
        self.mean_field = mean_field
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.random_state = random_state

    def fit(self, Y: Any, t: Any = None) -> Self:
        """Learn latents, readout and kernels.

        Parameters
        ----------
        Y : array-like, shape [trials, T, P] or [T, P], or list of arrays [T_r, P]
            Observations; NaN for those missing.
        t : array-like, shape [T], or list of arrays [T_r], optional
            Ascending stamps of the bins, 0, 1, 2, ... if left out.

        Returns
        -------
        GPFactorAnalysis
            Itself.

        Raises
        ------
        InputError
            For options out of range and data that do not fit them.
        UnsupportedError
            For a kernel without state-space form, and for one that is not stationary.

        Warns
        -----
        ConvergenceWarning
            If `max_iter` rounds were too few, or latents ended with loadings of zero.
        """
        self._check_options()
        recordings = read_recordings(Y, t)
        self._check_size(recordings)
        y = recordings.y
        base = build_base(self.likelihood, y)
        base.check_targets(y.mT)
        check_counts(base, y)
        readout = start_readout(base, y, self.num_latents)
        seed = int(check_random_state(self.random_state).randint(_MAX_SEED))
        scores = initial_scores(base, recordings, self.num_latents, seed)
        kernels = build_kernels(self.kernel, self.num_latents, correlation_time(scores, recordings))
        chains = LatentChains(kernels, recordings.steps)
        spread = _START_VARIANCE * torch.eye(self.num_latents, dtype=y.dtype)
        moments = scores, spread.expand(len(scores), -1, -1)
        fit_readout(readout, y, *moments)
        start = start_latents(chains, readout, y, *moments, mean_field=self.mean_field)
        tolerance = self.tolerance * recordings.num_observed
        self._state, self.history_, self.converged_ = alternate(
            chains, readout, y, start, max_iter=self.max_iter, tolerance=tolerance
        )
        if not self.converged_:
            warn(
                f"GPFactorAnalysis stopped after max_iter={self.max_iter} rounds, before a round "
                f"gained less than {self.tolerance} nats a bin. Raise max_iter or tolerance.",
                ConvergenceWarning,
            )
        self._warn_of_null_latents(readout.loadings.detach())
        self._recordings = recordings
        self.likelihood_, self.kernel_ = readout, tuple(kernels)
        self.elbo_, self.n_iter_, self.n_features_in_ = (
            self._state.elbo,
            len(self.history_),
            y.shape[1],
        )
        self.loadings_ = readout.loadings.detach().numpy().copy()
        self.offset_ = readout.offset.detach().numpy().copy()
        return self

    def transform(self, Y: Any, t: Any = None, *, return_std: bool = False) -> Any:
        """Latent trajectories of recordings, under the learned parameters.

        Parameters
        ----------
        Y : array-like, shape [trials, T, P] or [T, P], or list of arrays [T_r, P]
            Observations; an output that is NaN throughout is left out.
        t : array-like, shape [T], or list of arrays [T_r], optional
            Stamps, as in :meth:`fit`.
        return_std : bool
            Whether to return standard deviations as well.

        Returns
        -------
        mean : ndarray, shape [trials, T, K] or [T, K], or list of ndarray [T_r, K]
            Posterior means.
        std : same as mean
            Posterior standard deviations, if asked for.

        Raises
        ------
        InputError
            For data that do not fit those of the fit.
        """
        recordings, state = self._infer(Y, t)
        mean = recordings.split(state.mean)
        if not return_std:
            return mean
        return mean, recordings.split(state.covariance.diagonal(dim1=-1, dim2=-2).sqrt())

    def fit_transform(self, Y: Any, t: Any = None) -> Any:
        """:meth:`fit`, then the latent trajectories of the same recordings.

        Parameters
        ----------
        Y : array-like, shape [trials, T, P] or [T, P], or list of arrays [T_r, P]
            Observations.
        t : array-like, shape [T], or list of arrays [T_r], optional
            Stamps.

        Returns
        -------
        ndarray, shape [trials, T, K] or [T, K], or list of ndarray [T_r, K]
            Posterior means.
        """
        self.fit(Y, t)
        return self._recordings.split(self._state.mean)

    def predict_rates(self, Y: Any = None, t: Any = None) -> Any:
        """Expected observations given recordings, with the uncertainty of the latents averaged over.

        Parameters
        ----------
        Y : array-like, shape [trials, T, P] or [T, P], or list of arrays [T_r, P], optional
            Recordings; those of the fit if left out. Outputs that are NaN are predicted from the
            others.
        t : array-like, shape [T], or list of arrays [T_r], optional
            Stamps.

        Returns
        -------
        ndarray, shape [trials, T, P] or [T, P], or list of ndarray [T_r, P]
            Means; counts per bin for the Poisson likelihood.
        """
        check_is_fitted(self)
        if Y is None and t is not None:
            raise InputError("t was given without Y; pass the recordings that belong to it.")
        recordings, state = (self._recordings, self._state) if Y is None else self._infer(Y, t)
        with torch.no_grad():
            mean, variance = self._output_moments(state)
            return recordings.split(self.likelihood_.base.predict_mean_var(mean, variance)[0].mT)

    def predict_held_out(self, Y: Any, outputs: Sequence[int], t: Any = None) -> Any:
        """Rates of some outputs from the activity of all others (co-smoothing).

        Parameters
        ----------
        Y : array-like, shape [trials, T, P] or [T, P], or list of arrays [T_r, P]
            Recordings; the columns named are not looked at.
        outputs : sequence of int
            Columns to predict.
        t : array-like, shape [T], or list of arrays [T_r], optional
            Stamps.

        Returns
        -------
        ndarray, shape [trials, T, len(outputs)] or the like
            Expected observations.

        Raises
        ------
        InputError
            If a column does not exist.
        """
        check_is_fitted(self)
        columns, P = np.asarray(outputs), self.n_features_in_
        if columns.dtype.kind not in "iu" or columns.ndim != 1 or not _within(columns, P):
            raise InputError(f"outputs is {outputs!r}; pass columns between 0 and {P - 1}.")
        recordings = read_recordings(Y, t, P)
        y = recordings.y.clone()
        y[:, columns] = torch.nan
        rates = self.predict_rates(recordings.split(y), t)
        if isinstance(rates, list):
            return [part[..., columns] for part in rates]
        return rates[..., columns]

    def inverse_transform(self, Z: Any) -> Any:
        """Expected observations at given latent values.

        Parameters
        ----------
        Z : array-like, shape [..., K]
            Latents, such as :meth:`transform` returns.

        Returns
        -------
        ndarray, shape [..., P]
            Means.

        Raises
        ------
        InputError
            If the last dim is not K.
        """
        check_is_fitted(self)
        if isinstance(Z, list):
            return [self.inverse_transform(part) for part in Z]
        z, K = torch.as_tensor(np.asarray(Z, dtype=np.float64)), self.loadings_.shape[1]
        if z.dim() < 1 or z.shape[-1] != K:
            raise InputError(f"Z has shape {tuple(z.shape)}; its last dim must be {K}.")
        with torch.no_grad():
            readout = self.likelihood_
            values = (z.reshape(-1, K) @ readout.loadings.mT + readout.offset).mT
            mean = readout.base.predict_mean_var(values, torch.zeros_like(values))[0].mT
        return mean.reshape(*z.shape[:-1], self.n_features_in_).numpy()

    def score(self, Y: Any, t: Any = None) -> float:
        """Lower bound of the log likelihood of recordings in nats per observed bin.

        Parameters
        ----------
        Y : array-like, shape [trials, T, P] or [T, P], or list of arrays [T_r, P]
            Recordings, usually held out.
        t : array-like, shape [T], or list of arrays [T_r], optional
            Stamps.

        Returns
        -------
        float
            The ELBO divided by the number of bins in which something was observed.

        Raises
        ------
        InputError
            If nothing was observed.
        """
        recordings, state = self._infer(Y, t)
        if not recordings.num_observed:
            raise InputError("Y holds no observation, so there is nothing to score.")
        return state.elbo / recordings.num_observed

    def _warn_of_null_latents(self, C: Tensor) -> None:
        # Compared output by output, which may have units of their own.
        null = (C.abs() <= _NULL_LOADING * C.abs().amax(1, keepdim=True)).all(0)
        if bool(null.any()):
            warn(
                f"Latents {null.nonzero().flatten().tolist()} ended with loadings of zero, so that "
                f"they explain nothing. Ask for fewer than num_latents={self.num_latents}, or look "
                "for outputs that are constant or copies of each other.",
                ConvergenceWarning,
            )

    def _infer(self, Y: Any, t: Any) -> tuple[Recordings, LatentState]:
        """Latents of new recordings."""
        check_is_fitted(self)
        recordings = read_recordings(Y, t, self.n_features_in_)
        y, readout = recordings.y, self.likelihood_
        readout.check_targets(y)
        check_counts(readout.base, y)
        chains = LatentChains(self.kernel_, recordings.steps)
        mean = y.new_zeros(len(y), chains.num_latents)
        prior = torch.eye(chains.num_latents, dtype=y.dtype).expand(len(y), -1, -1)
        start = start_latents(chains, readout, y, mean, prior, mean_field=self.mean_field)
        tolerance = _INFERENCE_TOLERANCE * max(1, recordings.num_observed)
        state, converged = infer_latents(
            chains, readout, y, start, max_sweeps=_MAX_SWEEPS, tolerance=tolerance
        )
        if not converged:
            warn(
                f"Latents did not converge in {_MAX_SWEEPS} sweeps; look for outliers in Y.",
                ConvergenceWarning,
            )
        return recordings, state

    def _output_moments(self, state: LatentState) -> tuple[Tensor, Tensor]:
        """Moments of ``C z + d``, both ``[P, T]``."""
        C = self.likelihood_.loadings
        mean = C @ state.mean.mT + self.likelihood_.offset.unsqueeze(-1)
        return mean, (C @ state.covariance * C).sum(-1).mT

    def _check_options(self) -> None:
        for name in ("num_latents", "max_iter"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"{name} is {value!r}; it must be an integer of at least 1.")
        if not isinstance(self.tolerance, int | float) or not 0.0 < self.tolerance < np.inf:
            raise InputError(f"tolerance is {self.tolerance!r}; it must be a positive number.")
        if not isinstance(self.mean_field, bool | np.bool_):
            raise InputError(f"mean_field is {self.mean_field!r}; it must be True or False.")

    def _check_size(self, recordings: Recordings) -> None:
        P = recordings.y.shape[1]
        if self.num_latents > P:
            raise InputError(
                f"num_latents is {self.num_latents}, but there are {P} outputs; ask for at most as "
                "many latents."
            )
        if max(recordings.lengths) < 2:
            raise InputError(
                "Every trial has a single bin, which says nothing about change over time; pass "
                "trials of at least 2 bins, [trials, T, P]."
            )
        if self.num_latents > recordings.num_observed:
            raise InputError(
                f"num_latents is {self.num_latents}, but only {recordings.num_observed} bins were "
                "observed; record more of them or ask for fewer latents."
            )
        empty = recordings.y.isnan().all(0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"Outputs {empty} were never observed; drop these columns of Y.")


def _within(columns: np.ndarray, size: int) -> bool:
    return bool(((columns >= -size) & (columns < size)).all())
