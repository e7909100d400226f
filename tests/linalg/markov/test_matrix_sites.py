"""Matrix sites of several outputs as scalar sites, against dense formulas and the tensor engine."""

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError
from gpvi.linalg.markov._matrix_sites import take_apart
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.smoothing import (
    Smoothed,
    markov_log_partition,
    markov_marginals,
    markov_smooth,
)


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(value, expected.expand_as(value), rtol=tolerance, atol=tolerance)


def parts(smoothed: Smoothed) -> tuple[Tensor, ...]:
    return smoothed.log_partition, smoothed.mean, smoothed.variance, smoothed.divergence


def dense_smooth(
    dense: ModuleType, model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor
) -> Smoothed:
    full = dense.posterior(model, steps, lam1, lam2)
    T, K = lam1.shape[-2:]
    mean = full.mean.unflatten(-1, (T, K))
    blocks = full.covariance.unflatten(-1, (T, K)).unflatten(-3, (T, K))
    variance = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
    second = variance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    rows = (lam1 * mean).sum(-1) - 0.5 * (lam2 * second).sum((-2, -1))
    total = torch.zeros_like(full.log_partition).index_add(-1, steps.series, rows)
    return Smoothed(full.log_partition, mean, variance, total - full.log_partition)


def problem(dense: ModuleType, outputs: int, rows: int = 8, batch: tuple[int, ...] = ()) -> tuple:
    steps = dense.stamps(rows, seed=1, series=min(2, rows), duplicates=False)
    if rows > 6:
        steps.time[6] = steps.time[5]
    generator = torch.Generator().manual_seed(outputs)
    H = torch.randn(outputs, 4, generator=generator, dtype=torch.float64)
    return steps, H, *dense.sites(rows, batch, outputs=outputs)


def model_of(dense: ModuleType, values: Tensor, outputs: Tensor) -> MarkovModel:
    rate, variance = values.unbind(-1)
    return MarkovModel((dense.matern(1, rate, variance), dense.cosine()), outputs=outputs)


VALUES = torch.tensor([1.3, 0.7]).double()


@pytest.mark.parametrize("rows", [1, 2, 3, 60])
@pytest.mark.parametrize("outputs", [1, 2, 3, 5])
def test_everything_is_the_dense_posterior(outputs: int, rows: int, dense: ModuleType) -> None:
    steps, H, lam1, lam2 = problem(dense, outputs, rows)
    model = model_of(dense, VALUES, H)
    expected = dense_smooth(dense, model, steps, lam1, lam2)
    for engine in ("compiled", "tensor"):
        smoothed = markov_smooth(model, steps, lam1, lam2, engine=engine)
        for value, wanted in zip(parts(smoothed), parts(expected), strict=True):
            assert value.shape == wanted.shape
            close(value, wanted)
        total = markov_log_partition(model, steps, lam1, lam2, engine=engine)
        close(total, expected.log_partition)


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("kind", ["singular", "diagonal", "indefinite", "zero"])
@pytest.mark.parametrize("engine", ["compiled", "tensor"])
def test_first_derivatives_of_everything_in_everything(
    kind: str, outputs: int, engine: str, dense: ModuleType
) -> None:
    steps, H, lam1, lam2 = problem(dense, outputs)
    if kind == "diagonal":
        lam2 = torch.diag_embed(lam2.diagonal(dim1=-2, dim2=-1))
        lam2[2, 0, 0] = 0.0
    if kind == "indefinite":
        # Zeros along the diagonal: nothing to begin an elimination with.
        swap = torch.ones(outputs, outputs).double() - torch.eye(outputs).double()
        lam2 = torch.where((torch.arange(8) % 2 == 0)[:, None, None], 0.1 * swap, lam2)
    if kind == "zero":
        lam2 = torch.zeros_like(lam2)
    leaves = [VALUES, H, steps.time, lam1, lam2]
    generator = torch.Generator().manual_seed(3)
    shapes = ((2,), (8, outputs), (8, outputs, outputs), (2,))
    weights = [torch.randn(*shape, generator=generator).double() for shape in shapes]

    def gradients(use_dense: bool, chosen: slice) -> tuple[Tensor, ...]:
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        values, outputs, time, j, w = inputs
        symmetric = 0.5 * (w + w.mT)
        arguments = (model_of(dense, values, outputs), Steps(time, steps.starts), j, symmetric)
        if use_dense:
            smoothed = dense_smooth(dense, *arguments)
        else:
            smoothed = markov_smooth(*arguments, engine=engine)
        pairs = zip(weights[chosen], parts(smoothed)[chosen], strict=True)
        loss = sum((weight * v).sum() for weight, v in pairs)
        return torch.autograd.grad(loss, inputs, materialize_grads=True)

    for chosen in (slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 4)):
        for value, wanted in zip(gradients(False, chosen), gradients(True, chosen), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-8, atol=1e-10)


def test_gradcheck(dense: ModuleType) -> None:
    steps, H, lam1, lam2 = problem(dense, 2, rows=5)

    def values(
        parameters: Tensor, outputs: Tensor, time: Tensor, j: Tensor, w: Tensor
    ) -> tuple[Tensor, ...]:
        model = model_of(dense, parameters, outputs)
        sites = j, 0.5 * (w + w.mT)
        total = markov_log_partition(model, Steps(time, steps.starts), *sites, engine="compiled")
        moments = markov_marginals(model, Steps(time, steps.starts), *sites, engine="compiled")
        return total, *moments

    leaves = tuple(leaf.clone().requires_grad_() for leaf in (VALUES, H, steps.time, lam1, lam2))
    assert torch.autograd.gradcheck(values, leaves)


