"""Both engines against dense formulas, for every kernel that has a state-space form."""

from collections.abc import Callable

import gpytorch
import pytest
import torch
from torch import Tensor

import gpvi.kernels
from gpvi.kernels import StateSpaceKernel, as_state_space, parse_kernel
from gpvi.linalg import Steps, markov_path, markov_smooth
from gpvi.linalg.markov.tensor_engine import tensor_state_path

PLACES = torch.tensor([[0.0], [0.7], [2.0]], dtype=torch.float64)


def _space_time() -> gpytorch.kernels.Kernel:
    time = gpytorch.kernels.MaternKernel(nu=1.5)
    return gpvi.kernels.SpaceTimeKernel(time, gpytorch.kernels.RBFKernel(), PLACES)


# Of the whole package; each takes stamps from zero on.
OWN: dict[str, Callable[[], gpytorch.kernels.Kernel]] = {
    "HalfIntegerMaternKernel": lambda: gpvi.kernels.HalfIntegerMaternKernel(3),
    "HidaMaternKernel": lambda: gpvi.kernels.HidaMaternKernel(2),
    "HidaMaternMixture": lambda: gpvi.kernels.HidaMaternMixture(2, 1),
    "QuasiPeriodicKernel": lambda: gpvi.kernels.QuasiPeriodicKernel(1, tolerance=1e-12),
    "SeasonalKernel": lambda: gpvi.kernels.SeasonalKernel(tolerance=1e-12),
    "IntegratedWienerKernel": lambda: gpvi.kernels.IntegratedWienerKernel(2),
    "MarkovFractionalBrownianKernel": lambda: gpvi.kernels.MarkovFractionalBrownianKernel(5),
    "FractionalOUKernel": lambda: gpvi.kernels.FractionalOUKernel(5),
    "SpaceTimeKernel": _space_time,
    "MarkovKernel": lambda: gpvi.kernels.MarkovKernel(gpytorch.kernels.MaternKernel(nu=2.5)),
}
KERNELS = OWN | {
    name: (lambda name=name: parse_kernel(name, 1))
    for name in (
        "matern12",
        "matern32",
        "matern52",
        "constant",
        "linear",
        "matern52 * matern32",
        "matern12 * linear",
        "cosine(0.8) * matern32",
        "matern12 + cosine(1.3)",
    )
}


def problem(name: str, rows: int) -> tuple[gpytorch.kernels.Kernel, Tensor, Tensor, Tensor]:
    """Kernel, sorted rows with a repeated stamp, and sites of which one is missing."""
    generator = torch.Generator().manual_seed(rows)
    t = 3 * torch.rand(rows, dtype=torch.float64, generator=generator).sort().values
    if rows > 2:
        t[rows // 2] = t[rows // 2 - 1]
    x = t.unsqueeze(-1)
    if name == "SpaceTimeKernel":
        x = torch.cat([x, PLACES[torch.arange(rows) % 3]], -1)
    lam2 = 4 * torch.rand(rows, dtype=torch.float64, generator=generator)
    lam2[rows // 3] = 0.0
    lam1 = torch.randn(rows, dtype=torch.float64, generator=generator) * (lam2 > 0)
    return KERNELS[name]().double(), x, lam1, lam2


def test_every_own_kernel_is_here() -> None:
    known = {
        name
        for name in gpvi.kernels.__all__
        if isinstance(cls := getattr(gpvi.kernels, name), type)
        and issubclass(cls, gpytorch.kernels.Kernel)
        and hasattr(cls, "state_space")
    }
    assert known == set(OWN)
    assert all(isinstance(build(), StateSpaceKernel) for build in OWN.values())


@pytest.mark.parametrize("rows", [1, 2, 3, 257])
@pytest.mark.parametrize("name", KERNELS)
def test_engines_equal_dense_formulas(name: str, rows: int) -> None:
    kernel, x, lam1, lam2 = problem(name, rows)
    with torch.no_grad():
        model, steps = as_state_space(kernel).model(x), Steps.single(x[:, 0])
        K = kernel(x).to_dense().clone()
        system = torch.eye(rows, dtype=K.dtype) + lam2.unsqueeze(-1) * K
        covariance = torch.linalg.solve(system.mT, K.mT).mT
        mean = covariance @ lam1
        total = 0.5 * (lam1 @ mean - torch.linalg.slogdet(system).logabsdet)
        for engine in ("compiled", "tensor"):
            found = markov_smooth(model, steps, lam1, lam2, engine=engine)
            torch.testing.assert_close(found.log_partition[0], total, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(found.mean, mean, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(found.variance, covariance.diagonal(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["matern52", "IntegratedWienerKernel", "SpaceTimeKernel"])
def test_states_of_both_engines(name: str) -> None:
    """Smoothed moments and covariances of neighbouring states."""
    kernel, x, lam1, lam2 = problem(name, 23)
    with torch.no_grad():
        model, steps = as_state_space(kernel).model(x), Steps.single(x[:, 0])
        compiled = markov_path(model, steps, lam1, lam2, engine="compiled").state_path()
        scanned = tensor_state_path(model, steps, lam1, lam2)
        for ours, theirs in (
            (compiled.smoothed_mean(), scanned.smoothed_mean()),
            (compiled.smoothed_covariance(), scanned.smoothed_covariance()),
            (compiled.lag_one(model, steps, lam2), scanned.lag_one(model, steps, lam2)),
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
