"""The tensor engine against dense formulas."""

import copy
import pickle
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError
from gpvi.linalg.markov.blocks import CascadeBlock, matern_noise, stationary_cascade
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.tensor_engine import (
    tensor_log_partition,
    tensor_marginals,
    tensor_sample,
    tensor_state_path,
)


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(value, expected.expand_as(value), rtol=tolerance, atol=tolerance)


def diagonal_blocks(covariance: Tensor, size: int, lag: int = 0) -> Tensor:
    """Blocks (k + lag, k) of a joint covariance, shape [*b, T - lag, size, size]."""
    rows = covariance.shape[-1] // size
    blocks = covariance.unflatten(-1, (rows, size)).unflatten(-3, (rows, size)).movedim(-2, -3)
    k = torch.arange(rows - lag)
    return blocks[..., k + lag, k, :, :]


def states(value: Tensor, rows: int) -> Tensor:
    return value.unflatten(-1, (rows, -1))


@pytest.mark.parametrize("rows", [1, 2, 3, 257])
def test_everything_is_the_dense_posterior(
    markov_model: MarkovModel, rows: int, dense: ModuleType
) -> None:
    steps = dense.stamps(rows, series=min(rows, 3))
    site = dense.sites(rows, markov_model.batch_shape)
    expected = dense.posterior(markov_model, steps, *site)
    path = tensor_state_path(markov_model, steps, *site)
    d = markov_model.dimension
    close(path.smoothed_mean(), states(expected.state_mean, rows))
    close(path.smoothed_covariance(), diagonal_blocks(expected.state_covariance, d))
    lag = path.lag_one(markov_model, steps, site[1])
    close(lag, diagonal_blocks(expected.state_covariance, d, 1))
    assert not lag[..., steps.starts[1:] - 1, :, :].any()
    mean, variance = tensor_marginals(markov_model, steps, *site)
    close(mean, expected.mean)
    close(variance, expected.covariance.diagonal(dim1=-2, dim2=-1))
    total = tensor_log_partition(markov_model, steps, *site)
    assert total.shape == (*markov_model.batch_shape, steps.num_series)
    close(total, expected.log_partition)


def test_predicted_and_filtered_moments_use_earlier_sites_only(dense: ModuleType) -> None:
    model, steps = dense.MODELS["sum"], dense.stamps(12)
    lam1, lam2 = dense.sites(12)
    path = tensor_state_path(model, steps, lam1, lam2)
    mean, covariance = path.filtered(model, lam1, lam2)
    d = model.dimension
    for k in (0, 5, 11):
        for last, m, P in (
            (k, path.mean[k], path.covariance[k]),
            (k + 1, mean[k], covariance[k]),
        ):
            seen = (torch.arange(12) < last).double()
            expected = dense.posterior(model, steps, lam1 * seen, lam2 * seen)
            close(m, states(expected.state_mean, 12)[k])
            close(P, diagonal_blocks(expected.state_covariance, d)[k])


