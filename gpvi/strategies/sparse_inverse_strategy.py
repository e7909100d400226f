r"""A q of the sparse inverse Cholesky family as the variational strategy of a GPyTorch model.

:math:`q(f) = N(\mu + a, (VV^\top)^{-1})` over the function at all training inputs: parameters are a, the
entries of the sparse V, and the logarithms of its diagonal. A user's loop draws rows and calls the model
with them and their numbers; the divergence is then an unbiased estimate of the whole one from the same
rows, so that

.. code-block:: python

    objective = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(x))
    loss = -objective(model(x[rows], indices=rows), y[rows])

is an unbiased estimate of the bound, at a price that does not depend on the number of training rows (but
for what the optimiser itself does to all parameters).

References
----------
Cao, J., Kang, M., Jimenez, F., Sang, H., Schäfer, F. & Katzfuss, M. (2023). Variational sparse inverse
Cholesky approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML.
"""

from itertools import chain
from typing import Any, NoReturn

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.variational._variational_strategy import _VariationalStrategy
from torch import Tensor

from gpvi.approximations import Posterior
from gpvi.approximations._sparse_columns import columns_at
from gpvi.approximations.neighbor_geometry import NeighborGeometry
from gpvi.approximations.sparse_inverse import SparseInverseCholesky, SparseInversePlan
from gpvi.approximations.sparse_inverse_posterior import SparseInversePosterior
from gpvi.approximations.sparse_inverse_prior import SparseInversePrior
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference.cvi import cvi
from gpvi.linalg import merge_duplicates
from gpvi.strategies.distributions import (
    BasisPosterior,
    BasisPrior,
    dense_prediction,
    diagonal_prediction,
    lazy_prediction,
)
from gpvi.strategies.factor_parameters import FactorParameters, NeighborBuffers
from gpvi.strategies.kept import Kept
from gpvi.strategies.model_process import ModelGaussianProcess
from gpvi.strategies.site_parameters import as_rows

__all__ = ["SparseInverseStrategy"]

# Rows that tell a model's batch shape and whether its kernel is all there is.
_NUM_PROBES = 5


