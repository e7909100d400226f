"""Collapsed bound of a stationary kernel: algebra of size M, and the tensor engine for the rows.

Notation (rows n, inducing m): ``u_n = x_n / l`` and ``v_m = z_m / l``, ``Kzz + jitter = L L'``,
``a_n = L^-1 k_z(x_n)``, weights ``w_n = 1 / noise_n``, ``d_n = k_nn - |a_n|^2``, and ``omega_n`` is
minus twice the derivative of the bound by ``d_n``. An engine makes two passes over the rows, in
chunks: the first keeps the ``a_n`` and returns three sums, the second turns the adjoint of each
kernel entry into the moments ``sum_n S_nm [u_n, u_n^2, 1]``, ``S = dF/dK o dk/d(r^2)``, from which
the gradients by inducing inputs and lengthscales follow without another pass. Everything in between
is M x M and is done here in float64, whatever the dtype of the rows.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gpvi.exceptions import NotPositiveDefiniteError
from gpvi.linalg.stationary import stationary_slope, stationary_value

__all__ = [
    "Arguments",
    "Engine",
    "Features",
    "Gradient",
    "Needs",
    "Problem",
    "TensorEngine",
    "chunks",
    "evaluate",
    "factorise",
    "moment_features",
    "pull",
    "residual_penalty",
    "residual_weights",
    "squared_distances",
]

# Bytes of one chunk of rows: enough for fast matrix products, small next to the [N, M] features.
_CHUNK_BYTES = 1 << 22


class Arguments(NamedTuple):
    """Arguments of the public function, detached."""

    name: str
    x: Tensor  # [N, D]
    z: Tensor  # [M, D]
    targets: Tensor  # [N]
    lengthscale: Tensor  # [D] or [1]
    outputscale: Tensor  # []
    noise: Tensor  # [] or [N]
    jitter: float
    tighter: bool
    copies: Tensor  # [] or [N]


class Problem(NamedTuple):
    """What an engine needs to know; all of one dtype and device."""

    name: str
    scaled_x: Tensor  # [N, D]
    scaled_z: Tensor  # [M, D]
    targets: Tensor  # [N]
    weights: Tensor  # [] or [N], 1 / noise
    outputscale: Tensor  # []
    tighter: bool
    copies: Tensor  # [] or [N]


class Needs(NamedTuple):
    """Which parts of the gradient are wanted."""

    any: bool
    inputs: bool  # by inducing inputs or lengthscales
    row_noise: bool  # by a noise variance of every row


class Features(NamedTuple):
    """Result of the first pass."""

    rows: Tensor  # [N, M], a_n
    residual: Tensor  # [N], d_n
    omega: Tensor  # [N]
    gram: Tensor  # [M, M], sum_n w_n a_n a_n'
    omega_gram: (
        Tensor | None
    )  # [M, M], sum_n omega_n a_n a_n'; None where it is `gram` or not wanted
    projected: Tensor  # [M], sum_n w_n y_n a_n


class Engine(Protocol):
    """Two passes over the rows of a problem."""

    def features(self, problem: Problem, factor: Tensor, needs: Needs) -> Features:
        """First pass, given ``L``."""

    def adjoint(
        self,
        problem: Problem,
        factor: Tensor,
        features: Features,
        beta: Tensor,
        inverse: Tensor,
        alpha: Tensor,
        needs: Needs,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Second pass, given ``L``, ``beta``, ``B^-1`` and ``alpha = (Q + noise)^-1 y``:
        moments [M, 2D + 1] and ``a_n' B^-1 a_n`` [N], each None unless needed."""


class Gradient(NamedTuple):
    """Derivatives of the bound; None where not asked for."""

    z: Tensor | None
    targets: Tensor
    lengthscale: Tensor | None
    outputscale: Tensor
    noise: Tensor


