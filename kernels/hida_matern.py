r"""Hida-Matern kernels: Matern processes that oscillate.

A Matern correlation times a cosine has a spectrum with one smooth peak at the cosine's frequency.
On the line it is a process of finitely many states, and sums of such kernels approach every
stationary covariance: a spectral mixture whose cost is linear in the number of stamps.
"""

import math
from collections.abc import Callable

import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels._batched import Constrained, OneColumnKernel, check_order
from gpvi.kernels._block_algebra import matern_block
from gpvi.kernels.matern import matern_correlation
from gpvi.kernels.state_space import StateSpaceForm

__all__ = ["HidaMaternKernel", "HidaMaternMixture"]


class HidaMaternKernel(OneColumnKernel):
    r"""A Matern kernel of any order times a cosine.

    .. math:: k(t, t') = k_p(|t - t'|) \cos(\omega (t - t'))

    with :math:`k_p` the Matern correlation of smoothness :math:`p + 1/2`.

    Parameters
    ----------
    order : int
        ``p``, 0 to 8: how often the functions are differentiable.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    active_dims : tuple of int, optional
        The column that is time.
    lengthscale_prior, frequency_prior : gpytorch.priors.Prior, optional
        Priors over the parameters.
    lengthscale_constraint, frequency_constraint : gpytorch.constraints.Interval, optional
        Ranges of the parameters; positive unless given.

    Attributes
    ----------
    lengthscale : Tensor, shape (*batch_shape, 1, 1)
        Lengthscale of the Matern factor.
    frequency : Tensor, shape batch_shape
        Angular frequency :math:`\omega`, in radians per unit of time; starts at one.

    Raises
    ------
    InputError
        If the order is out of range.

    References
    ----------
    Dowling, M., Sokół, P. & Park, I. M. (2021). Hida-Matérn kernel.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import HidaMaternKernel
    >>> kernel = HidaMaternKernel(order=1)
    >>> kernel.lengthscale, kernel.frequency = 1.0, 3.1416
    >>> kernel(torch.tensor([[0.0], [1.0]])).to_dense().detach()
    tensor([[ 1.0000, -0.4834],
            [-0.4834,  1.0000]])
    """

    has_lengthscale = True
    frequency = Constrained()

    def __init__(
        self,
        order: int,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
        frequency_prior: Prior | None = None,
        frequency_constraint: Interval | None = None,
    ) -> None:
        super().__init__(
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint,
        )
        self.order = check_order(order)
        self.add_parameter("frequency", frequency_prior, frequency_constraint, start=1.0)

    def covariance(self, t1: Tensor, t2: Tensor, lift: Callable[[Tensor], Tensor]) -> Tensor:
        """Covariance at pairs of times.

        Parameters
        ----------
        t1, t2 : Tensor
            Times whose shapes broadcast.
        lift : callable
            Gives a parameter of shape [*b] the dims that it needs to broadcast with them.

        Returns
        -------
        Tensor
            Of the shape to which all broadcast.
        """
        apart = t1 - t2
        rate = math.sqrt(2 * self.order + 1) / lift(self.lengthscale[..., 0, 0])
        envelope = matern_correlation(self.order, rate * apart.abs())
        return envelope * torch.cos(lift(self.frequency) * apart)

    def state_space(self) -> StateSpaceForm:
        """One rotating cascade of ``2 (p + 1)`` states.

        Returns
        -------
        StateSpaceForm
            On the graph of the parameters.
        """
        lengthscale = self.lengthscale[..., 0, 0]
        unit = torch.ones_like(lengthscale)
        block = matern_block(self.order, lengthscale, unit, self.frequency)
        column = 0 if self.active_dims is None else int(self.active_dims[0])
        return StateSpaceForm((block,), (0,), (f"hida_matern{2 * self.order + 1}2",), column)


