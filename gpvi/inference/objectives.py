r"""Evidence lower bounds as plain functions of any posterior.

``elbo`` is :math:`\sum_n E_q \log p(y_n \mid f_n) - KL(q \| p)`. ``tighter_elbo`` also lets the
part of f that the basis leaves open shrink: :math:`q(f \mid u)` keeps the prior's conditional mean
and scales its covariance :math:`D`, which costs :math:`\tfrac N2 (v - \log v - 1)` for one scale
:math:`v` and, with a Gaussian likelihood and one scale per row, turns :math:`-\tfrac12
d_n/\sigma_n^2` into :math:`-\tfrac12 \log(1 + d_n/\sigma_n^2)`. It is never below the ELBO and
never above the evidence; predictions are unchanged.

References
----------
Titsias, M. (2025). New bounds for sparse variational Gaussian processes. ICML.
"""

from collections.abc import Callable

import torch
from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import Marginals, Posterior
from gpvi.exceptions import InputError
from gpvi.inference.data_term import data_term
from gpvi.likelihoods import Likelihood, as_likelihood

__all__ = ["elbo", "optimal_log_v", "tighter_data_term", "tighter_elbo"]

# Root finding for log v: bracket, iterations and tolerance.
_LOG_V_RANGE = (-30.0, 10.0)
_SCALE_ITERATIONS = 60
_SCALE_TOLERANCE = 1e-10
_BISECT_EVERY = 10


def elbo(
    posterior: Posterior,
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    num_data: int | None = None,
    *,
    weights: Tensor | None = None,
    **rows: Tensor,
) -> Tensor:
    r"""Evidence lower bound, total nats.

    Parameters
    ----------
    posterior : Posterior
        q, at the rows of ``y``.
    likelihood : gpytorch or gpvi likelihood
        Any.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    num_data : int, optional
        Rows of the whole data set when these are a minibatch: scales the data term, not the KL. The
        posterior must then be about all data (sites tied to the basis).
    weights : Tensor, shape [N], optional
        Row weights.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    Tensor, shape [*b] (or [G, *b] for flat groups)
        Without the latent dim for likelihoods of several latents.

    Raises
    ------
    InputError
        For a minibatch of a posterior whose sites are those of the minibatch itself: its KL is not
        that of the whole data, and scaling the sites instead gives a biased value. Also if data
        term and KL have different batch shapes.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import Exact, GaussianProcess, Sites
    >>> from gpvi.likelihoods import GaussianLikelihood
    >>> x, y = torch.zeros(1, 1).double(), torch.zeros(1).double()
    >>> prior = Exact().prior(GaussianProcess(gpytorch.kernels.RBFKernel().double()), x)
    >>> noise = torch.ones(1).double()
    >>> posterior = prior.condition(Sites(y / noise, 1 / noise))
    >>> round(elbo(posterior, GaussianLikelihood(noise=1.0), y).item(), 4)  # log N(0 | 0, 2)
    -1.2655
    """
    model = as_likelihood(likelihood)
    term = data_term(model, y, posterior.marginals(), weights=weights, **rows)
    return assemble(posterior, model, term, num_data)


