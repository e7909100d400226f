r"""Covariances and whitened features of stationary kernels, each one operation with its own adjoint.

With :math:`u_n = x_n / \ell`, :math:`v_m = z_m / \ell`, :math:`k = s\,\kappa(|u_n - v_m|^2)` and slope
:math:`h = \kappa'`, any adjoint :math:`\bar K` of a covariance matrix reaches inputs and lengthscales
through the moments :math:`\sum_n \bar K_{nm} s h_{nm} [u_n, u_n^2, 1]`, three thin matrix products. For
features :math:`A = K L^{-\top}` with adjoint :math:`\bar A` (rows n)

.. math:: \bar K = \bar A L^{-1}, \qquad \bar L = -\mathrm{tril}(\bar K^\top A), \qquad
    \bar s = \langle \bar K^\top A, L \rangle / s.

On a CPU in float64 compiled loops evaluate kernel and slopes, row by row.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpvi.exceptions import InputError
from gpvi.linalg._collapsed_stationary import moment_features, pull, squared_distances
from gpvi.linalg._fused import (
    check_constant_inputs,
    check_finite,
    check_kernel_name,
    check_kinds,
    check_range,
    describe_shapes,
    load_engine,
)
from gpvi.linalg.stationary import stationary_slope, stationary_value

__all__ = ["stationary_covariance", "stationary_features"]


def stationary_covariance(
    name: str,
    z: Tensor,  # shape: [M, D]
    lengthscale: Tensor,  # shape: [D] or [1]
    outputscale: Tensor,  # shape: []
) -> Tensor:
    """Covariance matrix of a stationary kernel among some inputs.

    Parameters
    ----------
    name : str
        Kernel, one of ``"rbf"``, ``"matern12"``, ``"matern32"``, ``"matern52"``.
    z : Tensor, shape [M, D]
        Inputs.
    lengthscale : Tensor, shape [D] or [1]
        Lengthscales.
    outputscale : Tensor, shape []
        Prior variance.

    Returns
    -------
    Tensor, shape [M, M]
        Differentiable once in the last three arguments, equal inputs included.

    Raises
    ------
    InputError
        If shapes or dtypes do not fit, or the kernel is unknown.
    NumericalError
        If something is not finite.

    Examples
    --------
    >>> import torch
    >>> one = torch.ones(())
    >>> stationary_covariance("rbf", torch.tensor([[0.0], [2.0]]), one.reshape(1), one)
    tensor([[1.0000, 0.1353],
            [0.1353, 1.0000]])
    """
    _check(name, {}, {"z": z, "lengthscale": lengthscale, "outputscale": outputscale})
    return _Covariance.apply(z, lengthscale, outputscale, name)


def stationary_features(
    name: str,
    x: Tensor,  # shape: [N, D]
    z: Tensor,  # shape: [M, D]
    lengthscale: Tensor,  # shape: [D] or [1]
    outputscale: Tensor,  # shape: []
    factor: Tensor,  # shape: [M, M]
) -> Tensor:
    """Whitened features ``K(x, z) L^-T`` of a stationary kernel.

    Parameters
    ----------
    name : str
        Kernel, one of ``"rbf"``, ``"matern12"``, ``"matern32"``, ``"matern52"``.
    x : Tensor, shape [N, D]
        Inputs; not differentiable.
    z : Tensor, shape [M, D]
        Inducing inputs.
    lengthscale : Tensor, shape [D] or [1]
        Lengthscales.
    outputscale : Tensor, shape []
        Prior variance.
    factor : Tensor, shape [M, M]
        Lower triangular ``L``.

    Returns
    -------
    Tensor, shape [N, M]
        One row per input. Differentiable once in all arguments but ``x``.

    Raises
    ------
    InputError
        If shapes or dtypes do not fit, ``x`` is not finite or requires a gradient, or the kernel is
        unknown.
    NumericalError
        If parameters are not finite.

    Examples
    --------
    >>> import torch
    >>> one, z = torch.ones(()), torch.zeros(1, 1)
    >>> stationary_features("rbf", torch.tensor([[2.0]]), z, one.reshape(1), one, 2.0 * torch.eye(1))
    tensor([[0.0677]])
    """
    parameters = {"z": z, "lengthscale": lengthscale, "outputscale": outputscale, "factor": factor}
    _check(name, {"x": x}, parameters)
    check_constant_inputs(x, "the kernel itself")
    return _Features.apply(x, z, lengthscale, outputscale, factor, name)


class _Covariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, lengthscale: Tensor, outputscale: Tensor, name: str) -> Tensor:
        v = (z - z.mean(0)) / lengthscale
        engine = _engine(z)
        covariance = engine.covariance(name, v, outputscale)
        ctx.save_for_backward(v, lengthscale, outputscale, covariance)
        ctx.name, ctx.engine = name, engine
        return covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        v, lengthscale, outputscale, covariance = ctx.saved_tensors
        by_scale = (adjoint * covariance).sum() / outputscale
        weights = 0.5 * (adjoint + adjoint.mT)
        weights = ctx.engine.multiply_slopes(ctx.name, v, outputscale, weights)
        first, second = pull(v, weights @ moment_features(v))
        by_lengthscale = _to_lengthscale(second, lengthscale)
        return 4.0 * first / lengthscale, by_lengthscale, by_scale, None


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        z: Tensor,
        lengthscale: Tensor,
        outputscale: Tensor,
        factor: Tensor,
        name: str,
    ) -> Tensor:
        # The kernel is blind to a shift; a common centre keeps the moments small.
        centre = z.mean(0)
        u, v = (x - centre) / lengthscale, (z - centre) / lengthscale
        engine = _engine(x)
        rows = engine.features(name, u, v, outputscale, factor)
        ctx.save_for_backward(u, v, lengthscale, outputscale, factor, rows)
        ctx.name, ctx.engine = name, engine
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        u, v, lengthscale, outputscale, factor, rows = ctx.saved_tensors
        inner, moments = ctx.engine.adjoint(ctx.name, u, v, outputscale, factor, rows, adjoint)
        by_scale = (inner * factor).sum() / outputscale
        first, second = pull(v, moments)
        by_z = 2.0 * first / lengthscale
        return None, by_z, _to_lengthscale(second, lengthscale), by_scale, -inner.tril(), None


class TensorFeatures:
    """Plain tensor operations: any dtype, any device."""

    def covariance(self, name: str, v: Tensor, outputscale: Tensor) -> Tensor:
        """``K`` among scaled inputs."""
        return stationary_value(name, squared_distances(v, v)).mul_(outputscale)

    def multiply_slopes(self, name: str, v: Tensor, outputscale: Tensor, weights: Tensor) -> Tensor:
        """Weights times ``s h`` among scaled inputs."""
        return weights * stationary_slope(name, squared_distances(v, v)) * outputscale

    def features(
        self, name: str, u: Tensor, v: Tensor, outputscale: Tensor, factor: Tensor
    ) -> Tensor:
        """``K L^-T``, given scaled inputs."""
        cross = stationary_value(name, squared_distances(u, v)).mul_(outputscale)
        return torch.linalg.solve_triangular(factor.mT, cross, upper=True, left=False)

    def adjoint(
        self,
        name: str,
        u: Tensor,
        v: Tensor,
        outputscale: Tensor,
        factor: Tensor,
        rows: Tensor,
        adjoint: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """``Kbar' A`` and the moments of ``Kbar s h``, given the adjoint of the features."""
        weights = torch.linalg.solve_triangular(factor, adjoint, upper=False, left=False)
        inner = weights.mT @ rows
        weights = weights * stationary_slope(name, squared_distances(u, v)) * outputscale
        return inner, weights.mT @ moment_features(u)


