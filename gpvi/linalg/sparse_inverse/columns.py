r"""Columns of a sparse inverse Cholesky factor of any covariance function.

Every row conditions its own point on a few others; its column is the last row of the inverse factor of
their covariance (Vecchia, 1988; Schäfer, Katzfuss and Owhadi, 2021). Neighbouring rows share most of their
points, so a chunk of rows has far fewer different pairs of points than entries in its matrices: the
covariance function is evaluated on those pairs, under automatic differentiation, and compiled loops (or
batched tensor operations) do the rest, with an adjoint of rank two. Beyond the first chunks the pairs and
their covariances are computed again in the backward pass, so that memory is a constant and what the
columns take.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpvi.exceptions import InputError, NotPositiveDefiniteError, NumericalError, UnsupportedError
from gpvi.linalg._fused import load_engine
from gpvi.linalg.sparse_inverse._pair_columns_tensor import (
    Block,
    MemberRows,
    PairEngine,
    Pairs,
    TensorEngine,
)

__all__ = ["inverse_columns", "row_log_densities"]

# Entries of the rows' matrices that are worked on at a time: their pairs should fit into the caches.
_CHUNK_ENTRIES = 1_000_000
_MIN_CHUNK_ROWS, _MAX_CHUNK_ROWS = 64, 16_384

# Entries of which the graph is kept for the backward pass (about 30 bytes each); the rest is recomputed.
_KEPT_ENTRIES = 10_000_000

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def inverse_columns(
    covariance: Callable[[Tensor, Tensor], Tensor],  # shapes: [P], [P] -> [*b, P]
    variance: Tensor,  # shape: [*b, T]
    neighbors: Tensor,  # shape: [R, m]
    own: Tensor,  # shape: [R]
    nugget: Tensor,  # shape: [] or [*b, T]
    *,
    schedule: Tensor | None = None,  # shape: [R]
) -> Tensor:
    r"""Columns of the sparse inverse Cholesky factor of any covariance function.

    .. math:: u_r = L_r^{-\top} e_{\text{last}}, \quad L_r L_r^\top = K_{s_r s_r}, \quad
        K_{ab} = k(x_a, x_b) + \nu_a \delta_{ab},

    where :math:`s_r` holds the neighbours of a row and, last, its own point. Given values f at the
    neighbours, the own one has variance ``1 / u_last^2`` and mean ``-sum_a u_a f_a / u_last``.

    Differentiable once, by whatever the covariances, variances and nugget depend on. Matrices are
    factorised in float64 for any dtype. With many rows the covariance function is called again in the
    backward pass and must give the same values then.

    Parameters
    ----------
    covariance : callable
        Given two int64 tensors [P] of numbers of points, the covariances [*b, P] (or [P]) of the pairs;
        for a GPyTorch kernel ``lambda i, j: kernel(x[i], x[j], diag=True)``. The points of a pair
        differ, and come in any order.
    variance : Tensor, shape [*b, T]
        Variances k(x_t, x_t) of all points.
    neighbors : Tensor of int32, shape [R, m]
        Numbers of the points that a row conditions on, ascending, and -1 behind them where there are
        fewer.
    own : Tensor of int32, shape [R]
        Number of the own point of every row.
    nugget : Tensor, shape [] or [*b, T]
        Added to the variances, one number or one per point; zero is allowed.
    schedule : Tensor of int32, shape [R], optional
        Order in which the rows are visited. Near rows in turn share pairs, without which this takes
        several times as long; the result is the same.

    Returns
    -------
    Tensor, shape [*b, R, m + 1]
        Entries of the columns in the slots of `neighbors`, the own point's last; zero in unused slots.

    Raises
    ------
    InputError
        If shapes, dtypes, devices or numbers of points do not fit, or a nugget is negative.
    NotPositiveDefiniteError
        If the covariance of a row has no Cholesky factor. The nugget is all the jitter there is.
    NumericalError
        If it has NaN or infinite entries.
    UnsupportedError
        In the backward pass, if second derivatives are asked for.

    References
    ----------
    F. Schäfer, M. Katzfuss and H. Owhadi, "Sparse Cholesky factorization by Kullback-Leibler
    minimization", *SIAM Journal on Scientific Computing*, 2021.

    Examples
    --------
    >>> import gpytorch, torch
    >>> x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    >>> kernel = gpytorch.kernels.LinearKernel().double() + gpytorch.kernels.RBFKernel().double()
    >>> variance = kernel(x, x, diag=True)
    >>> neighbors = torch.tensor([[-1], [0], [1]], dtype=torch.int32)
    >>> own = torch.arange(3, dtype=torch.int32)
    >>> columns = inverse_columns(
    ...     lambda i, j: kernel(x[i], x[j], diag=True), variance, neighbors, own, 0.1 * torch.ones(())
    ... )
    >>> columns.shape
    torch.Size([3, 2])
    """
    problem = _Problem(covariance, variance, nugget, MemberRows(neighbors, own, schedule))
    R, batch = len(own), problem.batch
    if R == 0:
        return variance.new_zeros(*batch, 0, neighbors.shape[1] + 1)
    columns = torch.cat(list(problem.columns()), -2)
    if schedule is not None:
        columns = _Permuted.apply(columns, schedule.long())
    return columns.reshape(*batch, *columns.shape[-2:])


def row_log_densities(
    columns: Tensor,  # shape: [*b, R, m + 1]
    neighbors: Tensor,  # shape: [R, m]
    own: Tensor,  # shape: [R]
    values: Tensor,  # shape: [*b, T]
) -> Tensor:
    r"""Log density of every row's own value given the values of its neighbours.

    .. math:: \log N\bigl(y_r \mid y_{\text{neighbours}}\bigr)
        = \log u_{\text{last}} - \tfrac12 (u^\top y_s)^2 - \tfrac12 \log 2\pi

    With the noise variance as the nugget of the columns, these are the conditional densities of noisy
    responses, and their sum is Vecchia's (1988) log likelihood.

    Parameters
    ----------
    columns : Tensor, shape [*b, R, m + 1]
        Columns u of the factor, with positive last entries.
    neighbors : Tensor of int32, shape [R, m]
        Numbers of the points that a row conditions on, and -1 behind them.
    own : Tensor of int32, shape [R]
        Number of the own point of every row.
    values : Tensor, shape [*b, T]
        Values y at all points, less their prior mean.

    Returns
    -------
    Tensor, shape [*b, R]
        Nats.

    Raises
    ------
    InputError
        If shapes, dtypes, devices or numbers of points do not fit.

    References
    ----------
    A. V. Vecchia, "Estimation and model identification for continuous spatial processes", *Journal of
    the Royal Statistical Society B*, 1988.

    Examples
    --------
    >>> import torch
    >>> neighbors = torch.tensor([[-1], [0]], dtype=torch.int32)
    >>> columns = torch.tensor([[0.0, 1.0], [-0.5, 2.0]])
    >>> own = torch.arange(2, dtype=torch.int32)
    >>> row_log_densities(columns, neighbors, own, torch.tensor([2.0, 0.5]))
    tensor([-2.9189, -0.2258])
    """
    if values.dim() == 0 or columns.dim() < 2:
        raise InputError(
            f"expected columns [*b, R, m + 1] and values [*b, T]; got {tuple(columns.shape)} and "
            f"{tuple(values.shape)}"
        )
    rows = MemberRows(neighbors, own)
    rows.check(values.shape[-1], values.device)
    expected = (len(own), neighbors.shape[1] + 1)
    if columns.shape[-2:] != expected:
        raise InputError(
            f"columns have shape {tuple(columns.shape)}; these neighbors need [*b, {expected[0]}, "
            f"{expected[1]}]."
        )
    at_points = _at_sets(values, rows.sets())
    z = (columns * at_points).sum(-1)
    return columns[..., -1].log() - 0.5 * z.square() - _HALF_LOG_TWO_PI


class _Problem:
    """Checked arguments, and their columns chunk by chunk in the order of the schedule."""

    def __init__(
        self,
        covariance: Callable[[Tensor, Tensor], Tensor],
        variance: Tensor,
        nugget: Tensor,
        rows: MemberRows,
    ) -> None:
        _check_diagonal(variance, nugget)
        rows.check(variance.shape[-1], variance.device)
        self._covariance, self._rows, self._diagonal = covariance, rows, variance + nugget
        self.batch = self._diagonal.shape[:-1]
        self._engine = _engine(variance)

    def columns(self) -> Iterator[Tensor]:
        """Columns [B, C, m + 1] of one chunk of rows after the other."""
        sets, T = self._rows.sets(), self._diagonal.shape[-1]
        R, n = sets.shape
        batch_size = self.batch.numel()
        entries = max(1, batch_size * (n * (n - 1) // 2))
        size = min(max(_CHUNK_ENTRIES // entries, _MIN_CHUNK_ROWS), _MAX_CHUNK_ROWS)
        diagonal = _at_sets(self._diagonal, sets).reshape(batch_size, R, n)
        find_pairs = self._engine.finder(T)
        # Splitting is one operation: slices would each have a gradient of the size of the whole.
        parts = zip(sets.split(size), diagonal.split(size, -2), strict=True)
        for number, (members, variances) in enumerate(parts):
            found = _Found(self._engine, find_pairs, self._covariance, self.batch, members)
            chunk = _Chunk(found, partial(self._name, number * size))
            if torch.is_grad_enabled() and (number + 1) * size * entries > _KEPT_ENTRIES:
                yield checkpoint(
                    chunk.columns, variances, use_reentrant=False, preserve_rng_state=False
                )
            else:
                yield chunk.columns(variances)

    def _name(self, start: int, row: int) -> int:
        """Number of a row of the chunk that starts at a place of the schedule."""
        order = self._rows.schedule
        return start + row if order is None else int(order[start + row])


class _Found(NamedTuple):
    """Where a chunk finds its pairs and covariances."""

    engine: PairEngine
    find_pairs: Callable[[Tensor], Pairs]
    covariance: Callable[[Tensor, Tensor], Tensor]
    batch: torch.Size
    sets: Tensor  # [C, m + 1]

    def values(self, pairs: Pairs) -> Tensor:
        """Covariances [B, P], on the graph."""
        P, size = len(pairs.first), self.batch.numel()
        if P == 0:
            return torch.zeros(size, 0, dtype=torch.float64, device=self.sets.device)
        values = self.covariance(pairs.first, pairs.second)
        shape = tuple(values.shape) if isinstance(values, Tensor) else None
        if shape is None or shape not in ((P,), (*self.batch, P)):
            got = f"shape {shape}" if shape is not None else type(values).__name__
            raise InputError(
                f"covariance returned {got} for {P} pairs; it must return a tensor of shape "
                f"{(*self.batch, P)}, with the batch dims of variance plus nugget, or ({P},). "
                "A GPyTorch kernel does with diag=True."
            )
        if not values.is_floating_point() or values.device != self.sets.device:
            raise InputError(
                f"covariance returned {values.dtype} on {values.device}; it must return "
                f"floating-point numbers on {self.sets.device}, like the variance."
            )
        return values.expand(*self.batch, P).reshape(size, P)


class _Chunk:
    """Some rows, whose columns may be computed once more only for the sake of the graph."""

    def __init__(self, found: _Found, name: Callable[[int], int]) -> None:
        self._found, self._name = found, name
        self._known = False

    def columns(self, diagonal: Tensor) -> Tensor:
        """Columns [B, C, m + 1] from diagonals of the same shape."""
        pairs = self._found.find_pairs(self._found.sets)
        values = self._found.values(pairs)
        columns: Tensor = _Columns.apply(values, diagonal, pairs.places, self)
        return columns

    def factorise(self, values: Tensor, diagonal: Tensor, places: Tensor) -> Tensor:
        """Columns, the first time; later nobody reads them."""
        if self._known:
            return torch.empty_like(diagonal)
        block = self._block(values, diagonal, places)
        columns, failed = self._found.engine.columns(block)
        if failed is not None:
            self._refuse(block, *failed)
        self._known = True
        return columns.to(diagonal.dtype)

    def gradients(
        self, upstream: Tensor, values: Tensor, diagonal: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients by covariances and diagonals, in their dtypes."""
        block = self._block(values, diagonal, places)
        by_values, by_diagonal = self._found.engine.gradients(upstream, block)
        return by_values.to(values.dtype), by_diagonal.to(diagonal.dtype)

    def _block(self, values: Tensor, diagonal: Tensor, places: Tensor) -> Block:
        return Block(values.detach(), diagonal.detach(), places, self._found.sets)

    def _refuse(self, block: Block, element: int, row: int) -> NoReturn:
        members, diagonal = self._found.sets[row : row + 1], block.diagonal[element, row]
        points = members[members >= 0].tolist()
        where = f"row {self._name(row)}" + (
            f" of batch element {element}" if len(block.values) > 1 else ""
        )
        own, size = points[-1], len(points)
        lowest = float(diagonal[members[0] >= 0].min())
        pairs = TensorEngine().finder(max(points) + 1)(members)
        values = self._found.values(pairs)[element].detach()
        variances = diagonal.new_zeros(max(points) + 1).index_copy_(
            0, members[members >= 0].long(), diagonal[members[0] >= 0]
        )
        if not bool(torch.isfinite(values).all() and torch.isfinite(variances).all()):
            raise NumericalError(
                f"The covariance of {where} (point {own} and {size - 1} neighbours) has NaN or infinite "
                "entries; check the inputs, or take a smaller step in the hyperparameters."
            )
        text = (
            f"The covariance of {where} (point {own} and {size - 1} neighbours, size {size}, float64) is "
            f"not positive definite: smallest variance plus nugget {lowest:.3g}"
        )
        if size > 1 and lowest > 0:
            correlation = values / (variances[pairs.first] * variances[pairs.second]).sqrt()
            worst = int(correlation.abs().argmax())
            text += (
                f", largest correlation {float(correlation[worst]):.12g} of points "
                f"{int(pairs.first[worst])} and {int(pairs.second[worst])}"
            )
        raise NotPositiveDefiniteError(text + ". Raise the nugget, or merge (nearly) equal points.")


