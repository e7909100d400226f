"""A user's GPyTorch model as the Gaussian process that an approximation conditions.

A GPyTorch model says what its prior is in ``forward(x)``, whatever it does inside: feature
extractors, sums of kernels, means that depend on other modules. :class:`ModelGaussianProcess` asks
``forward`` for everything, at the time of the call, and owns no parameter itself.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Self

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.variational._variational_strategy import _VariationalStrategy
from torch import Tensor

from gpvi.approximations.gaussian_process import copy_module
from gpvi.exceptions import InputError, UnsupportedError

__all__ = ["ModelGaussianProcess"]

# Modules whose output for one row depends on the other rows, or on chance.
_NOT_ROW_WISE = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)

# Relative agreement asked of covar_module and forward.
_AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3}


class ModelGaussianProcess:
    """The prior of a GPyTorch model: mean and covariance functions read from ``model.forward``.

    Parameters
    ----------
    model : gpytorch.models.ApproximateGP
        Its ``forward`` maps inputs [*g, N, D] to the prior MultivariateNormal there.
    rows : Tensor, shape [n, D]
        A few inputs: they tell the batch shape of the model, and whether ``covar_module`` is the
        whole kernel.

    Raises
    ------
    InputError
        If ``rows`` is not a matrix of at least one row.

    Examples
    --------
    >>> import gpytorch, torch
    >>> class Model(gpytorch.models.ApproximateGP):
    ...     covar_module = gpytorch.kernels.RBFKernel()
    ...     def forward(self, x):
    ...         mean = torch.ones(x.shape[:-1])
    ...         return gpytorch.distributions.MultivariateNormal(mean, self.covar_module(x))
    >>> ModelGaussianProcess(Model(None), torch.zeros(1, 1)).mean(torch.zeros(2, 1))
    tensor([1., 1.])
    """

    def __init__(self, model: gpytorch.models.ApproximateGP, rows: Tensor) -> None:
        if rows.dim() != 2 or not len(rows):
            raise InputError(
                f"rows has shape {tuple(rows.shape)}; pass a few inputs, shape [n, D]."
            )
        self.model = model
        self.rows = rows.detach()

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of what ``forward`` returns for unbatched inputs."""
        self._check_modules()
        with torch.no_grad():
            return self._distribution(self.rows[:1]).batch_shape

    @property
    def kernel(self) -> gpytorch.kernels.Kernel:
        """``model.covar_module``, for approximations that must know the structure of the kernel.

        Raises
        ------
        UnsupportedError
            If the model has no such kernel, or ``forward`` returns another covariance (because of a
            feature extractor, say).
        """
        kernel = getattr(self.model, "covar_module", None)
        name = type(self.model).__name__
        if not isinstance(kernel, gpytorch.kernels.Kernel):
            raise UnsupportedError(
                f"This approximation reads the structure of the kernel from covar_module, which {name} "
                "lacks. Name the kernel self.covar_module, or use Exact or InducingPoints."
            )
        with torch.no_grad():
            alone, whole = kernel(self.rows).to_dense(), self.covariance(self.rows)
            gap = float((alone - whole).abs().max() / whole.abs().max().clamp_min(1e-30))
        if gap > _AGREEMENT.get(whole.dtype, 1e-3):
            raise UnsupportedError(
                f"{name}.forward and {name}.covar_module disagree (relative difference {gap:.1g} on "
                f"{len(self.rows)} rows), so covar_module is not the whole kernel of this model. Put "
                "everything into covar_module, or use Exact or InducingPoints, which only need forward."
            )
        return kernel

    def mean(self, x: Tensor) -> Tensor:
        """Prior mean at inputs.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Inputs.

        Returns
        -------
        Tensor, shape [*b, N]
            Prior mean.
        """
        prior = self._distribution(x)
        return prior.mean.expand(*prior.batch_shape, x.shape[-2])

    def covariance(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """Dense prior covariance; only this block of it is evaluated.

        Parameters
        ----------
        x1 : Tensor, shape [*g, N1, D]
            First inputs.
        x2 : Tensor, shape [*g, N2, D], optional
            Second inputs; ``x1`` if left out.

        Returns
        -------
        Tensor, shape [*b, N1, N2]
            Covariances.
        """
        if x2 is None:
            prior = self._distribution(x1)
            dense = prior.lazy_covariance_matrix.to_dense()
            return dense.expand(*prior.batch_shape, *dense.shape[-2:])
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        both = [x.expand(*batch, *x.shape[-2:]) for x in (x1, x2)]
        prior = self._distribution(torch.cat(both, dim=-2))
        size = x1.shape[-2]
        # Slicing a lazily evaluated kernel slices its inputs, so the other three blocks cost nothing.
        dense = prior.lazy_covariance_matrix[..., :size, size:].to_dense()
        return dense.expand(*prior.batch_shape, *dense.shape[-2:])

    def variance(self, x: Tensor) -> Tensor:
        """Prior variance at inputs.

        Parameters
        ----------
        x : Tensor, shape [*g, N, D]
            Inputs.

        Returns
        -------
        Tensor, shape [*b, N]
            Prior variances, not clamped.
        """
        prior = self._distribution(x)
        diagonal = prior.lazy_covariance_matrix.diagonal(dim1=-1, dim2=-2)
        return diagonal.expand(*prior.batch_shape, x.shape[-2])

    def snapshot(self) -> Self:
        """Copy with today's parameter values; gradients still reach the live parameters.

        In training mode buffers are shared with the live model, because some modules (spectral
        normalisation) update them during ``forward``.

        Returns
        -------
        ModelGaussianProcess
            Of a structural copy of the model, without its variational strategy.
        """
        self._check_modules()
        share_buffers = self.model.training

        def transform(value: Tensor) -> Tensor:
            is_buffer = not isinstance(value, torch.nn.Parameter)
            return value if is_buffer and share_buffers else value.clone()

        return self._copy(transform)

    def detach(self) -> Self:
        """Copy with today's parameter values, off the graph (and therefore picklable).

        Returns
        -------
        ModelGaussianProcess
            Of a structural copy of the model, without its variational strategy.
        """
        copy = self._copy(lambda value: value.detach().clone())
        for module in copy.model.modules():
            # Bound methods of the live modules, which a pickle would carry along; nothing is ever
            # loaded into a copy.
            module._load_state_dict_pre_hooks = OrderedDict()
        return copy

    def _check_modules(self) -> None:
        """Refuse features that are no function of the row."""
        for name, module in self.model.named_modules():
            if isinstance(module, _NOT_ROW_WISE) and module.training:
                raise UnsupportedError(
                    f"The module {name!r} ({type(module).__name__}) makes the features of one row "
                    "depend on other rows or on chance, so that inducing points and data would see "
                    "different kernels. Use LayerNorm, or put that module into eval mode."
                )

    def _copy(self, transform: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(copy_module(_without_strategies(self.model), transform), self.rows)

    def _distribution(self, x: Tensor) -> MultivariateNormal:
        prior: Any = self.model.forward(x)
        if not isinstance(prior, MultivariateNormal) or isinstance(
            prior, MultitaskMultivariateNormal
        ):
            raise UnsupportedError(
                f"{type(self.model).__name__}.forward returned a {type(prior).__name__}; strategies "
                "need a MultivariateNormal (for several outputs use a batch of latent functions and "
                "LMCVariationalStrategy or IndependentMultitaskVariationalStrategy)."
            )
        if prior.event_shape[-1] != x.shape[-2]:
            raise UnsupportedError(
                f"{type(self.model).__name__}.forward returned {prior.event_shape[-1]} values for "
                f"{x.shape[-2]} rows; strategies need one value per row."
            )
        return prior


def _without_strategies(model: gpytorch.models.ApproximateGP) -> gpytorch.models.ApproximateGP:
    """The same model (not a copy) without the strategies among its children."""
    shell = object.__new__(type(model))
    children = {
        name: child
        for name, child in model._modules.items()
        if not isinstance(child, _VariationalStrategy)
    }
    shell.__dict__.update(model.__dict__, _modules=children)
    return shell
