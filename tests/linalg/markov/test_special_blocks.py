"""Blocks beyond the plain cascade: transitions and noise against mpmath, starts, products."""

import pickle
from copy import deepcopy

import mpmath as mp
import pytest
import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.markov.blocks import CascadeBlock, MarkovBlock, matern_noise, stationary_cascade
from gpvi.linalg.markov.dense_blocks import KroneckerBlock, ScaledBlock
from gpvi.linalg.markov.launched import LaunchedBlock, SteadyBlock
from gpvi.linalg.markov.rational import RationalBlock
from gpvi.linalg.markov.wiener_bank import WienerBankBlock

STEPS = [1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0, 3.9, 4.1, 10.0]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def matern(order: int, rate: float, variance: float = 1.3) -> CascadeBlock:
    noise = matern_noise(order) * double(variance)[0]
    return CascadeBlock(order, double(rate)[0], noise, stationary_cascade(order, noise))


def bank(begin: str) -> WienerBankBlock:
    return WienerBankBlock(double(0.2, 1.0, 7.0), double(0.5, -1.0, 2.0), begin, double(0.0)[0])


STATIONARY = {
    "cosine": lambda: SteadyBlock.make(double(2.0)[0], double(3.0)[0]),
    "constant": lambda: SteadyBlock.make(double(2.0)[0]),
    "rbf": lambda: RationalBlock.rbf(6, double(0.8)[0]),
    "rbf10": lambda: RationalBlock.rbf(10, double(0.8)[0]),
    "scaled": lambda: ScaledBlock(matern(2, 1.5), double(3.0)[0]),
    "product": lambda: KroneckerBlock(matern(2, 1.5), matern(1, 0.7)),
    "product with cosine": lambda: KroneckerBlock(
        RationalBlock.rbf(4, double(0.8)[0]), SteadyBlock.make(double(2.0)[0], double(3.0)[0])
    ),
    "bank": lambda: bank("stationary"),
}
OTHERS = {
    "line": lambda: LaunchedBlock(
        1,
        double(1.0)[0],
        double(0.0)[0],
        torch.diag(double(0.5, 2.0)),
        damped=False,
        origin=double(0.3)[0],
        noiseless=True,
    ),
    "integrated wiener": lambda: LaunchedBlock(
        2,
        double(1.0)[0],
        double(1.7)[0],
        torch.diag(double(0.5, 2.0, 1.0)),
        damped=False,
        origin=double(-0.3)[0],
        noiseless=False,
    ),
    "bank from zero": lambda: bank("zero"),
    "increments": lambda: bank("increments"),
}
ALL = STATIONARY | OTHERS


@pytest.mark.parametrize("name", STATIONARY)
def test_stationary_covariance_is_kept(name):
    block, dt = STATIONARY[name](), double(0.0, *STEPS)
    A, P, Q = block.transition(dt), block.initial(dt[:1]), block.process_noise(dt)
    assert block.stationary
    assert (A @ P @ A.mT + Q - P).abs().max() < 1e-11 * P.abs().max()


