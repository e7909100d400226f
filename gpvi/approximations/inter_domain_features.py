r"""Inducing variables that are linear functionals of a Gaussian process.

Inducing *points* are values of the function; other functionals of it - integrals, projections on harmonics
or on the units of a neural network - may summarise it better or cheaper. All an approximation needs of
them are their covariances among each other and with values of the function,

.. math:: K_{uu} = \operatorname{cov}(u, u), \qquad K_{uf} = \operatorname{cov}(u, f(X)).

The variables belong to the process without its mean, so that their own mean is zero.

References
----------
Lázaro-Gredilla, M. & Figueiras-Vidal, A. (2009). Inter-domain Gaussian processes for sparse inference using
inducing features. NeurIPS.
van der Wilk, M., Dutordoir, V., John, S., Artemev, A., Adam, V. & Hensman, J. (2020). A framework for
interdomain and multioutput Gaussian processes. arXiv:2003.01115.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpvi.approximations.gaussian_process import GaussianProcessLike

__all__ = ["InterDomainFeatures"]


@runtime_checkable
class InterDomainFeatures(Protocol):
    """What inducing variables have to offer; implementations are modules that own their parameters."""

    @property
    def basis_shape(self) -> torch.Size | None:
        """Shape [*b, M] of the variables, which strategies must know before there is a kernel.

        None as long as :meth:`initialize` has not chosen them.
        """

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Choose parameters for data; nothing to do if they are there already.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process with its initial hyperparameters.
        x : Tensor, shape [N, D]
            Data inputs.
        generator : torch.Generator, optional
            Source of randomness.
        """

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Move parameters that live among the inputs to other units.

        Parameters
        ----------
        transform : callable
            Maps inputs, shape [*b, M, D], to the same shape.
        """

    def Kuu(self, kernel: Kernel) -> Tensor:
        """Covariance of the variables.

        Parameters
        ----------
        kernel : gpytorch.kernels.Kernel
            Of the process.

        Returns
        -------
        Tensor, shape [*b, M, M]
            Without jitter.
        """

    def Kuf(self, kernel: Kernel, x: Tensor) -> Tensor:
        """Covariance of the variables with values of the function.

        Parameters
        ----------
        kernel : gpytorch.kernels.Kernel
            Of the process.
        x : Tensor, shape [*g, N, D]
            Inputs.

        Returns
        -------
        Tensor, shape [*b, M, N]
            On the graph.
        """
