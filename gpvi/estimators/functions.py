"""Functions drawn from a posterior, in the units of the data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpvi.approximations import Paths
from gpvi.estimators.inputs import InputColumns
from gpvi.estimators.scaling import Standardizer
from gpvi.estimators.validation import check_finite_inputs, own_errors
from gpvi.exceptions import InputError

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
        """
        with torch.no_grad():
            values = self.paths(torch.as_tensor(self.x_map(self._numbers(X))).to(self.like))
        array = np.moveaxis(values.double().cpu().numpy(), -1, 0)
        return self.y_map.inverse(array)

    def _numbers(self, X: Any) -> np.ndarray:
        with own_errors("X of FunctionSamples"):
            array = self.columns.numbers(X, "FunctionSamples")
        if array.shape[1] != self.columns.num_features:
            raise InputError(
                f"X has {array.shape[1]} columns, but the functions were drawn for "
                f"{self.columns.num_features}."
            )
        check_finite_inputs(array, "FunctionSamples", self.columns.names)
        return array