def tighter_elbo(
    posterior: Posterior,
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    num_data: int | None = None,
    *,
    weights: Tensor | None = None,
    log_v: Tensor | None = None,
    **rows: Tensor,
) -> Tensor:
    r"""Tightened evidence lower bound, total nats; the ELBO where the basis leaves nothing open.

    Parameters
    ----------
    posterior : Posterior
        q, at the rows of ``y``.
    likelihood : gpytorch or gpvi likelihood
        Any; for a Gaussian one the scale of every row is optimal in closed form.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    num_data : int, optional
        Rows of the whole data set when these are a minibatch.
    weights : Tensor, shape [N], optional
        Row weights.
    log_v : Tensor, shape broadcastable to [*b], optional
        Log residual scale; any value gives a bound. If left out, the optimum for these rows.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    Tensor, shape [*b] (or [G, *b] for flat groups)
        Without the latent dim for likelihoods of several latents.

    Raises
    ------
    InputError
        As :func:`elbo`; and for a minibatch of a likelihood that is not Gaussian without ``log_v``:
        a scale chosen batch by batch would make the estimate exceed the bound in expectation.

    References
    ----------
    Titsias, M. (2025). New bounds for sparse variational Gaussian processes. ICML.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import GaussianProcess, InducingPoints, Sites
    >>> from gpvi.likelihoods import GaussianLikelihood
    >>> x = torch.linspace(0, 2, 5).double().unsqueeze(-1)
    >>> gp = GaussianProcess(gpytorch.kernels.RBFKernel().double())
    >>> posterior = InducingPoints(inducing_points=x[::2]).prior(gp, x).condition(Sites.zeros((5,)))
    >>> y, model = x[:, 0].sin(), GaussianLikelihood(noise=0.1)
    >>> bool(tighter_elbo(posterior, model, y) > elbo(posterior, model, y))
    True
    """
    marginals = posterior.marginals()
    model = as_likelihood(likelihood)
    if log_v is None and _needs_scale(model, y, marginals, rows):
        if num_data is not None and num_data != y.shape[-1]:
            raise InputError(
                f"tighter_elbo of {y.shape[-1]} rows out of {num_data} with "
                f"{type(likelihood).__name__} needs log_v (one number, held or learned across "
                "batches)."
            )
        log_v = optimal_log_v(model, y, marginals, weights=weights, **rows)
    term, cost = tighter_data_term(model, y, marginals, weights=weights, log_v=log_v, **rows)
    return assemble(posterior, model, term, num_data, cost)


def tighter_data_term(
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    marginals: Marginals,
    *,
    weights: Tensor | None = None,
    log_v: Tensor | None = None,
    **rows: Tensor,
) -> tuple[Tensor, Tensor | None]:
    r"""Row terms of the tightened bound: expected log likelihood, and what the shrinking costs.

    A row of weight w counts as :math:`\max(w, 1)` rows whose residuals shrink one by one, so that an
    integer weight equals repeated rows.

    Parameters
    ----------
    likelihood : gpytorch or gpvi likelihood
        Any.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    marginals : Marginals, shape [*b, N]
        Moments of q(f).
    weights : Tensor, shape [N], optional
        Row weights.
    log_v : Tensor, shape broadcastable to [*b], optional
        Log residual scale. If left out, the optimum of every row for a Gaussian likelihood, and no
        shrinking for any other.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    term : Tensor, shape [*b, N]
        Without the latent dim for likelihoods of several latents.
    cost : Tensor, shape [*b, N], or None
        To be subtracted; with the latent dim. None where there is no residual.
    """
    model = as_likelihood(likelihood)
    residual = marginals.residual
    if residual is None:
        return data_term(model, y, marginals, weights=weights, **rows), None
    counts = row_copies(model, y, weights)
    noise = None if log_v is not None else model.gaussian_noise(y, **rows)
    if noise is not None:
        explained = Marginals(marginals.mean, marginals.explained)
        # Extras of rows that do not count may be NaN, which a product with zero would pass on.
        ratio = residual / torch.where(counts > 0, noise, 1.0)
        if weights is not None:
            ratio = ratio * torch.where(counts > 0, weights / counts.clamp_min(1.0), 0.0)
        cost = 0.5 * counts * torch.log1p(ratio)
        return data_term(model, y, explained, weights=weights, **rows), cost
    if log_v is None:
        log_v = torch.zeros_like(marginals.mean[..., 0])
    term = data_term(model, y, marginals, weights=weights, log_v=log_v, **rows)
    return term, scale_cost(counts, log_v, marginals.mean)


def optimal_log_v(
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    marginals: Marginals,
    *,
    weights: Tensor | None = None,
    **rows: Tensor,
) -> Tensor:
    r"""Log residual scale that maximises the tightened bound, off the graph.

    Solves :math:`1/v = 1 + \tfrac1N \sum_n d_n \lambda_{2,n}(v)` for N observed rows, by
    fixed-point and secant steps inside a bracket.

    Parameters
    ----------
    likelihood : gpytorch or gpvi likelihood
        Any.
    y : Tensor, shape [N] or [*b, N]
        Targets.
    marginals : Marginals, shape [*b, N]
        With a residual.
    weights : Tensor, shape [N], optional
        Row weights.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    Tensor, shape [*b]
        One scale per latent function.
    """
    if marginals.residual is None:
        raise InputError("These marginals have no residual, so there is no scale to choose.")
    model = as_likelihood(likelihood)
    fixed = Marginals(
        marginals.mean.detach(),
        marginals.explained.detach(),
        marginals.residual.detach().expand_as(marginals.mean),
    )
    count = row_copies(model, y, weights).expand_as(fixed.mean).sum(-1).clamp_min(1.0)

    def excess(log_v: Tensor) -> Tensor:
        """``log v + log(1 + mean d lam2)``, whose root is the optimum."""
        with torch.enable_grad():
            trial = log_v.requires_grad_()
            term = data_term(model, y, fixed, weights=weights, log_v=trial, **rows)
            (slope,) = torch.autograd.grad(term.sum(), trial)
        # slope = v sum_n d_n dE/dv_n, so sum_n d_n lam2_n = -2 slope / v.
        curvature = -2.0 * slope / log_v.detach().exp() / count
        return log_v.detach() + torch.log((1.0 + curvature).clamp_min(1e-3))

    return _root(excess, torch.zeros_like(fixed.mean[..., 0]))


