r"""Two blocks of basis variables as one basis, and the process that the first block leaves.

The Cholesky factor of the covariance of (u, v), in this order, is

.. math:: \begin{pmatrix} L_u & 0 \\ K_{vu} L_u^{-\top} & L_v \end{pmatrix}, \qquad
          L_v L_v^\top = C_{vv} = K_{vv} - K_{vu} K_{uu}^{-1} K_{uv},

so that whitening (u, v) by it gives two independent standard normal blocks, the second of which belongs to
the part of v that u leaves open. One factorisation of the whole costs what the two of the blocks cost.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpvi.approximations._left_over import LeftOverProcess
from gpvi.approximations.features import FunctionalBasis, prior_covariance
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


@dataclass(frozen=True, eq=False)
class RememberingProcess(LeftOverProcess):
    """What a basis leaves open, for greedy selection, which asks for the same rows again and again."""

    _last: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def features(self, x: Tensor) -> Tensor:
        """Whitened features, kept for the last rows that were more than one."""
        if self._last.get("x") is not x:
            features = super().features(x)
            if x.shape[-2] == 1:
                return features
            self._last.update(x=x, features=features)
        return self._last["features"]


def _unit(covariance: Tensor) -> Tensor:
    """Root mean variance, shape [*b, 1]."""
    return covariance.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).sqrt()
