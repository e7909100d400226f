"""Evidence of noisy responses: dense conditionals, duplicates, gradients, subsets."""

import itertools
import math

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.approximations import GaussianProcess, SparseInverseCholesky
from gpvi.approximations.neighbor_geometry import GeometryOptions, NeighborGeometry
from gpvi.approximations.response_evidence import response_evidence

KERNELS = ("fused", "generic", "batched")


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def process(name: str = "fused") -> GaussianProcess:
    """With a closed form, without one, and a batch of two."""
    batch = torch.Size([2]) if name == "batched" else torch.Size()
    base = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=2, batch_shape=batch).double()
    base.lengthscale = torch.tensor([0.4, 0.7]).double()
    if name == "generic":
        base = base + gpytorch.kernels.RBFKernel().double()
    kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=batch).double()
    if name == "batched":
        kernel.outputscale = torch.tensor([0.8, 2.0]).double()
    mean = gpytorch.means.ConstantMean(batch_shape=batch).double()
    mean.constant.data.fill_(0.3)
    return GaussianProcess(kernel, mean)


def geometry(gp: GaussianProcess, x: Tensor, m: int, ordering: str = "maximin") -> NeighborGeometry:
    options = GeometryOptions(m, m, ordering, "euclidean", 0)
    return NeighborGeometry.build(gp, x.unsqueeze(0), options)


def responses(x: Tensor) -> Tensor:
    return (4 * x[:, 0]).sin() + 0.2 * random(len(x), seed=7)


