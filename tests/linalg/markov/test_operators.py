"""Linear operators: linear_operator's own cases, and dense formulas."""

import copy
import pickle
import unittest
from types import ModuleType

import pytest
import torch
from linear_operator.operators import AddedDiagLinearOperator, DiagLinearOperator
from linear_operator.test.linear_operator_test_case import (
    LinearOperatorTestCase,
    RectangularLinearOperatorTestCase,
)
from torch import Tensor

from gpvi.exceptions import (
    InputError,
    NotPositiveDefiniteError,
    NumericalError,
    UnsupportedError,
)
from gpvi.linalg.markov import _sweeps
from gpvi.linalg.markov._sweeps import sweep
from gpvi.linalg.markov.blocks import CascadeBlock, matern_noise, stationary_cascade
from gpvi.linalg.markov.conditioning import condition_last
from gpvi.linalg.markov.cross_operator import CrossCovarianceLinearOperator
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.operators import SemiseparableLinearOperator
from gpvi.linalg.markov.plus_diagonal_operator import SemiseparablePlusDiagonalLinearOperator
from gpvi.linalg.markov.precision_operator import BlockTridiagonalLinearOperator

# linear_operator's interpolation, which is how it takes rows out of an operator.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


def small_operator(batch: tuple[int, ...] = (), rows: int = 5) -> SemiseparableLinearOperator:
    """Unsorted times, a Matérn and a cosine, in single precision."""
    rate = torch.linspace(0.8, 2.0, max(1, torch.Size(batch).numel())).view(batch)
    noise = matern_noise(1) * torch.ones_like(rate)
    matern = CascadeBlock(1, rate, noise, stationary_cascade(1, noise))
    start = 0.5 * torch.eye(2).expand(*batch, 2, 2)
    cosine = CascadeBlock(0, rate, 0.0 * rate, start, 2.0 * rate, damped=False)
    time = torch.tensor([0.9, 0.0, 2.3, 1.4, 3.8, 3.1, 0.4])[:rows]
    operator = SemiseparableLinearOperator.from_model(MarkovModel((matern, cosine)), time)
    # One block: the cases below ask for derivatives by all entries, also those that are always zero.
    return SemiseparableLinearOperator(*operator.representation())


def covariance_of(transition: Tensor, noise: Tensor, readout: Tensor, order: Tensor) -> Tensor:
    """K entry by entry, as the operator's representation defines it."""
    N = order.shape[-1]
    noise = 0.5 * (noise + noise.mT)
    P, cross = [], []
    for k in range(N):
        A = transition[..., k, :, :]
        cross = [A @ state for state in cross] if k else []
        P.append(noise[..., k, :, :] + (A @ P[-1] @ A.mT if k else 0.0))
        cross.append(P[-1])
        row = [
            (readout[..., k, None, :] @ state @ readout[..., m, :, None])
            for m, state in enumerate(cross)
        ]
        row = torch.cat([entry.squeeze(-1) for entry in row], -1)
        row = torch.nn.functional.pad(row, (0, N - k - 1)).unsqueeze(-2)
        rows = row if k == 0 else torch.cat([rows, row], -2)  # noqa: F821
    full = rows + rows.tril(-1).mT
    place = torch.argsort(order, dim=-1)
    full = full.gather(-2, place.unsqueeze(-1).expand_as(full))
    return full.gather(-1, place.unsqueeze(-2).expand_as(full))


class TestSemiseparable(LinearOperatorTestCase, unittest.TestCase):
    """linear_operator's own case."""

    __test__ = True
    seed = 0
    should_test_sample = True

    def create_linear_op(self) -> SemiseparableLinearOperator:
        """Five rows."""
        return small_operator().requires_grad_(True)

    def evaluate_linear_op(self, linear_op: SemiseparableLinearOperator) -> Tensor:
        """By another formula."""
        return covariance_of(*linear_op.representation())


class TestSemiseparableBatch(TestSemiseparable):
    """With one batch dim."""

    def create_linear_op(self) -> SemiseparableLinearOperator:
        """Three problems."""
        return small_operator((3,)).requires_grad_(True)