@pytest.mark.parametrize("name", OTHERS)
def test_the_start_moves_with_the_process(name):
    block, time, dt = OTHERS[name](), double(0.4, 1.0), double(0.6)
    assert not block.stationary
    first, later = block.initial(time)
    A, Q = block.transition(dt)[0], block.process_noise(dt)[0]
    assert torch.allclose(A @ first @ A.mT + Q, later, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_steps_compose(name):
    block, dt = ALL[name](), double(0.3, 0.9, 1.2)
    A, Q = block.transition(dt), block.process_noise(dt)
    assert torch.allclose(A[1] @ A[0], A[2], rtol=1e-12, atol=1e-12)
    assert torch.allclose(A[1] @ Q[0] @ A[1].mT + Q[1], Q[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_a_step_of_length_zero_does_nothing(name):
    block = ALL[name]()
    identity = torch.eye(block.dimension, dtype=torch.float64)
    assert torch.allclose(block.transition(double(0.0))[0], identity, atol=1e-15)
    assert block.process_noise(double(0.0)).abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_shapes_gradients_and_copies(name):
    block, dt = ALL[name](), double(0.3, 0.9).requires_grad_()
    d = block.dimension
    assert block.transition(dt).shape[-3:] == block.process_noise(dt).shape[-3:] == (2, d, d)
    assert block.initial(dt.detach()).shape[-3:] == (2, d, d) and block.readout.shape[-1] == d
    total = lambda t: (block.transition(t).sum(), block.process_noise(t).sum())  # noqa: E731
    assert torch.autograd.gradcheck(total, dt)
    for copy in (deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(copy.process_noise(dt), block.process_noise(dt))


def exact_noise(F: mp.matrix, noise: mp.matrix, dt: float) -> mp.matrix:
    """Van Loan: the integral of e^Fs L L' e^F's."""
    d = F.rows
    both = mp.zeros(2 * d)
    both[:d, :d], both[:d, d:], both[d:, d:] = F * dt, noise * dt, -F.T * dt
    E = mp.expm(both)
    return E[:d, d:] * E[:d, :d].T


def largest_error(found: Tensor, exact: mp.matrix) -> float:
    """Relative to the standard deviations."""
    d = exact.rows
    pairs = [(i, j) for i in range(d) for j in range(d)]
    scale = [mp.sqrt(exact[i, i]) for i in range(d)]
    return float(max(abs(found[i, j].item() - exact[i, j]) / scale[i] / scale[j] for i, j in pairs))


@pytest.mark.parametrize("order", [4, 6, 8])
@pytest.mark.parametrize("dt", STEPS)
def test_rational_noise_keeps_its_digits(order, dt):
    block = RationalBlock.rbf(order, double(1.0)[0])
    with mp.workdps(60):
        stretch = mp.mpf(block.lengthscale.item())
        F = mp.matrix(block.drift.tolist()) / stretch
        noise = mp.zeros(order)
        noise[order - 1, order - 1] = mp.mpf(block.noise_series[0, -1, -1].item()) / stretch
        exact = exact_noise(F, noise, dt)
        assert largest_error(block.process_noise(double(dt))[0], exact) < 1e-12


@pytest.mark.parametrize("dt", STEPS)
def test_product_noise_keeps_its_digits(dt):
    left, right = matern(2, 1.5, 1.0), matern(1, 0.7, 1.0)
    found = KroneckerBlock(left, right).process_noise(double(dt))[0]
    with mp.workdps(60):

        def cascade(order: int, rate: float) -> tuple[mp.matrix, mp.matrix]:
            F, noise = mp.zeros(order + 1), mp.zeros(order + 1)
            for i in range(order + 1):
                F[i, i] = -mp.mpf(rate)
                if i < order:
                    F[i, i + 1] = mp.mpf(rate)
            noise[order, order] = mp.mpf(matern_noise(order)) * mp.mpf(rate)
            return F, noise

        parts = [cascade(2, 1.5), cascade(1, 0.7)]
        Q = [exact_noise(F, noise, dt) for F, noise in parts]
        P = [exact_noise(F, noise, 200.0) for F, noise in parts]
        d1, d2 = 3, 2
        exact = mp.zeros(d1 * d2)
        for i in range(d1 * d2):
            for j in range(d1 * d2):
                (a, b), (c, e) = divmod(i, d2), divmod(j, d2)
                kept = P[0][a, c] * P[1][b, e]
                exact[i, j] = kept - (P[0] - Q[0])[a, c] * (P[1] - Q[1])[b, e]
        assert largest_error(found, exact) < 1e-14


@pytest.mark.parametrize("dt", STEPS)
def test_bank_noise_keeps_its_digits(dt):
    block = bank("zero")
    found = block.process_noise(double(dt))[0]
    rates = [mp.mpf(rate) for rate in block.rates.tolist()]
    with mp.workdps(60):
        exact = mp.matrix(3)
        for i, a in enumerate(rates):
            for j, b in enumerate(rates):
                exact[i, j] = 2 * mp.sqrt(a * b) * (1 - mp.exp(-(a + b) * mp.mpf(dt))) / (a + b)
        assert largest_error(found, exact) < 1e-14


def test_noise_of_a_rational_process_is_positive_on_fine_grids():
    Q = RationalBlock.rbf(6, double(1.0)[0]).process_noise(double(1e-4, 1e-2, 0.1))
    deviation = Q.diagonal(dim1=-2, dim2=-1).sqrt()
    scaled = Q / deviation.unsqueeze(-1) / deviation.unsqueeze(-2)
    assert torch.linalg.eigvalsh(scaled).min() > 0


def test_batches_broadcast():
    variance, time = torch.ones(3, 1, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    blocks: list[MarkovBlock] = [
        SteadyBlock.make(variance, variance),
        ScaledBlock(matern(1, 1.0), variance),
        KroneckerBlock(SteadyBlock.make(variance), RationalBlock.rbf(2, variance)),
        WienerBankBlock(
            double(1.0, 2.0), torch.ones(3, 1, 2).double(), "increments", double(0.0)[0]
        ),
    ]
    for block in blocks:
        d = block.dimension
        assert block.batch_shape == (3, 1) and block.readout.shape == (3, 1, d)
        for matrix in (block.transition(time), block.process_noise(time), block.initial(time)):
            assert torch.broadcast_shapes(matrix.shape, (3, 2, 4, d, d)) == (3, 2, 4, d, d)


def test_errors():
    line, wiener = OTHERS["line"](), OTHERS["integrated wiener"]()
    assert line.initial(double(-5.0)).isfinite().all()
    with pytest.raises(InputError, match=r"begins at -0.5, before the origin -0.3"):
        wiener.initial(double(-0.5))
    with pytest.raises(InputError, match="move the origin"):
        bank("zero").initial(double(-0.5))
    with pytest.raises(InputError, match="stationary factors; LaunchedBlock"):
        KroneckerBlock(line, line)
