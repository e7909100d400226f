r"""Coordinates in which a quasi-Newton optimiser starts with the right scales.

L-BFGS begins with a multiple of the identity as its inverse curvature, and its first steps pay for that
wherever parameters differ in stiffness. Coordinates :math:`\phi` with
:math:`\theta = \theta_0 + T\phi`, where :math:`TT^\top` is the inverse curvature that an earlier ascent
(the warm start) learned, take that cost away.
"""

from dataclasses import dataclass

import numpy as np

from gpvi.exceptions import InputError
from gpvi.inference.parameters import ParameterVector

__all__ = ["Coordinates", "Curvature"]

# Eigenvalues of a learned inverse curvature are kept within this factor of their median.
_SPREAD = 1e3


@dataclass(frozen=True, eq=False)
class Curvature:
    """Inverse curvature of the objective per row, as an earlier ascent learned it.

    Parameters
    ----------
    slices : dict of str to slice
        Where each named parameter stands.
    inverse : ndarray, shape [P, P]
        Symmetric positive definite.
    """

    slices: dict[str, slice]
    inverse: np.ndarray


class Coordinates:
    """Affine change of coordinates around today's values, with a box in the original ones.

    Parameters
    ----------
    vector : ParameterVector
        The parameters; the origin is where they stand now.
    curvature : Curvature, optional
        What is known about some of them, by name; the others keep their own scale.

    Raises
    ------
    InputError
        If a parameter is not finite.

    Examples
    --------
    >>> import gpytorch
    >>> kernel = gpytorch.kernels.RBFKernel().double()
    >>> coordinates = Coordinates(ParameterVector({"kernel": kernel}))
    >>> coordinates.values(coordinates.origin * 0.0).round(4)
    array([-0.3665])
    """

    def __init__(self, vector: ParameterVector, curvature: Curvature | None = None) -> None:
        self.origin = vector.values()
        for name, place in vector.slices().items():
            if not np.isfinite(self.origin[place]).all():
                raise InputError(f"The starting value of {name} is not finite; set another one.")
        self._low, self._high = vector.box()
        self._has_floor = vector.has_floor()
        self._index = np.zeros(0, dtype=np.int64)
        self._factor = np.zeros((0, 0))
        if curvature is not None:
            self._use(vector, curvature)

    def values(self, point: np.ndarray) -> np.ndarray:
        """Parameter values at a point, clipped to the box.

        Parameters
        ----------
        point : ndarray, shape [P]
            Coordinates; zero is the origin.

        Returns
        -------
        ndarray, shape [P]
            Values.
        """
        return np.clip(self.origin + self._forward(point), self._low, self._high)

    def pull_back(self, point: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Gradient in these coordinates from the gradient in the parameters.

        Parameters
        ----------
        point : ndarray, shape [P]
            Coordinates.
        gradient : ndarray, shape [P]
            Gradient with respect to the values.

        Returns
        -------
        ndarray, shape [P]
            Zero along values that would leave the box; those outside keep their way back in.
        """
        free = np.where(self._leaving(point, gradient), 0.0, gradient)
        if len(self._index):
            free[self._index] = self._factor.T @ free[self._index]
        return free

    def blocked(self, point: np.ndarray, gradient: np.ndarray) -> float:
        """Largest gradient entry along values that the box keeps from rising any further.

        Parameters
        ----------
        point : ndarray, shape [P]
            Coordinates.
        gradient : ndarray, shape [P]
            Gradient with respect to the values.

        Returns
        -------
        float
            Zero if the box holds nothing back. A value that stands at its own floor is not counted.
        """
        held = self._leaving(point, gradient) & ~(self._has_floor & (gradient < 0))
        return float(np.abs(gradient[held]).max(initial=0.0))

    def at_edge(self, point: np.ndarray) -> np.ndarray:
        """Which values stand at an edge of the box.

        Parameters
        ----------
        point : ndarray, shape [P]
            Coordinates.

        Returns
        -------
        ndarray of bool, shape [P]
            True at an edge.
        """
        values = self.origin + self._forward(point)
        return (values <= self._low) | (values >= self._high)

    def largest_move(self, step: np.ndarray) -> float:
        """Longest way that a step takes one of the values.

        Parameters
        ----------
        step : ndarray, shape [P]
            In these coordinates.

        Returns
        -------
        float
            In the values' own coordinates.
        """
        return float(np.abs(self._forward(step)).max(initial=0.0))

    def _leaving(self, point: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        values = self.origin + self._forward(point)
        return ((values >= self._high) & (gradient > 0)) | ((values <= self._low) & (gradient < 0))

    def _forward(self, point: np.ndarray) -> np.ndarray:
        step = np.array(point, dtype=np.float64)
        if len(self._index):
            step[self._index] = self._factor @ step[self._index]
        return step

    def _use(self, vector: ParameterVector, curvature: Curvature) -> None:
        mine: list[int] = []
        theirs: list[int] = []
        for name, place in vector.slices().items():
            known = curvature.slices.get(name)
            if known is not None and known.stop - known.start == place.stop - place.start:
                mine += range(place.start, place.stop)
                theirs += range(known.start, known.stop)
        inverse = curvature.inverse[np.ix_(theirs, theirs)]
        if not mine or not np.isfinite(inverse).all():
            return
        eigenvalues, vectors = np.linalg.eigh(0.5 * (inverse + inverse.T))
        middle = float(np.median(eigenvalues))
        if middle <= 0.0:
            return
        eigenvalues = np.clip(eigenvalues, middle / _SPREAD, middle * _SPREAD)
        self._index = np.array(mine)
        self._factor = vectors * np.sqrt(eigenvalues)
