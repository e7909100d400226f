"""Kernels from short expressions such as ``"matern52 + linear"``.

Estimators take the kernel as one argument that can be printed, compared and searched over, which a
string can and a module cannot. Expressions are read with `ast` and never evaluated. The closure
of kernels under sums and products is that of Duvenaud, Lloyd, Grosse, Tenenbaum and Ghahramani,
"Structure discovery in nonparametric regression through compositional kernel search", ICML 2013.
"""

import ast
import difflib
import re
from copy import deepcopy
from dataclasses import dataclass

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel, ScaleKernel
from sklearn.gaussian_process import kernels as sklearn_kernels

from gpvi.exceptions import InputError
from gpvi.kernels._parameters import assign_parameter, check_kernel_arguments
from gpvi.kernels.short_names import KERNELS, KernelEntry
from gpvi.kernels.sklearn_conversion import from_sklearn
from gpvi.kernels.structure import input_dimensions

__all__ = ["KERNELS", "KernelEntry", "kernel_terms", "parse_kernel"]

# Keeps the recursion over an expression far from Python's limit.
_MAX_LENGTH = 500
_TOKEN = re.compile(
    r"[A-Za-z_][A-Za-z0-9_]*|(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+*(),=]|[ \t]+|(?P<other>.)",
    re.DOTALL | re.ASCII,
)


