"""Functions drawn from a posterior, in the units of the data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from gpvi.approximations import Paths
from gpvi.estimators.inputs import InputColumns
from gpvi.estimators.scaling import Standardizer

__all__ = ["FunctionSamples"]


@dataclass(frozen=True, eq=False)
class FunctionSamples:
    """S functions drawn from a posterior; the same input always gives the same values.

    Parameters
    ----------
    paths : Paths
        In the units of the fit.
    columns : InputColumns
        Of the inputs.
    x_map, y_map : Standardizer
        To the units of the fit.
    like : Tensor
        Empty, of the dtype and on the device of the fit.

    Examples
    --------
    >>> import numpy as np
    >>> from gpvi import GPRegressor
    >>> X = np.linspace(0, 6, 30)[:, None]
    >>> model = GPRegressor(random_state=0).fit(X, np.sin(X[:, 0]))
    >>> functions = model.sample_functions(3, random_state=0)
    >>> functions(np.array([[1.0], [2.0]])).shape
    (2, 3)
    """

    paths: Paths
    columns: InputColumns
    x_map: Standardizer
    y_map: Standardizer
    like: Tensor

    def __call__(self, X: Any) -> np.ndarray:
        """Values at inputs.

        Parameters
        ----------
        X : array-like, shape [N, D]
            Inputs, as for ``predict``.

        Returns
        -------
        ndarray, shape [N, S] ([N, S, L] with several latent functions)
            In the units of y.

        Raises
        ------
        InputError
            For inputs that do not fit those of the fit.
        """
        with torch.no_grad():
            values = self.paths(torch.as_tensor(self.x_map(self._numbers(X))).to(self.like))
        array = np.moveaxis(values.double().cpu().numpy(), -1, 0)
        return self.y_map.inverse(array)

    def _numbers(self, X: Any) -> np.ndarray:
        array = self.columns.encode(self._fitted(), X)
        self.columns.warn_if_far(array)
        return array

    def _fitted(self) -> BaseEstimator:
        # The estimator may have been fitted again since; scikit-learn's checks of names and number of
        # columns need an estimator that knows those of this fit, and print its class name.
        known: dict[str, Any] = {"n_features_in_": self.columns.num_features}
        if self.columns.names is not None:
            known["feature_names_in_"] = self.columns.names
        return type(type(self).__name__, (BaseEstimator,), known)()
