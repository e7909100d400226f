r"""Every approximation of this package inside a GPyTorch ``ApproximateGP``.

The model owns mean and kernel; :class:`SiteStrategy` adds the structure (inducing inputs, say) and
Gaussian sites, and hands back q(f). GPyTorch's objectives, optimisers and multi-output wrappers work
on it in a loop that the user writes. Sites move in one of two ways:

* ``site_parameters="gradient"``: they are parameters, for any optimiser. Tied to inducing points they
  are the whitened mean and Cholesky factor of GPyTorch's own strategy (one pair per block where
  :class:`~gpvi.approximations.Orthogonal` keeps blocks independent); on data rows, coresets and neighbour-
  given inducing points pseudo-targets and log precisions;
* ``site_parameters="natural"``: they are buffers that :meth:`SiteStrategy.natural_step` moves, while
  an optimiser trains the hyperparameters.

With ``train_inputs`` there is one site per training row, without there are tied sites on the basis.

References
----------
Hensman, J., Matthews, A. & Ghahramani, Z. (2015). Scalable variational Gaussian process
classification. AISTATS.
Adam, V., Chang, P., Khan, M. E. & Solin, A. (2021). Dual parameterization of sparse variational
Gaussian processes. NeurIPS.
"""

from itertools import chain
from typing import Any, Literal, NoReturn

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.variational._variational_strategy import _VariationalStrategy
from torch import Tensor

from gpvi._warnings import warn
from gpvi.approximations import Approximation, Posterior, Prior
from gpvi.approximations.inter_domain import InterDomain
from gpvi.approximations.orthogonal import Orthogonal
from gpvi.exceptions import InputError, PriorCollapseWarning, UnsupportedError
from gpvi.strategies.distributions import (
    BasisPosterior,
    BasisPrior,
    dense_prediction,
    diagonal_prediction,
    lazy_prediction,
    marginals_at,
)
from gpvi.strategies.kept import Kept
from gpvi.strategies.model_process import ModelGaussianProcess
from gpvi.strategies.natural import natural_sites
from gpvi.strategies.site_parameters import (
    NaturalSites,
    as_rows,
    check_batch_shape,
    new_site_parameters,
)
from gpvi.strategies.tied_form import FREE, tied_form

__all__ = ["SiteStrategy"]

# Rows that tell a model's batch shape and whether its kernel is all there is.
_NUM_PROBES = 5