class HidaMaternMixture(OneColumnKernel):
    r"""A sum of Hida-Matern kernels: a spectral mixture with a state-space form.

    .. math:: k(t, t') = \sum_{q=1}^Q v_q \, k_p(|t - t'| / \ell_q) \cos(\omega_q (t - t'))

    Parameters
    ----------
    num_components : int
        ``Q``, at least 1.
    order : int, default 1
        ``p`` of all components, 0 to 8.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    active_dims : tuple of int, optional
        The column that is time.
    variance_prior, lengthscale_prior, frequency_prior : gpytorch.priors.Prior, optional
        Priors over the parameters.
    variance_constraint, lengthscale_constraint, frequency_constraint : Interval, optional
        Ranges of the parameters; positive unless given.

    Attributes
    ----------
    variances, lengthscales, frequencies : Tensor, shape (*batch_shape, Q)
        Parameters of the components. Variances start at 1 / Q, lengthscales at 1, frequencies at
        :math:`2 \pi (q - \tfrac12) / Q`; a periodogram of the data gives better ones.

    Raises
    ------
    InputError
        If the order or the number of components is out of range.

    References
    ----------
    Dowling, M., Sokół, P. & Park, I. M. (2021). Hida-Matérn kernel.

    Wilson, A. G. & Adams, R. P. (2013). Gaussian process kernels for pattern discovery and
    extrapolation. ICML.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import HidaMaternMixture
    >>> kernel = HidaMaternMixture(num_components=2)
    >>> kernel.state_space().dimension
    8
    >>> kernel(torch.tensor([[0.0], [0.25]])).to_dense().detach()
    tensor([[1.0000, 0.6071],
            [0.6071, 1.0000]])
    """

    has_lengthscale = False
    variances = Constrained()
    lengthscales = Constrained()
    frequencies = Constrained()

    def __init__(
        self,
        num_components: int,
        order: int = 1,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        variance_prior: Prior | None = None,
        variance_constraint: Interval | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
        frequency_prior: Prior | None = None,
        frequency_constraint: Interval | None = None,
    ) -> None:
        super().__init__(batch_shape=batch_shape, active_dims=active_dims)
        if isinstance(num_components, bool) or not isinstance(num_components, int):
            raise InputError(f"num_components must be an integer, got {num_components!r}.")
        if num_components < 1:
            raise InputError(f"num_components must be at least 1, got {num_components}.")
        self.num_components, self.order = num_components, check_order(order)
        Q = num_components
        spread = 2.0 * math.pi * (torch.arange(Q) + 0.5) / Q
        size = (Q,)
        self.add_parameter("variances", variance_prior, variance_constraint, 1.0 / Q, size)
        self.add_parameter("lengthscales", lengthscale_prior, lengthscale_constraint, 1.0, size)
        self.add_parameter("frequencies", frequency_prior, frequency_constraint, spread, size)

    @property
    def is_stationary(self) -> bool:
        """Always True: the value depends on the difference of the inputs only."""
        return True

    def covariance(self, t1: Tensor, t2: Tensor, lift: Callable[[Tensor], Tensor]) -> Tensor:
        """Covariance at pairs of times.

        Parameters
        ----------
        t1, t2 : Tensor
            Times whose shapes broadcast.
        lift : callable
            Gives a parameter of shape [*b] the dims that it needs to broadcast with them.

        Returns
        -------
        Tensor
            Of the shape to which all broadcast.
        """
        apart = t1 - t2
        distance = math.sqrt(2 * self.order + 1) * apart.abs()
        total = torch.zeros_like(apart)
        for variance, lengthscale, frequency in self._components():
            envelope = matern_correlation(self.order, distance / lift(lengthscale))
            total = total + lift(variance) * envelope * torch.cos(lift(frequency) * apart)
        return total

    def state_space(self) -> StateSpaceForm:
        """A rotating cascade of ``2 (p + 1)`` states for each component.

        Returns
        -------
        StateSpaceForm
            One term, on the graph of the parameters.
        """
        blocks = tuple(
            matern_block(self.order, lengthscale, variance, frequency)
            for variance, lengthscale, frequency in self._components()
        )
        column = 0 if self.active_dims is None else int(self.active_dims[0])
        label = f"hida_matern{2 * self.order + 1}2_mixture"
        return StateSpaceForm(blocks, (0,) * len(blocks), (label,), column)

    def _components(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        parts = (self.variances, self.lengthscales, self.frequencies)
        return list(zip(*(part.unbind(-1) for part in parts), strict=True))
