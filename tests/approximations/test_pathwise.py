"""Sampled functions against the joint distribution of the posterior."""

import copy
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
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from torch import Tensor

from gpvi.approximations import (
    Exact,
    GaussianProcess,
    InducingPoints,
    Paths,
    Posterior,
    Sites,
    sample_paths,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import HammingKernel, LinearKernel, PowerKernel, WhiteKernel

NUM_PATHS = 4000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def has_functions(problem) -> bool:
    """White noise has no function, other domains have no function values, and flat groups have one each."""
    entry = problem.entry
    return entry.samples_anywhere and entry.has_paths and problem.groups is None


def assert_moments(paths: Paths, posterior: Posterior, x: Tensor, feature_error: float) -> None:
    """Sample moments at inputs within Monte Carlo error, and that of the features."""
    samples = paths(x)
    assert not samples.requires_grad
    q = posterior.predict(x, joint=True)
    mean, covariance = q.mean.detach(), q.covariance_matrix.detach()
    assert samples.shape == (len(samples), *mean.shape)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    prior = posterior.prior.gp.variance(x).detach()
    bound = 6 * ((variance + feature_error * prior) / len(samples)).sqrt() + 1e-6
    assert bool(((samples.mean(0) - mean).abs() < bound).all())
    centred = (samples - samples.mean(0)).movedim(0, -1)
    estimate = centred @ centred.mT / len(samples)
    spread = variance.unsqueeze(-1) * variance.unsqueeze(-2) + covariance.square()
    allowed = feature_error * (prior.unsqueeze(-1) * prior.unsqueeze(-2)).sqrt()
    error = (estimate - covariance).abs()
    assert bool((error < 6 * (spread / len(samples)).sqrt() + allowed + 1e-6).all())


def test_paths_have_the_joint_moments(problem):
    posterior = problem.posterior()
    if not has_functions(problem):
        with pytest.raises(UnsupportedError, match=r"no random features|functions of"):
            sample_paths(posterior, 2)
        return
    paths = sample_paths(posterior, NUM_PATHS, num_features=500, generator=seeded(1))
    assert paths.num_paths == NUM_PATHS
    x = torch.cat([problem.x[..., :3, :], problem.new_inputs()[0]], -2)
    assert_moments(paths, posterior, x, 0.1)


def test_paths_where_q_is_wider_than_the_prior(problem):
    if not has_functions(problem):
        pytest.skip("has no functions")
    lam2 = problem.sites.lam2.clone()
    lam2[..., 0] = problem.entry.lowest_precision
    posterior = problem.with_sites(problem.sites.lam1, lam2).posterior()
    paths = sample_paths(posterior, NUM_PATHS, num_features=500, generator=seeded(2))
    assert_moments(paths, posterior, problem.new_inputs()[0], 0.1)


def test_compacted_posteriors_have_the_same_paths(problem):
    if not has_functions(problem):
        pytest.skip("has no functions")
    posterior = problem.posterior()
    x, _ = problem.new_inputs()
    whole, small = (
        sample_paths(p, 3, num_features=40, generator=seeded(3))(x)
        for p in (posterior, posterior.compact().detach())
    )
    torch.testing.assert_close(whole, small, rtol=1e-7, atol=1e-7)


def test_paths_of_one_group(grouped_problem):
    """Padding rows, which are copies of real ones, have no say."""
    posterior = grouped_problem.posterior()
    entry = grouped_problem.entry
    if not (entry.samples_anywhere and entry.has_paths and hasattr(posterior, "inner")):
        pytest.skip("groups have no functions")
    inner = posterior.inner
    paths = sample_paths(inner, NUM_PATHS, num_features=400, generator=seeded(4))
    assert_moments(paths, inner, inner.prior.x[..., :2, :], 0.12)
    assert_moments(paths, inner, grouped_problem.new_inputs()[0], 0.12)
    if grouped_problem.entry.finite_basis:
        return
    lam2 = grouped_problem.sites.lam2.clone()
    lam2[..., 0] = grouped_problem.entry.lowest_precision
    wide = grouped_problem.with_sites(grouped_problem.sites.lam1, lam2).posterior().inner
    paths = sample_paths(wide, NUM_PATHS, num_features=400, generator=seeded(4))
    assert_moments(paths, wide, grouped_problem.new_inputs()[0], 0.12)


KERNELS = {
    "rbf": lambda: RBFKernel(ard_num_dims=2),
    "matern12": lambda: MaternKernel(nu=0.5),
    "matern52": lambda: ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2)),
    "rational-quadratic": lambda: RQKernel(),
    "periodic": lambda: PeriodicKernel(),
    "cosine": lambda: CosineKernel(active_dims=(0,)) + ConstantKernel(),
    "linear": lambda: LinearKernel(ard_num_dims=2),
    "hamming": lambda: HammingKernel(active_dims=(1,)),
    "mixed": lambda: RBFKernel(active_dims=(0,)) * HammingKernel(active_dims=(1,)) + LinearKernel(),
    "polynomial": lambda: PowerKernel(LinearKernel() + ConstantKernel(), 2),
}


