r"""The tightened bound as a GPyTorch objective, for strategies of this package and GPyTorch's own.

With inducing points part of f is left open by the basis: its conditional residual has variance
:math:`d_n`. The ELBO pays :math:`-\tfrac12 d_n / \sigma_n^2` for it with Gaussian noise; the tightened
bound, in which q may shrink the residual, :math:`-\tfrac12 \log(1 + d_n / \sigma_n^2)`. For other
likelihoods one scale :math:`v` multiplies all residual variances and costs
:math:`\tfrac12(v - \log v - 1)` per row. Predictions do not change; hyperparameters get better.

References
----------
Titsias, M. (2025). New bounds for sparse variational Gaussian processes. ICML.
"""

from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.variational import (
    BatchDecoupledVariationalStrategy,
    UnwhitenedVariationalStrategy,
    VariationalStrategy,
)
from torch import Tensor

from gpvi.approximations import InducingPrior, Marginals
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import optimal_log_v, tighter_data_term
from gpvi.likelihoods import as_likelihood
from gpvi.strategies.distributions import FunctionPosterior
from gpvi.strategies.model_process import ModelGaussianProcess

__all__ = ["TighterVariationalELBO"]


class TighterVariationalELBO(gpytorch.mlls.VariationalELBO):
    r"""Tightened evidence lower bound per data row; scaled as :class:`gpytorch.mlls.VariationalELBO`.

    .. math:: \tfrac1B \sum_n \Big( E_{q_v} \log p(y_n \mid f_n) - \tfrac12 (v - \log v - 1) \Big)
              - \tfrac{\beta}{N} KL(q \| p)

    Never below the ELBO at the best v, a bound for any. Where the basis leaves nothing open (``Exact``,
    ``White``) it is the ELBO.

    Parameters
    ----------
    likelihood : gpytorch or gpvi likelihood
        Any; for a Gaussian one every row has its own best v in closed form.
    model : gpytorch.models.ApproximateGP
        With a :class:`SiteStrategy`, or GPyTorch's ``VariationalStrategy`` or
        ``UnwhitenedVariationalStrategy`` (then pass ``inputs=x`` at every call).
    num_data : int
        Rows N of the whole data set.
    beta : float
        Factor of the KL.
    combine_terms : bool
        Return the sum of the terms rather than the terms.
    batch_shape : torch.Size
        Batch shape of the latent functions, one v each.

    Attributes
    ----------
    log_v : torch.nn.Parameter, shape [*batch_shape]
        Log residual scale, for likelihoods that are not Gaussian; starts at 0, where the bound is the
        ELBO. Give it to the optimiser (``mll.parameters()`` includes it), or set it now and then with
        :meth:`set_scale`. It must be held across minibatches: the best v of each would exceed the
        bound on average.

    Examples
    --------
    >>> model = gpytorch.models.ApproximateGP(None)
    >>> mll = TighterVariationalELBO(gpytorch.likelihoods.BernoulliLikelihood(), model, num_data=10)
    >>> [name for name, _ in mll.named_parameters()]
    ['log_v']
    """

    def __init__(
        self,
        likelihood: gpytorch.likelihoods.Likelihood,
        model: gpytorch.models.ApproximateGP,
        num_data: int,
        beta: float = 1.0,
        combine_terms: bool = True,
        *,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        super().__init__(likelihood, model, num_data, beta, combine_terms)
        like = next(model.parameters(), torch.zeros(()))
        zeros = torch.zeros(batch_shape, dtype=like.dtype, device=like.device)
        self.log_v = torch.nn.Parameter(zeros)

    def forward(
        self,
        approximate_dist_f: MultivariateNormal,
        target: Tensor,
        *,
        inputs: Tensor | None = None,
        **rows: Tensor,
    ) -> Any:
        """Evaluate the objective.

        Parameters
        ----------
        approximate_dist_f : MultivariateNormal
            Output of the model.
        target : Tensor, shape [B] or [*b, B]
            Targets; NaN means not observed.
        inputs : Tensor, shape [B, D], optional
            The inputs behind the output; needed with GPyTorch's own strategies only.
        **rows : Tensor, shape [B]
            Per-row extras of the likelihood, ``weights`` among them.

        Returns
        -------
        Tensor, shape [*b], or tuple of Tensor
            Nats per row; the terms one by one if ``combine_terms`` is off.

        Raises
        ------
        UnsupportedError
            If no conditional residual can be had from the model's strategy.
        InputError
            If ``inputs`` are missing.
        """
        marginals = self._marginals(approximate_dist_f, inputs)
        split = FunctionPosterior(
            approximate_dist_f.mean, approximate_dist_f.lazy_covariance_matrix, marginals=marginals
        )
        return super().forward(split, target, **rows)

    @torch.no_grad()
    def set_scale(
        self,
        approximate_dist_f: MultivariateNormal,
        target: Tensor,
        *,
        inputs: Tensor | None = None,
        **rows: Tensor,
    ) -> None:
        """Set ``log_v`` to the best value for given rows; does nothing for a Gaussian likelihood.

        Parameters
        ----------
        approximate_dist_f : MultivariateNormal
            Output of the model, ideally for many rows.
        target : Tensor, shape [B] or [*b, B]
            Targets.
        inputs : Tensor, shape [B, D], optional
            As for :meth:`forward`.
        **rows : Tensor, shape [B]
            Per-row extras of the likelihood.
        """
        marginals = self._marginals(approximate_dist_f, inputs)
        noise = as_likelihood(self.likelihood).gaussian_noise(target, **rows)
        if marginals.residual is not None and noise is None:
            best = optimal_log_v(self.likelihood, target, marginals, **rows)
            if best.shape != self.log_v.shape:
                raise InputError(
                    f"These rows give scales of shape {tuple(best.shape)}; build the objective with "
                    f"batch_shape=torch.Size({list(best.shape)})."
                )
            self.log_v.copy_(best)

    def _log_likelihood_term(
        self, variational_dist_f: FunctionPosterior, target: Tensor, **rows: Tensor
    ) -> Tensor:
        marginals = variational_dist_f.marginals
        assert marginals is not None
        likelihood = as_likelihood(self.likelihood)
        if likelihood.num_latents > 1:
            raise UnsupportedError(
                f"{type(self.likelihood).__name__} couples {likelihood.num_latents} latent functions, "
                "whose KLs GPyTorch's objectives do not add up. Use gpvi.inference.tighter_elbo on "
                "strategy.posterior(x), or a multitask wrapper with VariationalELBO."
            )
        noise = likelihood.gaussian_noise(target, **rows)
        log_v = self.log_v.to(marginals.mean) if noise is None else None
        term, cost = tighter_data_term(likelihood, target, marginals, log_v=log_v, **rows)
        return (term if cost is None else term - cost).sum(-1)

    def _marginals(self, output: MultivariateNormal, inputs: Tensor | None) -> Marginals:
        """Explained and residual variance of the model's output."""
        if isinstance(output, FunctionPosterior) and output.marginals is not None:
            return output.marginals
        strategy = self.model.variational_strategy
        name = type(strategy).__name__
        if type(output) is not MultivariateNormal or not _conditions_on_inducing_values(strategy):
            raise UnsupportedError(
                f"The conditional residual of {name} cannot be told from a {type(output).__name__}. "
                "Use SiteStrategy, or GPyTorch's VariationalStrategy or "
                "UnwhitenedVariationalStrategy, without a wrapper; otherwise VariationalELBO."
            )
        if inputs is None:
            raise InputError(
                f"{name} does not say how its variance splits: pass the inputs as well, "
                "mll(model(x), y, inputs=x)."
            )
        variance = output.lazy_covariance_matrix.diagonal(dim1=-1, dim2=-2)
        residual = _residual(self.model, inputs)
        return Marginals(output.mean, (variance - residual).clamp_min(0.0), residual)


def _conditions_on_inducing_values(strategy: object) -> bool:
    """Whether q(f) = E_q(u) p(f | u) with one set of inducing points."""
    known = isinstance(strategy, VariationalStrategy | UnwhitenedVariationalStrategy)
    return known and not isinstance(strategy, BatchDecoupledVariationalStrategy)


def _residual(model: gpytorch.models.ApproximateGP, inputs: Tensor) -> Tensor:
    strategy = model.variational_strategy
    points = strategy.inducing_points
    x = inputs.unsqueeze(-1) if inputs.dim() == 1 else inputs
    gp = ModelGaussianProcess(model, points.detach().flatten(0, -2)[:1])
    # GPyTorch adds its jitter to Kzz in absolute terms.
    scale = float(gp.variance(points).detach().mean())
    # Built by hand: an approximation would hold a copy of the points, which no gradient reaches.
    return InducingPrior.build(gp.snapshot(), x, points, strategy.jitter_val / scale).x_residual
