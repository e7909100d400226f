"""Block-tridiagonal matrices and Markov precisions against dense ones."""

import copy
import pickle
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gpvi.exceptions import InputError, NotPositiveDefiniteError
from gpvi.linalg.markov.block_tridiagonal import BlockTridiagonal, markov_precision
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.tensor_engine import tensor_marginals, tensor_state_path

METHODS = ["cyclic", "sequential"]


def random_matrix(
    rows: int, size: int = 3, batch: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64
) -> BlockTridiagonal:
    generator = torch.Generator().manual_seed(rows)
    root = torch.randn(*batch, rows, size, size, generator=generator, dtype=dtype)
    diagonal = root @ root.mT + 2.0 * size * torch.eye(size, dtype=dtype)
    lower = torch.randn(*batch, rows - 1, size, size, generator=generator, dtype=dtype)
    return BlockTridiagonal(diagonal, lower)


def blocks_of(dense: Tensor, size: int, lag: int) -> Tensor:
    rows = dense.shape[-1] // size
    blocks = dense.unflatten(-1, (rows, size)).unflatten(-3, (rows, size)).movedim(-2, -3)
    k = torch.arange(rows - lag)
    return blocks[..., k + lag, k, :, :]


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 13, 33])
@pytest.mark.parametrize("method", METHODS)
def test_everything_is_dense(rows: int, method: str) -> None:
    matrix = random_matrix(rows)
    dense = matrix.to_dense()
    assert torch.equal(dense, dense.mT)
    inverse = torch.linalg.inv(dense)
    x = torch.randn(4, 2, rows, 3, generator=torch.Generator().manual_seed(0)).double()
    product = (dense @ x.flatten(-2).unsqueeze(-1)).view_as(x)
    close(matrix.matmul(x), product)
    close(matrix.solve(product, method), x)
    close(matrix.log_det(method), torch.logdet(dense))
    diagonal, lower = matrix.selected_inverse(method)
    close(diagonal, blocks_of(inverse, 3, 0))
    close(lower, blocks_of(inverse, 3, 1))


def test_the_sequential_factor_is_the_cholesky_factor() -> None:
    matrix = random_matrix(5, batch=())
    factor = matrix.cholesky("sequential")
    expected = torch.linalg.cholesky(matrix.to_dense())
    close(torch.stack(factor.diagonal), blocks_of(expected, 3, 0))
    close(torch.stack(factor.lower), blocks_of(expected, 3, 1))


@pytest.mark.parametrize("method", METHODS)
def test_batch_dims_broadcast(method: str) -> None:
    wide = random_matrix(5, batch=(3, 1))
    matrix = BlockTridiagonal(wide.diagonal, random_matrix(5, batch=(2,)).lower)
    assert matrix.batch_shape == (3, 2)
    x = torch.ones(3, 2, 5, 3).double()
    close(matrix.matmul(matrix.solve(x, method)), x)
    close(matrix.log_det(method), torch.logdet(matrix.to_dense()))
    for part in matrix.selected_inverse(method):
        assert part.shape[:2] == (3, 2)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_gradients(rows: int, method: str) -> None:
    matrix = random_matrix(rows, size=2, batch=())
    rhs = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1)).double()

    def values(diagonal: Tensor, lower: Tensor, rhs: Tensor) -> tuple[Tensor, ...]:
        factor = BlockTridiagonal(0.5 * (diagonal + diagonal.mT), lower).cholesky(method)
        return factor.solve(rhs), factor.log_det(), *factor.selected_inverse()

    arguments = tuple(x.requires_grad_() for x in (matrix.diagonal, matrix.lower, rhs))
    assert torch.autograd.gradcheck(values, arguments)


