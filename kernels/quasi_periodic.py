"""A seasonal pattern that drifts.

The product of a periodic and a Matern kernel: neighbouring periods look alike, distant ones do not.
Every harmonic becomes one oscillating Matern process, all with the same lengthscale. See Solin, A.
& Särkkä, S. (2014). Explicit link between periodic covariance functions and state space models.
AISTATS.
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
from gpvi.kernels._harmonics import harmonic_variances
from gpvi.kernels.matern import matern_correlation
from gpvi.kernels.state_space import StateSpaceForm

__all__ = ["QuasiPeriodicKernel"]


class QuasiPeriodicKernel(OneColumnKernel):
    r"""A periodic kernel times a Matern kernel of any order.

    .. math:: k(t, t') = k_p(|t - t'|) \exp\Big(-\frac{2}{\lambda}
              \sin^2 \frac{\pi (t - t')}{T}\Big)

    with :math:`k_p` the Matern correlation of smoothness :math:`p + 1/2`. As in GPyTorch's
    `PeriodicKernel`, the lengthscale :math:`\lambda` of the pattern is not squared.

    Parameters
    ----------
    order : int, default 1
        ``p``, 0 to 8: how often the functions are differentiable.
    tolerance : float, default 1e-6
        Variance that the harmonics of the state-space form may lack. The dense kernel is exact.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    active_dims : tuple of int, optional
        The column that is time.
    lengthscale_prior, period_length_prior, periodic_lengthscale_prior : Prior, optional
        Priors over the parameters.
    lengthscale_constraint, period_length_constraint : gpytorch.constraints.Interval, optional
        Ranges of the first two parameters; positive unless given.
    periodic_lengthscale_constraint : gpytorch.constraints.Interval, optional
        Range of the third; positive unless given.

    Attributes
    ----------
    lengthscale : Tensor, shape (*batch_shape, 1, 1)
        Time over which the pattern changes.
    period_length : Tensor, shape batch_shape
        ``T``, starts at one.
    periodic_lengthscale : Tensor, shape batch_shape
        ``lambda``, starts at one: the larger, the smoother the pattern within a period.

    Raises
    ------
    InputError
        If the order or the tolerance is out of range.

    References
    ----------
    Solin, A. & Särkkä, S. (2014). Explicit link between periodic covariance functions and state
    space models. AISTATS.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import QuasiPeriodicKernel
    >>> kernel = QuasiPeriodicKernel(order=1)
    >>> kernel.lengthscale, kernel.period_length = 10.0, 1.0
    >>> kernel(torch.tensor([[0.0], [0.5], [1.0]])).to_dense().detach()[0]
    tensor([1.0000, 0.1349, 0.9866])
    """

    has_lengthscale = True
    period_length = Constrained()
    periodic_lengthscale = Constrained()

    def __init__(
        self,
        order: int = 1,
        tolerance: float = 1e-6,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        lengthscale_prior: Prior | None = None,
        lengthscale_constraint: Interval | None = None,
        period_length_prior: Prior | None = None,
        period_length_constraint: Interval | None = None,
        periodic_lengthscale_prior: Prior | None = None,
        periodic_lengthscale_constraint: Interval | None = None,
    ) -> None:
        super().__init__(
            batch_shape=batch_shape,
            active_dims=active_dims,
            lengthscale_prior=lengthscale_prior,
            lengthscale_constraint=lengthscale_constraint,
        )
        if not 0.0 < tolerance < 1.0:
            raise InputError(f"tolerance must lie in (0, 1), got {tolerance!r}.")
        self.order, self.tolerance = check_order(order), tolerance
        self.add_parameter("period_length", period_length_prior, period_length_constraint, 1.0)
        self.add_parameter(
            "periodic_lengthscale", periodic_lengthscale_prior, periodic_lengthscale_constraint, 1.0
        )

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
        wave = torch.sin(torch.pi * apart / lift(self.period_length))
        pattern = torch.exp(-2.0 * wave.square() / lift(self.periodic_lengthscale))
        return pattern * matern_correlation(self.order, rate * apart.abs())

    def state_space(self) -> StateSpaceForm:
        """A Matern cascade, and a rotating one for each harmonic.

        Returns
        -------
        StateSpaceForm
            One term, on the graph of the parameters.

        Raises
        ------
        UnsupportedError
            If the pattern is so sharp that it takes more than 128 harmonics.
        """
        lengthscale = self.lengthscale[..., 0, 0]
        variances = harmonic_variances(self.periodic_lengthscale, self.tolerance)
        frequency = 2.0 * torch.pi / self.period_length
        blocks = tuple(
            matern_block(self.order, lengthscale, variance, j * frequency if j else None)
            for j, variance in enumerate(variances.unbind(-1))
        )
        column = 0 if self.active_dims is None else int(self.active_dims[0])
        return StateSpaceForm(blocks, (0,) * len(blocks), ("quasi_periodic",), column)