@pytest.mark.parametrize("outputs", [1, 2, 3, 5])
def test_matrix_sites(outputs: int, dense: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    blocks = (dense.matern(1), dense.cosine())
    H = torch.randn(2, outputs, 4, generator=generator, dtype=torch.float64)
    model, steps = MarkovModel(blocks, outputs=H), dense.stamps(20, series=2)
    site = dense.sites(20, (2,), outputs=outputs)
    expected = dense.posterior(model, steps, *site)
    mean, covariance = tensor_marginals(model, steps, *site)
    close(mean, states(expected.mean, 20), 1e-11)
    close(covariance, diagonal_blocks(expected.covariance, outputs), 1e-11)
    close(tensor_log_partition(model, steps, *site), expected.log_partition, 1e-11)
    lag = tensor_state_path(model, steps, *site).lag_one(model, steps, site[1])
    close(lag, diagonal_blocks(expected.state_covariance, 4, 1), 1e-11)
    draw = tensor_sample(model, steps, *site, torch.zeros(1, 2, 20, 4).double())
    close(draw[0], states(expected.state_mean, 20), 1e-11)


def test_one_output_is_a_scalar_site(dense: ModuleType) -> None:
    blocks, steps = (dense.matern(2),), dense.stamps(9)
    lam1, lam2 = dense.sites(9)
    model = MarkovModel(blocks)
    wide = MarkovModel(blocks, outputs=model.readout.unsqueeze(0))
    mean, variance = tensor_marginals(model, steps, lam1, lam2)
    means, variances = tensor_marginals(wide, steps, lam1[:, None], lam2[:, None, None])
    close(means[:, 0], mean, 1e-15)
    close(variances[:, 0, 0], variance, 1e-15)


def test_a_readout_per_row_and_stamps_with_batch_dims(dense: ModuleType) -> None:
    generator = torch.Generator().manual_seed(2)
    readouts = torch.randn(15, 2, generator=generator, dtype=torch.float64)
    model = MarkovModel((dense.matern(1),), rows=readouts)
    time = torch.stack([dense.stamps(15, seed=s).time for s in range(3)])
    starts = torch.tensor([0])
    site = dense.sites(15, (3,))
    mean, variance = tensor_marginals(model, Steps(time, starts), *site)
    for g in range(3):
        alone = Steps(time[g], starts)
        expected = dense.posterior(model, alone, site[0][g], site[1][g])
        close(mean[g], expected.mean)
        close(variance[g], expected.covariance.diagonal())


def test_flat_series_are_series_one_by_one(dense: ModuleType) -> None:
    model, steps = dense.MODELS["wiener"], dense.stamps(30, series=4)
    lam1, lam2 = dense.sites(30)
    mean, _ = tensor_marginals(model, steps, lam1, lam2)
    totals = tensor_log_partition(model, steps, lam1, lam2)
    ends = [*steps.starts.tolist(), 30]
    for g in range(4):
        rows = slice(ends[g], ends[g + 1])
        alone = Steps.single(steps.time[rows])
        close(mean[rows], tensor_marginals(model, alone, lam1[rows], lam2[rows])[0])
        close(totals[g], tensor_log_partition(model, alone, lam1[rows], lam2[rows])[0])


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("step", [1e-2, 1e-4])
def test_fine_grids(order: int, step: float, dense: ModuleType) -> None:
    model = MarkovModel((dense.matern(order, 1.0),))
    steps = Steps.single(step * torch.arange(200).double())
    lam1, lam2 = dense.sites(200)
    expected = dense.posterior(model, steps, lam1, lam2)
    mean, variance = tensor_marginals(model, steps, lam1, lam2)
    close(mean, expected.mean, 1e-11)
    close(variance, expected.covariance.diagonal(), 1e-12)
    close(tensor_log_partition(model, steps, lam1, lam2), expected.log_partition, 1e-11)


@pytest.mark.parametrize("order", [1, 2])
def test_float32(order: int, dense: ModuleType) -> None:
    steps = Steps.single(0.01 * torch.arange(300).double())
    site = dense.sites(300)
    model = MarkovModel((dense.matern(order, 1.0),))
    expected = tensor_marginals(model, steps, *site)
    total = tensor_log_partition(model, steps, *site)
    single = MarkovModel((dense.matern(order, 1.0, dtype=torch.float32),))
    short = Steps.single(steps.time.float())
    site = (site[0].float(), site[1].float())
    mean, variance = tensor_marginals(single, short, *site)
    assert mean.dtype == variance.dtype == torch.float32
    scale = expected[1].sqrt()
    assert ((mean.double() - expected[0]) / scale).abs().max() < 2e-4
    assert (variance.double() / expected[1] - 1.0).abs().max() < 2e-4
    value = tensor_log_partition(single, short, *site)
    assert value.dtype == torch.float32
    assert (value.double() - total).abs() < 1e-3
    draw = tensor_sample(single, short, *site, torch.zeros(1, 300, order + 1))
    assert ((draw[0, :, 0].double() - expected[0]) / scale).abs().max() < 2e-4


def test_precise_sites_keep_their_small_variances(dense: ModuleType) -> None:
    model, steps = MarkovModel((dense.matern(1),)), dense.stamps(40)
    values = torch.sin(steps.time)
    lam2 = torch.full((40,), 1e8, dtype=torch.float64)
    mean, variance = tensor_marginals(model, steps, lam2 * values, lam2)
    close(mean, values, 1e-6)
    # Rows that share a stamp share a state; nothing else tells about a value more than its site.
    repeats = (steps.time[:, None] == steps.time[None, :]).sum(-1)
    assert ((variance * lam2 * repeats - 1.0).abs() < 1e-3).all()


@pytest.mark.parametrize("step", [1e-1, 1e-3])
def test_gradient_on_a_fine_grid(step: float, dense: ModuleType) -> None:
    steps = Steps.single(step * torch.arange(60).double())
    lam1, lam2 = dense.sites(60)

    def slopes(use_engine: bool) -> list[float]:
        rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        variance = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        model = MarkovModel((dense.matern(2, rate, variance),))
        if use_engine:
            total = tensor_log_partition(model, steps, lam1, lam2)
        else:
            total = dense.posterior(model, steps, lam1, lam2).log_partition
        return [float(g) for g in torch.autograd.grad(total.sum(), (rate, variance))]

    for value, expected in zip(slopes(True), slopes(False), strict=True):
        assert value == pytest.approx(expected, rel=1e-9)


def adjustable(kind: str, dense: ModuleType, parameters: tuple[Tensor, ...]) -> MarkovModel:
    rate, variance, frequency = parameters
    blocks = (dense.matern(1, rate, variance, frequency), dense.matern(0, 2.0 * rate, variance))
    if kind == "scalar":
        return MarkovModel(blocks)
    generator = torch.Generator().manual_seed(4)
    if kind == "rows":
        return MarkovModel(blocks, rows=torch.randn(6, 5, generator=generator).double() * variance)
    H = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return MarkovModel(blocks, outputs=H * variance)


def small_problem(kind: str, dense: ModuleType) -> tuple[Steps, tuple[Tensor, ...]]:
    steps = dense.stamps(6, seed=3, series=2)
    site = dense.sites(6, seed=5, outputs=2 if kind == "outputs" else None)
    values = [torch.tensor(v, dtype=torch.float64) for v in (1.1, 0.7, 2.0)]
    return steps, tuple(v.requires_grad_() for v in (*values, steps.time, *site))


@pytest.mark.parametrize("kind", ["scalar", "rows", "outputs"])
def test_adjoint_of_the_log_partition(kind: str, dense: ModuleType) -> None:
    steps, arguments = small_problem(kind, dense)

    def value(*tensors: Tensor) -> Tensor:
        model = adjustable(kind, dense, tensors[:3])
        lam2 = tensors[5] if kind != "outputs" else 0.5 * (tensors[5] + tensors[5].mT)
        return tensor_log_partition(model, Steps(tensors[3], steps.starts), tensors[4], lam2)

    # At a step of length zero there are only one-sided derivatives.
    time = steps.time.detach() + 0.1 * torch.arange(6)
    arguments = (*arguments[:3], time.requires_grad_(), *arguments[4:])
    assert torch.autograd.gradcheck(value, arguments)
    assert torch.autograd.gradgradcheck(value, arguments, fast_mode=True)


def test_only_what_is_wanted_gets_a_gradient(dense: ModuleType) -> None:
    model, steps = dense.MODELS["matern32"], dense.stamps(5)
    lam1, lam2 = dense.sites(5)
    lam1.requires_grad_()
    total = tensor_log_partition(model, steps, lam1, lam2)
    total.sum().backward()
    close(lam1.grad, tensor_marginals(model, steps, lam1.detach(), lam2)[0])
    assert not tensor_log_partition(model, steps, lam1.detach(), lam2).requires_grad


@pytest.mark.parametrize("kind", ["scalar", "outputs"])
def test_gradients_of_marginals_and_samples(kind: str, dense: ModuleType) -> None:
    steps, arguments = small_problem(kind, dense)
    arguments = arguments[:3] + arguments[4:]
    normals = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(7)).double()

    def values(*tensors: Tensor) -> tuple[Tensor, ...]:
        model = adjustable(kind, dense, tensors[:3])
        lam2 = tensors[4] if kind != "outputs" else 0.5 * (tensors[4] + tensors[4].mT)
        mean, variance = tensor_marginals(model, steps, tensors[3], lam2)
        return mean, variance, tensor_sample(model, steps, tensors[3], lam2, normals)

    assert torch.autograd.gradcheck(values, arguments)


