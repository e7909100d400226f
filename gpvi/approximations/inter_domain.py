r"""Conditioning a process through inter-domain features alone.

The basis are linear functionals u of the process without its mean: projections on harmonics, on units of a
neural network, or (the simplest) function values. With :math:`K_{uu} = LL^\top`,

.. math:: f = m + F^\top e + \text{residual}, \qquad F = L^{-1} K_{uf}, \qquad e = L^{-1} u \sim N(0, I).

References
----------
Lázaro-Gredilla, M. & Figueiras-Vidal, A. (2009). Inter-domain Gaussian processes for sparse inference using
inducing features. NeurIPS.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpvi.approximations.base import Approximation
from gpvi.approximations.feature_prior import FeaturePrior
from gpvi.approximations.features import FunctionalBasis, PointBasis, check_jitter
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.approximations.inducing import InducingPoints
from gpvi.approximations.inter_domain_features import InterDomainFeatures
from gpvi.approximations.plan import Plan
from gpvi.exceptions import InputError
from gpvi.linalg import default_jitter

__all__ = ["InterDomain", "basis_of"]


class InterDomain(Approximation):
    """Approximate a Gaussian process through inter-domain features.

    Parameters
    ----------
    features : InterDomainFeatures
        A module with their covariances.
    jitter : float, optional
        Relative to the mean diagonal of Kuu; default 1e-8 in float64, 1e-6 in float32.

    Raises
    ------
    InputError
        If ``features`` are no such module, or ``jitter`` is impossible.

    References
    ----------
    Lázaro-Gredilla, M. & Figueiras-Vidal, A. (2009). Inter-domain Gaussian processes for sparse inference
    using inducing features. NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from gpvi.approximations import InducingPoints
    >>> points = InducingPoints(inducing_points=torch.linspace(0, 1, 5).unsqueeze(-1))
    >>> InterDomain(points).basis_shape
    torch.Size([5])
    """

    whole_data = False
    finite_basis = True

    def __init__(self, features: InterDomainFeatures, *, jitter: float | None = None) -> None:
        super().__init__()
        check_features(features, "features")
        check_jitter(jitter)
        self.features = features
        self.jitter = jitter

    @property
    def basis_shape(self) -> torch.Size | None:
        """Shape [*b, M] of the basis; None if the features have not been chosen."""
        return self.features.basis_shape

    def initialize(
        self, gp: GaussianProcessLike, x: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Let the features choose their parameters.

        Parameters
        ----------
        gp : GaussianProcessLike
            The process with its initial hyperparameters.
        x : Tensor, shape [N, D]
            Data inputs.
        generator : torch.Generator, optional
            Source of randomness.
        """
        self.features.initialize(gp, x, generator)

    def map_inputs(self, transform: Callable[[Tensor], Tensor]) -> None:
        """Move what the features keep among the inputs to other units.

        Parameters
        ----------
        transform : callable
            Maps inputs, shape [*b, M, D], to the same shape.
        """
        self.features.map_inputs(transform)

    def _prior(self, gp: GaussianProcessLike, x: Tensor, plan: Plan) -> FeaturePrior:
        # The snapshot keeps the prior as it is when the optimiser moves the features in place.
        basis = FunctionalBasis(self.features).snapshot()
        jitter = default_jitter(x.dtype) if self.jitter is None else self.jitter
        return FeaturePrior.on_basis(gp, x, basis, jitter)


def basis_of(features: InterDomainFeatures, x: Tensor) -> PointBasis | FunctionalBasis:
    """Snapshot of features, which stays as it is when an optimiser moves parameters in place.

    Parameters
    ----------
    features : InterDomainFeatures
        Inducing points or any others.
    x : Tensor
        Inputs, whose dtype and device inducing points must have.

    Returns
    -------
    PointBasis or FunctionalBasis
        On the graph.
    """
    if isinstance(features, InducingPoints):
        return PointBasis(features.checked_points(x).clone())
    return FunctionalBasis(features).snapshot()


def check_features(features: object, name: str) -> None:
    """Refuse what is no module of inter-domain features, and options of its own that would be ignored.

    Parameters
    ----------
    features : object
        What was passed.
    name : str
        As which argument.

    Raises
    ------
    InputError
        If it does not fit.
    """
    if isinstance(features, InterDomain):
        raise InputError(f"{name} is an InterDomain; pass its features (the attribute features).")
    if not isinstance(features, InterDomainFeatures) or not isinstance(features, torch.nn.Module):
        raise InputError(
            f"{name} is a {type(features).__name__}; pass InducingPoints or another module of inter-domain "
            "features (with initialize, map_inputs, basis_shape, Kuu and Kuf)."
        )
    if isinstance(features, InducingPoints) and features.jitter is not None:
        raise InputError(
            f"{name} has a jitter of its own, {features.jitter}; pass it to the approximation around it."
        )