def evaluate(engine: Engine, arguments: Arguments, needs: Needs) -> tuple[Tensor, Gradient | None]:
    """Bound in nats and, if needed, its gradient, in one go. The bound is float64 for any dtype."""
    name, x, z, targets, lengthscale, outputscale, noise, jitter, tighter, copies = arguments
    # The kernel is blind to a shift; a common centre keeps the moments u, u^2 small.
    centre = z.mean(0)
    u, v = (x - centre) / lengthscale, (z - centre) / lengthscale
    problem = Problem(name, u, v, targets, 1.0 / noise, outputscale, tighter, copies)
    Kzz, r2 = _inducing_covariance(problem, jitter)
    L = factorise(Kzz, "covariance of the inducing inputs", jitter)
    features = engine.features(problem, L.to(x.dtype), needs)

    B = features.gram.double() + torch.eye(z.shape[0], dtype=torch.float64, device=z.device)
    LB = factorise(B, "identity plus weighted gram matrix of the features", 0.0)
    beta = torch.cholesky_solve(features.projected.double().unsqueeze(-1), LB).squeeze(-1)
    error = (targets - features.rows @ beta.to(x.dtype)).double()
    w = problem.weights.double().expand(x.shape[0])
    # y'(Q + noise)^-1 y as a sum of squares; beta minimises it, so its rounding is harmless.
    quadratic = (w * error.square()).sum() + beta.square().sum()
    log_det = 2.0 * LB.diagonal().log().sum() - w.log().sum()
    penalty = residual_penalty(features.residual.double() * w, tighter, copies.double()).sum()
    value = -0.5 * (x.shape[0] * math.log(2.0 * math.pi) + log_det + quadratic + penalty)
    if not needs.any:
        return value, None

    inverse = torch.cholesky_inverse(LB)
    alpha = w * error
    moments, leverage = engine.adjoint(
        problem,
        L.to(x.dtype),
        features,
        beta.to(x.dtype),
        inverse.to(x.dtype),
        alpha.to(x.dtype),
        needs,
    )
    omega = features.omega.double()
    omega_gram = features.gram if features.omega_gram is None else features.omega_gram
    # sum_n (adjoint of a_n) a_n'
    inner = torch.outer(beta, beta) + inverse + omega_gram.double()
    inner.diagonal().sub_(1.0)
    s = outputscale.double()
    d_outputscale = 0.5 * (inner.trace() / s - omega.sum())
    d_noise = _noise_gradient(noise, w, alpha, omega, features.residual.double(), inverse, leverage)
    d_z = d_lengthscale = None
    if moments is not None:
        d_z, d_lengthscale = _input_gradients(problem, lengthscale, L, inner, r2, moments.double())
    dtype = x.dtype
    return value, Gradient(
        None if d_z is None else d_z.to(dtype),
        -alpha.to(dtype),
        None if d_lengthscale is None else d_lengthscale.to(dtype),
        d_outputscale.to(dtype),
        d_noise.to(dtype),
    )


def residual_penalty(ratio: Tensor, tighter: bool, copies: Tensor) -> Tensor:
    """``g(d_n / noise_n)``: the ratio itself, or ``c log(1 + ratio / c)`` for the tightened bound
    of a row that stands for ``c`` copies."""
    # With inducing inputs on the data d_n is zero up to rounding, of either sign.
    return copies * torch.log1p(ratio.clamp_min(0.0) / copies) if tighter else ratio


def residual_weights(residual: Tensor, weights: Tensor, tighter: bool, copies: Tensor) -> Tensor:
    """``omega_n``: ``1 / (noise_n + d_n / c_n)`` for the tightened bound, else ``1 / noise_n``."""
    if tighter:
        return weights / (1.0 + weights * residual.clamp_min(0.0) / copies)
    return weights.expand(torch.broadcast_shapes(weights.shape, residual.shape))


def factorise(matrix: Tensor, name: str, jitter: float) -> Tensor:
    """Lower Cholesky factor in float64. Failure raises: with more jitter the bound would jump from
    one evaluation of an optimisation to the next."""
    factor, info = torch.linalg.cholesky_ex(matrix.double())
    if bool(info.any()):
        smallest = float(matrix.diagonal(dim1=-2, dim2=-1).min())
        raise NotPositiveDefiniteError(
            f"{name} of size {matrix.shape[-1]} ({matrix.dtype}) is not positive definite: "
            f"smallest diagonal entry {smallest:.3g}, jitter {jitter:.3g}. Move or remove "
            "(nearly) equal inducing inputs, pass a larger jitter, or use float64."
        )
    return factor.contiguous()


