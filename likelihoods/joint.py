"""Covariances between new observations at several inputs.

Given their latent values, observations are independent, so two of them covary through the latent
Gaussian alone: Cov(y_i, y_j) = Cov(E[y_i | f_i], E[y_j | f_j]) by the law of total covariance.
Without a closed form, Mehler's series (Mehler, 1866; Slepian, 1972, "On the symmetrized Kronecker
power of a matrix and extensions of Mehler's formula for Hermite polynomials") turns the N^2
two-dimensional integrals into N one-dimensional ones per term.
"""

import torch
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError, UnsupportedError
from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.censored_normal import CensoredGaussianLikelihood
from gpvi.likelihoods.gaussian import ClosedFormGaussian
from gpvi.likelihoods.laplace import ClosedFormLaplace
from gpvi.likelihoods.moments import aligned, drop_leading_ones
from gpvi.likelihoods.student_t import ClosedFormStudentT
from gpvi.linalg.quadrature import floored_variance, uniform_rule

__all__ = ["observation_covariance"]

# Noise about f, whose distribution does not depend on f.
_SHIFTED = (ClosedFormGaussian, ClosedFormStudentT, ClosedFormLaplace, CensoredGaussianLikelihood)
# The rule reaches beyond the standard normal because Hermite polynomials grow; its step resolves
# their oscillations up to this many terms.
_STEP, _HALF_WIDTH, _MAX_TERMS = 0.125, 12.0, 256
# Terms this small against the variances are the last.
_NEGLIGIBLE = 1e-13
# Most numbers that one temporary holds; small enough for the processor's cache.
_BLOCK = 250_000


