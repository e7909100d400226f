r"""Two blocks of basis variables as one basis, and the process that the first block leaves.

The Cholesky factor of the covariance of (u, v), in this order, is

.. math:: \begin{pmatrix} L_u & 0 \\ K_{vu} L_u^{-\top} & L_v \end{pmatrix}, \qquad
          L_v L_v^\top = C_{vv} = K_{vv} - K_{vu} K_{uu}^{-1} K_{uv},

so that whitening (u, v) by it gives two independent standard normal blocks, the second of which belongs to
the part of v that u leaves open. One factorisation of the whole costs what the two of the blocks cost.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.approximations._residual import residual_variance
from gpvi.approximations.features import Basis, FunctionalBasis, prior_covariance
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.linalg import CholeskyResult, safe_cholesky, solve_lower


@dataclass(frozen=True, eq=False)
class StackedBasis:
    """Functionals first, function values second.

    Parameters
    ----------
    base : FunctionalBasis
        Of the process without its mean.
    orthogonal : Tensor, shape [*b, K, D]
        Inputs of the function values.
    """

    base: FunctionalBasis
    orthogonal: Tensor

    @property
    def points(self) -> None:
        """None: functionals are no function values."""
        return None

    def factorise(self, gp: GaussianProcessLike, jitter: float) -> CholeskyResult:
        """Cholesky factor of the joint covariance; the jitter is relative to the diagonal of each block."""
        Kuu, Kvv = self.base.covariance(gp), prior_covariance(gp, self.orthogonal)
        Kuv = self.base.cross_covariance(gp, self.orthogonal)
        M, K = Kuv.shape[-2:]
        batch = torch.broadcast_shapes(Kuu.shape[:-2], Kvv.shape[:-2], Kuv.shape[:-2])
        Kuu, Kvv = Kuu.expand(*batch, M, M), Kvv.expand(*batch, K, K)
        Kuv = Kuv.expand(*batch, M, K)
        joint = torch.cat([torch.cat([Kuu, Kuv], -1), torch.cat([Kuv.mT, Kvv], -1)], -2)
        # Features and function values have units of their own.
        units = torch.cat([_unit(Kuu).expand(*batch, M), _unit(Kvv).expand(*batch, K)], -1)
        scaled = joint / units.unsqueeze(-1) / units.unsqueeze(-2)
        result = safe_cholesky(scaled, jitter=jitter, name="covariance of both blocks")
        return CholeskyResult(units.unsqueeze(-1) * result.factor, result.jitter)

    def mean(self, gp: GaussianProcessLike, factor: Tensor) -> Tensor:
        """Zeros and prior means, shape [*b, M + K]."""
        values = gp.mean(self.orthogonal)
        size = factor.shape[-1] - values.shape[-1]
        shape = (*factor.shape[:-2], size)
        return torch.cat([values.new_zeros(shape), values.expand(*shape[:-1], -1)], -1)

    def whitened(self, gp: GaussianProcessLike, factor: Tensor, x: Tensor) -> Tensor:
        """Features of rows, shape [*b, M + K, N]."""
        Kuf, Kvf = self.base.cross_covariance(gp, x), gp.covariance(self.orthogonal, x)
        batch = torch.broadcast_shapes(Kuf.shape[:-2], Kvf.shape[:-2])
        parts = [part.expand(*batch, *part.shape[-2:]) for part in (Kuf, Kvf)]
        return solve_lower(factor, torch.cat(parts, -2))


class ResidualProcess:
    """The process given that a basis is at its mean: where to look for points that add most.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process.
    basis : Basis
        What is known.
    jitter : float
        Relative to the mean diagonal of its covariance.
    """

    def __init__(self, gp: GaussianProcessLike, basis: Basis, jitter: float) -> None:
        self.gp, self.basis = gp, basis
        with torch.no_grad():
            self.factor = basis.factorise(gp, jitter).factor
        # Greedy selection asks for covariances with the same rows again and again.
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the process."""
        return self.gp.batch_shape

    def mean(self, x: Tensor) -> Tensor:
        """Prior mean, shape [*b, N]."""
        return self.gp.mean(x)

    def covariance(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """Conditional covariance, shape [*b, N1, N2]."""
        first = self._features(x1)
        second = first if x2 is None else self._features(x2)
        return self.gp.covariance(x1, x2) - first.mT @ second

    def variance(self, x: Tensor) -> Tensor:
        """Conditional variance, shape [*b, N]."""
        return residual_variance(self.gp, x, self._features(x))

    def snapshot(self) -> "ResidualProcess":
        """Itself: nothing here moves."""
        return self

    def detach(self) -> "ResidualProcess":
        """Itself: nothing here is on a graph."""
        return self

    def _features(self, x: Tensor) -> Tensor:
        if self._last is not None and self._last[0] is x:
            return self._last[1]
        with torch.no_grad():
            features = self.basis.whitened(self.gp, self.factor, x)
        if x.shape[-2] > 1:
            self._last = (x, features)
        return features


def _unit(covariance: Tensor) -> Tensor:
    """Root mean variance, shape [*b, 1]."""
    return covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).sqrt()
