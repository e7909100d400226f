"""Integer powers of a kernel.

By the Schur product theorem every positive integer power of a covariance function is one again; the
powers of a linear kernel with an intercept are the polynomial kernels. See Rasmussen and Williams,
*Gaussian Processes for Machine Learning*, 2006, section 4.2.
"""

from copy import deepcopy
from typing import Any

from gpytorch.kernels import Kernel
from linear_operator import to_dense
from torch import Tensor

from gpvi.exceptions import InputError

__all__ = ["PowerKernel"]


class PowerKernel(Kernel):
    r"""A kernel raised to a positive integer power.

    .. math:: k(x, x') = k_0(x, x')^p

    Unlike a product of `p` equal kernels it holds the parameters of :math:`k_0` once.

    Parameters
    ----------
    base_kernel : gpytorch.kernels.Kernel
        The kernel :math:`k_0`. Its `active_dims` and `batch_shape` are honoured.
    power : int
        The exponent `p`, at least 1. Other exponents may not give a covariance function.

    Raises
    ------
    InputError
        If `power` is not a positive integer.

    Examples
    --------
    >>> import torch, gpytorch
    >>> from gpvi.kernels import PowerKernel
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> linear = gpytorch.kernels.LinearKernel()
    >>> linear.variance = 1.0
    >>> PowerKernel(linear, power=2)(x).to_dense().detach()
    tensor([[ 1.,  4.],
            [ 4., 16.]])
    """

    has_lengthscale = False

    def __init__(self, base_kernel: Kernel, power: int) -> None:
        super().__init__()
        if isinstance(power, bool) or not isinstance(power, int) or power < 1:
            raise InputError(
                f"power must be an integer of at least 1, got {power!r}; other exponents do not "
                "give a covariance function in general."
            )
        self.base_kernel = base_kernel
        self.power = power

    @property
    def is_stationary(self) -> bool:
        """Whether the base kernel is stationary."""
        return self.base_kernel.is_stationary

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:
        """Number of outputs of the base kernel for each input."""
        return self.base_kernel.num_outputs_per_input(x1, x2)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Evaluate the kernel.

        Parameters
        ----------
        x1 : Tensor, shape (*batch, N, D)
            Left inputs.
        x2 : Tensor, shape (*batch, M, D)
            Right inputs.
        diag : bool, default False
            Pair row n of `x1` with row n of `x2` only.
        **params
            Handed on to the base kernel.

        Returns
        -------
        Tensor, shape (*batch, N, M), or (*batch, N) with diag=True
            Values of the base kernel to the power `p`.
        """
        return to_dense(self.base_kernel(x1, x2, diag=diag, **params)).pow(self.power)

    # The base class would store the sub-kernels of a composite base kernel under dotted names.
    def __getitem__(self, index: Any) -> "PowerKernel":
        """Kernel of the selected batch elements."""
        return self._with_base_kernel(self.base_kernel[index])

    def expand_batch(self, *sizes: Any) -> "PowerKernel":
        """Kernel with the parameters repeated to a larger batch shape."""
        return self._with_base_kernel(self.base_kernel.expand_batch(*sizes))

    def _with_base_kernel(self, base_kernel: Kernel) -> "PowerKernel":
        kernel = deepcopy(self)
        kernel.base_kernel = base_kernel
        return kernel
