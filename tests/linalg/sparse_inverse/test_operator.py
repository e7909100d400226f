"""The covariance operator: linear_operator's own cases, and dense formulas."""

import copy
import importlib.util
import pickle
import unittest
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from linear_operator.operators import RootLinearOperator
from linear_operator.test.linear_operator_test_case import LinearOperatorTestCase
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.sparse_inverse import _engine
from gpvi.linalg.sparse_inverse import operator as operator_module
from gpvi.linalg.sparse_inverse._factor_operator import SparseFactorLinearOperator
from gpvi.linalg.sparse_inverse.operator import SparseInverseCholeskyLinearOperator
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern

# linear_operator's interpolation, which is how it takes arbitrary rows out of an operator.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

# Classes of unittest get no fixtures.
_SPEC = importlib.util.spec_from_file_location("dense", Path(__file__).with_name("dense.py"))
_DENSE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_DENSE)


class TestCovariance(LinearOperatorTestCase, unittest.TestCase):
    """linear_operator's own case; nothing may be iterated."""

    __test__ = True
    seed = 0
    should_test_sample = True
    should_call_cg = False
    should_call_lanczos = False
    batch: tuple[int, ...] = ()

    def create_linear_op(self) -> SparseInverseCholeskyLinearOperator:
        """Five points with up to two neighbours."""
        pattern = _DENSE.random_pattern(5, 2, seed=1)
        columns = _DENSE.random_columns(pattern, self.batch, dtype=torch.float32)
        return SparseInverseCholeskyLinearOperator(
            columns, pattern.neighbors, pattern.schedule
        ).requires_grad_(True)

    def evaluate_linear_op(self, linear_op: SparseInverseCholeskyLinearOperator) -> Tensor:
        """By a dense inverse."""
        (columns,) = linear_op.representation()
        return covariance(linear_op.pattern, columns)


class TestCovarianceBatch(TestCovariance):
    """With one batch dim."""

    batch = (3,)


class TestCovarianceTwoBatchDims(TestCovariance):
    """With two."""

    batch = (2, 3)


del LinearOperatorTestCase


def covariance(pattern: NeighborPattern, columns: Tensor) -> Tensor:
    factor = _DENSE.dense_factor(pattern, columns)
    return (factor @ factor.mT).inverse()


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def small_operator(
    M: int = 11, m: int = 4, batch: tuple[int, ...] = ()
) -> SparseInverseCholeskyLinearOperator:
    pattern = _DENSE.random_pattern(M, m)
    return SparseInverseCholeskyLinearOperator(_DENSE.random_columns(pattern, batch), pattern)