class SparseInverseStrategy(_VariationalStrategy):
    """Variational strategy of a GPyTorch model: a Gaussian with a sparse inverse Cholesky factor.

    Neighbours are found at the first call, by the model's ``covar_module``, and kept until :meth:`refresh`.
    q starts as the prior; :meth:`initialize_from` starts it near its optimum, which saves most of the
    training.

    Parameters
    ----------
    model : gpytorch.models.ApproximateGP
        The model that is being built; its ``forward`` returns the prior at inputs.
    approximation : SparseInverseCholesky
        Number of neighbours, order, and pattern of q.
    train_inputs : Tensor, shape [N, D] or [N]
        All training inputs.
    batch_shape : torch.Size
        Batch shape of the latent functions.

    Raises
    ------
    InputError
        If the inputs are no matrix of finite numbers.
    UnsupportedError
        For other approximations, and if ``model`` is itself a strategy.

    Examples
    --------
    >>> import gpytorch, torch
    >>> class Model(gpytorch.models.ApproximateGP):
    ...     def __init__(self, x):
    ...         super().__init__(SparseInverseStrategy(self, SparseInverseCholesky(3), x))
    ...         self.covar_module = gpytorch.kernels.MaternKernel(nu=1.5)
    ...     def forward(self, x):
    ...         mean = torch.zeros(x.shape[:-1])
    ...         return gpytorch.distributions.MultivariateNormal(mean, self.covar_module(x))
    >>> x = torch.linspace(0, 1, 8).unsqueeze(-1)
    >>> Model(x)(x[[5, 2]], indices=torch.tensor([5, 2])).mean.tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        model: gpytorch.models.ApproximateGP,
        approximation: SparseInverseCholesky,
        train_inputs: Tensor,
        *,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        # The base class would register inducing points of its own; here all training inputs are.
        gpytorch.Module.__init__(self)
        _check(model, approximation)
        rows = as_rows(train_inputs)
        assert rows is not None
        if rows.dim() != 2 or not len(rows) or not bool(torch.isfinite(rows).all()):
            raise InputError(
                f"train_inputs has shape {tuple(rows.shape)}; pass finite numbers of shape [N, D]."
            )
        # Not a child: the model holds this strategy, and owns its own parameters.
        object.__setattr__(self, "model", model)
        self.approximation = approximation
        self.register_buffer("train_inputs", rows)
        M = len(merge_duplicates(rows)[0])
        number = min(approximation.options.num_neighbors, M - 1)
        entries = 0 if approximation.family == "diagonal" else number
        self._neighbors = NeighborBuffers(rows, M, number)
        self._variational_distribution = FactorParameters(
            torch.Size([*batch_shape, M]), entries, rows
        )
        self._kept: Kept[Posterior] = Kept()

    # ------------------------------------------------------------------ what GPyTorch calls

    def __call__(
        self, x: Tensor, prior: bool = False, diag: bool = True, indices: Tensor | None = None
    ) -> MultivariateNormal:
        """q(f) at inputs.

        Parameters
        ----------
        x : Tensor, shape [B, D]
            In training mode training inputs: those of the rows ``indices``, or all of them.
        prior : bool
            Return the prior instead.
        diag : bool
            In training mode, whether the marginals are enough: the covariance is then diagonal.
        indices : Tensor of int64, shape [B], optional
            Numbers of these rows.

        Returns
        -------
        MultivariateNormal
            Batch shape [*b].
        """
        if not isinstance(x, Tensor) or x.dim() < 2:
            what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"x is {what}; pass a tensor of shape [B, D].")
        if prior:
            return self.model.forward(x)
        if not self.training:
            if indices is not None:
                raise InputError("indices are of training mode; in eval mode any inputs will do.")
            return lazy_prediction(self._today(), x)
        self._check_rows(x, indices)
        whole = self.posterior()
        view = whole if indices is None else whole.rows(indices)
        self._kept.put(self._state(), view)
        if not diag:
            return dense_prediction(whole, x)
        return diagonal_prediction(view.marginals())

    def kl_divergence(self) -> Tensor:
        """KL from q to the prior: after a call with ``indices``, its estimate from these rows.

        Returns
        -------
        Tensor, shape [*b]
            In nats, of the whole data set.
        """
        return self._today().kl().expand(self.batch_shape)

    @property
    def prior_distribution(self) -> BasisPrior:
        """p of the function at the distinct locations."""
        return BasisPrior(self._today().prior, self.batch_shape)

    @property
    def variational_distribution(self) -> BasisPosterior:
        """q there; its KL to :attr:`prior_distribution` is :meth:`kl_divergence`."""
        return BasisPosterior(self._today(), self.batch_shape)

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the latent functions."""
        return self._variational_distribution.batch_shape

    @property
    def inducing_points(self) -> Tensor:
        """The training inputs: inputs of the basis."""
        return self.train_inputs

    @property
    def variational_params_initialized(self) -> Tensor:
        """Always 1: q starts by itself at the first call, without chance."""
        return torch.ones((), dtype=torch.long)

    def get_fantasy_model(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: append the new rows to the training data instead.

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
            "SparseInverseStrategy makes no fantasy models: new rows have neighbours of their own. Build "
            "the model on all rows and start it by initialize_from."
        )

    # ------------------------------------------------------------------ what this package adds

    def posterior(self) -> SparseInversePosterior:
        """The posterior behind q, for the objectives of this package.

        Returns
        -------
        SparseInversePosterior
            On the graph of parameters, if gradients are enabled.
        """
        prior = self._prior(self._process())
        shift, factor = self._variational_distribution.moments()
        return prior.posterior(prior.place_mean + shift, factor)

    def initialize_from(
        self, likelihood: gpytorch.likelihoods.Likelihood, y: Tensor, **rows: Tensor
    ) -> None:
        """Find neighbours anew and start q at the fixed point of natural gradients, in place.

        Parameters
        ----------
        likelihood : gpytorch or gpvi likelihood
            Any; its parameters stay as they are.
        y : Tensor, shape [N] or [*b, N]
            Targets of all training rows; NaN means not observed.
        **rows : Tensor, shape [N]
            Per-row extras of the likelihood, ``weights`` among them.
        """
        process = self._process()
        self._find(process)
        self._start(process, likelihood, y, rows)

    def refresh(
        self, likelihood: gpytorch.likelihoods.Likelihood, y: Tensor, **rows: Tensor
    ) -> bool:
        """Find neighbours anew for today's kernel; where they are others, start q anew as well.

        Parameters
        ----------
        likelihood : gpytorch or gpvi likelihood
            Any.
        y : Tensor, shape [N] or [*b, N]
            Targets of all training rows.
        **rows : Tensor, shape [N]
            Per-row extras of the likelihood.

        Returns
        -------
        bool
            Whether neighbours changed (see :meth:`SparseInverseCholesky.refresh`). Momentum that an
            optimiser has for q is then that of other parameters.
        """
        process = self._process()
        self._ensure_found(process)
        plan = self._plan(self._neighbors.geometry())
        fresh = self.approximation.refresh(process, plan)
        if fresh is plan:
            return False
        assert isinstance(fresh, SparseInversePlan)
        self._neighbors.adopt(fresh.geometry(process))
        self._start(process, likelihood, y, rows)
        return True

    # ------------------------------------------------------------------ internals

    def _today(self) -> Posterior:
        """The posterior for today's values, that of the last rows in training mode."""
        state = self._state()
        if not self.training and torch.is_grad_enabled() and any(t.requires_grad for t in state):
            # Whoever differentiates twice would find the graph of a kept posterior freed.
            return self.posterior()
        posterior = self._kept.find(state)
        if posterior is None:
            posterior = self.posterior()
            self._kept.put(state, posterior)
        return posterior

    def _process(self) -> ModelGaussianProcess:
        process = ModelGaussianProcess(self.model, self.train_inputs[:_NUM_PROBES])
        found, expected = process.batch_shape, self.batch_shape
        if found not in (expected, torch.Size()):
            raise InputError(
                f"{type(self.model).__name__} has batch shape {tuple(found)} and q {tuple(expected)}; pass "
                f"batch_shape=torch.Size({list(found)}) to SparseInverseStrategy."
            )
        return process

    def _prior(self, process: ModelGaussianProcess) -> SparseInversePrior:
        self._ensure_found(process)
        plan = self._plan(self._neighbors.geometry())
        prior = self.approximation.prior(process, self.train_inputs, plan=plan)
        assert isinstance(prior, SparseInversePrior)
        return prior

    def _plan(self, geometry: NeighborGeometry) -> SparseInversePlan:
        inputs = self.train_inputs
        plan = SparseInversePlan(
            len(inputs), None, None, inputs.unsqueeze(0), self.approximation.options
        )
        return plan.held(geometry)

    def _ensure_found(self, process: ModelGaussianProcess) -> None:
        """Neighbours, and q at the prior, before anything else."""
        if bool(self._neighbors.found):
            return
        self._find(process)
        with torch.no_grad():
            prior = self._prior(process)
            pattern = prior.factor_pattern(())
            own = torch.arange(prior.num_basis, dtype=torch.int32, device=prior.x.device)
            # The factor that is nearest to the process among those on the pattern of q.
            factor = columns_at(
                process, prior.points, pattern.neighbors, own, prior.nugget, pattern.schedule
            )
            store, first = self._variational_distribution, prior.geometry.first[0]
            deviation = process.variance(prior.x).double()[..., first].sqrt()
            store.start(torch.zeros_like(store.shift), factor, deviation, pattern.neighbors)

    def _find(self, process: ModelGaussianProcess) -> None:
        plan = self.approximation.plan(self.train_inputs)
        self._neighbors.adopt(plan.geometry(process))
        self._kept.drop()

    def _start(
        self,
        process: ModelGaussianProcess,
        likelihood: gpytorch.likelihoods.Likelihood,
        y: Tensor,
        rows: dict[str, Any],
    ) -> None:
        with torch.no_grad():
            q = cvi(self._prior(process).detach(), likelihood, y, **rows).posterior
            assert isinstance(q, SparseInversePosterior)
            deviation = q.marginals().explained.double()[..., q.prior.geometry.first[0]].sqrt()
            index = q.prior.factor_pattern(()).neighbors
            self._variational_distribution.start(q.shift, q.factor, deviation, index)
        self._kept.drop()

    def _check_rows(self, x: Tensor, indices: Tensor | None) -> None:
        known = self.train_inputs
        if indices is not None:
            if indices.dim() != 1 or indices.dtype != torch.int64 or len(indices) != x.shape[-2]:
                raise InputError(
                    f"indices has shape {tuple(indices.shape)} and dtype {indices.dtype}; pass the int64 "
                    f"numbers of the {x.shape[-2]} training rows in x."
                )
            if not len(indices):
                raise InputError("indices is empty; pass the numbers of at least one training row.")
            if int(indices.min()) < 0 or int(indices.max()) >= len(known):
                raise InputError(f"indices runs beyond the {len(known)} training rows.")
            known = known[indices]
        if known.shape != x.shape or not torch.equal(known, x.to(known)):
            raise InputError(
                f"x has shape {tuple(x.shape)} and is not the training rows in question. In training mode "
                "pass rows of train_inputs and their numbers: model(x[rows], indices=rows)."
            )

    def _state(self) -> list[Tensor]:
        """Every tensor that q depends on; of the neighbours, what tells when they were found."""
        modules = (
            m for m in chain(self.model.modules(), self.modules()) if m is not self._neighbors
        )
        stores = ((*m._parameters.values(), *m._buffers.values()) for m in modules)
        found = [value for values in stores for value in values if value is not None]
        return list({id(value): value for value in (*found, self._neighbors.scale)}.values())

    def _clear_cache(self) -> None:
        self._kept.drop()


def _check(model: object, approximation: object) -> None:
    if isinstance(model, _VariationalStrategy):
        raise UnsupportedError(
            f"The model is a strategy itself ({type(model).__name__}); SparseInverseStrategy needs the "
            "ApproximateGP whose forward returns the prior."
        )
    if not isinstance(approximation, SparseInverseCholesky):
        raise UnsupportedError(
            f"approximation is a {type(approximation).__name__}; SparseInverseStrategy takes a "
            "SparseInverseCholesky (SiteStrategy takes the others)."
        )