def scale_cost(copies: Tensor, log_v: Tensor, like: Tensor) -> Tensor:
    """What scaling the residuals by ``exp(log_v)`` costs every row, of the shape of ``like``."""
    return copies * (0.5 * (log_v.exp() - log_v - 1.0)).unsqueeze(-1).expand_as(like)


def _root(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Elementwise root of functions that are negative left and positive right of it.

    The first step assumes slope one (a fixed-point iteration, which may cycle where the residual
    variance is large); later ones use the secant, and bisect where that leaves the bracket and, to
    be safe, now and then.
    """
    low, high = (torch.full_like(start, end) for end in _LOG_V_RANGE)
    point, value = start, function(start.clone())
    step = -value
    tolerance = max(_SCALE_TOLERANCE, 16.0 * torch.finfo(start.dtype).eps)
    for iteration in range(_SCALE_ITERATIONS):
        low, high = torch.where(value < 0, point, low), torch.where(value > 0, point, high)
        trial = point + step
        inside = (trial > low) & (trial < high)
        bisect = ~inside | (iteration % _BISECT_EVERY == _BISECT_EVERY - 1)
        trial = torch.where(bisect, 0.5 * (low + high), trial)
        trial = torch.where(value == 0, point, trial)
        if bool((trial - point).abs().max() < tolerance):
            return trial
        new = function(trial.clone())
        gap = new - value
        slope = torch.where(gap != 0, (trial - point) / torch.where(gap != 0, gap, 1.0), 1.0)
        point, value = trial, new
        step = -value * slope
    return point


def _needs_scale(
    likelihood: Likelihood, y: Tensor, marginals: Marginals, rows: dict[str, Tensor]
) -> bool:
    return marginals.residual is not None and likelihood.gaussian_noise(y, **rows) is None


def row_copies(likelihood: Likelihood, y: Tensor, weights: Tensor | None) -> Tensor:
    """How many rows with residuals of their own every row stands for: zero where it says nothing
    about f, else its weight, but at least one."""
    counts = ~likelihood.missing(y)
    dtype = y.dtype if y.is_floating_point() else torch.get_default_dtype()
    if weights is None:
        return counts.to(dtype)
    counts = counts & (weights > 0)
    return torch.where(counts, weights.to(dtype).clamp_min(1.0), 0.0)


def assemble(
    posterior: Posterior,
    likelihood: Likelihood,
    term: Tensor,
    num_data: int | None,
    row_cost: Tensor | None = None,
) -> Tensor:
    """Data term minus its cost, summed and scaled, minus the KL."""
    size = term.shape[-1]
    if num_data is not None and num_data != size and not posterior.kl_is_whole:
        raise InputError(
            f"The posterior was conditioned on sites of its own {size} rows and num_data is "
            f"{num_data}: its KL is not that of the whole data. Tie the sites to the basis "
            "(prior.tie), or scale objectives of whole groups yourself."
        )
    scale = 1.0 if num_data is None else num_data / size
    total = posterior.sum_rows(term)
    cost = posterior.kl()
    if row_cost is not None:
        cost = cost + scale * posterior.sum_rows(row_cost)
    if likelihood.num_latents > 1:
        cost = cost.sum(-1)
    if total.shape != cost.shape:
        raise InputError(
            f"The data term has batch shape {tuple(total.shape)} and the KL {tuple(cost.shape)}: "
            "one q would be counted several times. Give the posterior the batch shape of the "
            "targets, or put all rows of one function into one axis."
        )
    return scale * total - cost