class TestSemiseparablePlusDiagonal(LinearOperatorTestCase, unittest.TestCase):
    """linear_operator's own case; no iteration may run."""

    __test__ = True
    seed = 0
    should_test_sample = True
    should_call_cg = False

    def create_linear_op(self) -> SemiseparablePlusDiagonalLinearOperator:
        """Five rows with different noise."""
        diagonal = DiagLinearOperator(torch.tensor([0.5, 1.0, 2.0, 0.4, 1.5]))
        return (small_operator() + diagonal).requires_grad_(True)

    def evaluate_linear_op(self, linear_op: SemiseparablePlusDiagonalLinearOperator) -> Tensor:
        """By another formula."""
        *tensors, diagonal = linear_op.representation()
        return covariance_of(*tensors) + torch.diag_embed(diagonal)


class TestSemiseparablePlusDiagonalBatch(TestSemiseparablePlusDiagonal):
    """With two batch dims."""

    def create_linear_op(self) -> SemiseparablePlusDiagonalLinearOperator:
        """Six problems."""
        diagonal = 0.5 + torch.linspace(0.0, 1.0, 30).view(2, 3, 5)
        return (small_operator((2, 3)) + DiagLinearOperator(diagonal)).requires_grad_(True)


class TestBlockTridiagonal(LinearOperatorTestCase, unittest.TestCase):
    """linear_operator's own case; no iteration may run."""

    __test__ = True
    seed = 0
    should_test_sample = True
    should_call_cg = False
    batch: tuple[int, ...] = ()

    def create_linear_op(self) -> BlockTridiagonalLinearOperator:
        """Three blocks of size two."""
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(*self.batch, 3, 2, 2, generator=generator)
        blocks = root @ root.mT + 3.0 * torch.eye(2)
        lower = 0.5 * torch.randn(*self.batch, 2, 2, 2, generator=generator)
        return BlockTridiagonalLinearOperator(blocks, lower).requires_grad_(True)

    def evaluate_linear_op(self, linear_op: BlockTridiagonalLinearOperator) -> Tensor:
        """Block by block."""
        blocks, lower = linear_op.representation()
        blocks = 0.5 * (blocks + blocks.mT)
        zero = torch.zeros_like(blocks[..., 0, :, :])
        one, two = lower.unbind(-3)
        a, b, c = blocks.unbind(-3)
        rows = [[a, one.mT, zero], [one, b, two.mT], [zero, two, c]]
        return torch.cat([torch.cat(row, -1) for row in rows], -2)


class TestBlockTridiagonalBatch(TestBlockTridiagonal):
    """With two batch dims."""

    batch = (2, 3)


class TestCrossCovariance(RectangularLinearOperatorTestCase, unittest.TestCase):
    """linear_operator's own case."""

    __test__ = True
    seed = 0
    batch: tuple[int, ...] = ()

    def create_linear_op(self) -> CrossCovarianceLinearOperator:
        """Four rows by the other three columns."""
        return CrossCovarianceLinearOperator(small_operator(self.batch, 7), 4)

    def evaluate_linear_op(self, linear_op: CrossCovarianceLinearOperator) -> Tensor:
        """By another formula."""
        return covariance_of(*linear_op.representation())[..., 3:, :3]


class TestCrossCovarianceBatch(TestCrossCovariance):
    """With two batch dims."""

    batch = (2, 3)


del LinearOperatorTestCase, RectangularLinearOperatorTestCase


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(value, expected.expand_as(value), rtol=tolerance, atol=tolerance)


def dense_covariance(dense: ModuleType, model: MarkovModel, time: Tensor) -> Tensor:
    order = torch.argsort(time, stable=True)
    H = dense.readout_matrix(model, len(time))
    K = H @ dense.joint_covariance(model, Steps.single(time[order])) @ H.mT
    place = torch.argsort(order)
    return K[..., place, :][..., place]


