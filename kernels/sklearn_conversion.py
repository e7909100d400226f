"""GPyTorch kernels from scikit-learn kernels.

Users of `sklearn.gaussian_process` keep their kernel objects: the converted kernel has the same
values, the same fixed hyperparameters and the same bounds. See Pedregosa et al., "Scikit-learn:
machine learning in Python", JMLR 2011.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.kernels import (
    ConstantKernel,
    Kernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from sklearn.gaussian_process import kernels as sklearn_kernels

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels._parameters import assign_parameter, check_kernel_arguments
from gpvi.kernels.linear import LinearKernel
from gpvi.kernels.power import PowerKernel
from gpvi.kernels.white import WhiteKernel

__all__ = ["from_sklearn"]

# The parameters that may be zero: the function is then zero, which is a covariance function.
_AMPLITUDES = ("constant", "variance", "outputscale")


def from_sklearn(
    kernel: sklearn_kernels.Kernel,
    num_features: int,
    dtype: torch.dtype = torch.float64,
    batch_shape: torch.Size = torch.Size(),  # noqa: B008 - immutable
) -> Kernel:
    """GPyTorch kernel with the covariances of a scikit-learn kernel.

    Numeric bounds become interval constraints on the parameter, and ``"fixed"`` hyperparameters do
    not require a gradient. A hyperparameter on its bound, as fitting leaves it at times, is moved
    inside by a relative `eps ** (2 / 3)` (4e-11 in float64), since the constraint maps the bound
    itself to infinity. Some parameters are functions of scikit-learn's, bounds included: the
    lengthscale of `PeriodicKernel` is the square of `ExpSineSquared`'s, and the constant of
    `DotProduct` is `sigma_0 ** 2`.

    scikit-learn's `WhiteKernel` compares positions, not values: it is zero between two arrays even
    where they share rows. Ours compares rows, which is the same on distinct inputs.

    Parameters
    ----------
    kernel : sklearn.gaussian_process.kernels.Kernel
        ConstantKernel, WhiteKernel, RBF, Matern (nu of 0.5, 1.5, 2.5 or inf), RationalQuadratic,
        ExpSineSquared (one input dimension), DotProduct, and their Sum, Product and
        Exponentiation by a positive integer.
    num_features : int
        Number D of input dimensions.
    dtype : torch.dtype, default torch.float64
        Floating-point type of the parameters.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters, all starting equal, for each element of this batch.

    Returns
    -------
    gpytorch.kernels.Kernel
        The converted kernel. A constant factor becomes a `ScaleKernel`.

    Raises
    ------
    UnsupportedError
        For kernels without an equal in GPyTorch: CompoundKernel, PairwiseKernel, other values of
        nu, other exponents, ExpSineSquared of several input dimensions (not a covariance function
        there), and classes derived from scikit-learn's.
    InputError
        If a hyperparameter lies outside its bounds or does not fit `num_features`.

    Examples
    --------
    >>> from sklearn.gaussian_process.kernels import RBF, ConstantKernel
    >>> from gpvi.kernels import from_sklearn
    >>> kernel = from_sklearn(ConstantKernel(2.0) * RBF(0.5, "fixed"), num_features=3)
    >>> type(kernel).__name__, round(kernel.outputscale.item(), 6)
    ('ScaleKernel', 2.0)
    >>> kernel.base_kernel.raw_lengthscale.requires_grad
    False
    """
    batch_shape = check_kernel_arguments(num_features, dtype, batch_shape)
    return _Conversion(num_features, dtype, batch_shape).convert(kernel)


@dataclass(frozen=True)
class _Conversion:
    """One conversion: what the converted kernels have in common."""

    num_features: int
    dtype: torch.dtype
    batch_shape: torch.Size

    def convert(self, kernel: sklearn_kernels.Kernel) -> Kernel:
        # By exact type: Matern derives from RBF, and a user's class may override anything.
        converter = _CONVERTERS.get(type(kernel))
        if converter is None:
            supported = ", ".join(cls.__name__ for cls in _CONVERTERS)
            raise UnsupportedError(
                f"The scikit-learn kernel {type(kernel).__name__} has no counterpart here; "
                f"convertible are {supported}. Build a gpytorch kernel instead."
            )
        return converter(self, kernel)

    def set(
        self,
        target: Kernel,
        name: str,
        source: sklearn_kernels.Kernel,
        source_name: str,
        transform: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> None:
        """Give `target.name` the value, bounds and fixedness of scikit-learn's hyperparameter."""
        hyperparameter = getattr(source, f"hyperparameter_{source_name}")
        value = np.asarray(getattr(source, source_name), dtype=float).squeeze()
        label = f"{source_name} of {type(source).__name__}"
        if not np.isfinite(value).all() or (value < 0).any():
            raise InputError(f"The {label} must be finite and not negative, got {value.tolist()}.")
        if name not in _AMPLITUDES and (value == 0).any():
            raise InputError(f"The {label} must be positive, got {value.tolist()}.")
        value = np.asarray(transform(value))
        if hyperparameter.fixed:
            getattr(target, f"raw_{name}").requires_grad_(False)
        else:
            bounds = transform(np.asarray(hyperparameter.bounds, dtype=float))
            low, high = _common_bounds(bounds, label)
            value = self._inside(value, low, high, label)
            target.register_constraint(f"raw_{name}", self._constraint(low, high))
        assign_parameter(target, name, torch.as_tensor(value))

    def _inside(
        self, value: np.ndarray, low: np.ndarray, high: np.ndarray, label: str
    ) -> np.ndarray:
        # scikit-learn stores logarithms, so that a value on its bound comes back with rounding.
        slack = 1e-12
        if (value < low * (1 - slack)).any() or (value > high * (1 + slack)).any():
            raise InputError(
                f"The {label} is {value.tolist()}, outside its bounds {low.tolist()} to "
                f"{high.tolist()}; widen them or start inside them."
            )
        margin = float(torch.finfo(self.dtype).eps) ** (2 / 3)
        smallest = np.where(low > 0, low * (1 + margin), margin * np.minimum(high, 1.0))
        return np.clip(value, smallest, np.where(np.isfinite(high), high * (1 - margin), high))

    def _constraint(self, low: np.ndarray, high: np.ndarray) -> Interval:
        lower, upper = torch.as_tensor(low), torch.as_tensor(high)
        if np.isfinite(high).all():
            constraint = Interval(lower, upper).to(self.dtype)
            # The constructor rounds bounds to the default dtype; here and below they are restored.
            constraint.upper_bound.copy_(upper)
        elif (low > 0).any():
            constraint = GreaterThan(lower).to(self.dtype)
        else:
            return Positive().to(self.dtype)
        constraint.lower_bound.copy_(lower)
        return constraint

    def lengthscale_dims(self, length_scale: float | np.ndarray, label: str) -> int | None:
        count = np.size(length_scale)
        if count == 1:
            return None
        if count != self.num_features:
            raise InputError(
                f"{label} has {count} length scales, but there are {self.num_features} input "
                "dimension(s); give one or as many as there are dimensions."
            )
        return self.num_features