class _Columns(torch.autograd.Function):
    """From covariances of pairs and diagonals to columns."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, diagonal: Tensor, places: Tensor, chunk: _Chunk
    ) -> Tensor:
        # All through saved tensors: what hangs on the context itself would outlive recomputation.
        ctx.save_for_backward(values, diagonal, places)
        ctx.chunk = chunk
        return chunk.factorise(values, diagonal, places)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UnsupportedError(
                "Columns of a sparse inverse Cholesky factor are differentiable once, and "
                "create_graph=True asks for more; leave it out."
            )
        by_values, by_diagonal = ctx.chunk.gradients(upstream, *ctx.saved_tensors)
        needed = ctx.needs_input_grad
        return by_values if needed[0] else None, by_diagonal if needed[1] else None, None, None


class _Permuted(torch.autograd.Function):
    """Rows of the schedule back in their own order; the gradient is a permutation, not a sum."""

    @staticmethod
    def forward(ctx: Any, scheduled: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return torch.empty_like(scheduled).index_copy_(-2, order, scheduled)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        return upstream.index_select(-2, order), None


def _at_sets(values: Tensor, sets: Tensor) -> Tensor:
    """Values [*b, T] at the points of sets, [*b, R, m + 1]; unused slots have that of the own point."""
    members = torch.where(sets < 0, sets[:, -1:], sets).flatten()
    return values.index_select(-1, members).unflatten(-1, sets.shape)


def _check_diagonal(variance: Tensor, nugget: Tensor) -> None:
    shapes = f"variance {tuple(variance.shape)} and nugget {tuple(nugget.shape)}"
    fits = variance.dim() > 0 and nugget.shape[-1:] in ((), (1,), variance.shape[-1:])
    if not (fits and variance.is_floating_point() and nugget.is_floating_point()):
        raise InputError(
            f"expected floating-point variance [*b, T] and nugget [] or [*b, T]; got {shapes} of "
            f"{variance.dtype} and {nugget.dtype}"
        )
    try:
        torch.broadcast_shapes(variance.shape, nugget.shape)
    except RuntimeError as error:
        raise InputError(f"the batch dims of {shapes} do not broadcast.") from error
    if bool((nugget < 0).any()):
        raise InputError(
            f"nugget must not be negative, but its smallest entry is {float(nugget.detach().min()):.3g}."
        )


@cache
def _compiled_engine() -> PairEngine | None:
    return load_engine(
        "gpvi.linalg.sparse_inverse._pair_columns_cpu", "sparse inverse Cholesky columns"
    )


def _engine(like: Tensor) -> PairEngine:
    compiled = _compiled_engine() if like.device.type == "cpu" else None
    return TensorEngine() if compiled is None else compiled
