"""White noise as a covariance function of the inputs.

White noise is the prior of a function whose values at distinct inputs are independent. Written as a
kernel it composes with the others (a smooth trend plus an unexplained part), and inference code can
recognise it (`gpvi.kernels.is_white`) and skip the linear algebra. See Rasmussen and Williams,
*Gaussian Processes for Machine Learning*, 2006, section 4.2.
"""

from copy import deepcopy
from typing import Any

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["WhiteKernel"]


class WhiteKernel(Kernel):
    r"""White noise with its own variance.

    .. math:: k(x, x') = \sigma^2 \, 1[x = x']

    Two inputs are equal when all their coordinates are. The value depends on the two rows alone and
    never on their positions, so slices of a covariance matrix are the covariance matrices of the
    slices, and repeated rows share one noise value (they are perfectly correlated). Noise that is
    drawn anew for each observation belongs into the likelihood instead.

    Parameters
    ----------
    batch_shape : torch.Size, default torch.Size([])
        One variance for each element of this batch.
    active_dims : tuple of int, optional
        Compare these coordinates only.
    variance_prior : gpytorch.priors.Prior, optional
        Prior over the variance.
    variance_constraint : gpytorch.constraints.Interval, optional
        Range of the variance; positive unless given.

    Attributes
    ----------
    variance : Tensor, shape batch_shape
        The variance :math:`\sigma^2`.

    Raises
    ------
    InputError
        If `variance_prior` is not a GPyTorch prior.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import WhiteKernel
    >>> kernel = WhiteKernel()
    >>> kernel.variance = 2.0
    >>> kernel(torch.tensor([[0.0], [1.0], [0.0]])).to_dense().detach()
    tensor([[2., 0., 2.],
            [0., 2., 0.],
            [2., 0., 2.]])
    """

    has_lengthscale = False

    def __init__(
        self,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        variance_prior: Prior | None = None,
        variance_constraint: Interval | None = None,
    ) -> None:
        super().__init__(batch_shape=batch_shape, active_dims=active_dims)
        self.register_parameter("raw_variance", torch.nn.Parameter(torch.zeros(self.batch_shape)))
        if variance_prior is not None:
            if not isinstance(variance_prior, Prior):
                raise InputError(
                    f"variance_prior must be a gpytorch.priors.Prior, got "
                    f"{type(variance_prior).__name__}; pass for instance GammaPrior(2.0, 1.0)."
                )
            # Bound methods, not lambdas: a kernel with a prior must stay picklable.
            self.register_prior(
                "variance_prior", variance_prior, self._variance_param, self._variance_closure
            )
        self.register_constraint(
            "raw_variance", Positive() if variance_constraint is None else variance_constraint
        )

    def _variance_param(self, module: "WhiteKernel") -> Tensor:
        return module.variance

    def _variance_closure(self, module: "WhiteKernel", value: Tensor | float) -> None:
        module.variance = value

    @property
    def is_stationary(self) -> bool:
        """Always True: the value depends on the difference of the inputs only."""
        return True

    @property
    def variance(self) -> Tensor:
        """The noise variance, of shape `batch_shape`."""
        return self.raw_variance_constraint.transform(self.raw_variance)

    @variance.setter
    def variance(self, value: Tensor | float) -> None:
        value = torch.as_tensor(value).to(self.raw_variance)
        self.initialize(raw_variance=self.raw_variance_constraint.inverse_transform(value))

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Evaluate the kernel.

        Parameters
        ----------
        x1 : Tensor, shape (*batch, N, D)
            Left inputs.
        x2 : Tensor, shape (*batch, M, D)
            Right inputs.
        diag : bool, default False
            Compare row n of `x1` with row n of `x2` only.
        last_dim_is_batch : bool, default False
            Give one matrix for each coordinate.
        **params
            What GPyTorch hands to every kernel of a composition; white noise has no use for it.

        Returns
        -------
        Tensor, shape (*batch, N, M), or (*batch, N) with diag=True
            Variance where the rows are equal, zero elsewhere.
        """
        variance = self.variance[..., None] if diag else self.variance[..., None, None]
        if last_dim_is_batch:
            x1, x2 = x1.mT.unsqueeze(-1), x2.mT.unsqueeze(-1)
            variance = variance.unsqueeze(-1)
        same = (x1 == x2).all(dim=-1) if diag else _same_rows(x1, x2)
        return same.to(x1.dtype) * variance

    # The base class applies a batch index to every buffer, active_dims included, which has no batch
    # dimensions; and its expanded parameters share memory, so no optimiser could update them.
    def __getitem__(self, index: Any) -> "WhiteKernel":
        """Kernel of the selected batch elements."""
        if not self.batch_shape:
            return self
        return self._with_raw_variance(self.raw_variance.detach()[index])

    def expand_batch(self, *sizes: Any) -> "WhiteKernel":
        """Kernel with the parameters repeated to a larger batch shape."""
        shape = torch.Size(sizes if all(isinstance(size, int) for size in sizes) else sizes[0])
        if shape == self.batch_shape:
            return self
        try:
            raw_variance = self.raw_variance.detach().expand(shape)
        except RuntimeError:
            raise InputError(
                f"A kernel of batch shape {tuple(self.batch_shape)} cannot be expanded to "
                f"{tuple(shape)}; the old shape must broadcast to the new one."
            ) from None
        return self._with_raw_variance(raw_variance)

    def _with_raw_variance(self, raw_variance: Tensor) -> "WhiteKernel":
        kernel = deepcopy(self)
        kernel.raw_variance.data = raw_variance.clone()
        kernel.batch_shape = raw_variance.shape
        return kernel


def _same_rows(x1: Tensor, x2: Tensor) -> Tensor:
    """Whether row n of x1 equals row m of x2, shape (*batch, N, M)."""
    batch_shape = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    shape = (*batch_shape, x1.shape[-2], x2.shape[-2])
    same = torch.ones(shape, dtype=torch.bool, device=x1.device)
    # One coordinate at a time: comparing them at once would need N M D bytes instead of N M.
    for left, right in zip(x1.unbind(-1), x2.unbind(-1), strict=True):
        same &= left.unsqueeze(-1) == right.unsqueeze(-2)
    return same