def exact(gp: GaussianProcess, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    covariance = gp.covariance(x) + noise.expand(len(x)).diag()
    return torch.distributions.MultivariateNormal(gp.mean(x), covariance).log_prob(y)


def conditionals(
    gp: GaussianProcess, places: NeighborGeometry, x: Tensor, y: Tensor, noise: Tensor
) -> Tensor:
    """Log density of every response given its neighbours, one after the other."""
    order, rows = places.first[0], []
    K = gp.covariance(x) + noise.expand(len(x)).diag()
    centred = y - gp.mean(x)
    for i, near in enumerate(places.neighbors[0]):
        s, own = order[near[near >= 0].long()], order[i]
        weights = torch.linalg.solve(K[..., s, :][..., s], K[..., s, own].unsqueeze(-1)).squeeze(-1)
        mean = (weights * centred[..., s]).sum(-1)
        variance = K[..., own, own] - (weights * K[..., s, own]).sum(-1)
        rows.append(
            -0.5 * ((centred[..., own] - mean).square() / variance + (2 * math.pi * variance).log())
        )
    return torch.stack(rows, -1)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("ordering", ["maximin", "random"])
@pytest.mark.parametrize("per_row", [False, True])
def test_dense_conditionals(name: str, ordering: str, per_row: bool) -> None:
    gp, x = process(name), random(40, 2)
    y, noise = (
        responses(x),
        0.05 + 0.1 * random(40, seed=2) if per_row else torch.tensor(0.1).double(),
    )
    places = geometry(gp, x, 6, ordering)
    found = response_evidence(gp, places, x, y, noise)
    wanted = conditionals(gp, places, x, y, noise).sum(-1)
    assert found.shape == gp.batch_shape
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_full_pattern_is_the_exact_evidence(name: str) -> None:
    gp, x = process(name), random(30, 2)
    y, noise = responses(x), torch.tensor(0.1).double()
    found = response_evidence(gp, geometry(gp, x, 29), x, y, noise)
    torch.testing.assert_close(found, exact(gp, x, y, noise), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("per_row", [False, True])
def test_duplicates_are_merged(name: str, per_row: bool) -> None:
    """One response per location, with the noise of its rows, is the density of them all."""
    gp, distinct = process(name), random(20, 2)
    x = torch.cat([distinct, distinct[:9], distinct[:4]])
    y = responses(x)
    noise = 0.05 + random(33, seed=2) if per_row else torch.tensor(0.1).double()
    places = geometry(gp, x, 19)
    assert places.num_locations == 20
    found = response_evidence(gp, places, x, y, noise)
    torch.testing.assert_close(found, exact(gp, x, y, noise), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("duplicates", [0, 8])
def test_gradient(name: str, duplicates: int) -> None:
    gp, distinct = process(name), random(30, 2)
    x = torch.cat([distinct, distinct[:duplicates]])
    y, places = responses(x), geometry(gp, x, 5)
    noise = (0.05 + 0.1 * random(len(x), seed=2)).requires_grad_(True)
    parameters = [*gp.parameters(), noise]
    grads = torch.autograd.grad(response_evidence(gp, places, x, y, noise).sum(), parameters)
    for parameter, grad in zip(parameters, grads, strict=True):
        values, step = [], 1e-5
        direction = torch.ones_like(parameter)
        direction.view(-1)[0] = 2.0
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                values.append(response_evidence(gp, places, x, y, noise).sum().item())
                parameter -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * step)
        assert float((grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("duplicates", [0, 5])
def test_subsets_average_to_the_whole(name: str, duplicates: int) -> None:
    gp, distinct = process(name), random(10, 2)
    x = torch.cat([distinct, distinct[:duplicates]])
    y, noise, places = responses(x), torch.tensor(0.1).double(), geometry(gp, x, 4)
    subsets = itertools.combinations(range(10), 3)
    with torch.no_grad():
        parts = [
            response_evidence(gp, places, x, y, noise, places=torch.tensor(part))
            for part in subsets
        ]
        whole = response_evidence(gp, places, x, y, noise)
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-9, atol=1e-9)


def test_batch_of_targets() -> None:
    gp, x = process(), random(25, 2)
    y, noise = torch.stack([responses(x), -responses(x)]), torch.tensor([[0.1], [0.3]]).double()
    places = geometry(gp, x, 5)
    found = response_evidence(gp, places, x, y, noise.expand(2, 25))
    wanted = [conditionals(gp, places, x, y[i], noise[i]).sum() for i in range(2)]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-9, atol=1e-9)


def test_single_precision() -> None:
    gp, x = process(), random(60, 2)
    y, noise, places = responses(x), torch.tensor(0.1).double(), geometry(gp, x, 8)
    wide = response_evidence(gp, places, x, y, noise)
    single = response_evidence(gp.float(), places, x.float(), y.float(), noise.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(wide.item(), rel=1e-4)


def test_one_location() -> None:
    gp, x = process(), torch.ones(4, 2, dtype=torch.float64)
    y, noise = responses(random(4, 2)), torch.tensor(0.1).double()
    found = response_evidence(gp, geometry(gp, x, 3), x, y, noise)
    torch.testing.assert_close(found, exact(gp, x, y, noise), rtol=1e-9, atol=1e-9)


class TestCollapsedObjective:
    def test_terms(self) -> None:
        gp, x = process(), random(40, 2)
        y, noise = responses(x), torch.tensor(0.1).double()
        approximation = SparseInverseCholesky(5)
        plan = approximation.plan(x)
        generator = torch.Generator().manual_seed(0)
        terms = approximation.sample_terms(gp, plan, 10, generator)
        assert terms is not None and terms.dtype == torch.int64
        assert len(terms.unique()) == 10 and int(terms.max()) < 40
        value = approximation.collapsed_objective(
            gp, x, y, noise, tighter=True, plan=plan, terms=terms
        )
        rows = conditionals(gp, plan.geometry(gp), x, y, noise)
        torch.testing.assert_close(value, 4 * rows[terms].sum(), rtol=1e-9, atol=1e-9)
        # Of fewer than four times as many there is nothing to gain.
        assert approximation.sample_terms(gp, plan, 11, generator) is None

    def test_evidence_of_the_function_has_no_such_form(self) -> None:
        gp, x = process(), random(40, 2)
        approximation = SparseInverseCholesky(5, evidence="function")
        plan, noise = approximation.plan(x), torch.tensor(0.1).double()
        assert approximation.collapsed_objective(gp, x, responses(x), noise, tighter=True) is None
        assert approximation.sample_terms(gp, plan, 5, torch.Generator()) is None
