r"""The process that a basis leaves open, and columns of the sparse inverse factor of its covariance.

.. math:: C(x, x') = k(x, x') - F(x)^\top F(x'), \qquad F(x) = L^{-1} K_{u f(x)}, \quad K_{uu} = L L^\top
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpvi.approximations._detach import detached
from gpvi.approximations._residual import residual_variance
from gpvi.approximations.features import Basis
from gpvi.approximations.gaussian_process import GaussianProcessLike
from gpvi.linalg import inverse_columns

#: Covariances of pairs of rows, by two tensors of their numbers.
Pairs = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LeftOverProcess:
    """A process of mean zero: the given one less what a basis says about it.

    Parameters
    ----------
    gp : GaussianProcessLike
        The process, with a kernel.
    basis : Basis
        What is known.
    factor : Tensor, shape [*b, M, M]
        Cholesky factor L of its covariance.
    """

    gp: GaussianProcessLike
    basis: Basis
    factor: Tensor

    @property
    def kernel(self) -> Kernel:
        """Of the whole process: distances are in its lengthscales."""
        return self.gp.kernel  # type: ignore[attr-defined]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the process."""
        return self.gp.batch_shape

    def mean(self, x: Tensor) -> Tensor:
        """Zeros, shape [*b, N]."""
        return torch.zeros_like(self.gp.mean(x))

    def covariance(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """What is left of the covariance, shape [*b, N1, N2]."""
        first = self.features(x1)
        second = first if x2 is None else self.features(x2)
        return self.gp.covariance(x1, x2) - first.mT @ second

    def variance(self, x: Tensor) -> Tensor:
        """What is left of the variance, shape [*b, N]."""
        return residual_variance(self.gp, x, self.features(x))

    def pairs(self, x: Tensor, features: Tensor | None = None) -> Pairs:
        """What is left of covariances of pairs of rows; features are computed once per row.

        Parameters
        ----------
        x : Tensor, shape [T, D]
            Inputs.
        features : Tensor, shape [*b, M, T], optional
            Of these, where they are known.

        Returns
        -------
        callable
            Of two tensors of row numbers [P]; gives [*b, P] in double precision.
        """
        kernel = self.kernel
        table = (self.features(x) if features is None else features).mT.double()

        def covariance(first: Tensor, second: Tensor) -> Tensor:
            left, right = x.index_select(0, first), x.index_select(0, second)
            known = table.index_select(-2, first) * table.index_select(-2, second)
            return pair_covariance(kernel, left, right).double() - known.sum(-1)

        return covariance

    def snapshot(self) -> "LeftOverProcess":
        """Itself: it is made of snapshots."""
        return self

    def detach(self) -> "LeftOverProcess":
        """The same off the graph."""
        return detached(self)

    def columns(
        self,
        points: Tensor,
        neighbors: Tensor,
        own: Tensor,
        nugget: float,
        schedule: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        features: Tensor | None = None,
    ) -> Tensor:
        """Columns of the sparse inverse factor.

        Parameters
        ----------
        points : Tensor, shape [T, D]
            Inputs.
        neighbors : Tensor of int32, shape [R, m]
            Numbers of neighbours among the points.
        own : Tensor of int32, shape [R]
            Number of every row's own point.
        nugget : float
            Added to the variance of every point, relative to that of the whole process.
        schedule : Tensor of int32, shape [R], optional
            Order in which rows are visited.
        noise : Tensor, shape [*s, T], optional
            Further variance of every point.
        features : Tensor, shape [*b, M, T], optional
            Of the points, where they are known.

        Returns
        -------
        Tensor, shape [*b, R, m + 1]
            Own entry last; in double precision.
        """
        if features is None:
            features = self._features_of_used(points, neighbors, own)
        whole = pair_covariance(self.kernel, points, points).double()
        covariance = self.pairs(points, features)
        # Rounding may leave a little less than nothing at a point of the basis.
        rest = (whole - features.double().square().sum(-2)).clamp_min(0.0)
        extra = nugget * whole if noise is None else nugget * whole + noise
        batch = torch.broadcast_shapes(rest.shape[:-1], extra.shape[:-1])
        rest, extra = rest.expand(*batch, -1), extra.expand(*batch, -1)
        return inverse_columns(covariance, rest, neighbors, own, extra, schedule=schedule)

    def features(self, x: Tensor) -> Tensor:
        """Whitened features F, shape [*b, M, N]."""
        return self.basis.whitened(self.gp, self.factor, x)

    def _features_of_used(self, points: Tensor, neighbors: Tensor, own: Tensor) -> Tensor:
        """Features of all points that any row looks at, zero for the others."""
        used = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        used[own.long()] = True
        used[neighbors[neighbors >= 0].long()] = True
        if bool(used.all()):
            return self.features(points)
        few = self.features(points[used])
        wide = few.new_zeros(*few.shape[:-1], len(points))
        return wide.index_copy(-1, used.nonzero()[:, 0], few)


def pair_covariance(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """Covariance of row p of x1 [P, D] with row p of x2, shape [*b, P]."""
    batch = kernel.batch_shape
    # One dim more than the values have, so that GPyTorch cannot take them for a matrix.
    lead = (1,) * (len(batch) + 1)
    values = kernel(x1.reshape(*lead, *x1.shape), x2.reshape(*lead, *x2.shape), diag=True)
    return values.squeeze(0).expand(*batch, x1.shape[0])
