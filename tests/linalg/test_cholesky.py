"""The one jitter ladder: what it adds, to which matrices, and what it says."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import JitterWarning, NotPositiveDefiniteError, NumericalError
from gpvi.linalg import DEFAULT_JITTER, default_jitter, safe_cholesky


def gram(x: Tensor, lengthscale: float = 1.0) -> Tensor:
    """RBF Gram matrix of inputs in one dimension."""
    return torch.exp(-0.5 * (x.unsqueeze(-1) - x.unsqueeze(-2)).square() / lengthscale**2)


X = torch.linspace(0.0, 3.0, 6, dtype=torch.float64)
GOOD = gram(X, 0.5)
# Two equal rows: the second pivot is exactly 0.
SINGULAR = gram(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
INDEFINITE = torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_factor_of_a_good_matrix(batch):
    matrix = GOOD.expand(*batch, 6, 6) * 2.0
    result = safe_cholesky(matrix)
    torch.testing.assert_close(result.factor @ result.factor.mT, matrix)
    assert torch.equal(result.factor, result.factor.tril())
    assert result.jitter.shape == batch and bool((result.jitter == 0.0).all())


def test_base_jitter_is_relative_and_silent():
    result = safe_cholesky(5.0 * SINGULAR, jitter=1e-8)
    expected = 5.0 * SINGULAR + 5e-8 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(result.factor @ result.factor.mT, expected, rtol=0, atol=1e-14)
    assert float(result.jitter) == 1e-8


def test_scale_replaces_the_mean_diagonal():
    small = 1e-9 * SINGULAR
    result = safe_cholesky(small, jitter=1e-8, scale=torch.tensor(1.0))
    added = result.factor @ result.factor.mT - small
    torch.testing.assert_close(added, 1e-8 * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-20)
    batch = safe_cholesky(small.expand(2, 3, 3), jitter=1e-8, scale=torch.tensor([1.0, 2.0]))
    assert batch.factor[1, 1, 1] > batch.factor[0, 1, 1]


def test_ladder_climbs_with_one_warning_at_the_callers_line():
    with pytest.warns(JitterWarning, match=r"Kzz of size 3 .*1e-12 .*instead of 0e\+00") as record:
        result = safe_cholesky(SINGULAR, name="Kzz")
    assert len(record) == 1 and record[0].filename == __file__
    assert float(result.jitter) == pytest.approx(1e-12)
    torch.testing.assert_close(
        result.factor @ result.factor.mT,
        SINGULAR + 1e-12 * torch.eye(3, dtype=torch.float64),
        rtol=0,
        atol=1e-15,
    )


def test_only_failing_matrices_of_a_batch_get_jitter():
    """Each as much as it needs: a good one none, a bad one no more because of a worse one."""
    worse = SINGULAR.clone()
    worse[1, 1] -= 1e-6
    batch = torch.stack([gram(X[:3], 0.5), SINGULAR, worse])
    with pytest.warns(JitterWarning):
        result = safe_cholesky(batch)
    assert float(result.jitter[0]) == 0.0
    assert float(result.jitter[1]) == pytest.approx(1e-12)
    assert 1e-7 < float(result.jitter[2]) <= 1e-5
    for matrix, factor in zip(batch, result.factor, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", JitterWarning)
            torch.testing.assert_close(safe_cholesky(matrix).factor, factor, rtol=0, atol=1e-12)


def test_error_says_what_is_wrong():
    inputs = torch.tensor([[0.0], [5.0], [5.5]], dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError) as caught:
        safe_cholesky(INDEFINITE, name="Kxx", jitter=1e-8, inputs=inputs)
    text = str(caught.value)
    for part in (
        "Kxx of shape (3, 3)",
        "float64",
        "smallest diagonal entry -1",
        "1e-08, 1e-07, 1e-06, 1e-05, 1e-04",
        "rows 1 and 2, 0.5 apart",
        "larger jitter",
    ):
        assert part in text
    with pytest.raises(NotPositiveDefiniteError, match=r"rows 0 and 2, 0 apart"):
        points = torch.stack([inputs, torch.tensor([[1.0], [2.0], [1.0]]).double()])
        safe_cholesky(INDEFINITE.expand(2, 3, 3), inputs=points)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_not_finite(value):
    matrix = GOOD.clone()
    matrix[2, 1] = value
    with pytest.raises(NumericalError, match="holds 1 NaN or infinite entries") as caught:
        safe_cholesky(matrix, name="Kzz")
    assert not isinstance(caught.value, NotPositiveDefiniteError)


def test_only_the_lower_triangle_is_read():
    torch.testing.assert_close(safe_cholesky(GOOD.tril()).factor, safe_cholesky(GOOD).factor)


def test_gradient_through_base_jitter():
    def function(lengthscale: Tensor) -> Tensor:
        matrix = torch.exp(-0.5 * (X.unsqueeze(-1) - X).square() / lengthscale**2)
        return safe_cholesky(2.0 * lengthscale * matrix, jitter=1e-3).factor

    start = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (start,))


def test_gradient_after_the_ladder_is_finite():
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    with pytest.warns(JitterWarning):
        factor = safe_cholesky(scale * SINGULAR).factor
    factor.diagonal().log().sum().backward()
    # log|c A + j c I| has slope n / c in c; the factor's log-determinant is half of it.
    torch.testing.assert_close(float(scale.grad), 1.5, rtol=1e-3, atol=0.0)


def test_single_precision_is_factorised_in_double():
    """A smooth Gram matrix whose factorisation fails in single precision itself."""
    x = torch.linspace(0.0, 1.0, 12)
    matrix = gram(x)
    jittered = matrix + 1e-6 * torch.eye(12)
    result = safe_cholesky(matrix, jitter=1e-6)
    assert result.factor.dtype == torch.float32
    torch.testing.assert_close(result.factor @ result.factor.mT, jittered, rtol=0, atol=1e-6)
    assert float(result.jitter) == pytest.approx(1e-6)


def test_default_jitter():
    assert default_jitter(torch.float64) == DEFAULT_JITTER[torch.float64] == 1e-8
    assert default_jitter(torch.float32) == 1e-6
    assert default_jitter(torch.float16) == 1e-6


@given(st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=8), st.floats(0.1, 10.0))
def test_any_gram_matrix_of_inducing_points_is_factorised(points, scale):
    """Duplicates and near-duplicates included, with the default jitter and without a warning."""
    matrix = scale * gram(torch.tensor(points, dtype=torch.float64))
    result = safe_cholesky(matrix, jitter=1e-8)
    difference = result.factor @ result.factor.mT - matrix
    assert float(difference.abs().max()) <= 1.01e-8 * scale