def parse_kernel(
    spec: str | Kernel | sklearn_kernels.Kernel,
    num_features: int,
    *,
    ard: bool = True,
    batch_shape: torch.Size = torch.Size(),  # noqa: B008 - immutable
    dtype: torch.dtype = torch.float64,
    time_scale: float = 1.0,
) -> Kernel:
    """GPyTorch kernel from an expression, a GPyTorch kernel or a scikit-learn kernel.

    Expressions combine the names ``matern12``, ``matern32``, ``matern52``, ``matern72``, ``rbf``,
    ``rational_quadratic``, ``periodic``, ``hamming`` (for categorical columns), ``arc_cosine`` (a
    wide neural network), ``zonal_matern12``, ``zonal_matern32``, ``zonal_matern52`` and ``zonal_rbf``
    (on the sphere), ``linear``, ``constant`` and ``white`` with ``+``, ``*`` and parentheses. For one
    column, time, there are

    - ``trend``, a local linear trend (`IntegratedWienerKernel` of order 1; ``trend(0)`` is a random
      walk),
    - ``season(period)``, a pattern that repeats exactly and is zero on average, and
      ``quasi_season(period)``, one that drifts, at first over ten periods,
      ``quasi_season(period, drift)`` says over what time (`SeasonalKernel`),
    - ``cosine(period)``, a sine wave of any phase, and ``hida(order)`` or ``hida(order, period)``,
      waves that come and go (`HidaMaternKernel`).

    Periods are fixed; ``learn=True`` behind one makes it a starting value (those of ``hida`` always
    are). Every additive term has exactly one amplitude, so that all of them can be identified from
    data: ``linear``, ``constant``, ``white`` and ``trend`` have their own variance, other names and
    products are put into a `ScaleKernel`, and inside a product those variances are held at one.
    Where a product contains sums, the terms of its first sum carry the amplitudes, and the first
    term of each further sum has none.

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
    time_scale : float, default 1.0
        Periods and other times in an expression are divided by it, for inputs that were.

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
        return _Expression(
            spec, num_features, ard_num_dims, batch_shape, dtype, time_scale
        ).kernel()
    if isinstance(spec, Kernel):
        _check_fits(spec, num_features, batch_shape)
        return deepcopy(spec).to(dtype)
    if isinstance(spec, sklearn_kernels.Kernel):
        return from_sklearn(spec, num_features, dtype, batch_shape)
    raise InputError(
        f"kernel must be an expression such as 'matern52 + linear', a gpytorch kernel or a "
        f"scikit-learn kernel, got {spec!r} of type {type(spec).__name__}."
    )


def kernel_terms(expression: str) -> tuple[str, ...]:
    """The additive terms of an expression, as it spells them.

    Parameters
    ----------
    expression : str
        As for :func:`parse_kernel`.

    Returns
    -------
    tuple of str
        In order; each once, numbered if it occurs again.

    Examples
    --------
    >>> from gpvi.kernels.parsing import kernel_terms
    >>> kernel_terms("trend+season(365.25) + matern32 + matern32")
    ('trend', 'season(365.25)', 'matern32', 'matern32 (2)')
    """
    tree = _Expression(expression, 1, None, torch.Size(), torch.float64, 1.0).tree()
    found: list[str] = []
    for term in _operands(tree, ast.Add):
        text, number = ast.unparse(term), 1
        name = text
        while name in found:
            number += 1
            name = f"{text} ({number})"
        found.append(name)
    return tuple(found)


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
    num_features: int
    ard_num_dims: int | None
    batch_shape: torch.Size
    dtype: torch.dtype
    time_scale: float

    def kernel(self) -> Kernel:
        return self._sum(self.tree(), amplitude=True)

    def tree(self) -> ast.expr:
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
                    "only names, numbers, '+', '*' and parentheses can be used",
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
        call = node if isinstance(node, ast.Call) else None
        name = node if call is None else call.func
        entry = self._entry(name, node)
        assert isinstance(name, ast.Name)
        numbers = self._numbers(name.id, entry, call, node)
        if entry.one_column and self.num_features > 1:
            raise self._error(
                f"{name.id!r} is a kernel of time and X has {self.num_features} columns",
                self._position(node),
                "pass the column of time alone",
            )
        kernel = entry.build(self.ard_num_dims, self.batch_shape, **numbers).to(self.dtype)
        if entry.variance is None:
            return self._scaled(kernel) if amplitude else kernel
        if not amplitude:
            assign_parameter(kernel, entry.variance, 1.0)
            getattr(kernel, f"raw_{entry.variance}").requires_grad_(False)
        return kernel

    def _numbers(
        self, name: str, entry: KernelEntry, call: ast.Call | None, node: ast.expr
    ) -> dict[str, float]:
        """The numbers in parentheses by name, times in the units of the inputs."""
        given = self._arguments(name, entry, call) if call is not None else {}
        numbers = {}
        for number in entry.numbers:
            if number.name in given:
                value = given[number.name]
                plain = value.value if isinstance(value, ast.Constant) else ast.unparse(value)
                try:
                    checked = number.check(plain)
                except InputError as error:
                    raise self._error(str(error), self._position(value), _usage(name)) from None
                numbers[number.name] = (
                    checked / self.time_scale if number.kind == "time" else checked
                )
            elif number.required:
                raise self._error(
                    f"{name!r} needs its {number.name}", self._position(node), _usage(name)
                )
        return numbers

    def _arguments(self, name: str, entry: KernelEntry, call: ast.Call) -> dict[str, ast.expr]:
        known = [number.name for number in entry.numbers]
        if len(call.args) > len(known):
            what = f"takes at most {len(known)}" if known else "takes no"
            raise self._error(
                f"{name!r} {what} number(s) in parentheses", self._position(call), _usage(name)
            )
        given = dict(zip(known, call.args, strict=False))
        for keyword in call.keywords:
            if keyword.arg not in known or keyword.arg in given:
                twice = f"is given twice to {name!r}"
                raise self._error(
                    f"{keyword.arg!r} "
                    + (twice if keyword.arg in known else f"names nothing that {name!r} takes"),
                    self._leading + keyword.col_offset,
                    _usage(name),
                )
            given[keyword.arg] = keyword.value
        return given

    def _position(self, node: ast.expr) -> int:
        return self._leading + node.col_offset

    def _scaled(self, kernel: Kernel) -> Kernel:
        return ScaleKernel(kernel, batch_shape=self.batch_shape).to(self.dtype)

    def _entry(self, name: ast.expr, node: ast.expr) -> KernelEntry:
        if not isinstance(name, ast.Name):
            raise self._error(
                f"Cannot read {ast.unparse(node)!r} as a kernel",
                self._position(node),
                "only names, some with numbers in parentheses, '+', '*' and parentheses can be used",
            )
        if name.id not in KERNELS:
            close = difflib.get_close_matches(name.id.lower(), KERNELS, n=1)
            hint = f"did you mean {close[0]!r}? Use" if close else "use"
            raise self._error(
                f"Unknown kernel {name.id!r}", self._position(name), f"{hint} {_valid_names()}"
            )
        return KERNELS[name.id]


def _usage(name: str) -> str:
    """How to write a short name with its numbers."""
    numbers = KERNELS[name].numbers
    if not numbers:
        return f"write {name!r} alone"
    required = ", ".join(number.name for number in numbers if number.required)
    optional = [number.name for number in numbers if not number.required]
    plain = f"{name}({required})" if required else name
    return f"write {plain}" + (f", optionally with {' and '.join(optional)}" if optional else "")


def _valid_names() -> str:
    return ", ".join(KERNELS)


def _operands(node: ast.expr, operation: type[ast.operator]) -> list[ast.expr]:
    """Operands of a chain of one operation, from left to right."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, operation):
        return [*_operands(node.left, operation), *_operands(node.right, operation)]
    return [node]


def _is_sum(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
