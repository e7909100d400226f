"""Integrated Wiener processes: the prior of smoothing splines, a trend without a scale of its own.

Order 1 gives cubic smoothing splines, a local linear trend in the language of structural time
series. See Wahba, G. (1978). Improper priors, spline smoothing and the problem of guarding against
model errors in regression. JRSS B.
"""

import math
from collections.abc import Callable

import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels._batched import Constrained, OneColumnKernel, check_order
from gpvi.kernels.state_space import StateSpaceForm
from gpvi.linalg.markov.launched import LaunchedBlock

__all__ = ["IntegratedWienerKernel"]


class IntegratedWienerKernel(OneColumnKernel):
    r"""A Wiener process, integrated as often as the order says, from an origin on.

    With :math:`s = \min(t, t') - o`, :math:`\tau = |t - t'|`, and :math:`u, u'` the times since the
    origin,

    .. math:: k(t, t') = \sum_{i=0}^p v_i \frac{(u u')^i}{i!^2} + \frac{\sigma^2}{p!^2}
              \sum_{k=0}^p \binom{p}{k} \tau^{p-k} \frac{s^{p+k+1}}{p + k + 1}.

    Parameters
    ----------
    order : int, default 1
        ``p``, 0 to 8: number of integrations. Zero is the Wiener process itself.
    origin : float, default 0.0
        ``o``. Times before it are refused.
    initial_variances : tuple of float, optional
        ``v``: variances of the function and its ``p`` derivatives at the origin, not negative; one
        each if left out. They are fixed.
    batch_shape : torch.Size, default torch.Size([])
        One variance for each element of this batch.
    active_dims : tuple of int, optional
        The column that is time.
    variance_prior : gpytorch.priors.Prior, optional
        Prior over the variance.
    variance_constraint : gpytorch.constraints.Interval, optional
        Range of the variance; positive unless given.

    Attributes
    ----------
    variance : Tensor, shape batch_shape
        :math:`\sigma^2`, the variance of the Wiener process per unit of time; starts at one.

    Raises
    ------
    InputError
        If an argument is out of range.

    References
    ----------
    Wahba, G. (1978). Improper priors, spline smoothing and the problem of guarding against model
    errors in regression. JRSS B.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import IntegratedWienerKernel
    >>> kernel = IntegratedWienerKernel(order=0, initial_variances=(0.0,))
    >>> kernel(torch.tensor([[1.0], [3.0]])).to_dense().detach()
    tensor([[1., 1.],
            [1., 3.]])
    """

    has_lengthscale = False
    variance = Constrained()

    def __init__(
        self,
        order: int = 1,
        origin: float = 0.0,
        initial_variances: tuple[float, ...] | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
        variance_prior: Prior | None = None,
        variance_constraint: Interval | None = None,
    ) -> None:
        super().__init__(batch_shape=batch_shape, active_dims=active_dims)
        self.order, self.origin = check_order(order), float(origin)
        given = (1.0,) * (order + 1) if initial_variances is None else tuple(initial_variances)
        if len(given) != order + 1 or not all(math.isfinite(v) and v >= 0.0 for v in given):
            raise InputError(
                f"initial_variances must be {order + 1} numbers that are not negative, for the "
                f"function and its {order} derivatives; got {given}."
            )
        if not math.isfinite(self.origin):
            raise InputError(f"origin must be finite, got {origin!r}.")
        self.initial_variances = tuple(float(v) for v in given)
        self.add_parameter("variance", variance_prior, variance_constraint, 1.0)

    @property
    def is_stationary(self) -> bool:
        """Always False: the variance grows with the time since the origin."""
        return False

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

        Raises
        ------
        InputError
            If a time lies before the origin.
        """
        u1, u2 = t1 - self.origin, t2 - self.origin
        if bool((u1 < 0).any()) or bool((u2 < 0).any()):
            earliest = min(t1.min().item(), t2.min().item())
            raise InputError(
                f"An integrated Wiener process begins at its origin {self.origin:.6g}, but there "
                f"is a time {earliest:.6g} before; move the origin to the first stamp or earlier."
            )
        p, shared, apart = self.order, torch.minimum(u1, u2), (u1 - u2).abs()
        driven = torch.zeros_like(apart)
        for k in range(p + 1):
            grown = shared ** (p + k + 1) / (p + k + 1)
            driven = driven + math.comb(p, k) * apart ** (p - k) * grown
        total = lift(self.variance) * driven / math.factorial(p) ** 2
        for i, initial in enumerate(self.initial_variances):
            total = total + initial * (u1 * u2) ** i / math.factorial(i) ** 2
        return total

    def state_space(self) -> StateSpaceForm:
        """A cascade of ``p + 1`` states: the function and its derivatives.

        Returns
        -------
        StateSpaceForm
            On the graph of the variance.
        """
        variance = self.variance
        block = LaunchedBlock(
            order=self.order,
            rate=torch.ones_like(variance),
            noise=variance,
            start=torch.diag(variance.new_tensor(self.initial_variances)),
            damped=False,
            origin=variance.new_tensor(self.origin),
            noiseless=False,
        )
        column = 0 if self.active_dims is None else int(self.active_dims[0])
        label = "wiener" if self.order == 0 else f"integrated_wiener{self.order}"
        return StateSpaceForm((block,), (0,), (label,), column)
