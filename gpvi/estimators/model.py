"""A fitted model: from inputs in the units of the data to moments, quantiles and samples in those units."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.approximations import (
    Marginals,
    Paths,
    Posterior,
    SparseInversePosterior,
    StateSpacePosterior,
    sample_paths,
)
from gpvi.estimators.drawing import draw_latent
from gpvi.estimators.scaling import Standardizer, log_unit
from gpvi.estimators.validation import check_row_names
from gpvi.exceptions import ExtrapolationWarning
from gpvi.likelihoods import (
    Likelihood,
    as_likelihood,
    observation_covariance,
    sample_observations,
)

__all__ = ["FittedModel", "label_densities", "normalised"]

# Covariances of so many rows with the basis fit into memory; a state-space form or neighbours need none.
_PREDICTION_ROWS = 4_096
_PREDICTION_STEPS = 65_536


@dataclass(frozen=True, eq=False)
class FittedModel:
    """Posterior and likelihood of a fit, with the maps between its units and those of the data.

    Arrays in arguments and results are in the units of the data. ``rows`` are extras of the likelihood, one
    value per row: "noise" (variances), "exposure".

    Parameters
    ----------
    posterior : Posterior
        In the units of the fit.
    likelihood : gpytorch or gpvi likelihood
        In the units of the fit.
    x_map, y_map : Standardizer
        To the units of the fit.
    row_names : tuple of str
        Extras that the fit had.
    cavity : Marginals or None
        Leave-one-out moments of f at the rows of the fit.
    targets : Tensor, shape [N]
        Targets of the fit.
    target_rows : dict of str to Tensor
        Extras of the fit.
    used : ndarray of bool
        Which rows of what the user passed were fitted.
    """

    posterior: Posterior
    likelihood: gpytorch.likelihoods.Likelihood
    x_map: Standardizer
    y_map: Standardizer
    row_names: tuple[str, ...]
    cavity: Marginals | None
    targets: Tensor
    target_rows: dict[str, Tensor]
    used: np.ndarray

    if TYPE_CHECKING:
        Rows = dict[str, np.ndarray]

    @property
    def observation(self) -> Likelihood:
        """The likelihood behind this package's interface."""
        return as_likelihood(self.likelihood)

    def latent(self, X: np.ndarray, batch_size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of f.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Inputs.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        mean, variance : ndarray, shape [N] or [L, N]
            In the units of y.
        """
        mean, variance = self._in_pieces(X, {}, batch_size, lambda model, m, v, rows: (m, v))
        return self.y_map.inverse(mean), variance * self.y_map.scale**2

    def latent_covariance(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and joint covariance of f.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Inputs.

        Returns
        -------
        mean : ndarray, shape [N] or [L, N]
            In the units of y.
        covariance : ndarray, shape [N, N] or [L, N, N]
            In the units of y squared.
        """
        mean, covariance = self._joint(X)
        return self.y_map.inverse(_array(mean)), _array(covariance) * self.y_map.scale**2

    def moments(
        self, X: np.ndarray, rows: "Rows", batch_size: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of new observations.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Inputs.
        rows : dict of str to ndarray
            Extras.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        mean, variance : ndarray, shape [N]
            In the units of y.
        """
        mean, variance = self._in_pieces(
            X, rows, batch_size, lambda model, m, v, e: model.predict_mean_var(m, v, **e)
        )
        infinite = ~(np.isfinite(mean) & np.isfinite(variance))
        if infinite.any():
            warn(
                f"{int(infinite.sum())} of {len(X)} predictions have an infinite mean or variance, the first "
                f"in row {int(np.flatnonzero(infinite)[0])}: f is so uncertain there that the link "
                "overflows; predict_quantiles and latent=True still say something.",
                ExtrapolationWarning,
            )
        return self.y_map.inverse(mean), variance * self.y_map.scale**2

    def covariance(self, X: np.ndarray, rows: "Rows") -> tuple[np.ndarray, np.ndarray]:
        """Mean and joint covariance of new observations.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Inputs.
        rows : dict of str to ndarray
            Extras.

        Returns
        -------
        mean : ndarray, shape [N]
            In the units of y.
        covariance : ndarray, shape [N, N]
            In the units of y squared.
        """
        mean, covariance = self._joint(X)
        model = self.observation
        extras = self._extras(model, rows, slice(None), len(X))
        with torch.no_grad():
            mean, covariance = observation_covariance(model, mean, covariance, **extras)
        return self.y_map.inverse(_array(mean)), _array(covariance) * self.y_map.scale**2

    def quantiles(
        self,
        X: np.ndarray,
        levels: Sequence[float],
        rows: "Rows",
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Quantiles of new observations.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Inputs.
        levels : sequence of float
            Q probabilities.
        rows : dict of str to ndarray
            Extras.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        ndarray, shape [Q, N]
            In the units of y.
        """
        (values,) = self._in_pieces(
            X,
            rows,
            batch_size,
            lambda model, m, v, e: (model.predict_quantiles(levels, m, v, **e),),
        )
        return self.y_map.inverse(values)

    def log_density(
        self, X: np.ndarray, y: np.ndarray, rows: "Rows", batch_size: int | None = None
    ) -> np.ndarray:
        """Log predictive density of observations.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Inputs.
        y : ndarray, shape [N]
            Observations.
        rows : dict of str to ndarray
            Extras.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        ndarray, shape [N]
            Nats, of a density over the units of y.
        """
        targets = {"_targets": self.y_map(y)}

        def score(model: Likelihood, m: Tensor, v: Tensor, e: dict[str, Tensor]) -> tuple[Tensor]:
            return (model.predict_log_density(e.pop("_targets"), m, v, **e),)

        (density,) = self._in_pieces(X, {**rows, **targets}, batch_size, score)
        return density - log_unit(self.y_map, rows.get("censored"))

    def log_probabilities(
        self, X: np.ndarray, num_classes: int, batch_size: int | None = None
    ) -> np.ndarray:
        """Log probabilities of labels coded 0, ..., C - 1, normalised.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Inputs.
        num_classes : int
            C.
        batch_size : int, optional
            Rows at a time.

        Returns
        -------
        ndarray, shape [N, C]
            In nats.
        """
        logs = self._in_pieces(
            X, {}, batch_size, lambda model, m, v, e: label_densities(model, m, v, num_classes)
        )
        return normalised(np.stack(logs, axis=1))

    def samples(
        self, X: np.ndarray, num_samples: int, rows: "Rows", generator: torch.Generator
    ) -> np.ndarray:
        """Joint samples of new observations.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Inputs.
        num_samples : int
            S.
        rows : dict of str to ndarray
            Extras.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        ndarray, shape [S, N]
            In the units of y.
        """
        model = self.observation
        extras = self._extras(model, rows, slice(None), len(X))
        with torch.no_grad():
            values = draw_latent(
                self.posterior, self.inputs(X), lambda: self._joint(X), num_samples, generator
            )
            values = values if model.num_latents == 1 else values.mT
            y = sample_observations(model, values, generator, **extras)
        return self.y_map.inverse(_array(y))

    def paths(self, num_paths: int, num_features: int, generator: torch.Generator) -> Paths:
        """Functions drawn from the posterior, in the units of the fit.

        Parameters
        ----------
        num_paths : int
            How many.
        num_features : int
            Random features of the prior part.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        Paths
            Callable on standardised inputs.
        """
        return sample_paths(
            self.posterior, num_paths, num_features=num_features, generator=generator
        )

    def inputs(self, X: np.ndarray) -> Tensor:
        """Inputs in the units of the fit.

        Parameters
        ----------
        X : ndarray, shape [N, D]
            Inputs.

        Returns
        -------
        Tensor, shape [N, D]
            Of the dtype and on the device of the fit.
        """
        return torch.as_tensor(self.x_map(X)).to(self.targets)

    def extras(self, rows: "Rows", num_rows: int) -> dict[str, Tensor]:
        """Extras of the likelihood in the units of the fit, known noise zero where the fit had some.

        Parameters
        ----------
        rows : dict of str to ndarray
            Extras.
        num_rows : int
            N.

        Returns
        -------
        dict of str to Tensor, shape [N]
            For this fit's likelihood.
        """
        return self._extras(self.observation, rows, slice(None), num_rows)

    def _joint(self, X: np.ndarray) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            inputs = self.inputs(X)
            joint, moments = (
                self.posterior.predict(inputs, joint=True),
                self.posterior.predict(inputs),
            )
            assert not isinstance(joint, Marginals) and isinstance(moments, Marginals)
            covariance = joint.covariance_matrix.clone()
            # Differences of large numbers may come out negative; variances of marginals never do.
            covariance.diagonal(dim1=-2, dim2=-1).copy_(moments.variance)
            return joint.mean, covariance

    def _in_pieces(
        self,
        X: np.ndarray,
        rows: "Rows",
        batch_size: int | None,
        function: Callable[[Likelihood, Tensor, Tensor, dict[str, Tensor]], tuple[Tensor, ...]],
    ) -> list[np.ndarray]:
        """A function of the latent moments, a bounded number of rows at a time."""
        size = self._piece if batch_size is None else batch_size
        model, pieces = self.observation, []
        with torch.no_grad():
            for start in range(0, len(X), size):
                part = slice(start, min(start + size, len(X)))
                moments = self.posterior.predict(self.inputs(X[part]))
                assert isinstance(moments, Marginals)
                extras = self._extras(model, rows, part, part.stop - start)
                results = function(model, moments.mean, moments.variance, extras)
                pieces.append([_array(result) for result in results])
        return [np.concatenate(parts, axis=-1) for parts in zip(*pieces, strict=True)]

    @property
    def _piece(self) -> int:
        linear = isinstance(self.posterior, StateSpacePosterior | SparseInversePosterior)
        return _PREDICTION_STEPS if linear else _PREDICTION_ROWS

    def _extras(self, model: Likelihood, rows: "Rows", part: slice, size: int) -> dict[str, Tensor]:
        values = {
            name: torch.as_tensor(array[part]).to(self.targets) for name, array in rows.items()
        }
        if "noise" in values:
            values["noise"] = values["noise"] / float(self.y_map.scale) ** 2
        elif "noise" in self.row_names:
            # The known noise of the fit's rows says nothing about a new row.
            values["noise"] = torch.zeros(size).to(self.targets)
        check_row_names(self.likelihood, set(values) - {"_targets"}, model.row_arguments)
        return values


def label_densities(
    model: Likelihood, mean: Tensor, variance: Tensor, num_classes: int
) -> tuple[Tensor, ...]:
    """Log predictive density of every label, each with shape [N].

    Parameters
    ----------
    model : Likelihood
        Of labels coded 0, ..., C - 1.
    mean, variance : Tensor, shape [N] or [L, N]
        Of f.
    num_classes : int
        C.

    Returns
    -------
    tuple of Tensor
        C of them.
    """
    return tuple(
        model.predict_log_density(mean.new_full(mean.shape[-1:], code), mean, variance)
        for code in range(num_classes)
    )


def normalised(logs: np.ndarray) -> np.ndarray:
    """Log probabilities that sum to one over the last axis.

    Parameters
    ----------
    logs : ndarray, shape [..., C]
        Log densities.

    Returns
    -------
    ndarray, shape [..., C]
        Less their log sum.
    """
    return logs - np.logaddexp.reduce(logs, axis=-1, keepdims=True)


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
