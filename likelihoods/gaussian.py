"""Gaussian noise: the likelihood for which everything is in closed form.

Constant learnt noise, known noise variances per row, or both.
"""

import math
from abc import abstractmethod

import torch
from gpytorch.constraints import GreaterThan, Interval
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator.operators import DiagLinearOperator
from torch import Tensor
from torch.distributions import Normal

from gpvi.exceptions import InputError
from gpvi.likelihoods.base import Likelihood

__all__ = ["ClosedFormGaussian", "GaussianLikelihood"]

_LOG_2PI = math.log(2 * math.pi)


class ClosedFormGaussian(Likelihood):
    """Closed forms that need only a noise variance per row."""

    has_analytic_marginal = True
    is_log_concave = True
    row_arguments = frozenset({"weights", "noise"})

    @abstractmethod
    def _noise(self, shape: torch.Size, like: Tensor, **rows: Tensor) -> Tensor:
        """Noise variance that broadcasts to `shape`, in dtype and on device of `like`."""

    def forward(self, function_samples: Tensor, **rows: Tensor) -> Normal:
        """Return the normal distribution of y about f.

        Parameters
        ----------
        function_samples : Tensor
            Values of f, `[..., N]`.
        **rows : Tensor
            `noise`: known noise variances `[N]`.

        Returns
        -------
        torch.distributions.Normal
            Batch shape `[..., N]`.
        """
        extras = self._extras(rows, function_samples, function_samples.shape[-1])
        extras.pop("weights", None)
        noise = self._noise(function_samples.shape, function_samples, **extras)
        return Normal(*torch.broadcast_tensors(function_samples, noise.sqrt()))

    def marginal(self, q_f: MultivariateNormal, **rows: Tensor) -> MultivariateNormal:
        """Return the joint normal distribution of y: q(f) with the noise added.

        Parameters
        ----------
        q_f : MultivariateNormal
            Distribution of f, `[*b, N]`.
        **rows : Tensor
            `noise`: known noise variances `[N]`.

        Returns
        -------
        MultivariateNormal
            Distribution of y.

        Raises
        ------
        InputError
            For multitask distributions.
        """
        if isinstance(q_f, MultitaskMultivariateNormal):
            raise InputError(
                f"{type(self).__name__} has one output, but q(f) is multitask with shape "
                f"{tuple(q_f.event_shape)}. Pass one MultivariateNormal per output."
            )
        mean, covariance = q_f.mean, q_f.lazy_covariance_matrix
        extras = self._extras(rows, mean, mean.shape[-1])
        extras.pop("weights", None)
        noise = self._noise(mean.shape, mean, **extras)
        shape = torch.broadcast_shapes(mean.shape, noise.shape)
        noisy = covariance + DiagLinearOperator(noise.expand(shape))
        return MultivariateNormal(mean.expand(shape), noisy)

    def _log_prob(self, function_samples: Tensor, y: Tensor, **rows: Tensor) -> Tensor:
        noise = self._noise(y.shape, function_samples, **rows)
        return _log_normal(y - function_samples, noise)

    def _variational_expectations(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        noise = self._noise(y.shape, mean, **rows)
        return _log_normal(y - mean, noise) - 0.5 * variance / noise

    def _predict_log_density(
        self, y: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        return _log_normal(y - mean, variance + self._noise(y.shape, mean, **rows))

    def _predict_mean_var(
        self, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = variance + self._noise(mean.shape, mean, **rows)
        return mean.expand(total.shape), total

    def _predict_quantiles(
        self, levels: Tensor, mean: Tensor, variance: Tensor, **rows: Tensor
    ) -> Tensor:
        centre, total = self._predict_mean_var(mean, variance, **rows)
        return centre + total.sqrt() * torch.special.ndtri(levels.reshape(-1, *[1] * total.dim()))

    def _initial_latent(self, y: Tensor, observed: Tensor, **rows: Tensor) -> Tensor:
        return y

    def _gaussian_noise(self, y: Tensor, **rows: Tensor) -> Tensor:
        return self._noise(y.shape, y, **rows)


class GaussianLikelihood(ClosedFormGaussian):
    r"""Gaussian noise, constant and learnt, known per row, or both.

    .. math:: p(y_n \mid f_n) = N(y_n \mid f_n, \sigma^2 + s_n)

    with the learnt variance :math:`\sigma^2` and the optional row extra `noise` :math:`s_n \ge 0`.
    Known variances are added to the learnt one; with `learn_noise=False` they replace the constant,
    so that `GaussianLikelihood(learn_noise=False)` with `noise=s` is the likelihood of measurements
    with known errors. Everything is in closed form.

    Parameters
    ----------
    noise : float or Tensor
        Starting value of :math:`\sigma^2`, the value itself if it is not learnt.
    learn_noise : bool
        Whether the constant is a trained parameter.
    min_noise : float
        Lower bound of :math:`\sigma^2`; the default suits standardised targets.
    batch_shape : torch.Size
        Shape of a batch of independent constants; the parameter has shape `[*batch_shape, 1]`.
    noise_constraint : gpytorch.constraints.Interval, optional
        Replaces the lower bound `min_noise` by another constraint.

    Attributes
    ----------
    noise : Tensor
        :math:`\sigma^2`, `[*batch_shape, 1]`. Assign a number to set it.

    References
    ----------
    Rasmussen, C. E. and Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, ch. 2.

    Examples
    --------
    >>> likelihood = GaussianLikelihood(noise=0.25)
    >>> y, zero = torch.tensor([0.0, float("nan")]), torch.zeros(2)
    >>> likelihood.variational_expectations(y, zero, zero)
    tensor([-0.2258,  0.0000], grad_fn=<WhereBackward0>)
    >>> likelihood.gaussian_noise(y, noise=torch.tensor([0.0, 1.0])).detach()
    tensor([0.2500, 1.2500])
    """

    def __init__(
        self,
        noise: float | Tensor = 0.1,
        learn_noise: bool = True,
        min_noise: float = 1e-6,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        noise_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        self.learn_noise = learn_noise
        raw = torch.zeros(*batch_shape, 1, dtype=torch.float64)
        self.register_parameter("raw_noise", torch.nn.Parameter(raw, requires_grad=learn_noise))
        constraint = GreaterThan(min_noise) if noise_constraint is None else noise_constraint
        self.register_constraint("raw_noise", constraint.double())
        self.noise = noise

    @property
    def noise(self) -> Tensor:
        """Constant noise variance, `[*batch_shape, 1]`."""
        return self.raw_noise_constraint.transform(self.raw_noise)

    @noise.setter
    def noise(self, value: float | Tensor) -> None:
        raw = self.raw_noise
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        low, high = self.raw_noise_constraint.lower_bound, self.raw_noise_constraint.upper_bound
        if not bool((value > low).all()):
            raise InputError(
                f"noise must exceed its lower bound {float(low)}, got {value.detach().tolist()}. "
                "Raise it, or lower min_noise (or the bound of noise_constraint)."
            )
        if not bool((value < high).all()):
            raise InputError(
                f"noise must be below its upper bound {float(high)}, got {value.detach().tolist()}. "
                "Lower it, or pass another noise_constraint."
            )
        self.initialize(raw_noise=self.raw_noise_constraint.inverse_transform(value))

    def _noise(self, shape: torch.Size, like: Tensor, **rows: Tensor) -> Tensor:
        constant = self.noise.to(like)
        known = rows.get("noise")
        if known is None:
            return constant
        return constant + known if self.learn_noise else known


def _log_normal(residual: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (residual.square() / variance + variance.log() + _LOG_2PI)