def unsorted(dense: ModuleType, rows: int = 9) -> Tensor:
    time = dense.stamps(rows, seed=2).time
    return time[torch.randperm(rows, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("engine", ["compiled", "scan"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_sweeps_are_loops(
    rows: int, reverse: bool, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "scan":
        monkeypatch.setattr(_sweeps, "runs_compiled", lambda *_: False)
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(2, rows, 3, 3, generator=generator).double()
    b = torch.randn(4, 2, rows, 3, 2, generator=generator).double()
    order = range(rows - 1, -1, -1) if reverse else range(rows)
    expected, before = b.clone(), None
    for k in order:
        if before is not None:
            step = A[:, before].mT if reverse else A[:, k]
            expected[:, :, k] += step @ expected[:, :, before]
        before = k
    close(sweep(A, b, reverse), expected)
    leaves = (A.requires_grad_(), b[:2].requires_grad_())
    assert torch.autograd.gradcheck(lambda *x: sweep(*x, reverse), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: sweep(*x, reverse), leaves, fast_mode=True)


def test_covariances_of_every_model(markov_model: MarkovModel, dense: ModuleType) -> None:
    time = unsorted(dense)
    operator = SemiseparableLinearOperator.from_model(markov_model, time)
    expected = dense_covariance(dense, markov_model, time)
    assert operator.shape == expected.shape
    close(operator.to_dense(), expected)
    close(operator.diagonal(), expected.diagonal(dim1=-2, dim2=-1))


def test_solves_and_determinants_of_every_model(
    markov_model: MarkovModel, dense: ModuleType
) -> None:
    time = unsorted(dense)
    D = torch.linspace(0.1, 2.0, len(time)).double()
    operator = SemiseparableLinearOperator.from_model(markov_model, time).add_diagonal(D)
    full = dense_covariance(dense, markov_model, time) + torch.diag(D)
    Y = torch.randn(len(time), 3, generator=torch.Generator().manual_seed(0)).double()
    wide = Y.expand(*operator.batch_shape, *Y.shape)
    close(operator.solve(wide), torch.linalg.solve(full, wide))
    quadratic, logdet = operator.inv_quad_logdet(wide, logdet=True, reduce_inv_quad=False)
    close(quadratic, (wide * torch.linalg.solve(full, wide)).sum(-2))
    close(logdet, torch.linalg.slogdet(full)[1])
    close(operator.logdet(), logdet)


@pytest.mark.parametrize("noise", [1e-8, 1e-4, 1e6])
def test_small_and_large_noise(noise: float, dense: ModuleType) -> None:
    model, time = dense.MODELS["matern32"], torch.linspace(3.0, 0.0, 40).double()
    D = torch.full((40,), noise).double()
    operator = SemiseparableLinearOperator.from_model(model, time).add_diagonal(D)
    y = torch.sin(3.0 * time).unsqueeze(-1)
    x = operator.solve(y)
    # The residual, not the solution, is what an ill-conditioned matrix lets one ask for.
    assert (operator @ x - y).abs().max() < 1e-11
    full = operator.to_dense()
    close(operator.logdet(), torch.linalg.slogdet(full)[1], 1e-8)


def test_gradients_reach_kernel_parameters_times_and_noise(dense: ModuleType) -> None:
    time = unsorted(dense, 8) + 0.01 * torch.arange(8)
    leaves = [torch.tensor([1.3, 0.7, 2.0]).double(), time, torch.linspace(0.2, 1.0, 8).double()]
    leaves.append(torch.randn(8, 2, generator=torch.Generator().manual_seed(3)).double())

    def gradients(use_dense: bool) -> tuple[Tensor, ...]:
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        (rate, variance, frequency), t, D, Y = inputs[0].unbind(), *inputs[1:]
        model = MarkovModel(
            (dense.matern(1, rate, variance), dense.matern(0, rate, 0.4, frequency))
        )
        if use_dense:
            full = dense_covariance(dense, model, t) + torch.diag(D)
            X = torch.linalg.solve(full, Y)
            loss = (Y * X).sum() + torch.linalg.slogdet(full)[1] + X.square().sum()
        else:
            operator = SemiseparableLinearOperator.from_model(model, t).add_diagonal(D)
            quadratic, logdet = operator.inv_quad_logdet(Y, logdet=True)
            loss = quadratic + logdet + operator.solve(Y).square().sum()
        return torch.autograd.grad(loss, inputs)

    for value, expected in zip(gradients(False), gradients(True), strict=True):
        close(value, expected, 1e-9)


def test_a_readout_per_row_in_the_order_of_the_times(dense: ModuleType) -> None:
    time = unsorted(dense, 6)
    rows = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    model = MarkovModel((dense.matern(1),), rows=rows)
    operator = SemiseparableLinearOperator.from_model(model, time)
    order = torch.argsort(time, stable=True)
    alone = MarkovModel(model.blocks, rows=rows[order])
    sorted_ = dense_covariance(dense, alone, time[order])
    place = torch.argsort(order)
    close(operator.to_dense(), sorted_[place][:, place])


def test_times_with_batch_dims(dense: ModuleType) -> None:
    rate = torch.tensor([0.8, 1.9]).double()
    time = torch.stack([unsorted(dense, 5) * (1 + g) for g in range(3)])[:, None]
    time[1] = time[1].flip(-1)
    operator = SemiseparableLinearOperator.from_model(MarkovModel((dense.matern(1, rate),)), time)
    noisy = operator.add_diagonal(torch.tensor(0.3).double())
    y = torch.arange(5.0).double().unsqueeze(-1)
    solved = noisy.solve(y)
    assert operator.shape == (3, 2, 5, 5)
    for g in range(3):
        for k in range(2):
            model = MarkovModel((dense.matern(1, rate[k]),))
            full = dense_covariance(dense, model, time[g, 0])
            close(operator[g, k].to_dense(), full)
            close(solved[g, k], torch.linalg.solve(full + 0.3 * torch.eye(5), y))


def test_sums_and_products_keep_their_structure(dense: ModuleType) -> None:
    operator = SemiseparableLinearOperator.from_model(dense.MODELS["matern32"], unsorted(dense))
    diagonal = DiagLinearOperator(torch.ones(9).double())
    noisy = operator + diagonal
    kind = SemiseparablePlusDiagonalLinearOperator
    same = (noisy, noisy + diagonal, noisy.add_diagonal(torch.ones(9).double()))
    for sum_ in (*same, noisy * 2.0, (operator * 3.0) + diagonal, operator.add_jitter(0.1)):
        assert type(sum_) is kind
    close((noisy * 2.0).logdet(), torch.linalg.slogdet(2.0 * noisy.to_dense())[1])
    close((noisy + diagonal).to_dense(), operator.to_dense() + 2.0 * torch.eye(9))
    other = noisy + operator
    assert type(other) is AddedDiagLinearOperator
    close(other.to_dense(), 2.0 * operator.to_dense() + torch.eye(9))


def test_conditioned_rows(markov_model: MarkovModel, dense: ModuleType) -> None:
    time, (lam1, lam2) = unsorted(dense), dense.sites(9, markov_model.batch_shape)
    prior = SemiseparableLinearOperator.from_model(markov_model, time)
    K, unit = dense_covariance(dense, markov_model, time), torch.eye(9).double()
    full = K - K @ torch.linalg.solve(unit + lam2.unsqueeze(-1) * K, lam2.unsqueeze(-1) * K)
    center = (full @ lam1.unsqueeze(-1)).squeeze(-1)
    for count in (1, 4, 9):
        mean, covariance = condition_last(prior, lam1, lam2, count)
        close(mean, center[..., -count:])
        close(covariance.to_dense(), full[..., -count:, -count:])
    with pytest.raises(NumericalError):
        condition_last(prior, lam1, lam2 - 50.0, 2)


def test_gradients_of_conditioned_rows(dense: ModuleType) -> None:
    time = dense.stamps(5, duplicates=False).time.flip(0)
    lam1, lam2 = (site.requires_grad_() for site in dense.sites(5))
    rate = torch.tensor(1.3).double().requires_grad_()

    def values(rate: Tensor, lam1: Tensor, lam2: Tensor) -> tuple[Tensor, Tensor]:
        model = MarkovModel((dense.matern(1, rate),))
        prior = SemiseparableLinearOperator.from_model(model, time)
        mean, covariance = condition_last(prior, lam1, lam2, 3)
        return mean, covariance.to_dense()

    assert torch.autograd.gradcheck(values, (rate, lam1, lam2))


def test_cross_covariances_and_their_transposes(dense: ModuleType) -> None:
    time = unsorted(dense)
    joint = SemiseparableLinearOperator.from_model(dense.MODELS["sum"], time)
    full = joint.to_dense()
    block = CrossCovarianceLinearOperator(joint, 3)
    close(block.to_dense(), full[6:, :6])
    close(block.mT.to_dense(), full[:6, 6:])
    close(block.mT.mT.to_dense(), full[6:, :6])
    assert type(block * 2.0) is CrossCovarianceLinearOperator
    close((block * 2.0).to_dense(), 2.0 * full[6:, :6])


def test_draws_have_the_covariance(dense: ModuleType) -> None:
    torch.manual_seed(0)
    operator = SemiseparableLinearOperator.from_model(dense.MODELS["sum"], unsorted(dense, 5))
    noisy = operator.add_diagonal(torch.tensor(0.5).double())
    for covariance in (operator, noisy):
        draws = covariance.zero_mean_mvn_samples(20_000)
        assert draws.shape == (20_000, 5)
        error = draws.T @ draws / 20_000 - covariance.to_dense()
        assert error.abs().max() < 0.1


def test_wrong_calls_are_refused(dense: ModuleType) -> None:
    model, time = dense.MODELS["matern32"], unsorted(dense)
    operator = SemiseparableLinearOperator.from_model(model, time)
    wide = MarkovModel(model.blocks, outputs=torch.eye(2).double())
    with pytest.raises(InputError, match="one readout"):
        SemiseparableLinearOperator.from_model(wide, time)
    with pytest.raises(InputError, match=r"sizes"):
        SemiseparableLinearOperator(*operator.representation(), sizes=(1,))
    with pytest.raises(InputError, match=r"\[\*b, N, d\]"):
        SemiseparableLinearOperator(*operator.representation()[:3], torch.arange(3))
    with pytest.raises(InputError, match="positive"):
        operator.add_diagonal(torch.zeros(9).double()).logdet()
    with pytest.raises(InputError, match=r"\(3, 1\)"):
        operator.add_diagonal(torch.ones(9).double()).solve(torch.ones(3, 1).double())
    with pytest.raises(InputError, match="DiagLinearOperator"):
        SemiseparablePlusDiagonalLinearOperator(DiagLinearOperator(torch.ones(9)), operator)


def test_precision_is_the_inverse_of_the_covariance(dense: ModuleType) -> None:
    model, steps = dense.MODELS["matern32"], dense.stamps(7, series=2, duplicates=False)
    precision = BlockTridiagonalLinearOperator.from_model(model, steps)
    full = dense.joint_covariance(model, steps)
    close(precision.solve(torch.eye(14).double()), full, 1e-9)
    close(precision.logdet(), -torch.linalg.slogdet(full)[1], 1e-9)
    y = torch.arange(14.0).double()
    close(precision.solve(y), full @ y, 1e-8)
    close(precision.inv_quad(y), y @ full @ y, 1e-8)
    with pytest.raises(InputError, match=r"\(3, 1\)"):
        precision.solve(torch.ones(3, 1).double())
    with pytest.raises(NotPositiveDefiniteError):
        (BlockTridiagonalLinearOperator(-precision._args[0], precision._args[1])).logdet()


def test_operators_can_be_pickled_and_copied(dense: ModuleType) -> None:
    operator = SemiseparableLinearOperator.from_model(dense.MODELS["sum"], unsorted(dense))
    steps = dense.stamps(5, duplicates=False)
    precision = BlockTridiagonalLinearOperator.from_model(dense.MODELS["matern32"], steps)
    noisy = operator.add_diagonal(torch.ones(9).double())
    noisy.logdet()
    for one in (operator, noisy, precision):
        for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
            assert type(other) is type(one)
            assert torch.equal(other.to_dense(), one.to_dense())


def test_second_derivatives_of_solves_are_refused_not_lost() -> None:
    time = torch.linspace(0, 1, 4, dtype=torch.float64)
    rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    noise = matern_noise(1) * torch.ones_like(rate)
    model = MarkovModel((CascadeBlock(1, rate, noise, stationary_cascade(1, noise)),))
    ones = torch.ones(4, 1, dtype=torch.float64)
    noisy = SemiseparableLinearOperator.from_model(model, time).add_diagonal(ones[:, 0])
    for value in (noisy.inv_quad(ones), noisy.solve(ones).sum()):
        with pytest.raises(UnsupportedError, match="create_graph"):
            torch.autograd.grad(value, rate, create_graph=True)
