"""Prior paths by scans against loops."""

from types import ModuleType

import pytest
import torch

from gpvi.linalg.markov.innovations import innovation_factors, run_affine, segment_products
from gpvi.linalg.markov.model import MarkovModel


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_factors_of_every_model(markov_model: MarkovModel, dense: ModuleType) -> None:
    steps = dense.stamps(12, series=2)
    A, C, exists = innovation_factors(markov_model, steps)
    Q = markov_model.process_noise(steps.dt).clone()
    Q[..., steps.starts, :, :] = markov_model.initial(steps.first)
    torch.testing.assert_close(C @ C.mT, Q, rtol=1e-11, atol=1e-14)
    assert not A[..., steps.starts, :, :].any()
    still = steps.dt == 0
    still[steps.starts] = False
    assert still.any() and not exists[..., still, :].any()
    assert torch.equal(exists, C.abs().sum(-2) > 0)
    assert exists[..., steps.starts, :].all()


def test_paths_have_the_covariance_of_the_prior(
    markov_model: MarkovModel, dense: ModuleType
) -> None:
    rows, d, batch = 6, markov_model.dimension, markov_model.batch_shape
    steps = dense.stamps(rows, series=2)
    A, C, _ = innovation_factors(markov_model, steps)
    units = torch.eye(rows * d).double().view(rows * d, *(1,) * len(batch), rows, d)
    paths = run_affine(A, (C @ units.unsqueeze(-1)).squeeze(-1)).flatten(-2).movedim(0, -1)
    expected = dense.joint_covariance(markov_model, steps)
    torch.testing.assert_close(paths @ paths.mT, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_affine_recursion(rows: int) -> None:
    A, b = 0.5 * randn(3, rows, 2, 2), randn(4, 3, rows, 2, seed=1)
    state, expected = torch.zeros(4, 3, 2).double(), []
    for k in range(rows):
        state = (A[:, k] @ state.unsqueeze(-1)).squeeze(-1) + b[..., k, :]
        expected.append(state)
    torch.testing.assert_close(run_affine(A, b), torch.stack(expected, -2))


def test_gradient_of_the_affine_recursion() -> None:
    A, b = randn(5, 2, 2).requires_grad_(), randn(2, 5, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(run_affine, (A, b))


@pytest.mark.parametrize("marked", [(), (0,), (3,), (0, 1, 4), (6,), tuple(range(7))])
def test_segment_products(marked: tuple[int, ...]) -> None:
    matrices = randn(2, 7, 3, 3)
    ends = torch.zeros(7, dtype=torch.bool)
    ends[list(marked)] = True
    product, expected = None, []
    for k in range(7):
        product = matrices[:, k] if product is None else matrices[:, k] @ product
        expected.append(product)
        product = None if ends[k] else product
    torch.testing.assert_close(segment_products(matrices, ends), torch.stack(expected, 1))


def test_segment_products_with_ends_per_batch_and_gradients() -> None:
    matrices = randn(2, 5, 2, 2).requires_grad_()
    ends = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]], dtype=torch.bool)
    both = segment_products(matrices, ends)
    for b in range(2):
        torch.testing.assert_close(both[b], segment_products(matrices[b], ends[b]))
    assert torch.autograd.gradcheck(lambda m: segment_products(m, ends), (matrices,))
