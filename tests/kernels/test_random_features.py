"""Random features against the kernels that they stand for."""

import math
import pickle

import gpytorch
import pytest
import torch
from gpytorch.kernels import (
    ConstantKernel,
    CosineKernel,
    Kernel,
    MaternKernel,
    PeriodicKernel,
    PolynomialKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import (
    KERNELS,
    HalfIntegerMaternKernel,
    HammingKernel,
    LinearKernel,
    PowerKernel,
    WhiteKernel,
    draw_features,
    parse_kernel,
)
from gpvi.kernels._levels import level_uniforms
from gpvi.kernels._spectra import SPECTRA

NUM_INPUTS = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scrambled(kernel: Kernel) -> Kernel:
    """The kernel with a different value in every parameter."""
    kernel = kernel.double()
    with torch.no_grad():
        for position, parameter in enumerate(kernel.parameters()):
            offsets = torch.arange(parameter.numel(), dtype=parameter.dtype)
            parameter.copy_((0.2 + 0.2 * position + 0.1 * offsets).view_as(parameter))
    return kernel


def inputs(rows: int = 5) -> torch.Tensor:
    """Two continuous columns and one of levels, scaled alike."""
    x = torch.randn(rows, NUM_INPUTS, dtype=torch.float64, generator=seeded(3))
    x[:, 2] = torch.arange(rows) % 2
    return x


# Kernels with as many features as it takes.
FINITE = {
    "linear": lambda: LinearKernel(ard_num_dims=3),
    "gpytorch-linear": lambda: gpytorch.kernels.LinearKernel(),
    "constant": ConstantKernel,
    "cosine": lambda: CosineKernel(active_dims=(1,)),
    "linear-active": lambda: ScaleKernel(LinearKernel(active_dims=(2, 0))),
    "polynomial": lambda: PowerKernel(LinearKernel() + ConstantKernel(), 3),
    "products": lambda: LinearKernel() * CosineKernel(active_dims=(0,)) + ConstantKernel(),
    "batch": lambda: LinearKernel(batch_shape=torch.Size([2])) + ConstantKernel(),
}

RANDOM = {
    "rbf": lambda: RBFKernel(ard_num_dims=3),
    "rbf-shared": lambda: ScaleKernel(RBFKernel()),
    "matern12": lambda: MaternKernel(nu=0.5, ard_num_dims=3),
    "matern32": lambda: MaternKernel(nu=1.5),
    "matern52": lambda: MaternKernel(nu=2.5, ard_num_dims=3),
    "matern72": lambda: HalfIntegerMaternKernel(3, ard_num_dims=3),
    "rational-quadratic": lambda: RQKernel(ard_num_dims=3),
    "periodic": lambda: PeriodicKernel(ard_num_dims=3),
    "periodic-shared": lambda: PeriodicKernel(active_dims=(0, 1)),
    "hamming": lambda: HammingKernel(ard_num_dims=3),
    "hamming-active": lambda: ScaleKernel(HammingKernel(active_dims=(2,))),
    "active-twice": lambda: RBFKernel(active_dims=(1, 1)),
    "sum": lambda: RBFKernel(active_dims=(0,)) + LinearKernel() + HammingKernel(active_dims=(2,)),
    "product": lambda: RBFKernel(active_dims=(0, 1)) * HammingKernel(active_dims=(2,)),
    "same-factors": lambda: HammingKernel() * HammingKernel() * RBFKernel(),
    "linear-times-rbf": lambda: LinearKernel(ard_num_dims=3) * RBFKernel(),
    "product-of-sums": lambda: (
        (ScaleKernel(RBFKernel()) + LinearKernel() + HammingKernel(active_dims=(2,)))
        * (MaternKernel(nu=2.5) + ConstantKernel())
    ),
    "power": lambda: PowerKernel(RBFKernel() + ConstantKernel(), 2),
    "high-power": lambda: PowerKernel(LinearKernel(ard_num_dims=3), 5),
    "inner-active": lambda: PowerKernel(ScaleKernel(MaternKernel(nu=1.5, active_dims=(2, 0))), 2),
    "batch": lambda: ScaleKernel(
        RBFKernel(ard_num_dims=3, batch_shape=torch.Size([2])), batch_shape=torch.Size([2])
    ),
    "batch-of-one-part": lambda: (
        RBFKernel() + HammingKernel(batch_shape=torch.Size([2])) * PeriodicKernel()
    ),
    "batch-of-all": lambda: (
        RQKernel(batch_shape=torch.Size([2]))
        * PeriodicKernel(batch_shape=torch.Size([2]), ard_num_dims=3)
        * MaternKernel(nu=0.5, batch_shape=torch.Size([2]))
    ),
}


def gram(features, x: torch.Tensor) -> torch.Tensor:
    values = features(x)
    assert values.shape[-1] == 2 * features.num_features
    return values @ values.mT


@pytest.mark.parametrize("name", FINITE)
def test_finite_kernels_are_exact(name):
    kernel, x = scrambled(FINITE[name]()), inputs()
    features = draw_features(kernel, NUM_INPUTS, 200, seeded())
    torch.testing.assert_close(gram(features, x), kernel(x).to_dense().detach())


@pytest.mark.parametrize("count", [8, 61])
@pytest.mark.parametrize("name", RANDOM)
def test_few_features_are_right_on_average(name, count):
    """Numbers that no size of a part divides."""
    kernel, x = scrambled(RANDOM[name]()), inputs()
    generator = seeded(1)
    draws = torch.stack(
        [gram(draw_features(kernel, NUM_INPUTS, count, generator), x) for _ in range(300)]
    )
    expected = kernel(x).to_dense().detach()
    error = (draws.mean(0) - expected).abs()
    assert bool((error <= 5 * draws.std(0) / math.sqrt(len(draws)) + 1e-9).all())


@pytest.mark.parametrize("name", RANDOM)
def test_features_converge_to_the_kernel(name):
    kernel, x = scrambled(RANDOM[name]()), inputs()
    expected = kernel(x).to_dense().detach()
    scale = expected.diagonal(dim1=-2, dim2=-1).sqrt()

    def error(count: int, seed: int) -> float:
        features = draw_features(kernel, NUM_INPUTS, count, seeded(seed))
        error = (gram(features, x) - expected) / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
        return error.square().mean().item()

    few = sum(error(200, seed) for seed in range(10)) / 10
    many = error(20000, 0)
    assert many < 0.05**2 and many < few / 10 + 1e-24


# Names of kernels of one column stand for processes that have no frequencies to draw, and kernels on the
# sphere have harmonics in their place.
SPHERE = {"arc_cosine"} | {name for name in KERNELS if name.startswith("zonal_")}
WITHOUT = {"white"} | SPHERE | {name for name, entry in KERNELS.items() if entry.one_column}


@pytest.mark.parametrize("name", sorted(set(KERNELS) - WITHOUT))
def test_every_short_name_has_features(name):
    kernel = parse_kernel(name, NUM_INPUTS, batch_shape=torch.Size([2]), dtype=torch.float32)
    features = draw_features(kernel, NUM_INPUTS, 30, seeded())
    values = features(inputs().float())
    assert values.dtype == torch.float32 and values.shape == (2, 5, 2 * features.num_features)


def test_every_spectrum_is_compared():
    kinds = {type(part) for make in RANDOM.values() for part in make().modules()}
    assert set(SPECTRA) <= kinds


def test_periodic_kernel_of_small_lengthscale():
    """Many harmonics, where Bessel functions themselves would overflow."""
    kernel = PeriodicKernel().double()
    kernel.lengthscale, kernel.period_length = 1e-3, 0.7
    x = torch.linspace(0, 0.1, 6, dtype=torch.float64).unsqueeze(-1)
    features = draw_features(kernel, 1, 20000, seeded())
    torch.testing.assert_close(gram(features, x), kernel(x).to_dense(), rtol=0.0, atol=0.05)


def test_generators_decide_and_the_global_one_is_left_alone():
    kernel, x = scrambled(RANDOM["product-of-sums"]()), inputs()
    before = torch.get_rng_state()
    first, again, other = (draw_features(kernel, NUM_INPUTS, 60, seeded(s))(x) for s in (1, 1, 2))
    unseeded = draw_features(kernel, NUM_INPUTS, 60)(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, unseeded)


def test_features_are_functions():
    """Values do not depend on other rows, nor change over copies."""
    kernel, x = scrambled(RANDOM["product-of-sums"]()), inputs(9)
    features = draw_features(kernel, NUM_INPUTS, 60, seeded())
    values = features(x)
    copy = pickle.loads(pickle.dumps(features))
    assert torch.equal(copy(x), values)
    for row in range(9):
        torch.testing.assert_close(features(x[row : row + 1]), values[row : row + 1])
    assert features(x.expand(4, 1, 9, 3)).shape == (4, 1, *values.shape)


def test_gradients_with_respect_to_inputs():
    kernel = scrambled(RBFKernel(ard_num_dims=3) * LinearKernel() + HammingKernel(active_dims=(2,)))
    features = draw_features(kernel, NUM_INPUTS, 6, seeded())
    assert not features.scale.requires_grad
    x = inputs(2)

    def values(smooth: torch.Tensor) -> torch.Tensor:
        return features(torch.cat([smooth, x[:, 2:]], -1))

    assert torch.autograd.gradcheck(values, x[:, :2].clone().requires_grad_())


def test_numbers_of_levels():
    codes = torch.cat(
        [torch.arange(-50, 50).double() / 7, torch.tensor([0.0, -0.0, 1e300, 5e-324])]
    )
    seeds = torch.randint(-(2**63), 2**63 - 1, (400,), generator=seeded(4))
    numbers = level_uniforms(codes, seeds)
    assert bool(((numbers >= 0) & (numbers < 1)).all())
    assert torch.equal(numbers[100], numbers[101])  # 0 equals -0
    # One by one as together: the position among other levels does not count.
    for n in (0, 17, 103):
        assert torch.equal(level_uniforms(codes[n : n + 1], seeds)[0], numbers[n])
    block = numbers[:100]
    quantiles = torch.histc(block, bins=20, min=0.0, max=1.0) / block.numel()
    assert bool(((quantiles - 0.05).abs() < 6 * math.sqrt(0.05 / block.numel())).all())
    for values in (block, block.mT):
        centred = (values - 0.5) * math.sqrt(12)
        correlation = centred @ centred.mT / values.shape[1]
        off = correlation[~torch.eye(len(values), dtype=torch.bool)]
        assert off.abs().max() < 6 / math.sqrt(values.shape[1])


@pytest.mark.parametrize(
    "make", [WhiteKernel, lambda: RBFKernel() + WhiteKernel(), lambda: RBFKernel() * WhiteKernel()]
)
def test_white_noise_is_no_function(make):
    with pytest.raises(UnsupportedError, match=r"WhiteKernel has no random features.*rsample"):
        draw_features(make(), NUM_INPUTS)


def test_unknown_kernels_are_named():
    class Mine(RBFKernel):
        pass

    for kernel, name in ((PolynomialKernel(power=2), "PolynomialKernel"), (Mine(), "Mine")):
        with pytest.raises(UnsupportedError, match=f"{name} has no random features.*rsample"):
            draw_features(ScaleKernel(kernel) + RBFKernel(), NUM_INPUTS)
    with pytest.raises(UnsupportedError, match="CosineKernel of 3 columns"):
        draw_features(CosineKernel(), NUM_INPUTS)


def test_impossible_arguments():
    for number in (0, -1, 2.5, True):
        with pytest.raises(InputError, match="num_features"):
            draw_features(RBFKernel(), NUM_INPUTS, number)
    with pytest.raises(InputError, match="terms of a sum inside a product"):
        draw_features((RBFKernel() + HammingKernel()) * RBFKernel(), NUM_INPUTS, 1)
    with pytest.raises(InputError, match="active_dims"):
        draw_features(RBFKernel(active_dims=(3,)), NUM_INPUTS)
    with pytest.raises(InputError, match=r"need \(\.\.\., N, 3\)"):
        draw_features(RBFKernel(), NUM_INPUTS, 4)(torch.zeros(5, 2))