def problem_of(kernel: Kernel, rows: int = 12) -> tuple[GaussianProcess, Tensor, Sites]:
    x = torch.rand(rows, 2, dtype=torch.float64, generator=seeded(5)) * 3
    x[:, 1] = x[:, 1].floor()
    mean = gpytorch.means.ConstantMean()
    mean.initialize(constant=0.7)
    lam2 = torch.full((rows,), 20.0, dtype=torch.float64)
    lam2[0] = 0.0
    return GaussianProcess(kernel, mean).double(), x, Sites(lam2 * x[:, 0].sin(), lam2)


@pytest.mark.parametrize("approximation", ["exact", "inducing"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel(name, approximation):
    gp, x, sites = problem_of(KERNELS[name]())
    z = torch.tensor([[0.3, 0.0], [1.5, 1.0], [2.5, 2.0], [1.0, 0.0]], dtype=torch.float64)
    chosen = Exact() if approximation == "exact" else InducingPoints(inducing_points=z)
    # Kernels of few features are singular at these inputs.
    jitter = 1e-6 if name in ("linear", "cosine", "hamming") else None
    if approximation == "inducing" and jitter is not None:
        chosen = InducingPoints(inducing_points=z, jitter=jitter)
    posterior = chosen.prior(gp, x).condition(sites)
    paths = sample_paths(posterior, NUM_PATHS, num_features=1000, generator=seeded(6))
    # The last level appears here for the first time.
    new = torch.tensor([[0.1, 0.0], [0.1, 1.0], [2.0, 2.0], [4.0, 3.0]], dtype=torch.float64)
    assert_moments(paths, posterior, torch.cat([x[:2], new]), 0.1)


def small_paths(num_paths: int = 3, seed: int = 0) -> Paths:
    gp, x, sites = problem_of(KERNELS["mixed"]())
    posterior = Exact().prior(gp, x).condition(sites)
    return sample_paths(posterior, num_paths, num_features=50, generator=seeded(seed))


def test_paths_are_functions(monkeypatch):
    paths, x = small_paths(), problem_of(KERNELS["mixed"]())[1]
    values = paths(x)
    assert torch.equal(paths(x), values)
    for row in (0, 5, 11):
        torch.testing.assert_close(paths(x[row : row + 1]), values[:, row : row + 1])
    torch.testing.assert_close(paths(x.flip(0)), values.flip(-1))
    # Inputs [3, 1, N, D] meet the batch of paths, here none.
    assert paths(x.expand(3, 1, *x.shape)).shape == (3, 3, 1, len(x))
    # Chunks of a single row.
    monkeypatch.setattr("gpvi.approximations.pathwise._CHUNK", 1)
    torch.testing.assert_close(paths(x), values)
    assert paths(x[:0]).shape == (3, 0)


def test_copies_are_the_same_functions():
    paths, x = small_paths(), problem_of(KERNELS["mixed"]())[1]
    for twin in (pickle.loads(pickle.dumps(paths)), copy.deepcopy(paths)):
        assert torch.equal(twin(x), paths(x))


def test_generators_decide_and_the_global_one_is_left_alone():
    x = problem_of(KERNELS["mixed"]())[1]
    state = torch.get_rng_state()
    first, again, other = small_paths(seed=1)(x), small_paths(seed=1)(x), small_paths(seed=2)(x)
    gp, rows, sites = problem_of(KERNELS["mixed"]())
    unseeded = sample_paths(Exact().prior(gp, rows).condition(sites), 3, num_features=50)(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other) and not torch.allclose(first, unseeded)


def test_gradients_with_respect_to_inputs():
    gp, x, sites = problem_of(RBFKernel(ard_num_dims=2) * LinearKernel())
    paths = sample_paths(
        Exact().prior(gp, x).condition(sites), 2, num_features=9, generator=seeded()
    )
    assert torch.autograd.gradcheck(paths, x[:2].clone().requires_grad_())


def test_paths_outlive_the_optimiser():
    gp, x, sites = problem_of(RBFKernel())
    paths = sample_paths(
        Exact().prior(gp, x).condition(sites), 2, num_features=9, generator=seeded()
    )
    before = paths(x)
    with torch.no_grad():
        for parameter in gp.parameters():
            parameter.add_(1.0)
    assert torch.equal(paths(x), before)


def test_paths_meet_exact_data():
    """With hardly any noise every function goes through the targets, whatever the features."""
    gp, x, _ = problem_of(ScaleKernel(MaternKernel(nu=1.5)))
    y, noise = x.sum(-1).cos(), 1e-8
    sites = Sites(y / noise, torch.full_like(y, 1 / noise))
    paths = sample_paths(
        Exact().prior(gp, x).condition(sites), 50, num_features=100, generator=seeded()
    )
    error = paths(x) - y
    assert error.abs().max() < 6 * math.sqrt(noise)


def test_single_precision():
    gp, x, sites = problem_of(ScaleKernel(MaternKernel(nu=1.5)))
    single = Sites(sites.lam1.float(), sites.lam2.float())
    posterior = Exact().prior(gp.float(), x.float()).condition(single)
    paths = sample_paths(posterior, NUM_PATHS, num_features=500, generator=seeded(8))
    assert paths(x.float()).dtype == torch.float32
    assert_moments(paths, posterior, x[:4].float(), 0.1)


def test_impossible_arguments():
    gp, x, sites = problem_of(RBFKernel())
    posterior = Exact().prior(gp, x).condition(sites)
    for number in (0, -2, 1.5, True):
        with pytest.raises(InputError, match="num_paths"):
            sample_paths(posterior, number)
    with pytest.raises(InputError, match="num_features"):
        sample_paths(posterior, 2, num_features=0)
    paths = sample_paths(posterior, 2, num_features=4)
    with pytest.raises(InputError, match="shape"):
        paths(x[:, 0])
    with pytest.raises(InputError, match="float32"):
        paths(x.float())
    gp, x, sites = problem_of(RBFKernel(batch_shape=torch.Size([2])))
    paths = sample_paths(Exact().prior(gp, x).condition(sites), 2, num_features=4)
    with pytest.raises(InputError, match="batch shape"):
        paths(x.expand(3, *x.shape))


def test_what_has_no_function_says_so():
    gp, x, sites = problem_of(RBFKernel() + WhiteKernel())
    with pytest.raises(UnsupportedError, match="WhiteKernel"):
        sample_paths(Exact().prior(gp, x).condition(sites), 2)
    gp, x, sites = problem_of(gpytorch.kernels.PolynomialKernel(power=2))
    with pytest.raises(UnsupportedError, match=r"PolynomialKernel.*rsample"):
        sample_paths(Exact().prior(gp, x).condition(sites), 2)

    class Bare:
        """A process without a kernel attribute."""

        def __init__(self, gp: GaussianProcess) -> None:
            self.batch_shape, self.mean = gp.batch_shape, gp.mean
            self.covariance, self.variance = gp.covariance, gp.variance

        def snapshot(self) -> "Bare":
            return self

        detach = snapshot

    with pytest.raises(UnsupportedError, match="Bare has no kernel"):
        sample_paths(Exact().prior(Bare(gp), x).condition(sites), 2)