def test_gradient_of_the_path_on_steps_of_length_zero(dense: ModuleType) -> None:
    rate = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    frequency = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    turning = CascadeBlock(
        0, rate.detach(), 0.0 * rate.detach(), torch.eye(2).double(), frequency, damped=False
    )
    model = MarkovModel((dense.matern(2, rate), turning))
    steps = Steps.single(torch.tensor([0.0, 0.0, 0.5, 0.5, 0.9]).double())
    normals = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    draw = tensor_sample(model, steps, *dense.sites(5), normals)
    close(draw[:, 1], draw[:, 0])
    path = tensor_state_path(model, steps, *dense.sites(5))
    loss = draw.sum() + path.smoothed_covariance().sum()
    for slope in torch.autograd.grad(loss, (rate, frequency)):
        assert torch.isfinite(slope)


def test_samples_have_the_dense_moments(markov_model: MarkovModel, dense: ModuleType) -> None:
    rows, d, batch = 7, markov_model.dimension, markov_model.batch_shape
    steps, site = dense.stamps(rows, seed=1, series=2), dense.sites(rows, markov_model.batch_shape)
    expected = dense.posterior(markov_model, steps, *site)
    # A path is affine in the normals: its values at the unit vectors are a root of the covariance.
    units = torch.eye(rows * d).double().view(rows * d, *(1,) * len(batch), rows, d)
    units = torch.cat([torch.zeros_like(units[:1]), units]).expand(-1, *batch, rows, d)
    draw = tensor_sample(markov_model, steps, *site, units).flatten(-2)
    close(draw[0], expected.state_mean)
    root = (draw[1:] - draw[0]).movedim(0, -1)
    close(root @ root.mT, expected.state_covariance)


