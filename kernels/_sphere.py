r"""What kernels on the sphere share: inputs projected to it, and the spectrum of their profile.

Every row gets a bias as one more coordinate and is divided into direction and length,

.. math:: \tilde x = (x / \ell, b) \in \mathbb R^D, \qquad r = |\tilde x|, \qquad \xi = \tilde x / r.

A zonal kernel depends on directions through their angle only, so that the spherical harmonics are its
eigenfunctions, whatever its parameters.

References
----------
Dutordoir, V., Durrande, N. & Hensman, J. (2020). Sparse Gaussian processes with spherical harmonic
features. ICML.
"""

from abc import abstractmethod
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels._batched import BatchedKernel, Constrained
from gpvi.kernels._gegenbauer import angle_rule, funk_hecke

__all__ = ["SphereKernel"]


class SphereKernel(BatchedKernel):
    r"""A kernel :math:`(r r')^p \kappa(\xi^\top \xi')` with :math:`\kappa(1) = 1`.

    Parameters
    ----------
    ard_num_dims : int, optional
        Number of columns, for one lengthscale each; one lengthscale for all if left out.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    active_dims : tuple of int, optional
        The columns that the kernel sees.
    lengthscale_prior, bias_prior : gpytorch.priors.Prior, optional
        Priors over the parameters.
    lengthscale_constraint, bias_constraint : gpytorch.constraints.Interval, optional
        Ranges of the parameters; positive unless given.
    """

    has_lengthscale = True
    bias = Constrained()
    #: ``p``: the kernel grows with this power of the length of either input.
    degree: int = 0

    def __init__(
        self,
        ard_num_dims: int | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
        bias_prior: Prior | None = None,
        bias_constraint: Interval | None = None,
    ) -> None:
        super().__init__(
            ard_num_dims=ard_num_dims,
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint,
        )
        self.add_parameter("bias", bias_prior, bias_constraint, 1.0)

    @property
    def is_stationary(self) -> bool:
        """Always False: where the bias puts the origin makes a difference."""
        return False

    @abstractmethod
    def profile(self, angles: Tensor) -> Tensor:
        r"""Correlation :math:`\kappa` at angles between directions.

        Parameters
        ----------
        angles : Tensor, shape [Q]
            From zero to pi.

        Returns
        -------
        Tensor, shape [*b, Q]
            One at zero.
        """

    @abstractmethod
    def correlation(self, left: Tensor, right: Tensor, diag: bool) -> Tensor:
        r"""Correlation :math:`\kappa` of directions.

        Parameters
        ----------
        left : Tensor, shape [*b, N, D]
            Unit vectors.
        right : Tensor, shape [*b, M, D]
            Unit vectors.
        diag : bool
            Pair row n with row n only.

        Returns
        -------
        Tensor, shape [*b, N, M], or [*b, N] with diag=True
            Correlations.
        """

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and lengths of inputs.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D - 1]
            Inputs, the columns of `active_dims` only.

        Returns
        -------
        directions : Tensor, shape [*b, N, D]
            Unit vectors.
        lengths : Tensor, shape [*b, N]
            Positive.
        """
        scaled = x / self.lengthscale
        bias = self.bias[..., None, None].expand(*scaled.shape[:-1], 1)
        lifted = torch.cat([scaled, bias], -1)
        lengths = torch.linalg.vector_norm(lifted, dim=-1)
        return lifted / lengths.unsqueeze(-1), lengths

    def eigenvalues(self, num_levels: int, dimension: int | None = None) -> Tensor:
        r"""Eigenvalues :math:`\lambda_\ell` of the profile.

        .. math:: \kappa(t) = \sum_\ell N_\ell \lambda_\ell G_\ell(t), \qquad
                  \sum_\ell N_\ell \lambda_\ell = \kappa(1) = 1

        Each belongs to all harmonics of a level. They are integrals over the angle by a fixed
        Gauss-Legendre rule; levels that the profile does not have come out as rounding errors.

        Parameters
        ----------
        num_levels : int
            How many, ``L``.
        dimension : int, optional
            ``D``, one more than the number of columns; known already with `ard_num_dims` or
            `active_dims`.

        Returns
        -------
        Tensor, shape [*batch_shape, L]
            In double precision, on the graph of the parameters, not negative.

        Raises
        ------
        InputError
            If the dimension is not known.
        """
        D = self._dimension() if dimension is None else dimension
        rule = angle_rule(D, self.bias)
        values = funk_hecke(self.profile(rule[0]).double(), rule, num_levels, D)
        return values.clamp_min(0.0).expand(*self.batch_shape, num_levels)

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Evaluate the kernel.

        Parameters
        ----------
        x1 : Tensor, shape (*batch, N, D - 1)
            Left inputs.
        x2 : Tensor, shape (*batch, M, D - 1)
            Right inputs.
        diag : bool, default False
            Pair row n of `x1` with row n of `x2` only.
        last_dim_is_batch : bool, default False
            Not possible: all columns make one sphere.
        **params
            What GPyTorch hands to every kernel of a composition; this one has no use for it.

        Returns
        -------
        Tensor, shape (*batch, N, M), or (*batch, N) with diag=True
            Covariances.

        Raises
        ------
        InputError
            If `last_dim_is_batch` is set.
        """
        if last_dim_is_batch:
            raise InputError(
                f"{type(self).__name__} does not split into columns (last_dim_is_batch=True): all "
                "of them make one sphere; use one kernel for each column, with active_dims."
            )
        left, r1 = self.project(x1)
        right, r2 = (left, r1) if x1 is x2 else self.project(x2)
        value = self.correlation(left, right, diag)
        if not self.degree:
            return value
        lengths = r1 * r2 if diag else r1.unsqueeze(-1) * r2.unsqueeze(-2)
        return value * lengths**self.degree

    def _dimension(self) -> int:
        if self.ard_num_dims is not None:
            return self.ard_num_dims + 1
        if self.active_dims is not None:
            return len(self.active_dims) + 1
        raise InputError(
            f"This {type(self).__name__} does not know its number of columns; pass dimension, one "
            "more than that number."
        )
