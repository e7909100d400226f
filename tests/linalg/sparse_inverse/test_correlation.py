"""Neighbours by correlation: exact on small sets, nearly exact on large ones."""

from collections.abc import Callable

import pytest
import torch
from gpytorch.kernels import PeriodicKernel
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.linalg.sparse_inverse import correlation as module
from gpvi.linalg.sparse_inverse.correlation import correlation_neighbors
from gpvi.linalg.sparse_inverse.neighbors import earlier_neighbors
from gpvi.linalg.sparse_inverse.ordering import maximin_order

Correlation = Callable[[Tensor, Tensor], Tensor]


def uniform(M: int, D: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.rand(M, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x[maximin_order(x)].to(dtype)


def rbf(x: Tensor) -> Correlation:
    return lambda i, j: (-0.5 * ((x[i] - x[j]) / 0.3).square().sum(-1)).exp()


def periodic(x: Tensor) -> Correlation:
    sine = 10.0 * torch.pi
    return lambda i, j: (-8.0 * (sine * (x[i] - x[j]) / 3).sin().square().sum(-1)).exp()


def gibbs(x: Tensor) -> Correlation:
    """Squared-exponential with a lengthscale that varies tenfold over the inputs."""
    scale = (2.0 * (12.0 * x[:, 0]).sin() - 2.0).exp()

    def function(i: Tensor, j: Tensor) -> Tensor:
        sum_ = scale[i].square() + scale[j].square()
        distance = (x[i] - x[j]).square().sum(-1)
        return (2.0 * scale[i] * scale[j] / sum_) ** (x.shape[1] / 2) * (-distance / sum_).exp()

    return function


def oscillating(x: Tensor) -> Correlation:
    """Correlations of both signs."""

    def function(i: Tensor, j: Tensor) -> Tensor:
        difference = x[i] - x[j]
        return (30.0 * difference[:, 0]).cos() * (-2.0 * difference.square().sum(-1)).exp()

    return function


def product(x: Tensor) -> Correlation:
    """The linear kernel: no separation but the angle."""
    unit = x / x.norm(dim=-1, keepdim=True)
    return lambda i, j: (unit[i] * unit[j]).sum(-1)


KERNELS = {
    "rbf": rbf,
    "periodic": periodic,
    "gibbs": gibbs,
    "oscillating": oscillating,
    "product": product,
}


def brute_force(correlation: Correlation, M: int, m: int, first: int = 0) -> Tensor:
    out = torch.full((M - first, m), -1, dtype=torch.int32)
    for i in range(first, M):
        j = torch.arange(i)
        values = correlation(torch.full_like(j, i), j).abs().clamp_max(1.0)
        found = values.sort(descending=True, stable=True).indices[:m].sort().values
        out[i - first, : len(found)] = found.int()
    return out


def recall(found: Tensor, expected: Tensor) -> float:
    """Share of the true neighbours that were found."""
    hits = (found.unsqueeze(-1) == expected.unsqueeze(-2)).any(-2) & (expected >= 0)
    return float(hits.sum() / (expected >= 0).sum())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("first", [0, 150, 200])
def test_small_sets_are_exact(kernel: str, first: int) -> None:
    x = uniform(200, 2)
    correlation = KERNELS[kernel](x)
    found = correlation_neighbors(correlation, x, 7, first)
    assert found.dtype == torch.int32
    assert torch.equal(found, brute_force(correlation, 200, 7, first))


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x = uniform(200, 2)
    expected = correlation_neighbors(gibbs(x), x, 7, 20)
    monkeypatch.setattr(module, "_CHUNK_PAIRS", 900)
    assert torch.equal(correlation_neighbors(gibbs(x), x, 7, 20), expected)


def test_isotropic_correlations_give_the_nearest_points() -> None:
    x = uniform(300, 2)
    assert torch.equal(correlation_neighbors(rbf(x), x, 9), earlier_neighbors(x, 9))


def test_ties_and_padding() -> None:
    x = uniform(6, 1)
    found = correlation_neighbors(lambda i, j: torch.full(i.shape, -0.5), x, 3)
    assert found[:3].tolist() == [[-1] * 3, [0, -1, -1], [0, 1, -1]]
    assert (found[3:] == torch.tensor([0, 1, 2])).all()
    assert correlation_neighbors(rbf(x[:2]), x[:2], 4).tolist() == [[-1] * 4, [0, -1, -1, -1]]
    assert correlation_neighbors(rbf(x[:1]), x[:1], 2).tolist() == [[-1, -1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kernel", KERNELS)
def test_recall_of_large_sets(
    kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = uniform(3000, 2)
    expected = brute_force(KERNELS[kernel](x), 3000, 15, 1000)
    monkeypatch.setattr(module, "_EXACT_PAIRS", 0)
    x = x.to(dtype)
    found = correlation_neighbors(KERNELS[kernel](x), x, 15, 1000)
    assert recall(found, expected) > 0.95
    if kernel in ("periodic", "gibbs", "oscillating", "product"):
        assert recall(earlier_neighbors(x, 15, 1000), expected) < 0.9
    later = found[:, 1:] >= 0
    assert bool((found.diff(dim=-1)[later] > 0).all())
    assert bool((found < torch.arange(1000, 3000).unsqueeze(-1)).all())


def test_large_sets_with_more_neighbours_than_points(monkeypatch: pytest.MonkeyPatch) -> None:
    x = uniform(30, 2)
    expected = correlation_neighbors(gibbs(x), x, 40)
    monkeypatch.setattr(module, "_EXACT_PAIRS", 0)
    assert torch.equal(correlation_neighbors(gibbs(x), x, 40), expected)


def test_a_large_set_by_itself() -> None:
    x = uniform(5000, 1)
    found = correlation_neighbors(periodic(x), x, 10)
    assert recall(found[4800:], brute_force(periodic(x), 5000, 10, 4800)) > 0.99


def test_a_kernel_with_parameters() -> None:
    x = uniform(50, 1)
    kernel = PeriodicKernel().double()
    kernel.period_length = 0.3

    def correlation(i: Tensor, j: Tensor) -> Tensor:
        return kernel(x[i], x[j], diag=True)

    found = correlation_neighbors(correlation, x, 4)
    assert not found.requires_grad
    assert torch.equal(found, brute_force(correlation, 50, 4))


@pytest.mark.gpu
def test_results_go_back_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    x = uniform(400, 2)
    for pairs in (module._EXACT_PAIRS, 0):
        monkeypatch.setattr(module, "_EXACT_PAIRS", pairs)
        found = correlation_neighbors(gibbs(x.cuda()), x.cuda(), 8)
        assert found.device.type == "cuda"
        assert recall(found.cpu(), correlation_neighbors(gibbs(x), x, 8)) > 0.999  # rounding


def test_bad_input() -> None:
    x = uniform(20, 2)
    with pytest.raises(InputError, match=r"shape \(\d+, 1\).*one value for each"):
        correlation_neighbors(lambda i, j: rbf(x)(i, j).unsqueeze(-1), x, 3)
    with pytest.raises(InputError, match="returned 2 for the points 1 and 0"):
        correlation_neighbors(lambda i, j: 2.0 * torch.ones(len(i)), x, 3)
    with pytest.raises(InputError, match="returned nan"):
        correlation_neighbors(lambda i, j: torch.nan * torch.ones(len(i)), x, 3)
    with pytest.raises(InputError, match="at least 1"):
        correlation_neighbors(rbf(x), x, 0)
    with pytest.raises(InputError, match="first is 21"):
        correlation_neighbors(rbf(x), x, 3, 21)
    with pytest.raises(InputError, match=r"points has dtype torch\.int64"):
        correlation_neighbors(rbf(x), torch.zeros(20, 2, dtype=torch.int64), 3)
    with pytest.raises(InputError, match="NaN or infinite"):
        correlation_neighbors(rbf(x), x / 0.0, 3)
