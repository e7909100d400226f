"""Associative scans against loops."""

import pytest
import torch

from gpvi.linalg.markov.scan import affine, associative_scan, congruence


def matrices(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows(elements: tuple[torch.Tensor, ...], k: int) -> tuple[torch.Tensor, ...]:
    return tuple(x[..., k : k + 1, :, :] for x in elements)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9, 31])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["affine", "congruence"])
def test_scan_is_the_loop(size: int, reverse: bool, kind: str) -> None:
    combine = affine if kind == "affine" else congruence
    # Samples share the matrices of an affine map: batch dims differ between the tensors.
    elements = (matrices(3, size, 2, 2), matrices(4, 3, size, 2, 1, seed=1))
    if kind == "congruence":
        elements = (elements[0], elements[1][0], matrices(3, size, 2, 2, seed=2))
    order = range(size - 1, -1, -1) if reverse else range(size)
    products: dict[int, tuple[torch.Tensor, ...]] = {}
    for k in order:
        current = rows(elements, k)
        if products and reverse:
            current = combine(current, products[k + 1])
        elif products:
            current = combine(products[k - 1], current)
        products[k] = current
    scanned = associative_scan(combine, elements, reverse)
    for x, element in zip(scanned, elements, strict=True):
        assert x.shape == element.shape
    for k in range(size):
        for x, expected in zip(rows(scanned, k), products[k], strict=True):
            torch.testing.assert_close(x, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    numbers = torch.ones(5, 1, 1, dtype=dtype)
    (sums,) = associative_scan(lambda a, b: (a[0] + b[0],), (numbers,))
    assert sums.dtype == dtype
    assert sums.flatten().tolist() == [1, 2, 3, 4, 5]


def test_order_of_the_factors_matters() -> None:
    Phi = matrices(6, 3, 3)
    (scanned,) = associative_scan(lambda a, b: (b[0] @ a[0],), (Phi,))
    torch.testing.assert_close(scanned[2], Phi[2] @ Phi[1] @ Phi[0])


def test_gradient_of_an_affine_scan() -> None:
    Phi, h = matrices(5, 2, 2).requires_grad_(), matrices(2, 5, 2, 1, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: associative_scan(affine, (a, b)), (Phi, h))