def test_negative_precisions(dense: ModuleType) -> None:
    model, steps = dense.MODELS["matern32"], dense.stamps(25)
    lam1, lam2 = dense.sites(25)
    lam2 = lam2 - 0.2
    expected = dense.posterior(model, steps, lam1, lam2)
    mean, variance = tensor_marginals(model, steps, lam1, lam2)
    close(mean, expected.mean, 1e-11)
    close(variance, expected.covariance.diagonal(), 1e-11)
    draw = tensor_sample(model, steps, lam1, lam2, torch.zeros(1, 25, 2).double())
    close(draw[0, :, 0], expected.mean, 1e-11)
    close(tensor_log_partition(model, steps, lam1, lam2), expected.log_partition, 1e-11)


def test_samples_need_a_proper_posterior_and_nothing_more(dense: ModuleType) -> None:
    # Improper up to row 0, proper with row 1, which shares the state.
    model, steps = dense.MODELS["matern12"], Steps.single(torch.tensor([0.0, 0.0]).double())
    lam1, lam2 = torch.tensor([1.0, 2.0]).double(), torch.tensor([-3.0, 5.0]).double()
    expected = dense.posterior(model, steps, lam1, lam2)
    draw = tensor_sample(model, steps, lam1, lam2, torch.zeros(1, 2, 1).double())
    close(draw[0, :, 0], expected.mean)
    with pytest.raises(NumericalError, match="row 0"):
        tensor_marginals(model, steps, lam1, lam2)
    with pytest.raises(NumericalError, match="row 0"):
        tensor_sample(model, steps, lam1, -lam2, torch.zeros(1, 2, 1).double())


