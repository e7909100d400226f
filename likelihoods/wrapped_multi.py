"""GPyTorch likelihoods with several latent functions behind one observation.

The multitask Gaussian stays in closed form. For softmax and its like, expectations over the L
latents use one fixed cubature rule: scrambled Sobol points mapped to a Gaussian, taken with both
signs and brought to unit covariance, hence exact for cubic polynomials (Dick and Pillichshammer,
2010, "Digital Nets and Sequences"). The same points serve every row, so a minibatch sees the same
objective as the full data and nothing depends on a random generator.
"""

import math

import gpytorch
import torch
from gpytorch.likelihoods.multitask_gaussian_likelihood import _MultitaskGaussianLikelihoodBase
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.moments import in_support, mean_and_variance
from gpvi.linalg.quadrature import floored_variance

__all__ = ["WrappedMultiLatent", "WrappedMultitaskGaussian"]

_NUM_POINTS = 64
_SEED = 0


def _cubature(num_latents: int) -> Tensor:
    """Points `[S, L]` of an equally weighted rule for N(0, I), in float64."""
    # At least twice as many points as dimensions; a power of two keeps Sobol points balanced.
    num_points = max(_NUM_POINTS, 2 ** math.ceil(math.log2(2 * num_latents)))
    engine = torch.quasirandom.SobolEngine(num_latents, scramble=True, seed=_SEED)
    uniform = engine.draw(num_points, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    points = torch.special.ndtri(uniform)
    factor = torch.linalg.cholesky(points.mT @ points / num_points)
    points = torch.linalg.solve_triangular(factor, points.mT, upper=False).mT
    return torch.cat([points, -points])


class WrappedMultiLatent(Likelihood):
    """A likelihood whose `forward` maps `[..., N, L]` to a distribution over `[..., N]`.

    Parameters
    ----------
    wrapped : gpytorch.likelihoods.Likelihood
        The likelihood to wrap; its `num_features` or `num_tasks` is the number of latents.
    """

    def __init__(self, wrapped: gpytorch.likelihoods.Likelihood) -> None:
        super().__init__()
        self.wrapped = wrapped
        features = getattr(wrapped, "num_features", None)
        self.num_latents = int(wrapped.num_tasks if features is None else features)
        self.is_log_concave = isinstance(wrapped, gpytorch.likelihoods.SoftmaxLikelihood)
        # Not a buffer, for the same reason as the quadrature nodes.
        self._points = _cubature(self.num_latents)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        self._extras(rows, function_samples, function_samples.shape[-2])
        if isinstance(self.wrapped, gpytorch.likelihoods.SoftmaxLikelihood):
            # GPyTorch's own forward transposes where a batch has as many rows as latents.
            weights = self.wrapped.mixing_weights
            if weights is None:
                return Categorical(logits=function_samples)
            return Categorical(logits=function_samples @ weights.to(function_samples).mT)
        return self.wrapped.forward(function_samples)

    def _spread(self, mean: Tensor, variance: Tensor, batch_dims: int = 0) -> Tensor:
        """Cubature points of f, `[S, *b, N, L]`, from moments `[*b, L, N]`.

        With `batch_dims`, b has at least that many dimensions, so that batched targets meet it.
        """
        if mean.dim() < 2 or mean.shape[-2] != self.num_latents:
            raise InputError(
                f"{type(self.wrapped).__name__} has {self.num_latents} latents, but the mean has "
                f"shape {tuple(mean.shape)}. Pass moments of shape [*b, L, N]."
            )
        points = self._points.to(mean)
        lead = max(mean.dim() - 2, batch_dims)
        points = points.reshape(-1, *[1] * (lead + 1), self.num_latents)
        return mean.mT + floored_variance(mean, variance).sqrt().mT * points

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        return self.forward(function_samples).log_prob(y)

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        return self._log_prob(self._spread(mean, variance, y.dim() - 1), y).mean(0)

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        log_prob = self._log_prob(self._spread(mean, variance, y.dim() - 1), y)
        return log_prob.logsumexp(0) - math.log(len(log_prob))

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        inner_mean, inner_variance = mean_and_variance(self.forward(self._spread(mean, variance)))
        centre = inner_mean.mean(0)
        return centre, (inner_variance + (inner_mean - centre).square()).mean(0)

    def _fill(self, y: Tensor, missing: Tensor) -> Tensor:
        return torch.where(missing, torch.zeros_like(y), y)

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        shape = (*y.shape, self.num_latents)
        conditional = self.forward(torch.zeros(shape, dtype=y.dtype, device=y.device))
        bad = y[observed & ~in_support(conditional, y)]
        if len(bad):
            raise InputError(
                f"{type(self.wrapped).__name__} cannot explain the target {bad[0].item()}: it is "
                "outside the support. Encode classes as 0, 1, ..., C - 1."
            )


class WrappedMultitaskGaussian(Likelihood):
    r"""Gaussian noise with a covariance across outputs; targets `[*b, N, P]`, moments `[*b, P, N]`.

    .. math:: \mathrm{E}[\log N(y_n \mid f_n, \Sigma)] = \log N(y_n \mid m_n, \Sigma)
              - \tfrac12 \mathrm{tr}(\Sigma^{-1} \mathrm{diag}(v_n))

    With correlated noise (`rank > 0`) this is the expectation itself, where GPyTorch keeps only the
    diagonal of the noise. A row counts as observed when all of its outputs are.

    Parameters
    ----------
    wrapped : gpytorch.likelihoods.MultitaskGaussianLikelihood
        The likelihood to wrap.
    """

    is_log_concave = True
    target_dims = 1

    def __init__(self, wrapped: _MultitaskGaussianLikelihoodBase) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.num_latents = int(wrapped.num_tasks)

    def _noise_covariance(self, like: Tensor) -> Tensor:
        """Noise covariance of one row, `[..., P, P]`."""
        covariance = self.wrapped._shaped_noise_covar(torch.Size([1, self.num_latents]))
        return covariance.to_dense().to(like)

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Distribution:
        self._extras(rows, function_samples, function_samples.shape[-2])
        noise = self._noise_covariance(function_samples).diagonal(dim1=-1, dim2=-2)
        deviation = noise.sqrt().unsqueeze(-2).expand(function_samples.shape)
        return Independent(Normal(function_samples, deviation), 1)

    def marginal(
        self, q_f: gpytorch.distributions.MultitaskMultivariateNormal, **rows: Tensor
    ) -> gpytorch.distributions.MultitaskMultivariateNormal:
        """Return the joint normal distribution of y, GPyTorch's own.

        Parameters
        ----------
        q_f : MultitaskMultivariateNormal
            Distribution of f over `[*b, N, P]`.
        **rows : Tensor
            Row extras; none matters here.

        Returns
        -------
        MultitaskMultivariateNormal
            Distribution of y.
        """
        self._extras(rows, q_f.mean, q_f.mean.shape[-2])
        return self.wrapped.marginal(q_f)

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(self._noise_covariance(function_samples)).unsqueeze(-3)
        return _log_normal(y - function_samples, factor)

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        factor = torch.linalg.cholesky(self._noise_covariance(mean))
        precision = torch.cholesky_inverse(factor).diagonal(dim1=-1, dim2=-2)
        trace = (precision.unsqueeze(-1) * variance).sum(-2)
        return _log_normal(y - mean.mT, factor.unsqueeze(-3)) - 0.5 * trace

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        total = self._noise_covariance(mean).unsqueeze(-3) + torch.diag_embed(variance.mT)
        return _log_normal(y - mean.mT, torch.linalg.cholesky(total))

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        noise = self._noise_covariance(mean).diagonal(dim1=-1, dim2=-2).unsqueeze(-2)
        total = variance.mT + noise
        return mean.mT.expand(total.shape), total

    def _fill(self, y: Tensor, missing: Tensor) -> Tensor:
        return torch.where(missing.unsqueeze(-1), torch.zeros_like(y), y)

    def _check_targets(self, y: Tensor, observed: Tensor) -> None:
        if y.shape[-1] != self.num_latents:
            raise InputError(
                f"{type(self.wrapped).__name__} has {self.num_latents} outputs, but the targets "
                f"have shape {tuple(y.shape)}. Pass [*b, N, P]."
            )
        partial = ~observed & ~y.isnan().all(-1)
        if bool(partial.any()):
            raise InputError(
                f"{type(self.wrapped).__name__} needs rows with all outputs or none, but "
                f"{int(partial.sum())} row(s) have some. Use one likelihood per output."
            )


def _log_normal(residual: Tensor, factor: Tensor) -> Tensor:
    """log N(residual | 0, factor factor'), residual `[..., N, P]`, factor `[..., 1 or N, P, P]`."""
    size = residual.shape[-1]
    shape = torch.broadcast_shapes(factor.shape[:-2], residual.shape[:-1])
    factor = factor.expand(*shape, size, size)
    white = torch.linalg.solve_triangular(
        factor, residual.expand(*shape, size).unsqueeze(-1), upper=False
    ).squeeze(-1)
    log_determinant = factor.diagonal(dim1=-1, dim2=-2).log().sum(-1)
    return -0.5 * (white.square().sum(-1) + size * math.log(2 * math.pi)) - log_determinant
