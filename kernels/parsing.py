"""Kernels from short expressions such as ``"matern52 + linear"``.

Estimators take the kernel as one argument that can be printed, compared and searched over, which a
string can and a module cannot. Expressions are read with `ast` and never evaluated. The closure
of kernels under sums and products is that of Duvenaud, Lloyd, Grosse, Tenenbaum and Ghahramani,
"Structure discovery in nonparametric regression through compositional kernel search", ICML 2013.
"""

import ast
import difflib
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from gpytorch.kernels import (
    AdditiveKernel,
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

from gpvi.exceptions import InputError
from gpvi.kernels._parameters import assign_parameter, check_kernel_arguments
from gpvi.kernels.hamming import HammingKernel
from gpvi.kernels.linear import LinearKernel
from gpvi.kernels.sklearn_conversion import from_sklearn
from gpvi.kernels.structure import input_dimensions
from gpvi.kernels.white import WhiteKernel

__all__ = ["KERNELS", "KernelEntry", "parse_kernel"]

# Keeps the recursion over an expression far from Python's limit.
_MAX_LENGTH = 500
_TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[+*()]|[ \t]+|(?P<other>.)", re.DOTALL)


@dataclass(frozen=True)
class KernelEntry:
    """What a short name stands for.

    Attributes
    ----------
    build : callable
        Makes the kernel from `ard_num_dims` (None for one lengthscale) and `batch_shape`.
    variance : str or None
        The kernel's own variance parameter; None for a kernel of unit variance, which a
        `ScaleKernel` scales.
    """

    build: Callable[[int | None, torch.Size], Kernel]
    variance: str | None = None


def _matern(nu: float) -> Callable[[int | None, torch.Size], Kernel]:
    def build(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
        return MaternKernel(nu=nu, ard_num_dims=ard_num_dims, batch_shape=batch_shape)

    return build


def _rbf(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return RBFKernel(ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _rational_quadratic(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return RQKernel(ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _periodic(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    if ard_num_dims is None:  # GPyTorch's class does not take an explicit None here.
        return PeriodicKernel(batch_shape=batch_shape)
    return PeriodicKernel(ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _hamming(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return HammingKernel(ard_num_dims=ard_num_dims, batch_shape=batch_shape)


def _linear(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return LinearKernel(batch_shape=batch_shape)


def _white(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return WhiteKernel(batch_shape=batch_shape)


def _constant(ard_num_dims: int | None, batch_shape: torch.Size) -> Kernel:
    return ConstantKernel(batch_shape=batch_shape)


#: Short names of kernels.
KERNELS: dict[str, KernelEntry] = {
    "matern12": KernelEntry(_matern(0.5)),
    "matern32": KernelEntry(_matern(1.5)),
    "matern52": KernelEntry(_matern(2.5)),
    "rbf": KernelEntry(_rbf),
    "rational_quadratic": KernelEntry(_rational_quadratic),
    "periodic": KernelEntry(_periodic),
    "hamming": KernelEntry(_hamming),
    "linear": KernelEntry(_linear, variance="variance"),
    "constant": KernelEntry(_constant, variance="constant"),
    "white": KernelEntry(_white, variance="variance"),
}


def parse_kernel(
    spec: str | Kernel | sklearn_kernels.Kernel,
    num_features: int,
    *,
    ard: bool = True,
    batch_shape: torch.Size = torch.Size(),  # noqa: B008 - immutable
    dtype: torch.dtype = torch.float64,
) -> Kernel:
    """GPyTorch kernel from an expression, a GPyTorch kernel or a scikit-learn kernel.

    Expressions combine the names ``matern12``, ``matern32``, ``matern52``, ``rbf``,
    ``rational_quadratic``, ``periodic``, ``hamming`` (for categorical columns), ``linear``,
    ``constant`` and ``white`` with ``+``, ``*`` and parentheses. Every additive term has exactly one
    amplitude, so that all of them can be identified from data: ``linear``, ``constant`` and
    ``white`` have their own variance, other names and products are put into a `ScaleKernel`, and
    inside a product those variances are held at one. Where a product contains sums, the terms of
    its first sum carry the amplitudes, and the first term of each further sum has none.

    Parameters
    ----------
    spec : str, gpytorch.kernels.Kernel or sklearn.gaussian_process.kernels.Kernel
        A GPyTorch kernel is copied, never changed, and keeps its own batch shape, which must
        broadcast to `batch_shape` (without one, the batch shares its parameters). For a
        scikit-learn kernel see `from_sklearn`.
    num_features : int
        Number D of input dimensions.
    ard : bool, default True
        For expressions: one lengthscale for each input dimension, and for ``periodic`` also one
        period. Kernel objects already say so themselves.
    batch_shape : torch.Size, default torch.Size([])
        One set of parameters for each element of this batch.
    dtype : torch.dtype, default torch.float64
        Floating-point type of the parameters.

    Returns
    -------
    gpytorch.kernels.Kernel
        A kernel that shares nothing with `spec`.

    Raises
    ------
    InputError
        For an expression that cannot be read, another type, or arguments that do not fit.
    UnsupportedError
        For a scikit-learn kernel without a counterpart.

    References
    ----------
    Duvenaud, Lloyd, Grosse, Tenenbaum, Ghahramani, "Structure discovery in nonparametric
    regression through compositional kernel search", ICML 2013.

    Examples
    --------
    >>> from gpvi.kernels import parse_kernel
    >>> kernel = parse_kernel("matern52 * periodic + linear", num_features=2)
    >>> [name for name, _ in kernel.named_parameters()][:2]
    ['kernels.0.raw_outputscale', 'kernels.0.base_kernel.kernels.0.raw_lengthscale']
    >>> parse_kernel("matern25", num_features=2)
    Traceback (most recent call last):
    ...
    gpvi.exceptions.InputError: Unknown kernel 'matern25' at position 0 of 'matern25'; ...
    """
    batch_shape = check_kernel_arguments(num_features, dtype, batch_shape)
    if isinstance(spec, str):
        ard_num_dims = num_features if ard else None
        return _Expression(spec, ard_num_dims, batch_shape, dtype).kernel()
    if isinstance(spec, Kernel):
        _check_fits(spec, num_features, batch_shape)
        return deepcopy(spec).to(dtype)
    if isinstance(spec, sklearn_kernels.Kernel):
        return from_sklearn(spec, num_features, dtype, batch_shape)
    raise InputError(
        f"kernel must be an expression such as 'matern52 + linear', a gpytorch kernel or a "
        f"scikit-learn kernel, got {spec!r} of type {type(spec).__name__}."
    )


def _check_fits(kernel: Kernel, num_features: int, batch_shape: torch.Size) -> None:
    for part, dims in input_dimensions(kernel, num_features):
        if part.ard_num_dims is not None and part.ard_num_dims != len(dims):
            raise InputError(
                f"{type(part).__name__} has ard_num_dims={part.ard_num_dims} but is given "
                f"{len(dims)} of the {num_features} input dimension(s); make the two equal."
            )
    try:
        fits = torch.broadcast_shapes(kernel.batch_shape, batch_shape) == batch_shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"The kernel has batch shape {tuple(kernel.batch_shape)}, which does not broadcast to "
            f"the batch shape {tuple(batch_shape)} needed here; build it with that batch_shape."
        )


@dataclass(frozen=True)
class _Expression:
    """A kernel expression together with how its kernels are to be built."""

    text: str
    ard_num_dims: int | None
    batch_shape: torch.Size
    dtype: torch.dtype

    def kernel(self) -> Kernel:
        return self._sum(self._tree(), amplitude=True)

    def _tree(self) -> ast.expr:
        if not self.text.strip():
            raise InputError(f"The kernel expression is empty; use {_valid_names()}.")
        if len(self.text) > _MAX_LENGTH:
            raise InputError(
                f"The kernel expression has {len(self.text)} characters, more than {_MAX_LENGTH}; "
                "build such a kernel with gpytorch and pass the object."
            )
        for token in _TOKEN.finditer(self.text):
            if token["other"] is not None:
                raise self._error(
                    f"Unexpected character {token['other']!r}",
                    token.start(),
                    "only names, '+', '*' and parentheses can be used",
                )
        try:
            return ast.parse(self.text.strip(), mode="eval").body
        except SyntaxError as error:
            # Offset 0 stands for the end of the text.
            position = error.offset - 1 if error.offset else len(self.text.strip())
            raise self._error(
                "Incomplete or misplaced term",
                self._leading + position,
                "expected names joined by '+' or '*', with balanced parentheses",
            ) from None

    @property
    def _leading(self) -> int:
        return len(self.text) - len(self.text.lstrip())

    def _error(self, problem: str, position: int, advice: str) -> InputError:
        return InputError(f"{problem} at position {position} of {self.text!r}; {advice}.")

    def _sum(self, node: ast.expr, amplitude: bool) -> Kernel:
        """Kernel of a sum; without an amplitude its first term has unit scale."""
        terms = [
            self._product(term, amplitude or position > 0)
            for position, term in enumerate(_operands(node, ast.Add))
        ]
        return terms[0] if len(terms) == 1 else AdditiveKernel(*terms)

    def _product(self, node: ast.expr, amplitude: bool) -> Kernel:
        """Kernel of a product, scaled where no sum inside it carries the amplitude."""
        factors = _operands(node, ast.Mult)
        if len(factors) == 1:
            return self._leaf(node, amplitude)
        kernels = []
        for factor in factors:
            if _is_sum(factor):
                kernels.append(self._sum(factor, amplitude))
                amplitude = False
            else:
                kernels.append(self._leaf(factor, amplitude=False))
        product = ProductKernel(*kernels)
        return self._scaled(product) if amplitude else product

    def _leaf(self, node: ast.expr, amplitude: bool) -> Kernel:
        entry = self._entry(node)
        kernel = entry.build(self.ard_num_dims, self.batch_shape).to(self.dtype)
        if entry.variance is None:
            return self._scaled(kernel) if amplitude else kernel
        if not amplitude:
            assign_parameter(kernel, entry.variance, 1.0)
            getattr(kernel, f"raw_{entry.variance}").requires_grad_(False)
        return kernel

    def _scaled(self, kernel: Kernel) -> Kernel:
        return ScaleKernel(kernel, batch_shape=self.batch_shape).to(self.dtype)

    def _entry(self, node: ast.expr) -> KernelEntry:
        position = self._leading + node.col_offset
        if not isinstance(node, ast.Name):
            raise self._error(
                f"Cannot read {ast.unparse(node)!r} as a kernel",
                position,
                "only names, '+', '*' and parentheses can be used",
            )
        if node.id not in KERNELS:
            close = difflib.get_close_matches(node.id.lower(), KERNELS, n=1)
            hint = f"did you mean {close[0]!r}? Use" if close else "use"
            raise self._error(f"Unknown kernel {node.id!r}", position, f"{hint} {_valid_names()}")
        return KERNELS[node.id]


def _valid_names() -> str:
    return ", ".join(KERNELS)


def _operands(node: ast.expr, operation: type[ast.operator]) -> list[ast.expr]:
    """Operands of a chain of one operation, from left to right."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, operation):
        return [*_operands(node.left, operation), *_operands(node.right, operation)]
    return [node]


def _is_sum(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