@pytest.fixture(params=["compiled", "tensor"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_engine, "_numba_works", lambda: request.param == "compiled")
    return request.param


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize(("M", "m"), [(11, 4), (7, 6), (5, 0), (1, 0)])
def test_everything_is_exact(
    M: int, m: int, batch: tuple[int, ...], engine: str, dense: ModuleType
) -> None:
    operator = small_operator(M, m, batch)
    K = covariance(operator.pattern, operator.columns)
    Y = dense.random_vector(*batch, M, 3)
    close(operator @ Y, K @ Y)
    close(operator.solve(Y), torch.linalg.solve(K, Y))
    close(operator.solve(Y, Y.mT), Y.mT @ torch.linalg.solve(K, Y))
    quadratic, logdet = operator.inv_quad_logdet(Y, logdet=True, reduce_inv_quad=False)
    close(quadratic, (Y * torch.linalg.solve(K, Y)).sum(-2))
    close(operator.inv_quad(Y), quadratic.sum(-1))
    close(logdet, torch.logdet(K))
    close(operator.diagonal(), K.diagonal(dim1=-2, dim2=-1))
    close(operator.cholesky().to_dense(), torch.linalg.cholesky(K))
    close(operator.root_decomposition().to_dense(), K)
    close(operator.root_inv_decomposition().to_dense(), K.inverse())


def test_chunks_of_diagonals_and_entries(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_module, "_CHUNK", 4)
    operator = small_operator(11, 3, (2,))
    K = covariance(operator.pattern, operator.columns)
    close(operator.diagonal(), K.diagonal(dim1=-2, dim2=-1))
    operator.requires_grad_(True)
    close(operator.diagonal().detach(), K.diagonal(dim1=-2, dim2=-1))
    rows, columns = torch.tensor([10, 0, 3, 3, 7, 2]), torch.tensor([0, 10, 3, 9, 8, 8])
    batch = torch.tensor([0, 1, 1, 0, 0, 1])
    close(operator[batch, rows, columns].detach(), K[batch, rows, columns])
    close(operator[:, rows[:, None], columns].detach(), K[:, rows[:, None], columns])


def test_gradients_of_diagonals_and_entries(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_module, "_CHUNK", 2)
    pattern = _DENSE.full_pattern(5)
    used = torch.cat([pattern.neighbors >= 0, torch.ones(5, 1, dtype=torch.bool)], -1)
    columns = _DENSE.random_columns(pattern).requires_grad_()
    index = torch.tensor([4, 1, 0]), torch.tensor([1, 1, 3])

    def values(columns: Tensor) -> tuple[Tensor, ...]:
        operator = SparseInverseCholeskyLinearOperator(columns * used, pattern)
        return operator.diagonal(), operator[index], operator.logdet()

    assert torch.autograd.gradcheck(values, columns)


def test_first_points_keep_their_structure() -> None:
    operator = small_operator(batch=(2,))
    part = operator[..., :6, :6]
    assert type(part) is SparseInverseCholeskyLinearOperator
    K = covariance(operator.pattern, operator.columns)
    close(part.to_dense(), K[..., :6, :6])
    close(operator[1, :6, :6].to_dense(), K[1, :6, :6])
    close(operator[..., 6:, :6].to_dense(), K[..., 6:, :6])
    close(operator[..., 6:, 6:].to_dense(), K[..., 6:, 6:])
    assert operator[..., :, :].shape == operator.shape


def test_scaling_keeps_the_structure() -> None:
    operator = small_operator()
    twice = operator * 2.0
    assert type(twice) is SparseInverseCholeskyLinearOperator
    close(twice.to_dense(), 2.0 * operator.to_dense())
    close((operator * -2.0).to_dense(), -2.0 * operator.to_dense())
    constants = torch.tensor([1.0, 3.0]).double()
    close(
        operator.expand(2, 11, 11)._mul_constant(constants).to_dense(),
        constants[:, None, None] * operator.to_dense(),
    )


def test_the_pattern_survives() -> None:
    operator = small_operator(batch=(2, 1))
    K = operator.to_dense()
    pattern = operator.pattern
    variants = {
        "clone": operator.clone(),
        "detach": operator.detach(),
        "tree": operator.representation_tree()(*operator.representation()),
        "to": operator.to("cpu"),
        "cpu": operator.cpu(),
    }
    for other in variants.values():
        assert other.pattern is pattern
        close(other.to_dense(), K)
    close(operator.unsqueeze(0).to_dense(), K.unsqueeze(0))
    close(operator.permute(1, 0, 2, 3).to_dense(), K.transpose(0, 1))
    close(operator.sum(0).to_dense(), K.sum(0))
    wide = operator.expand(4, 2, 3, 11, 11)
    assert type(wide) is type(operator) and wide.pattern is pattern
    close(wide.to_dense(), K.expand(4, 2, 3, 11, 11))
    close(
        wide @ torch.ones(11, 2).double(), (K @ torch.ones(11, 2).double()).expand(4, 2, 3, 11, 2)
    )
    single = operator.to(torch.float32)
    assert single.dtype == torch.float32 and single.pattern.neighbors.dtype == torch.int32
    close(single.to_dense(), K.float(), 1e-5)
    close(operator.float().double().to_dense(), K, 1e-5)


def test_pickle_and_deepcopy(engine: str) -> None:
    operator = small_operator()
    _ = operator.to_dense()
    operator.root_decomposition()
    for other in (pickle.loads(pickle.dumps(operator)), copy.deepcopy(operator)):
        assert type(other) is type(operator)
        assert torch.equal(other.pattern.neighbors, operator.pattern.neighbors)
        assert torch.equal(other.pattern.schedule, operator.pattern.schedule)
        close(other.clone().to_dense(), operator.to_dense())


def test_detaching_in_place() -> None:
    columns = small_operator().columns.clone().requires_grad_()
    operator = SparseInverseCholeskyLinearOperator(columns * 1.0, small_operator().pattern)
    assert operator.requires_grad
    assert operator.detach_() is operator and not operator.requires_grad


def test_distributions_of_gpytorch() -> None:
    operator = small_operator()
    torch.manual_seed(0)
    plain = MultivariateNormal(torch.zeros(11).double(), operator.to_dense())
    structured = MultivariateNormal(torch.zeros(11).double(), operator)
    y = torch.linspace(-1.0, 1.0, 11).double()
    close(structured.log_prob(y), plain.log_prob(y), 1e-6)
    close(structured.variance, plain.variance)
    assert isinstance(operator.root_decomposition(), RootLinearOperator)
    draws = structured.rsample(torch.Size([20_000]))
    assert draws.shape == (20_000, 11)
    error = draws.T @ draws / 20_000 - operator.to_dense()
    assert error.abs().max() < 0.15


def test_factor_operators_and_their_transposes(dense: ModuleType) -> None:
    operator = small_operator(batch=(2,))
    U = dense.dense_factor(operator.pattern, operator.columns)
    for inverse in (False, True):
        factor = SparseFactorLinearOperator(operator.columns, operator.pattern, inverse=inverse)
        expected = U.inverse() if inverse else U
        close(factor.to_dense(), expected)
        close(factor.mT.to_dense(), expected.mT)
        close(factor.mT.mT.expand(3, 2, 11, 11).to_dense(), expected.expand(3, 2, 11, 11))
        close(factor[1].to_dense(), expected[1])
        assert factor.to(torch.float32).dtype == torch.float32


@pytest.mark.gpu
def test_moves_to_a_device() -> None:
    operator = small_operator()
    moved = operator.cuda()
    assert moved.device.type == moved.pattern.neighbors.device.type == "cuda"
    close(moved.to_dense().cpu(), operator.to_dense())
    close(moved.cpu().to_dense(), operator.to_dense())


def test_wrong_calls_are_refused() -> None:
    operator = small_operator()
    with pytest.raises(InputError, match=r"\(11, 4\)"):
        SparseInverseCholeskyLinearOperator(operator.columns[:, :-1], operator.pattern)
    with pytest.raises(InputError, match="schedule"):
        SparseInverseCholeskyLinearOperator(
            operator.columns, operator.pattern, operator.pattern.order
        )
    with pytest.raises(InputError, match="11 rows"):
        operator.solve(torch.ones(3, 1).double())