class SiteStrategy(_VariationalStrategy):
    """Variational strategy of a GPyTorch model: an approximation conditioned on sites.

    Parameters
    ----------
    model : gpytorch.models.ApproximateGP
        The model that is being built; its ``forward`` returns the prior at inputs.
    approximation : Approximation
        How the prior is approximated. ``InducingPoints`` must have its inducing points already, and so
        must features and blocks of ``InterDomain`` and ``Orthogonal``.
    site_parameters : {"gradient", "natural"}
        Whether sites are parameters for an optimiser, or buffers for :meth:`natural_step`.
    train_inputs : Tensor, shape [N, D] or [N], optional
        All training inputs: one site per row instead of tied sites. Needed by approximations whose
        basis are the data rows (``Exact``, ``White``).
    batch_shape : torch.Size, optional
        Batch shape of the latent functions; that of the inducing points if left out.

    Raises
    ------
    InputError
        If inducing points or ``train_inputs`` are missing, or an option is impossible.
    UnsupportedError
        If ``model`` is itself a strategy.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import InducingPoints
    >>> class Model(gpytorch.models.ApproximateGP):
    ...     def __init__(self, z):
    ...         super().__init__(SiteStrategy(self, InducingPoints(inducing_points=z)))
    ...         self.covar_module = gpytorch.kernels.RBFKernel()
    ...     def forward(self, x):
    ...         mean = torch.zeros(x.shape[:-1])
    ...         return gpytorch.distributions.MultivariateNormal(mean, self.covar_module(x))
    >>> Model(torch.linspace(0, 1, 4).unsqueeze(-1))(torch.zeros(2, 1)).mean.tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        model: gpytorch.models.ApproximateGP,
        approximation: Approximation,
        *,
        site_parameters: Literal["gradient", "natural"] = "gradient",
        train_inputs: Tensor | None = None,
        batch_shape: torch.Size | None = None,
    ) -> None:
        # The base class would register inducing points of its own; here the approximation has them.
        gpytorch.Module.__init__(self)
        if isinstance(model, _VariationalStrategy):
            raise UnsupportedError(
                f"The model is a strategy itself ({type(model).__name__}); SiteStrategy needs the "
                "ApproximateGP whose forward returns the prior."
            )
        # Not a child: the model holds this strategy, and owns its own parameters.
        object.__setattr__(self, "model", model)
        self.approximation = approximation
        self.register_buffer("train_inputs", as_rows(train_inputs))
        form = tied_form(approximation) if train_inputs is None else FREE
        self._variational_distribution = new_site_parameters(
            site_parameters, self._like_basis(), batch_shape, tied=train_inputs is None, form=form
        )
        # A row that was seen, for features that have no inputs of their own.
        self._seen: Tensor | None = None
        self._kept: Kept[Posterior] = Kept()
        self._spare: Kept[Prior] = Kept()
        self._checked = False

    # ------------------------------------------------------------------ what GPyTorch calls

    def __call__(self, x: Tensor, prior: bool = False, diag: bool = True) -> MultivariateNormal:
        """q(f) at inputs.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Inputs.
        prior : bool
            Return the prior instead.
        diag : bool
            In training mode, whether the marginals are enough: the covariance is then diagonal. In
            eval mode the covariance is always the full one, computed when it is asked for.

        Returns
        -------
        MultivariateNormal
            Batch shape [*g, *b].
        """
        if not isinstance(x, Tensor) or x.dim() < 2:
            what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"x is {what}; pass a tensor of shape [*g, N, D].")
        if prior:
            return self.model.forward(x)
        if not self.training:
            return lazy_prediction(self._today(), x)
        self._kept.drop()
        if not diag:
            return dense_prediction(self._today(), x)
        tied = self.train_inputs is None
        posterior = self._today(x if tied else None)
        if tied or self._are_train_inputs(x):
            return diagonal_prediction(posterior.marginals())
        return diagonal_prediction(marginals_at(posterior, x))

    def kl_divergence(self) -> Tensor:
        """KL from q to the prior.

        Returns
        -------
        Tensor, shape [*b]
            In nats, of the whole data set.
        """
        return self._today().kl().expand(self.batch_shape)

    @property
    def prior_distribution(self) -> BasisPrior:
        """p of the basis."""
        return BasisPrior(self._today().prior, self.batch_shape)

    @property
    def variational_distribution(self) -> BasisPosterior:
        """q of the basis; its KL to :attr:`prior_distribution` is :meth:`kl_divergence`."""
        return BasisPosterior(self._today(), self.batch_shape)

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the latent functions."""
        return self._variational_distribution.batch_shape

    @property
    def inducing_points(self) -> Tensor:
        """Inputs of the basis: the training inputs, or the inducing points."""
        if self.train_inputs is not None:
            return self.train_inputs
        approximation = self.approximation
        if isinstance(approximation, InterDomain):
            raise UnsupportedError(
                f"{type(approximation.features).__name__} are features, not inputs; ask "
                "strategy.approximation.features for their parameters."
            )
        points = getattr(approximation, "inducing_points", None)
        if points is not None:
            return points
        name = type(approximation).__name__
        if hasattr(approximation, "inducing_points"):
            raise InputError(
                f"The inducing points of {name} have not been chosen, and a model that is still being "
                "built has no kernel to choose them with. Pass them (select_inducing_points picks "
                "rows), or call approximation.initialize(gp, x) first."
            )
        raise InputError(
            f"{name} has one basis value per data row: pass train_inputs, all training inputs."
        )

    @property
    def variational_params_initialized(self) -> Tensor:
        """Always 1: sites start at fixed values, without a first call and without chance."""
        return torch.ones((), dtype=torch.long)

    def get_fantasy_model(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Parameters
        ----------
        *args, **kwargs
            Whatever GPyTorch passes.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(
            "SiteStrategy makes no fantasy models. Condition on the new rows: append them to the data "
            "and take a natural_step, which is exact for a Gaussian likelihood with step_size=1."
        )

    # ------------------------------------------------------------------ what this package adds

    def posterior(self, x: Tensor | None = None) -> Posterior:
        """The posterior behind q, for the objectives of this package.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D], optional
            Data rows of tied sites; with ``train_inputs`` leave it out.

        Returns
        -------
        Posterior
            On the graph of parameters, if gradients are enabled.
        """
        if self.train_inputs is not None:
            if x is not None:
                self._require_train_inputs(x)
            x = self.train_inputs
        elif x is None:
            raise InputError("Tied sites have no rows of their own: pass x, the data rows.")
        return self._build(x)

    def natural_step(
        self,
        likelihood: gpytorch.likelihoods.Likelihood,
        x: Tensor,
        y: Tensor,
        *,
        step_size: float,
        num_data: int | None = None,
        min_precision: float | None = 0.0,
        mixing: Tensor | None = None,
        log_v: Tensor | None = None,
        **rows: Tensor,
    ) -> None:
        r"""Move the sites by one natural-gradient step on q, in place.

        .. math:: \lambda \leftarrow (1 - \rho) \lambda
                  + \rho \tfrac{N}{B} \mathrm{dual}(E_q \log p(y \mid f))

        A Gaussian likelihood needs one step of size 1 on all data. Otherwise 0.1 to 0.5 is usual;
        latent functions that a likelihood or ``mixing`` couples need steps near 1 over their number.

        Parameters
        ----------
        likelihood : gpytorch or gpvi likelihood
            Any; its parameters stay as they are.
        x : Tensor, shape [B, D]
            Rows of a minibatch; with ``train_inputs`` exactly those.
        y : Tensor, shape [B] or [*b, B]
            Targets; NaN means not observed.
        step_size : float
            :math:`\rho` in (0, 1].
        num_data : int, optional
            Rows N of the whole data set; B if left out.
        min_precision : float, optional
            Precisions of single rows are clipped from below here, which keeps q proper where a
            likelihood is not log-concave. None takes the plain natural gradient.
        mixing : Tensor, shape [L, P], optional
            Outputs are these combinations of the latent functions: ``lmc_coefficients`` of an
            ``LMCVariationalStrategy`` around this one.
        log_v : Tensor, shape [*b], optional
            Log residual scale, for :class:`TighterVariationalELBO`.
        **rows : Tensor, shape [B]
            Per-row extras of the likelihood, ``weights`` among them; unknown names raise.

        Raises
        ------
        UnsupportedError
            If the sites are parameters (``site_parameters="gradient"``).
        InputError
            For impossible step sizes, or rows that are not ``train_inputs``.
        """
        store = self._variational_distribution
        if not isinstance(store, NaturalSites):
            raise UnsupportedError(
                "These sites are parameters that an optimiser moves; build the strategy with "
                "site_parameters='natural' to use natural_step."
            )
        x = x.unsqueeze(-1) if x.dim() == 1 else x
        count = x.shape[-2] if num_data is None else num_data
        if self.train_inputs is not None and count != x.shape[-2]:
            raise InputError(
                f"num_data is {count} and there are {x.shape[-2]} training rows; sites on data rows "
                "are not scaled, so leave num_data out."
            )
        if self.train_inputs is not None:
            self._require_train_inputs(x)
        # Made in the caller's mode and left on its graph, for the next call on these rows.
        prior = self._prior(x)
        extras = {**rows, "log_v": log_v} if log_v is not None else rows
        with torch.no_grad():
            sites = natural_sites(
                prior.condition(store.sites()),
                likelihood,
                y,
                step_size=step_size,
                scale=count / x.shape[-2],
                min_precision=min_precision,
                mixing=mixing,
                rows=extras,
            )
        store.store(sites)
        self._kept.drop()
        self._spare.put([*self._state(with_sites=False), x], prior)

    # ------------------------------------------------------------------ internals

    def _today(self, x: Tensor | None = None) -> Posterior:
        """The posterior for today's values, kept where that is safe; rows matter to its marginals."""
        rows = self._anchor() if x is None else x
        state = self._state()
        if not self.training and torch.is_grad_enabled() and any(t.requires_grad for t in state):
            # Whoever differentiates twice would find the graph of a kept posterior freed.
            return self._build(rows)
        posterior = self._kept.find(state)
        if posterior is None:
            posterior = self._build(rows)
            self._kept.put(state, posterior)
        return posterior

    def _build(self, x: Tensor) -> Posterior:
        store = self._variational_distribution
        if not self.training and isinstance(store, NaturalSites) and store.is_prior:
            warn(
                "The sites are still zero, so that q is the prior: call natural_step to train them.",
                PriorCollapseWarning,
            )
        return self._prior(x).condition(store.sites())

    def _prior(self, x: Tensor) -> Prior:
        spare = self._spare.find([*self._state(with_sites=False), x])
        # Used once: after a backward pass its graph is gone.
        self._spare.drop()
        if spare is not None:
            return spare
        if self._has_inputs:
            probes = self.inducing_points.detach().flatten(0, -2)[:_NUM_PROBES]
        else:
            probes = x.detach().flatten(0, -2)[:_NUM_PROBES]
            self._seen = probes[:1].clone()
        process = ModelGaussianProcess(self.model, probes)
        if not self._checked:
            check_batch_shape(process.batch_shape, self.batch_shape, type(self.model).__name__)
            self._checked = True
        return self.approximation.prior(process, x)

    def _anchor(self) -> Tensor:
        """Rows for a posterior whose marginals nobody asks for."""
        if self.train_inputs is not None:
            return self.train_inputs
        if self._has_inputs:
            return self.inducing_points.detach()[..., :1, :]
        if self._seen is None:
            raise InputError(
                "This strategy has seen no inputs yet, and its features have none: call the model on some "
                "rows first."
            )
        return self._seen

    @property
    def _has_inputs(self) -> bool:
        """Whether inputs are known before any row is seen."""
        return self.train_inputs is not None or not isinstance(self.approximation, InterDomain)

    def _like_basis(self) -> Tensor:
        """A tensor of the shape [*b, M], dtype and device of the basis."""
        approximation = self.approximation
        if self.train_inputs is not None or not isinstance(approximation, InterDomain | Orthogonal):
            return self.inducing_points[..., 0]
        shape = approximation.basis_shape
        if shape is None:
            raise InputError(
                f"Features of {type(approximation).__name__} have not been chosen, and a model that is still "
                "being built has no kernel to choose them with; call approximation.initialize(gp, x) first."
            )
        return next(approximation.parameters(), torch.empty(())).new_empty(shape)

    def _state(self, with_sites: bool = True) -> list[Tensor]:
        """Every tensor that q, or only the prior, depends on."""
        modules = chain(self.model.modules(), self.modules())
        kept = (m for m in modules if with_sites or m is not self._variational_distribution)
        stores = ((*m._parameters.values(), *m._buffers.values()) for m in kept)
        found = (value for values in stores for value in values if value is not None)
        return list({id(value): value for value in found}.values())

    def _are_train_inputs(self, x: Tensor) -> bool:
        known = self.train_inputs
        return known is not None and known.shape == x.shape and torch.equal(known, x.to(known))

    def _require_train_inputs(self, x: Tensor) -> None:
        if not self._are_train_inputs(x):
            raise InputError(
                f"x has shape {tuple(x.shape)} and is not train_inputs, where the sites are. Use those "
                "rows, and predict of the posterior for others."
            )

    def _clear_cache(self) -> None:
        self._kept.drop()
        self._spare.drop()