def chunks(num_rows: int, num_columns: int, itemsize: int) -> list[tuple[int, int]]:
    """Bounds of the chunks of rows."""
    size = max(min(max(_CHUNK_BYTES // (itemsize * num_columns), 64), num_rows), 1)
    return [(i, min(i + size, num_rows)) for i in range(0, num_rows, size)]


def _inducing_covariance(problem: Problem, jitter: float) -> tuple[Tensor, Tensor]:
    r2 = squared_distances(problem.scaled_z.double(), problem.scaled_z.double())
    Kzz = stationary_value(problem.name, r2)
    Kzz.diagonal().add_(jitter)
    return problem.outputscale.double() * Kzz, r2


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared distances between two sets of points, [n, m]."""
    mode = "donot_use_mm_for_euclid_dist"  # the other mode loses half of the digits of close pairs
    return torch.cdist(left, right, compute_mode=mode).square_()


def _noise_gradient(
    noise: Tensor,
    w: Tensor,
    alpha: Tensor,
    omega: Tensor,
    residual: Tensor,
    inverse: Tensor,
    leverage: Tensor | None,
) -> Tensor:
    rows = alpha.square() - w + omega * residual * w
    if leverage is not None:
        return 0.5 * (rows + w.square() * leverage.double())
    # sum_n w a_n' B^-1 a_n = tr B^-1 (B - I) where the noise is one number.
    return 0.5 * (rows.sum() + w[0] * (inverse.shape[0] - inverse.trace())).expand(noise.shape)


def _input_gradients(
    problem: Problem, lengthscale: Tensor, L: Tensor, inner: Tensor, r2: Tensor, moments: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by inducing inputs and lengthscales from the moments over the rows, plus the same
    moments over the inducing inputs themselves."""
    v, ell = problem.scaled_z.double(), lengthscale.double()
    half = torch.linalg.solve_triangular(L.mT, inner, upper=True)
    Kzz_bar = -0.5 * torch.linalg.solve_triangular(L, half, upper=False, left=False)
    slope = problem.outputscale.double() * stationary_slope(problem.name, r2)
    own = (Kzz_bar * slope) @ moment_features(v)
    # Each inducing input enters Kzz through its row and its column.
    by_rows, by_own = (pull(v, part) for part in (moments, own))
    d_z = 2.0 * (by_rows[0] + 2.0 * by_own[0]) / ell
    d_ell = -2.0 * (by_rows[1] + by_own[1]).sum(0) / ell
    return d_z, d_ell if ell.numel() == d_ell.numel() else d_ell.sum(0, keepdim=True)


def moment_features(points: Tensor) -> Tensor:
    """``[u, u^2, 1]`` for every point, [n, 2D + 1]."""
    return torch.cat([points, points.square(), points.new_ones(points.shape[0], 1)], -1)


def pull(v: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_n S_nm (v_m - u_n)^p`` by coordinate for p = 1 and 2, from the moments."""
    D = v.shape[1]
    first, second, total = moments[:, :D], moments[:, D : 2 * D], moments[:, 2 * D :]
    return v * total - first, second - 2.0 * v * first + v.square() * total


class TensorEngine:
    """Plain tensor operations: any dtype, any device."""

    def features(self, problem: Problem, factor: Tensor, needs: Needs) -> Features:
        """First pass."""
        N, M = problem.scaled_x.shape[0], problem.scaled_z.shape[0]
        rows = factor.new_empty(N, M)
        residual, omega = factor.new_empty(N), factor.new_empty(N)
        gram, projected = factor.new_zeros(M, M), factor.new_zeros(M)
        two_grams = problem.tighter and needs.any
        omega_gram = factor.new_zeros(M, M) if two_grams else None
        w, copies = problem.weights.expand(N), problem.copies.expand(N)
        for i, j in chunks(N, M, factor.element_size()):
            r2 = squared_distances(problem.scaled_x[i:j], problem.scaled_z)
            cross = problem.outputscale * stationary_value(problem.name, r2)
            a = torch.linalg.solve_triangular(factor.mT, cross, upper=True, left=False)
            rows[i:j] = a
            residual[i:j] = problem.outputscale - a.square().sum(-1)
            omega[i:j] = residual_weights(residual[i:j], w[i:j], problem.tighter, copies[i:j])
            gram.addmm_(a.mT, a * w[i:j, None])
            projected += a.mT @ (w[i:j] * problem.targets[i:j])
            if omega_gram is not None:
                omega_gram.addmm_(a.mT, a * omega[i:j, None])
        return Features(rows, residual, omega, gram, omega_gram, projected)

    def adjoint(
        self,
        problem: Problem,
        factor: Tensor,
        features: Features,
        beta: Tensor,
        inverse: Tensor,
        alpha: Tensor,
        needs: Needs,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Second pass."""
        if not (needs.inputs or needs.row_noise):
            return None, None
        (N, M), D = features.rows.shape, problem.scaled_x.shape[1]
        w = problem.weights.expand(N)
        moments = factor.new_zeros(M, 2 * D + 1) if needs.inputs else None
        leverage = factor.new_empty(N) if needs.row_noise else None
        for i, j in chunks(N, M, factor.element_size()):
            a = features.rows[i:j]
            product = a @ inverse
            if leverage is not None:
                leverage[i:j] = (a * product).sum(-1)
            if moments is None:
                continue
            adjoint = features.omega[i:j, None] * a - w[i:j, None] * product
            adjoint.addr_(alpha[i:j], beta)
            weight = torch.linalg.solve_triangular(factor, adjoint, upper=False, left=False)
            u = problem.scaled_x[i:j]
            weight *= stationary_slope(problem.name, squared_distances(u, problem.scaled_z))
            moments.addmm_(weight.mT, problem.outputscale * moment_features(u))
        return moments, leverage
