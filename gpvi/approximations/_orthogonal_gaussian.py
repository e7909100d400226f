r"""Gaussians over two independent whitened blocks, as approximations of one that couples them.

For prior times sites, :math:`\propto N(e \mid W^{-1}h, W^{-1})`, the best Gaussian with independent blocks
has the same mean and the diagonal blocks of W as precisions. Its evidence lower bound is

.. math:: \tfrac12 h^\top W^{-1} h - \tfrac12 \log|W_{uu}| - \tfrac12 \log|W_{vv}|

(the true log normaliser has :math:`\log|W|`, which is never larger than the sum of both). If the second
block keeps the covariance of its prior and only moves its mean, :math:`\operatorname{tr}(W_{vv} - I)`
takes the place of the last log-determinant.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpvi.approximations._orthogonal_solve import Precision, solve_by_blocks, value_at_maximum
from gpvi.approximations._random import standard_normal
from gpvi.approximations.sites import Sites
from gpvi.approximations.whitened import WhitenedGaussian
from gpvi.linalg import (
    log_det_from_cholesky,
    mat_vec,
    safe_cholesky,
    solve_lower_transposed_vec,
    solve_lower_vec,
    sum_of_squares,
)


@dataclass(frozen=True, eq=False)
class MovedNormal:
    """``q(e) = N(m, I)``: a prior with another mean.

    Parameters
    ----------
    mean : Tensor, shape [*b, K]
        ``m``.
    """

    mean: Tensor

    def log_normaliser(self) -> Tensor:
        """``log E exp(m'e)`` under the prior, shape [*b]."""
        return 0.5 * self.mean.square().sum(-1)

    def kl(self) -> Tensor:
        """``KL(q(e) || N(0, I))``, shape [*b]."""
        return 0.5 * self.mean.square().sum(-1)

    def as_sites(self) -> Sites:
        """Sites on the whitened block that make this q."""
        return Sites(self.mean, torch.zeros_like(torch.diag_embed(self.mean)), on="whitened")

    def log_ratio(self, whitened: Tensor) -> Tensor:
        """``log N(e | 0, I) - log q(e)``, shape [*S, *b]."""
        return -((whitened - 0.5 * self.mean) * self.mean).sum(-1)

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``F'e``, shape [*b, N]."""
        mean = mat_vec(features.mT, self.mean)
        return mean, sum_of_squares(features)

    def covariance(self, features: Tensor) -> Tensor:
        """Covariance of ``F'e``, shape [*b, N, N]."""
        return features.mT @ features

    def rsample(
        self, shape: torch.Size | tuple[int, ...], generator: torch.Generator | None
    ) -> Tensor:
        """Reparametrised samples of e, shape [*S, *b, K]."""
        return self.mean + standard_normal((*shape, *self.mean.shape), self.mean, generator)


@dataclass(frozen=True, eq=False)
class BlockGaussian:
    """Two independent blocks of e.

    Parameters
    ----------
    base : WhitenedGaussian
        q of the first block.
    orthogonal : WhitenedGaussian or MovedNormal
        q of the second.
    normaliser : Tensor, shape [*b]
        Lower bound on ``log E exp(h'e - e'(W - I)e/2)`` that goes with them.
    """

    base: WhitenedGaussian
    orthogonal: WhitenedGaussian | MovedNormal
    normaliser: Tensor

    @classmethod
    def best(
        cls, precision: Precision, shift: Tensor, split: int, *, moved: bool
    ) -> "BlockGaussian":
        """The best approximation of ``N(W^-1 h, W^-1)``.

        Parameters
        ----------
        precision : Precision
            ``W``.
        shift : Tensor, shape [*b, n]
            ``h``.
        split : int
            Size of the first block.
        moved : bool
            Whether the second block keeps the covariance of its prior.

        Returns
        -------
        BlockGaussian
            On the graph.
        """
        parts = (slice(None, split), slice(split, None))
        blocks = [precision.block(part) for part in parts]
        name = "diagonal block of the posterior precision (indefinite if a site precision is too negative)"
        factors = [safe_cholesky(block, name=name).factor for block in blocks]
        mean = solve_by_blocks(precision, (factors[0], factors[1]), shift)
        value = value_at_maximum(precision, shift, mean)
        value = value - 0.5 * log_det_from_cholesky(factors[0])
        base, other = (
            WhitenedGaussian(mat_vec(factor, mat_vec(factor.mT, mean[..., part])), factor)
            for factor, part in zip(factors, parts, strict=True)
        )
        if not moved:
            return cls(base, other, value - 0.5 * log_det_from_cholesky(factors[1]))
        excess = blocks[1].diagonal(dim1=-2, dim2=-1) - 1.0
        return cls(base, MovedNormal(mean[..., split:]), value - 0.5 * excess.sum(-1))

    @property
    def mean(self) -> Tensor:
        """Mean of e, shape [*b, n]."""
        return torch.cat([self.base.mean, self.orthogonal.mean], -1)

    def own(self) -> "BlockGaussian":
        """The same q, with the normaliser of sites that leave the blocks independent."""
        value = self.base.log_normaliser() + self.orthogonal.log_normaliser()
        return BlockGaussian(self.base, self.orthogonal, value)

    def log_normaliser(self) -> Tensor:
        """Lower bound on the log normaliser, shape [*b]."""
        return self.normaliser

    def kl(self) -> Tensor:
        """``KL(q(e) || N(0, I))``, shape [*b]."""
        return self.base.kl() + self.orthogonal.kl()

    def as_sites(self) -> Sites:
        """Sites on the whitened basis that make this q exactly."""
        first, second = self.base.as_sites(), self.orthogonal.as_sites()
        M, K = first.lam1.shape[-1], second.lam1.shape[-1]
        pad = torch.nn.functional.pad
        lam2 = torch.cat([pad(first.lam2, (0, K)), pad(second.lam2, (M, 0))], -2)
        return Sites(torch.cat([first.lam1, second.lam1], -1), lam2, on="whitened")

    def log_ratio(self, whitened: Tensor) -> Tensor:
        """``log N(e | 0, I) - log q(e)``, shape [*S, *b]."""
        first, second = self._split(whitened, -1)
        return self.base.log_ratio(first) + self.orthogonal.log_ratio(second)

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``F'e``, shape [*b, N]."""
        first, second = self._split(features, -2)
        mean1, variance1 = self.base.project(first)
        mean2, variance2 = self.orthogonal.project(second)
        return mean1 + mean2, variance1 + variance2

    def covariance(self, features: Tensor) -> Tensor:
        """Covariance of ``F'e``, shape [*b, N, N]."""
        first, second = self._split(features, -2)
        return self.base.covariance(first) + self.orthogonal.covariance(second)

    def rsample(
        self, shape: torch.Size | tuple[int, ...], generator: torch.Generator | None
    ) -> Tensor:
        """Reparametrised samples of e, shape [*S, *b, n]."""
        parts = [block.rsample(shape, generator) for block in (self.base, self.orthogonal)]
        return torch.cat(parts, -1)

    def path_weights(
        self, prior_factor: Tensor, path: Tensor, generator: torch.Generator
    ) -> Tensor:
        """As :meth:`WhitenedGaussian.path_weights`, shape [S, *b, n]."""
        gap = self.rsample(path.shape[:1], generator) - solve_lower_vec(prior_factor, path)
        return solve_lower_transposed_vec(prior_factor, gap)

    def _split(self, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        size = self.base.shift.shape[-1]
        return values.narrow(dim, 0, size), values.narrow(dim, size, values.shape[dim] - size)