@pytest.mark.parametrize("method", METHODS)
def test_float32(method: str) -> None:
    matrix = random_matrix(9, dtype=torch.float32)
    x = torch.ones(2, 9, 3)
    solved = matrix.solve(matrix.matmul(x), method)
    assert solved.dtype == torch.float32
    close(solved, x, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_an_indefinite_matrix_is_refused(method: str) -> None:
    matrix = random_matrix(6)
    with pytest.raises(NotPositiveDefiniteError, match="6 blocks of size 3"):
        BlockTridiagonal(matrix.diagonal, 20.0 * matrix.lower).log_det(method)


def test_bad_arguments_are_refused() -> None:
    matrix = random_matrix(4)
    with pytest.raises(InputError, match=r"\(2, 4, 3, 3\)"):
        BlockTridiagonal(matrix.diagonal, matrix.diagonal)
    with pytest.raises(InputError, match=r"\(\)"):
        BlockTridiagonal(torch.ones(()), torch.ones(()))
    with pytest.raises(InputError, match="'both'"):
        matrix.log_det("both")
    with pytest.raises(InputError, match=r"\(2, 3, 4\)"):
        matrix.solve(torch.ones(2, 3, 4).double())
    with pytest.raises(InputError, match=r"\(12,\)"):
        matrix.matmul(torch.ones(12).double())


def test_pickle_and_deepcopy() -> None:
    matrix = random_matrix(4)
    for other in (pickle.loads(pickle.dumps(matrix)), copy.deepcopy(matrix)):
        assert torch.equal(other.to_dense(), matrix.to_dense())


@pytest.mark.parametrize("name", ["matern12", "matern32", "hida32", "wiener", "batch"])
def test_prior_precision_is_the_inverse_of_the_covariance(name: str, dense: ModuleType) -> None:
    model = dense.MODELS[name]
    steps = dense.stamps(12, series=3, duplicates=False)
    precision = markov_precision(model, steps)
    product = precision.to_dense() @ dense.joint_covariance(model, steps)
    close(product, torch.eye(product.shape[-1]).double().expand_as(product), 1e-9)
    assert not precision.lower[..., steps.starts[1:] - 1, :, :].any()


@pytest.mark.parametrize("method", METHODS)
def test_posterior_is_that_of_the_covariance_form(method: str, dense: ModuleType) -> None:
    model, steps = dense.MODELS["matern32"], dense.stamps(20, series=2, duplicates=False)
    lam1, lam2 = dense.sites(20)
    prior, h = markov_precision(model, steps), model.readout
    factor = BlockTridiagonal(
        prior.diagonal + lam2[:, None, None] * h[:, None] * h, prior.lower
    ).cholesky(method)
    path = tensor_state_path(model, steps, lam1, lam2)
    mean = factor.solve(lam1[:, None] * h)
    covariance, lag = factor.selected_inverse()
    close(mean, path.smoothed_mean(), 1e-10)
    close(covariance, path.smoothed_covariance(), 1e-10)
    close(lag, path.lag_one(model, steps, lam2), 1e-10)
    total = 0.5 * (prior.log_det(method) - factor.log_det() + (mean[:, 0] * lam1).sum())
    expected = dense.posterior(model, steps, lam1, lam2).log_partition.sum()
    close(total, expected, 1e-10)


# The table of the module's docstring; None stands for a failure or an error of no use.
ACCURACY = {
    0: (9e-16, 2e-15, 4e-15, 2e-14),
    1: (1e-15, 4e-13, 1e-10, 9e-8),
    2: (3e-14, 3e-9, 6e-5, 2e-1),
    3: (6e-12, 3e-5, None, None),
}


@pytest.mark.parametrize("order", ACCURACY)
@pytest.mark.parametrize("method", METHODS)
def test_accuracy_on_fine_grids(order: int, method: str, dense: ModuleType) -> None:
    model = MarkovModel((dense.matern(order, 1.0, 1.0),))
    generator, h = torch.Generator().manual_seed(0), model.readout
    for step, stated in zip((1.0, 0.1, 1e-2, 1e-3), ACCURACY[order], strict=True):
        steps = Steps.single(step * torch.arange(100).double())
        lam1, lam2 = torch.randn(100, generator=generator).double(), torch.ones(100).double()
        prior = markov_precision(model, steps)
        matrix = BlockTridiagonal(prior.diagonal + h[:, None] * h, prior.lower)
        expected = tensor_marginals(model, steps, lam1, lam2)[0]
        try:
            error = float((matrix.solve(lam1[:, None] * h, method)[:, 0] - expected).abs().max())
        except NotPositiveDefiniteError:
            assert stated is None
            continue
        if stated is None:
            assert error > 1e-2
        else:
            # Rounding differs between libraries; the order of magnitude does not.
            assert error < 10.0 * stated


def test_a_singular_step_is_refused(dense: ModuleType) -> None:
    equal = Steps.single(torch.tensor([0.0, 0.5, 0.5]).double())
    with pytest.raises(InputError, match=r"row 2 \(stamp 0.5\).*same stamp.*covariance form"):
        markov_precision(dense.MODELS["matern32"], equal)
    apart = Steps.single(torch.tensor([0.0, 0.5, 0.7]).double())
    with pytest.raises(InputError, match=r"row 1 .*no noise"):
        markov_precision(dense.MODELS["sum"], apart)
    blind = MarkovModel((dense.cosine(variance=0.0),))
    with pytest.raises(InputError, match="first state"):
        markov_precision(blind, apart)


def test_gradient_of_the_prior_precision(dense: ModuleType) -> None:
    time = torch.tensor([0.0, 0.4, 0.9, 1.1]).double()

    def values(rate: Tensor, variance: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        model = MarkovModel((dense.matern(1, rate, variance),))
        matrix = markov_precision(model, Steps.single(time))
        return matrix.log_det(), matrix.selected_inverse()[0]

    rate, variance = (torch.tensor(v, dtype=torch.float64) for v in (1.2, 0.6))
    arguments = tuple(x.requires_grad_() for x in (rate, variance, time))
    assert torch.autograd.gradcheck(values, arguments)
