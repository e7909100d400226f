r"""Forward-backward Gaussian variational inference for any log density.

The Gaussian :math:`q = N(m, \Sigma)` closest to :math:`\pi \propto e^{-V}` minimises
:math:`F(q) = E_q V + E_q \log q`. In the geometry of optimal transport between Gaussians a gradient step on
the first term and a proximal step on the second have closed forms: with :math:`g = E_q \nabla V`,
:math:`H = E_q \nabla^2 V` and a step :math:`\eta`,

.. math:: m \leftarrow m - \eta g, \qquad M = I - \eta H, \qquad \Sigma_h = M \Sigma M, \qquad
          \Sigma \leftarrow \tfrac12 \big(\Sigma_h + 2 \eta I + [\Sigma_h (\Sigma_h + 4 \eta I)]^{1/2}\big) .

:math:`\Sigma` stays positive definite whatever the step and the curvature, which makes this the method for
densities that are not log-concave. For :math:`\beta`-smooth V every step of :math:`\eta \le 1/\beta` lowers
F. Expectations are over one fixed set of points whose first two moments are those of the standard normal
distribution, so that F is a deterministic function, and a Gaussian target is fitted exactly. The mean
curvature is :math:`H = 2\, \partial_\Sigma E_q V`: no second derivatives are taken. Unlike a natural gradient
the step depends on the coordinates; they are those in which q starts as the standard normal distribution, so
that a start near the target (Laplace's approximation, say) makes it well-conditioned.

References
----------
Diao, M. Z., Balasubramanian, K., Chewi, S. & Salim, A. (2023). Forward-backward Gaussian variational
inference via JKO in the Bures-Wasserstein space. ICML.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError

__all__ = ["GaussianFit", "fb_gvi"]

# Accepted steps make the next one longer by the first factor, rejected ones are cut by the second.
_GROWTH, _CUT = 1.5, 0.5
_SMALLEST_STEP = 1e-12


@dataclass(frozen=True, eq=False)
class GaussianFit:
    """Outcome of :func:`fb_gvi`.

    Parameters
    ----------
    mean : Tensor, shape [d]
        Of q.
    covariance : Tensor, shape [d, d]
        Of q.
    elbo : float
        :math:`E_q \\log p - E_q \\log q` in nats, by the fixed points.
    steps : int
        Steps taken.
    converged : bool
        Whether the last q was within the tolerance of a stationary point.
    history : list of float
        ELBO after every accepted step.
    """

    mean: Tensor
    covariance: Tensor
    elbo: float
    steps: int
    converged: bool
    history: list[float] = field(default_factory=list)


def fb_gvi(
    log_prob: Callable[[Tensor], Tensor],
    dim: int,
    *,
    mean: Tensor | None = None,
    covariance: Tensor | None = None,
    step_size: float | None = None,
    num_points: int | None = None,
    max_steps: int = 1_000,
    tolerance: float = 1e-8,
    generator: torch.Generator | None = None,
) -> GaussianFit:
    r"""Gaussian closest to a density, by forward-backward steps.

    Parameters
    ----------
    log_prob : callable
        Log density, up to a constant, of points of shape [S, d], as values of shape [S];
        differentiable by torch.
    dim : int
        d.
    mean : Tensor, shape [d], optional
        Where q starts, and in which dtype; zeros in double precision if left out.
    covariance : Tensor, shape [d, d], optional
        Likewise, and the coordinates in which steps are taken; the identity if left out.
    step_size : float, optional
        Constant step, in those coordinates. Left out, steps are shortened until the objective does not get
        worse, and grow again: the smoothness of the density need not be known.
    num_points : int, optional
        Points of expectations, an even number of at least 2 d; the larger of 128 and 4 d if left out.
    max_steps : int
        The most steps, rejected ones included.
    tolerance : float
        Stop once the squared gradient in the metric of q,
        :math:`g^\top \Sigma g + \tfrac12 \|\Sigma^{1/2} H \Sigma^{1/2} - I\|^2` in nats, is below.
    generator : torch.Generator, optional
        Source of the points, on the CPU; seeded with 0 if left out, so that results repeat.

    Returns
    -------
    GaussianFit
        The last q, which is the best one unless ``step_size`` was given.

    Raises
    ------
    InputError
        For impossible options and shapes, and a function that does not return a value for every point.
    NumericalError
        If the log density or its gradient is not finite where q starts, or where a constant step leads.

    References
    ----------
    Diao, M. Z., Balasubramanian, K., Chewi, S. & Salim, A. (2023). Forward-backward Gaussian variational
    inference via JKO in the Bures-Wasserstein space. ICML.

    Examples
    --------
    >>> import torch
    >>> target = torch.distributions.Gamma(torch.tensor(9.0).double(), torch.tensor(1.0).double())
    >>> fit = fb_gvi(lambda u: (target.log_prob(u.exp()) + u)[:, 0], 1)  # the logarithm of a Gamma variable
    >>> fit.converged, round(fit.mean.item(), 2), round(fit.covariance.item(), 2)
    (True, 2.14, 0.11)
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise InputError(f"dim is {dim!r}; it must be an integer of at least 1.")
    if max_steps < 1:
        raise InputError(f"max_steps is {max_steps}; it must be at least 1.")
    if step_size is not None and not 0.0 < step_size < math.inf:
        raise InputError(f"step_size is {step_size}; it must be positive and finite.")
    mean = torch.zeros(dim, dtype=torch.float64) if mean is None else mean.detach().clone()
    covariance = torch.eye(dim).to(mean) if covariance is None else covariance.detach().to(mean)
    _check_start(mean, covariance, dim)
    root = torch.linalg.cholesky(covariance)
    problem = _Problem(log_prob, _points(dim, num_points, generator).to(mean), mean, root)
    state = problem.state(torch.zeros_like(mean), torch.eye(dim).to(mean))
    if state is None:
        raise NumericalError(
            "The log density or its gradient is not finite around the start of q; pass a mean "
            "and a covariance inside its support, or transform it to the whole space."
        )
    step = 1.0 / max(state.curvature, 1e-3) if step_size is None else step_size
    history, taken = [state.elbo], 0
    while state.decrement > tolerance and taken < max_steps and step > _SMALLEST_STEP:
        trial = problem.state(*_forward_backward(state, step))
        taken += 1
        if step_size is None:
            if trial is None or trial.elbo < state.elbo - 1e-12 * (1.0 + abs(state.elbo)):
                step *= _CUT
                continue
            step *= _GROWTH
        elif trial is None:
            raise NumericalError(
                f"step_size={step_size} led to where the log density is not finite; take a smaller one, or "
                "leave it out."
            )
        state = trial
        history.append(state.elbo)
    converged = state.decrement <= tolerance
    covariance = root @ state.covariance @ root.mT
    return GaussianFit(
        mean + root @ state.mean,
        0.5 * (covariance + covariance.mT),
        state.elbo,
        taken,
        converged,
        history,
    )


