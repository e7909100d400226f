"""One-operation bounds of Gaussian noise equal those of the conditioned posterior."""

import pytest
import torch
from torch import Tensor

from gpvi.approximations import Exact, GaussianProcess, InducingPoints, Sites
from gpvi.inference import elbo, tighter_elbo
from gpvi.kernels import parse_kernel, stationary_form
from gpvi.likelihoods import GaussianLikelihood

KNOWN_NOISE = GaussianLikelihood(learn_noise=False)
NUM_ROWS = 12


def uniform(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


X = uniform(NUM_ROWS, 2, seed=1, high=2.0)
Y = uniform(NUM_ROWS, seed=2, low=-2.0, high=2.0)


def process(spec: str, *batch: int) -> GaussianProcess:
    gp = GaussianProcess(parse_kernel(spec, 2, batch_shape=torch.Size(batch)))
    for index, parameter in enumerate(gp.parameters()):
        parameter.data += uniform(*parameter.shape, seed=20 + index, high=0.5)
    return gp


def reference(approximation, gp, x: Tensor, y: Tensor, noise: Tensor, tighter: bool) -> Tensor:
    rows = noise.expand_as(y)
    posterior = approximation.prior(gp, x).condition(Sites(y / rows, 1 / rows))
    objective = tighter_elbo if tighter else elbo
    if noise.dim() < 2:
        return objective(posterior, KNOWN_NOISE, y, noise=noise.expand(y.shape[-1]))
    return torch.stack(
        [
            objective(
                approximation.prior(gp, x).condition(Sites(y / rows, 1 / rows)),
                KNOWN_NOISE,
                y,
                noise=rows[i],
            )[i]
            for i in range(len(rows))
        ]
    )


def check(approximation, gp, x: Tensor, y: Tensor, noise: Tensor, tighter: bool) -> None:
    """Equal values, and equal gradients in all parameters and the noise."""
    noise = noise.clone().requires_grad_()
    parameters = [*gp.parameters(), *approximation.parameters(), noise]
    actual = approximation.collapsed_objective(gp, x, y, noise, tighter=tighter)
    expected = reference(approximation, gp, x, y, noise, tighter)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    weights = torch.arange(1.0, actual.numel() + 1.0).double().reshape(actual.shape)
    for one, other in zip(
        torch.autograd.grad((actual * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


NOISES = {"scalar": torch.tensor(0.3).double(), "per row": uniform(NUM_ROWS, seed=3, low=0.05)}


@pytest.mark.parametrize("tighter", [False, True])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("spec", ["matern52", "rbf", "matern52 + linear"])
@pytest.mark.parametrize("name", ["inducing", "exact"])
def test_one_operation_equals_the_contract(name, spec, noise, tighter):
    """On the fused route (matern52, rbf) and on the generic one (with a linear term)."""
    gp = process(spec)
    assert (stationary_form(gp.kernel) is None) == ("linear" in spec)
    points = uniform(4, 2, seed=4, high=2.0)
    approximation = Exact() if name == "exact" else InducingPoints(inducing_points=points)
    check(approximation, gp, X, Y, NOISES[noise], tighter)


@pytest.mark.parametrize("tighter", [False, True])
@pytest.mark.parametrize("own_points", [False, True])
@pytest.mark.parametrize("noise", ["scalar", "per row", "per latent"])
def test_batch_of_kernels(noise, own_points, tighter):
    """Latents with their own kernels, on shared or own inducing points."""
    points = uniform(*((3,) if own_points else ()), 4, 2, seed=4, high=2.0)
    value = uniform(3, 1, seed=5, low=0.1) if noise == "per latent" else NOISES[noise]
    y = uniform(3, NUM_ROWS, seed=6, low=-2.0, high=2.0)
    approximation = InducingPoints(inducing_points=points)
    check(approximation, process("matern52", 3), X, y, value, tighter)


def test_batch_of_data_sets():
    x = uniform(3, NUM_ROWS, 2, seed=1, high=2.0)
    y = uniform(3, NUM_ROWS, seed=2)
    approximation = InducingPoints(inducing_points=uniform(4, 2, seed=4, high=2.0))
    check(approximation, process("matern52"), x, y, NOISES["scalar"], True)


def test_mean_functions_and_the_jitter_option():
    import gpytorch

    mean = gpytorch.means.LinearMean(2).double()
    mean.weights.data = uniform(2, 1, seed=8)
    gp = GaussianProcess(parse_kernel("matern52", 2), mean)
    for jitter in (1e-10, 1e-2):
        points = uniform(4, 2, seed=4, high=2.0)
        approximation = InducingPoints(inducing_points=points, jitter=jitter)
        check(approximation, gp, X, Y, NOISES["scalar"], True)


def test_inputs_that_want_gradients_take_the_generic_route():
    x = X.clone().requires_grad_()
    approximation = InducingPoints(inducing_points=uniform(4, 2, seed=4, high=2.0))
    gp = process("matern52")
    value = approximation.collapsed_objective(gp, x, Y, NOISES["scalar"], tighter=True)
    (slope,) = torch.autograd.grad(value, x)
    expected = reference(approximation, gp, x, Y, NOISES["scalar"], True)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, x)[0], rtol=1e-6, atol=1e-7)
