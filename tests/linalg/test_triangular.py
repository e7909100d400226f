"""Helpers on triangular factors: values against dense algebra, batch and sample dims, memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.linalg import (
    identity_plus_congruence,
    identity_plus_low_rank,
    log_det_from_cholesky,
    lower_sum_of_squares,
    mat_vec,
    multiply_lower,
    solve_lower,
    solve_lower_transposed,
    solve_lower_transposed_vec,
    solve_lower_vec,
    sum_of_squares,
)

SIZE = 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def lower(*batch: int) -> Tensor:
    below = randn(*batch, SIZE, SIZE).tril(-1)
    return below + torch.diag_embed(1.0 + randn(*batch, SIZE, seed=9).abs())


VECTOR_OPERATIONS = {
    "mat_vec": (mat_vec, lambda factor: factor),
    "solve_lower_vec": (solve_lower_vec, torch.linalg.inv),
    "solve_lower_transposed_vec": (
        solve_lower_transposed_vec,
        lambda factor: torch.linalg.inv(factor.mT),
    ),
}


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_solves_equal_dense_algebra(batch):
    factor, rhs = lower(*batch), randn(*batch, SIZE, 5, seed=1)
    torch.testing.assert_close(factor @ solve_lower(factor, rhs), rhs)
    torch.testing.assert_close(factor.mT @ solve_lower_transposed(factor, rhs), rhs)
    torch.testing.assert_close(
        log_det_from_cholesky(factor), torch.linalg.slogdet(factor @ factor.mT).logabsdet
    )
    torch.testing.assert_close(sum_of_squares(rhs), (rhs.mT @ rhs).diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("name", VECTOR_OPERATIONS)
@pytest.mark.parametrize(
    ("matrix_batch", "vector_batch"),
    [
        ((), ()),
        ((), (6,)),
        ((), (5, 6)),
        ((3,), ()),
        ((3,), (3,)),
        ((3,), (6, 3)),
        ((3,), (6, 1)),
        ((2, 3), (5, 6, 2, 3)),
        ((2, 1), (6, 2, 3)),
        ((2, 3), (3,)),
        ((), (0,)),
    ],
)
def test_vector_operations_broadcast(name, matrix_batch, vector_batch):
    operation, as_matrix = VECTOR_OPERATIONS[name]
    factor, vectors = lower(*matrix_batch), randn(*vector_batch, SIZE, seed=2)
    expected = (as_matrix(factor) @ vectors.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(operation(factor, vectors), expected)


@pytest.mark.parametrize("name", VECTOR_OPERATIONS)
def test_samples_do_not_copy_the_matrix(name):
    """The right-hand side is one matrix of columns, not a stack of matrices."""
    operation, _ = VECTOR_OPERATIONS[name]
    seen = []

    class Record(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                seen.append(result.numel())
            return result

    factor, vectors = lower(), randn(1000, SIZE)
    with Record():
        operation(factor, vectors)
    assert max(seen) == vectors.numel()


@pytest.mark.parametrize("name", VECTOR_OPERATIONS)
def test_vector_operations_have_gradients(name):
    operation, _ = VECTOR_OPERATIONS[name]
    factor = lower(2).requires_grad_()
    vectors = randn(3, 2, SIZE, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: operation(a.tril(), b), (factor, vectors))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_identity_plus_products(batch):
    features, weights = randn(*batch, SIZE, 7), randn(*batch, 7, seed=1)
    eye = torch.eye(SIZE, dtype=torch.float64)
    torch.testing.assert_close(
        identity_plus_low_rank(features, weights),
        eye + features @ torch.diag_embed(weights) @ features.mT,
    )
    factor, diagonal = lower(*batch), randn(*batch, SIZE, seed=2)
    full = randn(*batch, SIZE, SIZE, seed=3)
    torch.testing.assert_close(
        identity_plus_congruence(factor, diagonal, diagonal=True),
        eye + factor.mT @ torch.diag_embed(diagonal) @ factor,
    )
    torch.testing.assert_close(
        identity_plus_congruence(factor, full, diagonal=False), eye + factor.mT @ full @ factor
    )


def test_single_precision_stays():
    factor, vectors = lower(2).float(), randn(3, 2, SIZE).float()
    for operation, _ in VECTOR_OPERATIONS.values():
        assert operation(factor, vectors).dtype == torch.float32
    assert identity_plus_low_rank(factor, vectors[0]).dtype == torch.float32
    assert identity_plus_congruence(factor, factor, diagonal=False).dtype == torch.float32


@given(st.lists(st.floats(0.0, 1e6), min_size=3, max_size=3))
def test_non_negative_weights_need_no_jitter(weights):
    matrix = identity_plus_low_rank(randn(SIZE, 3), torch.tensor(weights, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(matrix).min()) >= 1.0 - 1e-9 * (1.0 + max(weights))


@pytest.mark.parametrize("in_place", [True, False])
def test_products_over_rows(in_place):
    """BLAS in place serves matrices whose columns are contiguous; any other gets the same result."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(700, 6, generator=generator, dtype=torch.float64)
    matrix = rows.mT if in_place else rows.mT.contiguous()
    factor = torch.randn(6, 6, generator=generator, dtype=torch.float64).tril()
    before = matrix.clone()
    torch.testing.assert_close(multiply_lower(factor, matrix), factor @ matrix)
    torch.testing.assert_close(multiply_lower(factor, matrix, transposed=True), factor.mT @ matrix)
    torch.testing.assert_close(
        lower_sum_of_squares(factor, matrix), (factor @ matrix).square().sum(0)
    )
    for weights in (rows[:, 0].abs(), rows[:, 0]):
        expected = torch.eye(6).double() + (matrix * weights) @ matrix.mT
        torch.testing.assert_close(identity_plus_low_rank(matrix, weights), expected)
    assert torch.equal(matrix, before)


def test_products_over_rows_keep_the_graph():
    rows = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    factor = torch.eye(3).double().requires_grad_()
    assert multiply_lower(factor, rows.mT).requires_grad
    assert lower_sum_of_squares(factor, rows.mT).requires_grad
    weights = torch.ones(9).double().requires_grad_()
    assert identity_plus_low_rank(rows.mT, weights).requires_grad
    with torch.no_grad():
        assert not lower_sum_of_squares(factor, rows.mT).requires_grad
