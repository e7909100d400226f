r"""The Gaussian that finite-feature posteriors share, in whitened coordinates.

With :math:`f = m + F^\top e + \text{residual}` and :math:`e \sim N(0, I)` a priori, Gaussian sites
of any kind give :math:`q(e) = N(W^{-1} h, W^{-1})` with :math:`W = I + F \Lambda F^\top`.
Everything an objective needs follows from :math:`h` and the Cholesky factor :math:`R` of :math:`W`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from gpvi.approximations._lazy import on_graph
from gpvi.approximations._random import standard_normal
from gpvi.approximations.sites import Sites
from gpvi.linalg import (
    log_det_from_cholesky,
    lower_sum_of_squares,
    mat_vec,
    multiply_lower,
    safe_cholesky,
    solve_lower,
    solve_lower_transposed_vec,
    solve_lower_vec,
)

__all__ = ["WhitenedGaussian"]

# Rows whose slopes are computed at a time.
_SLOPE_ROWS = 512


@dataclass(frozen=True, eq=False)
class WhitenedGaussian:
    """``q(e) = N(W^-1 h, W^-1)`` against the prior ``N(0, I)``.

    Parameters
    ----------
    shift : Tensor, shape [*b, M]
        ``h``.
    factor : Tensor, shape [*b, M, M]
        Lower Cholesky factor ``R`` of the precision ``W``.
    """

    shift: Tensor
    factor: Tensor

    @classmethod
    def from_precision(cls, shift: Tensor, precision: Tensor) -> Self:
        """Factorise the precision ``W``.

        Parameters
        ----------
        shift : Tensor, shape [*b, M]
            ``h``.
        precision : Tensor, shape [*b, M, M]
            ``W``.

        Returns
        -------
        WhitenedGaussian
            Ready to use.
        """
        name = "posterior precision I + F Lam F' (indefinite if a site precision is too negative)"
        return cls(shift, safe_cholesky(precision, name=name).factor)

    @cached_property
    def _half_mean(self) -> Tensor:
        with on_graph():
            return solve_lower_vec(self.factor, self.shift)

    @cached_property
    def mean(self) -> Tensor:
        """``W^-1 h``, shape [*b, M]."""
        with on_graph():
            return solve_lower_transposed_vec(self.factor, self._half_mean)

    @cached_property
    def inverse_factor(self) -> Tensor:
        """``R^-1``, shape [*b, M, M]. W has no small eigenvalues, which makes the explicit inverse safe."""
        with on_graph():
            eye = torch.eye(
                self.factor.shape[-1], dtype=self.factor.dtype, device=self.factor.device
            )
            return solve_lower(self.factor, eye.expand_as(self.factor))

    def log_normaliser(self) -> Tensor:
        """``log E exp(h'e - e'(W - I)e/2)`` under the prior, shape [*b]."""
        return 0.5 * (self._half_mean.square().sum(-1) - log_det_from_cholesky(self.factor))

    def kl(self) -> Tensor:
        """``KL(q(e) || N(0, I))``, shape [*b]."""
        size = self.factor.shape[-1]
        trace = self.inverse_factor.square().sum((-2, -1))
        return 0.5 * (
            trace + self.mean.square().sum(-1) - size + log_det_from_cholesky(self.factor)
        )

    def as_sites(self) -> Sites:
        """Sites on the whitened basis that make this q.

        Returns
        -------
        Sites
            With a full ``lam2``.
        """
        eye = torch.eye(self.factor.shape[-1], dtype=self.factor.dtype, device=self.factor.device)
        precision = self.factor @ self.factor.mT - eye
        precision = precision.expand(*self.shift.shape, precision.shape[-1])
        return Sites(self.shift, precision, on="whitened")

    def log_ratio(self, whitened: Tensor) -> Tensor:
        """``log N(e | 0, I) - log q(e)``.

        Parameters
        ----------
        whitened : Tensor, shape [*S, *b, M]
            Values e.

        Returns
        -------
        Tensor, shape [*S, *b]
            Log weights of the prior against q.
        """
        scaled = mat_vec(self.factor.mT, whitened - self.mean).square().sum(-1)
        log_det = log_det_from_cholesky(self.factor)
        return 0.5 * (scaled - whitened.square().sum(-1) - log_det)

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``F'e``.

        Parameters
        ----------
        features : Tensor, shape [*b, M, N]
            ``F``.

        Returns
        -------
        mean, variance : Tensor, shape [*b, N]
            Moments; the variance is a sum of squares.
        """
        mean = mat_vec(features.mT, self.mean)
        return mean, lower_sum_of_squares(self.inverse_factor, features)

    def slopes(
        self, features: Tensor, sites: Sites, at: Tensor, mean: Tensor, explained: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of ``log Z + sum(mean * m + explained * v)`` at held data sites.

        With ``S = W^-1``, ``p = lam1 - lam2 m``, ``a = S F mean``, the derivative by the prior mean is
        ``b = p + mean - lam2 F'a``, and that by F is
        ``mu b' + a p' + S F diag(2 explained - lam2) - 2 S F diag(explained) F' S F diag(lam2)``.

        Parameters
        ----------
        features : Tensor, shape [*b, M, N]
            ``F``.
        sites : Sites
            On the rows; q(e) is the result of conditioning on them.
        at : Tensor, shape [*b, N]
            Marginal means m.
        mean, explained : Tensor, shape [*b, N]
            Weights of means and of variances ``v = diag(F' S F)``.

        Returns
        -------
        by_features : Tensor, shape [*b, M, N]
            Derivative by F.
        by_mean : Tensor, shape [*b, N]
            Derivative by the prior mean of the rows.
        """
        inverse, chunk = self.inverse_factor, _SLOPE_ROWS
        rest = sites.lam1 - sites.lam2 * at
        pull = mat_vec(inverse.mT, mat_vec(inverse, mat_vec(features, mean)))
        by_mean = rest + mean - sites.lam2 * mat_vec(features.mT, pull)
        # Chunks of rows [n, M] stay in the cache; stationary features are stored that way round.
        halves = [multiply_lower(inverse, part).mT for part in features.split(chunk, -1)]
        weights = explained.unsqueeze(-1).split(chunk, -2)
        inner = sum((w * rows).mT @ rows for w, rows in zip(weights, halves, strict=True))
        outer = torch.stack([self.mean, pull], -2)
        by_outer = torch.stack([by_mean, rest], -1).split(chunk, -2)
        scales = sites.lam2.unsqueeze(-1).split(chunk, -2)
        slopes = []
        for rows, w, scale, left in zip(halves, weights, scales, by_outer, strict=True):
            part = ((rows @ inner) * (-2.0 * scale)).addcmul_(rows, 2.0 * w - scale)
            part = multiply_lower(inverse, part.mT, transposed=True).mT
            slopes.append(part + left @ outer)
        return torch.cat(slopes, -2).mT, by_mean

    def covariance(self, features: Tensor) -> Tensor:
        """Covariance of ``F'e``, shape [*b, N, N]."""
        half = solve_lower(self.factor, features)
        return half.mT @ half

    def path_weights(
        self, prior_factor: Tensor, path: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Weights ``L^-T (e - L^-1 g)`` that move basis values of prior paths to draws of q.

        Parameters
        ----------
        prior_factor : Tensor, shape [*b, M, M]
            ``L``, the Cholesky factor of the prior covariance of the basis.
        path : Tensor, shape [S, *b, M]
            Basis values g of draws of the prior, without its mean.
        generator : torch.Generator
            Source of randomness for e.

        Returns
        -------
        Tensor, shape [S, *b, M]
            To be multiplied by covariances with the basis values.
        """
        gap = self.rsample(path.shape[:1], generator) - solve_lower_vec(prior_factor, path)
        return solve_lower_transposed_vec(prior_factor, gap)

    def rsample(
        self, shape: torch.Size | tuple[int, ...], generator: torch.Generator | None
    ) -> Tensor:
        """Reparametrised samples of e, shape [*S, *b, M]."""
        noise = standard_normal((*shape, *self.mean.shape), self.shift, generator)
        return self.mean + solve_lower_transposed_vec(self.factor, noise)