@dataclass(frozen=True, eq=False)
class _State:
    mean: Tensor
    covariance: Tensor
    gradient: Tensor
    hessian: Tensor
    elbo: float
    decrement: float
    curvature: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """A density, the points that stand for q, and where q started."""

    log_prob: Callable[[Tensor], Tensor]
    points: Tensor
    origin: Tensor
    root: Tensor

    def state(self, mean: Tensor, covariance: Tensor) -> _State | None:
        """Everything about one q; None where numbers leave their range."""
        factor, info = torch.linalg.cholesky_ex(covariance)
        if int(info):
            return None
        value, gradient, hessian = self._derivatives(mean, covariance)
        finite = (torch.isfinite(part).all() for part in (value, gradient, hessian))
        if not all(bool(part) for part in finite):
            return None
        log_det = 2.0 * (factor.diagonal().log().sum() + self.root.diagonal().log().sum())
        entropy = 0.5 * (log_det + len(mean) * (1.0 + math.log(2.0 * math.pi)))
        distance = factor.mT @ hessian @ factor - torch.eye(len(mean)).to(mean)
        decrement = (factor.mT @ gradient).square().sum() + 0.5 * distance.square().sum()
        curvature = torch.linalg.eigvalsh(hessian)[-1]
        elbo = float(value + entropy)
        return _State(mean, covariance, gradient, hessian, elbo, float(decrement), float(curvature))

    def _derivatives(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of the log density, and of gradient and curvature of V.

        The mean curvature is twice the derivative by the covariance, which needs no second derivatives, and
        is that of the very function that is minimised.
        """
        with torch.enable_grad():
            m, S = mean.detach().requires_grad_(), covariance.detach().requires_grad_()
            u = m + self.points @ torch.linalg.cholesky(S).mT
            x = self.origin + u @ self.root.mT
            values = self.log_prob(x)
            if values.shape != x.shape[:1]:
                raise InputError(
                    f"log_prob returned shape {tuple(values.shape)} for points of shape {tuple(x.shape)}; it "
                    f"must return one number for each, shape {tuple(x.shape[:1])}."
                )
            value = values.mean()
            by_mean, by_covariance = torch.autograd.grad(value, (m, S))
        return value.detach(), -by_mean, -(by_covariance + by_covariance.mT)


def _forward_backward(state: _State, step: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance after one step."""
    mean = state.mean - step * state.gradient
    shrink = torch.eye(len(mean)).to(mean) - step * state.hessian
    half = shrink @ state.covariance @ shrink
    values, vectors = torch.linalg.eigh(0.5 * (half + half.mT))
    values = values.clamp_min(0.0)
    values = 0.5 * (values + 2.0 * step + (values * (values + 4.0 * step)).sqrt())
    return mean, (vectors * values) @ vectors.mT


def _check_start(mean: Tensor, covariance: Tensor, dim: int) -> None:
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise InputError(
            f"mean has shape {tuple(mean.shape)} and covariance {tuple(covariance.shape)}; with dim={dim} "
            f"they must have shapes ({dim},) and ({dim}, {dim})."
        )
    if not mean.dtype.is_floating_point:
        raise InputError(f"mean is {mean.dtype}; pass floating-point values.")
    if int(torch.linalg.cholesky_ex(covariance).info) or not torch.equal(covariance, covariance.mT):
        raise InputError("covariance is not symmetric and positive definite.")


def _points(dim: int, number: int | None, generator: torch.Generator | None) -> Tensor:
    """Antithetic points with the mean and covariance of the standard normal distribution."""
    number = max(128, 4 * dim) if number is None else number
    if number < 2 * dim or number % 2:
        raise InputError(f"num_points is {number}; it must be even and at least 2 dim = {2 * dim}.")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    half = torch.randn(number // 2, dim, dtype=torch.float64, generator=generator)
    factor = torch.linalg.cholesky(half.mT @ half / len(half))
    half = torch.linalg.solve_triangular(factor, half.mT, upper=False).mT
    return torch.cat([half, -half])