def _common_bounds(bounds: np.ndarray, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of shape (D,), or () where all dimensions agree."""
    if (bounds == bounds[:1]).all():
        bounds = bounds[0]
    low, high = bounds[..., 0], bounds[..., 1]
    if np.isfinite(high).any() and not np.isfinite(high).all():
        raise UnsupportedError(
            f"The upper bounds of the {label} are partly infinite, which no GPyTorch constraint "
            "expresses; make them all finite or all infinite."
        )
    return low, high


def _constant(conversion: _Conversion, source: sklearn_kernels.ConstantKernel) -> Kernel:
    kernel = ConstantKernel(batch_shape=conversion.batch_shape).to(conversion.dtype)
    conversion.set(kernel, "constant", source, "constant_value")
    return kernel


def _white(conversion: _Conversion, source: sklearn_kernels.WhiteKernel) -> Kernel:
    kernel = WhiteKernel(batch_shape=conversion.batch_shape).to(conversion.dtype)
    conversion.set(kernel, "variance", source, "noise_level")
    return kernel


def _rbf(conversion: _Conversion, source: sklearn_kernels.RBF) -> Kernel:
    dims = conversion.lengthscale_dims(source.length_scale, repr(source))
    kernel = RBFKernel(ard_num_dims=dims, batch_shape=conversion.batch_shape).to(conversion.dtype)
    conversion.set(kernel, "lengthscale", source, "length_scale")
    return kernel


def _matern(conversion: _Conversion, source: sklearn_kernels.Matern) -> Kernel:
    if source.nu == math.inf:
        return _rbf(conversion, source)
    if source.nu not in (0.5, 1.5, 2.5):
        raise UnsupportedError(
            f"Matern kernels are available for nu of 0.5, 1.5, 2.5 and inf, got nu={source.nu!r}; "
            "choose the nearest of these."
        )
    dims = conversion.lengthscale_dims(source.length_scale, repr(source))
    kernel = MaternKernel(nu=source.nu, ard_num_dims=dims, batch_shape=conversion.batch_shape)
    conversion.set(kernel.to(conversion.dtype), "lengthscale", source, "length_scale")
    return kernel


def _rational_quadratic(
    conversion: _Conversion, source: sklearn_kernels.RationalQuadratic
) -> Kernel:
    kernel = RQKernel(batch_shape=conversion.batch_shape).to(conversion.dtype)
    conversion.set(kernel, "lengthscale", source, "length_scale")
    conversion.set(kernel, "alpha", source, "alpha")
    return kernel


def _exp_sine_squared(conversion: _Conversion, source: sklearn_kernels.ExpSineSquared) -> Kernel:
    if conversion.num_features != 1:
        raise UnsupportedError(
            f"ExpSineSquared of {conversion.num_features} input dimensions takes the sine of the "
            "Euclidean distance, which is not positive definite; use gpytorch's PeriodicKernel "
            "(a product over the dimensions), or active_dims on one dimension."
        )
    kernel = PeriodicKernel(batch_shape=conversion.batch_shape).to(conversion.dtype)
    conversion.set(kernel, "lengthscale", source, "length_scale", np.square)
    conversion.set(kernel, "period_length", source, "periodicity")
    return kernel


def _dot_product(conversion: _Conversion, source: sklearn_kernels.DotProduct) -> Kernel:
    linear = LinearKernel(batch_shape=conversion.batch_shape).to(conversion.dtype)
    assign_parameter(linear, "variance", 1.0)
    linear.raw_variance.requires_grad_(False)
    constant = ConstantKernel(batch_shape=conversion.batch_shape).to(conversion.dtype)
    conversion.set(constant, "constant", source, "sigma_0", np.square)
    return linear + constant


def _sum(conversion: _Conversion, source: sklearn_kernels.Sum) -> Kernel:
    return conversion.convert(source.k1) + conversion.convert(source.k2)


def _product(conversion: _Conversion, source: sklearn_kernels.Product) -> Kernel:
    factors = _factors(source)
    scale = next((f for f in factors if type(f) is sklearn_kernels.ConstantKernel), None)
    others = [conversion.convert(factor) for factor in factors if factor is not scale]
    if scale is None or not others:
        return ProductKernel(*(conversion.convert(factor) for factor in factors))
    product = others[0] if len(others) == 1 else ProductKernel(*others)
    kernel = ScaleKernel(product, batch_shape=conversion.batch_shape).to(conversion.dtype)
    conversion.set(kernel, "outputscale", scale, "constant_value")
    return kernel


def _factors(source: sklearn_kernels.Kernel) -> list[sklearn_kernels.Kernel]:
    if type(source) is sklearn_kernels.Product:
        return [*_factors(source.k1), *_factors(source.k2)]
    return [source]


def _exponentiation(conversion: _Conversion, source: sklearn_kernels.Exponentiation) -> Kernel:
    exponent = float(source.exponent)
    if not exponent.is_integer() or exponent < 1:
        raise UnsupportedError(
            f"Exponentiation by {source.exponent!r} does not give a covariance function in "
            "general; use a positive integer."
        )
    base = conversion.convert(source.kernel)
    return base if exponent == 1 else PowerKernel(base, int(exponent))


_CONVERTERS: dict[type, Callable[..., Kernel]] = {
    sklearn_kernels.ConstantKernel: _constant,
    sklearn_kernels.WhiteKernel: _white,
    sklearn_kernels.RBF: _rbf,
    sklearn_kernels.Matern: _matern,
    sklearn_kernels.RationalQuadratic: _rational_quadratic,
    sklearn_kernels.ExpSineSquared: _exp_sine_squared,
    sklearn_kernels.DotProduct: _dot_product,
    sklearn_kernels.Sum: _sum,
    sklearn_kernels.Product: _product,
    sklearn_kernels.Exponentiation: _exponentiation,
}