@pytest.mark.parametrize("value", [-4.0, float("nan")])
def test_improper_sites_are_refused(value: float, dense: ModuleType) -> None:
    model, steps = dense.MODELS["batch"], dense.stamps(6, duplicates=False)
    lam1, lam2 = dense.sites(6, (2, 3))
    lam2[1, 2, 4] = value
    for function in (tensor_marginals, tensor_log_partition, tensor_state_path):
        with pytest.raises(NumericalError, match=r"row 4 of batch \(1, 2\)"):
            function(model, steps, lam1, lam2)


@pytest.mark.parametrize("value", [-40.0, float("nan")])
def test_improper_matrix_sites_are_refused(value: float, dense: ModuleType) -> None:
    H = torch.eye(2).double()
    model, steps = MarkovModel((dense.matern(1),), outputs=H), dense.stamps(4, duplicates=False)
    lam1, lam2 = dense.sites(4, outputs=2)
    # Two negative directions: the determinant alone would not show it.
    lam2[2] = value * torch.eye(2)
    with pytest.raises(NumericalError, match="row 2"):
        tensor_log_partition(model, steps, lam1, lam2)


def test_shapes_are_checked(dense: ModuleType) -> None:
    model, steps = dense.MODELS["matern32"], dense.stamps(4)
    lam1, lam2 = dense.sites(4)
    with pytest.raises(InputError, match=r"\(3,\)"):
        tensor_marginals(model, steps, lam1[:3], lam2)
    with pytest.raises(InputError, match=r"\(4,\)"):
        wide = MarkovModel(model.blocks, outputs=torch.eye(2).double())
        tensor_log_partition(wide, steps, lam1, lam2)
    with pytest.raises(InputError, match="3 readouts for 4 rows"):
        uneven = MarkovModel(model.blocks, rows=torch.ones(3, 2).double())
        tensor_marginals(uneven, steps, lam1, lam2)
    with pytest.raises(InputError, match=r"\(4, 2\)"):
        tensor_sample(model, steps, lam1, lam2, torch.zeros(4, 2).double())


def test_a_path_can_be_pickled_and_copied(dense: ModuleType) -> None:
    path = tensor_state_path(dense.MODELS["sum"], dense.stamps(5), *dense.sites(5))
    for other in (pickle.loads(pickle.dumps(path)), copy.deepcopy(path)):
        assert torch.equal(other.smoothed_mean(), path.smoothed_mean())


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    order=st.integers(0, 3),
    rate=st.floats(1e-2, 1e2),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_sums_of_increments_and_monotone_variances(
    rows: int, order: int, rate: float, seed: int, data: st.DataObject
) -> None:
    """Sites shrink the variance, and the log-normaliser is the one without a site plus its part."""
    generator = torch.Generator().manual_seed(seed)
    noise = matern_noise(order) * torch.ones((), dtype=torch.float64)
    block = CascadeBlock(
        order, rate * torch.ones_like(noise), noise, stationary_cascade(order, noise)
    )
    model = MarkovModel((block,))
    steps = Steps.single(torch.rand(rows, generator=generator).double().cumsum(0))
    lam1 = torch.randn(rows, generator=generator).double()
    lam2 = 3.0 * torch.rand(rows, generator=generator).double()
    mean, variance = tensor_marginals(model, steps, lam1, lam2)
    assert bool((variance > 0).all()) and bool((variance <= 1.0 + 1e-12).all())
    k = data.draw(st.integers(0, rows - 1))
    without = torch.ones(rows).double()
    without[k] = 0.0
    m, v = (x[k] for x in tensor_marginals(model, steps, lam1 * without, lam2 * without))
    D = 1.0 + lam2[k] * v
    part = (lam1[k] * m + 0.5 * (lam1[k] ** 2 * v - lam2[k] * m**2)) / D - 0.5 * D.log()
    rest = tensor_log_partition(model, steps, lam1 * without, lam2 * without)
    close(tensor_log_partition(model, steps, lam1, lam2), rest + part, 1e-11)
    close(mean[k], (m + lam1[k] * v) / D, 1e-11)
    close(variance[k], v / D, 1e-11)