@cache
def _compiled_engine() -> Any:
    return load_engine("gpvi.linalg._features_cpu", "whitened features")


def _engine(x: Tensor) -> Any:
    compiled = None
    if x.device.type == "cpu" and x.dtype == torch.float64:
        compiled = _compiled_engine()
    return TensorFeatures() if compiled is None else compiled


def _to_lengthscale(second: Tensor, lengthscale: Tensor) -> Tensor:
    by_column = -2.0 * second.sum(0) / lengthscale
    return by_column if lengthscale.numel() == by_column.numel() else by_column.sum(0, keepdim=True)


def _check(name: str, data: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
    check_kernel_name(name, "the kernel itself")
    tensors = data | parameters
    z, lengthscale = parameters["z"], parameters["lengthscale"]
    check_kinds(tensors, z)
    x, factor = tensors.get("x", z), tensors.get("factor")
    fits = x.dim() == z.dim() == 2 and x.shape[1] == z.shape[1] > 0 and len(z) > 0
    fits = fits and (factor is None or factor.shape == (len(z), len(z)))
    fits = fits and lengthscale.shape in ((z.shape[-1],), (1,))
    if not fits or parameters["outputscale"].dim():
        raise InputError(
            "expected x [N, D], z [M, D], lengthscale [D] or [1], outputscale [] and factor [M, M], with "
            f"M and D at least one; got {describe_shapes(tensors)}"
        )
    check_finite(data, parameters)
    if len(x):
        check_range(lengthscale, x, z)
