"""Expected log likelihoods with their derivatives in one go, as natural gradients need them."""

import torch
from torch import Tensor

from gpvi.likelihoods.base import Likelihood
from gpvi.likelihoods.rows import where_missing

__all__ = ["expectation_slopes"]


def expectation_slopes(
    likelihood: Likelihood, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`variational_expectations` of a likelihood with its derivatives, off the graph.

    A likelihood that knows a short cut implements `_expectation_slopes`; automatic differentiation
    serves the others.

    Parameters
    ----------
    likelihood : Likelihood
        Any.
    y : Tensor
        Targets `[*b, N]`; a NaN row contributes exactly 0.
    mean, variance : Tensor
        Moments of f, `[*b, N]` (`[*b, L, N]` with several latents).
    **rows : Tensor
        Row extras.

    Returns
    -------
    value : Tensor
        `[*b, N]`.
    by_mean, by_variance : Tensor
        Derivatives of the sum of all values, of the shapes of `mean` and `variance`.

    Examples
    --------
    >>> from gpvi.likelihoods import PoissonLikelihood
    >>> y, zero = torch.tensor([2.0, float("nan")]), torch.zeros(2)
    >>> expectation_slopes(PoissonLikelihood(), y, zero, zero)[1:]
    (tensor([1., 0.]), tensor([-0.5000,  0.0000]))
    """
    with torch.no_grad():
        filled, missing, extras = likelihood.prepare(y, mean, mean.shape[-1], rows)
        weights = extras.pop("weights", None)
        known = None
        if _is_current(type(likelihood)):
            known = likelihood._expectation_slopes(filled, mean, variance, **extras)
        # Where moments broadcast, their derivatives are sums over what they meet.
        if known is not None and known[0].shape == mean.shape == variance.shape:
            terms = known if weights is None else [weights * term for term in known]
            value, by_mean, by_variance = (where_missing(missing, 0.0, term) for term in terms)
            return value, by_mean, by_variance
    with torch.enable_grad():
        mean, variance = (t.detach().clone().requires_grad_() for t in (mean, variance))
        value = likelihood.variational_expectations(y, mean, variance, **rows)
        by_mean, by_variance = torch.autograd.grad(value.sum(), (mean, variance))
    return value.detach(), by_mean, by_variance


def _is_current(kind: type[Likelihood]) -> bool:
    """Whether the short cut belongs to the log likelihood: a subclass may have overridden only that."""

    def owner(name: str) -> type:
        return next(parent for parent in kind.__mro__ if name in vars(parent))

    short_cut = owner("_expectation_slopes")
    return all(issubclass(short_cut, owner(n)) for n in ("_log_prob", "_variational_expectations"))