def test_batch_dims_are_a_loop(dense: ModuleType) -> None:
    """Parameters [L], outputs [L, K, d], stamps [G, 1, T], sites [S, 1, L, T, K] or shared."""
    _, H, lam1, lam2 = problem(dense, 2, rows=6, batch=(2, 1, 2))
    values = torch.tensor([[0.8, 1.1], [1.9, 0.6]]).double()
    outputs = torch.stack([H, 2.0 * H.flip(0)])
    time = torch.stack([dense.stamps(6, seed=s).time for s in range(3)])[:, None]
    begin = torch.tensor([0])
    model = model_of(dense, values, outputs)
    smoothed = markov_smooth(model, Steps(time, begin), lam1, lam2, engine="compiled")
    shared = markov_smooth(model, Steps(time, begin), lam1, lam2[0, 0, 0], engine="compiled")
    for s in range(2):
        for g in range(3):
            for k in range(2):
                one, alone = model_of(dense, values[k], outputs[k]), Steps(time[g, 0], begin)
                for many, w in ((smoothed, lam2[s, 0, k]), (shared, lam2[0, 0, 0])):
                    expected = markov_smooth(one, alone, lam1[s, 0, k], w, engine="compiled")
                    for value, wanted in zip(parts(many), parts(expected), strict=True):
                        close(value[s, g, k], wanted)


def test_one_output_is_a_scalar_site(dense: ModuleType) -> None:
    blocks, steps = (dense.matern(2),), dense.stamps(9)
    lam1, lam2 = dense.sites(9)
    model = MarkovModel(blocks)
    wide = MarkovModel(blocks, outputs=model.readout.unsqueeze(0))
    mean, variance = markov_marginals(model, steps, lam1, lam2, engine="compiled")
    means, variances = markov_marginals(
        wide, steps, lam1[:, None], lam2[:, None, None], engine="compiled"
    )
    close(means[:, 0], mean, 1e-14)
    close(variances[:, 0, 0], variance, 1e-14)


@pytest.mark.parametrize("complex_part", [False, True])
def test_scalar_sites_have_the_product_of_the_matrix_site(complex_part: bool) -> None:
    generator = np.random.default_rng(0)
    root = generator.normal(size=(6, 3, 2))
    w = root @ np.swapaxes(root, 1, 2)
    w[1] = 0.0
    w[2] = [[0.0, 1.0, 2.0], [1.0, 0.0, 0.5], [2.0, 0.5, 0.0]]
    w[3] = np.diag([1e8, 0.0, 1e-8])
    w[4] = [[1e-12, 1.0, 0.0], [1.0, -3.0, 0.0], [0.0, 0.0, 1.0]]
    j = generator.normal(size=(6, 3)).astype(complex if complex_part else float)
    w = w.astype(j.dtype)
    if complex_part:
        turn = generator.normal(size=(6, 3, 3))
        w, j = (
            w + 1e-30j * (turn + np.swapaxes(turn, 1, 2)),
            j + 1e-30j * generator.normal(size=(6, 3)),
        )
    H = generator.normal(size=(3, 4))
    readout, linear, precision = take_apart(H, j, w)
    size = len(linear) // 6
    readout, linear = readout.reshape(6, size, 4), linear.reshape(6, size)
    vector = np.einsum("tkd,tk->td", readout, linear)
    matrix = np.einsum("tkd,tk,tke->tde", readout, precision.reshape(6, size), readout)
    for value, wanted in ((vector, j @ H), (matrix, H.T @ w @ H)):
        np.testing.assert_allclose(value.real, wanted.real, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(value.imag * 1e30, wanted.imag * 1e30, rtol=1e-11, atol=1e-11)


def test_improper_posteriors_name_the_row(dense: ModuleType) -> None:
    steps, H, lam1, lam2 = problem(dense, 2)
    lam2[3] = -40.0 * torch.eye(2)
    for function in (markov_log_partition, markov_smooth):
        with pytest.raises(NumericalError, match="row 3"):
            function(model_of(dense, VALUES, H), steps, lam1, lam2, engine="compiled")


def test_shapes_are_checked(dense: ModuleType) -> None:
    steps, H, lam1, lam2 = problem(dense, 2)
    model = model_of(dense, VALUES, H)
    for j, w in ((lam1[:, 0], lam2), (lam1, lam1), (lam1[:5], lam2[:5]), (lam1, lam2[..., :1])):
        with pytest.raises(InputError, match="must end in"):
            markov_smooth(model, steps, j, w, engine="compiled")


def test_float32(dense: ModuleType) -> None:
    steps, H, lam1, lam2 = problem(dense, 2)
    model = model_of(dense, VALUES, H)
    expected = markov_smooth(model, steps, lam1, lam2, engine="compiled")
    smoothed = markov_smooth(model, steps, lam1.float(), lam2.float(), engine="compiled")
    for value, wanted in zip(parts(smoothed), parts(expected), strict=True):
        assert value.dtype == torch.float32
        close(value.double(), wanted, 1e-4)
