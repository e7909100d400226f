"""Compiled draws are those of the scan, which has tests of its moments."""

import pytest
import torch

from gpvi.exceptions import InputError, NumericalError
from gpvi.kernels import as_state_space, parse_kernel
from gpvi.linalg import MarkovModel, Steps, markov_marginals, markov_sample

KERNELS = [
    "matern12",
    "matern52",
    "matern32 + periodic",
    "linear + matern12",
    "matern32 * matern12",
]


def problem(kernel: str, rows: int = 23, batch: tuple[int, ...] = ()) -> tuple:
    generator = torch.Generator().manual_seed(rows)
    t = torch.rand(rows, dtype=torch.float64, generator=generator).sort().values * 4
    t[rows // 2] = t[rows // 2 - 1]
    starts = [0] if rows < 6 else [0, rows // 3]
    t[starts[-1] :] -= t[starts[-1]].item() * (len(starts) - 1)
    steps = Steps(t, torch.tensor(starts))
    module = parse_kernel(kernel, 1, batch_shape=torch.Size(batch))
    model = as_state_space(module).model(t.unsqueeze(-1))
    lam2 = torch.rand(*batch, rows, dtype=torch.float64, generator=generator) * 4
    lam2[..., rows // 4] = 0.0
    lam1 = torch.randn(*batch, rows, dtype=torch.float64, generator=generator) * (lam2 > 0)
    shape = (3, *batch, rows, model.dimension)
    return model, steps, lam1, lam2, torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("rows", [1, 2, 3, 57])
@pytest.mark.parametrize("kernel", KERNELS)
def test_engines_draw_the_same_paths(kernel, rows):
    arguments = problem(kernel, rows)
    with torch.no_grad():
        compiled = markov_sample(*arguments, engine="compiled")
        scanned = markov_sample(*arguments, engine="tensor")
    torch.testing.assert_close(compiled, scanned, rtol=1e-8, atol=1e-8)


def test_batches_and_single_precision():
    model, steps, lam1, lam2, normals = problem("matern32", batch=(2,))
    normals = torch.stack([normals, 2 * normals], 1)
    with torch.no_grad():
        compiled = markov_sample(model, steps, lam1, lam2, normals)
        scanned = markov_sample(model, steps, lam1, lam2, normals, engine="tensor")
        single = markov_sample(model, steps, lam1.float(), lam2.float(), normals.float())
    assert compiled.shape == (3, 2, 2, 23, 2) and single.dtype == torch.float32
    torch.testing.assert_close(compiled, scanned, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(single.double(), compiled, rtol=1e-4, atol=1e-4)


def test_zeros_give_the_mean():
    model, steps, lam1, lam2, normals = problem("matern52")
    mean, _ = markov_marginals(model, steps, lam1, lam2)
    with torch.no_grad():
        path = markov_sample(model, steps, lam1, lam2, 0.0 * normals[:1])
    torch.testing.assert_close(path[0] @ model.readout.detach(), mean.detach())


def test_gradients_are_recorded_by_the_scan():
    arguments = problem("matern32")
    assert markov_sample(*arguments).requires_grad
    with torch.no_grad():
        assert not markov_sample(*arguments).requires_grad


def test_refusals():
    model, steps, lam1, lam2, normals = problem("matern32")
    with pytest.raises(InputError, match="normals has shape"):
        markov_sample(model, steps, lam1, lam2, normals[..., :1])
    with torch.no_grad(), pytest.raises(NumericalError, match="improper"):
        markov_sample(model, steps, lam1, lam2 - 100.0, normals)
    outputs = MarkovModel(model.blocks, outputs=torch.eye(2).double())
    matrices = lam2[..., None, None] * torch.eye(2).double()
    with pytest.raises(InputError, match="one readout per row"):
        vectors = lam1.unsqueeze(-1).expand(-1, 2)
        markov_sample(outputs, steps, vectors, matrices, normals, engine="compiled")