def observation_covariance(
    likelihood: Likelihood, mean: Tensor, covariance: Tensor, **rows: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Joint mean and covariance of new observations y at N inputs.

    .. math:: \mathrm{Cov}(y_i, y_j) = \mathrm{Cov}(g_i(f_i), g_j(f_j)) + \delta_{ij}
              \mathrm{E}[\mathrm{Var}(y_i \mid f_i)], \qquad g_i(f) = \mathrm{E}[y_i \mid f]

    for f ~ N(mean, covariance). With noise about f (Gaussian, Student-t, Laplace) the first part is
    the covariance of f itself, with means proportional to :math:`e^f` (counts with the log link,
    survival times) it is :math:`\mu_i \mu_j (e^{C_{ij}} - 1)` for the means :math:`\mu` of y.
    Otherwise it is Mehler's series

    .. math:: \sum_{k \ge 1} a_{ik} a_{jk} \rho_{ij}^k, \qquad a_{ik} =
              \mathrm{E}\!\left[g_i(m_i + \sqrt{v_i} x)\, He_k(x)\right] / \sqrt{k!}, \quad
              x \sim N(0, 1)

    over the correlations :math:`\rho_{ij}` of f: a sum of positive semi-definite matrices, exact
    for every correlation including -1 and 1. Terms are added until they are negligible, at most
    256, which suffices to 1e-6 unless :math:`g` is a step of less than a fifth of the standard
    deviation of f; each costs O(N^2).

    Parameters
    ----------
    likelihood : Likelihood
        One latent per observation.
    mean : Tensor
        Mean of f, `[*b, N]`.
    covariance : Tensor
        Covariance of f, `[*b, N, N]`.
    **rows : Tensor
        Row extras of the new rows.

    Returns
    -------
    mean : Tensor
        `[*b, N]`, as from `predict_mean_var`.
    covariance : Tensor
        `[*b, N, N]`, symmetric, with the variances from `predict_mean_var` on the diagonal.
        Off the diagonal without gradient where the series is used.

    Raises
    ------
    InputError
        If the shapes do not fit together.
    UnsupportedError
        If the likelihood has several latents.
    NumericalError
        If the conditional mean of y is not finite within twelve standard deviations of f.

    References
    ----------
    Slepian, D. (1972). On the symmetrized Kronecker power of a matrix and extensions of Mehler's
    formula for Hermite polynomials. SIAM Journal on Mathematical Analysis.

    Examples
    --------
    >>> from gpvi.likelihoods import BernoulliLikelihood
    >>> covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    >>> observation_covariance(BernoulliLikelihood(), torch.zeros(2), covariance)[1]
    tensor([[0.2500, 0.0655],
            [0.0655, 0.2500]])
    """
    _check(likelihood, mean, covariance)
    variance = covariance.diagonal(dim1=-1, dim2=-2)
    centre, total = likelihood.predict_mean_var(mean, variance, **rows)
    covariance = 0.5 * (covariance + covariance.mT)
    if isinstance(likelihood, _SHIFTED):
        shared = covariance
    elif likelihood.has_exponential_mean:
        shared = centre.unsqueeze(-1) * centre.unsqueeze(-2) * torch.expm1(covariance)
    else:
        shared = _series(likelihood, mean, covariance, rows).to(total)
    on_diagonal = torch.eye(mean.shape[-1], dtype=torch.bool, device=mean.device)
    return centre, torch.where(on_diagonal, total.unsqueeze(-1), shared)


def _check(likelihood: Likelihood, mean: Tensor, covariance: Tensor) -> None:
    name = type(likelihood).__name__
    if not isinstance(likelihood, Likelihood):
        raise InputError(
            f"observation_covariance needs a likelihood of gpvi, got {name}. Convert it by "
            "gpvi.likelihoods.as_likelihood."
        )
    if likelihood.num_latents > 1:
        raise UnsupportedError(
            f"{name} has {likelihood.num_latents} latents; joint covariances need one. Use "
            "predict_mean_var, row by row."
        )
    if mean.dim() < 1 or covariance.shape != (*mean.shape, mean.shape[-1]):
        raise InputError(
            f"mean has shape {tuple(mean.shape)} and covariance {tuple(covariance.shape)}. Pass "
            "[*b, N] and [*b, N, N]."
        )


@torch.no_grad()
def _series(
    likelihood: Likelihood, mean: Tensor, covariance: Tensor, rows: dict[str, Tensor]
) -> Tensor:
    """Covariance of the conditional means by Mehler's series, in float64."""
    mean, covariance = mean.double(), covariance.double()
    # A floor under the standard deviations alters nothing: the first term restores the covariance.
    scale = floored_variance(mean, covariance.diagonal(dim1=-1, dim2=-2)).sqrt()
    correlation = covariance / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    coefficients = _coefficients(likelihood, mean, scale, rows)
    batch = torch.broadcast_shapes(coefficients.shape[1:-1], mean.shape[:-1])
    num_rows = mean.shape[-1]
    coefficients = coefficients.expand(-1, *batch, num_rows)
    correlation = correlation.clamp(-1, 1).expand(*batch, num_rows, num_rows)
    block = max(1, _BLOCK // max(1, batch.numel() * num_rows))
    parts = zip(correlation.split(block, -2), coefficients.split(block, -1), strict=True)
    return torch.cat([_summed(part, left, coefficients) for part, left in parts], dim=-2)


def _coefficients(
    likelihood: Likelihood, mean: Tensor, scale: Tensor, rows: dict[str, Tensor]
) -> Tensor:
    """Hermite coefficients a_k of the conditional means for k >= 1, `[K, *b, N]`."""
    given = {name: torch.as_tensor(value) for name, value in rows.items() if value is not None}
    mean, scale, natural_dims = aligned(mean, scale, given.values(), likelihood.parameters())
    rule = uniform_rule(_STEP, _HALF_WIDTH).like(mean)
    nodes = rule.nodes.reshape(-1, *[1] * max(mean.dim(), scale.dim()))
    values = likelihood.forward(mean + scale * nodes, **given).mean.to(mean)
    if not bool(values.isfinite().all()):
        raise NumericalError(
            f"{type(likelihood).__name__} gives an observation without finite mean within "
            f"{_HALF_WIDTH:g} standard deviations of f. Check the mean and covariance of f."
        )
    # Orthonormal Hermite functions; with half the weight inside, nothing overflows.
    half_weight = (0.5 * rule.log_weights).exp()
    before, now = torch.zeros_like(half_weight), half_weight
    functions = []
    for k in range(_MAX_TERMS):
        following = (rule.nodes * now - k**0.5 * before) / (k + 1) ** 0.5
        before, now = now, following
        functions.append(now * half_weight)
    coefficients = torch.tensordot(torch.stack(functions), values, dims=1)
    kept = _num_terms(coefficients)
    return torch.stack([drop_leading_ones(term, natural_dims) for term in coefficients[:kept]])


def _num_terms(coefficients: Tensor) -> int:
    """How many terms matter at a correlation of one."""
    power = coefficients.square()
    relative = (power / power.sum(0).clamp_min(torch.finfo(power.dtype).tiny)).flatten(1).amax(1)
    matters = (relative > _NEGLIGIBLE).nonzero()
    return int(matters.max()) + 1 if len(matters) else 1


def _summed(correlation: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Series for some rows: correlation `[*b, n, N]`, coefficients `[K, *b, n]`, `[K, *b, N]`."""
    total, power = torch.zeros_like(correlation), torch.ones_like(correlation)
    for a, b in zip(left, right, strict=True):
        power = power * correlation
        total.addcmul_(a.unsqueeze(-1) * b.unsqueeze(-2), power)
    return total
